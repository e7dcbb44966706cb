"""Files of predicted segments: submissions as for Kaggle, and timelines.

They are joined from parts that can be resumed, as files of predictions are. S is the number of
segments of a video, C that of classes.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

import dataset_info
import files
import segments
import vocabulary
from options import Options, option
from prediction_file import FileKind, join_text, read_json_lines
from segment_ensemble import SegmentSettings
from utils import InputError, csv_line

# Segments at the beginning and at the end of a video that YouTube-8M never rated.
UNRATED_FIRST, UNRATED_LAST = 6, 2
# Characters that a list of segments cannot hold.
_SEPARATORS = re.compile(r'[\s,"]')

# --- Submissions ----------------------------------------------------------------------------------


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
        segments.MAX_PREDICTIONS,
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
        ranked = segments.RankedSegments(len(self.classes), self._max_segments)
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
            output.write(f"{segments.HEADER}\n")
            for label, (numbers, _) in zip(self.classes, ranked.lists(), strict=True):
                videos = np.searchsorted(ends, numbers, side="right")
                starts = (numbers + np.array(firsts)[videos]) * self._size
                names = zip(videos.tolist(), starts.tolist(), strict=True)
                listed = " ".join(f"{ids[video]}:{start}" for video, start in names)
                output.write(f"{label},{listed}\n")


# --- Timelines ------------------------------------------------------------------------------------

COLUMNS = ("id", "start", "end", "start_seconds", "end_seconds", "class", "name", "score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimelineOptions(Options):
    """Options of a file that states when classes occur."""

    threshold: float = option(
        0.5,
        "Probability from which a class counts as occurring in a segment.",
        group="segments",
        at_least=0,
    )
    median_filter: int = option(
        1,
        "Smooth the probabilities of each class by the median over this odd number of segments.",
        group="segments",
        at_least=1,
    )
    min_duration: int = option(
        1,
        "Frames that an occurrence must last; shorter ones are left out.",
        group="segments",
        at_least=1,
    )
    frames_per_second: float | None = option(
        None,
        "Frames per second of the records, for times in seconds; 1 for YouTube-8M. Default: that "
        "in the dataset.json next to the records.",
        group="segments",
        above=0,
    )

    def __post_init__(self):
        """Checks the filter."""
        super().__post_init__()
        if self.median_filter % 2 == 0:
            raise InputError(f"--median_filter must be odd. Received: {self.median_filter}")


class Timeline:
    """Format of a CSV file with a row for each occurrence of a class in a video.

    Args:
        options: smoothing and limits.
        settings: the segments.
        paths: record files; a `dataset.json` next to them may state their frames per second.
        class_names: names by class, or None.

    Raises:
        InputError: if the records have several frame rates.
    """

    kind = FileKind("timeline", ".csv", ".csv", has_names=True)

    def __init__(
        self,
        options: TimelineOptions,
        settings: SegmentSettings,
        paths: Sequence[str],
        class_names: Mapping[int, str] | None = None,
    ):
        self._options = options
        self._size = settings.size
        self._names = class_names or {}
        self._rate = options.frames_per_second or dataset_info.frames_per_second(paths)

    def identity(self) -> dict:
        """Returns what the parts depend on."""
        names = [field.name for field in dataclasses.fields(TimelineOptions)]
        options = {name: getattr(self._options, name) for name in names}
        return {**options, "frames_per_second": self._rate, "class_names": self._names}

    def lines(self, video_ids: Sequence[str], predictions: Sequence[tuple[int, np.ndarray]]) -> str:
        """Returns the rows of videos; see `Submission.lines` for the arguments."""
        return "".join(
            csv_line((video_id, *self._row(*found)))
            for video_id, (num_frames, scores) in zip(video_ids, predictions, strict=True)
            for found in self._occurrences(num_frames, scores)
        )

    def join(self, parts: Sequence[str], output_file: str) -> None:
        """Writes the rows in parts, after a header."""
        join_text(parts, output_file, csv_line(COLUMNS))

    def _occurrences(self, num_frames, scores):
        options = self._options
        found = occurrences(median_filtered(scores, options.median_filter), options.threshold)
        for first, end, label, score in found:
            start, end = first * self._size, min(end * self._size, num_frames)
            if end - start >= options.min_duration:
                yield start, end, label, score

    def _row(self, start, end, label, score):
        seconds = [f"{frame / self._rate:.10g}" if self._rate else "" for frame in (start, end)]
        name = self._names.get(label, "")
        return str(start), str(end), *seconds, str(label), name, f"{score:g}"


def median_filtered(scores: np.ndarray, width: int) -> np.ndarray:
    """Returns the median of scores `[S, C]` over an odd number of segments around each.

    The first and the last segment are repeated beyond the ends of the video.
    """
    padded = np.pad(scores, ((width // 2, width // 2), (0, 0)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.median(windows, axis=-1)


def occurrences(scores: np.ndarray, threshold: float) -> list[tuple[int, int, int, float]]:
    """Returns runs of segments in which a class has at least some score.

    Args:
        scores: `[S, C]`.
        threshold: smallest score of a run.

    Returns:
        For each run, its first segment, the one after its last, its class and its mean score; in
        order of the first segment and then of the class.
    """
    is_above = np.pad(scores >= threshold, ((1, 1), (0, 0))).astype(np.int8)
    changes = np.diff(is_above, axis=0).T
    found = zip(np.argwhere(changes > 0).tolist(), np.argwhere(changes < 0).tolist(), strict=True)
    runs = [
        (first, end, label, float(scores[first:end, label].mean()))
        for (label, first), (_, end) in found
    ]
    return sorted(runs, key=lambda run: (run[0], run[2]))


KINDS = {found.kind.name: found.kind for found in (Submission, Timeline)}
