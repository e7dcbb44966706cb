"""Ranges of bytes that fit given feature values.

Needs neither TensorFlow nor Keras.
"""

import math

import numpy as np

from quantization import NUM_LEVELS, Quantization
from utils import InputError

# The share of the values that shows how a tail continues; small samples use more of theirs.
_TAIL_SHARE, _MIN_TAIL = 0.005, 32
_FIT_ROUNDS = 50
# A dimension is constant if its range is this small in comparison with its values.
_CONSTANT = 1e-6


def fit(values: np.ndarray, per_dimension: bool = True) -> Quantization:
    """Returns the range with the least expected squared error of bytes, for values like a sample.

    A wider range has a larger step, a narrower one clips more. With H the value of the byte 255, L
    that of the byte 0 and values x, the expected squared error is about

        (H - L)^2 / (12 * 255^2) + E[max(x - H, 0)^2] + E[max(L - x, 0)^2].

    It is least where both mean excesses are equal to the derivative of the first term, halved:

        E[max(x - H, 0)] = E[max(L - x, 0)] = (H - L) / (12 * 255^2).

    For Gaussian values these are four standard deviations. A mean excess is the larger one of that
    in the sample, and of that of an exponential distribution with the mean of the sample's tail,
    because other data reach further than a sample.

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
    ends = low - shift, high - shift
    # Nine digits are enough for float32.
    rounded = [tuple(float(f"{value:.9g}") for value in end) for end in ends]
    return Quantization(*(end if per_dimension else end[0] for end in rounded))


def _fitted_levels(values):
    """Returns the values of the bytes 0 and 255, float64 `[D]` each."""
    num_values = len(values)
    tail = max(math.ceil(_TAIL_SHARE * num_values), min(_MIN_TAIL, num_values // 4), 1)
    last = min(tail, num_values - 1)
    parts = np.partition(values, sorted({last, num_values - 1 - last}), axis=0)
    upper = -np.sort(-parts[num_values - tail :].astype(np.float64), axis=0)
    lower = -np.sort(parts[:tail].astype(np.float64), axis=0)
    tails = [
        (upper, parts[num_values - 1 - last].astype(np.float64)),
        (lower, -parts[last].astype(np.float64)),
    ]
    width = upper[0] + lower[0]
    for _ in range(_FIT_ROUNDS):
        excess = width / (12 * (NUM_LEVELS - 1) ** 2)
        high, low = (_level(*part, num_values, excess) for part in tails)
        # Half of the way, because the level jumps between the largest values of a small sample.
        width = (width + high + low) / 2
    return -low, high


def _level(tail, threshold, num_values, excess):
    """Returns the level, `[D]`, that values exceed by `excess` on average.

    Args:
        tail: largest values of the sample, in descending order, `[K, D]`.
        threshold: the next value, `[D]`.
        num_values: size N of the sample.
        excess: mean excess over all N, `[D]`.
    """
    share, scale = len(tail) / num_values, np.mean(tail - threshold, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        further = scale * np.log(share * scale / excess)
    exponential = threshold + np.where(scale > 0, np.maximum(further, 0), 0)
    # In the sample, the k largest values exceed a level h by (sum of them - k h) in total.
    count = np.arange(1, len(tail) + 1)[:, None]
    empirical = np.max((np.cumsum(tail, axis=0) - num_values * excess) / count, axis=0)
    return np.maximum(exponential, empirical)
