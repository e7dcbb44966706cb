"""Evaluates a training run, several at once, or an exported model: Hit@1, PERR, GAP, mAP and loss.

    python eval.py --train_dir=run --eval_data_pattern='data/validate*.tfrecord' --run_once

Results of a run go to TRAIN_DIR/eval (with --use_ema, to TRAIN_DIR/eval_ema): metrics.json, with
one entry per evaluated step, and TensorBoard logs.
"""

import os
import time

import pandas as pd
import tensorflow as tf
from absl import flags, logging

import checkpoints
import evaluation
import files
import predictor as predictors
import program
from run_config import FILE_NAME
from utils import InputError


def save_summary(summary, train_dir, kind, tensorboard_dir=None):
    """Adds a summary to metrics.json, in place of one of the same step, and to TensorBoard.

    Args:
        summary: dict as of `evaluation.evaluate`.
        train_dir: str. Directory of the run.
        kind: str. Name of the directory for it there.
        tensorboard_dir: str. Where TensorBoard's logs go in place of `train_dir`.
    """
    path = os.path.join(train_dir, kind, "metrics.json")
    history = files.read_json(path) if files.gfile.exists(path) else []
    history = [entry for entry in history if entry["step"] != summary["step"]]
    files.write_json(path, sorted([*history, summary], key=lambda entry: entry["step"]))
    log_dir = os.path.join(tensorboard_dir or train_dir, kind)
    with tf.summary.create_file_writer(log_dir).as_default():
        for name in ("hit_at_one", "perr", "gap", "map", "loss"):
            tf.summary.scalar(name, summary[name], summary["step"])


def write_per_class(per_class, path, class_names=None):
    """Writes the average precision of the classes as CSV, best first.

    Args:
        per_class: `pandas.DataFrame` as of `evaluation.evaluate`.
        path: str. File to write.
        class_names: dict from class to name, or None.
    """
    table = per_class.rename_axis("class")
    if class_names is not None:
        table.insert(0, "name", pd.Series(class_names).reindex(table.index))
    with files.atomic_write(path) as file:
        table.sort_values("ap", ascending=False, na_position="last", kind="stable").to_csv(file)


def read_class_names(path):
    """Names by class from a vocabulary.csv of YouTube-8M, which has columns Index and Name.

    Raises:
        InputError: if it cannot be read or lacks the columns.
    """
    try:
        with files.open_binary(path) as file:
            table = pd.read_csv(file)
    except (OSError, ValueError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot read the class names of {path}: {error}") from error
    if not {"Index", "Name"} <= set(table.columns):
        raise InputError(
            f"{path} must have the columns Index and Name. It has: {', '.join(table.columns)}"
        )
    return dict(zip(table["Index"], table["Name"], strict=True))


def define_flags(flag_values):
    """Defines the flags of this program."""
    predictors.define_flags(flag_values)
    program.define_flags(flag_values, "tensorboard_dir")
    own = {"flag_values": flag_values}
    flags.DEFINE_string(
        "eval_data_pattern", None, "Globs of records with labels, comma-separated; quote.", **own
    )
    flags.DEFINE_boolean(
        "run_once",
        False,
        "Evaluates the newest checkpoint and ends. Without it, the program waits for new ones of "
        "--train_dir until it is stopped.",
        **own,
    )
    flags.DEFINE_boolean(
        "all_checkpoints",
        False,
        "Evaluates every checkpoint that --train_dir still has, oldest first, and ends: a learning "
        "curve, and what average_checkpoints.py --best chooses from.",
        **own,
    )
    flags.DEFINE_string("metrics_json", None, "File for the metrics of the last evaluation.", **own)
    flags.DEFINE_string(
        "per_class_csv", None, "File for the average precision of every class.", **own
    )
    flags.DEFINE_string(
        "class_names",
        None,
        "The dataset's vocabulary.csv; adds names to --per_class_csv.",
        **own,
    )


def wait_for_run(train_dir):
    """Returns when training has written the config of its run."""
    path = os.path.join(train_dir, FILE_NAME)
    if not files.gfile.exists(path):
        logging.info("waiting for training to begin in %s", train_dir)
    while not files.gfile.exists(path):
        time.sleep(1.0)


def goes_on(flag_values):
    """Whether new checkpoints are evaluated as they come, without end."""
    ends = flag_values.run_once or flag_values.checkpoint or flag_values.all_checkpoints
    return bool(flag_values.train_dir) and not ends


def checkpoints_to_evaluate(flag_values):
    """Paths or steps of checkpoints: the one asked for, all there are, or new ones as they come."""
    if flag_values.all_checkpoints:
        steps = map(checkpoints.step_of, checkpoints.names(flag_values.train_dir))
        return [str(step) for step in sorted(steps)]
    if goes_on(flag_values):
        return tf.train.checkpoints_iterator(flag_values.train_dir, min_interval_secs=1)
    return [flag_values.checkpoint]


def main(flag_values):
    """Runs the program."""
    predictors.use_environment(flag_values)
    program.use_environment(flag_values, tensorboard_dir="AIP_TENSORBOARD_LOG_DIR")
    program.require_flags(flag_values, "eval_data_pattern")
    if flag_values.class_names and not flag_values.per_class_csv:
        raise InputError("--class_names adds names to --per_class_csv, which is not given.")
    if flag_values.all_checkpoints:
        program.require_flags(flag_values, "train_dir")
        if flag_values.checkpoint:
            raise InputError("--all_checkpoints and --checkpoint exclude each other.")
    for path in filter(None, (flag_values.per_class_csv, flag_values.metrics_json)):
        files.check_writable(path)
    class_names = read_class_names(flag_values.class_names) if flag_values.class_names else None
    if goes_on(flag_values):
        wait_for_run(flag_values.train_dir)
    predictor = predictors.from_flags(flag_values)
    for checkpoint in checkpoints_to_evaluate(flag_values):
        predictor.restore(checkpoint)
        reader = predictors.reader_from_flags(flag_values, predictor, flag_values.eval_data_pattern)
        summary, per_class = evaluation.evaluate(
            predictor, reader, batch_size=flag_values.batch_size, top_k=flag_values.top_k
        )
        logging.info("%s | %s", predictor.describe(), evaluation.describe(summary))
        if flag_values.train_dir:
            kind = "eval_ema" if flag_values.use_ema else "eval"
            save_summary(summary, flag_values.train_dir, kind, flag_values.tensorboard_dir)
        if flag_values.metrics_json:
            files.write_json(flag_values.metrics_json, summary)
        if flag_values.per_class_csv:
            write_per_class(per_class, flag_values.per_class_csv, class_names)


if __name__ == "__main__":
    program.run(main, define_flags)
