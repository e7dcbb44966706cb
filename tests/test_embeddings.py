"""Embeddings: the vectors before the classifier, in models, ensembles, files and exports."""

import functools
import itertools
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import documents
import embedding_file
import layer_references
import programs
import sample_records
import small_models
from ensemble import Ensemble, frozen_model, restore_frozen
from predictor import ExportedPredictor, Predictor, load
from programs import predict
from run_config import RunConfig
from utils import InputError

EMBEDDINGS = "--output=embeddings"
EVERY_MODEL = pytest.mark.parametrize(
    "name", [small_models.marked(name) for name in small_models.FRAME_LEVEL_MODELS]
)


def config_of(name):
    """Returns the config of a small model that samples frames."""
    return RunConfig(
        name,
        hyperparameters={**small_models.SMALL[name], "iterations": 6},
        num_classes=small_models.NUM_CLASSES,
        feature_sizes=small_models.FEATURE_SIZES,
    )


@functools.cache
def model_of(name):
    """Returns a small model with random weights that samples frames."""
    model = config_of(name).build_model()
    layer_references.randomize(model)
    return model


@pytest.fixture(scope="module", autouse=True)
def free_cached_models():
    yield
    model_of.cache_clear()


def make_inputs(num_videos=4):
    inputs = small_models.make_inputs("GruModel", (9, 2, 7, 5, 1, 3, 8)[:num_videos])
    return tf.nest.map_structure(tf.constant, inputs)


# --- Models ---


@EVERY_MODEL
def test_the_classifier_of_an_embedding_gives_the_prediction(name):
    model, inputs = model_of(name), make_inputs()
    for options in ({"num_samplings": 0}, {"num_samplings": 1, "seed": 3}):
        embeddings = model.embed(inputs, **options)
        assert embeddings.dtype == tf.float32
        assert embeddings.shape == (4, model.embedding_size)
        expected = model(inputs, **options)
        np.testing.assert_allclose(model.classifier(embeddings), expected, rtol=1e-5)


@EVERY_MODEL
def test_several_samplings_give_the_mean_embedding(name, monkeypatch):
    model, inputs = model_of(name), make_inputs()
    actual = model.embed(inputs, num_samplings=3, seed=7)
    indices = model.draw_frame_indices(inputs["frames"], inputs["num_frames"], 3, 7)
    each = []
    for n in range(3):
        drawn = indices[:, n : n + 1]
        monkeypatch.setattr(model, "draw_frame_indices", lambda *_, drawn=drawn: drawn)
        each.append(np.asarray(model.embed(inputs, num_samplings=1)))
    np.testing.assert_allclose(actual, np.mean(each, axis=0), rtol=1e-4, atol=1e-6)
    assert np.ptp(each, axis=0).max() > 1e-3


@EVERY_MODEL
def test_the_embedding_of_a_video_does_not_depend_on_its_batch(name):
    model, inputs = model_of(name), make_inputs()
    together = model.embed(inputs)
    for row, length in enumerate((9, 2, 7, 5)):
        video = {
            "frames": inputs["frames"][row : row + 1, :length].numpy(),
            "num_frames": np.array([length]),
        }
        np.testing.assert_allclose(model.embed(video)[0], together[row], rtol=1e-4, atol=1e-6)


@EVERY_MODEL
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_frozen_model_has_the_same_embeddings(name, dtype, error, tmp_path):
    config, model, inputs = config_of(name), model_of(name), make_inputs()
    state = tf.train.Checkpoint(weights=checkpoints.weights(model))
    frozen = frozen_model(config, dtype)
    restore_frozen(frozen, config, checkpoints.new_manager(str(tmp_path), state).save(1))
    assert frozen.embed(inputs).dtype == tf.float32
    expected = np.asarray(model.embed(inputs))
    assert np.abs(frozen.embed(inputs) - expected).max() < error * np.abs(expected).max()


@pytest.mark.parametrize("name", ["LogisticModel", "MoeModel"])
def test_a_model_that_classifies_features_directly_has_no_embeddings(name):
    model = small_models.shared(name)
    assert model.embedding_size is None
    message = f"^{name} has no embeddings: it classifies the features of a video directly"
    for embed in (model.embed, Ensemble([model]).embeddings):
        with pytest.raises(InputError, match=message):
            embed(small_models.make_inputs(name))


# --- Ensembles ---


def test_an_ensemble_puts_the_embeddings_of_its_models_side_by_side_in_chunks():
    members = [model_of(name) for name in ("FrameLevelLogisticModel", "SoftBoFModel", "GruModel")]
    ensemble, inputs = Ensemble(members, num_samplings=2, seed=5, max_floats=500), make_inputs(7)
    expected = [
        model.embed(inputs, num_samplings=2, seed=(5, number))
        for number, model in enumerate(members)
    ]
    assert ensemble.embedding_sizes == [values.shape[1] for values in expected]
    function = tf.function(
        ensemble.embeddings, input_signature=[small_models.signature("GruModel")]
    )
    np.testing.assert_allclose(
        function(inputs), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-6
    )
    empty = tf.nest.map_structure(lambda values: values[:0], inputs)
    assert function(empty).shape == (0, sum(ensemble.embedding_sizes))


# --- Files ---


def read_npy(path):
    """Returns the embeddings in a file by video."""
    array = np.load(path)
    assert array.dtype == np.float32
    with open(embedding_file.ids_path(str(path))) as file:
        return dict(zip((line.rstrip("\n") for line in file), array, strict=True))


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs requirements/parquet.txt")
    table = parquet.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["id"] == "string"
    assert types["embedding"].startswith("fixed_size_list<element: float>[")
    rows = table.to_pylist()
    return {row["id"]: np.array(row["embedding"], np.float32) for row in rows}


def in_process(predictor, pattern):
    """Returns the embeddings that a predictor computes in one batch, by video."""
    predictor.restore()
    (batch,) = predictor.data.reader(str(pattern), with_labels=False).batches(1000)
    return dict(zip(batch.video_ids, predictor.embed(batch.inputs), strict=True))


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    vectors = [found[video] for video in expected]
    np.testing.assert_allclose(vectors, [*expected.values()], **tolerance)


@pytest.fixture(scope="module")
def new_data(tmp_path_factory):
    """Returns a glob of 160 videos that no model was trained on."""
    folder = tmp_path_factory.mktemp("new")
    sample_records.write_frame_files(folder, 8, 40)
    return folder / "part00[4-7].tfrecord"


def test_nearest_neighbors_share_labels(trained, new_data, tmp_path, monkeypatch):
    predict(trained, new_data, tmp_path / "vectors.npy", EMBEDDINGS)
    found = read_npy(tmp_path / "vectors.npy")
    assert list(found) == [f"v{file}_{index}" for file in range(4, 8) for index in range(40)]
    (batch,) = Predictor([str(trained)]).data.reader(str(new_data)).batches(160)
    vectors = np.array([found[video] for video in batch.video_ids], np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    shares = (batch.labels @ batch.labels.T) > 0
    chance = (shares.sum() - 160) / (160 * 159)
    agreement = shares[np.arange(160), similarity.argmax(axis=1)].mean()
    assert agreement > 0.9 > 2 * chance
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(documents.python_of("docs/flags.md", "most_similar"), scope)
    assert scope["ids"] == list(found)
    assert scope["most_similar_to_the_first"][0] == scope["ids"][0]


@pytest.mark.parametrize(("output_format", "read"), [("npy", read_npy), ("parquet", read_parquet)])
def test_files_hold_the_embeddings_of_the_model(
    trained, frame_data, tmp_path, monkeypatch, output_format, read
):
    monkeypatch.setattr(embedding_file, "_ROWS_PER_GROUP", 7)
    path = tmp_path / f"vectors.{output_format}"
    predict(trained, frame_data, path, EMBEDDINGS, f"--output_format={output_format}")
    expected = in_process(Predictor([str(trained)]), frame_data)
    assert_equal(read(path), expected, rtol=1e-4, atol=1e-5)
    names = {"vectors.npy", "vectors.ids.txt"} if output_format == "npy" else {"vectors.parquet"}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_an_interrupted_run_resumes_to_the_same_bytes(trained_mean, frame_data, tmp_path):
    folder = shutil.copytree(pathlib.Path(frame_data).parent, tmp_path / "input")
    sample_records.flip_bit(folder / "part003.tfrecord", 200)
    output, fresh = tmp_path / "vectors.npy", tmp_path / "fresh.npy"
    given = (trained_mean, folder / "*")
    with pytest.raises(InputError, match="corrupt"):
        predict(*given, output, EMBEDDINGS)
    parts = tmp_path / "vectors.npy.parts"
    assert len(list(parts.glob("0*.json"))) == 3
    assert not output.exists()
    skip = "--skip_corrupt_records=1"
    with pytest.raises(InputError, match="another value of embedding_member"):
        predict(*given, output, EMBEDDINGS, skip, "--embedding_member=0")
    (parts / "00003.jsonl").unlink()
    predict(*given, output, EMBEDDINGS, skip)
    predict(*given, fresh, EMBEDDINGS, skip)
    assert output.read_bytes() == fresh.read_bytes()
    assert len(read_npy(output)) > 120
    assert (tmp_path / "vectors.ids.txt").read_bytes() == (tmp_path / "fresh.ids.txt").read_bytes()


@pytest.mark.slow
def test_a_failure_never_pairs_an_array_with_the_ids_of_another(
    trained_mean, frame_data, new_data, tmp_path, monkeypatch
):
    output = tmp_path / "vectors.npy"
    predict(trained_mean, frame_data, output, EMBEDDINGS)
    old, new = read_npy(output), in_process(Predictor([str(trained_mean)]), new_data)
    names = ("rename", "remove")
    originals = {name: getattr(tf.io.gfile, name) for name in names}

    for fatal in itertools.count():
        calls = itertools.count()

        def dies(name, *arguments, calls=calls, fatal=fatal, **options):
            if next(calls) == fatal:
                raise KeyboardInterrupt
            return originals[name](*arguments, **options)

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(
                    tf.io.gfile, name, lambda *a, name=name, dies=dies, **o: dies(name, *a, **o)
                )
            try:
                predict(trained_mean, new_data, output, EMBEDDINGS, "--noresume")
                break
            except KeyboardInterrupt:
                pass
        if output.exists():
            found = read_npy(output)
            assert_equal(found, old if "v0_0" in found else new, rtol=1e-4, atol=1e-5)
    assert fatal > 4
    assert_equal(read_npy(output), new, rtol=1e-4, atol=1e-5)


def test_an_id_with_a_line_break_needs_parquet(trained_mean, tmp_path):
    record = sample_records.frame_record("a\nb", [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    with pytest.raises(InputError, match=r"'a\\nb' has a line break.*--output_format=parquet"):
        predict(trained_mean, path, tmp_path / "vectors.npy", EMBEDDINGS)
    predict(trained_mean, path, tmp_path / "v.parquet", EMBEDDINGS, "--output_format=parquet")
    assert list(read_parquet(tmp_path / "v.parquet")) == ["a\nb"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "v.npy",
            ("--output_format=csv",),
            "csv is not for --output=embeddings, which has the formats npy, parquet",
        ),
        ("v.npy", ("--output=predictions", "--output_format=npy"), "npy is not for --output=pred"),
        ("v.csv", (), "ends in .csv, but --output_format=npy writes .npy"),
        ("v.npy.gz", (), "--output_format=npy is never compressed"),
        ("v.npy", ("--class_names=names.csv",), "npy holds no names of classes with --output=emb"),
        ("v.npy", ("--embedding_member=1",), "member must be below 1, the number of models. Rec"),
        ("v.csv", ("--output=predictions", "--embedding_member=0"), "is for --output=embeddings"),
    ],
)
def test_flags_that_do_not_fit_are_rejected(
    trained_mean, frame_data, tmp_path, name, given, message
):
    with pytest.raises(InputError, match=message):
        predict(trained_mean, frame_data, tmp_path / name, EMBEDDINGS, *given)
    assert not list(tmp_path.iterdir())


def test_a_video_level_run_is_rejected(trained_moe, video_data, tmp_path):
    with pytest.raises(InputError, match="has no embeddings: it classifies the features"):
        predict(trained_moe, video_data, tmp_path / "v.npy", EMBEDDINGS)
    exported = tmp_path / "exported"
    programs.run("export_model", f"--train_dir={trained_moe}", f"--output_dir={exported}")
    assert "embed" not in tf.saved_model.load(str(exported)).signatures
    with pytest.raises(InputError, match="exported has no embeddings: either an earlier version"):
        ExportedPredictor(str(exported)).embedding_sizes  # noqa: B018


def test_arrays_have_the_embeddings_of_the_records(trained_mean, frame_data):
    expected = in_process(Predictor([str(trained_mean)]), frame_data)
    (batch,) = Predictor([str(trained_mean)]).data.reader(frame_data).batches(1000)
    frames, num_frames = batch.inputs["frames"], batch.inputs["num_frames"]
    arrays = [video[:length] for video, length in zip(frames, num_frames, strict=True)]
    model = load(trained_mean)
    found = dict(zip(batch.video_ids, model.embed(arrays, batch_size=50), strict=True))
    assert_equal(found, expected, rtol=1e-5, atol=1e-6)
    assert model.embed([]).shape == (0, 12)


# --- Exported models ---


def test_an_exported_model_has_the_embeddings_of_the_model(
    trained, exported, exported_sampling, frame_data
):
    expected = in_process(Predictor([str(trained)], num_samplings=5), frame_data)
    found = in_process(ExportedPredictor(str(exported_sampling)), frame_data)
    assert_equal(found, expected, rtol=1e-5, atol=1e-5)
    every_frame = in_process(Predictor([str(trained)], num_samplings=0), frame_data)
    found = in_process(ExportedPredictor(str(exported)), frame_data)  # In bfloat16.
    assert_equal(found, every_frame, rtol=0.02, atol=0.1)
    signature = tf.saved_model.load(str(exported)).signatures["embed"]
    assert signature.structured_outputs["embeddings"].shape.as_list() == [None, 8]
    assert signature.structured_outputs["embeddings"].dtype == tf.float32


@pytest.mark.slow
def test_an_ensemble_writes_all_embeddings_or_those_of_one_model(
    trained, trained_mean, frame_data, tmp_path
):
    runs, exported = f"--train_dirs={trained},{trained_mean}", tmp_path / "exported"
    programs.run("export_model", runs, f"--output_dir={exported}", "--dtype=float32")

    def write(model, *more):
        output = tmp_path / "vectors.npy"
        given = (model, f"--input_data_pattern={frame_data}", f"--output_file={output}")
        programs.run("inference", *given, EMBEDDINGS, *more)
        return np.load(output)

    both = write(runs)
    assert both.shape == (160, 8 + 12)
    np.testing.assert_allclose(write(f"--train_dir={trained}"), both[:, :8], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(write(runs, "--embedding_member=1"), both[:, 8:])
    model = f"--exported_model={exported}"
    np.testing.assert_allclose(write(model), both, rtol=1e-4, atol=1e-5)
    member = write(model, "--embedding_member=0")
    np.testing.assert_allclose(member, both[:, :8], rtol=1e-4, atol=1e-5)


def test_an_older_export_says_that_it_has_no_embeddings(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "model")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"embedding_size"', '"other"'))
    predictor = ExportedPredictor(str(copy))
    with pytest.raises(InputError, match=r"earlier version exported it, then export its runs agai"):
        predictor.embedding_sizes  # noqa: B018
