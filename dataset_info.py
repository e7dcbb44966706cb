"""The description of a data set: the file `dataset.json` next to its records.

It has what training must know of the records, and how they were made. `complete` takes from it the
settings of a run that no flag gives. docs/sample_data.md describes the format.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

import files
import record_writer
import vocabulary
from options import Options, option
from quantization import FeatureScale, FrameStorage, Quantization
from run_config import DataConfig, RunConfig
from utils import InputError, comma_separated

FILE = "dataset.json"
# What make_records.py writes first; without `FILE`, it was interrupted.
UNFINISHED = "make_records.json"
LEVELS = ("frame", "video")
# The split on which models are trained.
TRAIN = "train"
_NEED_OF_COUNTS = (
    "--label_smoothing and --class_balance_beta need the number of training videos of each class."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature(Options):
    """A feature of the records.

    Attributes:
        name: its name in the records.
        size: number of values, per frame or per video.
        dtype: how the values are stored, one of `quantization.DTYPES`; float32 at video level.
        quantization: range of bytes, as in `quantization.Quantization.as_json`; None for floats.
    """

    name: str = option(group="data")
    size: int = option(group="data", above=0)
    dtype: str = option(group="data")
    quantization: dict[str, Any] | None = None

    def __post_init__(self):
        """Checks every value."""
        super().__post_init__()
        if not self.name or not self.name.isprintable():
            raise InputError(f"--name must be printable text. Received: {self.name!r}")
        ranges = self.storage.quantization
        if ranges is not None and ranges.size not in (None, self.size):
            raise InputError(
                f"--quantization of {self.name} must have one range, or {self.size}. "
                f"Received: {ranges.size}"
            )

    @property
    def storage(self) -> FrameStorage:
        """How frames of the feature are stored."""
        try:
            ranges = self.quantization
            return FrameStorage(self.dtype, Quantization.from_json(ranges) if ranges else None)
        except InputError as error:
            raise InputError(f"--quantization of {self.name}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo(Options):
    """Description of a data set.

    Attributes:
        made_by: how the records were made, for example a command.
        level: "frame" for records with all frames, "video" for one vector per feature and video.
        features: the features of every record.
        num_classes: size of the vocabulary; labels are below it.
        max_frames: number of frames that no video exceeds; None if unknown.
        frames_per_second: None if unknown.
        vocabulary: path of the class names, relative to the directory of the file.
        videos: number of videos by split.

    Raises:
        InputError: if a value is not valid, or this version cannot read such features.
    """

    made_by: str | None = option(None, group="data")
    level: str = option(group="data", choices=LEVELS)
    features: tuple[Feature, ...]
    num_classes: int = option(group="data", above=0)
    max_frames: int | None = option(None, group="data", above=0)
    frames_per_second: float | None = option(None, group="data", above=0)
    vocabulary: str | None = option(None, group="data")
    videos: dict[str, int] | None = None

    def __post_init__(self):
        """Checks every value."""
        super().__post_init__()
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise InputError(f"--features must have distinct names. Received: {names}")
        others = [
            f"{feature.name} of {feature.dtype}"
            for feature in self.features
            if feature.dtype != "float32"
        ]
        if self.level == "video" and others:
            raise InputError(
                "--features of video-level records must be of dtype float32. Received: "
                f"{comma_separated(others)}"
            )
        counts = {} if self.videos is None else self.videos
        if not isinstance(counts, dict) or not all(
            type(count) is int and count >= 0 for count in counts.values()
        ):
            raise InputError(
                f"--videos must be numbers of videos by split. Received: {self.videos!r}"
            )

    def save(self, folder: str) -> None:
        """Writes `dataset.json` into the directory of the records, without values that are None."""
        values = dataclasses.asdict(
            self,
            dict_factory=lambda pairs: {key: value for key, value in pairs if value is not None},
        )
        files.write_json(os.path.join(folder, FILE), values)

    @classmethod
    def load(cls, path: str) -> "DatasetInfo":
        """Reads a `dataset.json`.

        Raises:
            InputError: naming file and key, if it is not valid.
        """
        values = files.read_json(path)
        _check_keys(path, cls, values)
        entries = values["features"]
        if not isinstance(entries, list):
            raise InputError(f"{path}: features must be a list. Received: {entries!r}")
        features = tuple(
            _build(f"{path}: features[{index}]", Feature, entry)
            for index, entry in enumerate(entries)
        )
        return _build(path, cls, {**values, "features": features})


def _build(place, cls, values):
    """Returns a dataclass made of a JSON object."""
    _check_keys(place, cls, values)
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{place}: {str(error).removeprefix('--')}") from error


def _check_keys(place, cls, values):
    """Rejects what is not a JSON object with the keys of a dataclass."""
    if not isinstance(values, dict):
        raise InputError(f"{place} must hold a JSON object. Received: {values!r}")
    fields = dataclasses.fields(cls)
    unknown = sorted(set(values) - {field.name for field in fields})
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if unknown or missing:
        raise InputError(
            f"{place} does not fit this version. Unknown keys: "
            f"{comma_separated(map(repr, unknown))}; missing keys: {comma_separated(missing)}."
        )


# --- The settings of a run ------------------------------------------------------------------------


def complete(config: RunConfig, given: Collection[str], paths: Sequence[str]) -> RunConfig:
    """Returns a config whose settings of the data come from `dataset.json`, unless flags give them.

    `--feature_names` may select some of the features, in any order. `--max_frames` is a limit of
    use, which may be smaller (longer videos are cut) or larger (for prediction on longer videos).
    Every other flag must have the value in the file.

    Args:
        config: config of the run.
        given: names of its settings that flags give.
        paths: record files. Without a `dataset.json` in their directories, nothing changes.

    Raises:
        InputError: if a file is not valid, files of several directories disagree, or the model or a
            flag does not fit.
    """
    infos = _load_all(paths)
    if not infos:
        return config
    _check_agreement(infos)
    path, info = next(iter(infos.items()))
    if info.level != _level(config):
        raise InputError(
            f"{config.model} is a {_level(config)}-level model, but {path} describes "
            f"{info.level}-level records. Choose another model or other records."
        )
    settings = _settings(info, config.feature_names if "feature_names" in given else None, path)
    for name, expected in settings.items():
        if name in given and _value(config, name) != expected:
            raise _contradiction(name, _value(config, name), path, expected)
    if "max_frames" not in given and info.level == "frame":
        limits = [info.max_frames or config.max_frames for info in infos.values()]
        settings["max_frames"] = max(limits)
    _warn_of_splits(info, path, paths)
    taken = " ".join(_flag(name, value) for name, value in settings.items() if name not in given)
    logging.info(
        "%s %s", path, f"describes the data: {taken}" if taken else "agrees with the flags"
    )
    return dataclasses.replace(config, **settings, **_quantization(info))


def _warn_of_splits(info, path, paths):
    """Warns if the files of a directory belong to several splits."""
    folder = os.path.dirname(path)
    names = {os.path.basename(file) for file in paths if os.path.dirname(file) == folder}
    found = set(map(record_writer.split_name, names))
    splits = [split for split in info.videos or () if split in found]
    if len(splits) > 1:
        logging.warning(
            "the pattern matches files of several splits: %s. Train on one of them, for example "
            "%s, and evaluate on another.",
            comma_separated(splits),
            os.path.join(folder, f"{splits[0]}*.tfrecord"),
        )


def _settings(info, names, path):
    """Returns the settings that follow from the description of the features with some names."""
    known = {feature.name: feature for feature in info.features}
    names = names or tuple(known)
    if not set(names) <= set(known):
        raise _contradiction("feature_names", names, path, tuple(known))
    features = [known[name] for name in names]
    settings = {
        "feature_names": names,
        "feature_sizes": tuple(feature.size for feature in features),
        "num_classes": info.num_classes,
    }
    if info.level == "frame":
        settings["feature_dtypes"] = tuple(feature.dtype for feature in features)
    return settings


def _quantization(info):
    ranges = {
        feature.name: feature.quantization for feature in info.features if feature.quantization
    }
    return {"quantization": ranges} if ranges else {}


def _value(config, name):
    if name == "feature_dtypes":
        return tuple(storage.dtype for storage in config.data.storages)
    return getattr(config, name)


def find_vocabulary(paths: Sequence[str]) -> str | None:
    """Returns the path of the class names of a data set.

    Args:
        paths: record files. Without a `dataset.json` that names a vocabulary, the result is None.

    Raises:
        InputError: if a vocabulary is missing, or those of several directories differ.
    """
    found = []
    for path, info in _load_all(paths).items():
        if info.vocabulary is not None:
            found.append(os.path.join(os.path.dirname(path), info.vocabulary))
            if not files.gfile.exists(found[-1]):
                raise InputError(
                    f"{path} names the vocabulary {found[-1]}, which is not there. Put it there, "
                    "correct that file, or give --class_names."
                )
    return vocabulary.same_class_names(found, "Use records of one data set, or give --class_names.")


def frames_per_second(paths: Sequence[str]) -> float | None:
    """Returns the frame rate that the `dataset.json` next to record files states; None for none.

    Raises:
        InputError: if those of several directories differ.
    """
    rates = {path: info.frames_per_second for path, info in _load_all(paths).items()}
    if len(set(rates.values())) > 1:
        stated = comma_separated(f"{path}: {rate}" for path, rate in rates.items())
        raise InputError(f"the records differ in frames_per_second ({stated}). Read them apart.")
    return next(iter(rates.values()), None)


def class_counts(paths: Sequence[str], num_classes: int) -> tuple[list[float], int]:
    """Returns the number of training videos with each class, and of all training videos.

    Args:
        paths: record files. Several directories add up.
        num_classes: number of classes.

    Raises:
        InputError: if no `dataset.json` next to them states the numbers.
    """
    counts, num_videos = np.zeros(num_classes), 0
    infos = _load_all(paths)
    for path, info in infos.items():
        in_training = (info.videos or {}).get(TRAIN, 0)
        if info.vocabulary is None or not in_training:
            raise InputError(
                f"{path} must name a vocabulary and state the number of videos in {TRAIN}. "
                f"{_NEED_OF_COUNTS}"
            )
        file = os.path.join(os.path.dirname(path), info.vocabulary)
        counts += vocabulary.read_numbers(file, vocabulary.COUNTS, num_classes, default=0.0)
        num_videos += in_training
    if not infos:
        raise InputError(
            f"there is no {FILE} next to the training records. Write one with the number of videos "
            f"in {TRAIN} and a vocabulary that has the column {vocabulary.COUNTS}. "
            f"{_NEED_OF_COUNTS}"
        )
    if counts.max() > num_videos:
        raise InputError(
            f"a class has {counts.max():.0f} training videos according to the vocabulary, but "
            f"{FILE} states {num_videos} videos in {TRAIN}."
        )
    return counts.tolist(), num_videos


def class_prior(paths: Sequence[str], num_classes: int) -> list[float]:
    """Returns the share of the training videos with each class; see `class_counts`."""
    counts, num_videos = class_counts(paths, num_classes)
    return [count / num_videos for count in counts]


def _load_all(paths):
    """Returns the descriptions in the directories of files, by path of the description."""
    found = {}
    for folder in sorted({os.path.dirname(path) for path in paths}):
        path = os.path.join(folder, FILE)
        try:
            exists = files.gfile.exists(path)
        except files.REMOTE_ERRORS as error:  # Some storage denies access to what is missing.
            logging.warning("took %s for missing: %s", path, error)
            continue
        if exists:
            found[path] = DatasetInfo.load(path)
        elif files.gfile.exists(os.path.join(folder, UNFINISHED)):
            raise InputError(
                f"the records in {folder} are not complete: {UNFINISHED} is there, but no {FILE}. "
                "Run the command of make_records.py again, which resumes."
            )
    return found


def _check_agreement(infos):
    (first, info), *others = infos.items()
    for path, other in others:
        for name in ("level", "features", "num_classes"):
            if getattr(info, name) != getattr(other, name):
                raise InputError(
                    f"{first} and {path} disagree: {name} is {_text(getattr(info, name))} and "
                    f"{_text(getattr(other, name))}. Train on one of the data sets."
                )


def _contradiction(name, value, path, expected):
    return InputError(
        f"{_flag(name, value)} contradicts {path}, which says {_flag(name, expected)}. Leave the "
        "flag out or give that value; if the file is wrong, correct it."
    )


def _level(config):
    return "frame" if config.frame_level else "video"


def _flag(name, value):
    return f"--{name}={_text(value)}"


def _described(feature):
    """Returns a feature as text, for example `rgb:1024 (uint8, min -2, max 2)`."""
    ranges = feature.storage.quantization
    if ranges is None:
        return f"{feature.name}:{feature.size} ({feature.dtype})"
    if ranges.size is None:
        return f"{feature.name}:{feature.size} (uint8, min {ranges.min:g}, max {ranges.max:g})"
    low, high = min(ranges.min), max(ranges.max)
    return f"{feature.name}:{feature.size} (uint8, a range per dimension, {low:g} to {high:g})"


def _text(value):
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(
        _described(entry) if isinstance(entry, Feature) else str(entry) for entry in value
    )


def check_storage(data: DataConfig, paths: Sequence[str]) -> None:
    """Rejects frames that a `dataset.json` says are stored otherwise than those of the model.

    Bytes of another range would otherwise be read without any error.

    Args:
        data: data that the model takes.
        paths: record files. Without a `dataset.json` in their directories, nothing is checked.

    Raises:
        InputError: naming file and feature.
    """
    for path, info in _load_all(paths).items():
        known = {feature.name: feature for feature in info.features if info.level == "frame"}
        for name, size, storage in zip(
            data.feature_names, data.feature_sizes, data.storages, strict=False
        ):
            if name in known and known[name].storage != storage:
                ranges = storage.quantization.as_json() if storage.quantization else None
                expected = Feature(name=name, size=size, dtype=storage.dtype, quantization=ranges)
                raise InputError(
                    f"{path} says that frames are stored as {_described(known[name])}, but the "
                    f"model takes {_described(expected)}. make_records.py --like=DATASET.JSON "
                    "stores new videos as those of the training data."
                )


def check_classes(data: DataConfig, paths: Sequence[str]) -> None:
    """Rejects records that a `dataset.json` says have another number of classes than the model.

    Args:
        data: data that the model takes.
        paths: record files. Without a `dataset.json` in their directories, nothing is checked.

    Raises:
        InputError: naming the file.
    """
    for path, info in _load_all(paths).items():
        if info.num_classes != data.num_classes:
            raise InputError(
                f"{path} says that the records have {info.num_classes} classes, but the model has "
                f"{data.num_classes}. Evaluate on records with the classes of the training data."
            )


def read_feature_scale(path: str) -> FeatureScale:
    """Reads a CSV file with the columns `factor` and `offset`, one row per value of a frame.

    Without the column `offset`, all offsets are 0.

    Raises:
        InputError: naming the file, if it has other columns, or entries that are no numbers.
    """
    try:
        with files.open_binary(path) as file:
            table = pd.read_csv(file)
        if "factor" not in table or not set(table) <= {"factor", "offset"}:
            raise InputError(f"it must have the columns factor and offset. It has: {list(table)}")
        values = table.astype(float)
        offset = values.get("offset", pd.Series(0.0, values.index))
        return FeatureScale(tuple(values["factor"]), tuple(offset))
    except (OSError, ValueError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot read the feature scale in {path}: {error}") from error
