"""Keras metrics for `model.compile`: GAP, Hit@1 and PERR over all videos, batch by batch.

They equal the metrics of `eval_util`, ties included, under TensorFlow and JAX, compiled or not.
B is the batch (videos), C the classes. Labels are `[B, C]`, 1 for the labels of a video and 0
elsewhere; predictions are finite scores `[B, C]`.
"""

from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

import eval_util
import losses
from utils import KERAS_PACKAGE, InputError, check_above


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class GlobalAveragePrecision(keras.metrics.Metric):
    """GAP@top_k over all videos since the last reset; see `eval_util.calculate_gap`.

    `fit` and `evaluate` report it at the end of each epoch. While an epoch runs, the progress bar
    shows the GAP of the newest batch: sorting the scores of all videos takes longer than a step, so
    `result` does that only outside of compiled code.

    Args:
        top_k: int. Predictions of each video in the pool.
        max_videos: int. Videos to keep, `5 * top_k + 4` bytes each. If there are more, GAP is that
            of the newest, and a warning says so once.
        name: str. Name in logs.
        **kwargs: arguments of `keras.metrics.Metric`.
    """

    def __init__(
        self, top_k: int = 20, max_videos: int = 100_000, name: str = "gap", **kwargs: Any
    ):
        super().__init__(name=name, **kwargs)
        check_above(0, top_k=top_k, max_videos=max_videos)
        self.top_k = top_k
        self.max_videos = max_videos
        self._has_warned = False
        # Video n lies in row n % max_videos.
        self._num_videos = self.add_variable((), "zeros", "int32", name="num_videos")
        self._scores = self.add_variable((max_videos, top_k), "zeros", "float32", name="scores")
        self._hits = self.add_variable((max_videos, top_k), "zeros", "bool", name="hits")
        self._label_counts = self.add_variable((max_videos,), "zeros", "int32", name="label_counts")
        self._newest = self.add_variable((), "zeros", "float32", name="newest")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "top_k": self.top_k, "max_videos": self.max_videos}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: labels, `[B, C]`.
            y_pred: scores, `[B, C]`.
            sample_weight: None, because GAP knows no weights.
        """
        if sample_weight is not None:
            raise InputError(
                f"the metric {self.name} takes no sample_weight: GAP counts every video once. Pass "
                "it to compile as one of metrics, not of weighted_metrics."
            )
        _check_one_device(self.name)
        labels, scores = _checked(y_true, y_pred)
        scores, classes = ops.top_k(scores, min(self.top_k, scores.shape[-1]))
        hits = ops.take_along_axis(labels, classes, axis=-1)
        missing = [[0, 0], [0, self.top_k - classes.shape[-1]]]
        scores = ops.pad(scores, missing, constant_values=-np.inf)
        hits = ops.pad(hits, missing, constant_values=False)
        label_counts = ops.sum(ops.cast(labels, "int32"), axis=-1)
        rows = (self._num_videos + ops.arange(ops.shape(scores)[0])) % self.max_videos
        for kept, added in (
            (self._scores, scores),
            (self._hits, hits),
            (self._label_counts, label_counts),
        ):
            kept.assign(ops.scatter_update(kept, rows[:, None], added))
        self._num_videos.assign_add(ops.shape(scores)[0])
        self._newest.assign(_gap(scores, hits, label_counts))

    def result(self) -> Any:
        """Returns the GAP of all videos; inside of compiled code, that of the newest batch."""
        try:
            num_videos = int(np.asarray(self._num_videos.value))
        except (NotImplementedError, TypeError):  # A compiled step has no values yet.
            return ops.convert_to_tensor(self._newest)
        if num_videos > self.max_videos and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "%s is the GAP of the newest %d of %d videos. For all, give max_videos=%d.",
                *(self.name, self.max_videos, num_videos, num_videos),
            )
        # Oldest first, because the older video wins a tie.
        rows = np.arange(max(0, num_videos - self.max_videos), num_videos) % self.max_videos
        scores, hits, label_counts = (
            np.asarray(kept.value)[rows] for kept in (self._scores, self._hits, self._label_counts)
        )
        if np.isnan(scores).any():
            return ops.convert_to_tensor(np.nan, "float32")
        return ops.convert_to_tensor(
            eval_util.pool_gap(scores, hits, int(label_counts.sum())), "float32"
        )


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class HitAtOne(keras.metrics.MeanMetricWrapper):
    """Hit@1, the fraction of the videos whose best class is a label.

    Args:
        name: str. Name in logs.
        **kwargs: arguments of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "hit_at_one", **kwargs: Any):
        super().__init__(hit_at_one, name=name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return keras.metrics.Metric.get_config(self)


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class PrecisionAtEqualRecallRate(keras.metrics.MeanMetricWrapper):
    """PERR, the mean precision of the n best classes of a video that has n labels.

    Only a prediction above 0 can be a hit. The precision of a video without labels is 0. Each step
    sorts the scores of all classes.

    Args:
        name: str. Name in logs.
        **kwargs: arguments of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "perr", **kwargs: Any):
        super().__init__(precision_at_equal_recall_rate, name=name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return keras.metrics.Metric.get_config(self)


def hit_at_one(y_true: Any, y_pred: Any) -> Any:
    """Returns whether the best class of each video is a label, 1 or 0, float32 `[B]`."""
    labels, scores = _checked(y_true, y_pred)
    best = ops.argmax(scores, axis=-1)
    return ops.cast(ops.take_along_axis(labels, best[:, None], axis=-1)[:, 0], "float32")


def precision_at_equal_recall_rate(y_true: Any, y_pred: Any) -> Any:
    """Returns the precision of the n best classes of each video with n labels, float32 `[B]`."""
    labels, scores = _checked(y_true, y_pred)
    scores, classes = ops.top_k(scores, scores.shape[-1])
    label_counts = ops.sum(ops.cast(labels, "int32"), axis=-1, keepdims=True)
    counted = ops.arange(scores.shape[-1])[None] < label_counts
    hits = ops.take_along_axis(labels, classes, axis=-1) & counted & (scores > 0)
    found = ops.sum(ops.cast(hits, "float32"), axis=-1)
    return found / ops.cast(ops.maximum(label_counts[:, 0], 1), "float32")


def _gap(scores, hits, label_counts):
    """Returns the GAP of a batch, from the pooled scores and hits of each video, `[B, k]`."""
    order = ops.argsort(-ops.reshape(scores, [-1]))
    hits = ops.cast(ops.take(ops.reshape(hits, [-1]), order), "float32")
    precisions = ops.cumsum(hits) / ops.cast(ops.arange(1, ops.shape(hits)[0] + 1), "float32")
    num_positives = ops.cast(ops.maximum(ops.sum(label_counts), 1), "float32")
    return ops.sum(hits * precisions) / num_positives


def _check_one_device(name):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # Only here, because the other backends need none.

        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise InputError(
                f"the metric {name} works on one device, because devices do not see each other's "
                "scores. train.py and eval.py compute GAP for training on several devices."
            )


def _checked(y_true, y_pred):
    """Returns labels as bool and scores as float32, both `[B, C]`."""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    losses.check_labels(y_true, y_pred)
    return ops.cast(y_true, "float32") > 0.5, ops.cast(y_pred, "float32")
