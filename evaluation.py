"""Evaluation: the metrics of a model over records."""

import time
from typing import Any

from program import Progress

import keras
import pandas as pd

import eval_util
import losses
from predictor import ExportedPredictor, Predictor, predict_videos
from readers import RecordReader


def evaluate(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    *,
    batch_size: int,
    top_k: int = 20,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Computes the metrics of a model over all records of a reader.

    Args:
        predictor: restored predictor.
        reader: reader of records with labels.
        batch_size: videos per batch.
        top_k: predictions per video that count for GAP and mAP.

    Returns:
        `(summary, per_class)`: numbers by name, and a table with the columns `ap` and `positives`,
        average precision and number of videos of each class.

    Raises:
        InputError: if no video has a label, or a prediction is not finite.
    """
    reader.check_labels()
    metrics = eval_util.EvaluationMetrics(predictor.data.num_classes, top_k)
    label_loss = losses.get_loss(predictor.label_loss)
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            predictions = predict_videos(predictor, batch.video_ids, batch.inputs)
            loss = keras.ops.convert_to_numpy(label_loss(batch.labels, predictions))
            metrics.accumulate(predictions, batch.labels, float(loss))
            rate = metrics.num_videos / (time.perf_counter() - start)
            progress.tick(
                reader.bytes_read, f"evaluated {metrics.num_videos} videos, {rate:.0f} videos/s"
            )
    seconds = time.perf_counter() - start
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
