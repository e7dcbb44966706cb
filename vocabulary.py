"""The classes of a data set: names and numbers, from labels to `vocabulary.csv`."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

import files
from utils import InputError, comma_separated, examples

FILE = "vocabulary.csv"
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
    names = files.read_class_names(vocabulary)
    numbers = {name: number for number, name in names.items() if name}
    if not set(counts) <= set(numbers) and all(map(_NUMBER.fullmatch, counts)):
        numbers = {label: _number(label) for label in counts}
    unknown = sorted(label for label in counts if numbers.get(label) not in names)
    if unknown:
        raise InputError(
            f"{vocabulary} lacks {len(unknown)} of {len(counts)} labels: {examples(unknown)}. Add "
            "them to the vocabulary, correct them, or leave out --vocabulary."
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
    """Writes the file that `files.read_class_names` reads: a row per class, with these columns."""
    with files.atomic_write(os.path.join(folder, FILE)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
