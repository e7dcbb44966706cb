"""Sources of features return the arrays that files of every kind hold, or say what is wrong."""

import gzip
import json
import pathlib
import sys

import numpy as np
import pytest

import feature_files
from feature_files import (
    npy_bytes,
    npz_bytes,
    random_clips,
    sequence_example,
    write_members,
    write_table,
)
from own_data.clips import ClipChecker, ClipError, EmptyClipError, SourceOptions
from own_data.feature_sources import open_source
from sample_records import (
    bytes_feature,
    flip_bit,
    float_feature,
    frame_record,
    video_record,
    write_records,
)
from utils import InputError

WRITERS = {
    name.removeprefix("write_"): getattr(feature_files, name)
    for name in dir(feature_files)
    if name.startswith("write_") and name not in ("write_members", "write_table", "write_records")
}
# Sources of files that name every feature, and so need no names from the user.
SELF_NAMING = sorted(set(WRITERS) - {"npy"})


@pytest.fixture(autouse=True)
def needs_optional_packages(request):
    kind = getattr(request, "param", request.node.name)
    if "hdf5" in str(kind):
        pytest.importorskip("h5py", reason="needs requirements/hdf5.txt")
    if "parquet" in str(kind) or "rows" in str(kind) or "columns" in str(kind):
        pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")


def source(pattern, **options):
    return open_source(str(pattern), SourceOptions(**options))


def read(pattern, wanted=None, **options):
    """Returns the features by video id."""
    return {clip.video_id: clip.features for clip in source(pattern, **options).clips(wanted)}


def error_of(pattern, **options):
    """Returns the message of the error that listing and reading raises."""

    def list_and_read():
        opened = source(pattern, **options)
        opened.ids()
        list(opened.clips())

    with pytest.raises(InputError) as caught:
        list_and_read()
    return str(caught.value)


def assert_equal_clips(actual, expected):
    assert list(actual) == list(expected)
    for video_id, features in expected.items():
        assert list(actual[video_id]) == list(features)
        for name, values in features.items():
            assert actual[video_id][name].dtype == values.dtype
            np.testing.assert_array_equal(actual[video_id][name], values)


# --- All kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_returns_what_was_written(tmp_path, kind):
    clips = random_clips(9)
    path = WRITERS[kind](tmp_path, clips)
    names = ("rgb", "audio")
    assert_equal_clips(read(path, feature_names=names), clips)
    assert source(path, feature_names=names).ids() == list(clips)


@pytest.mark.parametrize("kind", WRITERS)
def test_only_wanted_clips_are_read_in_the_order_of_the_files(tmp_path, kind):
    clips = random_clips(9)
    path = WRITERS[kind](tmp_path, clips)
    wanted = ["v7", "v2", "unknown"]
    expected = {video_id: clips[video_id] for video_id in ("v2", "v7")}
    assert_equal_clips(read(path, wanted, feature_names=("rgb", "audio")), expected)
    assert read(path, [], feature_names=("rgb", "audio")) == {}


@pytest.mark.parametrize("kind", SELF_NAMING)
def test_features_are_selected_ordered_and_renamed(tmp_path, kind):
    clips = random_clips(3)
    path = WRITERS[kind](tmp_path, clips)
    assert set(read(path)["v0"]) == {"rgb", "audio"}
    renamed = read(path, feature_names=("sound", "rgb"), rename=("audio:sound",))
    expected = {
        video_id: {"sound": features["audio"], "rgb": features["rgb"]}
        for video_id, features in clips.items()
    }
    assert_equal_clips(renamed, expected)
    assert list(read(path, feature_names=("audio",))["v2"]) == ["audio"]
    message = error_of(path, feature_names=("flow", "depth"))
    assert "no such feature. Expected: flow, depth. It has: " in message
    assert "rgb" in message
    assert "--rename=STORED:NAME" in message


@pytest.mark.parametrize("kind", WRITERS)
def test_a_clip_names_the_place_it_comes_from(tmp_path, kind):
    path = WRITERS[kind](tmp_path, random_clips(3))
    for clip in source(path, feature_names=("rgb", "audio")).clips():
        assert str(tmp_path) in clip.origin
        assert clip.video_id in clip.origin or "row " in clip.origin or "record " in clip.origin


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_file_is_named(tmp_path, kind):
    WRITERS[kind](tmp_path, random_clips(3))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert str(tmp_path) in error_of(tmp_path, feature_names=("rgb", "audio"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_with_other_content_is_named(tmp_path, kind):
    WRITERS[kind](tmp_path, random_clips(3))
    for path in tmp_path.iterdir():
        path.write_bytes(b"This is text, whatever its name says. " * 30)
    assert str(tmp_path) in error_of(tmp_path, feature_names=("rgb", "audio"))


@pytest.mark.parametrize("kind", sorted(set(WRITERS) - {"npy", "npz", "messages"}))
def test_a_repeated_id_is_refused_with_both_places(tmp_path, kind):
    clips = random_clips(3)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        WRITERS[kind](tmp_path / folder, {folder: clips["v1"], "v2": clips["v2"]})
    with pytest.raises(InputError, match=r"the id 'v2' occurs twice: .*/a/.* and .*/b/") as caught:
        source(f"{tmp_path}/a/*,{tmp_path}/b/*").ids()
    assert "Each video must have its own id" in str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_remote_files_are_read_alike(tmp_path, kind):
    clips = random_clips(3)
    WRITERS[kind](tmp_path, clips)
    names = ("rgb", "audio")
    assert_equal_clips(read(f"file://{tmp_path}/*", feature_names=names), clips)


# --- The choice of the source ---------------------------------------------------------------------


def test_a_directory_stands_for_its_files_of_known_kinds(tmp_path):
    feature_files.write_npz(tmp_path, random_clips(3))
    (tmp_path / "README.txt").write_text("not a feature")
    (tmp_path / "inner").mkdir()
    assert source(tmp_path).ids() == ["v0", "v1", "v2"]
    assert source(f"{tmp_path}/v1.npz\n{tmp_path}/").ids() == ["v0", "v1", "v2"]


def test_a_directory_without_known_files_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("id,label\n")
    assert f"{tmp_path} has no files of a known kind: .npy, .npz, .tar" in error_of(tmp_path)


def test_files_of_two_kinds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    np.savez(tmp_path / "b.npz", rgb=np.ones((2, 3)))
    message = error_of(tmp_path)
    assert f"records of two kinds in one pattern: {tmp_path}/a.npy and {tmp_path}/b.npz" in message


def test_an_unknown_file_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    (tmp_path / "labels.csv").write_text("id,label\n")
    message = error_of(f"{tmp_path}/*")
    assert f"{tmp_path}/labels.csv is of no known kind: .npy" in message
    assert "Leave other files out of the pattern" in message


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_tfrecord_files_of_any_name_are_recognized(tmp_path, compress):
    clips = random_clips(2)
    path = pathlib.Path(feature_files.write_float_records(tmp_path, clips))
    path.with_name("shard-00000-of-00001").write_bytes(compress(path.read_bytes()))
    found = read(tmp_path / "shard-*")
    assert list(found) == list(clips)
    assert list(found["v0"]) == ["audio", "rgb"]
    np.testing.assert_array_equal(found["v1"]["rgb"], clips["v1"]["rgb"])


# --- .npy and .npz --------------------------------------------------------------------------------


def test_an_npy_file_without_a_name_holds_the_only_feature(tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    np.save(tmp_path / "v.1.npy", values)
    assert_equal_clips(read(tmp_path), {"v.1": {"features": values}})
    assert_equal_clips(read(tmp_path, feature_names=("rgb",)), {"v.1": {"rgb": values}})
    assert_equal_clips(read(tmp_path, rename=("features:clip",)), {"v.1": {"clip": values}})


def test_npy_files_name_their_feature_after_a_dot_or_underscore(tmp_path):
    values = np.ones((2, 3))
    for name in ("a.rgb", "a.audio", "b_c_rgb", "b_c_audio"):
        np.save(tmp_path / f"{name}.npy", values)
    both = {"rgb": values, "audio": values}
    assert_equal_clips(read(tmp_path, feature_names=("rgb", "audio")), {"a": both, "b_c": both})
    only = read(f"{tmp_path}/*rgb.npy", feature_names=("clip",), rename=("rgb:clip",))
    assert_equal_clips(only, {"a": {"clip": values}, "b_c": {"clip": values}})


def test_npy_files_may_name_their_feature_by_their_directory(tmp_path):
    clips = random_clips(4, (("feats", 6), ("sound", 3)))
    for name in ("feats", "sound"):
        (tmp_path / name).mkdir()
        for video_id, features in clips.items():
            np.save(tmp_path / name / f"{video_id}.npy", features[name])
    pattern = f"{tmp_path}/feats/*.npy,{tmp_path}/sound/*.npy"
    assert_equal_clips(read(pattern, feature_names=("feats", "sound")), clips)
    renamed = read(pattern, feature_names=("sound", "rgb"), rename=("feats:rgb",))
    assert list(renamed["v1"]) == ["sound", "rgb"]
    np.testing.assert_array_equal(renamed["v1"]["rgb"], clips["v1"]["feats"])
    message = error_of(pattern)
    assert "the id 'v0' occurs twice" in message
    assert "two features of the video" in message
    assert "--feature_names=feats,sound" in message
    message = error_of(pattern, feature_names=("rgb", "audio"))
    assert f"{tmp_path}/feats/v0.npy does not name a feature" in message
    assert "or their directory must be named rgb or audio" in message


def test_the_name_of_an_npy_file_counts_more_than_its_directory(tmp_path):
    (tmp_path / "rgb").mkdir()
    for name in ("rgb", "audio"):
        np.save(tmp_path / "rgb" / f"v.{name}.npy", np.ones((2, 3)))
    found = read(tmp_path / "rgb", feature_names=("rgb", "audio"))
    assert {video: list(features) for video, features in found.items()} == {"v": ["rgb", "audio"]}


def test_a_video_without_one_of_its_npy_files_lacks_the_feature(tmp_path):
    for name in ("a.rgb", "a.audio", "b.rgb"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3)))
    clips = read(tmp_path, feature_names=("rgb", "audio"))
    assert list(clips["a"]) == ["rgb", "audio"]
    assert list(clips["b"]) == ["rgb"]


def test_npy_files_of_another_feature_are_refused(tmp_path):
    for name in ("a.rgb", "a.audio"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3)))
    message = error_of(tmp_path, feature_names=("rgb",))
    assert f"{tmp_path}/a.audio.npy does not name a feature" in message
    assert "must end in .rgb.npy, _rgb.npy" in message


def test_npy_files_that_seem_to_be_features_of_one_video_are_refused_without_names(tmp_path):
    for name in ("a.rgb", "a.audio"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3)))
    message = error_of(tmp_path)
    assert f"{tmp_path}/a.audio.npy and {tmp_path}/a.rgb.npy may be two features" in message
    assert "--feature_names=audio,rgb" in message
    assert source(tmp_path, feature_names=("clip",)).ids() == ["a.audio", "a.rgb"]


@pytest.mark.parametrize("name", ["v0.npy", "v0.npz"])
def test_two_files_of_one_video_are_refused(tmp_path, name):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save = np.save if name.endswith("npy") else np.savez
        save(tmp_path / folder / name, np.ones((2, 3)))
    with pytest.raises(InputError, match=rf"'v0' occurs twice: .*/a/{name} and .*/b/{name}"):
        source(f"{tmp_path}/*/*").ids()


def test_pickled_objects_are_not_loaded(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (sys.exit, ("pickles run code",))

    np.save(tmp_path / "a.npy", np.array([Harmful()]), allow_pickle=True)
    message = error_of(tmp_path)
    assert f"cannot read {tmp_path}/a.npy: Object arrays cannot be loaded" in message
    assert "Expected: arrays of numbers" in message


def test_only_selected_arrays_of_an_npz_file_are_read(tmp_path):
    content = npz_bytes({"rgb": np.ones((2, 3))})
    (tmp_path / "a.npz").write_bytes(content)
    np.savez(tmp_path / "b.npz", allow_pickle=True, rgb=np.ones((2, 3)), names=np.array([None]))
    assert list(read(tmp_path, feature_names=("rgb",))) == ["a", "b"]
    assert "Object arrays cannot be loaded" in error_of(tmp_path)


# --- Tar archives ---------------------------------------------------------------------------------


def test_members_of_a_tar_archive_have_the_names_of_webdataset(tmp_path):
    ones = np.ones((2, 3))
    members = {
        "./train/v0.json": json.dumps({"labels": [4, 5]}).encode(),
        "./train/v0.npy": npy_bytes(ones),
        "./train/v1.cls": b"7\n",
        "./train/v1.npy": npy_bytes(2 * ones),
        "./train/v2.mp4": b"a video without features",
        "./train/v3.json": b"[]",
        "./train/v3.npy": npy_bytes(3 * ones),
    }
    path = write_members(tmp_path / "a.tar", members)
    clips = {clip.video_id: clip for clip in source(path).clips()}
    assert source(path).ids() == list(clips) == ["v0", "v1", "v3"]
    assert [clip.labels for clip in clips.values()] == [[4, 5], [7], None]
    np.testing.assert_array_equal(clips["v3"].features["features"], 3 * ones)
    assert list(read(path, feature_names=("rgb",))["v0"]) == ["rgb"]


def test_a_label_of_a_tar_archive_must_be_a_number(tmp_path):
    members = {"v0.cls": b"dog", "v0.npy": npy_bytes(np.ones((2, 3)))}
    path = write_members(tmp_path / "a.tar", members)
    assert f"cannot read the labels of v0 in {path}" in error_of(path)


def test_members_of_a_video_that_are_apart_are_refused(tmp_path):
    names = ("v0.rgb.npy", "v1.rgb.npy", "v0.audio.npy")
    path = write_members(tmp_path / "a.tar", dict.fromkeys(names, npy_bytes(np.ones((2, 3)))))
    assert "its members must follow each other" in error_of(path)


@pytest.mark.parametrize("lost", ["the end", "a header"])
def test_a_tar_archive_that_lacks_members_is_refused(tmp_path, lost):
    path = pathlib.Path(feature_files.write_tar_of_npz(tmp_path, random_clips(3)))
    end = path.read_bytes().rindex(b"v2.npz")
    header = path.read_bytes().index(b"v2.npz")
    if lost == "the end":
        path.write_bytes(path.read_bytes()[:header])
    else:
        flip_bit(path, header)
    assert end >= header
    assert "no member and no end of the archive at byte" in error_of(path)


def test_a_compressed_tar_archive_is_refused(tmp_path):
    path = pathlib.Path(feature_files.write_tar(tmp_path, random_clips(3)))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "Expected: an uncompressed tar archive" in error_of(path)


# --- HDF5 -----------------------------------------------------------------------------------------


def test_an_hdf5_dataset_at_the_root_is_the_only_feature_of_a_video(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs requirements/hdf5.txt")
    values = np.arange(6.0).reshape(2, 3)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["v1"], file["v0"] = values + 1, values
    expected = {"v0": {"features": values}, "v1": {"features": values + 1}}
    assert_equal_clips(read(tmp_path), expected)
    assert list(read(tmp_path, feature_names=("rgb",))["v0"]) == ["rgb"]


def test_other_content_of_an_hdf5_group_is_left_out(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs requirements/hdf5.txt")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v0/rgb"], file["v0/score"], file["v0/more/rgb"] = np.ones((2, 3)), 0.5, np.ones(3)
    assert set(read(tmp_path)["v0"]) == {"rgb", "score"}
    assert list(read(tmp_path, feature_names=("rgb",))["v0"]) == ["rgb"]


def test_hdf5_files_without_h5py_name_the_package(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    message = error_of(tmp_path)
    assert "HDF5 files need h5py: " in message
    assert "Run: pip install '.[hdf5]'" in message


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_files_without_pyarrow_name_the_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = error_of(tmp_path)
    assert "Parquet files need PyArrow: " in message
    assert "Run: pip install '.[parquet]'" in message


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 1000])
@pytest.mark.parametrize("kind", ["frames_as_rows", "dimensions_as_columns"])
def test_rows_of_a_video_may_lie_in_several_batches(tmp_path, kind, rows_at_once, monkeypatch):
    parquet_source = pytest.importorskip("own_data.parquet_source")
    monkeypatch.setattr(parquet_source, "_FRAME_ROWS", rows_at_once)
    monkeypatch.setattr(parquet_source, "_ID_ROWS", rows_at_once)
    clips = random_clips(7)
    path = WRITERS[kind](tmp_path, clips)
    assert_equal_clips(read(path), clips)
    assert source(path).ids() == list(clips)


def test_a_parquet_column_orders_the_frames(tmp_path):
    columns = {
        "id": [1, 1, 1, 2, 2],
        "second": [2, 0, 1, 5, 4],
        "rgb": [[2.0], [0.0], [1.0], [5.0], [4.0]],
    }
    path = write_table(tmp_path / "a.parquet", columns)
    clips = read(path, frame_column="second")
    assert list(clips) == ["1", "2"]
    np.testing.assert_array_equal(clips["1"]["rgb"], [[0], [1], [2]])
    np.testing.assert_array_equal(clips["2"]["rgb"], [[4], [5]])
    np.testing.assert_array_equal(read(path)["1"]["rgb"], [[2], [0], [1]])


def test_a_frame_without_a_time_is_refused(tmp_path):
    columns = {"id": ["a", "a"], "second": [0, None], "rgb": [[2.0], [0.0]]}
    path = write_table(tmp_path / "a.parquet", columns)
    message = error_of(path, frame_column="second")
    assert f"{path}: frames of 'a' have no value in the column second" in message


def test_parquet_rows_of_a_video_that_are_apart_are_refused(tmp_path):
    columns = {"id": ["a", "b", "a"], "rgb": [[2.0], [0.0], [1.0]]}
    path = write_table(tmp_path / "a.parquet", columns)
    message = error_of(path)
    assert f"the id 'a' occurs twice: row 0 of {path} and row 2 of {path}" in message
    assert "sort the table by id" in message


def test_parquet_rows_that_are_videos_have_ids_of_their_own(tmp_path):
    columns = {"id": ["a", "a"], "rgb": [[[2.0]], [[0.0]]]}
    path = write_table(tmp_path / "a.parquet", columns)
    assert f"the id 'a' occurs twice: row 0 of {path} and row 1 of {path}" in error_of(path)


@pytest.mark.parametrize("mark", ["_", ".", ""])
def test_parquet_columns_of_dimensions_are_in_the_order_of_their_numbers(tmp_path, mark):
    columns = {"id": ["a"], **{f"rgb{mark}{number}": [number / 2] for number in range(11, -1, -1)}}
    columns |= {"score": [0.5], "x7": [1.0], "y_1": [1.0], "y_3": [1.0]}
    clips = read(write_table(tmp_path / "a.parquet", columns))
    assert list(clips["a"]) == ["rgb"]
    np.testing.assert_array_equal(clips["a"]["rgb"], [np.arange(12) / 2])


def test_parquet_columns_named_by_a_number_are_the_only_feature(tmp_path):
    path = write_table(tmp_path / "a.parquet", {"clip": ["a"], "0": [1.0], "1": [2.0]})
    clips = read(path, id_name="clip", feature_names=("rgb",))
    np.testing.assert_array_equal(clips["a"]["rgb"], [[1.0, 2.0]])
    assert list(read(path, id_name="clip")["a"]) == ["features"]


@pytest.mark.parametrize("frames", [[2.0, 3.0], [[2.0], [3.0]]], ids=["frames", "videos"])
def test_parquet_labels_belong_to_the_clip(tmp_path, frames):
    columns = {"id": ["a", "b"], "labels": [[1, 2], []], "rgb": [[frames[0]], [frames[1]]]}
    path = write_table(tmp_path / "a.parquet", columns)
    assert [clip.labels for clip in source(path).clips()] == [[1, 2], []]
    columns["labels"] = ["cat", "dog"]
    path = write_table(tmp_path / "a.parquet", columns)
    assert [clip.labels for clip in source(path).clips()] == [["cat"], ["dog"]]


def test_bytes_in_parquet_columns_stay_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    types = {"rgb": pyarrow.list_(pyarrow.uint8())}
    columns = {"id": ["a", "a"], "rgb": [[1, 2], [3, 255]]}
    clips = read(write_table(tmp_path / "a.parquet", columns, types))
    assert clips["a"]["rgb"].dtype == np.uint8
    np.testing.assert_array_equal(clips["a"]["rgb"], [[1, 2], [3, 255]])


def test_a_parquet_file_without_ids_or_features_lists_its_columns(tmp_path):
    path = write_table(tmp_path / "a.parquet", {"name": ["a"], "rgb": [[1.0]]})
    assert (
        f"{path} has no column video_id or id. Its columns: name (string), rgb (list<element: "
        "double>). Name the column of the ids with --id_name" in error_of(path)
    )
    path = write_table(tmp_path / "a.parquet", {"id": ["a"], "score": [1.0]})
    assert f"{path} has no feature: a column of lists of numbers" in error_of(path)


def test_a_parquet_row_without_an_id_is_refused(tmp_path):
    path = write_table(tmp_path / "a.parquet", {"id": ["a", None], "rgb": [[1.0], [2.0]]})
    assert f"row 1 of {path} has no id in the column id" in error_of(path)


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    from pyarrow import parquet

    frames = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(np.random.default_rng(0).normal(size=200 * 500 * 64).astype(np.float32)), 64
    )
    ids = pyarrow.array(np.repeat(np.arange(200), 500))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": ids, "rgb": frames}), path, row_group_size=10**6)
    del frames, ids
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    before, most = pyarrow.total_allocated_bytes(), 0
    for clip in source(path).clips():
        most = max(most, pyarrow.total_allocated_bytes() - before)
        assert clip.features["rgb"].shape == (500, 64)
    assert pool.bytes_allocated() == 0
    assert most < path.stat().st_size / 2


NO_ARRAYS = [
    ([[1.0, 2.0], [3.0]], "frames differ in size"),
    ([[1.0, 2.0], None], "frames differ in size"),
    ([[1.0, 2.0], [3.0, None]], "rgb has nan in frame 1, dimension 1"),
]
NO_FRAMES = [([], "has no frames"), (None, "has no frames")]


def check_second(path):
    """Checks the two clips of a file, of which the first must be usable."""
    good, bad = source(path).clips()
    checker = ClipChecker()
    checker.check(good)
    checker.check(bad)


@pytest.mark.parametrize(("frames", "reason"), NO_ARRAYS + NO_FRAMES)
def test_a_parquet_row_without_an_array_of_frames_is_refused_by_the_check(tmp_path, frames, reason):
    columns = {"id": ["a", "b"], "rgb": [[[1.0, 2.0]], frames]}
    path = write_table(tmp_path / "a.parquet", columns)
    with pytest.raises(ClipError, match=reason):
        check_second(path)


@pytest.mark.parametrize(("frames", "reason"), NO_ARRAYS)
def test_parquet_rows_that_make_no_array_are_refused_by_the_check(tmp_path, frames, reason):
    columns = {"id": ["a", "b", "b"], "rgb": [[1.0, 2.0], *frames]}
    path = write_table(tmp_path / "a.parquet", columns)
    with pytest.raises(ClipError, match=reason):
        check_second(path)


@pytest.mark.parametrize("type_name", ["int64", "large_string", "binary", "dictionary"])
def test_parquet_ids_are_text_of_any_type(tmp_path, type_name):
    pyarrow = pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    ids = [12, 12, 7] if type_name == "int64" else ["12", "12", "7"]
    if type_name == "dictionary":
        types = {"id": pyarrow.dictionary(pyarrow.int8(), pyarrow.string())}
    else:
        types = {"id": getattr(pyarrow, type_name)()}
    columns = {"id": ids, "rgb": [[1.0], [2.0], [3.0]]}
    path = write_table(tmp_path / "a.parquet", columns, types)
    assert source(path).ids() == list(read(path)) == ["12", "7"]


# --- Records --------------------------------------------------------------------------------------


def test_frames_of_bytes_are_uint8(tmp_path):
    frames = np.arange(12, dtype=np.uint8).reshape(3, 4)
    record = frame_record("v", [2, 5], id_name="video_id", audio_embedding=frames)
    path = write_records(tmp_path / "bal_train00.tfrecord", [record])
    (clip,) = source(path, rename=("audio_embedding:audio",)).clips()
    assert_equal_clips({clip.video_id: clip.features}, {"v": {"audio": frames}})
    assert clip.labels == [2, 5]
    assert clip.origin == f"record 0 of {path} (byte 0)"


def test_names_of_labels_are_strings(tmp_path):
    context = {"id": bytes_feature(b"v"), "labels": bytes_feature(b"cat", "größe".encode())}
    record = sequence_example(context, rgb=[float_feature([1.0])])
    (clip,) = source(write_records(tmp_path / "a.tfrecord", [record])).clips()
    assert clip.labels == ["cat", "größe"]


def test_messages_of_mediapipe_are_read(tmp_path):
    clips = random_clips(2)
    stored = {
        video_id: {f"{name.upper()}/feature/floats": values for name, values in features.items()}
        for video_id, features in clips.items()
    }
    feature_files.write_messages(tmp_path, stored)
    rename = ("RGB/feature/floats:rgb", "AUDIO/feature/floats:audio")
    for names in (None, ("rgb", "audio")):
        found = source(tmp_path, rename=rename, feature_names=names)
        read_clips = {clip.video_id: clip.features for clip in found.clips()}
        assert {key: set(clip) for key, clip in read_clips.items()} == {
            key: {"rgb", "audio"} for key in clips
        }
        np.testing.assert_array_equal(read_clips["v1"]["rgb"], clips["v1"]["rgb"])
        assert [clip.labels for clip in found.clips()] == [None, None]


@pytest.mark.parametrize(
    ("frames", "error", "reason"),
    [
        ([bytes_feature(b"123"), bytes_feature(b"12")], ClipError, "frames differ in size"),
        ([float_feature([1, 2]), float_feature([1])], ClipError, "frames differ in size"),
        ([float_feature([1, np.nan])], ClipError, "not finite"),
        ([], EmptyClipError, "no frames"),
    ],
)
def test_frames_of_records_that_are_no_array_are_refused_by_the_check(
    tmp_path, frames, error, reason
):
    record = sequence_example({"id": bytes_feature(b"v")}, rgb=frames)
    (clip,) = source(write_records(tmp_path / "a.tfrecord", [record])).clips()
    with pytest.raises(error, match=reason):
        ClipChecker().check(clip)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bytes_of_floats_need_their_type(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(50, 16)).astype(dtype)
    record = frame_record("v", [1], rgb=[frame.tobytes() for frame in values])
    path = write_records(tmp_path / "a.tfrecord", [record])
    message = error_of(path)
    assert f"the bytes of rgb look like {dtype} numbers. Give --bytes_dtype={dtype}" in message
    assert_equal_clips(read(path, bytes_dtype=dtype), {"v": {"rgb": values}})
    assert read(path, bytes_dtype="uint8")["v"]["rgb"].shape == (50, 16 * values.itemsize)


def test_bytes_that_are_no_floats_are_refused(tmp_path):
    path = write_records(tmp_path / "a.tfrecord", [frame_record("v", [1], rgb=[b"12345"])])
    message = error_of(path, bytes_dtype="float32")
    assert "frames of rgb have 5 bytes, which are no float32 numbers" in message


def test_a_record_without_frames_or_id_is_refused(tmp_path):
    path = write_records(tmp_path / "a.tfrecord", [video_record("v", [1], mean_rgb=[1.0])])
    message = error_of(path)
    assert f"record 0 of {path} (byte 0) has no feature lists" in message
    assert "mean_rgb (1 float)" in message
    record = frame_record("v", [1], id_name="name", rgb=[b"12"])
    path = write_records(tmp_path / "a.tfrecord", [record])
    message = error_of(path)
    assert "has no id or video_id that holds exactly one string" in message
    assert "name (1 string)" in message
    assert list(read(path, id_name="name")) == ["v"]


def test_a_corrupt_record_is_refused(tmp_path):
    path = feature_files.write_float_records(tmp_path, random_clips(3))
    flip_bit(path, 40)
    message = error_of(path)
    assert message.startswith(f"record 0 of {path} (byte 0): its content does not match")
    assert "--skip" not in message


def test_a_record_that_is_no_message_is_refused(tmp_path):
    path = write_records(tmp_path / "a.tfrecord", [b"\xff\xff\xff\xff"])
    assert f"record 0 of {path} (byte 0) is no SequenceExample" in error_of(path)


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (("rgb",), "must be pairs STORED:NAME"),
        ((":rgb",), "must be pairs STORED:NAME"),
        (("a:rgb", "b:rgb"), "to different names"),
        (("a:rgb", "a:b"), "once"),
    ],
)
def test_other_names_must_be_pairs(rename, message):
    with pytest.raises(InputError, match=message):
        SourceOptions(rename=rename)


def test_a_new_name_must_not_be_that_of_another_feature(tmp_path):
    feature_files.write_npz(tmp_path, random_clips(1))
    message = error_of(tmp_path, rename=("rgb:audio",))
    assert "has two features of one name" in message


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("npz", "id_name"),
        ("npz", "bytes_dtype"),
        ("messages", "id_name"),
        ("float_records", "frame_column"),
        ("videos_as_rows", "bytes_dtype"),
    ],
)
def test_an_option_of_other_files_is_refused(tmp_path, kind, option):
    path = WRITERS[kind](tmp_path, random_clips(1))
    message = error_of(path, **{option: "uint8"})
    assert f"--{option} does not apply to files such as {tmp_path}/" in message


def test_a_column_that_orders_frames_is_refused_where_rows_are_videos(tmp_path):
    columns = {"id": ["a"], "second": [1], "rgb": [[[1.0]]]}
    path = write_table(tmp_path / "a.parquet", columns)
    assert f"a row of {path} is a video" in error_of(path, frame_column="second")
