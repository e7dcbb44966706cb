"""The benchmarks run, at a size that says nothing about speed."""

import importlib
import json

import pytest
from absl import flags

import documents

TINY = ("--num_classes=10", "--feature_sizes=8,4", "--max_frames=6", "--batch_size=4")
TINY_MODEL = ("--model=DbofModel", "--dbof_cluster_size=5", "--dbof_hidden_size=3", *TINY)


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(documents.ROOT / "benchmarks"))
        program = importlib.import_module(name)
        flag_values = flags.FlagValues()
        program.define_flags(flag_values)
        flag_values([name, *arguments])
        program.main(flag_values)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["train_step", "predict"])
def test_benchmarks_of_models_tell_speed_and_memory(run_benchmark, name):
    values = json.loads(
        run_benchmark(name, *TINY_MODEL, "--rounds=2", "--steps=1", "--format=json")
    )
    assert values["model"] == "DbofModel"
    assert 0 < values["seconds_min"] <= values["seconds_per_batch"] <= values["seconds_max"]
    assert values["examples_per_second"] > 0
    assert values["peak_memory_gib"] > 0
    table = run_benchmark(name, *TINY_MODEL, "--rounds=1", "--steps=1")
    assert "DbofModel: " in table
    assert "peak memory" in table


def test_the_input_benchmark_compares_every_way_with_the_baseline(run_benchmark):
    arguments = ("--num_videos=16", "--batch_size=8", "--rounds=1")
    results = json.loads(run_benchmark("input", *arguments, "--format=json"))["results"]
    assert results["per-example tf.data"]["ratio"] == 1
    assert {"dataset()", "batches()", "bare records"} < set(results)
    assert "videos/s" in run_benchmark("input", *arguments)
