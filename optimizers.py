"""Learning rate schedules and optimizers, made of Keras' own.

Needs no TensorFlow.
"""

import math
import re
from typing import Any

import keras
from absl import logging
from keras import ops

from optimizer_state import StochasticallyRounded
from utils import KERAS_PACKAGE, InputError, comma_separated

SCHEDULES = ("staircase", "exponential", "cosine", "linear", "constant")
# They reach 0 at a step that must be known.
ENDING_SCHEDULES = ("cosine", "linear")

# TensorFlow 1 used 1e-8 in Adam; Keras' default of 1e-7 damps updates for rare classes.
_ADAM_EPSILON = 1e-8
_ADAM_KINDS = ("Adam", "AdamW", "Nadam", "Muon")
# Optimizers whose state is large and consists of moments, not of weights.
_WITH_MOMENTS = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("Lamb", "Lion", "Muon", "Nadam", "RMSprop"),
)
STATE_DTYPES = ("float32", "bfloat16")
_NOT_BY_NAME = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
# Names of variables that hold points, not a matrix to multiply with.
_POINTS = ("centers", "deviation_roots", "embeddings", "time_embedding", "class_token")

# --- Learning rate schedules ----------------------------------------------------------------------


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then another schedule, which counts from the end of the warm-up.

        rate(t) = f(0) (t + 1) / W  for t < W,  f(t - W)  for t >= W

    with the other schedule f and the step t, counted from 0.

    Args:
        schedule: Keras learning rate schedule f.
        warmup_steps: int. W, at least 1.

    Reference: [Goyal et al., 2017](https://arxiv.org/abs/1706.02677), section 2.2.
    """

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, warmup_steps: int
    ):
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        """Returns the learning rate of a step."""
        step = ops.cast(step, "float32")
        rate = self.schedule(ops.maximum(step - self.warmup_steps, 0.0))
        return rate * ops.minimum((step + 1.0) / self.warmup_steps, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Warmup":
        """Returns the schedule with these arguments."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["warmup_steps"])


def make_schedule(
    name: str,
    base_learning_rate: float,
    *,
    decay: float = 0.95,
    decay_period: float = 1.0,
    end: int | None = None,
    warmup_steps: int = 0,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a learning rate schedule, with t for the steps since the warm-up.

    - staircase: `base_learning_rate * decay ** floor(t / decay_period)`
    - exponential: `base_learning_rate * decay ** (t / decay_period)`
    - cosine: `base_learning_rate * (1 + cos(pi * t / T)) / 2`, then 0, with
      `T = end - warmup_steps` ([Loshchilov and Hutter, 2017](https://arxiv.org/abs/1608.03983))
    - linear: `base_learning_rate * (1 - t / T)`, then 0
    - constant: `base_learning_rate`

    Args:
        name: one of `SCHEDULES`.
        base_learning_rate: learning rate after the warm-up.
        decay: factor of staircase and exponential.
        decay_period: steps after which they have decayed by the factor.
        end: step, warm-up included, at which cosine and linear reach 0; above `warmup_steps`.
        warmup_steps: steps in which the learning rate grows linearly; see `Warmup`.

    Raises:
        InputError: if the schedule needs an end.
    """
    schedules = keras.optimizers.schedules
    if name in ENDING_SCHEDULES:
        if end is None:
            raise InputError(
                f"--learning_rate_schedule={name} needs the step at which the learning rate "
                "reaches 0. Give --max_steps or --learning_rate_decay_steps."
            )
        steps = end - warmup_steps
        if name == "cosine":
            schedule = schedules.CosineDecay(base_learning_rate, steps)
        else:
            schedule = schedules.PolynomialDecay(base_learning_rate, steps, end_learning_rate=0.0)
    else:
        schedule = schedules.ExponentialDecay(
            base_learning_rate,
            decay_steps=decay_period,
            decay_rate=1.0 if name == "constant" else decay,
            staircase=name == "staircase",
        )
    return Warmup(schedule, warmup_steps) if warmup_steps else schedule


# --- Optimizers -----------------------------------------------------------------------------------


def optimizer_class(name: str, state_dtype: str = "float32") -> type[keras.optimizers.Optimizer]:
    """Returns the Keras optimizer of a class name, with or without "Optimizer" at its end.

    Args:
        name: class name.
        state_dtype: one of `STATE_DTYPES`. bfloat16 returns a subclass, see
            `StochasticallyRounded`.

    Raises:
        InputError: if Keras has no optimizer of that name, or it has no moments for bfloat16.
    """
    known = {
        key: value
        for key, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and key not in _NOT_BY_NAME
    }
    found = known.get(name.removesuffix("Optimizer"))
    if found is None:
        raise InputError(f"unknown optimizer {name!r}. Optimizers: {comma_separated(known)}.")
    if state_dtype == "float32":
        return found
    if found.__name__ not in _WITH_MOMENTS:
        raise InputError(
            f"--optimizer_state_dtype={state_dtype} is for optimizers that store moments of each "
            f"weight: {comma_separated(_WITH_MOMENTS)}. Received: {name}"
        )
    return type(found.__name__, (StochasticallyRounded, found), {})


def is_matrix(variable: keras.Variable) -> bool:
    """Returns whether a variable multiplies activations.

    Biases and the scales of normalizations do not, nor do points in the space of frames, such as
    cluster centers.
    """
    return len(variable.shape) >= 2 and variable.name not in _POINTS


def hidden_matrices(model: keras.Model) -> list[keras.Variable]:
    """Returns the trainable matrices of a model, without those of its classifier."""
    # A video-level model is a classifier as a whole.
    classifier = getattr(model, "classifier", model)
    outputs = {variable.path for variable in classifier.trainable_variables}
    return [
        variable
        for variable in model.trainable_variables
        if is_matrix(variable) and variable.path not in outputs
    ]


def build(
    name: str,
    model: keras.Model,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    weight_decay: float = 0.0,
    state_dtype: str = "float32",
    seed: int = 0,
) -> keras.optimizers.Optimizer:
    """Builds a Keras optimizer for the trainable variables of a model.

    Muon updates the hidden matrices, and all other variables as AdamW does.

    Args:
        name: class name of the optimizer, as for `optimizer_class`.
        model: model with its weights.
        learning_rate: number or Keras schedule.
        weight_decay: before an update, each matrix shrinks by this share, times the learning rate;
            see `is_matrix`. 0 turns it off for every optimizer, whatever the defaults of Keras.
        state_dtype: dtype of the state, as for `optimizer_class`.
        seed: seed of the rounding to bfloat16.

    Raises:
        InputError: as `optimizer_class`, or if Muon finds no hidden matrix.
    """
    cls = optimizer_class(name, state_dtype)
    options = {"epsilon": _ADAM_EPSILON} if cls.__name__ in _ADAM_KINDS else {}
    if issubclass(cls, StochasticallyRounded):
        options["seed"] = seed
    if issubclass(cls, keras.optimizers.Muon):
        options |= _muon_options(model, weight_decay)
    # The name is part of the checkpoint's keys.
    optimizer = cls(learning_rate=learning_rate, name="optimizer", **options)
    optimizer.weight_decay = weight_decay or None
    if weight_decay:
        _exclude_from_weight_decay(optimizer, model)
    optimizer.build(model.trainable_variables)
    return optimizer


def _exclude_from_weight_decay(optimizer, model):
    variables = model.trainable_variables
    excluded = [variable for variable in variables if not is_matrix(variable)]
    optimizer.exclude_from_weight_decay(excluded)
    logging.info(
        "weight decay %g applies to %d of %d variables, with %s of %s weights; not to: %s",
        optimizer.weight_decay,
        len(variables) - len(excluded),
        len(variables),
        f"{_count(variables) - _count(excluded):,}",
        f"{_count(variables):,}",
        comma_separated(sorted({variable.name for variable in excluded})),
    )


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def _muon_options(model, weight_decay):
    """Returns the arguments with which Muon updates only the hidden matrices.

    Reference: [Jordan, 2024](https://kellerjordan.github.io/posts/muon/), with updates of the size
    of AdamW's, as in [Liu et al., 2025](https://arxiv.org/abs/2502.16982).
    """
    hidden = {variable.path for variable in hidden_matrices(model) if len(variable.shape) == 2}
    if not hidden:
        raise InputError(
            f"Muon is for matrices between layers, but {model.name} has none to train other "
            "than those of its classifier. Use --optimizer=AdamW."
        )
    others = [v.path for v in model.trainable_variables if v.path not in hidden]
    logging.info("Muon updates %d matrices, AdamW %d other variables", len(hidden), len(others))
    return {
        "exclude_layers": [f"^{re.escape(path)}$" for path in others],
        "exclude_embeddings": False,  # They are among the others.
        "adam_weight_decay": weight_decay or None,
    }
