"""Ratings of segments in records.

A segment is a few frames of a video, five in YouTube-8M. People rated for pairs of a segment and a
class whether the class occurs there. All other pairs are unrated, which does not mean absent.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from tensorflow.train import Feature

import records
from segments.config import SEGMENT_SIZE

LABELS, STARTS, ENDS, SCORES = FEATURES = (
    "segment_labels",
    "segment_start_times",
    "segment_end_times",
    "segment_scores",
)


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
