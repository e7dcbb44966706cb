"""Sizes of models, against arithmetic by hand."""

import gc
import json

import pytest

import documents
import model_info
import programs
import registry
from run_config import RunConfig
from utils import InputError

D0, D1, C = 8, 4, 10
DATA = {"feature_sizes": (D0, D1), "num_classes": C}
DATA_FLAGS = (f"--feature_sizes={D0},{D1}", f"--num_classes={C}")
NUMBERS = ("parameters", "float32_mib", "bfloat16_mib", "int8_mib")


def describe(name, data=DATA, **hyperparameters):
    return model_info.describe(RunConfig(name, hyperparameters=hyperparameters, **data))


def by_layer(description):
    return {layer["name"]: layer["parameters"] for layer in description["layers"]}


@pytest.mark.slow
def test_every_registered_model_is_described():
    for name in registry.models():
        entry = describe(name)
        gc.collect()
        assert entry["model"] == name
        assert entry["parameters"] == sum(by_layer(entry).values()) > 0
        assert len(by_layer(entry)) == len(entry["layers"])


def test_a_weight_takes_four_bytes_in_float32_and_two_in_bfloat16():
    entry = describe("MoeModel")
    assert entry["float32_mib"] * 2**20 == pytest.approx(4 * entry["parameters"])
    assert entry["bfloat16_mib"] * 2**20 == pytest.approx(2 * entry["parameters"])


def test_a_matrix_takes_one_byte_a_weight_in_int8_and_four_for_the_scale_of_each_column():
    entry = describe("MoeModel")
    matrices, biases = (D0 + D1) * C * (3 + 2), C * 2
    assert entry["int8_mib"] * 2**20 == matrices + 4 * C * (3 + 2) + 4 * biases


def test_parameters_of_a_full_size_model_counted_by_hand():
    entry = describe("MoeModel", {})
    assert entry["parameters"] == 1152 * 3862 * (3 + 2) + 2 * 3862
    assert by_layer(entry) == {"gates": 1152 * 3862 * 3, "experts": 1152 * 3862 * 2 + 3862 * 2}


def test_batch_normalization_statistics_are_parameters():
    layers = by_layer(describe("DbofModel", dbof_cluster_size=16, dbof_hidden_size=6))
    # Scale, offset, mean and variance, and the number of updates.
    assert layers["clusters/norm"] == 4 * 16 + 1
    assert layers["clusters"] == (D0 + D1) * 16
    assert set(layers) == {
        *("input_norm", "clusters", "clusters/norm", "hidden", "hidden/norm"),
        *("classifier/gates", "classifier/experts"),
    }


def test_the_tables_have_the_numbers_of_the_model_and_of_every_layer_and_fit_the_screen(
    capsys, monkeypatch
):
    entry = describe("LFNLNetVLADModel", netvlad_hidden_size=99)
    monkeypatch.setattr(model_info, "describe", lambda config: entry)
    programs.run("model_info", "--model=LFNLNetVLADModel", *DATA_FLAGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == (
        ["model", "parameters", "float32", "MiB", "bfloat16", "MiB", "int8", "MiB"]
    )
    assert lines[1].split() == [
        entry["model"],
        f"{entry['parameters']:,}",
        f"{entry['float32_mib']:.1f}",
        f"{entry['bfloat16_mib']:.1f}",
        f"{entry['int8_mib']:.1f}",
    ]
    assert [line.split() for line in lines[4:]] == [
        [layer["name"], f"{layer['parameters']:,}"] for layer in entry["layers"]
    ]
    assert len({len(line) for line in lines[3:]}) == 1
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_all_lists_every_model_with_its_defaults(capsys, monkeypatch):
    configs = []

    def record(config):
        configs.append(config)
        return {"model": config.model, "layers": [], **dict.fromkeys(NUMBERS, 1)}

    monkeypatch.setattr(model_info, "describe", record)
    programs.run("model_info", "--all", *DATA_FLAGS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(registry.models())
    assert configs == [RunConfig(name, **DATA) for name in registry.models()]


def test_json_is_a_list_of_objects_with_the_documented_keys(capsys):
    programs.run("model_info", "--model=MoeModel", "--format=json", *DATA_FLAGS)
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == describe("MoeModel")
    assert set(entry) == {"model", *NUMBERS, "layers"}
    assert [type(entry[key]) for key in NUMBERS] == [int, float, float, float]
    assert [layer["name"] for layer in entry["layers"]] == ["gates", "experts"]
    for layer in entry["layers"]:
        assert set(layer) == {"name", "parameters"}
        assert type(layer["parameters"]) is int


def test_a_recipe_shows_the_model_that_train_builds(capsys):
    recipe = f"--flagfile={documents.ROOT / 'recipes' / 'small_moe.flags'}"
    trained = programs.options(
        "train", recipe, "--train_data_pattern=data", "--train_dir=run", *DATA_FLAGS
    )
    programs.run("model_info", recipe, "--format=json", *DATA_FLAGS)
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == model_info.describe(trained["config"])


def test_a_training_run_shows_its_model(trained_mean, capsys):
    programs.run("model_info", f"--train_dir={trained_mean}", "--format=json")
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == model_info.describe(RunConfig.load(str(trained_mean)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --model .* must be given. Received: none"),
        (("--model=NoModel",), "unknown model 'NoModel'. Registered models: DbofModel"),
        (("--model=MoeModel", "--gru_cells=3"), "MoeModel does not take gru_cells. It takes: moe_"),
        (("--model=GruModel", "--gru_cells=0"), "gru_cells must be at least 1"),
        (("--model=MoeModel", "--max_frames=0"), "--max_frames must be above 0"),
        (("--model=MoeModel", "--feature_sizes=a"), "--feature_sizes must be integers"),
        (("--model=MoeModel", "--num_classes=0"), "num_classes must be above 0"),
        (("--all", "--num_classes=0"), "--num_classes must be above 0"),
        (("--all", "--model=MoeModel"), "Received: --model, --all"),
        (("--train_dir=run", "--model=MoeModel"), "Received: --model, --train_dir"),
        (("--train_dir=run", "--num_classes=3862"), "--num_classes cannot be given with --train"),
        (("--train_dir=missing",), "missing has no model_flags.json"),
        (("--all", "--gru_cells=3"), "--gru_cells needs --model"),
    ],
)
def test_bad_input_is_rejected_with_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        programs.run("model_info", *arguments)
