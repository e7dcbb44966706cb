"""CSV files of predictions: formats their lines, and writes them in parts that can be resumed."""

import codecs
import contextlib
import json
import os
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


class PredictionParts:
    """Parts of a prediction file, one for each input file, in the directory `FILE.parts`.

    A part consists of its lines, `NUMBER.csv`, and its metadata, `NUMBER.json`. The metadata are
    written last, so their file marks the part as finished. If a run is killed, the next run reuses
    the finished parts.

    Args:
        output_file: file to join the parts into.
        settings: everything that the lines depend on except the input, as a dict for JSON.
        input_files: paths of the input files.
        resume: whether to reuse existing parts instead of removing them.

    Raises:
        InputError: if the existing parts were written with other settings.
    """

    def __init__(
        self, output_file: str, settings: dict[str, Any], input_files: list[str], *, resume: bool
    ):
        self._output_file = output_file
        self._folder = f"{output_file}.parts"
        self._input_files = input_files
        sizes = [[path, files.file_size(path)] for path in input_files]
        settings = json.loads(json.dumps({**settings, "input_files": sizes}))
        path = os.path.join(self._folder, "settings.json")
        if not resume and files.gfile.exists(self._folder):
            files.gfile.rmtree(self._folder)
        if files.gfile.exists(path):
            self._check(files.read_json(path), settings)
        else:
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

    def is_finished(self, number: int) -> bool:
        """Returns whether the part of an input file, numbered from 0, is finished."""
        return files.gfile.exists(self._path(number, "json"))

    def open(self, number: int) -> contextlib.AbstractContextManager[codecs.StreamWriter]:
        """Opens the text file of a part for writing, as a context manager."""
        return files.atomic_write(self._path(number, "csv"))

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
        metadata = {"num_videos": num_videos, "corrupt_records": corrupt_records}
        files.write_json(self._path(number, "json"), metadata)

    def restore_corrupt_records(self, corrupt_log: CorruptRecordLog) -> None:
        """Adds the corrupt records of the finished parts to a log.

        Raises:
            InputError: if there are more than the log allows.
        """
        for number, metadata in self._finished():
            for index, offset, reason in metadata["corrupt_records"]:
                corrupt_log.add(RecordLocation(self._input_files[number], index, offset), reason)

    def num_videos(self) -> int:
        """Returns the number of lines in the finished parts."""
        return sum(metadata["num_videos"] for _, metadata in self._finished())

    def keep_finished(self) -> None:
        """Keeps the finished parts after an error, unless they are all empty.

        Logs how to resume with them.
        """
        if self.num_videos():
            finished = sum(1 for _ in self._finished())
            logging.info(
                "%d of %d input files are finished: %s. Run the same command to resume.",
                finished,
                len(self._input_files),
                self._folder,
            )
        else:
            files.gfile.rmtree(self._folder)

    def join(self) -> None:
        """Joins all parts into the output file, and removes them."""
        with files.atomic_write(self._output_file) as output:
            output.write(f"{HEADER}\n")
            for number in range(len(self._input_files)):
                with files.open_binary(self._path(number, "csv")) as part:
                    shutil.copyfileobj(part, output.stream)
        files.gfile.rmtree(self._folder)

    def _finished(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the number and the metadata of each finished part."""
        for number in range(len(self._input_files)):
            if self.is_finished(number):
                yield number, files.read_json(self._path(number, "json"))

    def _path(self, number, ending):
        return os.path.join(self._folder, f"{number:05d}.{ending}")
