"""Evaluation: the metrics of a model over records."""

import os
import time
from typing import Any

from program import Progress

import keras
import pandas as pd
import tensorflow as tf

import checkpoints
import eval_util
import files
from predictor import ExportedPredictor, Predictor, predict_videos
from readers import RecordReader
from utils import InputError


def evaluate(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    *,
    batch_size: int,
    top_k: int = 20,
    max_videos: int = 0,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Computes the metrics of a model over the records of a reader.

    Args:
        predictor: restored predictor.
        reader: reader of records with labels.
        batch_size: videos per batch.
        top_k: predictions per video that count for GAP and mAP.
        max_videos: number of videos after which to stop; 0 for all.

    Returns:
        `(summary, per_class)`: numbers by name, and a table with the columns `ap` and `positives`,
        average precision and number of videos of each class.

    Raises:
        InputError: if no video has a label, or a prediction is not finite.
    """
    reader.check_labels()
    metrics = eval_util.EvaluationMetrics(predictor.data.num_classes, top_k)
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            wanted = slice(max_videos - metrics.num_videos if max_videos else None)
            predictions = predict_videos(predictor, batch.video_ids, batch.inputs)[wanted]
            labels = batch.labels[wanted]
            loss = keras.ops.convert_to_numpy(predictor.label_loss(labels, predictions))
            metrics.accumulate(predictions, labels, float(loss))
            rate = metrics.num_videos / (time.perf_counter() - start)
            progress.tick(
                reader.bytes_read, f"evaluated {metrics.num_videos} videos, {rate:.0f} videos/s"
            )
            if metrics.num_videos == max_videos:
                break
    seconds = time.perf_counter() - start
    if not metrics.positives.any():
        raise InputError(
            f"none of the {metrics.num_videos} evaluated videos has a label. Evaluate more videos, "
            "or others."
        )
    values = metrics.get()
    summary = {
        "step": max(predictor.steps),
        "hit_at_one": values["avg_hit_at_one"],
        "perr": values["avg_perr"],
        "gap": values["gap"],
        "map": values["map"],
        "loss": values["avg_loss"],
        "class_prior_gap": eval_util.class_prior_gap(metrics.positives, metrics.num_videos, top_k),
        "num_videos": metrics.num_videos,
        "videos_per_second": metrics.num_videos / seconds,
        "num_skipped": reader.corrupt_records.count,
        "top_k": top_k,
    }
    return summary, pd.DataFrame({"ap": values["aps"], "positives": metrics.positives})


def format_summary(summary: dict[str, Any]) -> str:
    """Formats a summary from `evaluate` as one line."""
    return (
        "GAP@{top_k} {gap:.4f} | mAP {map:.4f} | Hit@1 {hit_at_one:.4f} | "
        "PERR {perr:.4f} | loss {loss:.3f} | {num_videos} videos | "
        "GAP of the class prior {class_prior_gap:.4f}"
    ).format(**summary)


# --- Saving ---------------------------------------------------------------------------------------


def new_writer(
    train_dir: str, kind: str, tensorboard_dir: str | None = None
) -> tf.summary.SummaryWriter:
    """Returns a writer of TensorBoard logs for `save_summary`, which creates a new file.

    Args:
        train_dir: directory of the run.
        kind: name of the subdirectory for evaluations, from `checkpoints.evaluation_kind`.
        tensorboard_dir: directory for TensorBoard logs instead of `train_dir`.
    """
    return tf.summary.create_file_writer(os.path.join(tensorboard_dir or train_dir, kind))


def save_summary(
    summary: dict[str, Any], train_dir: str, kind: str, writer: tf.summary.SummaryWriter
) -> None:
    """Saves a summary to metrics.json, replacing that of the same step, and to TensorBoard.

    The curves have the names of those of training, so that both share a chart.

    Args:
        summary: numbers from `evaluate`.
        train_dir: directory of the run.
        kind: name of the subdirectory for evaluations, from `checkpoints.evaluation_kind`.
        writer: writer from `new_writer`.
    """
    path = checkpoints.metrics_path(train_dir, kind)
    # Several evaluations of one run may end at the same time.
    with files.lock(f"{path}.lock", wait=True):
        history = checkpoints.read_evaluations(path)
        history = [entry for entry in history if entry["step"] != summary["step"]]
        files.write_json(path, sorted([*history, summary], key=lambda entry: entry["step"]))
    with writer.as_default():
        for name, tag in eval_util.METRICS.items():
            tf.summary.scalar(tag, summary[name], summary["step"])
    writer.flush()
