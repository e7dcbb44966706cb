"""What predicts: models of train directories, or an exported graph; and the flags that name it."""

import dataclasses

import numpy as np
import tensorflow as tf
from absl import flags

import checkpoints
import compute
import files
import freezing
import graph_check
import program
from ensemble import Ensemble
from run_config import DataConfig, RunConfig
from utils import InputError, listing

# Flags defined here belong to the program that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

# The file of an exported model that tells where it comes from and what it takes.
MANIFEST = "manifest.json"


class Predictor:
    """Predicts with the checkpoints of train directories.

    Args:
        train_dirs: list of str. Directories of training runs; the mean of several is predicted.
        weights: sequence of float, one per run; None for equal ones.
        num_samplings: int. Samplings of the frames to average over; 0 takes every frame once.
        seed: int. Seed of the sampling of frames; the same seed, data and batch size give the same
            predictions.
        use_ema: bool. Whether to use the exponential moving average of the weights.
        compute_dtype: str. Type of matrices and their products, as of `compute.chosen_dtype`.

    Attributes:
        data: the `DataConfig` of what the models take.
        label_loss: name of the loss that evaluation reports.
        steps: steps of the checkpoints restored last.
        predict: function from the inputs of a `readers.Batch` to probabilities `[B, C]`.

    Raises:
        InputError: if a directory holds no run, or the runs take different data.
    """

    def __init__(
        self,
        train_dirs,
        *,
        weights=None,
        num_samplings=1,
        seed=0,
        use_ema=False,
        compute_dtype=None,
    ):
        configs = load_configs(train_dirs)
        self.data = configs[0].data
        self.label_loss = configs[0].label_loss
        self.steps = []
        dtype = compute.chosen_dtype(compute_dtype)
        self._configs = configs
        self.ensemble = Ensemble(
            [freezing.new_model(config, dtype) for config in configs],
            weights=weights,
            num_samplings=num_samplings,
            seed=seed,
        )
        self.predict = compiled(self.ensemble)
        self._train_dirs = train_dirs
        self._use_ema = use_ema

    def set_weights(self, weights):
        """Sets other weights of the runs."""
        self.ensemble = Ensemble(
            self.ensemble.models,
            weights=weights,
            num_samplings=self.ensemble.num_samplings,
            seed=self.ensemble.seed,
        )
        self.predict = compiled(self.ensemble)

    def restore(self, checkpoint=None):
        """Restores a checkpoint, by default the newest of every run.

        Args:
            checkpoint: str. A path prefix or a step.
        """
        self.steps = []
        for model, config, train_dir in zip(
            self.ensemble.models, self._configs, self._train_dirs, strict=True
        ):
            path = checkpoints.find(train_dir, checkpoint)
            freezing.restore(model, config, path, self._use_ema)
            self.steps.append(checkpoints.step_of(path))

    def identity(self):
        """All that predictions depend on beside the input, for comparison: a dict."""
        weights = {
            f"{number}/{weight.path}": weight.numpy()
            for number, model in enumerate(self.ensemble.models)
            for weight in model.weights
        }
        return {
            "models": [dataclasses.asdict(config) for config in self._configs],
            "checkpoint_steps": self.steps,
            "model_weights": checkpoints.digest(weights),
            "weights": self.ensemble.weights,
            "num_samplings": self.ensemble.num_samplings,
            "seed": self.ensemble.seed,
        }

    def describe(self):
        """What predicts, in a few words."""
        if len(self.steps) == 1:
            return f"step {self.steps[0]}"
        return f"{len(self.steps)} models of steps {listing(self.steps)}"


class ExportedPredictor:
    """Predicts with a graph that export_model.py wrote. Attributes are those of `Predictor`.

    Raises:
        InputError: if there is no exported model.
    """

    def __init__(self, export_dir):
        self._manifest, self.data = read_manifest(export_dir)
        self.label_loss = self._manifest["label_loss"]
        self.steps = [model["step"] for model in self._manifest["models"]]
        graph_check.check(export_dir)
        try:
            self._loaded = tf.saved_model.load(export_dir)
        except (OSError, ValueError, *files.REMOTE_ERRORS) as error:
            raise InputError(f"cannot load {export_dir}: {error}") from error
        self._name = export_dir

    def predict(self, inputs):
        """Probabilities `[B, C]` of the inputs of a `readers.Batch`."""
        if not isinstance(inputs, dict):
            inputs = {"features": inputs}
        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        return self._loaded.signatures["predict"](**tensors)["predictions"].numpy()

    def restore(self, checkpoint=None):
        """Does nothing: the weights are in the graph."""

    def identity(self):
        """All that predictions depend on beside the input, for comparison: a dict."""
        return {"exported_model": self._manifest}

    def describe(self):
        """What predicts, in a few words."""
        return self._name


def read_manifest(export_dir):
    """What an exported model tells of itself, without loading it.

    Returns:
        The content of its manifest, a dict, and the `DataConfig` of what it takes.

    Raises:
        InputError: if there is no exported model, or it is of another version.
    """
    path, manifest = files.read_description(
        export_dir, MANIFEST, "export_model.py", "exported_model"
    )
    try:
        for name in ("label_loss", "models", "digest"):
            manifest[name]
        return manifest, DataConfig(**manifest["data"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} does not fit this version: {error!r}") from error


def predict_videos(predictor, video_ids, inputs):
    """Probabilities `[B, C]` of the videos of a batch.

    Args:
        predictor: `Predictor`, restored, or `ExportedPredictor`.
        video_ids: sequence of B str.
        inputs: the inputs of a `readers.Batch`.

    Raises:
        InputError: if one is not finite, naming the first such video.
    """
    predictions = predictor.predict(inputs)
    wrong = ~np.isfinite(predictions).all(axis=1)
    if wrong.any():
        raise InputError(
            f"the prediction for video {video_ids[wrong.argmax()]!r} is not finite: the features "
            "of that video are far out of range, or the model has diverged."
        )
    return predictions


def load_configs(train_dirs):
    """The `RunConfig`s of train directories whose models take the same data.

    Raises:
        InputError: naming the directories that do not fit together, and in what.
    """
    configs = [RunConfig.load(train_dir) for train_dir in train_dirs]
    for train_dir, config in zip(train_dirs, configs, strict=True):
        differences = configs[0].data.differences(config.data)
        if differences:
            changes = "; ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in differences.items())
            raise InputError(
                f"models predict together only from the same data and classes, but {train_dirs[0]} "
                f"and {train_dir} differ ({changes})."
            )
    return configs


def compiled(function):
    """A function of the inputs of a `readers.Batch`: arrays to what `function` makes of tensors.

    Results are arrays. `function` is made one graph.
    """
    run = tf.function(function, reduce_retracing=True, autograph=False)

    def call(inputs):
        tensors = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), run(tensors))

    return call


def define_sampling_flags(flag_values):
    """Defines the flags of how models predict: those that an exported graph has settled."""
    own = {"flag_values": flag_values}
    program.define_flags(flag_values, "train_dir", "checkpoint", "seed")
    flags.DEFINE_list(
        "train_dirs", None, "Several training runs: the mean of their predictions is used.", **own
    )
    flags.DEFINE_list(
        "weights", None, "Weights of --train_dirs in the mean, as 2,1,1; equal by default.", **own
    )
    flags.DEFINE_integer(
        "num_samplings",
        1,
        "Samplings of the frames whose predictions are averaged, for models that sample; 0 uses "
        "every frame once, without sampling.",
        **own,
    )
    flags.DEFINE_boolean(
        "use_ema",
        False,
        "Uses the exponential moving average of the weights, of a run with --ema_decay.",
        **own,
    )


def define_flags(flag_values):
    """Defines the flags that name what predicts, and how records are read for it."""
    define_sampling_flags(flag_values)
    compute.define_flags(flag_values)
    program.define_flags(flag_values, "batch_size", "num_readers", "skip_corrupt_records", "top_k")
    flags.DEFINE_string(
        "exported_model",
        None,
        "Directory written by export_model.py, in place of --train_dir.",
        flag_values=flag_values,
    )


def use_environment(flag_values):
    """Takes the train directory of a job of Vertex AI, if no flag says what predicts."""
    names = ("train_dir", "train_dirs", "exported_model")
    if not any(flag_values[name].value for name in names if name in flag_values):
        program.use_environment(flag_values, train_dir="AIP_CHECKPOINT_DIR")


def train_dirs_from_flags(flag_values):
    """Train directories of a command line, one or several, and their weights.

    Raises:
        InputError: if it names none or both kinds, or a value is not usable.
    """
    program.require_not_negative(flag_values, "num_samplings", "seed")
    program.require_one_of(
        flag_values,
        *(name for name in ("train_dir", "train_dirs", "exported_model") if name in flag_values),
    )
    if not flag_values.train_dirs:
        if flag_values.weights:
            raise InputError("--weights weighs --train_dirs, which is not given.")
        return [flag_values.train_dir], None
    if flag_values.checkpoint:
        raise InputError(
            "--checkpoint chooses one of --train_dir; --train_dirs uses the newest of each. "
            "average_checkpoints.py makes a directory of any of them."
        )
    return flag_values.train_dirs, program.float_list(flag_values, "weights")


def from_flags(flag_values):
    """The predictor of a command line; checkpoints are not restored yet.

    Raises:
        InputError: if it names none, or a value is not usable.
    """
    program.require_positive(flag_values, "batch_size", "num_readers", "top_k")
    program.require_not_negative(flag_values, "skip_corrupt_records")
    train_dirs, weights = train_dirs_from_flags(flag_values)
    if flag_values.exported_model:
        settled = ("checkpoint", "weights", "num_samplings", "use_ema", "seed", "compute_dtype")
        given = [f"--{name}" for name in settled if flag_values[name].present]
        if given:
            raise InputError(
                f"{listing(given)} cannot be given with --exported_model: export_model.py settled "
                "it when it wrote the graph."
            )
        return ExportedPredictor(flag_values.exported_model)
    return Predictor(
        train_dirs,
        weights=weights,
        num_samplings=flag_values.num_samplings,
        seed=flag_values.seed,
        use_ema=flag_values.use_ema,
        compute_dtype=flag_values.compute_dtype,
    )


def reader_from_flags(flag_values, predictor, pattern):
    """A reader of the records that a predictor takes."""
    return predictor.data.reader(
        pattern,
        num_readers=flag_values.num_readers,
        skip_corrupt_records=flag_values.skip_corrupt_records,
    )
