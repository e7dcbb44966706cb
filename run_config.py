"""Configuration of a training run.

`RunConfig` holds everything that decides what a run learns, except the data and the number of
steps. It is saved as `model_flags.json` next to the weights; programs that use the weights read it
and take no model flags. `TrainOptions` says where the data and the results are, how long to train
and on which devices.

Models are also built without TensorFlow (on JAX), so `files` and `readers`, which need it, are
imported where they are used.
"""

import dataclasses
import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

import eval_util
import layers
import losses
import optimizers
import registry
from options import Options, option
from quantization import (
    DTYPES,
    YOUTUBE8M,
    FeatureScale,
    FrameFormat,
    FrameStorage,
    Quantization,
)
from segments.config import SegmentConfig
from utils import InputError, comma_separated

if TYPE_CHECKING:
    import tensorflow as tf

    import readers

CONFIG_FILE = "model_flags.json"

_DEFAULT_FEATURE_NAMES = {True: ("rgb", "audio"), False: ("mean_rgb", "mean_audio")}
# Format of the weights in checkpoints. It changes when old weights would be misread: format 2
# orders the columns of a mixture of experts by mixture, then class.
_WEIGHTS_FORMAT = 2
_REPORTED_PACKAGES = ("tensorflow", "keras", "numpy")
_RESOLVED_TYPES = {
    "model": str,
    "hyperparameters": dict,
    "label_loss": str,
    "loss_hyperparameters": dict,
    "loss_data": dict,
}
_REQUIRED_KEYS = {"model", "hyperparameters", "feature_names"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions(Options):
    """How programs read records."""

    num_readers: int | None = option(
        None,
        "Threads that read and parse records. Their number does not change the order of the data. "
        "Default: one for each processor core that the process may use, at most 8.",
        group="data",
        above=0,
    )
    skip_corrupt_records: int = option(
        0,
        "Number of corrupt records to skip, each with a warning, before giving up.",
        group="data",
        at_least=0,
    )
    missing_features: str = option(
        "error",
        "How to read a video that lacks a feature: error treats it as corrupt; zeros takes zeros "
        "for the feature.",
        group="data",
        choices=("error", "zeros"),
    )
    trim_features: bool = option(
        False,
        "Cut the features of a video to the shortest if their numbers of frames differ; otherwise "
        "the video is corrupt.",
        group="data",
    )

    def read_options(self) -> dict[str, Any]:
        """Returns only the options of this class, by name, without the options of subclasses."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(ReadOptions)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """The data that a model takes: all that is needed to read records for it.

    Attributes:
        frame_level: whether the model takes frames; otherwise it takes mean features of videos.
        feature_names: features to read.
        feature_sizes: their sizes.
        num_classes: size of the vocabulary.
        max_frames: largest number of frames of a video to use.
        feature_dtypes: how frames are stored, for each feature; None for bytes.
        quantization: range of the bytes as in `Quantization.as_json`, by feature; None, or a
            feature that is not there, stands for YouTube-8M's.
    """

    frame_level: bool = option(group="data")
    feature_names: tuple[str, ...] = option(group="data")
    feature_sizes: tuple[int, ...] = option(group="data", above=0)
    num_classes: int = option(group="data", above=0)
    max_frames: int = option(group="data", above=0)
    feature_dtypes: tuple[str, ...] | None = option(None, group="data")
    quantization: dict[str, dict] | None = None

    @property
    def storages(self) -> list[FrameStorage]:
        """How the frames of each feature are stored; video-level features are floats."""
        dtypes = self.feature_dtypes or ("uint8",) * len(self.feature_names)
        ranges = self.quantization or {}
        return [
            FrameStorage(
                dtype,
                (Quantization.from_json(ranges[name]) if name in ranges else YOUTUBE8M)
                if dtype == "uint8"
                else None,
            )
            for name, dtype in zip(self.feature_names, dtypes, strict=True)
        ]

    @property
    def frame_format(self) -> FrameFormat:
        """The numbers in a batch of frames."""
        return FrameFormat.of_features(self.storages, self.feature_sizes)

    def reader(
        self,
        paths: str | Sequence[str],
        options: ReadOptions = ReadOptions(),
        *,
        with_labels: bool = True,
        label_weights: str | None = None,
        frame_reader: Callable | None = None,
    ) -> "readers.RecordReader":
        """Returns a reader of record files.

        Args:
            paths: record files, or globs in one comma-separated string.
            options: how to read them.
            with_labels: whether to read labels; prediction needs none.
            label_weights: name of the feature with a weight for each label; None for no weights.
            frame_reader: reader of frame-level records; None for `YT8MFrameFeatureReader`.

        Raises:
            InputError: if a glob matches no file, or a `dataset.json` says that the frames are
                stored otherwise.
        """
        import dataset_info
        import files
        import readers

        paths = files.expand_patterns(paths) if isinstance(paths, str) else paths
        reader: Callable = readers.YT8MAggregatedFeatureReader
        if self.frame_level:
            dataset_info.check_storage(self, paths)
            reader = frame_reader or readers.YT8MFrameFeatureReader
            reader = functools.partial(reader, storages=self.storages)
        return reader(
            paths,
            feature_names=self.feature_names,
            feature_sizes=self.feature_sizes,
            num_classes=self.num_classes,
            max_frames=self.max_frames,
            with_labels=with_labels,
            label_weights=label_weights,
            **options.read_options(),
        )

    def differences(self, other: "DataConfig") -> dict[str, tuple]:
        """Returns the settings that differ: name to (own value, other value)."""
        return _differences(dataclasses.asdict(self), dataclasses.asdict(other))


@dataclasses.dataclass(frozen=True)
class RunConfig(SegmentConfig):
    """Everything that decides what a run learns, except the data and the number of steps.

    Attributes that depend on the model are resolved: `hyperparameters` gets the model's defaults
    for those not given, and `feature_names` YouTube-8M's names at the model's level.

    Attributes:
        hyperparameters: value of every hyperparameter of the model, by name.
        loss_hyperparameters: value of every hyperparameter of the label loss, by name.
        loss_data: numbers of each class that the label loss takes, by argument: `class_weights` and
            `class_prior`.
        quantization: range of the bytes of features, as in `DataConfig`.
        feature_scale: `factor` and `offset` of a `FeatureScale`; None for the values as they are.
        init_classes: class of the run in `init_from` by class of this run, as names or numbers;
            None to derive it from the vocabularies.

    Raises:
        InputError: if a name or value is not valid.
    """

    model: str = option(
        help="Model to train, by class name. `--help --model=NAME` lists its flags.",
        group="model",
        required=True,
    )
    hyperparameters: dict[str, bool | int | float | str | None] = dataclasses.field(
        default_factory=dict
    )
    num_classes: int = option(
        3862, "Size of the vocabulary; labels are 0..N-1.", group="data", above=0
    )
    feature_names: tuple[str, ...] | None = option(
        None,
        "Features to read. Default: rgb,audio for frame-level models, mean_rgb,mean_audio for "
        "video-level models.",
        group="data",
    )
    feature_sizes: tuple[int, ...] = option(
        (1024, 128),
        "Sizes of the features, in the order of --feature_names.",
        group="data",
        above=0,
    )
    feature_dtypes: tuple[str, ...] | None = option(
        None,
        "How frames are stored, for each of --feature_names, or once for all: uint8 (quantized), "
        "float16, float32 (raw, little-endian) or float_list. Default: uint8.",
        group="data",
        choices=tuple(DTYPES),
    )
    quantization: dict[str, dict] | None = None
    feature_scale: dict[str, Any] | None = None
    max_frames: int = option(
        300, "Largest number of frames of a video to use.", group="data", above=0
    )
    label_loss: str = option(
        "CrossEntropyLoss",
        "Loss of the labels, by class name. `--help --label_loss=NAME` lists its flags.",
        group="loss",
    )
    loss_hyperparameters: dict[str, bool | int | float | str | None] = dataclasses.field(
        default_factory=dict
    )
    loss_data: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    label_weights: str | None = option(
        None,
        "Name of a feature of the training records with a weight for each label, a list of floats "
        "as long as labels. It multiplies the loss of the pair of video and class; 0 ignores the "
        "pair. Default: every label has the weight 1.",
        group="loss",
    )
    class_balance_beta: float | None = option(
        None,
        "Weight classes by their effective number of training videos with this beta, for example "
        "0.999. dataset.json and its vocabulary must give the numbers of training videos.",
        group="loss",
        at_least=0,
        below=1,
    )
    mix_videos: float = option(
        0.0,
        "Probability that a training video is mixed with another one of its batch: half of the "
        "frames of each, and the labels of both.",
        group="training",
        at_least=0,
        below=1,
    )
    batch_size: int = option(
        128, "Videos per batch, on all devices together.", group="training", above=0
    )
    gradient_accumulation: int = option(
        1,
        "Batches per step. Their mean gradient makes one update, as that of one large batch would; "
        "only batch normalization uses the statistics of each batch.",
        group="training",
        above=0,
    )
    optimizer: str = option(
        "Adam",
        "Keras optimizer, for example Adam, AdamW, Lion or SGD. Muon updates the matrices between "
        "layers, and all other weights as AdamW.",
        group="optimizer",
    )
    optimizer_state_dtype: str = option(
        "float32",
        "Type of the optimizer's stored moments: float32, or bfloat16, rounded stochastically, "
        "with half the memory. Weights, and moments of vectors such as biases, stay float32.",
        group="optimizer",
        choices=optimizers.STATE_DTYPES,
    )
    base_learning_rate: float = option(
        0.001, "Learning rate before it decays.", group="optimizer", above=0
    )
    learning_rate_schedule: str = option(
        "staircase",
        "How the learning rate decays: staircase, by the factor --learning_rate_decay at a time; "
        "exponential, by the same factor gradually; cosine or linear, to 0 at "
        "--learning_rate_decay_steps; constant, not at all.",
        group="optimizer",
        choices=optimizers.SCHEDULES,
    )
    learning_rate_decay: float = option(
        0.95,
        "staircase and exponential: multiply the learning rate by this for every "
        "--learning_rate_decay_examples videos.",
        group="optimizer",
        above=0,
    )
    learning_rate_decay_examples: int = option(
        4_000_000,
        "staircase and exponential: videos between two decays of the learning rate.",
        group="optimizer",
        above=0,
    )
    learning_rate_decay_steps: int | None = option(
        None,
        "cosine and linear: step at which the learning rate reaches 0. Default: the --max_steps "
        "with which the run begins.",
        group="optimizer",
        above=0,
    )
    warmup_steps: int = option(
        0,
        "Steps at the start in which the learning rate grows linearly; its decay follows them.",
        group="optimizer",
        at_least=0,
    )
    clip_gradient_norm: float = option(
        1.0, "Clip gradients to this L2 norm; 0 disables clipping.", group="optimizer", at_least=0
    )
    clip: str = option(
        "per_variable",
        "Norm to clip: per_variable, that of each variable's gradient; global, that of all "
        "gradients together, which keeps their direction.",
        group="optimizer",
        choices=("per_variable", "global"),
    )
    weight_decay: float = option(
        0.0,
        "Before each update, shrink every matrix by this share times the learning rate (decoupled "
        "weight decay), but no biases, normalization or cluster centers.",
        group="optimizer",
        at_least=0,
    )
    regularization_penalty: float = option(
        1.0, "Multiply the model's regularization losses by this.", group="optimizer", at_least=0
    )
    ema_decay: float = option(
        0.0,
        "Decay of an exponential moving average of the weights, for example 0.9999, saved next to "
        "them for --use_ema; 0 for none.",
        group="optimizer",
        at_least=0,
        below=1,
    )
    shuffle_buffer_size: int = option(
        1024,
        "Videos in the shuffle buffer; at full size, 1024 frame-level videos take 350 MB.",
        group="data",
        above=0,
    )
    seed: int = option(
        0,
        "Seed of everything random: initial weights, order of the data, sampling of frames.",
        group="training",
        at_least=0,
    )
    init_from: str | None = option(
        None,
        "Start with the weights of another run: RUN, a train directory, for its newest checkpoint; "
        "RUN/STEP, RUN/best or the path of a checkpoint for another, also of the YouTube-8M code "
        "for TensorFlow 1. Weights of the same path and shape are taken, the others start anew; "
        "the log lists both. A resumed run has weights of its own and does not read it.",
        group="initial weights",
    )
    init_use_ema: bool = option(
        False,
        "Take the exponential moving averages of the weights in --init_from.",
        group="initial weights",
    )
    init_exclude: str | None = option(
        None,
        "Regular expression; weights whose path it matches anywhere are not taken from "
        "--init_from, for example ^classifier. The log of a run with --init_from lists all paths.",
        group="initial weights",
    )
    init_classes: dict[str, str] | None = None
    freeze: str | None = option(
        None,
        "Regular expression; weights whose path it matches anywhere keep their initial values. "
        "Batch normalization is frozen as a whole, with its moving averages.",
        group="initial weights",
    )

    def __post_init__(self):
        """Resolves what depends on the model, and checks every value."""
        for name, kind in _RESOLVED_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise InputError(f"{name} must be of type {kind.__name__}. Received: {value!r}")
        resolved = registry.resolve(self.model, self.hyperparameters)
        object.__setattr__(self, "hyperparameters", resolved)
        resolved = registry.resolve_loss(self.label_loss, self.loss_hyperparameters)
        object.__setattr__(self, "loss_hyperparameters", resolved)
        if not self.feature_names:
            object.__setattr__(self, "feature_names", _DEFAULT_FEATURE_NAMES[self.frame_level])
        super().__post_init__()
        self._resolve_frames()
        # Rejects an unknown name, and one that has no such state.
        optimizers.optimizer_class(self.optimizer, self.optimizer_state_dtype)
        self._check_schedule()
        self._check_initial_weights()
        self._check_segments()

    def _check_segments(self):
        super()._check_segments()
        if not self.segment_labels:
            return
        if not self.frame_level:
            raise InputError(
                f"--segment_labels needs a frame-level model, but {self.model} takes video-level "
                "features, which have no segments."
            )
        for name in ("label_weights", "mix_videos"):
            if getattr(self, name):
                raise InputError(f"--{name} is about whole videos; leave out --segment_labels.")
        if self.max_frames < self.segment_size:
            raise InputError(
                f"--segment_size must not be above --max_frames, {self.max_frames}. "
                f"Received: {self.segment_size}"
            )

    def _check_initial_weights(self):
        for name in ("init_use_ema", "init_exclude", "init_classes"):
            if getattr(self, name) and not self.init_from:
                raise InputError(f"--{name} is about the weights of --init_from. Give that too.")
        for name in ("init_exclude", "freeze"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise InputError(
                    f"--{name} must be a regular expression. Received: {getattr(self, name)!r} "
                    f"({error})"
                ) from error

    def _resolve_frames(self):
        """Checks what concerns frames, and gives what is YouTube-8M's the value None."""
        if not self.frame_level:
            for name in ("feature_dtypes", "quantization", "feature_scale", "mix_videos"):
                if getattr(self, name):
                    raise InputError(
                        f"--{name} is about frames, but {self.model} takes video-level features."
                    )
            return
        if self.mix_videos and self.max_frames < 2:
            raise InputError("--mix_videos needs --max_frames of at least 2. Received: 1")
        names = self.feature_names or ()
        dtypes = self.feature_dtypes or ("uint8",)
        if len(dtypes) == 1:
            dtypes *= len(names)
        if len(dtypes) != len(names):
            raise InputError(
                "--feature_dtypes must have one entry for all features, or one for each of "
                f"--feature_names={','.join(names)}. Received: {comma_separated(dtypes)}"
            )
        ranges = {
            name: values
            for name, values in (self.quantization or {}).items()
            if name in names and Quantization.from_json(values) != YOUTUBE8M
        }
        object.__setattr__(self, "feature_dtypes", dtypes if set(dtypes) != {"uint8"} else None)
        object.__setattr__(self, "quantization", ranges or None)
        if len(self.feature_sizes) == len(names):  # Otherwise the reader rejects the sizes.
            self._check_sizes()

    def _check_sizes(self):
        """Checks that there is one range, factor and offset for each dimension."""
        for name, size, storage in zip(
            self.data.feature_names, self.feature_sizes, self.data.storages, strict=True
        ):
            count = storage.quantization and storage.quantization.size
            if count not in (None, size):
                raise InputError(f"feature {name} has size {size}, but {count} ranges of bytes.")
        if self.feature_scale is None:
            return
        scale = FeatureScale(**self.feature_scale)
        if len(scale.factor) != sum(self.feature_sizes):
            raise InputError(
                f"--feature_scale must have one row for each of the {sum(self.feature_sizes)} "
                f"values of a frame. Received: {len(scale.factor)}"
            )
        # With tuples, also from a file, so that equal scales compare as equal.
        object.__setattr__(self, "feature_scale", dataclasses.asdict(scale))

    def _check_schedule(self):
        end = self.learning_rate_decay_steps
        if end is None:
            return
        if self.learning_rate_schedule not in optimizers.ENDING_SCHEDULES:
            raise InputError(
                "--learning_rate_decay_steps is for --learning_rate_schedule="
                f"{' or '.join(optimizers.ENDING_SCHEDULES)}. "
                f"Received: {self.learning_rate_schedule}"
            )
        if self.warmup_steps >= end:
            raise InputError(
                f"--warmup_steps must be below --learning_rate_decay_steps, {end}, the end of the "
                f"learning rate. Received: {self.warmup_steps}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, those of the model and of the label loss included."""
        values = dataclasses.asdict(self)
        hyperparameters = values.pop("hyperparameters") | values.pop("loss_hyperparameters")
        return values | hyperparameters

    @property
    def videos_per_step(self) -> int:
        """Videos of all batches of a step."""
        return self.batch_size * self.gradient_accumulation

    @property
    def data(self) -> DataConfig:
        """The data that the model takes."""
        return DataConfig(
            frame_level=self.frame_level,
            feature_names=self.feature_names or (),
            feature_sizes=self.feature_sizes,
            num_classes=self.num_classes,
            max_frames=self.max_frames,
            feature_dtypes=self.feature_dtypes,
            quantization=self.quantization,
        )

    def training_reader(
        self, paths: str | Sequence[str], options: ReadOptions
    ) -> "readers.RecordReader":
        """Returns a reader of the examples that the run learns from; see `DataConfig.reader`."""
        from segments.reader import SegmentReader

        frame_reader = None
        if self.segment_labels:
            frame_reader = functools.partial(SegmentReader, settings=self)
        return self.data.reader(
            paths, options, label_weights=self.label_weights, frame_reader=frame_reader
        )

    def training_dataset(self, reader: "readers.RecordReader") -> "tf.data.Dataset":
        """Returns the batches of a reader, shuffled as in training, without end."""
        return reader.dataset(
            self.batch_size,
            num_epochs=None,
            shuffle=True,
            shuffle_buffer_size=self.shuffle_buffer_size,
            seed=self.seed,
            drop_remainder=True,
        )

    @property
    def frame_format(self) -> FrameFormat:
        """The numbers in a batch of frames, and the values that the model uses."""
        scale = self.feature_scale and FeatureScale(**self.feature_scale)
        return dataclasses.replace(self.data.frame_format, feature_scale=scale or None)

    @property
    def frame_level(self) -> bool:
        """Whether the model takes frames; otherwise it takes mean features of videos."""
        return registry.model_class(self.model).frame_level

    def build_model(
        self, matmul_policy: str = "float32", model_name: str | None = None
    ) -> keras.Model:
        """Builds the model with initial weights; see `registry.build_model`."""
        return registry.build_model(
            self.model,
            num_classes=self.num_classes,
            feature_sizes=self.feature_sizes,
            matmul_policy=matmul_policy,
            model_name=model_name,
            frame_format=self.frame_format if self.frame_level else None,
            **self.hyperparameters,
        )

    def build_loss(self) -> losses.LabelLoss:
        """Builds the label loss of training.

        Raises:
            InputError: if an argument is not valid.
        """
        return losses.get_loss(self.label_loss, **self.loss_hyperparameters, **self.loss_data)

    def build_optimizer(self, model: keras.Model) -> keras.optimizers.Optimizer:
        """Builds the Keras optimizer of a model, with its learning rate schedule.

        Raises:
            InputError: if Muon finds no hidden matrix, or the schedule needs an end.
        """
        return optimizers.build(
            self.optimizer,
            model,
            self.make_schedule(),
            weight_decay=self.weight_decay,
            state_dtype=self.optimizer_state_dtype,
            seed=self.seed,
        )

    def make_schedule(self) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the learning rate by step; see `optimizers.make_schedule`.

        Raises:
            InputError: if the schedule needs an end.
        """
        return optimizers.make_schedule(
            self.learning_rate_schedule,
            self.base_learning_rate,
            decay=self.learning_rate_decay,
            decay_period=self.learning_rate_decay_examples / self.videos_per_step,
            end=self.learning_rate_decay_steps,
            warmup_steps=self.warmup_steps,
        )

    def differences(self, other: "RunConfig") -> dict[str, tuple]:
        """Returns the settings that differ: name to (own value, other value)."""
        return _differences(self.settings, other.settings)

    def save(self, train_dir: str) -> None:
        """Writes `model_flags.json` into a train directory."""
        import files

        files.write_json(
            os.path.join(train_dir, CONFIG_FILE),
            {
                **dataclasses.asdict(self),
                "frame_features": self.frame_level,
                "weights_format": _WEIGHTS_FORMAT,
                "versions": versions(),
            },
        )

    @classmethod
    def load(cls, train_dir: str) -> "RunConfig":
        """Reads the config of a train directory.

        Raises:
            InputError: if there is none or it is not valid.
        """
        import files

        path, values = files.read_description(train_dir, CONFIG_FILE, "train.py", "train_dir")
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a JSON object")
        weights_format = values.pop("weights_format", 1)
        if weights_format != _WEIGHTS_FORMAT:
            raise InputError(
                f"{path} belongs to a run whose checkpoints have format {weights_format}; this "
                f"version reads format {_WEIGHTS_FORMAT}. Use the version that trained it, or "
                "train again."
            )
        for informative in ("frame_features", "versions"):
            values.pop(informative, None)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = (
            sorted(set(values) - known),
            sorted(key for key in _REQUIRED_KEYS if values.get(key) is None),
        )
        if unknown or missing:
            raise InputError(
                f"{path} does not fit this version. Unknown keys: {comma_separated(unknown)}; "
                f"missing keys: {comma_separated(missing)}."
            )
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """Options that a recipe sets in addition to those of `RunConfig`: duration and periods."""

    frame_features: bool | None = option(
        None,
        "For commands of the starter code: checked against the model, otherwise ignored.",
        group="data",
    )
    num_epochs: int = option(
        5, "Passes over the training data; 0 for no limit.", group="training", at_least=0
    )
    max_steps: int | None = option(
        None,
        "Steps of the whole run, including those before a restart. Default: no limit.",
        group="training",
        above=0,
    )
    export_model_steps: int = option(
        1000, "Save a checkpoint every N steps.", group="checkpoints", above=0
    )
    keep_checkpoints: int = option(
        5, "Newest checkpoints to keep; 0 keeps all.", group="checkpoints", at_least=0
    )
    log_steps: int = option(10, "Log every N steps.", group="logging", above=0)
    metrics_steps: int = option(
        100,
        "Log Hit@1, PERR and GAP of the current batch every N steps.",
        group="logging",
        above=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(RecipeOptions, ReadOptions):
    """Where the data and the results of a training are, how long it takes and on which devices."""

    train_data_pattern: str = option(
        help="Globs of training records, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    feature_scale: str | None = option(
        None,
        "CSV file with the columns factor and, if needed, offset: one row for each value of a "
        "frame, in the order of --feature_names. Each value is multiplied by its factor, then the "
        "offset is added, before normalization. The run keeps a copy of the numbers.",
        group="data",
    )
    class_weights: str | None = option(
        None,
        "CSV file with the columns Index and weight: the weight of each class in the loss. The run "
        "keeps a copy of the numbers.",
        group="loss",
    )
    train_dir: str = option(
        help="Directory of the run: model_flags.json, checkpoints, TensorBoard logs, eval/.",
        group="checkpoints",
        required=True,
        environment="AIP_CHECKPOINT_DIR",
    )
    class_names: str | None = option(
        None,
        "vocabulary.csv of the data set, saved with the run for the names of its classes. Default: "
        "the one that dataset.json names.",
        group="data",
    )
    init_classes: str | None = option(
        None,
        "CSV file with the columns new and old: classes of this run and the classes of --init_from "
        "whose part of the classifier they start with, as names or numbers. Default: classes of "
        "the same name or, without two vocabularies to compare, of the same number.",
        group="initial weights",
    )
    start_new_model: bool = option(
        False,
        "Remove an earlier run from --train_dir first (only files that these programs wrote).",
        group="checkpoints",
    )
    eval_data_pattern: str | None = option(
        None,
        "Globs of records with labels, comma-separated; quote them. They are evaluated during "
        "training, like eval.py does. Default: no evaluation.",
        group="evaluation",
        repeats=True,
    )
    eval_steps: int | None = option(
        None,
        "Save a checkpoint and evaluate it every N steps, and at the end. Default: at every "
        "--export_model_steps.",
        group="evaluation",
        above=0,
    )
    eval_videos: int = option(
        0,
        "Evaluate only the first N videos of --eval_data_pattern; 0 for all.",
        group="evaluation",
        at_least=0,
    )
    keep_best: str | None = option(
        None,
        "Keep a copy of the evaluated checkpoint that is best by this metric, for "
        "--checkpoint=best of other programs. Default: none.",
        group="evaluation",
        choices=tuple(eval_util.METRICS),
    )
    early_stopping: int | None = option(
        None,
        "End training after N evaluations in a row that are not better, by --keep_best, than the "
        "best before them. Default: no limit.",
        group="evaluation",
        above=0,
    )
    checkpoint_secs: int | None = option(
        None,
        "Also save a checkpoint every N seconds. Default: only every --export_model_steps.",
        group="checkpoints",
        above=0,
    )
    tensorboard_dir: str | None = option(
        None,
        "Directory for TensorBoard logs. Default: --train_dir.",
        group="logging",
        environment="AIP_TENSORBOARD_LOG_DIR",
    )
    distribution: str = option(
        "auto",
        "Devices to train on: one_device; mirrored (all GPUs of this machine); multi_worker (the "
        "machines in TF_CONFIG with all their GPUs); tpu. auto picks, in order: the TPU that --tpu "
        "names, several machines, several GPUs, one device.",
        group="devices",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
    )
    tpu: str | None = option(
        None, "TPU to train on: its name or address, or local for this machine's.", group="devices"
    )
    sync_batch_norm: bool = option(
        True,
        "Compute batch normalization statistics over the batch of all devices; otherwise each "
        "device uses its own part.",
        group="devices",
    )
    compute_dtype: str | None = option(
        None,
        "Matmul precision; elementwise math is always float32. Default: bfloat16 where the device "
        "multiplies it natively, otherwise float32.",
        group="devices",
        choices=layers.COMPUTE_DTYPES,
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        for name in ("keep_best", "early_stopping", "eval_steps", "eval_videos"):
            if getattr(self, name) and not self.eval_data_pattern:
                raise InputError(f"--{name} needs --eval_data_pattern, which is not given.")
        if self.early_stopping and not self.keep_best:
            raise InputError(
                "--early_stopping needs --keep_best, the metric that decides; it is not given."
            )

    @property
    def evaluation_period(self) -> int:
        """Number of steps between two evaluations during training, if there are any."""
        return self.eval_steps or self.export_model_steps


def versions() -> dict[str, str]:
    """Returns the versions of Python and the main packages."""
    packages = {name: importlib.metadata.version(name) for name in _REPORTED_PACKAGES}
    return {**packages, "python": ".".join(map(str, sys.version_info[:3]))}


def _differences(own, others):
    return {
        key: (own.get(key), others.get(key))
        for key in {**own, **others}
        if own.get(key) != others.get(key)
    }
