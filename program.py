"""How a program runs: flags, `--help`, errors, signals, progress.

A program defines `main(options)`, whose parameters are annotated with dataclasses of options, and
ends in `program.run(main)`. Each field of the dataclasses becomes a flag; a `RunConfig` adds the
hyperparameters of all models. No code below `main` reads flags.

Programs import this module before any that imports TensorFlow, so that its start-up messages are
hidden.
"""

import collections
import contextlib
import ctypes
import difflib
import gc
import inspect
import os
import re
import signal
import sys
import tempfile
import textwrap
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm
from absl import app, flags, logging

# TensorFlow's log lines about instruction sets and missing GPUs, of levels info and warning.
_STARTUP_MESSAGE = re.compile(
    rb"[IW]\d{4} .*"
    rb"|WARNING: All log messages before absl::.*"
    rb"|To enable the following instructions.*"
)


@contextlib.contextmanager
def _hidden_startup_messages() -> Iterator[None]:
    """Hides TensorFlow's log lines while it is imported, unless TF_CPP_MIN_LOG_LEVEL is set.

    TensorFlow writes these lines to file descriptor 2 before it looks at the log level. All other
    output is shown at the end of the block.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    # Level 3 also hides errors. Without an NVIDIA driver, CUDA's only error is the missing driver.
    has_gpu = any(map(os.path.exists, ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")))
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2" if has_gpu else "3"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            lines = [line for line in captured if not _STARTUP_MESSAGE.match(line)]
            os.write(2, b"".join(lines))


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Halves the time that importing Keras and TensorFlow takes.

    Keras imports scikit-learn and matplotlib where they are installed, only for its wrappers and
    plots, which no program uses. What imports create stays, so searching it for garbage, then and
    later, finds nothing.
    """
    unneeded = {"sklearn", "matplotlib"}.difference(sys.modules)
    hidden: dict[str, Any] = dict.fromkeys(unneeded)  # None: the module cannot be imported.
    sys.modules.update(hidden)
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in unneeded:
            del sys.modules[name]
        gc.freeze()
        if is_collecting:
            gc.enable()


def _report_interrupt(kind, error, traceback):
    """Prints one line after Ctrl-C, which may come during imports, long before `run`."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{sys.argv[0]}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _report_interrupt

with _hidden_startup_messages(), _quick_imports():
    import keras

import registry
from options import GROUPS, OptionType, options_of
from run_config import RunConfig
from utils import InputError, comma_separated

# Flags of the starter code that have no meaning here, and what to do instead.
_REPLACED_FLAGS = {
    "num_gpu": "Training uses all GPUs of the machine; --distribution chooses others.",
    "log_device_placement": "Leave it out; in Python, tf.debugging.set_log_device_placement(True) "
    "logs the devices.",
    "input_model_tgz": "inference.py reads a training run (--train_dir) or an exported model "
    "(--exported_model); unpack archives first.",
    "untar_model_dir": "inference.py reads a training run (--train_dir) or an exported model "
    "(--exported_model); unpack archives first.",
    "output_model_tgz": "export_model.py writes a model that needs only TensorFlow.",
    "force_output_model_name": "export_model.py --output_dir names the exported model.",
    "file_size": "inference.py writes one file.",
    "dbof_activation": "DbofModel uses ReLU6. Write a model of your own for another activation.",
    "dbof_var_features": "DbofModel does not use it. Leave it out.",
    "lstm_random_sequence": "--sample_random_frames chooses how frames are sampled.",
    "master": "Several machines train together with --distribution=multi_worker and TF_CONFIG.",
    "task": "Several machines train together with --distribution=multi_worker and TF_CONFIG.",
    "ps_hosts": "Several machines train together with --distribution=multi_worker and TF_CONFIG.",
    "worker_hosts": "Several machines train together with --distribution=multi_worker and "
    "TF_CONFIG.",
}
_HELP_FLAGS = {"help", "h", "helpshort", "helpfull"}
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class GivenFlags(frozenset[str]):
    """Names of the flags that the command line or a flagfile gives.

    A parameter of a program's `main` with this annotation receives them.
    """


def run(main: Callable, backends: Sequence[str] = ("tensorflow",)) -> None:
    """Runs a program with the options of the command line.

    An `InputError`, a failing file operation, a loss that is not finite or a lack of memory ends it
    with one line and exit status 1. Ctrl-C ends it with one line and by the signal SIGINT, which
    shells report as 130. Anything else is a bug and keeps its traceback.

    Args:
        main: function whose parameters are annotated with dataclasses of options.
        backends: Keras backends that the program supports.
    """
    try:
        define_flags(main, flags.FLAGS)
    except InputError as error:
        _exit_with(error)
    app.run(
        lambda arguments: _run(main, arguments, backends),
        flags_parser=lambda arguments: _parse(main, arguments),
    )


def end_on_sigterm() -> None:
    """Makes SIGTERM end this program with one line, also one that runs several trainings in turn.

    Blocks that the program is in end in order, as they do after Ctrl-C. A training in this process
    saves a checkpoint first.
    """

    def end(*_):
        sys.exit(f"{sys.argv[0]}: stopped by SIGTERM; repeat the command to continue")

    signal.signal(signal.SIGTERM, end)


def end_with_parent() -> None:
    """Makes the kernel end this process, by SIGTERM, when its parent dies in any way.

    It is the argument `preexec_fn` of `subprocess.Popen`.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def call(main: Callable, arguments: Sequence[str]) -> Any:
    """Calls a program's `main` with options parsed from arguments, and returns its result.

    Raises:
        InputError: if a flag is unknown or a value is not valid.
    """
    return main(**parse_options(main, arguments))


def parse_options(main: Callable, arguments: Sequence[str]) -> dict[str, Any]:
    """Parses arguments into the options of a program, by name of the parameter of `main`.

    Raises:
        InputError: if a flag is unknown or a value is not valid.
    """
    flag_values = flags.FlagValues()
    define_flags(main, flag_values)
    rest = _parse_flags(flag_values, [main.__module__, *arguments])
    _refuse_positional(rest[1:])
    return options_from_flags(main, flag_values)


def _run(main, arguments, backends):
    backend = keras.backend.backend()
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_worth_showing)
    try:
        if backend not in backends:
            raise InputError(
                f"this program runs on the Keras backend {' or '.join(backends)}, but the backend "
                f"is {backend!r}. Set KERAS_BACKEND={backends[0]}."
            )
        _refuse_positional(arguments[1:])
        main(**options_from_flags(main, flags.FLAGS))
    except Exception as error:
        if error_line(error) is None:
            raise
        _exit_with(error)


def _exit_with(error):
    sys.exit(f"{sys.argv[0]}: error: {error_line(error) or error}")


def error_line(error: BaseException) -> str | None:
    """Returns the line that a program prints for an error, or None for a bug."""
    lack_of_memory = _lack_of_memory(error)
    if lack_of_memory is not None:
        return (
            "not enough memory. A smaller model, --batch_size or --shuffle_buffer_size needs less. "
            f"TensorFlow or NumPy reports: {_one_line(lack_of_memory)}"
        )
    reported = (InputError, OSError, FloatingPointError, flags.Error)
    if isinstance(error, (*reported, *_remote_errors(keras.backend.backend()))):
        return _one_line(error)
    return None


def _lack_of_memory(error):
    """Returns the error that reports a lack of memory, or None; Keras replaces it by another."""
    while error is not None:
        if isinstance(error, MemoryError) or "OOM when allocating" in str(error):
            return error
        error = error.__context__
    return None


def _one_line(error):
    # TensorFlow's messages have line breaks and names of operations.
    text = re.sub(r"\{\{\w+ \S+\}\} ?| ?\[Op:\w+\]( name: )?", "", str(error))
    return re.sub(r"\s*\n\s*", " ", text)


def _is_worth_showing(record):
    """Returns whether a log record is the project's own, or more than a remark by a library."""
    if re.search(
        "/apache_beam/(?!runners/(dataflow|portability/portable_runner))", record.pathname
    ):
        return record.levelno > logging.converter.STANDARD_WARNING
    return (
        record.levelno > logging.converter.STANDARD_INFO
        or "/tensorflow/python/" not in record.pathname
    )


def _remote_errors(backend):
    if backend != "tensorflow":
        return ()
    # Imported here because files needs TensorFlow, and programs on other backends do not.
    import files

    return files.REMOTE_ERRORS


# --- Flags ----------------------------------------------------------------------------------------


def define_flags(main: Callable, flag_values: flags.FlagValues) -> None:
    """Defines the flags of a program.

    Raises:
        InputError: if a model has a hyperparameter with the name of another flag.
    """
    for field, kind in _options(main):
        _define(field.name, field.default, kind, field.metadata, flag_values)
    if RunConfig in _option_classes(main).values():
        _define_class_flags(flag_values)


def _define(name, default, kind, metadata, flag_values):
    define = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }[kind.base]
    settings = {"flag_values": flag_values}
    if metadata["choices"] and not kind.is_list:
        define = flags.DEFINE_enum
        settings["enum_values"] = list(metadata["choices"])
    if kind.is_list:
        define = flags.DEFINE_list
    if metadata.get("repeats"):
        define = flags.DEFINE_multi_string
    if isinstance(default, tuple):
        default = [str(entry) for entry in default]
    elif not isinstance(default, bool | int | float | str):
        default = None
    define(name, default=default, help=metadata["help"], **settings)


def _option_classes(main):
    """Returns the dataclasses of options of a main function by parameter, without `| None`."""
    hints = typing.get_type_hints(main)
    hints.pop("return", None)
    return {
        name: typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        for name, hint in hints.items()
        if hint is not GivenFlags
    }


def _options(main):
    """Returns the fields and types of all options of a program; equal names are one option."""
    found = {}
    for cls in _option_classes(main).values():
        for field, kind in options_of(cls):
            found.setdefault(field.name, (field, kind))
    return list(found.values())


def _parse_flags(flag_values, arguments):
    """Parses flags and returns the other arguments."""
    try:
        return flag_values(arguments)
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag_message(error.flagname, list(flag_values))) from error
    except flags.IllegalFlagValueError as error:
        raise InputError(_illegal_value_message(str(error), flag_values)) from error
    except flags.Error as error:
        raise InputError(str(error)) from error


def _illegal_value_message(message, flag_values):
    reason = r"invalid literal|could not convert|\('Non-boolean"
    found = re.match(rf"flag --(\w+)=(.*?): ({reason})", message, re.DOTALL)
    expected = {"bool": "true or false", "int": "an integer", "float": "a number"}
    kind = flag_values[found[1]].flag_type() if found else None
    if kind not in expected:
        return message
    return f"--{found[1]} must be {expected[kind]}. Received: {found[2]!r}"


def _unknown_flag_message(name, known):
    for candidate in (name, name.removeprefix("no")):
        if candidate in _REPLACED_FLAGS:
            return f"--{candidate} has no meaning here. {_REPLACED_FLAGS[candidate]}"
    of_runs = {field.name for field, _ in options_of(RunConfig)}
    of_runs.update(_model_flags(), _loss_flags())
    if name in of_runs:
        return (
            f"unknown flag --{name}. train.py takes it and saves it with the run; this program "
            "does not take it."
        )
    similar = " or ".join(f"--{match}" for match in difflib.get_close_matches(name, known))
    suggestion = f" Did you mean {similar}?" if similar else ""
    return f"unknown flag --{name}.{suggestion} --help lists the flags."


def _refuse_positional(arguments):
    if arguments:
        others = f" and {len(arguments) - 1} more" if len(arguments) > 1 else ""
        raise InputError(
            f"unexpected argument: {arguments[0]}{others}. Flags start with --; quote patterns, so "
            "that the shell does not expand them."
        )


def options_from_flags(main: Callable, flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the arguments of a program's `main`, by name.

    Raises:
        InputError: if a required flag is missing or a value is not valid.
    """
    classes = _option_classes(main)
    values = {field.name: _value(field, kind, flag_values) for field, kind in _options(main)}
    _refuse_fixed_flags(main, values, flag_values)
    for field, _ in _options(main):
        _take_environment(field, values)
    hints = typing.get_type_hints(main)
    absent = {
        name
        for name, cls in classes.items()
        if isinstance(hints[name], types.UnionType) and values["model"] is None
    }
    _require_flags(classes, absent, values)
    names = (*_model_flags(), *_loss_flags()) if absent else ()
    given = [f"--{name}" for name in _given(names, flag_values)]
    if given:
        raise InputError(f"{comma_separated(given)} needs --model.")
    options = {
        name: None if name in absent else _build_options(cls, values, flag_values)
        for name, cls in classes.items()
    }
    given_flags = GivenFlags(name for name in values if flag_values[name].present)
    return options | {name: given_flags for name, hint in hints.items() if hint is GivenFlags}


def _refuse_fixed_flags(main, values, flag_values):
    """Rejects flags whose values another option fixes, even if they are equal to the default."""
    for field, _ in _options(main):
        fixed_by = field.metadata["fixed_by"]
        if fixed_by and values.get(fixed_by) and flag_values[field.name].present:
            raise InputError(
                f"--{field.name} cannot be given with --{fixed_by}, which fixes it. Set it when "
                f"you create the {fixed_by.replace('_', ' ')}."
            )


def _value(field, kind, flag_values):
    name = field.name
    value = flag_values[name].value
    if isinstance(value, str):
        return _expand_home(value)
    if field.metadata["repeats"]:
        return value and "\n".join(map(_expand_home, value))
    if not kind.is_list or value is None:
        return value
    try:
        return tuple(kind.base(_expand_home(entry)) for entry in value)
    except ValueError:
        expected = {int: "integers, for example 1024,128", float: "numbers, for example 2,1,1"}
        raise InputError(
            f"--{name} must be {expected[kind.base]}. Received: {','.join(value)}"
        ) from None


def _expand_home(text):
    """Expands ~/ in paths, also after commas; the shell expands it only at the start of a word."""
    return re.sub(r"(?<![^,])~(?=/)", lambda _: os.path.expanduser("~"), text)


def _take_environment(field, values):
    """Sets an option that is not given from its environment variable."""
    variable = field.metadata["environment"]
    alternatives = field.metadata["alternatives"] or (field.name,)
    if not variable or any(values.get(name) for name in alternatives):
        return
    if os.environ.get(variable):
        values[field.name] = os.environ[variable]
        logging.info("--%s=%s, from $%s", field.name, values[field.name], variable)


def _require_flags(classes, absent, values):
    required = [
        field.name
        for name, cls in classes.items()
        if name not in absent
        for field, _ in options_of(cls)
        if field.metadata["required"]
    ]
    missing = [f"--{name}" for name in required if not values[name]]
    if missing:
        raise InputError(f"{comma_separated(missing)} must be given. --help explains the flags.")


def _build_options(cls, values, flag_values):
    given = {field.name: values[field.name] for field, _ in options_of(cls)}
    if cls is RunConfig:
        given["hyperparameters"] = _given(_model_flags(), flag_values)
        given["loss_hyperparameters"] = _given(_loss_flags(), flag_values)
    return cls(**given)


# --- Flags of models and losses -------------------------------------------------------------------


def _model_flags():
    """Returns the hyperparameters of all models: name to pairs of model and `Hyperparameter`."""
    return _by_name({name: registry.hyperparameters(name) for name in registry.models()})


def _loss_flags():
    """Returns the hyperparameters of all losses: name to pairs of loss and `Hyperparameter`."""
    losses = registry.losses().items()
    return _by_name({name: registry.own_hyperparameters(loss) for name, loss in losses})


def _by_name(hyperparameters):
    owners = collections.defaultdict(list)
    for owner, parameters in hyperparameters.items():
        for parameter in parameters.values():
            owners[parameter.name].append((owner, parameter))
    return dict(sorted(owners.items()))


def _given(names, flag_values):
    """Returns the values of the flags that are given, by name."""
    return {name: flag_values[name].value for name in names if flag_values[name].present}


def _define_class_flags(flag_values):
    """Defines a flag per hyperparameter, with None for the model's or loss's own default."""
    for name, uses in [*_model_flags().items(), *_loss_flags().items()]:
        bases = {parameter.type for _, parameter in uses}
        owners = comma_separated(owner for owner, _ in uses)
        if name in flag_values:
            raise InputError(
                f"hyperparameter {name!r} of {owners} has the name of another flag of this "
                "program. Give it another name."
            )
        if len(bases) > 1:
            raise ValueError(
                f"hyperparameter {name!r} has different types in {owners}. Use one type."
            )
        kind = OptionType(bases.pop(), is_list=False, is_optional=True)
        text = next((parameter.help for _, parameter in uses if parameter.help), "")
        _define(name, None, kind, {"choices": None, "help": text}, flag_values)


# --- Help -----------------------------------------------------------------------------------------


def _parse(main, arguments):
    """Parses the command line, or prints the help and exits."""
    try:
        arguments = flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
        given = [argument.lstrip("-") for argument in arguments[1:] if argument.startswith("-")]
        if _HELP_FLAGS & set(given):
            named = {flag: _value_in(arguments, flag) for flag in ("model", "label_loss")}
            _print(help_text(main, **named))
            sys.exit(0)
        return _parse_flags(flags.FLAGS, arguments)
    except (InputError, OSError, flags.Error) as error:
        _exit_with(error)


def _print(text):
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head`, for example, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _value_in(arguments, flag):
    """Returns the value of a flag among arguments, or None."""
    found = re.search(rf"(?<!\S)--?{flag}(?:=|\s+)(\S+)", " ".join(arguments))
    return found[1] if found else None


def help_text(main: Callable, model: str | None = None, label_loss: str | None = None) -> str:
    """Returns the help of a program: its description and its flags, in groups.

    Args:
        main: the program's main function.
        model: model whose flags are listed; None lists no flags of models.
        label_loss: loss whose flags are listed; None stands for the default loss.

    Raises:
        InputError: if there is no such model or loss.
    """
    module = inspect.getmodule(main)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    # Required flags come first in their group.
    for field, kind in sorted(
        _options(main), key=lambda option: not option[0].metadata["required"]
    ):
        groups[field.metadata["group"]].append(_flag_help(field, kind))
    if RunConfig in _option_classes(main).values():
        groups["model"] += _model_help(model)
        groups["loss"] += _loss_help(label_loss)
    sections = [
        "\n".join([f"{group.capitalize()}:", *lines]) for group, lines in groups.items() if lines
    ]
    others = (
        "--flagfile=FILE reads flags from a file. --verbosity=-1 shows only warnings and errors."
    )
    return "\n\n".join([inspect.getdoc(module) or "", *sections, others])


def _flag_help(field, kind):
    metadata = field.metadata
    text = metadata["help"]
    if metadata["repeats"]:
        text += " The flag may be repeated."
        if field.name.endswith("_pattern"):
            text += " A path that exists is not split at its commas."
    if metadata["environment"]:
        text += f" Default in a Vertex AI job: ${metadata['environment']}."
    return _format_flag(
        field.name, kind, metadata["choices"], text, field.default, metadata["required"]
    )


def _model_help(model):
    if model is None:
        return [_listed("Models", registry.models())]
    return _hyperparameter_help(registry.hyperparameters(model))


def _loss_help(loss):
    loss = registry.loss_class(loss or RunConfig.label_loss)
    parameters = registry.own_hyperparameters(loss)
    return [_listed("Losses", registry.losses()), *_hyperparameter_help(parameters)]


def _listed(title, names):
    indent = " " * 6
    text = f"{title}: {comma_separated(names)}."
    return textwrap.fill(text, 98, initial_indent=indent, subsequent_indent=indent)


def _hyperparameter_help(parameters):
    return [
        _format_flag(
            parameter.name,
            OptionType(parameter.type, is_list=False, is_optional=parameter.default is None),
            None,
            parameter.help,
            parameter.default,
        )
        for parameter in parameters.values()
    ]


def _format_flag(name, kind, choices, text, default, required=False):
    value = "|".join(choices) if choices else kind.base.__name__.upper()
    if kind.is_list:
        value = f"{value},..."
    usage = f"--[no]{name}" if kind.base is bool else f"--{name}={value}"
    if required:
        text = f"{text} Required."
    elif isinstance(default, tuple):
        text = f"{text} Default: {','.join(map(str, default))}."
    elif isinstance(default, bool | int | float | str):
        text = f"{text} Default: {str(default).lower() if kind.base is bool else default}."
    indent = " " * 6
    return f"  {usage}\n" + textwrap.fill(
        text, 98, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


# --- Progress -------------------------------------------------------------------------------------


class _LinesAboveBar:
    """A stream for log lines that keeps them from breaking a progress bar."""

    def write(self, text: str) -> None:
        """Writes text, which ends in a newline, above the bar."""
        tqdm.tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        """Flushes the terminal."""
        sys.stderr.flush()


class Progress:
    """Progress of long work: a bar on a terminal, log lines elsewhere. A context manager.

    Args:
        total: number of units of the whole work; None if unknown.
        unit: name of the unit, for example "step"; "B" for bytes.
        initial: units done before.
        interval_secs: shortest time between two log lines of `tick`.
    """

    def __init__(
        self, total: float | None, unit: str, initial: float = 0, interval_secs: float = 10.0
    ):
        self._bar = tqdm.tqdm(
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            disable=None,
            dynamic_ncols=True,
            delay=1e-9,  # Appears with the first unit, below the lines that come before.
        )
        self._stream: Any = None
        self._interval_secs = interval_secs
        self._last_tick = time.monotonic()

    def __enter__(self):
        if not self._bar.disable:
            handler = logging.get_absl_handler().python_handler
            self._stream = handler.setStream(_LinesAboveBar())
        return self

    def __exit__(self, *_):
        if self._stream is not None:
            logging.get_absl_handler().python_handler.setStream(self._stream)
        self._bar.close()

    def advance(self) -> None:
        """Counts one more unit."""
        self._bar.update()

    def advance_to(self, done: float) -> None:
        """Sets the number of units done."""
        self._bar.update(done - self._bar.n)

    def report(self, text: str) -> None:
        """Prints a line above the bar, or logs it."""
        if self._bar.disable:
            logging.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    def tick(self, done: float, text: str) -> None:
        """Sets the units done; shows `text` next to the bar, or logs it from time to time."""
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self.advance_to(done)
        elif time.monotonic() - self._last_tick >= self._interval_secs:
            self._last_tick = time.monotonic()
            logging.info("%s", text)
