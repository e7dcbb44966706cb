"""Layers of the models, in `keras.ops` only.

Letters in formulas and einsums: B batch, T frames, D features, K clusters, E embedding, C classes,
M mixtures.
"""

import keras
from keras import ops


def scaled_normal(fan_in):
    """Initial weights: normal with standard deviation `1 / sqrt(fan_in)`."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)


class BatchNorm(keras.layers.Layer):
    """Batch normalisation over weighted rows, as all models of the project use it.

        output = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of the batch, in which a row of weight n counts n
    times and one of weight 0, padding, not at all; else they are moving averages. With n updates
    made so far, the decay of the averages is

        min(decay, (1 + n) / (10 + n))

    which is `decay` itself, 0.999, from the 8990th update on. Before, the averages follow faster,
    so that they fit the weights after a short training as well.

    Args:
        decay: float. Decay of the moving averages.
        epsilon: float. Keeps the denominator above 0.

    Input shape: `[B, D]` or `[B, T, D]`, with `row_weights` of `[B]` or `[B, T]`. Output shape: the
    same as the input.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    def __init__(self, *, decay=0.999, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self.epsilon = epsilon

    def build(self, input_shape):
        """Creates scale, offset and moving averages, `[D]` each, and the number of updates."""
        shape = (input_shape[-1],)
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
            name="num_updates",
        )

    def call(self, x, row_weights=None, training=False):
        """Normalises the last axis of `x`."""
        if training:
            mean, variance = weighted_moments(x, row_weights)
            self._update(mean, variance)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return x * scale + (self.beta - mean * scale)

    def _update(self, mean, variance):
        count = self.num_updates
        decay = ops.minimum(self.decay, (1.0 + count) / (10.0 + count))
        self.moving_mean.assign(decay * self.moving_mean + (1.0 - decay) * mean)
        self.moving_variance.assign(decay * self.moving_variance + (1.0 - decay) * variance)
        self.num_updates.assign_add(1.0)


def weighted_moments(x, row_weights=None):
    """Mean and variance over all axes but the last, `[D]` each; every row counts by its weight."""
    axes = "BT"[: len(x.shape) - 1]
    if row_weights is None:
        row_weights = ops.ones(ops.shape(x)[:-1], x.dtype)
    shares = row_weights / ops.sum(row_weights)
    mean = ops.einsum(f"{axes},{axes}D->D", shares, x)
    variance = ops.einsum(f"{axes},{axes}D->D", shares, ops.square(x - mean))
    return mean, variance


class ContextGating(keras.layers.Layer):
    """Scales every entry of a vector by a gate that the whole vector decides.

        output = x * sigmoid(BN(W x))

    Input shape: `[B, D]`. Output shape: `[B, D]`.

    Reference: [Miech et al., 2017](https://arxiv.org/abs/1706.06905).
    """

    def build(self, input_shape):
        """Creates W, `[D, D]` and without bias, as batch normalisation has one."""
        width = input_shape[-1]
        self.gate = keras.layers.Dense(
            width, use_bias=False, kernel_initializer=scaled_normal(width), name="gate"
        )
        self.gate.build(input_shape)
        self.gate_norm = BatchNorm(name="gate_norm")
        self.gate_norm.build(input_shape)

    def call(self, x, training=False):
        """Gates `x`, `[B, D]`."""
        return x * ops.sigmoid(self.gate_norm(self.gate(x), training=training))
