"""NeXtVLAD, and a mixture of NeXtVLADs that learn from each other.

Letters in formulas and einsums: B batch, N samplings, T frames, D features, G groups, K clusters,
J size of a group, H hidden units, C classes, M branches.

Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
"""

import functools
import operator

import keras
from keras import ops

import layers
import nonlocal_vlad
import registry
import utils
from frame_level_models import FrameLevelModel, per_stream
from video_level_models import half_l2

# Keeps the logarithms of the distillation finite.
_EPSILON = 1e-8

# --- Layers ---------------------------------------------------------------------------------------


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
        super().build((None, self.expansion.units))

    def project(self, x, kernel):
        """Multiplies frames by W E; see `layers.MatmulLayer.project`."""
        if self.composed:
            return super().project(x, kernel[: layers.row_size(x.shape)])
        rows, offset = super().project(x, self.matmul(self.expansion.kernel, kernel))
        constant = self._constant()
        return rows, constant if offset is None else constant + offset

    def fold(self):
        """Replaces W by W E in the first rows of its matrix, for prediction."""
        super().fold()
        composed = self.matmul(self.expansion.kernel, self.kernel)
        (self.bias if self.norm is None else self.norm.beta).assign_add(self._constant())
        unused_rows = self.kernel.shape[0] - composed.shape[0]
        self.kernel.assign(ops.pad(composed, ((0, unused_rows), (0, 0))))
        self.composed = True

    def _constant(self):
        """Returns W e, float32."""
        return ops.matmul(self.expansion.bias, ops.cast(self.kernel, "float32"))


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
        weights = nonlocal_vlad.per_sampling(frame_weights)
        attention = ops.sigmoid(self.attention(frames))
        weights = weights[..., None] * attention[:, None]
        # From here on, the groups are frames of their own.
        count = ops.shape(weights)[2] * self.groups
        weights = ops.reshape(weights, (-1, weights.shape[1], count))
        logits = self.assignment(frames, frame_weights, training=training)
        assignments = ops.softmax(ops.reshape(logits, (-1, count, self.clusters)))
        groups = ops.reshape(self.expansion(frames), (-1, count, self.group_size))
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
        pooled, start = [], 0
        for size, pooling in zip(self.stream_sizes, self.poolings, strict=True):
            stream = frames.entries(start, size)
            pooled.append(pooling(stream, frame_weights, training=training))
            start += size
        x = self.vlad_norm(ops.concatenate(pooled, axis=-1), training=training)
        x = self.dropout(x, training=training)
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
        weights = nonlocal_vlad.per_sampling(frame_weights)
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        means = self.pool(frames, ops.transpose(weights, (0, 2, 1)))
        means = ops.reshape(means, (-1, frames.shape[-1]))
        return ops.softmax(self.logits(self.norm(means, training=training)))


class Logistic(layers.Linear):
    """One logistic regression per class: sigmoid(W x + b).

    Args:
        num_classes: int. C.
        l2_penalty: float. Weight of the L2 penalty, half the sum of squares of W and b.

    Input shape: `[B, H]`. Output shape: `[B, C]`.
    """

    def __init__(self, num_classes, l2_penalty, **kwargs):
        super().__init__(
            num_classes,
            initializer="he_normal",
            regularizer=half_l2("l2_penalty", l2_penalty),
            bias_regularizer=half_l2("l2_penalty", l2_penalty),
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
        l2_penalty: float. As in `Logistic`.

    Attributes:
        logits: in training, the last logits of the mixture, `[B, C]`, and of the branches,
            `[B, M, C]`.

    Input shape: the a_m, then the h_m, `[B, M + M * H]`. Output shape: `[B, C]`.
    """

    def __init__(self, num_branches, num_classes, l2_penalty, **kwargs):
        super().__init__(**kwargs)
        self.branches = [
            Logistic(num_classes, l2_penalty, name=f"logistic_{number}")
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


# --- Models ---------------------------------------------------------------------------------------


class NeXtVLADBase(FrameLevelModel):
    """Base of the models of NeXtVLAD encoders, with their hyperparameters.

    Args:
        normalize_frames: str. Normalization of each frame, over all features together: l2 scales it
            to L2 norm 1; none takes the values as they are.
        nextvlad_expansion: int. Each feature is expanded to this many times its size.
        nextvlad_groups: str. Groups of each feature, separated by commas; the last number also
            applies to all further features. They divide the size of the expanded feature.
        nextvlad_cluster_size: str. Clusters of each feature, separated by commas; the last number
            also applies to all further features.
        nextvlad_hidden_size: int. Units of the hidden layer after the VLAD.
        gating_reduction: int. The gate of the hidden layer has a bottleneck of this fraction of its
            size.
        nextvlad_dropout: float. Share of the VLAD's entries set to 0 in training.
        l2_penalty: float. Weight of the L2 penalty, half the sum of squares of the weights and
            biases of the logistic regressions; 0 turns it off.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    takes_stored_frames = True
    sample_by_count = True
    # The classifier has initial weights and a penalty of its own.
    fixed_arguments = (registry.CLASSIFIER_ARGUMENT,)

    def __init__(
        self,
        *,
        normalize_frames="none",
        nextvlad_expansion=2,
        nextvlad_groups="8,4",
        nextvlad_cluster_size="128,64",
        nextvlad_hidden_size=2048,
        gating_reduction=8,
        nextvlad_dropout=0.5,
        l2_penalty=1e-5,
        **kwargs,
    ):
        super().__init__(
            normalize_frames=normalize_frames, video_level_classifier_model=None, **kwargs
        )
        utils.check_at_least(
            1,
            nextvlad_expansion=nextvlad_expansion,
            nextvlad_hidden_size=nextvlad_hidden_size,
            gating_reduction=gating_reduction,
        )
        groups, clusters = per_stream(
            self,
            self.feature_sizes,
            nextvlad_groups=nextvlad_groups,
            nextvlad_cluster_size=nextvlad_cluster_size,
        )
        expanded_sizes = [nextvlad_expansion * size for size in self.feature_sizes]
        for divisor, size in zip(groups, expanded_sizes, strict=True):
            _check_divisor("nextvlad_groups", divisor, "the size of an expanded feature", size)
        _check_divisor(
            "gating_reduction", gating_reduction, "nextvlad_hidden_size", nextvlad_hidden_size
        )
        if not 0 <= nextvlad_dropout < 1:
            raise utils.InputError(
                f"nextvlad_dropout must be at least 0 and below 1. Received: {nextvlad_dropout}"
            )
        self.expanded_size = sum(expanded_sizes)
        self.assignments_per_frame = sum(map(operator.mul, groups, clusters))
        self.l2_penalty = l2_penalty
        self._make_encoder = functools.partial(
            Encoder,
            self.feature_sizes,
            expanded_sizes=expanded_sizes,
            groups=groups,
            clusters=clusters,
            hidden_size=nextvlad_hidden_size,
            reduction=gating_reduction,
            dropout=nextvlad_dropout,
        )

    def make_encoders(self, count):
        """Returns a list of `Encoder`s with the hyperparameters."""
        return [self._make_encoder(name=f"encoder_{number}") for number in range(count)]

    def floats_per_video(self, num_frames, num_samplings):
        """Counts copies of the expanded frames, and of their assignments for each sampling."""
        assignments = (1 + 2 * num_samplings) * self.assignments_per_frame
        return len(self.encoders) * num_frames * (2 * self.expanded_size + assignments)


@registry.register
class NeXtVLADModel(NeXtVLADBase):
    """NeXtVLAD: per feature, a NetVLAD of groups of each frame's entries.

    A hidden layer with squeeze-and-excitation gating and one logistic regression per class follow.
    The order of the frames has no effect.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoders = self.make_encoders(1)
        self.classifier = Logistic(self.num_classes, self.l2_penalty, name="classifier")

    def encode(self, frames, frame_weights, training):
        """Returns the hidden vector, `[B, nextvlad_hidden_size]`."""
        (encoder,) = self.encoders
        return encoder(frames, frame_weights, training=training)


@registry.register
class MixNeXtVLADModel(NeXtVLADBase):
    """Mixture of NeXtVLADs ("branches") that learn together and from each other.

    A gate weights the logits z_m of the branches by the mean of a video's frames:

        p = sigmoid(z),  z = sum_m a_m z_m,  a = softmax(W BN(mean frame) + b)

    Training adds the label loss of every branch, and distills the mixture, the teacher, into each
    branch, with the softmax s over the classes at temperature T. The gradient flows through both
    sides, so the teacher learns from the branches too. With a label loss L:

        loss = L(p) + sum_m L(sigmoid(z_m)) + lambda * sum_m KL(s(z / T) || s(z_m / T))

    The embedding of a video has the a_m, then the hidden vectors of the branches.

    Args:
        num_branches: int. Branches of the mixture.
        distillation_weight: float. Weight lambda of the distillation; 0 turns it off.
        distillation_temperature: float. Temperature T of the distillation.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    def __init__(
        self,
        *,
        num_branches=3,
        distillation_weight=9.0,
        distillation_temperature=3.0,
        nextvlad_cluster_size="112,56",
        gating_reduction=16,
        **kwargs,
    ):
        super().__init__(
            nextvlad_cluster_size=nextvlad_cluster_size,
            gating_reduction=gating_reduction,
            **kwargs,
        )
        utils.check_at_least(1, num_branches=num_branches)
        utils.check_at_least(0, distillation_weight=distillation_weight)
        utils.check_above(0, distillation_temperature=distillation_temperature)
        self.distillation_weight = distillation_weight
        self.distillation_temperature = distillation_temperature
        self.encoders = self.make_encoders(num_branches)
        self.gate = BranchGate(num_branches, name="gate")
        self.classifier = LogisticMixture(
            num_branches, self.num_classes, self.l2_penalty, name="classifier"
        )

    def encode(self, frames, frame_weights, training):
        """Returns the weights of the branches and their hidden vectors, `[B, M + M * H]`."""
        return ops.concatenate(
            [
                self.gate(frames, frame_weights, training=training),
                *(encoder(frames, frame_weights, training=training) for encoder in self.encoders),
            ],
            axis=-1,
        )

    def auxiliary_loss(self, label_loss):
        """Returns the losses of the branches, from the logits of the last call in training."""
        logits, self.classifier.logits = self.classifier.logits, None
        return branch_loss(
            label_loss, *logits, self.distillation_weight, self.distillation_temperature
        )

    def branch(self, number):
        """Returns a branch as a `NeXtVLADModel` of its own, with copies of the weights."""
        config = self.get_config()
        name = NeXtVLADModel.__name__
        model = registry.build_model(
            name,
            num_classes=self.num_classes,
            feature_sizes=self.feature_sizes,
            frame_format=self.frame_format,
            matmul_policy=config["matmul_policy"],
            **{key: config[key] for key in registry.hyperparameters(name)},
        )
        parts = self.encoders[number], self.classifier.branches[number]
        model.set_weights([weight for part in parts for weight in part.get_weights()])
        return model


def branch_loss(label_loss, mixed, branches, weight, temperature):
    """Returns the losses of the branches: those of the labels, and `distillation_loss`.

    Args:
        label_loss: function from probabilities `[B, C]` to a scalar.
        mixed: logits of the mixture, `[B, C]`.
        branches: logits of the branches, `[B, M, C]`.
        weight: float. Factor of the distillation.
        temperature: float. T.
    """
    probabilities = ops.unstack(ops.sigmoid(branches), branches.shape[1], axis=1)
    loss = sum(map(label_loss, probabilities))
    return loss + weight * distillation_loss(mixed, branches, temperature) if weight else loss


def distillation_loss(teacher, students, temperature):
    """Returns the divergence of students from their teacher, summed over the students.

        mean over videos of sum_m KL(softmax(z / T) || softmax(z_m / T))

    Args:
        teacher: logits z, `[B, C]`.
        students: logits z_m, `[B, M, C]`.
        temperature: float. T.
    """
    expected = ops.softmax(teacher / temperature)[:, None]
    actual = ops.softmax(students / temperature)
    terms = expected * (ops.log(expected + _EPSILON) - ops.log(actual + _EPSILON))
    return ops.mean(ops.sum(terms, axis=(1, 2)))


def _check_divisor(name, divisor, name_of_size, size):
    if divisor < 1 or size % divisor:
        raise utils.InputError(f"{name} must divide {name_of_size}, {size}. Received: {divisor}")
