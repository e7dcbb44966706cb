"""The summary of written records: counts and warnings, and the report that shows them."""

import dataclasses
import os
import shlex
from collections import Counter

from absl import logging

import files
from dataset_info import DatasetInfo
from own_data.record_plan import RecordPlan
from own_data.record_state import RecordState
from own_data.video_labels import counted
from vocabulary import Classes

# Share of clipped values above which bytes are questionable.
_LARGE_SHARE = 0.001
# Number of classes that the report names.
_NUM_CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of the written data set.

    Attributes:
        info: its description.
        files: paths of the record files.
        num_bytes: total size of the record files.
        without_labels: number of videos left out because they have no labels.
        without_frames: ids of the videos left out because they have no frames.
        clipped: share of the values that bytes could not represent, by feature.
        class_names: name by class.
        class_videos: number of written videos by class, without classes that have none.
    """

    info: DatasetInfo
    files: list[str]
    num_bytes: int
    without_labels: int
    without_frames: list[str]
    clipped: dict[str, float]
    class_names: dict[int, str]
    class_videos: Counter[int]


def summarize(
    info: DatasetInfo,
    state: RecordState,
    plan: RecordPlan,
    classes: Classes,
    num_videos: int,
    folder: str,
) -> Summary:
    """Returns a summary of the records in a directory, and logs warnings.

    Args:
        info: description of the data set.
        state: the finished state of the directory.
        plan: the videos of the records.
        classes: the classes.
        num_videos: number of videos in the input.
        folder: the directory.
    """
    counts = [found for found in state.files.values() if found is not None]
    without_frames = [name for found in counts for name in found.without_frames]
    if without_frames:
        logging.warning("%s without frames left out", counted(without_frames))
    clipped = {}
    for feature in info.features:
        all_zero = [name for found in counts for name in found.all_zero.get(feature.name, ())]
        if all_zero:
            logging.warning("%s is zero in %s", feature.name, counted(all_zero))
        num_values = sum(found.values.get(feature.name, 0) for found in counts)
        if num_values:
            num_clipped = sum(found.clipped[feature.name] for found in counts if found.values)
            clipped[feature.name] = num_clipped / num_values
    _warn_of_clipped(clipped)
    written = plan.classes.keys() - set(without_frames)
    paths = [os.path.join(folder, name) for name in state.files]
    return Summary(
        info=info,
        files=paths,
        num_bytes=sum(map(files.file_size, paths)),
        without_labels=num_videos - len(plan.classes),
        without_frames=without_frames,
        clipped=clipped,
        class_names=classes.names,
        class_videos=Counter(number for name in written for number in plan.classes[name]),
    )


def _warn_of_clipped(clipped):
    for name, share in clipped.items():
        if share > _LARGE_SHARE:
            logging.warning(
                "%.2f %% of the values of %s are beyond the range of the bytes. --storage=float16 "
                "clips none; fitted ranges per dimension, the default, clip less than others.",
                *(100 * share, name),
            )


def report(summary: Summary, folder: str) -> str:
    """Returns lines that describe the records in a directory, and the command to run next."""
    videos = summary.info.videos or {}
    counts = ", ".join(f"{count:,} {split}" for split, count in videos.items())
    dropped = {
        "without labels": summary.without_labels,
        "without frames": len(summary.without_frames),
    }
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    features = ", ".join(
        f"{feature.name} ({feature.size} values, {feature.dtype}{_clipped(summary, feature.name)})"
        for feature in summary.info.features
    )
    return "\n".join(
        [
            f"videos    {counts}",
            f"left out  {left_out or 'none'}",
            f"features  {features}",
            f"classes   {_classes(summary)}",
            f"files     {len(summary.files):,}, {summary.num_bytes / 1e6:,.1f} MB: {folder}",
            "",
            _next_command(summary, folder),
        ]
    )


def _clipped(summary, name):
    return f", {summary.clipped[name]:.4%} clipped" if name in summary.clipped else ""


def _classes(summary):
    """Returns the number of classes, and the most frequent ones with their numbers of videos."""
    total, found = summary.info.num_classes, summary.class_videos
    if not found:
        return f"{total:,}"
    # Of equal numbers, the first classes.
    most = sorted(found, key=lambda number: (-found[number], number))[:_NUM_CLASSES]
    shown = [f"{summary.class_names[number]} {found[number]:,}" for number in most]
    shown += ["..."] * (len(found) > len(most))
    empty = f" ({total - len(found):,} without videos)" if len(found) < total else ""
    return f"{total:,}{empty}: {', '.join(shown)}"


def _next_command(summary, folder):
    """Returns the command that trains on the records, or predicts them if they cannot train."""
    if summary.class_videos and "train" in (summary.info.videos or {}):
        pattern = os.path.join(folder, "train*.tfrecord")
        flags = ["train.py", "--model=DbofModel", f"--train_data_pattern={pattern}"]
        return f"To train on them:\n{shlex.join(['python', *flags, '--train_dir=run'])}"
    pattern = os.path.join(folder, "*.tfrecord")
    flags = ["inference.py", "--train_dir=run", f"--input_data_pattern={pattern}"]
    flags += ["--output_format=csv", "--output_file=predictions.csv"]
    return f"To predict them with the model in run:\n{shlex.join(['python', *flags])}"
