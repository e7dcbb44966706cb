"""Models of the team that won the first YouTube-8M challenge, besides their gated NetVLAD.

Letters in formulas and einsums: B batch, N samplings, T frames, D features, K clusters.

Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
"""

import keras
from keras import ops

import layers
import nonlocal_vlad
import registry
import utils
from frame_level_models import StreamEncoder, StreamEncoderModel, per_stream

# --- Fisher vectors -------------------------------------------------------------------------------


class NetFV(layers.MatmulLayer):
    """Fisher vector of a video: how its frames deviate from clusters, in mean and in variance.

        u_k = sum_i n_i a_k(x_i) (x_i - c_k) / s_k
        v_k = sum_i n_i a_k(x_i) ((x_i - c_k)^2 / s_k^2 - 1),  s_k = w_k^2 + 1e-6

    with the soft assignment a of `SoftAssignment`, the weight n of each frame, centers c and
    standard deviations s; powers and quotients are elementwise. Each u_k is scaled to L2 norm 1,
    then all u together, and all v together.

    Args:
        clusters: int. K.
        second_order_norm: str. `global`, as published; `intra` also scales each v_k to norm 1
            before, as the paper describes it for both.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, 2 * K * D]` or
    `[B * N, 2 * K * D]`.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905), section 3.2, and its code.
    """

    SECOND_ORDER_NORMS = ("global", "intra")

    def __init__(self, clusters, *, second_order_norm="global", **kwargs):
        super().__init__(**kwargs)
        utils.check_one_of(self.SECOND_ORDER_NORMS, second_order_norm=second_order_norm)
        self.assignment = nonlocal_vlad.SoftAssignment(clusters, name="assignment")
        self.clusters = clusters
        self.second_order_norm = second_order_norm

    def build(self, frames_shape, *_):
        """Creates the centers c and the roots w of the standard deviations, `[K, D]` each."""
        size = layers.row_size(frames_shape)
        self.assignment.build(frames_shape)
        shape = (self.clusters, size)
        self.centers = self.add_weight(
            shape=shape, initializer=layers.scaled_normal(size), name="centers"
        )
        around_one = keras.initializers.RandomNormal(mean=1.0, stddev=size**-0.5)
        self.deviation_roots = self.add_weight(
            shape=shape, initializer=around_one, name="deviation_roots"
        )

    def call(self, frames, frame_weights, training=False):
        """Returns the normalized u and v, side by side."""
        assignments = self.assignment(frames, frame_weights, training=training)
        weights, frames, assignments = nonlocal_vlad.per_sampling(
            frame_weights, frames, assignments
        )
        first, second = self._orders(frames, assignments, weights)
        if self.second_order_norm == "intra":
            second = nonlocal_vlad.intra_normalize(second)
        size = self.clusters * frames.shape[-1]
        first = ops.reshape(nonlocal_vlad.intra_normalize(first), (-1, size))
        second = layers.l2_normalize(ops.reshape(second, (-1, size)))
        return ops.concatenate([first, second], axis=-1)

    def _orders(self, frames, assignments, weights):
        """Returns the u_k and the v_k of every sampling, `[B * N, K, D]` each."""
        values = frames.to_float() if isinstance(frames, layers.StoredFrames) else frames
        sums, squares = (
            nonlocal_vlad.pool_samplings(self, pooled, assignments, weights)
            for pooled in (frames, ops.square(values))
        )
        totals = ops.einsum("BNT,BTK->BNK", weights, assignments)
        totals = ops.reshape(totals, (-1, self.clusters, 1))
        centers = ops.cast(self.centers, "float32")
        deviations = ops.square(ops.cast(self.deviation_roots, "float32")) + 1e-6
        first = (sums - totals * centers) / deviations
        second = squares + centers * (totals * centers - 2.0 * sums)
        return first, second / ops.square(deviations) - totals


@registry.register
class NetFVModel(StreamEncoderModel):
    """Gated NetFV: a Fisher vector per feature, a hidden layer with context gating, and experts.

    The order of the frames has no effect.

    Args:
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        fv_cluster_size: str. Clusters of each feature, separated by commas; the last number also
            applies to all further features.
        fv_hidden_size: int. Units of the hidden layer after the Fisher vectors.
        fv_second_order_norm: str. Normalization of the second-order part: global scales it to L2
            norm 1, as in the published code; intra scales the part of each cluster before.
        gating: bool. Whether context gating follows the hidden layer.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.
        moe_prob_gating: bool. Whether context gating follows the class probabilities.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def __init__(
        self,
        *,
        iterations=300,
        fv_cluster_size="128,64",
        fv_hidden_size=1024,
        fv_second_order_norm="global",
        gating=True,
        moe_l2=1e-6,
        moe_prob_gating=True,
        **kwargs,
    ):
        super().__init__(
            iterations=iterations, moe_l2=moe_l2, moe_prob_gating=moe_prob_gating, **kwargs
        )
        utils.check_at_least(1, fv_hidden_size=fv_hidden_size)
        utils.check_one_of(NetFV.SECOND_ORDER_NORMS, fv_second_order_norm=fv_second_order_norm)
        sizes = self.feature_sizes
        (self.clusters,) = per_stream(self, sizes, fv_cluster_size=fv_cluster_size)
        self.encoder = StreamEncoder(
            sizes,
            [
                NetFV(count, second_order_norm=fv_second_order_norm, name=f"netfv_{number}")
                for number, count in enumerate(self.clusters)
            ],
            hidden_size=fv_hidden_size,
            hidden_fan_in=self.clusters[0],
            gating=gating,
        )

    def floats_per_video(self, num_frames, num_samplings):
        """Counts the frames and their squares, and each sampling's assignments and vectors."""
        vector_size = max(
            clusters * size
            for clusters, size in zip(self.clusters, self.feature_sizes, strict=True)
        )
        return 4 * num_frames * sum(self.feature_sizes) + num_samplings * (
            num_frames * max(self.clusters) + 8 * vector_size
        )


# --- Gated bag of frames --------------------------------------------------------------------------


class GatedBagOfFeatures(nonlocal_vlad.SoftBagOfFeatures):
    """`SoftBagOfFeatures` whose clusters are gated by the largest assignments.

        m_k = max_i a_k(x_i) over frames of weight above 0,  g = sigmoid(BN(W V m / ||m||))
        output = g * h / ||g * h||

    with the histogram h of `SoftBagOfFeatures`.

    Args:
        clusters: int. K.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and their weights `[B, T]`; in prediction
    also `[B, N, T]` for N samplings of the same frames. Output shape: `[B, K]` or `[B * N, K]`.

    Reference: code of [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def build(self, frames_shape, *_):
        """Creates the cluster weights, V, `[K, D]`, W, `[D, K]`, and the batch normalization."""
        super().build(frames_shape)
        size = layers.row_size(frames_shape)
        options = {"initializer": layers.scaled_normal(size), "dtype": self.dtype_policy}
        self.reduction = layers.Linear(size, use_bias=False, name="reduction", **options)
        self.reduction.build((None, self.clusters))
        self.gate = layers.Linear(self.clusters, batch_norm=True, name="gate", **options)
        self.gate.build((None, size))

    def call(self, frames, frame_weights, training=False):
        """Returns the gated histogram, `[B, K]` or `[B * N, K]`."""
        assignments = self.assignment(frames, frame_weights, training=training)
        weights, assignments = nonlocal_vlad.per_sampling(frame_weights, assignments)
        real = ops.cast(weights > 0, "float32")[..., None]
        # One sampling after another: all at once would hold `[B, N, T, K]`.
        largest = [ops.max(assignments * real[:, n], axis=1) for n in range(weights.shape[1])]
        largest = ops.reshape(ops.stack(largest, axis=1), (-1, self.clusters))
        logits = self.gate(self.reduction(layers.l2_normalize(largest)), training=training)
        histogram = self.histogram(assignments, weights, training)
        return layers.l2_normalize(ops.sigmoid(logits) * histogram)


@registry.register
class GatedDbofModel(StreamEncoderModel):
    """Gated deep bag of frames: soft histograms, the first of them with gated clusters.

    The order of the frames has no effect.

    Args:
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        gated_dbof_cluster_size: str. Clusters of each feature, separated by commas; the last number
            also applies to all further features.
        gated_dbof_hidden_size: int. Units of the hidden layer after the histograms.
        gated_dbof_streams: int. Features, from the first, whose histogram is gated.
        gating: bool. Whether context gating follows the hidden layer.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.

    Reference: code of [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def __init__(
        self,
        *,
        iterations=300,
        gated_dbof_cluster_size="4096,512",
        gated_dbof_hidden_size=1024,
        gated_dbof_streams=1,
        gating=False,
        moe_l2=1e-6,
        **kwargs,
    ):
        super().__init__(iterations=iterations, moe_l2=moe_l2, **kwargs)
        utils.check_at_least(1, gated_dbof_hidden_size=gated_dbof_hidden_size)
        utils.check_at_least(0, gated_dbof_streams=gated_dbof_streams)
        sizes = self.feature_sizes
        (self.clusters,) = per_stream(self, sizes, gated_dbof_cluster_size=gated_dbof_cluster_size)
        kinds = [GatedBagOfFeatures] * gated_dbof_streams
        kinds += [nonlocal_vlad.SoftBagOfFeatures] * len(sizes)
        self.encoder = StreamEncoder(
            sizes,
            [
                kind(count, name=f"dbof_{number}")
                for number, (kind, count) in enumerate(zip(kinds, self.clusters, strict=False))
            ],
            hidden_size=gated_dbof_hidden_size,
            hidden_fan_in=self.clusters[0],
            gating=gating,
        )

    def floats_per_video(self, num_frames, num_samplings):
        """Counts copies of the frames' assignments, one more for each sampling's maximum."""
        return 4 * num_frames * max(self.clusters)
