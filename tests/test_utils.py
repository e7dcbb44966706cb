"""Quantization, lines of CSV and errors."""

import numpy as np
import pytest

import utils
from utils import InputError


def test_every_byte_survives_dequantizing_and_quantizing():
    stored = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
        restored = utils.quantize(utils.dequantize(stored.astype(dtype)))
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, stored)


def test_dequantized_values_have_the_scale_and_offset_of_youtube_8m():
    values = utils.dequantize(np.arange(256, dtype=np.float64))
    expected = [byte * 4 / 255 + 4 / 512 - 2 for byte in range(256)]
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    assert values[0] == -1.9921875
    assert values[255] == 2.0078125


def test_a_value_is_quantized_to_the_nearest_byte():
    values = np.random.default_rng(0).uniform(-1.99, 2.0, 500)
    levels = np.arange(256) * 4 / 255 + 4 / 512 - 2
    nearest = np.argmin(np.abs(values[:, None] - levels), axis=1)
    np.testing.assert_array_equal(utils.quantize(values), nearest)


def test_quantizing_clips_values_out_of_range():
    np.testing.assert_array_equal(utils.quantize([-100.0, -2.1, 2.1, 100.0]), [0, 0, 255, 255])


def test_nan_is_not_quantized():
    with pytest.raises(InputError, match="no byte stands for NaN"):
        utils.quantize([[0.5, np.nan]])


def test_comma_separated_joins_names_and_says_none():
    assert utils.comma_separated(["a", 2]) == "a, 2"
    assert utils.comma_separated([]) == "none"


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("-abc_1", "-abc_1"),
        ("--_-", "--_-"),
        ("+1", "'+1"),
        ("=1+1", "'=1+1"),
        ("-1.5", "'-1.5"),
        ("='file:///etc/passwd'#$x.A1", "'='file:///etc/passwd'#$x.A1"),
        ("\ta", '"\'\ta"'),
        ("\ra", '"\'\ra"'),
        ("\0=A1", "'\0=A1"),
        ("\uff1dA1", "'\uff1dA1"),
        ("a;=A1", '"a;=A1"'),
        ("a = b", "a = b"),
        ("a\rb", '"a\rb"'),
        ("a\nb", '"a\nb"'),
        ('say "x", y', '"say ""x"", y"'),
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        (" @SUM(1)", "' @SUM(1)"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
    ],
)
def test_cells_neither_break_a_line_of_csv_nor_run_as_formulas(cell, written):
    assert utils.csv_line((cell, "5 0.5")) == f"{written},5 0.5\n"
