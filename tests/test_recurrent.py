"""The gradient of the GRU, which is written by hand, against the one that TensorFlow derives."""

import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import nonlocal_vlad
import recurrent

LENGTHS = (5, 1, 3)
MASK = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def results():
    """States, final states and gradients by mode: with the derived gradient and with ours."""
    rng = np.random.default_rng(3)
    frames = tf.constant(rng.normal(size=(*MASK.shape, 4)).astype(np.float32))
    # Weights of the outputs, so that each has its own share in the gradient.
    shares = [rng.normal(size=(*MASK.shape, 6)), rng.normal(size=(len(LENGTHS), 6))]
    layer = recurrent.GRU(6)
    layer.build(frames.shape)
    references.randomize(layer)

    @tf.function(autograph=False)
    def run(training):
        with tf.GradientTape() as tape:
            tape.watch(frames)
            outputs = layer(frames, mask=tf.constant(MASK), training=training)
            total = tf.add_n(
                [
                    tf.reduce_sum(output * share.astype(np.float32))
                    for output, share in zip(outputs, shares, strict=True)
                ]
            )
        weights = [weight.value for weight in layer.trainable_weights]
        return outputs, tape.gradient(total, [frames, *weights])

    return {training: run(training) for training in (False, True)}


def test_states_do_not_depend_on_the_mode(results):
    for derived, own in zip(results[False][0], results[True][0], strict=True):
        np.testing.assert_array_equal(own, derived)


def test_state_rests_at_padding(results):
    states, last = (np.asarray(output) for output in results[True][0])
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(states[row, length:], states[row, length - 1 : -1])
        np.testing.assert_array_equal(last[row], states[row, length - 1])


def test_gradient_is_the_derived_one(results):
    for derived, own in zip(results[False][1], results[True][1], strict=True):
        assert np.abs(derived).max() > 0.1
        np.testing.assert_allclose(own, derived, rtol=1e-5, atol=1e-6)


def test_padding_gets_no_gradient(results):
    d_frames = np.asarray(results[True][1][0])
    assert not d_frames[~MASK].any()
    assert d_frames[MASK].all()


def test_matrices_in_bfloat16_change_states_and_gradients_little():
    rng = np.random.default_rng(3)
    frames = tf.constant(rng.normal(size=(*MASK.shape, 4)).astype(np.float32))
    outcomes = []
    for policy in ("float32", "mixed_bfloat16"):
        with nonlocal_vlad.matrix_policy(policy):
            layer = recurrent.GRU(6)
        layer.build(frames.shape)
        references.randomize(layer)
        with tf.GradientTape() as tape:
            states, last = layer(frames, mask=tf.constant(MASK), training=True)
            total = tf.reduce_sum(states[..., 0]) + tf.reduce_sum(last)
        weights = [weight.value for weight in layer.trainable_weights]
        outcomes.append([states, *tape.gradient(total, weights)])
    for exact, rounded in zip(*outcomes, strict=True):
        assert rounded.dtype == tf.float32
        assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()
