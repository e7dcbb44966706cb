"""Writes data sets in the YouTube-8M record format: file names, serialized videos."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from options import arguments
from segments.config import SEGMENT_SIZE
from segments.ratings import ENDS, LABELS, SCORES, STARTS, Ratings


def record_name(split: str, number: int) -> str:
    """Returns the name of a record file, such as `train00000.tfrecord`."""
    return f"{split}{number:05d}.tfrecord"


def split_name(record_name: str) -> str:
    """Returns the split of a record file, whatever its ending."""
    return re.sub(r"\d+\.\w+$", "", record_name)


def command(program: str, values: Mapping[str, Any], omit: Collection[str]) -> str:
    """Returns a command with a flag for each value, except for the names in `omit` and None."""
    given = {name: value for name, value in values.items() if name not in omit}
    return shlex.join(["python", program, *arguments(given)])


def serialize_frames(
    video_id: str,
    labels: Iterable[int],
    features: Mapping[str, np.ndarray],
    ratings: Ratings | None = None,
) -> bytes:
    """Returns a serialized `SequenceExample` with one byte string per frame and feature.

    Args:
        video_id: id of the video.
        labels: class numbers.
        features: values `[T, D]` by name, of the type to store, little-endian.
        ratings: ratings of segments, or None.
    """
    example = tf.train.SequenceExample()
    set_context(example.context, video_id, labels)
    if ratings is not None:
        _set_ratings(example.context, ratings)
    for name, frames in features.items():
        stored = example.feature_lists.feature_list[name].feature
        for frame in frames:
            stored.add().bytes_list.value.append(frame.tobytes())
    return example.SerializeToString(deterministic=True)


def set_context(features: Any, video_id: str, labels: Iterable[int]) -> None:
    """Sets id and labels in the `Features` of a record."""
    features.feature["id"].bytes_list.value.append(video_id.encode())
    features.feature["labels"].int64_list.value.extend(labels)


def _set_ratings(features, ratings):
    values = {
        LABELS: ratings.classes,
        STARTS: ratings.starts,
        ENDS: ratings.starts + SEGMENT_SIZE,
    }
    for name, numbers in values.items():
        features.feature[name].int64_list.value.extend(numbers)
    features.feature[SCORES].float_list.value.extend(ratings.scores)
