"""Models with the weights of a TensorFlow 1 checkpoint predict as the code that wrote it."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import model_references
import tensorflow1_checkpoints
import tensorflow1_references as tf1
from model_references import assert_close, call, make_vectors, make_videos, reference_frames
from small_models import FEATURE_SIZES, NUM_CLASSES, D
from utils import InputError


def set_weights(model, weights):
    variables = checkpoints.weights(model)
    assert weights.keys() == variables.keys()
    for path, variable in variables.items():
        variable.assign(weights[path])


def check(tmp_path, name, encode, classify=None, scope="", **hyperparameters):
    """Compares the predictions for videos with references.

    Args:
        encode: reference, a function from the frames of a video and variables to a vector.
        classify: reference, a function from that vector, variables and classes to probabilities.
        scope: scope of the variables.
    """
    classify = classify or functools.partial(tf1.moe, mixtures=2)
    variables = tf1.Variables(scope)
    videos = map(np.array, reference_frames(*make_videos()))
    expected = [classify(encode(video, variables), variables, NUM_CLASSES) for video in videos]
    model = model_references.build(name, **hyperparameters)
    set_weights(model, tensorflow1_checkpoints.read(variables.save(tmp_path), model))
    assert_close(call(model, *make_videos()), expected)


def streams(layer, scopes, clusters, **options):
    return [
        functools.partial(layer, scope=scope, clusters=count, **options)
        for scope, count in zip(scopes, clusters, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "classify", "hyperparameters"),
    [
        ("LogisticModel", tf1.logistic, {}),
        ("MoeModel", functools.partial(tf1.moe, mixtures=3), {"moe_num_mixtures": 3}),
        (
            "MoeModel",
            functools.partial(tf1.moe, mixtures=1, prob_gating=True),
            {"moe_num_mixtures": 1, "moe_prob_gating": True},
        ),
    ],
)
def test_video_level_models_predict_as_the_starter_code(tmp_path, name, classify, hyperparameters):
    variables = tf1.Variables("tower/")
    vectors = make_vectors()
    units = tf1.l2_normalize(vectors.astype(np.float64))
    expected = [classify(vector, variables, NUM_CLASSES) for vector in units]
    model = model_references.build(name, **hyperparameters)
    set_weights(model, tensorflow1_checkpoints.read(variables.save(tmp_path), model))
    assert_close(model(vectors), expected)


def test_logistic_model_of_frames_predicts_as_the_starter_code(tmp_path):
    check(
        tmp_path,
        "FrameLevelLogisticModel",
        lambda frames, variables: frames.mean(axis=0),
        tf1.logistic,
        scope="tower/",
    )


@pytest.mark.parametrize(("pooling", "batch_norm"), [("max", True), ("average", False)])
def test_dbof_predicts_as_the_starter_code(tmp_path, pooling, batch_norm):
    encode = functools.partial(
        tf1.dbof,
        clusters=8,
        hidden=5,
        pool={"max": np.max, "average": np.mean}[pooling],
        batch_normalized=batch_norm,
    )
    options = {"dbof_pooling_method": pooling, "dbof_add_batch_norm": batch_norm}
    check(tmp_path, "DbofModel", encode, scope="tower/", **options)


def test_lstm_predicts_as_the_starter_code(tmp_path):
    def encode(frames, variables):
        for number in range(2):
            frames = tf1.lstm(frames, variables, f"rnn/multi_rnn_cell/cell_{number}", 5)
        return frames[-1]

    check(tmp_path, "LstmModel", encode, scope="tower/")


@pytest.mark.parametrize(
    ("scope", "names"), [("tower/", {}), ("", {"kernel": "weights", "bias": "biases"})]
)
def test_gru_predicts_as_the_code_of_willow_with_names_of_two_releases(tmp_path, scope, names):
    def encode(frames, variables):
        final_states = []
        for number in range(2):
            cell = f"RNN/rnn/multi_rnn_cell/cell_{number}"
            frames = tf1.gru(frames, variables, cell, 5, **names)
            final_states.append(frames[-1])
        return np.concatenate(final_states)

    check(tmp_path, "GruModel", encode, scope=scope)


def test_soft_bag_of_features_predicts_as_soft_dbof_of_willow(tmp_path):
    pools = streams(tf1.soft_dbof, ("video_DBOF", "audio_DBOF"), (6, 4))
    encode = functools.partial(tf1.streams, sizes=FEATURE_SIZES, pools=pools, hidden=5)
    check(tmp_path, "SoftBoFModel", encode)


def test_gated_dbof_predicts_as_the_code_of_willow(tmp_path):
    (first,) = streams(tf1.gated_dbof, ("video_DBOF",), (6,))
    (second,) = streams(tf1.soft_dbof, ("audio_DBOF",), (4,))
    encode = functools.partial(tf1.streams, sizes=FEATURE_SIZES, pools=[first, second], hidden=5)
    check(tmp_path, "GatedDbofModel", encode)


def check_gated(tmp_path, name, pools, mixtures, sizes=FEATURE_SIZES, **options):
    """Compares a model with two context gatings."""
    encode = functools.partial(tf1.streams, sizes=sizes, pools=pools, hidden=5, gating=True)
    classify = functools.partial(tf1.moe, mixtures=mixtures, prob_gating=True)
    check(tmp_path, name, encode, classify, **options)


def test_netfv_predicts_as_the_code_of_willow(tmp_path):
    check_gated(tmp_path, "NetFVModel", streams(tf1.netfv, ("video_FV", "audio_FV"), (4, 3)), 2)


VLAD_SCOPES = ("video_VLAD", "audio_VLAD")


@pytest.mark.parametrize("centers", [True, False])
def test_netvlad_and_netrvlad_predict_as_the_code_of_willow(tmp_path, centers):
    pools = streams(tf1.netvlad, VLAD_SCOPES, (4, 3), centers=centers)
    options = {"nonlocal_block": False, "netvlad_centers": centers, "moe_num_mixtures": 2}
    check_gated(tmp_path, "LFNLNetVLADModel", pools, 2, **options)


@pytest.mark.parametrize(
    ("name", "mixtures", "options"),
    [
        ("LFNLNetVLADModel", 8, {"scale": 1 / 64}),
        ("LFNLNetRVLADModel", 4, {"values": "phi"}),
    ],
)
def test_late_fusion_models_predict_as_the_code_of_the_paper(tmp_path, name, mixtures, options):
    pools = [
        functools.partial(
            tf1.netvlad,
            scope=scope,
            clusters=clusters,
            centers=name == "LFNLNetVLADModel",
            nonlocal_block=functools.partial(tf1.nonlocal_block, embedding=embedding, **options),
        )
        for scope, clusters, embedding in zip(VLAD_SCOPES, (4, 3), (2, 3), strict=True)
    ]
    check_gated(tmp_path, name, pools, mixtures, scope="tower/")


def test_early_fusion_predicts_as_the_code_of_the_paper(tmp_path):
    block = functools.partial(tf1.nonlocal_block, embedding=2, values="phi")
    pools = streams(tf1.netvlad, ("video_audio_VLAD",), (4,), nonlocal_block=block)
    check_gated(tmp_path, "EFNLNetVLADModel", pools, 2, sizes=(D,), scope="tower/")
