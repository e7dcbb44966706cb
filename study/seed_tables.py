"""Tables of results over several seeds: saved, formatted and judged."""

import dataclasses
from typing import ClassVar

import pandas as pd

import files

# Differences of a metric up to this count as equal.
TOLERANCE = 0.005
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
    """Formats mean and standard deviation of a series; a dash if it is empty."""
    if not len(values):
        return "-"
    deviation = f" ± {values.std():.4f}" if len(values) > 1 else ""
    mean = round(values.mean(), 4) + 0.0  # Without the sign of a rounded -0.00001.
    return f"{mean:.4f}{deviation}"


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
        "equal": differences.abs().max() <= 5e-4,
    }[expected]
    return "holds" if holds else "**does not hold**"


def markdown_table(table):
    """Formats a `pandas.DataFrame` as a table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
