"""The bytes that stand for feature values.

Needs neither TensorFlow nor Keras.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utils import InputError

NUM_LEVELS = 256


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A range of values that is covered by the 256 bytes.

    With the range from `min` to `max`, the byte q stands for the value

        q * step + offset,  step = (max - min) / 255,  offset = min + (max - min) / 512

    as YouTube-8M defines it.

    Attributes:
        min: lower end of the range: one number for all dimensions of a feature, or one for each.
        max: upper end.

    Raises:
        InputError: if an end is not finite, or no lower end is below its upper end.
    """

    min: float | tuple[float, ...]
    max: float | tuple[float, ...]

    def __post_init__(self):
        """Checks the range."""
        low, high = np.asarray(self.min, np.float64), np.asarray(self.max, np.float64)
        if low.shape != high.shape or low.ndim > 1:
            raise InputError(
                "the ends of a range must be two numbers, or two lists of equal length. Received: "
                f"shapes {low.shape} and {high.shape}"
            )
        if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
            where = "" if low.ndim == 0 else f" of dimension {np.argmin(low < high)}"
            raise InputError(
                f"the range{where} must have a finite min below a finite max. Received: "
                f"{self.as_json()}"[:300]
            )

    @classmethod
    def from_json(cls, values: Any) -> "Quantization":
        """Returns the quantization that a JSON object states: `{"min": ..., "max": ...}`.

        Raises:
            InputError: if it is not such an object.
        """
        if not isinstance(values, Mapping) or values.keys() != {"min", "max"}:
            raise InputError(f"a quantization must have min and max. Received: {values!r}"[:300])
        ends = {name: tuple(end) if isinstance(end, list) else end for name, end in values.items()}
        for end in ends.values():
            numbers = end if isinstance(end, tuple) else (end,)
            if not all(type(number) in (int, float) for number in numbers):
                raise InputError(f"min and max must be numbers. Received: {values!r}"[:300])
        return cls(**ends)

    def as_json(self) -> dict[str, Any]:
        """Returns the JSON object of the range."""
        return {
            name: list(end) if isinstance(end, tuple) else end
            for name, end in (("min", self.min), ("max", self.max))
        }

    @property
    def size(self) -> int | None:
        """Number of dimensions, None if all have the same range."""
        return len(self.min) if isinstance(self.min, tuple) else None

    @property
    def step(self) -> Any:
        """Difference between the values of neighboring bytes: a float, or float64 `[D]`."""
        return self._width / (NUM_LEVELS - 1)

    @property
    def offset(self) -> Any:
        """Value of the byte 0: a float, or float64 `[D]`."""
        low = self.min if self.size is None else np.asarray(self.min)
        return low + self._width / (2 * NUM_LEVELS)

    @property
    def _width(self):
        if self.size is None:
            return self.max - self.min
        return np.asarray(self.max) - np.asarray(self.min)

    def dequantize(self, values: Any) -> Any:
        """Returns the feature values of stored bytes (0..255), cast to a float type before."""
        return values * self.step + self.offset

    def quantize(self, values: ArrayLike) -> np.ndarray:
        """Returns the nearest bytes to feature values, uint8: the inverse of `dequantize`, clipped.

        Raises:
            InputError: if a value is NaN.
        """
        if np.isnan(values).any():
            raise InputError("feature values must be numbers, because no byte stands for NaN.")
        steps = np.rint((np.asarray(values) - self.offset) / self.step)
        return np.clip(steps, 0, NUM_LEVELS - 1).astype(np.uint8)


YOUTUBE8M = Quantization(-2.0, 2.0)
