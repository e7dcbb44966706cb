"""Trains a model on YouTube-8M records.

    python train.py --model=MoeModel --train_data_pattern='data/train*.tfrecord' --train_dir=run

The run's directory holds model_flags.json, checkpoints and TensorBoard logs. The same command
started again goes on from the newest checkpoint. eval.py and inference.py need only the directory.
Several devices or machines train together with --distribution.
"""

import contextlib
import dataclasses
import math
import os

import keras
import tensorflow as tf
from absl import flags, logging

import checkpoints
import compute
import distribution
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
    distribution_mode="auto",
    tpu=None,
    sync_batch_norm=True,
    num_epochs=5,
    max_steps=None,
    start_new_model=False,
    export_model_steps=1000,
    checkpoint_secs=None,
    keep_checkpoints=5,
    log_steps=10,
    metrics_steps=100,
    num_readers=4,
    skip_corrupt_records=0,
    compute_dtype=None,
    tensorboard_dir=None,
):
    """Trains until the data or the steps end, from the newest checkpoint if there is one.

    After SIGTERM it saves and returns.

    Args:
        config: `RunConfig`.
        train_data_pattern: str. Globs of record files, comma-separated.
        train_dir: str. Where the run lives.
        distribution_mode: str. Which devices train, as of `distribution.choose`.
        tpu: str. Name of a TPU, as of `distribution.choose`.
        sync_batch_norm: bool. Whether batch normalisation takes its statistics from the batch of
            all devices, or else each device from its part.
        num_epochs: int. How often every video is used; None for without end.
        max_steps: int. Steps of the whole run, those before a restart included; None for no limit.
        start_new_model: bool. Whether to remove an earlier run from `train_dir` first.
        export_model_steps: int. Steps between two checkpoints; one more comes at the end.
        checkpoint_secs: number. Seconds after which one is saved besides; None for no such time.
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
        ConnectionError: if another worker is gone.
    """
    reader = config.reader(
        train_data_pattern, num_readers=num_readers, skip_corrupt_records=skip_corrupt_records
    )
    next(reader.read_file(reader.paths[0]), None)  # Unsuitable data show before anything is made.

    workers = distribution.choose(distribution_mode, tpu)
    workers.check_batch_size(config.batch_size)
    workers.check_num_files(len(reader.paths))
    keras.utils.set_random_seed(config.seed)
    with workers.explained_errors(), distribution.termination_requests() as stopping:
        stepper = make_trainer(config, workers.strategy, compute_dtype, sync_batch_norm)
        if workers.is_chief:
            prepare_train_dir(train_dir, config, start_new_model)
        workers.wait_for_all()
        manager = tf.train.CheckpointManager(
            checkpoints.training_state(stepper.model, stepper.optimizer, stepper.ema),
            train_dir,
            max_to_keep=keep_checkpoints or None,
            checkpoint_name=checkpoints.FILE_PREFIX,
        )
        trainer.resume(manager, stepper.model)
        workers.check_same_step(stepper.step)
        if workers.is_chief:
            config.save(train_dir)
        logging.info(
            "%s: %s weights; %d files; batches of %d videos%s; %s",
            config.model,
            f"{stepper.model.count_params():,}",
            len(reader.paths),
            config.batch_size,
            workers.describe_parts(config.batch_size),
            f"from step {stepper.step}" if stepper.step else "from the beginning",
        )
        batches = workers.batches(
            reader,
            config.batch_size,
            num_epochs=num_epochs,
            shuffle=True,
            shuffle_buffer_size=config.shuffle_buffer_size,
            seed=config.seed,
            skip_batches=stepper.step,
        )
        with (
            reader.explained_errors(),
            _only_chief(workers, Progress, max_steps, "step", stepper.step) as progress,
            _only_chief(workers, _summaries, tensorboard_dir or train_dir),
        ):
            loss = trainer.run_loop(
                stepper,
                batches,
                progress,
                manager,
                workers,
                max_steps=max_steps or math.inf,
                save_steps=export_model_steps,
                save_secs=checkpoint_secs or math.inf,
                log_steps=log_steps,
                metrics_steps=metrics_steps,
                stopping=stopping,
            )
        workers.wait_for_all()
    if reader.damage.count:
        logging.warning("%d damaged records were skipped", reader.damage.count)
    checkpoint = tf.train.latest_checkpoint(train_dir)
    logging.info("ended at step %d: %s", stepper.step, checkpoint)
    return TrainResult(stepper.step, loss, checkpoint)


def make_trainer(config, strategy, compute_dtype, sync_batch_norm):
    """The `trainer.Trainer` of a config, with initial weights."""
    with strategy.scope():
        model = config.build_model(compute.matrix_policy(compute_dtype))
        optimizer = config.build_optimizer()
        optimizer.build(model.trainable_variables)
    return trainer.Trainer(config, model, optimizer, strategy, sync_batch_norm)


def _summaries(folder):
    return tf.summary.create_file_writer(os.path.join(folder, "train")).as_default()


def _only_chief(workers, make, *arguments):
    return make(*arguments) if workers.is_chief else contextlib.nullcontext()


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
                files.remove(path)  # An interrupted save leaves a directory, model.ckpt-N_temp.
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
    flags.DEFINE_enum(
        "distribution",
        "auto",
        distribution.MODES,
        "Devices that train: one_device; mirrored, all GPUs of this machine; multi_worker, the "
        "machines in TF_CONFIG with all their GPUs; tpu. By default the machines if TF_CONFIG "
        "names several, else the GPUs if there are several, else one device.",
        **own,
    )
    flags.DEFINE_string(
        "tpu", None, "TPU to train on: its name or address, or local for this machine's.", **own
    )
    flags.DEFINE_boolean(
        "sync_batch_norm",
        True,
        "Whether batch normalisation takes its statistics from the batch of all devices; if not, "
        "each device takes them from its part.",
        **own,
    )
    flags.DEFINE_integer(
        "checkpoint_secs",
        None,
        "Seconds after which a checkpoint is saved, besides those of --export_model_steps; by "
        "default none.",
        **own,
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
    program.require_positive(flag_values, "num_readers", "checkpoint_secs")
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
            *("train_data_pattern", "train_dir", "tpu", "sync_batch_norm", "num_epochs"),
            *("max_steps", "start_new_model", "export_model_steps", "checkpoint_secs"),
            *("keep_checkpoints", "log_steps", "metrics_steps", "num_readers"),
            *("skip_corrupt_records", "compute_dtype", "tensorboard_dir"),
        )
    }
    with run_lock.hold(flag_values.train_dir):
        train(config, distribution_mode=flag_values.distribution, **settings)


if __name__ == "__main__":
    program.run(main, define_flags)
