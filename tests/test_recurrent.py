"""The GRU's handwritten gradient equals the one that TensorFlow derives."""

import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import layers
import recurrent
from layers import StoredFrames

LENGTHS = (5, 1, 3)
REAL = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


FRAMES = np.random.default_rng(3).normal(size=(*REAL.shape, 4)).astype(np.float32)
# Factors on the outputs, so each contributes differently to the gradient.
FACTORS = [
    np.random.default_rng(4).normal(size=shape).astype(np.float32)
    for shape in ((*REAL.shape, 6), (len(LENGTHS), 6))
]


def make_layer():
    layer = recurrent.GRU(6)
    layer.build(FRAMES.shape)
    references.randomize(layer)
    return layer


def weighted_sum(outputs):
    return tf.add_n([tf.reduce_sum(o * f) for o, f in zip(outputs, FACTORS, strict=True)])


@pytest.fixture(scope="module")
def results():
    """States, final states and gradients, by whether TensorFlow derives the gradient."""
    layer, frames = make_layer(), tf.constant(FRAMES)
    own = layer.recurrence

    @tf.function(autograph=False)
    def run(derived):
        layer.recurrence = (lambda *inputs: layer._steps(*inputs)[0]) if derived else own
        with tf.GradientTape() as tape:
            tape.watch(frames)
            outputs = layer(frames, tf.constant(REAL))
            total = weighted_sum(outputs)
        weights = [weight.value for weight in layer.trainable_weights]
        return outputs, tape.gradient(total, [frames, *weights])

    return {derived: run(derived) for derived in (True, False)}


def test_states_do_not_depend_on_the_gradient(results):
    for derived, own in zip(results[True][0], results[False][0], strict=True):
        np.testing.assert_array_equal(own, derived)


def test_padding_does_not_change_the_state(results):
    states, last = (np.asarray(output) for output in results[False][0])
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(states[row, length:], states[row, length - 1 : -1])
        np.testing.assert_array_equal(last[row], states[row, length - 1])


def test_the_gradient_is_the_derived_one(results):
    for derived, own in zip(results[True][1], results[False][1], strict=True):
        assert np.abs(derived).max() > 0.1
        np.testing.assert_allclose(own, derived, rtol=1e-5, atol=1e-6)


def test_states_and_gradients_equal_those_of_keras(results):
    layer, frames = make_layer(), tf.constant(FRAMES)
    twin = references.keras_gru(layer, FRAMES.shape)
    with tf.GradientTape() as tape:
        tape.watch(frames)
        outputs = twin(frames, mask=tf.constant(REAL))
        total = weighted_sum(outputs)
    expected = tape.gradient(total, [frames, *[weight.value for weight in twin.trainable_weights]])
    states, (d_frames, *gradients) = results[False]
    names = [weight.path.partition("/")[2] for weight in layer.trainable_weights]
    by_name = dict(zip(names, gradients, strict=True))
    actual = (
        *(*states, d_frames, by_name["input_projection/kernel"]),
        tf.concat([by_name["gates"], by_name["candidate"]], axis=1),
        by_name["input_projection/bias"],
    )
    for own, of_keras in zip(actual, (*outputs, *expected), strict=True):
        np.testing.assert_allclose(own, of_keras, rtol=0, atol=1e-6 * np.abs(of_keras).max())


def test_padding_gets_no_gradient(results):
    d_frames = np.asarray(results[False][1][0])
    assert not d_frames[~REAL].any()
    assert d_frames[REAL].all()


def test_matrices_in_bfloat16_change_states_and_gradients_little():
    outcomes = []
    for policy in ("float32", "mixed_bfloat16"):
        with layers.matmul_policy(policy):
            layer = make_layer()
        with tf.GradientTape() as tape:
            states, last = layer(tf.constant(FRAMES), tf.constant(REAL))
            total = tf.reduce_sum(states[..., 0]) + tf.reduce_sum(last)
        weights = [weight.value for weight in layer.trainable_weights]
        outcomes.append([states, *tape.gradient(total, weights)])
    for exact, rounded in zip(*outcomes, strict=True):
        assert rounded.dtype == tf.float32
        assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("layers", [1, 3])
def test_a_stack_returns_the_same_final_states_in_prediction(layers):
    rng = np.random.default_rng(5)
    q = tf.constant(rng.integers(0, 256, (*REAL.shape, 4), dtype=np.uint8))
    frames = StoredFrames(q, None)
    frames = frames.with_norms(frames.norms_inverted()).affine(*rng.normal(size=(2, 4)))
    stack = recurrent.GRUStack(6, layers)
    stack.build(frames.shape)
    references.randomize(stack)
    expected = stack(frames, tf.constant(REAL), training=True)
    assert expected.shape == (len(LENGTHS), 6 * layers)
    actual = stack(frames, tf.constant(REAL), training=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
