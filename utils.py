"""What everything else builds on: the input error and the YouTube-8M quantisation.

Needs neither TensorFlow nor Keras.
"""

import csv
import io
import re

import numpy as np

# A stored byte q stands for the feature value q * SCALE + OFFSET, which covers -2..2.
QUANTIZATION_SCALE = 4.0 / 255.0
QUANTIZATION_OFFSET = 4.0 / 512.0 - 2.0


class InputError(ValueError):
    """Bad input from the user: a flag, a file, a record or a setting.

    The message is a sentence that names the culprit, what was expected and what to do. Programs
    print it without a traceback.
    """


def dequantize(values):
    """Feature values (about -2..2) of quantised ones (0..255, already cast to a float type)."""
    return values * QUANTIZATION_SCALE + QUANTIZATION_OFFSET


def quantize(values):
    """Nearest bytes of feature values, a uint8 array: the inverse of `dequantize`, clipped."""
    steps = np.rint((np.asarray(values) - QUANTIZATION_OFFSET) / QUANTIZATION_SCALE)
    return np.clip(steps, 0, 255).astype(np.uint8)


# What a spreadsheet program takes for a formula that calls something. Arithmetic alone, as an id
# that begins with a hyphen may be, does no harm.
_FORMULA = re.compile(r"\s*[=+\-@].*[(|!]", re.DOTALL)


def csv_line(cells):
    """A line of CSV, with its end, that reads back as the cells.

    Cells with commas, quotes or line ends are quoted. One that a spreadsheet program would run as a
    formula gets an apostrophe before it, the only change.
    """
    text = io.StringIO(newline="")
    # The writer quotes only line ends that it uses itself, so it is given both.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([f"'{cell}" if _FORMULA.match(cell) else cell for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def comma_separated(names):
    """Names for an error message: `a, b, c`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"


def check_above(limit, **arguments):
    """Refuses numbers that are not above a limit.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value > limit:
            raise InputError(f"{name} must be above {limit}. Received: {value}")


def check_one_of(choices, **arguments):
    """Refuses values that are not among the choices.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise InputError(
                f"{name} must be one of {comma_separated(choices)}. Received: {value!r}"
            )


def check_at_least(least, **arguments):
    """Refuses numbers that are too small, or not numbers.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        if not value >= least:
            raise InputError(f"{name} must be at least {least}. Received: {value}")
