"""Lines of CSV and errors."""

import pytest

import utils
from utils import InputError


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
