"""Frames are sampled uniformly, within their video, and reproducibly."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import registry
import small_models
from frame_level_models import random_frame_indices, random_frame_runs
from model_references import (
    COUNTING_MODELS,
    D,
    assert_close,
    build,
    call,
    make_videos,
    reference_frames,
)
from small_models import marked, reset_random_numbers


def draw_indices(limits, count):
    """Returns one sampling of videos with the given numbers of frames, `[B, count]`."""
    uniform = keras.random.uniform((len(limits), 1, count), seed=0)
    return np.asarray(random_frame_indices(uniform, tf.constant(limits))[:, 0])


def draw_runs(limits, count):
    """Returns one run of videos with the given numbers of frames, `[B, count]`."""
    uniform = keras.random.uniform((len(limits), 1, 1), seed=0)
    return np.asarray(random_frame_runs(uniform, tf.constant(limits), count)[:, 0])


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
    indices = draw_indices([num_frames] * 1500, 20)
    assert indices.shape == (1500, 20)
    assert np.min(indices) == 0
    assert np.max(indices) == num_frames - 1
    assert_uniform(indices, num_frames)


def test_random_frame_indices_stay_within_each_video():
    for limit, row in enumerate(draw_indices(range(1, 50), 400), start=1):
        assert set(row) == set(range(limit))


def test_random_frame_indices_are_drawn_with_replacement():
    indices = draw_indices([5] * 4000, 5)
    all_different = np.mean([len(set(row)) == 5 for row in indices])
    assert all_different == pytest.approx(math.factorial(5) / 5**5, abs=0.015)


def test_random_frame_indices_stay_in_the_video_when_rounding_up():
    indices = random_frame_indices(tf.ones([3, 1, 2]), tf.constant([1, 7, 300]))[:, 0]
    np.testing.assert_array_equal(indices, [[0, 0], [6, 6], [299, 299]])


def test_a_random_run_is_consecutive_within_the_video_and_starts_uniformly():
    runs = draw_runs([10] * 8000, 4)
    assert np.all(np.diff(runs, axis=1) == 1)
    assert_uniform(runs[:, 0], 7)


def test_a_random_run_of_a_short_video_begins_at_its_first_frame():
    np.testing.assert_array_equal(draw_runs([1, 3, 4], 4), [[0, 1, 2, 3]] * 3)


def numbered_videos(num_frames, length):
    """Returns frames that hold the number of the video and their index; padding holds 255."""
    frames = np.full((len(num_frames), length, 2), 255, np.uint8)
    for row, count in enumerate(num_frames):
        frames[row, :count, 0] = row
        frames[row, :count, 1] = np.arange(count)
    return tf.constant(frames), tf.constant(num_frames)


def sample(model, frames, num_frames, num_samplings=1):
    """Returns the frames that a model takes in a training step, and their weights."""
    indices = model.draw_frame_indices(frames, num_frames, num_samplings, None)
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


@pytest.mark.parametrize("random_frames", [False, True])
def test_training_draws_other_frames_for_every_video_and_step(random_frames):
    model = build("FrameLevelLogisticModel", iterations=3, sample_random_frames=random_frames)
    frames = np.random.default_rng(0).integers(0, 256, (1, 900, D), np.uint8)
    videos = np.repeat(frames, 4, axis=0), [900] * 4

    def train_twice(seed):
        model.sampling_seed.state.assign([seed, 0])
        return [np.asarray(call(model, *videos, training=True)) for _ in range(2)]

    steps = train_twice(6)
    np.testing.assert_array_equal(train_twice(6), steps)
    assert len(np.unique(np.concatenate(steps), axis=0)) == 8
    assert np.any(train_twice(7)[0] != steps[0])


# --- Prediction ---


def draw(model, videos, num_samplings, seed):
    return np.asarray(model.draw_frame_indices(*videos, num_samplings, seed))


@pytest.mark.parametrize("random_frames", [False, True])
def test_samplings_differ_between_each_other_seeds_and_videos(random_frames):
    model = sampling_model(iterations=3, sample_random_frames=random_frames)
    frames = np.array([[[row, 7]] for row in range(9)], np.uint8)
    videos = tf.constant(frames), tf.fill([9], 900)
    drawn = np.array([draw(model, videos, 5, seed) for seed in (1, 2, (1, 1))])
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 0.9 * 3 * 9 * 5
    np.testing.assert_array_equal(draw(model, videos, 5, 1), drawn[0])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7, 40])
def test_over_many_seeds_a_video_gets_every_frame_equally_often(count):
    model = sampling_model(iterations=5)
    videos = numbered_videos([count], length=40)
    drawn = np.concatenate([draw(model, videos, 2, seed)[0] for seed in range(1000)])
    if count > 1:
        assert_uniform(drawn, count)
    all_different = np.mean([len(set(row)) == 5 for row in drawn])
    assert all_different == pytest.approx(math.perm(count, 5) / count**5, abs=0.03)


@pytest.mark.slow
def test_over_many_seeds_predictions_are_those_of_independent_sampling():
    model = build("FrameLevelLogisticModel", iterations=3)
    frames, num_frames = make_videos()
    inputs = {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}
    actual = np.array([model(inputs, num_samplings=2, seed=seed) for seed in range(400)])
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.classifier.weights)
    rng = np.random.default_rng(1)
    for row, video in enumerate(reference_frames(frames, num_frames)):
        drawn = np.array(video)[rng.integers(0, len(video), (20000, 2, 3))]
        expected = np.mean(1 / (1 + np.exp(-(drawn.mean(axis=2) @ kernel + bias))), axis=1)
        error = np.sqrt(expected.var(axis=0) * (1 / 400 + 1 / 20000)) + 1e-6
        assert np.all(np.abs(actual[:, row].mean(axis=0) - expected.mean(axis=0)) < 5 * error)
        spread = actual[:, row].std(axis=0, dtype=np.float64)
        np.testing.assert_allclose(spread, expected.std(axis=0), rtol=0.2, atol=1e-5)


def test_videos_sample_almost_independently():
    """The mean over many videos varies between seeds as with independent draws."""
    model = sampling_model(iterations=4)
    frames = np.random.default_rng(0).integers(0, 256, (4000, 1, 8), np.uint8)
    videos = tf.constant(frames), tf.fill([4000], 300)
    means = [draw(model, videos, 1, seed).mean() for seed in range(60)]
    independent = 300 / math.sqrt(12 * 4 * 4000)
    # With the same numbers for all videos it would be 63 times as much.
    assert np.std(means) < 10 * independent


# --- Counts ---


@pytest.mark.parametrize(
    ("random_frames", "iterations", "num_frames", "length"),
    [
        (True, 50, [3, 1, 9], 12),
        (False, 4, [2, 4, 9, 9, 9], 9),
        (False, 8, [2, 3], 3),  # Longer than the batch.
    ],
)
def test_counts_are_those_of_the_drawn_frame_indices(random_frames, iterations, num_frames, length):
    options = {"iterations": iterations, "sample_random_frames": random_frames}
    model = build("SoftBoFModel", (2,), soft_bof_cluster_size="2", **options)
    frames, limits = numbered_videos(num_frames, length)
    model.sampling_seed.state.assign([3, 0])
    taken, counts = sample(model, frames, limits)
    np.testing.assert_array_equal(taken, frames)
    model.sampling_seed.state.assign([3, 0])
    drawn = np.asarray(model.draw_frame_indices(frames, limits, 1, None))[:, 0]
    for row, indices, limit in zip(counts, drawn, num_frames, strict=True):
        inside = np.bincount(indices[indices < limit], minlength=length)
        np.testing.assert_array_equal(row, inside)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("random_frames", [True, False])
@pytest.mark.parametrize("name", [marked(name) for name in COUNTING_MODELS])
def test_counting_sampled_frames_predicts_as_copying_them(
    name, random_frames, training, monkeypatch
):
    model = build(name)
    all_frames = call(model, *make_videos(), training)
    monkeypatch.setattr(model, "iterations", 5)
    monkeypatch.setattr(model, "sample_random_frames", random_frames)
    predictions = []
    for by_count in (True, False):
        monkeypatch.setattr(type(model), "sample_by_count", by_count)
        reset_random_numbers(model)
        predictions.append(call(model, *make_videos(), training, num_samplings=2))
    assert_close(*predictions)
    assert not np.allclose(predictions[0], all_frames, rtol=1e-5)


# --- Parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*map(small_models.marked, small_models.FRAME_LEVEL_MODELS)])
def test_a_part_of_a_video_is_predicted_as_if_it_were_a_video(name):
    model = small_models.shared(name)
    inputs = small_models.make_inputs(name, num_frames=(7, 4))
    parts = [[range(3), range(2, 7)], [range(1, 4), [0]]]
    frame_indices = np.full((2, 2, 5), 2**30, np.int32)
    for video, ranges in enumerate(parts):
        for number, frames in enumerate(ranges):
            frame_indices[video, number, : len(frames)] = frames
    videos = tf.nest.map_structure(tf.constant, {**inputs, "frame_indices": frame_indices})
    predictions = model.predict_parts(videos).numpy()
    assert predictions.shape == (2, 2, small_models.NUM_CLASSES)
    for video, ranges in enumerate(parts):
        for number, frames in enumerate(ranges):
            alone = {
                "frames": inputs["frames"][video : video + 1, list(frames)],
                "num_frames": np.array([len(frames)], np.int32),
            }
            expected = small_models.predict(model, alone, num_samplings=0)
            np.testing.assert_allclose(predictions[video, number], expected[0], atol=1e-5)
