"""Labels and splits of videos, from a CSV or Parquet file with a row per video."""

import dataclasses
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from options import Options, option
from own_data import label_table
from own_data.clips import Clip
from own_data.label_table import cell_values
from utils import InputError, comma_separated, examples

# Other usual names of the splits.
_SPLIT_NAMES = {
    "training": "train",
    "val": "validate",
    "valid": "validate",
    "validation": "validate",
    "testing": "test",
}
_EVAL_FRACTION = 0.1
# Columns that hold the labels if no option names any.
_LABEL_COLUMNS = ("labels", "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelOptions(Options):
    """Options of labels and splits."""

    labels_file: str | None = option(
        None,
        "CSV or Parquet file with a row per video, or a row per video and label, and a header "
        "line. Default: the labels that the feature files hold.",
        group="labels",
    )
    id_column: str | None = option(
        None,
        "Column of --labels_file with the ids. An id may be a path: its folder and its ending are "
        "then ignored. Default: the first column.",
        group="labels",
    )
    label_columns: tuple[str, ...] | None = option(
        None,
        "Columns of --labels_file with labels, all of one vocabulary. Default: `labels` or "
        "`label`, or else the only other column.",
        group="labels",
    )
    label_separator: str = option(
        ";", "Text between several labels in a cell of --labels_file.", group="labels"
    )
    vocabulary: str | None = option(
        None,
        "CSV with the columns Index and Name that fixes the classes. Labels are then names or "
        "numbers of its classes. Default: numbers stay numbers; names become classes in "
        "descending order of frequency, names of equal frequency in alphabetical order.",
        group="labels",
    )
    keep_unlabeled: bool = option(
        False, "Also write videos without labels, for example for prediction.", group="labels"
    )
    split_column: str | None = option(
        None,
        "Column of --labels_file that assigns each video to train, validate, test or a split of "
        "another name. Default: splits by a hash of the id.",
        group="labels",
    )
    eval_fraction: float | None = option(
        None,
        "Fraction of the videos in validate, chosen by a hash of the id: a video stays in its "
        f"split when others are added. Default: {_EVAL_FRACTION}.",
        group="labels",
        at_least=0,
        below=1,
    )
    test_fraction: float | None = option(
        None,
        "Fraction of the videos in test, chosen like validate. Default: 0; without any labels, "
        "all videos belong to test.",
        group="labels",
        at_least=0,
        below=1,
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if not self.label_separator:
            raise InputError("--label_separator must be text. Received: an empty one")
        of_file = ("id_column", "label_columns", "split_column")
        given = [f"--{name}" for name in of_file if getattr(self, name) is not None]
        if given and self.labels_file is None:
            raise InputError(f"{comma_separated(given)} needs --labels_file.")
        if self.split_column is not None:
            given = [
                f"--{name}" for name in ("eval_fraction", "test_fraction") if getattr(self, name)
            ]
            if given:
                raise InputError(
                    f"--split_column and {comma_separated(given)} contradict each other. Give one "
                    "or the other."
                )
        elif sum(self.fractions) >= 1:
            raise InputError(
                "--eval_fraction and --test_fraction must leave videos for training. Received: "
                f"{self.fractions[0]} and {self.fractions[1]}"
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """Fractions of the videos in validate and in test."""
        validate = _EVAL_FRACTION if self.eval_fraction is None else self.eval_fraction
        return validate, self.test_fraction or 0.0


class Labels(NamedTuple):
    """Labels and split of a video.

    Attributes:
        names: distinct labels, as they are written, in the order of the file.
        split: name of its split; None if the file has none.
    """

    names: list[str]
    split: str | None = None


def labels_of(clip: Clip) -> Labels:
    """Returns the labels that the features of a video come with."""
    return Labels(list(dict.fromkeys(cell_values(clip.labels or []))))


# --- The file -------------------------------------------------------------------------------------


def read_labels(
    options: LabelOptions, video_ids: Collection[str] = frozenset()
) -> dict[str, Labels]:
    """Reads `--labels_file` and returns labels by id, as it is written there.

    Args:
        options: options of labels.
        video_ids: ids of the videos that have features.

    Raises:
        InputError: if the file cannot be read or lacks a header or a column, a row has no id, or
            rows assign a video to two splits.
    """
    path = options.labels_file
    assert path is not None
    table = label_table.read(path)
    _check_header(path, table, frozenset(video_ids))
    id_column, label_columns = _columns(table, options)
    label_cells = itertools.chain.from_iterable(table[column] for column in label_columns)
    label_table.warn_of_separator(path, label_cells, options.label_separator)
    cells = [table[column] for column in (id_column, *label_columns)]
    splits = [None] * len(cells[0]) if options.split_column is None else table[options.split_column]
    found: dict[str, Labels] = {}
    for number, (row, split) in enumerate(zip(zip(*cells, strict=True), splits, strict=True)):
        place = f"{path}, data row {number + 1}"
        video_id = "".join(cell_values(row[0]))
        if not video_id:
            raise InputError(f"{place}: the column {id_column!r} has no id.")
        if split is not None:
            split = _split_name(place, split)
        labels = found.setdefault(video_id, Labels([], split))
        if labels.split != split:
            raise InputError(
                f"{place}: {video_id!r} belongs to {split}, but to {labels.split} in an earlier "
                "row. Assign each video to one split."
            )
        for cell in row[1:]:
            for name in cell_values(cell, options.label_separator):
                if name not in labels.names:
                    labels.names.append(name)
    return found


def _check_header(path, names, video_ids):
    """Rejects a file whose first line belongs to a video, which would be lost."""
    found = [name for name in names if _video_of(name, video_ids) is not None]
    if found:
        raise InputError(
            f"the first line of {path} is no header: {found[0]!r} is the id of a video. Insert a "
            "first line with the names of the columns, for example: id,labels"
        )


def _columns(table, options):
    """Returns the name of the id column, and the names of the label columns."""
    names = list(table)
    id_column = options.id_column if options.id_column is not None else names[0]
    others = [name for name in names if name not in (id_column, options.split_column)]
    if options.label_columns is not None:
        label_columns = list(options.label_columns)
    else:
        usual = [name for name in _LABEL_COLUMNS if name in others]
        label_columns = usual[:1] or others
    wanted = [id_column, *label_columns, *filter(None, [options.split_column])]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            f"{options.labels_file} has no column {comma_separated(map(repr, missing))}. It has: "
            f"{comma_separated(map(repr, names))}. Choose columns with --id_column, "
            "--label_columns and --split_column."
        )
    if options.label_columns is None and len(label_columns) != 1:
        raise InputError(
            f"{options.labels_file} has no column named labels or label, and "
            f"{len(others)} columns in addition to the ids in {id_column!r}: "
            f"{comma_separated(map(repr, others))}. Name the columns with labels: "
            "--label_columns=NAME,..."
        )
    return id_column, label_columns


def _split_name(place, cell):
    name = "".join(cell_values(cell))
    if not re.fullmatch("[A-Za-z][A-Za-z_-]*", name):
        raise InputError(
            f"{place}: the split must be a word such as train, validate or test. Received: {name!r}"
        )
    return _SPLIT_NAMES.get(name.lower(), name.lower())


# --- Labels of the videos that have features ------------------------------------------------------


def match(
    found: Mapping[str, Labels], video_ids: Sequence[str], options: LabelOptions
) -> dict[str, Labels]:
    """Returns the labels of the videos that are to be written, in the order of `video_ids`.

    An id of the file stands for the video of the same id, or else for the video whose id it is
    without folder and ending. Logs warnings that count and name other ids on both sides.

    Args:
        found: labels by id, as in the file.
        video_ids: ids of the videos that have features.
        options: options of labels.

    Raises:
        InputError: if no id matches, no video has a label, two ids of the file match one video, or
            a video has no split.
    """
    origin = options.labels_file or "the feature files"
    written, unknown = _by_video(found, set(video_ids), origin)
    if not written and not options.keep_unlabeled:
        raise InputError(_no_match(found, video_ids, origin))
    if unknown:
        hint = _lost_zeros(unknown, video_ids)
        logging.warning("%s has %s without features.%s", origin, counted(unknown), hint)
    labels = {name: found[written[name]] if name in written else Labels([]) for name in video_ids}
    unlabeled = [name for name in video_ids if not labels[name].names]
    if len(unlabeled) == len(labels) and not options.keep_unlabeled:
        remedy = "Check --label_columns" if options.labels_file else "Give --labels_file"
        raise InputError(
            f"{origin}: none of {len(labels)} videos has a label. {remedy}; or, for prediction, "
            "give --keep_unlabeled with --like or --vocabulary, which writes them without labels."
        )
    if unlabeled and not options.keep_unlabeled:
        logging.warning(
            "%s without labels left out: --keep_unlabeled also writes them", counted(unlabeled)
        )
        for name in unlabeled:
            del labels[name]
    if options.split_column is not None:
        _check_splits(labels, origin)
    return labels


def _by_video(found, video_ids, origin):
    """Returns the id in the file by video, and the ids of the file that match no video."""
    written: dict[str, str] = {}
    unknown = []
    for name in found:
        video_id = _video_of(name, video_ids)
        if video_id is None:
            unknown.append(name)
        elif written.setdefault(video_id, name) != name:
            raise InputError(
                f"{origin}: the ids {written[video_id]!r} and {name!r} both match the video "
                f"{video_id!r}. Give each video one id."
            )
    return written, unknown


def _video_of(written, video_ids):
    """Returns the id of the video that an id of the file stands for, or None."""
    return next((name for name in (written, _stem(written)) if name in video_ids), None)


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _no_match(found, video_ids, origin):
    return (
        f"no id in {origin} is the id of a video. Ids in the file are "
        f"{examples(found)}; ids of videos are {examples(video_ids)}."
        f"{_lost_zeros(found, video_ids)} Choose the column with --id_column. The first line of "
        "the file must be a header."
    )


def _lost_zeros(found, video_ids):
    """Returns a sentence that names an id that equals that of a video as a number, or nothing."""
    by_number = {int(name): name for name in video_ids if name.isdecimal()}
    for name in found:
        stem = _stem(name)
        if stem.isdecimal() and int(stem) in by_number:
            return (
                f" Ids in the file may have lost leading zeros, such as {name!r} of "
                f"{by_number[int(stem)]!r}: write them as text."
            )
    return ""


def _check_splits(kept, origin):
    without = [name for name, labels in kept.items() if labels.split is None]
    if without:
        raise InputError(
            f"{origin} assigns {counted(without)} to no split. Add them, or leave out "
            "--keep_unlabeled."
        )


def counted(names: Collection[str]) -> str:
    """Returns the number of videos, with the first ids, for a message."""
    return f"{len(names)} video{'s'[: len(names) > 1]} ({examples(names)})"
