"""Sizes and multiply-adds of models, against arithmetic by hand."""

import json

import keras
import pytest
import tensorflow as tf
from absl import flags
from keras import ops

import documents
import model_info
import registry
import train
from run_config import RunConfig
from utils import InputError

D0, D1, C, T = 8, 4, 10, 20
DATA = {"feature_sizes": (D0, D1), "num_classes": C, "max_frames": T}
DATA_FLAGS = (f"--feature_sizes={D0},{D1}", f"--num_classes={C}", f"--max_frames={T}")
NUMBERS = ("parameters", "float32_mib", "bfloat16_mib", "multiply_adds")


def run(*arguments):
    flag_values = flags.FlagValues()
    model_info.define_flags(flag_values)
    flag_values(["model_info.py", *arguments])
    return model_info.main(flag_values)


def describe(name, data=DATA, **hyperparameters):
    return model_info.describe(RunConfig(name, hyperparameters=hyperparameters, **data))


def by_layer(description, key):
    return {layer["name"]: layer[key] for layer in description["layers"]}


@pytest.fixture(scope="module")
def all_models():
    return [describe(name) for name in registry.models()]


def moe(width, classes=C, mixtures=2):
    gates, experts = classes * (mixtures + 1), classes * mixtures
    return width * gates + width * experts


def netvlad_stream(frames, size, clusters, embedding):
    assignment = aggregation = frames * size * clusters
    theta_phi_g_out = 4 * clusters * size * embedding
    products = weighted_sums = clusters * clusters * embedding
    return assignment + aggregation + theta_phi_g_out + products + weighted_sums


def test_every_registered_model_has_layers_that_sum_to_its_totals(all_models):
    assert [entry["model"] for entry in all_models] == list(registry.models())
    for entry in all_models:
        assert entry["parameters"] == sum(by_layer(entry, "parameters").values()) > 0
        assert entry["multiply_adds"] == sum(by_layer(entry, "multiply_adds").values()) > 0
        assert len(by_layer(entry, "parameters")) == len(entry["layers"])


def test_a_weight_takes_four_bytes_in_float32_and_two_in_bfloat16(all_models):
    for entry in all_models:
        assert entry["float32_mib"] * 2**20 == pytest.approx(4 * entry["parameters"])
        assert entry["bfloat16_mib"] * 2**20 == pytest.approx(2 * entry["parameters"])


def test_parameters_of_a_full_size_model_counted_by_hand():
    entry = describe("MoeModel", {})
    assert entry["parameters"] == 1152 * 3862 * (3 + 2) + 2 * 3862
    assert by_layer(entry, "parameters") == {
        "gates": 1152 * 3862 * 3,
        "experts": 1152 * 3862 * 2 + 3862 * 2,
    }
    assert entry["multiply_adds"] == moe(1152, 3862)


def test_statistics_of_batch_normalisation_are_parameters():
    layers = by_layer(describe("DbofModel", dbof_cluster_size=16), "parameters")
    # Scale, offset, mean and variance, and the number of updates.
    assert layers["clusters/norm"] == 4 * 16 + 1
    assert layers["clusters"] == (D0 + D1) * 16


def test_multiply_adds_of_netvlad_by_hand():
    entry = describe(
        "LFNLNetVLADModel",
        iterations=7,  # Sampled frames are counted where they stand, so all are computed.
        netvlad_cluster_size="6,5",
        nonlocal_embedding="3,2",
        netvlad_hidden_size=9,
    )
    late = netvlad_stream(T, D0, 6, 3) + netvlad_stream(T, D1, 5, 2)
    hidden = (6 * D0 + 5 * D1) * 9 + 9 * 9
    assert entry["multiply_adds"] == late + hidden + moe(9, C, 8) + C * C
    layers = by_layer(entry, "multiply_adds")
    assert layers["encoder/netvlad_0/assignment"] == layers["encoder/netvlad_0"] == T * D0 * 6
    assert layers["encoder/netvlad_1/nonlocal_block"] == 4 * 5 * D1 * 2 + 2 * 5 * 5 * 2
    assert layers["encoder/hidden_gating/gate"] == 9 * 9
    assert layers["encoder/input_norm"] == 0


def test_multiply_adds_outside_the_layers_with_weights_are_not_lost():
    entry = describe("LFNLNetRVLADModel", netvlad_cluster_size="6,5")
    assert by_layer(entry, "parameters")["encoder/netvlad_0"] == 0
    assert by_layer(entry, "multiply_adds")["encoder/netvlad_0"] == T * D0 * 6


@pytest.mark.parametrize(("iterations", "frames"), [(7, 7), (0, T)])
def test_multiply_adds_of_copied_frames_are_those_of_the_sample(iterations, frames):
    sizes = {"dbof_cluster_size": 16, "dbof_hidden_size": 6}
    entry = describe("DbofModel", iterations=iterations, **sizes)
    assert entry["multiply_adds"] == frames * (D0 + D1) * 16 + 16 * 6 + moe(6)


@pytest.mark.parametrize(
    ("name", "cells", "gates"), [("GruModel", "gru", 3), ("LstmModel", "lstm", 4)]
)
def test_multiply_adds_of_a_loop_count_as_often_as_it_runs(name, cells, gates):
    entry = describe(name, **{f"{cells}_cells": 5})
    layers = by_layer(entry, "multiply_adds")
    for number, width in enumerate((D0 + D1, 5)):
        parts = [part for part in layers if f"{cells}_{number}" in part.split("/")]
        assert sum(layers[part] for part in parts) == T * gates * 5 * (width + 5)
    recurrent = T * gates * 5 * (D0 + D1 + 5 + 5 + 5)
    encoding = {"GruModel": 10, "LstmModel": 5}[name]  # The states of all layers, or of the last.
    assert entry["multiply_adds"] == recurrent + moe(encoding)


def test_layers_come_in_the_order_of_computation():
    names = list(by_layer(describe("DbofModel", dbof_cluster_size=16), "parameters"))
    assert names[:5] == ["input_norm", "clusters", "clusters/norm", "hidden", "hidden/norm"]
    assert names[-1] == "classifier/experts"


class Toy(keras.Model):
    """Frames `[B, T, 6]` through a function of a few layers."""

    def __init__(self, function, **layers):
        super().__init__(name="Toy")
        self.function = function
        self.parts = dict(layers)

    def input_spec_tensors(self):
        return keras.Input([None, 6])

    def call(self, inputs, training=False):
        return self.function(inputs, **self.parts)


def toy_multiply_adds(function, frames=5, **layers):
    model = Toy(function, **layers)
    model(model.input_spec_tensors())
    return model_info.multiply_adds(model, frames)


def test_multiply_adds_of_einsums_with_an_ellipsis():
    counts = toy_multiply_adds(lambda x: ops.einsum("...D,...E->...", x, x[..., :2]))
    assert sum(counts.values()) == 5 * 6 * 2


def test_sums_by_einsum_are_no_products():
    assert sum(toy_multiply_adds(lambda x: ops.einsum("BTD->BD", x)).values()) == 0


def test_multiply_adds_of_transposed_products():
    def gram(x):
        return ops.matmul(ops.transpose(x, (0, 2, 1)), x)

    assert sum(toy_multiply_adds(gram).values()) == 6 * 6 * 5
    assert sum(toy_multiply_adds(lambda x: tf.matmul(x, x, transpose_a=True)).values()) == 180


def test_multiply_adds_of_convolutions():
    layers = {"conv": keras.layers.Conv1D(4, 3, padding="same", name="conv")}
    assert toy_multiply_adds(lambda x, conv: conv(x), **layers)[("conv",)] == 5 * 4 * 3 * 6


def test_a_layer_called_twice_counts_twice():
    layers = {"dense": keras.layers.Dense(6, name="dense")}
    assert toy_multiply_adds(lambda x, dense: dense(dense(x)), **layers)[("dense",)] == 2 * 5 * 36


def test_layers_with_numbers_in_their_names_are_told_apart():
    layers = {name: keras.layers.Dense(6, name=name) for name in ("dense", "dense_1", "dense_2")}
    counts = toy_multiply_adds(
        lambda x, dense, dense_1, dense_2: dense_2(dense_1(dense(x[:, :1]))[:, :1] + x), **layers
    )
    assert {name: counts[(name,)] for name in layers} == {
        "dense": 36,
        "dense_1": 36,
        "dense_2": 180,
    }


def test_what_no_output_depends_on_does_not_count():
    def wasteful(x):
        ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return x

    assert sum(toy_multiply_adds(wasteful).values()) == 0


def test_a_recurrent_layer_on_a_gpu_counts_like_its_loop(monkeypatch):
    loop = describe("LstmModel", lstm_cells=50)["multiply_adds"]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind])
    entry = describe("LstmModel", lstm_cells=50)
    assert entry["multiply_adds"] == loop
    assert by_layer(entry, "multiply_adds")["lstm_0"] == T * 4 * 50 * (D0 + D1 + 50)


def test_a_loop_of_open_length_is_refused():
    def endless(x):
        square = x[:, :, :5]
        return tf.while_loop(lambda y: ops.sum(y) < 1.0, lambda y: (ops.matmul(y, y),), (square,))[
            0
        ]

    with pytest.raises(InputError, match=r"open how often the loop Toy.*while runs"):
        toy_multiply_adds(endless)


def test_sizes_that_depend_on_the_data_are_refused():
    def selected(x):
        rows = tf.boolean_mask(x[0], x[0, :, 0] > 0)
        return ops.matmul(ops.transpose(rows), rows)[None]

    with pytest.raises(InputError, match="MatMul has sizes that depend on the data"):
        toy_multiply_adds(selected)


def test_the_table_has_the_numbers_of_every_layer_and_fits_the_screen(capsys):
    run("--model=LFNLNetVLADModel", "--netvlad_hidden_size=1500", *DATA_FLAGS)
    lines = capsys.readouterr().out.splitlines()
    entry = describe("LFNLNetVLADModel", netvlad_hidden_size=1500)
    assert lines[0].split()[0] == "model"
    assert lines[0].endswith("multiply-adds")
    expected = [
        entry["model"],
        f"{entry['parameters']:,}",
        f"{entry['float32_mib']:.1f}",
        f"{entry['bfloat16_mib']:.1f}",
        f"{entry['multiply_adds']:,}",
    ]
    assert lines[1].split() == expected
    rows = [line.split() for line in lines[4:-2]]
    assert rows == [
        [layer["name"], f"{layer['parameters']:,}", f"{layer['multiply_adds']:,}"]
        for layer in entry["layers"]
    ]
    assert len({len(line) for line in lines[3:-2]}) == 1
    assert max(map(len, lines)) <= 100


def test_all_shows_every_model_with_its_defaults(capsys, monkeypatch):
    configs = []

    def remember(config):
        configs.append(config)
        return {"model": config.model, "layers": [], **dict.fromkeys(NUMBERS, 1)}

    monkeypatch.setattr(model_info, "describe", remember)
    run("--all", *DATA_FLAGS)
    lines = capsys.readouterr().out.splitlines()
    names = list(registry.models())
    assert [line.split()[0] for line in lines[1 : len(names) + 1]] == names
    assert configs == [RunConfig(name, **DATA) for name in names]


def test_json_is_a_list_of_objects_with_the_documented_keys(capsys):
    run("--model=MoeModel", "--format=json", *DATA_FLAGS)
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == describe("MoeModel")
    assert set(entry) == {"model", *NUMBERS, "layers"}
    assert [type(entry[key]) for key in NUMBERS] == [int, float, float, int]
    assert [layer["name"] for layer in entry["layers"]] == ["gates", "experts"]
    for layer in entry["layers"]:
        assert set(layer) == {"name", "parameters", "multiply_adds"}
        assert {type(layer["parameters"]), type(layer["multiply_adds"])} == {int}


def test_a_recipe_shows_the_model_that_train_builds(capsys):
    recipe = f"--flagfile={documents.ROOT / 'recipes' / 'small_moe.flags'}"
    flag_values = flags.FlagValues()
    train.define_flags(flag_values)
    flag_values(["train.py", recipe, "--train_data_pattern=data", "--train_dir=run"])
    run(recipe, "--format=json")
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == model_info.describe(train.config_from_flags(flag_values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model, --flagfile or --all must be given"),
        (("--model=NoModel",), "unknown model 'NoModel'. Registered models: DbofModel"),
        (("--model=MoeModel", "--gru_cells=3"), "MoeModel does not take gru_cells. It takes: moe_"),
        (("--model=GruModel", "--gru_cells=0"), "gru_cells must be at least 1"),
        (("--model=MoeModel", "--max_frames=0"), "--max_frames must be above 0"),
        (("--model=MoeModel", "--feature_sizes=a"), "--feature_sizes must be integers"),
        (("--model=MoeModel", "--num_classes=0"), "num_classes must be positive"),
        (("--all", "--max_frames=0"), "--max_frames must be above 0"),
        (("--all", "--model=MoeModel", "--gru_cells=3"), "Leave out --model, --gru_cells"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)


def test_flags_that_no_recipe_sets_are_refused():
    with pytest.raises(flags.UnrecognizedFlagError, match="train_dir"):
        run("--model=MoeModel", "--train_dir=run")
