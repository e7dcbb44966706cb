"""Matrices in int8, their scales and products by blocks, and transposed, against float64."""

import numpy as np
import pytest
import tensorflow as tf

import layers
import stored_matrix

RNG = np.random.default_rng(5)


def make_layer(depth=5, columns=3, policy="float32", few_rows=True):
    with layers.matmul_policy(policy), layers.int8_storage(()):
        layer = layers.Linear(columns, use_bias=False)
        layer.build((None, depth) if few_rows else (None, None, depth))
    layer.kernel.assign(RNG.normal(size=(depth, columns)) * np.logspace(-3, 3, columns))
    return layer


def reference(x, matrix):
    q = stored_matrix.to_float(matrix.q, "float64")
    return np.asarray(x, np.float64) @ (q * np.float64(matrix.scale))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 columns."""
    monkeypatch.setattr(stored_matrix, "_ENTRIES", 1)
    monkeypatch.setattr(stored_matrix, "_MIN_COLUMNS", 4)


def test_each_column_is_scaled_by_its_largest_entry():
    layer = make_layer(3, 3, few_rows=False)
    layer.kernel.assign([[127.0, 0.0, -2.54], [-64.4, 0.0, 1.0], [0.6, 0.0, 0.042]])
    np.testing.assert_array_equal(layer.kernel.q, [[127, 0, -127], [-64, 0, 50], [1, 0, 2]])
    np.testing.assert_allclose(layer.kernel.scale, [1.0, 0.0, 0.02], rtol=1e-6)
    values = layer.kernel.to_float("float32")
    np.testing.assert_allclose(values, [[127, 0, -2.54], [-64, 0, 1], [1, 0, 0.04]], rtol=1e-6)


def test_no_entry_is_off_by_more_than_half_a_step():
    layer, values = make_layer(200, 4), RNG.normal(size=(200, 4)) ** 3
    layer.kernel.assign(values)
    steps = np.abs(values).max(axis=0) / 127
    assert np.all(np.abs(layer.kernel.to_float("float32") - values) <= 0.50001 * steps)


@pytest.mark.parametrize("columns", [1, 4, 5, 12])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3)])
def test_products_equal_those_with_a_float_matrix(small_blocks, columns, shape):
    layer = make_layer(6, columns, few_rows=len(shape) == 1)
    x = np.float32(RNG.normal(size=(*shape, 6)))
    multiply = tf.function(layer, autograph=False)
    spec = tf.TensorSpec([None] * len(shape) + [6], tf.float32)
    for result in (layer(x), multiply.get_concrete_function(spec)(tf.constant(x))):
        np.testing.assert_allclose(result, reference(x, layer.kernel), rtol=1e-4, atol=1e-5)


def test_rows_of_a_matrix_and_a_cast_matrix_multiply_the_same():
    layer, x = make_layer(6, few_rows=False), np.float32(RNG.normal(size=(2, 4)))
    expected = np.float64(x) @ np.float64(layer.kernel.to_float("float32"))[:4]
    for matrix in (layer.kernel[:4], stored_matrix.cast(layer.kernel[:4], "float32")):
        assert matrix.shape == (4, 3)
        np.testing.assert_allclose(layer.matmul(x, matrix), expected, rtol=1e-5)


def test_a_graph_with_few_rows_has_no_float_copy_of_the_matrix(small_blocks):
    layer = make_layer(200, 9, policy="bfloat16")
    spec = tf.TensorSpec([None, 200], tf.float32)
    graph = tf.function(layer, autograph=False).get_concrete_function(spec).graph
    graphs = [graph, *(op_graph(graph, op) for op in graph.get_operations() if op.type == "While")]
    assert len(graphs) == 2
    floats = [
        output.shape
        for operation in tf.nest.flatten([graph.get_operations() for graph in graphs])
        for output in operation.outputs
        if output.dtype.is_floating
    ]
    assert (4, 200) in floats
    assert (9, 200) not in floats


def op_graph(graph, operation):
    """Returns the graph of the body of a loop."""
    return graph._get_function(operation.get_attr("body").name).graph


def test_matrices_are_named_by_parts_of_their_path():
    path = "LFNLNetVLADModel/encoder/hidden_gating/gate/kernel"
    for name in ("hidden_gating", "gate", "kernel", "hidden_gating/gate", path):
        assert layers.is_one_of(path, ["other", name])
    for name in ("hidden", "gating", "encoder/gate"):
        assert not layers.is_one_of(path, [name])


@pytest.mark.parametrize(
    ("policy", "input_shape", "transposed"),
    [
        ("bfloat16", (None, 5), True),
        ("bfloat16", (None, None, 5), False),
        ("mixed_bfloat16", (None, 5), False),
        ("float32", (None, 5), False),
    ],
)
def test_only_bfloat16_matrices_of_one_row_per_video_are_stored_transposed(
    policy, input_shape, transposed
):
    with layers.matmul_policy(policy):
        layer = layers.Linear(3, use_bias=False)
        layer.build(input_shape)
    assert isinstance(layer.kernel, stored_matrix.TransposedMatrix) == transposed
    assert tuple(layer.kernel.shape) == (5, 3)
    assert [tuple(weight.shape) for weight in layer.weights] == [(3, 5) if transposed else (5, 3)]


def test_a_transposed_matrix_multiplies_as_the_matrix_does():
    values = np.float32(RNG.integers(-8, 8, (6, 3)))  # bfloat16 represents them exactly.
    with layers.matmul_policy("bfloat16"):
        layer = layers.Linear(3, batch_norm=True)
        layer.build((None, 6))
    layer.kernel.assign(values)
    np.testing.assert_array_equal(layer.kernel.to_float("float32"), values)
    x = np.float32(RNG.integers(-8, 8, (4, 6)))
    rounded = tf.cast(np.float64(x) @ np.float64(values), tf.bfloat16)
    np.testing.assert_array_equal(layer.matmul(x, layer.kernel), tf.cast(rounded, tf.float32))
    layer.norm.gamma.assign([2.0, 4.0, 8.0])
    layer.norm.moving_variance.assign([1 - 1e-3] * 3)
    layer.fold()
    np.testing.assert_allclose(layer.kernel.to_float("float32"), values * [2, 4, 8], rtol=1e-2)
