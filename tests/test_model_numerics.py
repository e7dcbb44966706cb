"""Compares the models with plain loops in float64, written from their formulas."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import frame_level_models
import layer_references as references
import layers
import registry
import video_level_models
from layer_references import linear, randomize, sigmoid, sub_weights, unit_vector, weights_of

FEATURE_SIZES = (5, 2)
D = sum(FEATURE_SIZES)
NUM_CLASSES = 3
NUM_FRAMES = (4, 1, 6, 3)
# Streams of the features above, mixtures, and scale in the non-local block: None is 1 / sqrt(D).
NETVLAD_MODELS = {
    "LFNLNetVLADModel": (FEATURE_SIZES, 8, 1 / 64),
    "LFNLNetRVLADModel": (FEATURE_SIZES, 4, None),
    "EFNLNetVLADModel": ((D,), 2, None),
}
SMALL_NETVLAD = {
    "iterations": 0,
    "netvlad_cluster_size": "4,3",
    "netvlad_hidden_size": 4,
    "nonlocal_embedding": "2,3",
}
SMALL_SOFT_BOF = {
    "iterations": 0,
    "soft_bof_cluster_size": "6,3",
    "soft_bof_hidden_size": 4,
}
# Models that ignore the order of the frames, and count sampled frames where they stand.
SMALL_COUNTING_MODELS = {
    **dict.fromkeys(NETVLAD_MODELS, SMALL_NETVLAD),
    "SoftBoFModel": SMALL_SOFT_BOF,
}
EVERY_COUNTING_MODEL = pytest.mark.parametrize("name", SMALL_COUNTING_MODELS)
BOTH_MODES = pytest.mark.parametrize("training", [False, True])


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-7)


build_once = functools.cache(registry.build_model)  # As building takes its time.


def build(name, feature_sizes=FEATURE_SIZES, **hyperparameters):
    """A model whose weights are all random, and the same ones in every test."""
    model = build_once(
        name, num_classes=NUM_CLASSES, feature_sizes=feature_sizes, **hyperparameters
    )
    randomize(model)
    return model


def make_videos():
    """Frames whose padding is garbage, `[B, T, D]`, and their numbers, `[B]`."""
    rng = np.random.default_rng(8)
    frames = rng.integers(0, 256, (len(NUM_FRAMES), max(NUM_FRAMES), D), dtype=np.uint8)
    return frames, np.array(NUM_FRAMES, np.int32)


def make_vectors(rows=4, size=D):
    return np.random.default_rng(9).normal(size=(rows, size)).astype(np.float32)


def call(model, frames, num_frames, training=False):
    inputs = {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}
    return model(inputs, training=training)


def reference_frames(frames, num_frames):
    """A list of real frames per video, dequantised and of length 1."""
    return [
        [
            unit_vector([int(byte) * 4 / 255 + 4 / 512 - 2 for byte in frame])
            for frame in video[:length]
        ]
        for video, length in zip(frames, num_frames, strict=True)
    ]


def reference_moe(vectors, weights, mixtures, training=False):
    """Probabilities, with gating of them where the weights have it."""
    predictions = []
    for vector in vectors:
        gates = linear(vector, weights["gates/kernel"])
        experts = linear(vector, weights["experts/kernel"], weights["experts/bias"])
        row = []
        for c in range(NUM_CLASSES):
            scores = [math.exp(gates[m * NUM_CLASSES + c]) for m in range(mixtures + 1)]
            chances = [sigmoid(experts[m * NUM_CLASSES + c]) for m in range(mixtures)]
            # The last expert always says no.
            row.append(sum(scores[m] / sum(scores) * chance for m, chance in enumerate(chances)))
        predictions.append(row)
    if "prob_gating/gate/kernel" not in weights:
        return predictions
    return references.context_gating(predictions, sub_weights(weights, "prob_gating"), training)


def reference_dbof(videos, weights, pooling, batch_norm, training):
    """Encodings of lists of frames; the statistics are those of all real frames together."""

    def project(rows, name):
        kernel = weights[f"{name}/kernel"]
        if not batch_norm:
            return [linear(row, kernel, weights[f"{name}/bias"]) for row in rows]
        rows = [linear(row, kernel) for row in rows]
        return references.batch_norm(rows, sub_weights(weights, f"{name}/norm"), training)

    def relu6(rows):
        return [[min(max(value, 0.0), 6.0) for value in row] for row in rows]

    rows = [frame for video in videos for frame in video]
    if batch_norm:
        rows = references.batch_norm(rows, sub_weights(weights, "input_norm"), training)
    rows = relu6(project(rows, "clusters"))
    pooled = []
    for video in videos:
        own, rows = rows[: len(video)], rows[len(video) :]
        columns = zip(*own, strict=True)
        pooled.append(
            [max(column) if pooling == "max" else sum(column) / len(own) for column in columns]
        )
    return relu6(project(pooled, "hidden"))


def reference_streams(videos, weights, pool, streams, training):
    """Hidden vectors of lists of frames: each stream pooled, all reduced, and gated if it is so.

    Args:
        pool: function of a stream's number, its frames, their weights and the mode.
    """
    frames = np.zeros((len(videos), max(map(len, videos)), sum(streams)))
    frame_weights = np.zeros(frames.shape[:2])
    for row, video in enumerate(videos):
        frames[row, : len(video)] = video
        frame_weights[row, : len(video)] = 1
    norm = sub_weights(weights, "input_norm")
    frames = references.batch_norm(frames, norm, training, frame_weights)
    ends = np.cumsum(streams)
    pooled = [
        pool(number, frames[..., end - size : end], frame_weights, training)
        for number, (size, end) in enumerate(zip(streams, ends, strict=True))
    ]
    hidden = [
        linear(row, weights["hidden/kernel"], weights["hidden/bias"])
        for row in np.concatenate(pooled, axis=-1)
    ]
    if "hidden_gating/gate/kernel" not in weights:
        return hidden
    return references.context_gating(hidden, sub_weights(weights, "hidden_gating"), training)


def reference_netvlad_model(model, videos, streams, mixtures, training=False, **block_options):
    weights = weights_of(model)
    encoder = sub_weights(weights, "encoder")

    def pool(number, frames, frame_weights, training):
        own = sub_weights(encoder, f"netvlad_{number}")
        return references.netvlad(frames, frame_weights, own, training, **block_options)

    encodings = reference_streams(videos, encoder, pool, streams, training)
    return reference_moe(encodings, sub_weights(weights, "classifier"), mixtures, training)


def reference_soft_bof_model(model, videos, streams, training):
    weights = weights_of(model)
    encoder = sub_weights(weights, "encoder")

    def pool(number, frames, frame_weights, training):
        own = sub_weights(encoder, f"soft_bof_{number}")
        return references.soft_bag_of_features(frames, frame_weights, own, training)

    encodings = reference_streams(videos, encoder, pool, streams, training)
    return reference_moe(encodings, sub_weights(weights, "classifier"), 2, training)


def reference_lstm(frames, weights):
    """Hidden states after each frame; the order of the gates is input, forget, cell, output."""
    units = weights["recurrent_kernel"].shape[0]
    hidden, cell, states = [0.0] * units, [0.0] * units, []
    for frame in frames:
        inputs = linear(frame, weights["kernel"], weights["bias"])
        recurrent = linear(hidden, weights["recurrent_kernel"])
        total = [a + b for a, b in zip(inputs, recurrent, strict=True)]
        for u in range(units):
            new = math.tanh(total[2 * units + u])
            cell[u] = sigmoid(total[units + u]) * cell[u] + sigmoid(total[u]) * new
        hidden = [sigmoid(total[3 * units + u]) * math.tanh(cell[u]) for u in range(units)]
        states.append(hidden)
    return states


def reference_gru(frames, weights):
    """Hidden states after each frame; the order of the gates is update z, reset r, candidate."""
    candidate = weights["candidate"]
    update, reset = np.split(weights["gates"], 2, axis=1)
    units = len(candidate)
    projection = sub_weights(weights, "input_projection")
    hidden, states = [0.0] * units, []
    for frame in frames:
        inputs = linear(frame, projection["kernel"], projection["bias"])
        z = [sigmoid(inputs[u] + v) for u, v in enumerate(linear(hidden, update))]
        r = [sigmoid(inputs[units + u] + v) for u, v in enumerate(linear(hidden, reset))]
        # The reset gate comes before the recurrent product.
        kept = linear([a * b for a, b in zip(r, hidden, strict=True)], candidate)
        new = [math.tanh(inputs[2 * units + u] + v) for u, v in enumerate(kept)]
        hidden = [z[u] * hidden[u] + (1 - z[u]) * new[u] for u in range(units)]
        states.append(hidden)
    return states


def test_frames_are_dequantised_and_of_length_one_and_padding_is_zero():
    frames, num_frames = make_videos()
    weights = (np.arange(frames.shape[1]) < num_frames[:, None]).astype(np.float32)
    actual = np.asarray(frame_level_models.normalize(frames, weights).to_float())
    assert actual.dtype == np.float32
    for row, video in enumerate(reference_frames(frames, num_frames)):
        assert_close(actual[row, : len(video)], video)
        assert np.all(actual[row, len(video) :] == 0)


def test_logistic_model_equals_its_formula():
    model, vectors = build("LogisticModel"), make_vectors()
    weights = weights_of(model)
    expected = [
        [
            sigmoid(score)
            for score in linear(
                unit_vector(vector), weights["logistic/kernel"], weights["logistic/bias"]
            )
        ]
        for vector in vectors
    ]
    assert_close(model(vectors), expected)


@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_moe_model_equals_its_formula(mixtures):
    model, vectors = build("MoeModel", moe_num_mixtures=mixtures), make_vectors()
    units = [unit_vector(vector) for vector in vectors]
    assert_close(model(vectors), reference_moe(units, weights_of(model), mixtures))


@BOTH_MODES
def test_moe_model_with_gated_probabilities_equals_its_formula(training):
    model, vectors = build("MoeModel", moe_prob_gating=True), make_vectors(rows=6)
    units = [unit_vector(vector) for vector in vectors]
    expected = reference_moe(units, weights_of(model), 2, training)
    assert_close(model(vectors, training=training), expected)


def test_classifier_of_an_encoding_does_not_normalise_it():
    model = video_level_models.LogisticModel(num_classes=NUM_CLASSES, l2_normalize_input=False)
    vectors = make_vectors()
    model(vectors)
    randomize(model)
    weights = weights_of(model)
    expected = [
        [
            sigmoid(score)
            for score in linear(
                vector.tolist(), weights["logistic/kernel"], weights["logistic/bias"]
            )
        ]
        for vector in vectors
    ]
    assert_close(model(vectors), expected)


def test_frame_level_logistic_model_classifies_the_mean_of_the_real_frames():
    model = build("FrameLevelLogisticModel")
    frames, num_frames = make_videos()
    weights = weights_of(model)
    kernel, bias = weights["classifier/logistic/kernel"], weights["classifier/logistic/bias"]
    expected = []
    for video in reference_frames(frames, num_frames):
        mean = [sum(column) / len(video) for column in zip(*video, strict=True)]
        expected.append([sigmoid(score) for score in linear(mean, kernel, bias)])
    assert_close(call(model, frames, num_frames), expected)


@BOTH_MODES
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_dbof_model_equals_its_formula(pooling, batch_norm, training):
    model = build(
        "DbofModel",
        iterations=0,
        dbof_cluster_size=6,
        dbof_hidden_size=4,
        dbof_pooling_method=pooling,
        dbof_add_batch_norm=batch_norm,
    )
    frames, num_frames = make_videos()
    weights = weights_of(model)
    videos = reference_frames(frames, num_frames)
    encodings = reference_dbof(videos, weights, pooling, batch_norm, training)
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, frames, num_frames, training), expected)


@pytest.mark.parametrize(
    ("updates", "decay"), [(0, 1 / 10), (8, 1 / 2), (90, 0.91), (8990, 0.999), (10**6, 0.999)]
)
def test_moving_averages_follow_faster_at_first_and_then_by_a_thousandth(updates, decay):
    model = build("DbofModel", iterations=0, dbof_cluster_size=6, dbof_hidden_size=4)
    frames, num_frames = make_videos()
    model.input_norm.num_updates.assign(updates)
    before = sub_weights(weights_of(model), "input_norm")
    call(model, frames, num_frames, training=True)
    after = sub_weights(weights_of(model), "input_norm")
    rows = [frame for video in reference_frames(frames, num_frames) for frame in video]
    means, variances = references.statistics(rows)
    assert_close(after["moving_mean"], decay * before["moving_mean"] + (1 - decay) * means)
    assert_close(
        after["moving_variance"], decay * before["moving_variance"] + (1 - decay) * variances
    )
    assert after["num_updates"] == updates + 1


def test_inference_leaves_the_moving_averages_alone():
    model = build("DbofModel", iterations=0, dbof_cluster_size=6, dbof_hidden_size=4)
    before = model.get_weights()
    call(model, *make_videos())
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_model_classifies_the_last_layers_state_after_the_last_real_frame(layers):
    model = build("LstmModel", lstm_cells=4, lstm_layers=layers)
    frames, num_frames = make_videos()
    weights = weights_of(model)
    encodings = []
    for states in reference_frames(frames, num_frames):
        for number in range(layers):
            states = reference_lstm(states, sub_weights(weights, f"lstm_{number}/lstm_cell"))
        encodings.append(states[-1])
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, frames, num_frames), expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_model_classifies_the_states_of_all_layers_after_the_last_real_frame(layers):
    model = build("GruModel", gru_cells=4, gru_layers=layers)
    frames, num_frames = make_videos()
    weights = weights_of(model)
    encodings = []
    for states in reference_frames(frames, num_frames):
        encoding = []
        for number in range(layers):
            states = reference_gru(states, sub_weights(weights, f"stack/gru_{number}"))
            encoding += states[-1]
        encodings.append(encoding)
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, frames, num_frames), expected)


@BOTH_MODES
@pytest.mark.parametrize("name", NETVLAD_MODELS)
def test_netvlad_models_equal_their_formula(name, training):
    streams, mixtures, scale = NETVLAD_MODELS[name]
    model = build(name, **SMALL_NETVLAD)
    videos = reference_frames(*make_videos())
    expected = reference_netvlad_model(model, videos, streams, mixtures, training, scale=scale)
    assert_close(call(model, *make_videos(), training), expected)


@pytest.mark.parametrize("pairwise", ["gaussian", "dot_product"])
def test_netvlad_model_with_another_pairwise_function_equals_its_formula(pairwise):
    options = {"pairwise": pairwise, "scale": 0.7}
    model = build(
        "LFNLNetVLADModel", **SMALL_NETVLAD, nonlocal_pairwise=pairwise, nonlocal_scale=0.7
    )
    videos = reference_frames(*make_videos())
    expected = reference_netvlad_model(model, videos, FEATURE_SIZES, 8, **options)
    assert_close(call(model, *make_videos()), expected)


@pytest.mark.parametrize("name", NETVLAD_MODELS)
def test_netvlad_model_without_block_and_gating_is_the_plain_one(name):
    streams, _, _ = NETVLAD_MODELS[name]
    off = {"nonlocal_block": False, "gating": False, "moe_prob_gating": False}
    model = build(name, **SMALL_NETVLAD, **off, moe_num_mixtures=3)
    extras = [path for path in weights_of(model) if "nonlocal" in path or "gating" in path]
    assert extras == []
    expected = reference_netvlad_model(model, reference_frames(*make_videos()), streams, 3)
    assert_close(call(model, *make_videos()), expected)


@pytest.mark.parametrize(
    ("name", "feature_sizes", "streams"),
    [
        ("LFNLNetVLADModel", (D,), (D,)),
        ("LFNLNetVLADModel", (3, 2, 2), (3, 2, 2)),
        ("EFNLNetVLADModel", (3, 2, 2), (D,)),
    ],
)
def test_netvlad_model_takes_any_number_of_features(name, feature_sizes, streams):
    _, mixtures, scale = NETVLAD_MODELS[name]
    model = build(name, feature_sizes, **SMALL_NETVLAD)
    kernels = [
        value.shape for path, value in weights_of(model).items() if "assignment/kernel" in path
    ]
    # The last number of clusters serves all further streams.
    assert kernels == list(zip(streams, (4, 3, 3), strict=False))
    videos = reference_frames(*make_videos())
    expected = reference_netvlad_model(model, videos, streams, mixtures, scale=scale)
    assert_close(call(model, *make_videos()), expected)


def test_netvlad_model_of_256_clusters_equals_its_formula():
    clusters = {"netvlad_cluster_size": "256", "nonlocal_embedding": "16"}
    model = build("EFNLNetVLADModel", **{**SMALL_NETVLAD, **clusters})
    frames, num_frames = (array[:2] for array in make_videos())
    expected = reference_netvlad_model(model, reference_frames(frames, num_frames), (D,), 2)
    assert_close(call(model, frames, num_frames), expected)


@BOTH_MODES
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize("streams", [FEATURE_SIZES, (D,), (3, 2, 2)])
def test_soft_bof_model_equals_its_formula(streams, gating, training):
    model = build("SoftBoFModel", streams, **SMALL_SOFT_BOF, gating=gating)
    videos = reference_frames(*make_videos())
    expected = reference_soft_bof_model(model, videos, streams, training)
    assert_close(call(model, *make_videos(), training), expected)


FRAMES_OF_THE_PAPER = {
    "iterations": 300,
    "sample_random_frames": True,
    "video_level_classifier_model": "MoeModel",
    "moe_l2": 1e-6,
}
NETVLAD_OF_THE_PAPER = {
    **FRAMES_OF_THE_PAPER,
    "netvlad_hidden_size": 1024,
    "nonlocal_block": True,
    "nonlocal_pairwise": "embedded_gaussian",
    "gating": True,
    "moe_prob_gating": True,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "LFNLNetVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": False,
                "netvlad_cluster_size": "64,32",
                "netvlad_centers": True,
                "nonlocal_embedding": "64,32",
                "nonlocal_scale": 1 / 64,
                "moe_num_mixtures": 8,
            },
        ),
        (
            "LFNLNetRVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": False,
                "netvlad_cluster_size": "64,32",
                "netvlad_centers": False,
                "nonlocal_embedding": "512,64",
                "nonlocal_scale": None,
                "moe_num_mixtures": 4,
            },
        ),
        (
            "EFNLNetVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": True,
                "netvlad_cluster_size": "64",
                "netvlad_centers": True,
                "nonlocal_embedding": "64",
                "nonlocal_scale": None,
                "moe_num_mixtures": 2,
            },
        ),
        (
            "SoftBoFModel",
            {
                **FRAMES_OF_THE_PAPER,
                "soft_bof_cluster_size": "4000,500",
                "soft_bof_hidden_size": 1024,
                "gating": False,
                "moe_num_mixtures": 2,
                "moe_prob_gating": False,
            },
        ),
        (
            "GruModel",
            {
                **FRAMES_OF_THE_PAPER,
                "iterations": 0,
                "gru_cells": 1200,
                "gru_layers": 2,
                "moe_num_mixtures": 2,
                "moe_prob_gating": False,
            },
        ),
    ],
)
def test_defaults_are_those_of_the_paper(name, expected):
    assert registry.resolve(name, {}) == expected


def permuted(frames, num_frames):
    """The videos with their real frames in another order; padding stays where it is."""
    frames = frames.copy()
    for row, count in enumerate(num_frames):
        frames[row, :count] = np.roll(frames[row, :count], 1, axis=0)
    return frames, num_frames


@BOTH_MODES
@EVERY_COUNTING_MODEL
def test_order_of_the_frames_does_not_change_the_prediction(name, training):
    model, videos = build(name, **SMALL_COUNTING_MODELS[name]), make_videos()
    expected = call(model, *videos, training)
    assert_close(call(model, *permuted(*videos), training), expected)


@pytest.mark.parametrize(
    ("name", "cells"), [("GruModel", "gru_cells"), ("LstmModel", "lstm_cells")]
)
def test_order_of_the_frames_changes_what_a_recurrent_model_predicts(name, cells):
    model, videos = build(name, **{cells: 4}), make_videos()
    difference = np.abs(call(model, *permuted(*videos)) - call(model, *videos)).max(axis=1)
    several_frames = np.array(NUM_FRAMES) > 1
    assert np.all(difference[several_frames] > 1e-3)
    assert np.all(difference[~several_frames] == 0)


def test_initial_bias_of_a_gru_opens_its_two_gates():
    layers = registry.build_model(
        "GruModel", num_classes=2, feature_sizes=(3,), gru_cells=4
    ).stack.grus
    for layer in layers:
        np.testing.assert_array_equal(layer.input_projection.bias, [1] * 8 + [0] * 4)


def test_initial_bias_of_an_lstm_opens_its_forget_gate():
    layers = registry.build_model(
        "LstmModel", num_classes=2, feature_sizes=(3,), lstm_cells=4
    ).recurrent_layers
    for layer in layers:
        np.testing.assert_array_equal(layer.cell.bias, [0] * 4 + [1] * 4 + [0] * 8)


def assert_normal(weight, std):
    values = np.asarray(weight).ravel() / std
    # Six standard errors of mean and standard deviation.
    assert abs(values.mean()) < 6 / math.sqrt(values.size)
    assert abs(values.std() - 1) < 6 / math.sqrt(2 * values.size)
    # A share of 0.27% lies beyond three: more than of a truncated normal or uniform distribution.
    assert 0.001 < np.mean(np.abs(values) > 3) < 0.005


@pytest.mark.parametrize("batch_norm", [True, False])
def test_initial_projections_of_dbof_are_normal_by_their_fan_in(batch_norm):
    keras.utils.set_random_seed(2)
    model = registry.build_model(
        "DbofModel",
        num_classes=2,
        feature_sizes=(96, 32),
        dbof_cluster_size=512,
        dbof_hidden_size=64,
        dbof_add_batch_norm=batch_norm,
    )
    assert_normal(model.clusters.kernel, 128**-0.5)
    assert_normal(model.hidden.kernel, 512**-0.5)


@pytest.mark.parametrize("name", NETVLAD_MODELS)
def test_initial_weights_of_netvlad_models_are_normal_by_their_fan_in(name):
    keras.utils.set_random_seed(2)
    model = registry.build_model(
        name,
        num_classes=2,
        feature_sizes=(256, 192),
        netvlad_cluster_size="64,49",
        netvlad_hidden_size=8,
        nonlocal_embedding="81,64",
    )
    weights = sub_weights(weights_of(model), "encoder")
    streams = [(448, 81)] if name == "EFNLNetVLADModel" else [(256, 81), (192, 64)]
    for number, (size, embedding) in enumerate(streams):
        own = sub_weights(weights, f"netvlad_{number}")
        by_size = {"assignment/kernel", "nonlocal_block/theta", "nonlocal_block/phi"}
        by_size |= {"nonlocal_block/g"} | {"centers"} & set(own)
        for path in by_size:
            assert_normal(own[path], size**-0.5)
        assert_normal(own["nonlocal_block/out"], embedding**-0.5)
    assert_normal(weights["hidden/kernel"], 64**-0.5)
    assert not np.any(weights["hidden/bias"])


def test_initial_weights_of_soft_bof_are_normal_by_their_fan_in():
    keras.utils.set_random_seed(2)
    model = registry.build_model(
        "SoftBoFModel",
        num_classes=2,
        feature_sizes=(64, 36),
        soft_bof_cluster_size="400,225",
        soft_bof_hidden_size=32,
    )
    weights = sub_weights(weights_of(model), "encoder")
    assert_normal(weights["soft_bof_0/assignment/kernel"], 1 / 8)
    assert_normal(weights["soft_bof_1/assignment/kernel"], 1 / 6)
    assert_normal(weights["hidden/kernel"], 1 / 20)
    assert not np.any(weights["hidden/bias"])


def test_initial_batch_norm_scales_by_one_and_shifts_by_zero():
    layer = layers.BatchNorm()
    layer.build((None, 5))
    ones, zeros = [1.0] * 5, [0.0] * 5
    initial = {path: value.tolist() for path, value in weights_of(layer).items()}
    assert initial == {
        "gamma": ones,
        "beta": zeros,
        "moving_mean": zeros,
        "moving_variance": ones,
        "num_updates": 0.0,
    }


def test_initial_gate_of_context_gating_is_normal_by_its_width():
    keras.utils.set_random_seed(2)
    layer = layers.ContextGating()
    layer.build((None, 256))
    assert_normal(layer.gate.kernel, 1 / 16)


def test_initial_moe_weights_are_glorot_uniform():
    keras.utils.set_random_seed(2)
    model = registry.build_model("MoeModel", num_classes=100, feature_sizes=(200,))
    for layer, width in [(model.gates, 300), (model.experts, 200)]:
        limit = math.sqrt(6 / (200 + width))
        values = np.asarray(layer.kernel)
        assert 0.99 * limit < np.abs(values).max() <= limit
        assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert not np.any(model.experts.bias)


def test_l2_penalty_of_logistic_model_is_half_the_squared_norm_of_its_kernel():
    model = build("LogisticModel", l2_penalty=0.25)
    expected = 0.25 * np.sum(weights_of(model)["logistic/kernel"] ** 2) / 2
    assert_close(sum(model.losses), expected)


def test_moe_penalty_is_half_the_squared_norm_of_gates_and_experts():
    model = build("MoeModel", moe_l2=0.25, moe_prob_gating=True)
    weights = weights_of(model)
    squares = np.sum(weights["gates/kernel"] ** 2) + np.sum(weights["experts/kernel"] ** 2)
    assert_close(sum(model.losses), 0.25 * squares / 2)


def test_penalty_of_the_classifier_is_that_of_the_frame_level_model():
    model = build("DbofModel", moe_l2=0.25, dbof_cluster_size=6, dbof_hidden_size=4)
    weights = sub_weights(weights_of(model), "classifier")
    squares = np.sum(weights["gates/kernel"] ** 2) + np.sum(weights["experts/kernel"] ** 2)
    assert_close(sum(model.losses), 0.25 * squares / 2)


def seed_generator(seed=0):
    return keras.random.SeedGenerator(seed)


def chi_squared(values, count):
    """Chi-squared statistic of integers against a uniform distribution over 0..count-1."""
    observed = np.bincount(np.ravel(values), minlength=count)
    assert len(observed) == count
    expected = np.size(values) / count
    return np.sum((observed - expected) ** 2 / expected)


def assert_uniform(values, count):
    # Mean and standard deviation of the statistic are n and sqrt(2 n) for n degrees of freedom.
    n = count - 1
    assert chi_squared(values, count) < n + 5 * math.sqrt(2 * n)


def test_uniformity_check_finds_a_frame_that_is_drawn_too_often():
    values = np.arange(4000) % 8
    values[:300] = 0
    assert chi_squared(values, 8) > 7 + 5 * math.sqrt(14)


@pytest.mark.parametrize("num_frames", [2, 7, 300])
def test_random_positions_are_uniform_over_the_real_frames_alone(num_frames):
    limits = tf.fill([1500], num_frames)
    positions = frame_level_models.random_frame_indices(limits, 1, 20, seed_generator())[:, 0]
    assert positions.shape == (1500, 20)
    assert np.min(positions) == 0
    assert np.max(positions) == num_frames - 1
    assert_uniform(positions, num_frames)


def test_random_positions_keep_within_the_length_of_each_video():
    limits = np.arange(1, 50, dtype=np.int32)
    positions = np.asarray(
        frame_level_models.random_frame_indices(tf.constant(limits), 1, 400, seed_generator())[:, 0]
    )
    for row, limit in zip(positions, limits, strict=True):
        assert set(row) == set(range(limit))


def test_random_positions_are_drawn_with_replacement():
    positions = frame_level_models.random_frame_indices(tf.fill([4000], 5), 1, 5, seed_generator())[
        :, 0
    ]
    all_different = np.mean([len(set(row)) == 5 for row in np.asarray(positions)])
    assert all_different == pytest.approx(math.factorial(5) / 5**5, abs=0.015)


def test_random_positions_stay_in_the_video_where_the_random_number_rounds_up(monkeypatch):
    monkeypatch.setattr(keras.random, "uniform", lambda shape, seed: tf.ones(shape))
    limits = tf.constant([1, 7, 300])
    positions = frame_level_models.random_frame_indices(limits, 1, 2, seed_generator())[:, 0]
    np.testing.assert_array_equal(positions, [[0, 0], [6, 6], [299, 299]])


@pytest.mark.parametrize(
    "draw", [frame_level_models.random_frame_indices, frame_level_models.random_frame_runs]
)
def test_positions_repeat_under_a_seed_and_differ_between_calls_and_videos(draw):
    limits, seed = tf.fill([4], 1000), seed_generator(6)
    first, second = (np.asarray(draw(limits, 1, 3, seed)[:, 0]) for _ in range(2))
    np.testing.assert_array_equal(draw(limits, 1, 3, seed_generator(6))[:, 0], first)
    assert np.any(np.asarray(draw(limits, 1, 3, seed_generator(7))[:, 0]) != first)
    assert np.any(first != second)
    assert len({tuple(row) for row in first}) == 4


def test_random_run_is_consecutive_within_the_video_and_starts_uniformly():
    runs = np.asarray(
        frame_level_models.random_frame_runs(tf.fill([8000], 10), 1, 4, seed_generator())[:, 0]
    )
    assert np.all(np.diff(runs, axis=1) == 1)
    assert_uniform(runs[:, 0], 7)


def test_random_run_of_a_short_video_begins_at_its_first_frame():
    runs = frame_level_models.random_frame_runs(tf.constant([1, 3, 4]), 1, 4, seed_generator())[
        :, 0
    ]
    np.testing.assert_array_equal(runs, [[0, 1, 2, 3]] * 3)


def numbered_videos(num_frames, length):
    """Frames that hold the number of the video and their position; padding holds 255."""
    frames = np.full((len(num_frames), length, 2), 255, np.uint8)
    for row, count in enumerate(num_frames):
        frames[row, :count, 0] = row
        frames[row, :count, 1] = np.arange(count)
    return tf.constant(frames), tf.constant(num_frames)


def sample(model, frames, num_frames, num_samplings=1):
    """What a model takes of the frames at one call."""
    positions = model.draw_frame_indices(num_frames, num_samplings, model.sampling_seed)
    return model.sample(frames, num_frames, positions)


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


def test_run_of_frames_has_weight_zero_beyond_a_short_video():
    model = sampling_model(iterations=4, sample_random_frames=False)
    sampled, weights = sample(model, *numbered_videos([2, 6, 4], length=6))
    sampled = np.asarray(sampled)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(sampled[0, :2], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(sampled[1:, :, 0], [[1] * 4, [2] * 4])
    assert np.all(np.diff(sampled[1:, :, 1].astype(int), axis=1) == 1)
    assert sampled[1, -1, 1] < 6


def test_run_longer_than_the_batch_takes_every_frame_once():
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


def test_frames_are_sampled_anew_in_every_call():
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


def test_counts_of_sampled_frames_stand_at_their_places_and_sum_to_the_iterations():
    model = counting_model(iterations=50)
    frames, num_frames = numbered_videos([3, 1, 9], length=12)
    taken, counts = sample(model, frames, num_frames)
    np.testing.assert_array_equal(taken, frames)
    np.testing.assert_array_equal(np.sum(counts, axis=1), [50, 50, 50])
    np.testing.assert_array_equal(counts, np.rint(counts))
    for row, count in zip(np.asarray(counts), [3, 1, 9], strict=True):
        assert np.all(row[:count] > 0)
        assert np.all(row[count:] == 0)


def test_counts_are_those_of_the_positions_drawn():
    model = counting_model(iterations=7)
    frames, num_frames = numbered_videos([3, 1, 9], length=12)
    model.sampling_seed.state.assign([3, 0])
    _, counts = sample(model, frames, num_frames)
    model.sampling_seed.state.assign([3, 0])
    positions = frame_level_models.random_frame_indices(num_frames, 1, 7, model.sampling_seed)[:, 0]
    expected = [np.bincount(row, minlength=12) for row in np.asarray(positions)]
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


def test_run_of_frames_counts_consecutive_frames_once():
    model = counting_model(iterations=4, sample_random_frames=False)
    _, counts = sample(model, *numbered_videos([2, 4, 9, 9, 9], length=9))
    counts = np.asarray(counts)
    np.testing.assert_array_equal(counts[0], [1, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(counts[1], [1, 1, 1, 1, 0, 0, 0, 0, 0])
    for row in counts[2:]:
        start = int(np.argmax(row))
        np.testing.assert_array_equal(row, np.isin(np.arange(9), range(start, start + 4)))


def test_run_longer_than_the_batch_counts_every_frame_once():
    model = counting_model(iterations=8, sample_random_frames=False)
    _, counts = sample(model, *numbered_videos([2, 3], length=3))
    np.testing.assert_array_equal(counts, [[1, 1, 0], [1, 1, 1]])


@BOTH_MODES
@pytest.mark.parametrize("random_frames", [True, False])
@EVERY_COUNTING_MODEL
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
