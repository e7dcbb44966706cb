"""Layers of the models, in `keras.ops` only.

Letters in formulas and einsums: B batch, T frames, D features, K clusters, E embedding, C classes,
M mixtures.
"""

import keras
from keras import ops

import utils


def scaled_normal(fan_in):
    """Initial weights: normal with standard deviation `1 / sqrt(fan_in)`."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)


class BatchNorm(keras.layers.Layer):
    """Batch normalisation over weighted rows, as all models of the project use it.

        output = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of the batch, in which a row of weight n counts n
    times and one of weight 0, padding, not at all; else they are moving averages. With n updates
    made so far, the decay of the averages is

        min(decay, (1 + n) / (10 + n))

    which is `decay` itself, 0.999, from the 8990th update on. Before, the averages follow faster,
    so that they fit the weights after a short training as well.

    Args:
        decay: float. Decay of the moving averages.
        epsilon: float. Keeps the denominator above 0.

    Input shape: `[B, D]` or `[B, T, D]`, with `row_weights` of `[B]` or `[B, T]`. Output shape: the
    same as the input.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    def __init__(self, *, decay=0.999, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self.epsilon = epsilon

    def build(self, input_shape):
        """Creates scale, offset and moving averages, `[D]` each, and the number of updates."""
        shape = (input_shape[-1],)
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

    def call(self, x, row_weights=None, training=False):
        """Normalises the last axis of `x`."""
        if training:
            mean, variance = weighted_moments(x, row_weights)
            self._update(mean, variance)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return x * scale + (self.beta - mean * scale)

    def _update(self, mean, variance):
        count = self.num_updates
        decay = ops.minimum(self.decay, (1.0 + count) / (10.0 + count))
        self.moving_mean.assign(decay * self.moving_mean + (1.0 - decay) * mean)
        self.moving_variance.assign(decay * self.moving_variance + (1.0 - decay) * variance)
        self.num_updates.assign_add(1.0)


def weighted_moments(x, row_weights=None):
    """Mean and variance over all axes but the last, `[D]` each; every row counts by its weight."""
    axes = "BT"[: len(x.shape) - 1]
    if row_weights is None:
        row_weights = ops.ones(ops.shape(x)[:-1], x.dtype)
    shares = row_weights / ops.sum(row_weights)
    mean = ops.einsum(f"{axes},{axes}D->D", shares, x)
    variance = ops.einsum(f"{axes},{axes}D->D", shares, ops.square(x - mean))
    return mean, variance


class ContextGating(keras.layers.Layer):
    """Scales every entry of a vector by a gate that the whole vector decides.

        output = x * sigmoid(BN(W x))

    Input shape: `[B, D]`. Output shape: `[B, D]`.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def build(self, input_shape):
        """Creates W, `[D, D]` and without bias, as batch normalisation has one."""
        width = input_shape[-1]
        self.gate = keras.layers.Dense(
            width, use_bias=False, kernel_initializer=scaled_normal(width), name="gate"
        )
        self.gate.build(input_shape)
        self.gate_norm = BatchNorm(name="gate_norm")
        self.gate_norm.build(input_shape)

    def call(self, x, training=False):
        """Gates `x`, `[B, D]`."""
        return x * ops.sigmoid(self.gate_norm(self.gate(x), training=training))


class NonLocalBlock(keras.layers.Layer):
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
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be above 0. Received: {scale}")
        if pairwise not in self.PAIRWISE:
            raise ValueError(
                f"pairwise must be one of {', '.join(self.PAIRWISE)}. Received: {pairwise!r}"
            )
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
        values = ops.einsum("BKD,DE->BKE", x, self.g)
        attended = ops.einsum("BKJ,BJE->BKE", self._weights(x), values)
        return x + ops.einsum("BKE,ED->BKD", attended, self.out)

    def _weights(self, x):
        """Share of descriptor J in the new descriptor K, `[B, K, J]`."""
        scale = x.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.pairwise == "gaussian":
            return ops.softmax(scale * ops.einsum("BKD,BJD->BKJ", x, x), axis=-1)
        queries = ops.einsum("BKD,DE->BKE", x, self.theta)
        keys = ops.einsum("BKD,DE->BKE", x, self.phi)
        products = scale * ops.einsum("BKE,BJE->BKJ", queries, keys)
        if self.pairwise == "embedded_gaussian":
            return ops.softmax(products, axis=-1)
        return products / x.shape[-2]


class SoftAssignment(keras.layers.Layer):
    """Share of every cluster in every frame, times the weight of the frame.

        a_k(x_i) = n_i softmax_k(BN(w_k . x_i))

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` and their weights n `[B, T]`: 0 for padding, else how often the
    frame counts. Output shape: `[B, T, K]`.
    """

    def __init__(self, clusters, **kwargs):
        super().__init__(**kwargs)
        utils.check_at_least(1, clusters=clusters)
        self.clusters = clusters

    def build(self, frames_shape, *_):
        """Creates the cluster weights w, `[D, K]`, and batch normalisation in place of a bias."""
        size = frames_shape[-1]
        self.kernel = self.add_weight(
            shape=(size, self.clusters), initializer=scaled_normal(size), name="kernel"
        )
        self.norm = BatchNorm(name="norm")
        self.norm.build((*frames_shape[:-1], self.clusters))

    def call(self, frames, frame_weights, training=False):
        """Assignments `[B, T, K]`; they sum to `frame_weights` over K."""
        logits = ops.einsum("BTD,DK->BTK", frames, self.kernel)
        shares = ops.softmax(self.norm(logits, frame_weights, training=training), axis=-1)
        return shares * frame_weights[..., None]


class NetVLAD(keras.layers.Layer):
    """Sums the residuals of frames to clusters, into one vector per video.

        v_k = sum_i a_k(x_i) (x_i - c_k)

    with the soft assignment a of `SoftAssignment`. Without centres c it is NetRVLAD. A non-local
    block may follow, in which the K descriptors v_k attend to each other. Then each v_k is
    normalised to length 1, and so is the whole.

    Args:
        clusters: int. K.
        centers: bool. Whether to subtract the centres c_k.
        nonlocal_block: `NonLocalBlock` or `None`.

    Input shape: frames `[B, T, D]` and their weights `[B, T]`: 0 for padding, else how often the
    frame counts. Output shape: `[B, K * D]`.

    Reference: [Arandjelovic et al., 2016](https://arxiv.org/abs/1511.07247) for NetVLAD;
    [Miech et al., 2017](https://arxiv.org/abs/1706.06905) for NetRVLAD;
    [Tang et al., 2018](https://arxiv.org/abs/1810.00207) for the non-local block on top.
    """

    def __init__(self, clusters, *, centers=True, nonlocal_block=None, **kwargs):
        super().__init__(**kwargs)
        self.assignment = SoftAssignment(clusters, name="assignment")
        self.has_centers = centers
        self.nonlocal_block = nonlocal_block

    def build(self, frames_shape, *_):
        """Creates the centres c, `[K, D]`."""
        size, clusters = frames_shape[-1], self.assignment.clusters
        self.assignment.build(frames_shape)
        if self.has_centers:
            self.centers = self.add_weight(
                shape=(clusters, size), initializer=scaled_normal(size), name="centers"
            )
        if self.nonlocal_block is not None:
            self.nonlocal_block.build((frames_shape[0], clusters, size))

    def call(self, frames, frame_weights, training=False):
        """The normalised descriptors side by side, `[B, K * D]`."""
        assigned = self.assignment(frames, frame_weights, training=training)
        descriptors = ops.einsum("BTK,BTD->BKD", assigned, frames)
        if self.has_centers:
            descriptors -= ops.sum(assigned, axis=1)[..., None] * self.centers
        if self.nonlocal_block is not None:
            descriptors = self.nonlocal_block(descriptors)
        descriptors = l2_normalize(descriptors)
        size = descriptors.shape[-2] * descriptors.shape[-1]
        return l2_normalize(ops.reshape(descriptors, (-1, size)))


class SoftBagOfFeatures(keras.layers.Layer):
    """Histogram of the soft assignments of all frames to clusters, of length 1.

        h_k = sum_i a_k(x_i),  output = h / ||h||

    with the soft assignment a of `SoftAssignment`.

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` and their weights `[B, T]`: 0 for padding, else how often the
    frame counts. Output shape: `[B, K]`.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    def __init__(self, clusters, **kwargs):
        super().__init__(**kwargs)
        self.assignment = SoftAssignment(clusters, name="assignment")

    def build(self, frames_shape, *_):
        """Creates the cluster weights."""
        self.assignment.build(frames_shape)

    def call(self, frames, frame_weights, training=False):
        """The normalised histogram, `[B, K]`."""
        return l2_normalize(
            ops.sum(self.assignment(frames, frame_weights, training=training), axis=1)
        )


def l2_normalize(x):
    """Vectors of length 1 along the last axis; 0 stays 0."""
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squared, 1e-12))
