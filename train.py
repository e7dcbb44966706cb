"""Trains a model on YouTube-8M records.

    python train.py --model=MoeModel --train_data_pattern='data/train*.tfrecord' --train_dir=run

The run's directory holds model_flags.json, checkpoints and TensorBoard logs. The same command
resumes from the newest checkpoint. eval.py and inference.py need only that directory. If a
dataset.json lies next to the records, no flag needs to describe them. With --distribution, several
devices or machines train together.
"""

import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import program
from program import Progress

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.plugins.hparams import api as hparams_api

import checkpoints
import dataset_info
import distribution
import eval_util
import files
import initial_weights
import layers
import losses
import optimizers
import validation
import vocabulary
from run_config import RunConfig, TrainOptions
from trainer import Trainer
from utils import InputError

# One call runs as many steps as fit into about this time, so that the progress shown is fresh.
_SECONDS_PER_CALL = 1.0
_MAX_STEPS_PER_CALL = 50


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: number of updates made since the run began.
        loss: mean label loss since the last log line before the end; NaN if no step was made.
        checkpoint: path prefix of the newest checkpoint.
        best: the best checkpoint, with `keep_best`; None for a worker that writes nothing.
    """

    step: int
    loss: float
    checkpoint: str | None
    best: checkpoints.Best | None = None


def train(
    config: RunConfig,
    options: TrainOptions,
    *,
    paths: Sequence[str] | None = None,
    eval_paths: Sequence[str] = (),
    stop_requests: Callable = lambda: contextlib.nullcontext(lambda: False),
) -> TrainResult:
    """Trains until the data or the steps end, from the newest checkpoint if there is one.

    Args:
        config: what to learn.
        options: data, directory, duration and devices.
        paths: the files that `options.train_data_pattern` matches, if the caller knows them.
        eval_paths: likewise those of `options.eval_data_pattern`.
        stop_requests: returns a context manager that yields a function, which returns whether to
            save and stop early; for example `distribution.termination_requests`.

    Raises:
        InputError: if data, directory or settings are not usable, or another training runs there.
        FloatingPointError: if the loss or a weight is no longer finite.
        ConnectionError: if another worker is gone.
    """
    if options.frame_features not in (None, config.frame_level):
        level = "frames" if config.frame_level else "video-level features"
        raise InputError(
            f"--frame_features={options.frame_features} does not fit: {config.model} takes {level}."
        )
    config = with_end_of_schedule(config, options)
    reader = config.training_reader(paths or options.train_data_pattern, options)
    # Fail on bad data before creating anything.
    reader.check_first_records()
    if options.keep_best == "segment_map" and not config.segment_labels:
        raise InputError("--keep_best=segment_map needs --segment_labels, which is not given.")
    if options.eval_data_pattern:
        eval_paths = eval_paths or files.expand_patterns(options.eval_data_pattern)
        validation.check_records(config, options, eval_paths)
        shared = {*reader.paths} & {*eval_paths}
        if shared:
            logging.warning(
                "the evaluation does not measure generalization: --eval_data_pattern matches %d "
                "files to train on, for example %s",
                len(shared),
                min(shared),
            )
    if options.class_names:
        vocabulary.read_class_names(options.class_names, config.num_classes)
    if options.tensorboard_dir:
        files.check_writable(os.path.join(options.tensorboard_dir, "train", "events"))
    with checkpoints.training_lock(options.train_dir):
        return _train(config, options, reader, eval_paths, stop_requests)


def _train(config, options, reader, eval_paths, stop_requests):
    workers = distribution.choose(options.distribution, options.tpu)
    workers.check_batch_size(config.batch_size)
    workers.check_num_files(len(reader.paths))
    keras.utils.set_random_seed(config.seed)
    log_dir = options.tensorboard_dir or options.train_dir
    with workers.explained_errors(), stop_requests() as stop_requested:
        trainer = make_trainer(config, workers.strategy, options)
        if workers.is_chief:
            checkpoints.prepare_train_dir(
                options.train_dir, config, options.start_new_model, options.class_names
            )
        workers.wait_for_all()
        manager = checkpoints.new_manager(
            options.train_dir,
            checkpoints.training_state(trainer.model, trainer.optimizer, trainer.ema),
            options.keep_checkpoints,
        )
        checkpoints.resume(manager, trainer.model)
        workers.check_same_step(trainer.step)
        if config.init_from and not trainer.step:
            workers.check_same_weights(weight.numpy() for weight in trainer.model.weights)
        if workers.is_chief:
            checkpoints.save_vocabulary(options.train_dir, options.class_names)
            config.save(options.train_dir)
            if not trainer.step:
                log_settings(config, log_dir)
        validator = None
        if eval_paths and workers.is_chief:
            validator = validation.Validation(config, options, eval_paths, trainer.step)
        batches_per_step = config.gradient_accumulation
        logging.info(
            "%s: %s weights; %d files; batches of %d %ss%s%s; %s",
            config.model,
            f"{trainer.model.count_params():,}",
            len(reader.paths),
            config.batch_size,
            reader.example,
            workers.describe_parts(config.batch_size),
            f", {batches_per_step} in each step" if batches_per_step > 1 else "",
            f"from step {trainer.step}" if trainer.step else "from the beginning",
        )
        first_step = trainer.step
        logging.info("the first step compiles the model, which can take a minute")
        batches = workers.batches(
            reader,
            config.videos_per_step,
            num_epochs=options.num_epochs or None,
            shuffle=True,
            shuffle_buffer_size=config.shuffle_buffer_size,
            seed=config.seed,
            skip_batches=trainer.step,
            mix_videos=config.mix_videos,
        )
        with (
            reader.explained_errors(),
            _only_chief(workers, Progress, options.max_steps, "step", trainer.step) as progress,
            _only_chief(workers, _summaries, os.path.join(log_dir, "train")),
        ):
            log = TrainingLog(trainer, progress)
            run_loop(trainer, batches, log, manager, workers, options, validator, stop_requested)
        workers.wait_for_all()
    if reader.corrupt_records.count:
        logging.warning("%d corrupt records were skipped", reader.corrupt_records.count)
    checkpoint = tf.train.latest_checkpoint(options.train_dir)
    logging.info("ended at step %d: %s", trainer.step, checkpoint)
    if trainer.step == first_step and not (validator and validator.must_stop):
        logging.info(
            "no step was made: the run already used its data and steps. To continue, give "
            "more files, --num_epochs or --max_steps."
        )
    best = validator and validator.best
    if best:
        logging.info("%s", validator.describe_best())
    logging.info(
        "to see the run: python report.py --train_dir=%s%s --output_file=report.html",
        shlex.quote(options.train_dir),
        " --use_ema" if validator and config.ema_decay else "",
    )
    return TrainResult(trainer.step, log.last_loss, checkpoint, best)


def with_end_of_schedule(config: RunConfig, options: TrainOptions) -> RunConfig:
    """Returns a config whose learning rate schedule has an end, if it needs one.

    It is the end with which the run began, or else `max_steps`.

    Raises:
        InputError: if the schedule needs an end and has none, or the warm-up would not end.
    """
    max_steps = options.max_steps
    if max_steps and config.warmup_steps >= max_steps:
        raise InputError(
            f"--warmup_steps must be below --max_steps, {max_steps}. "
            f"Received: {config.warmup_steps}"
        )
    if config.learning_rate_schedule not in optimizers.ENDING_SCHEDULES:
        return config
    end = config.learning_rate_decay_steps
    if end is None and (earlier := _earlier_config(options)):
        end = earlier.learning_rate_decay_steps
    end = end or max_steps
    if end and max_steps and end < max_steps:
        logging.warning(
            "the learning rate is 0 from step %d on, but --max_steps is %d", end, max_steps
        )
    config = dataclasses.replace(config, learning_rate_decay_steps=end)
    config.make_schedule()  # Rejects a schedule without an end.
    return config


def _earlier_config(options):
    """Returns the config of the run that training resumes, or None for a new run."""
    if options.start_new_model or not checkpoints.has_run(options.train_dir):
        return None
    return RunConfig.load(options.train_dir)


def make_trainer(
    config: RunConfig, strategy: tf.distribute.Strategy, options: TrainOptions
) -> Trainer:
    """Returns the `Trainer` of a config, with initial weights."""
    with strategy.scope():
        model = config.build_model(layers.training_policy(options.compute_dtype))
        initial_weights.prepare(model, config, options)
        optimizer = config.build_optimizer(model)
    return Trainer(config, model, optimizer, strategy, options.sync_batch_norm)


def log_settings(config: RunConfig, log_dir: str) -> None:
    """Writes the settings of a run for TensorBoard's HParams tab.

    The tab shows next to them all curves in subdirectories of `log_dir`: training and evaluation.
    """
    values = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in config.settings.items()
        if value is not None and not isinstance(value, dict)
    }
    with _summaries(log_dir):
        hparams_api.hparams(values)


def _summaries(folder):
    return tf.summary.create_file_writer(folder).as_default()


def _only_chief(workers, make, *arguments):
    return make(*arguments) if workers.is_chief else contextlib.nullcontext()


# --- The loop -------------------------------------------------------------------------------------


def run_loop(
    trainer: Trainer,
    batches: Iterator,
    log: "TrainingLog",
    manager: tf.train.CheckpointManager,
    workers: distribution.Distribution,
    options: TrainOptions,
    validator: validation.Validation | None,
    stop_requested: Callable[[], bool],
) -> None:
    """Runs steps, logs, saves and evaluates until the end.

    The end comes with the data, the steps or the patience of `validator`, which only the chief has,
    or when a worker must stop.
    """
    max_steps = options.max_steps or sys.maxsize
    save_secs = options.checkpoint_secs or math.inf
    steps_per_call, last_save = 1, time.monotonic()

    def save(wait=False):
        nonlocal last_save
        if workers.is_chief:
            checkpoints.save(manager, trainer.model, trainer.optimizer, trainer.step, wait)
        last_save = time.monotonic()

    def evaluate_if_due(at_end=False):
        if validator is not None and validator.is_due(trainer.step, at_end):
            save(wait=True)
            with log.paused():
                validator.evaluate(trainer.step)

    must_stop = False
    while (step := trainer.step) < max_steps:
        evaluate_if_due()
        # All workers must run, save and stop at the same steps.
        must_stop, must_save, ends_early, steps_per_call = workers.agree(
            summed=[stop_requested()],
            from_chief=[
                time.monotonic() - last_save >= save_secs,
                validator is not None and validator.must_stop,
                steps_per_call,
            ],
        )
        if must_stop:
            logging.warning("a worker must stop (SIGTERM): saving step %d and ending", step)
            break
        if ends_early:
            logging.info(
                "--early_stopping=%d: no later evaluation was better than the best, so training "
                "ends at step %d",
                options.early_stopping,
                step,
            )
            break
        if must_save:
            save()
        target = min(max_steps, step + int(steps_per_call), _next_pause(step, options))
        start = time.perf_counter()
        # Metrics of a batch would count unrated pairs as negatives.
        wants_metrics = target % options.metrics_steps == 0 and not trainer.config.segment_labels
        outputs = trainer.run(batches, target - step, keep_outputs=wants_metrics)
        trainer.check_finite()
        seconds_per_step = (time.perf_counter() - start) / (target - step)
        steps_per_call = min(max(1, int(_SECONDS_PER_CALL / seconds_per_step)), _MAX_STEPS_PER_CALL)
        data_ended = trainer.step < target
        is_log_step = target % options.log_steps == 0 or target == max_steps
        if data_ended or outputs is not None or is_log_step:
            log.write(outputs)
        if data_ended:
            break
        if target % options.export_model_steps == 0:
            save(wait=validator is not None and validator.is_due(target))
    save(wait=True)
    if not must_stop:
        evaluate_if_due(at_end=True)


def _next_pause(step, options):
    """Returns the next step after which there is something to do besides training."""
    periods = (
        options.log_steps,
        options.metrics_steps,
        options.export_model_steps,
        options.evaluation_period,
    )
    return min((step // period + 1) * period for period in periods)


class TrainingLog:
    """Log lines and TensorBoard scalars of a run.

    Args:
        trainer: the running `Trainer`.
        progress: None for a worker that writes nothing.

    Attributes:
        last_loss: mean label loss in the last log line; NaN before the first step.
    """

    def __init__(self, trainer: Trainer, progress: Progress | None):
        self.last_loss = math.nan
        self._trainer = trainer
        self._progress = progress
        self._step = trainer.step
        self._time = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of the block in the speed that the next line reports."""
        start = time.perf_counter()
        yield
        self._time += time.perf_counter() - start

    def write(self, outputs: tuple | None) -> None:
        """Reports the steps since the last call.

        Args:
            outputs: predictions and labels of the last step, per replica, to report metrics of;
                None for no metrics.
        """
        trainer, now = self._trainer, time.perf_counter()
        step, seconds = trainer.step, now - self._time
        num_steps = step - self._step
        if not num_steps:
            return
        self.last_loss = trainer.pop_loss_sum() / num_steps
        self._step, self._time = step, now
        if self._progress is None:
            return
        values = {
            "loss": self.last_loss,
            "examples/s": num_steps * trainer.config.videos_per_step / seconds,
            "learning_rate": trainer.learning_rate,
        }
        if outputs is not None:
            values |= batch_metrics(outputs, trainer.strategy)
        self._progress.advance_to(step)
        self._progress.report(
            f"step {step} | " + " | ".join(f"{name} {value:.4g}" for name, value in values.items())
        )
        for name, value in values.items():
            tf.summary.scalar(name, value, step)


def batch_metrics(outputs: tuple, strategy: tf.distribute.Strategy) -> dict[str, float]:
    """Returns Hit@1, PERR and GAP of one batch; with several workers, of the chief's part."""
    predictions, labels = (
        np.concatenate([part.numpy() for part in strategy.experimental_local_results(output)])
        for output in outputs
    )
    return {
        "Hit@1": eval_util.calculate_hit_at_one(predictions, labels),
        "PERR": eval_util.calculate_precision_at_equal_recall_rate(predictions, labels),
        "GAP": eval_util.calculate_gap(predictions, labels),
    }


def read_loss_data(
    config: RunConfig, options: TrainOptions, paths: Sequence[str]
) -> dict[str, list[float]]:
    """Returns the numbers of each class that the label loss takes, for `RunConfig.loss_data`.

    Args:
        config: config of the run, complete but for these numbers.
        options: options that say which weights the classes have.
        paths: the training records. Their `dataset.json` gives the frequencies of the classes.

    Raises:
        InputError: if weights or frequencies cannot be read.
    """
    beta, smoothing = config.class_balance_beta, config.loss_hyperparameters.get("label_smoothing")
    if options.class_weights and beta is not None:
        raise InputError(
            "--class_weights and --class_balance_beta cannot be combined. Use only one of them."
        )
    # A run goes on with its numbers, on other training data too.
    found, resumed = {}, _earlier_config(options)
    earlier = resumed.loss_data if resumed else {}
    if options.class_weights:
        is_gone = "class_weights" in earlier and not files.gfile.exists(options.class_weights)
        found["class_weights"] = (
            earlier["class_weights"]
            if is_gone
            else vocabulary.read_numbers(options.class_weights, "weight", config.num_classes)
        )
    if beta is not None:
        found["class_weights"] = earlier.get("class_weights") or losses.effective_number_weights(
            dataset_info.class_counts(paths, config.num_classes)[0], beta
        )
    if smoothing:
        found["class_prior"] = earlier.get("class_prior") or dataset_info.class_prior(
            paths, config.num_classes
        )
    return found


def main(config: RunConfig, options: TrainOptions, given: program.GivenFlags) -> None:
    """Runs the program."""
    paths = files.expand_patterns(options.train_data_pattern)
    config = dataset_info.complete(config, given, paths)
    if options.feature_scale:
        scale = dataset_info.read_feature_scale(options.feature_scale)
        config = dataclasses.replace(config, feature_scale=dataclasses.asdict(scale))
    config = dataclasses.replace(config, loss_data=read_loss_data(config, options, paths))
    if options.init_classes:
        classes = initial_weights.read_classes(options.init_classes)
        config = dataclasses.replace(config, init_classes=classes)
    eval_paths = []
    if options.eval_data_pattern:
        eval_paths = files.expand_patterns(options.eval_data_pattern)
    class_names = options.class_names or dataset_info.find_vocabulary([*paths, *eval_paths])
    options = dataclasses.replace(options, class_names=class_names)
    train(
        config,
        options,
        paths=paths,
        eval_paths=eval_paths,
        stop_requests=distribution.termination_requests,
    )


if __name__ == "__main__":
    program.run(main)
