"""Finds models by name and derives their hyperparameters from their constructors.

A model is a class decorated with `@registry.register`. Its keyword-only constructor arguments are
its hyperparameters: the constructor is the only place that states their names and defaults, and
the programs derive their flags from it.

In a checkout, every file `*_models.py` next to this one is imported when a model is looked up, so a
class in a new file `my_models.py` is found without further edits. An installed package imports only
its own modules. In both cases the environment variable YOUTUBE8M_MODELS names further modules.
"""

import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import typing

import keras

import layers
import private_api
from utils import InputError, comma_separated

MODULES_VARIABLE = "YOUTUBE8M_MODELS"
_OWN_MODULES = ("frame_level_models", "video_level_models")

# Constructor arguments that every model gets from the data or from Keras: no hyperparameters.
DATA_ARGUMENTS = ("num_classes", "feature_sizes", "l2_normalize_input", "name")

# The hyperparameter of a frame-level model that names the model that classifies its encoding.
CLASSIFIER_ARGUMENT = "video_level_classifier_model"

_MODELS: dict[str, type[keras.Model]] = {}


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only constructor argument: its name, type, default and description."""

    name: str
    type: type
    default: bool | int | float | str | None
    help: str

    def check(self, value):
        """Returns `value` in the type of the argument.

        Raises:
            InputError: if the value is of another type.
        """
        if self.type is float and type(value) is int:
            return float(value)
        if type(value) is not self.type and (value is not None or self.default is not None):
            raise InputError(
                f"hyper-parameter {self.name!r} must be of type {self.type.__name__}. "
                f"Received: {value!r}"
            )
        return value


def register(cls):
    """Class decorator: makes a model available by its class name.

    Raises:
        ValueError: if another class has the name, or an argument is not keyword-only with a
            default of type bool, int, float or str, or None with an annotation.
    """
    existing = _MODELS.get(cls.__name__)
    if existing is not None and existing.__module__ != cls.__module__:
        raise ValueError(
            f"a model named {cls.__name__!r} is registered already, by {existing.__module__}.py. "
            "Choose another class name."
        )
    _own_hyperparameters(cls)
    _MODELS[cls.__name__] = cls
    return cls


def models():
    """All registered models: a dict from name to class, sorted by name."""
    for name in _module_names():
        importlib.import_module(name)
    return dict(sorted(_MODELS.items()))


def _module_names():
    """Returns the modules with models: the project's own and those that the user provides."""
    folder = pathlib.Path(__file__).parent
    names = set(_OWN_MODULES)
    # Site-packages, without this file, may hold modules of the same name pattern by anyone.
    if (folder / "pyproject.toml").exists():
        names |= {path.stem for path in folder.glob("*_models.py")}
    named = os.environ.get(MODULES_VARIABLE, "").split(",")
    return sorted(names) + [name.strip() for name in named if name.strip()]


def model_class(name):
    """The class registered under `name`.

    Raises:
        InputError: if there is none; lists what there is.
    """
    known = models()
    if name not in known:
        raise InputError(f"unknown model {name!r}. Registered models: {comma_separated(known)}.")
    return known[name]


def hyperparameters(name, classifier=None):
    """The hyper-parameters of a model: a dict from name to `Hyperparameter`.

    They include those of the video-level model that classifies the encoding of a frame-level
    model: of `classifier`, or else of the default one. Where both have an argument, the
    frame-level model's default counts, unless `classifier` does not take it.
    """
    own = _own_hyperparameters(model_class(name))
    if CLASSIFIER_ARGUMENT not in own:
        return own
    usual = hyperparameters(own[CLASSIFIER_ARGUMENT].default)
    chosen = hyperparameters(classifier) if classifier else usual
    fitting = {key: own[key] for key in own if key in chosen or key not in usual}
    return {**chosen, **fitting}


def resolve(name, given):
    """All hyper-parameters of a model: its defaults, overridden by those given.

    Args:
        name: str. A registered model.
        given: dict. Values that differ from the defaults.

    Returns:
        A dict from every hyper-parameter's name to its value.

    Raises:
        InputError: if the model does not take one of them, or its type is wrong.
    """
    accepted = hyperparameters(name, given.get(CLASSIFIER_ARGUMENT))
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        raise InputError(
            f"{name} does not take {comma_separated(unknown)}. It takes: {comma_separated(sorted(accepted))}."
        )
    return {
        key: parameter.check(given[key]) if key in given else parameter.default
        for key, parameter in accepted.items()
    }


def build_classifier(name, *, num_classes, **given):
    """Builds the video-level model that classifies the encoding of a frame-level model.

    Hyper-parameters that only other video-level models take are left out, so that a frame-level
    model can have defaults for one classifier and work with another.

    Args:
        name: str. A registered video-level model.
        num_classes: int. Size of the vocabulary.
        **given: hyper-parameters.

    Raises:
        InputError: if it is no video-level model, or no such model takes a hyper-parameter.
    """
    cls = model_class(name)
    if cls.frame_level:
        raise InputError(f"{CLASSIFIER_ARGUMENT} must be a video-level model. Received: {name}")
    known = {
        key
        for other, kind in models().items()
        if not kind.frame_level
        for key in hyperparameters(other)
    }
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(f"no video-level model takes {comma_separated(unknown)}")
    taken = hyperparameters(name)
    return cls(
        num_classes=num_classes,
        l2_normalize_input=False,
        name="classifier",
        **{key: value for key, value in given.items() if key in taken},
    )


def build_model(
    name, *, num_classes, feature_sizes, matmul_policy="float32", model_name=None, **given
):
    """Builds a registered model, an ordinary `keras.Model`.

    Args:
        name: str. A registered model, as `DbofModel`.
        num_classes: int. Size of the vocabulary.
        feature_sizes: sequence of int. Size of each feature, in the order of the reader.
        matmul_policy: str. Keras dtype policy of the matrix products, as of
            `layers.matmul_policy`.
        model_name: str. Name of the `keras.Model`, with which the paths of its weights begin; by
            default that of its class.
        **given: hyper-parameters that differ from the model's defaults.

    Raises:
        InputError: if the name, an argument or its value is not valid.
    """
    # Keras numbers unnamed layers by what the process built before, and checkpoints identify
    # weights by these names. Numbering starts over here, so names do not depend on the process.
    private_api.reset_layer_numbers()
    cls = model_class(name)
    arguments = resolve(name, given)
    _check_positive_integers("num_classes", [num_classes])
    _check_positive_integers("feature_sizes", feature_sizes)
    with layers.matmul_policy(matmul_policy):
        try:
            if model_name is not None:
                arguments["name"] = model_name
            model = cls(num_classes=num_classes, feature_sizes=feature_sizes, **arguments)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
        model(model.input_spec_tensors())  # Makes the weights.
    return model


def _check_positive_integers(name, values):
    if not values or any(type(value) is not int or value < 1 for value in values):
        raise InputError(f"{name} must be positive integers. Received: {list(values)}")


def _own_hyperparameters(cls):
    """Keyword-only arguments along the class hierarchy; the most derived default counts."""
    found = {}
    for ancestor in inspect.getmro(cls):
        if "__init__" not in vars(ancestor):
            continue
        if ancestor.__module__.partition(".")[0] == "keras":
            break
        _, *parameters = inspect.signature(ancestor.__init__).parameters.values()
        described = _described_arguments(inspect.getdoc(ancestor) or "")
        for parameter in parameters:
            if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
                raise ValueError(
                    f"argument {parameter.name!r} of {cls.__name__} must be keyword-only: put it "
                    "behind a *."
                )
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in DATA_ARGUMENTS:
                text = described.get(parameter.name, "")
                known = found.get(parameter.name)
                if known is None:
                    found[parameter.name] = _hyperparameter(cls, parameter, text)
                elif not known.help:
                    found[parameter.name] = dataclasses.replace(known, help=text)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _hyperparameter(cls, parameter, text):
    kinds = [type(parameter.default)]
    if parameter.default is None:  # Declared as `name: float | None = None`, say.
        kinds = [kind for kind in typing.get_args(parameter.annotation) if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in (bool, int, float, str):
        raise ValueError(
            f"argument {parameter.name!r} of {cls.__name__} must have a default of type bool, int, "
            f"float or str, or None and an annotation as 'float | None'. "
            f"Received: {parameter}"
        )
    return Hyperparameter(parameter.name, kinds[0], parameter.default, text)


def _described_arguments(docstring):
    """Descriptions in the `Args:` section of a Google-style docstring, by argument."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(
        r"^ {4}(\w+): ((?:.*)(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE
    )
    # The type comes first; `--help` shows it anyway.
    return {
        name: re.sub(r"^(bool|int|float|str)\b[^.]*\. ", "", " ".join(text.split()))
        for name, text in entries
    }
