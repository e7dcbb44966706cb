"""Lines of CSV and errors."""

import threading

import pytest

import utils
from utils import InputError, one_ahead


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


# --- One ahead ---


def test_the_next_item_is_made_while_the_caller_uses_one():
    started = [threading.Event() for _ in range(4)]

    def items():
        for number in range(3):
            started[number].set()
            yield number

    for number in one_ahead(items()):
        assert number == 2 or started[number + 1].wait(timeout=10)
        assert not started[number + 2 if number < 2 else 3].is_set()


def test_an_error_of_the_next_item_is_raised_after_this_one():
    def items():
        yield 1
        raise KeyError("second")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="second"):
        next(found)


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_also_closes_the_generator(taken):
    closed = []

    def items():
        try:
            yield from range(10)
        finally:
            closed.append(threading.active_count())

    found = one_ahead(items())
    before = threading.active_count()
    for _ in range(taken):
        next(found)
    found.close()
    assert closed == [before]
