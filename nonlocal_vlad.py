"""Layers of the models, in `keras.ops` only.

Letters in formulas and einsums: B batch, N samplings, T frames, D features, K clusters,
E embedding, C classes, M mixtures.

Matrix products can be in bfloat16 (`matrix_policy`), which rounds their operands and results.
Biases, batch normalisation, softmax and everything else stay in float32.
"""

import contextlib
import contextvars

import keras
from keras import ops

import replicas
import utils
from stored_frames import StoredFrames


def scaled_normal(fan_in):
    """Initial weights: normal with standard deviation `1 / sqrt(fan_in)`."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)


_matrix_policy = contextvars.ContextVar("matrix_policy", default="float32")


@contextlib.contextmanager
def matrix_policy(name):
    """Makes the matrix layers that are built inside follow a Keras dtype policy.

    Args:
        name: str. `float32`; `mixed_bfloat16`, whose products round both operands to bfloat16; or
            `bfloat16`, which also stores the matrices so. Other layers are left alone.
    """
    token = _matrix_policy.set(name)
    try:
        yield
    finally:
        _matrix_policy.reset(token)


class MatrixLayer(keras.layers.Layer):
    """Base of the layers whose matrix products, and nothing else, follow `matrix_policy`."""

    def __init__(self, **kwargs):
        super().__init__(dtype=_matrix_policy.get(), autocast=False, **kwargs)

    def add_weight(self, *args, **kwargs):
        """A weight that comes as it is stored: Keras would round all of them for a mixed policy."""
        return super().add_weight(*args, autocast=False, **kwargs)

    def product(self, equation, *operands):
        """Einsum in the dtype of the policy; the result comes back as float32."""
        operands = [ops.cast(operand, self.compute_dtype) for operand in operands]
        return ops.cast(ops.einsum(equation, *operands), "float32")

    def rows_times(self, x, matrix):
        """Rows `[B, D]` or `[B, T, D]` times a matrix `[D, K]`, in the dtype of the policy."""
        if len(x.shape) == 2:
            return self.product("RD,DK->RK", x, matrix)
        # As one matrix, whose gradient is one product as well and not one for each B.
        rows = self.product("RD,DK->RK", ops.reshape(x, (-1, x.shape[-1])), matrix)
        length = x.shape[1] or ops.shape(x)[1]
        return ops.reshape(rows, (-1, length, matrix.shape[-1]))

    def project(self, x, kernel):
        """Rows, or `StoredFrames`, times a matrix `[D, K]`.

        Returns:
            `(rows, offset)`: float32 rows, and what is to be added to them, `[K]` or None. It is
            apart because batch normalisation needs it in no row.
        """
        if not isinstance(x, StoredFrames):
            return self.rows_times(x, kernel), None
        project, offset = x.projection(kernel, self)
        return project(x.q, x.scales), offset

    def pool(self, x, weights, centers=None):
        """Sums of frames, or of their residuals to centres: v_k = sum_t weights_tk (x_t - c_k).

        Args:
            x: frames `[B, T, D]`, or `StoredFrames`.
            weights: `[B, T, K]`.
            centers: the c_k, `[K, D]`; None for 0.

        Returns:
            float32 `[B, K, D]`.
        """
        if isinstance(x, StoredFrames):
            sums, offsets = x.pool(weights, self), x.offsets
        else:
            sums, offsets = self.product("BTK,BTD->BKD", weights, x), None
        # What each frame adds is the same for all of them, and needs their total weight alone.
        if centers is not None:
            centers = ops.cast(centers, "float32")
            offsets = -centers if offsets is None else offsets - centers
        if offsets is None:
            return sums
        return sums + ops.sum(weights, axis=1)[..., None] * offsets


def row_size(shape):
    """D of the shape of rows `[B, D]` or `[B, T, D]`, or of `StoredFrames`."""
    return (shape.q if isinstance(shape, StoredFrames) else shape)[-1]


class BatchNorm(keras.layers.Layer):
    """Batch normalisation over weighted rows, as all models of the project use it.

        output = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of the batch, in which a row of weight n counts n
    times and one of weight 0, padding, not at all; else they are moving averages. The batch is that
    of all `replicas` if their totals are. With n updates made so far, the decay of the averages is

        min(decay, (1 + n) / (10 + n))

    which is `decay` itself, 0.999, from the 8990th update on. Before, the averages follow faster,
    so that they fit the weights after a short training as well.

    Args:
        decay: float. Decay of the moving averages.
        epsilon: float. Keeps the denominator above 0.

    Attributes:
        cumulative: bool. Whether the decay is n / (n + 1) instead, which makes the averages the
            plain mean over the updates.
        folded: bool. Whether `fold` has left nothing but an offset.

    Input shape: `[B, D]`, `[B, T, D]` or `StoredFrames`, with `row_weights` of `[B]` or `[B, T]`.
    Output shape: the same as the input.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    def __init__(self, *, decay=0.999, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self.epsilon = epsilon
        self.cumulative = False
        self.folded = False

    def build(self, input_shape):
        """Creates scale, offset and moving averages, `[D]` each, and the number of updates."""
        shape = (row_size(input_shape),)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        averages = {"shape": shape, "trainable": False, "aggregation": "mean"}
        self.moving_mean = self.add_weight(initializer="zeros", name="moving_mean", **averages)
        self.moving_variance = self.add_weight(
            initializer="ones", name="moving_variance", **averages
        )
        self.num_updates = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="num_updates",
        )

    def call(self, x, row_weights=None, training=False, offset=None):
        """Normalises the last axis of `x`; to rows an offset `[D]` may still have to be added."""
        offset = 0.0 if offset is None else offset
        if self.folded:
            return x + (self.beta + offset)
        if not training:
            scale, shift = self.affine()
            if isinstance(x, StoredFrames):
                return x.affine(scale, shift)
            return x * scale + (shift + scale * offset)
        if isinstance(x, StoredFrames):
            mean, variance = x.moments(shares_of(row_weights, x))
            self._update(mean, variance)
            return x.affine(*self._affine(mean, variance))
        # The mean takes the offset out again, so its gradient is 0, but it has one.
        output, mean, variance = normalize_rows(
            x, shares_of(row_weights, x), self.gamma, self.beta + 0.0 * offset, self.epsilon
        )
        self._update(mean + offset, variance)
        return output

    def affine(self):
        """Scale and offset, `[D]` each, that prediction applies."""
        return self._affine(self.moving_mean, self.moving_variance)

    def fold(self):
        """Leaves nothing but an offset, for prediction; returns the scale, `[D]`, to apply before.

        With the scale in the matrix whose product is normalised, predictions stay the same.
        """
        scale, offset = self.affine()
        self.beta.assign(offset)
        self.folded = True
        return scale

    def _affine(self, mean, variance):
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return scale, self.beta - mean * scale

    def _update(self, mean, variance):
        count = self.num_updates
        if self.cumulative:
            decay = count / (count + 1.0)
        else:
            decay = ops.minimum(self.decay, (1.0 + count) / (10.0 + count))
        self.moving_mean.assign(decay * self.moving_mean + (1.0 - decay) * mean)
        self.moving_variance.assign(decay * self.moving_variance + (1.0 - decay) * variance)
        self.num_updates.assign_add(1.0)


def shares_of(row_weights, x):
    """Share of every row of `x` in the statistics of a batch, of the shape of the weights."""
    if row_weights is None:
        row_weights = ops.ones(ops.shape(x)[:-1])
    row_weights = ops.cast(row_weights, "float32")
    (total,) = replicas.totals()([ops.sum(row_weights)])
    return row_weights / total


def normalize_rows(x, shares, gamma, beta, epsilon):
    """Batch normalisation of rows with shares p that sum to 1.

        m = sum_i p_i x_i,  v = sum_i p_i (x_i - m)^2,  r = 1 / sqrt(v + epsilon)
        y_i = gamma * r * (x_i - m) + beta

    The gradient is written by hand, from a gradient d of y: it reads and writes the rows a third as
    often as the derived one. With s = sum_i d_i and t = sum_i d_i (x_i - m):

        dx_i = gamma * r * (d_i - p_i (s + r^2 t (x_i - m))),  dgamma = r t,  dbeta = s

    Rows can be spread over `replicas`. All sums are then over all of them, but for those of dgamma
    and dbeta, of which each replica tells its part.

    Args:
        x: float32 `[B, D]` or `[B, T, D]`.
        shares: float32 `[B]` or `[B, T]`.
        gamma: `[D]`.
        beta: `[D]`.
        epsilon: float.

    Returns:
        `(y, m, v)`; gradients come through y alone.
    """
    axes = "BT"[: len(x.shape) - 1]
    total = replicas.totals()

    def sum_rows(weights, rows):
        return ops.einsum(f"{axes},{axes}D->D", weights, rows)

    constant = ops.stop_gradient(x)
    (mean,) = total([sum_rows(shares, constant)])
    centered = constant - mean
    (variance,) = total([sum_rows(shares, ops.square(centered))])
    inverse = ops.rsqrt(variance + epsilon)

    @ops.custom_gradient
    def run(x, gamma, beta):
        scale = gamma * inverse

        def gradient(d_output):
            ones = ops.ones_like(shares)
            own_sum = sum_rows(ones, d_output)
            own_correlation = sum_rows(ones, d_output * centered)
            sums, correlation = total([own_sum, own_correlation])
            common = sums * scale + centered * (correlation * scale * ops.square(inverse))
            d_x = d_output * scale - shares[..., None] * common
            return d_x, own_correlation * inverse, own_sum

        return centered * scale + beta, gradient

    output = run(x, ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype))
    return output, mean, variance


class Linear(MatrixLayer):
    """A linear layer with a bias, or with batch normalisation in its place.

        output = W x + b,  or  BN(W x)

    Args:
        units: int. Size of the output.
        use_bias: bool. Whether there is a b.
        batch_norm: bool. Whether batch normalisation follows; then there is no b.
        initializer: Keras initializer of W.
        bias_initializer: Keras initializer of b.
        regularizer: Keras regularizer of W.

    Input shape: `[B, D]`, `[B, T, D]` or `StoredFrames`, for batch normalisation with `row_weights`
    of `[B]` or `[B, T]`. Output shape: `[B, units]` or `[B, T, units]`.
    """

    def __init__(
        self,
        units,
        *,
        use_bias=True,
        batch_norm=False,
        initializer="glorot_uniform",
        bias_initializer="zeros",
        regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias and not batch_norm
        self.norm = BatchNorm(name="norm") if batch_norm else None
        self.initializer = initializer
        self.bias_initializer = bias_initializer
        self.regularizer = regularizer

    def build(self, input_shape, *_):
        """Creates W, `[D, units]`, and b, `[units]`, or the normalisation."""
        self.kernel = self.add_weight(
            shape=(row_size(input_shape), self.units),
            initializer=self.initializer,
            regularizer=self.regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.units,),
                initializer=self.bias_initializer,
                dtype="float32",
                name="bias",
            )
        if self.norm is not None:
            self.norm.build((None, self.units))

    def call(self, x, row_weights=None, training=False):
        """The linear map of the last axis of `x`."""
        x, offset = self.project(x, self.kernel)
        if self.norm is not None:
            return self.norm(x, row_weights, training=training, offset=offset)
        for addend in (offset, self.bias if self.use_bias else None):
            x = x if addend is None else x + addend
        return x

    def fold(self):
        """Moves the scale of the batch normalisation into W, for prediction."""
        if self.norm is not None:
            self.kernel.assign(self.kernel * self.norm.fold())


class ContextGating(keras.layers.Layer):
    """Scales every entry of a vector by a gate that the whole vector decides.

        output = x * sigmoid(BN(W x))

    Input shape: `[B, D]`. Output shape: `[B, D]`.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def build(self, input_shape):
        """Creates W, `[D, D]`, and its batch normalisation."""
        width = input_shape[-1]
        self.gate = Linear(width, batch_norm=True, initializer=scaled_normal(width), name="gate")
        self.gate.build(input_shape)

    def call(self, x, training=False):
        """Gates `x`, `[B, D]`."""
        return x * ops.sigmoid(self.gate(x, training=training))


class NonLocalBlock(MatrixLayer):
    """Lets every descriptor of a set attend to all the others.

    With theta, phi, g: D -> E and out: E -> D, all linear and without bias:

        output_i = x_i + out( sum_j f(x_i, x_j) g(x_j) / N_i )

    | pairwise           | f(x_i, x_j)                           | N_i              |
    |--------------------|---------------------------------------|------------------|
    | embedded_gaussian  | exp(scale * theta(x_i) . phi(x_j))    | sum_j f(x_i, x_j)|
    | gaussian           | exp(scale * x_i . x_j)                | sum_j f(x_i, x_j)|
    | dot_product        | scale * theta(x_i) . phi(x_j)         | K                |

    B is the batch, K the descriptors (for NetVLAD, its clusters), D their size and E
    `embedding_dim`.

    Args:
        embedding_dim: int. Size E of the embedding.
        scale: float. Factor on the products; `None` stands for `D ** -0.5`.
        pairwise: str. Pairwise function f, one of the table.

    Input shape: `[B, K, D]`. Output shape: `[B, K, D]`.

    Reference: [Wang et al., 2018](https://arxiv.org/abs/1711.07971), section 3, for all three;
    [Tang et al., 2018](https://arxiv.org/abs/1810.00207) for clusters as descriptors.
    """

    PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product")

    def __init__(self, embedding_dim, *, scale=None, pairwise="embedded_gaussian", **kwargs):
        super().__init__(**kwargs)
        utils.check_at_least(1, embedding_dim=embedding_dim)
        if scale is not None:
            utils.check_above(0, scale=scale)
        utils.check_one_of(self.PAIRWISE, pairwise=pairwise)
        self.embedding_dim = embedding_dim
        self.scale = scale
        self.pairwise = pairwise

    def build(self, input_shape):
        """Creates theta, phi and g, `[D, E]`, and out, `[E, D]`; no theta and phi for gaussian."""
        size = input_shape[-1]
        embedding = {"shape": (size, self.embedding_dim), "initializer": scaled_normal(size)}
        if self.pairwise != "gaussian":
            self.theta = self.add_weight(name="theta", **embedding)
            self.phi = self.add_weight(name="phi", **embedding)
        self.g = self.add_weight(name="g", **embedding)
        self.out = self.add_weight(
            shape=(self.embedding_dim, size),
            initializer=scaled_normal(self.embedding_dim),
            name="out",
        )

    def call(self, x):
        """Descriptors `[B, K, D]` that have seen each other."""
        values = self.rows_times(x, self.g)
        attended = self.product("BKJ,BJE->BKE", self._weights(x), values)
        return x + self.rows_times(attended, self.out)

    def _weights(self, x):
        """Share of descriptor J in the new descriptor K, `[B, K, J]`."""
        scale = x.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.pairwise == "gaussian":
            return ops.softmax(scale * self.product("BKD,BJD->BKJ", x, x), axis=-1)
        queries = self.rows_times(x, self.theta)
        keys = self.rows_times(x, self.phi)
        products = scale * self.product("BKE,BJE->BKJ", queries, keys)
        if self.pairwise == "embedded_gaussian":
            return ops.softmax(products, axis=-1)
        return products / x.shape[-2]


class SoftAssignment(Linear):
    """Share of every cluster in every frame.

        a_k(x_i) = softmax_k(BN(w_k . x_i))

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`, which the
    statistics of the batch need. Output shape: `[B, T, K]`.
    """

    def __init__(self, clusters, **kwargs):
        utils.check_at_least(1, clusters=clusters)
        super().__init__(clusters, batch_norm=True, **kwargs)
        self.input_folded = False

    def build(self, frames_shape, *_):
        """Creates the cluster weights w, `[D, K]`, and batch normalisation in place of a bias."""
        self.initializer = scaled_normal(row_size(frames_shape))
        super().build(frames_shape)

    def call(self, frames, frame_weights=None, training=False):
        """Assignments `[B, T, K]`; they sum to 1 over K."""
        if self.input_folded:
            frames = frames.normalized()
        return ops.softmax(super().call(frames, frame_weights, training=training), axis=-1)

    def fold_input(self, scale, offset):
        """Takes over `scale * x + offset` of the frames, for prediction from `StoredFrames`."""
        self.norm.moving_mean.assign_sub(ops.einsum("D,DK->K", offset, self.kernel))
        self.kernel.assign(scale[:, None] * self.kernel)
        self.input_folded = True


class NetVLAD(MatrixLayer):
    """Sums the residuals of frames to clusters, into one vector per video.

        v_k = sum_i n_i a_k(x_i) (x_i - c_k)

    with the soft assignment a of `SoftAssignment` and the weight n of each frame: 0 for padding,
    else how often it counts. Without centres c it is NetRVLAD. A non-local block may follow, in
    which the K descriptors v_k attend to each other. Then each v_k is normalised to length 1, and
    so is the whole.

    Args:
        clusters: int. K.
        centers: bool. Whether to subtract the centres c_k.
        nonlocal_block: `NonLocalBlock` or `None`.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, K * D]` or
    `[B * N, K * D]`.

    Reference: [Arandjelovic et al., 2016](https://arxiv.org/abs/1511.07247) for NetVLAD;
    [Miech et al., 2017](https://arxiv.org/abs/1706.06905) for NetRVLAD;
    [Tang et al., 2018](https://arxiv.org/abs/1810.00207) for the non-local block on top.
    """

    def __init__(self, clusters, *, centers=True, nonlocal_block=None, **kwargs):
        super().__init__(**kwargs)
        self.assignment = SoftAssignment(clusters, name="assignment")
        self.clusters = clusters
        self.has_centers = centers
        self.nonlocal_block = nonlocal_block

    def build(self, frames_shape, *_):
        """Creates the centres c, `[K, D]`."""
        size = row_size(frames_shape)
        self.assignment.build(frames_shape)
        if self.has_centers:
            self.centers = self.add_weight(
                shape=(self.clusters, size),
                initializer=scaled_normal(size),
                name="centers",
            )
        if self.nonlocal_block is not None:
            self.nonlocal_block.build((None, self.clusters, size))

    def call(self, frames, frame_weights, training=False):
        """The normalised descriptors side by side, `[B, K * D]` or `[B * N, K * D]`."""
        shares = self.assignment(frames, frame_weights, training=training)
        descriptors = self._residuals(frames, shares, per_sampling(frame_weights))
        if self.nonlocal_block is not None:
            descriptors = self.nonlocal_block(descriptors)
        descriptors = intra_normalize(descriptors)
        return ops.reshape(descriptors, (-1, self.clusters * frames.shape[-1]))

    def _residuals(self, frames, shares, weights):
        """The v_k of every sampling, `[B * N, K, D]`, of shares `[B, T, K]` and `[B, N, T]`.

        What depends on a frame alone is there once; the samplings are more columns of one product.
        """
        size, length = frames.shape[-1], ops.shape(weights)[2]
        columns = weights.shape[1] * self.clusters
        assigned = ops.transpose(weights, (0, 2, 1))[..., None] * shares[:, :, None]
        assigned = ops.reshape(assigned, (-1, length, columns))
        centers = ops.tile(self.centers, (weights.shape[1], 1)) if self.has_centers else None
        descriptors = self.pool(frames, assigned, centers)
        return ops.reshape(descriptors, (-1, self.clusters, size))


class SoftBagOfFeatures(MatrixLayer):
    """Histogram of the soft assignments of all frames to clusters, of length 1.

        h_k = sum_i n_i a_k(x_i),  output = h / ||h||

    with the soft assignment a of `SoftAssignment` and the weight n of each frame: 0 for padding,
    else how often it counts.

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, K]` or `[B * N, K]`.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    def __init__(self, clusters, **kwargs):
        super().__init__(**kwargs)
        self.assignment = SoftAssignment(clusters, name="assignment")
        self.clusters = clusters

    def build(self, frames_shape, *_):
        """Creates the cluster weights."""
        self.assignment.build(frames_shape)

    def call(self, frames, frame_weights, training=False):
        """The normalised histogram, `[B, K]` or `[B * N, K]`."""
        shares = self.assignment(frames, frame_weights, training=training)
        weights = per_sampling(frame_weights)
        if training:
            sums = weighted_sum(weights[:, 0], shares)
        else:
            sums = ops.einsum("BNT,BTK->BNK", weights, shares)
        return l2_normalize(ops.reshape(sums, (-1, self.clusters)))


def weighted_sum(weights, rows):
    """Sum `[B, K]` of rows `[B, T, K]` with weights `[B, T]`, through which no gradient comes.

    The derived gradient is a product of matrices of one row and one column, which takes several
    times as long as the product by broadcasting here.
    """

    @ops.custom_gradient
    def run(rows):
        def gradient(d_sum):
            return weights[..., None] * d_sum[:, None]

        return ops.einsum("BT,BTK->BK", weights, rows), gradient

    return run(rows)


def per_sampling(frame_weights):
    """Weights of frames `[B, T]`, one sampling, or `[B, N, T]` as `[B, N, T]`."""
    frame_weights = ops.cast(frame_weights, "float32")
    return frame_weights if len(frame_weights.shape) == 3 else frame_weights[:, None]


def l2_normalize(x):
    """Vectors of length 1 along the last axis; 0 stays 0."""
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * _inverse_root(squared)


def intra_normalize(descriptors):
    """Each descriptor of `[B, K, D]` to length 1, then all K of a video together; 0 stays 0.

    The lengths after the first step follow from those before it, so that the descriptors, large
    tensors, are read and written once.

    Reference: [Arandjelovic and Zisserman, 2013](https://doi.org/10.1109/CVPR.2013.207).
    """
    squared = ops.sum(ops.square(descriptors), axis=-1, keepdims=True)
    scales = _inverse_root(squared)
    total = ops.sum(squared * ops.square(scales), axis=-2, keepdims=True)
    return descriptors * (scales * _inverse_root(total))


def _inverse_root(squared):
    return ops.rsqrt(ops.maximum(squared, 1e-12))
