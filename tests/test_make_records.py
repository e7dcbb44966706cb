"""Records of one's own features and labels, end to end."""

import csv
import json
import pathlib

import numpy as np
import pandas as pd
import pytest

import dataset_info
import files
import make_records
import programs
import vocabulary
from dataset_info import DatasetInfo
from make_records import RecordsOptions
from own_data import feature_storage, record_plan, record_state
from run_config import RunConfig
from utils import InputError

SIZE = 6
LABELS = ("cat", "dog", "bird")
CLASSES = {"cat": 0, "bird": 1, "dog": 2}


def clips(count, size=SIZE, seed=0, num_frames=(2, 9)):
    """Returns random features `[T, D]` by id."""
    rng = np.random.default_rng(seed)
    return {
        f"v{number:03d}": rng.normal(size=(rng.integers(*num_frames), size)).astype(np.float32)
        for number in range(count)
    }


def labels_of(video_ids):
    """Returns one or two labels by id: cat is the most frequent one."""
    return {
        name: [LABELS[number % 3], "cat"][: 1 + (number % 3 > 0)]
        for number, name in enumerate(video_ids)
    }


def write_clips(folder, features, ending=""):
    folder.mkdir(exist_ok=True)
    for name, values in features.items():
        np.save(folder / f"{name}{ending}.npy", values)


def write_labels(folder, labels):
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "label"), *((name, ";".join(v)) for name, v in labels.items())])


def write_input(folder, features):
    """Writes features and labels."""
    write_clips(folder / "clips", features)
    write_labels(folder, labels_of(features))
    return features


def options(folder, **changes):
    given = {
        "input_data_pattern": str(folder / "clips" / "*.npy"),
        "labels_file": str(folder / "labels.csv"),
        "output_dir": str(folder / "records"),
    }
    return RecordsOptions(**{**given, **changes})


def make(folder, **changes):
    return make_records.make_records(options(folder, **changes))


def read(folder, split=""):
    """Returns the videos of a split as training reads them: classes and stored values by id."""
    paths = sorted(map(str, (folder / "records").glob(f"{split}*.tfrecord")))
    config = dataset_info.complete(RunConfig("DbofModel"), (), paths)
    reader = config.data.reader(paths)
    videos = [video for path in paths for video in reader.read_file(path)]
    assert len({video.video_id for video in videos}) == len(videos)
    return {video.video_id: (video.labels.tolist(), video.features) for video in videos}


def restored(folder):
    """Returns the values of the only feature by id, computed from dataset.json and the bytes."""
    (feature,) = json.loads((folder / "records" / "dataset.json").read_text())["features"]
    found = {name: features[0] for name, (_, features) in read(folder).items()}
    if feature["dtype"] != "uint8":
        return found
    low, high = (np.array(feature["quantization"][end]) for end in ("min", "max"))
    return {
        name: stored * ((high - low) / 255) + low + (high - low) / 512
        for name, stored in found.items()
    }


def record_files(folder):
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


# --- Content --------------------------------------------------------------------------------------


def test_records_have_the_values_labels_and_splits_of_the_input(tmp_path):
    features = write_input(tmp_path, clips(60))
    summary = make(tmp_path, storage=("float32",), eval_fraction=0.2, test_fraction=0.1)
    expected = labels_of(features)
    for split in ("train", "validate", "test"):
        found = read(tmp_path, split)
        names = {name for name in features if record_plan.split_of(name, (0.2, 0.1)) == split}
        assert set(found) == names
        assert len(names) == summary.info.videos[split] > 0
        for name, (labels, (values,)) in found.items():
            assert labels == sorted(CLASSES[label] for label in expected[name])
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, features[name])


def test_dataset_json_and_vocabulary_describe_the_records(tmp_path):
    features = write_input(tmp_path, clips(30))
    make(tmp_path, frames_per_second=2.5)
    info = DatasetInfo.load(str(tmp_path / "records" / "dataset.json"))
    assert (info.level, info.num_classes, info.frames_per_second) == ("frame", 3, 2.5)
    assert info.max_frames == max(map(len, features.values()))
    assert sum(info.videos.values()) == 30
    assert "python make_records.py" in info.made_by
    assert "--frames_per_second=2.5" in info.made_by
    assert "--output_dir" not in info.made_by
    path = str(tmp_path / "records" / info.vocabulary)
    names = vocabulary.read_class_names(path)
    assert names == {number: name for name, number in CLASSES.items()}
    counts = [0.0] * 3
    for labels, _ in read(tmp_path, "train").values():
        for label in labels:
            counts[label] += 1
    assert vocabulary.read_numbers(path, "TrainVideoCount", 3) == counts
    assert min(counts) > 0


@pytest.mark.parametrize(("storage", "most"), [("uint8", 0.01), ("float16", 0.0005)])
@pytest.mark.parametrize("size", [512, 768])
def test_unit_length_vectors_come_back_with_a_small_error(tmp_path, size, storage, most):
    features = clips(200, size, num_frames=(20, 21))
    for name, values in features.items():
        features[name] = values / np.linalg.norm(values, axis=1, keepdims=True)
    write_input(tmp_path, features)
    make(tmp_path, **({} if storage == "uint8" else {"storage": (storage,)}))
    found = restored(tmp_path)
    actual, expected = (np.concatenate([v[name] for name in features]) for v in (found, features))
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < most


def test_one_range_for_the_whole_feature(tmp_path):
    features = write_input(tmp_path, clips(40))
    make(tmp_path, quantization="feature")
    (feature,) = DatasetInfo.load(str(tmp_path / "records" / "dataset.json")).features
    assert type(feature.quantization["min"]) is float
    for name, values in restored(tmp_path).items():
        np.testing.assert_allclose(values, features[name], atol=0.05)


def test_arrays_of_bytes_with_a_stated_range_stay_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    features = {f"v{number}": rng.integers(0, 256, (5, 4), np.uint8) for number in range(12)}
    write_input(tmp_path, features)
    make(tmp_path, quantization_range=(-2.0, 2.0))
    (feature,) = DatasetInfo.load(str(tmp_path / "records" / "dataset.json")).features
    assert feature.quantization == {"min": -2.0, "max": 2.0}
    for name, (_, (stored,)) in read(tmp_path).items():
        np.testing.assert_array_equal(stored, features[name])


def test_every_feature_may_have_its_own_storage(tmp_path):
    image, sound = clips(20), clips(20, size=3)
    write_clips(tmp_path / "clips", image, ".image")
    write_clips(tmp_path / "clips", sound, ".sound")
    write_labels(tmp_path, labels_of(image))
    with pytest.raises(InputError, match=r"equal numbers of frames.*--trim_features"):
        make(tmp_path, feature_names=("image", "sound"))
    given = {"feature_names": ("image", "sound"), "storage": ("float16", "uint8")}
    summary = make(tmp_path, trim_features=True, **given)
    assert [(f.name, f.size, f.dtype) for f in summary.info.features] == [
        ("image", 6, "float16"),
        ("sound", 3, "uint8"),
    ]
    for name, (_, stored) in read(tmp_path).items():
        length = min(len(image[name]), len(sound[name]))
        np.testing.assert_array_equal(stored[0], image[name][:length].astype(np.float16))
        assert stored[1].shape == (length, 3)


def test_labels_of_the_feature_files_are_taken_without_a_labels_file(tmp_path):
    write_input(tmp_path, clips(20))
    make(tmp_path, storage=("float16",))
    pattern = str(tmp_path / "records" / "*.tfrecord")
    (tmp_path / "again").mkdir()
    given = {"input_data_pattern": pattern, "bytes_dtype": "float16", "storage": ("float16",)}
    make(tmp_path / "again", labels_file=None, **given)
    first, again = (
        {name: (labels, values.tolist()) for name, (labels, (values,)) in read(folder).items()}
        for folder in (tmp_path, tmp_path / "again")
    )
    assert first == again


def test_labels_of_the_feature_files_are_kept_with_videos_that_have_none(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = {"id": ["a", "b"], "x": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], "labels": [[2], []]}
    pd.DataFrame(rows).to_parquet(folder / "clips.parquet")
    given = {"input_data_pattern": str(folder), "labels_file": None, "storage": ("float32",)}
    make(tmp_path, keep_unlabeled=True, **given)
    found = read(tmp_path)
    assert {name: labels for name, (labels, _) in found.items()} == {"a": [2], "b": []}
    assert found["b"][1][0].tolist() == [[3, 4], [5, 6]]


def test_a_column_assigns_the_splits(tmp_path):
    features = write_input(tmp_path, clips(12))
    rows = [(name, "x", ("training", "val", "odd")[i % 3]) for i, name in enumerate(features)]
    lines = ["id,label,part", *map(",".join, rows)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    summary = make(tmp_path, split_column="part")
    assert summary.info.videos == {"train": 4, "validate": 4, "odd": 4}
    assert set(read(tmp_path, "odd")) == {name for name, _, part in rows if part == "odd"}


def test_videos_are_mixed_although_the_input_is_sorted(tmp_path):
    features = clips(400, size=2)
    write_clips(tmp_path / "clips", features)
    write_labels(tmp_path, {name: [str(int(name > "v199"))] for name in features})
    make(tmp_path, eval_fraction=0.0, videos_per_file=100)
    for number in range(4):
        labels = [labels for labels, _ in read(tmp_path, f"train{number:05d}").values()]
        halves = np.reshape(labels, [2, 50]).mean(axis=1)
        assert abs(halves - 0.5).max() < 0.25


def test_files_hold_the_same_number_of_videos(tmp_path):
    write_input(tmp_path, clips(45))
    summary = make(tmp_path, eval_fraction=0.0, videos_per_file=10)
    assert [pathlib.Path(path).name for path in summary.files] == [
        f"train{number:05d}.tfrecord" for number in range(5)
    ]
    counts = [len(read(tmp_path, f"train{number:05d}")) for number in range(5)]
    assert counts == [9] * 5


def test_a_split_without_videos_is_reported(tmp_path, caplog):
    write_input(tmp_path, clips(5))
    make(tmp_path, eval_fraction=1e-6)
    assert "no video belongs to validate" in caplog.text
    assert "no video belongs to train" not in caplog.text


def test_few_videos_still_make_several_training_files(tmp_path):
    write_input(tmp_path, clips(40))
    summary = make(tmp_path, eval_fraction=0.0)
    assert len(summary.files) == make_records._MIN_FILES


# --- New videos for a model -----------------------------------------------------------------------


def test_new_videos_are_stored_like_the_records_of_a_model(tmp_path):
    write_input(tmp_path, clips(30))
    make(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    features = {f"new{name}": values * 3 for name, values in clips(10, seed=1).items()}
    write_clips(new / "clips", features)
    like = str(tmp_path / "records" / "dataset.json")
    given = {"like": like, "labels_file": None, "keep_unlabeled": True}
    info, expected = make(new, **given).info, DatasetInfo.load(like)
    assert info.features == expected.features
    assert info.num_classes == expected.num_classes
    assert all(labels == [] for labels, _ in read(new).values())
    (feature,) = info.features
    for name, (_, (stored,)) in read(new).items():
        expected_bytes = feature.storage.quantization.quantize(features[name])
        np.testing.assert_array_equal(stored, expected_bytes)


def test_new_videos_are_for_prediction_and_all_in_one_split(tmp_path, capsys, caplog):
    write_input(tmp_path, clips(30))
    make(tmp_path)
    caplog.clear()
    new = tmp_path / "new"
    new.mkdir()
    write_clips(new / "clips", clips(10))
    flags = (
        f"--input_data_pattern={new}/clips/*.npy",
        f"--like={tmp_path}/records/dataset.json",
        f"--output_dir={new}/records",
    )
    with pytest.raises(InputError, match=r"none of 10 videos has a label\..*give --keep_unlabeled"):
        programs.run("make_records", *flags)
    programs.run("make_records", *flags, "--keep_unlabeled")
    text = capsys.readouterr().out
    assert "videos    10 test\n" in text
    assert "classes   3\n" in text
    assert "train.py" not in text
    assert f"python inference.py --train_dir=run '--input_data_pattern={new}/records/" in text
    assert "no video belongs" not in caplog.text
    more = ("--keep_unlabeled", "--eval_fraction=0.5", "--overwrite")
    programs.run("make_records", *flags, *more)
    assert set(read(new, "train")) | set(read(new, "validate")) == set(clips(10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": ("float16",)}, "--like and --storage contradict each other"),
        ({"quantization": "feature"}, "--like and --quantization contradict each other"),
    ],
)
def test_like_fixes_the_storage(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        options(tmp_path, like="dataset.json", **changes)


def test_like_takes_records_of_frames_with_a_vocabulary(tmp_path):
    write_input(tmp_path, clips(3))
    programs.run(
        "make_sample_data",
        f"--output_dir={tmp_path}/v",
        "--level=video",
        "--num_videos=1",
        "--shards=1",
    )
    with pytest.raises(InputError, match="describes video-level records"):
        make(tmp_path, like=str(tmp_path / "v" / "dataset.json"))


# --- Resuming -------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_an_interrupted_run_continues_and_gives_the_same_bytes(tmp_path, monkeypatch, calls):
    (tmp_path / "whole").mkdir()
    features = write_input(tmp_path / "whole", clips(40))
    given = {"videos_per_file": 8, "input_data_pattern": str(tmp_path / "whole" / "clips" / "*")}
    given["labels_file"] = str(tmp_path / "whole" / "labels.csv")
    make(tmp_path / "whole", **given)
    expected = record_files(tmp_path / "whole")
    # One file at a time.
    monkeypatch.setattr(make_records, "_MEMORY_BYTES", 1)
    with monkeypatch.context() as patch:
        write, count = make_records._write_file, [0]

        def fail(*arguments):
            if count[0] == calls:
                raise Killed
            count[0] += 1
            write(*arguments)

        patch.setattr(make_records, "_write_file", fail)
        with pytest.raises(Killed):
            make(tmp_path, **given)
    assert len(list((tmp_path / "records").glob("*.tfrecord"))) == calls
    assert not (tmp_path / "records" / "dataset.json").exists()

    read_ids = []
    usable = make_records._usable

    def watch(found, *arguments):
        for clip in usable(found, *arguments):
            read_ids.append(clip.video_id)
            yield clip

    monkeypatch.setattr(make_records, "_usable", watch)
    summary = make(tmp_path, **given)
    assert record_files(tmp_path) == expected
    assert len(read_ids) == len(features) - sum(
        len(read(tmp_path, pathlib.Path(path).stem)) for path in summary.files[:calls]
    )


def test_a_finished_directory_is_left_as_it_is(tmp_path, monkeypatch):
    write_input(tmp_path, clips(20))
    first = make(tmp_path)
    before = record_files(tmp_path)
    monkeypatch.setattr(make_records, "_write_file", None)
    assert make(tmp_path) == first
    assert record_files(tmp_path) == before


def test_another_input_or_other_settings_are_refused_with_what_differs(tmp_path):
    write_input(tmp_path, clips(20))
    make(tmp_path)
    before = record_files(tmp_path)
    with pytest.raises(InputError, match=r"storage: \['uint8'\] there, \['float16'\] now.*--overw"):
        make(tmp_path, storage=("float16",))
    write_input(tmp_path, clips(21))
    with pytest.raises(InputError, match=r"videos: '20 with digest .*' there, '21 with .*' now"):
        make(tmp_path)
    assert record_files(tmp_path) == before


def test_overwrite_replaces_all_files_of_other_settings_and_keeps_others(tmp_path):
    write_input(tmp_path, clips(20))
    make(tmp_path, videos_per_file=2)
    (tmp_path / "records" / "notes.txt").write_text("mine")
    make(tmp_path, videos_per_file=10, overwrite=True)
    found = record_files(tmp_path)
    assert found.pop("notes.txt") == b"mine"
    (tmp_path / "records").rename(tmp_path / "old")
    make(tmp_path, videos_per_file=10)
    assert found == record_files(tmp_path)


@pytest.mark.parametrize("name", ["part.tfrecord", "dataset.json", "vocabulary.csv"])
def test_files_of_another_data_set_are_not_touched(tmp_path, name):
    write_input(tmp_path, clips(5))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / name).write_text("")
    with pytest.raises(InputError, match=f"holds files of another data set \\('{name}'\\)"):
        make(tmp_path, overwrite=True)
    assert record_files(tmp_path) == {name: b""}


def test_a_broken_state_is_named(tmp_path):
    write_input(tmp_path, clips(5))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / record_state.FILE).write_text('{"settings": 1}')
    with pytest.raises(InputError, match=r"make_records\.json does not fit this version"):
        make(tmp_path)


def test_records_are_written_to_remote_directories_alike(tmp_path):
    write_input(tmp_path, clips(20))
    make(tmp_path)
    folder = "ram://make_records/new"
    paths = make(tmp_path, output_dir=folder).files
    for path in [*paths, f"{folder}/dataset.json", f"{folder}/vocabulary.csv"]:
        content = (tmp_path / "records" / path.rpartition("/")[2]).read_bytes()
        assert files.gfile.GFile(path, "rb").read() == content
    assert make(tmp_path, output_dir=folder).files == paths


def test_a_directory_that_cannot_be_written_is_reported(tmp_path):
    write_input(tmp_path, clips(5))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/inside"):
        make(tmp_path, output_dir=str(tmp_path / "file" / "inside"))


def test_two_runs_at_once_are_refused(tmp_path):
    write_input(tmp_path, clips(5))
    with (
        files.lock(str(tmp_path / "records" / "make_records.lock")),
        pytest.raises(InputError, match=r"another make_records\.py writes to"),
    ):
        make(tmp_path)


# --- Bad input ------------------------------------------------------------------------------------


def test_videos_without_frames_are_counted_named_and_left_out(tmp_path, caplog):
    features = clips(20)
    features["v003"] = features["v007"] = np.zeros((0, SIZE), np.float32)
    write_input(tmp_path, features)
    summary = make(tmp_path)
    assert sorted(summary.without_frames) == ["v003", "v007"]
    assert "2 videos ('v00" in caplog.text
    assert "') without frames left out" in caplog.text
    assert set(read(tmp_path)) == set(features) - {"v003", "v007"}
    assert make(tmp_path) == summary


def test_videos_that_are_zero_are_counted_and_named(tmp_path, caplog):
    features = clips(20)
    features["v004"] = np.zeros_like(features["v004"])
    write_input(tmp_path, features)
    make(tmp_path)
    assert "features is zero in 1 video ('v004')" in caplog.text
    assert "same value" not in caplog.text


def test_a_feature_that_is_zero_everywhere_is_refused(tmp_path):
    write_input(tmp_path, {name: 0 * values for name, values in clips(5).items()})
    with pytest.raises(InputError, match="features is zero in all of 5 videos of a sample"):
        make(tmp_path, eval_fraction=0.0)


def test_constant_dimensions_are_named(tmp_path, caplog):
    features = clips(20)
    for values in features.values():
        values[:, 2], values[:, 5] = 0, 7
    write_input(tmp_path, features)
    make(tmp_path)
    assert "in 2 of 6 dimensions: 2, 5" in caplog.text
    for name, values in restored(tmp_path).items():
        np.testing.assert_allclose(values[:, [2, 5]], features[name][:, [2, 5]], atol=1e-6)


def test_values_far_from_all_others_are_named(tmp_path, caplog):
    features = clips(100, num_frames=(20, 21))
    features["v000"][0, 3] = 1e4
    write_input(tmp_path, features)
    make(tmp_path, eval_fraction=0.0)
    assert "few values far from all others" in caplog.text
    assert "in 1 of 6 dimensions: 3" in caplog.text


def test_clipped_values_are_reported_with_a_remedy(tmp_path, caplog):
    features = write_input(tmp_path, clips(50))
    summary = make(tmp_path, quantization_range=(-1.0, 1.0))
    values = np.concatenate(list(features.values()))
    step = 2 / 255
    beyond = (values < -1 + 2 / 512 - step / 2) | (values > 1 + 2 / 512 + step / 2)
    assert summary.clipped["features"] == pytest.approx(beyond.mean())
    assert f"{100 * beyond.mean():.2f} % of the values of features are beyond" in caplog.text
    assert "--storage=float16" in caplog.text
    caplog.clear()
    make(tmp_path, overwrite=True)
    assert "beyond" not in caplog.text


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("v002", np.full((2, SIZE), np.nan), r"v002\.npy: features has nan in frame 0"),
        (
            "v002",
            np.ones((2, SIZE + 1)),
            r"v002\.npy: features must be \[frames, 6\].*shape \[2, 7\]",
        ),
        ("v002", np.ones((SIZE, 3)), r"v002.*seems to be transposed"),
        ("v002", np.ones(SIZE), r"v002\.npy: features must be \[frames, values\]"),
        ("v002", np.ones((2, SIZE), np.uint8), r"v002\.npy: features must be floats.*uint8"),
    ],
)
def test_a_clip_that_is_not_usable_is_refused(tmp_path, name, values, message):
    write_input(tmp_path, {**clips(5), name: values})
    with pytest.raises(InputError, match=message):
        make(tmp_path)


def test_arrays_of_bytes_need_a_range(tmp_path):
    write_input(tmp_path, {name: values.astype(np.uint8) for name, values in clips(5).items()})
    with pytest.raises(InputError, match=r"features holds uint8.*--quantization_range=-2,2"):
        make(tmp_path)


def test_a_clip_that_is_not_usable_is_found_after_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_storage, "SAMPLE_VIDEOS", 2)
    features = clips(30)
    features["v029"][0, 0] = np.inf
    write_input(tmp_path, features)
    with pytest.raises(InputError, match=r"v029\.npy: features has inf in frame 0, dimension 0"):
        make(tmp_path)


def test_arrays_that_are_all_transposed_alike_are_reported(tmp_path, caplog):
    features = clips(20, size=3, num_frames=(8, 9))
    write_input(tmp_path, features)
    make(tmp_path, eval_fraction=0.0)
    assert (
        "all of 20 videos of a sample have 8 frames, but frames have fewer values: features 3."
        in (caplog.text)
    )
    assert "transpose them" in caplog.text


@pytest.mark.parametrize(("size", "num_frames"), [(3, (8, 10)), (9, (8, 9))])
def test_arrays_of_frames_are_not_taken_for_transposed(tmp_path, caplog, size, num_frames):
    write_input(tmp_path, clips(20, size=size, num_frames=num_frames))
    make(tmp_path, eval_fraction=0.0)
    assert "transpose" not in caplog.text


def test_a_labels_file_without_a_header_is_refused(tmp_path):
    features = write_input(tmp_path, clips(5))
    lines = (tmp_path / "labels.csv").read_text().split("\n")
    (tmp_path / "labels.csv").write_text("\n".join(lines[1:]))
    first = next(iter(features))
    with pytest.raises(InputError, match=f"labels.csv is no header: '{first}' is the id of a vid"):
        make(tmp_path)


def test_the_same_id_twice_is_refused(tmp_path):
    features = write_input(tmp_path, clips(5))
    write_clips(tmp_path / "more", features)
    with pytest.raises(InputError, match="the id 'v000' occurs twice"):
        make(tmp_path, input_data_pattern=f"{tmp_path}/clips/*.npy,{tmp_path}/more/*.npy")


def test_videos_without_a_labels_file_are_refused_if_the_files_hold_no_labels(tmp_path):
    write_input(tmp_path, clips(5))
    with pytest.raises(InputError, match="the feature files: none of 5 videos has a label"):
        make(tmp_path, labels_file=None)


def test_float16_must_hold_the_values(tmp_path):
    write_input(tmp_path, {name: values * 1e6 for name, values in clips(5).items()})
    with pytest.raises(InputError, match=r"v00.\.npy: .*float16 holds at most 65504.*float32"):
        make(tmp_path, storage=("float16",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": ("int8",)}, "--storage must be one of uint8, float16, float32"),
        ({"quantization_range": (1.0,)}, "--quantization_range must be two numbers MIN,MAX"),
        ({"quantization_range": (2.0, 1.0)}, "--quantization_range: .*finite min below"),
        ({"videos_per_file": 0}, "--videos_per_file must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        options(tmp_path, **changes)


def test_there_must_be_a_type_for_each_feature(tmp_path):
    write_input(tmp_path, clips(5))
    with pytest.raises(InputError, match="--storage must be one type, or one for each feature"):
        make(tmp_path, storage=("uint8", "float16"))


# --- The program ----------------------------------------------------------------------------------


def test_the_program_prints_counts_and_a_command_that_trains(tmp_path, capsys):
    features = clips(60)
    features["v010"] = features["v010"][:0]
    write_clips(tmp_path / "clips", features)
    labels = labels_of(features)
    del labels["v011"], labels["v012"]
    write_labels(tmp_path, labels)
    programs.run(
        "make_records",
        f"--input_data_pattern={tmp_path}/clips/*.npy",
        f"--labels_file={tmp_path}/labels.csv",
        f"--output_dir={tmp_path}/records",
    )
    text = capsys.readouterr().out
    counts = {split: len(read(tmp_path, split)) for split in ("train", "validate")}
    assert f"videos    {counts['train']} train, {counts['validate']} validate" in text
    assert "left out  2 without labels, 1 without frames" in text
    assert "features  features (6 values, uint8, 0.0" in text
    assert "classes   3: cat " in text
    (line,) = (line for line in text.splitlines() if line.startswith("python train.py"))
    assert f"{tmp_path}/records/train*.tfrecord" in line
    data = tmp_path / "records" / "train*.tfrecord"
    small = (
        "--model=FrameLevelLogisticModel",
        "--iterations=4",
        "--batch_size=16",
        "--max_steps=2",
    )
    programs.train(tmp_path / "run", data, *small)
    assert RunConfig.load(str(tmp_path / "run")).num_classes == 3


def test_the_report_names_the_most_frequent_classes_and_counts_empty_ones(tmp_path, capsys):
    write_clips(tmp_path / "clips", clips(6))
    write_labels(tmp_path, {f"v{number:03d}": [str(1 + number % 4)] for number in range(6)})
    given = options(tmp_path, eval_fraction=0.0)
    make_records.main(given)
    assert "classes   5 (1 without videos): 1 2, 2 2, 3 1, 4 1\n" in capsys.readouterr().out
