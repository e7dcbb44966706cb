"""Ranges of bytes that fit given feature values.

Needs neither TensorFlow nor Keras.
"""

import math

import numpy as np

from quantization import NUM_LEVELS, Quantization
from utils import InputError

# Half the best range for Gaussian values, in standard deviations.
_GAUSSIAN_LEVEL = 4.0
# Shares of the values that show how far a tail reaches, and the smallest number of values.
_TAIL_SHARE, _WIDE_SHARE, _MIN_TAIL = 0.005, 0.1, 8
_FIT_ROUNDS = 50
# A dimension is constant if its range is this small in comparison with its values.
_CONSTANT = 1e-6


def fit(values: np.ndarray, per_dimension: bool = True) -> Quantization:
    """Returns the range with the least expected squared error of bytes, for values like a sample.

    A wider range has a larger step, a narrower one clips more. With H the value of the byte 255, L
    that of the byte 0 and values x, the expected squared error is about

        (H - L)^2 / (12 * 255^2) + E[max(x - H, 0)^2] + E[max(L - x, 0)^2].

    It is least where both mean excesses are equal to half the derivative of the first term:

        E[max(x - H, 0)] = E[max(L - x, 0)] = (H - L) / (12 * 255^2).

    For Gaussian values these are four standard deviations on both sides. `_Tail` estimates the
    mean excess of all values from those of the sample.

    Constant dimensions get a range of the median width, in which one byte is exactly the constant.

    Args:
        values: sample of the feature, `[N, D]`, finite.
        per_dimension: whether each dimension gets a range of its own.

    Raises:
        InputError: if there are no values.
    """
    if not values.size:
        raise InputError("a range is fitted to values. Received: none.")
    if not per_dimension:
        values = values.reshape(-1, 1)
    low, high = _fitted_levels(values)
    is_constant = high - low <= _CONSTANT * np.maximum(np.abs(low), np.abs(high))
    width = np.median((high - low)[~is_constant]) if not is_constant.all() else 1.0
    middle = NUM_LEVELS // 2 / (NUM_LEVELS - 1)
    low = np.where(is_constant, values[0] - middle * width, low)
    high = np.where(is_constant, low + width, high)
    shift = (high - low) / (2 * NUM_LEVELS)
    # Nine digits are enough for float32.
    ends = [tuple(float(f"{end:.9g}") for end in level - shift) for level in (low, high)]
    return Quantization(*(end if per_dimension else end[0] for end in ends))


def _fitted_levels(values):
    """Returns the values of the bytes 0 and 255, float64 `[D]` each."""
    upper, lower = _Tail(values), _Tail(-values)
    width = upper.largest + lower.largest
    for _ in range(_FIT_ROUNDS):
        excess = width / (12 * (NUM_LEVELS - 1) ** 2)
        # Half of the way, because the level jumps between the largest values of a small sample.
        width = (width + upper.level(excess) + lower.level(excess)) / 2
    return -lower.level(excess), upper.level(excess)


class _Tail:
    """The large values of each dimension of a sample.

    Args:
        values: `[N, D]`.
    """

    def __init__(self, values):
        self._size = len(values)
        count = min(max(math.ceil(_TAIL_SHARE * self._size), _MIN_TAIL), max(self._size // 4, 1))
        wide = max(math.ceil(_WIDE_SHARE * self._size), count)
        # The positions, in ascending order, of the values next to the tails, and of the median.
        limits = [max(self._size - 1 - number, 0) for number in (count, wide)]
        middle = self._size // 2
        parts = np.partition(values, sorted({*limits, middle}), axis=0)
        self._largest = -np.sort(-parts[self._size - count :].astype(np.float64), axis=0)
        self._shares = [number / self._size for number in (count, wide)]
        self._tails = [_threshold_and_scale(parts[limit:]) for limit in limits]
        median = parts[middle].astype(np.float64)
        deviation = np.sqrt(np.mean((parts[middle:] - median) ** 2, axis=0))
        self._gaussian = median + _GAUSSIAN_LEVEL * deviation

    @property
    def largest(self) -> np.ndarray:
        """The largest value, `[D]`."""
        return self._largest[0]

    def level(self, excess: np.ndarray) -> np.ndarray:
        """Returns the level, `[D]`, that all values, of which the sample is a part, exceed.

        It is the largest of three estimates, because a sample of frames of few videos has less of
        a tail than other videos: that of the sample itself; of an exponential distribution, as the
        largest values of the sample suggest; and of a Gaussian distribution, unless the largest
        tenth of the values suggests a shorter tail.

        Args:
            excess: mean excess over all values, `[D]`.
        """
        count = np.arange(1, len(self._largest) + 1)[:, None]
        # The k largest values exceed a level h by (their sum - k h) in total.
        sample = np.cumsum(self._largest, axis=0) - self._size * excess
        tail, wide_tail = (
            _exponential_level(share, threshold, scale, excess)
            for share, (threshold, scale) in zip(self._shares, self._tails, strict=True)
        )
        gaussian = np.minimum(self._gaussian, wide_tail)
        return np.max([np.max(sample / count, axis=0), tail, gaussian], axis=0)


def _threshold_and_scale(tail):
    """Returns the lowest value of a tail, `[D]`, and the mean excess of the others over it."""
    threshold = tail[0].astype(np.float64)
    return threshold, np.mean(tail[1:] - threshold, axis=0) if len(tail) > 1 else 0 * threshold


def _exponential_level(share, threshold, scale, excess):
    """Returns the level with a mean excess, if values above a threshold have this scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        further = scale * np.log(share * scale / excess)
    return threshold + np.where(scale > 0, np.maximum(further, 0), 0)
