"""Frames stored as bytes of any range, float16, float32 or float lists, from records to exports."""

import json

import numpy as np
import pytest
import tensorflow as tf

import programs
import records
from dataset_info import DatasetInfo, Feature
from frame_level_models import FrameLevelModel
from programs import predictions, run, train
from quantization import YOUTUBE8M, FrameFormat, FrameStorage, Quantization
from readers import YT8MFrameFeatureReader
from sample_records import (
    bytes_feature,
    float_feature,
    int64_feature,
    write_frame_files,
    write_records,
    write_video_files,
)
from small_models import FRAME_LEVEL_MODELS, D, build, make_inputs, marked
from utils import InputError

CLASSES = 10
RANGES = Quantization(np.linspace(-3.0, -1.0, 4), np.linspace(0.5, 2.0, 4))
STORAGES = {
    "rgb": FrameStorage("float16", None),
    "audio": FrameStorage("uint8", RANGES),
    "text": FrameStorage("float_list", None),
    "pose": FrameStorage("float32", None),
}
SIZES = {"rgb": 8, "audio": 4, "text": 3, "pose": 2}


def features_of(rng, num_frames):
    """Returns a stored array per feature, `[T, D]`."""
    return {
        name: storage.quantization.quantize(rng.uniform(-1, 0.5, (num_frames, SIZES[name])))
        if storage.quantization
        else rng.normal(size=(num_frames, SIZES[name])).astype(storage.type)
        for name, storage in STORAGES.items()
    }


def serialized(video_id, labels, features):
    """Returns a SequenceExample with frames stored according to `STORAGES`."""
    lists = {
        name: tf.train.FeatureList(
            feature=[
                float_feature(frame)
                if STORAGES[name].dtype == "float_list"
                else bytes_feature(frame.tobytes())
                for frame in frames
            ]
        )
        for name, frames in features.items()
    }
    context = {"id": bytes_feature(video_id.encode()), "labels": int64_feature(labels)}
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(feature_list=lists),
    ).SerializeToString()


def write_data(folder, names=tuple(SIZES), num_videos=48):
    """Writes records of some features with a dataset.json; returns stored features by video."""
    rng = np.random.default_rng(5)
    videos, payloads = {}, []
    for number in range(num_videos):
        videos[f"v{number}"] = features_of(rng, int(rng.integers(1, 7)))
        videos[f"v{number}"] = {name: videos[f"v{number}"][name] for name in names}
        labels = [number % CLASSES]
        payloads.append(serialized(f"v{number}", labels, videos[f"v{number}"]))
    DatasetInfo(
        level="frame",
        features=tuple(
            Feature(
                name=name,
                size=SIZES[name],
                dtype=STORAGES[name].dtype,
                quantization=STORAGES[name].quantization and RANGES.as_json(),
            )
            for name in names
        ),
        num_classes=CLASSES,
        max_frames=6,
    ).save(str(folder))
    write_records(folder / "data", payloads)
    return videos


def reader(path, *names, **options):
    return YT8MFrameFeatureReader(
        [str(path)],
        feature_names=names,
        feature_sizes=[SIZES[name] for name in names],
        storages=[STORAGES[name] for name in names],
        num_classes=CLASSES,
        **options,
    )


# --- Records ---


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("audio",), "uint8"),
        (("rgb",), "float16"),
        (("pose",), "float32"),
        (("text", "pose"), "float32"),
        (("audio", "rgb"), "float32"),
        (tuple(SIZES), "float32"),
    ],
)
def test_batches_have_the_stored_numbers_or_the_values_that_they_stand_for(tmp_path, names, dtype):
    videos = write_data(tmp_path, num_videos=7)
    (batch,) = reader(tmp_path / "data", *names).batches(7)
    assert batch.inputs["frames"].dtype == dtype
    for row, video_id in enumerate(batch.video_ids):
        stored = [videos[video_id][name] for name in names]
        if dtype == "float32":
            stored = [
                STORAGES[name].to_float(part) for name, part in zip(names, stored, strict=True)
            ]
        expected = np.concatenate(stored, axis=1)
        assert batch.inputs["num_frames"][row] == len(expected)
        np.testing.assert_array_equal(batch.inputs["frames"][row, : len(expected)], expected)
        assert not batch.inputs["frames"][row, len(expected) :].any()
    dataset = reader(tmp_path / "data", *names).dataset(7)
    np.testing.assert_array_equal(next(iter(dataset))[0]["frames"], batch.inputs["frames"])


def test_a_float_list_with_a_tag_before_every_number_is_read_as_the_usual_one():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tagged = b""
    for row in values:
        numbers = b"".join(b"\x0d" + number.tobytes() for number in row)
        tagged += b"\x0a\x11\x12\x0f" + numbers
    usual = tf.train.FeatureList(feature=map(float_feature, values)).SerializeToString()
    assert len(tagged) > len(usual)
    for content in (tagged, usual):
        np.testing.assert_array_equal(records.frame_floats(memoryview(content)), values)


def test_zeros_stand_for_a_missing_feature_of_any_storage(tmp_path):
    rng = np.random.default_rng(1)
    whole, part = features_of(rng, 2), features_of(rng, 3)
    write_records(
        tmp_path / "data",
        [
            serialized("a", [1], whole),
            *(
                serialized(name, [1], {key: part[key] for key in part if key != name})
                for name in SIZES
            ),
        ],
    )
    source = reader(tmp_path / "data", *SIZES, missing_features="zeros")
    (batch,) = source.batches(9)
    start = 0
    for row, (name, size) in enumerate(SIZES.items(), start=1):
        zeros = batch.inputs["frames"][row, :3, start : start + size]
        # The byte next to 0 is up to half a step off.
        step = STORAGES[name].quantization.step if STORAGES[name].quantization else 0.0
        assert (np.abs(zeros) <= step / 2 + 1e-6).all()
        start += size


FLOATS = "Train with --feature_dtypes="


@pytest.mark.parametrize(
    ("stored_as", "read_as", "message"),
    [
        (
            "rgb",
            FrameStorage(),
            "feature 'x' has size 16, but the model takes size 8: that is the size of 8 float16 "
            f"values. .* {FLOATS}float16, which reads",
        ),
        (
            "pose",
            FrameStorage("float16", None),
            "feature 'x' has 8 bytes, but the model takes 2 float16 values, which are 4 bytes: "
            f"that is the size of 2 float32 values. .* {FLOATS}float32, which",
        ),
        (
            "audio",
            FrameStorage("float32", None),
            f"has 4 bytes, but the model takes 4 float32 .* {FLOATS}uint8, which",
        ),
        ("text", FrameStorage(), f"are not bytes: x .3 frames of 3 floats.* {FLOATS}float_list"),
        (
            "rgb",
            FrameStorage("float_list", None),
            f"are not lists of floats: x .3 frames of 16 bytes.* {FLOATS}float16, which",
        ),
    ],
)
def test_frames_that_are_stored_otherwise_are_reported_with_the_flag_that_reads_them(
    tmp_path, stored_as, read_as, message
):
    frames = features_of(np.random.default_rng(0), 3)[stored_as]
    record = serialized("a", [1], {stored_as: frames})
    record = tf.train.SequenceExample.FromString(record)
    lists = record.feature_lists.feature_list
    lists["x"].CopyFrom(lists.pop(stored_as))
    write_records(tmp_path / "data", [record.SerializeToString()])
    source = YT8MFrameFeatureReader(
        [str(tmp_path / "data")],
        feature_names=["x"],
        feature_sizes=[SIZES[stored_as]],
        storages=[read_as],
        num_classes=CLASSES,
    )
    with pytest.raises(InputError, match=message):
        next(source.batches(1))


def test_floats_that_are_not_finite_are_reported_by_video(tmp_path):
    features = features_of(np.random.default_rng(0), 3)
    features["rgb"][1, 2] = np.nan
    path = write_records(tmp_path / "data", [serialized("a", [1], features)] * 2)
    with pytest.raises(InputError, match="'rgb' of video 'a' has NaN or infinity"):
        next(reader(path, *SIZES).batches(1))


# --- Models ---


def formats():
    """Returns formats of bytes."""
    low = np.random.default_rng(2).uniform(-3, 0, D)
    return {
        "as YouTube-8M": FrameFormat(),
        "one range": FrameFormat("uint8", Quantization(-1.0, 2.0)),
        "a range per dimension": FrameFormat("uint8", Quantization(low, low + 3.0)),
    }


@pytest.mark.parametrize("name", [marked(name) for name in FRAME_LEVEL_MODELS])
@pytest.mark.parametrize("stored", formats())
def test_bytes_and_the_floats_that_they_stand_for_have_the_same_predictions(name, stored):
    frame_format = formats()[stored]
    inputs = make_inputs(name)
    of_bytes = build(name, frame_format=frame_format)
    of_floats = build(name, frame_format=FrameFormat("float32", None))
    of_floats.set_weights(of_bytes.get_weights())
    values = frame_format.quantization.dequantize(inputs["frames"].astype(np.float64))
    floats = {**inputs, "frames": values.astype(np.float32)}
    np.testing.assert_allclose(of_floats(floats), of_bytes(inputs), rtol=0, atol=1e-5)
    # With YouTube-8M's range, samplings are the same as well.
    if of_bytes.iterations and stored == "as YouTube-8M":
        options = {"num_samplings": 3, "seed": 1}
        expected = of_bytes(inputs, **options)
        np.testing.assert_allclose(of_floats(floats, **options), expected, rtol=0, atol=1e-5)


def test_a_model_refuses_frames_of_another_storage():
    inputs = make_inputs("DbofModel")
    floats = {**inputs, "frames": inputs["frames"].astype(np.float32)}
    with pytest.raises(InputError, match=r"DbofModel takes uint8 .*float32"):
        build("DbofModel")(floats)
    with pytest.raises(InputError, match=r"DbofModel takes float32 or .*uint8 .* stored as floats"):
        build("DbofModel", frame_format=FrameFormat("float32", None))(inputs)


def test_float16_frames_reach_the_first_product_as_they_are(monkeypatch):
    model = build("FrameLevelLogisticModel", frame_format=FrameFormat("float16", None))
    seen = []
    stored_frames = FrameLevelModel.stored_frames

    def spy(self, frames, *more):
        seen.append(frames.dtype.name)
        return stored_frames(self, frames, *more)

    monkeypatch.setattr(FrameLevelModel, "stored_frames", spy)
    inputs = make_inputs("DbofModel")
    model({**inputs, "frames": tf.cast(inputs["frames"], tf.float16)})
    assert seen == ["float16"]


# --- Programs ---


@pytest.mark.parametrize(
    "names",
    [
        ("audio",),
        pytest.param(("rgb",), marks=pytest.mark.slow),
        pytest.param(tuple(SIZES), marks=pytest.mark.slow),
    ],
    ids=["own range", "float16", "mixed"],
)
def test_a_run_on_any_storage_is_trained_evaluated_exported_and_served(tmp_path, names):
    videos = write_data(tmp_path, names)
    data, train_dir, exported = tmp_path / "data", tmp_path / "run", tmp_path / "exported"
    model = ("--model=DbofModel", "--dbof_cluster_size=8", "--dbof_hidden_size=4")
    flags = (*model, "--batch_size=12", "--max_steps=3", "--compute_dtype=float32")
    train(train_dir, data, *flags)
    train(train_dir, data, *flags[:-2], "--max_steps=4", "--compute_dtype=float32")  # Resumes.
    config = json.loads((train_dir / "model_flags.json").read_text())
    assert config["feature_names"] == list(names)
    dtypes = [STORAGES[name].dtype for name in names]
    assert config["feature_dtypes"] == (None if names == ("audio",) else dtypes)
    assert config["quantization"] == ({"audio": RANGES.as_json()} if "audio" in names else None)
    metrics = programs.evaluate(f"--train_dir={train_dir}", f"--eval_data_pattern={data}")
    assert metrics["num_videos"] == len(videos)
    run("export_model", f"--train_dir={train_dir}", f"--output_dir={exported}", "--dtype=float32")
    of_run = predictions(tmp_path / "a.csv", CLASSES, train_dir=train_dir, input_data_pattern=data)
    of_export = predictions(
        tmp_path / "b.csv", CLASSES, exported_model=exported, input_data_pattern=data
    )
    loaded = tf.saved_model.load(str(exported))
    record = next(tf.data.TFRecordDataset([str(data)]).as_numpy_iterator())
    served = loaded.signatures["serving_default"](tf.constant([record]))
    values = np.concatenate(
        [STORAGES[name].to_float(part) for name, part in videos["v0"].items()], axis=1
    )
    floats = loaded.signatures["predict_floats"](
        frames=tf.constant(values[None]), num_frames=tf.constant([len(values)])
    )
    for video_id in videos:
        np.testing.assert_allclose(of_export[video_id], of_run[video_id], atol=2e-6)
    np.testing.assert_allclose(floats["predictions"][0], of_run["v0"], atol=2e-6)
    best = np.zeros(CLASSES)
    best[served["class_indexes"][0]] = served["predictions"][0]
    np.testing.assert_allclose(best, of_run["v0"], atol=2e-6)


def test_records_of_another_range_are_refused_by_all_programs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name, ("audio",))
    path = tmp_path / "b" / "dataset.json"
    description = json.loads(path.read_text())
    description["features"][0]["quantization"]["max"][0] += 0.5
    path.write_text(json.dumps(description))
    flags = ("--model=FrameLevelLogisticModel", "--batch_size=12", "--max_steps=1")
    train(tmp_path / "run", tmp_path / "a" / "data", *flags)
    message = "b/dataset.json says that frames are stored as audio:4 .* --like=DATASET.JSON"
    data = tmp_path / "b" / "data"
    with pytest.raises(InputError, match=message):
        programs.evaluate(f"--train_dir={tmp_path / 'run'}", f"--eval_data_pattern={data}")
    with pytest.raises(InputError, match=message):
        programs.predict(tmp_path / "run", data, tmp_path / "a.csv")
    path.unlink()  # Nothing says how they are stored.
    programs.predict(tmp_path / "run", data, tmp_path / "a.csv")


def test_a_run_keeps_the_numbers_of_its_feature_scale(tmp_path):
    write_data(tmp_path, ("audio",))
    factor, offset = np.array([[1.0, 0.0, 2.0, 0.5], [0.0, 0.0, 1.0, -1.0]])
    scale = tmp_path / "scale.csv"
    rows = [f"{a},{b}" for a, b in zip(factor, offset, strict=True)]
    scale.write_text("factor,offset\n" + "\n".join(rows) + "\n")
    flags = ("--model=FrameLevelLogisticModel", "--batch_size=12", "--normalize_frames=none")
    for max_steps in (1, 2):  # The second command resumes the run.
        given = (*flags, f"--feature_scale={scale}", f"--max_steps={max_steps}")
        train(tmp_path / "run", tmp_path / "data", *given)
    config = json.loads((tmp_path / "run" / "model_flags.json").read_text())
    assert config["feature_scale"] == {"factor": list(factor), "offset": list(offset)}
    scale.unlink()
    found = predictions(
        tmp_path / "a.csv",
        CLASSES,
        train_dir=tmp_path / "run",
        input_data_pattern=tmp_path / "data",
        compute_dtype="float32",
    )
    weights = {
        path.rpartition("/")[2]: value
        for path, value in programs.weights_of(tmp_path / "run").items()
        if "logistic" in path
    }
    (video,) = [
        video
        for video in reader(tmp_path / "data", "audio").read_file(str(tmp_path / "data"))
        if video.video_id == "v3"
    ]
    values = factor * RANGES.dequantize(video.features[0].astype(np.float64)) + offset
    logits = values.mean(axis=0) @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(found["v3"], 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("factor\n1\n1\n", "--feature_scale must have one row for each of the 4 values"),
        ("scale\n1\n", "it must have the columns factor and offset"),
        ("factor\n1\nx\n", "could not convert string to float"),
        ('factor\n1\n"\n', "cannot read the feature scale in "),
        ("factor\n1\nnan\n1\n1\n", "each factor of a feature scale must be a finite number"),
        ("factor,offset\n0,1\n1,1\n1,1\n1,1\n", "of factor 0 must have offset 0"),
        ("", "cannot read the feature scale in "),
    ],
)
def test_a_bad_feature_scale_is_rejected_before_training(tmp_path, content, message):
    write_data(tmp_path, ("audio",), num_videos=2)
    scale = tmp_path / "scale.csv"
    scale.write_text(content)
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", tmp_path / "data", "--model=DbofModel", f"--feature_scale={scale}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--feature_dtypes=float16,uint8,uint8"], "one for each of --feature_names=rgb,audio"),
        (["--feature_dtypes=float64"], "--feature_dtypes must be one of uint8, float16, float32"),
        (["--model=MoeModel", "--feature_dtypes=float16"], "MoeModel takes video-level features"),
        (["--normalize_frames=max"], "normalize_frames must be one of l2, none"),
    ],
)
def test_flags_about_frames_are_checked(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", write_records(tmp_path / "data", []), "--model=DbofModel", *flags)


def test_an_export_for_mediapipe_takes_what_its_inference_graph_sends(tmp_path):
    path = write_frame_files(tmp_path, 1, 16)
    programs.train_mean(tmp_path / "run", path, "--max_steps=1", "--compute_dtype=float32")
    flags = (f"--train_dir={tmp_path / 'run'}", "--dtype=float32", "--mediapipe")
    run("export_model", *flags, f"--output_dir={tmp_path / 'exported'}")
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    values = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    num_frames = np.array([[5], [2], [1]], np.int32)
    # The names of tensors and their types and shapes are part of MediaPipe's graph.
    found = loaded.signatures["serving_default"](
        rgb_and_audio=tf.constant(values), num_frames=tf.constant(num_frames)
    )
    expected = loaded.signatures["predict"](
        frames=tf.constant(YOUTUBE8M.quantize(values)), num_frames=tf.constant(num_frames[:, 0])
    )
    assert list(found) == ["predictions"]
    np.testing.assert_allclose(found["predictions"], expected["predictions"], atol=1e-6)
    record = next(tf.data.TFRecordDataset(tf.io.gfile.glob(path)).as_numpy_iterator())
    served = loaded.signatures["records"](example_bytes=tf.constant([record]))
    assert served["video_id"] == [b"v0_0"]
    # The other programs use the model as any other.
    assert (
        len(
            predictions(
                tmp_path / "a.csv",
                CLASSES,
                exported_model=tmp_path / "exported",
                input_data_pattern=path,
            )
        )
        == 16
    )


def test_an_export_for_mediapipe_needs_frames(tmp_path):
    data = write_video_files(tmp_path, 1, 16)
    programs.train_logistic(tmp_path / "run", data, "--max_steps=1")
    flags = (f"--train_dir={tmp_path / 'run'}", f"--output_dir={tmp_path / 'exported'}")
    with pytest.raises(InputError, match="--mediapipe is for frame-level models"):
        run("export_model", *flags, "--mediapipe")
    assert not (tmp_path / "exported").exists()
