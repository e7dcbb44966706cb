"""Shared base: `InputError`, CSV lines, tables, checks of arguments and work ahead in a thread.

Needs neither TensorFlow nor Keras.
"""

import concurrent.futures
import contextlib
import importlib
import itertools
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

# The package under which Keras finds the classes of saved models.
KERAS_PACKAGE = "youtube8m"

_Item = TypeVar("_Item")
# Names that a message lists.
_NUM_EXAMPLES = 10
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class InputError(ValueError):
    """Bad input from the user: a flag, a file, a record or a setting.

    The message names the culprit, what was expected and the remedy. Programs print it without a
    traceback.
    """


def import_optional(module: str, need: str, extra: str) -> ModuleType:
    """Imports a module of a package that only some uses need.

    Args:
        module: name of the module.
        need: what needs which package, for the error.
        extra: the optional dependencies of this project that have the package.

    Raises:
        InputError: if the package is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{need}: {error}. Run: pip install '.[{extra}]'") from error


def one_ahead(items: Generator[_Item]) -> Iterator[_Item]:
    """Yields the items of a generator; a thread already makes the next one meanwhile.

    An error of the generator is raised when its item is due. At the end the generator is closed.
    """
    end: Any = object()
    with contextlib.closing(items), concurrent.futures.ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item


def static_shape(tensor: Any) -> list[int | None] | None:
    """Returns the shape that a tensor is known to have, or None if its rank is unknown."""
    try:
        return list(tensor.shape)
    except ValueError:  # Inside a function that TensorFlow has traced for inputs of several ranks.
        return None


# Matches the start of cells that spreadsheet programs may run as formulas; they skip white space
# and control characters, and read wide forms of the four signs, too.
_FORMULA = re.compile(r"[\s\0-\x1f\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]+")
# Line breaks, and the separators that spreadsheet programs know.
_QUOTED = re.compile(r'[,;\t"\r\n]')


def csv_line(cells: Iterable[str]) -> str:
    """Returns a line of CSV, with its newline, that reads back as the cells.

    Cells with separators, quotes or line breaks are quoted. The only change to a cell is an
    apostrophe in front of text that a spreadsheet program could run as a formula; an id of letters,
    digits, hyphens and underscores never changes.
    """
    return ",".join(map(_csv_cell, cells)) + "\n"


def _csv_cell(text):
    if _FORMULA.match(text) and not _PLAIN_ID.fullmatch(text):
        text = f"'{text}"
    if _QUOTED.search(text):
        return '"{}"'.format(text.replace('"', '""'))
    return text


def aligned_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns lines of columns: the first aligned to the left, the others to the right."""
    lines = [header, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, values, others)]).rstrip()
        for name, *values in lines
    )


def shortened(value: Any, width: int = 100) -> str:
    """Returns the representation of a value for an error message, cut in the middle if long."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"


def comma_separated(names: Iterable) -> str:
    """Returns names for an error message: `a, b, c`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"


def examples(names: Collection) -> str:
    """Returns the first names for an error message: `'a', 'b', ...`, or `none`."""
    shown = comma_separated(map(repr, itertools.islice(names, _NUM_EXAMPLES)))
    return f"{shown}, ..." if len(names) > _NUM_EXAMPLES else shown


def check_above(limit: float, **arguments: float) -> None:
    """Rejects numbers that are not above a limit.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value > limit:
            raise InputError(f"{name} must be above {limit}. Received: {value}")


def check_finite(**arguments: float) -> None:
    """Rejects NaN, what is infinite in float32, and integers that no size, count or seed can be.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if isinstance(value, int):
            if abs(value) >= 2**32:
                raise InputError(f"{name} must be below 2**32. Received: {value}")
        elif not abs(value) <= _LARGEST_FLOAT32:
            raise InputError(f"{name} must be finite. Received: {value}")


def check_one_of(choices: Collection, **arguments: Any) -> None:
    """Rejects values that are not among the choices.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise InputError(
                f"{name} must be one of {comma_separated(choices)}. Received: {value!r}"
            )


def check_share(**arguments: float) -> None:
    """Rejects numbers that are not at least 0 and below 1.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must be at least 0 and below 1. Received: {value}")


def check_at_least(least: float, **arguments: float) -> None:
    """Rejects numbers below a minimum, and NaN.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value >= least:
            raise InputError(f"{name} must be at least {least}. Received: {value}")
