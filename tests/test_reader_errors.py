"""Records that do not fit the settings, and corrupt records."""

import math
import os
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


FRAMES = frame_record("a", [1], rgb=[b"12345678"], audio=[b"1234"])
VECTORS = video_record("a", [1], mean_rgb=[1.0] * 5)
SIZE = "the model takes size {}. Use data that fit the model, or train with other --feature_sizes."
FEATURES = "Use data that fit the model, or train with other --feature_names and --feature_sizes."
MISFITS = [
    (
        *(frame_reader, {"rgb": 16, "audio": 4}, FRAMES),
        f"feature 'rgb' has size 8 in PLACE, but {SIZE.format(16)}",
    ),
    (
        *(video_reader, {"mean_rgb": 4}, VECTORS),
        f"feature 'mean_rgb' has size 5 in PLACE, but {SIZE.format(4)}",
    ),
    (
        *(frame_reader, {"rgb": 8}, VECTORS),
        "PLACE holds video-level features (id, labels, mean_rgb), but the model takes frames. "
        "Choose frame-level data or a video-level model.",
    ),
    (
        *(video_reader, {"mean_rgb": 5}, FRAMES),
        "PLACE holds frame-level features (audio, rgb), but the model takes video-level features. "
        "Choose video-level data or a frame-level model.",
    ),
    (
        *(frame_reader, {"rgb": 8, "depth": 4}, FRAMES),
        f"feature 'depth' is not in PLACE, which has: audio, rgb. {FEATURES}",
    ),
    (
        *(video_reader, {"mean_audio": 1}, VECTORS),
        f"feature 'mean_audio' is not in PLACE, which has: id, labels, mean_rgb. {FEATURES}",
    ),
]


@pytest.mark.parametrize(("reader", "sizes", "record", "message"), MISFITS)
def test_a_record_that_does_not_fit_is_reported_with_its_content(
    tmp_path, reader, sizes, record, message
):
    path = one_record(tmp_path, record)
    assert error_of(reader(path, sizes)) == message.replace("PLACE", f"record 0 of {path} (byte 0)")


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
    message = error_of(frame_reader(one_record(tmp_path, example.SerializeToString()), {"rgb": 4}))
    assert re.search(r"labels of video 'abc' .* are a float_list", message)


# --- Corrupt records ---


def raw_frame_record(context, rgb):
    lists = tf.train.FeatureLists(feature_list={"rgb": tf.train.FeatureList(feature=rgb)})
    context = tf.train.Features(feature=context)
    return tf.train.SequenceExample(context=context, feature_lists=lists).SerializeToString()


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
        "it has no 'id' or 'video_id' that holds exactly one string. It has: labels, mean_rgb, "
        "name",
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
        os.truncate(paths[1], files.file_size(paths[1]) - 1)
    reader = frame_reader(tmp_path / "?", skip_corrupt_records=1)
    assert reader.total_bytes == sum(files.file_size(path) for path in paths)
    num_videos = len(read_ids(reader, num_epochs=2))
    assert num_videos == (40 if corrupt == "nothing" else 38)
    assert reader.bytes_read == 2 * reader.total_bytes
