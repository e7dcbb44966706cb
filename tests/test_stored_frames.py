"""Products of quantized frames equal those of the floats that they stand for."""

import numpy as np
import pytest

import layers
import quantization
from layers import StoredFrames

B, T, D, K = 3, 5, 7, 4
RNG = np.random.default_rng(6)
BYTES = RNG.integers(0, 256, (B, T, D), dtype=np.uint8)
GAINS, OFFSETS = RNG.normal(size=(2, D)).astype(np.float32)
KERNEL = RNG.normal(size=(D, K)).astype(np.float32)
WEIGHTS = RNG.uniform(size=(B, T, K)).astype(np.float32)
# The last frame of every video is padding.
REAL = (np.arange(T) < T - 1).astype(np.float32) * np.ones((B, 1), np.float32)


def unit_frames():
    """Returns frames of norm 1 in float64; padding is 0."""
    values = quantization.YOUTUBE8M.dequantize(BYTES.astype(np.float64))
    return values / np.linalg.norm(values, axis=-1, keepdims=True) * REAL[..., None]


def quantized():
    frames = StoredFrames(BYTES, None)
    return frames.with_norms(np.asarray(frames.norms_inverted()) * REAL)


CASES = {
    "of norm 1": (quantized, unit_frames),
    "after batch normalization": (
        lambda: quantized().affine(GAINS, OFFSETS),
        lambda: unit_frames() * GAINS + OFFSETS,
    ),
    "of one feature": (
        lambda: quantized().affine(GAINS, OFFSETS).entries(2, 3),
        lambda: (unit_frames() * GAINS + OFFSETS)[..., 2:5],
    ),
    "normalized twice": (
        lambda: quantized().affine(GAINS, OFFSETS).affine(OFFSETS, GAINS),
        lambda: (unit_frames() * GAINS + OFFSETS) * OFFSETS + GAINS,
    ),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def pair(case):
    """Returns quantized frames and the floats that they stand for, float64 `[B, T, size]`."""
    frames, expected = CASES[case]
    return frames(), expected()


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=2e-6)


@EVERY_CASE
def test_floats_follow_from_the_bytes(case):
    frames, expected = pair(case)
    assert_close(frames.to_float(), expected)
    assert tuple(frames.shape) == expected.shape


@EVERY_CASE
def test_a_projection_equals_that_of_the_floats(case):
    frames, expected = pair(case)
    kernel = KERNEL[: expected.shape[-1]]
    rows, offset = layers.MatmulLayer().project(frames, kernel)
    assert_close(rows if offset is None else rows + offset, expected @ kernel)


@EVERY_CASE
@pytest.mark.parametrize("with_centers", [False, True], ids=["sums", "residuals"])
def test_weighted_sums_and_residuals_equal_those_of_the_floats(case, with_centers):
    frames, expected = pair(case)
    centers = np.random.default_rng(1).normal(size=(K, expected.shape[-1])).astype(np.float32)
    centers *= with_centers
    residuals = expected[:, :, None] - centers.astype(np.float64)
    sums = np.einsum("BTK,BTKD->BKD", WEIGHTS.astype(np.float64), residuals)
    given = (WEIGHTS, centers) if with_centers else (WEIGHTS,)
    layer = layers.MatmulLayer()
    assert_close(layer.pool(frames, *given), sums)
    assert_close(layer.pool(expected.astype(np.float32), *given), sums)


def test_moments_equal_those_of_the_floats():
    frames, expected = pair("after batch normalization")
    row_weights = REAL / REAL.sum()
    mean, variance = frames.moments(row_weights)
    rows = expected[REAL > 0]
    assert_close(mean, rows.mean(axis=0))
    assert_close(variance, rows.var(axis=0))


def test_bfloat16_products_round_no_byte():
    with layers.matmul_policy("mixed_bfloat16"):
        layer = layers.MatmulLayer()
    eye = np.eye(D, dtype=np.float32)
    frames = StoredFrames(BYTES, np.ones((B, T), np.float32))
    exact, _ = layers.MatmulLayer().project(frames, eye)
    rounded, _ = layer.project(frames, eye)
    # The byte that stands for 0 is rounded, so all differ by the same 1/512 of a step.
    np.testing.assert_array_equal(np.asarray(rounded) - np.asarray(exact), 1 / 512)


def test_normalized_undoes_batch_normalization():
    assert_close(quantized().affine(GAINS, OFFSETS).normalized().to_float(), unit_frames())
