"""Compares the models with plain loops in float64, written from their formulas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import frame_level_models
import nonlocal_vlad
import registry
import video_level_models

FEATURE_SIZES = (5, 2)
D = sum(FEATURE_SIZES)
NUM_CLASSES = 3
NUM_FRAMES = (4, 1, 6, 3)
EPSILON = 1e-3
BOTH_MODES = pytest.mark.parametrize("training", [False, True])


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-7)


def build(name, **hyperparameters):
    """A model whose weights are all random, so that none of them can be left out unnoticed."""
    model = registry.build_model(
        name, num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **hyperparameters
    )
    randomize(model)
    return model


def randomize(layer):
    rng = np.random.default_rng(4)
    for weight in layer.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(rng.normal(0, 0.7, weight.shape))


def weights_of(layer):
    """Weights in float64 by path, without the name of the layer itself."""
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


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def reference_unit_vector(values):
    values = [float(value) for value in values]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def reference_frames(frames, num_frames):
    """A list of real frames per video, dequantised and of length 1."""
    return [
        [
            reference_unit_vector([int(byte) * 4 / 255 + 4 / 512 - 2 for byte in frame])
            for frame in video[:length]
        ]
        for video, length in zip(frames, num_frames, strict=True)
    ]


def reference_linear(vector, kernel, bias=None):
    return [
        sum(vector[i] * kernel[i, j] for i in range(len(vector)))
        + (0.0 if bias is None else bias[j])
        for j in range(kernel.shape[1])
    ]


def reference_statistics(rows):
    """Mean and variance, over the number of rows, of every entry."""
    means, variances = [], []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        means.append(mean)
        variances.append(sum((value - mean) ** 2 for value in column) / len(column))
    return means, variances


def reference_batch_norm(rows, weights, training):
    if training:
        means, variances = reference_statistics(rows)
    else:
        means, variances = weights["moving_mean"], weights["moving_variance"]
    return [
        [
            weights["gamma"][i] * (row[i] - means[i]) / math.sqrt(variances[i] + EPSILON)
            + weights["beta"][i]
            for i in range(len(row))
        ]
        for row in rows
    ]


def reference_moe(vectors, weights, mixtures, training=False):
    """Probabilities, with gating of them where the weights have it."""
    predictions = []
    for vector in vectors:
        gates = reference_linear(vector, weights["gates/kernel"])
        experts = reference_linear(vector, weights["experts/kernel"], weights["experts/bias"])
        row = []
        for c in range(NUM_CLASSES):
            scores = [math.exp(gates[c * (mixtures + 1) + m]) for m in range(mixtures + 1)]
            chances = [sigmoid(experts[c * mixtures + m]) for m in range(mixtures)]
            # The last expert always says no.
            row.append(sum(scores[m] / sum(scores) * chance for m, chance in enumerate(chances)))
        predictions.append(row)
    if "prob_gating/gate/kernel" not in weights:
        return predictions
    return reference_gating(predictions, sub_weights(weights, "prob_gating"), training)


def reference_gating(rows, weights, training):
    linear = [reference_linear(row, weights["gate/kernel"]) for row in rows]
    gates = reference_batch_norm(linear, sub_weights(weights, "gate_norm"), training)
    return [
        [value * sigmoid(gate) for value, gate in zip(row, gate_row, strict=True)]
        for row, gate_row in zip(rows, gates, strict=True)
    ]


def reference_dbof(videos, weights, pooling, batch_norm, training):
    """Encodings of lists of frames; the statistics are those of all real frames together."""

    def project(rows, name):
        kernel = weights[f"{name}/kernel"]
        if not batch_norm:
            return [reference_linear(row, kernel, weights[f"{name}/bias"]) for row in rows]
        rows = [reference_linear(row, kernel) for row in rows]
        return reference_batch_norm(rows, sub_weights(weights, f"{name}_norm"), training)

    def relu6(rows):
        return [[min(max(value, 0.0), 6.0) for value in row] for row in rows]

    rows = [frame for video in videos for frame in video]
    if batch_norm:
        rows = reference_batch_norm(rows, sub_weights(weights, "input_norm"), training)
    rows = relu6(project(rows, "clusters"))
    pooled = []
    for video in videos:
        own, rows = rows[: len(video)], rows[len(video) :]
        columns = zip(*own, strict=True)
        pooled.append(
            [max(column) if pooling == "max" else sum(column) / len(own) for column in columns]
        )
    return relu6(project(pooled, "hidden"))


def reference_lstm(frames, weights):
    """Hidden states after each frame; the order of the gates is input, forget, cell, output."""
    units = weights["recurrent_kernel"].shape[0]
    hidden, cell, states = [0.0] * units, [0.0] * units, []
    for frame in frames:
        inputs = reference_linear(frame, weights["kernel"], weights["bias"])
        recurrent = reference_linear(hidden, weights["recurrent_kernel"])
        total = [a + b for a, b in zip(inputs, recurrent, strict=True)]
        for u in range(units):
            new = math.tanh(total[2 * units + u])
            cell[u] = sigmoid(total[units + u]) * cell[u] + sigmoid(total[u]) * new
        hidden = [sigmoid(total[3 * units + u]) * math.tanh(cell[u]) for u in range(units)]
        states.append(hidden)
    return states


def reference_gru(frames, weights):
    """Hidden states after each frame; the order of the gates is update z, reset r, candidate."""
    units = weights["recurrent_kernel"].shape[0]
    update, reset, candidate = np.split(weights["recurrent_kernel"], 3, axis=1)
    hidden, states = [0.0] * units, []
    for frame in frames:
        inputs = reference_linear(frame, weights["kernel"], weights["bias"])
        z = [sigmoid(inputs[u] + v) for u, v in enumerate(reference_linear(hidden, update))]
        r = [sigmoid(inputs[units + u] + v) for u, v in enumerate(reference_linear(hidden, reset))]
        # The reset gate comes before the recurrent product.
        kept = reference_linear([a * b for a, b in zip(r, hidden, strict=True)], candidate)
        new = [math.tanh(inputs[2 * units + u] + v) for u, v in enumerate(kept)]
        hidden = [z[u] * hidden[u] + (1 - z[u]) * new[u] for u in range(units)]
        states.append(hidden)
    return states


def test_frames_are_dequantised_and_of_length_one_and_padding_is_zero():
    frames, num_frames = make_videos()
    weights = (np.arange(frames.shape[1]) < num_frames[:, None]).astype(np.float32)
    actual = np.asarray(frame_level_models.normalize(frames, weights))
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
            for score in reference_linear(
                reference_unit_vector(vector), weights["logistic/kernel"], weights["logistic/bias"]
            )
        ]
        for vector in vectors
    ]
    assert_close(model(vectors), expected)


@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_moe_model_equals_its_formula(mixtures):
    model, vectors = build("MoeModel", moe_num_mixtures=mixtures), make_vectors()
    units = [reference_unit_vector(vector) for vector in vectors]
    assert_close(model(vectors), reference_moe(units, weights_of(model), mixtures))


@BOTH_MODES
def test_moe_model_with_gated_probabilities_equals_its_formula(training):
    model, vectors = build("MoeModel", moe_prob_gating=True), make_vectors(rows=6)
    units = [reference_unit_vector(vector) for vector in vectors]
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
            for score in reference_linear(
                vector.tolist(), weights["logistic/kernel"], weights["logistic/bias"]
            )
        ]
        for vector in vectors
    ]
    assert_close(model(vectors), expected)


@BOTH_MODES
def test_context_gating_equals_its_formula(training):
    layer, vectors = nonlocal_vlad.ContextGating(), make_vectors(rows=5, size=6)
    layer(vectors)
    randomize(layer)
    expected = reference_gating(vectors.tolist(), weights_of(layer), training)
    assert_close(layer(vectors, training=training), expected)


def test_frame_level_logistic_model_classifies_the_mean_of_the_real_frames():
    model = build("FrameLevelLogisticModel")
    frames, num_frames = make_videos()
    weights = weights_of(model)
    kernel, bias = weights["classifier/logistic/kernel"], weights["classifier/logistic/bias"]
    expected = []
    for video in reference_frames(frames, num_frames):
        mean = [sum(column) / len(video) for column in zip(*video, strict=True)]
        expected.append([sigmoid(score) for score in reference_linear(mean, kernel, bias)])
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
    means, variances = (np.array(values) for values in reference_statistics(rows))
    assert_close(after["moving_mean"], decay * before["moving_mean"] + (1 - decay) * means)
    assert_close(
        after["moving_variance"], decay * before["moving_variance"] + (1 - decay) * variances
    )
    assert after["num_updates"] == updates + 1


def test_batch_norm_counts_a_row_as_often_as_its_weight_says():
    layer, rows = nonlocal_vlad.BatchNorm(), make_vectors(rows=4, size=3)
    layer(rows)
    randomize(layer)
    repeats = [2, 0, 1, 3]
    repeated = np.repeat(rows, repeats, axis=0)
    expected = reference_batch_norm(repeated.tolist(), weights_of(layer), training=True)
    actual = layer(rows, np.array(repeats, np.float32), training=True)
    assert_close(np.repeat(actual, repeats, axis=0), expected)


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
            states = reference_gru(states, sub_weights(weights, f"gru_{number}/gru_cell"))
            encoding += states[-1]
        encodings.append(encoding)
    expected = reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    assert_close(call(model, frames, num_frames), expected)


def test_initial_bias_of_a_gru_opens_its_two_gates():
    layers = registry.build_model(
        "GruModel", num_classes=2, feature_sizes=(3,), gru_cells=4
    ).recurrent_layers
    for layer in layers:
        np.testing.assert_array_equal(layer.cell.bias, [1] * 8 + [0] * 4)


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


def test_initial_gate_of_context_gating_is_normal_by_its_width():
    keras.utils.set_random_seed(2)
    layer = nonlocal_vlad.ContextGating()
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
    positions = frame_level_models.random_positions(limits, 20, seed_generator())
    assert positions.shape == (1500, 20)
    assert np.min(positions) == 0
    assert np.max(positions) == num_frames - 1
    assert_uniform(positions, num_frames)


def test_random_positions_keep_within_the_length_of_each_video():
    limits = np.arange(1, 50, dtype=np.int32)
    positions = np.asarray(
        frame_level_models.random_positions(tf.constant(limits), 400, seed_generator())
    )
    for row, limit in zip(positions, limits, strict=True):
        assert set(row) == set(range(limit))


def test_random_positions_are_drawn_with_replacement():
    positions = frame_level_models.random_positions(tf.fill([4000], 5), 5, seed_generator())
    all_different = np.mean([len(set(row)) == 5 for row in np.asarray(positions)])
    assert all_different == pytest.approx(math.factorial(5) / 5**5, abs=0.015)


def test_random_positions_stay_in_the_video_where_the_random_number_rounds_up(monkeypatch):
    monkeypatch.setattr(keras.random, "uniform", lambda shape, seed: tf.ones(shape))
    limits = tf.constant([1, 7, 300])
    positions = frame_level_models.random_positions(limits, 2, seed_generator())
    np.testing.assert_array_equal(positions, [[0, 0], [6, 6], [299, 299]])


@pytest.mark.parametrize(
    "draw", [frame_level_models.random_positions, frame_level_models.random_run]
)
def test_positions_repeat_under_a_seed_and_differ_between_calls_and_videos(draw):
    limits, seed = tf.fill([4], 1000), seed_generator(6)
    first, second = np.asarray(draw(limits, 3, seed)), np.asarray(draw(limits, 3, seed))
    np.testing.assert_array_equal(draw(limits, 3, seed_generator(6)), first)
    assert np.any(np.asarray(draw(limits, 3, seed_generator(7))) != first)
    assert np.any(first != second)
    assert len({tuple(row) for row in first}) == 4


def test_random_run_is_consecutive_within_the_video_and_starts_uniformly():
    runs = np.asarray(frame_level_models.random_run(tf.fill([8000], 10), 4, seed_generator()))
    assert np.all(np.diff(runs, axis=1) == 1)
    assert_uniform(runs[:, 0], 7)


def test_random_run_of_a_short_video_begins_at_its_first_frame():
    runs = frame_level_models.random_run(tf.constant([1, 3, 4]), 4, seed_generator())
    np.testing.assert_array_equal(runs, [[0, 1, 2, 3]] * 3)


def numbered_videos(num_frames, length):
    """Frames that hold the number of the video and their position; padding holds 255."""
    frames = np.full((len(num_frames), length, 2), 255, np.uint8)
    for row, count in enumerate(num_frames):
        frames[row, :count, 0] = row
        frames[row, :count, 1] = np.arange(count)
    return tf.constant(frames), tf.constant(num_frames)


def sampling_model(**arguments):
    return registry.build_model(
        "FrameLevelLogisticModel", num_classes=2, feature_sizes=(2,), **arguments
    )


def test_sampled_frames_are_real_frames_of_their_own_video():
    model = sampling_model(iterations=50)
    sampled, weights = model.sample(*numbered_videos([3, 1, 9], length=9))
    sampled = np.asarray(sampled)
    assert sampled.shape == (3, 50, 2)
    assert sampled.dtype == np.uint8
    np.testing.assert_array_equal(sampled[..., 0], [[0] * 50, [1] * 50, [2] * 50])
    for row, count in enumerate([3, 1, 9]):
        assert set(sampled[row, :, 1]) == set(range(count))
    np.testing.assert_array_equal(weights, np.ones((3, 50)))


def test_run_of_frames_has_weight_zero_beyond_a_short_video():
    model = sampling_model(iterations=4, sample_random_frames=False)
    sampled, weights = model.sample(*numbered_videos([2, 6, 4], length=6))
    sampled = np.asarray(sampled)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(sampled[0, :2], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(sampled[1:, :, 0], [[1] * 4, [2] * 4])
    assert np.all(np.diff(sampled[1:, :, 1].astype(int), axis=1) == 1)
    assert sampled[1, -1, 1] < 6


def test_run_longer_than_the_batch_takes_every_frame_once():
    model = sampling_model(iterations=8, sample_random_frames=False)
    sampled, weights = model.sample(*numbered_videos([2, 3], length=3))
    assert sampled.shape == (2, 8, 2)
    np.testing.assert_array_equal(weights, [[1] * 2 + [0] * 6, [1] * 3 + [0] * 5])
    np.testing.assert_array_equal(sampled[1, :3], [[1, 0], [1, 1], [1, 2]])


def test_without_sampling_all_frames_are_taken_in_order():
    frames, num_frames = numbered_videos([2, 3], length=4)
    taken, weights = sampling_model().sample(frames, num_frames)
    np.testing.assert_array_equal(taken, frames)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0], [1, 1, 1, 0]])


def test_frames_are_sampled_anew_in_every_call():
    model = sampling_model(iterations=20)
    videos = numbered_videos([9], length=9)
    first, second = model.sample(*videos)[0], model.sample(*videos)[0]
    assert np.any(first != second)
