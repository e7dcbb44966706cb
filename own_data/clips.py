"""Clips: the frame features of one video each, with their checks and the base of their sources.

A source of features (`feature_sources`) yields clips as it finds them; `ClipChecker` says which
ones can become records.
"""

import contextlib
import dataclasses
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

import files
from options import Options, option
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
        # The first array of each feature: whether it holds bytes, and its origin.
        self._first: dict[str, tuple[bool, str]] = {}

    def check(self, clip: Clip) -> None:
        """Checks a clip.

        Raises:
            EmptyClipError: if the clip has no frames.
            ClipError: naming origin and feature, if a feature is missing, is no array `[T, D]` of
                uint8 or floats, differs in its type or size D from other clips or in its number of
                frames T from other features, or has a value that is not finite in float32.
        """
        self._check_names(clip)
        if not any(values.size for values in clip.features.values()):
            raise EmptyClipError(f"{clip.origin}: the video {clip.video_id!r} has no frames.")
        for name, values in clip.features.items():
            _check_type(f"{clip.origin}: {name}", values)
            self._check_like_first(clip.origin, name, values)
        _check_num_frames(clip)
        for name, values in clip.features.items():
            _check_finite(f"{clip.origin}: {name}", values)
        self._names = self._names or set(clip.features)
        for name, values in clip.features.items():
            self._first.setdefault(name, (values.dtype == np.uint8, clip.origin))
            self.sizes.setdefault(name, values.shape[1])

    def _check_names(self, clip):
        if self._names is not None and set(clip.features) != self._names:
            raise ClipError(
                f"{clip.origin}: the features {comma_separated(sorted(self._names))} were "
                f"expected. Received: {comma_separated(clip.features)}. Select features that all "
                "videos have with --feature_names."
            )

    def _check_like_first(self, origin, name, values):
        """Rejects an array unlike the one of the first clip in its type or size."""
        num_frames, size = values.shape
        expected = self.sizes.get(name, size)
        is_bytes = values.dtype == np.uint8
        first_is_bytes, first = self._first.get(name, (is_bytes, None))
        as_in = f", as in {first}" if first else ""
        if num_frames and size != expected:
            remedy = (
                "It seems to be transposed: save arrays as [frames, values], for example array.T."
                if num_frames == expected
                else "Frames of a feature must have one size in all videos; arrays of [values, "
                "frames] must be transposed, for example array.T."
            )
            raise ClipError(
                f"{origin}: {name} must be [frames, {expected}]{as_in}. Received: shape "
                f"{list(values.shape)}. {remedy}"
            )
        if is_bytes != first_is_bytes:
            raise ClipError(
                f"{origin}: {name} must be {'uint8' if first_is_bytes else 'floats'}{as_in}. "
                f"Received: {values.dtype}. Save all videos of a feature alike."
            )


def _check_type(place, values):
    """Rejects arrays that are not `[T, D]` of uint8 or floats."""
    if values.dtype == object:
        raise ClipError(
            f"{place} must be [frames, values] of numbers, but its frames differ in size or are no "
            "numbers. Correct the features, or leave them out with --feature_names."
        )
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
    if len(set(map(len, clip.features.values()))) > 1:
        received = comma_separated(
            f"{name} {list(values.shape)}" for name, values in clip.features.items()
        )
        raise ClipError(
            f"{clip.origin}: all features of a video must be [frames, values] with equal numbers "
            f"of frames. Received: {received}. --trim_features cuts them to the shortest."
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


# --- Sources --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Options of the sources."""

    feature_names: tuple[str, ...] | None = option(
        None,
        "Features to read, in this order, named as after --rename. Default: all in the files.",
        group="data",
    )
    rename: tuple[str, ...] | None = option(
        None,
        "Other names for features: STORED:NAME, for example RGB/feature/floats:rgb.",
        group="data",
    )
    id_name: str | None = option(
        None,
        "Column of Parquet files, or feature of records, with the id of the video. Default: "
        "video_id or id.",
        group="data",
    )
    frame_column: str | None = option(
        None,
        "Column of Parquet files with a row per frame that orders the frames of a video, such as "
        "a time. Default: the order of the rows.",
        group="data",
    )
    bytes_dtype: str | None = option(
        None,
        "Type of the numbers in frames that records store as bytes. Default: uint8, unless they "
        "look like floats.",
        group="data",
        choices=("uint8", "float16", "float32", "float64"),
    )

    def __post_init__(self):
        """Checks every value."""
        super().__post_init__()
        if not all(stored and name for stored, name in self._pairs):
            raise InputError(
                "--rename must be pairs STORED:NAME, separated by commas. Received: "
                f"{comma_separated(self.rename or ())}"
            )
        for names in zip(*self._pairs, strict=True):
            if len(set(names)) < len(names):
                raise InputError(
                    "--rename must rename each feature once, to different names. Received: "
                    f"{comma_separated(self.rename or ())}"
                )

    @property
    def unnamed(self) -> str:
        """Stored name of a feature whose file does not name it."""
        names = self.feature_names or ()
        return self.stored_name(names[0]) if len(names) == 1 else "features"

    def stored_name(self, name: str) -> str:
        """Returns the name of a feature in the files."""
        return next((stored for stored, other in self._pairs if other == name), name)

    def select(self, stored: Iterable[str], origin: str) -> dict[str, str]:
        """Selects features of a video.

        Args:
            stored: names of all its features in the files.
            origin: place of the video, for the error.

        Returns:
            Stored names by feature name. It lacks features that the video lacks.

        Raises:
            InputError: if the video has none of the features, or two of the same name.
        """
        new_names = dict(self._pairs)
        stored = list(stored)
        found = {new_names.get(name, name): name for name in stored}
        names = found if self.feature_names is None else self.feature_names
        selected = {name: found[name] for name in names if name in found}
        if not selected or len(found) < len(stored):
            raise InputError(
                f"{origin} has {'two features of one name' if selected else 'no such feature'}. "
                f"Expected: {comma_separated(names)}. It has: {comma_separated(stored)}. Select "
                "features with --feature_names, or rename them with --rename=STORED:NAME."
            )
        return selected

    @property
    def _pairs(self):
        """The pairs of stored and new name."""
        return [
            (stored, name)
            for stored, _, name in (pair.rpartition(":") for pair in self.rename or ())
        ]


class FeatureSource:
    """Base of the sources: yields the clips of files in a fixed order.

    A subclass implements `_list_file` and `_read_file`.

    Args:
        paths: files to read, in this order.
        options: how to read them.

    Raises:
        InputError: if an option is given that does not apply to such files.
    """

    # Options, among those that do not apply to all files, that apply to these.
    _own_options: tuple[str, ...] = ()
    _remedy_for_repeated_ids = "Each video must have its own id: leave one of the two out."

    def __init__(self, paths: Sequence[str], options: SourceOptions):
        for name in ("id_name", "frame_column", "bytes_dtype"):
            if getattr(options, name) is not None and name not in self._own_options:
                raise InputError(f"--{name} does not apply to files such as {paths[0]}.")
        self._paths = paths
        self._options = options

    def ids(self) -> list[str]:
        """Returns the ids of all videos, in the order of `clips`, without reading features.

        Raises:
            InputError: if an id occurs twice, naming both places, or a file cannot be read.
        """
        found: dict[str, None] = {}
        for video_id, origin in self._list():
            if video_id in found:
                first = next(place for other, place in self._list() if other == video_id)
                raise self._repeated(video_id, first, origin)
            found[video_id] = None
        return list(found)

    def clips(self, wanted: Collection[str] | None = None) -> Iterator[Clip]:
        """Yields the clips, unchecked; memory holds about one at a time.

        Args:
            wanted: ids of the videos to read; None reads all.

        Raises:
            InputError: if a file cannot be read.
        """
        return self._read(_Everything() if wanted is None else frozenset(wanted))

    def _repeated(self, video_id, first, second):
        return InputError(
            f"the id {video_id!r} occurs twice: {first} and {second}. "
            f"{self._remedy_for_repeated_ids}"
        )

    def _list(self) -> Iterator[tuple[str, str]]:
        """Yields `(video_id, origin)` of each video."""
        for path in self._paths:
            yield from self._list_file(path)

    def _read(self, wanted: Container[str]) -> Iterator[Clip]:
        """Yields the wanted clips."""
        for path in self._paths:
            yield from self._read_file(path, wanted)

    def _list_file(self, path: str) -> Iterator[tuple[str, str]]:
        raise NotImplementedError

    def _read_file(self, path: str, wanted: Container[str]) -> Iterator[Clip]:
        raise NotImplementedError


class _Everything:
    def __contains__(self, _):
        return True


@contextlib.contextmanager
def reading(place: str, expected: str) -> Iterator[None]:
    """Turns errors of the libraries that read files into an `InputError`.

    Args:
        place: file, and part of it, that is read.
        expected: what it should be, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except (*_READ_ERRORS, *files.REMOTE_ERRORS) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"cannot read {place}: {reason.rstrip('.')}. Expected: {expected}."
        ) from error


# PyArrow's errors are subclasses of these.
_READ_ERRORS = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    ValueError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
