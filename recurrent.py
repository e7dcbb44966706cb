"""Recurrent layers, in `keras.ops` only."""

import keras
from keras import ops

import nonlocal_vlad


class GRU(nonlocal_vlad.MatrixLayer):
    """Gated recurrent units with the reset gate before the recurrent product, as in TensorFlow 1.

        z_t, r_t = sigmoid(W_zr x_t + b_zr + U_zr h_{t-1})
        c_t      = tanh(W_c x_t + b_c + U_c (r_t * h_{t-1}))
        h_t      = z_t * h_{t-1} + (1 - z_t) * c_t

    The products with the input are made for all frames at once, before the recurrence, and the
    gradients of U_zr and U_c for all frames at once after it. The biases of the gates begin at 1.
    At padding the state rests.

    Args:
        units: int. Size of the state h.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and a bool mask `[B, T]`, true for real
    frames. Output shape: the states of all frames, `[B, T, units]`, and the last one, `[B, units]`.

    Reference: [Cho et al., 2014](https://arxiv.org/abs/1406.1078).
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.input_projection = nonlocal_vlad.Linear(
            3 * units, bias_initializer=_open_gates, name="input_projection"
        )

    def build(self, frames_shape, mask_shape=None):
        """Creates W and b of the input, U_zr, `[units, 2 * units]`, and U_c, `[units, units]`."""
        self.input_projection.build(frames_shape)
        self.gates, self.candidate = (
            self.add_weight(shape=(self.units, size), initializer=_orthogonal, name=name)
            for name, size in (("gates", 2 * self.units), ("candidate", self.units))
        )

    def call(self, frames, mask, training=False):
        """States of all frames and the last one of each video."""
        projected = self.input_projection(frames)
        # An update gate of exactly 1 keeps the state, and lets no gradient through to the input.
        rest = ops.concatenate([ops.full([self.units], 1e9), ops.zeros([2 * self.units])])
        projected += ops.cast(~mask, "float32")[..., None] * rest
        matrices = [ops.cast(matrix, self.compute_dtype) for matrix in (self.gates, self.candidate)]
        run = self.run_with_gradient if training else self.run
        states = run(ops.transpose(projected, (1, 0, 2)), *matrices)
        return ops.transpose(states, (1, 0, 2)), states[-1]

    def run(self, projected, gates, candidate):
        """The recurrence.

        Args:
            projected: float32 `[T, B, 3 * units]`, `W x + b` for update, reset and candidate.
            gates: U_zr, in the dtype of the products.
            candidate: U_c, likewise.

        Returns:
            The states, float32 `[T, B, units]`.
        """
        return self._steps(projected, gates, candidate)[0]

    def run_with_gradient(self, projected, gates, candidate):
        """The same as `run`, with a gradient that needs less time and memory than the derived one.

        The loop back through time holds only what each step needs of the step after it.
        """

        @ops.custom_gradient
        def recurrence(projected, gates, candidate):
            states, *kept = self._steps(projected, gates, candidate)

            def gradient(d_states):
                before = ops.concatenate([ops.zeros_like(states[:1]), states[:-1]], axis=0)
                d_projected = self._steps_back(d_states, before, kept, gates, candidate)
                d_gates, d_candidate = (
                    ops.cast(self.product("TBI,TBJ->IJ", inputs, outputs), matrix.dtype)
                    for matrix, inputs, outputs in (
                        (gates, before, d_projected[..., : 2 * self.units]),
                        (candidate, kept[1] * before, d_projected[..., 2 * self.units :]),
                    )
                )
                return d_projected, d_gates, d_candidate

            return states, gradient

        return recurrence(projected, gates, candidate)

    def _steps(self, projected, gates, candidate):
        """States h, update z, reset r and candidates c of all frames, `[T, B, units]` each."""

        def step(carried, x):
            state, *_ = carried
            opened = ops.sigmoid(x[:, : 2 * self.units] + self.product("BI,IJ->BJ", state, gates))
            update, reset = ops.split(opened, 2, axis=-1)
            new = ops.tanh(
                x[:, 2 * self.units :] + self.product("BI,IJ->BJ", reset * state, candidate)
            )
            state += (1.0 - update) * (new - state)
            results = (state, update, reset, new)
            return results, results

        start = ops.zeros_like(projected[0, :, : self.units])
        # Under TensorFlow, what is collected must look like what is carried.
        return ops.scan(step, (start,) * 4, projected)[1]

    def _steps_back(self, d_states, before, kept, gates, candidate):
        """Gradient of the projected input, from that of the states and what `_steps` gave."""

        def step(carried, inputs):
            d_output, state, update, reset, new = ops.split(inputs, 5, axis=-1)
            d_state = carried[0] + d_output
            d_moved = d_state * (1.0 - update)
            d_new = d_moved * (1.0 - ops.square(new))
            d_kept = self.product("BJ,IJ->BI", d_new, candidate)
            d_update = d_moved * (state - new) * update
            d_reset = d_kept * state * reset * (1.0 - reset)
            d_opened = ops.concatenate([d_update, d_reset], axis=-1)
            d_before = d_state - d_moved + d_kept * reset
            d_before += self.product("BJ,IJ->BI", d_opened, gates)
            results = (d_before, d_update, d_reset, d_new)
            return results, results

        start = ops.zeros_like(d_states[0])
        # One tensor, as TensorFlow's scan takes no several ones of unknown length.
        inputs = ops.concatenate([d_states, before, *kept], axis=-1)
        _, parts = ops.scan(step, (start,) * 4, inputs, reverse=True)
        return ops.concatenate(parts[1:], axis=-1)


def _orthogonal(shape, dtype=None):
    """Initial recurrent matrices; they are found in float32, the least that the search works in."""
    return ops.cast(keras.initializers.Orthogonal()(shape, dtype="float32"), dtype)


def _open_gates(shape, dtype=None):
    """Initial bias, in the order update, reset, candidate: 1 for the two gates."""
    units = shape[-1] // 3
    return ops.concatenate([ops.ones(2 * units, dtype), ops.zeros(units, dtype)])
