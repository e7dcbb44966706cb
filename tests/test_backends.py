"""The models do not need TensorFlow: under JAX they predict the same and can be trained."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import eval_util
import layer_references as references
import small_models
from programs import ROOT
from small_models import FAMILIES, SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
]

SIZES = {"num_classes": small_models.NUM_CLASSES, "feature_sizes": small_models.FEATURE_SIZES}
# With many ties.
SCORES = np.random.default_rng(0).integers(-1, 4, (22, 7)).astype(np.float32)
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def run_under_jax(*arguments):
    """Runs `python arguments...` with JAX as backend of Keras."""
    completed = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            # Compiles in half the time.
            "XLA_FLAGS": "--xla_backend_optimization_level=1",
        },
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Predictions of one model per family with TensorFlow, and results of `other_backend.py`."""
    weights, predictions = {}, {}
    for name in FAMILIES:
        model, inputs = small_models.build(name), small_models.make_inputs(name)
        references.randomize(model)
        weights |= {weight.path: np.asarray(weight.value) for weight in model.weights}
        predictions[f"{name}/tensorflow"] = model(tf.nest.map_structure(tf.constant, inputs))
    directory = tmp_path_factory.mktemp("jax")
    np.savez(
        directory / "input.npz",
        models=json.dumps({name: SMALL[name] for name in FAMILIES}),
        sizes=json.dumps(SIZES),
        vectors=small_models.make_inputs("MoeModel"),
        labels=small_models.make_labels(5),
        scores=SCORES,
        score_labels=small_models.make_labels(*SCORES.shape),
        **small_models.make_inputs("DbofModel"),
        **weights,
    )
    program = ROOT / "tests" / "other_backend.py"
    run_under_jax(program, directory / "input.npz", directory / "output.npz")
    with np.load(directory / "output.npz") as file:
        return {**predictions, **file}


@EVERY_FAMILY
def test_jax_predicts_like_tensorflow_with_the_same_weights(name, results):
    actual, expected = results[f"{name}/predictions"], results[f"{name}/tensorflow"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@EVERY_FAMILY
def test_every_trainable_weight_gets_a_finite_gradient_under_jax(name, results):
    prefix = f"{name}/gradients/"
    gradients = {
        path.removeprefix(prefix): value
        for path, value in results.items()
        if path.startswith(prefix)
    }
    assert gradients
    assert [path for path, value in gradients.items() if not np.all(np.isfinite(value))] == []
    without = {path for path, value in gradients.items() if not np.any(value)}
    assert without <= references.WITHOUT_EFFECT


@pytest.mark.parametrize("name", ["frames", "kernel", "recurrent_kernel", "bias"])
def test_the_gradient_of_the_gru_equals_that_of_keras_under_jax(name, results):
    own, of_keras = (results[f"gru/{whose}/{name}"] for whose in ("own", "keras"))
    np.testing.assert_allclose(own, of_keras, rtol=0, atol=1e-6 * np.abs(of_keras).max())


def test_keras_metrics_under_jax_equal_those_of_all_videos_at_once(results):
    pair = SCORES, small_models.make_labels(*SCORES.shape)
    expected = {
        "gap": eval_util.calculate_gap(*pair),
        "hit_at_one": eval_util.calculate_hit_at_one(*pair),
        "perr": eval_util.calculate_precision_at_equal_recall_rate(*pair),
    }
    found = {name: float(results[f"metrics/{name}"]) for name in expected}
    assert found == pytest.approx(expected)


def test_models_and_losses_do_not_import_tensorflow(results):
    assert not results["imported_tensorflow"]


# Settings of a recipe of Soft-BoF that make it small.
SMALL_SOFT_BOF = (
    *("--soft_bof_cluster_size=5", "--soft_bof_hidden_size=3", "--iterations=4"),
    *("--num_classes=10", "--feature_sizes=8,4", "--max_frames=6"),
)


def run_benchmark_under_jax(name, *arguments):
    """Runs a program of `benchmarks/` where TensorFlow cannot be imported; returns its output."""
    code = (
        "import os, runpy, sys; sys.modules['tensorflow'] = None; del sys.argv[0]; "
        "sys.path[0] = os.path.dirname(sys.argv[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return run_under_jax("-c", code, ROOT / "benchmarks" / name, *arguments).stdout


def test_the_training_step_is_measured_where_tensorflow_is_not_installed():
    output = run_benchmark_under_jax(
        "train_step.py",
        f"--flagfile={ROOT / 'recipes' / 'soft_bof_4k.flags'}",
        *(*SMALL_SOFT_BOF, "--batch_size=4", "--rounds=1", "--steps=1", "--format=json"),
        "--optimizer_state_dtype=bfloat16",
    )
    result = json.loads(output)
    plain, bound = "plain Keras, float32", "its matrix products alone"
    assert set(result["results"]) == {"project", plain, bound}
    assert result["baseline"] == plain
    assert result["results"][bound]["ratio"] > 1
    assert set(result["conditions"]["versions"]) == {"python", "jax", "keras", "numpy"}


def test_a_failing_model_leaves_the_other_lines_of_the_table(tmp_path):
    recipe = (ROOT / "recipes" / "soft_bof_4k.flags").read_text()
    (tmp_path / "small.flags").write_text("\n".join([recipe, *SMALL_SOFT_BOF]))
    output = run_benchmark_under_jax(
        "gpu_table.py", f"--recipes=absent,{tmp_path / 'small'}", "--batch_sizes=2,4"
    )
    _, header, _, *rows = [line.strip("| ").split(" | ") for line in output.splitlines()]
    assert [row[:2] for row in rows[:2]] == [["absent", "2"], ["absent", "4"]]
    assert all("absent.flags" in row[2] for row in rows[:2])
    for size, row in zip((2, 4), rows[2:], strict=True):
        values = dict(zip(header, row, strict=True))
        assert values["model"] == str(tmp_path / "small")
        seconds = float(values["ms/step"]) / 1e3
        assert float(values["videos/s"].replace(",", "")) == pytest.approx(size / seconds, rel=0.1)
