"""CSV files of predictions: their lines, and the parts of one that is not finished yet."""

import json
import os
import shutil

from absl import logging

import eval_util
import files
from records import RecordLocation
from utils import InputError, comma_separated, csv_line

HEADER = "VideoId,LabelConfidencePairs"


def format_lines(video_ids, predictions, top_k):
    """Lines `id,class score class score ...` of the file, best class first, as one str.

    Args:
        video_ids: sequence of B str.
        predictions: `[B, C]` probabilities.
        top_k: int. Classes per video.
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
    """The parts of a prediction file, one for each input file, in the directory `FILE.parts`.

    A part is `NUMBER.csv`, its lines, and `NUMBER.json`, what is known about it, which is written
    last: with it the part is finished. A run that is killed so leaves whole parts to another one.

    Args:
        output_file: str. The file that the parts will be joined to.
        settings: dict that JSON can hold: all that the lines depend on beside the input.
        input_files: list of str.
        resume: bool. Whether to go on with parts that are there; else they are removed.

    Raises:
        InputError: if there are parts of other settings.
    """

    def __init__(self, output_file, settings, input_files, *, resume):
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
                f"{self._folder} holds what an unfinished run has done with another value of "
                f"{comma_separated(differing)}. Give the same model, flags and input files to go on, or "
                "--noresume to start over."
            )

    def is_finished(self, number):
        """Whether the part of an input file is finished, by the file's number from 0."""
        return files.gfile.exists(self._path(number, "json"))

    def open(self, number):
        """Opens the lines of a part for writing: a context manager of a text file."""
        return files.atomic_write(self._path(number, "csv"))

    def finish(self, number, num_videos, corrupt_records):
        """Finishes a part whose lines are written.

        Args:
            number: int. Of the input file.
            num_videos: int. Number of its lines.
            corrupt_records: `records.CorruptRecordLog` of all input files.
        """
        corrupt_records = [
            (location.index, location.offset, reason)
            for location, reason in corrupt_records.of_file(self._input_files[number]).items()
        ]
        facts = {"num_videos": num_videos, "corrupt_records": corrupt_records}
        files.write_json(self._path(number, "json"), facts)

    def restore_corrupt_records(self, corrupt_records):
        """Adds the damaged records of finished parts to a `records.CorruptRecordLog`.

        Raises:
            InputError: if they are more than allowed.
        """
        for number, facts in self._finished():
            for index, offset, reason in facts["corrupt_records"]:
                corrupt_records.add(
                    RecordLocation(self._input_files[number], index, offset), reason
                )

    def num_videos(self):
        """Number of lines of the finished parts."""
        return sum(facts["num_videos"] for _, facts in self._finished())

    def keep_finished(self):
        """Keeps the finished parts after an error and says how to go on, if they have any line."""
        if self.num_videos():
            finished = sum(1 for _ in self._finished())
            logging.info(
                "%d of %d input files are finished: %s. The same command goes on with them.",
                finished,
                len(self._input_files),
                self._folder,
            )
        else:
            files.gfile.rmtree(self._folder)

    def join(self):
        """Writes the output file from all parts, and removes them."""
        with files.atomic_write(self._output_file) as output:
            output.write(f"{HEADER}\n")
            for number in range(len(self._input_files)):
                with files.open_binary(self._path(number, "csv")) as part:
                    shutil.copyfileobj(part, output.stream)
        files.gfile.rmtree(self._folder)

    def _finished(self):
        """Number and facts of the finished parts."""
        for number in range(len(self._input_files)):
            if self.is_finished(number):
                yield number, files.read_json(self._path(number, "json"))

    def _path(self, number, ending):
        return os.path.join(self._folder, f"{number:05d}.{ending}")
