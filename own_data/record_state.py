"""The state of a directory into which make_records.py writes, from which it resumes."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

import dataset_info
import files
import vocabulary
from dataset_info import Feature
from files import gfile
from own_data.clips import Clip
from utils import InputError, examples

FILE = dataset_info.UNFINISHED


@dataclasses.dataclass
class FileCounts:
    """Counts of the videos of a record file.

    Attributes:
        videos: number of videos written.
        max_frames: largest number of frames.
        without_frames: ids of the videos without frames, which are not written.
        all_zero: ids of the videos whose values are all zero, by feature.
        values: number of values stored as bytes, by feature.
        clipped: number of those beyond the range of the bytes.
    """

    videos: int = 0
    max_frames: int = 0
    without_frames: list[str] = dataclasses.field(default_factory=list)
    all_zero: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    values: dict[str, int] = dataclasses.field(default_factory=dict)
    clipped: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, clip: Clip, stored: Mapping[str, np.ndarray], clipped: Mapping[str, int]) -> None:
        """Counts a video with its stored values and the numbers of values beyond their range."""
        self.videos += 1
        for name, values in stored.items():
            self.max_frames = max(self.max_frames, len(values))
            if clip.features[name].dtype != np.uint8 and not clip.features[name].any():
                self.all_zero.setdefault(name, []).append(clip.video_id)
        for name, count in clipped.items():
            self.values[name] = self.values.get(name, 0) + stored[name].size
            self.clipped[name] = self.clipped.get(name, 0) + count


@dataclasses.dataclass
class RecordState:
    """What has been written into a directory, and how to continue.

    Attributes:
        settings: options and input on which the content of the files depends.
        features: how the features are stored.
        videos_per_file: number of videos per record file.
        video_bytes: size of a record, about.
        files: counts of each record file, None for those not written yet.
    """

    settings: dict[str, Any]
    features: tuple[Feature, ...]
    videos_per_file: int
    video_bytes: float
    files: dict[str, FileCounts | None]

    def save(self, folder: str) -> None:
        """Writes the state into the directory of the records."""
        files.write_json(os.path.join(folder, FILE), dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str) -> "RecordState":
        """Reads a state.

        Raises:
            InputError: if the file holds none.
        """
        path = os.path.join(folder, FILE)
        values = files.read_json(path)
        try:
            values["features"] = tuple(Feature(**feature) for feature in values["features"])
            values["files"] = {
                name: counts and FileCounts(**counts) for name, counts in values["files"].items()
            }
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} does not fit this version. Remove its directory.") from error

    def missing(self, folder: str) -> list[str]:
        """Returns the names of the record files that are not written yet, or not there."""
        return [
            name
            for name, counts in self.files.items()
            if counts is None or not gfile.exists(os.path.join(folder, name))
        ]


def resume(folder: str, settings: dict[str, Any], overwrite: bool) -> RecordState | None:
    """Returns the state of a directory, or None if a new one is to be made.

    Args:
        folder: directory for the records; created if missing.
        settings: values for JSON that the directory must have been written with.
        overwrite: whether to remove records that were written with other settings.

    Raises:
        InputError: if the directory holds files of another data set, or records written with other
            settings and `overwrite` is false, naming those settings.
    """
    gfile.makedirs(folder)
    names = gfile.listdir(folder)
    if FILE not in names:
        known = (dataset_info.FILE, vocabulary.FILE)
        others = sorted(name for name in names if name in known or name.endswith(".tfrecord"))
        if others:
            raise InputError(
                f"{folder!r} holds files of another data set ({examples(others)}). Choose another "
                "--output_dir."
            )
        return None
    state = RecordState.load(folder)
    if state.settings == settings:
        return state
    if not overwrite:
        raise _other_settings(folder, state.settings, settings)
    _remove(folder, state)
    return None


def _other_settings(folder, there, now):
    changes = "; ".join(
        f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
    )
    return InputError(
        f"{folder} holds records made with other settings ({changes}). Give the same flags to "
        "resume, another --output_dir, or --overwrite to replace them."
    )


def _remove(folder, state):
    """Removes the files of a state, the description first."""
    for name in (dataset_info.FILE, *state.files, vocabulary.FILE, FILE):
        path = os.path.join(folder, name)
        if gfile.exists(path):
            gfile.remove(path)
