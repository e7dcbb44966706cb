"""Submissions: files with the best segments of each class, as for Kaggle.

They are joined from parts that can be resumed, as files of predictions are. S is the number of
segments of a video, C that of classes.
"""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

import files
import vocabulary
from options import Options, option
from prediction_file import FileKind, read_json_lines
from segments.ensemble import SegmentSettings
from segments.ranking import MAX_PREDICTIONS, RankedSegments
from utils import InputError, shortened

HEADER = "Class,Segments"
# Segments at the beginning and at the end of a video that YouTube-8M never rated.
UNRATED_FIRST, UNRATED_LAST = 6, 2
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


class Submission:
    """Format of a file that lists the best segments of each class, best first.

    A line of a part is a JSON object with a video's id, the number of its first segment, and the
    scores of its segments, float32 `[S, C]` in Base64. Scores take memory for the best segments
    only; of the videos, only the ids are kept.

    Args:
        options: the classes and how many segments to list.
        settings: the segments.
        num_classes: number of classes of the model.

    Raises:
        InputError: if the file of classes does not fit the model.
    """

    kind = FileKind("kaggle", ".csv", ".jsonl")

    def __init__(self, options: SubmissionOptions, settings: SegmentSettings, num_classes: int):
        path = options.segment_label_ids_file
        self.classes = (
            vocabulary.read_classes(path, num_classes) if path else list(range(num_classes))
        )
        self._max_segments = options.segment_max_pred
        self._skip = (UNRATED_FIRST, UNRATED_LAST) if options.skip_unrated_borders else (0, 0)
        self._size = settings.size

    def identity(self) -> dict:
        """Returns what the parts depend on."""
        return {"classes": self.classes, "skipped_segments": self._skip}

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
        whole = scores[first : max(num_frames // self._size - last, 0), self.classes]
        content = base64.b64encode(whole.astype("<f4").tobytes()).decode()
        return json.dumps({"id": video_id, "first": first, "scores": content}) + "\n"

    def join(self, parts: Sequence[str], output_file: str) -> None:
        """Writes the best segments in parts."""
        ranked = RankedSegments(len(self.classes), self._max_segments)
        # Of each video, its id, the number of its first segment, and the end of its segments when
        # those of all videos are numbered.
        ids, firsts, ends = [], [], []
        end = 0
        for row in read_json_lines(parts):
            scores = np.frombuffer(base64.b64decode(row["scores"]), "<f4")
            scores = scores.reshape(-1, len(self.classes))
            start, end = end, end + len(scores)
            ranked.add(scores, np.arange(start, end))
            ids.append(row["id"])
            firsts.append(row["first"] - start)
            ends.append(end)
        with files.atomic_write(output_file) as output:
            output.write(f"{HEADER}\n")
            for label, (numbers, _) in zip(self.classes, ranked.lists(), strict=True):
                videos = np.searchsorted(ends, numbers, side="right")
                starts = (numbers + np.array(firsts)[videos]) * self._size
                names = zip(videos.tolist(), starts.tolist(), strict=True)
                listed = " ".join(f"{ids[video]}:{start}" for video, start in names)
                output.write(f"{label},{listed}\n")


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
