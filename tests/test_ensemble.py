"""Ensembles: weighted means, samplings, parts of a batch, fitted weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ensemble
import frame_level_models
import registry
from ensemble import Ensemble
from utils import InputError

SIZES = {"num_classes": 6, "feature_sizes": (5, 3)}
SMALL = {
    "LFNLNetVLADModel": {
        "iterations": 6,
        "netvlad_cluster_size": "3,2",
        "nonlocal_embedding": "2",
        "netvlad_hidden_size": 4,
        "moe_num_mixtures": 2,
    },
    "SoftBoFModel": {"iterations": 6, "soft_bof_cluster_size": "4", "soft_bof_hidden_size": 4},
    "DbofModel": {"iterations": 6, "dbof_cluster_size": 8, "dbof_hidden_size": 4},
    "GruModel": {"gru_cells": 4},
}
SAMPLING = [name for name in SMALL if name != "GruModel"]


def make_model(name, seed=1):
    keras.utils.set_random_seed(seed)
    model = registry.build_model(name, **SIZES, **SMALL[name])
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "moving_variance" in weight.path or "gamma" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def make_inputs(num_videos=4, length=9):
    rng = np.random.default_rng(3)
    num_frames = rng.integers(1, length + 1, num_videos).astype(np.int32)
    num_frames[0] = length
    frames = rng.integers(0, 256, (num_videos, length, 8), dtype=np.uint8)
    frames[np.arange(length) >= num_frames[:, None]] = 0
    return {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}


def predict(models, inputs, **options):
    return np.asarray(tf.function(Ensemble(models, **options))(inputs))


def test_prediction_is_the_weighted_mean_of_the_members():
    models = [make_model(name) for name in SMALL]
    members = Ensemble(models).member_predictions(make_inputs())
    expected = sum(w * np.asarray(p) for w, p in zip((0.4, 0.3, 0.2, 0.1), members, strict=True))
    actual = predict(models, make_inputs(), weights=(4, 3, 2, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_member_of_an_ensemble_predicts_as_it_does_alone():
    model = make_model("LFNLNetVLADModel")
    together = Ensemble([model, make_model("GruModel")]).member_predictions(make_inputs())[0]
    np.testing.assert_allclose(together, predict([model], make_inputs()), rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_prediction_repeats_and_follows_the_seed(name):
    model, inputs = make_model(name), make_inputs()
    first = predict([model], inputs, seed=1)
    np.testing.assert_array_equal(predict([model], inputs, seed=1), first)
    assert np.any(predict([model], inputs, seed=2) != first) == (name in SAMPLING)


@pytest.mark.parametrize("name", SMALL)
def test_no_sampling_uses_every_real_frame_once(name, monkeypatch):
    model, inputs = make_model(name), make_inputs()
    actual = predict([model], inputs, num_samplings=0)
    monkeypatch.setattr(model, "iterations", 0)
    np.testing.assert_allclose(actual, model(inputs, training=False), rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_several_samplings_equal_the_mean_over_their_positions(name):
    model, inputs = make_model(name), make_inputs()
    positions = model.draw_frame_indices(inputs["num_frames"], 5, 7)
    if positions is None:
        np.testing.assert_array_equal(
            predict([model], inputs, num_samplings=5), predict([model], inputs)
        )
        return
    actual = model({**inputs, "positions": positions}, training=False)
    each = [
        np.asarray(model({**inputs, "positions": positions[:, n : n + 1]}, training=False))
        for n in range(5)
    ]
    np.testing.assert_allclose(actual, np.mean(each, axis=0), rtol=1e-5)
    assert np.ptp(each, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", SAMPLING)
def test_several_samplings_are_distributed_as_passes_one_by_one(name):
    model, inputs = make_model(name), make_inputs()
    together = tf.function(
        lambda seed: model({**inputs, "positions": draw(model, inputs, 4, seed)}, training=False)
    )
    alone = tf.function(
        lambda seed: model({**inputs, "positions": draw(model, inputs, 1, seed)}, training=False)
    )
    several = np.array([together(tf.constant(seed)) for seed in range(200)])
    single = np.array([alone(tf.constant(seed)) for seed in range(1000, 1800)])
    error = np.sqrt(several.var(axis=0) / 200 + single.var(axis=0) / 800) + 1e-7
    assert np.abs(several.mean(axis=0) - single.mean(axis=0)).max() < (5 * error).max()
    # The mean of 4 samplings varies a quarter as much.
    assert several.var(axis=0).sum() == pytest.approx(single.var(axis=0).sum() / 4, rel=0.3)


def draw(model, inputs, num_samplings, seed):
    """Positions under a seed that is a tensor, so that one graph serves all seeds."""
    shape = (4, num_samplings, model.iterations)
    uniform = tf.sort(tf.random.stateless_uniform(shape, tf.stack([seed, 0])), axis=-1)
    return frame_level_models._scaled_floor(uniform, inputs["num_frames"])


@pytest.mark.parametrize("max_floats", [1, 500, 10**9])
def test_parts_of_a_batch_predict_as_the_whole(max_floats):
    models, inputs = [make_model(name) for name in SMALL], make_inputs(7)
    expected = predict(models, inputs, num_samplings=3)
    actual = predict(models, inputs, num_samplings=3, max_floats=max_floats)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("num_videos", [None, 0], ids=["size unknown", "size known"])
def test_empty_batch_gives_no_predictions(num_videos):
    signature = {
        "frames": tf.TensorSpec([num_videos, None, 8], tf.uint8),
        "num_frames": tf.TensorSpec([num_videos], tf.int32),
    }
    members = Ensemble([make_model(name) for name in SMALL], num_samplings=3)
    function = tf.function(members, input_signature=[signature])
    empty = {"frames": tf.zeros([0, 9, 8], tf.uint8), "num_frames": tf.zeros([0], tf.int32)}
    assert function(empty).shape == (0, 6)


def test_a_video_without_frames_leaves_the_others_alone():
    model, inputs = make_model("LFNLNetVLADModel"), make_inputs(2)
    positions = model.draw_frame_indices(tf.constant([3, 0]), 1, 7)
    _, weights = model.sample(inputs["frames"][:2], tf.constant([3, 0]), positions)
    weights = np.asarray(weights)
    assert weights[0, :3].sum() == model.iterations
    assert weights[0, 3:].sum() == weights[1].sum() == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1,), "one weight per model: 2. Received: 1"),
        ((1, -1), "0 or more"),
        ((0, 0), "one of them above 0"),
        ((1, float("nan")), "0 or more"),
        ((1, float("inf")), "0 or more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        ensemble.normalized_weights(weights, 2)


def fit(predictions, labels, batch=5):
    stacking = ensemble.StackingFit(len(predictions))
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        stacking.accumulate([values[part] for values in predictions], labels[part])
    return stacking.weights()


def test_fitted_weights_find_the_mixture_that_made_the_labels():
    rng = np.random.default_rng(0)
    predictions = rng.random((3, 40, 6))
    labels = np.einsum("M,MBC->BC", [0.7, 0.0, 0.3], predictions)
    np.testing.assert_allclose(fit(predictions, labels), [0.7, 0.0, 0.3], atol=1e-6)


def test_fitted_weights_are_the_best_on_a_grid():
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 6)) < 0.3).astype(float)
    predictions = [
        np.clip(labels * k + rng.normal(0.2, 0.3, labels.shape), 0, 1) for k in (0.2, 0.6, 0.4)
    ]
    weights = fit(predictions, labels)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)

    def error(w):
        return np.sum((np.einsum("M,MBC->BC", w, predictions) - labels) ** 2)

    grid = [(a, b, 20 - a - b) for a in range(21) for b in range(21 - a)]
    assert error(weights) <= min(error(np.array(point) / 20) for point in grid) + 1e-9
