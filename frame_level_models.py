"""Models that classify videos from their frames.

The way of a frame: stored as uint8 -> sampled -> dequantised -> normalised to length 1 -> encoded
into one vector per video -> classified by a video-level model. `FrameLevelModel` does all but the
encoding, which is what a model adds.
"""

import keras
from keras import ops

import nonlocal_vlad
import registry
import utils


class FrameLevelModel(keras.Model):
    """Base of the models that classify frames: a subclass implements `encode`.

    Input: a dict of `frames`, uint8 `[B, T, D]` with the features side by side, and `num_frames`,
    int `[B]`; frames from `num_frames` on are padding and never count. Output: probabilities,
    float32 `[B, C]`.

    Args:
        num_classes: int. C.
        feature_sizes: sequence of int. Sizes of the features; their sum is D.
        iterations: int. Frames sampled of each video, in training and in prediction; 0 takes all.
        sample_random_frames: bool. Whether each frame is drawn by itself, uniformly and with
            replacement; if not, a run of consecutive frames is drawn.
        video_level_classifier_model: str. Video-level model that classifies the encoding; its
            hyper-parameters are taken as well.
    """

    frame_level = True
    # Whether sampled frames are counted where they stand, instead of being copied: the same for a
    # model that ignores their order, and cheaper unless few are drawn.
    sample_by_count = False

    def __init__(
        self,
        *,
        num_classes,
        feature_sizes,
        iterations=0,
        sample_random_frames=True,
        video_level_classifier_model="MoeModel",
        name=None,
        **classifier_hyperparameters,
    ):
        super().__init__(name=name or type(self).__name__)
        utils.check_at_least(0, iterations=iterations)
        self.num_classes = num_classes
        self.feature_sizes = tuple(feature_sizes)
        self.iterations = iterations
        self.sample_random_frames = sample_random_frames
        self.sampling_seed = keras.random.SeedGenerator(name="sampling_seed")
        self.classifier = registry.build_classifier(
            video_level_classifier_model, num_classes=num_classes, **classifier_hyperparameters
        )

    def input_spec_tensors(self):
        """Symbolic input, by which the weights are made."""
        return {
            "frames": keras.Input([None, sum(self.feature_sizes)], dtype="uint8"),
            "num_frames": keras.Input([], dtype="int32"),
        }

    def call(self, inputs, training=False):
        """Probabilities, float32 `[B, C]`."""
        frames, frame_weights = self.sample(inputs["frames"], inputs["num_frames"])
        encoding = self.encode(normalize(frames, frame_weights), frame_weights, training)
        return self.classifier(encoding, training=training)

    def encode(self, frames, frame_weights, training):
        """One vector per video.

        Args:
            frames: float32 `[B, T, D]`, of length 1 each; padding is 0.
            frame_weights: float32 `[B, T]`, how often a frame counts: 0 for padding, 1 for others,
                or how often it was sampled if the model has `sample_by_count`.
            training: bool. Whether batch normalisation uses the statistics of the batch.

        Returns:
            A float tensor of two axes, `[B, any]`.
        """
        raise NotImplementedError

    def sample(self, frames, num_frames):
        """Frames to use and how often each counts: uint8 `[B, S, D]`, float32 `[B, S]`."""
        num_frames = ops.cast(num_frames, "int32")
        length = ops.shape(frames)[1]
        if not self.iterations:
            return frames, real_weights(ops.arange(length, dtype="int32"), num_frames)
        draw = random_positions if self.sample_random_frames else random_run
        positions = draw(num_frames, self.iterations, self.sampling_seed)
        weights = real_weights(positions, num_frames)
        positions = ops.minimum(positions, length - 1)
        if self.sample_by_count:
            return frames, count_frames(positions, weights, length)
        return take_frames(frames, positions), weights


def real_weights(positions, num_frames):
    """1 for positions inside a video and 0 past its end: float32 `[B, S]`, of `[S]` or `[B, S]`."""
    return ops.cast(positions < num_frames[:, None], "float32")


def random_positions(num_frames, count, seed):
    """Positions of frames drawn uniformly and with replacement, int32 `[B, count]`, ascending."""
    uniform = keras.random.uniform((ops.shape(num_frames)[0], count), seed=seed)
    # In order of time, for the models to which it matters.
    return _scaled_floor(ops.sort(uniform, axis=1), num_frames)


def random_run(num_frames, count, seed):
    """Positions of consecutive frames from a random start, int32 `[B, count]`.

    Where a video has fewer frames, the run starts at its first and goes on past its end.
    """
    uniform = keras.random.uniform((ops.shape(num_frames)[0], 1), seed=seed)
    start = _scaled_floor(uniform, ops.maximum(num_frames - count + 1, 1))
    return start + ops.arange(count, dtype="int32")


def _scaled_floor(uniform, limits):
    """Integers from 0 to limit - 1; rounding must not let one reach its limit."""
    limits = limits[:, None]
    scaled = ops.floor(uniform * ops.cast(limits, "float32"))
    return ops.minimum(ops.cast(scaled, "int32"), limits - 1)


def take_frames(frames, positions):
    """Frames `[B, S, D]` at positions `[B, S]` of `[B, T, D]`."""
    batch, length, size = ops.shape(frames)
    flat = ops.reshape(frames, (batch * length, size))
    return ops.take(flat, _flat_positions(positions, length), axis=0)


def count_frames(positions, weights, length):
    """Sum of the weights `[B, S]` of positions `[B, S]` at each of `length` frames: `[B, T]`."""
    batch = ops.shape(positions)[0]
    sums = ops.segment_sum(
        ops.reshape(weights, (-1,)),
        ops.reshape(_flat_positions(positions, length), (-1,)),
        num_segments=batch * length,
    )
    return ops.reshape(sums, (batch, length))


def _flat_positions(positions, length):
    """Positions `[B, S]` of frames in a batch whose videos of `length` frames are joined."""
    return ops.arange(ops.shape(positions)[0], dtype="int32")[:, None] * length + positions


def normalize(frames, frame_weights):
    """Dequantised frames of length 1, float32 `[B, T, D]`; those of weight 0 become 0."""
    values = utils.dequantize(ops.cast(frames, "float32"))
    real = ops.cast(frame_weights > 0, "float32")
    return nonlocal_vlad.l2_normalize(values) * real[..., None]


@registry.register
class FrameLevelLogisticModel(FrameLevelModel):
    """Classifies the mean of the frames, by default with one logistic regression per class.

    The simplest baseline: it knows what is in a video, but not which frame shows what.
    """

    def __init__(self, *, video_level_classifier_model="LogisticModel", **kwargs):
        super().__init__(video_level_classifier_model=video_level_classifier_model, **kwargs)

    def encode(self, frames, frame_weights, training):
        """Mean of the frames, `[B, D]`."""
        return ops.sum(frames, axis=1) / ops.sum(frame_weights, axis=1, keepdims=True)


@registry.register
class DbofModel(FrameLevelModel):
    """Deep bag of frames: every frame is projected onto clusters, then pooled over the frames.

        activation = relu6(BN(W x)) for each frame, pooled; hidden = relu6(BN(V pooled))

    Args:
        iterations: int. Frames sampled of each video, in training and in prediction; 0 takes all.
        dbof_cluster_size: int. Clusters that a frame is projected onto.
        dbof_hidden_size: int. Units of the hidden layer after pooling.
        dbof_pooling_method: str. Pooling over the frames: `max` or `average`.
        dbof_add_batch_norm: bool. Whether to normalise input, clusters and hidden layer; if not,
            clusters and hidden layer have a bias.

    Reference: [Abu-El-Haija et al., 2016](https://arxiv.org/abs/1609.08675).
    """

    def __init__(
        self,
        *,
        iterations=30,
        dbof_cluster_size=8192,
        dbof_hidden_size=1024,
        dbof_pooling_method="max",
        dbof_add_batch_norm=True,
        **kwargs,
    ):
        super().__init__(iterations=iterations, **kwargs)
        if dbof_pooling_method not in ("max", "average"):
            raise ValueError(
                f"dbof_pooling_method must be 'max' or 'average'. Received: {dbof_pooling_method!r}"
            )
        utils.check_at_least(
            1, dbof_cluster_size=dbof_cluster_size, dbof_hidden_size=dbof_hidden_size
        )
        self.pooling_method = dbof_pooling_method
        self.clusters = _projection(
            "clusters", sum(self.feature_sizes), dbof_cluster_size, dbof_add_batch_norm
        )
        self.hidden = _projection(
            "hidden", dbof_cluster_size, dbof_hidden_size, dbof_add_batch_norm
        )
        self.input_norm = self.clusters_norm = self.hidden_norm = None
        if dbof_add_batch_norm:
            self.input_norm = nonlocal_vlad.BatchNorm(name="input_norm")
            self.clusters_norm = nonlocal_vlad.BatchNorm(name="clusters_norm")
            self.hidden_norm = nonlocal_vlad.BatchNorm(name="hidden_norm")

    def encode(self, frames, frame_weights, training):
        """Hidden layer over the pooled clusters, `[B, dbof_hidden_size]`."""
        if self.input_norm is not None:
            frames = self.input_norm(frames, frame_weights, training=training)
        x = self.clusters(frames)
        if self.clusters_norm is not None:
            x = self.clusters_norm(x, frame_weights, training=training)
        # relu6 is not negative, so 0 at the padding changes no maximum.
        x = ops.relu6(x) * frame_weights[..., None]
        if self.pooling_method == "max":
            x = ops.max(x, axis=1)
        else:
            x = ops.sum(x, axis=1) / ops.sum(frame_weights, axis=1, keepdims=True)
        x = self.hidden(x)
        if self.hidden_norm is not None:
            x = self.hidden_norm(x, training=training)
        return ops.relu6(x)


def _projection(name, fan_in, units, normalized):
    """A linear layer, without bias where batch normalisation follows."""
    return keras.layers.Dense(
        units,
        use_bias=not normalized,
        kernel_initializer=nonlocal_vlad.scaled_normal(fan_in),
        name=name,
    )


@registry.register
class LstmModel(FrameLevelModel):
    """A stack of LSTMs over all frames in order; the last layer's final state is classified.

    Args:
        lstm_cells: int. Units of each layer.
        lstm_layers: int. Layers.
    """

    def __init__(self, *, lstm_cells=1024, lstm_layers=2, **kwargs):
        super().__init__(**kwargs)
        utils.check_at_least(1, lstm_cells=lstm_cells, lstm_layers=lstm_layers)
        self.recurrent_layers = [
            keras.layers.LSTM(
                lstm_cells, return_sequences=True, return_state=True, name=f"lstm_{number}"
            )
            for number in range(lstm_layers)
        ]

    def encode(self, frames, frame_weights, training):
        """Hidden state of the last layer after the last real frame, `[B, lstm_cells]`."""
        return run_recurrent(self.recurrent_layers, frames, frame_weights)[-1]


@registry.register
class GruModel(FrameLevelModel):
    """A stack of GRUs over all frames in order; the final states of all layers are classified.

    The reset gate is applied before the recurrent product, as in TensorFlow 1's cell.

    Args:
        gru_cells: int. Units of each layer.
        gru_layers: int. Layers.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207), whose Table 1 gives the size
    243 MB that 1200 units have.
    """

    def __init__(self, *, gru_cells=1200, gru_layers=2, moe_l2=1e-6, **kwargs):
        super().__init__(moe_l2=moe_l2, **kwargs)
        utils.check_at_least(1, gru_cells=gru_cells, gru_layers=gru_layers)
        self.recurrent_layers = [
            keras.layers.GRU(
                gru_cells,
                reset_after=False,
                bias_initializer=_open_gates,
                return_sequences=True,
                return_state=True,
                name=f"gru_{number}",
            )
            for number in range(gru_layers)
        ]

    def encode(self, frames, frame_weights, training):
        """Final states of all layers side by side, `[B, gru_layers * gru_cells]`."""
        return ops.concatenate(run_recurrent(self.recurrent_layers, frames, frame_weights), axis=-1)


def _open_gates(shape, dtype=None):
    """Initial bias of a GRU, in the order update, reset, candidate: 1 for the two gates."""
    units = shape[-1] // 3
    return ops.concatenate([ops.ones(2 * units, dtype), ops.zeros(units, dtype)])


def run_recurrent(layers, frames, frame_weights):
    """Runs recurrent layers on top of each other; the state of a video rests at its padding.

    Returns:
        A list of the final hidden state of each layer, `[B, units]`.
    """
    mask = frame_weights > 0
    states = []
    for layer in layers:
        frames, state, *_ = layer(frames, mask=mask)
        states.append(state)
    return states


class StreamEncoder(keras.layers.Layer):
    """Pools the frames of each stream by itself and reduces the results to one hidden vector.

        x = BN(frames),  h = V [pool_1(x_1), ..., pool_S(x_S)] + b

    and, with `gating`, context gating of h. A stream is one feature (late fusion) or all features
    side by side (early fusion). The order of the frames plays no role.

    Args:
        stream_sizes: sequence of int. Size of each stream; their sum is D.
        poolings: list of layers, one per stream, called with `[B, T, size]` frames and `[B, T]`
            frame weights.
        hidden_size: int. Size of h.
        hidden_fan_in: int. The initial V is normal with standard deviation `1 / sqrt` of it.
        gating: bool. Whether context gating follows.

    Input shape: frames `[B, T, D]` and their weights `[B, T]`. Output shape: `[B, hidden_size]`.
    """

    def __init__(
        self, stream_sizes, poolings, *, hidden_size, hidden_fan_in, gating, name="encoder"
    ):
        super().__init__(name=name)
        self.stream_sizes = tuple(stream_sizes)
        self.poolings = poolings
        self.input_norm = nonlocal_vlad.BatchNorm(name="input_norm")
        self.hidden = keras.layers.Dense(
            hidden_size,
            kernel_initializer=nonlocal_vlad.scaled_normal(hidden_fan_in),
            name="hidden",
        )
        self.hidden_gating = nonlocal_vlad.ContextGating(name="hidden_gating") if gating else None

    def call(self, frames, frame_weights, training=False):
        """The hidden vector, `[B, hidden_size]`."""
        frames = self.input_norm(frames, frame_weights, training=training)
        pooled, start = [], 0
        for size, pooling in zip(self.stream_sizes, self.poolings, strict=True):
            stream = frames[..., start : start + size]
            pooled.append(pooling(stream, frame_weights, training=training))
            start += size
        hidden = self.hidden(ops.concatenate(pooled, axis=-1))
        if self.hidden_gating is None:
            return hidden
        return self.hidden_gating(hidden, training=training)


@registry.register
class LFNLNetVLADModel(FrameLevelModel):
    """Late-fusion non-local NetVLAD, the best single model of its paper.

    One NetVLAD with a non-local block per feature, reduced to a hidden layer with context gating,
    classified by a mixture of experts whose probabilities are gated as well. The order of the
    frames plays no role. Without `nonlocal_block` it is the gated NetVLAD (with late fusion) that
    won the first YouTube-8M challenge.

    Settings per stream are numbers separated by commas; the last one also serves all further
    streams.

    Args:
        iterations: int. Frames sampled of each video, in training and in prediction; 0 takes all.
        early_fusion: bool. Whether all features form one joint stream; else each is one.
        netvlad_cluster_size: str. Clusters of each stream.
        netvlad_centers: bool. Whether the clusters have centres; without them it is NetRVLAD.
        netvlad_hidden_size: int. Units of the hidden layer that the descriptors are reduced to.
        nonlocal_block: bool. Whether the descriptors attend to each other.
        nonlocal_embedding: str. Size of the embedding in the non-local block of each stream.
        nonlocal_scale: float. Factor on the products in the non-local block; not given, it is
            1 / sqrt(size of the stream), unless a model has a default.
        nonlocal_pairwise: str. Pairwise function: embedded_gaussian, gaussian or dot_product.
        gating: bool. Whether context gating of the hidden layer follows.
        moe_num_mixtures: int. Experts per class without the one that always says no.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts.
        moe_prob_gating: bool. Whether context gating of the probabilities follows.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    sample_by_count = True

    def __init__(
        self,
        *,
        iterations=300,
        early_fusion=False,
        netvlad_cluster_size="64,32",
        netvlad_centers=True,
        netvlad_hidden_size=1024,
        nonlocal_block=True,
        nonlocal_embedding="64,32",
        nonlocal_scale: float | None = 1 / 64,
        nonlocal_pairwise="embedded_gaussian",
        gating=True,
        moe_num_mixtures=8,
        moe_l2=1e-6,
        moe_prob_gating=True,
        **kwargs,
    ):
        super().__init__(
            iterations=iterations,
            moe_num_mixtures=moe_num_mixtures,
            moe_l2=moe_l2,
            moe_prob_gating=moe_prob_gating,
            **kwargs,
        )
        streams = (sum(self.feature_sizes),) if early_fusion else self.feature_sizes
        clusters = per_stream("netvlad_cluster_size", netvlad_cluster_size, len(streams))
        embeddings = per_stream("nonlocal_embedding", nonlocal_embedding, len(streams))
        utils.check_at_least(1, netvlad_hidden_size=netvlad_hidden_size)

        def make_block(number):
            if not nonlocal_block:
                return None
            try:
                return nonlocal_vlad.NonLocalBlock(
                    embeddings[number],
                    scale=nonlocal_scale,
                    pairwise=nonlocal_pairwise,
                    name="nonlocal_block",
                )
            except ValueError as error:  # Names an argument of the layer.
                raise ValueError(f"nonlocal_{error}") from error

        self.encoder = StreamEncoder(
            streams,
            [
                nonlocal_vlad.NetVLAD(
                    clusters[number],
                    centers=netvlad_centers,
                    nonlocal_block=make_block(number),
                    name=f"netvlad_{number}",
                )
                for number in range(len(streams))
            ],
            hidden_size=netvlad_hidden_size,
            hidden_fan_in=clusters[0],
            gating=gating,
        )

    def encode(self, frames, frame_weights, training):
        """Hidden layer over the descriptors, `[B, netvlad_hidden_size]`."""
        return self.encoder(frames, frame_weights, training=training)


@registry.register
class LFNLNetRVLADModel(LFNLNetVLADModel):
    """Late-fusion non-local NetRVLAD: clusters without centres, and a wider embedding.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    def __init__(
        self,
        *,
        netvlad_centers=False,
        nonlocal_embedding="512,64",
        nonlocal_scale: float | None = None,
        moe_num_mixtures=4,
        **kwargs,
    ):
        super().__init__(
            netvlad_centers=netvlad_centers,
            nonlocal_embedding=nonlocal_embedding,
            nonlocal_scale=nonlocal_scale,
            moe_num_mixtures=moe_num_mixtures,
            **kwargs,
        )


@registry.register
class EFNLNetVLADModel(LFNLNetVLADModel):
    """Early-fusion non-local NetVLAD: one joint stream of all features.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    def __init__(
        self,
        *,
        early_fusion=True,
        netvlad_cluster_size="64",
        nonlocal_embedding="64",
        nonlocal_scale: float | None = None,
        moe_num_mixtures=2,
        **kwargs,
    ):
        super().__init__(
            early_fusion=early_fusion,
            netvlad_cluster_size=netvlad_cluster_size,
            nonlocal_embedding=nonlocal_embedding,
            nonlocal_scale=nonlocal_scale,
            moe_num_mixtures=moe_num_mixtures,
            **kwargs,
        )


@registry.register
class SoftBoFModel(FrameLevelModel):
    """Soft bag of features: a histogram of soft assignments to many clusters, per feature.

    With the default of 4000 and 500 clusters it is the paper's Soft-BoF-4k; its Soft-BoF-8k has
    `soft_bof_cluster_size="8000,1000"`. The order of the frames plays no role.

    Args:
        iterations: int. Frames sampled of each video, in training and in prediction; 0 takes all.
        soft_bof_cluster_size: str. Clusters of each feature, separated by commas; the last number
            also serves all further features.
        soft_bof_hidden_size: int. Units of the hidden layer that the histograms are reduced to.
        gating: bool. Whether context gating of the hidden layer follows.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

    sample_by_count = True

    def __init__(
        self,
        *,
        iterations=300,
        soft_bof_cluster_size="4000,500",
        soft_bof_hidden_size=1024,
        gating=False,
        moe_l2=1e-6,
        **kwargs,
    ):
        super().__init__(iterations=iterations, moe_l2=moe_l2, **kwargs)
        utils.check_at_least(1, soft_bof_hidden_size=soft_bof_hidden_size)
        sizes = self.feature_sizes
        clusters = per_stream("soft_bof_cluster_size", soft_bof_cluster_size, len(sizes))
        self.encoder = StreamEncoder(
            sizes,
            [
                nonlocal_vlad.SoftBagOfFeatures(count, name=f"soft_bof_{number}")
                for number, count in enumerate(clusters)
            ],
            hidden_size=soft_bof_hidden_size,
            hidden_fan_in=clusters[0],
            gating=gating,
        )

    def encode(self, frames, frame_weights, training):
        """Hidden layer over the histograms, `[B, soft_bof_hidden_size]`."""
        return self.encoder(frames, frame_weights, training=training)


def per_stream(name, text, num_streams):
    """Numbers of a setting per stream, as "64,32": a list of one int of at least 1 per stream.

    The last number also serves all further streams; numbers beyond the streams are not used.

    Raises:
        InputError: if the text holds anything else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise utils.InputError(
            f"{name} must be integers separated by commas, one per stream. Received: {text!r}"
        ) from None
    utils.check_at_least(1, **{name: min(numbers)})
    return [*numbers, *numbers[-1:] * num_streams][:num_streams]
