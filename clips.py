"""Clips: the frame features of one video each, with their checks.

A source of features (`feature_sources`) yields clips as it finds them; `ClipChecker` says which
ones can become records. Needs neither TensorFlow nor Keras.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from utils import InputError, comma_separated


class Clip(NamedTuple):
    """The features of a video.

    Attributes:
        video_id: id of the video.
        features: values `[T, D]` by feature name, uint8 or floats. A clip that was not checked may
            hold arrays of other types and shapes.
        origin: file, and row or member of it, for messages.
        labels: labels that the source itself holds for the video; None for sources without labels.
    """

    video_id: str
    features: dict[str, np.ndarray]
    origin: str
    labels: list | None = None


class ClipError(InputError):
    """A clip that cannot become a record; other clips of its source may be usable."""


class EmptyClipError(ClipError):
    """A clip without frames."""


class FeatureSource:
    """Base of the sources: yields clips in a fixed order.

    A subclass implements `_list` and `_read`.
    """

    def ids(self) -> list[str]:
        """Returns the ids of all videos, in the order of `clips`, without reading features.

        Raises:
            InputError: if an id occurs twice, naming both places, or a file cannot be read.
        """
        found: dict[str, None] = {}
        for video_id, origin in self._list():
            if video_id in found:
                first = next(place for other, place in self._list() if other == video_id)
                raise InputError(
                    f"the id {video_id!r} occurs twice: {first} and {origin}. Each video must have "
                    "its own id; leave one of the two out."
                )
            found[video_id] = None
        return list(found)

    def clips(self, wanted: Collection[str] | None = None) -> Iterator[Clip]:
        """Yields the clips, unchecked; memory holds about one at a time.

        Args:
            wanted: ids of the videos to read; None reads all.

        Raises:
            InputError: if a file cannot be read.
        """
        return self._read(None if wanted is None else frozenset(wanted))

    def _list(self) -> Iterable[tuple[str, str]]:
        """Yields `(video_id, origin)` of each video."""
        raise NotImplementedError

    def _read(self, wanted: frozenset[str] | None) -> Iterator[Clip]:
        """Yields the wanted clips."""
        raise NotImplementedError


class ClipChecker:
    """Checks that clips can become records of one data set.

    Args:
        feature_names: features that each clip must have; None takes those of the first clip.
        sizes: number of values per frame by feature. The first clip decides those not given.

    Attributes:
        sizes: number of values per frame by feature, known after the first clip.
    """

    def __init__(
        self,
        feature_names: Iterable[str] | None = None,
        sizes: Mapping[str, int] | None = None,
    ):
        self.sizes: dict[str, int] = dict(sizes or {})
        self._names = None if feature_names is None else set(feature_names)
        # Shape and origin of the first array of each feature.
        self._first: dict[str, tuple[tuple[int, ...], str]] = {}

    def check(self, clip: Clip) -> None:
        """Checks a clip.

        Raises:
            EmptyClipError: if the clip has no frames.
            ClipError: naming origin and feature, if a feature is missing, is no array `[T, D]` of
                uint8 or floats, differs in its size D from other clips or in its number of frames T
                from other features, or has a value that is not finite in float32.
        """
        self._check_names(clip)
        if not any(values.size for values in clip.features.values()):
            raise EmptyClipError(f"{clip.origin}: the video {clip.video_id!r} has no frames.")
        for name, values in clip.features.items():
            _check_type(f"{clip.origin}: {name}", values)
        _check_num_frames(clip)
        for name, values in clip.features.items():
            self._check_size(clip.origin, name, values.shape)
        for name, values in clip.features.items():
            _check_finite(f"{clip.origin}: {name}", values)
        self._names = self._names or set(clip.features)
        for name, values in clip.features.items():
            self._first.setdefault(name, (values.shape, clip.origin))
            self.sizes.setdefault(name, values.shape[1])

    def _check_names(self, clip):
        if self._names is not None and set(clip.features) != self._names:
            raise ClipError(
                f"{clip.origin}: the features {comma_separated(sorted(self._names))} were "
                f"expected. Received: {comma_separated(clip.features)}. Select features that all "
                "videos have with --feature_names."
            )

    def _check_size(self, origin, name, shape):
        expected = self.sizes.get(name, shape[1])
        if shape[1] == expected:
            return
        first_shape, first_origin = self._first.get(name, (None, None))
        like = f", as in {first_origin}," if first_origin else ""
        problem = f"{origin}: {name} must be [frames, {expected}]{like} but is {list(shape)}"
        if shape[0] == expected or (first_shape and shape[0] == first_shape[0]):
            raise ClipError(
                f"{problem}. Arrays seem to be transposed, [values, frames]: save them as [frames, "
                "values], for example with array.T."
            )
        raise ClipError(f"{problem}. Frames of a feature must have the same size in all videos.")


def _check_type(place, values):
    """Rejects arrays that are not `[T, D]` of uint8 or floats."""
    if values.ndim != 2:
        raise ClipError(
            f"{place} must be [frames, values]. Received: shape {list(values.shape)}. If this is "
            "no frame feature, leave it out with --feature_names; reshape one vector per video to "
            "[1, values]."
        )
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise ClipError(
            f"{place} must hold floats, or uint8 for quantized values. Received: dtype "
            f"{values.dtype}. Save it as float32, or as uint8 if each number is a byte of a "
            "quantized feature."
        )


def _check_num_frames(clip):
    counts = {name: len(values) for name, values in clip.features.items()}
    if len(set(counts.values())) > 1:
        received = comma_separated(f"{name} {count}" for name, count in counts.items())
        raise ClipError(
            f"{clip.origin}: all features of a video must have equal numbers of frames. Received: "
            f"{received}."
        )


def _check_finite(place, values):
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False))
    if not finite.all():
        frame, dimension = np.argwhere(~finite)[0]
        raise ClipError(
            f"{place} has {values[frame, dimension]} in frame {frame}, dimension {dimension} "
            f"(not finite in float32: {np.sum(~finite)} of {finite.size} values). Correct the "
            "features, or leave the video out."
        )
