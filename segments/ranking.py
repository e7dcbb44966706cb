"""Ranked lists of segments per class, and their metric.

S is the number of segments, C the classes.
"""

from collections.abc import Iterable, Iterator

import numpy as np

import eval_util

# Entries of a class in a submission, at most.
MAX_PREDICTIONS = 100_000
UNRATED = -1
# Classes whose lists are cut at the same time.
_CLASSES_PER_BLOCK = 64


class RankedSegments:
    """The best segments of every class, in constant memory.

    Ties go to the segment that was added first.

    Args:
        num_classes: number of classes, C.
        max_segments: segments of a class to keep, K.
        dtype: integer type of the values that are kept with the scores.
    """

    def __init__(
        self, num_classes: int, max_segments: int = MAX_PREDICTIONS, dtype: type = np.int32
    ):
        self._max_segments = max_segments
        # Columns beyond the K best of a class, so that lists are cut rarely.
        self._max_columns = max_segments + max(max_segments // 4, 1024)
        self._scores = np.empty((num_classes, 0), np.float32)
        self._values: np.ndarray = np.empty((num_classes, 0), dtype)
        self._num_columns = 0

    def add(self, scores: np.ndarray, values: np.ndarray) -> None:
        """Adds segments.

        Args:
            scores: finite scores `[S, C]`.
            values: integers that `lists` returns, `[S]` or `[S, C]`.
        """
        values = np.broadcast_to(values if values.ndim > 1 else values[:, None], scores.shape)
        step = self._max_columns - self._max_segments
        for start in range(0, len(scores), step):
            self._add(scores[start : start + step].T, values[start : start + step].T)

    def restore(self, lists: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Adds the segments in `lists` of another ranking of the same classes; call it first."""
        for row, (values, scores) in enumerate(lists):
            if row == 0:
                self._grow(min(self._max_columns, 2 * len(scores)))
                self._num_columns = len(scores)
            self._scores[row, : self._num_columns] = scores
            self._values[row, : self._num_columns] = values

    def lists(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields for every class the values and the scores of its best segments, best first."""
        if not self._num_columns:
            yield from zip(self._values, self._scores, strict=True)
            return
        for scores, values in self._blocks():
            columns, best = eval_util.top_k_predictions(scores, self._max_segments)
            yield from zip(np.take_along_axis(values, columns, axis=1), best, strict=True)

    def _add(self, scores, values):
        end = self._num_columns + scores.shape[1]
        if end > self._max_columns:
            self._cut()
            end = self._num_columns + scores.shape[1]
        if end > self._scores.shape[1]:
            self._grow(min(self._max_columns, max(end, 2 * self._scores.shape[1])))
        self._scores[:, self._num_columns : end] = scores
        self._values[:, self._num_columns : end] = values
        self._num_columns = end

    def _grow(self, num_columns):
        for name in ("_scores", "_values"):
            old = getattr(self, name)
            new = np.empty((len(old), num_columns), old.dtype)
            new[:, : self._num_columns] = old[:, : self._num_columns]
            setattr(self, name, new)

    def _cut(self):
        """Keeps the best segments of each class, in the order in which they were added."""
        for scores, values in self._blocks():
            columns = np.sort(eval_util.top_k_predictions(scores, self._max_segments)[0], axis=1)
            scores[:, : self._max_segments] = np.take_along_axis(scores, columns, axis=1)
            values[:, : self._max_segments] = np.take_along_axis(values, columns, axis=1)
        self._num_columns = self._max_segments

    def _blocks(self):
        """Yields the used columns of a few classes at a time, as views."""
        for start in range(0, len(self._scores), _CLASSES_PER_BLOCK):
            rows = slice(start, start + _CLASSES_PER_BLOCK)
            yield self._scores[rows, : self._num_columns], self._values[rows, : self._num_columns]


class SegmentMetrics:
    """Mean average precision of segments, mAP@K, accumulated batch by batch.

    For every class, all segments form a list, best score first, which is cut to K entries. Unrated
    entries are then removed. The average precision of the class is the sum of the precisions at
    the entries rated 1, divided by the number of all segments rated 1, listed or not. mAP@K is the
    mean over the classes with a segment rated 1.

    Args:
        num_classes: number of classes, C.
        max_segments: entries of a list, K.
    """

    def __init__(self, num_classes: int, max_segments: int = MAX_PREDICTIONS):
        self._ranked = RankedSegments(num_classes, max_segments, np.int8)
        self._positives = np.zeros(num_classes, np.int64)

    def accumulate(self, predictions: np.ndarray, ratings: np.ndarray) -> None:
        """Adds segments.

        Args:
            predictions: finite scores `[S, C]`.
            ratings: 1 or 0, or `UNRATED`, `[S, C]`.
        """
        self._ranked.add(predictions, ratings)
        self._positives += np.count_nonzero(ratings == 1, axis=0)

    def average_precisions(self) -> np.ndarray:
        """Returns the average precision of each class, `[C]`; NaN without a segment rated 1."""
        return np.array(
            [
                eval_util.average_precision(ratings[ratings != UNRATED], count) if count else np.nan
                for (ratings, _), count in zip(self._ranked.lists(), self._positives, strict=True)
            ]
        )
