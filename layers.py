"""Building blocks of all models, in `keras.ops` only.

Letters in formulas and einsums: B batch, N samplings, T frames, D features, K clusters,
E embedding, C classes, M mixtures.
"""

import contextlib
import contextvars
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from absl import logging
from keras import ops

import quantization
import stored_matrix
from stored_matrix import Int8Matrix, TransposedMatrix, to_float

# --- Matmul precision -----------------------------------------------------------------------------
#
# With bfloat16, matrix products round their operands and results to bfloat16 and accumulate in
# float32. Biases, batch normalization, softmax and all elementwise math stay in float32, and so do
# the weights during training. Models for prediction store their matrices in bfloat16, or in int8,
# which products cast to bfloat16.

COMPUTE_DTYPES = ("float32", "bfloat16")
STORAGE_DTYPES = (*COMPUTE_DTYPES, "int8")
# Layers, or single matrices, that stay bfloat16 where others are int8: the recurrent matrices whose
# error grows from frame to frame. docs/export.md has the effect of the others.
BFLOAT16_LAYERS = ("candidate",)
# Name of the weight of `BatchNorm` that counts its updates.
COUNTER = "num_updates"

# Linux's names for the instructions that multiply bfloat16, on x86 and on ARM.
_CPU_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}
_matmul_policy = contextvars.ContextVar("matmul_policy", default="float32")
# Function from the path of a matrix to whether it is stored in int8.
_is_int8 = contextvars.ContextVar("is_int8", default=lambda path: False)


def resolve_compute_dtype(compute_dtype=None):
    """Returns the matmul precision to use, and logs it.

    Args:
        compute_dtype: str. `float32` or `bfloat16`; by default bfloat16 where it is native.
    """
    resolved = compute_dtype or ("bfloat16" if has_native_bfloat16() else "float32")
    reason = "as requested" if compute_dtype else "the default on this device"
    logging.info("matrix products in %s, %s", resolved, reason)
    return resolved


def training_policy(compute_dtype=None):
    """Returns the Keras dtype policy for training, for `RunConfig.build_model`.

    Args:
        compute_dtype: str. See `resolve_compute_dtype`.
    """
    policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
    return policies[resolve_compute_dtype(compute_dtype)]


def has_native_bfloat16():
    """Returns whether the device that Keras computes on multiplies bfloat16 natively.

    On JAX, GPUs and TPUs count and CPUs do not: JAX gains nothing from bfloat16 on a CPU.
    """
    if keras.backend.backend() == "jax":
        return keras.distribution.list_devices()[0].split(":")[0] != "cpu"
    # Imported here because models do not need TensorFlow.
    import tensorflow as tf

    if tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)
    return bool(_CPU_FEATURES & _cpu_features(pathlib.Path("/proc/cpuinfo")))


def _cpu_features(path):
    """Returns the features of the first processor that Linux lists; none on other systems."""
    if not path.exists():
        return set()
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


@contextlib.contextmanager
def matmul_policy(name):
    """Gives the matmul layers built inside the block a Keras dtype policy.

    Args:
        name: str. `float32`; `mixed_bfloat16`, which rounds the operands of products to bfloat16;
            or `bfloat16`, which also stores the matrices in bfloat16. Other layers are unaffected.
    """
    token = _matmul_policy.set(name)
    try:
        yield
    finally:
        _matmul_policy.reset(token)


def current_matmul_policy():
    """Returns the Keras dtype policy of the matmul layers built here."""
    return _matmul_policy.get()


@contextlib.contextmanager
def int8_storage(bfloat16_layers=BFLOAT16_LAYERS):
    """Makes the matrices of layers built inside the block int8, for `matmul_policy("bfloat16")`.

    Args:
        bfloat16_layers: sequence of str. Layers or matrices to except, see `is_one_of`.
    """
    token = _is_int8.set(lambda path: not is_one_of(path, bfloat16_layers))
    try:
        yield
    finally:
        _is_int8.reset(token)


def is_one_of(path, names):
    """Returns whether a weight, or a layer that it is part of, has one of several names.

    Args:
        path: str. Path of the weight, for example `GruModel/stack/gru_0/candidate`.
        names: sequence of str. Names, for example `gru_0`, or parts of paths, for example
            `gru_0/candidate`.
    """
    return any(f"/{name}/" in f"/{path}/" for name in names)


# --- Replicas -------------------------------------------------------------------------------------
#
# Several devices may train on one batch, each on its part. The code that runs a replica passes a
# function that sums over all replicas, so that layers do not depend on the backend.


@dataclasses.dataclass(frozen=True)
class Replica:
    """One of several replicas.

    Attributes:
        index: int or int tensor. Its number, which its random numbers depend on.
        all_sum: function from a list of float tensors to the list of their sums over all replicas.
    """

    index: Any
    all_sum: Callable


_replica = contextvars.ContextVar("replica", default=None)


@contextlib.contextmanager
def running_replica(replica):
    """Makes layers called inside the block part of a `Replica`; None stands for a single device."""
    token = _replica.set(replica)
    try:
        yield
    finally:
        _replica.reset(token)


def replica_sum():
    """Returns the running replica's `all_sum`, or the identity on a single device."""
    replica = _replica.get()
    return replica.all_sum if replica else list


class SeedGenerator(keras.random.SeedGenerator):
    """Seed generator with equal state but different seeds on each replica."""

    def next(self, ordered=True):
        """Returns the next seed, `[2]`."""
        seed, replica = super().next(ordered), _replica.get()
        if replica is None:
            return seed
        return seed + ops.cast(ops.stack([replica.index, 0]), seed.dtype)


# --- Stored frames --------------------------------------------------------------------------------
#
# Dequantizing, L2 normalization and batch normalization are affine for each frame and entry. They
# can therefore be applied around a matrix product instead of to the frames before it, and a tensor
# of float frames, four times the size of the bytes, is never needed.

# The byte that would stand for 0 in YouTube-8M's frames, 127 + 1/512. Bfloat16 rounds it to 127, a
# difference of 1/130560 of the range that the bytes cover, and represents every byte minus 127
# exactly.
_ZERO = -quantization.YOUTUBE8M.offset / quantization.YOUTUBE8M.step


class StoredFrames(NamedTuple):
    """Frames of videos, as bytes or floats, and how the input of a layer follows from them.

        v_td = unit_d * (q_td - zero_d - rest_d)           values of the features
        x_td = scale_d * inverse_norm_t * v_td + offset_d  input of a layer

    with B videos of T frames of D entries.

    Attributes:
        q: stored numbers, uint8 or float `[B, T, D]`.
        inverse_norms: float32 `[B, T]`, 1 / L2 norm of each v_t, or 1 without normalization; 0 for
            padding.
        scale: float32 `[D]`, or None for 1.
        offset: float32 `[D]`, or None for 0.
        zero: float32 `[D]`, for bytes integers, so that bfloat16 represents the differences to them
            exactly. None stands for 0, or for bytes as in YouTube-8M.
        rest: float32 `[D]`, or None for 0.
        unit: float32 `[D]`, or None for 1.
    """

    q: Any
    inverse_norms: Any
    scale: Any = None
    offset: Any = None
    zero: Any = None
    rest: Any = None
    unit: Any = None

    @classmethod
    def of_format(cls, q, frame_format, normalized=True):
        """Returns frames with inverse norms of 1.

        Args:
            q: stored numbers, uint8 or float `[B, T, D]`.
            frame_format: `quantization.FrameFormat` of the numbers.
            normalized: whether L2 normalization follows, so that a common factor of all values has
                no effect.
        """
        frames = cls(q, ops.ones(ops.shape(q)[:2]))
        zero, unit = frame_format.zero_and_unit(q.shape[-1])
        if frame_format.feature_scale is None:
            if frame_format.quantization is None:
                return frames
            if frame_format.quantization == quantization.YOUTUBE8M:
                return frames if normalized else frames._replace(unit=unit.astype(np.float32))
        rest = None
        if frame_format.is_quantized:
            rest = (zero - np.rint(zero)).astype(np.float32)
            zero = np.rint(zero)
        return frames._replace(
            zero=zero.astype(np.float32), rest=rest, unit=unit.astype(np.float32)
        )

    @property
    def shape(self):
        """`(B, T, D)`."""
        return self.q.shape

    def with_norms(self, inverse_norms):
        """Returns the frames with other `inverse_norms`."""
        return self._replace(inverse_norms=inverse_norms)

    def norms_inverted(self):
        """Returns 1 / L2 norm of the values of each frame, float32 `[B, T]`, at most 1e6."""
        values = _product(self.unit, self._differences("float32"))
        return inverse_sqrt(ops.sum(ops.square(values), axis=-1))

    def affine(self, scale, offset):
        """Returns the frames `scale * x + offset`."""
        if self.offset is not None:
            offset = self.offset * scale + offset
        return self._replace(scale=_product(self.scale, scale), offset=offset)

    def normalized(self):
        """Returns the frames before any `affine`."""
        return self._replace(scale=None, offset=None)

    def entries(self, start, size):
        """Returns the part of every frame that holds one feature."""
        stop = start + size
        vectors = {
            name: getattr(self, name)[start:stop]
            for name in ("scale", "offset", "zero", "rest", "unit")
            if getattr(self, name) is not None
        }
        return self._replace(q=self.q[..., start:stop], **vectors)

    def to_float(self):
        """Returns the frames as float32 `[B, T, D]`."""
        values = self.inverse_norms[..., None] * self._scaled(self._differences("float32"))
        return values if self.offset is None else values + self.offset

    def projection(self, kernel, layer):
        """Prepares the product of frames and a matrix `[D, K]` by a `MatmulLayer`.

        Returns:
            `(project, offset)`: a function of stored numbers, `[B, T, D]` or `[B, D]`, and inverse
            norms, to float32 `[B, T, K]` or `[B, K]`; and the offset to add afterwards, `[K]` or
            None.
        """
        matrix, offset, rest = kernel, None, None
        factor = self._factor
        if factor is not None:
            matrix = factor[:, None] * to_float(kernel, "float32")
        if self.offset is not None:
            offset = ops.sum(self.offset[:, None] * to_float(kernel, "float32"), axis=0)
        if self.rest is not None:
            rest = ops.sum(self.rest[:, None] * to_float(matrix, "float32"), axis=0)
        matrix = stored_matrix.cast(matrix, layer.compute_dtype)

        def project(q, inverse_norms):
            centered = self._replace(q=q)._centered(layer.compute_dtype)
            products = layer.matmul(centered, matrix)
            if rest is not None:
                products -= rest
            return inverse_norms[..., None] * products

        return project, offset

    def pool(self, weights, layer):
        """Sums frames with weights `[B, T, K]` by a `MatmulLayer`, leaving out the offset.

        Returns:
            float32 `[B, K, D]`.
        """
        weights = weights * self.inverse_norms[..., None]
        sums = layer.einsum("BTK,BTD->BKD", weights, self._centered(layer.compute_dtype))
        if self.rest is not None:
            sums -= ops.sum(weights, axis=1)[..., None] * self.rest
        return self._scaled(sums)

    def moments(self, weights):
        """Returns mean and variance of the frames, `[D]` each.

        Args:
            weights: `[B, T]`. They sum to 1 over all frames of all replicas.
        """
        values = self._differences("float32")
        mean = ops.einsum("BT,BTD->D", weights * self.inverse_norms, values)
        square = ops.einsum(
            "BT,BTD->D", weights * ops.square(self.inverse_norms), ops.square(values)
        )
        mean, square = replica_sum()([mean, square])
        variance = self._scaled(self._scaled(ops.maximum(square - ops.square(mean), 0.0)))
        mean = self._scaled(mean)
        return mean if self.offset is None else mean + self.offset, variance

    def _centered(self, dtype):
        """Returns `q - zero` in a dtype."""
        is_quantized = keras.backend.standardize_dtype(self.q.dtype) == "uint8"
        if self.zero is None and not is_quantized:
            return ops.cast(self.q, dtype)
        zero = _ZERO if self.zero is None else self.zero
        if is_quantized:
            return ops.cast(self.q, dtype) - ops.cast(zero, dtype)
        return ops.cast(ops.cast(self.q, "float32") - zero, dtype)

    def _differences(self, dtype):
        """Returns `q - zero - rest`."""
        centered = self._centered(dtype)
        return centered if self.rest is None else centered - self.rest

    @property
    def _factor(self):
        """`scale * unit`, `[D]`, or None for 1."""
        return _product(self.scale, self.unit)

    def _scaled(self, values):
        """Returns `scale * unit * values`."""
        return _product(self._factor, values)


def _product(first, second):
    """Returns the product of two arrays, where None stands for 1."""
    if first is None or second is None:
        return second if first is None else first
    return first * second


# --- Layers ---------------------------------------------------------------------------------------


def sublayers(layer):
    """Returns a layer and all layers inside it, each once, outer layers first."""
    found = {id(layer): layer}
    for value in vars(layer).values():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, keras.layers.Layer) and id(inner) not in found:
                found |= {id(sublayer): sublayer for sublayer in sublayers(inner)}
    return list(found.values())


def scaled_normal(fan_in):
    """Returns a normal initializer with standard deviation `1 / sqrt(fan_in)`."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)


class Float32Layer(keras.layers.Layer):
    """Base of the layers that compute in float32, whatever Keras' global dtype policy is."""

    def __init__(self, *, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)


class MatmulLayer(keras.layers.Layer):
    """Base of the layers whose matrix products, and nothing else, follow `matmul_policy`."""

    def __init__(self, *, dtype=None, **kwargs):
        super().__init__(dtype=dtype or _matmul_policy.get(), autocast=False, **kwargs)

    def add_weight(self, *args, **kwargs):
        """Adds a weight that is read as it is stored: Keras would round it for a mixed policy."""
        return super().add_weight(*args, autocast=False, **kwargs)

    def add_matrix(self, *, shape, name, few_rows=False, **options):
        """Adds the matrix of a product, `[D, K]`: a weight or, in `int8_storage`, `Int8Matrix`.

        Args:
            shape: tuple of int. `(D, K)`.
            name: str.
            few_rows: bool. Whether it multiplies one row per video, not every frame. In bfloat16
                and int8, it is then transposed, a `TransposedMatrix`.
            **options: as in `add_weight`; `Int8Matrix` starts at 0.
        """
        is_int8 = _is_int8.get()(f"{self.path}/{name}")
        transposed = few_rows and (is_int8 or self.variable_dtype == "bfloat16")
        if is_int8:
            options = {"initializer": "zeros", "dtype": "int8"}
        matrix = self.add_weight(shape=shape[::-1] if transposed else shape, name=name, **options)
        matrix = TransposedMatrix(matrix) if transposed else matrix
        if not is_int8:
            return matrix
        scale = {"shape": shape[1:], "initializer": "zeros", "dtype": "float32"}
        return Int8Matrix(matrix, self.add_weight(name=f"{name}_scale", **scale))

    def einsum(self, equation, *operands):
        """Einsum in the dtype of the policy; returns float32."""
        operands = [ops.cast(operand, self.compute_dtype) for operand in operands]
        return ops.cast(ops.einsum(equation, *operands), "float32")

    def matmul(self, x, matrix):
        """Multiplies rows `[B, D]` or `[B, T, D]` by a matrix `[D, K]`; returns float32."""
        if isinstance(matrix, Int8Matrix):
            return matrix.multiply(x, self.matmul, self.compute_dtype)
        if isinstance(matrix, TransposedMatrix):
            return self.einsum("RD,KD->RK", x, matrix.columns)
        if len(x.shape) == 2:
            return self.einsum("RD,DK->RK", x, matrix)
        # Flattened to one matrix, so that the gradient is one product too, not one per video.
        rows = self.einsum("RD,DK->RK", ops.reshape(x, (-1, x.shape[-1])), matrix)
        length = x.shape[1] or ops.shape(x)[1]
        return ops.reshape(rows, (-1, length, matrix.shape[-1]))

    def project(self, x, kernel):
        """Multiplies rows, or `StoredFrames`, by a matrix `[D, K]`.

        Returns:
            `(rows, offset)`: float32 rows, and an offset still to add to them, `[K]` or None. It
            is separate because batch normalization does not need it in every row.
        """
        if not isinstance(x, StoredFrames):
            return self.matmul(x, kernel), None
        project, offset = x.projection(kernel, self)
        return project(x.q, x.inverse_norms), offset

    def pool(self, x, weights, centers=None):
        """Sums frames, or their residuals to centers: v_k = sum_t weights_tk (x_t - c_k).

        Args:
            x: frames `[B, T, D]`, or `StoredFrames`.
            weights: `[B, T, K]`.
            centers: the c_k, `[K, D]`; None for 0.

        Returns:
            float32 `[B, K, D]`.
        """
        if isinstance(x, StoredFrames):
            sums, offset = x.pool(weights, self), x.offset
        else:
            sums, offset = self.einsum("BTK,BTD->BKD", weights, x), None
        # The offset is the same for all frames, so it needs only their total weight.
        if centers is not None:
            centers = ops.cast(centers, "float32")
            offset = -centers if offset is None else offset - centers
        if offset is None:
            return sums
        return sums + ops.sum(weights, axis=1)[..., None] * offset


def row_size(shape):
    """Returns D from the shape of rows `[B, D]` or `[B, T, D]`, or of `StoredFrames`."""
    return (shape.q if isinstance(shape, StoredFrames) else shape)[-1]


class BatchNorm(Float32Layer):
    """Batch normalization over weighted rows.

        output = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of the batch, on all replicas together. A row of weight
    n counts n times, and a row of weight 0 (padding) not at all. In prediction they are moving
    averages. With `trainable = False`, they are moving averages in training too, and stay as they
    are. After n updates, the decay of the averages is

        min(decay, (1 + n) / (10 + n))

    which is `decay` itself, 0.999, from the 8990th update on. Before, the averages follow faster,
    so that they fit the weights after a short training too.

    Args:
        decay: float. Decay of the moving averages.
        epsilon: float. Keeps the denominator above 0.

    Attributes:
        cumulative: bool. Whether the decay is n / (n + 1) instead, which makes the averages the
            plain mean over the updates.
        folded: bool. Whether `fold` has moved all but an offset into the matrix before.

    Input shape: `[B, D]`, `[B, T, D]` or `StoredFrames`, with `row_weights` of `[B]` or
    `[B, T]`. Output shape: the same as the input.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    def __init__(self, *, decay=0.999, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self.epsilon = epsilon
        self.cumulative = False
        self.folded = False

    def build(self, input_shape):
        """Creates scale, offset and moving averages, `[D]` each, and the number of updates."""
        shape = (row_size(input_shape),)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        averages = {"shape": shape, "trainable": False, "aggregation": "mean"}
        self.moving_mean = self.add_weight(initializer="zeros", name="moving_mean", **averages)
        self.moving_variance = self.add_weight(
            initializer="ones", name="moving_variance", **averages
        )
        self.num_updates = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name=COUNTER,
        )

    def call(self, x, row_weights=None, training=False, offset=None):
        """Normalizes the last axis of `x + offset`, where the offset is `[D]` or None."""
        offset = 0.0 if offset is None else offset
        if self.folded:
            return x + (self.beta + offset)
        if not (training and self.trainable):
            scale, shift = self.affine()
            if isinstance(x, StoredFrames):
                return x.affine(scale, shift)
            return x * scale + (shift + scale * offset)
        weights = normalized_row_weights(row_weights, x)
        if isinstance(x, StoredFrames):
            mean, variance = x.moments(weights)
            self._update(mean, variance)
            return x.affine(*self._affine(mean, variance))
        # Subtracting the mean removes the offset. Its gradient is 0, but it must have one.
        output, mean, variance = normalize_rows(
            x, weights, self.gamma, self.beta + 0.0 * offset, self.epsilon
        )
        self._update(mean + offset, variance)
        return output

    def affine(self):
        """Returns scale and offset, `[D]` each, that prediction applies."""
        return self._affine(self.moving_mean, self.moving_variance)

    def fold(self):
        """Reduces the layer to an offset, for prediction, and returns the scale, `[D]`.

        With that scale in the matrix before the layer, predictions stay the same.
        """
        scale, offset = self.affine()
        self.beta.assign(offset)
        self.folded = True
        return scale

    def _affine(self, mean, variance):
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return scale, self.beta - mean * scale

    def _update(self, mean, variance):
        count = self.num_updates
        if self.cumulative:
            decay = count / (count + 1.0)
        else:
            decay = ops.minimum(self.decay, (1.0 + count) / (10.0 + count))
        self.moving_mean.assign(decay * self.moving_mean + (1.0 - decay) * mean)
        self.moving_variance.assign(decay * self.moving_variance + (1.0 - decay) * variance)
        self.num_updates.assign_add(1.0)


def normalized_row_weights(row_weights, x):
    """Returns the weights of the rows of `x`, scaled to sum to 1 over all replicas.

    Args:
        row_weights: `[B]` or `[B, T]`; None for equal weights.
        x: rows `[B, D]` or `[B, T, D]`, or `StoredFrames`.
    """
    if row_weights is None:
        row_weights = ops.ones(ops.shape(x)[:-1])
    row_weights = ops.cast(row_weights, "float32")
    (total,) = replica_sum()([ops.sum(row_weights)])
    return row_weights / total


def normalize_rows(x, weights, gamma, beta, epsilon):
    """Normalizes rows by the mean and variance of the batch, with weights p that sum to 1.

        m = sum_i p_i x_i,  v = sum_i p_i (x_i - m)^2,  r = 1 / sqrt(v + epsilon)
        y_i = gamma * r * (x_i - m) + beta

    The gradient is written by hand and reads and writes the rows a third as often as the derived
    gradient. For a gradient d of y, with s = sum_i d_i and t = sum_i d_i (x_i - m):

        dx_i = gamma * r * (d_i - p_i (s + r^2 t (x_i - m))),  dgamma = r t,  dbeta = s

    Sums run over the rows of all replicas, except in dgamma and dbeta, where each replica returns
    its part.

    Args:
        x: float32 `[B, D]` or `[B, T, D]`.
        weights: float32 `[B]` or `[B, T]`, the p_i.
        gamma: `[D]`.
        beta: `[D]`.
        epsilon: float.

    Returns:
        `(y, m, v)`; gradients flow through y only.
    """
    axes = "BT"[: len(x.shape) - 1]
    all_sum = replica_sum()

    def sum_rows(weights, rows):
        return ops.einsum(f"{axes},{axes}D->D", weights, rows)

    constant = ops.stop_gradient(x)
    (mean,) = all_sum([sum_rows(weights, constant)])
    centered = constant - mean
    (variance,) = all_sum([sum_rows(weights, ops.square(centered))])
    inverse = ops.rsqrt(variance + epsilon)

    @ops.custom_gradient
    def run(x, gamma, beta):
        scale = gamma * inverse

        def gradient(d_output):
            ones = ops.ones_like(weights)
            own_sum = sum_rows(ones, d_output)
            own_correlation = sum_rows(ones, d_output * centered)
            sums, correlation = all_sum([own_sum, own_correlation])
            common = sums * scale + centered * (correlation * scale * ops.square(inverse))
            d_x = d_output * scale - weights[..., None] * common
            return d_x, own_correlation * inverse, own_sum

        return centered * scale + beta, gradient

    output = run(x, ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype))
    return output, mean, variance


class Linear(MatmulLayer):
    """Linear layer with a bias, or with batch normalization instead of the bias.

        output = W x + b,  or  BN(W x)

    Args:
        units: int. Size of the output.
        use_bias: bool. Whether to add b.
        batch_norm: bool. Whether batch normalization follows; then there is no b.
        initializer: Keras initializer of W.
        bias_initializer: Keras initializer of b.
        regularizer: Keras regularizer of W.
        bias_regularizer: Keras regularizer of b.

    Input shape: `[B, D]`, `[B, T, D]` or `StoredFrames`, for batch normalization with
    `row_weights` of `[B]` or `[B, T]`. Output shape: `[B, units]` or `[B, T, units]`.
    """

    def __init__(
        self,
        units,
        *,
        use_bias=True,
        batch_norm=False,
        initializer="glorot_uniform",
        bias_initializer="zeros",
        regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias and not batch_norm
        self.norm = BatchNorm(name="norm") if batch_norm else None
        self.initializer = initializer
        self.bias_initializer = bias_initializer
        self.regularizer = regularizer
        self.bias_regularizer = bias_regularizer

    def build(self, input_shape, *_):
        """Creates W, `[D, units]`, and b, `[units]`, or the normalization."""
        self.kernel = self.add_matrix(
            shape=(row_size(input_shape), self.units),
            few_rows=not isinstance(input_shape, StoredFrames) and len(input_shape) == 2,
            initializer=self.initializer,
            regularizer=self.regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                dtype="float32",
                name="bias",
            )
        if self.norm is not None:
            self.norm.build((None, self.units))

    def call(self, x, row_weights=None, training=False):
        """Maps the last axis of `x`."""
        x, offset = self.project(x, self.kernel)
        if self.norm is not None:
            return self.norm(x, row_weights, training=training, offset=offset)
        for addend in (offset, self.bias if self.use_bias else None):
            x = x if addend is None else x + addend
        return x

    def fold(self):
        """Moves the scale of the batch normalization into W, for prediction."""
        if self.norm is not None:
            self.kernel.assign(to_float(self.kernel, "float32") * self.norm.fold())


class ContextGating(MatmulLayer):
    """Scales every entry of a vector by a gate computed from the whole vector.

        output = x * sigmoid(BN(W x))

    Input shape: `[B, D]`. Output shape: `[B, D]`.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def build(self, input_shape):
        """Creates W, `[D, D]`, and its batch normalization."""
        width = input_shape[-1]
        self.gate = Linear(
            width,
            batch_norm=True,
            initializer=scaled_normal(width),
            dtype=self.dtype_policy,
            name="gate",
        )
        self.gate.build(input_shape)

    def call(self, x, training=False):
        """Gates `x`, `[B, D]`."""
        return x * ops.sigmoid(self.gate(x, training=training))


class Dropout(Float32Layer):
    """In training, sets entries to 0 with probability `rate` and divides the others by `1 - rate`.

    Args:
        rate: float. In [0, 1).

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html).
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def build(self, input_shape):
        """Creates the state of the random numbers."""
        self.seed = SeedGenerator(name="seed")

    def call(self, x, training=False):
        """Returns a tensor of the shape of `x`."""
        return keras.random.dropout(x, self.rate, seed=self.seed) if training else x


def l2_normalize(x):
    """Scales vectors to L2 norm 1 along the last axis; 0 stays 0."""
    return x * inverse_sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))


def inverse_sqrt(squared_norm):
    """Returns 1 / sqrt of squared norms, at most 1e6."""
    return ops.rsqrt(ops.maximum(squared_norm, 1e-12))
