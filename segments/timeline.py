"""Timelines: files that state when in a video classes occur.

They are joined from parts that can be resumed, as files of predictions are. S is the number of
segments of a video, C that of classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

import dataset_info
from options import Options, option
from prediction_file import FileFormat, FileKind, join_text
from segments.ensemble import SegmentSettings
from utils import InputError, csv_line

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

    @property
    def file_format(self) -> FileFormat:
        """The format of the file and of its parts."""
        return FileFormat(**vars(self.kind), lines=self.lines, join=self.join)

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
