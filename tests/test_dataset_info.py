"""dataset.json: its content, and the settings of a run that come from it."""

import dataclasses
import json
import os
import shutil

import pytest
import tensorflow as tf

import dataset_info
import files
import programs
from dataset_info import DatasetInfo, Feature
from run_config import RunConfig
from utils import InputError

BYTES = {"dtype": "uint8", "quantization": {"min": -2, "max": 2}}
FRAMES = DatasetInfo(
    made_by="by hand",
    level="frame",
    features=(Feature(name="rgb", size=8, **BYTES), Feature(name="audio", size=4, **BYTES)),
    num_classes=10,
    max_frames=8,
    frames_per_second=0.5,
    vocabulary="names/vocabulary.csv",
    videos={"train": 160, "test": 0},
)
VECTORS = DatasetInfo(
    level="video", features=(Feature(name="clip", size=3, dtype="float32"),), num_classes=2
)


def saved(folder, info=FRAMES, **changes):
    """Saves a description in a directory and returns the path of its file."""
    folder.mkdir(exist_ok=True)
    dataclasses.replace(info, **changes).save(str(folder))
    return str(folder / "dataset.json")


def completed(*folders, model="DbofModel", **given):
    """Returns the config of a run on files in directories, with flags given."""
    paths = [str(folder / "part0") for folder in folders]
    return dataset_info.complete(RunConfig(model, **given), given, paths)


# --- The file ---


@pytest.mark.parametrize("info", [FRAMES, VECTORS])
def test_a_description_is_saved_and_loaded(tmp_path, info):
    path = saved(tmp_path, info)
    assert DatasetInfo.load(path) == info
    assert "null" not in (tmp_path / "dataset.json").read_text()


def changed(**changes):
    values = json.loads(json.dumps(dataclasses.asdict(FRAMES)))
    return {key: value for key, value in {**values, **changes}.items() if value != "none"}


def feature(**changes):
    values = {"name": "rgb", "size": 8, **BYTES, **changes}
    return [{key: value for key, value in values.items() if value != "none"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", " is not valid JSON: "),
        ("[" * 100_000, " is not valid JSON: "),
        ([], " must hold a JSON object. Received: []"),
        (
            changed(num_classes="none", level="none", fps=1),
            " does not fit this version. Unknown keys: 'fps'; missing keys: level, num_classes.",
        ),
        (changed(level="clip"), ": level must be one of frame, video. Received: clip"),
        (changed(num_classes=0), ": num_classes must be above 0. Received: 0"),
        (changed(num_classes=True), ": num_classes must be of type int. Received: True"),
        (changed(max_frames=2.5), ": max_frames must be of type int or None. Received: 2.5"),
        (changed(frames_per_second=float("nan")), ": frames_per_second must be finite"),
        (changed(vocabulary=["a"]), ": vocabulary must be of type str or None. Received: ('a',)"),
        (changed(made_by=3), ": made_by must be of type str or None. Received: 3"),
        (changed(videos=[1]), ": videos must be numbers of videos by split. Received: [1]"),
        (changed(videos={"a": -1}), ": videos must be numbers of videos by split. Received: {"),
        (changed(features="rgb"), ": features must be a list. Received: 'rgb'"),
        (changed(features=[]), ": features must have distinct names. Received: []"),
        (changed(features=feature() * 2), ": features must have distinct names. Received: ['rgb',"),
        (changed(features=["rgb"]), ": features[0] must hold a JSON object. Received: 'rgb'"),
        (
            changed(features=feature() + feature(dtype="none", type="uint8")),
            ": features[1] does not fit this version. Unknown keys: 'type'; missing keys: dtype.",
        ),
        (changed(features=feature(size="8")), ": features[0]: size must be of type int. Received"),
        (changed(features=feature(size=0)), ": features[0]: size must be above 0. Received: 0"),
        (changed(features=feature(name="\x1b")), r": features[0]: name must be printable text. "),
        (
            changed(features=feature(dtype="float16")),
            ": features[0]: quantization of rgb: features of dtype uint8, and no others, have a "
            "quantization. Received: float16 with Quantization(min=-2, max=2)",
        ),
        (changed(features=feature(quantization="none")), "Received: uint8 with None"),
        (changed(features=feature(dtype="int8")), "dtype must be one of uint8, float16, float32"),
        (
            changed(features=feature(quantization={"min": [0, 0], "max": [1, 1]})),
            ": features[0]: quantization of rgb must have one range, or 8. Received: 2",
        ),
        (
            changed(level="video"),
            ": features of video-level records must be of dtype float32. Received: rgb of uint8, "
            "audio of uint8",
        ),
    ],
)
def test_what_is_no_description_is_rejected_by_file_and_key(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        DatasetInfo.load(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# --- The settings of a run ---


def test_settings_that_no_flag_gives_come_from_the_file(tmp_path):
    saved(tmp_path)
    expected = {"feature_sizes": (8, 4), "num_classes": 10, "max_frames": 8}
    assert completed(tmp_path) == RunConfig("DbofModel", **expected)
    assert completed(tmp_path, **expected, feature_names=("rgb", "audio")) == completed(tmp_path)
    saved(tmp_path, max_frames=None)
    assert completed(tmp_path).max_frames == RunConfig.max_frames
    saved(tmp_path, VECTORS)
    assert completed(tmp_path, model="MoeModel") == RunConfig(
        "MoeModel", feature_names=("clip",), feature_sizes=(3,), num_classes=2
    )


def test_flags_may_select_features_and_limit_frames(tmp_path):
    saved(tmp_path)
    config = completed(tmp_path, feature_names=("audio", "rgb"), max_frames=5)
    assert (config.feature_sizes, config.max_frames) == ((4, 8), 5)
    assert completed(tmp_path, feature_names=("audio",)).feature_sizes == (4,)
    assert completed(tmp_path, max_frames=400).max_frames == 400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"num_classes": 3862},
            "--num_classes=3862 contradicts {path}, which says --num_classes=10. Leave the flag "
            "out or give that value; if the file is wrong, correct it.",
        ),
        (
            {"feature_sizes": (1024, 128)},
            "--feature_sizes=1024,128 contradicts {path}, which says --feature_sizes=8,4.",
        ),
        (
            {"feature_names": ("audio",), "feature_sizes": (8,)},
            "--feature_sizes=8 contradicts {path}, which says --feature_sizes=4.",
        ),
        (
            {"feature_names": ("rgb", "flow")},
            "--feature_names=rgb,flow contradicts {path}, which says --feature_names=rgb,audio.",
        ),
        (
            {"model": "MoeModel"},
            "MoeModel is a video-level model, but {path} describes frame-level records. Choose",
        ),
    ],
)
def test_flags_that_contradict_the_file_are_rejected(tmp_path, given, message):
    path = saved(tmp_path)
    with pytest.raises(InputError) as caught:
        completed(tmp_path, **given)
    assert str(caught.value).startswith(message.format(path=path))


def test_directories_must_agree_and_the_longest_video_counts(tmp_path):
    first, second, bare = (tmp_path / name for name in ("a", "b", "c"))
    one, two = saved(first), saved(second, max_frames=20, made_by="otherwise", videos=None)
    assert completed(bare, first, second).max_frames == 20
    saved(second, max_frames=None)
    assert completed(first, second).max_frames == RunConfig.max_frames
    for changes, message in (
        ({"num_classes": 11}, "num_classes is 10 and 11."),
        (
            {"features": FRAMES.features[:1]},
            "features is rgb:8 (uint8, min -2, max 2),audio:4 (uint8, min -2, max 2) and rgb:8 "
            "(uint8, min -2, max 2).",
        ),
    ):
        saved(second, **changes)
        with pytest.raises(InputError) as caught:
            completed(first, second)
        assert str(caught.value).startswith(f"{one} and {two} disagree: {message} Train on one")


def test_without_a_file_nothing_changes(tmp_path, monkeypatch):
    config = RunConfig("DbofModel", num_classes=10)
    assert completed(tmp_path, num_classes=10) == config

    def deny(path):
        raise tf.errors.PermissionDeniedError(None, None, "no access")

    saved(tmp_path)
    monkeypatch.setattr(files.gfile, "exists", deny)
    assert completed(tmp_path, num_classes=10) == config


# --- train.py ---


def test_training_needs_no_flags_of_the_data_and_resumes(tmp_path, video_data):
    data = tmp_path / "data"
    shutil.copytree(os.path.dirname(video_data), data)
    sizes = {"mean_rgb": 8, "mean_audio": 4}
    features = [Feature(name=name, size=size, dtype="float32") for name, size in sizes.items()]
    info = DatasetInfo(level="video", features=features, num_classes=10)

    def train(run, steps, *flags):
        model = ("--model=LogisticModel", "--batch_size=16", f"--max_steps={steps}", *flags)
        return programs.train(run, f"{data}/part*.tfrecord", *model) / "model_flags.json"

    with_flags, without = tmp_path / "with_flags", tmp_path / "without"
    expected = train(with_flags, 1, *programs.SMALL_DATA).read_text()
    saved(data, info)
    assert train(without, 1).read_text() == expected
    # Both commands resume both runs.
    assert train(with_flags, 2).read_text() == expected
    assert train(without, 2, *programs.SMALL_DATA).read_text() == expected
    for run in (with_flags, without):
        assert (run / "model.ckpt-2.index").exists()
    with pytest.raises(InputError, match=r"--num_classes=3862 contradicts .*/data/dataset\.json"):
        train(without, 3, "--num_classes=3862")
    saved(data, info, num_classes=12)
    with pytest.raises(InputError, match="num_classes"):
        train(without, 3)


def test_a_pattern_that_matches_several_splits_is_warned_of(tmp_path, logged_warnings):
    saved(tmp_path)
    config = RunConfig("DbofModel")
    paths = [str(tmp_path / f"{split}00000.tfrecord") for split in ("train", "test")]
    dataset_info.complete(config, (), paths[:1])
    assert not logged_warnings
    dataset_info.complete(config, (), paths)
    (warning,) = logged_warnings
    assert "several splits: train, test. Train on one of them, for example " in warning


def test_records_of_an_interrupted_conversion_are_refused(tmp_path):
    (tmp_path / "make_records.json").write_text("{}")
    with pytest.raises(InputError, match=r"are not complete: .* make_records\.py again"):
        completed(tmp_path)
