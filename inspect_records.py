"""Reports the content of record files, and the command that trains on them.

    python inspect_records.py --input_data_pattern='data/train*.tfrecord'

The report has the level of the records, the size and values of every feature, frames and labels per
video, frequent and rare classes, and damaged records.
"""

import contextlib
import dataclasses
import json
import math
import shlex
from collections.abc import Iterator
from typing import Any

import program
from program import Progress

from absl import logging

import dataset_info
import files
import records
import vocabulary
from options import Options, arguments, option
from quantization import DTYPES
from record_statistics import RecordStatistics
from run_config import ReadOptions, RunConfig
from utils import InputError, aligned_table, comma_separated

# The model in the command and the kinds of features that training reads, by level.
_MODELS = {"frame": "DbofModel", "video": "MoeModel"}
_READABLE = {"frame": ("frames of bytes", "frames of floats"), "video": ("floats",)}
# Sizes of a feature that a table lists; of more, it shows the smallest and the largest.
_NUM_SIZES = 3
_DEFAULT_NAMES = ("rgb", "audio", "mean_rgb", "mean_audio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """Options of this program."""

    input_data_pattern: str = option(
        help="Globs of records, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    max_records: int | None = option(
        None,
        "Read at most about this many records, taken evenly from the files; the command then fits "
        "only these. Default: all.",
        group="data",
        above=0,
    )
    class_names: str | None = option(
        None, "vocabulary.csv of the data set; adds names to classes.", group="data"
    )
    format: str = option(
        "table", "Print tables or a JSON object.", group="output", choices=("table", "json")
    )


def inspect(
    paths: list[str], max_records: int | None = None
) -> tuple[RecordStatistics, dict[str, int]]:
    """Reads record files.

    Args:
        paths: files to read.
        max_records: number of records to read, taken evenly from the first files; None for all.

    Returns:
        The statistics of the records, and the numbers `files`, `compressed_files` and `empty_files`
        (without an intact record).

    Raises:
        InputError: if a file cannot be read.
    """
    statistics = RecordStatistics()
    paths = paths[:max_records]
    per_file = math.ceil(max_records / len(paths)) if max_records else math.inf
    counts = {"files": len(paths), "compressed_files": 0, "empty_files": 0}
    done, size = 0, None if max_records else sum(map(files.file_size, paths))
    with Progress(size, "B") as progress:
        for path in paths:
            number = 0
            with records.TFRecordFile(path, statistics.damaged) as file:
                while number < per_file and (record := file.read()) is not None:
                    statistics.add(*record)
                    number += 1
                    done += file.pop_bytes_read()
                    progress.tick(done, f"{statistics.num_records} records")
                counts["compressed_files"] += file.is_compressed
            counts["empty_files"] += not number
    return statistics, counts


# --- The command ----------------------------------------------------------------------------------


def training(
    statistics: RecordStatistics, paths: list[str], pattern: str, num_classes: int
) -> dict[str, Any]:
    """Finds the flags with which training reads the records.

    Args:
        statistics: statistics of the records.
        paths: files of the records.
        pattern: value of --input_data_pattern that matches them, one pattern per line.
        num_classes: size of the vocabulary.

    Returns:
        A dict with the keys `train_command`: command line that trains on the records, or None;
        `problem`: why there is none, or None; `unusable`: a list of dicts with the number of
        `records` that the command skips, the location of the `first` one, and the `reason`.
    """
    unusable: list[dict[str, Any]] = []
    try:
        config = _config(statistics, num_classes)
        without_flags = dataset_info.complete(RunConfig(config.model), (), paths)
        options = _read_options(statistics, config)
        with _only_errors_logged():
            # A dataset.json knows more than the records, for example of classes without videos.
            config = dataset_info.complete(config, ("feature_names", "feature_sizes"), paths)
            unusable = _unusable(statistics, config.data.reader(paths, options))
            to_skip = statistics.damaged.total + sum(entry["records"] for entry in unusable)
            options = dataclasses.replace(options, skip_corrupt_records=to_skip)
            config.data.reader(paths, options).check_first_records()
    except InputError as error:
        return {"train_command": None, "problem": str(error), "unusable": unusable}
    settings = {"model": config.model, "train_data_pattern": pattern}
    settings |= {name: value for name, (value, _) in config.differences(without_flags).items()}
    for name, value in options.read_options().items():
        if value != getattr(ReadOptions, name):
            settings[name] = value
    command = shlex.join(["python", "train.py", *arguments(settings), "--train_dir=run"])
    return {"train_command": command, "problem": None, "unusable": unusable}


def _unusable(statistics, reader):
    """Returns a description of the records that a reader does not take, for each reason."""
    found: dict[str, dict[str, Any]] = {}
    for layout in statistics.layouts:
        if layout.is_exact:
            fault = reader.fault(layout.location, layout.payload)
            reason = fault and f"{fault}. {fault.remedy_for_all}".rstrip(". ")
        else:
            reason = "too many combinations of features and sizes, some of which may be usable"
        if reason:
            first = {"records": 0, "first": str(layout.location), "reason": reason}
            found.setdefault(reason, first)["records"] += layout.count
    return list(found.values())


def _config(statistics, num_classes):
    """Returns the config of a simple model that takes the features that training can read."""
    if not statistics.num_records:
        raise InputError("the files have no intact record.")
    level, num_records = statistics.levels.most_common(1)[0]
    common = {
        key: values
        for key, values in statistics.features.items()
        if 2 * values.records > num_records
    }
    features = {
        name: _size_and_dtype(kind, values)
        for (name, kind), values in common.items()
        if kind in _READABLE[level] and values.common_size is not None
    }
    # Single numbers, such as times, are no features, unless there are no others.
    features = {name: found for name, found in features.items() if found[0] > 1} or features
    # The reader says why it does not take other frames.
    features = features or {
        name: (values.common_size or 1, "uint8")
        for (name, kind), values in common.items()
        if kind.startswith("frames of")
    }
    if not features:
        found = comma_separated(f"{name} ({kind})" for name, kind in statistics.features)
        raise InputError(
            "most records have neither frames (feature lists of a SequenceExample) nor a vector "
            f"of floats (in an Example). They have: {found}. docs/sample_data.md describes the "
            "formats."
        )
    names = sorted(features, key=lambda name: (_order(name), name))
    return RunConfig(
        _MODELS[level],
        num_classes=max(num_classes, 1),
        feature_names=tuple(names),
        feature_sizes=tuple(features[name][0] for name in names),
        feature_dtypes=tuple(features[name][1] for name in names) if level == "frame" else None,
        max_frames=max([RunConfig.max_frames, *statistics.num_frames]),
    )


def _size_and_dtype(kind, values):
    """Returns number and dtype of the values per frame."""
    size = values.common_size
    if kind == "frames of floats":
        return size, "float_list"
    float_type = values.float_type
    if float_type in DTYPES:
        return size // DTYPES[float_type].itemsize, float_type
    return size, "uint8"


def _order(name):
    return _DEFAULT_NAMES.index(name) if name in _DEFAULT_NAMES else len(_DEFAULT_NAMES)


def _read_options(statistics, config):
    """Returns the options that let training read videos that lack features or frames."""
    level = "frame" if config.frame_level else "video"
    counts = [
        max(statistics.features[name, kind].records for kind in _READABLE[level])
        for name in config.feature_names
    ]
    return ReadOptions(
        missing_features="zeros" if min(counts) < statistics.levels[level] else "error",
        trim_features=statistics.unequal_frames > 0,
    )


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# --- The report -----------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """Formats the JSON object of this program as tables and sentences."""
    damaged = [f"{place}: {reason}." for place, reason in found["first_damaged"].items()]
    if found["damaged_records"] > len(damaged):
        damaged.append(f"{found['damaged_records'] - len(damaged):,} more")
    sections = [
        "\n".join(f"{name:8}{text}" for name, text in _summary(found)),
        _feature_table(found["features"]),
        _class_table(found),
        "\n".join(f"damaged: {text}" for text in damaged),
    ]
    if found["train_command"]:
        sections += [
            "\n".join(
                f"skipped in training: {entry['records']:,}, first {entry['first']}: "
                f"{entry['reason']}."
                for entry in found["unusable"]
            ),
            f"To train on them:\n{found['train_command']}",
        ]
    else:
        sections.append(f"Training cannot read them: {found['problem']}")
    text = "\n\n".join(filter(None, sections))
    # Names in files of others may hold control characters, which a terminal would obey.
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def _summary(found):
    """Yields pairs of a name and a text."""
    levels = {f"{level}-level": count for level, count in found["levels"].items()}
    ids = {f"named {name}": count for name, count in found["ids"].items()}
    counts = {
        "files": {"compressed": found["compressed_files"], "without records": found["empty_files"]},
        "records": {
            **levels,
            "with rated segments": found["rated_segments"],
            "damaged": found["damaged_records"],
        },
        "ids": {**ids, "missing": found["without_id"], "repeated": found["repeated_ids"]},
        "frames": {"videos with unequal numbers": found["unequal_frames"]},
        "labels": {"videos without integers in 'labels'": found["without_labels"]},
        "classes": {"without videos": max(found["num_classes"] - found["classes_with_videos"], 0)},
    }
    texts = {
        "files": f"{found['files']:,}",
        "records": f"{found['records']:,}",
        "ids": f"{found['records'] - found['without_id']:,}",
        "frames": _per_video(found["frames_per_video"]),
        "labels": _per_video(found["labels_per_video"]),
        "classes": f"{found['num_classes']:,}",
    }
    for name, text in texts.items():
        more = [f"{what}: {count:,}" for what, count in counts[name].items() if count]
        yield name, "; ".join([text, *more])
    ratings = found["ratings"]
    if ratings["pairs"]:
        yield (
            "ratings",
            "{segments:,} segments, {pairs:,} pairs of a segment and a class, {rated_1:,} of them "
            "rated 1; {classes:,} classes".format(**ratings),
        )
    if ratings["faulty_records"]:
        yield (
            "",
            "records with ratings that are not usable: {faulty_records:,}, the first {first_fault}"
            "".format(**ratings),
        )
    if found["other_label_names"]:
        yield "", f"other names that may hold labels: {comma_separated(found['other_label_names'])}"


def _per_video(spread):
    if spread is None:
        return "none"
    return "{min:,} to {max:,} per video, median {median:,}, mean {mean:.2f}".format(**spread)


def _feature_table(features):
    header = ("feature", "records", "size", "min", "max", "mean", "NaN or infinite")
    rows = []
    for entry in features:
        kind = entry["kind"] + (f" ({entry['float_type']})" if entry["float_type"] else "")
        numbers = ["" if entry[key] is None else f"{entry[key]:.5g}" for key in header[3:6]]
        share = f"{entry['not_finite']:.1%}" if entry["not_finite"] else ""
        rows.append(
            (f"{entry['name']}: {kind}", f"{entry['records']:,}", _sizes(entry), *numbers, share)
        )
    return aligned_table(header, rows) if rows else ""


def _sizes(entry):
    """Returns the sizes of a feature, with the number of records if there are several."""
    sizes = entry["sizes"]
    if len(sizes) == 1:
        return next(iter(sizes))
    if len(sizes) > _NUM_SIZES:
        return f"{next(iter(sizes))} to {list(sizes)[-1]}"
    return ", ".join(f"{size} ({count:,})" for size, count in sizes.items())


def _class_table(found):
    rows = [
        (f"{entry['class']} {entry['name']}", f"{entry['videos']:,}")
        for entry in [*found["frequent_classes"], *found["rare_classes"]]
    ]
    if found["classes_with_videos"] > len(rows):
        rows.insert(len(found["frequent_classes"]), ("...", "..."))
    return aligned_table(("class", "videos"), rows) if rows else ""


def main(options: InspectOptions) -> None:
    """Runs the program."""
    names = vocabulary.read_class_names(options.class_names) if options.class_names else {}
    paths = files.expand_patterns(options.input_data_pattern)
    statistics, counts = inspect(paths, options.max_records)
    found = {**counts, **statistics.describe(names)}
    found |= training(statistics, paths, options.input_data_pattern, found["num_classes"])
    print(json.dumps(found, indent=2) if options.format == "json" else report(found))


if __name__ == "__main__":
    program.run(main)
