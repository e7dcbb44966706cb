"""Shared by the robustness programs. Import it first: it makes the project importable."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for folder in (ROOT / "tests", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


class FaultError(AssertionError):
    """A promise of the project was broken."""


def check(condition, message):
    """Raises a FaultError unless the condition holds."""
    if not condition:
        raise FaultError(message)
