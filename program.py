"""What all programs share: their common flags, the models' flags, and how a program runs.

A program has `define_flags(flag_values)` and `main(flag_values)`, and ends in
`program.run(main, define_flags)`. Flags are read in `main` alone; everything below takes plain
values.
"""

import collections
import os
import re
import sys

import keras
from absl import app, flags, logging

import registry
from utils import InputError, listing

# Flags defined here belong to the program that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

_SHARED_FLAGS = {
    "train_dir": (
        flags.DEFINE_string,
        None,
        "Directory of a training run: model_flags.json, checkpoints, TensorBoard logs, eval/. In a "
        "job of Vertex AI, by default $AIP_CHECKPOINT_DIR.",
    ),
    "tensorboard_dir": (
        flags.DEFINE_string,
        None,
        "Directory for the logs of TensorBoard in place of --train_dir. In a job of Vertex AI, by "
        "default $AIP_TENSORBOARD_LOG_DIR.",
    ),
    "checkpoint": (
        flags.DEFINE_string,
        None,
        "Checkpoint to use instead of the newest one of --train_dir: a path without ending, as "
        ".../model.ckpt-1000, or the step, as 1000.",
    ),
    "input_data_pattern": (
        flags.DEFINE_string,
        None,
        "Globs of records to predict, comma-separated; quote them.",
    ),
    "batch_size": (
        flags.DEFINE_integer,
        128,
        "Videos per batch; in training on several devices, of all of them together.",
    ),
    "num_readers": (
        flags.DEFINE_integer,
        4,
        "Threads that read and parse records. Their number does not change the order of the data.",
    ),
    "skip_corrupt_records": (
        flags.DEFINE_integer,
        0,
        "How many damaged records to skip, each with a warning, before giving up.",
    ),
    "seed": (
        flags.DEFINE_integer,
        0,
        "Seed of everything random: initial weights, order of the data, sampling of frames.",
    ),
    "top_k": (flags.DEFINE_integer, 20, "Predictions per video that count, as in GAP@20."),
    "num_classes": (flags.DEFINE_integer, 3862, "Size of the vocabulary; labels are 0..N-1."),
    "max_frames": (flags.DEFINE_integer, 300, "Frames of a video that are used at most."),
    "feature_sizes": (
        flags.DEFINE_list,
        ["1024", "128"],
        "Sizes of the features, in the order of --feature_names.",
    ),
}


def define_flags(flag_values, *names, **defaults):
    """Defines shared flags by name, with their usual or a given default."""
    for name in [*names, *defaults]:
        define, default, text = _SHARED_FLAGS[name]
        define(name, defaults.get(name, default), text, flag_values=flag_values)


def define_model_flags(flag_values):
    """Defines one flag per hyper-parameter of the registered models.

    A flag that is not given leaves the model its default, so the flags' own default is None.
    """
    owners = collections.defaultdict(list)
    for model in registry.models():
        for parameter in registry.hyperparameters(model).values():
            owners[parameter.name].append((model, parameter))
    for name, uses in sorted(owners.items()):
        kinds = {parameter.type for _, parameter in uses}
        if name in flag_values:
            raise InputError(
                f"hyper-parameter {name!r} of {listing(model for model, _ in uses)} has the name "
                "of a flag of this program. Give it another name."
            )
        if len(kinds) > 1:
            raise ValueError(
                f"hyper-parameter {name!r} has different types in "
                f"{listing(model for model, _ in uses)}. Use one type."
            )
        define = {
            bool: flags.DEFINE_boolean,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }[kinds.pop()]
        define(name, None, _model_flag_help(uses), flag_values=flag_values)


def given_model_flags(flag_values):
    """Values of the models' flags that the command line sets, by hyper-parameter."""
    names = {name for model in registry.models() for name in registry.hyperparameters(model)}
    return {name: flag_values[name].value for name in sorted(names) if flag_values[name].present}


def _model_flag_help(uses):
    text = next((parameter.help for _, parameter in uses if parameter.help), "")
    text = re.sub(r"^(bool|int|float|str)\b[^.]*\. ", "", text)  # absl shows the type itself.
    by_default = collections.defaultdict(list)
    for model, parameter in uses:
        by_default[parameter.default].append(model)
    defaults = "; ".join(
        f"{default!r} in {listing(models)}" for default, models in by_default.items()
    )
    return f"{text} Default: {defaults}."


def integer_list(flag_values, name):
    """Value of a list flag as a tuple of int.

    Raises:
        InputError: if an entry is not an integer.
    """
    try:
        return tuple(int(entry) for entry in flag_values[name].value)
    except ValueError:
        received = ",".join(flag_values[name].value)
        raise InputError(f"--{name} must be integers, as 1024,128. Received: {received}") from None


def float_list(flag_values, name):
    """Value of a list flag as a tuple of float; None if it is not given.

    Raises:
        InputError: if an entry is not a number.
    """
    if flag_values[name].value is None:
        return None
    try:
        return tuple(float(entry) for entry in flag_values[name].value)
    except ValueError:
        received = ",".join(flag_values[name].value)
        raise InputError(f"--{name} must be numbers, as 2,1,1. Received: {received}") from None


def use_environment(flag_values, **variables):
    """Sets flags that are not given to what environment variables say, if those are set.

    Args:
        flag_values: the flags of a program.
        **variables: names of variables by name of flag, those that Vertex AI sets in its jobs.
    """
    for name, variable in variables.items():
        if flag_values[name].value is None and os.environ.get(variable):
            flag_values[name].value = os.environ[variable]
            logging.info("--%s=%s, as $%s says", name, flag_values[name].value, variable)


def require_one_of(flag_values, *names):
    """Refuses a command line without exactly one of the named flags.

    Raises:
        InputError: naming the choices, or those that exclude each other.
    """
    given = [f"--{name}" for name in names if flag_values[name].value]
    if len(given) > 1:
        raise InputError(f"{listing(given)} exclude each other. Give one of them.")
    if not given:
        choices = " or ".join(f"--{name}" for name in names)
        raise InputError(f"{choices} must be given. --help explains every flag.")


def require_flags(flag_values, *names):
    """Refuses a command line without one of the named flags.

    Raises:
        InputError: naming all that are missing.
    """
    missing = [f"--{name}" for name in names if not flag_values[name].value]
    if missing:
        raise InputError(f"{listing(missing)} must be given. --help explains every flag.")


def require_positive(flag_values, *names):
    """Refuses a value below 1 of the named flags; None is left alone."""
    for name in names:
        value = flag_values[name].value
        if value is not None and value <= 0:
            raise InputError(f"--{name} must be above 0. Received: {value}")


def require_not_negative(flag_values, *names):
    """Refuses a value below 0 of the named flags; None is left alone."""
    for name in names:
        value = flag_values[name].value
        if value is not None and not value >= 0:
            raise InputError(f"--{name} must be 0 or more. Received: {value}")


def run(main, define, backends=("tensorflow",)):
    """Runs a program: `define(flags.FLAGS)`, then `main(flags.FLAGS)`.

    An `InputError`, a failing file operation or a loss that is not finite ends it with one line and
    exit status 1; anything else is a fault of the program and keeps its traceback.

    Args:
        main: function of the parsed flags.
        define: function of an `absl.flags.FlagValues`, which defines the flags in it.
        backends: sequence of str. Backends of Keras that the program runs on.
    """
    backend = keras.backend.backend()

    def guarded(arguments):
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_is_worth_showing)
        _expand_home(flags.FLAGS)
        try:
            if backend not in backends:
                raise InputError(
                    f"this program runs on the backend {' or '.join(backends)} of Keras, which is "
                    f"set to {backend!r}. Set KERAS_BACKEND={backends[0]}."
                )
            if len(arguments) > 1:
                raise InputError(f"flags start with --. Received: {listing(arguments[1:])}")
            main(flags.FLAGS)
        except (InputError, OSError, FloatingPointError, *_remote_errors(backend)) as error:
            sys.exit(f"{sys.argv[0]}: error: {_in_one_line(error)}")

    try:
        define(flags.FLAGS)
    except InputError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
    app.run(guarded)


def _is_worth_showing(record):
    """Whether a log record is the project's own, or more than a remark of TensorFlow."""
    return (
        record.levelno > logging.converter.STANDARD_INFO
        or "/tensorflow/python/" not in record.pathname
    )


def _in_one_line(error):
    """An error's message without line ends and the names of operations in those of TensorFlow."""
    text = re.sub(r"\{\{\w+ \S+\}\} ?| ?\[Op:\w+\]( name: )?", "", str(error))
    return re.sub(r"\s*\n\s*", " ", text)


def _remote_errors(backend):
    if backend != "tensorflow":
        return ()
    # Imported here, as files need TensorFlow, which programs on other backends do not.
    import files

    return files.REMOTE_ERRORS


def _expand_home(flag_values):
    """Replaces ~ at the beginning of a path, which the shell leaves alone in --flag=~/path."""
    for name in flag_values:
        value = flag_values[name].value
        if isinstance(value, str) and value.startswith("~/"):
            flag_values[name].value = os.path.expanduser(value)
