"""Prediction from arrays in Python: predictor.load and LoadedModel.predict."""

import numpy as np
import pytest
import tensorflow as tf

import predictor
from programs import predictions, run, train, train_logistic, train_mean
from quantization import FrameStorage
from readers import YT8MFrameFeatureReader
from sample_records import write_frame_files, write_video_files
from test_frame_storage import STORAGES, write_data
from utils import InputError

CLASSES = 10


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory):
    """Directory with records `data*`, a run on their bytes, and its export."""
    folder = tmp_path_factory.mktemp("bytes")
    write_frame_files(folder, 2, 16)
    train_mean(folder / "run", folder / "part*", "--max_steps=2", "--compute_dtype=float32")
    run("export_model", f"--train_dir={folder / 'run'}", f"--output_dir={folder / 'exported'}")
    return folder


def videos_of(folder):
    """Returns the videos of the records in a directory."""
    reader = YT8MFrameFeatureReader(
        sorted(map(str, folder.glob("part*"))),
        feature_names=["rgb", "audio"],
        feature_sizes=[8, 4],
        num_classes=CLASSES,
    )
    return [video for path in reader.paths for video in reader.read_file(path)]


def scores_of(table):
    """Returns an array of scores by id."""
    found = {}
    for video_id, rows in table.groupby("id"):
        assert (rows["score"].diff().dropna() <= 0).all()
        found[video_id] = np.zeros(CLASSES)
        found[video_id][rows["class"]] = rows["score"]
    return found


@pytest.mark.parametrize("kind", ["run", "exported"])
@pytest.mark.parametrize("form", ["bytes", "values", "by name"])
def test_arrays_have_the_predictions_of_the_records(bytes_run, tmp_path, kind, form):
    flag = {"run": "train_dir", "exported": "exported_model"}[kind]
    expected = predictions(
        tmp_path / "a.csv",
        CLASSES,
        input_data_pattern=bytes_run / "part*",
        **{flag: bytes_run / kind},
    )
    videos = videos_of(bytes_run)
    arrays = [dict(zip(("rgb", "audio"), video.features, strict=True)) for video in videos]
    if form == "values":
        arrays = [
            {name: FrameStorage().to_float(part) for name, part in video.items()}
            for video in arrays
        ]
    if form != "by name":
        arrays = [np.concatenate(list(video.values()), axis=1) for video in arrays]
    model = predictor.load(bytes_run / kind)
    table = model.predict(
        arrays, ids=[video.video_id for video in videos], top_k=CLASSES, batch_size=5
    )
    assert list(table) == ["id", "class", "name", "score"]
    found = scores_of(table)
    assert list(table["id"].drop_duplicates()) == [video.video_id for video in videos]
    for video_id, scores in expected.items():
        np.testing.assert_allclose(found[video_id], scores, atol=2e-6)


def test_values_are_rounded_as_they_would_be_in_records(tmp_path):
    stored = write_data(tmp_path)
    flags = ("--model=FrameLevelLogisticModel", "--batch_size=12", "--max_steps=2")
    train(tmp_path / "run", tmp_path / "data", *flags, "--max_frames=4", "--compute_dtype=float32")
    expected = predictions(
        tmp_path / "a.csv",
        CLASSES,
        train_dir=tmp_path / "run",
        input_data_pattern=tmp_path / "data",
    )
    videos = list(stored)
    rng = np.random.default_rng(0)
    model = predictor.load(str(tmp_path / "run"))
    arrays = []
    for features in stored.values():
        # Other values that are stored as the same numbers.
        arrays.append({name: STORAGES[name].to_float(part) for name, part in features.items()})
        steps = STORAGES["audio"].quantization.step
        arrays[-1]["audio"] += steps * rng.uniform(-0.4, 0.4, arrays[-1]["audio"].shape)
    found = scores_of(model.predict(arrays, ids=videos, top_k=CLASSES))
    for video_id in videos:
        np.testing.assert_allclose(found[video_id], expected[video_id], atol=2e-6)


def test_video_level_models_and_ensembles_predict_from_arrays(tmp_path):
    data = write_video_files(tmp_path, 1, 32)
    for name in ("a", "b"):
        train_logistic(tmp_path / name, data, "--max_steps=2", f"--seed={len(name)}")
    vectors = np.random.default_rng(0).normal(size=(3, 12))
    alone = [predictor.load(tmp_path / name).predict(vectors, top_k=CLASSES) for name in "ab"]
    together = predictor.load([tmp_path / "a", tmp_path / "b"], weights=(3.0, 1.0))
    found = scores_of(together.predict(vectors, top_k=CLASSES))
    for video_id, scores in found.items():
        a, b = (scores_of(table)[video_id] for table in alone)
        np.testing.assert_allclose(scores, 0.75 * a + 0.25 * b, atol=1e-6)
    assert together.predict(list(vectors), top_k=2)["id"].tolist() == [0, 0, 1, 1, 2, 2]


def test_no_arrays_give_an_empty_table(bytes_run):
    table = predictor.load(bytes_run / "run").predict([])
    assert list(table) == ["id", "class", "name", "score"]
    assert table.empty


def frames(length=3, size=12, **options):
    return np.full((length, size), 0.5, **options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (frames(), "a list with the features of each video is expected"),
        ({"rgb": frames()}, "a list with the features of each video is expected"),
        ([frames(), frames(size=11)], r"video 1 must be \[frames, 12\]. Received: \[3, 11\]\."),
        ([frames(12, 5)], r"Received: \[12, 5\]. Transpose the array: rows are frames"),
        ([frames()[0]], r"video 0 must be \[frames, 12\]. Received: \[12\]"),
        ([frames(0)], r"Received: \[0, 12\]"),
        ([frames() * np.nan], "video 0 has NaN or infinity"),
        ([frames().astype(int)], "video 0 must have float values. Received: int64"),
        ([{"rgb": frames(size=8)}], "video 0 lacks features: audio. It has: rgb"),
        (
            [{"rgb": frames(size=8), "audio": frames(2, 4)}],
            "the features of video 0 have unequal numbers of frames: 3, 2",
        ),
        ([(frames(size=8), frames(2, 4))], "video 0 must be an array with all .* Received: tuple"),
        ([{"rgb": frames(), "audio": frames()}], r"rgb of video 0 must be \[frames, 8\]"),
    ],
)
def test_arrays_that_do_not_fit_are_reported_by_video(bytes_run, arrays, message):
    with pytest.raises(InputError, match=message):
        predictor.load(bytes_run / "run").predict(arrays)


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("none", {}, "there is no directory .*none"),
        (".", {}, "holds neither a training run .*nor an exported model"),
        ("run", {"checkpoint": "99"}, "99"),
        ("run", {"steps": 1}, "takes no steps"),
        ("exported", {"num_samplings": 1}, "takes no num_samplings"),
    ],
)
def test_what_cannot_be_loaded_is_reported(bytes_run, folder, options, message):
    with pytest.raises(InputError, match=message):
        predictor.load(bytes_run / folder, **options)


def test_any_iterable_of_arrays_is_taken_and_bad_options_are_not(bytes_run):
    model = predictor.load(bytes_run / "run")
    assert len(model.predict((frames() for _ in range(2)), top_k=3)) == 6
    with pytest.raises(InputError, match="top_k must be at least 1"):
        model.predict([frames()], top_k=0)
    with pytest.raises(InputError, match=r"ids must be a list .* Received: 'ab'"):
        model.predict([frames(), frames()], ids="ab")


def test_one_graph_predicts_any_number_of_videos_and_frames():
    traced = []

    def total(inputs):
        traced.append(inputs["frames"].shape.as_list())
        return tf.reduce_sum(inputs["frames"], axis=[1, 2]) + inputs["num_frames"]

    run = predictor.compiled(total)
    for videos, frames in ((4, 3), (2, 3), (2, 5)):
        inputs = {
            "frames": np.ones([videos, frames, 7], np.int32),
            "num_frames": np.full(videos, frames, np.int32),
        }
        np.testing.assert_array_equal(run(inputs), [frames * 8] * videos)
    assert traced == [[None, None, 7]]
