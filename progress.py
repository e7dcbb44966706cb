"""Progress of long work: a bar on a terminal, log lines elsewhere."""

import sys
import time

import tqdm
from absl import logging


class Progress:
    """A bar on a terminal; where there is none, `report` writes log lines. A context manager.

    Args:
        total: number of units of the whole work; None if unknown.
        unit: str. Name of the unit, as "step"; "B" for bytes.
        initial: units that are done already.
        interval_secs: float. Least seconds between two reports of `tick`.
    """

    def __init__(self, total, unit, initial=0, interval_secs=10.0):
        self._bar = tqdm.tqdm(
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            disable=None,
            dynamic_ncols=True,
        )
        self._interval_secs = interval_secs
        self._last_tick = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advance(self):
        """Counts one more unit."""
        self._bar.update()

    def advance_to(self, done):
        """Sets the units that are done."""
        self._bar.update(done - self._bar.n)

    def report(self, text):
        """Writes a line: above the bar, or to the log."""
        if self._bar.disable:
            logging.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    def tick(self, done, text):
        """Sets the units that are done and shows `text`: beside the bar, or in the log at times."""
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self.advance_to(done)
        elif time.monotonic() - self._last_tick >= self._interval_secs:
            self._last_tick = time.monotonic()
            logging.info("%s", text)
