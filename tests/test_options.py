"""Options: types, bounds, choices, alternatives, and one flag per field."""

import dataclasses
import math

import program

import pytest

from options import Options, option, options_of, same_option
from run_config import TrainOptions
from utils import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """One option of every kind."""

    count: int = option(1, "A number.", group="data", above=0)
    rate: float = option(0.5, "A rate.", group="training", at_least=0, below=1)
    name: str = option("a", "A name.", group="model", choices=("a", "b"))
    path: str | None = option(None, "A path.", group="output")
    limit: int | None = option(None, "A limit.", group="training", above=2)
    verbose: bool = option(False, "A switch.", group="logging")
    sizes: tuple[int, ...] = option((3, 4), "Sizes.", group="data", above=0)
    weights: tuple[float, ...] | None = option(None, "Weights.", group="data", at_least=0)


def error_of(**values):
    with pytest.raises(InputError) as caught:
        Sample(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "--count must be above 0. Received: 0"),
        ({"rate": -0.1}, "--rate must be 0 or more. Received: -0.1"),
        ({"rate": 1.0}, "--rate must be below 1. Received: 1.0"),
        ({"limit": 2}, "--limit must be above 2. Received: 2"),
        ({"name": "c"}, "--name must be one of a, b. Received: c"),
        ({"sizes": (3, 0)}, "--sizes must be above 0. Received: 0"),
        ({"weights": (1.0, -1.0)}, "--weights must be 0 or more. Received: -1.0"),
    ],
)
def test_a_value_out_of_bounds_is_rejected_by_name(values, message):
    assert error_of(**values) == message


def test_bounds_include_or_exclude_their_limit():
    values = {"count": 1, "rate": 0.0, "limit": 3, "name": "b", "weights": (0.0,)}
    sample = Sample(**values)
    assert {name: getattr(sample, name) for name in values} == values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value):
    assert error_of(rate=value) == f"--rate must be finite. Received: {value}"
    assert error_of(weights=(1.0, value)) == f"--weights must be finite. Received: {value}"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": 1.0}, "int"),
        ({"count": "1"}, "int"),
        ({"count": True}, "int"),
        ({"count": None}, "int"),
        ({"rate": True}, "float"),
        ({"rate": "0.5"}, "float"),
        ({"verbose": 1}, "bool"),
        ({"path": 3}, "str or None"),
        ({"limit": 3.5}, "int or None"),
        ({"sizes": 3}, "list of int"),
        ({"sizes": (3, 1.5)}, "list of int"),
        ({"sizes": (3, True)}, "list of int"),
        ({"sizes": None}, "list of int"),
        ({"weights": ("1",)}, "list of float or None"),
    ],
)
def test_a_value_of_another_type_is_rejected(values, expected):
    ((name, value),) = values.items()
    assert error_of(**values) == f"--{name} must be of type {expected}. Received: {value!r}"


def test_an_integer_is_a_float():
    assert Sample(rate=0, weights=(1, 2.5)).weights == (1, 2.5)


def test_none_is_a_value_only_of_optional_types():
    sample = Sample(path=None, limit=None, weights=None)
    assert sample.path is sample.limit is sample.weights is None


def test_lists_become_tuples():
    sample = Sample(sizes=[5, 6], weights=[])
    assert sample.sizes == (5, 6)
    assert sample.weights == ()
    assert sample == Sample(sizes=(5, 6), weights=())


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().count = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Either(Options):
    """Two options of which exactly one must be given."""

    one: str | None = option(None, "One.", group="model", alternatives=("one", "other", "third"))
    other: str | None = option(None, "Another.", group="model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EitherOfThree(Either):
    """A third alternative in a subclass."""

    third: str | None = option(None, "A third.", group="model")


@pytest.mark.parametrize("cls", [Either, EitherOfThree])
def test_exactly_one_alternative_must_be_given_and_those_of_a_subclass_count(cls):
    names = [field.name for field, _ in options_of(cls)]
    last = names[-1]
    assert getattr(cls(**{last: "x"}), last) == "x"
    given = " or ".join(f"--{name}" for name in names)
    with pytest.raises(InputError, match=rf"^{given} must be given\. --help"):
        cls()
    with pytest.raises(InputError, match=rf"^--one, --{last} cannot be combined\. Use only one"):
        cls(**{"one": "x", last: "y"})


def test_same_option_copies_a_field_with_its_bounds_except_for_changes():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Copy(Options):
        count: int = same_option(Sample, "count")
        rate: float = same_option(Sample, "rate", default=0.25, below=0.5)

    assert (Copy().count, Copy().rate) == (1, 0.25)
    with pytest.raises(InputError, match="--count must be above 0"):
        Copy(count=0)
    with pytest.raises(InputError, match=r"--rate must be below 0\.5"):
        Copy(rate=0.75)
    copied = {field.name: field.metadata for field, _ in options_of(Copy)}
    assert copied["count"]["help"] == "A number."
    assert copied["rate"]["group"] == "training"


def test_fields_that_are_not_options_are_ignored():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mixed(Options):
        plain: dict = dataclasses.field(default_factory=dict)
        count: int = option(1, "A number.", group="data")

    assert [field.name for field, _ in options_of(Mixed)] == ["count"]
    assert Mixed(plain={1: 2}).plain == {1: 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyTrainOptions(TrainOptions):
    """The options of training and one more."""

    label_smoothing: float = option(
        0.125, "Share of the labels to spread.", group="optimizer", at_least=0, below=1
    )


def my_main(options: MyTrainOptions) -> MyTrainOptions:
    return options


def test_one_line_in_a_subclass_is_a_flag_with_default_help_and_check():
    given = ("--train_data_pattern=data", "--train_dir=run")
    assert program.call(my_main, given).label_smoothing == 0.125
    assert program.call(my_main, [*given, "--label_smoothing=0.25"]).label_smoothing == 0.25
    with pytest.raises(InputError, match=r"--label_smoothing must be below 1\. Received: 1\.5"):
        program.call(my_main, [*given, "--label_smoothing=1.5"])
    flag = "  --label_smoothing=FLOAT\n      Share of the labels to spread. Default: 0.125.\n"
    optimizer = program.help_text(my_main).split("Optimizer:\n")[1]
    assert optimizer.startswith(flag)
