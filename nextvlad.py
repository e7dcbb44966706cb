"""The layers of NeXtVLAD and of a mixture of NeXtVLADs.

Letters in formulas and einsums: B batch, N samplings, T frames, D features, G groups, K clusters,
J size of a group, H hidden units, C classes, M branches.

Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
"""

import keras
from keras import ops

import layers
import nonlocal_vlad
from stored_matrix import to_float


class AfterExpansion(layers.Linear):
    """Linear layer over expanded frames E x + e, computed from the frames x themselves.

        output = W (E x + e) + b,  or  BN(W (E x + e))

    The expansion has no activation, so W E is one matrix. It is computed first, because it has
    fewer rows than W, and there are many frames.

    Args:
        units: int. Size of the output.
        expansion: built `layers.Linear` with the weights E and e.
        **kwargs: as in `layers.Linear`.

    Input shape: frames `[B, T, D]` or `StoredFrames`, for batch normalization with `row_weights`,
    `[B, T]`. Output shape: `[B, T, units]`.
    """

    def __init__(self, units, expansion, **kwargs):
        super().__init__(units, **kwargs)
        self.expansion = expansion
        self.composed = False

    def build(self, *_):
        """Creates W, and b or the normalization."""
        super().build((None, None, self.expansion.units))

    def project(self, x, kernel):
        """Multiplies frames by W E; see `layers.MatmulLayer.project`."""
        if self.composed:
            return super().project(x, kernel[: layers.row_size(x.shape)])
        rows, offset = super().project(x, self._composition(kernel))
        constant = self._constant()
        return rows, constant if offset is None else constant + offset

    def fold(self):
        """Replaces W by W E in the first rows of its matrix, for prediction."""
        super().fold()
        composed = self._composition(self.kernel)
        (self.bias if self.norm is None else self.norm.beta).assign_add(self._constant())
        unused_rows = self.kernel.shape[0] - composed.shape[0]
        self.kernel.assign(ops.pad(composed, ((0, unused_rows), (0, 0))))
        self.composed = True

    def _composition(self, kernel):
        """Returns W E, float32."""
        return self.matmul(to_float(self.expansion.kernel, "float32"), kernel)

    def _constant(self):
        """Returns W e, float32."""
        return ops.matmul(self.expansion.bias, to_float(self.kernel, "float32"))


class NeXtVLAD(layers.MatmulLayer):
    """NetVLAD of groups of a frame's entries, which share the cluster centers.

    A frame is expanded and cut into G groups; each group attends and is assigned to K clusters:

        x' = E x + e,  x'_g = group g of x'
        a_g(x) = sigmoid(W_g . x' + b_g),  a_gk(x) = softmax_k(BN(w_gk . x'))
        v_k = sum_i n_i sum_g a_g(x_i) a_gk(x_i) (x'_ig - c_k)

    with the weight n of each frame: 0 for padding, otherwise how often the frame counts. Then each
    v_k is scaled to L2 norm 1.

    Args:
        expanded_size: int. Size of x'.
        groups: int. G, a divisor of `expanded_size`.
        clusters: int. K.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, K * J]` or
    `[B * N, K * J]`, where J is `expanded_size / groups`.
    """

    def __init__(self, expanded_size, groups, clusters, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.clusters = groups, clusters
        self.group_size = expanded_size // groups
        self.expansion = layers.Linear(expanded_size, initializer="he_normal", name="expansion")
        self.attention = AfterExpansion(
            groups, self.expansion, initializer="he_normal", name="attention"
        )
        self.assignment = AfterExpansion(
            groups * clusters,
            self.expansion,
            batch_norm=True,
            initializer="he_normal",
            name="assignment",
        )

    def build(self, frames_shape, *_):
        """Creates the expansion, the layers after it and the centers c, `[K, J]`."""
        for layer in (self.expansion, self.attention, self.assignment):
            layer.build(frames_shape)
        # The "fan out" of this shape is J, the number of inputs of a center's distances.
        initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
        self.centers = self.add_weight(
            shape=(self.clusters, self.group_size), initializer=initializer, name="centers"
        )

    def call(self, frames, frame_weights, training=False):
        """Returns the v_k, one after the other, `[B, K * J]` or `[B * N, K * J]`."""
        attention = ops.sigmoid(self.attention(frames))
        logits = self.assignment(frames, frame_weights, training=training)
        logits = ops.reshape(logits, (-1, ops.shape(logits)[1], self.groups, self.clusters))
        assignments = ops.softmax(logits)
        weights, attention, assignments, groups = nonlocal_vlad.per_sampling(
            frame_weights, attention, assignments, self.expansion(frames)
        )
        # From here on, the groups are frames of their own.
        count = ops.shape(weights)[2] * self.groups
        weights = weights[..., None] * attention[:, None]
        weights = ops.reshape(weights, (-1, weights.shape[1], count))
        assignments = ops.reshape(assignments, (-1, count, self.clusters))
        groups = ops.reshape(groups, (-1, count, self.group_size))
        residuals = nonlocal_vlad.pool_samplings(self, groups, assignments, weights, self.centers)
        vectors = layers.l2_normalize(residuals)
        return ops.reshape(vectors, (-1, self.clusters * self.group_size))


class SqueezeExcitation(layers.Float32Layer):
    """Scales every entry of a vector by a gate computed through a bottleneck.

        output = x * sigmoid(U relu(BN(V x)))

    Args:
        reduction: int. The bottleneck has H / reduction units.

    Input shape: `[B, H]`. Output shape: `[B, H]`.

    Reference: [Hu et al., 2018](https://arxiv.org/abs/1709.01507).
    """

    def __init__(self, reduction, **kwargs):
        super().__init__(**kwargs)
        self.reduction = reduction

    def build(self, input_shape):
        """Creates V, `[H, H / reduction]`, its normalization, and U, `[H / reduction, H]`."""
        width = input_shape[-1]
        squeezed = width // self.reduction
        self.squeeze = layers.Linear(
            squeezed, batch_norm=True, initializer="he_normal", name="squeeze"
        )
        self.excite = layers.Linear(width, use_bias=False, initializer="he_normal", name="excite")
        self.squeeze.build(input_shape)
        self.excite.build((None, squeezed))

    def call(self, x, training=False):
        """Gates `x`, `[B, H]`."""
        squeezed = ops.relu(self.squeeze(x, training=training))
        return x * ops.sigmoid(self.excite(squeezed))


class Encoder(layers.Float32Layer):
    """Encodes the frames of a video into one hidden vector.

        output = SE(BN(V dropout(BN([v of stream 1, v of stream 2, ...]))))

    with the v of `NeXtVLAD` and SE for `SqueezeExcitation`. A stream is one feature. The order of
    the frames has no effect.

    Args:
        stream_sizes: sequence of int. Size of each stream; their sum is D.
        expanded_sizes: sequence of int, one per stream, as in `NeXtVLAD`; so are the next two.
        groups: sequence of int.
        clusters: sequence of int.
        hidden_size: int. H.
        reduction: int. As in `SqueezeExcitation`.
        dropout: float. Share of entries that `Dropout` sets to 0.

    Input shape: `StoredFrames` and their weights, `[B, T]`; in prediction also `[B, N, T]` for N
    samplings. Output shape: `[B, H]` or `[B * N, H]`.
    """

    def __init__(
        self,
        stream_sizes,
        *,
        expanded_sizes,
        groups,
        clusters,
        hidden_size,
        reduction,
        dropout,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stream_sizes = tuple(stream_sizes)
        self.poolings = [
            NeXtVLAD(*sizes, name=f"nextvlad_{number}")
            for number, sizes in enumerate(zip(expanded_sizes, groups, clusters, strict=True))
        ]
        self.vlad_norm = layers.BatchNorm(name="vlad_norm")
        self.dropout = layers.Dropout(dropout, name="dropout")
        self.hidden = layers.Linear(
            hidden_size, batch_norm=True, initializer="he_normal", name="hidden"
        )
        self.gating = SqueezeExcitation(reduction, name="gating")

    def call(self, frames, frame_weights, training=False):
        """Returns hidden vectors, `[B, H]` or `[B * N, H]`."""
        return self.project(self.pool(frames, frame_weights, training), training)

    def pool(self, frames, frame_weights, training=False):
        """Returns the v of all streams side by side, `[B, size]` or `[B * N, size]`."""
        return nonlocal_vlad.pool_streams(
            frames, frame_weights, self.stream_sizes, self.poolings, training
        )

    def project(self, pooled, training=False):
        """Returns the hidden vectors of what `pool` returned."""
        x = self.dropout(self.vlad_norm(pooled, training=training), training=training)
        return self.gating(self.hidden(x, training=training), training=training)


class BranchGate(layers.MatmulLayer):
    """Weights of branches, from the mean of a video's real frames.

        a = softmax(W BN(mean frame) + b)

    Args:
        num_branches: int. M.

    Input shape: `StoredFrames` and their weights, `[B, T]` or `[B, N, T]`. Output shape: `[B, M]`
    or `[B * N, M]`.
    """

    def __init__(self, num_branches, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNorm(name="norm")
        self.logits = layers.Linear(num_branches, initializer="he_normal", name="logits")

    def build(self, frames_shape, *_):
        """Creates the normalization, W, `[D, M]`, and b."""
        size = layers.row_size(frames_shape)
        self.norm.build((None, size))
        self.logits.build((None, size))

    def call(self, frames, frame_weights, training=False):
        """Returns weights that sum to 1, `[B, M]` or `[B * N, M]`."""
        weights, frames = nonlocal_vlad.per_sampling(frame_weights, frames)
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        means = self.pool(frames, ops.transpose(weights, (0, 2, 1)))
        means = ops.reshape(means, (-1, frames.shape[-1]))
        return ops.softmax(self.logits(self.norm(means, training=training)))


class Logistic(layers.Linear):
    """One logistic regression per class: sigmoid(W x + b).

    Args:
        num_classes: int. C.
        regularizer: Keras regularizer of W and of b.

    Input shape: `[B, H]`. Output shape: `[B, C]`.
    """

    has_separate_classes = True

    def __init__(self, num_classes, regularizer, **kwargs):
        super().__init__(
            num_classes,
            initializer="he_normal",
            regularizer=regularizer,
            bias_regularizer=regularizer,
            **kwargs,
        )

    def call(self, x, training=False):
        """Returns probabilities, `[B, C]`."""
        return ops.sigmoid(self.logits(x))

    def logits(self, x):
        """Returns W x + b."""
        return super().call(x)


class LogisticMixture(layers.Float32Layer):
    """Logistic regressions of M branches, whose logits are mixed.

        z_m = W_m h_m + b_m,  output = sigmoid(sum_m a_m z_m)

    Args:
        num_branches: int. M.
        num_classes: int. C.
        regularizer: as in `Logistic`.

    Attributes:
        logits: in training, the last logits of the mixture, `[B, C]`, and of the branches,
            `[B, M, C]`.

    Input shape: the a_m, then the h_m, `[B, M + M * H]`. Output shape: `[B, C]`.
    """

    has_separate_classes = True

    def __init__(self, num_branches, num_classes, regularizer, **kwargs):
        super().__init__(**kwargs)
        self.branches = [
            Logistic(num_classes, regularizer, name=f"logistic_{number}")
            for number in range(num_branches)
        ]
        self.logits = None

    def build(self, input_shape):
        """Creates the W_m and b_m."""
        count = len(self.branches)
        for branch in self.branches:
            branch.build((None, (input_shape[-1] - count) // count))

    def call(self, x, training=False):
        """Returns probabilities, `[B, C]`."""
        count = len(self.branches)
        hidden = ops.split(x[:, count:], count, axis=1)
        branches = ops.stack(
            [branch.logits(h) for branch, h in zip(self.branches, hidden, strict=True)], axis=1
        )
        mixed = ops.sum(x[:, :count, None] * branches, axis=1)
        if training:
            self.logits = mixed, branches
        return ops.sigmoid(mixed)
