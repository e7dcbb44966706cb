"""Finds models and losses by name and derives their hyperparameters from their constructors.

A model or loss is a class decorated with `@registry.register`. Its keyword-only constructor
arguments are its hyperparameters: the constructor is the only place that states their names and
defaults, and the programs derive their flags from it.

In a checkout, every file `*_models.py` or `*_losses.py` next to this one is imported when a name is
looked up, so a class in a new file `my_models.py` is found without further edits. An installed
package imports only its own modules. In both cases the environment variable YOUTUBE8M_MODELS names
further modules.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import pathlib
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

import layers
import private_api
from quantization import FrameFormat
from utils import KERAS_PACKAGE, InputError, check_finite, comma_separated, static_shape

MODULES_VARIABLE = "YOUTUBE8M_MODELS"
_OWN_MODULES = (
    "frame_level_models",
    "losses",
    "nextvlad_models",
    "transformer_models",
    "video_level_models",
    "willow_models",
)

# Files with such names in a checkout hold models or losses.
_FILE_ENDS = ("_models.py", "_losses.py")

# Constructor arguments that models and losses get from the data or from Keras; not hyperparameters.
DATA_ARGUMENTS = (
    "num_classes",
    "feature_sizes",
    "frame_format",
    "l2_normalize_input",
    "name",
    "class_weights",
    "class_prior",
)

# The hyperparameter that names the video-level model inside a frame-level model.
CLASSIFIER_ARGUMENT = "video_level_classifier_model"

_REGISTERED: dict[str, type] = {}
_Class = TypeVar("_Class", bound=type)


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A keyword-only constructor argument of a model or loss.

    Attributes:
        name: name of the argument.
        type: bool, int, float or str.
        default: default of the argument; may be None.
        help: description from the class docstring.
    """

    name: str
    type: type
    default: bool | int | float | str | None
    help: str

    def check(self, value: Any) -> Any:
        """Returns a value in the type of the hyperparameter: an int becomes a float if needed.

        Raises:
            InputError: if the value has another type, or is not finite.
        """
        if type(value) in (int, float):
            check_finite(**{f"hyperparameter {self.name!r}": value})
        if self.type is float and type(value) is int:
            return float(value)
        if type(value) is not self.type and (value is not None or self.default is not None):
            raise InputError(
                f"hyperparameter {self.name!r} must be of type {self.type.__name__}. "
                f"Received: {value!r}"
            )
        return value


class Model(private_api.NoSaveSignature, keras.Model):
    """Base of all models, for their use from Python.

    Keras saves, loads and clones a model by its config. Keras' own config of a subclass holds the
    constructor's defaults; this one holds the arguments.

    Attributes:
        embedding_size: size of the vectors that `embed` returns, once the model has its weights;
            None for a model without embeddings.
        fixed_arguments: tuple of str. Arguments of base constructors that the class sets itself;
            they are not among its hyperparameters.
        has_separate_classes: whether a model of some of the classes, with the entries of the
            weights that belong to them, gives these classes the same probabilities. A class that
            redefines `call` or `classify` states it again, or it is False.
    """

    embedding_size: int | None = None
    fixed_arguments: tuple[str, ...] = ()
    has_separate_classes: bool = False

    def __init_subclass__(cls, **options: Any):
        """Takes back what a base class says of methods that the class redefines."""
        super().__init_subclass__(**options)
        if redefines(cls, ("call", "classify"), "has_separate_classes"):
            cls.has_separate_classes = False

    def __new__(cls, *args: Any, **arguments: Any) -> "Model":
        """Keeps the arguments for `get_config`."""
        model = super().__new__(cls)
        object.__setattr__(model, "_arguments", arguments)
        object.__setattr__(model, "_matmul_policy", layers.current_matmul_policy())
        return model

    def __init__(self, *, name: str | None = None):
        policy, floatx = keras.config.dtype_policy().name, keras.config.floatx()
        if (policy, floatx) != ("float32", "float32"):
            raise InputError(
                f"Keras' global dtype policy is {policy} and its floatx {floatx}, but models here "
                "choose the precision of their matrix products and compute everything else in "
                "float32. Call keras.config.set_dtype_policy('float32') and "
                "keras.config.set_floatx('float32'), and build the model by "
                "RunConfig.build_model('mixed_bfloat16') or train it with "
                "train.py --compute_dtype=bfloat16."
            )
        super().__init__(name=name or type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        """Returns all arguments of the constructor, and how `from_config` has to build the model.

        Raises:
            InputError: if the class is not registered.
        """
        classifier = self._arguments.get(CLASSIFIER_ARGUMENT)
        defaults = hyperparameters(type(self).__name__, classifier)
        return {
            **{name: hyperparameter.default for name, hyperparameter in defaults.items()},
            **self._arguments,
            "feature_sizes": list(self.feature_sizes),
            "name": self.name,
            "trainable": [layer.trainable for layer in layers.sublayers(self)],
            "matmul_policy": self._matmul_policy,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Model":
        """Builds a model from what `get_config` returned, with initial weights."""
        arguments = dict(config)
        trainable = arguments.pop("trainable")
        with layers.matmul_policy(arguments.pop("matmul_policy")):
            model = cls(**arguments)
        if model.feature_sizes:
            model.build()
        found = layers.sublayers(model)
        if len(found) != len(trainable):  # Some layers do not exist before the weights.
            found = found[:1]
        # A layer comes before the layers inside it, to which Keras passes the value on.
        for layer, value in zip(found, trainable, strict=False):
            layer.trainable = value
        return model

    def embed(self, inputs: Any) -> Any:
        """Returns the embeddings of videos, the vectors before the classifier.

        Raises:
            InputError: if the model classifies its input directly.
        """
        raise InputError(
            f"{self.name} has no embeddings: it classifies the features of a video directly. Use "
            "these features, or a frame-level model."
        )

    def check_input(
        self, tensor: Any, dtypes: tuple[str, ...], axes: tuple[str, ...], hint: str
    ) -> None:
        """Rejects a tensor that the model would misread.

        Args:
            tensor: tensor to check.
            dtypes: dtypes that the model takes.
            axes: names of all axes but the last, which holds the features.
            hint: sentence on how to convert the tensor.

        Raises:
            InputError: naming dtype and shape.
        """
        size = sum(self.feature_sizes)
        received = keras.backend.standardize_dtype(tensor.dtype)
        shape: list = static_shape(tensor) or ["of another rank"]
        right_shape = len(shape) == len(axes) + 1 and (not size or shape[-1] in (size, None))
        if received not in dtypes or not right_shape:
            raise InputError(
                f"{self.name} takes {' or '.join(dtypes)} [{comma_separated((*axes, size))}]. "
                f"Received: {received} [{comma_separated(shape)}]. {hint}"
            )

    def auxiliary_loss(self, label_loss: Callable[[Any], Any]) -> Any:
        """Returns a loss to add, in training, to that of the predictions; 0 for most models.

        Called after the forward pass of the same training step. Unlike losses that layers add, it
        may depend on the labels, and `--regularization_penalty` does not scale it.

        Args:
            label_loss: function from probabilities `[B, C]` to their loss, a scalar.
        """
        del label_loss
        return 0.0

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of `fit` and `evaluate`: in training, with the `auxiliary_loss`."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training or self.loss is None:
            return loss

        def label_loss(predictions):
            weights = () if sample_weight is None else (sample_weight,)
            return ops.mean(keras.losses.get(self.loss)(y, predictions, *weights))

        return loss + self.auxiliary_loss(label_loss)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, class_weight: None = None, **options: Any) -> Any:
        """Trains like `keras.Model.fit`, but rejects `class_weight`."""
        _check_no_class_weight(class_weight)
        with _without_harmless_warnings(options):
            return super().fit(*args, **options)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **options: Any) -> Any:
        """Evaluates like `keras.Model.evaluate`."""
        with _without_harmless_warnings(options):
            return super().evaluate(*args, **options)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args: Any, **options: Any) -> Any:
        """Predicts like `keras.Model.predict`."""
        with _without_harmless_warnings(options):
            return super().predict(*args, **options)

    @functools.wraps(keras.Model.export)
    def export(self, *args: Any, **options: Any) -> Any:
        """Exports like `keras.Model.export`, which takes inputs of a subclass for floats."""
        inputs = self.input_spec_tensors()
        return keras.Model(inputs, self(inputs)).export(*args, **options)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: None = None,
        return_dict: bool = False,
    ) -> Any:
        """Trains like `keras.Model.train_on_batch`, but rejects `class_weight`."""
        _check_no_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)


def _check_no_class_weight(class_weight):
    if class_weight is not None:
        raise InputError(
            "class_weight is not supported: a video may have several labels, and Keras would use "
            "the weight of only one of them. Give every video a sample_weight, or compile the "
            "model with a loss that weights the classes."
        )


def redefines(cls: type, methods: Iterable[str], attribute: str) -> bool:
    """Returns whether a class has one of some methods from an earlier base than an attribute."""

    def place(name):
        bases = enumerate(cls.__mro__)
        return next((number for number, base in bases if name in vars(base)), len(cls.__mro__))

    return any(place(method) < place(attribute) for method in methods)


@contextlib.contextmanager
def _without_harmless_warnings(options: Mapping[str, Any]) -> Iterator[None]:
    """Ignores Keras' warnings about a dataset of unknown length that ends by itself.

    Args:
        options: options of `fit`, `evaluate` or `predict`; some make a warning meaningful.
    """
    with warnings.catch_warnings():
        if options.get("steps_per_epoch") is None and options.get("steps") is None:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        if "shuffle" not in options:
            warnings.filterwarnings("ignore", "`shuffle=True` was passed")
        yield


def register(cls: _Class) -> _Class:
    """Makes a model or loss available by its class name, to Keras as well; a class decorator.

    Raises:
        ValueError: if a class of another module has the name, the class is neither a model nor a
            loss, or an argument is not keyword-only with a default of type bool, int, float or str,
            or None with an annotation.
    """
    existing = _REGISTERED.get(cls.__name__)
    if existing is not None and existing.__module__ != cls.__module__:
        raise ValueError(
            f"a model or loss named {cls.__name__!r} is registered already, by "
            f"{existing.__module__}.py. Choose another class name."
        )
    if not issubclass(cls, keras.Model) and not hasattr(cls, "pair_losses"):
        raise ValueError(
            f"{cls.__name__} must be a model (registry.Model) or a loss (losses.LabelLoss)."
        )
    own_hyperparameters(cls)
    _REGISTERED[cls.__name__] = cls
    return keras.saving.register_keras_serializable(KERAS_PACKAGE)(cls)


def models() -> dict[str, type[keras.Model]]:
    """Returns all registered models by name, sorted.

    Raises:
        InputError: if a module that the user names does not exist.
    """
    return _registered(keras.Model)


def losses() -> dict[str, type[keras.losses.Loss]]:
    """Returns all registered losses by name, sorted.

    Raises:
        InputError: if a module that the user names does not exist.
    """
    return _registered(keras.losses.Loss)


def _registered(base):
    for name in _module_names():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise InputError(f"${MODULES_VARIABLE} names {name!r}: {error}") from error
    return {name: cls for name, cls in sorted(_REGISTERED.items()) if issubclass(cls, base)}


def _module_names():
    """Returns the names of the modules to import: the project's own, then the user's."""
    folder = pathlib.Path(__file__).parent
    names = set(_OWN_MODULES)
    # Only a checkout has this file. Site-packages may hold anyone's *_models.py.
    if (folder / "pyproject.toml").exists():
        names |= {path.stem for end in _FILE_ENDS for path in folder.glob(f"*{end}")}
    named = os.environ.get(MODULES_VARIABLE, "").split(",")
    return sorted(names) + [name.strip() for name in named if name.strip()]


def model_class(name: str) -> type[keras.Model]:
    """Returns the class registered under a name.

    Raises:
        InputError: if there is none; the message lists the registered models.
    """
    return _find("model", models(), name)


def loss_class(name: str) -> type[keras.losses.Loss]:
    """Returns the loss registered under a name.

    Raises:
        InputError: if there is none; the message lists the registered losses.
    """
    return _find("loss", losses(), name)


def _find(kind, known, name):
    if not isinstance(name, str) or name not in known:
        plural = {"model": "models", "loss": "losses"}[kind]
        raise InputError(f"unknown {kind} {name!r}. Registered {plural}: {comma_separated(known)}.")
    return known[name]


def hyperparameters(name: str, classifier: str | None = None) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters of a model, by name.

    Those of a frame-level model include the hyperparameters of its classifier. If both declare a
    hyperparameter, the frame-level model's default applies. A default that it declares only for its
    default classifier is dropped if `classifier` has no such hyperparameter.

    Args:
        name: a registered model.
        classifier: the video-level model of a frame-level model; None for its default.
    """
    own = own_hyperparameters(model_class(name))
    if CLASSIFIER_ARGUMENT not in own:
        return own
    of_default = hyperparameters(str(own[CLASSIFIER_ARGUMENT].default))
    of_classifier = hyperparameters(classifier) if classifier else of_default
    kept = {key: own[key] for key in own if key in of_classifier or key not in of_default}
    return {**of_classifier, **kept}


def resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of all hyperparameters of a model, by name.

    Args:
        name: a registered model.
        given: values that override the defaults, by name.

    Raises:
        InputError: if the model does not take a given hyperparameter, or its type is wrong.
    """
    return _resolve(name, hyperparameters(name, given.get(CLASSIFIER_ARGUMENT)), given)


def resolve_loss(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of all hyperparameters of a loss, by name.

    Args:
        name: a registered loss.
        given: values that override the defaults, by name.

    Raises:
        InputError: if the loss does not take a given hyperparameter, or its type is wrong.
    """
    return _resolve(name, own_hyperparameters(loss_class(name)), given)


def _resolve(name, accepted, given):
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        raise InputError(
            f"{name} does not take {comma_separated(unknown)}. "
            f"It takes: {comma_separated(sorted(accepted))}."
        )
    return {
        key: hyperparameter.check(given[key]) if key in given else hyperparameter.default
        for key, hyperparameter in accepted.items()
    }


def build_classifier(name: str, *, num_classes: int, **given: Any) -> keras.Model:
    """Builds the video-level model that classifies the encoding of a frame-level model.

    Hyperparameters that only other video-level models take are ignored. A frame-level model can
    therefore have defaults for one classifier and still work with another.

    Args:
        name: a registered video-level model.
        num_classes: number of classes.
        **given: hyperparameters.

    Raises:
        InputError: if the model is not a video-level model, or no video-level model takes one of
            the hyperparameters.
    """
    cls = model_class(name)
    if cls.frame_level:
        raise InputError(f"{CLASSIFIER_ARGUMENT} must be a video-level model. Received: {name}")
    known = {
        key
        for other, other_class in models().items()
        if not other_class.frame_level
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
    name: str,
    *,
    num_classes: int,
    feature_sizes: Sequence[int],
    matmul_policy: str = "float32",
    model_name: str | None = None,
    frame_format: FrameFormat | None = None,
    **given: Any,
) -> keras.Model:
    """Builds a registered model with its weights.

    Args:
        name: a registered model, for example `DbofModel`.
        num_classes: number of classes.
        feature_sizes: size of each feature, in the order of the reader.
        matmul_policy: Keras dtype policy of the matrix products; see `layers.matmul_policy`.
        model_name: name of the `keras.Model`, with which the paths of its weights begin; by default
            its class name.
        frame_format: the numbers stored for a frame; None for YouTube-8M's bytes, or for a
            video-level model.
        **given: hyperparameters that override the model's defaults.

    Raises:
        InputError: if the model is unknown, or an argument is invalid.
    """
    # Keras numbers unnamed layers by what the process built before, and checkpoints identify
    # weights by these names. Numbering starts over here, so names do not depend on the process.
    private_api.reset_layer_numbers()
    cls = model_class(name)
    arguments: dict[str, Any] = resolve(name, given)
    if frame_format is not None and frame_format != FrameFormat():
        arguments["frame_format"] = frame_format.as_json()
    _check_positive_integers("num_classes", [num_classes])
    _check_positive_integers("feature_sizes", feature_sizes)
    with layers.matmul_policy(matmul_policy):
        try:
            if model_name is not None:
                arguments["name"] = model_name
            model = cls(num_classes=num_classes, feature_sizes=feature_sizes, **arguments)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
        model.build()
    return model


def _check_positive_integers(name, values):
    if not values or any(type(value) is not int or value < 1 for value in values):
        raise InputError(f"{name} must be positive integers. Received: {list(values)}")


def own_hyperparameters(cls: type) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a class and its bases declare, by name.

    The most derived default applies, and so does the most derived description.
    """
    found: dict[str, Hyperparameter] = {}
    others = (*DATA_ARGUMENTS, *getattr(cls, "fixed_arguments", ()))
    for ancestor in inspect.getmro(cls):
        if "__init__" not in vars(ancestor):
            continue
        if ancestor.__module__.partition(".")[0] == "keras":
            break
        _, *parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        described = _described_arguments(inspect.getdoc(ancestor) or "")
        for parameter in parameters:
            if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
                raise ValueError(
                    f"argument {parameter.name!r} of {cls.__name__} must be keyword-only: put it "
                    "after a *."
                )
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in others:
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
    """Returns the `Hyperparameter` for a parameter of a constructor, with its description."""
    kinds = [type(parameter.default)]
    if parameter.default is None:  # The annotation states the type: `name: float | None = None`.
        kinds = [kind for kind in typing.get_args(parameter.annotation) if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in (bool, int, float, str):
        raise ValueError(
            f"argument {parameter.name!r} of {cls.__name__} must have a default of type bool, int, "
            f"float or str, or None and an annotation such as 'float | None'. "
            f"Received: {parameter}"
        )
    return Hyperparameter(parameter.name, kinds[0], parameter.default, text)


def _described_arguments(docstring):
    """Returns the descriptions in the `Args:` section of a docstring, by argument."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(
        r"^ {4}(\w+): ((?:.*)(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE
    )
    # The type that begins a description is left out, because `--help` shows it anyway.
    return {
        name: re.sub(r"^(bool|int|float|str)\b[^.]*\. ", "", " ".join(text.split()))
        for name, text in entries
    }
