"""Sources of features in files of arrays: .npy, .npz, tar archives of these, HDF5."""

import contextlib
import io
import itertools
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np

import files
from own_data.clips import Clip, FeatureSource, SourceOptions, reading
from utils import InputError, comma_separated, import_optional

_NUMPY = "arrays of numbers, as numpy.save and numpy.savez write them"


class NpyFiles(FeatureSource):
    """`.npy` files, as `numpy.save` writes them: one array `[T, D]` per video and feature.

    Without `feature_names`, `ID.npy` holds the only feature of the video ID; its name is
    `features`. With `feature_names`, `ID.NAME.npy` or `ID_NAME.npy` holds the feature NAME of the
    video ID, for each NAME among them, and so does `NAME/ID.npy`. If there is one NAME and no file
    name ends in it, `ID.npy` holds that feature.

    Raises:
        InputError: if a file has another NAME, or two files hold one feature of a video.
    """

    def __init__(self, paths: Sequence[str], options: SourceOptions):
        super().__init__(paths, options)
        split = self._naming()
        self._videos: dict[str, dict[str, str]] = {}
        for path in paths:
            video_id, name = split(path)
            first = self._videos.setdefault(video_id, {}).setdefault(name, path)
            if first != path:
                raise self._repeated(video_id, first, path)

    def _naming(self) -> Callable[[str], tuple[str, str]]:
        """Returns the function that splits a path into video id and stored name of the feature."""
        names = [self._options.stored_name(name) for name in self._options.feature_names or ()]
        endings = {f"{mark}{name}": name for name in names for mark in "._"}
        if len(names) > 1 or any(_stem(path).endswith(tuple(endings)) for path in self._paths):
            return lambda path: _split(path, endings)
        if not names:
            _check_no_names(self._paths)
        return lambda path: (_stem(path), self._options.unnamed)

    def _repeated(self, video_id, first, second):
        error = super()._repeated(video_id, first, second)
        folders = [_folder(first), _folder(second)]
        if folders[0] == folders[1]:
            return error
        return InputError(
            f"{error} If they are two features of the video, name both by their directories: "
            f"--feature_names={','.join(folders)}"
        )

    def _list(self):
        for video_id, paths in self._videos.items():
            yield video_id, comma_separated(paths.values())

    def _read(self, wanted):
        for video_id, origin in self._list():
            if video_id in wanted:
                paths = self._videos[video_id]
                selected = self._options.select(paths, origin)
                features = {name: _load(paths[stored]) for name, stored in selected.items()}
                yield Clip(video_id, features, origin)


def _split(path, endings):
    """Returns video id and stored name of the feature of a file named after both.

    Where no ending names the feature, the directory does.
    """
    stem, folder = _stem(path), _folder(path)
    names = dict.fromkeys(endings.values())
    for ending, name in endings.items():
        if stem.endswith(ending) and stem != ending:
            return stem.removesuffix(ending), name
    if folder in names:
        return stem, folder
    raise InputError(
        f"{path} does not name a feature: names of files must end in "
        f"{comma_separated(f'{ending}.npy' for ending in endings)}, or their directory must be "
        f"named {' or '.join(names)}. Give the names of all features with --feature_names, or "
        "leave other files out of the pattern; --rename=STORED:NAME renames features."
    )


def _check_no_names(paths):
    """Rejects files of one video whose names differ after the last dot, which may name features."""
    first = {}
    for path in paths:
        video_id, _, name = _stem(path).rpartition(".")
        first_name, first_path = first.setdefault(video_id, (name, path))
        if video_id and name != first_name:
            raise InputError(
                f"{first_path} and {path} may be two features of one video. If so, give "
                f"--feature_names={first_name},{name}. If they are two videos, give the name of "
                "their feature, for example --feature_names=rgb."
            )


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _folder(path):
    return os.path.basename(os.path.dirname(path))


def _load(path):
    with reading(path, _NUMPY), files.open_for_library(path) as file:
        return _read_npy(file)


def _read_npy(file: IO[bytes]) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)


def _read_npz(file: IO[bytes], origin: str, options: SourceOptions) -> dict[str, np.ndarray]:
    # np.load would take files that are no zip archives for pickles.
    with zipfile.ZipFile(file) as archive:
        stored = [name.removesuffix(".npy") for name in archive.namelist()]
        features = {}
        for name, old in options.select(stored, origin).items():
            with archive.open(f"{old}.npy") as member:
                features[name] = _read_npy(member)
    return features


class NpzFiles(FeatureSource):
    """`.npz` files, as `numpy.savez` writes them: `ID.npz` holds an array `[T, D]` per feature."""

    _remedy_for_repeated_ids = "One file must hold all features of a video: leave one of them out."

    def _list_file(self, path):
        yield _stem(path), path

    def _read_file(self, path, wanted):
        if _stem(path) in wanted:
            with reading(path, _NUMPY), files.open_for_library(path) as file:
                features = _read_npz(file, path, self._options)
            yield Clip(_stem(path), features, path)


# --- Tar archives ---------------------------------------------------------------------------------

_TAR = "an uncompressed tar archive"


class TarFiles(FeatureSource):
    """`.tar` archives, as webdataset writes them.

    The members of a video follow each other and are named `ID.EXTENSION`, where the ID has no dot
    and directories do not count:

        ID.NAME.npy    the feature NAME, [T, D]
        ID.npy         the only feature
        ID.npz         all features by name
        ID.cls         the label
        ID.json        an object; its list `labels`, if any, holds the labels

    Other members are ignored, and so are ids without features.
    """

    _remedy_for_repeated_ids = (
        "Each video must have its own id, and its members must follow each other."
    )

    def _list_file(self, path):
        with reading(path, _TAR), _open_tar(path) as archive:
            for video_id, _ in _videos(archive):
                yield video_id, f"{video_id} in {path}"

    def _read_file(self, path, wanted):
        with reading(path, _TAR), _open_tar(path) as archive:
            for video_id, members in _videos(archive):
                if video_id in wanted:
                    origin = f"{video_id} in {path}"
                    with reading(origin, _NUMPY):
                        features = self._features(archive, members, origin)
                    with reading(f"the labels of {origin}", "a number, or JSON"):
                        labels = _labels(archive, members)
                    yield Clip(video_id, features, origin, labels)

    def _features(self, archive, members, origin):
        if "npz" in members:
            return _read_npz(_content(archive, members["npz"]), origin, self._options)
        arrays = {
            extension.removesuffix("npy").rstrip(".") or self._options.unnamed: member
            for extension, member in members.items()
            if _holds_features(extension)
        }
        selected = self._options.select(arrays, origin)
        return {
            name: _read_npy(_content(archive, arrays[stored])) for name, stored in selected.items()
        }


@contextlib.contextmanager
def _open_tar(path):
    with files.open_for_library(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        yield archive


def _videos(archive):
    """Yields `(video_id, members by extension)` of each video with features."""
    for (_, video_id), group in itertools.groupby(_members(archive), key=lambda found: found[0]):
        members = {extension: member for _, extension, member in group}
        if any(map(_holds_features, members)):
            yield video_id, members


def _holds_features(extension):
    return extension.split(".")[-1] in ("npy", "npz")


def _members(archive):
    """Yields `((directory, id), extension, member)` of each file in an archive.

    Raises:
        tarfile.ReadError: if the archive is damaged, for which `tarfile` itself ends early.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # It would keep all members in memory.
        directory, name = os.path.split(member.name)
        video_id, _, extension = name.partition(".")
        if member.isfile():
            yield (directory, video_id), extension, member
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(
            f"no member and no end of the archive at byte {archive.offset}, so the file is damaged "
            "or incomplete"
        )


def _content(archive, member):
    # NumPy does not take the file that an archive returns.
    return io.BytesIO(archive.extractfile(member).read())


def _labels(archive, members):
    """Returns the labels of a video, or None."""
    if "cls" in members:
        return [int(_content(archive, members["cls"]).read())]
    content = json.load(_content(archive, members["json"])) if "json" in members else None
    labels = content.get("labels") if isinstance(content, dict) else None
    return labels if isinstance(labels, list) else None


# --- HDF5 -----------------------------------------------------------------------------------------

_HDF5 = "an HDF5 file"


class Hdf5Files(FeatureSource):
    """HDF5 files with a dataset or a group per video at their root, named by the id of the video.

    A dataset `[T, D]` is the only feature of its video. A group has a dataset `[T, D]` per feature,
    which is named after it; groups in such a group are ignored.
    """

    def _list_file(self, path):
        with reading(path, _HDF5), _open_hdf5(path) as file:
            for video_id in file:
                yield video_id, f"{path}/{video_id}"

    def _read_file(self, path, wanted):
        with reading(path, _HDF5), _open_hdf5(path) as file:
            for video_id in filter(wanted.__contains__, file):
                origin = f"{path}/{video_id}"
                with reading(origin, "datasets of numbers"):
                    features = self._features(file[video_id], origin)
                yield Clip(video_id, features, origin)

    def _features(self, entry, origin):
        entries = dict(entry) if hasattr(entry, "keys") else {self._options.unnamed: entry}
        datasets = {name: entry for name, entry in entries.items() if hasattr(entry, "shape")}
        selected = self._options.select(datasets, origin)
        return {name: np.asarray(datasets[stored]) for name, stored in selected.items()}


@contextlib.contextmanager
def _open_hdf5(path):
    h5py = import_optional("h5py", "HDF5 files need h5py", "hdf5")
    with files.open_for_library(path) as raw, h5py.File(raw, "r") as file:
        yield file
