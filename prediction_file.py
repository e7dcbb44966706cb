"""Files of predictions: formats their lines, and writes them in parts that can be resumed.

`embedding_file.py` adds files of embeddings, which consist of parts as well.
"""

import codecs
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

import eval_util
import files
from records import CorruptRecordLog, RecordLocation
from utils import InputError, comma_separated, csv_line, import_optional

# --- Formats --------------------------------------------------------------------------------------

HEADER = "VideoId,LabelConfidencePairs"
COLUMNS = ("id", "rank", "class", "name", "score")
# Rows that are converted to Parquet at a time; they make one row group.
_ROWS_PER_GROUP = 2**16


def format_lines(
    video_ids: Sequence[str],
    predictions: np.ndarray,
    top_k: int,
    output_format: str = "kaggle",
    class_names: Mapping[int, str] | None = None,
) -> str:
    """Returns the lines of videos, best class first, as one str.

    Args:
        video_ids: B ids.
        predictions: probabilities `[B, C]`.
        top_k: classes per video.
        output_format: key of `FORMATS`.
        class_names: names by class, or None.
    """
    classes, scores = eval_util.top_k_predictions(predictions, top_k)
    lines, names = FORMATS[output_format].lines, class_names or {}
    return "".join(
        lines(video_id, row_classes, row_scores, names)
        for video_id, row_classes, row_scores in zip(
            video_ids, classes.tolist(), scores, strict=True
        )
    )


def _kaggle_line(video_id, classes, scores, _):
    pairs = zip(classes, scores.tolist(), strict=True)
    return csv_line((video_id, " ".join(f"{label} {score:g}" for label, score in pairs)))


def _csv_lines(video_id, classes, scores, names):
    # The str of a np.float32 has the fewest digits that read back as that number.
    return "".join(
        csv_line((video_id, str(rank), str(label), names.get(label, ""), str(score)))
        for rank, (label, score) in enumerate(zip(classes, scores, strict=True), start=1)
    )


def _json_line(video_id, classes, scores, names):
    predictions = [
        {"class": label, "name": names.get(label) or None, "score": float(str(score))}
        for label, score in zip(classes, scores, strict=True)
    ]
    return json.dumps({"id": video_id, "predictions": predictions}, ensure_ascii=False) + "\n"


def join_text(parts: Sequence[str], output_file: str, header: str = "") -> None:
    """Joins parts of text into a file, after a header."""
    with files.atomic_write(output_file) as output:
        output.write(header)
        for path in parts:
            with files.open_binary(path) as part:
                shutil.copyfileobj(part, output.stream)


def _join_parquet(parts, output_file):
    write_parquet(_tables(parts), output_file)


def _tables(parts):
    """Converts parts in the format jsonl, one group of rows after another."""
    pyarrow, _ = _import_pyarrow()
    types = (pyarrow.string(), pyarrow.int32(), pyarrow.int32(), pyarrow.string())
    schema = pyarrow.schema(zip(COLUMNS, (*types, pyarrow.float32()), strict=True))
    rows = (
        {"id": video["id"], "rank": rank, **prediction}
        for video in read_json_lines(parts)
        for rank, prediction in enumerate(video["predictions"], start=1)
    )
    while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
        yield pyarrow.Table.from_pylist(group, schema)


def read_json_lines(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects in files with one in each line."""
    for path in paths:
        with files.open_binary(path) as file:
            yield from map(json.loads, file)


def write_parquet(tables: Iterator[Any], output_file: str) -> None:
    """Writes PyArrow tables with one schema as a Parquet file, each as a group of rows."""
    _, parquet = _import_pyarrow()
    first = next(tables)
    with (
        files.atomic_path(output_file) as partial,
        files.open_binary(partial, "wb") as raw,
        parquet.ParquetWriter(_PyArrowFile(raw), first.schema) as writer,
    ):
        for table in itertools.chain([first], tables):
            writer.write_table(table)


class _PyArrowFile(io.RawIOBase):
    """Adds the methods that PyArrow calls to a file opened for writing, such as TensorFlow's."""

    def __init__(self, file):
        self._file = file

    def writable(self):
        return True

    def write(self, data):
        self._file.write(data)
        return len(data)


def _import_pyarrow():
    need = "--output_format=parquet needs PyArrow"
    return [import_optional(name, need, "parquet") for name in ("pyarrow", "pyarrow.parquet")]


@dataclasses.dataclass(frozen=True)
class FileKind:
    """A kind of files that are joined from parts.

    Attributes:
        name: its name as a flag.
        ending: ending of the names of its files, before `.gz`.
        part_ending: ending of the names of its parts.
        has_names: whether it holds class names.
    """

    name: str
    ending: str
    part_ending: str
    has_names: bool = dataclasses.field(default=False, kw_only=True)


@dataclasses.dataclass(frozen=True)
class FileFormat(FileKind):
    """A kind of files and how to write them.

    Attributes:
        lines: function that returns the lines of a part for some videos.
        join: function that joins the parts at some paths into a file.
        merge: function that writes, to a stream, one part that `join` and `merge` take in place of
            those at some paths, the first of the file; None if that saves no space.
        merge_bytes: bytes of finished parts from which they are merged.
    """

    lines: Callable[..., str]
    join: Callable[[Sequence[str], str], None]
    merge: Callable[[Sequence[str], codecs.StreamWriter], None] | None = None
    merge_bytes: int = 0


# `lines` takes an id, its best classes, their scores (float32) and names by class.
FORMATS = {
    found.name: found
    for found in (
        FileFormat(
            *("kaggle", ".csv", ".csv"),
            _kaggle_line,
            functools.partial(join_text, header=f"{HEADER}\n"),
        ),
        FileFormat(
            *("csv", ".csv", ".csv"),
            _csv_lines,
            functools.partial(join_text, header=csv_line(COLUMNS)),
            has_names=True,
        ),
        FileFormat("jsonl", ".jsonl", ".jsonl", _json_line, join_text, has_names=True),
        FileFormat("parquet", ".parquet", ".jsonl", _json_line, _join_parquet, has_names=True),
    )
}
# Formats with these endings are text, which may be compressed.
_TEXT_ENDINGS = (".csv", ".jsonl")
_ENDINGS = (*_TEXT_ENDINGS, ".parquet", ".npy")


def check_format(file_format: FileKind, output_file: str) -> None:
    """Rejects a format that cannot be written, or that the name of the file contradicts.

    Raises:
        InputError: naming the format and the file, or the package that is missing.
    """
    ending = os.path.splitext(output_file.removesuffix(".gz"))[1]
    if ending != file_format.ending and ending in _ENDINGS:
        raise InputError(
            f"--output_file={output_file} ends in {ending}, but --output_format={file_format.name} "
            f"writes {file_format.ending}. Change one of them."
        )
    if output_file.endswith(".gz") and file_format.ending not in _TEXT_ENDINGS:
        raise InputError(
            f"--output_file={output_file} ends in .gz, but --output_format={file_format.name} is "
            "never compressed as a whole. Leave out .gz."
        )
    if file_format.ending == ".parquet":
        _import_pyarrow()


# --- Parts ----------------------------------------------------------------------------------------

_SETTINGS = "settings.json"
_MERGED = "merged.json"
_LOCK = "lock"
_OWN_FILE = re.compile(
    rf"({re.escape(_SETTINGS)}|({re.escape(_MERGED)}|(merged-)?\d{{5,}}\.(csv|jsonl|json)))"
    rf"(\..+\.partial)?|{_LOCK}"
)


@contextlib.contextmanager
def prediction_parts(
    output_file: str,
    settings: dict[str, Any],
    input_files: Sequence[str],
    *,
    resume: bool,
    file_format: FileFormat = FORMATS["kaggle"],
) -> Iterator["PredictionParts"]:
    """Yields the parts of a prediction file, and joins them into the file at the end.

    After an error, the finished parts are kept. No other process can write the file meanwhile.

    Args:
        output_file: file to join the parts into.
        settings: everything that the lines depend on except the input and the format, as a dict
            for JSON.
        input_files: paths of the input files.
        resume: whether to reuse existing parts instead of removing them.
        file_format: format of the file.

    Raises:
        InputError: if the existing parts were written with other settings, another process writes
            the file, or the directory of the parts has other files.
    """
    folder = f"{output_file}.parts"
    _own_files(folder)  # Fails before the lock file is created.
    try:
        with files.lock(
            os.path.join(folder, _LOCK),
            f"another run is writing {output_file}",
            "Wait until it ends, stop it, or choose another --output_file.",
        ):
            parts = PredictionParts(
                output_file, settings, input_files, resume=resume, file_format=file_format
            )
            try:
                yield parts
            except BaseException:
                parts.keep_finished()
                raise
            parts.join()
    finally:
        files.remove_empty_directory(folder)


class PredictionParts:
    """Parts of a prediction file, one for each input file, in the directory `FILE.parts`.

    A part consists of its lines, `NUMBER.csv` or `NUMBER.jsonl`, and its metadata, `NUMBER.json`.
    The metadata are written last, so their file marks the part as finished. The directory's
    `settings.json` is written first and removed first, so parts without it are never used. If a
    run is killed, the next run reuses the finished parts that are whole and whose input files are
    unchanged. See `prediction_parts`.

    With a format that merges, `merged-NUMBER.csv` or `.jsonl` takes the place of the first NUMBER
    parts, once `merged.json` has their metadata. If one of their input files changes, they are all
    predicted again.
    """

    def __init__(
        self,
        output_file: str,
        settings: dict[str, Any],
        input_files: Sequence[str],
        *,
        resume: bool,
        file_format: FileFormat,
    ):
        self._format = file_format
        self._output_file = output_file
        self._folder = f"{output_file}.parts"
        self._input_files = input_files
        self._fingerprints: dict[int, dict] = {}
        self._finished: dict[int, dict[str, Any]] = {}
        self._num_merged = 0
        found = _own_files(self._folder)
        settings = {**settings, "output_format": file_format.name, "input_files": input_files}
        settings = json.loads(json.dumps(settings))
        path = os.path.join(self._folder, _SETTINGS)
        if resume and _SETTINGS in found:
            self._check(files.read_json(path), settings)
            self._restore(set(found))
        else:
            self._remove()
            files.write_json(path, settings)

    def _check(self, found, settings):
        names = sorted({*found, *settings})
        differing = [name for name in names if found.get(name) != settings.get(name)]
        if differing:
            raise InputError(
                f"{self._folder} holds the parts of an unfinished run with another value of "
                f"{comma_separated(differing)}. Give the same model, flags and input files to "
                "resume it, or --noresume to start over."
            )

    def _restore(self, found):
        """Reads the metadata of the finished parts of another run."""
        self._restore_merged(found)
        for number, path in list(enumerate(self._input_files))[self._num_merged :]:
            name = _part_name(number, ".json")
            if name not in found:
                continue
            metadata = self._read_metadata(name)
            if metadata.get("num_bytes", -1) != _size(self._lines_path(number)):
                logging.info("the part of %s is damaged, so it is predicted again", path)
            elif metadata["input"] != files.fingerprint(path):
                logging.info("%s has changed since it was predicted and is predicted again", path)
            else:
                self._finished[number] = metadata
                continue
            files.remove(os.path.join(self._folder, name))

    def _restore_merged(self, found):
        if _MERGED in found:
            metadata = self._read_metadata(_MERGED)
            parts = metadata.get("parts", [])
            fault = self._fault_of_merged(parts, metadata.get("num_bytes", -1))
            if fault is None:
                self._num_merged = len(parts)
                self._finished.update(enumerate(parts))
            else:
                what = f"{len(parts)} input files are" if parts else "what was merged is"
                logging.info("%s, so %s predicted again", fault, what)
                files.remove(os.path.join(self._folder, _MERGED))
        self._remove_merged_parts(found)

    def _fault_of_merged(self, parts, num_bytes):
        """Returns why merged parts cannot be used, or None."""
        if not parts:
            return f"{os.path.join(self._folder, _MERGED)} is damaged"
        path = self._merged_path(len(parts))
        if num_bytes != _size(path):
            return f"{path} is damaged"
        for path, part in zip(self._input_files, parts, strict=False):
            if part["input"] != files.fingerprint(path):
                return f"{path} has changed since it was predicted"
        return None

    def is_finished(self, number: int) -> bool:
        """Returns whether the part of an input file, numbered from 0, is finished."""
        return number in self._finished

    def note_input(self, number: int) -> None:
        """Notes the state of an input file; call it before the file is read."""
        self._fingerprints[number] = files.fingerprint(self._input_files[number])

    def open(self, number: int) -> contextlib.AbstractContextManager[codecs.StreamWriter]:
        """Opens the text file of a part for writing."""
        return _open_text(self._lines_path(number))

    def finish(self, number: int, num_videos: int, corrupt_log: CorruptRecordLog) -> None:
        """Marks a part as finished once its lines are written.

        Args:
            number: number of the input file, which `note_input` has noted.
            num_videos: number of videos in the part.
            corrupt_log: log of the corrupt records of all input files.
        """
        corrupt_records = [
            (location.index, location.offset, reason)
            for location, reason in corrupt_log.in_file(self._input_files[number]).items()
        ]
        metadata = {
            "input": self._fingerprints[number],
            "num_videos": num_videos,
            "num_bytes": _size(self._lines_path(number)),
            "corrupt_records": corrupt_records,
        }
        files.write_json(self._path(number, ".json"), metadata)
        self._finished[number] = metadata
        if self._format.merge is not None:
            self._merge(self._format.merge)

    def _merge(self, merge):
        """Merges the finished parts before the first one that is not, if they are large."""
        end = self._num_merged
        while end in self._finished:
            end += 1
        size = sum(self._finished[number]["num_bytes"] for number in range(self._num_merged, end))
        if size < self._format.merge_bytes or end == len(self._input_files):
            return
        path = self._merged_path(end)
        with _open_text(path) as file:
            merge(self._parts(end), file)
        parts = [self._finished[number] for number in range(end)]
        metadata = {"parts": parts, "num_bytes": _size(path)}
        files.write_json(os.path.join(self._folder, _MERGED), metadata)
        self._num_merged = end
        self._remove_merged_parts(_own_files(self._folder))

    def _remove_merged_parts(self, found):
        """Removes the parts that were merged, and what other merges have left."""
        kept = os.path.basename(self._merged_path(self._num_merged))
        for name in found:
            number, _, _ = name.partition(".")
            is_merged = number.isdecimal() and int(number) < self._num_merged
            if is_merged or (number.startswith("merged-") and name != kept):
                files.remove(os.path.join(self._folder, name))

    def restore_corrupt_records(self, corrupt_log: CorruptRecordLog) -> None:
        """Adds the corrupt records of the finished parts to a log.

        Raises:
            InputError: if there are more than the log allows.
        """
        for number, metadata in self._finished.items():
            for index, offset, reason in metadata["corrupt_records"]:
                corrupt_log.add(RecordLocation(self._input_files[number], index, offset), reason)

    def num_videos(self) -> int:
        """Returns the number of videos in the finished parts."""
        return sum(metadata["num_videos"] for metadata in self._finished.values())

    def keep_finished(self) -> None:
        """Keeps the finished parts after an error, unless they are all empty.

        Logs how to resume with them.
        """
        if self.num_videos():
            logging.info(
                "%d of %d input files are finished: %s. Run the same command to resume.",
                len(self._finished),
                len(self._input_files),
                self._folder,
            )
        else:
            self._remove()

    def join(self) -> None:
        """Joins all parts into the output file, and removes them."""
        self._format.join(self._parts(len(self._input_files)), self._output_file)
        self._remove()

    def _remove(self):
        """Removes all parts. Without settings, those that a kill leaves are not used."""
        for name in sorted(_own_files(self._folder), key=lambda name: name != _SETTINGS):
            if name != _LOCK:
                files.remove(os.path.join(self._folder, name))

    def _read_metadata(self, name):
        try:
            return files.read_json(os.path.join(self._folder, name))
        except InputError:  # Empty, for example, after a power failure.
            return {}

    def _parts(self, end):
        """Returns the paths of the lines of the first parts, in order."""
        merged = [self._merged_path(self._num_merged)] if self._num_merged else []
        return merged + [self._lines_path(number) for number in range(self._num_merged, end)]

    def _merged_path(self, count):
        name = f"merged-{_part_name(count, self._format.part_ending)}"
        return os.path.join(self._folder, name)

    def _lines_path(self, number):
        return self._path(number, self._format.part_ending)

    def _path(self, number, ending):
        return os.path.join(self._folder, _part_name(number, ending))


@contextlib.contextmanager
def _open_text(path):
    with files.named_errors(path), files.open_binary(path, "wb") as file:
        yield codecs.getwriter("utf-8")(file)


def _size(path):
    """Returns the size of a file in bytes, or None if there is none."""
    return files.file_size(path) if files.gfile.exists(path) else None


def _part_name(number, ending):
    return f"{number:05d}{ending}"


def _own_files(folder):
    """Lists the directory of the parts.

    Raises:
        InputError: if it has files of somebody else.
    """
    if not files.gfile.exists(folder):
        return []
    try:
        names = files.gfile.listdir(folder)
    except files.REMOTE_ERRORS as error:
        raise InputError(f"cannot write parts to {folder}: {error}") from error
    settings = os.path.join(folder, _SETTINGS)
    for name in names:
        is_own = _OWN_FILE.fullmatch(name) is not None
        if name == _SETTINGS:
            with files.open_binary(settings) as file:
                is_own = b'"input_files"' in file.read()
        if not is_own:
            raise InputError(
                f"{folder} is for unfinished predictions, but holds {name}, which inference.py did "
                "not write. Choose another --output_file, or move that directory."
            )
    return names
