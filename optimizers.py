"""Learning rate schedules and optimizers, made of Keras' own.

Needs no TensorFlow.
"""

from typing import Any

import keras
from keras import ops

from utils import KERAS_PACKAGE, InputError, comma_separated

SCHEDULES = ("staircase", "exponential", "cosine", "linear", "constant")
# They reach 0 at a step that must be known.
ENDING_SCHEDULES = ("cosine", "linear")

# TensorFlow 1 used 1e-8 in Adam; Keras' default of 1e-7 damps updates for rare classes.
_ADAM_EPSILON = 1e-8
_ADAM_KINDS = ("Adam", "AdamW", "Nadam")
_NOT_BY_NAME = ("Optimizer", "LossScaleOptimizer")

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


def optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    """Returns the Keras optimizer of a class name, with or without "Optimizer" at its end.

    Raises:
        InputError: if Keras has no optimizer of that name.
    """
    known = {
        key: value
        for key, value in vars(keras.optimizers).items()
        if isinstance(value, type) and key not in _NOT_BY_NAME
    }
    found = known.get(name.removesuffix("Optimizer"))
    if found is None:
        raise InputError(f"unknown optimizer {name!r}. Optimizers: {comma_separated(known)}.")
    return found


def build(
    name: str,
    model: keras.Model,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
) -> keras.optimizers.Optimizer:
    """Builds a Keras optimizer for the trainable variables of a model.

    Args:
        name: class name of the optimizer, as for `optimizer_class`.
        model: model with its weights.
        learning_rate: number or Keras schedule.

    Raises:
        InputError: if Keras has no optimizer of that name.
    """
    cls = optimizer_class(name)
    options = {"epsilon": _ADAM_EPSILON} if cls.__name__ in _ADAM_KINDS else {}
    # The name is part of the checkpoint's keys.
    optimizer = cls(learning_rate=learning_rate, name="optimizer", **options)
    optimizer.build(model.trainable_variables)
    return optimizer
