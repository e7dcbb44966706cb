"""The classes of a data set: names and numbers, from labels to `vocabulary.csv`."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import logging

import files
from utils import InputError, comma_separated, examples

FILE = "vocabulary.csv"
# Column with the number of training videos of each class, as YouTube-8M names it.
COUNTS = "TrainVideoCount"
_NUMBER = re.compile(r"(-?[0-9]+)(\.0)?")
# Larger numbers are ids of another kind.
_MAX_CLASSES = 10**6
# Groups of similar names that a warning lists.
_NUM_SIMILAR = 10


class Classes(NamedTuple):
    """The classes of a data set.

    Attributes:
        names: name by class.
        numbers: class by label.
    """

    names: dict[int, str]
    numbers: dict[str, int]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return max(self.names) + 1


def classes(labels: Iterable[Sequence[str]], vocabulary: str | None = None) -> Classes:
    """Returns the classes of labels.

    Args:
        labels: labels of all videos.
        vocabulary: CSV file that fixes the classes; labels are then its names or, if a label is not
            a name, its numbers. Without it, numbers stay numbers, and names become classes in
            descending order of frequency, names of equal frequency in alphabetical order.

    Raises:
        InputError: if there are no labels, a label is not in the vocabulary, or a number cannot be
            a class.
    """
    counts = Counter(name for video in labels for name in video)
    if vocabulary is not None:
        return _vocabulary_classes(counts, vocabulary)
    if not counts:
        raise InputError(
            "no video has a label. Without labels, --vocabulary must give the classes."
        )
    if all(map(_NUMBER.fullmatch, counts)):
        return _number_classes(counts)
    _warn_of_similar(counts)
    names = dict(enumerate(sorted(counts, key=lambda name: (-counts[name], name))))
    return Classes(names, {name: number for number, name in names.items()})


def _warn_of_similar(counts):
    """Warns of names that differ only in case or white space, which become several classes."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    similar = [" and ".join(map(repr, sorted(group))) for group in groups.values() if group[1:]]
    if similar:
        logging.warning(
            "names that differ only in case or spaces become different classes: %s",
            comma_separated(similar[:_NUM_SIMILAR]),
        )


def _vocabulary_classes(counts, vocabulary):
    names = read_class_names(vocabulary)
    numbers = {name: number for number, name in names.items() if name}
    if not set(counts) <= set(numbers) and all(map(_NUMBER.fullmatch, counts)):
        numbers = {label: _number(label) for label in counts}
    unknown = sorted(label for label in counts if numbers.get(label) not in names)
    if unknown:
        raise InputError(
            f"{vocabulary} lacks {len(unknown)} of {len(counts)} labels: {examples(unknown)}. Add "
            "them to the vocabulary, correct them, or give another --vocabulary or none."
        )
    return Classes(names, numbers)


def _number_classes(counts):
    numbers = {label: _number(label) for label in counts}
    low, high = min(numbers.values()), max(numbers.values())
    if low < 0 or high >= _MAX_CLASSES:
        raise InputError(
            f"labels that are numbers must be classes, 0 to N - 1. Received: {low} to {high}. Map "
            "them to classes, or give their names in --vocabulary."
        )
    return Classes({number: str(number) for number in range(high + 1)}, numbers)


def _number(label):
    return int(_NUMBER.fullmatch(label)[1])


def write(folder: str, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes the file that `read_class_names` reads: a row per class, with these columns."""
    with files.atomic_write(os.path.join(folder, FILE)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


# --- Reading --------------------------------------------------------------------------------------


def read_class_names(path: str, num_classes: int | None = None) -> dict[int, str]:
    """Reads names by class from a vocabulary.csv, with columns Index and Name as in YouTube-8M.

    Other columns and empty rows are ignored. Logs a warning if classes have no name.

    Args:
        path: file to read.
        num_classes: number of classes of the model; None accepts every class.

    Raises:
        InputError: naming the row, if it does not name a class or names one again.
    """
    try:
        with files.open_binary(path) as file:
            content = file.read()
        text = content.decode("utf-8-sig")
    except (OSError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot read the class names in {path}: {error}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"row {line} of {path} is not UTF-8 text. Save the class names as CSV in UTF-8."
        ) from error
    names: dict[int, str] = {}
    number = 0
    rows = enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1)
    try:
        number, header = next(rows, (1, []))
        columns = [cell.strip() for cell in header]
        if not {"Index", "Name"} <= set(columns):
            raise InputError(
                f"{path} must have the columns Index and Name, separated by commas. It has: "
                f"{', '.join(columns)}"
            )
        for number, row in rows:
            if any(cell.strip() for cell in row):
                label, name = _class_name(f"row {number} of {path}", columns, row, num_classes)
                if label in names:
                    raise InputError(
                        f"row {number} of {path} names class {label}, which an earlier row names."
                    )
                names[label] = name
    except csv.Error as error:
        raise InputError(f"{path} is not valid CSV after row {number}: {error}") from error
    num_named = sum(map(bool, names.values()))
    if not num_named:
        raise InputError(f"{path} names no class.")
    if num_classes is not None and num_named < num_classes:
        logging.warning("%s names only %d of %d classes", path, num_named, num_classes)
    return names


def read_classes(path: str, num_classes: int) -> list[int]:
    """Reads some classes from a file: a number in each line, or before its first comma.

    The first line may be a header, such as `Index`. Repeated classes count once.

    Args:
        path: file to read, such as segment_label_ids.csv or a vocabulary.csv.
        num_classes: number of classes of the model.

    Returns:
        The classes in ascending order.

    Raises:
        InputError: naming the line, if it has no class of the model; or if there is none.
    """
    try:
        with files.open_binary(path) as file:
            lines = file.read().decode("utf-8-sig", "backslashreplace").splitlines()
    except (OSError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot read the classes in {path}: {error}") from error
    found = set()
    for number, line in enumerate(lines, start=1):
        cell = line.partition(",")[0].strip()
        if not cell or (number == 1 and not _NUMBER.fullmatch(cell)):
            continue
        if not cell.isascii() or not cell.isdecimal() or int(cell) >= num_classes:
            raise InputError(
                f"line {number} of {path} must have a class of the model, 0 to {num_classes - 1}. "
                f"Received: {cell!r}"
            )
        found.add(int(cell))
    if not found:
        raise InputError(f"{path} has no class. Put the number of a class into each line.")
    return sorted(found)


def read_numbers(
    path: str, column: str, num_classes: int, default: float | None = None
) -> list[float]:
    """Reads a number for each class from a CSV file, such as a vocabulary.csv.

    Args:
        path: file with the columns `Index` and `column`. Other columns are ignored.
        column: column with the numbers.
        num_classes: number of classes.
        default: number of a class without row; None if every class must have one.

    Raises:
        InputError: naming the file, if a class has no row, several, or no number of 0 or more.
    """
    try:
        with files.open_binary(path) as file:
            table = pd.read_csv(file, skipinitialspace=True)
        missing = sorted({"Index", column} - set(table))
        if missing:
            raise InputError(f"it has no column {comma_separated(missing)}, but: {list(table)}")
        found = table.set_index("Index")[column].astype(float)
        wrong = found[~(np.isfinite(found) & (found >= 0))]
        if len(wrong):
            raise InputError(f"{column} must be at least 0. Received: {wrong.iloc[0]}")
        unknown = [index for index in found.index if index not in range(num_classes)]
        if unknown or found.index.has_duplicates:
            raise InputError(
                f"Index must have classes from 0 to {num_classes - 1}, each once. It has: "
                f"{examples(unknown or found.index[found.index.duplicated()])}"
            )
        numbers = [found.get(index, default) for index in range(num_classes)]
        if None in numbers:
            raise InputError(f"class {numbers.index(None)} of {num_classes} has no row.")
    except (OSError, ValueError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot read {column} of the classes in {path}: {error}") from error
    return [float(number) for number in numbers]


def same_class_names(paths: Sequence[str], remedy: str) -> str | None:
    """Returns the first of several vocabularies, which must name every class alike.

    Args:
        paths: files to compare; without any, the result is None.
        remedy: sentence for the error.

    Raises:
        InputError: if two of them name a class differently, or one cannot be read.
    """
    for path in paths[1:]:
        names, others = read_class_names(paths[0]), read_class_names(path)
        differing = sorted(
            label for label in {*names, *others} if names.get(label, "") != others.get(label, "")
        )
        if differing:
            label = differing[0]
            raise InputError(
                f"{paths[0]} and {path} name {len(differing)} classes differently, such as class "
                f"{label}: {names.get(label, '')!r} and {others.get(label, '')!r}. {remedy}"
            )
    return paths[0] if paths else None


def unique_names(names: Mapping[int, str]) -> dict[str, int]:
    """Returns the classes of the names that only one class has, by name."""
    counts = Counter(names.values())
    return {name: number for number, name in names.items() if name and counts[name] == 1}


def find_classes(
    labels: Sequence[str], names: Mapping[int, str], num_classes: int, place: str
) -> list[int]:
    """Returns the classes of labels, which are names or, if one is not a name, numbers.

    Args:
        labels: labels, each once.
        names: names by class; empty without a vocabulary.
        num_classes: number of classes.
        place: where the labels come from, for the error.

    Raises:
        InputError: if a label is no class, or two labels are the same class.
    """
    numbers = unique_names(names)
    if not set(labels) <= set(numbers) and all(map(_NUMBER.fullmatch, labels)):
        numbers = {
            label: number for label in labels if 0 <= (number := _number(label)) < num_classes
        }
    unknown = [label for label in labels if label not in numbers]
    if unknown:
        words = f"names that only one class has, such as {examples(list(names.values())[:2])}"
        kinds = words if names else "names, if that run had a vocabulary.csv"
        raise InputError(
            f"{place}: {len(unknown)} of {len(labels)} are no classes: {examples(unknown)}. "
            f"Expected: numbers from 0 to {num_classes - 1}, or {kinds}."
        )
    found = [numbers[label] for label in labels]
    if len(set(found)) < len(found):
        repeated = [label for label in labels if found.count(numbers[label]) > 1]
        raise InputError(f"{place}: these are the same class: {examples(repeated)}.")
    return found


def _class_name(place, columns, row, num_classes):
    """Returns class and name of a row of a vocabulary."""
    if len(row) != len(columns):
        raise InputError(
            f"{place} has {len(row)} cells instead of {len(columns)}. Put names with commas in "
            "double quotes."
        )
    index = row[columns.index("Index")].strip()
    end = 10**9 if num_classes is None else num_classes
    if not re.fullmatch("[0-9]{1,9}", index) or int(index) >= end:
        raise InputError(
            f"{place}: Index must be a class of the model, 0 to {end - 1}. Received: {index!r}"
        )
    return int(index), row[columns.index("Name")].strip()
