"""Exported models: what they predict, refuse and contain, and that they need TensorFlow alone."""

import glob
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import documents
import export_model
import frame_level_models
import programs
import registry
import sample_records
from predictor import ExportedPredictor, Predictor
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
    """Predictions of all videos: a dict from id to probabilities."""
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


@pytest.fixture(scope="module")
def trained_moe(tmp_path_factory, video_data):
    train_dir = tmp_path_factory.mktemp("moe") / "run"
    programs.run(
        "train",
        "--model=MoeModel",
        "--moe_prob_gating",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={video_data}",
        *programs.SMALL_DATA,
        "--batch_size=20",
        "--num_epochs=20",
        "--base_learning_rate=0.02",
    )
    return train_dir


@pytest.fixture(scope="module")
def trained_gru(tmp_path_factory, frame_data):
    train_dir = tmp_path_factory.mktemp("gru") / "run"
    programs.run(
        "train",
        "--model=GruModel",
        "--gru_cells=8",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={frame_data}",
        *programs.SMALL_DATA,
        "--batch_size=16",
        "--num_epochs=3",
        "--base_learning_rate=0.01",
    )
    return train_dir


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained_netvlad):
    """An LFNLNetVLADModel in bfloat16, without sampling."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(folder, f"--train_dir={trained_netvlad}", "--num_samplings=0", "--top_k=3")
    return folder


def test_float32_is_the_model_in_process(
    trained_netvlad, trained, trained_gru, frame_data, tmp_path
):
    for train_dir in (trained_netvlad, trained, trained_gru):
        folder = tmp_path / train_dir.parent.name
        export(folder, f"--train_dir={train_dir}", "--dtype=float32", "--seed=3")
        expected = in_process([train_dir], frame_data, seed=3)
        assert largest_difference(of_export(folder, frame_data), expected) < 1e-6


def test_a_video_level_model_is_exported_too(trained_moe, video_data, tmp_path):
    expected = in_process([trained_moe], video_data)
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 2e-2)):
        folder = tmp_path / dtype
        export(folder, f"--train_dir={trained_moe}", f"--dtype={dtype}")
        assert largest_difference(of_export(folder, video_data), expected) < tolerance
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.signatures["serving_default"](tf.constant(records_of(video_data)[:5]))
    assert answer["video_id"].numpy().tolist() == [b"v0_0", b"v0_1", b"v0_2", b"v0_3", b"v0_4"]
    for video, classes, scores in zip(
        answer["video_id"].numpy(), answer["class_indexes"], answer["predictions"], strict=True
    ):
        np.testing.assert_allclose(
            scores, of_export(folder, video_data)[video.decode()][classes.numpy()], rtol=1e-5
        )


def test_bfloat16_changes_predictions_and_gap_little(trained_netvlad, exported, frame_data):
    expected = in_process([trained_netvlad], frame_data, num_samplings=0)
    assert 0 < largest_difference(of_export(exported, frame_data), expected) < 2e-2
    data = f"--eval_data_pattern={frame_data}"
    gaps = [
        programs.evaluate(data, *flags)["gap"]
        for flags in (
            (f"--train_dir={trained_netvlad}", "--num_samplings=0"),
            (f"--exported_model={exported}",),
        )
    ]
    assert abs(gaps[0] - gaps[1]) <= 5e-4


def test_records_give_the_best_classes_of_what_frames_give(exported, frame_data):
    expected = of_export(exported, frame_data)
    loaded = tf.saved_model.load(str(exported))
    records = records_of(frame_data)
    answer = loaded.signatures["serving_default"](tf.constant(records))
    assert len(records) == len(answer["video_id"])
    for video, classes, scores in zip(
        answer["video_id"].numpy(),
        answer["class_indexes"].numpy(),
        answer["predictions"].numpy(),
        strict=True,
    ):
        probabilities = expected[video.decode()]
        assert len(classes) == 3
        np.testing.assert_allclose(scores, np.sort(probabilities)[:-4:-1], atol=2e-3)
        np.testing.assert_allclose(scores, probabilities[classes], atol=2e-3)


def test_the_programs_take_an_exported_model(exported, frame_data, tmp_path):
    metrics = programs.evaluate(f"--exported_model={exported}", f"--eval_data_pattern={frame_data}")
    assert metrics["step"] == 120
    assert metrics["gap"] > 2 * metrics["class_prior_gap"]
    found = programs.predictions(
        tmp_path / "p.csv", NUM_CLASSES, exported_model=exported, input_data_pattern=frame_data
    )
    expected = of_export(exported, frame_data)
    assert largest_difference(found, expected) < 1e-5


def test_tensorflow_alone_loads_and_calls_it(exported, frame_data, tmp_path):
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


def test_nothing_in_it_is_trainable_and_matrices_are_bfloat16(exported):
    stored = tf.train.load_checkpoint(str(exported / "variables" / "variables"))
    dtypes = stored.get_variable_to_dtype_map()
    for name, shape in stored.get_variable_to_shape_map().items():
        if len(shape) >= 2:
            assert dtypes[name] == tf.bfloat16, name
    loaded = tf.saved_model.load(str(exported))
    assert not [variable for variable in loaded.kept_variables if variable.trainable]
    assert not any("optimizer" in name for name in dtypes)
    # Means and variances are folded into the matrices and offsets; those of the input stay.
    vectors = [shape for shape in stored.get_variable_to_shape_map().values() if shape == [12]]
    assert len(vectors) <= 4


def test_signatures_tell_the_shapes_of_their_outputs(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    shapes = {
        name: {key: spec.shape.as_list() for key, spec in signature.structured_outputs.items()}
        for name, signature in signatures.items()
    }
    assert shapes == {
        "predict": {"predictions": [None, 10]},
        "serving_default": {
            "video_id": [None],
            "class_indexes": [None, 3],
            "predictions": [None, 3],
        },
    }


def test_the_manifest_tells_where_it_comes_from(exported, trained_netvlad):
    manifest = json.loads((exported / "manifest.json").read_text())
    (model,) = manifest["models"]
    assert model["step"] == 120
    assert model["weight"] == 1.0
    assert model["config"]["model"] == "LFNLNetVLADModel"
    assert model["config"]["hyperparameters"]["netvlad_cluster_size"] == "4,3"
    assert manifest["dtype"] == "bfloat16"
    assert manifest["num_samplings"] == 0
    assert manifest["data"]["feature_sizes"] == [8, 4]
    assert set(manifest["versions"]) == {"tensorflow", "keras", "numpy", "python"}
    assert len(manifest["digest"]) == 16
    size = sum(path.stat().st_size for path in exported.rglob("*") if path.is_file())
    assert manifest["bytes"] == size - (exported / "manifest.json").stat().st_size
    weights = programs.weights_of(trained_netvlad)
    assert manifest["parameters"] == sum(weight.size for weight in weights.values())


def test_equal_weights_have_equal_digests(exported, trained_netvlad, tmp_path):
    digest = json.loads((exported / "manifest.json").read_text())["digest"]
    again = export(tmp_path / "again", f"--train_dir={trained_netvlad}")
    older = export(tmp_path / "older", f"--train_dir={trained_netvlad}", "--checkpoint=60")
    assert again["digest"] == digest != older["digest"]
    assert older["models"][0]["step"] == 60


def test_moving_averages_can_be_exported(trained_netvlad, frame_data, tmp_path):
    export(
        tmp_path / "ema",
        f"--train_dir={trained_netvlad}",
        "--use_ema",
        "--dtype=float32",
        "--num_samplings=0",
    )
    expected = in_process([trained_netvlad], frame_data, use_ema=True, num_samplings=0)
    assert largest_difference(of_export(tmp_path / "ema", frame_data), expected) < 1e-6


def test_class_names_travel_along(trained, tmp_path):
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("Index,Name\n0,Cats\n")
    export(tmp_path / "model", f"--train_dir={trained}", f"--class_names={vocabulary}")
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    with open(loaded.class_names.asset_path.numpy()) as file:
        assert file.read() == "Index,Name\n0,Cats\n"
    with pytest.raises(InputError, match="there is no file --class_names=nowhere"):
        export(tmp_path / "other", f"--train_dir={trained}", "--class_names=nowhere")


def test_a_frozen_graph_predicts_the_same(trained_netvlad, exported, frame_data, tmp_path):
    folder = tmp_path / "model"
    export(folder, f"--train_dir={trained_netvlad}", "--num_samplings=0", "--frozen_graph")
    graph = tf.compat.v1.GraphDef.FromString((folder / "frozen_graph.pb").read_bytes())
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    assert not wrapped.variables
    frames, num_frames, predictions = (
        wrapped.graph.get_tensor_by_name(f"{name}:0")
        for name in ("frames", "num_frames", "predictions")
    )
    predict = wrapped.prune([frames, num_frames], predictions)
    frozen = in_batches(
        lambda inputs: predict(tf.constant(inputs["frames"]), tf.constant(inputs["num_frames"])),
        ExportedPredictor(str(exported)).data.reader(frame_data),
    )
    assert largest_difference(frozen, of_export(exported, frame_data)) < 1e-6


def test_an_ensemble_is_the_weighted_mean_of_its_members(
    trained, trained_netvlad, trained_gru, frame_data, tmp_path
):
    train_dirs = [trained, trained_netvlad, trained_gru]
    joined = ",".join(map(str, train_dirs))
    options = ("--dtype=float32", "--num_samplings=0")
    manifest = export(tmp_path / "model", f"--train_dirs={joined}", "--weights=2,1,1", *options)
    assert [model["weight"] for model in manifest["models"]] == [0.5, 0.25, 0.25]
    assert [model["step"] for model in manifest["models"]] == [100, 120, 30]
    members = [in_process([path], frame_data, num_samplings=0) for path in train_dirs]
    expected = {
        video: sum(w * member[video] for w, member in zip((0.5, 0.25, 0.25), members, strict=True))
        for video in members[0]
    }
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 1e-6
    direct = programs.predictions(
        tmp_path / "p.csv",
        NUM_CLASSES,
        train_dirs=joined,
        weights="2,1,1",
        num_samplings=0,
        input_data_pattern=frame_data,
    )
    assert largest_difference(direct, expected) < 1e-5
    gaps = [
        programs.evaluate(f"--eval_data_pattern={frame_data}", *flags)["gap"]
        for flags in (
            (f"--train_dirs={joined}", "--weights=2,1,1", "--num_samplings=0"),
            (f"--exported_model={tmp_path / 'model'}",),
        )
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)


def test_several_samplings_are_averaged_in_the_exported_graph(trained, frame_data, tmp_path):
    export(tmp_path / "model", f"--train_dir={trained}", "--dtype=float32", "--num_samplings=5")
    expected = in_process([trained], frame_data, num_samplings=5)
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 1e-6
    one = in_process([trained], frame_data, num_samplings=1)
    assert largest_difference(one, expected) > 1e-3


def test_fitted_weights_beat_equal_ones_and_every_member_is_told(
    trained_gru, trained_netvlad, frame_data, tmp_path, caplog
):
    caplog.set_level("INFO", logger="absl")
    manifest = export(
        tmp_path / "model",
        f"--train_dirs={trained_gru},{trained_netvlad}",
        "--fit_weights",
        f"--eval_data_pattern={frame_data}",
    )
    weights = [model["weight"] for model in manifest["models"]]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    # The GRU has hardly been trained.
    assert weights[1] > 0.8
    members = [f"{train_dir}: GAP@20" for train_dir in (trained_gru, trained_netvlad)]
    for text in ("equal weights: GAP@20", *members, "fitted"):
        assert text in caplog.text


def test_a_model_of_plain_keras_layers_is_exported(frame_data, tmp_path, monkeypatch):
    (code,) = [
        block
        for block in documents.code_blocks(programs.ROOT / "README.md", "python")
        if "@registry.register" in block
    ]
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    exec(compile(code, "my_models.py", "exec"), {"__name__": "my_models"})
    programs.run(
        "train",
        "--model=AttentionModel",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={frame_data}",
        *programs.SMALL_DATA,
        "--batch_size=16",
        "--max_steps=20",
    )
    expected = in_process([tmp_path / "run"], frame_data)
    export(tmp_path / "model", f"--train_dir={tmp_path / 'run'}")
    assert largest_difference(of_export(tmp_path / "model", frame_data), expected) < 5e-3


def test_layers_without_names_are_restored_again_and_again(frame_data, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @registry.register
    class UnnamedModel(frame_level_models.FrameLevelModel):
        """Has a layer that Keras names."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = keras.layers.Dense(3)

        def encode(self, frames, frame_weights, training):
            return self.hidden(keras.ops.sum(frames, axis=1))

    programs.run(
        "train",
        "--model=UnnamedModel",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={frame_data}",
        *programs.SMALL_DATA,
        "--batch_size=16",
        "--max_steps=2",
    )
    predictor = Predictor([str(tmp_path / "run")] * 2)
    results = []
    for _ in range(2):
        predictor.restore()
        results.append(in_batches(predictor.predict, predictor.data.reader(frame_data)))
    assert largest_difference(*results) == 0
    export(tmp_path / "model", f"--train_dir={tmp_path / 'run'}", "--dtype=float32")
    assert largest_difference(of_export(tmp_path / "model", frame_data), results[0]) < 1e-2


# What an exported model refuses.


@pytest.mark.parametrize(
    ("frames", "num_frames", "message"),
    [
        ((2, 5, 12), [5], "frames and num_frames must be of as many videos"),
        ((2, 5, 12), [5, 6], "num_frames must be at most the frames given"),
        ((2, 5, 12), [5, 0], "num_frames must be at least 1"),
        ((2, 5, 11), [5, 5], "frames must have 12 entries each"),
    ],
)
def test_frames_of_the_wrong_form_are_refused(exported, frames, num_frames, message):
    predict = tf.saved_model.load(str(exported)).signatures["predict"]
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError), match=message):
        predict(frames=tf.zeros(frames, tf.uint8), num_frames=tf.constant(num_frames, tf.int32))


def frame_record(rgb=8, audio=4, num_frames=3, num_audio=None):
    return sample_records.frame_record(
        "a", [1], rgb=[bytes(rgb)] * num_frames, audio=[bytes(audio)] * (num_audio or num_frames)
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (frame_record(rgb=9), "every frame of rgb must have 8 bytes"),
        (frame_record(num_audio=2), "must have as many frames; audio has not"),
        (frame_record(num_frames=0), "num_frames must be at least 1"),
        (b"garbage", "Invalid protocol message"),
    ],
)
def test_records_of_the_wrong_form_are_refused(exported, record, message):
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(tf.constant([frame_record(), record]))


def test_empty_batches_and_single_frames_are_answered(exported):
    loaded = tf.saved_model.load(str(exported))
    predict = loaded.signatures["predict"]
    empty = predict(frames=tf.zeros([0, 4, 12], tf.uint8), num_frames=tf.zeros([0], tf.int32))
    assert empty["predictions"].shape == (0, NUM_CLASSES)
    answer = loaded.signatures["serving_default"](tf.constant([frame_record(num_frames=1)]))
    assert answer["predictions"].shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--train_dir or --train_dirs must be given"),
        (("--train_dir={run}", "--weights=1,2"), "--weights weighs --train_dirs"),
        (("--train_dirs={run},{run}", "--weights=1"), "one weight per model: 2. Received: 1"),
        (("--train_dirs={run},{run}", "--weights=1,-1"), "0 or more, and one of them above 0"),
        (("--train_dirs={run},{run}", "--weights=0,0"), "0 or more, and one of them above 0"),
        (("--train_dirs={run},{run}", "--weights=a,b"), "--weights must be numbers"),
        (("--train_dirs={run},{run}", "--frozen_graph"), "--frozen_graph is for one model"),
        (("--train_dirs={run},{run}", "--checkpoint=40"), "uses the newest of each"),
        (("--train_dir={run}", "--num_samplings=-1"), "--num_samplings must be 0 or more"),
        (("--train_dir={run}", "--use_ema"), "not trained with --ema_decay"),
        (("--train_dir={run}", "--fit_weights", "--eval_data_pattern=x"), "several --train_dirs"),
        (("--train_dir={run}", "--eval_data_pattern=x"), "for --fit_weights, which is not given"),
        (("--train_dir=/no/such/run",), r"model_flags\.json"),
    ],
)
def test_bad_flags_are_refused_and_leave_nothing(trained, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        export(tmp_path / "model", *(argument.format(run=trained) for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_members_of_other_data_are_refused_by_name(trained, frame_data, tmp_path):
    other = tmp_path / "other"
    programs.run_small(other, frame_data, "--num_classes=11", "--max_steps=1")
    with pytest.raises(InputError, match=r"num_classes: 10 and 11") as error:
        export(tmp_path / "model", f"--train_dirs={trained},{other}")
    assert str(trained) in str(error.value)
    assert str(other) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_an_output_directory_that_exists_is_refused(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path, f"--train_dir={trained}")


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(export_model.files, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        export(tmp_path / "model", f"--train_dir={trained}")
    assert not list(tmp_path.iterdir())


def test_settled_flags_are_refused_with_an_exported_model(exported, frame_data):
    with pytest.raises(InputError, match="--num_samplings cannot be given with --exported_model"):
        programs.evaluate(
            f"--exported_model={exported}", f"--eval_data_pattern={frame_data}", "--num_samplings=3"
        )


def test_a_directory_that_is_no_export_is_refused(trained, frame_data, exported, tmp_path):
    data = f"--eval_data_pattern={frame_data}"
    with pytest.raises(InputError, match=r"no manifest\.json"):
        programs.evaluate(f"--exported_model={trained}", data)
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot load"):
        programs.evaluate(f"--exported_model={tmp_path / 'broken'}", data)
