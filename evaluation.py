"""Evaluation: the metrics of a model over records."""

import functools
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

from program import Progress

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import checkpoints
import eval_util
import files
from predictor import ExportedPredictor, Predictor, predict_videos
from readers import Batch, RecordReader
from run_config import DataConfig, ReadOptions
from segments.config import SegmentConfig
from segments.predictor import ExportedSegmentPredictor, SegmentPredictor, predict_segments
from segments.ranking import MAX_PREDICTIONS, UNRATED, SegmentMetrics
from segments.reader import RatedVideoReader
from utils import InputError


def evaluation_reader(
    data: DataConfig,
    paths: Sequence[str],
    options: ReadOptions,
    segment_config: SegmentConfig | None = None,
) -> RecordReader:
    """Returns a reader of records to evaluate on; see `DataConfig.reader`.

    Args:
        data: the data that the model takes.
        paths: record files.
        options: how to read them.
        segment_config: segments of which to read the ratings, too; None for none.
    """
    frame_reader = None
    if segment_config is not None:
        frame_reader = functools.partial(RatedVideoReader, settings=segment_config)
    return data.reader(paths, options, frame_reader=frame_reader)


def evaluate(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    *,
    batch_size: int,
    top_k: int = 20,
    max_videos: int = 0,
    segment_predictor: SegmentPredictor | ExportedSegmentPredictor | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Computes the metrics of a model over the records of a reader.

    Args:
        predictor: restored predictor.
        reader: reader of records with labels.
        batch_size: videos per batch.
        top_k: predictions per video that count for GAP and mAP.
        max_videos: number of videos after which to stop; 0 for all.
        segment_predictor: predictor of the segments of the videos, for `segment_map`; the reader
            must then read their ratings.

    Returns:
        `(summary, per_class)`: numbers by name, and a table with the columns `ap` and `positives`,
        average precision and number of videos of each class.

    Raises:
        InputError: if no video has a label, none a segment rated 1, or a prediction is not finite.
    """
    reader.check_labels()
    ranking = segment_predictor and SegmentRanking(segment_predictor)
    metrics = eval_util.EvaluationMetrics(predictor.data.num_classes, top_k)
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            wanted = slice(max_videos - metrics.num_videos if max_videos else None)
            predictions = predict_videos(predictor, batch.video_ids, batch.inputs)[wanted]
            labels = batch.labels[wanted]
            loss = keras.ops.convert_to_numpy(predictor.label_loss(labels, predictions))
            metrics.accumulate(predictions, labels, float(loss))
            if ranking:
                ranking.accumulate(batch, len(predictions))
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
        "num_labels": int(metrics.positives.sum()),
        "videos_per_second": metrics.num_videos / seconds,
        "num_skipped": reader.corrupt_records.count,
        "top_k": top_k,
        **(ranking.summary() if ranking else {}),
    }
    return summary, pd.DataFrame({"ap": values["aps"], "positives": metrics.positives})


def format_summary(summary: dict[str, Any]) -> str:
    """Formats a summary from `evaluate` as one line."""
    text = (
        "GAP@{top_k} {gap:.4f} | mAP {map:.4f} | Hit@1 {hit_at_one:.4f} | "
        "PERR {perr:.4f} | loss {loss:.3f} | {num_videos} videos | "
        "GAP of the class prior {class_prior_gap:.4f}"
    )
    if "num_segments" in summary:
        text += " | segment mAP@{segment_top_n} {segment_map:.4f} | {num_segments} segments"
    return text.format(**summary)


# --- Segments -------------------------------------------------------------------------------------


class SegmentRanking:
    """mAP@K of the segments of videos, accumulated batch by batch.

    Segments with fewer frames than others are left out: nobody rates them.

    Args:
        predictor: predictor of the segments.
    """

    def __init__(self, predictor: SegmentPredictor | ExportedSegmentPredictor):
        self._predictor = predictor
        self._metrics = SegmentMetrics(predictor.data.num_classes)
        self._num_segments = self._num_rated = 0

    def accumulate(self, batch: Batch, num_videos: int) -> None:
        """Adds all segments of the first videos of a batch with `ratings`.

        Raises:
            InputError: if a prediction is not finite.
        """
        found = predict_segments(self._predictor, batch.video_ids, batch.inputs)
        pairs = zip(found, batch.ratings or (), strict=True)
        for (num_frames, predictions), ratings in itertools.islice(pairs, num_videos):
            predictions = predictions[: num_frames // self._predictor.settings.size]
            scores = np.full(predictions.shape, UNRATED, np.int8)
            if ratings is not None:
                numbers = ratings.starts // self._predictor.settings.size
                scores[numbers, ratings.classes] = ratings.scores
            self._num_segments += len(scores)
            self._num_rated += np.count_nonzero(scores != UNRATED)
            self._metrics.accumulate(predictions, scores)

    def summary(self) -> dict[str, Any]:
        """Returns mAP@K as `segment_map`, and what it was computed from.

        Raises:
            InputError: if no segment is rated 1.
        """
        average_precisions = self._metrics.average_precisions()
        if np.isnan(average_precisions).all():
            raise InputError(
                f"none of the {self._num_segments} evaluated segments is rated 1. Evaluate more "
                "videos, or others."
            )
        return {
            "segment_map": float(np.nanmean(average_precisions)),
            "segment_top_n": MAX_PREDICTIONS,
            "num_segments": self._num_segments,
            "num_rated_pairs": int(self._num_rated),
        }


# --- Saving ---------------------------------------------------------------------------------------


def is_of_same_videos(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether two summaries are of the same videos, by the numbers of videos and labels.

    Summaries of earlier versions lack a number, which then counts as equal.
    """
    names = [name for name in ("num_videos", "num_labels") if name in entry and name in other]
    return all(entry[name] == other[name] for name in names)


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

    A number that only the replaced summary has, such as `segment_map`, is kept if both summaries
    are of the same videos. The curves have the names of those of training, so that both share a
    chart.

    Args:
        summary: numbers from `evaluate`.
        train_dir: directory of the run.
        kind: name of the subdirectory for evaluations, from `checkpoints.evaluation_kind`.
        writer: writer from `new_writer`.
    """
    path = checkpoints.metrics_path(train_dir, kind)
    # Several evaluations of one run may end at the same time.
    with files.lock(f"{path}.lock", wait=True):
        history = {entry["step"]: entry for entry in checkpoints.read_evaluations(path)}
        replaced = history.get(summary["step"], {})
        kept = replaced if is_of_same_videos(replaced, summary) else {}
        history[summary["step"]] = {**kept, **summary}
        files.write_json(path, [history[step] for step in sorted(history)])
    with writer.as_default():
        for name, tag in eval_util.METRICS.items():
            if name in summary:
                tf.summary.scalar(tag, summary[name], summary["step"])
    writer.flush()
