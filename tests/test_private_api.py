"""Fails with an explanation if a new version of Keras or TensorFlow changes what we rely on."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import private_api
import registry
import video_level_models


@pytest.fixture
def unnamed_layers_model(monkeypatch):
    """Name of a registered model whose layers have no names."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @registry.register
    class UnnamedLayersModel(video_level_models.VideoLevelModel):
        """Has layers without names."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = keras.layers.Dense(3)
            self.output_layer = keras.layers.Dense(self.num_classes)

        def classify(self, x, training):
            return keras.ops.sigmoid(self.output_layer(self.hidden(x)))

    return UnnamedLayersModel.__name__


def test_unnamed_layers_are_numbered_from_the_start_again(unnamed_layers_model):
    first, second = (
        [
            weight.path
            for weight in registry.build_model(
                unnamed_layers_model, num_classes=2, feature_sizes=(4,)
            ).weights
        ]
        for _ in range(2)
    )
    assert second == first, (
        "private_api.reset_layer_numbers no longer resets the numbers in the names of Keras' "
        "layers, so checkpoints of models with unnamed layers do not fit a model built later in "
        "a process."
    )
    assert len(set(first)) == 4


def test_weights_that_are_restored_start_at_zero_and_seeds_as_ever():
    def layer():
        dropout = keras.layers.Dropout(0.5, seed=3)
        model = keras.Sequential(
            [keras.layers.Dense(3), dropout, keras.layers.LayerNormalization()]
        )
        model.build([2, 4])
        return model, dropout.seed_generator.state

    with private_api.zero_weights():
        zero, seed = layer()
    random, other_seed = layer()
    assert not any(np.any(weight) for weight in zero.get_weights()), (
        "private_api.zero_weights no longer replaces the initial values of Keras' weights, so "
        "models are restored more slowly than necessary."
    )
    assert [np.any(weight) for weight in random.get_weights()] == [True, False, True, False]
    np.testing.assert_array_equal(seed, other_seed)


def test_keras_optimizers_sum_gradients_by_the_function_that_is_replaced():
    # That two devices train as one without it is shown in test_distribution.py.
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    calls = []
    with strategy.scope():
        weight = keras.Variable([1.0, 2.0])
        optimizer = keras.optimizers.SGD(0.5)
        optimizer.build([weight])
    own = optimizer._all_reduce_sum_gradients

    def count(gradients):
        calls.append(len(gradients))
        return own(gradients)

    optimizer._all_reduce_sum_gradients = count
    strategy.run(lambda: optimizer.apply([tf.constant([1.0, 1.0])], [weight]))
    assert calls == [1], (
        "Keras no longer sums gradients over replicas in Optimizer._all_reduce_sum_gradients, so "
        "private_api.skip_gradient_sum has no effect and several devices would count every "
        "gradient several times."
    )
    private_api.skip_gradient_sum(optimizer)
    strategy.run(lambda: optimizer.apply([tf.constant([1.0, 1.0])], [weight]))
    assert calls == [1]
    np.testing.assert_array_equal(weight, [0.0, 1.0])


def test_an_optimizer_that_sums_gradients_in_another_way_is_rejected():
    with pytest.raises(RuntimeError, match=r"merges gradients in a way .* train on one device"):
        private_api.skip_gradient_sum(types.SimpleNamespace())


def test_variables_read_as_another_dtype_but_are_assigned_as_stored():
    variable = keras.Variable([4.0, 9.0], dtype="bfloat16")
    with private_api.variables_read_as("float32"):
        root = keras.ops.sqrt(variable)
        with private_api.variables_read_as(None):
            variable.value.assign([1.0, 2.0])
    assert (root.dtype, variable.value.dtype) == (tf.float32, tf.bfloat16), (
        "private_api.variables_read_as no longer changes the dtype in which Keras' variables read, "
        "so --optimizer_state_dtype=bfloat16 would compute in bfloat16."
    )
    np.testing.assert_array_equal(root, [2.0, 3.0])
    np.testing.assert_array_equal(tf.cast(variable.value, tf.float32), [1.0, 2.0])


def test_a_frozen_function_has_constants_for_variables_and_the_same_output():
    variable = tf.Variable([[1.0, -2.0], [0.5, 3.0]])
    function = tf.function(
        lambda x: tf.matmul(x, variable), input_signature=[tf.TensorSpec([None, 2])]
    ).get_concrete_function()
    x = tf.constant([[1.0, 2.0], [-3.0, 0.25]])
    expected = function(x)
    frozen = private_api.freeze_variables(function)
    kinds = {node.op for node in frozen.graph.as_graph_def().node}
    assert not any("Variable" in kind or "VarHandle" in kind for kind in kinds), (
        "private_api.freeze_variables leaves variables in the graph, so export_model.py "
        f"--frozen_graph would write graphs that need a checkpoint. Operations: {kinds}"
    )
    variable.assign(tf.zeros([2, 2]))
    (actual,) = tf.nest.flatten(frozen(x))
    np.testing.assert_array_equal(actual, expected)


def test_keras_traces_a_saved_model_by_the_attribute_that_is_replaced():
    # That models are saved with it is shown in test_keras_use.py.
    assert hasattr(keras.Model, "_default_save_signature"), (
        "Keras no longer has Model._default_save_signature, so private_api.NoSaveSignature has no "
        "effect, and Model.export may fail for models whose inputs are not floats."
    )
