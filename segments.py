"""Rated segments of videos: ratings in records, ranked lists per class, and their metric.

A segment is a few frames of a video, five in YouTube-8M. People rated for pairs of a segment and a
class whether the class occurs there. All other pairs are unrated, which does not mean absent.

S is the number of segments, C the classes.
"""

import dataclasses
import io
from collections.abc import Iterator, Mapping

import numpy as np
from tensorflow.train import Feature

import eval_util
import files
import records
from segment_config import SEGMENT_SIZE
from utils import InputError, shortened

# Entries of a class in a submission, at most.
MAX_PREDICTIONS = 100_000
LABELS, STARTS, ENDS, SCORES = FEATURES = (
    "segment_labels",
    "segment_start_times",
    "segment_end_times",
    "segment_scores",
)
UNRATED = -1
# Classes whose lists are cut at the same time.
_CLASSES_PER_BLOCK = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Ratings:
    """Rated pairs of a segment and a class in one video, each once, in order of the segments.

    Attributes:
        starts: first frame of each segment, int64 `[n]`.
        classes: rated class, int64 `[n]`.
        scores: 1 if the class occurs in the segment, otherwise 0, int64 `[n]`.
    """

    starts: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def by_segment(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields the start, the rated classes and their scores of every segment."""
        for start in np.unique(self.starts).tolist():
            chosen = self.starts == start
            yield start, self.classes[chosen], self.scores[chosen]


def features_in(context: Mapping[str, records.Serialized]) -> list[str]:
    """Returns the names of the features in the context of a record that hold ratings, sorted."""
    return sorted(context.keys() & FEATURES)


def parse_ratings(
    context: Mapping[str, records.Serialized], segment_size: int = SEGMENT_SIZE
) -> Ratings | None:
    """Returns the ratings in the context of a record, or None if it has none.

    A pair that is rated several times counts once, as present if any of its ratings says so.

    Args:
        context: serialized features of the context by name.
        segment_size: frames of a segment. Starts must be multiples of it.

    Raises:
        ValueError: if the ratings are not usable; says why.
    """
    if not features_in(context):
        return None
    values = {name: _values(context, name) for name in FEATURES}
    counts = {name: len(column) for name, column in values.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"its ratings of segments differ in number: {listed}")
    starts, ends, scores = values[STARTS], values[ENDS], values[SCORES]
    lengths, size = ends - starts, segment_size
    _check(starts >= 0, starts, "a segment that starts at frame {}")
    _check(starts % size == 0, starts, f"a segment that starts at {{}}, no multiple of {size}")
    _check(lengths == size, lengths, f"a segment of {{}} frames instead of {size}")
    _check(np.isin(scores, (0, 1)), scores, "a segment with score {}, not 0 or 1")
    pairs = np.stack([starts, values[LABELS], scores]).astype(np.int64)
    # The last rating of each pair is its highest.
    pairs = pairs[:, np.lexsort(pairs[::-1])]
    is_last = np.ones(pairs.shape[1], bool)
    is_last[:-1] = (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)
    return Ratings(*pairs[:, is_last])


def _values(context, name):
    feature = Feature.FromString(context.get(name, b""))
    kind = feature.WhichOneof("kind")
    if kind is None:
        return np.zeros(0, np.int64)
    if kind == "bytes_list" or (kind == "float_list" and name != SCORES):
        raise ValueError(f"{name} are not {'numbers' if name == SCORES else 'integers'}")
    return np.array(getattr(feature, kind).value)


def _check(is_right, values, fault):
    if not is_right.all():
        raise ValueError("it has " + fault.format(values[~is_right][0]))


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

    def lists(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields for every class the values and the scores of its best segments, best first."""
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


# --- Submissions ----------------------------------------------------------------------------------

HEADER = "Class,Segments"


def read_submission(
    path: str, max_segments: int = MAX_PREDICTIONS
) -> Iterator[tuple[int, list[str]]]:
    """Yields the classes of a file of predictions and the names of their segments, best first.

    A line has a class, a comma and names of segments, separated by spaces. The header
    `Class,Segments` may be missing. A segment that a class lists again counts once.

    Args:
        path: file to read.
        max_segments: entries of a class to read, K.

    Raises:
        InputError: naming the line, if it is of another format, or its class occurred before.
    """
    seen = set()
    with io.TextIOWrapper(files.open_for_library(path), "utf-8-sig", "backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or (number == 1 and line == HEADER):
                continue
            label, comma, names = line.partition(",")
            if not comma or not label.isdecimal():
                raise InputError(
                    f"line {number} of {path} must be a class number, a comma and segments such as "
                    f"VIDEO_ID:15, separated by spaces. Received: {shortened(line)}"
                )
            if int(label) in seen:
                raise InputError(
                    f"line {number} of {path} is the second one of class {label}. Put all segments "
                    "of a class into one line."
                )
            seen.add(int(label))
            yield int(label), list(dict.fromkeys(names.split()[:max_segments]))
