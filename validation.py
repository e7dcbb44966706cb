"""Evaluation between the steps of training: keeps the best checkpoint and ends a run in time."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import logging

import checkpoints
import dataset_info
import files
from checkpoints import Best
from evaluation import evaluate, evaluation_reader, format_summary, new_writer, save_summary
from predictor import Predictor, PredictorOptions
from run_config import RunConfig, TrainOptions
from segments.predictor import load_segment_predictor
from utils import InputError

# Like eval.py without flags, so that both give equal numbers for a checkpoint.
_EVAL_OPTIONS = PredictorOptions(train_dir="run")


def check_records(config: RunConfig, options: TrainOptions, paths: Sequence[str]) -> None:
    """Rejects records that a run cannot be evaluated on; call it before the run begins.

    Args:
        config: what to learn.
        options: how to read records.
        paths: the files that `options.eval_data_pattern` matches.

    Raises:
        InputError: if they have no labels, or are stored otherwise or have other classes than the
            records to train on.
    """
    dataset_info.check_classes(config.data, paths)
    evaluation_reader(config.data, paths, options, _segments(config)).check_first_records()


def _segments(config):
    return config if config.segment_labels else None


class Validation:
    """Evaluates checkpoints of the run that this process trains, like eval.py, and keeps the best.

    It evaluates what is saved: best.json and metrics.json never know of a step after the newest
    checkpoint, so a run that is killed during an evaluation repeats it when it resumes. With
    `ema_decay`, it evaluates the moving averages.

    Args:
        config: what the run learns.
        options: the run's options, with `eval_data_pattern`.
        paths: the files that `eval_data_pattern` matches.
        step: number of updates that the run resumes from.

    Attributes:
        best: the best checkpoint so far; None without `keep_best` or before the first evaluation.

    Raises:
        InputError: if the results cannot be saved, or the run has kept the best by another metric.
    """

    def __init__(self, config: RunConfig, options: TrainOptions, paths: Sequence[str], step: int):
        self._options = options
        self._paths = paths
        self._segments = _segments(config)
        self._use_ema = config.ema_decay > 0
        self._kind = checkpoints.evaluation_kind(self._use_ema)
        self._predictor: Predictor | None = None
        self._segment_predictor: Any = None
        self._writer: tf.summary.SummaryWriter | None = None
        history_path = checkpoints.metrics_path(options.train_dir, self._kind)
        files.check_writable(history_path)
        if options.tensorboard_dir:
            files.check_writable(os.path.join(options.tensorboard_dir, self._kind, "events"))
        self.best = checkpoints.read_best(options.train_dir) if options.keep_best else None
        if self.best is not None and self.best.metric != options.keep_best:
            raise InputError(
                f"{options.train_dir} has kept the best checkpoint by {self.best.metric}. Continue "
                f"with --keep_best={self.best.metric}, or remove best.json there to begin with "
                f"--keep_best={options.keep_best} and forget the best so far."
            )
        if options.keep_best:
            evaluated = [self.best.last_step] if self.best else []
        else:
            evaluated = [entry["step"] for entry in checkpoints.read_evaluations(history_path)]
        self._last_step = min(step, max(evaluated, default=0))

    def is_due(self, step: int, at_end: bool = False) -> bool:
        """Returns whether a step is to be evaluated, and was not.

        Args:
            step: number of updates made.
            at_end: whether training ends with it.
        """
        return step > self._last_step and (at_end or step % self._options.evaluation_period == 0)

    def evaluate(self, step: int) -> None:
        """Evaluates the checkpoint of a step, saves and logs the metrics, and keeps the best."""
        options = self._options
        if self._predictor is None:
            self._predictor = Predictor(
                [options.train_dir], use_ema=self._use_ema, compute_dtype=options.compute_dtype
            )
            if self._segments:
                self._segment_predictor = load_segment_predictor(self._predictor)
        self._predictor.restore(str(step))
        summary, _ = evaluate(
            self._predictor,
            evaluation_reader(self._predictor.data, self._paths, options, self._segments),
            batch_size=_EVAL_OPTIONS.batch_size,
            top_k=_EVAL_OPTIONS.top_k,
            max_videos=options.eval_videos,
            segment_predictor=self._segment_predictor,
        )
        if self._writer is None:
            self._writer = new_writer(options.train_dir, self._kind, options.tensorboard_dir)
        save_summary(summary, options.train_dir, self._kind, self._writer)
        self._last_step = step
        verdict = self._compare(summary) if options.keep_best else ""
        logging.info(
            "evaluated %sstep %d | %s%s",
            "the moving averages of " * self._use_ema,
            step,
            format_summary(summary),
            verdict,
        )

    def _compare(self, summary: dict[str, Any]) -> str:
        """Keeps the checkpoint if it is the best so far, and returns the end of the log line."""
        metric = str(self._options.keep_best)
        found = Best(
            metric=metric,
            value=float(summary[metric]),
            step=summary["step"],
            num_videos=summary["num_videos"],
            last_step=summary["step"],
        )
        before = self.best
        if before is not None and before.num_videos != found.num_videos:
            logging.warning(
                "the best checkpoint so far, of step %d, was evaluated on %d videos, but this one "
                "on %d: other data make the comparison meaningless",
                before.step,
                before.num_videos,
                found.num_videos,
            )
        if before is None or found.is_better_than(before):
            self.best = found
        else:
            self.best = dataclasses.replace(
                before,
                last_step=found.step,
                evaluations_since=before.evaluations_since + 1,
            )
        checkpoints.save_best(self._options.train_dir, self.best)
        if self.best is found:
            return f" | the best so far by {found.metric}"
        return f" | the best by {found.metric} is step {self.best.step}: {self.best.value:.4f}"

    @property
    def must_stop(self) -> bool:
        """Whether the last `early_stopping` evaluations found nothing better."""
        patience = self._options.early_stopping
        return bool(patience and self.best and self.best.evaluations_since >= patience)

    def describe_best(self) -> str:
        """Describes the best checkpoint and how to use it; empty without one."""
        if self.best is None:
            return ""
        train_dir = shlex.quote(self._options.train_dir)
        return (
            f"the best evaluated step is {self.best.step}, with {self.best.metric} "
            f"{self.best.value:.4f}. --checkpoint=best selects it: python export_model.py "
            f"--train_dir={train_dir} --checkpoint=best{' --use_ema' * self._use_ema} "
            f"--output_dir=exported"
        )
