"""Recurrent layers, in `keras.ops` only."""

import keras
from keras import ops

import nonlocal_vlad


class GRU(keras.layers.Layer):
    """Gated recurrent units with the reset gate before the recurrent product, as in TensorFlow 1.

        z_t, r_t = sigmoid(W_zr x_t + b_zr + U_zr h_{t-1})
        c_t      = tanh(W_c x_t + b_c + U_c (r_t * h_{t-1}))
        h_t      = z_t * h_{t-1} + (1 - z_t) * c_t

    The products with the input are made for all frames at once, before the recurrence. The biases
    of the gates begin at 1. At padding the state rests.

    Args:
        units: int. Size of the state h.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and a bool mask `[B, T]`, true for real
    frames. Output shape: the states of all frames, `[B, T, units]`, and the last one, `[B, units]`.

    Reference: [Cho et al., 2014](https://arxiv.org/abs/1406.1078).
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.input_projection = nonlocal_vlad.Linear(
            3 * units, bias_initializer=_open_gates, name="input_projection"
        )
        self.recurrence = keras.layers.RNN(
            _GRUCell(units, name="cell"),
            return_sequences=True,
            return_state=True,
            name="recurrence",
        )

    def call(self, frames, mask):
        """States of all frames and the last one of each video."""
        return self.recurrence(self.input_projection(frames), mask=mask)


class _GRUCell(keras.layers.Layer):
    """One step of `GRU`, from the projected input `[B, 3 * units]`: update, reset, candidate."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.gates = _recurrent_matrix(2 * units, name="gates")
        self.candidate = _recurrent_matrix(units, name="candidate")

    def build(self, input_shape):
        """Creates U_zr, `[units, 2 * units]`, and U_c, `[units, units]`."""
        self.gates.build((None, self.units))
        self.candidate.build((None, self.units))

    def call(self, x, states, training=False):
        """The next state, as output and as state."""
        state = states[0]
        gates = ops.sigmoid(x[:, : 2 * self.units] + self.gates(state))
        update, reset = ops.split(gates, 2, axis=-1)
        candidate = ops.tanh(x[:, 2 * self.units :] + self.candidate(reset * state))
        state = update * state + (1.0 - update) * candidate
        return state, [state]


def _recurrent_matrix(units, name):
    return nonlocal_vlad.Linear(units, use_bias=False, initializer=_orthogonal, name=name)


def _orthogonal(shape, dtype=None):
    """Initial recurrent matrices; they are found in float32, the least that the search works in."""
    return ops.cast(keras.initializers.Orthogonal()(shape, dtype="float32"), dtype)


def _open_gates(shape, dtype=None):
    """Initial bias, in the order update, reset, candidate: 1 for the two gates."""
    units = shape[-1] // 3
    return ops.concatenate([ops.ones(2 * units, dtype), ops.zeros(units, dtype)])
