"""CSV files of predictions: formats their lines, and writes them in parts that can be resumed."""

import codecs
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

import eval_util
import files
from records import CorruptRecordLog, RecordLocation
from utils import InputError, comma_separated, csv_line

HEADER = "VideoId,LabelConfidencePairs"


def format_lines(video_ids: Sequence[str], predictions: np.ndarray, top_k: int) -> str:
    """Returns lines `id,class score class score ...`, best class first, as one str.

    Args:
        video_ids: B ids.
        predictions: probabilities `[B, C]`.
        top_k: classes per video.
    """
    classes, scores = eval_util.top_k_predictions(predictions, top_k)
    lines = []
    for video_id, row_classes, row_scores in zip(
        video_ids, classes.tolist(), scores.tolist(), strict=True
    ):
        pairs = zip(row_classes, row_scores, strict=True)
        cells = (video_id, " ".join(f"{label} {score:g}" for label, score in pairs))
        lines.append(csv_line(cells))
    return "".join(lines)


_SETTINGS = "settings.json"
_LOCK = "lock"
_OWN_FILE = re.compile(rf"({re.escape(_SETTINGS)}|\d{{5,}}\.(csv|json))(\..+\.partial)?|{_LOCK}")


@contextlib.contextmanager
def prediction_parts(
    output_file: str, settings: dict[str, Any], input_files: Sequence[str], *, resume: bool
) -> Iterator["PredictionParts"]:
    """Yields the parts of a prediction file, and joins them into the file at the end.

    After an error, the finished parts are kept. No other process can write the file meanwhile.

    Args:
        output_file: file to join the parts into.
        settings: everything that the lines depend on except the input, as a dict for JSON.
        input_files: paths of the input files.
        resume: whether to reuse existing parts instead of removing them.

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
            parts = PredictionParts(output_file, settings, input_files, resume=resume)
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

    A part consists of its lines, `NUMBER.csv`, and its metadata, `NUMBER.json`. The metadata are
    written last, so their file marks the part as finished. The directory's `settings.json` is
    written first and removed first, so parts without it are never used. If a run is killed, the
    next run reuses the finished parts that are whole and whose input files are unchanged. See
    `prediction_parts`.
    """

    def __init__(
        self,
        output_file: str,
        settings: dict[str, Any],
        input_files: Sequence[str],
        *,
        resume: bool,
    ):
        self._output_file = output_file
        self._folder = f"{output_file}.parts"
        self._input_files = input_files
        self._fingerprints: dict[int, dict] = {}
        self._finished: dict[int, dict[str, Any]] = {}
        found = _own_files(self._folder)
        settings = json.loads(json.dumps({**settings, "input_files": input_files}))
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
        for number, path in enumerate(self._input_files):
            name = _part_name(number, "json")
            if name not in found:
                continue
            metadata = self._read_metadata(name)
            if metadata.get("num_bytes", -1) != self._size(number):
                logging.info("the part of %s is damaged, so it is predicted again", path)
            elif metadata["input"] != files.fingerprint(path):
                logging.info("%s has changed since it was predicted and is predicted again", path)
            else:
                self._finished[number] = metadata
                continue
            files.remove(os.path.join(self._folder, name))

    def is_finished(self, number: int) -> bool:
        """Returns whether the part of an input file, numbered from 0, is finished."""
        return number in self._finished

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[codecs.StreamWriter]:
        """Opens the text file of a part for writing; call it before the input file is read."""
        self._fingerprints[number] = files.fingerprint(self._input_files[number])
        path = self._path(number, "csv")
        with files.named_errors(path), files.open_binary(path, "wb") as file:
            yield codecs.getwriter("utf-8")(file)

    def finish(self, number: int, num_videos: int, corrupt_log: CorruptRecordLog) -> None:
        """Marks a part as finished once its lines are written.

        Args:
            number: number of the input file.
            num_videos: number of lines in the part.
            corrupt_log: log of the corrupt records of all input files.
        """
        corrupt_records = [
            (location.index, location.offset, reason)
            for location, reason in corrupt_log.in_file(self._input_files[number]).items()
        ]
        metadata = {
            "input": self._fingerprints[number],
            "num_videos": num_videos,
            "num_bytes": self._size(number),
            "corrupt_records": corrupt_records,
        }
        files.write_json(self._path(number, "json"), metadata)
        self._finished[number] = metadata

    def restore_corrupt_records(self, corrupt_log: CorruptRecordLog) -> None:
        """Adds the corrupt records of the finished parts to a log.

        Raises:
            InputError: if there are more than the log allows.
        """
        for number, metadata in self._finished.items():
            for index, offset, reason in metadata["corrupt_records"]:
                corrupt_log.add(RecordLocation(self._input_files[number], index, offset), reason)

    def num_videos(self) -> int:
        """Returns the number of lines in the finished parts."""
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
        with files.atomic_write(self._output_file) as output:
            output.write(f"{HEADER}\n")
            for number in range(len(self._input_files)):
                with files.open_binary(self._path(number, "csv")) as part:
                    shutil.copyfileobj(part, output.stream)
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

    def _size(self, number):
        """Returns the size of the lines of a part in bytes, or None without lines."""
        path = self._path(number, "csv")
        return files.file_size(path) if files.gfile.exists(path) else None

    def _path(self, number, ending):
        return os.path.join(self._folder, _part_name(number, ending))


def _part_name(number, ending):
    return f"{number:05d}.{ending}"


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
