"""Every model equals its formula, written as plain loops in float64."""

import numpy as np
import pytest

import frame_level_models
import layer_references as references
import video_level_models
from layer_references import linear, randomize, sigmoid, sub_weights, unit_vector, weights_of
from model_references import (
    FEATURE_SIZES,
    NETVLAD_MODELS,
    NUM_CLASSES,
    NUM_FRAMES,
    SMALL_COUNTING_MODELS,
    SMALL_NETVLAD,
    SMALL_SOFT_BOF,
    D,
    assert_close,
    build,
    build_once,
    call,
    make_vectors,
    make_videos,
    reference_dbof,
    reference_frames,
    reference_gru,
    reference_lstm,
    reference_moe,
    reference_netvlad_model,
    reference_soft_bof_model,
)

BOTH_MODES = pytest.mark.parametrize("training", [False, True])


@pytest.fixture(scope="module", autouse=True)
def _free_shared_models():
    yield
    build_once.cache_clear()


def test_frames_are_dequantized_to_norm_one_and_padding_is_zero():
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


def test_the_classifier_of_an_encoding_does_not_normalize_it():
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
def test_moving_averages_are_faster_at_first_and_then_follow_by_a_thousandth(updates, decay):
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


def test_inference_does_not_change_the_moving_averages():
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
def test_without_block_and_gating_it_is_plain_netvlad(name):
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
    # The last number of clusters is also that of further streams.
    assert kernels == list(zip(streams, (4, 3, 3), strict=False))
    videos = reference_frames(*make_videos())
    expected = reference_netvlad_model(model, videos, streams, mixtures, scale=scale)
    assert_close(call(model, *make_videos()), expected)


@pytest.mark.slow
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


def permuted(frames, num_frames):
    """Returns the videos with their real frames in another order and the padding in place."""
    frames = frames.copy()
    for row, count in enumerate(num_frames):
        frames[row, :count] = np.roll(frames[row, :count], 1, axis=0)
    return frames, num_frames


@BOTH_MODES
@pytest.mark.parametrize("name", SMALL_COUNTING_MODELS)
def test_the_order_of_the_frames_does_not_change_predictions(name, training):
    model, videos = build(name, **SMALL_COUNTING_MODELS[name]), make_videos()
    expected = call(model, *videos, training)
    assert_close(call(model, *permuted(*videos), training), expected)


@pytest.mark.parametrize(
    ("name", "cells"), [("GruModel", "gru_cells"), ("LstmModel", "lstm_cells")]
)
def test_the_order_of_the_frames_changes_predictions_of_recurrent_models(name, cells):
    model, videos = build(name, **{cells: 4}), make_videos()
    difference = np.abs(call(model, *permuted(*videos)) - call(model, *videos)).max(axis=1)
    several_frames = np.array(NUM_FRAMES) > 1
    assert np.all(difference[several_frames] > 1e-3)
    assert np.all(difference[~several_frames] == 0)


def test_l2_penalty_of_logistic_model_is_half_the_squared_norm_of_its_kernel():
    model = build("LogisticModel", l2_penalty=0.25)
    expected = 0.25 * np.sum(weights_of(model)["logistic/kernel"] ** 2) / 2
    assert_close(sum(model.losses), expected)


def test_moe_penalty_is_half_the_squared_norm_of_gates_and_experts():
    model = build("MoeModel", moe_l2=0.25, moe_prob_gating=True)
    weights = weights_of(model)
    squares = np.sum(weights["gates/kernel"] ** 2) + np.sum(weights["experts/kernel"] ** 2)
    assert_close(sum(model.losses), 0.25 * squares / 2)


def test_a_frame_level_model_has_the_penalty_of_its_classifier():
    model = build("DbofModel", moe_l2=0.25, dbof_cluster_size=6, dbof_hidden_size=4)
    weights = sub_weights(weights_of(model), "classifier")
    squares = np.sum(weights["gates/kernel"] ** 2) + np.sum(weights["experts/kernel"] ** 2)
    assert_close(sum(model.losses), 0.25 * squares / 2)
