"""--mix_videos: half of the frames of two videos, and the labels of both."""

import random

import numpy as np
import pytest

import programs
import readers
from record_readers import (
    assert_same_batches,
    frame_reader,
    make_videos,
    video_reader,
    write_videos,
)
from run_config import RunConfig
from sample_records import frame_record, video_record, write_records
from utils import InputError


def make_video(name, labels, num_frames, start):
    """Returns a video whose frames are numbered from a start, in two features."""
    rgb = np.arange(start, start + num_frames, dtype=np.uint8)[:, None]
    return readers.Video(name, np.array(labels), [rgb, np.tile(rgb + 100, (1, 2))])


def frames_of(video):
    return [feature[:, 0].tolist() for feature in video.features]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((5, 4), [0, 2, 4, 51, 53]),
        ((4, 5), [0, 2, 51, 53]),
        ((2, 1), [0, 50]),
        ((1, 2), [0, 51]),
        ((1, 1), [0, 50]),
    ],
)
def test_a_mixed_video_has_half_of_the_frames_of_each_and_the_labels_of_both(lengths, expected):
    first = make_video("a", [1, 2], lengths[0], 0)
    second = make_video("b", [2, 3], lengths[1], 50)
    mixed, other = readers.mixed_videos([first, second], 1.0, random.Random(0))
    assert frames_of(mixed) == [expected, [frame + 100 for frame in expected]]
    assert (mixed.video_id, other.video_id) == ("a", "b")
    assert set(mixed.labels.tolist()) == set(other.labels.tolist()) == {1, 2, 3}
    # Both are mixed from the given videos, not from the mixed ones.
    assert frames_of(other)[0][0] == 50
    assert [feature.dtype for feature in mixed.features] == [np.uint8, np.uint8]


@pytest.mark.parametrize("max_frames", [2, 3, 4, 5])
def test_a_mixed_video_has_no_more_frames_than_the_longest_video(max_frames):
    for first in range(1, max_frames + 1):
        for second in range(1, max_frames + 1):
            videos = [make_video("a", [1], first, 0), make_video("b", [2], second, 50)]
            for mixed in readers.mixed_videos(videos, 1.0, random.Random(0)):
                assert len(mixed.features[0]) <= max_frames


def test_videos_are_mixed_with_the_given_probability_and_each_other_video_equally_often():
    videos = [make_video(str(row), [row], 4, 0) for row in range(4)]
    generator, partners = random.Random(1), np.zeros((4, 4))
    for _ in range(2000):
        for row, mixed in enumerate(readers.mixed_videos(videos, 0.3, generator)):
            partners[row, mixed.labels[-1]] += 1 / 2000
    np.testing.assert_allclose(np.diag(partners), 0.7, atol=0.04)
    np.testing.assert_allclose(partners[~np.eye(4, dtype=bool)], 0.1, atol=0.03)


def test_a_single_video_is_not_mixed():
    video = make_video("a", [1], 3, 0)
    assert readers.mixed_videos([video], 0.999, random.Random(0)) == [video]


def test_a_batch_of_mixed_videos_has_the_bytes_the_padding_and_all_labels(tmp_path):
    records = [
        frame_record("a", [1], rgb=[b"aA", b"bB", b"cC", b"dD"]),
        frame_record("b", [2, 3], rgb=[b"eE", b"fF", b"gG", b"hH", b"iI"]),
    ]
    reader = frame_reader(write_records(tmp_path / "a", records), {"rgb": 2})
    (batch,) = reader.batches(2, mix_videos=1 - 1e-12, pad_to_max_frames=True)
    expected = np.zeros((2, 6, 2), np.uint8)
    for row, text in enumerate([b"aAcCfFhH", b"eEgGiIbBdD"]):
        expected[row, : len(text) // 2] = np.frombuffer(text, np.uint8).reshape(-1, 2)
    np.testing.assert_array_equal(batch.inputs["frames"], expected)
    assert batch.inputs["num_frames"].tolist() == [4, 5]
    assert [np.flatnonzero(row).tolist() for row in batch.labels] == [[1, 2, 3]] * 2
    assert batch.video_ids == ["a", "b"]


def test_mixing_depends_on_seed_epoch_and_shard_and_is_the_same_after_a_restart(tmp_path):
    reader = frame_reader(write_videos(tmp_path / "a", make_videos(20)))
    options = {"shuffle": True, "num_epochs": 3, "mix_videos": 0.5}
    all_batches = list(reader.batches(4, **options))
    assert_same_batches(reader.batches(4, skip_batches=7, **options), all_batches[7:])
    plain = list(reader.batches(4, **{**options, "mix_videos": 0.0}))
    assert [batch.video_ids for batch in plain] == [batch.video_ids for batch in all_batches]
    labels = [
        np.concatenate([batch.labels for batch in reader.batches(20, mix_videos=0.5, **other)])
        for other in ({}, {"seed": 1}, {"first_epoch": 1})
    ]
    for other in labels[1:]:
        assert (labels[0] != other).any()


def test_video_level_features_are_not_mixed(tmp_path):
    records = [video_record("a", [1], mean_rgb=[1.0] * 8, mean_audio=[1.0] * 4)] * 2
    reader = video_reader(write_records(tmp_path / "a", records))
    with pytest.raises(InputError, match="mix_videos mixes frames"):
        list(reader.batches(2, mix_videos=0.5))
    with pytest.raises(InputError, match=r"--mix_videos is about frames, but MoeModel takes vid"):
        RunConfig("MoeModel", mix_videos=0.5)
    with pytest.raises(InputError, match=r"--mix_videos needs --max_frames of at least 2"):
        RunConfig("DbofModel", mix_videos=0.5, max_frames=1)
    with pytest.raises(InputError, match=r"--mix_videos must be below 1"):
        RunConfig("DbofModel", mix_videos=1.0)


def test_a_resumed_run_with_mixed_videos_equals_an_uninterrupted_one(tmp_path, frame_data):
    flags = ("--mix_videos=0.5", "--label_loss=AsymmetricLoss")
    whole = programs.train_mean(tmp_path / "whole", frame_data, *flags, "--max_steps=8")
    parts = tmp_path / "parts"
    programs.train_mean(parts, frame_data, *flags, "--max_steps=5")
    programs.train_mean(parts, frame_data, *flags, "--max_steps=8")
    expected, found = programs.weights_of(whole), programs.weights_of(parts)
    assert expected.keys() == found.keys()
    for path, weight in expected.items():
        np.testing.assert_array_equal(weight, found[path], err_msg=path)
    with pytest.raises(InputError, match=r"other settings \(mix_videos: 0\.5 there, 0\.25 now\)"):
        programs.train_mean(parts, frame_data, "--mix_videos=0.25", flags[1], "--max_steps=9")
