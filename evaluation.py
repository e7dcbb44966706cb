"""Metrics of whatever predicts, over the records of a reader."""

import time

import keras
import pandas as pd

import eval_util
import losses
import predictor as predictors
from progress import Progress
from utils import InputError


def new_metrics(predictor, top_k):
    """`eval_util.EvaluationMetrics` for the classes of a predictor."""
    return eval_util.EvaluationMetrics(predictor.data.num_classes, top_k)


def evaluate(predictor, reader, *, batch_size, top_k=20):
    """Metrics of a model over all records of a reader.

    Args:
        predictor: `Predictor`, restored, or `ExportedPredictor`.
        reader: `readers.RecordReader`.
        batch_size: int. Videos per batch.
        top_k: int. Predictions per video that count for GAP and mAP.

    Returns:
        `(summary, per_class)`: a dict of numbers by name, and a `pandas.DataFrame` with columns
        `ap` and `positives`, average precision and number of videos of each class.

    Raises:
        InputError: if no video has a label, or a prediction is not finite.
    """
    metrics = new_metrics(predictor, top_k)
    label_loss = losses.get_loss(predictor.label_loss)
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            predictions = predictors.predict_videos(predictor, batch.video_ids, batch.inputs)
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
        "num_skipped": reader.damage.count,
        "top_k": top_k,
    }
    return summary, pd.DataFrame({"ap": values["aps"], "positives": metrics.positives})


def describe(summary):
    """One line that tells a summary."""
    return (
        "GAP@{top_k} {gap:.4f} | mAP {map:.4f} | Hit@1 {hit_at_one:.4f} | "
        "PERR {perr:.4f} | loss {loss:.3f} | {num_videos} videos | "
        "GAP of the class prior {class_prior_gap:.4f}"
    ).format(**summary)
