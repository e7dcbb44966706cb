"""Sources of frame features: files that hold the features of one's own videos.

`open_source` chooses the source by the kind of the files:

    .npy             an array per video and feature     array_sources.NpyFiles
    .npz             the arrays of a video              array_sources.NpzFiles
    .tar             webdataset, of .npy or .npz        array_sources.TarFiles
    .h5, .hdf5       a dataset or group per video       array_sources.Hdf5Files
    .parquet         a row per video or per frame       parquet_source.ParquetFiles
    .tfrecord        records of any names               record_sources.TFRecordFiles
    .pb              MediaPipe: a record per file       record_sources.MessageFiles

Their docstrings describe the layouts.
"""

import os

import files
import records
from own_data.array_sources import Hdf5Files, NpyFiles, NpzFiles, TarFiles
from own_data.clips import FeatureSource, SourceOptions
from own_data.parquet_source import ParquetFiles
from own_data.record_sources import MessageFiles, TFRecordFiles
from utils import InputError, comma_separated

# Sources by the end of the file name.
_SOURCES: dict[str, type[FeatureSource]] = {
    ".npy": NpyFiles,
    ".npz": NpzFiles,
    ".tar": TarFiles,
    ".h5": Hdf5Files,
    ".hdf5": Hdf5Files,
    ".parquet": ParquetFiles,
    ".tfrecord": TFRecordFiles,
    ".pb": MessageFiles,
}


def open_source(pattern: str, options: SourceOptions | None = None) -> FeatureSource:
    """Returns the source of files of one kind.

    Args:
        pattern: paths or globs of files, as in `files.expand_patterns`. A line may also be a
            directory, which stands for its files with the endings above.
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
            f"records of two kinds in one pattern: {first} and {others[0][1]}. Give a pattern that "
            "matches files of one kind."
        )
    return source_type(paths, options or SourceOptions())


def _without_directory(pattern):
    """Returns a pattern, or globs for the files of known kinds if it is a directory."""
    folder = pattern.strip()
    if not folder or not files.gfile.isdir(folder):
        return pattern
    endings = {os.path.splitext(name)[1] for name in files.gfile.listdir(folder)}
    found = [ending for ending in _SOURCES if ending in endings]
    if not found:
        raise InputError(f"{folder} has no files of a known kind: {comma_separated(_SOURCES)}.")
    return "\n".join(os.path.join(folder, f"*{ending}") for ending in found)


def _source_type(path):
    """Returns the source for a file: by its ending, otherwise TFRecord files by their content."""
    source_type = _SOURCES.get(os.path.splitext(path)[1])
    if source_type is None and not records.is_tfrecord_file(path):
        raise InputError(
            f"{path} is of no known kind: {comma_separated(_SOURCES)}, or TFRecord files of any "
            "name. Leave other files out of the pattern."
        )
    return source_type or TFRecordFiles
