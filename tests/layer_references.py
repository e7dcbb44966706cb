"""References for the layers: loops in float64 over their formulas.

Every function is pure. Weights are a dict from path to array, so tests can differentiate a function
by finite differences.
"""

import math

import keras
import numpy as np

EPSILON = 1e-3

# Weights whose gradient is 0: batch normalization removes what they add to every row.
WITHOUT_EFFECT = {
    "DbofModel/input_norm/beta",
    "GatedDbofModel/encoder/input_norm/beta",
    "SoftBoFModel/encoder/input_norm/beta",
}


def weights_of(layer):
    """Returns the weights in float64 by path, without the name of the layer itself."""
    return {
        weight.path.partition("/")[2]: np.asarray(weight.value).astype(np.float64)
        for weight in layer.weights
    }


def sub_weights(weights, name):
    return {
        path.removeprefix(f"{name}/"): value
        for path, value in weights.items()
        if path.startswith(f"{name}/")
    }


def randomize(layer):
    """Makes all weights random, so a formula that leaves one out gives another result."""
    rng = np.random.default_rng(4)
    for weight in layer.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(rng.normal(0, 0.7, weight.shape))


def keras_gru(layer, frames_shape):
    """Returns a `keras.layers.GRU` with the weights of a built `recurrent.GRU`."""
    twin = keras.layers.GRU(
        layer.units, return_sequences=True, return_state=True, reset_after=False
    )
    twin.build(frames_shape)
    copy_gru(layer, twin)
    return twin


def copy_gru(layer, twin):
    """Copies the weights of a `recurrent.GRU` to a `keras.layers.GRU`."""
    kernel, bias = layer.input_projection.weights
    recurrent = np.concatenate([layer.gates, layer.candidate], axis=1)
    twin.set_weights([kernel, recurrent, bias])


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def softmax(scores):
    exponentials = [math.exp(score) for score in scores]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def unit_vector(values):
    """Scales a vector to norm 1; 0 stays 0."""
    length = math.sqrt(sum(value * value for value in values))
    return np.array([value / length if length else 0.0 for value in values])


def linear(vector, kernel, bias=None):
    """Returns, for each output, the weighted sum of the inputs plus the bias."""
    return [
        sum(vector[i] * kernel[i, j] for i in range(len(vector)))
        + (0.0 if bias is None else bias[j])
        for j in range(kernel.shape[1])
    ]


def statistics(rows, counts=None):
    """Returns mean and variance of every column of `rows`; row i counts `counts[i]` times."""
    counts = np.ones(len(rows)) if counts is None else counts
    mean = sum(n * row for n, row in zip(counts, rows, strict=True)) / sum(counts)
    squares = [n * (row - mean) ** 2 for n, row in zip(counts, rows, strict=True)]
    return mean, sum(squares) / sum(counts)


def batch_norm(x, weights, training, row_weights=None):
    """Normalizes the last axis of `x`, which any number of axes precede."""
    rows = np.reshape(x, (-1, np.shape(x)[-1]))
    if training:
        mean, variance = statistics(rows, None if row_weights is None else np.ravel(row_weights))
    else:
        mean, variance = weights["moving_mean"], weights["moving_variance"]
    normalized = [
        weights["gamma"] * (row - mean) / np.sqrt(variance + EPSILON) + weights["beta"]
        for row in rows
    ]
    return np.reshape(normalized, np.shape(x))


def context_gating(x, weights, training):
    logits = np.array([linear(row, weights["gate/kernel"]) for row in x])
    logits = batch_norm(logits, sub_weights(weights, "gate/norm"), training)
    return np.array(
        [
            [value * sigmoid(logit) for value, logit in zip(*rows, strict=True)]
            for rows in zip(x, logits, strict=True)
        ]
    )


def soft_assignment(frames, frame_weights, weights, training):
    logits = np.array([[linear(frame, weights["kernel"]) for frame in video] for video in frames])
    logits = batch_norm(logits, sub_weights(weights, "norm"), training, frame_weights)
    return np.array([[softmax(scores) for scores in video] for video in logits])


def nonlocal_block(
    x, weights, scale=None, pairwise="embedded_gaussian", normalize=False, attention="softmax"
):
    size = np.shape(x)[-1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    if normalize:
        x = [[unit_vector(vector) * math.sqrt(size) for vector in video] for video in x]
    return np.array([_attended(video, weights, scale, pairwise, attention) for video in x])


def _attended(vectors, weights, scale, pairwise, kind):
    """Returns the vectors of one video after they attended to each other."""
    values = [np.array(linear(vector, weights["g"])) for vector in vectors]
    queries, keys = vectors, vectors
    if pairwise != "gaussian":
        queries = [linear(vector, weights["theta"]) for vector in vectors]
        keys = [linear(vector, weights["phi"]) for vector in vectors]
    outputs = []
    for vector, query in zip(vectors, queries, strict=True):
        attention = [scale * np.dot(query, key) for key in keys]
        if pairwise == "dot_product":
            attention = [product / len(keys) for product in attention]
        else:
            attention = softmax(attention)
        if kind == "centered":
            attention = [weight - 1 / len(keys) for weight in attention]
        mean = sum(a * value for a, value in zip(attention, values, strict=True))
        outputs.append(vector + linear(mean, weights["out"]))
    return outputs


def netvlad(frames, frame_weights, weights, training, **block_options):
    """NetVLAD, with centers and a non-local block if there are weights for them."""
    assignments = soft_assignment(
        frames, frame_weights, sub_weights(weights, "assignment"), training
    )
    clusters = assignments.shape[-1]
    residuals = np.zeros((len(frames), clusters, frames.shape[-1]))
    for video in range(len(frames)):
        for k in range(clusters):
            center = weights["centers"][k] if "centers" in weights else 0.0
            for i, frame in enumerate(frames[video]):
                n = frame_weights[video, i]
                residuals[video, k] += n * assignments[video, i, k] * (frame - center)
    if "nonlocal_block/g" in weights:
        block = sub_weights(weights, "nonlocal_block")
        residuals = nonlocal_block(residuals, block, **block_options)
    return np.array(
        [unit_vector(np.concatenate([unit_vector(v) for v in video])) for video in residuals]
    )


def soft_bag_of_features(frames, frame_weights, weights, training):
    assignments = soft_assignment(
        frames, frame_weights, sub_weights(weights, "assignment"), training
    )
    counted = assignments * np.asarray(frame_weights)[..., None]
    return np.array([unit_vector(sum(video)) for video in counted])


def gated_bag_of_features(frames, frame_weights, weights, training):
    assignments = soft_assignment(
        frames, frame_weights, sub_weights(weights, "assignment"), training
    )
    logits, sums = [], []
    for video, counts in zip(assignments, frame_weights, strict=True):
        real = [row for row, count in zip(video, counts, strict=True) if count > 0]
        largest = unit_vector([max(column) for column in zip(*real, strict=True)])
        reduced = linear(largest, weights["reduction/kernel"])
        logits.append(linear(reduced, weights["gate/kernel"]))
        sums.append(sum(count * row for row, count in zip(video, counts, strict=True)))
    logits = batch_norm(logits, sub_weights(weights, "gate/norm"), training)
    gated = [
        [sigmoid(logit) * value for logit, value in zip(*rows, strict=True)]
        for rows in zip(logits, sums, strict=True)
    ]
    return np.array([unit_vector(video) for video in gated])


def netfv(frames, frame_weights, weights, training, second_order_norm="global"):
    assignments = soft_assignment(
        frames, frame_weights, sub_weights(weights, "assignment"), training
    )
    deviations = weights["deviation_roots"] ** 2 + 1e-6
    outputs = []
    for video, counts, assigned in zip(frames, frame_weights, assignments, strict=True):
        first, second = np.zeros((2, *deviations.shape))
        for k, (center, deviation) in enumerate(zip(weights["centers"], deviations, strict=True)):
            for frame, n, row in zip(video, counts, assigned, strict=True):
                standard = (frame - center) / deviation
                first[k] += n * row[k] * standard
                second[k] += n * row[k] * (standard**2 - 1)
        first = [unit_vector(part) for part in first]
        if second_order_norm == "intra":
            second = [unit_vector(part) for part in second]
        parts = [unit_vector(np.concatenate(part)) for part in (first, second)]
        outputs.append(np.concatenate(parts))
    return np.array(outputs)
