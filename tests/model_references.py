"""References for the models: loops in float64 over their formulas.

Also small models with random weights, and videos to compare them on.
"""

import functools
import math

import numpy as np
import tensorflow as tf

import layer_references as references
from layer_references import linear, randomize, sigmoid, sub_weights, unit_vector, weights_of
from small_models import FEATURE_SIZES, NUM_CLASSES, SMALL, D, build_once, for_one_stream

NUM_FRAMES = (4, 1, 6, 3)
# Sizes of the streams, mixtures, and scale in the non-local block, where None is 1 / sqrt(D).
NETVLAD_MODELS = {
    "LFNLNetVLADModel": (FEATURE_SIZES, 8, 1 / 64),
    "LFNLNetRVLADModel": (FEATURE_SIZES, 4, None),
    "EFNLNetVLADModel": ((D,), 2, None),
}
# Models that ignore the order of the frames and count sampled frames instead of copying them.
COUNTING_MODELS = [
    *NETVLAD_MODELS,
    *("SoftBoFModel", "NetFVModel", "GatedDbofModel", "NeXtVLADModel", "MixNeXtVLADModel"),
]


def build(name, feature_sizes=FEATURE_SIZES, **hyperparameters):
    """Returns a model of `SMALL` whose weights are all random, and the same in every test."""
    small = SMALL[name] if len(feature_sizes) > 1 else for_one_stream(SMALL[name])
    given = {**small, **hyperparameters}
    model = build_once(name, num_classes=NUM_CLASSES, feature_sizes=feature_sizes, **given)
    randomize(model)
    return model


def make_videos():
    """Returns frames `[B, T, D]`, with garbage as padding, and numbers of frames `[B]`."""
    rng = np.random.default_rng(8)
    frames = rng.integers(0, 256, (len(NUM_FRAMES), max(NUM_FRAMES), D), dtype=np.uint8)
    return frames, np.array(NUM_FRAMES, np.int32)


def make_vectors():
    return np.random.default_rng(9).normal(size=(4, D)).astype(np.float32)


def call(model, frames, num_frames, training=False, **options):
    inputs = {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}
    return model(inputs, training=training, **options)


def reference_frames(frames, num_frames):
    """Returns a list of real frames per video, dequantized and of norm 1."""
    return [
        [
            unit_vector([int(byte) * 4 / 255 + 4 / 512 - 2 for byte in frame])
            for frame in video[:length]
        ]
        for video, length in zip(frames, num_frames, strict=True)
    ]


def reference_logistic(vectors, weights):
    kernel, bias = weights["logistic/kernel"], weights["logistic/bias"]
    return [[sigmoid(score) for score in linear(vector, kernel, bias)] for vector in vectors]


def reference_moe(vectors, weights, mixtures, training=False):
    """Returns probabilities, gated if there are weights for that."""
    predictions = []
    for vector in vectors:
        gates = linear(vector, weights["gates/kernel"])
        experts = linear(vector, weights["experts/kernel"], weights["experts/bias"])
        row = []
        for c in range(NUM_CLASSES):
            gate_exps = [math.exp(gates[m * NUM_CLASSES + c]) for m in range(mixtures + 1)]
            experts_of_class = [sigmoid(experts[m * NUM_CLASSES + c]) for m in range(mixtures)]
            # The dummy expert, the last one, always predicts 0.
            row.append(
                sum(gate_exps[m] / sum(gate_exps) * p for m, p in enumerate(experts_of_class))
            )
        predictions.append(row)
    if "prob_gating/gate/kernel" not in weights:
        return predictions
    return references.context_gating(predictions, sub_weights(weights, "prob_gating"), training)


def reference_dbof(videos, weights, pooling, batch_norm, training):
    """Returns encodings of lists of frames; statistics are over all real frames together."""

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


def reference_netvlad_model(model, videos, streams, mixtures, training=False, **block_options):
    pool = functools.partial(references.netvlad, **block_options)
    return reference_pooling_model(model, videos, streams, "netvlad", pool, mixtures, training)


def reference_soft_bof_model(model, videos, streams, training):
    pool = references.soft_bag_of_features
    return reference_pooling_model(model, videos, streams, "soft_bof", pool, 2, training)


def reference_pooling_model(model, videos, streams, name, pool, mixtures, training):
    """Returns predictions for lists of frames: each stream pooled, all reduced, then gated.

    Args:
        streams: sizes of the streams. The weights of stream n are in the layer `name_n`.
        pool: reference of that layer, or a list with one for each stream.
    """
    pools = pool if isinstance(pool, list) else [pool] * len(streams)
    weights = weights_of(model)
    encoder = sub_weights(weights, "encoder")
    frames = np.zeros((len(videos), max(map(len, videos)), sum(streams)))
    frame_weights = np.zeros(frames.shape[:2])
    for row, video in enumerate(videos):
        frames[row, : len(video)] = video
        frame_weights[row, : len(video)] = 1
    norm = sub_weights(encoder, "input_norm")
    frames = references.batch_norm(frames, norm, training, frame_weights)
    pooled = [
        pools[number](stream, frame_weights, sub_weights(encoder, f"{name}_{number}"), training)
        for number, stream in enumerate(np.split(frames, np.cumsum(streams)[:-1], axis=-1))
    ]
    hidden = [
        linear(row, encoder["hidden/kernel"], encoder["hidden/bias"])
        for row in np.concatenate(pooled, axis=-1)
    ]
    if "hidden_gating/gate/kernel" in encoder:
        gating = sub_weights(encoder, "hidden_gating")
        hidden = references.context_gating(hidden, gating, training)
    return reference_moe(hidden, sub_weights(weights, "classifier"), mixtures, training)


def reference_lstm(frames, weights):
    """Returns the state after each frame. Order of the gates: input, forget, cell, output."""
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
    """Returns the state after each frame. Order of the gates: update z, reset r, candidate."""
    candidate = weights["candidate"]
    update, reset = np.split(weights["gates"], 2, axis=1)
    units = len(candidate)
    projection = sub_weights(weights, "input_projection")
    hidden, states = [0.0] * units, []
    for frame in frames:
        inputs = linear(frame, projection["kernel"], projection["bias"])
        z = [sigmoid(inputs[u] + v) for u, v in enumerate(linear(hidden, update))]
        r = [sigmoid(inputs[units + u] + v) for u, v in enumerate(linear(hidden, reset))]
        # The reset gate applies before the recurrent product.
        kept = linear([a * b for a, b in zip(r, hidden, strict=True)], candidate)
        new = [math.tanh(inputs[2 * units + u] + v) for u, v in enumerate(kept)]
        hidden = [z[u] * hidden[u] + (1 - z[u]) * new[u] for u in range(units)]
        states.append(hidden)
    return states


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-7)
