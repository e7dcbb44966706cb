"""Models that classify videos by their frames.

The frames of a video, stored as bytes or floats, are sampled, dequantized, L2-normalized and
encoded into one vector, which a video-level model classifies. `FrameLevelModel` does everything but
the encoding, which each model adds. Models that only multiply frames by matrices take them as
`StoredFrames`, which dequantize and normalize around the product.

Every training step draws a new sampling of each video's frames. A prediction uses every frame
once, or averages over samplings that depend only on a seed and the video. A model that counts how
often each frame was drawn, instead of copying it, computes everything that depends on one frame
only once.
"""

import keras
import numpy as np
from keras import ops

import layers
import nonlocal_vlad
import recurrent
import registry
import utils
from quantization import YOUTUBE8M, FrameFormat

# Sets of random numbers that samplings in prediction choose from. With a single set for all videos,
# GAP would vary several times as much between seeds as with independent numbers.
_NUM_SETS = 64

# --- Base class -----------------------------------------------------------------------------------


class FrameLevelModel(registry.Model):
    """Base of the models that classify frames; a subclass implements `encode`.

    Input: a dict of

    - `frames`: uint8 `[B, T, D]`, all features of a frame concatenated; float16 or float32 if that
      is the `frame_format`;
    - `num_frames`: int `[B]`; frames beyond that number are padding and are ignored;
    - `inverse_norms`: optional, float32 `[B, T]`, the result of the method of that name.

    Output: probabilities, float32 `[B, C]`, the mean over the samplings.

    Args:
        num_classes: int. C.
        feature_sizes: sequence of int. Sizes of the features; their sum is D.
        frame_format: dict. The numbers stored for a frame, from `FrameFormat.as_json`; `None`
            stands for YouTube-8M's bytes.
        normalize_frames: str. Normalization of each frame, over all features together: l2 scales it
            to L2 norm 1; none takes the values as they are.
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        sample_random_frames: bool. Whether to draw each frame independently, uniformly and with
            replacement; otherwise a run of consecutive frames is drawn.
        classifier_dropout: float. Share of the entries of the encoding that training sets to 0
            before the classifier.
        video_level_classifier_model: str. Video-level model that classifies the encoding; its
            hyperparameters are accepted too. A subclass that passes None sets `classifier` itself,
            a layer that is called with encodings and `training`.
    """

    frame_level = True
    # Whether `encode` takes `layers.StoredFrames` instead of float frames.
    takes_stored_frames = False
    # Whether sampled frames are counted instead of copied. For a model that ignores their order the
    # result is the same, and it is cheaper unless few frames are drawn. `encode` must then also
    # take the counts of several samplings, `[B, N, T]`.
    sample_by_count = False
    # Samplings that predictions average over by default; 0 stands for every frame once. A model
    # that predicts worse from more frames than it was trained on sets another number.
    default_samplings = 0

    def __init_subclass__(cls, **kwargs):
        """Lets a class that redefines only `encode` predict by it, not by an inherited `pool`."""
        super().__init_subclass__(**kwargs)
        if registry.redefines(cls, ("encode",), "pool"):
            for name in ("pool", "project", "pooled_size"):
                setattr(cls, name, vars(FrameLevelModel)[name])

    def __init__(
        self,
        *,
        num_classes,
        feature_sizes,
        frame_format=None,
        normalize_frames="l2",
        iterations=0,
        sample_random_frames=True,
        classifier_dropout=0.0,
        video_level_classifier_model="MoeModel",
        name=None,
        **classifier_hyperparameters,
    ):
        super().__init__(name=name)
        utils.check_at_least(0, iterations=iterations)
        utils.check_one_of(("l2", "none"), normalize_frames=normalize_frames)
        utils.check_share(classifier_dropout=classifier_dropout)
        self.num_classes = num_classes
        self.feature_sizes = tuple(feature_sizes)
        self.normalize_frames = normalize_frames
        self.frame_format = FrameFormat.from_json(frame_format) if frame_format else FrameFormat()
        # Float16 frames stay as they are until the first product.
        self.autocast = self.frame_format.is_quantized
        self.iterations = iterations
        self.sample_random_frames = sample_random_frames
        self.sampling_seed = layers.SeedGenerator(name="sampling_seed")
        if video_level_classifier_model is not None:
            self.classifier = registry.build_classifier(
                video_level_classifier_model, num_classes=num_classes, **classifier_hyperparameters
            )
        self.classifier_dropout = None
        if classifier_dropout:
            self.classifier_dropout = layers.Dropout(classifier_dropout, name="classifier_dropout")

    @property
    def has_separate_classes(self):
        """Whether a class depends on no other, see `registry.Model`; `encode` knows no classes."""
        return getattr(self.classifier, "has_separate_classes", False)

    def build(self, *_):
        """Creates the weights by one symbolic call, where Keras would make two."""
        if not self.built:
            self.compute_output_spec(self.input_spec_tensors())

    def input_spec_tensors(self):
        """Returns symbolic inputs, with which `build` creates the weights."""
        return {
            "frames": keras.Input(
                [None, sum(self.feature_sizes)], dtype=self.frame_format.dtype, name="frames"
            ),
            "num_frames": keras.Input([], dtype="int32", name="num_frames"),
        }

    def call(self, inputs, training=False, num_samplings=None, seed=0):
        """Returns probabilities, float32 `[B, C]`.

        Args:
            inputs: dict, as described above.
            training: bool. Whether to draw one new sampling and to update batch normalization.
            num_samplings: int. In prediction, the samplings to average over; 0 uses every frame
                once. `None` stands for the model's `default_samplings`.
            seed: in prediction, the seed of the samplings; see `draw_frame_indices`.
        """
        num_samplings = 1 if training else self.resolve_samplings(num_samplings)
        encoding = self._encode_samplings(inputs, training, num_samplings, seed)
        if self.classifier_dropout is not None:
            encoding = self.classifier_dropout(encoding, training=training)
        return mean_of_samplings(self.classifier(encoding, training=training), num_samplings)

    def predict_parts(self, inputs):
        """Predicts parts of videos, such as segments, each as if it were a video.

        Args:
            inputs: dict, as described above, with also `frame_indices`, int32 `[B, N, S]`: the
                frames of each of N parts, in order. Indices of at least `num_frames` are padding,
                which comes last. Without real frames, a part has no meaningful prediction.

        Returns:
            Probabilities, float32 `[B, N, C]`.
        """
        frame_indices = inputs["frame_indices"]
        encoding = self._encode_inputs(inputs, False, lambda *_: frame_indices, as_parts=True)
        predictions = self.classifier(encoding, training=False)
        num_parts = frame_indices.shape[1] or ops.shape(frame_indices)[1]
        return ops.reshape(predictions, (-1, num_parts, self.num_classes))

    def embed(self, inputs, num_samplings=None, seed=0):
        """Returns the embeddings of videos: their encodings, the vectors before the classifier.

        Args:
            inputs: dict, as described above.
            num_samplings: int. Samplings to average over, as for `call`.
            seed: seed of the samplings.

        Returns:
            float32 `[B, embedding_size]`.
        """
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        num_samplings = self.resolve_samplings(num_samplings)
        encoding = self._encode_samplings(inputs, False, num_samplings, seed)
        return mean_of_samplings(ops.cast(encoding, "float32"), num_samplings)

    def pool_samplings(self, inputs, num_samplings=None, seed=0):
        """Returns what `project_samplings` takes, float32 `[B, max(N, 1), size]`.

        Args:
            inputs: dict, as described above.
            num_samplings: int. N, as for `call`.
            seed: seed of the samplings.
        """
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        num_samplings = self.resolve_samplings(num_samplings)
        selected = self._select_frames(inputs, self._samplings(num_samplings, seed))
        pooled = ops.cast(self.pool(*selected), "float32")
        return ops.reshape(pooled, (-1, max(num_samplings, 1), pooled.shape[-1]))

    def project_samplings(self, pooled):
        """Returns the encodings of `pool_samplings`, float32 `[B, max(N, 1), embedding_size]`."""
        _, num_samplings, size = pooled.shape
        encodings = ops.cast(self.project(ops.reshape(pooled, (-1, size))), "float32")
        return ops.reshape(encodings, (-1, num_samplings, self.embedding_size))

    def classify_samplings(self, encodings):
        """Returns the probabilities of `call` for encodings `[B, N, embedding_size]`, `[B, C]`."""
        _, num_samplings, size = encodings.shape
        predictions = self.classifier(ops.reshape(encodings, (-1, size)), training=False)
        return mean_of_samplings(predictions, num_samplings)

    def _encode_samplings(self, inputs, training, num_samplings, seed):
        """Returns the encodings of all samplings, `[B * N, size]`, one video after another."""
        samplings = self._samplings(num_samplings, None if training else seed)
        return self._encode_inputs(inputs, training, samplings)

    def _samplings(self, num_samplings, seed):
        """Returns the function of `_select_frames` that draws samplings."""
        return lambda frames, num_frames: self.draw_frame_indices(
            frames, num_frames, num_samplings, seed
        )

    def _encode_inputs(self, inputs, training, choose_frames, as_parts=False):
        """Returns the encodings of selections of frames, `[B * N, size]`, one video after another.

        Args:
            inputs: dict, as described above.
            training: bool.
            choose_frames: as for `_select_frames`, and so is `as_parts`.
            as_parts: bool.
        """
        selected = self._select_frames(inputs, choose_frames, as_parts)
        encoding = self.encode(*selected, training)
        self.embedding_size = encoding.shape[-1]
        return encoding

    def _select_frames(self, inputs, choose_frames, as_parts=False):
        """Returns the frames and frame weights that `encode` takes.

        Args:
            inputs: dict, as described above.
            choose_frames: function from frames and `num_frames` to the indices of the frames of
                each selection, int32 `[B, N, S]`, or None for every frame once.
            as_parts: bool. As for `sample`.
        """
        if not isinstance(inputs, dict) or not {"frames", "num_frames"} <= inputs.keys():
            raise utils.InputError(f"{self.name} takes a dict of frames and num_frames.")
        self._check_frames(inputs["frames"])
        frames, num_frames = inputs["frames"], ops.cast(inputs["num_frames"], "int32")
        shape = utils.static_shape(num_frames)
        if shape is not None and len(shape) != 1:
            raise utils.InputError(
                f"num_frames must be [videos], one number per video. Received: {shape}"
            )
        inverse_norms = inputs.get("inverse_norms")
        frame_indices = choose_frames(frames, num_frames)
        # The norms must be copied if the frames are.
        if inverse_norms is not None and not self.sample_by_count:
            inverse_norms, _ = self.sample(inverse_norms, num_frames, frame_indices)
        frames, frame_weights = self.sample(frames, num_frames, frame_indices, as_parts)
        frames = self.stored_frames(frames, frame_weights, inverse_norms)
        return frames if self.takes_stored_frames else frames.to_float(), frame_weights

    def _check_frames(self, frames):
        if self.frame_format.is_quantized:
            dtypes = ("uint8",)
            hint = (
                "quantization.YOUTUBE8M.quantize returns the bytes that stand for float features."
            )
        else:
            dtypes = ("float32", "float16", "float64")
            hint = "The model was built for frames that are stored as floats."
        self.check_input(frames, dtypes, ("videos", "frames"), hint)

    def stored_frames(self, frames, frame_weights, inverse_norms=None):
        """Returns normalized `StoredFrames`; frames of weight 0 become 0.

        Args:
            frames: `[B, T, D]`, as stored.
            frame_weights: float32 `[B, T]` or `[B, N, T]`; or `nonlocal_vlad.Parts`, which leave
                out padding later.
            inverse_norms: those of the frames; computed if None.
        """
        if inverse_norms is None:
            inverse_norms = self.inverse_norms(frames)
        if isinstance(frame_weights, nonlocal_vlad.Parts):
            return self._unnormalized(frames).with_norms(inverse_norms)
        if len(frame_weights.shape) == 3:
            frame_weights = ops.max(frame_weights, axis=1)
        is_real = ops.cast(frame_weights > 0, "float32")
        return self._unnormalized(frames).with_norms(inverse_norms * is_real)

    def inverse_norms(self, frames):
        """Returns what each frame is multiplied by: 1 / L2 norm, or 1, float32 `[B, T]`.

        Args:
            frames: `[B, T, D]`, as stored.
        """
        unnormalized = self._unnormalized(frames)
        if self.normalize_frames == "none":
            return unnormalized.inverse_norms
        return unnormalized.norms_inverted()

    def _unnormalized(self, frames):
        normalized = self.normalize_frames == "l2"
        return layers.StoredFrames.of_format(frames, self.frame_format, normalized)

    def encode(self, frames, frame_weights, training):
        """Encodes each video into one vector.

        Args:
            frames: float32 `[B, T, D]`, of L2 norm 1 each, with 0 for padding; `StoredFrames` if
                the model has `takes_stored_frames`. Samplings that copy the frames arrive as
                separate videos.
            frame_weights: float32 `[B, T]`, how often each frame counts: 0 for padding, otherwise
                1. With `sample_by_count`, how often each frame was sampled, and `[B, N, T]` for
                several samplings; `nonlocal_vlad.Parts` for parts of videos.
            training: bool. Whether batch normalization uses the statistics of the batch.

        Returns:
            Float vectors of any size, `[B, size]`; `[B * N, size]` for samplings or parts.
        """
        raise NotImplementedError

    def pool(self, frames, frame_weights):
        """Computes the first part of `encode` in prediction; `project` computes the rest.

        A batch is pooled in chunks that fit into memory. A model may leave products with large
        matrices to `project`, which runs once for many chunks.

        Args:
            frames: as for `encode`, and so is `frame_weights`.
            frame_weights: float32.

        Returns:
            Float vectors `[B * N, pooled_size]`; those of `encode` without a `pooled_size`.
        """
        return self.encode(frames, frame_weights, training=False)

    def project(self, pooled):
        """Returns what `encode` does, `[B * N, size]`, from what `pool` returned."""
        return pooled

    @property
    def pooled_size(self):
        """Size of the vectors of `pool`; None if nothing is left to `project`."""
        return None

    def resolve_samplings(self, num_samplings=None):
        """Returns how many samplings prediction averages over; 0 stands for every frame once."""
        if not self.iterations:
            return 0
        return self.default_samplings if num_samplings is None else num_samplings

    def draw_frame_indices(self, frames, num_frames, num_samplings, seed):
        """Draws the frames that each sampling uses.

        With a seed, the first frame and the number of frames choose one of a fixed number of sets
        of random numbers, so the samplings of a video do not depend on its batch, on padding or on
        the backend.

        Args:
            frames: `[B, T, D]`, as stored.
            num_frames: int32 `[B]`.
            num_samplings: int. N.
            seed: int or sequence of int, as for `numpy.random.SeedSequence`; `None` draws new
                frames for every video and call, from `sampling_seed`.

        Returns:
            int32 `[B, N, iterations]`; None for every frame once.
        """
        if not self.iterations or not num_samplings:
            return None
        count = self.iterations if self.sample_random_frames else 1
        if seed is None:
            shape = (ops.shape(num_frames)[0], num_samplings, count)
            uniform = keras.random.uniform(shape, seed=self.sampling_seed)
        else:
            shape = (_NUM_SETS, num_samplings, count)
            sets = np.random.default_rng(seed).random(shape, np.float32)
            keys = num_frames + ops.sum(_bytes(frames[:, :1]), axis=(1, 2))
            uniform = ops.take(sets, keys % _NUM_SETS, axis=0)
        if self.sample_random_frames:
            return random_frame_indices(uniform, num_frames)
        return random_frame_runs(uniform, num_frames, self.iterations)

    def sample(self, frames, num_frames, frame_indices, as_parts=False):
        """Selects frames and their weights.

        Args:
            frames: `[B, T, D]`, or `[B, T]` with one number per frame.
            num_frames: int32 `[B]`.
            frame_indices: int32 `[B, N, S]`, or None for all frames.
            as_parts: bool. Whether to return `nonlocal_vlad.Parts` in place of counts.

        Returns:
            `(frames, frame_weights)`. If frames are copied, copies `[B * N, S, D]` or `[B * N, S]`
            with weights `[B * N, S]`. Otherwise (`sample_by_count` or no indices), the given frames
            with weights `[B, T]`, or `[B, N, T]` for several samplings. All weights are float32.
        """
        length = ops.shape(frames)[1]
        if frame_indices is None:
            return frames, inside_video(ops.arange(length, dtype="int32")[None], num_frames)
        parts = nonlocal_vlad.Parts.of_videos(frame_indices, num_frames, length)
        if not self.sample_by_count:
            return parts.take(frames), parts.weights
        return frames, parts if as_parts else count_frames(parts, length)

    def floats_per_video(self, num_frames, num_samplings):
        """Estimates how many floats per video prediction holds at once, which limits the batch.

        Args:
            num_frames: int or int tensor. T.
            num_samplings: int. N.
        """
        copies = 1 if self.sample_by_count else num_samplings
        return 2 * copies * num_frames * sum(self.feature_sizes)

    def floats_per_classification(self, num_samplings):
        """Estimates how many floats per video the classifier holds at once in prediction.

        Args:
            num_samplings: int. N.
        """
        matrices = [weight for weight in self.classifier.weights if len(weight.shape) == 2]
        return 3 * num_samplings * sum(matrix.shape[1] for matrix in matrices)


# --- Sampling of frames ---------------------------------------------------------------------------


def inside_video(frame_indices, num_frames):
    """Returns 1 for indices inside a video, 0 beyond its end: float32 `[B, S]`.

    Args:
        frame_indices: int32 `[B, S]`, or `[1, S]` for the same indices in every video.
        num_frames: int32 `[B]`.
    """
    return ops.cast(frame_indices < num_frames[:, None], "float32")


def random_frame_indices(uniform, num_frames):
    """Draws frame indices uniformly and with replacement.

    Args:
        uniform: float32 random numbers in [0, 1), `[B, N, S]`.
        num_frames: int32 `[B]`.

    Returns:
        int32 `[B, N, S]`, ascending in each sampling.
    """
    # Sorted by time, for models that depend on the order.
    return _scaled_floor(ops.sort(uniform, axis=-1), num_frames)


def random_frame_runs(uniform, num_frames, count):
    """Draws runs of consecutive frame indices from random starts.

    In a video with fewer frames than `count`, the run starts at the first frame and extends beyond
    the last.

    Args:
        uniform: float32 random numbers in [0, 1), `[B, N, 1]`.
        num_frames: int32 `[B]`.
        count: int. Frames of a run.

    Returns:
        int32 `[B, N, count]`.
    """
    start = _scaled_floor(uniform, ops.maximum(num_frames - count + 1, 1))
    return start + ops.arange(count, dtype="int32")


def _scaled_floor(uniform, limits):
    """Scales random numbers from [0, 1) to integers from 0 to limit - 1, int32 `[B, N, S]`.

    Args:
        uniform: float32 `[B, N, S]`.
        limits: int32 `[B]`.
    """
    limits = limits[:, None, None]
    scaled = ops.floor(uniform * ops.cast(limits, "float32"))
    # Rounding of the product may reach the limit, hence the clipping.
    return ops.clip(ops.cast(scaled, "int32"), 0, ops.maximum(limits - 1, 0))


def count_frames(parts, length):
    """Counts how often each frame is in each part, without padding.

    Args:
        parts: `nonlocal_vlad.Parts` with N static.
        length: int or int tensor. T.

    Returns:
        float32 `[B, N, T]`, or `[B, T]` for one part.
    """
    count = ops.shape(parts.weights)[0]
    indices = ops.reshape(parts.frame_indices, (count, -1))
    # Indices into the frames of all parts, one part after the other.
    flat = ops.arange(count, dtype="int32")[:, None] * length + indices
    sums = ops.segment_sum(
        ops.reshape(parts.weights, (-1,)), ops.reshape(flat, (-1,)), num_segments=count * length
    )
    num_parts = parts.frame_indices.shape[1]
    return ops.reshape(sums, (-1, length) if num_parts == 1 else (-1, num_parts, length))


def _bytes(frames):
    """Returns stored numbers as integers 0..255: floats as the bytes of YouTube-8M next to them."""
    if keras.backend.standardize_dtype(frames.dtype) != "uint8":
        step, offset = YOUTUBE8M.step, YOUTUBE8M.offset
        steps = ops.round((ops.cast(frames, "float32") - offset) / step)
        frames = ops.clip(steps, 0, 255)
    return ops.cast(frames, "int32")


def mean_of_samplings(values, num_samplings):
    """Returns the mean over the samplings of each video, `[B, size]`.

    Args:
        values: `[B * N, size]`, one video after another.
        num_samplings: int. N; 0 stands for every frame once.
    """
    if num_samplings <= 1:
        return values
    return ops.mean(ops.reshape(values, (-1, num_samplings, values.shape[-1])), axis=1)


# --- Encoder of streams ---------------------------------------------------------------------------


class StreamEncoder(layers.Float32Layer):
    """Pools the frames of each stream separately and projects the results to one hidden vector.

        x = BN(frames),  h = V [pool_1(x_1), ..., pool_S(x_S)] + b

    With `gating`, context gating of h follows. A stream is one feature (late fusion) or all
    features concatenated (early fusion). The order of the frames has no effect.

    Args:
        stream_sizes: sequence of int. Size of each stream; their sum is D.
        poolings: list of layers, one per stream, called with frames `[B, T, size]` and the frame
            weights.
        hidden_size: int. Size of h.
        hidden_fan_in: int. V is initialized with standard deviation `1 / sqrt(hidden_fan_in)`.
        gating: bool. Whether context gating follows.

    Input shape: `StoredFrames` and their weights `[B, T]`; in prediction also `[B, N, T]` for N
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
        """Moves the batch normalization of the frames into the assignments, for prediction."""
        scale, offset = self.input_norm.affine()
        start = 0
        for size, pooling in zip(self.stream_sizes, self.poolings, strict=True):
            stream = slice(start, start + size)
            for layer in layers.sublayers(pooling):
                if isinstance(layer, nonlocal_vlad.SoftAssignment):
                    layer.fold_input(scale[stream], offset[stream])
            start += size

    def call(self, frames, frame_weights, training=False):
        """Returns the hidden vector, `[B, hidden_size]` or `[B * N, hidden_size]`."""
        return self.project(self.pool(frames, frame_weights, training), training)

    def pool(self, frames, frame_weights, training=False):
        """Returns the pooled streams side by side, `[B, size]` or `[B * N, size]`."""
        frames = self.input_norm(frames, frame_weights, training=training)
        return nonlocal_vlad.pool_streams(
            frames, frame_weights, self.stream_sizes, self.poolings, training
        )

    def project(self, pooled, training=False):
        """Returns the hidden vector of pooled streams."""
        hidden = self.hidden(pooled)
        if self.hidden_gating is None:
            return hidden
        return self.hidden_gating(hidden, training=training)


class StreamEncoderModel(FrameLevelModel):
    """Base of the models whose attribute `encoder` is a `StreamEncoder`."""

    takes_stored_frames = True
    sample_by_count = True

    def encode(self, frames, frame_weights, training):
        """Returns the hidden vector, `[B, hidden_size]` or `[B * N, hidden_size]`."""
        return self.encoder(frames, frame_weights, training=training)

    def pool(self, frames, frame_weights):
        """Returns the pooled streams side by side."""
        return self.encoder.pool(frames, frame_weights)

    def project(self, pooled):
        """Returns the hidden vector of pooled streams."""
        return self.encoder.project(pooled)

    @property
    def pooled_size(self):
        """Size of all pooled streams."""
        return self.encoder.hidden.kernel.shape[0]


def per_stream(model, stream_sizes, **texts):
    """Parses hyperparameters with one number per stream, for example "64,32".

    The last number also applies to all further streams. A default may have more numbers than there
    are streams.

    Args:
        model: model with the hyperparameters.
        stream_sizes: sequence of int. Size of each stream.
        **texts: str. Values of the hyperparameters by name.

    Returns:
        For each hyperparameter, a list of positive ints, one per stream.

    Raises:
        InputError: if a text is anything but positive integers separated by commas, or has more
            numbers than there are streams and is not the default.
    """
    parsed = {name: _positive_integers(name, text) for name, text in texts.items()}
    count, known = len(stream_sizes), registry.own_hyperparameters(type(model))
    surplus = [
        name
        for name, numbers in parsed.items()
        if len(numbers) > count and texts[name] != known[name].default
    ]
    if surplus:
        received = ", ".join(f"{name}={texts[name]}" for name in surplus)
        possible = ", ".join(
            f"{name}={','.join(map(str, parsed[name][:count]))}" for name in surplus
        )
        raise utils.InputError(
            f"{received}: there are more numbers than streams. The features form {count}, of size "
            f"{utils.comma_separated(stream_sizes)}. Give at most {count}, for example {possible}."
        )
    return [[*numbers, *numbers[-1:] * count][:count] for numbers in parsed.values()]


def _positive_integers(name, text):
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise utils.InputError(
            f"{name} must be integers separated by commas, one per stream. Received: {text!r}"
        ) from None
    utils.check_at_least(1, **{name: min(numbers)})
    return numbers


# --- Models ---------------------------------------------------------------------------------------


@registry.register
class FrameLevelLogisticModel(FrameLevelModel):
    """Classifies the mean of the frames, by default with one logistic regression per class.

    The simplest baseline: the mean shows what a video contains, but not in which frame.
    """

    def __init__(self, *, video_level_classifier_model="LogisticModel", **kwargs):
        super().__init__(video_level_classifier_model=video_level_classifier_model, **kwargs)

    def encode(self, frames, frame_weights, training):
        """Returns the mean of the frames, `[B, D]`."""
        return ops.sum(frames, axis=1) / ops.sum(frame_weights, axis=1, keepdims=True)


@registry.register
class DbofModel(FrameLevelModel):
    """Deep bag of frames: projects every frame onto clusters, then pools over the frames.

        pooled = pool_t(relu6(BN(W x_t))),  hidden = relu6(BN(V pooled))

    Args:
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        dbof_cluster_size: int. Clusters that each frame is projected onto.
        dbof_hidden_size: int. Units of the hidden layer after pooling.
        dbof_pooling_method: str. Pooling of the clusters over the frames: max or average.
        dbof_add_batch_norm: bool. Whether to batch-normalize input, clusters and hidden layer;
            otherwise clusters and hidden layer have a bias.

    Reference: [Abu-El-Haija et al., 2016](https://arxiv.org/abs/1609.08675).
    """

    takes_stored_frames = True

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
        # The maximum grows with the number of frames.
        self.default_samplings = 5 if dbof_pooling_method == "max" else 0
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
        """Returns the hidden layer over the pooled clusters, `[B, dbof_hidden_size]`."""
        if self.input_norm is not None:
            frames = self.input_norm(frames, frame_weights, training=training)
        x = ops.relu6(self.clusters(frames, frame_weights, training=training))
        # relu6 is never negative, so 0 for padding changes no maximum.
        x *= frame_weights[..., None]
        if self.pooling_method == "max":
            x = ops.max(x, axis=1)
        else:
            x = ops.sum(x, axis=1) / ops.sum(frame_weights, axis=1, keepdims=True)
        return ops.relu6(self.hidden(x, training=training))


@registry.register
class LstmModel(FrameLevelModel):
    """Stack of LSTMs over the frames in order; classifies the last layer's final state.

    Args:
        lstm_cells: int. Units of each LSTM layer.
        lstm_layers: int. Number of LSTM layers.
    """

    default_samplings = 5

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
        """Returns the last layer's hidden state after the last real frame, `[B, lstm_cells]`."""
        if not training:
            return self._final_state(frames, frame_weights > 0)
        for layer in self.recurrent_layers:
            frames, state, _ = layer(frames, mask=frame_weights > 0)
        return state

    def _final_state(self, frames, real):
        """Returns the same for prediction: each frame passes through all layers before the next.

        Keras' loop collects the states at all frames, in a kind of list that LiteRT lacks.
        """
        size = frames.shape[-1]
        for layer in self.recurrent_layers:
            if not layer.built:
                layer.build((None, None, size))
            size = layer.units

        def step(t, states):
            x, new_states = frames[:, t], []
            for layer, before in zip(self.recurrent_layers, states, strict=True):
                _, after = layer.cell(x, before)
                after = [
                    ops.where(real[:, t, None], new, old)
                    for new, old in zip(after, before, strict=True)
                ]
                new_states.append(after)
                x = after[0]
            return new_states

        batch, length, _ = ops.shape(frames)
        states = [[ops.zeros((batch, layer.units))] * 2 for layer in self.recurrent_layers]
        return ops.fori_loop(0, length, step, states)[-1][0]


@registry.register
class GruModel(FrameLevelModel):
    """Stack of GRUs over the frames in order; classifies the final states of all layers.

    The reset gate comes before the recurrent product, as in TensorFlow 1's cell.

    Args:
        gru_cells: int. Units of each GRU layer.
        gru_layers: int. Number of GRU layers.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207). The default of 1200 units
    matches the model size in its Table 1, 243 MB.
    """

    takes_stored_frames = True
    default_samplings = 5

    def __init__(self, *, gru_cells=1200, gru_layers=2, moe_l2=1e-6, **kwargs):
        super().__init__(moe_l2=moe_l2, **kwargs)
        utils.check_at_least(1, gru_cells=gru_cells, gru_layers=gru_layers)
        self.stack = recurrent.GRUStack(gru_cells, gru_layers, name="stack")

    def encode(self, frames, frame_weights, training):
        """Returns the final states of all layers, `[B, gru_layers * gru_cells]`."""
        return self.stack(frames, frame_weights > 0, training=training)

    def floats_per_video(self, num_frames, num_samplings):
        """Counts the gates of one step, the states, and the frames if they are copied."""
        copies = num_samplings if self.iterations else 0
        return 10 * self.stack.units + copies * num_frames * sum(self.feature_sizes)


@registry.register
class SoftBoFModel(StreamEncoderModel):
    """Soft bag of features: a histogram of soft assignments to many clusters, per feature.

    The default of 4000 and 500 clusters is the paper's Soft-BoF-4k; its Soft-BoF-8k has
    `soft_bof_cluster_size="8000,1000"`. The order of the frames has no effect.

    Args:
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        soft_bof_cluster_size: str. Clusters of each feature, separated by commas; the last number
            also applies to all further features.
        soft_bof_hidden_size: int. Units of the hidden layer after the histograms.
        gating: bool. Whether context gating follows the hidden layer.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

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
        (clusters,) = per_stream(self, sizes, soft_bof_cluster_size=soft_bof_cluster_size)
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

    def floats_per_video(self, num_frames, num_samplings):
        """Counts a few copies of the frames' assignments; further samplings add little."""
        return 3 * num_frames * max(self.clusters)


@registry.register
class LFNLNetVLADModel(StreamEncoderModel):
    """Late-fusion non-local NetVLAD, the best single model of its paper.

    Each feature has a NetVLAD with a non-local block. A hidden layer with context gating follows,
    then a mixture of experts whose probabilities are gated too. The order of the frames has no
    effect. Without `nonlocal_block` it is the gated NetVLAD (with late fusion) that won the first
    YouTube-8M challenge.

    Args:
        iterations: int. Frames per sampling of a video; 0 uses all frames, in training too.
        early_fusion: bool. Whether all features form one joint stream; otherwise each feature is a
            stream of its own.
        netvlad_cluster_size: str. Clusters of each stream, separated by commas; the last number
            also applies to all further streams.
        netvlad_centers: bool. Whether to subtract cluster centers; without them it is NetRVLAD.
        netvlad_hidden_size: int. Units of the hidden layer after the VLAD.
        nonlocal_block: bool. Whether the cluster residuals attend to each other in a non-local
            block.
        nonlocal_embedding: str. Embedding size in the non-local block of each stream, separated by
            commas; the last number also applies to all further streams.
        nonlocal_scale: float. Factor on the products in the non-local block; where neither given
            nor set by the model, it is 1 / sqrt(size of the stream).
        nonlocal_pairwise: str. Pairwise function of the non-local block: embedded_gaussian,
            gaussian or dot_product.
        nonlocal_normalize: bool. Whether to scale the residuals to a root mean square of 1 before
            the non-local block.
        nonlocal_start: str. Initial output weights of the non-local block: paper for random ones,
            identity for 0, with which the block returns its input at first.
        nonlocal_attention: str. Weights of the non-local block: softmax, or centered to subtract
            1 / (number of clusters) from a softmax; dot_product takes only the default.
        gating: bool. Whether context gating follows the hidden layer.
        moe_num_mixtures: int. Experts per class, not counting the dummy expert that always
            predicts 0.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.
        moe_prob_gating: bool. Whether context gating follows the class probabilities.

    Reference: [Tang et al., 2018](https://arxiv.org/abs/1810.00207).
    """

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
        nonlocal_normalize=False,
        nonlocal_start="paper",
        nonlocal_attention="softmax",
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
        clusters, embeddings = per_stream(
            self,
            streams,
            netvlad_cluster_size=netvlad_cluster_size,
            nonlocal_embedding=nonlocal_embedding,
        )
        utils.check_at_least(1, netvlad_hidden_size=netvlad_hidden_size)
        block = nonlocal_vlad.NonLocalBlock
        utils.check_one_of(block.PAIRWISE, nonlocal_pairwise=nonlocal_pairwise)
        utils.check_one_of(block.STARTS, nonlocal_start=nonlocal_start)
        utils.check_one_of(block.ATTENTIONS, nonlocal_attention=nonlocal_attention)
        if nonlocal_scale is not None:
            utils.check_above(0, nonlocal_scale=nonlocal_scale)
        self.clusters = clusters
        self.stream_sizes = streams

        def make_block(number):
            if not nonlocal_block:
                return None
            return block(
                embeddings[number],
                scale=nonlocal_scale,
                pairwise=nonlocal_pairwise,
                normalize=nonlocal_normalize,
                start=nonlocal_start,
                attention=nonlocal_attention,
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

    def floats_per_video(self, num_frames, num_samplings):
        """Counts the frames, and a few copies of each sampling's assignments and VLAD."""
        vlad_size = max(
            clusters * size for clusters, size in zip(self.clusters, self.stream_sizes, strict=True)
        )
        return 2 * num_frames * sum(self.feature_sizes) + num_samplings * (
            num_frames * max(self.clusters) + 4 * vlad_size
        )


@registry.register
class LFNLNetRVLADModel(LFNLNetVLADModel):
    """Late-fusion non-local NetRVLAD: no cluster centers, and a wider embedding.

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
    """Early-fusion non-local NetVLAD: all features form one joint stream.

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
