"""Every model equals its formula, written as plain loops in float64."""

import functools

import numpy as np
import pytest

import layer_references as references
import model_references
import video_level_models
from layer_references import randomize, sub_weights, unit_vector, weights_of
from model_references import (
    COUNTING_MODELS,
    NETVLAD_MODELS,
    NUM_FRAMES,
    assert_close,
    build,
    call,
    make_vectors,
    make_videos,
    reference_frames,
    reference_logistic,
    reference_moe,
)
from small_models import FEATURE_SIZES, NUM_CLASSES, D, marked, reset_random_numbers

BOTH_MODES = pytest.mark.parametrize("training", [False, True])


def test_frames_are_dequantized_to_norm_one_and_padding_is_zero():
    frames, num_frames = make_videos()
    weights = (np.arange(frames.shape[1]) < num_frames[:, None]).astype(np.float32)
    actual = np.asarray(build("DbofModel").stored_frames(frames, weights).to_float())
    assert actual.dtype == np.float32
    for row, video in enumerate(reference_frames(frames, num_frames)):
        assert_close(actual[row, : len(video)], video)
        assert np.all(actual[row, len(video) :] == 0)


def test_logistic_model_equals_its_formula():
    model, vectors = build("LogisticModel"), make_vectors()
    units = [unit_vector(vector) for vector in vectors]
    assert_close(model(vectors), reference_logistic(units, weights_of(model)))


@BOTH_MODES
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_moe_model_equals_its_formula(mixtures, gating, training):
    model = build("MoeModel", moe_num_mixtures=mixtures, moe_prob_gating=gating)
    vectors = make_vectors()
    units = [unit_vector(vector) for vector in vectors]
    expected = reference_moe(units, weights_of(model), mixtures, training)
    assert_close(model(vectors, training=training), expected)


def test_the_classifier_of_an_encoding_does_not_normalize_it():
    model = video_level_models.LogisticModel(num_classes=NUM_CLASSES, l2_normalize_input=False)
    vectors = make_vectors()
    model(vectors)
    randomize(model)
    assert_close(model(vectors), reference_logistic(vectors.tolist(), weights_of(model)))


def test_frame_level_logistic_model_classifies_the_mean_of_the_real_frames():
    model = build("FrameLevelLogisticModel")
    means = [sum(video) / len(video) for video in reference_frames(*make_videos())]
    expected = reference_logistic(means, sub_weights(weights_of(model), "classifier"))
    assert_close(call(model, *make_videos()), expected)


@BOTH_MODES
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_dbof_model_equals_its_formula(pooling, batch_norm, training):
    model = build("DbofModel", dbof_pooling_method=pooling, dbof_add_batch_norm=batch_norm)
    videos, weights = reference_frames(*make_videos()), weights_of(model)
    encodings = model_references.reference_dbof(videos, weights, pooling, batch_norm, training)
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, *make_videos(), training), expected)


@pytest.mark.parametrize(
    ("updates", "decay"), [(0, 1 / 10), (8, 1 / 2), (90, 0.91), (8990, 0.999), (10**6, 0.999)]
)
def test_moving_averages_are_faster_at_first_and_then_follow_by_a_thousandth(updates, decay):
    model = build("DbofModel")
    model.input_norm.num_updates.assign(updates)
    before = sub_weights(weights_of(model), "input_norm")
    call(model, *make_videos(), training=True)
    after = sub_weights(weights_of(model), "input_norm")
    rows = [frame for video in reference_frames(*make_videos()) for frame in video]
    means, variances = references.statistics(rows)
    assert_close(after["moving_mean"], decay * before["moving_mean"] + (1 - decay) * means)
    assert_close(
        after["moving_variance"], decay * before["moving_variance"] + (1 - decay) * variances
    )
    assert after["num_updates"] == updates + 1


def test_inference_does_not_change_the_moving_averages():
    model = build("DbofModel")
    before = model.get_weights()
    call(model, *make_videos())
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_model_classifies_the_last_layers_state_after_the_last_real_frame(layers):
    model = build("LstmModel", lstm_layers=layers)
    weights = weights_of(model)
    encodings = []
    for states in reference_frames(*make_videos()):
        for number in range(layers):
            own = sub_weights(weights, f"lstm_{number}/lstm_cell")
            states = model_references.reference_lstm(states, own)
        encodings.append(states[-1])
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, *make_videos()), expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_model_classifies_the_states_of_all_layers_after_the_last_real_frame(layers):
    model = build("GruModel", gru_layers=layers)
    weights = weights_of(model)
    encodings = []
    for states in reference_frames(*make_videos()):
        encoding = []
        for number in range(layers):
            own = sub_weights(weights, f"stack/gru_{number}")
            states = model_references.reference_gru(states, own)
            encoding += states[-1]
        encodings.append(encoding)
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, *make_videos()), expected)


def check_netvlad(model, videos, *settings, training=False, **block_options):
    """Compares a model with its formula; `settings` are sizes of streams and mixtures."""
    frames = reference_frames(*videos)
    reference = model_references.reference_netvlad_model
    expected = reference(model, frames, *settings, training, **block_options)
    assert_close(call(model, *videos, training), expected)


@BOTH_MODES
@pytest.mark.parametrize("name", [marked(name) for name in NETVLAD_MODELS])
def test_netvlad_models_equal_their_formula(name, training):
    *settings, scale = NETVLAD_MODELS[name]
    check_netvlad(build(name), make_videos(), *settings, training=training, scale=scale)


@pytest.mark.parametrize(
    "block",
    [
        {"pairwise": "gaussian", "scale": 0.7},
        {"pairwise": "dot_product", "scale": 0.7},
        {"pairwise": "dot_product", "scale": 0.7, "normalize": True},
        {"attention": "centered", "scale": 0.7},
    ],
)
def test_netvlad_model_with_another_block_equals_its_formula(block):
    given = {f"nonlocal_{key}": value for key, value in block.items()}
    check_netvlad(build("LFNLNetVLADModel", **given), make_videos(), FEATURE_SIZES, 8, **block)


@pytest.mark.parametrize("name", [marked(name) for name in NETVLAD_MODELS])
def test_without_block_and_gating_it_is_plain_netvlad(name):
    off = {"nonlocal_block": False, "gating": False, "moe_prob_gating": False}
    model = build(name, **off, moe_num_mixtures=3)
    extras = [path for path in weights_of(model) if "nonlocal" in path or "gating" in path]
    assert extras == []
    check_netvlad(model, make_videos(), NETVLAD_MODELS[name][0], 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "feature_sizes", "streams"),
    [
        ("LFNLNetVLADModel", (D,), (D,)),
        ("LFNLNetVLADModel", (4, 3, 2), (4, 3, 2)),
        ("EFNLNetVLADModel", (4, 3, 2), (D,)),
    ],
)
def test_netvlad_model_takes_any_number_of_features(name, feature_sizes, streams):
    _, mixtures, scale = NETVLAD_MODELS[name]
    model = build(name, feature_sizes)
    kernels = [
        value.shape for path, value in weights_of(model).items() if "assignment/kernel" in path
    ]
    # The last number of clusters is also that of further streams.
    assert kernels == list(zip(streams, (4, 3, 3), strict=False))
    check_netvlad(model, make_videos(), streams, mixtures, scale=scale)


@pytest.mark.slow
def test_netvlad_model_of_256_clusters_equals_its_formula():
    model = build("EFNLNetVLADModel", netvlad_cluster_size="256", nonlocal_embedding="16")
    check_netvlad(model, [array[:2] for array in make_videos()], (D,), 2)


@BOTH_MODES
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize("streams", [FEATURE_SIZES, (D,), (4, 3, 2)])
def test_soft_bof_model_equals_its_formula(streams, gating, training):
    model = build("SoftBoFModel", streams, gating=gating)
    videos = reference_frames(*make_videos())
    expected = model_references.reference_soft_bof_model(model, videos, streams, training)
    assert_close(call(model, *make_videos(), training), expected)


@BOTH_MODES
@pytest.mark.parametrize("norm", ["global", "intra"])
@pytest.mark.parametrize("streams", [FEATURE_SIZES, (D,), (4, 3, 2)])
def test_netfv_model_equals_its_formula(streams, norm, training):
    model = build("NetFVModel", streams, fv_second_order_norm=norm)
    pool = functools.partial(references.netfv, second_order_norm=norm)
    check_pooling(model, streams, "netfv", pool, training)


@BOTH_MODES
@pytest.mark.parametrize("gated", [0, 1, 2, 3])
@pytest.mark.parametrize("streams", [FEATURE_SIZES, (4, 3, 2)])
def test_gated_dbof_model_equals_its_formula(streams, gated, training):
    model = build("GatedDbofModel", streams, gated_dbof_streams=gated)
    pools = [references.gated_bag_of_features] * gated
    pools += [references.soft_bag_of_features] * len(streams)
    check_pooling(model, streams, "dbof", pools, training)


def check_pooling(model, streams, name, pool, training):
    """Compares a model with its formula, on pooled streams; see `reference_pooling_model`."""
    videos = reference_frames(*make_videos())
    reference = model_references.reference_pooling_model
    expected = reference(model, videos, streams, name, pool, 2, training)
    assert_close(call(model, *make_videos(), training), expected)


def permuted(frames, num_frames):
    """Returns the videos with their real frames in another order and the padding in place."""
    frames = frames.copy()
    for row, count in enumerate(num_frames):
        frames[row, :count] = np.roll(frames[row, :count], 1, axis=0)
    return frames, num_frames


@BOTH_MODES
@pytest.mark.parametrize("name", [marked(name) for name in COUNTING_MODELS])
def test_the_order_of_the_frames_does_not_change_predictions(name, training):
    model, videos = build(name), make_videos()
    predictions = []
    for each in (videos, permuted(*videos)):
        reset_random_numbers(model)
        predictions.append(call(model, *each, training))
    assert_close(*predictions)


@pytest.mark.parametrize("name", ["GruModel", "LstmModel"])
def test_the_order_of_the_frames_changes_predictions_of_recurrent_models(name):
    model, videos = build(name), make_videos()
    difference = np.abs(call(model, *permuted(*videos)) - call(model, *videos)).max(axis=1)
    several_frames = np.array(NUM_FRAMES) > 1
    assert np.all(difference[several_frames] > 1e-3)
    assert np.all(difference[~several_frames] == 0)


def test_l2_penalty_of_logistic_model_is_half_the_squared_norm_of_its_kernel():
    model = build("LogisticModel", l2_penalty=0.25)
    expected = 0.25 * np.sum(weights_of(model)["logistic/kernel"] ** 2) / 2
    assert_close(sum(model.losses), expected)


# A frame-level model has the penalty of its classifier.
@pytest.mark.parametrize(("name", "prefix"), [("MoeModel", ""), ("DbofModel", "classifier/")])
def test_moe_penalty_is_half_the_squared_norm_of_gates_and_experts(name, prefix):
    model = build(name, moe_l2=0.25, moe_prob_gating=True)
    weights = weights_of(model)
    squares = sum(np.sum(weights[f"{prefix}{part}/kernel"] ** 2) for part in ("gates", "experts"))
    assert_close(sum(model.losses), 0.25 * squares / 2)
