"""Shared base: `InputError`, feature quantization, CSV lines and checks of arguments.

Needs neither TensorFlow nor Keras.
"""

import csv
import io
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# A stored byte q represents the feature value q * SCALE + OFFSET; the 256 values cover -2..2.
QUANTIZATION_SCALE = 4.0 / 255.0
QUANTIZATION_OFFSET = 4.0 / 512.0 - 2.0

# The package under which Keras finds the classes of saved models.
KERAS_PACKAGE = "youtube8m"


class InputError(ValueError):
    """Bad input from the user: a flag, a file, a record or a setting.

    The message names the culprit, what was expected and the remedy. Programs print it without a
    traceback.
    """


def dequantize(values: Any) -> Any:
    """Returns the feature values (about -2..2) of stored bytes (0..255) cast to a float type."""
    return values * QUANTIZATION_SCALE + QUANTIZATION_OFFSET


def quantize(values: ArrayLike) -> np.ndarray:
    """Returns the nearest bytes to feature values, uint8: the inverse of `dequantize`, clipped."""
    steps = np.rint((np.asarray(values) - QUANTIZATION_OFFSET) / QUANTIZATION_SCALE)
    return np.clip(steps, 0, 255).astype(np.uint8)


# Matches cells that a spreadsheet program would run as a formula that calls something. Mere
# arithmetic, such as an id that begins with a hyphen, is harmless.
_FORMULA = re.compile(r"\s*[=+\-@].*[(|!]", re.DOTALL)


def csv_line(cells: Iterable[str]) -> str:
    """Returns a line of CSV, with its newline, that reads back as the cells.

    Cells with commas, quotes or line breaks are quoted. The only change to a cell is an apostrophe
    in front of text that a spreadsheet program would run as a formula.
    """
    text = io.StringIO(newline="")
    # The writer quotes only the line breaks that its own terminator contains, so it gets both.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([f"'{cell}" if _FORMULA.match(cell) else cell for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def comma_separated(names: Iterable) -> str:
    """Returns names for an error message: `a, b, c`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"


def check_above(limit: float, **arguments: float) -> None:
    """Rejects numbers that are not above a limit.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value > limit:
            raise InputError(f"{name} must be above {limit}. Received: {value}")


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


def check_at_least(least: float, **arguments: float) -> None:
    """Rejects numbers below a minimum, and NaN.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value >= least:
            raise InputError(f"{name} must be at least {least}. Received: {value}")
