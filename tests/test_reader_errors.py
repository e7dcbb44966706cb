"""Records that do not fit the settings, and corrupt records."""

import itertools
import math
import os
import time

import numpy as np
import pytest
import tensorflow as tf

import files
import quantization
import readers
from record_readers import (
    NUM_CLASSES,
    RECORD_HEADER_BYTES,
    assert_same_batches,
    before_parsing,
    corrupt_content,
    error_of,
    frame_reader,
    make_videos,
    one_record,
    read_ids,
    video_reader,
    write_files,
    write_videos,
)
from sample_records import (
    bytes_feature,
    float_feature,
    frame_record,
    int64_feature,
    video_record,
    write_records,
)
from utils import InputError


def test_there_must_be_as_many_sizes_as_names(record_files):
    with pytest.raises(InputError, match=r"names rgb, audio and the sizes 8\.$"):
        readers.YT8MFrameFeatureReader(
            files.expand_patterns(str(record_files)),
            feature_names=("rgb", "audio"),
            feature_sizes=(8,),
            num_classes=NUM_CLASSES,
        )


def raw_frame_record(context, rgb):
    lists = tf.train.FeatureLists(feature_list={"rgb": tf.train.FeatureList(feature=rgb)})
    context = tf.train.Features(feature=context)
    return tf.train.SequenceExample(context=context, feature_lists=lists).SerializeToString()


FRAMES = frame_record("a", [1], rgb=[b"12345678"], audio=[b"1234"])
VECTORS = video_record("a", [1], mean_rgb=[1.0] * 5)
INTEGER_FRAMES = raw_frame_record({"id": bytes_feature(b"a")}, rgb=[int64_feature([1, 2])])
ALL = "Of the first 1 records, none is usable."
SIZE = f"{ALL} Use data that fit the model, or train with other --feature_sizes."
FEATURES = (
    f"{ALL} Use data that fit the model, or train with other --feature_names and --feature_sizes."
)
MISFITS = [
    (
        *(frame_reader, {"rgb": 16, "audio": 4}, FRAMES),
        f"feature 'rgb' has size 8, but the model takes size 16. {SIZE}",
    ),
    (
        *(video_reader, {"mean_rgb": 4}, VECTORS),
        f"feature 'mean_rgb' has size 5, but the model takes size 4. {SIZE}",
    ),
    (
        *(frame_reader, {"rgb": 8}, VECTORS),
        "it has no frames, which the model takes. It has: id (1 string), labels (1 integer), "
        f"mean_rgb (5 floats). {ALL} Choose frame-level data (SequenceExamples) or a video-level "
        "model.",
    ),
    (
        *(frame_reader, {"rgb": 8}, frame_record("a", [1])),
        "it has no frames, which the model takes. It has: id (1 string), labels (1 integer). "
        f"{ALL} Choose frame-level data (SequenceExamples) or a video-level model.",
    ),
    (
        *(frame_reader, {"rgb": 8}, INTEGER_FRAMES),
        "video 'a' has frames of 'rgb' that differ in size or are not bytes: rgb (1 frame of 2 "
        f"integers). {ALL} Store each frame as one string of equal size, or as a list of floats.",
    ),
    (
        *(video_reader, {"mean_rgb": 5}, FRAMES),
        "it holds frame-level features (audio, rgb), but the model takes video-level features. "
        f"{ALL} Choose video-level data or a frame-level model.",
    ),
    (
        *(frame_reader, {"rgb": 8, "depth": 4}, FRAMES),
        "it has no feature 'depth'. It has: audio (1 frame of 4 bytes), rgb (1 frame of 8 bytes). "
        f"{FEATURES} --missing_features=zeros takes zeros instead.",
    ),
    (
        *(video_reader, {"mean_audio": 1}, VECTORS),
        "it has no feature 'mean_audio'. It has: id (1 string), labels (1 integer), mean_rgb "
        f"(5 floats). {FEATURES}",
    ),
]


@pytest.mark.parametrize(("reader", "sizes", "record", "message"), MISFITS)
def test_a_record_that_does_not_fit_is_reported_with_its_content(
    tmp_path, reader, sizes, record, message
):
    path = one_record(tmp_path, record)
    assert error_of(reader(path, sizes)) == f"record 0 of {path} (byte 0): {message}"


@pytest.mark.parametrize("label", [10, 4000, -1, 2**40])
def test_a_label_out_of_range_is_reported_with_its_video(tmp_path, label):
    path = one_record(tmp_path, frame_record("abc", [3, label], rgb=[b"abcd"]))
    assert error_of(frame_reader(path, {"rgb": 4}, skip_corrupt_records=9)) == (
        f"video 'abc' (record 0 of {path} (byte 0)) has label {label}, but labels must be 0 to 9. "
        "Use data that fit the model, or train with another --num_classes."
    )


def test_drop_remainder_rejects_a_batch_larger_than_the_data(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(5))
    message = error_of(frame_reader(path), 6, drop_remainder=True, num_epochs=None)
    expected = f"a step takes 6 videos, but there are only 5 in 1 files, such as {path}. Choose a "
    assert message == f"{expected}smaller --batch_size or --gradient_accumulation"


@pytest.mark.parametrize("num_epochs", [1, None])
def test_files_without_a_video_are_rejected(tmp_path, num_epochs):
    for name in ("a", "b"):
        write_records(tmp_path / name, [])
    message = error_of(frame_reader(tmp_path / "?"), num_epochs=num_epochs)
    assert message == f"no video in 2 files, such as {tmp_path}/a"


def with_labels(feature):
    """Returns a record with one frame and labels of the given kind, or none."""
    example = tf.train.SequenceExample.FromString(frame_record("abc", [], rgb=[b"1234"]))
    del example.context.feature["labels"]
    if feature is not None:
        example.context.feature["labels"].CopyFrom(feature)
    return example.SerializeToString()


@pytest.mark.parametrize("labels", [float_feature([1.0]), bytes_feature(b"cat")])
def test_labels_that_are_not_integers_are_rejected(tmp_path, labels):
    message = error_of(frame_reader(one_record(tmp_path, with_labels(labels)), {"rgb": 4}))
    assert "the labels of video 'abc' are not integers: labels (1 " in message
    assert "none is usable. Store the class numbers of each video as integers." in message


@pytest.mark.parametrize(
    "labels", [None, int64_feature([4000]), float_feature([1.0]), bytes_feature(b"cat")]
)
def test_a_reader_without_labels_takes_any(tmp_path, labels, logged_warnings):
    path = one_record(tmp_path, with_labels(labels))
    reader = frame_reader(path, {"rgb": 4}, with_labels=False)
    (batch,) = reader.batches(4)
    assert batch.video_ids == ["abc"]
    assert batch.labels.shape == (1, 0)
    ((_, labels),) = reader.dataset(4)
    assert labels.shape == (1, 0)
    assert not logged_warnings


@pytest.mark.parametrize("labels", [None, int64_feature([])], ids=["no list", "empty list"])
def test_data_without_any_label_are_rejected_by_what_they_have(tmp_path, labels):
    records = [with_labels(labels)] * 5
    paths = [write_records(tmp_path / name, records) for name in "ab"]
    reader = frame_reader(tmp_path / "?", {"rgb": 4})
    has = "id (1 string)" + (", labels (0 integers)" if labels else "")
    with pytest.raises(InputError) as caught:
        reader.check_first_records()
    assert str(caught.value) == (
        "none of the first 10 videos has a label. Training and evaluation need the class numbers "
        "of each video, integers with the name 'labels'. The first video, record 0 of "
        f"{paths[0]} (byte 0), has: {has}."
    )


def test_one_label_among_the_first_videos_of_any_file_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_MAX_UNLABELED", 20)
    write_records(tmp_path / "a", [with_labels(None)] * 100)
    write_records(tmp_path / "b", [*[with_labels(None)] * 9, with_labels(int64_feature([3]))])
    frame_reader(tmp_path / "?", {"rgb": 4}).check_labels()
    with pytest.raises(InputError, match="none of the first 20 videos has a label"):
        frame_reader(tmp_path / "a", {"rgb": 4}).check_labels()


def test_ratings_of_segments_are_reported_once_as_not_used(tmp_path, logged_warnings):
    example = tf.train.SequenceExample.FromString(frame_record("abc", [1], rgb=[b"1234"]))
    for name in ("segment_start_times", "segment_labels"):
        example.context.feature[name].CopyFrom(int64_feature([5]))
    path = write_records(tmp_path / "a", [example.SerializeToString()] * 9)
    list(frame_reader(path, {"rgb": 4}).batches(2))
    assert logged_warnings == [
        "the ratings of segments are not used, only the labels of whole videos. Not used: "
        "segment_labels, segment_start_times"
    ]


# --- Data of which every record is alike ---


def test_a_fault_of_all_records_is_no_corruption_that_can_be_skipped(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(100))
    message = error_of(frame_reader(path, {"rgb": 9}, skip_corrupt_records=1000))
    assert "Of the first 16 records, none is usable." in message
    assert "skip" not in message


@pytest.mark.parametrize("skip_batches", [0, 20])
def test_a_rare_fault_is_a_corrupt_record_wherever_it_is(tmp_path, skip_batches):
    videos = make_videos(100)
    del videos[0][2]["audio"]
    del videos[90][2]["audio"]
    path = write_videos(tmp_path / "a", videos)
    assert "To skip corrupt records, pass --skip" in error_of(frame_reader(path))
    reader = frame_reader(path, skip_corrupt_records=2)
    ids = read_ids(reader, skip_batches=skip_batches)
    assert len(ids) == 98 - 4 * skip_batches + (skip_batches > 0)
    # A file reader judges by the whole data set.
    write_videos(tmp_path / "b", videos[:1])
    reader = frame_reader(tmp_path / "?", skip_corrupt_records=9)
    assert read_ids(reader.for_file(str(tmp_path / "b"))) == []


FLOAT_TYPES = ["float16", "float32", "float64"]


@pytest.mark.parametrize("float_type", FLOAT_TYPES)
def test_the_bytes_of_floats_are_recognized_by_their_number_and_by_their_values(
    tmp_path, float_type
):
    rng = np.random.default_rng(0)
    frames = [rng.normal(0, 0.1, (20, 16)).astype(float_type) for _ in range(4)]
    records = [frame_record("a", [1], rgb=[frame.tobytes() for frame in video]) for video in frames]
    path = write_records(tmp_path / "a", records)
    message = error_of(frame_reader(path, {"rgb": 16}))
    assert f"its frames are 16 {float_type} values" in message
    assert "--feature_sizes" not in message
    remedy = f"--feature_dtypes={float_type}" if float_type != "float64" else "Store the values"
    assert remedy in message
    size = 16 * np.dtype(float_type).itemsize
    with pytest.raises(InputError, match=f"its bytes are those of 16 {float_type} values"):
        frame_reader(path, {"rgb": size}).check_first_records()


def test_bytes_of_a_multiple_of_the_size_may_be_floats_or_another_feature(tmp_path):
    path = one_record(tmp_path, frame_record("a", [1], rgb=quantized("normal", 64)))
    message = error_of(frame_reader(path, {"rgb": 32}))
    assert "size 64, but the model takes size 32: that is the size of 32 float16 values" in message
    assert "Train with --feature_dtypes=float16, which reads such frames. Use data" in message


def quantized(kind, size):
    rng = np.random.default_rng(1)
    shape = (40, size)
    return {
        "normal": quantization.YOUTUBE8M.quantize(rng.normal(size=shape)),
        "narrow": quantization.YOUTUBE8M.quantize(rng.normal(0, 0.05, shape)),
        "uniform": rng.integers(0, 256, shape),
        "sparse": rng.integers(0, 256, shape) * (rng.random(shape) < 0.05),
        "low": rng.integers(50, 70, shape),
        "rectified": np.maximum(0, rng.normal(size=shape) * 60).clip(0, 255),
        "equal_frames": np.repeat(rng.integers(20, 80, (1, size)), 40, 0),
        "constant": np.full(shape, 64),
        "zero": np.zeros(shape),
    }[kind].astype(np.uint8)


@pytest.mark.parametrize("size", [1, 2, 8, 64, 1024])
@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "narrow",
        "uniform",
        "sparse",
        "low",
        "rectified",
        "equal_frames",
        "constant",
        "zero",
    ],
)
def test_stored_frames_are_not_taken_for_floats(tmp_path, kind, size):
    path = one_record(tmp_path, frame_record("a", [1], rgb=quantized(kind, size)))
    frame_reader(path, {"rgb": size}, max_frames=300).check_first_records()


# --- Missing and short features ---


@pytest.mark.parametrize("silent", [{}, {"audio": []}], ids=["no list", "no frames"])
def test_a_missing_feature_can_be_replaced_by_zeros(tmp_path, silent, logged_warnings):
    good = frame_record("good", [1], rgb=[b"12345678"] * 2, audio=[b"abcd"] * 2)
    bad = frame_record("bad", [2], rgb=[b"12345678"] * 3, **silent)
    path = write_records(tmp_path / "a", [good, bad, bad, good])
    assert "--missing_features=zeros takes zeros instead. To skip corrupt" in error_of(
        frame_reader(path)
    )
    (batch,) = frame_reader(path, missing_features="zeros").batches(4)
    np.testing.assert_array_equal(batch.inputs["num_frames"], [2, 3, 3, 2])
    audio = batch.inputs["frames"][1, :, 8:]
    assert (audio == quantization.YOUTUBE8M.quantize(0.0)).all()
    assert bytes(batch.inputs["frames"][1, 2, :8]) == b"12345678"
    assert len(logged_warnings) == 1


def test_a_missing_vector_can_be_replaced_by_zeros(tmp_path):
    records = [
        video_record("a", [1], mean_rgb=[1.0, 2.0], mean_audio=[3.0]),
        video_record("b", [1], mean_rgb=[4.0, 5.0]),
    ]
    path = write_records(tmp_path / "a", records)
    sizes = {"mean_rgb": 2, "mean_audio": 1}
    assert "--missing_features=zeros takes zeros" in error_of(video_reader(path, sizes))
    (batch,) = video_reader(path, sizes, missing_features="zeros").batches(4)
    np.testing.assert_array_equal(batch.inputs, [[1, 2, 3], [4, 5, 0]])


def test_a_vector_without_values_is_missing(tmp_path):
    record = video_record("a", [1], mean_rgb=[1.0, 2.0], mean_audio=[])
    path, sizes = one_record(tmp_path, record), {"mean_rgb": 2, "mean_audio": 1}
    assert (
        "feature 'mean_audio' of video 'a' has no values. Of the first 1 records, none is usable. "
        "Use data that fit the model, or train with other --feature_names and --feature_sizes. "
        "--missing_features=zeros takes zeros instead."
    ) in error_of(video_reader(path, sizes))
    (batch,) = video_reader(path, sizes, missing_features="zeros").batches(4)
    np.testing.assert_array_equal(batch.inputs, [[1, 2, 0]])


def test_a_record_without_any_feature_is_not_replaced_by_zeros(tmp_path, logged_warnings):
    path = one_record(tmp_path, frame_record("a", [1], audio_embedding=[b"1234"]))
    message = error_of(frame_reader(path, missing_features="zeros"))
    assert "has no feature 'rgb'. It has: audio_embedding (1 frame of 4 bytes)" in message
    assert "zeros" not in message
    empty = write_records(tmp_path / "b", [frame_record("a", [1], rgb=[], audio=[])])
    empty_vectors = video_record("a", [1], mean_rgb=[], mean_audio=[])
    sizes = {"mean_rgb": 2, "mean_audio": 1}
    for missing_features in ("error", "zeros"):
        message = error_of(frame_reader(empty, missing_features=missing_features))
        assert "video 'a' has no frame of 'rgb'" in message
        assert "zeros" not in message
        path = write_records(tmp_path / "c", [empty_vectors])
        message = error_of(video_reader(path, sizes, missing_features=missing_features))
        assert "feature 'mean_rgb' of video 'a' has no values" in message
        assert "zeros" not in message
    assert not logged_warnings


def test_features_can_be_cut_to_the_shortest(tmp_path):
    frames = [b"12345678", b"abcdefgh", b"ABCDEFGH"]
    path = one_record(tmp_path, frame_record("a", [1], rgb=frames, audio=[b"1234", b"5678"]))
    assert "--trim_features cuts the features of a video to" in error_of(frame_reader(path))
    (batch,) = frame_reader(path, trim_features=True).batches(1)
    assert [bytes(frame) for frame in batch.inputs["frames"][0]] == [
        b"123456781234",
        b"abcdefgh5678",
    ]


# --- Corrupt records ---


ID = {"id": bytes_feature(b"abc")}
CORRUPT_FRAMES = {
    "no frame": (raw_frame_record(ID, rgb=[]), "video 'abc' has no frame of 'rgb'"),
    "unequal sizes": (
        raw_frame_record(ID, rgb=[bytes_feature(b"abcd"), bytes_feature(b"abc")]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "two values": (
        raw_frame_record(ID, rgb=[bytes_feature(b"abcd", b"abcd")]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "floats": (
        raw_frame_record(ID, rgb=[float_feature([1.0])]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "no id": (
        raw_frame_record({"labels": int64_feature([1])}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' or 'video_id' that holds exactly one string. It has: labels",
    ),
    "two ids": (
        raw_frame_record({"id": bytes_feature(b"a", b"b")}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' or 'video_id' that holds exactly one string. It has: id",
    ),
    "integer id": (
        raw_frame_record({"id": int64_feature([5])}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' or 'video_id' that holds exactly one string. It has: id",
    ),
    "no record": (b"\x0a\xff\xff", "it is not a YouTube-8M record: "),
}
CORRUPT_VECTORS = {
    "NaN": (
        video_record("abc", [1], mean_rgb=[1.0, math.nan]),
        "feature 'mean_rgb' of video 'abc' has NaN or infinity",
    ),
    "infinity": (
        video_record("abc", [1], mean_rgb=[-math.inf, 1.0]),
        "feature 'mean_rgb' of video 'abc' has NaN or infinity",
    ),
    "no floats": (
        tf.train.Example(
            features=tf.train.Features(feature={**ID, "mean_rgb": int64_feature([1, 2])})
        ).SerializeToString(),
        "feature 'mean_rgb' of video 'abc' does not hold floats",
    ),
    "no id": (
        video_record("abc", [1], "name", mean_rgb=[1.0, 2.0]),
        "it has no 'id' or 'video_id' that holds exactly one string. It has: labels "
        "(1 integer), mean_rgb (2 floats), name (1 string)",
    ),
    "no record": (b"\x0a\xff\xff", "it is not a YouTube-8M record: "),
}


def good_frames(name):
    return frame_record(name, [1], rgb=[b"abcd"])


def good_vectors(name):
    return video_record(name, [1], mean_rgb=[1.0, 2.0])


@pytest.mark.parametrize(
    ("make_reader", "sizes", "good", "record", "reason"),
    [
        *[(frame_reader, {"rgb": 4}, good_frames, *case) for case in CORRUPT_FRAMES.values()],
        *[
            (video_reader, {"mean_rgb": 2}, good_vectors, *case)
            for case in CORRUPT_VECTORS.values()
        ],
    ],
    ids=[*(f"frames, {kind}" for kind in CORRUPT_FRAMES), *CORRUPT_VECTORS],
)
def test_a_record_without_usable_features_is_corrupt(
    tmp_path, make_reader, sizes, good, record, reason
):
    path = write_records(tmp_path / "a", [good("a"), record, good("b")])
    offset = RECORD_HEADER_BYTES + len(good("a")) + 4
    expected = f"record 1 of {path} (byte {offset}): {reason}"
    assert error_of(make_reader(path, sizes)).startswith(expected)
    reader = make_reader(path, sizes, skip_corrupt_records=1)
    assert read_ids(reader, num_epochs=2) == ["a", "b", "a", "b"]
    assert reader.corrupt_records.count == 1


@pytest.mark.parametrize("max_frames", [6, 1])
def test_unequal_numbers_of_frames_are_corrupt_even_beyond_max_frames(tmp_path, max_frames):
    path = one_record(tmp_path, frame_record("abc", [1], rgb=[b"abcd"] * 3, audio=[b"ab"] * 2))
    message = error_of(frame_reader(path, {"rgb": 4, "audio": 2}, max_frames=max_frames))
    assert "video 'abc' has unequal numbers of frames: 3 of 'rgb', 2 of 'audio'" in message


def test_a_video_without_labels_is_a_negative_and_is_warned_of_once(tmp_path, logged_warnings):
    no_labels = raw_frame_record(ID, rgb=[bytes_feature(b"abcd")])
    others = [frame_record(name, labels, rgb=[b"abcd"]) for name, labels in (("b", []), ("c", [2]))]
    path = write_records(tmp_path / "a", [no_labels, *others])
    (batch,) = frame_reader(path, {"rgb": 4}).batches(3)
    assert batch.labels.sum(axis=1).tolist() == [0, 0, 1]
    assert logged_warnings == [
        f"video 'abc' (record 0 of {path} (byte 0)) has no label: it counts as a negative of every "
        "class. The record has: id (1 string). Further videos without labels are not reported."
    ]


def test_an_id_that_is_not_utf8_is_escaped(tmp_path):
    record = raw_frame_record({"id": bytes_feature(b"a\xff")}, rgb=[bytes_feature(b"abcd")])
    assert read_ids(frame_reader(one_record(tmp_path, record), {"rgb": 4})) == ["a\\xff"]


@pytest.mark.parametrize("portion", [1, 4, 64])
def test_many_corrupt_records_in_a_row_do_not_end_a_file(tmp_path, monkeypatch, portion):
    monkeypatch.setattr(readers, "_PORTION_RECORDS", portion)
    path = write_videos(tmp_path / "a", make_videos(200))
    corrupt_content(path, range(50, 180))
    reader = frame_reader(path, skip_corrupt_records=130)
    expected = [f"v{index}" for index in [*range(50), *range(180, 200)]]
    assert read_ids(reader, num_epochs=2) == expected * 2
    assert reader.corrupt_records.count == 130
    assert error_of(frame_reader(path, skip_corrupt_records=129)).startswith("record 179 of")


@pytest.mark.parametrize("portion_bytes", [1, 1000])
def test_many_records_without_a_video_in_a_row_do_not_end_a_file(
    tmp_path, monkeypatch, portion_bytes
):
    monkeypatch.setattr(readers, "_PORTION_BYTES", portion_bytes)
    no_id = raw_frame_record({}, rgb=[bytes_feature(b"abcd")])
    good = frame_record("good", [1], rgb=[b"abcd"])
    path = write_records(tmp_path / "a", [good] + [no_id] * 50 + [good] + [no_id] * 50)
    reader = frame_reader(path, {"rgb": 4}, skip_corrupt_records=100)
    assert read_ids(reader) == ["good", "good"]
    assert reader.corrupt_records.count == 100


def test_corrupt_records_at_the_end_of_a_file_leave_the_other_files_intact(tmp_path):
    record_files = write_files(tmp_path, [80, 5, 3])
    corrupt_content(tmp_path / "part00.tfrecord", range(1, 80))
    reader = frame_reader(record_files, skip_corrupt_records=79)
    assert len(read_ids(reader)) == 9


@pytest.mark.parametrize("corrupt", ["nothing", "content of the last", "length of the last"])
def test_bytes_read_add_up_to_the_total(tmp_path, corrupt):
    paths = [write_videos(tmp_path / name, make_videos(10, name)) for name in "ab"]
    if corrupt == "content of the last":
        corrupt_content(paths[1], [9])
    elif corrupt == "length of the last":
        os.truncate(paths[1], files.file_size(paths[1]) - 1)
    reader = frame_reader(tmp_path / "?", skip_corrupt_records=1)
    assert reader.total_bytes == sum(files.file_size(path) for path in paths)
    num_videos = len(read_ids(reader, num_epochs=2))
    assert num_videos == (40 if corrupt == "nothing" else 38)
    assert reader.bytes_read == 2 * reader.total_bytes


@pytest.mark.parametrize("reader", [frame_reader, video_reader])
def test_records_of_two_kinds_in_one_pattern_are_reported_as_such(tmp_path, reader):
    frames = frame_record("a", [1], rgb=[b"12345678"], audio=[b"1234"])
    vectors = video_record("b", [1], rgb=[0.0] * 8, audio=[0.0] * 4)
    write_records(tmp_path / "a", [frames] * 3)
    write_records(tmp_path / "b", [vectors] * 3)
    message = error_of(reader(tmp_path / "?", {"rgb": 8, "audio": 4}))
    assert "If the pattern matches records of two kinds, leave out the files of one" in message


@pytest.mark.parametrize("slow", ["part00", "part01"])
def test_corrupt_records_count_in_the_order_of_reading(tmp_path, monkeypatch, slow):
    record_files = write_files(tmp_path, [5, 5])
    corrupt_content(tmp_path / "part00.tfrecord", [3])
    corrupt_content(tmp_path / "part01.tfrecord", [2])
    before_parsing(monkeypatch, lambda location: time.sleep(0.02 * (slow in location.path)))
    message = error_of(frame_reader(record_files, skip_corrupt_records=1))
    assert "1 corrupt records were skipped before" in message
    assert "part00" in message
    found = frame_reader(record_files, skip_corrupt_records=1).file_batches(2, [0, 1], id)
    assert [len(batch.labels) for batch in itertools.islice(found, 2)] == [2, 2]
    assert next(found) is None
    with pytest.raises(InputError, match=r"record 2 of .*part01"):
        list(found)


def vector_record(number, rgb=None):
    rng = np.random.default_rng(number)
    rgb = rng.normal(size=8) if rgb is None else rgb
    return video_record(f"v{number}", [number % 10], mean_rgb=rgb, mean_audio=rng.normal(size=4))


def test_one_record_with_a_fault_changes_no_other_video(tmp_path, monkeypatch):
    records = [vector_record(n) for n in range(20)]
    faulty = video_record("faulty", [1], mean_rgb=[0.0] * 7, mean_audio=[0.0] * 4)
    together = video_reader(write_records(tmp_path / "a", records))
    one_by_one = video_reader(
        write_records(tmp_path / "b", [*records[:9], faulty, *records[9:]]), skip_corrupt_records=1
    )
    parsed, parse = [], type(together).parse
    monkeypatch.setattr(
        type(together), "parse", lambda self, *given: parsed.append(self) or parse(self, *given)
    )
    (expected,) = together.batches(20)
    assert not parsed
    assert_same_batches(one_by_one.batches(20), [expected])
    assert len(parsed) == 21
    assert one_by_one.corrupt_records.count == 1


def test_videos_before_an_error_are_read_though_records_are_parsed_together(tmp_path):
    path = write_records(tmp_path / "a", [vector_record(n) for n in range(5)])
    corrupt_content(path, [3])
    found = video_reader(path).file_batches(1, [0], id)
    assert [next(found).video_ids for _ in range(3)] == [["v0"], ["v1"], ["v2"]]
    with pytest.raises(InputError, match="record 3 of"):
        next(found)


@pytest.mark.parametrize("seed", range(3))
def test_a_record_with_a_fault_only_shifts_the_order_after_skipped_batches(tmp_path, seed):
    records = [vector_record(n) for n in range(12)]
    records[4] = vector_record(4, [np.nan] * 8)
    path = write_records(tmp_path / "a", records)
    options = {"shuffle": True, "shuffle_buffer_size": 5, "seed": seed}
    whole = read_ids(video_reader(path, skip_corrupt_records=1), 3, **options)
    rest = read_ids(video_reader(path, skip_corrupt_records=1), 3, skip_batches=2, **options)
    assert len(whole) == 11
    assert rest == whole[-len(rest) :]
    assert len(rest) in (5, 6)


def test_each_of_several_records_has_its_own_name_of_the_id(tmp_path):
    vectors = {"mean_rgb": [0.0] * 8, "mean_audio": [0.0] * 4}
    with_both = tf.train.Example.FromString(video_record("a", [1], **vectors))
    with_both.features.feature["video_id"].bytes_list.value.append(b"other")
    only_second = video_record("b", [1], id_name="video_id", **vectors)
    path = write_records(tmp_path / "a", [only_second, with_both.SerializeToString()])
    assert read_ids(video_reader(path)) == ["b", "a"]
