"""References for NeXtVLAD and its mixture: loops in float64 over their formulas."""

import math

import numpy as np

import layer_references as references
from layer_references import linear, sigmoid, softmax, sub_weights, unit_vector, weights_of


def nextvlad(frames, frame_weights, weights, training):
    """NeXtVLAD of frames `[B, T, D]`, the residuals of the clusters one after the other."""
    groups, clusters = len(weights["attention/bias"]), len(weights["centers"])
    frame_weights = np.asarray(frame_weights, np.float64)
    expanded = np.array(
        [
            [linear(x, weights["expansion/kernel"], weights["expansion/bias"]) for x in video]
            for video in frames
        ]
    )
    logits = np.array(
        [[linear(x, weights["assignment/kernel"]) for x in video] for video in expanded]
    )
    norm = sub_weights(weights, "assignment/norm")
    logits = references.batch_norm(logits, norm, training, frame_weights)
    outputs = []
    for video, expanded_video in enumerate(expanded):
        residuals = np.zeros((clusters, expanded.shape[-1] // groups))
        for i, x in enumerate(expanded_video):
            attention = linear(x, weights["attention/kernel"], weights["attention/bias"])
            logits_of_groups = np.split(logits[video, i], groups)
            for g, group in enumerate(np.split(x, groups)):
                assignment = softmax(logits_of_groups[g])
                for k in range(clusters):
                    weight = frame_weights[video, i] * sigmoid(attention[g]) * assignment[k]
                    residuals[k] += weight * (group - weights["centers"][k])
        outputs.append(np.concatenate([unit_vector(v) for v in residuals]))
    return np.array(outputs)


def squeeze_excitation(x, weights, training):
    squeezed = np.array([linear(row, weights["squeeze/kernel"]) for row in x])
    norm = sub_weights(weights, "squeeze/norm")
    squeezed = np.maximum(references.batch_norm(squeezed, norm, training), 0)
    gates = [[sigmoid(z) for z in linear(row, weights["excite/kernel"])] for row in squeezed]
    return np.asarray(x) * np.array(gates)


def encoder(videos, weights, stream_sizes, training):
    """Returns hidden vectors of lists of frames, without dropout."""
    frames, frame_weights = padded(videos)
    pooled = [
        nextvlad(stream, frame_weights, sub_weights(weights, f"nextvlad_{number}"), training)
        for number, stream in enumerate(np.split(frames, np.cumsum(stream_sizes)[:-1], axis=-1))
    ]
    x = np.concatenate(pooled, axis=-1)
    x = references.batch_norm(x, sub_weights(weights, "vlad_norm"), training)
    hidden = [linear(row, weights["hidden/kernel"]) for row in x]
    hidden = references.batch_norm(hidden, sub_weights(weights, "hidden/norm"), training)
    return squeeze_excitation(hidden, sub_weights(weights, "gating"), training)


def padded(videos):
    """Returns frames `[B, T, D]`, with 9 as padding, and their weights `[B, T]`."""
    frames = np.full((len(videos), max(map(len, videos)), len(videos[0][0])), 9.0)
    weights = np.zeros(frames.shape[:2])
    for row, video in enumerate(videos):
        frames[row, : len(video)] = video
        weights[row, : len(video)] = 1
    return frames, weights


def model_branches(model, videos, training):
    """Returns logits `[B, M, C]` of all branches of a model."""
    weights = weights_of(model)
    found = []
    for m in range(len(model.encoders)):
        own = sub_weights(weights, f"encoder_{m}")
        hidden = encoder(videos, own, model.feature_sizes, training)
        logistic = sub_weights(weights, "classifier")
        logistic = sub_weights(logistic, f"logistic_{m}") or logistic
        found.append([linear(row, logistic["kernel"], logistic["bias"]) for row in hidden])
    return np.stack(found, axis=1)


def mixture(model, videos, training):
    """Returns the logits of a mixture, `[B, C]`, and of its branches, `[B, M, C]`."""
    weights = sub_weights(weights_of(model), "gate")
    means = [sum(video) / len(video) for video in videos]
    means = references.batch_norm(means, sub_weights(weights, "norm"), training)
    logits = model_branches(model, videos, training)
    mixed = []
    for mean, branches in zip(means, logits, strict=True):
        gates = softmax(linear(mean, weights["logits/kernel"], weights["logits/bias"]))
        mixed.append(sum(gate * z for gate, z in zip(gates, branches, strict=True)))
    return np.array(mixed), logits


def cross_entropy(labels, logits):
    """Returns the mean over videos of the sum over classes."""
    total = 0.0
    for y, z in zip(labels.ravel().tolist(), logits.ravel(), strict=True):
        p = sigmoid(z)
        total -= y * math.log(p + 1e-5) + (1 - y) * math.log(1 - p + 1e-5)
    return total / len(labels)


def distillation(teacher, students, temperature):
    """Returns the mean over videos of the KL divergences of all students from the teacher."""
    total = 0.0
    for z, branches in zip(teacher, students, strict=True):
        expected = softmax(z / temperature)
        for branch_logits in branches:
            actual = softmax(branch_logits / temperature)
            for p, q in zip(expected, actual, strict=True):
                total += p * (math.log(p + 1e-8) - math.log(q + 1e-8))
    return total / len(teacher)
