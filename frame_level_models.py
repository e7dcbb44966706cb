"""Models that classify videos from their frames.

The way of a frame: stored as uint8 -> sampled -> dequantised -> normalised to length 1 -> encoded
into one vector per video -> classified by a video-level model. `FrameLevelModel` does all but the
encoding, which is what a model adds. Models that see frames through matrices alone take them as
`QuantizedFrames`, which dequantise and normalise around the product.

Training samples the frames of a video once. Prediction may average over several samplings: a model
that counts sampled frames where they stand computes what depends on a frame alone only once.
"""

import keras
from keras import ops

import layers
import nonlocal_vlad
import recurrent
import registry
import utils


# --- Base class -----------------------------------------------------------------------------------


class FrameLevelModel(keras.Model):
    """Base of the models that classify frames: a subclass implements `encode`.

    Input: a dict of

    - `frames`: uint8 `[B, T, D]` with the features side by side;
    - `num_frames`: int `[B]`; frames from there on are padding and never count;
    - `norms`: optional, float32 `[B, T]`, what `layers.inverse_norms` gives of the frames;
    - `frame_indices`: optional, int32 `[B, N, S]`, the frames that each of N samplings takes, as from
      `draw_frame_indices`. Without them the model draws one sampling, a new one at each call.

    Output: probabilities, float32 `[B, C]`, the mean over the samplings.

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
    # Whether `encode` takes frames as `layers.QuantizedFrames`, not as numbers.
    takes_quantized_frames = False
    # Whether sampled frames are counted where they stand, instead of being copied: the same for a
    # model that ignores their order, and cheaper unless few are drawn. Its `encode` must also take
    # the counts of several samplings, `[B, N, T]`.
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
        self.sampling_seed = layers.SeedGenerator(name="sampling_seed")
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
        frames, num_frames = inputs["frames"], ops.cast(inputs["num_frames"], "int32")
        norms, frame_indices = inputs.get("inverse_norms"), inputs.get("frame_indices")
        if frame_indices is None:
            frame_indices = self.draw_frame_indices(num_frames, 1, self.sampling_seed)
        num_samplings = 1 if frame_indices is None else frame_indices.shape[1]
        # A model that counts leaves frames, and so their norms, where they stand.
        if norms is not None and not self.sample_by_count:
            norms, _ = self.sample(norms, num_frames, frame_indices)
        frames, frame_weights = self.sample(frames, num_frames, frame_indices)
        frames = normalize(frames, frame_weights, norms)
        if not self.takes_quantized_frames:
            frames = frames.to_float()
        encoding = self.encode(frames, frame_weights, training)
        probabilities = self.classifier(encoding, training=training)
        if num_samplings == 1:
            return probabilities
        samplings = ops.reshape(probabilities, (-1, num_samplings, self.num_classes))
        return ops.mean(samplings, axis=1)

    def encode(self, frames, frame_weights, training):
        """One vector per video.

        Args:
            frames: float32 `[B, T, D]`, of length 1 each; padding is 0. `QuantizedFrames` if the model
                has `takes_quantized_frames`. Of several samplings that copy the frames, each is a
                video here.
            frame_weights: float32 `[B, T]`, how often a frame counts: 0 for padding, 1 for others,
                or how often it was sampled if the model has `sample_by_count`; of several
                samplings then `[B, N, T]`.
            training: bool. Whether batch normalisation uses the statistics of the batch.

        Returns:
            A float tensor of two axes, `[B, any]`; of weights `[B, N, T]`, `[B * N, any]`.
        """
        raise NotImplementedError

    def draw_frame_indices(self, num_frames, num_samplings, seed):
        """Draws the frames that samplings take.

        Args:
            num_frames: int32 `[B]`.
            num_samplings: int. N.
            seed: int or `keras.random.SeedGenerator`.

        Returns:
            int32 `[B, N, iterations]`; None for a model that takes all frames.
        """
        if not self.iterations:
            return None
        draw = random_frame_indices if self.sample_random_frames else random_frame_runs
        return draw(num_frames, num_samplings, self.iterations, seed)

    def sample(self, frames, num_frames, frame_indices):
        """Frames to use and how often each counts.

        Args:
            frames: `[B, T, D]`, or `[B, T]`, one number for each.
            num_frames: int32 `[B]`.
            frame_indices: int32 `[B, N, S]`, or None for all frames.

        Returns:
            `(frames, weights)`: those given and float32 `[B, T]`, or of several samplings
            `[B, N, T]`; without `sample_by_count`, copies `[B * N, S, D]` and `[B * N, S]`.
        """
        length = ops.shape(frames)[1]
        if frame_indices is None:
            return frames, inside_video(ops.arange(length, dtype="int32")[None], num_frames)
        num_samplings, count = frame_indices.shape[1:]
        frame_indices = ops.reshape(frame_indices, (-1, count or ops.shape(frame_indices)[2]))
        if num_samplings > 1:
            num_frames = ops.repeat(num_frames, num_samplings, axis=0)
        weights = inside_video(frame_indices, num_frames)
        frame_indices = ops.minimum(frame_indices, length - 1)
        if not self.sample_by_count:
            return take_frames(frames, frame_indices, num_samplings), weights
        counts = count_frames(frame_indices, weights, length)
        if num_samplings > 1:
            counts = ops.reshape(counts, (-1, num_samplings, length))
        return frames, counts

    def floats_per_video(self, num_frames, num_samplings):
        """About how many floats prediction holds at once per video; it limits the batch.

        Args:
            num_frames: int or int tensor. T.
            num_samplings: int. N.
        """
        copies = 1 if self.sample_by_count else num_samplings
        return 2 * copies * num_frames * sum(self.feature_sizes)


# --- Sampling of frames ---------------------------------------------------------------------------


def inside_video(frame_indices, num_frames):
    """1 for frame_indices inside a video and 0 past its end: float32 `[B, S]`, of `[B or 1, S]`."""
    return ops.cast(frame_indices < num_frames[:, None], "float32")


def all_frame_indices(num_frames, length):
    """Every frame once, in the form of one sampling: int32 `[B, 1, length]`."""
    return ops.zeros_like(num_frames)[:, None, None] + ops.arange(length, dtype="int32")


def random_frame_indices(num_frames, num_samplings, count, seed):
    """Positions of frames drawn uniformly, with replacement: int32 `[B, N, count]`, ascending."""
    shape = (ops.shape(num_frames)[0], num_samplings, count)
    # In order of time, for the models to which it matters.
    return _scaled_floor(ops.sort(keras.random.uniform(shape, seed=seed), axis=-1), num_frames)


def random_frame_runs(num_frames, num_samplings, count, seed):
    """Positions of consecutive frames from random starts, int32 `[B, N, count]`.

    Where a video has fewer frames, the run starts at its first and goes on past its end.
    """
    uniform = keras.random.uniform((ops.shape(num_frames)[0], num_samplings, 1), seed=seed)
    start = _scaled_floor(uniform, ops.maximum(num_frames - count + 1, 1))
    return start + ops.arange(count, dtype="int32")


def _scaled_floor(uniform, limits):
    """Integers from 0 to limit - 1; rounding must not let one reach its limit."""
    limits = limits[:, None, None]
    scaled = ops.floor(uniform * ops.cast(limits, "float32"))
    return ops.clip(ops.cast(scaled, "int32"), 0, ops.maximum(limits - 1, 0))


def take_frames(frames, frame_indices, num_samplings=1):
    """Frames `[B * N, S, D]` at frame_indices `[B * N, S]` of `[B, T, D]`; D may be missing."""
    batch, length, *size = ops.shape(frames)
    flat = ops.reshape(frames, (batch * length, *size))
    videos = ops.repeat(ops.arange(batch, dtype="int32"), num_samplings)
    return ops.take(flat, videos[:, None] * length + frame_indices, axis=0)


def count_frames(frame_indices, weights, length):
    """Sum of the weights `[B, S]` of frame_indices `[B, S]` at each of `length` frames: `[B, T]`."""
    batch = ops.shape(frame_indices)[0]
    # Positions in a batch whose videos of `length` frames are joined.
    joined = ops.arange(batch, dtype="int32")[:, None] * length + frame_indices
    sums = ops.segment_sum(
        ops.reshape(weights, (-1,)), ops.reshape(joined, (-1,)), num_segments=batch * length
    )
    return ops.reshape(sums, (batch, length))


def normalize(frames, frame_weights, norms=None):
    """Frames of length 1, `QuantizedFrames`; those that never count become 0.

    Args:
        frames: uint8 `[B, T, D]`.
        frame_weights: float32 `[B, T]` or `[B, N, T]`.
        norms: their `inverse_norms`, if those are known.
    """
    if len(frame_weights.shape) == 3:
        frame_weights = ops.max(frame_weights, axis=1)
    norms = layers.inverse_norms(frames) if norms is None else norms
    return layers.QuantizedFrames(frames, norms * ops.cast(frame_weights > 0, "float32"))


# --- Encoder of streams ---------------------------------------------------------------------------


class StreamEncoder(keras.layers.Layer):
    """Pools the frames of each stream by itself and reduces the results to one hidden vector.

        x = BN(frames),  h = V [pool_1(x_1), ..., pool_S(x_S)] + b

    and, with `gating`, context gating of h. A stream is one feature (late fusion) or all features
    side by side (early fusion). The order of the frames plays no role.

    Args:
        stream_sizes: sequence of int. Size of each stream; their sum is D.
        poolings: list of layers, one per stream, called with `[B, T, size]` frames and the frame
            weights.
        hidden_size: int. Size of h.
        hidden_fan_in: int. The initial V is normal with standard deviation `1 / sqrt` of it.
        gating: bool. Whether context gating follows.

    Input shape: `QuantizedFrames` and their weights `[B, T]`, or, in prediction, `[B, N, T]` for N
    samplings. Output shape: `[B, hidden_size]` or `[B * N, hidden_size]`.
    """

    def __init__(
        self, stream_sizes, poolings, *, hidden_size, hidden_fan_in, gating, name="encoder"
    ):
        super().__init__(name=name)
        self.stream_sizes = tuple(stream_sizes)
        self.poolings = poolings
        self.input_norm = layers.BatchNorm(name="input_norm")
        self.hidden = layers.Linear(
            hidden_size,
            initializer=layers.scaled_normal(hidden_fan_in),
            name="hidden",
        )
        self.hidden_gating = layers.ContextGating(name="hidden_gating") if gating else None

    def fold(self):
        """Moves the normalisation of the frames into the assignments, for prediction."""
        scale, offset = self.input_norm.affine()
        start = 0
        for size, pooling in zip(self.stream_sizes, self.poolings, strict=True):
            pooling.assignment.fold_input(scale[start : start + size], offset[start : start + size])
            start += size

    def call(self, frames, frame_weights, training=False):
        """The hidden vector, `[B, hidden_size]` or `[B * N, hidden_size]`."""
        frames = self.input_norm(frames, frame_weights, training=training)
        pooled, start = [], 0
        for size, pooling in zip(self.stream_sizes, self.poolings, strict=True):
            stream = frames.entries(start, size)
            pooled.append(pooling(stream, frame_weights, training=training))
            start += size
        hidden = self.hidden(ops.concatenate(pooled, axis=-1))
        if self.hidden_gating is None:
            return hidden
        return self.hidden_gating(hidden, training=training)


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


# --- Models ---------------------------------------------------------------------------------------


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

    takes_quantized_frames = True

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
        utils.check_one_of(("max", "average"), dbof_pooling_method=dbof_pooling_method)
        utils.check_at_least(
            1, dbof_cluster_size=dbof_cluster_size, dbof_hidden_size=dbof_hidden_size
        )
        self.pooling_method = dbof_pooling_method
        self.clusters = layers.Linear(
            dbof_cluster_size,
            batch_norm=dbof_add_batch_norm,
            initializer=layers.scaled_normal(sum(self.feature_sizes)),
            name="clusters",
        )
        self.hidden = layers.Linear(
            dbof_hidden_size,
            batch_norm=dbof_add_batch_norm,
            initializer=layers.scaled_normal(dbof_cluster_size),
            name="hidden",
        )
        self.input_norm = layers.BatchNorm(name="input_norm") if dbof_add_batch_norm else None

    def encode(self, frames, frame_weights, training):
        """Hidden layer over the pooled clusters, `[B, dbof_hidden_size]`."""
        if self.input_norm is not None:
            frames = self.input_norm(frames, frame_weights, training=training)
        x = ops.relu6(self.clusters(frames, frame_weights, training=training))
        # relu6 is not negative, so 0 at the padding changes no maximum.
        x *= frame_weights[..., None]
        if self.pooling_method == "max":
            x = ops.max(x, axis=1)
        else:
            x = ops.sum(x, axis=1) / ops.sum(frame_weights, axis=1, keepdims=True)
        return ops.relu6(self.hidden(x, training=training))


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
                lstm_cells,
                return_sequences=True,
                return_state=True,
                name=f"lstm_{number}",
            )
            for number in range(lstm_layers)
        ]

    def encode(self, frames, frame_weights, training):
        """Hidden state of the last layer after the last real frame, `[B, lstm_cells]`."""
        for layer in self.recurrent_layers:
            frames, state, _ = layer(frames, mask=frame_weights > 0)
        return state


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

    takes_quantized_frames = True

    def __init__(self, *, gru_cells=1200, gru_layers=2, moe_l2=1e-6, **kwargs):
        super().__init__(moe_l2=moe_l2, **kwargs)
        utils.check_at_least(1, gru_cells=gru_cells, gru_layers=gru_layers)
        self.stack = recurrent.GRUStack(gru_cells, gru_layers, name="stack")

    def encode(self, frames, frame_weights, training):
        """Final states of all layers side by side, `[B, gru_layers * gru_cells]`."""
        return self.stack(frames, frame_weights > 0, training=training)

    def floats_per_video(self, num_frames, num_samplings):
        """The gates of a moment, states, and the frames if they are copied."""
        copies = num_samplings if self.iterations else 0
        return 10 * self.stack.units + copies * num_frames * sum(self.feature_sizes)


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

    takes_quantized_frames = True
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
        self.clusters = clusters
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

    def floats_per_video(self, num_frames, num_samplings):
        """Some copies of the assignments of the frames; a sampling adds little."""
        return 3 * num_frames * max(self.clusters)


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

    takes_quantized_frames = True
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
        utils.check_one_of(
            nonlocal_vlad.NonLocalBlock.PAIRWISE, nonlocal_pairwise=nonlocal_pairwise
        )
        if nonlocal_scale is not None:
            utils.check_above(0, nonlocal_scale=nonlocal_scale)
        self.clusters = clusters
        self.stream_sizes = streams

        def make_block(number):
            if not nonlocal_block:
                return None
            return nonlocal_vlad.NonLocalBlock(
                embeddings[number],
                scale=nonlocal_scale,
                pairwise=nonlocal_pairwise,
                name="nonlocal_block",
            )

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

    def floats_per_video(self, num_frames, num_samplings):
        """Frames, and some copies of the descriptors of each sampling."""
        descriptors = max(
            clusters * size for clusters, size in zip(self.clusters, self.stream_sizes, strict=True)
        )
        return 2 * num_frames * sum(self.feature_sizes) + num_samplings * (
            num_frames * max(self.clusters) + 4 * descriptors
        )


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
