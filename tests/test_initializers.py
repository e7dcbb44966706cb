"""Initial weights have the distributions that the models ask for."""

import math

import keras
import numpy as np
import pytest

import layers
import registry
from layer_references import sub_weights, weights_of
from model_references import NETVLAD_MODELS
from small_models import for_one_stream


def build(name, feature_sizes, **options):
    keras.utils.set_random_seed(2)
    return registry.build_model(name, num_classes=2, feature_sizes=feature_sizes, **options)


def test_initial_bias_of_a_gru_opens_its_two_gates():
    for layer in build("GruModel", (3,), gru_cells=4).stack.grus:
        np.testing.assert_array_equal(layer.input_projection.bias, [1] * 8 + [0] * 4)


def test_initial_bias_of_an_lstm_opens_its_forget_gate():
    for layer in build("LstmModel", (3,), lstm_cells=4).recurrent_layers:
        np.testing.assert_array_equal(layer.cell.bias, [0] * 4 + [1] * 4 + [0] * 8)


def assert_normal(weight, std):
    values = np.asarray(weight).ravel() / std
    # Six standard errors of mean and standard deviation.
    assert abs(values.mean()) < 6 / math.sqrt(values.size)
    assert abs(values.std() - 1) < 6 / math.sqrt(2 * values.size)
    # 0.27% lie beyond three standard deviations, more than in a truncated normal or uniform one.
    assert 0.001 < np.mean(np.abs(values) > 3) < 0.005


@pytest.mark.parametrize("batch_norm", [True, False])
def test_initial_projections_of_dbof_are_normal_by_their_fan_in(batch_norm):
    options = {"dbof_cluster_size": 512, "dbof_hidden_size": 64, "dbof_add_batch_norm": batch_norm}
    model = build("DbofModel", (96, 32), **options)
    assert_normal(model.clusters.kernel, 128**-0.5)
    assert_normal(model.hidden.kernel, 512**-0.5)


@pytest.mark.parametrize("name", NETVLAD_MODELS)
def test_initial_weights_of_netvlad_models_are_normal_by_their_fan_in(name):
    options = {"netvlad_cluster_size": "64,49", "nonlocal_embedding": "81,64"}
    if name == "EFNLNetVLADModel":
        options = for_one_stream(options)
    model = build(name, (256, 192), netvlad_hidden_size=8, **options)
    weights = sub_weights(weights_of(model), "encoder")
    streams = [(448, 81)] if name == "EFNLNetVLADModel" else [(256, 81), (192, 64)]
    for number, (size, embedding) in enumerate(streams):
        own = sub_weights(weights, f"netvlad_{number}")
        by_size = {"assignment/kernel", "nonlocal_block/theta", "nonlocal_block/phi"}
        by_size |= {"nonlocal_block/g"} | {"centers"} & set(own)
        for path in by_size:
            assert_normal(own[path], size**-0.5)
        assert_normal(own["nonlocal_block/out"], embedding**-0.5)
    assert_normal(weights["hidden/kernel"], 64**-0.5)
    assert not np.any(weights["hidden/bias"])


def test_initial_weights_of_soft_bof_are_normal_by_their_fan_in():
    options = {"soft_bof_cluster_size": "400,225", "soft_bof_hidden_size": 32}
    model = build("SoftBoFModel", (64, 36), **options)
    weights = sub_weights(weights_of(model), "encoder")
    assert_normal(weights["soft_bof_0/assignment/kernel"], 1 / 8)
    assert_normal(weights["soft_bof_1/assignment/kernel"], 1 / 6)
    assert_normal(weights["hidden/kernel"], 1 / 20)
    assert not np.any(weights["hidden/bias"])


def test_initial_weights_of_netfv_are_normal_by_their_fan_in_and_deviations_are_around_one():
    model = build("NetFVModel", (256, 64), fv_cluster_size="49,36", fv_hidden_size=8)
    weights = sub_weights(weights_of(model), "encoder")
    for number, size in enumerate((256, 64)):
        own = sub_weights(weights, f"netfv_{number}")
        assert_normal(own["assignment/kernel"], size**-0.5)
        assert_normal(own["centers"], size**-0.5)
        assert_normal(own["deviation_roots"] - 1, size**-0.5)
    assert_normal(weights["hidden/kernel"], 1 / 7)


def test_initial_weights_of_gated_dbof_are_normal_by_the_size_of_a_frame():
    options = {"gated_dbof_cluster_size": "225,64", "gated_dbof_hidden_size": 32}
    model = build("GatedDbofModel", (64, 100), **options)
    weights = sub_weights(weights_of(model), "encoder")
    for name in ("assignment", "reduction", "gate"):
        assert_normal(weights[f"dbof_0/{name}/kernel"], 1 / 8)
    assert_normal(weights["dbof_1/assignment/kernel"], 1 / 10)
    assert_normal(weights["hidden/kernel"], 1 / 15)


def test_initial_embeddings_of_time_are_small():
    model = build("TransformerModel", (8,), transformer_units=64, transformer_positions=100)
    weights = sub_weights(weights_of(model), "encoder")
    assert_normal(weights["time_embedding"], 0.02)


def test_initial_batch_norm_scales_by_one_and_shifts_by_zero():
    layer = layers.BatchNorm()
    layer.build((None, 5))
    ones, zeros = [1.0] * 5, [0.0] * 5
    initial = {path: value.tolist() for path, value in weights_of(layer).items()}
    assert initial == {
        "gamma": ones,
        "beta": zeros,
        "moving_mean": zeros,
        "moving_variance": ones,
        "num_updates": 0.0,
    }


def test_initial_gate_of_context_gating_is_normal_by_its_width():
    keras.utils.set_random_seed(2)
    layer = layers.ContextGating()
    layer.build((None, 256))
    assert_normal(layer.gate.kernel, 1 / 16)


def test_initial_moe_weights_are_glorot_uniform():
    keras.utils.set_random_seed(2)
    model = registry.build_model("MoeModel", num_classes=100, feature_sizes=(200,))
    for layer, width in [(model.gates, 300), (model.experts, 200)]:
        limit = math.sqrt(6 / (200 + width))
        values = np.asarray(layer.kernel)
        assert 0.99 * limit < np.abs(values).max() <= limit
        assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert not np.any(model.experts.bias)
