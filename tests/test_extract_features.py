"""extract_features.py writes the features of every video, and says which have none."""

import json
import shlex

import keras
import numpy as np
import pytest

import extract_features
import programs
from own_data.video_frames import read_frames
from sample_videos import damage, write_levels, write_sound
from utils import InputError

# Fast to build, and with random weights its features are not almost 0.
SMALL = ("--backbone=VGG16", "--weights=none", "--image_size=32")
LEVELS = {"a": 10, "b": 200, "c": 90, "d": 40, "e": 160}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Directory of videos: each gets brighter by 20 levels every second, one has 3 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    for name, level in LEVELS.items():
        seconds = 3 if name == "b" else 2
        write_levels(folder / f"{name}.mp4", [level + 20 * (k // 25) for k in range(25 * seconds)])
    return folder


def extract(pattern, folder, *more):
    return programs.run(
        "extract_features",
        f"--input_data_pattern={pattern}",
        f"--features_dir={folder}",
        *SMALL,
        *more,
    )


def load(folder):
    """Returns the arrays in a directory by name of the video."""
    found = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as content:
            assert list(content) == ["rgb"]
            found[path.stem] = content["rgb"]
    return found


@pytest.fixture(scope="module")
def features(videos, tmp_path_factory):
    """Directory with the features of all videos in float32."""
    folder = tmp_path_factory.mktemp("features")
    extract(videos / "*.mp4", folder, "--feature_dtype=float32")
    return folder


def test_there_is_a_row_of_features_of_the_frame_of_each_second(videos, features):
    keras.utils.set_random_seed(0)
    network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    found = load(features)
    assert set(found) == set(LEVELS)
    for name, level in LEVELS.items():
        images = np.stack(list(read_frames(str(videos / f"{name}.mp4"), 32)))
        expected_levels = [level, level + 20, level + 40][: len(images)]
        np.testing.assert_allclose(images.mean((1, 2, 3)), expected_levels, atol=3)
        # As VGG16 was trained: blue, green, red, each minus its mean over ImageNet.
        expected = np.mean(network(images[..., ::-1] - [103.939, 116.779, 123.68]), axis=(1, 2))
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert len(found["a"]) == 2
    assert len(found["b"]) == 3


def test_the_batch_size_does_not_change_the_features(videos, features, tmp_path):
    # A batch of 3 frames holds frames of several videos.
    extract(videos / "*.mp4", tmp_path, "--batch_size=3", "--feature_dtype=float32")
    for name, values in load(tmp_path).items():
        np.testing.assert_allclose(values, load(features)[name], rtol=1e-4, atol=1e-5)


def test_the_printed_command_makes_records_of_the_features(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_levels("name.v1.mp4", [0])
    extract(f"name.v1.mp4,{videos}/[ab].mp4", "features", "--frames_per_second=2")
    python, program, *flags = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (python, program) == ("python", "make_records.py")
    labels = "id,label\na.mp4,dog\nb.mp4,cat\nname.v1.mp4,dog\n"
    (tmp_path / "labels.csv").write_text(labels)
    programs.run("make_records", *flags)
    info = json.loads((tmp_path / "records" / "dataset.json").read_text())
    assert info["frames_per_second"] == 2
    assert [(entry["name"], entry["size"]) for entry in info["features"]] == [("rgb", 512)]


def test_rate_length_and_type_are_as_asked(videos, tmp_path):
    extract(videos / "b.mp4", tmp_path, "--frames_per_second=5", "--max_frames=12")
    (values,) = load(tmp_path).values()
    assert values.shape == (12, 512)
    assert values.dtype == np.float16
    assert values.std() > 0
    assert np.allclose(values[0], values[4], rtol=0.05, atol=0.01)
    assert not np.allclose(values[4], values[5], rtol=0.05, atol=0.01)


def test_finished_videos_are_left_out(videos, features, tmp_path, monkeypatch):
    extract(videos / "[ab].mp4", tmp_path, "--feature_dtype=float32")
    (tmp_path / "a.npz").write_bytes(b"finished")
    (tmp_path / "b.npz").unlink()
    extract(videos / "*.mp4", tmp_path, "--feature_dtype=float32")
    assert (tmp_path / "a.npz").read_bytes() == b"finished"
    (tmp_path / "a.npz").unlink()
    assert set(load(tmp_path)) == set("bcde")
    np.testing.assert_allclose(load(tmp_path)["b"], load(features)["b"], rtol=1e-4, atol=1e-5)
    extract(videos / "a.mp4", tmp_path, "--feature_dtype=float32")
    # Nothing is left to do, so no network is built.
    monkeypatch.setattr("own_data.backbones.build", None)
    extract(videos / "*.mp4", tmp_path, "--feature_dtype=float32")
    assert set(load(tmp_path)) == set(LEVELS)


def test_an_interrupted_run_leaves_only_whole_files(videos, tmp_path, monkeypatch):
    written = []

    def write(path, features, dtype):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(path, features, dtype)

    original = extract_features.write_features
    monkeypatch.setattr(extract_features, "write_features", write)
    with pytest.raises(KeyboardInterrupt):
        extract(videos / "*.mp4", tmp_path)
    assert len(load(tmp_path)) == 2
    monkeypatch.undo()
    extract(videos / "*.mp4", tmp_path)
    assert set(load(tmp_path)) == set(LEVELS)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".json"}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--frames_per_second=2", "frames_per_second is 1.0 there, 2.0 now"),
        ("--image_size=48", "image_size is 32 there, 48 now"),
        ("--feature_dtype=float16", "feature_dtype is 'float32' there, 'float16' now"),
        ("--backbone=VGG19", "backbone is 'VGG16' there, 'VGG19' now"),
    ],
)
def test_a_directory_takes_features_of_one_kind(videos, features, flag, message):
    with pytest.raises(InputError, match=message):
        extract(videos / "*.mp4", features, "--feature_dtype=float32", flag)


def test_another_file_of_weights_is_another_kind_of_features(videos, features, tmp_path):
    path = tmp_path / "a.weights.h5"
    keras.applications.VGG16(weights=None, include_top=False).save_weights(str(path))
    with pytest.raises(InputError, match="weights is 'none' there"):
        extract(videos / "*.mp4", features, "--feature_dtype=float32", f"--weights={path}")


def test_features_of_somebody_else_are_not_added_to(videos, tmp_path):
    (tmp_path / "other.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"no extract_features\.json"):
        extract(videos / "*.mp4", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.npz"]


def test_videos_that_cannot_be_decoded_are_named_and_the_others_have_features(
    videos, tmp_path, capsys
):
    folder, output = tmp_path / "videos", tmp_path / "features"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"not a video")
    write_sound(folder / "sound.m4a")
    write_levels(folder / "short.mp4", [100, 0, 0])
    write_levels(folder / "damaged.mp4", [2 * k for k in range(75)])
    damage(folder / "damaged.mp4", 40)
    pattern = f"{folder}/*,{videos}/a.mp4"
    with pytest.raises(InputError) as error:
        extract(pattern, output)
    assert "2 of 5 videos" in str(error.value)
    assert "broken.mp4 (Invalid data found" in str(error.value)
    assert "sound.m4a (no video stream)" in str(error.value)
    found = load(output)
    assert {name: len(values) for name, values in found.items()} == {
        "a": 2,
        "short": 1,
        "damaged": 2,
    }
    assert "make_records.py" in capsys.readouterr().out
    # The next run tries those without features again.
    write_levels(folder / "broken.mp4", [0] * 25)
    (folder / "sound.m4a").unlink()
    extract(pattern, output)
    assert set(load(output)) == {"a", "short", "damaged", "broken"}


def test_two_videos_of_one_name_are_refused(videos, tmp_path):
    write_levels(tmp_path / "a.mkv", [0])
    with pytest.raises(InputError, match=r"both .*a\.m.* and .*a\.m.* would be a\.npz"):
        extract(f"{videos}/a.mp4,{tmp_path}/a.mkv", tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_features_that_do_not_fit_float16_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    values = np.full((2, 3), 1e6, np.float32)
    with pytest.raises(InputError, match="--feature_dtype=float32"):
        extract_features.write_features(str(path), values, "float16")
    assert not path.exists()
    extract_features.write_features(str(path), values, "float32")
    assert load(tmp_path)["a"].tolist() == values.tolist()


def test_bad_settings_fail_before_the_directory_is_created(videos, tmp_path):
    for flag in ("--weights=missing.h5", "--backbone=Inception", "--image_size=8"):
        with pytest.raises(InputError, match=flag.partition("=")[2]):
            extract(videos / "*.mp4", tmp_path / "features", flag)
    assert not (tmp_path / "features").exists()


def test_the_settings_are_saved(features):
    assert json.loads((features / "extract_features.json").read_text()) == {
        "backbone": "VGG16",
        "frames_per_second": 1.0,
        "max_frames": 300,
        "feature_dtype": "float32",
        "weights": "none",
        "image_size": 32,
    }


@pytest.mark.slow
def test_the_program_reports_skipped_videos_by_its_exit_status(videos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    result = programs.run_command(
        "extract_features.py",
        f"--input_data_pattern={tmp_path}/broken.mp4,{videos}/a.mp4",
        f"--features_dir={tmp_path / 'features'}",
        *SMALL,
    )
    assert result.returncode == 1
    assert "error: 1 of 2 videos cannot be decoded" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(load(tmp_path / "features")["a"]) == 2
