"""Batches hold exactly the records of the files."""

import re

import numpy as np
import pytest
import tensorflow as tf

from record_readers import (
    NUM_CLASSES,
    SIZES,
    expected_batch,
    frame_reader,
    make_videos,
    one_record,
    read_ids,
    video_reader,
    write_videos,
)
from sample_records import frame_record, video_record, write_records
from utils import InputError


def test_frame_level_batches_hold_exactly_the_records(tmp_path):
    videos = make_videos(10)
    batches = list(frame_reader(write_videos(tmp_path / "a", videos)).batches(4))
    assert [len(batch.video_ids) for batch in batches] == [4, 4, 2]
    for start, batch in zip((0, 4, 8), batches, strict=True):
        part = videos[start : start + 4]
        frames, lengths, labels = expected_batch(part)
        assert batch.video_ids == [video[0] for video in part]
        np.testing.assert_array_equal(batch.inputs["frames"], frames)
        np.testing.assert_array_equal(batch.inputs["num_frames"], lengths)
        np.testing.assert_array_equal(batch.labels, labels)
        types = [batch.inputs["frames"].dtype, batch.inputs["num_frames"].dtype, batch.labels.dtype]
        assert types == [np.uint8, np.int32, np.float32]


def test_video_level_batches_hold_exactly_the_records(tmp_path):
    rng = np.random.default_rng(0)
    rgb, audio = rng.normal(size=(5, 8)), rng.normal(size=(5, 4))
    records = [
        video_record(f"v{index}", [index], mean_rgb=rgb[index], mean_audio=audio[index])
        for index in range(5)
    ]
    first, second = video_reader(write_records(tmp_path / "a", records)).batches(3)
    assert first.video_ids + second.video_ids == ["v0", "v1", "v2", "v3", "v4"]
    inputs = np.concatenate([first.inputs, second.inputs])
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, np.concatenate([rgb, audio], axis=1).astype(np.float32))
    np.testing.assert_array_equal(second.labels, np.eye(5, NUM_CLASSES)[3:])


def test_the_parser_of_vectors_is_traced_for_the_first_reader_that_reads(tmp_path, monkeypatch):
    traced, parse_example = [], tf.io.parse_example
    monkeypatch.setattr(
        tf.io, "parse_example", lambda *args: traced.append(1) or parse_example(*args)
    )
    path = one_record(tmp_path, video_record("a", [1], mean_traced_once=[0.5, 2.0]))
    one, other = (video_reader(path, {"mean_traced_once": 2}) for _ in range(2))
    assert traced == []
    for reader in (one, other, one):
        assert read_ids(reader) == ["a"]
        assert traced == [1]


@pytest.mark.parametrize("name", ["id", "video_id"])
def test_id_is_read_from_id_or_video_id(tmp_path, name):
    frames = one_record(tmp_path, frame_record("äbc", [1], name, rgb=[b"abcd"]))
    assert read_ids(frame_reader(frames, {"rgb": 4})) == ["äbc"]
    video = one_record(tmp_path, video_record("abc", [1], name, mean_rgb=[0.5]))
    assert read_ids(video_reader(video, {"mean_rgb": 1})) == ["abc"]


@pytest.mark.parametrize(
    "names", [("audio", "rgb"), ("rgb",), ("depth", "rgb", "audio"), ("audio", "depth")]
)
def test_features_are_concatenated_in_the_order_of_feature_names(tmp_path, names):
    sizes = {"rgb": 8, "audio": 4, "depth": 3}
    videos = make_videos(3, sizes=sizes)
    path = write_videos(tmp_path / "a", videos)
    (batch,) = frame_reader(path, {name: sizes[name] for name in names}).batches(3)
    np.testing.assert_array_equal(batch.inputs["frames"], expected_batch(videos, names=names)[0])


def test_video_level_features_are_concatenated_in_the_order_of_feature_names(tmp_path):
    path = one_record(tmp_path, video_record("a", [], one=[1.0], two=[2.0, 2.5], three=[3.0]))
    (batch,) = video_reader(path, {"three": 1, "one": 1, "two": 2}).batches(3)
    assert batch.inputs.tolist() == [[3.0, 1.0, 2.0, 2.5]]


@pytest.mark.parametrize("max_frames", [1, 3, 9, 20])
def test_videos_are_cut_at_max_frames_and_padded_to_the_longest(tmp_path, max_frames):
    videos = make_videos(20)
    path = write_videos(tmp_path / "a", videos)
    (batch,) = frame_reader(path, max_frames=max_frames).batches(20)
    frames, lengths, _ = expected_batch(videos, max_frames=max_frames)
    assert frames.shape[1] == min(max_frames, 9)
    np.testing.assert_array_equal(batch.inputs["frames"], frames)
    np.testing.assert_array_equal(batch.inputs["num_frames"], lengths)


def test_pad_to_max_frames_makes_t_the_same_in_every_batch(tmp_path):
    videos = make_videos(6)
    reader = frame_reader(write_videos(tmp_path / "a", videos), max_frames=20)
    batches = list(reader.batches(2, pad_to_max_frames=True))
    for batch, part in zip(batches, (videos[:2], videos[2:4], videos[4:]), strict=True):
        expected = expected_batch(part, num_frames_in_batch=20, max_frames=20)[0]
        np.testing.assert_array_equal(batch.inputs["frames"], expected)


def test_arrays_are_aligned_so_that_tensorflow_does_not_copy_them(record_files):
    for batch in frame_reader(record_files).batches(3):
        for array in (batch.inputs["frames"], batch.labels):
            assert array.ctypes.data % 64 == 0
            assert array.flags.c_contiguous


def test_read_file_yields_the_videos_of_one_file(tmp_path):
    videos = make_videos(3)
    path = write_videos(tmp_path / "a", videos)
    read = list(frame_reader(path).read_file(path))
    assert [video.video_id for video in read] == ["v0", "v1", "v2"]
    for video, (_, labels, features) in zip(read, videos, strict=True):
        assert video.labels.tolist() == labels
        for name, feature in zip(SIZES, video.features, strict=True):
            np.testing.assert_array_equal(feature, features[name][:6])


def test_several_patterns_are_read_together_and_each_file_once(tmp_path):
    for name in ("a1", "a2", "b1"):
        write_videos(tmp_path / name, make_videos(2, f"{name}v"))
    reader = frame_reader(f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/?1")
    assert sorted(read_ids(reader)) == ["a1v0", "a1v1", "a2v0", "a2v1", "b1v0", "b1v1"]


def test_a_pattern_without_a_match_is_rejected_by_name(record_files, tmp_path):
    with pytest.raises(InputError, match=f"^no file matches '{re.escape(str(tmp_path))}/x\\*' "):
        frame_reader(f"{record_files},{tmp_path}/x*")


def test_an_empty_pattern_is_rejected():
    with pytest.raises(InputError, match=r"^a file pattern was expected\. Received: ' ,'$"):
        frame_reader(" ,")
