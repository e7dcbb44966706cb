"""Statistics of the content of record files: features, frames, labels, damaged records.

Memory does not grow with the number of records, except by 8 bytes per video id, but with the number
of distinct sizes and labels.
"""

import array
import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.train import Feature, FeatureList

import records
from readers import stored_float_type
from segments.ratings import FEATURES, parse_ratings

_KINDS = {"bytes_list": "strings", "float_list": "floats", "int64_list": "integers"}
_LABEL_NAME = re.compile("label|class|target|categor|annotation|tag", re.IGNORECASE)
_RATING_COUNTS = ("segments", "pairs", "rated_1", "faulty_records")
_NUM_EXAMPLES = _NUM_CLASSES_SHOWN = 5
_MAX_LAYOUTS = 100
# Arrays of bytes per feature that show whether they are the bytes of floats.
_SAMPLE_SIZE = 16


class _DamagedRecords(records.CorruptRecordLog):
    """Log of any number of damaged records, which keeps the first few."""

    total = 0

    def add(self, location, reason, remedy=""):
        self.total += 1
        if self.total <= _NUM_EXAMPLES:
            self.skipped[location] = f"{reason}. {remedy}".rstrip(". ")


class FeatureValues:
    """Values of a feature in the records that store it as one kind.

    Attributes:
        records: number of records.
        sizes: number of records by size; None stands for frames that differ in size.
    """

    def __init__(self) -> None:
        self.records = 0
        self.sizes: collections.Counter[int | None] = collections.Counter()
        self._low, self._high, self._total = math.inf, -math.inf, 0.0
        self._count = self._not_finite = 0
        self._sample: list[np.ndarray] = []

    @property
    def common_size(self) -> int | None:
        """The most common size."""
        return self.sizes.most_common(1)[0][0]

    @property
    def float_type(self) -> str | None:
        """The type of floats that bytes of the most common size hold; None if they are bytes."""
        frames = self._frames()
        return stored_float_type(np.concatenate(frames)) if frames else None

    def _frames(self):
        return [values for values in self._sample if values.shape[1] == self.common_size]

    def add(self, size: int | None, values: np.ndarray | None) -> None:
        """Adds the values of a record: numbers of any shape, or None for strings."""
        self.records += 1
        self.sizes[size] += 1
        if values is None or not values.size:
            return
        if values.dtype == np.uint8 and len(self._sample) < _SAMPLE_SIZE:
            self._sample.append(values)
        self._add_numbers(values)

    def _add_numbers(self, values):
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
            self._not_finite += values.size - finite.size
            values = finite
        if values.size:
            self._low = min(self._low, values.min().item())
            self._high = max(self._high, values.max().item())
            self._total += values.sum(dtype=np.uint64 if values.dtype == np.uint8 else float).item()
            self._count += values.size

    def describe(self) -> dict[str, Any]:
        """Returns the statistics as a dict for JSON; bytes of floats are described as floats."""
        float_type, frames = self.float_type, self._frames()
        numbers = self
        if float_type:
            numbers = FeatureValues()
            numbers._add_numbers(np.concatenate(frames).view(float_type))
        known = sorted(size for size in self.sizes if size is not None)
        sizes = {str(size): self.sizes[size] for size in known}
        return {
            "records": self.records,
            "sizes": {**sizes, **({"differ": self.sizes[None]} if None in self.sizes else {})},
            "float_type": float_type,
            "min": numbers._low if numbers._count else None,
            "max": numbers._high if numbers._count else None,
            "mean": numbers._total / numbers._count if numbers._count else None,
            "not_finite": numbers._not_finite / max(numbers._count + numbers._not_finite, 1),
        }


@dataclasses.dataclass
class Layout:
    """Records that training reads alike: they have the same features, of equal kinds and sizes.

    Attributes:
        location: location of the first record.
        payload: the first record.
        is_exact: whether this holds; otherwise they are the rest, after many other layouts.
        count: number of records.
    """

    location: records.RecordLocation
    payload: bytes
    is_exact: bool
    count: int = 0


def _context_values(content):
    """Returns kind, size and values of a serialized `Feature`."""
    if (floats := records.float_values(content)) is not None:
        return "floats", len(floats), floats
    feature = Feature.FromString(content)
    field = feature.WhichOneof("kind")
    if field is None:
        return "no values", 0, None
    values = getattr(feature, field).value
    return _KINDS[field], len(values), np.array(values) if field == "int64_list" else values


def _frame_values(content):
    """Returns kind, size, values and number of frames of a serialized `FeatureList`.

    The size is None if the frames differ.
    """
    frames = records.frame_bytes(content)
    if frames is not None:
        kind = "frames of bytes" if len(frames) else "no frames"
        return kind, frames.shape[1], frames, len(frames)
    features = FeatureList.FromString(content).feature
    found = [_context_values(feature.SerializeToString()) for feature in features]
    kinds, sizes = {kind for kind, _, _ in found}, {size for _, size, _ in found}
    kind = f"frames of {kinds.pop() if len(kinds) == 1 else 'mixed types'}"
    is_number = kind in ("frames of floats", "frames of integers")
    values = np.concatenate([values for _, _, values in found]) if is_number else None
    size = sizes.pop() if is_number and len(sizes) == 1 else None
    return kind, size, values, len(features)


class RecordStatistics:
    """Statistics of records.

    Attributes:
        damaged: log of the damaged records.
        levels: number of records by level, `frame` or `video`.
        features: values by name and kind.
        num_frames: number of videos by number of frames.
        unequal_frames: number of videos whose features have unequal numbers of frames.
    """

    def __init__(self) -> None:
        self.damaged = _DamagedRecords()
        self.levels: collections.Counter[str] = collections.Counter()
        self.features: dict[tuple[str, str], FeatureValues] = collections.defaultdict(FeatureValues)
        self.num_frames: collections.Counter[int] = collections.Counter()
        self.unequal_frames = 0
        self._rated_segments = 0
        self._ratings: collections.Counter[str] = collections.Counter()
        self._rated_classes: set[int] = set()
        self._first_faulty_rating = ""
        self._layouts: dict[tuple | None, Layout] = {}
        self._id_names: collections.Counter[str] = collections.Counter()
        self._id_hashes = array.array("q")
        self._labels: collections.Counter[int] = collections.Counter()
        self._labels_per_video: collections.Counter[int] = collections.Counter()

    @property
    def num_records(self) -> int:
        """Number of intact records."""
        return self.levels.total()

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of the records."""
        return list(self._layouts.values())

    def add(self, location: records.RecordLocation, payload: bytes) -> None:
        """Adds a record."""
        try:
            context, lists = records.parse_record(payload)
            values = {name: _context_values(content) for name, content in context.items()}
            frames = {name: _frame_values(content) for name, content in lists.items()}
        except DecodeError as error:
            self.damaged.add(location, f"it is not a YouTube-8M record: {error}")
            return
        self.levels["frame" if lists else "video"] += 1
        for name, (kind, size, numbers, *_) in (*values.items(), *frames.items()):
            self.features[name, kind].add(size, numbers if kind != "strings" else None)
        self._add_ratings(location, context)
        self._add_id(values)
        labels = self._add_labels(values)
        is_unequal = self._add_num_frames(frames)
        layout = _layout(values, frames, min(labels, default=0) < 0, is_unequal)
        if layout not in self._layouts and len(self._layouts) >= _MAX_LAYOUTS:
            layout = None
        self._layouts.setdefault(layout, Layout(location, payload, layout is not None)).count += 1

    def _add_ratings(self, location, context):
        try:
            ratings = parse_ratings(context)
        except ValueError as error:
            self._ratings["faulty_records"] += 1
            self._first_faulty_rating = self._first_faulty_rating or f"{location}: {error}"
            return
        if ratings is None:
            return
        self._rated_segments += 1
        self._ratings["pairs"] += len(ratings.scores)
        self._ratings["rated_1"] += ratings.scores.sum().item()
        self._ratings["segments"] += len(np.unique(ratings.starts))
        self._rated_classes.update(ratings.classes.tolist())

    def _add_num_frames(self, frames):
        """Returns whether the features have unequal numbers of frames."""
        if frames:
            self.num_frames[max(number for *_, number in frames.values())] += 1
        numbers = {
            number
            for kind, *_, number in frames.values()
            if kind in ("frames of bytes", "frames of floats")
        }
        self.unequal_frames += len(numbers) > 1
        return len(numbers) > 1

    def _add_id(self, values):
        for name in ("id", "video_id"):
            kind, size, strings = values.get(name, (None, 0, None))
            if (kind, size) == ("strings", 1):
                self._id_names[name] += 1
                self._id_hashes.append(hash(strings[0]))
                return

    def _add_labels(self, values):
        """Returns the labels of the video."""
        kind, _, numbers = values.get("labels", (None, 0, None))
        labels = set(numbers.tolist()) if kind == "integers" else set()
        self._labels.update(labels)
        self._labels_per_video[len(labels)] += 1
        return labels

    def describe(self, names: dict[int, str]) -> dict[str, Any]:
        """Returns the statistics as a dict for JSON.

        Args:
            names: names by class.
        """
        ranked = sorted(self._labels, key=lambda label: (-self._labels[label], label))
        classes = [
            {"class": label, "name": names.get(label, ""), "videos": self._labels[label]}
            for label in ranked
        ]
        num_ids = len(self._id_hashes)
        return {
            "records": self.num_records,
            "levels": dict(self.levels),
            "rated_segments": self._rated_segments,
            "ratings": {
                **{name: self._ratings[name] for name in _RATING_COUNTS},
                "classes": len(self._rated_classes),
                "first_fault": self._first_faulty_rating,
            },
            "ids": dict(self._id_names),
            "without_id": self.num_records - num_ids,
            "repeated_ids": num_ids - len(np.unique(np.array(self._id_hashes))),
            "frames_per_video": _spread(self.num_frames),
            "unequal_frames": self.unequal_frames,
            "labels_per_video": _spread(self._labels_per_video),
            "without_labels": self._labels_per_video[0],
            "other_label_names": sorted(
                name
                for name, _ in self.features
                if _LABEL_NAME.search(name) and name not in {"labels", *FEATURES}
            ),
            "num_classes": max([-1, *self._labels, *names]) + 1,
            "classes_with_videos": len(classes),
            "frequent_classes": classes[:_NUM_CLASSES_SHOWN],
            "rare_classes": classes[_NUM_CLASSES_SHOWN:][-_NUM_CLASSES_SHOWN:],
            "features": [
                {"name": name, "kind": kind, **values.describe()}
                for (name, kind), values in sorted(self.features.items())
            ],
            "damaged_records": self.damaged.total,
            "first_damaged": {str(place): why for place, why in self.damaged.skipped.items()},
        }


def _layout(values, frames, has_negative_label, is_unequal):
    """Returns the part of a record's content on which training depends, hashable."""
    layout = [(name, kind, size) for name, (kind, size, *_) in frames.items()]
    for name, (kind, size, numbers) in values.items():
        if kind == "floats" and not frames:
            layout.append((name, kind, size, bool(np.isfinite(numbers).all())))
        else:
            layout.append((name, kind, min(size, 2)))
    return frozenset(layout), has_negative_label, is_unequal


def _spread(counts):
    """Returns minimum, lower median, mean and maximum of counted numbers, or None without any."""
    if not counts:
        return None
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    return {
        "min": numbers[0],
        "median": numbers[np.searchsorted(below, below[-1] / 2)],
        "mean": sum(number * count for number, count in counts.items()) / counts.total(),
        "max": numbers[-1],
    }
