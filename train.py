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
import compute
import files
import program
import recipe_flags
import run_lock
import trainer
from progress import Progress
from run_config import FILE_NAME, RunConfig
from utils import InputError

# What training and evaluation write into a train directory, and --start_new_model removes; the
# config last, so that after an interruption the directory still tells whose the rest is.
_OWN_FILES = (
    "checkpoint",
    f"{checkpoints.FILE_PREFIX}-*",
    "train/events.out.tfevents.*",
    "eval*/events.out.tfevents.*",
    "eval*/metrics.json",
    FILE_NAME,
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
    compute_dtype=None,
    tensorboard_dir=None,
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
        compute_dtype: str. Type of the operands of matrix products, as of `compute.matrix_policy`.
        tensorboard_dir: str. Where TensorBoard's logs go; by default `train_dir`.

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

    keras.utils.set_random_seed(config.seed)
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = config.build_model(compute.matrix_policy(compute_dtype))
        optimizer = config.build_optimizer()
        optimizer.build(model.trainable_variables)
    prepare_train_dir(train_dir, config, start_new_model)
    stepper = trainer.Trainer(config, model, optimizer, strategy)
    manager = tf.train.CheckpointManager(
        checkpoints.training_state(model, optimizer, stepper.ema),
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
            skip_batches=stepper.step * context.num_replicas_in_sync // context.num_input_pipelines,
            drop_remainder=True,
        )
    )
    with (
        reader.explained_errors(),
        Progress(max_steps, "step", stepper.step) as progress,
        tf.summary.create_file_writer(
            os.path.join(tensorboard_dir or train_dir, "train")
        ).as_default(),
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
                # An interrupted save leaves a directory, model.ckpt-N_temp.
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
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
    elif checkpoints.names(train_dir):
        raise InputError(
            f"{train_dir} holds checkpoints, but no {FILE_NAME}. Choose another --train_dir, or "
            "--start_new_model to remove them."
        )
    checkpoints.remove_unfinished(train_dir)
    checkpoints.latest(train_dir)  # Refuses a damaged list, which would pass for none.


def define_flags(flag_values):
    """Defines the flags of this program, those that a recipe sets among them."""
    recipe_flags.define_flags(flag_values)
    compute.define_flags(flag_values)
    program.define_flags(
        flag_values, "train_dir", "tensorboard_dir", "num_readers", "skip_corrupt_records"
    )
    own = {"flag_values": flag_values}
    flags.DEFINE_string(
        "train_data_pattern", None, "Globs of training records, comma-separated; quote them.", **own
    )
    flags.DEFINE_boolean(
        "start_new_model",
        False,
        "Removes an earlier run from --train_dir (only files that these programs wrote).",
        **own,
    )


def config_from_flags(flag_values):
    """The `RunConfig` of a command line.

    Raises:
        InputError: if a flag has no usable value or is not one of the model.
    """
    program.require_flags(flag_values, "model", "train_data_pattern", "train_dir")
    program.require_positive(flag_values, "num_readers")
    program.require_not_negative(flag_values, "skip_corrupt_records")
    return recipe_flags.config_from_flags(flag_values)


def main(flag_values):
    """Runs the program."""
    program.use_environment(
        flag_values, train_dir="AIP_CHECKPOINT_DIR", tensorboard_dir="AIP_TENSORBOARD_LOG_DIR"
    )
    config = config_from_flags(flag_values)
    settings = {
        name: flag_values[name].value
        for name in (
            *("train_data_pattern", "train_dir", "num_epochs", "max_steps", "start_new_model"),
            *("export_model_steps", "keep_checkpoints", "log_steps", "metrics_steps"),
            *("num_readers", "skip_corrupt_records", "compute_dtype", "tensorboard_dir"),
        )
    }
    with run_lock.hold(flag_values.train_dir):
        train(config, **settings)


if __name__ == "__main__":
    program.run(main, define_flags)
