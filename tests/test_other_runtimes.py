"""Files for ONNX Runtime and LiteRT predict as TensorFlow, or are not written."""

import functools
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import frame_level_models
import other_runtimes
import programs
import registry
import saved_runs
import small_models
from ensemble import Ensemble
from other_runtimes import RUNTIMES
from predictor import Predictor
from run_config import RunConfig
from utils import InputError

# Batches of one and of seven videos: the numbers of real frames, and of all frames.
BATCHES = [((3,), 3), ((2,), 5), ((1,), 1), ((4,) * 7, 4), ((3, 2, 5, 1, 4, 2, 6), 9)]
# Converters take longer, the more operations a graph has.
SLOW = (*small_models.RELATIVES, "NetFVModel", "NeXtVLADModel", "TransformerModel")
marked = functools.partial(small_models.marked, slow=SLOW)
# Bytes with a range for each entry, and floats.
FRAME_FORMATS = {
    "ranges": {
        "quantization": {
            "rgb": {"min": [-1.0] * 6, "max": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]},
            "audio": {"min": 0.0, "max": 1.0},
        }
    },
    "float16": {"feature_dtypes": ("float16",)},
    "float32": {"feature_dtypes": ("float32",)},
    "mixed": {"feature_dtypes": ("float16", "uint8")},
}


def config_of(name, **other):
    given = {"hyperparameters": small_models.SMALL.get(name, {}), **other}
    sizes = {"num_classes": small_models.NUM_CLASSES, "feature_sizes": small_models.FEATURE_SIZES}
    return RunConfig(name, **sizes, **given)


@functools.cache
def model_of(name):
    """Returns a model with random weights, which both runtimes' tests share."""
    return saved_runs.make_model(config_of(name))


def videos(data, num_frames, length):
    inputs = other_runtimes.random_inputs(data, len(num_frames), length)
    if data.frame_level:
        inputs["num_frames"] = np.array(num_frames, np.int32)
    return inputs


def assert_predicts_as(predict, model, data):
    """Compares a runtime with the model called in TensorFlow."""
    for batch in BATCHES:
        inputs = videos(data, *batch)
        tensors = tf.nest.map_structure(tf.constant, inputs)
        expected = model(tensors if data.frame_level else tensors["features"])
        found = predict(inputs)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def load(name, folder):
    return RUNTIMES[name].load(str(folder / RUNTIMES[name].file_name))


# --- Predictions ---


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", [marked(name) for name in small_models.MODELS])
def test_every_model_predicts_as_in_tensorflow(name, runtime, tmp_path):
    model, data = model_of(name), config_of(name).data
    other_runtimes.write(runtime, Ensemble([model]), data, str(tmp_path))
    assert_predicts_as(load(runtime, tmp_path), model, data)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("frame_format", FRAME_FORMATS)
def test_frames_are_taken_as_the_records_store_them(frame_format, runtime, tmp_path):
    config = config_of("FrameLevelLogisticModel", **FRAME_FORMATS[frame_format])
    model = saved_runs.make_model(config)
    other_runtimes.write(runtime, Ensemble([model]), config.data, str(tmp_path))
    assert_predicts_as(load(runtime, tmp_path), model, config.data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train directories of two models that sample, with class names."""
    folder = tmp_path_factory.mktemp("runs")
    names = ["Cats", "Dogs", "Été", "Birds"]
    return [
        saved_runs.save_run(
            folder / name, config_of(name, hyperparameters={**small, "iterations": 2}), names=names
        )
        for name, small in small_models.SMALL.items()
        if name in ("DbofModel", "SoftBoFModel")
    ]


def export(output_dir, run_dirs, runtime, *more):
    given = (f"--format={runtime}", "--dtype=float32", "--num_samplings=0", *more)
    train_dirs = ",".join(map(str, run_dirs))
    programs.run("export_model", f"--train_dirs={train_dirs}", f"--output_dir={output_dir}", *given)
    return json.loads((output_dir / "manifest.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_program_exports_an_ensemble_with_its_class_names(runtime, runs, tmp_path):
    folder = tmp_path / "model"
    manifest = export(folder, runs, runtime, "--weights=3,1")
    assert manifest["format"] == runtime
    assert [model["weight"] for model in manifest["models"]] == [0.75, 0.25]
    predictor = Predictor([str(run) for run in runs], weights=[3, 1], num_samplings=0)
    predictor.restore()
    inputs = videos(predictor.data, (3, 2, 5, 1, 4, 2, 6), 9)
    expected = predictor.predict(inputs)
    np.testing.assert_allclose(load(runtime, folder)(inputs), expected, rtol=0, atol=1e-5)
    names = {"manifest.json", "vocabulary.csv", RUNTIMES[runtime].file_name}
    assert {path.name for path in folder.iterdir()} - {"config.pbtxt"} == names
    assert (folder / "vocabulary.csv").read_text() == (runs[0] / "vocabulary.csv").read_text()


def test_an_onnx_file_has_class_names_and_names_of_its_inputs(runs, tmp_path):
    import onnx

    export(tmp_path / "model", runs[:1], "onnx")
    model = onnx.load(tmp_path / "model" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    texts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert texts["class_names"] == ["Cats", "Dogs", "Été", "Birds"]
    assert texts["data"]["feature_sizes"] == list(small_models.FEATURE_SIZES)
    assert [value.name for value in model.graph.input] == ["frames", "num_frames"]
    assert [value.name for value in model.graph.output] == ["predictions"]


# --- Rejected ---


@pytest.mark.parametrize("flags", [(), ("--num_samplings=3",)])
def test_samplings_are_rejected_with_a_remedy(flags, tmp_path):
    # By default, an LSTM trained on samplings averages over several.
    config = config_of("LstmModel", hyperparameters={"lstm_cells": 2, "iterations": 2})
    run = saved_runs.save_run(tmp_path / "run", config)
    given = (f"--train_dir={run}", "--format=onnx", "--dtype=float32", *flags)
    with pytest.raises(InputError, match=r"every frame once, .* Add --num_samplings=0\."):
        programs.run("export_model", *given, f"--output_dir={tmp_path}/model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dtype=bfloat16", "stores matrices in float32. Add --dtype=float32"),
        ("--frozen_graph", "--frozen_graph is for --format=saved_model"),
        ("--mediapipe", "--mediapipe is for --format=saved_model"),
    ],
)
def test_options_of_the_saved_model_are_rejected(flag, message, runs, tmp_path):
    with pytest.raises(InputError, match=message):
        export(tmp_path / "model", runs[:1], "onnx", flag)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_package_is_named_with_the_command_to_install_it(
    runtime, runs, tmp_path, monkeypatch
):
    module = RUNTIMES[runtime].modules[-1]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}.* Run: pip install '\.\[{runtime}\]'"):
        export(tmp_path / "model", runs[:1], runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_operation_that_the_format_lacks_is_an_error(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @registry.register
    class ErfinvModel(frame_level_models.FrameLevelModel):
        """A model with a function that neither format has."""

        def encode(self, frames, frame_weights, training):
            return keras.ops.erfinv(keras.ops.mean(frames, axis=1))

    run = saved_runs.save_run(tmp_path / "run", config_of("ErfinvModel"))
    expected = rf"{RUNTIMES[runtime].name} does not run this model: .*Erfinv"
    with pytest.raises(InputError, match=expected):
        export(tmp_path / "model", [run], runtime)
    assert not (tmp_path / "model").exists()


def test_a_file_that_predicts_something_else_is_not_kept(runs, tmp_path, monkeypatch):
    load = RUNTIMES["onnx"].load
    wrong = RUNTIMES["onnx"]._replace(load=lambda path: lambda inputs: load(path)(inputs) + 0.01)
    monkeypatch.setitem(RUNTIMES, "onnx", wrong)
    with pytest.raises(InputError, match=r"differs from TensorFlow's by 0\.01"):
        export(tmp_path / "model", runs[:1], "onnx")
    assert not (tmp_path / "model").exists()


def test_weights_that_a_file_cannot_hold_are_rejected(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(other_runtimes, "_MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"cannot hold \d+ bytes of weights"):
        export(tmp_path / "model", runs[:1], "litert")


def test_eval_and_inference_reject_other_formats(runs, tmp_path):
    export(tmp_path / "model", runs[:1], "onnx")
    given = (f"--exported_model={tmp_path}/model", "--input_data_pattern=README.md")
    with pytest.raises(InputError, match=r"in the format onnx, .* --format=saved_model"):
        programs.run("inference", *given, f"--output_file={tmp_path}/predictions.csv")


# --- Graphs ---

SLICES = {
    "first": lambda x: x[:, None],
    "last": lambda x: x[..., None],
    "several": lambda x: x[None, :, None, 1:3],
    "after_an_ellipsis": lambda x: x[..., None, :, None],
    "around_an_index": lambda x: x[None, 1, ..., None, 1:],
    "with_strides": lambda x: x[::2, None, ..., ::-1, None],
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_with_new_axes_are_rewritten_to_the_same_values(name, tmp_path):
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    function = tf.function(lambda x: {"y": SLICES[name](x)}, autograph=False)
    signature = function.get_concrete_function(tf.TensorSpec([None, None, 4], name="x"))
    tf.saved_model.save(tf.Module(), tmp_path, signatures={"slice": signature})
    path = tmp_path / "saved_model.pb"
    other_runtimes._rewrite_functions(str(path))
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for function in saved.meta_graphs[0].graph_def.library.function:
        assert not [node for node in function.node_def if "new_axis_mask" in node.attr]
    found = tf.saved_model.load(tmp_path).signatures["slice"](x=tf.constant(x))["y"]
    np.testing.assert_array_equal(found, SLICES[name](x))
