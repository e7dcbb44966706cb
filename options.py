"""Options: dataclass fields that carry their help text and their bounds.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TrainOptions(Options):
        max_steps: int | None = option(None, "Steps of the whole run.", group="training", above=0)

The field is the only place where an option is written. `program` derives a command-line flag from
it: name, type, default, help and range check. Functions take the whole dataclass.

Needs neither TensorFlow nor Keras.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from utils import InputError, check_finite, comma_separated

# The order of the groups in `--help`.
GROUPS = (
    "search",
    "data",
    "labels",
    "storage",
    "model",
    "loss",
    "segments",
    "initial weights",
    "training",
    "optimizer",
    "checkpoints",
    "evaluation",
    "logging",
    "devices",
    "prediction",
    "output",
)


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    group: str,
    required: bool = False,
    choices: Sequence[str] | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    environment: str | None = None,
    alternatives: tuple[str, ...] | None = None,
    fixed_by: str | None = None,
    repeats: bool = False,
) -> Any:
    """Returns a dataclass field for an option.

    Args:
        default: value of an option that is not given.
        help: what the option means, for `--help`.
        group: heading in `--help`, one of `GROUPS`.
        required: whether the command line must give it.
        choices: allowed values.
        above: bound that each number must exceed.
        at_least: smallest number allowed.
        below: bound that each number must stay under.
        environment: environment variable that sets the option if no flag does.
        alternatives: names of options, this one included, of which exactly one must be given.
        fixed_by: name of an option that fixes this one, so that no flag may set it as well.
        repeats: whether the flag of a str may be repeated; each value becomes a line.
    """
    metadata = {
        "help": help,
        "group": group,
        "required": required,
        "choices": choices,
        "above": above,
        "at_least": at_least,
        "below": below,
        "environment": environment,
        "alternatives": alternatives,
        "fixed_by": fixed_by,
        "repeats": repeats,
    }
    return dataclasses.field(default=default, metadata=metadata)


def same_option(cls: type, name: str, **changes: Any) -> Any:
    """Returns a field equal to that of another class.

    Args:
        cls: dataclass of options.
        name: name of the field.
        **changes: arguments of `option` that differ.
    """
    (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
    return option(**{"default": field.default, **field.metadata, **changes})


@dataclasses.dataclass(frozen=True)
class OptionType:
    """The type of an option.

    Attributes:
        base: bool, int, float or str.
        is_list: whether a value is a tuple of `base`.
        is_optional: whether None is a value.
    """

    base: type
    is_list: bool
    is_optional: bool

    def matches(self, value: Any) -> bool:
        """Returns whether a value has this type; an int is also a float."""
        if value is None:
            return self.is_optional
        if self.is_list:
            return isinstance(value, tuple) and all(map(self._matches_base, value))
        return self._matches_base(value)

    def _matches_base(self, value):
        return type(value) in ((int, float) if self.base is float else (self.base,))

    def __str__(self) -> str:
        name = f"list of {self.base.__name__}" if self.is_list else self.base.__name__
        return f"{name} or None" if self.is_optional else name


def options_of(cls: type) -> Iterator[tuple[dataclasses.Field, OptionType]]:
    """Yields the fields of a dataclass made by `option`, with their types."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "group" in field.metadata:
            yield field, _option_type(hints[field.name])


def _option_type(hint):
    is_optional = isinstance(hint, types.UnionType)
    if is_optional:
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    is_list = typing.get_origin(hint) is tuple
    return OptionType(typing.get_args(hint)[0] if is_list else hint, is_list, is_optional)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the dataclasses of options: converts lists to tuples and checks types and bounds.

    Raises:
        InputError: naming the option and the received value.
    """

    def __post_init__(self):
        """Checks every option."""
        for field, kind in options_of(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not kind.matches(value):
                raise InputError(f"--{field.name} must be of type {kind}. Received: {value!r}")
            for entry in value if kind.is_list and value else [value]:
                _check(field, entry)
        for names in {field.metadata["alternatives"] for field, _ in options_of(type(self))}:
            self._check_alternatives(names or ())

    def check_needed(self, cls: type, given: Any, need: str) -> None:
        """Rejects options that are not at their defaults if another one is missing.

        Args:
            cls: class with these options.
            given: whether the other one is given.
            need: the other one, for the message.

        Raises:
            InputError: naming the first such option.
        """
        for field, _ in options_of(cls):
            if not given and getattr(self, field.name) != field.default:
                raise InputError(f"--{field.name} needs {need}, which is not given.")

    def _check_alternatives(self, names):
        own = [name for name in names if hasattr(self, name)]
        given = [f"--{name}" for name in own if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{comma_separated(given)} cannot be combined. Use only one of them.")
        if own and not given:
            choices = " or ".join(f"--{name}" for name in own)
            raise InputError(f"{choices} must be given. --help explains the flags.")


def _check(field, value):
    choices, above, at_least, below = (
        field.metadata[name] for name in ("choices", "above", "at_least", "below")
    )
    expected = None
    if choices and value is not None and value not in choices:
        expected = f"one of {comma_separated(choices)}"
    elif isinstance(value, int | float):
        check_finite(**{f"--{field.name}": value})
        if above is not None and not value > above:
            expected = f"above {above}"
        elif at_least is not None and not value >= at_least:
            expected = f"{at_least} or more"
        elif below is not None and not value < below:
            expected = f"below {below}"
    if expected:
        raise InputError(f"--{field.name} must be {expected}. Received: {value}")


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of a command line that set options, without those that are None.

    Args:
        values: value by name. Each line of a str becomes an argument.
    """
    return [argument for name, value in values.items() for argument in _arguments(name, value)]


def _arguments(name, value):
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--{name}=false"]
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return [f"--{name}={line}" for line in str(value).split("\n")]
