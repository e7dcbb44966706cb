"""The bytes that stand for feature values."""

import numpy as np
import pytest

import quantization
from quantization import YOUTUBE8M, FrameStorage, Quantization
from utils import InputError


def test_every_byte_survives_dequantizing_and_quantizing():
    stored = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
        restored = YOUTUBE8M.quantize(YOUTUBE8M.dequantize(stored.astype(dtype)))
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, stored)


def test_dequantized_values_have_the_scale_and_offset_of_youtube_8m():
    values = YOUTUBE8M.dequantize(np.arange(256, dtype=np.float64))
    expected = [byte * 4 / 255 + 4 / 512 - 2 for byte in range(256)]
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    assert values[0] == -1.9921875
    assert values[255] == 2.0078125


def test_a_value_is_quantized_to_the_nearest_byte():
    values = np.random.default_rng(0).uniform(-1.99, 2.0, 500)
    levels = np.arange(256) * 4 / 255 + 4 / 512 - 2
    nearest = np.argmin(np.abs(values[:, None] - levels), axis=1)
    np.testing.assert_array_equal(YOUTUBE8M.quantize(values), nearest)


def test_quantizing_clips_values_out_of_range():
    np.testing.assert_array_equal(YOUTUBE8M.quantize([-100.0, -2.1, 2.1, 100.0]), [0, 0, 255, 255])


def test_clipped_values_are_those_that_no_byte_is_near():
    values = np.random.default_rng(0).normal(0, 2, (200, 3))
    ranges = Quantization((-2.0, -1.0, 0.0), (2.0, 3.0, 0.5))
    restored = ranges.dequantize(ranges.quantize(values).astype(float))
    half = np.array([4, 4, 0.5]) / 255 / 2
    assert ranges.num_clipped(values) == np.sum(np.abs(restored - values) > half * (1 + 1e-9))
    assert ranges.num_clipped(ranges.dequantize(np.full(3, 255.0))) == 0


@pytest.mark.parametrize(
    ("storage", "error"),
    [
        (FrameStorage("uint8", Quantization(-3.0, 3.0)), 3 / 255),
        (FrameStorage("float16", None), 0.001),
        (FrameStorage("float32", None), 0),
    ],
)
def test_stored_values_come_back(storage, error):
    values = np.random.default_rng(0).uniform(-2.9, 2.9, (20, 4)).astype(np.float32)
    stored = storage.from_float(values)
    assert stored.dtype == storage.type
    np.testing.assert_allclose(storage.to_float(stored), values, rtol=0, atol=error * 1.001)


def test_nan_is_not_quantized():
    with pytest.raises(InputError, match="no byte stands for NaN"):
        YOUTUBE8M.quantize([[0.5, np.nan]])


def test_every_dimension_may_have_a_range_of_its_own():
    ranges = Quantization((-1.0, 0.0), (1.0, 10.0))
    for dimension, (low, high) in enumerate([(-1.0, 1.0), (0.0, 10.0)]):
        alone = Quantization(low, high)
        values = np.random.default_rng(dimension).uniform(low, high, (50, 2))
        np.testing.assert_array_equal(
            ranges.quantize(values)[:, dimension], alone.quantize(values[:, dimension])
        )
    stored = np.arange(256, dtype=np.uint8)[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(ranges.quantize(ranges.dequantize(stored.astype(float))), stored)
    assert Quantization.from_json(ranges.as_json()) == ranges


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min": 1, "max": 1}, "finite min below a finite max"),
        ({"min": [0, 2], "max": [1, 1]}, "range of dimension 1"),
        ({"min": [0, 2], "max": 3}, "two lists of equal length"),
        ({"min": 0, "max": float("inf")}, "finite min below a finite max"),
        ({"min": 0, "max": "1"}, "must be numbers"),
        ({"min": 0}, "must have min and max"),
    ],
)
def test_ranges_that_are_none_are_rejected(values, message):
    with pytest.raises(InputError, match=message):
        quantization.Quantization.from_json(values)
