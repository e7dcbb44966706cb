"""The stored numbers of frames, bytes or floats, and the feature values that they stand for.

Needs neither TensorFlow nor Keras.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utils import InputError, check_one_of, shortened

NUM_LEVELS = 256
# How the values of a frame are stored: as one string of raw little-endian numbers, or as a list of
# floats; and the type in which they are read.
DTYPES: dict[str, np.dtype] = {
    "uint8": np.dtype(np.uint8),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float_list": np.dtype("<f4"),
}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A range of values that is covered by the 256 bytes.

    With the range from `min` to `max`, the byte q stands for the value

        q * step + offset,  step = (max - min) / 255,  offset = min + (max - min) / 512

    as YouTube-8M defines it.

    Attributes:
        min: lower end of the range: a float for all dimensions of a feature, or a tuple of floats.
        max: upper end.

    Raises:
        InputError: if an end is not finite, or no lower end is below its upper end.
    """

    min: Any
    max: Any

    def __post_init__(self):
        """Checks the range, and converts arrays to tuples of Python's floats."""
        for name in ("min", "max"):
            end = np.asarray(getattr(self, name)).tolist()
            object.__setattr__(self, name, tuple(end) if isinstance(end, list) else end)
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
                f"{shortened(self.as_json())}"
            )

    @classmethod
    def from_json(cls, values: Any) -> "Quantization":
        """Returns the quantization that a JSON object states: `{"min": ..., "max": ...}`.

        Raises:
            InputError: if it is not such an object.
        """
        if not isinstance(values, Mapping) or values.keys() != {"min", "max"}:
            raise InputError(f"a quantization must have min and max. Received: {shortened(values)}")
        ends = {name: tuple(end) if isinstance(end, list) else end for name, end in values.items()}
        for end in ends.values():
            numbers = end if isinstance(end, tuple) else (end,)
            if not all(type(number) in (int, float) for number in numbers):
                raise InputError(f"min and max must be numbers. Received: {shortened(values)}")
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

    @functools.cached_property
    def step(self) -> Any:
        """Difference between the values of neighboring bytes: a float, or float64 `[D]`."""
        return self._width / (NUM_LEVELS - 1)

    @functools.cached_property
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

    def num_clipped(self, values: ArrayLike) -> int:
        """Returns how many feature values are beyond the bytes, by more than half a step."""
        steps = (np.asarray(values) - self.offset) / self.step
        return int(np.count_nonzero(np.abs(steps - (NUM_LEVELS - 1) / 2) > NUM_LEVELS / 2))


YOUTUBE8M = Quantization(-2.0, 2.0)


@dataclasses.dataclass(frozen=True)
class FrameStorage:
    """How records store the frames of a feature.

    Attributes:
        dtype: one of `DTYPES`.
        quantization: of bytes; None for floats, which stand for themselves.

    Raises:
        InputError: if the dtype is unknown, or does not fit the quantization.
    """

    dtype: str = "uint8"
    quantization: Quantization | None = YOUTUBE8M

    def __post_init__(self):
        """Checks the attributes."""
        check_one_of(DTYPES, dtype=self.dtype)
        if (self.dtype == "uint8") != (self.quantization is not None):
            raise InputError(
                "features of dtype uint8, and no others, have a quantization. Received: "
                f"{self.dtype} with {shortened(self.quantization)}"
            )

    @property
    def type(self) -> np.dtype:
        """Type in which the numbers are read."""
        return DTYPES[self.dtype]

    @property
    def zero(self) -> np.ndarray:
        """The number that stands for 0: a scalar, or uint8 `[D]`."""
        if self.quantization is None:
            return np.zeros((), self.type)
        size = self.quantization.size
        return self.quantization.quantize(np.zeros(() if size is None else size))

    def to_float(self, stored: np.ndarray) -> np.ndarray:
        """Returns the values of stored numbers, float32."""
        values = stored.astype(np.float32)
        if self.quantization is not None:
            values = self.quantization.dequantize(values)
        return values.astype(np.float32, copy=False)

    def from_float(self, values: np.ndarray) -> np.ndarray:
        """Returns the numbers that store values: the inverse of `to_float`."""
        if self.quantization is not None:
            return self.quantization.quantize(values)
        with np.errstate(over="ignore"):
            return values.astype(self.type)


def _joined(parts: Sequence[Quantization], sizes: Sequence[int]) -> Quantization:
    """Returns the quantization of several features side by side.

    Args:
        parts: the quantization of each feature.
        sizes: their sizes.
    """
    if len(set(parts)) == 1 and parts[0].size is None:
        return parts[0]
    ends = [
        tuple(
            float(number)
            for part, size in zip(parts, sizes, strict=True)
            for number in np.broadcast_to(getattr(part, name), size)
        )
        for name in ("min", "max")
    ]
    return Quantization(*ends)


@dataclasses.dataclass(frozen=True)
class FeatureScale:
    """A linear change of the values of a frame: `factor_d * v_d + offset_d`.

    An example is the "reverse whitening" of the third place of 2018, which undoes the whitening of
    YouTube-8M's features.

    Attributes:
        factor: one number per dimension.
        offset: one number per dimension.

    Raises:
        InputError: if they differ in length, or a number is not finite.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self):
        """Converts lists to tuples and checks the numbers."""
        for name in ("factor", "offset"):
            values = getattr(self, name)
            if not np.isfinite(np.asarray(values, np.float64)).all():
                raise InputError(f"each {name} of a feature scale must be a finite number.")
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.factor) != len(self.offset):
            raise InputError(
                "a feature scale must have as many factors as offsets. Received: "
                f"{len(self.factor)} and {len(self.offset)}"
            )
        wrong = [d for d, pair in enumerate(zip(*self.as_arrays(), strict=True)) if pair[0] == 0]
        if any(self.offset[d] for d in wrong):
            raise InputError("a feature scale of factor 0 must have offset 0.")

    def as_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns factor and offset, float64 `[D]`."""
        return np.array(self.factor), np.array(self.offset)


@dataclasses.dataclass(frozen=True)
class FrameFormat:
    """The numbers stored for a frame of all features, and the values that the model uses.

        v_d = factor_d * (step_d * q_d + offset_d) + shift_d

    Attributes:
        dtype: type of the stored numbers q: uint8, float16 or float32.
        quantization: step and offset of bytes; None for floats, which stand for themselves.
        feature_scale: factor and shift; None for the values as they are.
    """

    dtype: str = "uint8"
    quantization: Quantization | None = YOUTUBE8M
    feature_scale: FeatureScale | None = None

    def __post_init__(self):
        """Checks that bytes, and only bytes, are quantized."""
        if self.is_quantized != (self.quantization is not None):
            raise InputError(f"frames of {self.dtype} do not fit quantization={self.quantization}")

    @property
    def is_quantized(self) -> bool:
        """Whether the numbers are bytes."""
        return self.dtype == "uint8"

    def as_json(self) -> dict[str, Any]:
        """Returns a JSON object for `from_json`."""
        return {
            "dtype": self.dtype,
            "quantization": self.quantization and self.quantization.as_json(),
            "feature_scale": self.feature_scale and dataclasses.asdict(self.feature_scale),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FrameFormat":
        """Returns the format that `as_json` described."""
        scale = values["feature_scale"]
        ranges = values["quantization"]
        return cls(
            values["dtype"],
            ranges and Quantization.from_json(ranges),
            scale and FeatureScale(**scale),
        )

    @classmethod
    def of_features(cls, storages: Sequence[FrameStorage], sizes: Sequence[int]) -> "FrameFormat":
        """Returns the format of batches: that of the records if all features have the same type.

        Otherwise, all numbers are converted to float32.

        Args:
            storages: how each feature is stored.
            sizes: size of each feature.
        """
        types = {storage.type for storage in storages}
        ranges = [storage.quantization for storage in storages if storage.quantization]
        if types == {DTYPES["uint8"]}:
            return cls("uint8", _joined(ranges, sizes))
        return cls(types.pop().name if len(types) == 1 else "float32", None)

    def zero_and_unit(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the arrays of `v_d = unit_d * (q_d - zero_d)`, float64 `[D]`.

        Args:
            size: D.
        """
        step: Any = 1.0
        offset: Any = 0.0
        if self.quantization is not None:
            step, offset = self.quantization.step, self.quantization.offset
        if self.feature_scale is not None:
            factor, shift = self.feature_scale.as_arrays()
            step, offset = factor * step, factor * offset + shift
        unit = np.array(np.broadcast_to(step, size))
        zero = np.divide(-offset, unit, out=np.zeros(size), where=unit != 0)
        return zero, unit
