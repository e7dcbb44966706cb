"""The layers that all models share: values, gradients, and which layers a model consists of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import layers
import small_models
from gradient_checks import assert_close, assert_gradients_equal_finite_differences

BOTH_MODES = pytest.mark.parametrize("training", [False, True])


def make_rows():
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


# --- Batch normalization --------------------------------------------------------------------------


@BOTH_MODES
def test_batch_norm_of_rows_without_weights_equals_its_formula(training):
    layer, rows = layers.BatchNorm(), make_rows()
    layer(rows)
    references.randomize(layer)
    expected = references.batch_norm(rows.astype(float), references.weights_of(layer), training)
    assert_close(layer(rows, training=training), expected)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)])
def test_the_gradient_of_normalization_is_the_derived_one(shape):
    rng = np.random.default_rng(2)
    x = tf.constant(rng.normal(size=shape).astype(np.float32))
    weights = tf.constant(rng.integers(0, 3, shape[:-1]).astype(np.float32))
    row_weights = weights / tf.reduce_sum(weights)
    gamma, beta = (tf.constant(values) for values in rng.normal(size=(2, 4)).astype(np.float32))
    direction = tf.constant(rng.normal(size=shape).astype(np.float32))

    def derived(x, gamma, beta):
        axes = list(range(len(shape) - 1))
        mean = tf.reduce_sum(row_weights[..., None] * x, axes)
        variance = tf.reduce_sum(row_weights[..., None] * tf.square(x - mean), axes)
        return gamma * (x - mean) * tf.math.rsqrt(variance + 1e-3) + beta

    def by_hand(x, gamma, beta):
        return layers.normalize_rows(x, row_weights, gamma, beta, 1e-3)[0]

    results = []
    for function in (derived, by_hand):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            output = function(x, gamma, beta)
            loss = tf.reduce_sum(output * direction)
        results.append([output, *tape.gradient(loss, [x, gamma, beta])])
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_offset_before_normalization_changes_only_the_moving_mean():
    rng = np.random.default_rng(4)
    x, offset = rng.normal(size=(6, 3)).astype(np.float32), np.float32([1.0, -2.0, 0.5])
    apart, added = layers.BatchNorm(), layers.BatchNorm()
    for training in (True, False):
        np.testing.assert_allclose(
            apart(x, training=training, offset=offset),
            added(x + offset, training=training),
            rtol=1e-4,
            atol=1e-5,
        )
    np.testing.assert_allclose(apart.moving_mean, added.moving_mean, rtol=1e-5)


def test_frozen_batch_norm_uses_and_keeps_its_averages_in_training():
    layer, rows = layers.BatchNorm(), make_rows()
    layer(rows)
    references.randomize(layer)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(rows, training=True), layer(rows))
    for kept, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(kept, value)


# --- Context gating -------------------------------------------------------------------------------


def make_gating():
    layer = layers.ContextGating()
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    layer(x)
    references.randomize(layer)
    return layer, x


@BOTH_MODES
def test_context_gating_equals_its_formula(training):
    layer, x = make_gating()
    expected = references.context_gating(x.astype(float), references.weights_of(layer), training)
    assert_close(layer(x, training=training), expected)


@BOTH_MODES
def test_gradients_of_context_gating_equal_finite_differences(training):
    layer, x = make_gating()
    assert_gradients_equal_finite_differences(
        layer,
        lambda x: layer(x, training=training),
        lambda x, weights: references.context_gating(x, weights, training),
        x,
    )


def unit_vectors(rows):
    return np.array([references.unit_vector(row) for row in rows])


def test_l2_normalize_keeps_zero_and_its_gradient_is_finite():
    x = make_rows()
    x[1] = 0
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        actual = layers.l2_normalize(tensor)
    assert_close(actual, unit_vectors(x.astype(float)))
    assert np.all(np.isfinite(tape.gradient(actual, tensor)))


def test_gradient_of_l2_normalize_equals_finite_differences():
    no_weights = keras.layers.Layer()
    assert_gradients_equal_finite_differences(
        no_weights, layers.l2_normalize, lambda x, weights: unit_vectors(x), make_rows()
    )


# --- Sublayers ------------------------------------------------------------------------------------


class Holder(keras.layers.Layer):
    """Holds layers directly, in a list in a dict, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.direct = layers.ContextGating(name="direct")
        self.nested = {"list": [layers.BatchNorm(name="first"), layers.BatchNorm(name="second")]}
        self.again = (self.direct, {"deep": [[layers.Linear(2, name="deepest")]]})
        self.direct.build((None, 3))


def test_sublayers_are_found_in_lists_and_dicts_and_each_once():
    holder = Holder()
    direct, (_, again) = holder.direct, holder.again
    expected = [holder, direct, direct.gate, direct.gate.norm, *holder.nested["list"]]
    found = [id(layer) for layer in layers.sublayers(holder)]
    assert sorted(found) == sorted(id(layer) for layer in [*expected, again["deep"][0][0]])


def test_sublayers_of_a_model_include_every_batch_norm():
    model = small_models.build("LFNLNetVLADModel")
    found = [x for x in layers.sublayers(model) if isinstance(x, layers.BatchNorm)]
    counters = {weight.path for weight in model.weights if weight.name == "num_updates"}
    assert {norm.num_updates.path for norm in found} == counters
    assert len(found) == len(counters)


# --- Dropout --------------------------------------------------------------------------------------


def test_dropout_zeroes_its_share_of_entries_and_keeps_their_mean():
    layer, x = layers.Dropout(0.75), np.ones((100, 100), np.float32)
    np.testing.assert_array_equal(layer(x), x)
    first, second = (np.asarray(layer(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {0.0, 4.0}
    assert np.mean(first == 0) == pytest.approx(0.75, abs=0.03)
    assert np.any(first != second)
