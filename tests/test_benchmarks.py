"""The benchmarks run, at sizes too small to measure speed."""

import importlib
import json

import program

import numpy as np
import pytest
import tensorflow as tf

import documents
import layer_references as references
import small_models
from run_config import RunConfig
from utils import InputError

TINY = ("--num_classes=10", "--feature_sizes=8,4", "--max_frames=6", "--batch_size=4")
TINY_MODEL = (
    *("--model=SoftBoFModel", "--soft_bof_cluster_size=5", "--soft_bof_hidden_size=3"),
    *TINY,
)


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(documents.ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def run_benchmark(benchmark_module, capsys):
    def run(name, *arguments):
        program.call(benchmark_module(name).main, arguments)
        return capsys.readouterr().out

    return run


def ratios(text):
    result = json.loads(text)
    assert result["results"][result["baseline"]]["ratio"] == 1
    for row in result["results"].values():
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["videos_per_second"] > 0
        assert row["peak_memory_gib"] > 0
        assert row["cpu_ms_per_video"] > 0
    return result["results"]


@pytest.mark.parametrize("name", [pytest.param("train_step", marks=pytest.mark.slow), "predict"])
def test_model_benchmarks_compare_with_plain_keras(run_benchmark, name):
    output = run_benchmark(name, *TINY_MODEL, "--rounds=2", "--steps=1", "--format=json")
    assert set(ratios(output)) == {"project", "plain Keras, float32"}
    table = run_benchmark(name, *TINY_MODEL, "--rounds=1", "--steps=1", "--noplain")
    assert "model SoftBoFModel" in table
    assert "plain Keras" not in table
    assert "peak GiB" in table


@pytest.mark.slow
def test_runtimes_and_their_sizes_are_compared(run_benchmark):
    output = run_benchmark("runtimes", *TINY_MODEL, "--rounds=1", "--steps=1", "--format=json")
    names = {"TensorFlow, float32", "TensorFlow, bfloat16", "ONNX Runtime", "LiteRT"}
    assert set(ratios(output)) == names
    conditions = json.loads(output)["conditions"]
    assert all(conditions[f"MiB of {name}"] > 0 for name in names)


@pytest.mark.slow
def test_exports_of_every_dtype_are_compared(run_benchmark):
    output = run_benchmark(
        "export_dtypes", "--recipes=small_lfnl_netvlad", "--batch_size=2", "--rounds=1"
    )
    rows = [line.split() for line in output.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["float32", "bfloat16", "int8"]
    sizes = [int(row[1].replace(",", "")) for row in rows]
    assert sizes[0] > 1.9 * sizes[1] > 3.5 * sizes[2]
    assert float(rows[0][4]) == 0
    assert 0 < float(rows[2][4]) < 0.01
    assert "videos/s" in output


def test_training_from_records_is_compared_with_a_batch_in_memory(run_benchmark, video_data):
    given = ("--model=MoeModel", *TINY, f"--data_pattern={video_data}")
    output = run_benchmark("train_step", *given, "--rounds=1", "--steps=2", "--format=json")
    assert set(ratios(output)) == {"project", "batch in memory"}


@pytest.mark.parametrize("more", [[], pytest.param(["--train"], marks=pytest.mark.slow)])
def test_ways_to_store_frames_are_compared(run_benchmark, more):
    output = run_benchmark(
        "frame_storage", *TINY_MODEL, "--rounds=1", "--steps=1", "--format=json", *more
    )
    assert len(ratios(output)) == 4


@pytest.mark.slow
def test_learning_curves_are_compared_for_every_storage_of_the_state(run_benchmark):
    flags = ("--models=MoE on the mean", "--num_steps=10", "--num_videos=64", "--seeds=0,1")
    header, *rows = run_benchmark("state_dtypes", *flags).splitlines()
    assert header.split() == ["float32", "deviation", "stochastic", "nearest"]
    assert [row.split(",")[1].split("  ")[0] for row in rows] == [
        *(f" loss to step {step}" for step in range(1, 11)),
        " GAP",
    ]


def test_operations_of_matrix_products_in_loops_are_counted_every_time(benchmark_module):
    jax = pytest.importorskip("jax")
    ones = jax.numpy.ones

    def step(carry, row):
        return carry, jax.jit(jax.numpy.matmul)(row, ones([4, 5]))

    jaxpr = jax.make_jaxpr(lambda rows: jax.lax.scan(step, 0.0, rows))(ones([3, 2, 4]))
    count = benchmark_module("jax_step").product_operations
    assert count(jaxpr) == 3 * (2 * 5) * (4 + 4)
    assert count(jax.make_jaxpr(lambda x: x * x)(ones([2, 2]))) == 0


def test_clipping_under_jax_limits_the_norm_of_a_gradient(benchmark_module):
    pytest.importorskip("jax")
    jax_step = benchmark_module("jax_step")
    clip = jax_step.clip_by_norm
    np.testing.assert_allclose(clip(np.array([[3.0], [4.0]]), 1.0), [[0.6], [0.8]], rtol=1e-6)
    np.testing.assert_array_equal(clip(np.array([[0.3], [0.4]]), 1.0), np.float32([[0.3], [0.4]]))
    clipped = jax_step.clip_by_global_norm([np.array([[3.0]]), np.array([4.0])], 1.0)
    np.testing.assert_allclose(clipped[0], [[0.6]], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [0.8], rtol=1e-6)


def test_benchmarks_reject_steps_of_several_batches(benchmark_module):
    config = RunConfig("LogisticModel", gradient_accumulation=2)
    with pytest.raises(InputError, match="without --gradient_accumulation"):
        benchmark_module("full_size").random_batch(config)


def test_the_gap_of_samplings_is_printed_per_run(run_benchmark, trained_mean, frame_data):
    given = (f"--train_dirs={trained_mean}", f"--eval_data_pattern={frame_data}", "--num_seeds=3")
    rows = {}
    for kind in ("", "--noindependent", "--independent"):
        lines = run_benchmark("sampling_gap", *given, *filter(None, [kind])).splitlines()
        rows[kind] = [line.removeprefix(f"{trained_mean} | ") for line in lines]
    assert [row.split(" | ")[0] for row in rows[""]] == ["0", "1", "5", "10"]
    assert rows[""][0].endswith(" ± 0.0000")
    assert rows[""] == rows["--noindependent"]
    assert rows["--independent"][0] == rows[""][0]
    assert rows["--independent"][1:] != rows[""][1:]


def test_ways_to_predict_segments_are_compared(run_benchmark, benchmark_module, monkeypatch):
    config = RunConfig(
        model="SoftBoFModel",
        hyperparameters={"soft_bof_cluster_size": "5", "soft_bof_hidden_size": 3},
        num_classes=10,
        feature_sizes=(8, 4),
        max_frames=13,
        batch_size=4,
    )
    monkeypatch.setattr(benchmark_module("full_size"), "config_of_recipe", lambda *_: config)
    given = ("--recipes=any", "--batch_size=4", "--rounds=1", "--format=json")
    found = ratios(run_benchmark("segment_prediction", *given, "--listed_classes=4"))
    assert [*found] == [
        *("each segment as a video", "all segments", "all segments, 4 classes"),
        *("one pass over the video", "3 samplings"),
    ]


@pytest.mark.parametrize(
    ("level", "baseline"),
    [("frame_level", "per-example tf.data"), ("noframe_level", "tf.data with parse_example")],
)
def test_the_input_benchmark_compares_every_way_with_the_baseline(run_benchmark, level, baseline):
    arguments = (f"--{level}", "--num_videos=16", "--batch_size=8", "--rounds=1")
    results = ratios(run_benchmark("input", *arguments, "--format=json"))
    names = {baseline, "TensorFlow 1 queues", "dataset()", "batches()", "bare records"}
    assert names < set(results)
    assert "videos/s" in run_benchmark("input", *arguments)


def test_the_benchmark_of_slow_files_compares_programs_with_reading_and_predicting(run_benchmark):
    arguments = ("--num_files=3", "--num_videos=6", "--seconds_to_open=0.01", "--rounds=1")
    output = run_benchmark("slow_files", *arguments, "--seconds_to_predict=0.05")
    names = [line.split()[0] for line in output.splitlines()[1:5]]
    assert names == ["reading", "predicting", "eval.py", "inference.py"]


@pytest.mark.slow
def test_the_startup_benchmark_measures_every_program_and_a_plain_model(run_benchmark):
    arguments = ("--num_videos=130", "--rounds=1", "--format=json")
    results = json.loads(run_benchmark("startup", *arguments))["results"]
    assert set(results) == {"train.py", "train.py, update cached", "eval.py", "inference.py"}
    for name, row in results.items():
        assert row["ratio"] == pytest.approx(row["total"] / row["plain"], abs=1e-3)
        assert min(row["import"], row["building"], row["tracing"]) > 0
        assert (row["restoring"] > 0) == (not name.startswith("train.py"))


def test_the_time_of_a_part_leaves_out_the_parts_inside_it(benchmark_module, monkeypatch):
    program_parts = benchmark_module("program_parts")
    clock = [0.0]
    monkeypatch.setattr(program_parts.time, "process_time", lambda: clock[0])
    parts = program_parts.Parts()

    def spend(seconds):
        clock[0] += seconds

    def work():
        spend(1.0)
        inner()
        spend(2.0)
        inner()

    inner = parts.timed("inner", lambda: spend(10.0))
    parts.timed("outer", work)()
    assert parts.seconds == {"outer": 3.0, "inner": 20.0}


def test_the_metrics_benchmark_compares_with_heaps(run_benchmark):
    arguments = ("--num_videos=30", "--plain_videos=20", "--batch_size=10", "--rounds=1")
    results = ratios(run_benchmark("metrics", *arguments, "--format=json"))
    assert set(results) == {"project", "Python heaps"}


def test_the_storage_benchmark_prints_the_error_of_every_storage(run_benchmark):
    lines = run_benchmark("storage_error", "--sizes=512", "--num_frames=4000").splitlines()[1:]
    errors = [float(line.split()[-2].removesuffix("%")) for line in lines]
    fixed, feature, dimension, half = errors
    # A uniform error of one step is its width divided by sqrt(12).
    assert fixed == pytest.approx(100 * 4 / 255 / 12**0.5 * 512**0.5, rel=0.02)
    assert feature < dimension < 1
    assert half < 0.05


def test_heaps_agree_with_the_metrics_of_the_project(benchmark_module):
    metrics = benchmark_module("metrics")
    predictions, labels = metrics.random_batch(np.random.default_rng(3), 40)
    found = []
    for make in (metrics.project_metrics, metrics.heap_metrics):
        accumulate, get = make()
        accumulate(predictions, labels)
        found.append(get())
    ours, heaps = found
    assert heaps == pytest.approx({name: ours[name] for name in heaps}, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LFNLNetVLADModel", {}),
        ("LFNLNetRVLADModel", {}),
        ("SoftBoFModel", {"gating": True}),
        ("GruModel", {"gru_layers": 2}),
        ("NeXtVLADModel", {"normalize_frames": "l2"}),
        ("MixNeXtVLADModel", {"num_branches": 2}),
    ],
)
def test_plain_models_predict_the_same_as_the_models_of_the_project(
    benchmark_module, name, options
):
    model = small_models.build(name, **options)
    references.randomize(model)
    plain = benchmark_module("plain_models").PlainModel(model)
    inputs = tf.nest.map_structure(tf.constant, small_models.make_inputs(name, (5, 3, 1)))
    plain(inputs)
    copy_weights(model, plain)
    np.testing.assert_allclose(plain(inputs), model(inputs), rtol=1e-4, atol=1e-6)


def copy_weights(model, plain):
    if plain.classifier is None:
        copy_branches(model, plain.encoder)
        return
    classifier = plain.classifier
    for dense, linear in (
        (classifier.gates, model.classifier.gates),
        (classifier.experts, model.classifier.experts),
    ):
        # The project groups columns by mixture, the plain model by class.
        columns = [
            np.moveaxis(np.reshape(weight, (*weight.shape[:-1], -1, model.num_classes)), -1, -2)
            for weight in map(np.asarray, linear.weights)
        ]
        dense.set_weights([np.reshape(c, (*c.shape[:-2], -1)) for c in columns])
    copy_gating(model.classifier.prob_gating, classifier.gating)
    if hasattr(plain.encoder, "grus"):
        for gru, source in zip(plain.encoder.grus, model.stack.grus, strict=True):
            references.copy_gru(source, gru)
        return
    source, target = model.encoder, plain.encoder
    copy_norm(source.input_norm, target.norm)
    target.hidden.set_weights([source.hidden.kernel, source.hidden.bias])
    copy_gating(source.hidden_gating, target.gating)
    for pooling, plain_pooling in zip(source.poolings, target.poolings, strict=True):
        plain_pooling.assign.set_weights([pooling.assignment.kernel])
        copy_norm(pooling.assignment.norm, plain_pooling.norm)
        if plain_pooling.centers is not None:
            plain_pooling.centers.assign(pooling.centers)
        if plain_pooling.block is not None:
            for name in ("theta", "phi", "g", "out"):
                kernel = getattr(pooling.nonlocal_block, name)
                getattr(plain_pooling.block, name).set_weights([kernel])


def copy_branches(model, plain):
    heads = getattr(model.classifier, "branches", [model.classifier])
    for source, head, target in zip(model.encoders, heads, plain.branches, strict=True):
        for pooling, plain_pooling in zip(source.poolings, target.poolings, strict=True):
            plain_pooling.expand.set_weights(pooling.expansion.get_weights())
            attention = pooling.attention
            plain_pooling.attend.set_weights([attention.kernel, attention.bias])
            plain_pooling.assign.set_weights([pooling.assignment.kernel])
            copy_norm(pooling.assignment.norm, plain_pooling.norm)
            plain_pooling.centers.assign(pooling.centers)
        copy_norm(source.vlad_norm, target.vlad_norm)
        for linear, dense, norm in (
            (source.hidden, target.hidden, target.norm),
            (source.gating.squeeze, target.squeeze, target.squeeze_norm),
        ):
            dense.set_weights([linear.kernel])
            copy_norm(linear.norm, norm)
        target.excite.set_weights(source.gating.excite.get_weights())
        target.logistic.set_weights(head.get_weights())
    if len(plain.branches) > 1:
        copy_norm(model.gate.norm, plain.norm)
        plain.gate.set_weights(model.gate.logits.get_weights())


def copy_gating(source, target):
    assert (source is None) == (target is None)
    if source is not None:
        target.gate.set_weights([source.gate.kernel])
        copy_norm(source.gate.norm, target.norm)


def copy_norm(source, target):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    target.set_weights([getattr(source, name) for name in names])


@pytest.mark.slow
def test_few_videos_are_worth_more_to_a_run_that_starts_with_the_weights_of_another(
    run_benchmark, benchmark_module, monkeypatch, tmp_path
):
    monkeypatch.delitem(benchmark_module("fine_tuning").STARTS, "other run, without classifier")
    output = run_benchmark("fine_tuning", f"--output_dir={tmp_path / 'runs'}")
    header, *rows = output.splitlines()
    assert header.split() == ["start", "seed", "0", "seed", "1", "seed", "2", "mean"]
    scratch, tuned = (np.array(row.split()[-4:], float) for row in rows)
    assert np.all(tuned > scratch + 0.02)
