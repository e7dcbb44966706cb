"""Evaluates a training run, an ensemble of runs, or an exported model: Hit@1, PERR, GAP, mAP, loss.

    python eval.py --train_dir=run --eval_data_pattern='data/validate*.tfrecord' --run_once

Results of a run go to TRAIN_DIR/eval (with --use_ema, to TRAIN_DIR/eval_ema): metrics.json, with
one entry per evaluated step, and TensorBoard logs. Results on other videos go to a directory that
has the split in its name, such as TRAIN_DIR/eval_test.
"""

import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import program

import pandas as pd
import tensorflow as tf
from absl import logging

import checkpoints
import files
import record_writer
from evaluation import (
    evaluate,
    evaluation_reader,
    format_summary,
    is_of_same_videos,
    new_writer,
    save_summary,
)
from options import option, same_option
from predictor import PredictorOptions, load_class_names, load_predictor
from run_config import TrainOptions
from segments.config import SegmentConfig
from segments.predictor import load_segment_configs, load_segment_predictor
from utils import InputError, csv_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(PredictorOptions):
    """Options of this program."""

    eval_data_pattern: str = option(
        help="Globs of records with labels, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    run_once: bool = option(
        False,
        "Evaluate once and exit. With only --train_dir, the default is to wait for new checkpoints "
        "until the program is stopped.",
        group="checkpoints",
    )
    all_checkpoints: bool = option(
        False,
        "Evaluate every checkpoint in --train_dir, oldest first, and exit: a learning curve, and "
        "the input of average_checkpoints.py --best.",
        group="checkpoints",
    )
    segment_labels: bool = option(
        False,
        "Also rank all segments of the videos and print mAP@K of their ratings, which the records "
        "must have. Size and context of segments are those of the run.",
        group="segments",
    )
    tensorboard_dir: str | None = same_option(TrainOptions, "tensorboard_dir")
    metrics_json: str | None = option(
        None, "File for the metrics of the last evaluation; replaced if it exists.", group="output"
    )
    per_class_csv: str | None = option(
        None,
        "File for the average precision of every class; replaced if it exists.",
        group="output",
    )
    class_names: str | None = option(
        None,
        "vocabulary.csv for the class names in --per_class_csv. Default: the vocabulary of the "
        "training run or of --exported_model, if it has one.",
        group="output",
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if self.class_names and not self.per_class_csv:
            raise InputError("--class_names adds names to --per_class_csv, which is not given.")
        if self.all_checkpoints and not self.train_dir:
            raise InputError("--train_dir must be given with --all_checkpoints.")
        if self.all_checkpoints and self.checkpoint:
            raise InputError("--all_checkpoints and --checkpoint cannot be combined.")

    @property
    def is_continuous(self) -> bool:
        """Whether to evaluate new checkpoints as they appear, without end."""
        ends = self.run_once or self.checkpoint or self.all_checkpoints
        return bool(self.train_dir) and not ends


def separate_kind(train_dir: str, kind: str, summary: dict[str, Any], paths: Sequence[str]) -> str:
    """Returns the name of the directory for an evaluation, which holds none of other videos.

    So a curve is one of the same videos. It is `kind`, or else has the split in its name, such as
    `eval_test`, and if necessary the numbers of videos and labels.

    Args:
        train_dir: directory of the run.
        kind: name for a run that was not evaluated on other videos.
        summary: numbers from `evaluate`.
        paths: the record files.
    """
    split = re.sub(r"\W", "", record_writer.split_name(os.path.basename(paths[0])))
    names = itertools.accumulate(
        (kind, split, str(summary["num_videos"]), str(summary["num_labels"])), "{}_{}".format
    )
    for name in names:
        history = checkpoints.read_evaluations(checkpoints.metrics_path(train_dir, name))
        if all(is_of_same_videos(entry, summary) for entry in history):
            break
    if name != kind:
        logging.info(
            "this evaluation is saved in %s, because %s has evaluations of other videos",
            os.path.join(train_dir, name),
            os.path.join(train_dir, kind),
        )
    return name


def check_can_save(train_dir: str, kind: str) -> None:
    """Rejects a train directory in which no metrics can be saved.

    Raises:
        InputError: naming the file, and the flag that saves nothing there.
    """
    files.check_no_link(os.path.join(train_dir, kind))
    # Without a config, the directory has no run, which is an error of its own.
    if checkpoints.has_run(train_dir):
        try:
            files.check_writable(checkpoints.metrics_path(train_dir, kind))
        except InputError as error:
            raise InputError(
                f"{error}. To evaluate a run without saving anything there, give --train_dirs "
                "instead of --train_dir."
            ) from error


def write_per_class(
    per_class: pd.DataFrame, path: str, class_names: dict[int, str] | None = None
) -> None:
    """Writes the average precision of the classes as CSV, in the order of the classes.

    Args:
        per_class: table from `evaluation.evaluate`.
        path: file to write.
        class_names: names by class, or None.
    """
    columns = ["class", "ap", "positives"]
    if class_names is not None:
        columns.insert(1, "name")
    rows: Any = per_class.itertuples()
    with files.atomic_write(path) as file:
        file.write(csv_line(columns))
        for row in rows:
            cells = [str(row.Index), "" if math.isnan(row.ap) else str(row.ap), str(row.positives)]
            if class_names is not None:
                cells.insert(1, class_names.get(row.Index, ""))
            file.write(csv_line(cells))


def wait_for_run(train_dir: str) -> None:
    """Returns when training has written the config of its run."""
    if not checkpoints.has_run(train_dir):
        logging.info("waiting for training to begin in %s", train_dir)
    while not checkpoints.has_run(train_dir):
        time.sleep(1.0)


def checkpoints_to_evaluate(options: EvalOptions) -> Iterable[str | None]:
    """Returns the checkpoints to evaluate, as --checkpoint names them; None for the newest."""
    if options.is_continuous:
        return tf.train.checkpoints_iterator(options.train_dir, min_interval_secs=1)
    if options.all_checkpoints:
        (train_dir,) = options.run_dirs
        names = sorted(checkpoints.names(train_dir), key=checkpoints.step_of)
        if not names:
            checkpoints.find(train_dir)  # Raises an error that explains it.
        return [os.path.join(train_dir, name) for name in names]
    return [options.checkpoint]


def main(options: EvalOptions) -> None:
    """Runs the program."""
    outputs = list(filter(None, (options.per_class_csv, options.metrics_json)))
    for path in outputs:
        files.check_writable(path)
    paths = files.expand_patterns(options.eval_data_pattern)
    for path in outputs:
        files.check_not_input(path, filter(None, (*paths, options.class_names)))
    if options.is_continuous:
        wait_for_run(options.run_dirs[0])
    kind = checkpoints.evaluation_kind(options.use_ema)
    if options.train_dir:
        check_can_save(options.train_dir, kind)
        if options.tensorboard_dir:
            files.check_writable(os.path.join(options.tensorboard_dir, kind, "events"))
    configs = None
    if options.segment_labels and options.run_dirs:
        configs, _ = load_segment_configs(options.run_dirs)
    predictor = load_predictor(options, configs)
    segment_config, segment_predictor = None, None
    if options.segment_labels:
        segment_predictor = load_segment_predictor(predictor)
        segment_config = SegmentConfig(
            segment_labels=True, segment_size=segment_predictor.settings.size
        )
    class_names = None
    if options.per_class_csv:
        class_names = load_class_names(predictor, options.class_names)
    writer = None
    for checkpoint in checkpoints_to_evaluate(options):
        try:
            predictor.restore(checkpoint)
        except InputError:
            is_given = checkpoint is None or checkpoint == options.checkpoint
            if is_given or checkpoints.is_there(str(checkpoint)):
                raise
            logging.warning("training removed checkpoint %s before it was evaluated", checkpoint)
            continue
        reader = evaluation_reader(predictor.data, paths, options, segment_config)
        summary, per_class = evaluate(
            predictor,
            reader,
            batch_size=options.batch_size,
            top_k=options.top_k,
            segment_predictor=segment_predictor,
        )
        logging.info("%s | %s", predictor.describe(), format_summary(summary))
        if options.train_dir:
            if writer is None:
                kind = separate_kind(options.train_dir, kind, summary, paths)
                writer = new_writer(options.train_dir, kind, options.tensorboard_dir)
            save_summary(summary, options.train_dir, kind, writer)
        if options.metrics_json:
            files.write_json(options.metrics_json, summary)
        if options.per_class_csv:
            write_per_class(per_class, options.per_class_csv, class_names)


if __name__ == "__main__":
    program.run(main)
