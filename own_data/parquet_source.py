"""Source of features in Parquet files."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import files
from own_data.clips import Clip, FeatureSource, SourceOptions, reading
from utils import InputError, comma_separated, import_optional

_ID_NAMES = ("video_id", "id")
_LABELS = "labels"
# A column of one dimension of a feature, such as rgb_0, rgb.0, rgb0 or 0.
_DIMENSION = re.compile(r"(.*?)[_.]?([0-9]+)")
# Rows to read at a time: of ids, of videos, of frames.
_ID_ROWS, _VIDEO_ROWS, _FRAME_ROWS = 2**16, 16, 2**12
# Bytes of a column to read at a time; by default, PyArrow reads those of a whole row group.
_BUFFER_BYTES = 2**20


class ParquetFiles(FeatureSource):
    """Parquet files with a row per video or a row per frame.

    A column `video_id` or `id`, or the one that `id_name` names, holds the id of the video, a
    string or an integer. A column `labels`, if any, holds its label or the list of its labels.

    If the type of a column is a list of lists of numbers, a row is a video, and each such column
    NAME holds the frames of the feature NAME. Otherwise a row is a frame. A column NAME of lists of
    numbers then holds a frame of the feature NAME, and so do columns NAME_0, NAME_1, ... of
    numbers, one per dimension, which may also be called NAME.0, NAME0 or 0. The rows of a video
    follow each other in one file, in the order of the frames unless `frame_column` gives it.

    Lists may have a fixed size. Other columns are ignored.
    """

    _own_options = ("id_name", "frame_column")
    _remedy_for_repeated_ids = (
        "Each video must have its own id. If each row is a frame, the rows of a video must follow "
        "each other in one file: sort the table by id."
    )

    def _list_file(self, path):
        with _open(path, self._options) as table:
            for video_id, origin, _ in table.videos((), _ID_ROWS):
                yield video_id, origin

    def _read_file(self, path, wanted):
        with _open(path, self._options) as table:
            rows_at_once = _VIDEO_ROWS if table.has_row_per_video else _FRAME_ROWS
            for video_id, origin, parts in table.videos(table.columns, rows_at_once):
                if video_id in wanted:
                    yield Clip(video_id, table.features(parts), origin, table.labels(parts))


@contextlib.contextmanager
def _open(path, options):
    parquet = import_optional("pyarrow.parquet", "Parquet files need PyArrow", "parquet")
    with (
        reading(path, "a Parquet file with ids and features"),
        files.open_for_library(path) as raw,
        parquet.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
    ):
        yield _Table(file, path, options)


class _Table:
    """A Parquet file of features.

    Args:
        file: the open `pyarrow.parquet.ParquetFile`.
        path: its path, for messages.
        options: options of the source.

    Attributes:
        has_row_per_video: whether a row is a video; otherwise it is a frame.
        columns: names of the columns to read, apart from the id.
    """

    def __init__(self, file: Any, path: str, options: SourceOptions):
        self._pa = import_optional("pyarrow", "Parquet files need PyArrow", "parquet")
        self._file, self._path = file, path
        types = {field.name: field.type for field in file.schema_arrow}
        self._id = self._column(types, *([options.id_name] if options.id_name else _ID_NAMES))
        self._frame = options.frame_column and self._column(types, options.frame_column)
        self._labels = _LABELS if _LABELS in types else None
        stored = self._stored_features(types, options.unnamed)
        # Columns by feature name.
        self._features = {name: stored[old] for name, old in options.select(stored, path).items()}
        self.columns = [*itertools.chain(*self._features.values())]
        self.columns += filter(None, (self._frame, self._labels))

    def _stored_features(self, types, unnamed):
        """Sets `has_row_per_video`; returns the columns by stored name of the feature."""
        taken = (self._id, self._frame, self._labels)
        depths = {name: self._depth(types[name]) for name in types if name not in taken}
        of_depth = {depth: [name for name in depths if depths[name] == depth] for depth in range(3)}
        self.has_row_per_video = bool(of_depth[2])
        if self.has_row_per_video and self._frame:
            raise InputError(
                f"--frame_column={self._frame} orders rows that are frames, but a row of "
                f"{self._path} is a video with its frames in {comma_separated(of_depth[2])}. "
                "Leave the flag out."
            )
        stored = {name: [name] for name in of_depth[2] or of_depth[1]}
        if not self.has_row_per_video:
            stored |= _dimensions(unnamed, of_depth[0])
        if not stored:
            raise InputError(
                f"{self._path} has no feature: a column of lists of numbers, or columns NAME_0, "
                f"NAME_1, ... of numbers. Its columns: {_described(types)}."
            )
        return stored

    def _column(self, types, *names):
        """Returns the first of the names that is a column."""
        for name in names:
            if name in types:
                return name
        raise InputError(
            f"{self._path} has no column {' or '.join(names)}. Its columns: {_described(types)}. "
            "Name the column of the ids with --id_name, that of times with --frame_column."
        )

    def _depth(self, type_):
        """Returns the number of lists around the numbers in a column, None for other content."""
        types, depth = self._pa.types, 0
        while types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
            type_, depth = type_.value_type, depth + 1
        return depth if types.is_integer(type_) or types.is_floating(type_) else None

    def videos(self, columns: Sequence[str], rows_at_once: int) -> Iterator[tuple[str, str, list]]:
        """Yields `(video_id, origin, parts)` of each video; the parts are batches of its rows."""
        slices = self._slices(columns, rows_at_once)
        for (video_id, _), group in itertools.groupby(slices, key=lambda found: found[0]):
            rows, parts = zip(*((row, part) for _, row, part in group), strict=True)
            yield video_id, f"row {rows[0]} of {self._path}", list(parts)

    def _slices(self, columns, rows_at_once):
        """Yields `(key, row, batch)` for rows from `row` on that have the same key."""
        first = 0
        for batch in self._file.iter_batches(rows_at_once, columns=[self._id, *columns]):
            batch = self._with_lists(batch) if columns else batch
            start = 0
            for key, group in itertools.groupby(self._keys(batch, first)):
                length = len(list(group))
                yield key, first + start, batch.slice(start, length)
                start += length
            first += len(batch)

    def _keys(self, batch, first):
        """Yields the key of each row: the id and, for rows that are videos, the number."""
        for row, video_id in enumerate(batch.column(self._id).to_pylist(), start=first):
            if video_id is None:
                raise InputError(f"row {row} of {self._path} has no id in the column {self._id}.")
            text = video_id.decode() if isinstance(video_id, bytes) else str(video_id)
            yield text, row if self.has_row_per_video else None

    def _with_lists(self, batch):
        """Returns rows in which one column holds each feature, as lists."""
        arrays = {name: batch.column(name) for name in batch.schema.names}
        for first, *others in self._features.values():
            if others:
                columns = [arrays[first], *(arrays.pop(name) for name in others)]
                values = np.stack([c.to_numpy(zero_copy_only=False) for c in columns], axis=1)
                flat = self._pa.array(values.ravel())
                arrays[first] = self._pa.FixedSizeListArray.from_arrays(flat, len(columns))
        return self._pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))

    # --- Values -----------------------------------------------------------------------------------

    def features(self, parts: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns the features of a video; object arrays `[T]` if frames differ in size."""
        columns = {
            name: self._column_of(parts, first) for name, (first, *_) in self._features.items()
        }
        if self.has_row_per_video:
            return {name: _matrix(column[0].values) for name, column in columns.items()}
        features = {name: _matrix(column) for name, column in columns.items()}
        if self._frame is None:
            return features
        order = self._order(parts)
        return {name: values[order] for name, values in features.items()}

    def labels(self, parts: Sequence[Any]) -> list | None:
        """Returns the labels of a video, None without such a column."""
        if self._labels is None:
            return None
        labels = parts[0].column(self._labels)[0].as_py()
        return labels if isinstance(labels, list) else [labels]

    def _column_of(self, parts, name):
        return self._pa.concat_arrays([part.column(name) for part in parts])

    def _order(self, parts):
        """Returns the order of the rows of a video."""
        times = self._column_of(parts, self._frame)
        if times.null_count:
            (video_id, *_) = parts[0].column(self._id).to_pylist()
            raise InputError(
                f"{self._path}: frames of {video_id!r} have no value in the column {self._frame}."
            )
        return np.argsort(times.to_numpy(zero_copy_only=False), kind="stable")


def _matrix(frames):
    """Returns frames, a PyArrow array of lists, as `[T, D]`; as objects if they differ in size."""
    if frames is None:  # The row has no value.
        return np.zeros((0, 0), np.float32)
    sizes = set(frames.value_lengths().to_pylist())
    if len(sizes) > 1 or frames.null_count:
        return np.empty(len(frames), object)
    values = frames.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(frames), sizes.pop() if sizes else 0)


def _dimensions(unnamed: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns columns by feature, for columns of numbers that are named by its dimensions."""
    numbered: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _DIMENSION.fullmatch(name):
            feature, number = match.groups()
            numbered.setdefault(feature or unnamed, {})[int(number)] = name
    return {
        feature: [columns[number] for number in sorted(columns)]
        for feature, columns in numbered.items()
        if len(columns) > 1 and min(columns) <= 1 and max(columns) - min(columns) < len(columns)
    }


def _described(types):
    return comma_separated(f"{name} ({type_})" for name, type_ in types.items())
