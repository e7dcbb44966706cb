"""Layers of the models, in `keras.ops` only.

Letters in formulas and einsums: B batch, T frames, D features, K clusters, E embedding, C classes,
M mixtures.
"""

import keras
from keras import ops


def batch_norm(name):
    """Batch normalisation as all models of the project use it.

    The decay of the moving averages is 0.999 and epsilon 1e-3, the values of the YouTube-8M
    models; Keras' own default for the decay is 0.99.
    """
    return keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3, name=name)


def scaled_normal(fan_in):
    """Initial weights: normal with standard deviation `1 / sqrt(fan_in)`."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)


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
        self.gate_norm = batch_norm("gate_norm")
        self.gate_norm.build(input_shape)

    def call(self, x, training=False):
        """Gates `x`, `[B, D]`."""
        return x * ops.sigmoid(self.gate_norm(self.gate(x), training=training))
