"""Sources of frame features: files that hold the features of one's own videos.

`open_source` chooses the source by the kind of the files:

    .npy, .npz    arrays of one video per file, `NpyFiles` and `NpzFiles`
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

import files
from clips import Clip, FeatureSource
from options import Options, option
from utils import InputError, comma_separated

# The name of a feature without one.
DEFAULT_NAME = "features"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Options of the sources."""

    feature_names: tuple[str, ...] | None = option(
        None,
        "Features to read, in this order, named as in --rename. Default: all that the files hold.",
        group="data",
    )
    rename: tuple[str, ...] | None = option(
        None,
        "Other names for features: STORED:NAME, for example RGB/feature/floats:rgb.",
        group="data",
    )

    def __post_init__(self):
        """Checks every value."""
        super().__post_init__()
        pairs = [pair.rpartition(":") for pair in self.rename or ()]
        if not all(stored and name for stored, _, name in pairs):
            raise InputError(
                "--rename must be pairs STORED:NAME, separated by commas. Received: "
                f"{comma_separated(self.rename or ())}"
            )

    @property
    def new_names(self) -> dict[str, str]:
        """Names of features by the names that they have in the files, for renamed ones."""
        pairs = [pair.rpartition(":") for pair in self.rename or ()]
        return {stored: name for stored, _, name in pairs}

    def select(self, stored: Iterable[str], origin: str) -> dict[str, str]:
        """Selects features of a video.

        Args:
            stored: names of all its features in the file.
            origin: place of the video, for the error.

        Returns:
            Stored names by feature name. It lacks features that the video lacks.

        Raises:
            InputError: if the video has none of the features.
        """
        stored = list(stored)
        found = {self.new_names.get(name, name): name for name in stored}
        names = found if self.feature_names is None else self.feature_names
        selected = {name: found[name] for name in names if name in found}
        if not selected:
            raise InputError(
                f"{origin} has none of the features {comma_separated(names)}. It has: "
                f"{comma_separated(stored)}. Select features with --feature_names, or rename them "
                "with --rename=STORED:NAME."
            )
        return selected


def open_source(pattern: str, options: SourceOptions | None = None) -> FeatureSource:
    """Returns the source of files of one kind.

    Args:
        pattern: paths or globs of files, as in `files.expand_patterns`. A line may also be a
            directory, which stands for its files of known kinds.
        options: how to read them.

    Raises:
        InputError: if there are no such files, their kind is unknown, or they are of two kinds.
    """
    paths = files.expand_patterns("\n".join(map(_without_directory, pattern.split("\n"))))
    kinds: dict[type[FeatureSource], str] = {}
    for path in paths:
        kinds.setdefault(_source_type(path), path)
    (source_type, first), *others = kinds.items()
    if others:
        raise InputError(
            f"records of two kinds in one pattern: {first} and {others[0][1]}. Convert each kind "
            "on its own."
        )
    return source_type(paths, options or SourceOptions())


def _without_directory(pattern):
    """Returns a pattern, with globs for the files of known kinds if it is a directory."""
    folder = pattern.strip()
    if not folder or not files.gfile.isdir(folder):
        return pattern
    names = files.gfile.listdir(folder)
    found = [suffix for suffix in _SOURCES if any(name.endswith(suffix) for name in names)]
    if not found:
        raise InputError(f"{folder} has no file of a known kind ({comma_separated(_SOURCES)}).")
    return "\n".join(os.path.join(folder, f"*{suffix}") for suffix in found)


def _source_type(path):
    for suffix, source_type in _SOURCES.items():
        if path.endswith(suffix):
            return source_type
    raise InputError(
        f"{path} is of no known kind. Known are {comma_separated(_SOURCES)}. Leave other files out "
        "of the pattern."
    )


class _Files(FeatureSource):
    """Source of several files."""

    def __init__(self, paths: Sequence[str], options: SourceOptions):
        self._paths = paths
        self._options = options


class NpzFiles(_Files):
    """One `ID.npz` per video, as `numpy.savez` writes it; each array `[T, D]` is a feature."""

    def _list(self):
        return ((_stem(path), path) for path in self._paths)

    def _read(self, wanted):
        for video_id, path in self._list():
            if wanted is None or video_id in wanted:
                yield Clip(video_id, self._features(path), path)

    def _features(self, path):
        with files.open_binary(path) as file:
            return _read_npz(file, path, self._options)


class NpyFiles(_Files):
    """`.npy` files, as `numpy.save` writes them: one array `[T, D]` per video and feature.

    Without `feature_names`, or with one name that no file name ends in, `ID.npy` holds the only
    feature of the video ID; its name is the one given, or `features`. Otherwise `ID.NAME.npy` or
    `ID_NAME.npy` holds the feature NAME of the video ID, for each NAME of `feature_names`.
    """

    def __init__(self, paths: Sequence[str], options: SourceOptions):
        super().__init__(paths, options)
        self._videos = self._group()

    def _group(self):
        """Returns the paths by feature name, by video id."""
        names = self._options.feature_names or (DEFAULT_NAME,)
        back = {name: stored for stored, name in self._options.new_names.items()}
        endings = {f"{mark}{back.get(name, name)}": name for name in names for mark in "._"}
        has_endings = len(names) > 1 or any(
            _stem(path).endswith(ending) for path in self._paths for ending in endings
        )
        videos: dict[str, dict[str, str]] = {}
        for path in self._paths:
            if has_endings:
                video_id, name = _split(path, endings)
            else:
                video_id, name = _stem(path), names[0]
            features = videos.setdefault(video_id, {})
            if name in features:
                raise InputError(
                    f"the id {video_id!r} occurs twice: {features[name]} and {path}. Each video "
                    "must have its own id; leave one of the two out."
                )
            features[name] = path
        return videos

    def _list(self):
        for video_id, features in self._videos.items():
            yield video_id, next(iter(features.values()))

    def _read(self, wanted):
        names = self._options.feature_names or (DEFAULT_NAME,)
        for video_id, paths in self._videos.items():
            if wanted is None or video_id in wanted:
                features = {}
                for name in filter(paths.get, names):
                    with files.open_binary(paths[name]) as file:
                        features[name] = _read_npy(file, paths[name])
                yield Clip(video_id, features, comma_separated(paths.values()))


def _split(path, endings):
    """Returns video id and feature name of a file name."""
    stem = _stem(path)
    for ending, name in endings.items():
        if stem.endswith(ending) and stem != ending:
            return stem.removesuffix(ending), name
    raise InputError(
        f"{path} must end in {' or '.join(endings)} before .npy, to name the feature. Name all "
        "features with --feature_names, or leave other files out of the pattern."
    )


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


_ARRAY_ERRORS = (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error)


def _read_npy(file, place):
    """Returns the array of an open .npy file."""
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (*_ARRAY_ERRORS, *files.REMOTE_ERRORS) as error:
        raise _unreadable(place, error) from error


def _read_npz(file, place, options):
    """Returns the selected arrays of an open .npz file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {
                name: arrays[stored] for name, stored in options.select(arrays.files, place).items()
            }
    except InputError:
        raise
    except (*_ARRAY_ERRORS, *files.REMOTE_ERRORS) as error:
        raise _unreadable(place, error) from error


def _unreadable(place, error):
    return InputError(
        f"cannot read {place}: {error}. Expected: arrays of numbers, as numpy.save and numpy.savez "
        "write them."
    )


# Sources by the end of the file name.
_SOURCES: dict[str, type[_Files]] = {".npy": NpyFiles, ".npz": NpzFiles}
