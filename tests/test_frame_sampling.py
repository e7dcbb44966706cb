"""Frames are sampled uniformly, within their video, and reproducibly."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import frame_level_models
import registry
from model_references import (
    SMALL_COUNTING_MODELS,
    assert_close,
    build,
    build_once,
    call,
    make_videos,
)


@pytest.fixture(scope="module", autouse=True)
def _free_shared_models():
    yield
    build_once.cache_clear()


def seed_generator(seed=0):
    return keras.random.SeedGenerator(seed)


def chi_squared(values, count):
    """Returns the chi-squared statistic of integers against a uniform one over 0..count-1."""
    observed = np.bincount(np.ravel(values), minlength=count)
    assert len(observed) == count
    expected = np.size(values) / count
    return np.sum((observed - expected) ** 2 / expected)


def assert_uniform(values, count):
    # Mean and standard deviation of the statistic are n and sqrt(2 n) for n degrees of freedom.
    n = count - 1
    assert chi_squared(values, count) < n + 5 * math.sqrt(2 * n)


def test_the_uniformity_check_finds_a_frame_drawn_too_often():
    values = np.arange(4000) % 8
    values[:300] = 0
    assert chi_squared(values, 8) > 7 + 5 * math.sqrt(14)


@pytest.mark.parametrize("num_frames", [2, 7, 300])
def test_random_frame_indices_are_uniform_over_real_frames_only(num_frames):
    limits = tf.fill([1500], num_frames)
    indices = frame_level_models.random_frame_indices(limits, 1, 20, seed_generator())[:, 0]
    assert indices.shape == (1500, 20)
    assert np.min(indices) == 0
    assert np.max(indices) == num_frames - 1
    assert_uniform(indices, num_frames)


def test_random_frame_indices_stay_within_each_video():
    limits = np.arange(1, 50, dtype=np.int32)
    indices = np.asarray(
        frame_level_models.random_frame_indices(tf.constant(limits), 1, 400, seed_generator())[:, 0]
    )
    for row, limit in zip(indices, limits, strict=True):
        assert set(row) == set(range(limit))


def test_random_frame_indices_are_drawn_with_replacement():
    limits = tf.fill([4000], 5)
    indices = frame_level_models.random_frame_indices(limits, 1, 5, seed_generator())[:, 0]
    all_different = np.mean([len(set(row)) == 5 for row in np.asarray(indices)])
    assert all_different == pytest.approx(math.factorial(5) / 5**5, abs=0.015)


def test_random_frame_indices_stay_in_the_video_when_rounding_up(monkeypatch):
    monkeypatch.setattr(keras.random, "uniform", lambda shape, seed: tf.ones(shape))
    limits = tf.constant([1, 7, 300])
    indices = frame_level_models.random_frame_indices(limits, 1, 2, seed_generator())[:, 0]
    np.testing.assert_array_equal(indices, [[0, 0], [6, 6], [299, 299]])


@pytest.mark.parametrize(
    "draw", [frame_level_models.random_frame_indices, frame_level_models.random_frame_runs]
)
def test_frame_indices_repeat_under_a_seed_and_differ_between_calls_and_videos(draw):
    limits, seed = tf.fill([4], 1000), seed_generator(6)
    first, second = (np.asarray(draw(limits, 1, 3, seed)[:, 0]) for _ in range(2))
    np.testing.assert_array_equal(draw(limits, 1, 3, seed_generator(6))[:, 0], first)
    assert np.any(np.asarray(draw(limits, 1, 3, seed_generator(7))[:, 0]) != first)
    assert np.any(first != second)
    assert len({tuple(row) for row in first}) == 4


def test_a_random_run_is_consecutive_within_the_video_and_starts_uniformly():
    runs = np.asarray(
        frame_level_models.random_frame_runs(tf.fill([8000], 10), 1, 4, seed_generator())[:, 0]
    )
    assert np.all(np.diff(runs, axis=1) == 1)
    assert_uniform(runs[:, 0], 7)


def test_a_random_run_of_a_short_video_begins_at_its_first_frame():
    limits = tf.constant([1, 3, 4])
    runs = frame_level_models.random_frame_runs(limits, 1, 4, seed_generator())[:, 0]
    np.testing.assert_array_equal(runs, [[0, 1, 2, 3]] * 3)


def numbered_videos(num_frames, length):
    """Returns frames that hold the number of the video and their index; padding holds 255."""
    frames = np.full((len(num_frames), length, 2), 255, np.uint8)
    for row, count in enumerate(num_frames):
        frames[row, :count, 0] = row
        frames[row, :count, 1] = np.arange(count)
    return tf.constant(frames), tf.constant(num_frames)


def sample(model, frames, num_frames, num_samplings=1):
    """Returns the frames that a model takes in one call, and their weights."""
    indices = model.draw_frame_indices(num_frames, num_samplings, model.sampling_seed)
    return model.sample(frames, num_frames, indices)


def sampling_model(**arguments):
    return registry.build_model(
        "FrameLevelLogisticModel", num_classes=2, feature_sizes=(2,), **arguments
    )


def test_sampled_frames_are_real_frames_of_their_own_video():
    model = sampling_model(iterations=50)
    sampled, weights = sample(model, *numbered_videos([3, 1, 9], length=9))
    sampled = np.asarray(sampled)
    assert sampled.shape == (3, 50, 2)
    assert sampled.dtype == np.uint8
    np.testing.assert_array_equal(sampled[..., 0], [[0] * 50, [1] * 50, [2] * 50])
    for row, count in enumerate([3, 1, 9]):
        assert set(sampled[row, :, 1]) == set(range(count))
    np.testing.assert_array_equal(weights, np.ones((3, 50)))


def test_a_run_of_frames_has_weight_zero_beyond_a_short_video():
    model = sampling_model(iterations=4, sample_random_frames=False)
    sampled, weights = sample(model, *numbered_videos([2, 6, 4], length=6))
    sampled = np.asarray(sampled)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(sampled[0, :2], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(sampled[1:, :, 0], [[1] * 4, [2] * 4])
    assert np.all(np.diff(sampled[1:, :, 1].astype(int), axis=1) == 1)
    assert sampled[1, -1, 1] < 6


def test_a_run_longer_than_the_batch_takes_every_frame_once():
    model = sampling_model(iterations=8, sample_random_frames=False)
    sampled, weights = sample(model, *numbered_videos([2, 3], length=3))
    assert sampled.shape == (2, 8, 2)
    np.testing.assert_array_equal(weights, [[1] * 2 + [0] * 6, [1] * 3 + [0] * 5])
    np.testing.assert_array_equal(sampled[1, :3], [[1, 0], [1, 1], [1, 2]])


def test_without_sampling_all_frames_are_taken_in_order():
    frames, num_frames = numbered_videos([2, 3], length=4)
    taken, weights = sample(sampling_model(), frames, num_frames)
    np.testing.assert_array_equal(taken, frames)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0], [1, 1, 1, 0]])


def test_every_call_samples_other_frames():
    model = sampling_model(iterations=20)
    videos = numbered_videos([9], length=9)
    first, second = sample(model, *videos)[0], sample(model, *videos)[0]
    assert np.any(first != second)


def counting_model(**arguments):
    return registry.build_model(
        "SoftBoFModel",
        num_classes=2,
        feature_sizes=(2,),
        soft_bof_cluster_size="2",
        soft_bof_hidden_size=2,
        **arguments,
    )


def test_counts_stand_at_the_sampled_frames_and_sum_to_the_iterations():
    model = counting_model(iterations=50)
    frames, num_frames = numbered_videos([3, 1, 9], length=12)
    taken, counts = sample(model, frames, num_frames)
    np.testing.assert_array_equal(taken, frames)
    np.testing.assert_array_equal(np.sum(counts, axis=1), [50, 50, 50])
    np.testing.assert_array_equal(counts, np.rint(counts))
    for row, count in zip(np.asarray(counts), [3, 1, 9], strict=True):
        assert np.all(row[:count] > 0)
        assert np.all(row[count:] == 0)


def test_counts_are_those_of_the_drawn_frame_indices():
    model = counting_model(iterations=7)
    frames, num_frames = numbered_videos([3, 1, 9], length=12)
    model.sampling_seed.state.assign([3, 0])
    _, counts = sample(model, frames, num_frames)
    model.sampling_seed.state.assign([3, 0])
    indices = frame_level_models.random_frame_indices(num_frames, 1, 7, model.sampling_seed)[:, 0]
    expected = [np.bincount(row, minlength=12) for row in np.asarray(indices)]
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("num_frames", [2, 7, 300])
def test_frames_are_counted_uniformly(num_frames):
    model = counting_model(iterations=20)
    frames = tf.zeros([1500, 300, 2], tf.uint8)
    _, counts = sample(model, frames, tf.fill([1500], num_frames))
    total = np.sum(counts, axis=0).astype(int)
    assert np.all(total[num_frames:] == 0)
    assert_uniform(np.repeat(np.arange(300), total), num_frames)


def test_counts_repeat_under_a_seed_and_differ_between_calls_and_videos():
    model, videos = counting_model(iterations=9), numbered_videos([50] * 4, length=50)

    def sample_twice(seed):
        model.sampling_seed.state.assign([seed, 0])
        return [np.asarray(sample(model, *videos)[1]) for _ in range(2)]

    first, second = sample_twice(6)
    np.testing.assert_array_equal(sample_twice(6), [first, second])
    assert np.any(sample_twice(7)[0] != first)
    assert np.any(first != second)
    assert len({tuple(row) for row in first}) == 4


def test_a_run_of_frames_counts_consecutive_frames_once():
    model = counting_model(iterations=4, sample_random_frames=False)
    _, counts = sample(model, *numbered_videos([2, 4, 9, 9, 9], length=9))
    counts = np.asarray(counts)
    np.testing.assert_array_equal(counts[0], [1, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(counts[1], [1, 1, 1, 1, 0, 0, 0, 0, 0])
    for row in counts[2:]:
        start = int(np.argmax(row))
        np.testing.assert_array_equal(row, np.isin(np.arange(9), range(start, start + 4)))


def test_a_run_longer_than_the_batch_counts_every_frame_once():
    model = counting_model(iterations=8, sample_random_frames=False)
    _, counts = sample(model, *numbered_videos([2, 3], length=3))
    np.testing.assert_array_equal(counts, [[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("random_frames", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "LFNLNetVLADModel",
        "SoftBoFModel",
        pytest.param("LFNLNetRVLADModel", marks=pytest.mark.slow),
        pytest.param("EFNLNetVLADModel", marks=pytest.mark.slow),
    ],
)
def test_counting_sampled_frames_predicts_as_copying_them(
    name, random_frames, training, monkeypatch
):
    model = build(name, **SMALL_COUNTING_MODELS[name])
    all_frames = call(model, *make_videos(), training)
    monkeypatch.setattr(model, "iterations", 5)
    monkeypatch.setattr(model, "sample_random_frames", random_frames)
    predictions = []
    for by_count in (True, False):
        monkeypatch.setattr(type(model), "sample_by_count", by_count)
        model.sampling_seed.state.assign([3, 0])
        predictions.append(call(model, *make_videos(), training))
    assert_close(*predictions)
    assert not np.allclose(predictions[0], all_frames, rtol=1e-5)
