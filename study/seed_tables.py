"""Tables of results over several seeds: saved, formatted and judged."""

import dataclasses
from typing import ClassVar

import numpy as np
import pandas as pd
import tensorflow as tf

import files

# Differences of a metric up to this count as equal.
TOLERANCE = 0.005
# Difference of two representations of the same model.
_ROUNDING = 0.0005
# Seeds whose standard deviation is above this are not alike, and shown one by one.
ALIKE = 0.02
_SETTING = "setting.json"


@dataclasses.dataclass(frozen=True)
class SavedTables:
    """Base of dataclasses whose fields are tables, `pandas.DataFrame`, and a setting.

    Attributes:
        setting: dict with all that the tables depend on, JSON-serializable.
        made_by: the program that writes the files, for error messages.
    """

    setting: dict

    made_by: ClassVar[str]

    def save(self, folder):
        """Writes a CSV file per table, with six digits, and setting.json.

        Args:
            folder: `pathlib.Path`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            with files.atomic_write(str(folder / f"{name}.csv")) as file:
                getattr(self, name).to_csv(file, index=False, float_format="%.6g")
        files.write_json(str(folder / _SETTING), self.setting)

    @classmethod
    def load(cls, folder):
        """Reads the files that `save` wrote.

        Args:
            folder: `pathlib.Path`.

        Raises:
            InputError: if a file is missing.
        """
        _, setting = files.read_description(str(folder), _SETTING, cls.made_by, "report_dir")
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in cls.names()}
        return cls(**tables, setting=setting)

    @classmethod
    def names(cls):
        """Returns the names of the tables."""
        return [field.name for field in dataclasses.fields(cls) if field.type is pd.DataFrame]


def spread(values):
    """Formats mean and standard deviation of a series, and its values if they are not alike."""
    values_by_seed = f" ({by_seed(values, digits=3)})" if values.std() > ALIKE else ""
    return mean_and_deviation(values) + values_by_seed


def mean_and_deviation(values):
    """Formats mean and standard deviation of a series; a dash if it is empty."""
    if not len(values):
        return "-"
    deviation = f" ± {values.std():.4f}" if len(values) > 1 else ""
    return _rounded(values.mean(), 4) + deviation


def by_seed(values, digits=4):
    """Formats the values of a series, in the order of the seeds."""
    return ", ".join(_rounded(value, digits) for value in values)


def _rounded(value, digits):
    return f"{round(value, digits) + 0.0:.{digits}f}"  # Without the sign of a rounded -0.00001.


def verdict(differences, expected="above"):
    """Decides whether differences of GAP by seed are as expected.

    Args:
        differences: `pandas.Series`.
        expected: str. `above`: the mean is at least two standard deviations above 0. `not below`
            or `no gain`: it is within `TOLERANCE` of 0 on that side, including two standard
            deviations. `equal`: all differences are within 0.0005.
    """
    if len(differences) == 1:
        return "one seed, no verdict"
    mean, margin = differences.mean(), 2 * differences.std()
    if expected == "above" and mean < -margin:
        return "**the opposite holds**"
    holds = {
        "above": mean > margin,
        "not below": mean - margin >= -TOLERANCE,
        "no gain": mean + margin <= TOLERANCE,
        "equal": differences.abs().max() <= _ROUNDING,
    }[expected]
    return "holds" if holds else "**does not hold**"


def p_value(differences, expected="above"):
    """Returns the p-value of differences by seed in a one-sided t-test of what is expected.

    Args:
        differences: `pandas.Series` of at least two numbers.
        expected: str, as for `verdict`. Where it has a tolerance, the test is whether the mean is
            within it; `equal` has two sides, of which the larger p-value counts.
    """
    excess = {
        "above": [differences],
        "not below": [TOLERANCE + differences],
        "no gain": [TOLERANCE - differences],
        "equal": [_ROUNDING + differences, _ROUNDING - differences],
    }[expected]
    return max(map(_p_above_zero, excess))


def p_text(*test):
    """Formats the p-value of a test; a dash if there is only one seed."""
    if len(test[0]) == 1:
        return "-"
    p = p_value(*test)
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def _p_above_zero(values):
    """Returns the p-value of the mean of a series being above 0, by Student's t-test."""
    if not values.std():
        return float(values.mean() <= 0)
    degrees = len(values) - 1
    t = values.mean() / (values.std() / np.sqrt(len(values)))
    arguments = (degrees / 2, 0.5, degrees / (degrees + t**2))
    tail = tf.math.betainc(*(tf.constant(value, tf.float64) for value in arguments)).numpy() / 2
    return tail if t > 0 else 1 - tail


def claims_table(claims):
    """Returns a table of claims, measured differences and verdicts.

    Args:
        claims: iterable of tuples: claim, differences by seed, and for some `verdict`'s `expected`.
    """
    return pd.DataFrame(
        {
            "claim": claim,
            "difference": mean_and_deviation(differences),
            "by seed": by_seed(differences),
            "p": p_text(differences, *expected),
            "verdict": verdict(differences, *expected),
        }
        for claim, differences, *expected in claims
    )


def markdown_table(table):
    """Formats a `pandas.DataFrame` as a table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
