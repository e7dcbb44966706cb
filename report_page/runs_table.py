"""A table of runs as text, Markdown or CSV, from what their directories hold.

Needs neither Jinja nor matplotlib.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from report_page import history
from report_page.history import Run
from utils import aligned_table, csv_line

# The columns of numbers: title for readers, format, and whether a larger number is better.
COLUMNS: dict[str, tuple[str, str, bool]] = {
    "best_gap": ("best GAP", "{:.4f}", True),
    "best_step": ("at step", "{:d}", True),
    "gap": ("GAP", "{:.4f}", True),
    "map": ("mAP", "{:.4f}", True),
    "hit_at_one": ("Hit@1", "{:.4f}", True),
    "loss": ("loss", "{:.4f}", False),
    "eval_step": ("evaluated", "{:d}", True),
    "step": ("step", "{:d}", True),
    "mib": ("MiB", "{:.2f}", False),
    "examples_per_s": ("examples/s", "{:.0f}", True),
}
# The curves of training that a table needs.
CURVES = ("examples/s",)
SORT_CHOICES = ("run", *COLUMNS)
_MISSING = "-"
_NOTE = (
    "GAP, mAP, Hit@1 and loss: the newest evaluation. best GAP: the highest of all evaluations. "
    "evaluated: step of the newest evaluation. step: the newest checkpoint. MiB: weights in "
    f"float32. examples/s: median of the log lines of training. Then follow the settings of "
    f"which the runs have different values. {_MISSING}: missing."
)


class RunsTable:
    """Rows of numbers, and of the settings of which the runs have different values.

    Args:
        runs: the runs.
        sort_by: one of `SORT_CHOICES`; the best come first, runs without a value last.
    """

    def __init__(self, runs: Sequence[Run], sort_by: str = "best_gap"):
        # A setting that only some models have, with equal values, follows from the model.
        differences = {
            name: values
            for name, values in history.differing_settings([run.config for run in runs]).items()
            if len(set(values) - {""}) > 1
        }
        rows = [
            {"run": run.name, **_numbers(run), **{name: c[i] for name, c in differences.items()}}
            for i, run in enumerate(runs)
        ]
        self.settings = list(differences)
        self.rows = sorted(rows, key=lambda row: _sort_key(row, sort_by))

    def text(self) -> str:
        """Returns aligned columns, with a note that explains them."""
        header, rows = self._for_readers()
        return f"{aligned_table(header, rows)}\n\n{textwrap.fill(_NOTE, 100)}\n"

    def markdown(self) -> str:
        """Returns a Markdown table, with a note that explains it."""
        header, rows = self._for_readers()
        align = ["---", *["---:"] * (len(header) - 1)]
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, align, *rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{_NOTE}\n"

    def csv(self) -> str:
        """Returns comma-separated values with full precision; missing ones are empty."""
        names = ["run", *COLUMNS, *self.settings]
        rows = [
            ["" if row[name] is None else str(row[name]) for name in names] for row in self.rows
        ]
        return "".join(map(csv_line, [names, *rows]))

    def _for_readers(self):
        header = ["run", *(title for title, _, _ in COLUMNS.values()), *self.settings]
        rows = [
            [
                row["run"],
                *(_formatted(row[name], style) for name, (_, style, _) in COLUMNS.items()),
                *(row[name] or _MISSING for name in self.settings),
            ]
            for row in self.rows
        ]
        return header, rows


def _numbers(run: Run) -> dict[str, Any]:
    newest = run.evaluations[-1] if run.evaluations else {}
    best = run.best_evaluation or {}
    speeds = run.training.get("examples/s", ((), ()))[1]
    return {
        "best_gap": best.get("gap"),
        "best_step": best.get("step"),
        **{name: newest.get(name) for name in ("gap", "map", "hit_at_one", "loss")},
        "eval_step": newest.get("step"),
        "step": run.step,
        "mib": run.mib,
        "examples_per_s": float(np.median(speeds)) if len(speeds) else None,
    }


def _sort_key(row, sort_by):
    value = row[sort_by]
    if value is None or sort_by == "run":
        return value is None, value or 0
    return False, -value if COLUMNS[sort_by][2] else value


def _formatted(value, style):
    return _MISSING if value is None else style.format(value)
