"""Compares layers and their gradients with references in float64."""

import numpy as np
import tensorflow as tf

import layer_references as references


def assert_close(actual, expected):
    """Compares to a hundred-thousandth of each value or, near 0, of the largest value."""
    largest = np.max(np.abs(expected))
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-6 * largest)


def assert_gradients_equal_finite_differences(layer, call, reference, x):
    """Compares gradients of a random linear function of the output.

    Args:
        layer: layer with random weights.
        call: function from the input to the output of the layer.
        reference: function from input and dict of weights to the output, in float64.
        x: the input.
    """
    x = tf.constant(x)
    weights = references.weights_of(layer)
    factors = np.random.default_rng(7).normal(size=call(x).shape)
    variables = {weight.path.partition("/")[2]: weight for weight in layer.trainable_weights}
    with tf.GradientTape() as tape:
        tape.watch(x)
        function = tf.reduce_sum(call(x) * factors.astype(np.float32))
    sources = {"input": x, **{path: variable.value for path, variable in variables.items()}}
    gradients = tape.gradient(function, sources)
    for path, gradient in gradients.items():

        def value(array, path=path):
            if path == "input":
                return np.sum(factors * reference(array, weights))
            return np.sum(factors * reference(x.numpy().astype(float), {**weights, path: array}))

        expected = central_differences(value, np.asarray(sources[path]).astype(np.float64))
        largest = np.max(np.abs(expected))
        assert largest > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * largest, err_msg=path)


def central_differences(function, array, step=1e-5):
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        changed = [array.copy(), array.copy()]
        changed[0][index] += step
        changed[1][index] -= step
        gradient[index] = (function(changed[0]) - function(changed[1])) / (2 * step)
    return gradient
