"""The layers of the paper "Non-local NetVLAD Encoding for Video Classification".

Letters in formulas and einsums: B batch, N samplings, T frames, D features, K clusters,
E embedding.

Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
"""

from typing import Any, NamedTuple

from keras import ops

import utils
from layers import (
    Linear,
    MatmulLayer,
    StoredFrames,
    inverse_sqrt,
    l2_normalize,
    row_size,
    scaled_normal,
)
from stored_matrix import to_float


class SoftAssignment(Linear):
    """Soft assignment of every frame to clusters.

        a_k(x_i) = softmax_k(BN(w_k . x_i))

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`, needed for the
    statistics of the batch. Output shape: `[B, T, K]`.
    """

    def __init__(self, clusters, **kwargs):
        utils.check_at_least(1, clusters=clusters)
        super().__init__(clusters, batch_norm=True, **kwargs)
        self.input_folded = False

    def build(self, frames_shape, *_):
        """Creates the cluster weights w, `[D, K]`, and batch normalization instead of a bias."""
        self.initializer = scaled_normal(row_size(frames_shape))
        super().build(frames_shape)

    def call(self, frames, frame_weights=None, training=False):
        """Returns assignments `[B, T, K]` that sum to 1 over K."""
        if self.input_folded:
            frames = frames.normalized()
        return ops.softmax(super().call(frames, frame_weights, training=training), axis=-1)

    def fold_input(self, scale, offset):
        """Absorbs `scale * x + offset` of `StoredFrames` into the weights, for prediction."""
        kernel = to_float(self.kernel, "float32")
        self.norm.moving_mean.assign_sub(ops.einsum("D,DK->K", offset, kernel))
        self.kernel.assign(scale[:, None] * kernel)
        self.input_folded = True


class NetVLAD(MatmulLayer):
    """Sums the residuals of frames to cluster centers into one vector per video.

        v_k = sum_i n_i a_k(x_i) (x_i - c_k)

    with the soft assignment a of `SoftAssignment` and the weight n of each frame: 0 for padding,
    otherwise how often the frame counts. Without centers c it is NetRVLAD. A non-local block may
    follow, in which the K residuals v_k attend to each other. Then each v_k is scaled to L2 norm 1,
    and so is the whole vector.

    Args:
        clusters: int. K.
        centers: bool. Whether to subtract the centers c_k.
        nonlocal_block: `NonLocalBlock` or `None`.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, K * D]` or
    `[B * N, K * D]`.

    Reference: [Arandjelovic et al., 2016](https://arxiv.org/abs/1511.07247) for NetVLAD;
    [Miech et al., 2017](https://arxiv.org/abs/1706.06905) for NetRVLAD;
    [Tang et al., 2018](https://arxiv.org/abs/1810.00207) for the non-local block.
    """

    def __init__(self, clusters, *, centers=True, nonlocal_block=None, **kwargs):
        super().__init__(**kwargs)
        self.assignment = SoftAssignment(clusters, name="assignment")
        self.clusters = clusters
        self.has_centers = centers
        self.nonlocal_block = nonlocal_block

    def build(self, frames_shape, *_):
        """Creates the centers c, `[K, D]`."""
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
        """Returns the normalized VLAD, `[B, K * D]` or `[B * N, K * D]`."""
        assignments = self.assignment(frames, frame_weights, training=training)
        centers = self.centers if self.has_centers else None
        weights, frames, assignments = per_sampling(frame_weights, frames, assignments)
        residuals = pool_samplings(self, frames, assignments, weights, centers)
        if self.nonlocal_block is not None:
            residuals = self.nonlocal_block(residuals)
        return ops.reshape(intra_normalize(residuals), (-1, self.clusters * frames.shape[-1]))


class NonLocalBlock(MatmulLayer):
    """Lets every vector of a set attend to all others.

    With theta, phi, g: D -> E and out: E -> D, all linear and without bias:

        output_i = x_i + out( sum_j f(x_i, x_j) g(x_j) / N_i )

    | pairwise           | f(x_i, x_j)                           | N_i              |
    |--------------------|---------------------------------------|------------------|
    | embedded_gaussian  | exp(scale * theta(x_i) . phi(x_j))    | sum_j f(x_i, x_j)|
    | gaussian           | exp(scale * x_i . x_j)                | sum_j f(x_i, x_j)|
    | dot_product        | scale * theta(x_i) . phi(x_j)         | K                |

    B is the batch, K the number of vectors (for NetVLAD, one per cluster), D their size and E
    `embedding_dim`.

    The defaults are the paper's block. The softmax is nearly uniform at first, so this block adds
    the same vector, the mean of g, to every vector, and those of small norm drown in it. Three
    options prevent that: `normalize`, `start` and `attention`.

    Args:
        embedding_dim: int. Size E of the embedding.
        scale: float. Factor on the products; `None` stands for `D ** -0.5`.
        pairwise: str. Pairwise function f, from the table.
        normalize: bool. Whether to scale every vector to a root mean square of 1 first, for the
            products and the sum alike; 0 stays 0.
        start: str. Initial weights of out: `paper` draws them at random; `identity` sets them to
            0, so that the block returns its input at first.
        attention: str. Factor of g(x_j): `softmax` for f / N, `centered` for f / N - 1 / K, which
            adds nothing where the attention is uniform. Dot products, which have no softmax, take
            only the default.

    Input shape: `[B, K, D]`. Output shape: `[B, K, D]`.

    Reference: [Wang et al., 2018](https://arxiv.org/abs/1711.07971), section 3, for all three
    functions and the start as identity; [Tang et al., 2018](https://arxiv.org/abs/1810.00207) for
    the use on cluster residuals.
    """

    PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product")
    STARTS = ("paper", "identity")
    ATTENTIONS = ("softmax", "centered")

    def __init__(
        self,
        embedding_dim,
        *,
        scale=None,
        pairwise="embedded_gaussian",
        normalize=False,
        start="paper",
        attention="softmax",
        **kwargs,
    ):
        super().__init__(**kwargs)
        utils.check_at_least(1, embedding_dim=embedding_dim)
        if scale is not None:
            utils.check_above(0, scale=scale)
        utils.check_one_of(self.PAIRWISE, pairwise=pairwise)
        utils.check_one_of(self.STARTS, start=start)
        utils.check_one_of(self.ATTENTIONS, attention=attention)
        if pairwise == "dot_product" and attention != "softmax":
            raise utils.InputError(
                f"attention={attention} needs a softmax, and pairwise=dot_product has none. Leave "
                "one of them at its default."
            )
        self.embedding_dim = embedding_dim
        self.scale = scale
        self.pairwise = pairwise
        self.normalize = normalize
        self.start = start
        self.attention = attention

    def build(self, input_shape):
        """Creates theta, phi and g, `[D, E]`, and out, `[E, D]`; no theta and phi for gaussian."""
        size = input_shape[-1]
        embedding = {"shape": (size, self.embedding_dim), "initializer": scaled_normal(size)}
        if self.pairwise != "gaussian":
            self.theta = self.add_matrix(name="theta", **embedding)
            self.phi = self.add_matrix(name="phi", **embedding)
        self.g = self.add_matrix(name="g", **embedding)
        self.out = self.add_matrix(
            shape=(self.embedding_dim, size),
            initializer="zeros" if self.start == "identity" else scaled_normal(self.embedding_dim),
            name="out",
        )

    def call(self, x):
        """Returns vectors `[B, K, D]` that have attended to each other."""
        if self.normalize:
            x = l2_normalize(x) * x.shape[-1] ** 0.5
        values = self.matmul(x, self.g)
        attended = self.einsum("BKJ,BJE->BKE", self._attention(x), values)
        return x + self.matmul(attended, self.out)

    def _attention(self, x):
        """Returns the weight of vector J in the output K, `[B, K, J]`."""
        products = self._products(x)
        if self.pairwise == "dot_product":
            return products / x.shape[-2]
        weights = ops.softmax(products, axis=-1)
        return weights - 1.0 / x.shape[-2] if self.attention == "centered" else weights

    def _products(self, x):
        """Returns the scaled products of the vectors K and J, `[B, K, J]`."""
        scale = x.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.pairwise == "gaussian":
            return scale * self.einsum("BKD,BJD->BKJ", x, x)
        queries = self.matmul(x, self.theta)
        keys = self.matmul(x, self.phi)
        return scale * self.einsum("BKE,BJE->BKJ", queries, keys)


class SoftBagOfFeatures(MatmulLayer):
    """Histogram of the soft assignments of all frames to clusters, of L2 norm 1.

        h_k = sum_i n_i a_k(x_i),  output = h / ||h||

    with the soft assignment a of `SoftAssignment` and the weight n of each frame: 0 for padding,
    otherwise how often the frame counts.

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
        """Returns the normalized histogram, `[B, K]` or `[B * N, K]`."""
        assignments = self.assignment(frames, frame_weights, training=training)
        weights, assignments = per_sampling(frame_weights, assignments)
        return self.histogram(assignments, weights, training)

    def histogram(self, assignments, weights, training):
        """Returns the normalized sums of assignments `[B, T, K]` with weights `[B, N, T]`."""
        if training:
            sums = weighted_sum(weights[:, 0], assignments)
        else:
            sums = ops.einsum("BNT,BTK->BNK", weights, assignments)
        return l2_normalize(ops.reshape(sums, (-1, self.clusters)))


def weighted_sum(weights, rows):
    """Sums rows `[B, T, K]` with weights `[B, T]` to `[B, K]`; no gradient reaches the weights.

    The derived gradient is a product of one-row and one-column matrices, which takes several times
    as long as the broadcast product here.
    """

    @ops.custom_gradient
    def run(rows):
        def gradient(d_sum):
            return weights[..., None] * d_sum[:, None]

        return ops.einsum("BT,BTK->BK", weights, rows), gradient

    return run(rows)


def pool_streams(frames, frame_weights, sizes, poolings, training):
    """Pools each stream of the frames, and returns the results side by side.

    Args:
        frames: `StoredFrames`, the streams side by side.
        frame_weights: as for the poolings.
        sizes: sequence of int. Size of each stream.
        poolings: layers, one per stream, called with its frames and `frame_weights`.
        training: bool.
    """
    pooled, start = [], 0
    for size, pooling in zip(sizes, poolings, strict=True):
        stream = frames.entries(start, size)
        pooled.append(pooling(stream, frame_weights, training=training))
        start += size
    return ops.concatenate(pooled, axis=-1)


def pool_samplings(layer, frames, assignments, weights, centers=None):
    """Sums the residuals of frames to cluster centers, for each of N samplings of the frames.

        v_nk = sum_t weights_nt assignments_tk (x_t - c_k)

    Values that depend only on the frame are computed once for all samplings, which are further
    columns of one product.

    Args:
        layer: `MatmulLayer` that multiplies.
        frames: the x_t, `[B, T, D]` or `StoredFrames`.
        assignments: `[B, T, K]`.
        weights: `[B, N, T]`.
        centers: the c_k, `[K, D]`; None for 0.

    Returns:
        float32 `[B * N, K, D]`.
    """
    length, num_samplings = ops.shape(weights)[2], weights.shape[1]
    clusters = assignments.shape[-1]
    weighted = ops.transpose(weights, (0, 2, 1))[..., None] * assignments[:, :, None]
    weighted = ops.reshape(weighted, (-1, length, num_samplings * clusters))
    if centers is not None:
        centers = ops.tile(centers, (num_samplings, 1))
    sums = layer.pool(frames, weighted, centers)
    return ops.reshape(sums, (-1, clusters, frames.shape[-1]))


class Parts(NamedTuple):
    """The frames of N parts of each video, which replace the weights of frames in prediction.

    Layers compute everything that depends on one frame before they take the frames of each part.

    Attributes:
        frame_indices: frames of each part, int32 `[B, N, S]`, below the number of frames T.
        weights: float32 `[B * N, S]`, 0 for padding, otherwise 1.
    """

    frame_indices: Any
    weights: Any

    @classmethod
    def of_videos(cls, frame_indices, num_frames, length):
        """Returns parts in which indices of at least `num_frames` are padding.

        Args:
            frame_indices: int32 `[B, N, S]`.
            num_frames: int32 `[B]`.
            length: int or int tensor. T.
        """
        weights = ops.cast(frame_indices < num_frames[:, None, None], "float32")
        size = frame_indices.shape[2] or ops.shape(frame_indices)[2]
        return cls(ops.minimum(frame_indices, length - 1), ops.reshape(weights, (-1, size)))

    def take(self, rows):
        """Copies rows of frames, `[B, T, ...]` or `StoredFrames`, to `[B * N, S, ...]`."""
        if isinstance(rows, StoredFrames):
            return rows._replace(q=self.take(rows.q), inverse_norms=self.take(rows.inverse_norms))
        batch, length, *size = ops.shape(rows)
        first = ops.arange(batch, dtype="int32")[:, None, None] * length
        flat = ops.reshape(first + self.frame_indices, (-1, ops.shape(self.weights)[1]))
        return ops.take(ops.reshape(rows, (batch * length, *size)), flat, axis=0)


def per_sampling(frame_weights, *rows):
    """Returns weights as `[B, N, T]`, followed by rows with a value per frame, `[B, T, ...]`.

    `Parts` become videos of their own: rows `[B * N, S, ...]` with weights `[B * N, 1, S]`.

    Args:
        frame_weights: `[B, T]`, `[B, N, T]` or `Parts`.
        *rows: tensors or `StoredFrames`.
    """
    if isinstance(frame_weights, Parts):
        return frame_weights.weights[:, None], *map(frame_weights.take, rows)
    frame_weights = ops.cast(frame_weights, "float32")
    if len(frame_weights.shape) < 3:
        frame_weights = frame_weights[:, None]
    return frame_weights, *rows


def intra_normalize(residuals):
    """Scales each residual of `[B, K, D]` to L2 norm 1, then all K of a video together; 0 stays 0.

    The norm after the first step follows from the norms before it, so these large tensors are read
    and written only once.

    Reference: [Arandjelovic and Zisserman, 2013](https://doi.org/10.1109/CVPR.2013.207).
    """
    squared = ops.sum(ops.square(residuals), axis=-1, keepdims=True)
    scales = inverse_sqrt(squared)
    total = ops.sum(squared * ops.square(scales), axis=-2, keepdims=True)
    return residuals * (scales * inverse_sqrt(total))
