"""The configuration of a training run, saved as `model_flags.json` beside its weights.

Training writes it; everything that later uses the weights reads it and takes no model flags.

Models are built from recipes without TensorFlow too, so files and readers, which need it, are
imported where they are used.
"""

import dataclasses
import importlib.metadata
import os
import sys

import keras

import registry
from utils import InputError, listing

FILE_NAME = "model_flags.json"

_DEFAULT_FEATURE_NAMES = {True: ("rgb", "audio"), False: ("mean_rgb", "mean_audio")}
# Of the weights in checkpoints. It changes where old weights would be read wrongly: 2 orders the
# columns of a mixture of experts by mixture, then class.
_WEIGHTS_FORMAT = 2
_REPORTED_PACKAGES = ("tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a model takes and tells: all that is needed to read records for it.

    Attributes:
        frame_level: whether it takes frames, or else the mean features of videos.
        feature_names: features to read.
        feature_sizes: their sizes.
        num_classes: size of the vocabulary.
        max_frames: frames of a video that are used at most.
    """

    frame_level: bool
    feature_names: tuple
    feature_sizes: tuple
    num_classes: int
    max_frames: int

    def __post_init__(self):
        """Makes tuples of lists, so that configs compare equal however they were made."""
        _make_tuples(self)

    def reader(self, data_pattern, **options):
        """A reader of such records.

        Args:
            data_pattern: str. Globs of record files, comma-separated.
            **options: as of `readers.RecordReader`.
        """
        import files

        return self.reader_of(files.expand_patterns(data_pattern), **options)

    def reader_of(self, paths, **options):
        """A reader of such records in files that are given by a list of their paths."""
        import readers

        reader = (
            readers.YT8MFrameFeatureReader
            if self.frame_level
            else readers.YT8MAggregatedFeatureReader
        )
        return reader(
            paths,
            feature_names=self.feature_names,
            feature_sizes=self.feature_sizes,
            num_classes=self.num_classes,
            max_frames=self.max_frames,
            **options,
        )

    def differences(self, other):
        """Settings that differ: a dict from name to (own value, value of the other)."""
        return _differences(dataclasses.asdict(self), dataclasses.asdict(other))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run learns, but for the data and the number of steps.

    `RunConfig.create` fills in the defaults that depend on the model.

    Attributes:
        model: name of a registered model.
        hyperparameters: value of every hyper-parameter of the model.
        num_classes: size of the vocabulary.
        feature_names: features to read.
        feature_sizes: their sizes.
        max_frames: frames of a video that are used at most.
        label_loss: name of a loss in losses.py.
        batch_size: videos per step.
        optimizer: name of a Keras optimizer.
        base_learning_rate: learning rate at the start.
        learning_rate_decay: factor on the learning rate after each
            `learning_rate_decay_examples` videos.
        learning_rate_decay_examples: videos between two decays.
        clip_gradient_norm: norm that the gradient of each variable is clipped to; 0 for no
            clipping.
        regularization_penalty: factor on the regularisation losses of the model.
        ema_decay: decay of an exponential moving average of the weights, kept beside them; 0 for
            none.
        shuffle_buffer_size: videos among which the next one is drawn.
        seed: of the initial weights, the order of the data and the sampling of frames.
    """

    model: str
    hyperparameters: dict
    num_classes: int = 3862
    feature_names: tuple
    feature_sizes: tuple = (1024, 128)
    max_frames: int = 300
    label_loss: str = "CrossEntropyLoss"
    batch_size: int = 128
    optimizer: str = "Adam"
    base_learning_rate: float = 0.001
    learning_rate_decay: float = 0.95
    learning_rate_decay_examples: int = 4_000_000
    clip_gradient_norm: float = 1.0
    regularization_penalty: float = 1.0
    ema_decay: float = 0.0
    shuffle_buffer_size: int = 1024
    seed: int = 0

    @classmethod
    def create(cls, model, *, hyperparameters=None, feature_names=None, **settings):
        """A config with all hyper-parameters resolved.

        Args:
            model: str. A registered model.
            hyperparameters: dict. Those that differ from the model's defaults.
            feature_names: sequence of str; by default those of YouTube-8M at the model's level.
            **settings: other attributes that differ from their defaults.

        Raises:
            InputError: if a name or value is not valid.
        """
        frame_level = registry.model_class(model).frame_level
        return cls(
            model=model,
            hyperparameters=registry.resolve(model, hyperparameters or {}),
            feature_names=feature_names or _DEFAULT_FEATURE_NAMES[frame_level],
            **settings,
        )

    def __post_init__(self):
        """Makes tuples of lists, so that configs compare equal however they were made."""
        _make_tuples(self)

    @property
    def data(self):
        """The `DataConfig` of what the model takes."""
        return DataConfig(
            frame_level=self.frame_level,
            feature_names=self.feature_names,
            feature_sizes=self.feature_sizes,
            num_classes=self.num_classes,
            max_frames=self.max_frames,
        )

    @property
    def frame_level(self):
        """Whether the model takes frames, or else the mean features of videos."""
        return registry.model_class(self.model).frame_level

    def build_model(self, matrix_policy="float32", model_name=None):
        """Builds the model with initial weights; options as of `registry.build_model`."""
        return registry.build_model(
            self.model,
            num_classes=self.num_classes,
            feature_sizes=self.feature_sizes,
            matrix_policy=matrix_policy,
            model_name=model_name,
            **self.hyperparameters,
        )

    def build_optimizer(self):
        """The Keras optimizer, with a learning rate that decays in steps.

        Raises:
            InputError: if there is none of the name.
        """
        name = self.optimizer.removesuffix("Optimizer")
        known = {
            key: value
            for key, value in vars(keras.optimizers).items()
            if isinstance(value, type) and key not in ("Optimizer", "LossScaleOptimizer")
        }
        if name not in known:
            raise InputError(f"unknown optimizer {self.optimizer!r}. Optimizers: {listing(known)}.")
        learning_rate = keras.optimizers.schedules.ExponentialDecay(
            self.base_learning_rate,
            decay_steps=self.learning_rate_decay_examples / self.batch_size,
            decay_rate=self.learning_rate_decay,
            staircase=True,
        )
        # TensorFlow 1 used 1e-8 in Adam; Keras' default of 1e-7 weighs on rare classes.
        options = {"epsilon": 1e-8} if name in ("Adam", "AdamW", "Nadam") else {}
        # The name is part of the checkpoint's keys.
        return known[name](learning_rate=learning_rate, name="optimizer", **options)

    def reader(self, data_pattern, **options):
        """A reader of the records that the model takes, as of `DataConfig.reader`."""
        return self.data.reader(data_pattern, **options)

    def differences(self, other):
        """Settings that differ: a dict from name to (own value, value of the other)."""
        return _differences(self._flat(), other._flat())

    def _flat(self):
        values = dataclasses.asdict(self)
        return {**values.pop("hyperparameters"), **values}

    def save(self, train_dir):
        """Writes `model_flags.json` into a train directory."""
        import files

        files.write_json(
            os.path.join(train_dir, FILE_NAME),
            {
                **dataclasses.asdict(self),
                "frame_features": self.frame_level,
                "weights_format": _WEIGHTS_FORMAT,
                "versions": versions(),
            },
        )

    @classmethod
    def load(cls, train_dir):
        """Reads the config of a train directory.

        Raises:
            InputError: if there is none or it is not valid.
        """
        import files

        path, values = files.read_description(train_dir, FILE_NAME, "train.py", "train_dir")
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a JSON object")
        weights_format = values.pop("weights_format", 1)
        if weights_format != _WEIGHTS_FORMAT:
            raise InputError(
                f"{path} is of a run whose checkpoints have format {weights_format}; this version "
                f"reads format {_WEIGHTS_FORMAT}. Use the version that trained it, or train again."
            )
        for informative in ("frame_features", "versions"):
            values.pop(informative, None)
        return cls._from_json(path, values)

    @classmethod
    def _from_json(cls, path, values):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        )
        if unknown or missing:
            raise InputError(
                f"{path} does not fit this version. Unknown keys: {listing(unknown)}; missing "
                f"keys: {listing(missing)}."
            )
        for name, value in values.items():
            kind = _JSON_TYPES.get(fields[name].type, fields[name].type)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"{path} has a value of another type for {name}: {value!r}")
        return cls.create(**values)


# What JSON makes of the types of a config.
_JSON_TYPES = {tuple: list, float: (int, float)}


def versions():
    """Versions of Python and the main packages, a dict."""
    packages = {name: importlib.metadata.version(name) for name in _REPORTED_PACKAGES}
    return {**packages, "python": ".".join(map(str, sys.version_info[:3]))}


def _make_tuples(config):
    for name in ("feature_names", "feature_sizes"):
        object.__setattr__(config, name, tuple(getattr(config, name)))


def _differences(own, others):
    return {
        key: (own.get(key), others.get(key))
        for key in {**own, **others}
        if own.get(key) != others.get(key)
    }
