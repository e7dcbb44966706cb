"""The state of optimizers in bfloat16, rounded stochastically.

Needs no TensorFlow.
"""

import functools
import math
from typing import Any

import keras
from keras import ops

import private_api

_uint32 = functools.partial(ops.convert_to_tensor, dtype="uint32")


class StochasticallyRounded(keras.optimizers.Optimizer):
    """First base of an optimizer of Keras that is to store its state in bfloat16.

    Applies to state of two or more axes, which is nearly all of it. Updates read it as float32,
    compute in float32, and round what they store stochastically. Rounding to nearest would lose all
    changes below half of the distance between two bfloat16 numbers, 0.2 to 0.4 % of the value.
    Adam's velocity, which decays by at most 0.1 % a step, would never decay.

    The rounding depends only on the seed, the step, the variable and the position in it. A
    resumed run therefore repeats it, and replicas agree.

    Args:
        *args: arguments of the optimizer.
        seed: int. Seed of the rounding.
        **kwargs: further arguments of the optimizer.
    """

    def __init__(self, *args: Any, seed: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._seed = seed
        self._number_by_path: dict[str, int] = {}

    def add_variable(
        self, shape: Any, initializer: Any = "zeros", dtype: Any = None, **options: Any
    ) -> Any:
        """Adds a variable of the state, in bfloat16 if it has two or more axes."""
        is_rounded = len(shape) > 1
        dtype = "bfloat16" if is_rounded else dtype
        variable = super().add_variable(shape, initializer, dtype, **options)
        if is_rounded:
            self._number_by_path[variable.path] = len(self._number_by_path)
        return variable

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates a weight and its state, which reads as float32 meanwhile."""
        with private_api.variables_read_as("float32"):
            super().update_step(gradient, variable, learning_rate)

    def assign(self, variable: Any, value: Any) -> None:
        """Assigns a value, which is rounded if the variable is."""
        number = self._number_by_path.get(getattr(variable, "path", ""))
        if number is not None:
            value = stochastically_rounded(value, self._seed, self.iterations, number)
        with private_api.variables_read_as(None):
            super().assign(variable, value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Adds a value; the sum is rounded if the variable is."""
        self.assign(variable, ops.add(variable, value))

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtracts a value; the difference is rounded if the variable is."""
        self.assign(variable, ops.subtract(variable, value))


def stochastically_rounded(values: Any, seed: Any, step: Any, number: int) -> Any:
    """Rounds float32 values to one of their two neighbors in bfloat16.

    A value at the share s of the way from one neighbor to the other becomes the other with
    probability s, so the expected result is the value. To do so, a random number below 2^16 is
    added to the bits of the value before the 16 bits that bfloat16 lacks are cut off. Numbers of
    bfloat16 stay what they are, including zeros and infinities; NaN stays NaN.

    Args:
        values: float32 tensor.
        seed: int or integer tensor.
        step: int or integer tensor.
        number: int. Number of the variable. With seed and step it selects the random numbers.

    Returns:
        A bfloat16 tensor.

    Reference: [Gupta et al., 2015](https://arxiv.org/abs/1502.02551), section 3.
    """
    noise = random_bits(values.shape, seed, step, number)
    noise = ops.where(ops.isnan(values), _uint32(0), noise)
    bits = ops.add(ops.view(values, "uint32"), noise)
    # After a cast, XLA stores the result and reads it again. Without one, it would copy the old
    # moments and compute the new ones twice, once to store them and once to update the weight.
    return ops.cast(ops.view(ops.bitwise_and(bits, _uint32(0xFFFF0000)), "float32"), "bfloat16")


def random_bits(shape: tuple[int, ...], seed: Any, step: Any, number: int) -> Any:
    """Returns random integers below 2^16, a uint32 tensor.

    Each is the upper half of a hash of its position plus a key, and the key is a hash of the other
    arguments. The hash is a bijection, so each position gets every value equally often over the
    keys: rounding is unbiased. Beyond that, neighbors and successive steps only need to look
    unrelated, for which the two multiplications of this hash suffice.

    Args:
        shape: shape of the result.
        seed: int or integer tensor.
        step: int or integer tensor.
        number: int. Number of the variable.
    """
    key = _uint32(0)
    for part in (seed, step, number):
        key = _hashed(ops.add(key, _uint32(part)))
    for axis, size in enumerate(shape):
        # Axis by axis, since TensorFlow would store all positions of a matrix as a constant.
        others = shape[axis + 1 :]
        offsets = ops.multiply(_uint32(ops.arange(size)), _uint32(math.prod(others)))
        key = ops.add(key, ops.reshape(offsets, (size, *(1 for _ in others))))
    return ops.right_shift(_hashed(key), _uint32(16))


def _hashed(x):
    """Hashes 32-bit integers by a bijection.

    Reference: the function lowbias32 of
    [Wellons, 2018](https://nullprogram.com/blog/2018/07/31/).
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ops.multiply(_shifted_xor(x, shift), _uint32(factor))
    return _shifted_xor(x, 16)


def _shifted_xor(x, shift):
    return ops.bitwise_xor(x, ops.right_shift(x, _uint32(shift)))
