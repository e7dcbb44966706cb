"""Products of stored frames equal those of the values that they stand for."""

import functools

import numpy as np
import pytest

import layers
import quantization
from layers import StoredFrames
from quantization import YOUTUBE8M, FeatureScale, FrameFormat, Quantization

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


LOW, HIGH = RNG.uniform(-3, 0, D), RNG.uniform(0.1, 3, D)
FEATURE_SCALE = FeatureScale((*RNG.uniform(0.5, 2, D - 1), 0.0), (*RNG.normal(size=D - 1), 0.0))
FLOATS = RNG.normal(size=(B, T, D))
FORMATS = {
    "bytes of another range": FrameFormat("uint8", Quantization(-1.0, 3.0)),
    "bytes with ranges by dimension": FrameFormat("uint8", Quantization(LOW, HIGH)),
    "bytes far from 0": FrameFormat("uint8", Quantization(5.0, 6.0)),
    "bytes with a feature scale": FrameFormat("uint8", YOUTUBE8M, FEATURE_SCALE),
    "float16": FrameFormat("float16", None),
    "float32 with a feature scale": FrameFormat("float32", None, FEATURE_SCALE),
}


def stored(name, *, normalized=True):
    """Returns stored frames of a format, and the values that they stand for, float64."""
    frame_format = FORMATS[name]
    q = BYTES if frame_format.is_quantized else FLOATS.astype(frame_format.dtype)
    values = q.astype(np.float64)
    if frame_format.is_quantized:
        ranges = frame_format.quantization
        low, high = np.array(ranges.min), np.array(ranges.max)
        values = low + (high - low) * (values / 255 + 1 / 512)
    if frame_format.feature_scale:
        factor, offset = np.array(FEATURE_SCALE.factor), np.array(FEATURE_SCALE.offset)
        values = factor * values + offset
    frames = StoredFrames.of_format(q, frame_format, normalized)
    norms = np.asarray(frames.norms_inverted()) if normalized else np.ones((B, T), np.float32)
    if normalized:
        values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return frames.with_norms(norms * REAL), values * REAL[..., None]


CASES = {
    **{name: functools.partial(stored, name) for name in FORMATS},
    "not normalized": functools.partial(stored, "bytes with ranges by dimension", normalized=False),
    "of norm 1": lambda: (quantized(), unit_frames()),
    "after batch normalization": lambda: (
        quantized().affine(GAINS, OFFSETS),
        unit_frames() * GAINS + OFFSETS,
    ),
    "of one feature": lambda: (
        quantized().affine(GAINS, OFFSETS).entries(2, 3),
        (unit_frames() * GAINS + OFFSETS)[..., 2:5],
    ),
    "normalized twice": lambda: (
        quantized().affine(GAINS, OFFSETS).affine(OFFSETS, GAINS),
        (unit_frames() * GAINS + OFFSETS) * OFFSETS + GAINS,
    ),
    "of one feature of another format": lambda: one_feature("bytes with ranges by dimension"),
}


def one_feature(name):
    frames, values = stored(name)
    frames = frames.affine(GAINS, OFFSETS).entries(2, 3)
    return frames, (values * GAINS + OFFSETS)[..., 2:5]


EVERY_CASE = pytest.mark.parametrize("case", CASES)


def pair(case):
    """Returns stored frames and the floats that they stand for, float64 `[B, T, size]`."""
    return CASES[case]()


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


@EVERY_CASE
def test_moments_equal_those_of_the_floats(case):
    frames, expected = pair(case)
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


def test_bfloat16_products_round_no_byte_of_any_range():
    with layers.matmul_policy("mixed_bfloat16"):
        layer = layers.MatmulLayer()
    frames, _ = stored("bytes with ranges by dimension", normalized=False)
    frames = frames._replace(unit=None)
    eye = np.eye(D, dtype=np.float32)
    exact, _ = layers.MatmulLayer().project(frames, eye)
    rounded, _ = layer.project(frames, eye)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-5)
    pooled = [np.asarray(part.pool(frames, WEIGHTS)) for part in (layers.MatmulLayer(), layer)]
    np.testing.assert_allclose(pooled[1], pooled[0], rtol=1e-2, atol=1.0)


def test_normalized_undoes_batch_normalization():
    assert_close(quantized().affine(GAINS, OFFSETS).normalized().to_float(), unit_frames())
