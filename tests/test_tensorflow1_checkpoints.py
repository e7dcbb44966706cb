"""Models with the weights of a TensorFlow 1 checkpoint predict as the code that wrote it."""

import functools
import logging

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import initial_weights
import model_references
import tensorflow1_checkpoints
import tensorflow1_references as tf1
from model_references import assert_close, call, make_vectors, make_videos, reference_frames
from run_config import RunConfig, TrainOptions
from small_models import FEATURE_SIZES, NUM_CLASSES, D, shared
from utils import InputError


def set_weights(model, weights):
    counters = {weight.path for weight in model.weights if weight.name == "num_updates"}
    variables = checkpoints.weights(model)
    assert weights.keys() == variables.keys() - counters
    for path, value in weights.items():
        variables[path].assign(value)


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
WITHOUT_BLOCK = {"nonlocal_block": False, "moe_num_mixtures": 2}


def test_gated_netvlad_predicts_as_the_code_of_willow(tmp_path):
    pools = streams(tf1.netvlad, VLAD_SCOPES, (4, 3))
    check_gated(tmp_path, "LFNLNetVLADModel", pools, 2, **WITHOUT_BLOCK)


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


def soft_dbof_checkpoint(tmp_path, change=lambda arrays: None):
    """Returns the path of a checkpoint of a small SoftBoFModel, with changed variables."""
    variables = tf1.Variables("tower/")
    pools = streams(tf1.soft_dbof, ("video_DBOF", "audio_DBOF"), (6, 4))
    encoding = tf1.streams(np.ones((1, D)), variables, sizes=FEATURE_SIZES, pools=pools, hidden=5)
    tf1.moe(encoding, variables, NUM_CLASSES, mixtures=2)
    change(variables.arrays)
    return variables.save(tmp_path)


def inside(paths):
    """Returns paths of weights without the name of their model."""
    return {path.partition("/")[2] for path in paths}


def test_variables_in_bfloat16_are_read_as_float32(tmp_path):
    values = {
        "fully_connected/weights": np.full((D, NUM_CLASSES), 0.1),
        "fully_connected/biases": np.arange(NUM_CLASSES),
    }
    path = tf1.save(tmp_path, {key: tf.cast(values[key], tf.bfloat16).numpy() for key in values})
    weights = tensorflow1_checkpoints.read(path, shared("LogisticModel"))
    assert [array.dtype for array in weights.values()] == [np.float32] * 2
    for array, value in zip(weights.values(), values.values(), strict=True):
        np.testing.assert_allclose(array, value, rtol=2**-8)


def test_number_of_classes_follows_from_the_classifier(tmp_path):
    assert tensorflow1_checkpoints.num_classes(soft_dbof_checkpoint(tmp_path)) == NUM_CLASSES
    logistic = tf1.save(tmp_path, {"tower/fully_connected/weights": np.zeros((D, 7), np.float32)})
    assert tensorflow1_checkpoints.num_classes(logistic) == 7
    other = tf1.save(tmp_path, {"dense/kernel": np.zeros((D, 7), np.float32)})
    with pytest.raises(InputError, match=r"neither gates/weights, experts/weights nor fully_conn"):
        tensorflow1_checkpoints.num_classes(other)


def test_variables_that_no_weight_comes_from_are_logged(tmp_path, caplog):
    def with_gating(arrays):
        arrays["tower/gating_weights_2"] = np.ones((5, 5), np.float32)

    path = soft_dbof_checkpoint(tmp_path, with_gating)
    with caplog.at_level(logging.WARNING, logger="absl"):
        tensorflow1_checkpoints.read(path, shared("SoftBoFModel"))
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "gating_weights_2"
    ]


def test_missing_variables_are_an_error_that_names_those_there_instead(tmp_path):
    def with_batch_norm(arrays):
        arrays["tower/hidden1_bn/gamma"] = arrays.pop("tower/hidden1_biases")

    path = soft_dbof_checkpoint(tmp_path, with_batch_norm)
    message = (
        r"encoder/hidden/bias: there is no hidden1_biases. Variables that no weight comes from: "
        r"'hidden1_bn/gamma'"
    )
    with pytest.raises(InputError, match=message):
        tensorflow1_checkpoints.read(path, shared("SoftBoFModel"))


def test_other_shapes_are_an_error_that_names_weight_and_variable(tmp_path):
    model = shared("SoftBoFModel", soft_bof_cluster_size="6,3", moe_num_mixtures=3)
    path = soft_dbof_checkpoint(tmp_path)
    with pytest.raises(InputError) as error:
        tensorflow1_checkpoints.read(path, model)
    for text in (
        "gates/kernel: gates/weights [5, 12], experts/weights [5, 8] does not give [5, 16]",
        "soft_bof_1/assignment/kernel: audio_DBOF/cluster_weights [3, 4] does not give [3, 3]",
    ):
        assert text in str(error.value)


def test_rows_after_vlad_that_fit_no_clusters_are_an_error(tmp_path):
    variables = tf1.Variables()
    tf1.assignment(np.ones((1, 6)), variables, "video_VLAD", 4)
    tf1.assignment(np.ones((1, 3)), variables, "audio_VLAD", 3)
    variables("hidden1_weights", 30, 5)
    model = model_references.build("LFNLNetVLADModel", **WITHOUT_BLOCK)
    others = inside(checkpoints.weights(model)) - {"encoder/hidden/kernel"}
    with pytest.raises(InputError, match=r"hidden1_weights \[30, 5\], video_VLAD/.* \[6, 4\], "):
        tensorflow1_checkpoints.read(variables.save(tmp_path), model, others)


def test_a_model_without_a_table_is_an_error_that_names_those_with_one(tmp_path):
    path = soft_dbof_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"TransformerModel cannot start .* GruModel, "):
        tensorflow1_checkpoints.read(path, shared("TransformerModel"))


def test_other_checkpoints_and_files_are_errors(tmp_path):
    model = shared("LogisticModel")
    state = tf.train.Checkpoint(weights=checkpoints.weights(model))
    with pytest.raises(InputError, match="was not written by TensorFlow 1"):
        tensorflow1_checkpoints.read(state.write(str(tmp_path / "own")), model)
    (tmp_path / "other.index").write_text("no checkpoint")
    with pytest.raises(InputError, match="cannot read checkpoint"):
        tensorflow1_checkpoints.read(str(tmp_path / "other"), model)


# --- train.py --init_from -------------------------------------------------------------------------


def moe_checkpoint(tmp_path, *deleted):
    """Returns the path of a checkpoint and its predictions for `make_vectors`."""
    variables = tf1.Variables("tower/")
    units = tf1.l2_normalize(make_vectors().astype(np.float64))
    predictions = [tf1.moe(vector, variables, NUM_CLASSES, mixtures=2) for vector in units]
    for name in deleted:
        del variables.arrays[f"tower/{name}"]
    return variables.save(tmp_path), np.array(predictions)


def start(path, num_classes=NUM_CLASSES, **settings):
    """Returns a new model with the weights that a run starts with."""
    config = RunConfig(
        "MoeModel",
        num_classes=num_classes,
        feature_sizes=FEATURE_SIZES,
        init_from=path,
        **settings,
    )
    model = config.build_model()
    options = TrainOptions(train_data_pattern="none", train_dir="/nowhere/run")
    initial_weights.prepare(model, config, options)
    return model


def test_a_run_takes_the_classes_that_it_shares_with_the_checkpoint(tmp_path):
    path, expected = moe_checkpoint(tmp_path)
    assert_close(start(path)(make_vectors()), expected)
    model = start(path, num_classes=3, init_classes={"0": "3", "2": "1"})
    assert_close(np.asarray(model(make_vectors()))[:, [0, 2]], expected[:, [3, 1]])


def test_a_run_may_exclude_what_the_checkpoint_lacks(tmp_path):
    path, _ = moe_checkpoint(tmp_path, "experts/biases")
    with pytest.raises(InputError, match=r"--init_from=.*: checkpoint .* there is no experts/bias"):
        start(path)
    start(path, init_exclude="experts/bias")


def test_a_run_cannot_take_moving_averages_from_tensorflow_1(tmp_path):
    path, _ = moe_checkpoint(tmp_path)
    with pytest.raises(InputError, match="Leave out --init_use_ema"):
        start(path, init_use_ema=True)
