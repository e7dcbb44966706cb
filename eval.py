"""Evaluates the checkpoints of a training run: Hit@1, PERR, GAP, mAP and loss.

    python eval.py --train_dir=run --eval_data_pattern='data/validate*.tfrecord' --run_once

Results go to TRAIN_DIR/eval: metrics.json, with one entry per evaluated step, and TensorBoard logs.
"""

import os
import time

import keras
import pandas as pd
import tensorflow as tf
from absl import flags, logging

import eval_util
import files
import losses
import program
from predictor import Predictor
from progress import Progress
from run_config import FILE_NAME
from utils import InputError


def evaluate(predictor, reader, *, batch_size, top_k=20):
    """Metrics of a model over all records of a reader.

    Args:
        predictor: `Predictor`, restored.
        reader: `readers.RecordReader`.
        batch_size: int. Videos per batch.
        top_k: int. Predictions per video that count for GAP and mAP.

    Returns:
        `(summary, metrics)`: a dict of numbers by name and the `eval_util.EvaluationMetrics`.

    Raises:
        InputError: if no video has a label.
    """
    metrics = eval_util.EvaluationMetrics(predictor.config.num_classes, top_k)
    label_loss = losses.get_loss(predictor.config.label_loss)
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            predictions = predictor.predict(batch.inputs)
            loss = keras.ops.convert_to_numpy(label_loss(batch.labels, predictions))
            metrics.accumulate(predictions, batch.labels, float(loss))
            rate = metrics.num_videos / (time.perf_counter() - start)
            progress.tick(
                reader.bytes_read, f"evaluated {metrics.num_videos} videos, {rate:.0f} videos/s"
            )
    if not metrics.positives.any():
        raise InputError(
            f"none of the {metrics.num_videos} videos has a label, so there is nothing to compare "
            "with. Is this a test split? Use inference.py for it."
        )
    values = metrics.get()
    return {
        "step": predictor.step,
        "hit_at_one": values["avg_hit_at_one"],
        "perr": values["avg_perr"],
        "gap": values["gap"],
        "map": values["map"],
        "loss": values["avg_loss"],
        "class_prior_gap": eval_util.class_prior_gap(metrics.positives, metrics.num_videos, top_k),
        "num_videos": metrics.num_videos,
        "num_skipped": reader.damage.count,
        "top_k": top_k,
    }, metrics


def save_summary(summary, eval_dir):
    """Adds a summary to metrics.json, in place of one of the same step, and to TensorBoard."""
    path = os.path.join(eval_dir, "metrics.json")
    history = files.read_json(path) if files.gfile.exists(path) else []
    history = [entry for entry in history if entry["step"] != summary["step"]]
    files.write_json(path, sorted([*history, summary], key=lambda entry: entry["step"]))
    with tf.summary.create_file_writer(eval_dir).as_default():
        for name in ("hit_at_one", "perr", "gap", "map", "loss"):
            tf.summary.scalar(name, summary[name], summary["step"])


def per_class_table(metrics, class_names=None):
    """Average precision and number of videos of each class, a `pandas.DataFrame`, best first.

    Args:
        metrics: `eval_util.EvaluationMetrics`.
        class_names: dict from class to name, or None.
    """
    table = pd.DataFrame({"ap": metrics.get()["aps"], "positives": metrics.positives})
    table.index.name = "class"
    if class_names is not None:
        table.insert(0, "name", pd.Series(class_names).reindex(table.index))
    return table.sort_values("ap", ascending=False, na_position="last", kind="stable")


def read_class_names(path):
    """Names by class from a vocabulary.csv of YouTube-8M, which has columns Index and Name.

    Raises:
        InputError: if it cannot be read or lacks the columns.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the class names of {path}: {error}") from error
    if not {"Index", "Name"} <= set(table.columns):
        raise InputError(
            f"{path} must have the columns Index and Name. It has: {', '.join(table.columns)}"
        )
    return dict(zip(table["Index"], table["Name"], strict=True))


def describe(summary):
    """One line that tells a summary."""
    return (
        "step {step} | GAP@{top_k} {gap:.4f} | mAP {map:.4f} | Hit@1 {hit_at_one:.4f} | "
        "PERR {perr:.4f} | loss {loss:.3f} | {num_videos} videos | "
        "GAP of the class prior {class_prior_gap:.4f}"
    ).format(**summary)


def define_flags(flag_values):
    """Defines the flags of this program."""
    program.define_flags(
        flag_values,
        *("train_dir", "checkpoint", "batch_size", "num_readers", "skip_corrupt_records"),
        *("seed", "top_k"),
    )
    own = {"flag_values": flag_values}
    flags.DEFINE_string(
        "eval_data_pattern", None, "Globs of records with labels, comma-separated; quote.", **own
    )
    flags.DEFINE_boolean(
        "run_once",
        False,
        "Evaluates one checkpoint and ends. Without it, waits for new checkpoints until stopped.",
        **own,
    )
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


def checkpoints_to_evaluate(flag_values):
    """Paths or steps of checkpoints: the one asked for, or new ones as they come."""
    if flag_values.run_once or flag_values.checkpoint:
        return [flag_values.checkpoint]
    return tf.train.checkpoints_iterator(flag_values.train_dir, min_interval_secs=1)


def main(flag_values):
    """Runs the program."""
    program.require_flags(flag_values, "train_dir", "eval_data_pattern")
    program.require_positive(flag_values, "batch_size", "num_readers", "top_k")
    program.require_not_negative(flag_values, "skip_corrupt_records", "seed")
    if flag_values.class_names and not flag_values.per_class_csv:
        raise InputError("--class_names adds names to --per_class_csv, which is not given.")
    if flag_values.per_class_csv:
        files.check_writable(flag_values.per_class_csv)
    if not (flag_values.run_once or flag_values.checkpoint):
        wait_for_run(flag_values.train_dir)
    class_names = read_class_names(flag_values.class_names) if flag_values.class_names else None
    predictor = Predictor(flag_values.train_dir, flag_values.seed)
    for checkpoint in checkpoints_to_evaluate(flag_values):
        predictor.restore(checkpoint)
        reader = predictor.config.reader(
            flag_values.eval_data_pattern,
            num_readers=flag_values.num_readers,
            skip_corrupt_records=flag_values.skip_corrupt_records,
        )
        summary, metrics = evaluate(
            predictor, reader, batch_size=flag_values.batch_size, top_k=flag_values.top_k
        )
        logging.info("%s", describe(summary))
        save_summary(summary, os.path.join(flag_values.train_dir, "eval"))
        if flag_values.per_class_csv:
            with files.atomic_write(flag_values.per_class_csv) as file:
                per_class_table(metrics, class_names).to_csv(file)


if __name__ == "__main__":
    program.run(main, define_flags)
