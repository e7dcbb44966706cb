"""Trains a model on YouTube-8M records.

    python train.py --model=MoeModel --train_data_pattern='data/train*.tfrecord' --train_dir=run

The run's directory holds model_flags.json, checkpoints and TensorBoard logs. The same command
started again goes on from the newest checkpoint. eval.py and inference.py need only the directory.
"""

import dataclasses
import math
import os

import keras
import tensorflow as tf
from absl import flags, logging

import checkpoints
import files
import losses
import program
import registry
import trainer
from progress import Progress
from run_config import FILE_NAME, RunConfig
from utils import InputError, listing

# What training and evaluation write into a train directory, and --start_new_model removes.
_OWN_FILES = (
    FILE_NAME,
    "checkpoint",
    f"{checkpoints.FILE_PREFIX}-*",
    "train/events.out.tfevents.*",
    "eval/events.out.tfevents.*",
    "eval/metrics.json",
)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: number of updates made since the run began.
        loss: mean label loss of the steps of the last log line; NaN if no step was made.
        checkpoint: path prefix of the newest checkpoint.
    """

    step: int
    loss: float
    checkpoint: str


def train(
    config,
    *,
    train_data_pattern,
    train_dir,
    num_epochs=5,
    max_steps=None,
    start_new_model=False,
    export_model_steps=1000,
    keep_checkpoints=5,
    log_steps=10,
    metrics_steps=100,
    num_readers=4,
    skip_corrupt_records=0,
):
    """Trains until the data or the steps end, from the newest checkpoint if there is one.

    Args:
        config: `RunConfig`.
        train_data_pattern: str. Globs of record files, comma-separated.
        train_dir: str. Where the run lives.
        num_epochs: int. How often every video is used; None for without end.
        max_steps: int. Steps of the whole run, those before a restart included; None for no limit.
        start_new_model: bool. Whether to remove an earlier run from `train_dir` first.
        export_model_steps: int. Steps between two checkpoints; one more comes at the end.
        keep_checkpoints: int. Newest checkpoints to keep; 0 for all.
        log_steps: int. Steps between two log lines.
        metrics_steps: int. Steps between two log lines with Hit@1, PERR and GAP of the batch.
        num_readers: int. Threads that read records.
        skip_corrupt_records: int. How many damaged records to skip.

    Returns:
        A `TrainResult`.

    Raises:
        InputError: if data, directory or settings are not usable.
        FloatingPointError: if the loss or a weight is not finite any more.
    """
    reader = config.reader(
        train_data_pattern, num_readers=num_readers, skip_corrupt_records=skip_corrupt_records
    )
    next(reader.read_file(reader.paths[0]), None)  # Unsuitable data show before anything is made.
    prepare_train_dir(train_dir, config, start_new_model)

    keras.utils.set_random_seed(config.seed)
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = config.build_model()
        optimizer = trainer.build_optimizer(config)
        optimizer.build(model.trainable_variables)
    stepper = trainer.Trainer(config, model, optimizer, strategy)
    manager = tf.train.CheckpointManager(
        checkpoints.training_state(model, optimizer),
        train_dir,
        max_to_keep=keep_checkpoints or None,
        checkpoint_name=checkpoints.FILE_PREFIX,
    )
    trainer.resume(manager, model)
    config.save(train_dir)
    logging.info(
        "%s: %s weights; %d files; batches of %d videos; %s",
        config.model,
        f"{model.count_params():,}",
        len(reader.paths),
        config.batch_size,
        f"from step {stepper.step}" if stepper.step else "from the beginning",
    )

    batches = strategy.distribute_datasets_from_function(
        lambda context: reader.dataset(
            context.get_per_replica_batch_size(config.batch_size),
            shard=(context.input_pipeline_id, context.num_input_pipelines),
            num_epochs=num_epochs,
            shuffle=True,
            shuffle_buffer_size=config.shuffle_buffer_size,
            seed=config.seed,
            skip_batches=stepper.step,
            drop_remainder=True,
        )
    )
    with (
        reader.explained_errors(),
        Progress(max_steps, "step", stepper.step) as progress,
        tf.summary.create_file_writer(os.path.join(train_dir, "train")).as_default(),
    ):
        loss = trainer.run_loop(
            stepper,
            iter(batches),
            progress,
            manager,
            max_steps=max_steps or math.inf,
            save_steps=export_model_steps,
            log_steps=log_steps,
            metrics_steps=metrics_steps,
        )
    if reader.damage.count:
        logging.warning("%d damaged records were skipped", reader.damage.count)
    logging.info("ended at step %d: %s", stepper.step, manager.latest_checkpoint)
    return TrainResult(stepper.step, loss, manager.latest_checkpoint)


def prepare_train_dir(train_dir, config, start_new_model):
    """Makes the directory, and refuses one that holds a run of another config.

    Raises:
        InputError: naming the settings that differ.
    """
    try:
        tf.io.gfile.makedirs(train_dir)
    except (OSError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot make --train_dir {train_dir}: {error}") from error
    if start_new_model:
        for pattern in _OWN_FILES:
            for path in tf.io.gfile.glob(os.path.join(train_dir, pattern)):
                tf.io.gfile.remove(path)
    if tf.io.gfile.exists(os.path.join(train_dir, FILE_NAME)):
        differences = RunConfig.load(train_dir).differences(config)
        if differences:
            changes = "; ".join(
                f"{key}: {a!r} there, {b!r} now" for key, (a, b) in differences.items()
            )
            raise InputError(
                f"{train_dir} holds a run with other settings ({changes}). Give it the same flags "
                "to go on, another --train_dir, or --start_new_model to remove it and start over."
            )
    elif tf.train.latest_checkpoint(train_dir) is not None:
        raise InputError(
            f"{train_dir} holds checkpoints, but no {FILE_NAME}. Choose another --train_dir, or "
            "--start_new_model to remove them."
        )


def define_flags(flag_values):
    """Defines the flags of this program, the models' among them."""
    program.define_flags(
        flag_values,
        "train_dir",
        "batch_size",
        "seed",
        "num_readers",
        "skip_corrupt_records",
        "num_classes",
        "feature_sizes",
        "max_frames",
    )
    settings = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    own = {"flag_values": flag_values}
    flags.DEFINE_string("model", None, f"Model to train: {listing(registry.models())}.", **own)
    flags.DEFINE_string(
        "train_data_pattern", None, "Globs of training records, comma-separated; quote them.", **own
    )
    flags.DEFINE_list(
        "feature_names",
        None,
        "Features to read; by default rgb,audio at frame level and mean_rgb,mean_audio at video "
        "level.",
        **own,
    )
    flags.DEFINE_boolean(
        "frame_features",
        None,
        "Whether the data are at frame level. The model decides it; if given, it must agree.",
        **own,
    )
    flags.DEFINE_enum(
        "label_loss", settings["label_loss"], list(losses.LOSSES), "Loss of the labels.", **own
    )
    flags.DEFINE_string(
        "optimizer", settings["optimizer"], "Keras optimizer, as Adam or SGD.", **own
    )
    flags.DEFINE_float(
        "base_learning_rate", settings["base_learning_rate"], "Learning rate at the start.", **own
    )
    flags.DEFINE_float(
        "learning_rate_decay",
        settings["learning_rate_decay"],
        "Factor on the learning rate after every --learning_rate_decay_examples videos.",
        **own,
    )
    flags.DEFINE_integer(
        "learning_rate_decay_examples",
        settings["learning_rate_decay_examples"],
        "Videos between two decays of the learning rate.",
        **own,
    )
    flags.DEFINE_float(
        "clip_gradient_norm",
        settings["clip_gradient_norm"],
        "Norm that the gradient of each variable is clipped to; 0 for no clipping.",
        **own,
    )
    flags.DEFINE_float(
        "regularization_penalty",
        settings["regularization_penalty"],
        "Factor on the regularisation losses of the model.",
        **own,
    )
    flags.DEFINE_integer(
        "shuffle_buffer_size",
        settings["shuffle_buffer_size"],
        "Videos among which the next one is drawn; at full size 1024 frame-level videos take "
        "350 MB.",
        **own,
    )
    flags.DEFINE_integer("num_epochs", 5, "How often to use every video.", **own)
    flags.DEFINE_integer(
        "max_steps",
        None,
        "Steps of the whole run, those before a restart included; by default no limit.",
        **own,
    )
    flags.DEFINE_boolean(
        "start_new_model",
        False,
        "Removes an earlier run from --train_dir (only files that these programs wrote).",
        **own,
    )
    flags.DEFINE_integer("export_model_steps", 1000, "Steps between two checkpoints.", **own)
    flags.DEFINE_integer("keep_checkpoints", 5, "Newest checkpoints to keep; 0 for all.", **own)
    flags.DEFINE_integer("log_steps", 10, "Steps between two log lines.", **own)
    flags.DEFINE_integer(
        "metrics_steps", 100, "Steps between log lines with Hit@1, PERR, GAP of a batch.", **own
    )
    program.define_model_flags(flag_values)


def config_from_flags(flag_values):
    """The `RunConfig` of a command line.

    Raises:
        InputError: if a flag has no usable value or is not one of the model.
    """
    program.require_flags(flag_values, "model", "train_data_pattern", "train_dir")
    program.require_positive(
        flag_values,
        *("batch_size", "max_frames", "base_learning_rate", "learning_rate_decay"),
        *("learning_rate_decay_examples", "shuffle_buffer_size", "num_epochs", "max_steps"),
        *("export_model_steps", "log_steps", "metrics_steps", "num_readers"),
    )
    settings = {field.name for field in dataclasses.fields(RunConfig)} - {"hyperparameters"}
    values = {name: flag_values[name].value for name in settings}
    values["feature_sizes"] = program.integer_list(flag_values, "feature_sizes")
    config = RunConfig.create(
        hyperparameters=program.given_model_flags(flag_values),
        **values,
    )
    if flag_values.frame_features not in (None, config.frame_level):
        level = "frames" if config.frame_level else "video-level features"
        raise InputError(
            f"--frame_features={flag_values.frame_features} does not fit: {config.model} takes "
            f"{level}."
        )
    return config


def main(flag_values):
    """Runs the program."""
    train(
        config_from_flags(flag_values),
        **{
            name: flag_values[name].value
            for name in (
                *("train_data_pattern", "train_dir", "num_epochs", "max_steps", "start_new_model"),
                *("export_model_steps", "keep_checkpoints", "log_steps", "metrics_steps"),
                *("num_readers", "skip_corrupt_records"),
            )
        },
    )


if __name__ == "__main__":
    program.run(main, define_flags)
