"""Records that do not fit the settings, and corrupt records."""

import math
import re

import pytest
import tensorflow as tf

import files
import readers
from record_readers import (
    NUM_CLASSES,
    RECORD_HEADER_BYTES,
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


def test_a_wrong_frame_size_is_reported_with_the_size_found(record_files):
    message = error_of(frame_reader(record_files, {"rgb": 16, "audio": 4}))
    assert re.fullmatch(
        r"feature 'rgb' has size 8 in record 0 of .*part00\.tfrecord \(byte 0\), but "
        r"the model takes size 16\. Use data that fit the model.*",
        message,
    )


def test_a_wrong_vector_size_is_reported_with_the_size_found(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0] * 5))
    message = error_of(video_reader(path, {"mean_rgb": 4}))
    assert message.startswith(f"feature 'mean_rgb' has size 5 in record 0 of {path} (byte 0), but")


def test_frame_level_readers_reject_video_level_data(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0], mean_audio=[1.0]))
    assert error_of(frame_reader(path)) == (
        f"record 0 of {path} (byte 0) holds video-level features (id, labels, mean_audio, "
        "mean_rgb), but the model takes frames. Choose frame-level data or a video-level model."
    )


def test_video_level_readers_reject_frame_level_data(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(1))
    assert error_of(video_reader(path)) == (
        f"record 0 of {path} (byte 0) holds frame-level features (audio, rgb), but the model takes "
        "video-level features. Choose video-level data or a frame-level model."
    )


def test_a_missing_frame_level_feature_is_reported_with_those_present(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(1))
    assert error_of(frame_reader(path, {"rgb": 8, "depth": 4})) == (
        f"feature 'depth' is not in record 0 of {path} (byte 0), which has: audio, rgb. Use "
        "data that fit the model, or train with other --feature_names and --feature_sizes."
    )


def test_a_missing_video_level_feature_is_reported_with_those_present(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0]))
    message = error_of(video_reader(path, {"mean_audio": 1}))
    assert f"feature 'mean_audio' is not in record 0 of {path} (byte 0), which has: id" in message
    assert "id, labels, mean_rgb" in message


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
    expected = f"a batch takes 6 videos, but there are only 5 in 1 files, such as {path}"
    assert message == expected


@pytest.mark.parametrize("num_epochs", [1, None])
def test_files_without_a_video_are_rejected(tmp_path, num_epochs):
    for name in ("a", "b"):
        write_records(tmp_path / name, [])
    message = error_of(frame_reader(tmp_path / "?"), num_epochs=num_epochs)
    assert message == f"no video in 2 files, such as {tmp_path}/a"


def test_labels_that_are_not_integers_are_rejected(tmp_path):
    example = tf.train.SequenceExample.FromString(frame_record("abc", [], rgb=[b"1234"]))
    example.context.feature["labels"].float_list.value.append(1.0)
    path = write_records(tmp_path / "a.tfrecord", [example.SerializeToString()])
    reader = readers.YT8MFrameFeatureReader(
        [path], feature_names=("rgb",), feature_sizes=(4,), num_classes=9
    )
    with pytest.raises(InputError, match=r"labels of video 'abc' .* are a float_list"):
        list(reader.batches(1))


# --- Corrupt records ---


def frame_lists(**features):
    return tf.train.FeatureLists(
        feature_list={
            name: tf.train.FeatureList(feature=values) for name, values in features.items()
        }
    )


def raw_frame_record(context, **features):
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=frame_lists(**features)
    ).SerializeToString()


ID = {"id": bytes_feature(b"abc")}
CORRUPT_FRAMES = {
    "no frame": (
        raw_frame_record(ID, rgb=[]),
        "video 'abc' has no frame of 'rgb'",
    ),
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
        "it has no 'id' or 'video_id' that holds exactly one string. It has: labels, mean_rgb, "
        "name",
    ),
    "no record": (b"\x0a\xff\xff", "it is not a YouTube-8M record: "),
}


@pytest.mark.parametrize(("record", "reason"), CORRUPT_FRAMES.values(), ids=CORRUPT_FRAMES)
def test_a_record_without_usable_frames_is_corrupt(tmp_path, record, reason):
    good = [frame_record(name, [1], rgb=[b"abcd"]) for name in ("a", "b")]
    path = write_records(tmp_path / "a", [good[0], record, good[1]])
    offset = RECORD_HEADER_BYTES + len(good[0]) + 4
    expected = f"record 1 of {path} (byte {offset}): {reason}"
    assert error_of(frame_reader(path, {"rgb": 4})).startswith(expected)
    reader = frame_reader(path, {"rgb": 4}, skip_corrupt_records=1)
    assert read_ids(reader, num_epochs=2) == ["a", "b", "a", "b"]
    assert reader.corrupt_records.count == 1


@pytest.mark.parametrize(("record", "reason"), CORRUPT_VECTORS.values(), ids=CORRUPT_VECTORS)
def test_a_record_without_usable_vectors_is_corrupt(tmp_path, record, reason):
    good = [video_record(name, [1], mean_rgb=[1.0, 2.0]) for name in ("a", "b")]
    path = write_records(tmp_path / "a", [good[0], record, good[1]])
    offset = RECORD_HEADER_BYTES + len(good[0]) + 4
    expected = f"record 1 of {path} (byte {offset}): {reason}"
    assert error_of(video_reader(path, {"mean_rgb": 2})).startswith(expected)
    reader = video_reader(path, {"mean_rgb": 2}, skip_corrupt_records=1)
    assert read_ids(reader) == ["a", "b"]
    assert reader.corrupt_records.count == 1


def test_unequal_numbers_of_frames_are_corrupt(tmp_path):
    path = one_record(tmp_path, frame_record("abc", [1], rgb=[b"abcd"] * 3, audio=[b"ab"] * 2))
    message = error_of(frame_reader(path, {"rgb": 4, "audio": 2}))
    assert "video 'abc' has unequal numbers of frames: 3 of 'rgb', 2 of 'audio'" in message


def test_unequal_numbers_of_frames_are_corrupt_even_beyond_max_frames(tmp_path):
    path = one_record(tmp_path, frame_record("abc", [1], rgb=[b"abcd"] * 3, audio=[b"ab"] * 2))
    message = error_of(frame_reader(path, {"rgb": 4, "audio": 2}, max_frames=1))
    assert "video 'abc' has unequal numbers of frames: 3 of 'rgb', 2 of 'audio'" in message


def test_a_video_without_labels_is_a_negative_and_is_warned_of_once(tmp_path, logged_warnings):
    no_labels = raw_frame_record(ID, rgb=[bytes_feature(b"abcd")])
    records = [
        no_labels,
        frame_record("b", [], rgb=[b"abcd"]),
        frame_record("c", [2], rgb=[b"abcd"]),
    ]
    path = write_records(tmp_path / "a", records)
    (batch,) = frame_reader(path, {"rgb": 4}).batches(3)
    assert batch.labels.sum(axis=1).tolist() == [0, 0, 1]
    assert logged_warnings == [
        f"video 'abc' (record 0 of {path} (byte 0)) has no label: it counts as a negative of every "
        "class. The record has: id. Further videos without labels are not reported."
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
    path = write_records(tmp_path / "a", [no_id] * 50 + [good] + [no_id] * 50 + [good])
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
        with open(paths[1], "r+b") as file:
            file.truncate(files.file_size(paths[1]) - 1)
    reader = frame_reader(tmp_path / "?", skip_corrupt_records=1)
    assert reader.total_bytes == sum(files.file_size(path) for path in paths)
    num_videos = len(read_ids(reader, num_epochs=2))
    assert num_videos == (40 if corrupt == "nothing" else 38)
    assert reader.bytes_read == 2 * reader.total_bytes
