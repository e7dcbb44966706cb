"""Ranges of bytes that fit given values."""

import numpy as np
import pytest

from own_data import fitted_range
from own_data.fitted_range import fit
from quantization import Quantization
from utils import InputError


def rms_error(ranges, values):
    restored = ranges.dequantize(ranges.quantize(values).astype(np.float64))
    return np.sqrt(np.mean((restored - values) ** 2))


def least_rms_error(values):
    """Returns the least error of a range, found by trying many."""
    low, high = values.min(), values.max()
    ends = np.linspace(0, 0.7, 36)
    middle = np.median(values)
    return min(
        rms_error(Quantization(low + a * (middle - low), high - b * (high - middle)), values)
        for a in ends
        for b in ends
    )


DISTRIBUTIONS = {
    "normal": (lambda rng, shape: rng.normal(3, 2, shape), 1.1),
    "half normal": (lambda rng, shape: np.maximum(rng.normal(size=shape), 0), 1.2),
    "laplace": (lambda rng, shape: rng.laplace(size=shape), 1.1),
    "student t": (lambda rng, shape: rng.standard_t(5, shape), 1.2),
    # Wider than necessary, because values of a few videos do not show that there are no others.
    "uniform": (lambda rng, shape: rng.uniform(-1, 3, shape), 1.7),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_error_of_a_range_is_near_the_least_possible(name):
    draw, ratio = DISTRIBUTIONS[name]
    values = draw(np.random.default_rng(0), (20000, 1))
    assert rms_error(fit(values), values) < ratio * least_rms_error(values)


def test_gaussian_values_get_about_four_standard_deviations():
    ranges = fit(np.random.default_rng(1).normal(5, 2, (20000, 8)))
    np.testing.assert_allclose(ranges.min, 5 - 4.2 * 2, atol=1.2)
    np.testing.assert_allclose(ranges.max, 5 + 4.2 * 2, atol=1.2)


@pytest.mark.parametrize("num_videos", [100, 1000])
def test_few_values_of_other_videos_are_clipped_although_frames_of_a_video_are_alike(num_videos):
    rng = np.random.default_rng(2)

    def frames(videos):
        shared, own = rng.normal(size=(videos, 1, 32)), rng.normal(size=(videos, 16, 32))
        return (0.9**0.5 * shared + 0.1**0.5 * own).reshape(-1, 32)

    ranges, others = fit(frames(num_videos)), frames(2000)
    assert ranges.num_clipped(others) / others.size < 3e-4
    assert rms_error(ranges, others) < 0.013


def test_a_dimension_of_large_values_does_not_change_the_others():
    values = np.random.default_rng(3).normal(size=(3000, 3))
    scaled = values * [1, 1000, 1]
    alone, together = fit(values), fit(scaled)
    for end in ("min", "max"):
        expected = np.array(getattr(alone, end)) * [1, 1000, 1]
        np.testing.assert_allclose(getattr(together, end), expected, rtol=1e-6)


def test_one_range_of_a_feature_has_about_the_least_error_over_all_dimensions():
    values = np.random.default_rng(4).normal(size=(4000, 64))
    values[:, 7] *= 30
    ranges = fit(values, per_dimension=False)
    assert ranges.size is None
    assert rms_error(ranges, values) < 1.4 * least_rms_error(values)


def test_constant_dimensions_come_back_exactly_and_leave_room_for_other_values():
    values = np.random.default_rng(5).normal(size=(500, 4))
    values[:, 1], values[:, 3] = 0, 7.25
    ranges = fit(values)
    restored = ranges.dequantize(ranges.quantize(values).astype(np.float64))
    np.testing.assert_allclose(restored[:, [1, 3]], values[:, [1, 3]], atol=1e-6)
    width = np.array(ranges.max) - ranges.min
    assert width[1] == pytest.approx(np.median(width[[0, 2]]), rel=1e-6)
    assert ranges.min[3] < 5 < 9 < ranges.max[3]


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (5, 2)])
def test_small_samples_have_a_range(shape):
    values = np.random.default_rng(6).normal(size=shape)
    for sample in (values, np.zeros(shape)):
        ranges = fit(sample)
        assert rms_error(ranges, sample) < 0.05
        assert ranges.size == shape[1]


def test_sparse_values_are_not_all_clipped():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(20000, 1)) * (rng.uniform(size=(20000, 1)) < 0.01)
    assert fit(values).num_clipped(values) < 10


def test_a_range_needs_values():
    with pytest.raises(InputError, match="Received: none"):
        fitted_range.fit(np.zeros((0, 3)))
