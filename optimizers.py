"""Learning rate schedules and optimizers, made of Keras' own.

Needs no TensorFlow.
"""

import keras

from utils import InputError, comma_separated

# TensorFlow 1 used 1e-8 in Adam; Keras' default of 1e-7 damps updates for rare classes.
_ADAM_EPSILON = 1e-8
_ADAM_KINDS = ("Adam", "AdamW", "Nadam")
_NOT_BY_NAME = ("Optimizer", "LossScaleOptimizer")


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
