"""Recurrent layers, in `keras.ops` only."""

import keras
from keras import ops

import layers


class GRU(layers.MatmulLayer):
    """Gated recurrent units with the reset gate before the recurrent product, as in TensorFlow 1.

        z_t, r_t = sigmoid(W_zr x_t + b_zr + U_zr h_{t-1})
        c_t      = tanh(W_c x_t + b_c + U_c (r_t * h_{t-1}))
        h_t      = z_t * h_{t-1} + (1 - z_t) * c_t

    The products with the input are made for all frames at once, before the recurrence, and the
    gradients of U_zr and U_c for all frames at once after it. The biases of the gates begin at 1.
    At padding the state rests.

    Args:
        units: int. Size of the state h.

    Input shape: frames `[B, T, D]` or `QuantizedFrames`, and bool `[B, T]`, true for real frames
    and false for padding. Output shape: the states of all frames, `[B, T, units]`, and the last
    one, `[B, units]`.

    Reference: [Cho et al., 2014](https://arxiv.org/abs/1406.1078).
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.input_projection = layers.Linear(
            3 * units, bias_initializer=_open_gates, name="input_projection"
        )

    def build(self, frames_shape, *_):
        """Creates W and b of the input, U_zr, `[units, 2 * units]`, and U_c, `[units, units]`."""
        self.input_projection.build(frames_shape)
        self.gates, self.candidate = (
            self.add_weight(shape=(self.units, size), initializer=_orthogonal, name=name)
            for name, size in (("gates", 2 * self.units), ("candidate", self.units))
        )

    def call(self, frames, real):
        """States of all frames and the last one of each video."""
        projected = self.input_projection(frames)
        # An update gate of exactly 1 keeps the state, and lets no gradient through to the input.
        rest = ops.concatenate([ops.full([self.units], 1e9), ops.zeros([2 * self.units])])
        projected += ops.cast(~real, "float32")[..., None] * rest
        states = self.recurrence(ops.transpose(projected, (1, 0, 2)), *self.matrices())
        return ops.transpose(states, (1, 0, 2)), states[-1]

    def matrices(self):
        """U_zr and U_c in the dtype of the products."""
        return [ops.cast(matrix, self.compute_dtype) for matrix in (self.gates, self.candidate)]

    def cell(self, x, state, gates, candidate):
        """One step: the next state h, and update z, reset r and candidate c, `[B, units]` each.

        Args:
            x: float32 `[B, 3 * units]`, `W x + b` for update, reset and candidate.
            state: float32 `[B, units]`.
            gates: U_zr, of `matrices`.
            candidate: U_c, likewise.
        """
        opened = ops.sigmoid(x[:, : 2 * self.units] + self.einsum("BI,IJ->BJ", state, gates))
        update, reset = ops.split(opened, 2, axis=-1)
        kept = self.einsum("BI,IJ->BJ", reset * state, candidate)
        new = ops.tanh(x[:, 2 * self.units :] + kept)
        return state + (1.0 - update) * (new - state), update, reset, new

    def recurrence(self, projected, gates, candidate):
        """The states `[T, B, units]` of projected inputs `[T, B, 3 * units]`.

        Its gradient is written by hand and needs less time and memory than the derived one: the
        loop back through time holds only what each step needs of the step after it.
        """

        @ops.custom_gradient
        def run(projected, gates, candidate):
            states, *kept = self._steps(projected, gates, candidate)

            def gradient(d_states):
                before = ops.concatenate([ops.zeros_like(states[:1]), states[:-1]], axis=0)
                d_projected = self._steps_back(d_states, before, kept, gates, candidate)
                d_gates, d_candidate = (
                    ops.cast(self.einsum("TBI,TBJ->IJ", inputs, outputs), matrix.dtype)
                    for matrix, inputs, outputs in (
                        (gates, before, d_projected[..., : 2 * self.units]),
                        (candidate, kept[1] * before, d_projected[..., 2 * self.units :]),
                    )
                )
                return d_projected, d_gates, d_candidate

            return states, gradient

        return run(projected, gates, candidate)

    def _steps(self, projected, gates, candidate):
        """States h, update z, reset r and candidates c of all frames, `[T, B, units]` each."""

        def step(carried, x):
            results = self.cell(x, carried[0], gates, candidate)
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
            d_kept = self.einsum("BJ,IJ->BI", d_new, candidate)
            d_update = d_moved * (state - new) * update
            d_reset = d_kept * state * reset * (1.0 - reset)
            d_opened = ops.concatenate([d_update, d_reset], axis=-1)
            d_before = d_state - d_moved + d_kept * reset
            d_before += self.einsum("BJ,IJ->BI", d_opened, gates)
            results = (d_before, d_update, d_reset, d_new)
            return results, results

        start = ops.zeros_like(d_states[0])
        # One tensor, as TensorFlow's scan takes no several ones of unknown length.
        inputs = ops.concatenate([d_states, before, *kept], axis=-1)
        _, parts = ops.scan(step, (start,) * 4, inputs, reverse=True)
        return ops.concatenate(parts[1:], axis=-1)


class GRUStack(keras.layers.Layer):
    """GRUs on top of each other; tells the final states of all.

    In prediction all layers take a frame before the next one, so that the states of all frames are
    never held.

    Args:
        units: int. Size of the state of each layer.
        num_layers: int.

    Input shape: `QuantizedFrames` of B videos of T frames, and bool `[B, T]`, true for real
    frames and false for padding. Output shape: `[B, num_layers * units]`.
    """

    def __init__(self, units, num_layers, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.grus = [GRU(units, name=f"gru_{number}") for number in range(num_layers)]

    def build(self, frames_shape, *_):
        """Builds the layers."""
        for gru in self.grus:
            gru.build(frames_shape)
            frames_shape = (None, None, self.units)

    def call(self, frames, real, training=False):
        """Final states of all layers side by side."""
        if not training:
            return ops.concatenate(self._final_states(frames, real), axis=-1)
        finals = []
        for gru in self.grus:
            frames, final = gru(frames, real)
            finals.append(final)
        return ops.concatenate(finals, axis=-1)

    def _final_states(self, frames, real):
        first, *_ = self.grus
        # What does not depend on the frame is made once, before the loop.
        project, offset = frames.projection(first.input_projection.kernel, first)
        biases = [gru.input_projection.bias for gru in self.grus]
        biases[0] = biases[0] if offset is None else biases[0] + offset
        kernels = [ops.cast(gru.input_projection.kernel, gru.compute_dtype) for gru in self.grus]
        matrices = [gru.matrices() for gru in self.grus]
        weights = ops.cast(real, "float32")[..., None]

        def step(t, states):
            with keras.name_scope(first.name):
                x = project(frames.q[:, t], frames.inverse_norms[:, t])
            following = []
            for number, gru in enumerate(self.grus):
                with keras.name_scope(gru.name):
                    x = gru.einsum("BI,IJ->BJ", x, kernels[number]) if number else x
                    x += biases[number]
                    state, *_ = gru.cell(x, states[number], *matrices[number])
                x = states[number] + weights[:, t] * (state - states[number])
                following.append(x)
            return tuple(following)

        count, length, _ = ops.shape(frames.q)
        start = ops.zeros((count, self.units))
        return ops.fori_loop(0, length, step, (start,) * len(self.grus))


def _orthogonal(shape, dtype=None):
    """Initial recurrent matrices; they are found in float32, the least that the search works in."""
    return ops.cast(keras.initializers.Orthogonal()(shape, dtype="float32"), dtype)


def _open_gates(shape, dtype=None):
    """Initial bias, in the order update, reset, candidate: 1 for the two gates."""
    units = shape[-1] // 3
    return ops.concatenate([ops.ones(2 * units, dtype), ops.zeros(units, dtype)])
