"""Exported models: predictions, content, rejected input, and use with only TensorFlow."""

import gc
import glob
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import documents
import eval_util
import export_model
import frame_level_models
import programs
import registry
import sample_records
import serving
import small_models
from ensemble import Ensemble
from predictor import ExportedPredictor, Predictor, read_manifest
from run_config import RunConfig
from utils import InputError

NUM_CLASSES = 10


def export(output_dir, *more):
    programs.run("export_model", f"--output_dir={output_dir}", *more)
    return json.loads((output_dir / "manifest.json").read_text())


def records_of(pattern):
    return [
        record.numpy()
        for path in sorted(glob.glob(pattern))
        for record in tf.data.TFRecordDataset(path)
    ]


def in_batches(predict, reader, batch_size=16):
    """Returns the predictions for all videos, a dict from id to probabilities."""
    found = {}
    for batch in reader.batches(batch_size):
        found |= dict(zip(batch.video_ids, predict(batch.inputs), strict=True))
    return found


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(np.abs(one[video] - other[video]).max() for video in one)


def in_process(train_dirs, pattern, **options):
    predictor = Predictor([str(path) for path in train_dirs], **options)
    predictor.restore()
    return in_batches(predictor.predict, predictor.data.reader(pattern))


def of_export(export_dir, pattern):
    predictor = ExportedPredictor(str(export_dir))
    return in_batches(predictor.predict, predictor.data.reader(pattern))


def gap_of(predictions, export_dir, pattern):
    """Returns the GAP of predictions by video."""
    labels = {}
    for batch in read_manifest(str(export_dir))[1].reader(pattern).batches(16):
        labels |= dict(zip(batch.video_ids, batch.labels, strict=True))
    scores = np.array(list(predictions.values()))
    return eval_util.calculate_gap(scores, np.array([labels[video] for video in predictions]))


def assert_best_classes(answer, predictions, top_k, **tolerance):
    """Compares an answer of the signature for records with all probabilities, by video."""
    answer = {name: values.numpy() for name, values in answer.items()}
    assert answer["class_indexes"].shape == (len(answer["video_id"]), top_k)
    for video, classes, scores in zip(
        *(answer[name] for name in ("video_id", "class_indexes", "predictions")), strict=True
    ):
        probabilities = predictions[video.decode()]
        np.testing.assert_allclose(scores, np.sort(probabilities)[::-1][:top_k], **tolerance)
        np.testing.assert_allclose(scores, probabilities[classes], **tolerance)


def untrained_run(train_dir, model, **hyperparameters):
    """Writes a train directory with the initial weights of a model, as of step 1."""
    config = RunConfig(
        model, hyperparameters=hyperparameters, num_classes=NUM_CLASSES, feature_sizes=(8, 4)
    )
    keras.utils.set_random_seed(0)
    weights = checkpoints.weights(config.build_model())
    config.save(str(train_dir))
    checkpoints.new_manager(str(train_dir), tf.train.Checkpoint(weights=weights)).save(1)
    return train_dir


@pytest.fixture(scope="module")
def loaded(exported):
    """The exported model, loaded by TensorFlow."""
    yield tf.saved_model.load(str(exported))
    gc.collect()


@pytest.fixture(scope="module")
def exported_predictions(exported, frame_data):
    return of_export(exported, frame_data)


# --- Predictions ---


def test_float32_equals_the_model_in_process(trained, exported_sampling, frame_data):
    expected = in_process([trained], frame_data, num_samplings=5)
    assert largest_difference(of_export(exported_sampling, frame_data), expected) < 1e-6


@pytest.mark.slow
def test_float32_equals_the_model_in_process_for_netvlad(trained_netvlad, frame_data, tmp_path):
    export(tmp_path / "model", f"--train_dir={trained_netvlad}", "--dtype=float32", "--seed=3")
    expected = in_process([trained_netvlad], frame_data, seed=3)
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 1e-6


def test_a_record_gets_the_same_prediction_wherever_it_stands(exported_sampling, frame_data):
    served = tf.saved_model.load(str(exported_sampling)).signatures["serving_default"]
    records = records_of(frame_data)[:5]
    for record in records[:2]:
        single = served(tf.constant([record]))
        for batch, rows in (([record] * 8, range(8)), ([*records, record], [-1])):
            answer = served(tf.constant(batch))
            for row in rows:
                for key in ("class_indexes", "predictions"):
                    np.testing.assert_allclose(answer[key][row], single[key][0], rtol=1e-5)


def test_several_samplings_are_not_one(trained, exported_sampling, frame_data):
    one = in_process([trained], frame_data, num_samplings=1)
    assert largest_difference(of_export(exported_sampling, frame_data), one) > 1e-3


def test_a_video_level_model_predicts_the_same_in_both_signatures(
    trained_moe, video_data, tmp_path
):
    expected = in_process([trained_moe], video_data)
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 4e-2)):
        folder = tmp_path / dtype
        export(folder, f"--train_dir={trained_moe}", f"--dtype={dtype}")
        predictions = of_export(folder, video_data)
        assert largest_difference(predictions, expected) < tolerance
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    answer = served(tf.constant(records_of(video_data)[:5]))
    assert answer["video_id"].numpy().tolist() == [b"v0_0", b"v0_1", b"v0_2", b"v0_3", b"v0_4"]
    assert_best_classes(answer, predictions, NUM_CLASSES, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_changes_predictions_and_gap_only_slightly(trained_netvlad, frame_data, tmp_path):
    expected, folder = (
        in_process([trained_netvlad], frame_data, num_samplings=0),
        tmp_path / "model",
    )
    export(folder, f"--train_dir={trained_netvlad}", "--num_samplings=0")
    found = of_export(folder, frame_data)
    assert 0 < largest_difference(found, expected) < 2e-2
    gaps = [gap_of(values, folder, frame_data) for values in (found, expected)]
    assert abs(gaps[0] - gaps[1]) <= 5e-4
    check_frozen_weights(folder)


def test_the_signature_for_records_returns_the_best_classes_of_the_one_for_frames(
    loaded, exported_predictions, frame_data
):
    records = records_of(frame_data)
    answer = loaded.signatures["serving_default"](tf.constant(records))
    assert len(records) == len(answer["video_id"])
    assert_best_classes(answer, exported_predictions, 3, atol=2e-3)


def test_the_layer_of_the_document_makes_a_keras_model(exported, loaded, frame_data):
    code = documents.python_of("docs/export.md", "class ExportedModel")
    scope = {}
    code = code.replace("1152", "12").replace('"exported"', repr(str(exported)))
    exec(compile(code, "export.md", "exec"), scope)
    reader = read_manifest(str(exported))[1].reader(frame_data)
    found = scope["model"].predict(reader.dataset(batch_size=160), steps=1, verbose=0)
    (batch,) = reader.batches(160)
    inputs = {name: tf.constant(values) for name, values in batch.inputs.items()}
    expected = loaded.signatures["predict"](**inputs)["predictions"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    served = keras.layers.TFSMLayer(str(exported), call_endpoint="serving_default")
    assert served(tf.constant([frame_record()]))["predictions"].shape == (1, 3)


def test_the_programs_take_an_exported_model(exported, exported_predictions, frame_data, tmp_path):
    metrics = programs.evaluate(f"--exported_model={exported}", f"--eval_data_pattern={frame_data}")
    assert metrics["step"] == 100
    assert metrics["gap"] > 2 * metrics["class_prior_gap"]
    found = programs.predictions(
        tmp_path / "p.csv", NUM_CLASSES, exported_model=exported, input_data_pattern=frame_data
    )
    assert largest_difference(found, exported_predictions) < 1e-5


@pytest.mark.slow
def test_only_tensorflow_is_needed_to_load_and_call_it(exported, frame_data, tmp_path):
    np.save(tmp_path / "records.npy", np.array(records_of(frame_data)[:6], object))
    code = f"""
import sys
import numpy as np
import tensorflow as tf
records = np.load({str(tmp_path / "records.npy")!r}, allow_pickle=True).tolist()
loaded = tf.saved_model.load({str(exported)!r})
answer = loaded.signatures["serving_default"](tf.constant(records))
frames = np.zeros([2, 5, 12], np.uint8)
more = loaded.signatures["predict"](frames=tf.constant(frames), num_frames=tf.constant([5, 2]))
np.savez({str(tmp_path / "answer.npz")!r}, ids=answer["video_id"].numpy(),
         scores=answer["predictions"].numpy(), all=more["predictions"].numpy())
project = {sorted(path.stem for path in programs.ROOT.glob("*.py"))!r}
assert not set(project) & set(sys.modules), "project code was imported"
"""
    result = programs.run_command("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answer = np.load(tmp_path / "answer.npz", allow_pickle=True)
    assert answer["scores"].shape == (6, 3)
    assert answer["all"].shape == (2, NUM_CLASSES)


# --- Content ---


def check_frozen_weights(export_dir):
    """Checks that matrices are bfloat16 and batch normalization is folded into them."""
    stored = tf.train.load_checkpoint(str(export_dir / "variables" / "variables"))
    shapes, dtypes = stored.get_variable_to_shape_map(), stored.get_variable_to_dtype_map()
    for name, shape in shapes.items():
        if len(shape) >= 2:
            assert dtypes[name] == tf.bfloat16, name
    assert not any("optimizer" in name for name in dtypes)
    # Means and variances are folded into the matrices and offsets, except those of the input.
    assert sum(shape == [12] for shape in shapes.values()) <= 4


def test_no_weight_is_trainable_and_matrices_are_bfloat16(exported, loaded):
    check_frozen_weights(exported)
    assert not [variable for variable in loaded.kept_variables if variable.trainable]


def test_signatures_declare_the_shapes_of_their_outputs(loaded):
    shapes = {
        name: {key: spec.shape.as_list() for key, spec in signature.structured_outputs.items()}
        for name, signature in loaded.signatures.items()
    }
    assert shapes == {
        "predict": {"predictions": [None, 10]},
        "predict_floats": {"predictions": [None, 10]},
        "embed": {"embeddings": [None, 8]},
        "serving_default": {
            "video_id": [None],
            "class_indexes": [None, 3],
            "predictions": [None, 3],
        },
    }


def test_the_manifest_states_origin_settings_and_size(exported, trained):
    manifest = json.loads((exported / "manifest.json").read_text())
    (model,) = manifest["models"]
    assert model["step"] == 100
    assert model["weight"] == 1.0
    assert model["config"]["model"] == "DbofModel"
    assert model["config"]["hyperparameters"]["dbof_cluster_size"] == 16
    assert model["dtype"] == "bfloat16"
    assert model["num_samplings"] == 0
    assert manifest["data"]["feature_sizes"] == [8, 4]
    assert set(manifest["versions"]) == {"tensorflow", "keras", "numpy", "python"}
    assert len(manifest["digest"]) == 16
    size = sum(path.stat().st_size for path in exported.rglob("*") if path.is_file())
    assert manifest["bytes"] == size - (exported / "manifest.json").stat().st_size
    weights = programs.weights_of(trained)
    assert manifest["parameters"] == sum(weight.size for weight in weights.values())


@pytest.mark.slow
def test_exports_that_predict_differently_have_different_digests(trained_moe, tmp_path):
    given = ("--dtype=float32", f"--train_dirs={trained_moe},{trained_moe},{trained_moe}")
    settings = [(), ("--weights=0,1,0",), ("--top_k=3",)]
    digests = [
        export(tmp_path / str(number), *given, *more)["digest"]
        for number, more in enumerate(settings)
    ]
    assert len(set(digests)) == len(settings)


def change_step(path):
    manifest = json.loads(path.read_text())
    manifest["models"][0]["step"] += 1
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("saved_model.pb", lambda path: sample_records.flip_bit(path, 200)),
        (
            "variables/variables.data-00000-of-00001",
            lambda path: sample_records.flip_bit(path, 200),
        ),
        ("manifest.json", change_step),
        ("assets/more.csv", pathlib.Path.touch),
        ("frozen_graph.pb", pathlib.Path.unlink),
    ],
)
def test_changed_files_are_noticed_on_request(exported, frame_data, tmp_path, name, change):
    model = shutil.copytree(exported, tmp_path / "model")
    assert read_manifest(str(model), verify_digest=True) == read_manifest(str(model))
    (model / "assets").mkdir(exist_ok=True)
    change(model / name)
    expected = r"has the digest \w+, but manifest\.json states \w+: its files have changed"
    with pytest.raises(InputError, match=expected):
        ExportedPredictor(str(model), verify_digest=True)
    given = (f"--exported_model={model}", f"--input_data_pattern={frame_data}", "--verify_digest")
    with pytest.raises(InputError, match=expected):
        programs.run("inference", *given, f"--output_file={tmp_path}/p.csv")


def test_members_without_weight_are_left_out(trained_moe, video_data, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    other = untrained_run(tmp_path / "other", "LogisticModel")
    given = (f"--train_dirs={other},{trained_moe}", "--weights=0,2")
    manifest = export(tmp_path / "model", *given, "--dtype=float32")
    assert f"{other} has weight 0 and is left out" in caplog.text
    assert [(model["step"], model["weight"]) for model in manifest["models"]] == [(180, 1.0)]
    expected = in_process([trained_moe], video_data)
    assert largest_difference(of_export(tmp_path / "model", video_data), expected) < 1e-6
    ensemble = in_process([other, trained_moe], video_data, weights=[0, 2])
    assert largest_difference(ensemble, expected) == 0


def test_moving_averages_and_class_names_can_be_exported(trained_moe, video_data, tmp_path):
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("Index,Name\n0,Cats\n")
    folder = tmp_path / "model"
    given = (f"--train_dir={trained_moe}", "--use_ema", "--dtype=float32")
    export(folder, *given, f"--class_names={vocabulary}")
    expected = in_process([trained_moe], video_data, use_ema=True)
    assert largest_difference(of_export(folder, video_data), expected) < 1e-6
    assert largest_difference(in_process([trained_moe], video_data), expected) > 1e-5
    saved = tf.saved_model.load(str(folder))
    with open(saved.class_names.asset_path.numpy()) as file:
        assert file.read() == "Index,Name\n0,Cats\n"
    vocabulary.write_text("Index,Name\n0,Cats\n0,Dogs\n")
    for path, message in (("nowhere", "cannot read .* in nowhere"), (vocabulary, "row 3 of .*csv")):
        with pytest.raises(InputError, match=message):
            export(tmp_path / "other", *given, f"--class_names={path}")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_models_of_different_dtypes_are_exported_together(trained, frame_data, tmp_path):
    gru, folder = untrained_run(tmp_path / "gru", "GruModel", gru_cells=8), tmp_path / "model"
    given = (f"--train_dirs={trained},{gru}", "--num_samplings=0", "--bfloat16_layers=classifier")
    manifest = export(folder, *given, "--dtype=int8,float32")
    assert [model["dtype"] for model in manifest["models"]] == ["int8", "float32"]
    assert manifest["bfloat16_layers"] == ["classifier"]
    stored = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    dtypes = {
        tuple(shape): stored.get_variable_to_dtype_map()[name]
        for name, shape in stored.get_variable_to_shape_map().items()
    }
    assert dtypes[12, 16] == tf.int8  # Clusters of the first model.
    assert dtypes[3 * NUM_CLASSES, 8] == tf.bfloat16  # Its classifier, transposed.
    assert dtypes[8, 16] == tf.float32  # Gates of the GRU.
    expected = in_process([trained, gru], frame_data, num_samplings=0)
    found = of_export(folder, frame_data)
    assert 0 < largest_difference(found, expected) < 2e-2
    metrics = programs.evaluate(f"--exported_model={folder}", f"--eval_data_pattern={frame_data}")
    assert metrics["gap"] == pytest.approx(gap_of(expected, folder, frame_data), abs=2e-3)


@pytest.mark.slow
def test_a_frozen_graph_in_int8_predicts_the_same(trained, frame_data, tmp_path):
    flags = ("--num_samplings=0", "--frozen_graph", "--dtype=int8")
    export(tmp_path / "model", f"--train_dir={trained}", *flags)
    assert_frozen_graph_predicts(
        tmp_path / "model", of_export(tmp_path / "model", frame_data), frame_data
    )


def test_a_frozen_graph_predicts_the_same(exported, exported_predictions, frame_data):
    assert_frozen_graph_predicts(exported, exported_predictions, frame_data)


def assert_frozen_graph_predicts(exported, expected, frame_data):
    graph = tf.compat.v1.GraphDef.FromString((exported / "frozen_graph.pb").read_bytes())
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    assert not wrapped.variables
    predict = wrapped.prune(["frames:0", "num_frames:0"], "predictions:0")
    frozen = in_batches(
        lambda inputs: predict(tf.constant(inputs["frames"]), tf.constant(inputs["num_frames"])),
        read_manifest(str(exported))[1].reader(frame_data),
    )
    assert largest_difference(frozen, expected) < 1e-6


# --- Ensembles and other models ---


@pytest.mark.slow
def test_an_ensemble_is_the_weighted_mean_of_its_members(trained, frame_data, tmp_path):
    gru = untrained_run(tmp_path / "gru", "GruModel", gru_cells=8)
    train_dirs = [trained, gru]
    given = (f"--train_dirs={trained},{gru}", "--weights=3,1", "--num_samplings=0")
    manifest = export(tmp_path / "model", *given, "--dtype=float32")
    assert [model["weight"] for model in manifest["models"]] == [0.75, 0.25]
    assert [model["step"] for model in manifest["models"]] == [100, 1]
    one, other = (in_process([path], frame_data, num_samplings=0) for path in train_dirs)
    expected = {video: 0.75 * one[video] + 0.25 * other[video] for video in one}
    found = of_export(tmp_path / "model", frame_data)
    assert largest_difference(found, expected) < 1e-6
    options = {"train_dirs": f"{trained},{gru}", "weights": "3,1", "num_samplings": 0}
    direct = programs.predictions(
        tmp_path / "p.csv", NUM_CLASSES, input_data_pattern=frame_data, **options
    )
    assert largest_difference(direct, expected) < 1e-5
    metrics = programs.evaluate(f"--eval_data_pattern={frame_data}", *given)
    gap = gap_of(found, tmp_path / "model", frame_data)
    assert metrics["gap"] == pytest.approx(gap, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TransformerModel", "NetFVModel", "GatedDbofModel"])
def test_a_model_of_every_kind_predicts_the_same_when_exported(name, frame_data, tmp_path):
    small = {**small_models.SMALL[name], "iterations": 4}
    train_dir = untrained_run(tmp_path / "run", name, **small)
    export(tmp_path / "model", f"--train_dir={train_dir}", "--dtype=float32", "--num_samplings=3")
    expected = in_process([train_dir], frame_data, num_samplings=3)
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 1e-6


@pytest.mark.slow
def test_fitted_weights_favor_the_better_model_and_every_member_is_logged(
    trained_moe, video_data, tmp_path, caplog
):
    untrained = untrained_run(tmp_path / "run", "LogisticModel")
    caplog.set_level("INFO", logger="absl")
    given = (f"--train_dirs={untrained},{trained_moe}", f"--eval_data_pattern={video_data}")
    manifest = export(tmp_path / "model", *given, "--fit_weights", "--dtype=bfloat16,int8")
    weights = {model["config"]["model"]: model["weight"] for model in manifest["models"]}
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) > 0  # Members without weight are left out.
    assert weights["MoeModel"] > 0.8
    members = [f"{train_dir}: GAP@20" for train_dir in (untrained, trained_moe)]
    for text in ("equal weights: GAP@20", *members, "fitted"):
        assert text in caplog.text


@pytest.mark.slow
def test_a_model_of_plain_keras_layers_is_exported(frame_data, tmp_path, monkeypatch):
    code = documents.own_models_python("class AttentionModel")
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    exec(compile(code, "my_models.py", "exec"), {"__name__": "my_models"})
    train_dir = untrained_run(tmp_path / "run", "AttentionModel")
    expected = in_process([train_dir], frame_data)
    export(tmp_path / "model", f"--train_dir={train_dir}")
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 5e-3


@pytest.mark.slow
def test_layers_without_names_can_be_restored_repeatedly(frame_data, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @registry.register
    class UnnamedModel(frame_level_models.FrameLevelModel):
        """A model with a layer that Keras names."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = keras.layers.Dense(3)

        def encode(self, frames, frame_weights, training):
            return self.hidden(keras.ops.sum(frames, axis=1))

    train_dir = untrained_run(tmp_path / "run", "UnnamedModel")
    predictor = Predictor([str(train_dir)] * 2)
    results = []
    for _ in range(2):
        predictor.restore()
        results.append(in_batches(predictor.predict, predictor.data.reader(frame_data)))
    assert largest_difference(*results) == 0
    export(tmp_path / "model", f"--train_dir={train_dir}", "--dtype=float32")
    assert largest_difference(of_export(tmp_path / "model", frame_data), results[0]) < 1e-2


# --- Rejected input ---


@pytest.mark.parametrize(
    ("frames", "num_frames", "message"),
    [
        ((2, 5, 12), [5], "frames and num_frames must have the same number of videos"),
        ((2, 5, 12), [5, 6], "num_frames must be at most the frames given"),
        ((2, 5, 12), [5, 0], "num_frames must be at least 1"),
        ((2, 5, 11), [5, 5], "frames must have 12 entries each"),
    ],
)
def test_frames_of_the_wrong_form_are_rejected(loaded, frames, num_frames, message):
    predict = loaded.signatures["predict"]
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError), match=message):
        predict(frames=tf.zeros(frames, tf.uint8), num_frames=tf.constant(num_frames, tf.int32))


def frame_record(rgb=8, audio=4, num_frames=3, num_audio=None):
    return sample_records.frame_record(
        "a", [1], rgb=[bytes(rgb)] * num_frames, audio=[bytes(audio)] * (num_audio or num_frames)
    )


def floats_as_frames():
    record = tf.train.SequenceExample.FromString(frame_record())
    record.feature_lists.feature_list["rgb"].feature[1].float_list.value.append(1.0)
    return record.SerializeToString()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (frame_record(rgb=9), r"videos \[2\] .*: every frame of rgb must have 8 bytes"),
        (frame_record(num_audio=2), r"videos \[2\] .*same number of frames .audio differs"),
        (frame_record(num_frames=0), r"videos \[2\] .*: num_frames must be at least 1"),
        (floats_as_frames(), "video 2, Feature list: rgb, .* Expected type: string"),
        (b"", "video 2, Feature list '(rgb|audio)' is required"),
        (b"\xff\xff", "Invalid protocol message.* video 2"),
        # Its last length has five bytes. TensorFlow's error quotes the record, here with 0 and 200.
        (frame_record() + b"\x0a\xff\xff\xff\xff\x7f", "video +2 of the batch"),
        (b"\x32\x01\xc8\x0a\xff\xff\xff\xff\x7f", "video +2 of the batch"),
    ],
)
def test_a_record_of_the_wrong_form_is_rejected_by_its_place(loaded, record, message):
    serve = loaded.signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(tf.constant([frame_record(), frame_record(), record, frame_record()]))


@pytest.fixture(scope="module")
def serve_vectors():
    """The signature for records of a video-level model."""
    return served_vectors()["serving_default"]


def served_vectors():
    config = RunConfig("LogisticModel", num_classes=NUM_CLASSES, feature_sizes=(8, 4))
    return serving.make_module(Ensemble([config.build_model()]), config.data, 3).served


def vector_record(rgb=(0.5,) * 8, audio=(0.5,) * 4):
    return sample_records.video_record("a", [1], mean_rgb=rgb, mean_audio=audio)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (vector_record(rgb=[0.5] * 7), r"videos \[1\] .*: mean_rgb must have 8 floats"),
        (vector_record(audio=[]), r"videos \[1\] .*: mean_audio must have 4 floats"),
        (vector_record(audio=[np.nan] * 4), r"videos \[1\] .*: features must be finite"),
        (vector_record()[:-2], "Invalid protocol message.* video 1"),
        (b"\xff\xff", "Invalid protocol message.* video 1"),
    ],
)
def test_a_vector_of_the_wrong_form_is_rejected_by_its_place(serve_vectors, record, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve_vectors(tf.constant([vector_record(), record, vector_record()]))
    assert serve_vectors(tf.constant([vector_record()]))["predictions"].shape == (1, 3)
    assert serve_vectors(tf.constant([], tf.string))["predictions"].shape == (0, 3)


def test_features_that_are_not_finite_are_rejected_by_their_place():
    features = np.zeros([3, 12], np.float32)
    features[1, 5] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"videos \[1\] .*must be finite"):
        served_vectors()["predict"](features=tf.constant(features))


def test_empty_batches_and_single_frames_are_accepted(loaded):
    predict = loaded.signatures["predict"]
    empty = predict(frames=tf.zeros([0, 4, 12], tf.uint8), num_frames=tf.zeros([0], tf.int32))
    assert empty["predictions"].shape == (0, NUM_CLASSES)
    nothing = loaded.signatures["serving_default"](tf.constant([], tf.string))
    assert nothing["predictions"].shape == (0, 3)
    answer = loaded.signatures["serving_default"](tf.constant([frame_record(num_frames=1)]))
    assert answer["predictions"].shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--train_dir or --train_dirs must be given"),
        (("--train_dir={run}", "--weights=1,2"), "--weights needs --train_dirs"),
        (("--train_dirs={run},{run}", "--weights=1"), "one weight per model: 2. Received: 1"),
        (("--train_dirs={run},{run}", "--weights=1,-1"), "0 or more, and one of them above 0"),
        (("--train_dirs={run},{run}", "--weights=0,0"), "0 or more, and one of them above 0"),
        (("--train_dirs={run},{run}", "--weights=a,b"), "--weights must be numbers"),
        (("--train_dirs={run},{run}", "--frozen_graph"), "--frozen_graph is for one model"),
        (("--train_dirs={run},{run}", "--checkpoint=40"), "uses the newest of each"),
        (("--train_dir={run}", "--dtype=int8,int8"), "for each of 1 runs. Received: int8, int8"),
        (("--train_dir={run}", "--dtype=int4"), "one of float32, bfloat16, int8. Received: int4"),
        (
            ("--train_dir={run}", "--dtype=int8", "--bfloat16_layers=hiden"),
            "the models have no layer hiden. model_info.py lists layers",
        ),
        (("--train_dir={run}", "--num_samplings=-1"), "--num_samplings must be 0 or more"),
        (("--train_dir={run}", "--use_ema"), "not trained with --ema_decay"),
        (("--train_dir={run}", "--fit_weights", "--eval_data_pattern=x"), "several --train_dirs"),
        (("--train_dir={run}", "--eval_data_pattern=x"), "for --fit_weights, which is not given"),
        (("--train_dir=/no/such/run",), r"model_flags\.json"),
    ],
)
def test_bad_flags_are_rejected_and_leave_no_files(trained, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        export(tmp_path / "model", *(argument.format(run=trained) for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_models_of_other_data_are_rejected_by_name(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    config = json.loads((trained / "model_flags.json").read_text())
    (other / "model_flags.json").write_text(json.dumps({**config, "num_classes": 11}))
    with pytest.raises(InputError, match=r"num_classes: 10 and 11") as error:
        export(tmp_path / "model", f"--train_dirs={trained},{other}")
    assert str(trained) in str(error.value)
    assert str(other) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_an_existing_output_directory_is_rejected(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path, f"--train_dir={trained}")


def test_a_failed_export_leaves_no_files(trained_moe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(export_model.files, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        export(tmp_path / "model", f"--train_dir={trained_moe}")
    assert not list(tmp_path.iterdir())


def test_flags_that_the_graph_has_fixed_are_rejected_with_an_exported_model(exported, frame_data):
    given = (f"--exported_model={exported}", f"--eval_data_pattern={frame_data}")
    for value in (3, 1):  # Also the default.
        with pytest.raises(InputError, match="--num_samplings cannot be given with --exported_mo"):
            programs.evaluate(*given, f"--num_samplings={value}")


def test_a_directory_without_an_exported_model_is_rejected(trained, frame_data, exported, tmp_path):
    data = f"--eval_data_pattern={frame_data}"
    with pytest.raises(InputError, match=r"no manifest\.json"):
        programs.evaluate(f"--exported_model={trained}", data)
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot load"):
        programs.evaluate(f"--exported_model={tmp_path / 'broken'}", data)
