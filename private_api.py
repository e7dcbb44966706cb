"""All uses of private API of Keras, TensorFlow and Optuna.

Each has no public alternative, and a test that fails if a new version changes it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


def reset_layer_numbers() -> None:
    """Makes Keras number unnamed layers from the start again."""
    from keras.src.utils import naming

    naming.reset_uids()


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """Lets Keras start all float weights of new layers at 0, for models that are restored.

    Random numbers for 150 million weights take seconds, and the graph that draws them is built
    whenever a symbolic call reads a weight.
    """
    import keras
    import tensorflow as tf

    def or_zeros(initializer):
        def initialize(shape, dtype):
            is_float = tf.as_dtype(dtype).is_floating
            return tf.zeros(shape, dtype) if is_float else initializer(shape, dtype=dtype)

        return initialize

    def create(variable, initializer, *arguments, **options):
        start = or_zeros(initializer) if callable(initializer) else initializer
        original(variable, start, *arguments, **options)

    original = keras.Variable.__init__
    keras.Variable.__init__ = create
    try:
        yield
    finally:
        keras.Variable.__init__ = original


class NoSaveSignature:
    """First base of a Keras model whose inputs are not floats.

    Without it, Keras would trace the model with float inputs whenever it saves a SavedModel.
    """

    _default_save_signature = None


def skip_gradient_sum(optimizer: Any) -> None:
    """Stops a Keras optimizer from summing gradients over the replicas in `apply`.

    The trainer clips gradients between the sum and the update. If Keras summed as well, every
    gradient would be counted once per replica.

    Raises:
        RuntimeError: if this version of Keras sums gradients in another way.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            "this version of Keras merges gradients in a way that the trainer does not know. Use "
            "Keras 3.15, or train on one device."
        )
    optimizer._all_reduce_sum_gradients = list


def start_bfloat16_without_broadcast(strategy: Any) -> None:
    """Lets each worker start bfloat16 variables with its own values, which must be equal.

    TensorFlow sends the values of the first worker to the others, but cannot send bfloat16.
    """
    import tensorflow as tf

    extended = strategy.extended
    with_broadcast = extended._get_variable_creator_initial_value

    def initial_value(replica_id, device, primary_var, **options):
        if replica_id == 0 and tf.as_dtype(options.get("dtype") or "float32") == tf.bfloat16:
            return options["initial_value"]
        return with_broadcast(replica_id, device, primary_var, **options)

    extended._get_variable_creator_initial_value = initial_value


def variables_read_as(dtype: str | None) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which Keras' float variables read as another dtype.

    Keras reads the variables of layers this way under a mixed dtype policy, but has no public way
    for those of an optimizer.

    Args:
        dtype: name of the dtype; None to assign variables as they are stored.
    """
    from keras.src.backend import AutocastScope

    return AutocastScope(dtype)


def freeze_variables(function: Any) -> Any:
    """Returns a copy of a concrete function of TensorFlow with constants for its variables."""
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(function)


def running_trial(study: Any, frozen: Any) -> Any:
    """Returns the Optuna trial that another process began, to continue it."""
    import optuna

    return optuna.trial.Trial(study, frozen._trial_id)
