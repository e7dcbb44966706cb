"""Submissions: files with the best segments of each class, as for Kaggle.

They are joined from parts that can be resumed, as files of predictions are. S is the number of
segments of a video, C that of classes.
"""

import base64
import codecs
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

import files
import vocabulary
from options import Options, option
from prediction_file import FileFormat, FileKind, read_json_lines
from segments.ensemble import SegmentSettings
from segments.ranking import MAX_PREDICTIONS, RankedSegments
from utils import InputError, shortened

HEADER = "Class,Segments"
# Segments at the beginning and at the end of a video that YouTube-8M never rated.
UNRATED_FIRST, UNRATED_LAST = 6, 2
# Of a float32 in Base64.
_BYTES_PER_SCORE = 16 / 3
# Parts that take less are not worth a merge.
_MIN_MERGE_BYTES = 2**26
# Characters that a list of segments cannot hold.
_SEPARATORS = re.compile(r'[\s,"]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmissionOptions(Options):
    """Options of a file with the best segments of each class."""

    segment_label_ids_file: str | None = option(
        None,
        "File with the classes to rank, one number a line or a vocabulary.csv: the starter code's "
        "segment_label_ids.csv for YouTube-8M Segments. Default: all classes.",
        group="segments",
    )
    segment_max_pred: int = option(
        MAX_PREDICTIONS,
        "Segments of a class to list, at most; memory grows with it: 10 bytes per class.",
        group="segments",
        at_least=1,
    )
    skip_unrated_borders: bool = option(
        False,
        f"Leave out the first {UNRATED_FIRST} and the last {UNRATED_LAST} segments of each video, "
        "which YouTube-8M never rated.",
        group="segments",
    )

    def listed_classes(self, num_classes: int) -> list[int] | None:
        """Returns the classes in `segment_label_ids_file`, ascending; None for all.

        Raises:
            InputError: if the file does not fit a model of C classes.
        """
        path = self.segment_label_ids_file
        return vocabulary.read_classes(path, num_classes) if path else None


class Submission:
    """Format of a file that lists the best segments of each class, best first.

    A line of a part is a JSON object with a video's id, the number of its first segment, and the
    scores of its segments, float32 `[S, C]` in Base64. Parts are merged before they take much more
    space than the best segments. Scores take memory for the best segments only; of the videos, only
    the ids are kept.

    Args:
        options: the classes and how many segments to list.
        settings: the segments.
        num_classes: number of classes of the model.
        predicted_classes: the classes that predictions have; None for all.

    Raises:
        InputError: if the file of classes does not fit the model.
    """

    kind = FileKind("kaggle", ".csv", ".jsonl")

    def __init__(
        self,
        options: SubmissionOptions,
        settings: SegmentSettings,
        num_classes: int,
        predicted_classes: Sequence[int] | None = None,
    ):
        all_classes = range(num_classes)
        self.classes = list(options.listed_classes(num_classes) or all_classes)
        if predicted_classes is None:
            predicted_classes = all_classes
        self._columns = np.searchsorted(predicted_classes, self.classes)
        self._max_segments = options.segment_max_pred
        self._skip = (UNRATED_FIRST, UNRATED_LAST) if options.skip_unrated_borders else (0, 0)
        self._size = settings.size

    def identity(self) -> dict:
        """Returns what the parts depend on."""
        return {
            "segment_label_ids_file": self.classes,
            "skip_unrated_borders": self._skip,
            "segment_max_pred": self._max_segments,
        }

    @property
    def file_format(self) -> FileFormat:
        """The format of the file and of its parts."""
        # As many scores as a merged part has.
        size = _BYTES_PER_SCORE * len(self.classes) * self._max_segments
        return FileFormat(
            **vars(self.kind),
            lines=self.lines,
            join=self.join,
            merge=self.merge,
            merge_bytes=max(int(size), _MIN_MERGE_BYTES),
        )

    def lines(self, video_ids: Sequence[str], predictions: Sequence[tuple[int, np.ndarray]]) -> str:
        """Returns the lines of a part for videos.

        Segments with fewer frames than others are left out: nobody rates them.

        Args:
            video_ids: B ids.
            predictions: for each, its number of frames and probabilities `[S, C]`.

        Raises:
            InputError: naming an id that has white space, a comma or a quotation mark.
        """
        return "".join(
            self._line(video_id, *prediction)
            for video_id, prediction in zip(video_ids, predictions, strict=True)
        )

    def _line(self, video_id, num_frames, scores):
        if _SEPARATORS.search(video_id):
            raise InputError(
                f"the id {video_id!r} has a character that separates the segments of a list. "
                "Choose --output_format=timeline."
            )
        first, last = self._skip
        whole = scores[first : max(num_frames // self._size - last, 0), self._columns]
        row = {"id": video_id, "first": first, "scores": _encoded(whole, "<f4")}
        return json.dumps(row) + "\n"

    def join(self, parts: Sequence[str], output_file: str) -> None:
        """Writes the best segments in parts."""
        best = _BestSegments(len(self.classes), self._max_segments, parts)
        with files.atomic_write(output_file) as output:
            output.write(f"{HEADER}\n")
            for label, names in zip(self.classes, best.names(self._size), strict=True):
                output.write(f"{label},{' '.join(names)}\n")

    def merge(self, parts: Sequence[str], stream: codecs.StreamWriter) -> None:
        """Writes a part with the best segments in parts only."""
        _BestSegments(len(self.classes), self._max_segments, parts).write(stream)


class _BestSegments:
    """The best segments of each class in parts, which are numbered in the order of the parts."""

    def __init__(self, num_classes, max_segments, parts):
        self._num_classes = num_classes
        self._ranked = RankedSegments(num_classes, max_segments)
        # Of each video, its id, what to add to the number of a segment for its number in the
        # video, and the end of its segments.
        self._videos = []
        rows = read_json_lines(parts)
        for row in rows:
            if "videos" in row:
                self._videos = row["videos"]
                self._ranked.restore(map(_read_list, itertools.islice(rows, num_classes)))
            else:
                self._add(row["id"], row["first"], _decoded(row["scores"], "<f4"))

    def _add(self, video_id, first, scores):
        start = self._videos[-1][-1] if self._videos else 0
        scores = scores.reshape(-1, self._num_classes)
        end = start + len(scores)
        self._ranked.add(scores, np.arange(start, end))
        self._videos.append((video_id, first - start, end))

    def write(self, stream):
        """Writes a line with the videos, and one for each class with its segments, best first."""
        stream.write(json.dumps({"videos": self._videos}) + "\n")
        for numbers, scores in self._ranked.lists():
            row = {"numbers": _encoded(numbers, "<i4"), "scores": _encoded(scores, "<f4")}
            stream.write(json.dumps(row) + "\n")

    def names(self, segment_size):
        """Yields the names of the segments of each class, best first."""
        ids, *numbers_of_videos = zip(*self._videos, strict=True)
        offsets, ends = map(np.array, numbers_of_videos)
        for numbers, _ in self._ranked.lists():
            videos = np.searchsorted(ends, numbers, side="right")
            starts = (numbers + offsets[videos]) * segment_size
            pairs = zip(videos.tolist(), starts.tolist(), strict=True)
            yield [f"{ids[video]}:{start}" for video, start in pairs]


def _read_list(row):
    return _decoded(row["numbers"], "<i4"), _decoded(row["scores"], "<f4")


def _encoded(values, dtype):
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def _decoded(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def read_submission(
    path: str, max_segments: int = MAX_PREDICTIONS
) -> Iterator[tuple[int, list[str]]]:
    """Yields the classes of a file of predictions and the names of their segments, best first.

    A line has a class, a comma and names of segments, separated by spaces. The header
    `Class,Segments` may be missing. A segment that a class lists again counts once.

    Args:
        path: file to read.
        max_segments: entries of a class to read, K.

    Raises:
        InputError: naming the line, if it is of another format, or its class occurred before.
    """
    seen = set()
    with io.TextIOWrapper(files.open_for_library(path), "utf-8-sig", "backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or (number == 1 and line == HEADER):
                continue
            label, comma, names = line.partition(",")
            if not comma or not label.isdecimal():
                raise InputError(
                    f"line {number} of {path} must be a class number, a comma and segments such as "
                    f"VIDEO_ID:15, separated by spaces. Received: {shortened(line)}"
                )
            if int(label) in seen:
                raise InputError(
                    f"line {number} of {path} is the second one of class {label}. Put all segments "
                    "of a class into one line."
                )
            seen.add(int(label))
            yield int(label), list(dict.fromkeys(names.split()[:max_segments]))
