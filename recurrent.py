"""Recurrent layers, in `keras.ops` only."""

import keras
from keras import ops

import layers
import stored_matrix


class GRU(layers.MatmulLayer):
    """Gated recurrent units with the reset gate before the recurrent product, as in TensorFlow 1.

        z_t, r_t = sigmoid(W_zr x_t + b_zr + U_zr h_{t-1})
        c_t      = tanh(W_c x_t + b_c + U_c (r_t * h_{t-1}))
        h_t      = z_t * h_{t-1} + (1 - z_t) * c_t

    with update gate z, reset gate r, candidate c and state h. The products with the input are
    computed for all frames at once before the recurrence, and the gradients of U_zr and U_c for all
    frames at once after it. The biases of the gates start at 1. Padding leaves the state unchanged.

    Args:
        units: int. Size of the state h.

    Input shape: frames `[B, T, D]` or `StoredFrames`, and bool `[B, T]`, true for real frames
    and false for padding. Output shape: the states at all frames, `[B, T, units]`, and the last
    state, `[B, units]`.

    Reference: [Cho et al., 2014](https://arxiv.org/abs/1406.1078).
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.input_projection = layers.Linear(
            3 * units, bias_initializer=_open_gates, name="input_projection"
        )

    def build(self, frames_shape, *_):
        """Creates W and b, U_zr, `[units, 2 * units]`, and U_c, `[units, units]`."""
        self.input_projection.build(frames_shape)
        self.gates, self.candidate = (
            self.add_matrix(shape=(self.units, size), initializer=_orthogonal, name=name)
            for name, size in (("gates", 2 * self.units), ("candidate", self.units))
        )

    def call(self, frames, real):
        """Returns the states at all frames and the last state of each video."""
        projected = self.input_projection(frames)
        # An update gate of exactly 1 keeps the state and lets no gradient through to the input.
        keep_state = ops.concatenate([ops.full([self.units], 1e9), ops.zeros([2 * self.units])])
        projected += ops.cast(~real, "float32")[..., None] * keep_state
        states = self.recurrence(ops.transpose(projected, (1, 0, 2)), *self.matrices())
        return ops.transpose(states, (1, 0, 2)), states[-1]

    def matrices(self):
        """Returns U_zr and U_c in the dtype of the products."""
        matrices = (self.gates, self.candidate)
        return [stored_matrix.cast(matrix, self.compute_dtype) for matrix in matrices]

    def cell(self, x, state, gate_matrix, candidate_matrix):
        """Computes one step.

        Args:
            x: float32 `[B, 3 * units]`, `W x + b` of update gate, reset gate and candidate.
            state: float32 `[B, units]`, the state h before the step.
            gate_matrix: U_zr from `matrices`.
            candidate_matrix: U_c from `matrices`.

        Returns:
            `(h, z, r, c)`: the new state, update gate, reset gate and candidate, float32
            `[B, units]` each.
        """
        gate_logits = x[:, : 2 * self.units] + self.matmul(state, gate_matrix)
        update, reset = ops.split(ops.sigmoid(gate_logits), 2, axis=-1)
        recurrent = self.matmul(reset * state, candidate_matrix)
        candidate = ops.tanh(x[:, 2 * self.units :] + recurrent)
        return state + (1.0 - update) * (candidate - state), update, reset, candidate

    def recurrence(self, projected, gate_matrix, candidate_matrix):
        """Returns the states `[T, B, units]` for projected inputs `[T, B, 3 * units]`.

        The gradient is written by hand and takes less time and memory than the derived gradient:
        the loop back through time holds only what each step needs from the step after it.
        """

        @ops.custom_gradient
        def run(projected, gate_matrix, candidate_matrix):
            states, *activations = self._steps(projected, gate_matrix, candidate_matrix)

            def gradient(d_states):
                before = ops.concatenate([ops.zeros_like(states[:1]), states[:-1]], axis=0)
                d_projected = self._steps_back(
                    d_states, before, activations, gate_matrix, candidate_matrix
                )
                _, reset, _ = activations
                d_gate_matrix, d_candidate_matrix = (
                    ops.cast(self.einsum("TBI,TBJ->IJ", inputs, d_outputs), matrix.dtype)
                    for matrix, inputs, d_outputs in (
                        (gate_matrix, before, d_projected[..., : 2 * self.units]),
                        (candidate_matrix, reset * before, d_projected[..., 2 * self.units :]),
                    )
                )
                return d_projected, d_gate_matrix, d_candidate_matrix

            return states, gradient

        return run(projected, gate_matrix, candidate_matrix)

    def _steps(self, projected, gate_matrix, candidate_matrix):
        """Returns states h, gates z and r, and candidates c of all steps, `[T, B, units]` each."""

        def step(carried, x):
            results = self.cell(x, carried[0], gate_matrix, candidate_matrix)
            return results, results

        start = ops.zeros_like(projected[0, :, : self.units])
        # TensorFlow's scan needs the same structure for what it carries and what it collects.
        return ops.scan(step, (start,) * 4, projected)[1]

    def _steps_back(self, d_states, before, activations, gate_matrix, candidate_matrix):
        """Returns the gradient of the projected inputs, `[T, B, 3 * units]`.

        Args:
            d_states: gradient of the states, `[T, B, units]`.
            before: the state before each step, `[T, B, units]`.
            activations: update gates, reset gates and candidates, from `_steps`.
            gate_matrix: U_zr.
            candidate_matrix: U_c.
        """

        def step(carried, inputs):
            d_output, state, update, reset, candidate = ops.split(inputs, 5, axis=-1)
            d_state = carried[0] + d_output
            d_candidate = d_state * (1.0 - update)
            d_candidate_logits = d_candidate * (1.0 - ops.square(candidate))
            d_reset_state = self.einsum("BJ,IJ->BI", d_candidate_logits, candidate_matrix)
            d_update_logits = d_candidate * (state - candidate) * update
            d_reset_logits = d_reset_state * state * reset * (1.0 - reset)
            d_gate_logits = ops.concatenate([d_update_logits, d_reset_logits], axis=-1)
            d_before = d_state - d_candidate + d_reset_state * reset
            d_before += self.einsum("BJ,IJ->BI", d_gate_logits, gate_matrix)
            results = (d_before, d_update_logits, d_reset_logits, d_candidate_logits)
            return results, results

        start = ops.zeros_like(d_states[0])
        # One tensor, because TensorFlow's scan takes only one input of unknown length.
        inputs = ops.concatenate([d_states, before, *activations], axis=-1)
        _, (_, *d_logits) = ops.scan(step, (start,) * 4, inputs, reverse=True)
        return ops.concatenate(d_logits, axis=-1)


class GRUStack(layers.Float32Layer):
    """Stack of GRUs that returns the final states of all layers.

    In prediction each frame passes through all layers before the next frame, so the states at all
    frames are never held.

    Args:
        units: int. Size of the state of each layer.
        num_layers: int. Number of layers.

    Input shape: `StoredFrames` `[B, T, D]`, and bool `[B, T]`, true for real frames and false
    for padding. Output shape: `[B, num_layers * units]`.
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
        """Returns the final states of all layers, concatenated."""
        if not training:
            return ops.concatenate(self._final_states(frames, real), axis=-1)
        final_states = []
        for gru in self.grus:
            frames, final_state = gru(frames, real)
            final_states.append(final_state)
        return ops.concatenate(final_states, axis=-1)

    def _final_states(self, frames, real):
        """Returns the final state of each layer, computed frame by frame."""
        first, *_ = self.grus
        # Computed once, before the loop, because it does not depend on the frame.
        project, offset = frames.projection(first.input_projection.kernel, first)
        biases = [gru.input_projection.bias for gru in self.grus]
        biases[0] = biases[0] if offset is None else biases[0] + offset
        kernels = [
            stored_matrix.cast(gru.input_projection.kernel, gru.compute_dtype) for gru in self.grus
        ]
        matrices = [gru.matrices() for gru in self.grus]
        mask = ops.cast(real, "float32")[..., None]

        def step(t, states):
            with keras.name_scope(first.name):
                x = project(frames.q[:, t], frames.inverse_norms[:, t])
            new_states = []
            for number, gru in enumerate(self.grus):
                with keras.name_scope(gru.name):
                    x = gru.matmul(x, kernels[number]) if number else x
                    x += biases[number]
                    state, *_ = gru.cell(x, states[number], *matrices[number])
                x = states[number] + mask[:, t] * (state - states[number])
                new_states.append(x)
            return tuple(new_states)

        batch, length, _ = ops.shape(frames.q)
        start = ops.zeros((batch, self.units))
        return ops.fori_loop(0, length, step, (start,) * len(self.grus))


def _orthogonal(shape, dtype=None):
    """Initializes recurrent matrices in float32, because QR decomposition lacks bfloat16."""
    return ops.cast(keras.initializers.Orthogonal()(shape, dtype="float32"), dtype)


def _open_gates(shape, dtype=None):
    """Initializes the biases of update gate, reset gate and candidate: 1 for gates, otherwise 0."""
    units = shape[-1] // 3
    return ops.concatenate([ops.ones(2 * units, dtype), ops.zeros(units, dtype)])
