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
        classifier = registry.model_class(video_level_classifier_model)
        if classifier.frame_level:
            raise ValueError(
                "video_level_classifier_model must be a video-level model. "
                f"Received: {video_level_classifier_model}"
            )
        self.num_classes = num_classes
        self.feature_sizes = tuple(feature_sizes)
        self.iterations = iterations
        self.sample_random_frames = sample_random_frames
        self.sampling_seed = keras.random.SeedGenerator(name="sampling_seed")
        self.classifier = classifier(
            num_classes=num_classes,
            l2_normalize_input=False,
            name="classifier",
            **classifier_hyperparameters,
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
            frame_weights: float32 `[B, T]`, 1 for a frame that counts and 0 for padding.
            training: bool. Whether batch normalisation uses the statistics of the batch.

        Returns:
            A float tensor of two axes, `[B, any]`.
        """
        raise NotImplementedError

    def sample(self, frames, num_frames):
        """Frames to use and their weights, 0 for padding: uint8 `[B, S, D]`, float32 `[B, S]`."""
        num_frames = ops.cast(num_frames, "int32")
        if not self.iterations:
            positions = ops.arange(ops.shape(frames)[1], dtype="int32")
            return frames, ops.cast(positions < num_frames[:, None], "float32")
        if self.sample_random_frames:
            positions = random_positions(num_frames, self.iterations, self.sampling_seed)
        else:
            positions = random_run(num_frames, self.iterations, self.sampling_seed)
        weights = ops.cast(positions < num_frames[:, None], "float32")
        return take_frames(frames, positions), weights


def random_positions(num_frames, count, seed):
    """Positions of frames drawn uniformly and with replacement, int32 `[B, count]`."""
    uniform = keras.random.uniform((ops.shape(num_frames)[0], count), seed=seed)
    return _scaled_floor(uniform, num_frames)


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
    """Frames `[B, S, D]` at positions `[B, S]` of `[B, T, D]`; past the end, the last frame."""
    batch, length, size = ops.shape(frames)
    rows = ops.arange(batch, dtype="int32")[:, None] * length
    flat = ops.reshape(frames, (batch * length, size))
    return ops.take(flat, rows + ops.minimum(positions, length - 1), axis=0)


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

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207), whose Table 1 gives the size
    243 MB that 1200 units have.
    """

    def __init__(self, *, gru_cells=1200, gru_layers=2, **kwargs):
        super().__init__(**kwargs)
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
