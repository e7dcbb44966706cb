"""The transformer: its formula in float64, padding, the order of the frames, dropout."""

import math

import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import model_references
import transformer_models
from gradient_checks import assert_close as assert_layer_close
from gradient_checks import assert_gradients_equal_finite_differences
from layer_references import linear, softmax, sub_weights, weights_of
from model_references import NUM_FRAMES, assert_close, call, make_videos, reference_frames

NAME = "TransformerModel"
SIZE, HEADS = 4, 2
POOLINGS = transformer_models.TransformerEncoder.POOLINGS
EVERY_POOLING = pytest.mark.parametrize("pooling", POOLINGS)
# Of two videos with four frames, three and two of which are real.
REAL = np.array([[True, True, True, False], [True, False, True, False]])


# --- Reference: loops over the real frames of one video -------------------------------------------


def layer_norm(vector, weights):
    deviations = vector - np.mean(vector)
    return deviations / np.sqrt(np.mean(deviations**2) + 1e-6) * weights["gamma"] + weights["beta"]


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def affine(vector, weights, name):
    return np.array(linear(vector, weights[f"{name}/kernel"], weights[f"{name}/bias"]))


def self_attention(frames, weights, heads=HEADS):
    size = len(frames[0]) // heads
    # The projection holds all queries, then all keys, then all values; in each, one head after
    # the other.
    projected = [
        affine(frame, weights, "input_projection").reshape(3, heads, size) for frame in frames
    ]
    outputs = []
    for queries, _, _ in projected:
        parts = []
        for head in range(heads):
            products = [np.dot(queries[head], keys[head]) for _, keys, _ in projected]
            attention = softmax([product / math.sqrt(size) for product in products])
            values = [values[head] for _, _, values in projected]
            parts.append(sum(a * value for a, value in zip(attention, values, strict=True)))
        outputs.append(affine(np.concatenate(parts), weights, "output_projection"))
    return outputs


def block(frames, weights, heads=HEADS):
    normalized = [layer_norm(frame, sub_weights(weights, "attention_norm")) for frame in frames]
    attended = self_attention(normalized, sub_weights(weights, "attention"), heads)
    frames = [frame + added for frame, added in zip(frames, attended, strict=True)]
    outputs = []
    for frame in frames:
        hidden = affine(layer_norm(frame, sub_weights(weights, "hidden_norm")), weights, "hidden")
        hidden = [gelu(value) for value in hidden]
        outputs.append(frame + affine(hidden, weights, "output_projection"))
    return outputs


def attention_pooling(frames, weights):
    outputs = []
    for query in weights["queries"].T:
        attention = softmax([np.dot(query, frame) / math.sqrt(len(query)) for frame in frames])
        outputs.append(sum(a * frame for a, frame in zip(attention, frames, strict=True)))
    return np.concatenate(outputs)


def encode(video, weights, pooling):
    norm, frames = sub_weights(weights, "projection_norm"), []
    for number, frame in enumerate(video):
        frames.append(layer_norm(affine(frame, weights, "projection"), norm))
        if "time_embedding" in weights:
            embeddings = weights["time_embedding"]
            frames[-1] = frames[-1] + embeddings[min(number, len(embeddings) - 1)]
    if pooling == "class_token":
        frames.insert(0, weights["class_token"][0])
    number = 0
    while own := sub_weights(weights, f"block_{number}"):
        frames, number = block(frames, own), number + 1
    frames = [layer_norm(frame, sub_weights(weights, "output_norm")) for frame in frames]
    if pooling == "class_token":
        return frames[0]
    if pooling == "attention":
        return attention_pooling(frames, sub_weights(weights, "pooling"))
    return sum(frames) / len(frames)


def of_videos(reference):
    """Returns a reference of padded frames, whose outputs at padding are 0."""

    def run(x, weights):
        outputs = []
        for video, real in zip(x, REAL, strict=True):
            found = np.asarray(reference(list(video[real]), weights))
            if len(found) == real.sum() and found.ndim == 2:
                padded = np.zeros((len(real), found.shape[1]))
                padded[real] = found
                found = padded
            outputs.append(found)
        return np.array(outputs)

    return run


# --- Layers ---------------------------------------------------------------------------------------

LAYERS = {
    "self-attention": (
        lambda: transformer_models.SelfAttention(SIZE, HEADS),
        of_videos(self_attention),
    ),
    "block": (
        lambda: transformer_models.TransformerBlock(SIZE, HEADS, 5, 0.0),
        of_videos(block),
    ),
    "attention pooling": (
        lambda: transformer_models.AttentionPooling(3),
        of_videos(attention_pooling),
    ),
}


def make_layer(name):
    """Returns a function of frames, which are 0 at padding in its result, a layer and frames."""
    layer = LAYERS[name][0]()
    x = np.random.default_rng(0).normal(size=(*REAL.shape, SIZE)).astype(np.float32)
    layer(x, REAL)
    references.randomize(layer)

    def run(x):
        output = layer(x, REAL)
        return output * REAL[..., None] if len(output.shape) == 3 else output

    return run, layer, x


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_its_formula_over_the_real_frames(name):
    run, layer, x = make_layer(name)
    assert_layer_close(run(x), LAYERS[name][1](x.astype(float), weights_of(layer)))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer_equal_finite_differences(name):
    run, layer, x = make_layer(name)
    assert_gradients_equal_finite_differences(layer, run, LAYERS[name][1], x)


# --- Model ----------------------------------------------------------------------------------------


@EVERY_POOLING
@pytest.mark.parametrize("positions", [0, 2, 8])
def test_the_model_equals_its_formula(pooling, positions):
    given = {"transformer_pooling": pooling, "transformer_positions": positions}
    model = model_references.build(NAME, **given)
    weights = weights_of(model)
    encoder, videos = sub_weights(weights, "encoder"), reference_frames(*make_videos())
    encodings = [encode(video, encoder, pooling) for video in videos]
    expected = model_references.reference_moe(encodings, sub_weights(weights, "classifier"), 2)
    for training in (False, True):
        assert_close(call(model, *make_videos(), training), expected)


@EVERY_POOLING
@pytest.mark.parametrize("positions", [0, 2])
def test_the_order_of_the_frames_matters_only_with_an_embedding_of_time(pooling, positions):
    given = {"transformer_pooling": pooling, "transformer_positions": positions}
    model, (frames, num_frames) = model_references.build(NAME, **given), make_videos()
    turned = frames.copy()
    for row, count in enumerate(num_frames):
        turned[row, :count] = turned[row, :count][::-1]
    expected = np.asarray(call(model, frames, num_frames))
    difference = np.abs(call(model, turned, num_frames) - expected).max(axis=1)
    several_frames = np.array(NUM_FRAMES) > 1
    assert np.all(difference[several_frames] > 1e-3) == bool(positions)
    assert np.all(difference < 1e-5) == (not positions)
    # A model that takes the order into account predicts best from as many frames as in training.
    assert model.default_samplings == (5 if positions else 0)


def test_dropout_sets_its_share_of_each_branch_to_zero_in_training_only():
    layer = transformer_models.TransformerBlock(64, 2, 8, 0.25)
    x = np.random.default_rng(1).normal(size=(4, 50, 64)).astype(np.float32)
    real = np.ones(x.shape[:2], bool)
    plain = layer(x, real)
    np.testing.assert_array_equal(layer(x, real), plain)
    layer.output_projection.kernel.assign(tf.zeros([8, 64]))  # Leaves the attention.
    added = np.asarray(layer(x, real) - x)
    dropped = np.asarray(layer(x, real, training=True) - x)
    is_zero = dropped == 0
    assert is_zero.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(dropped[~is_zero], added[~is_zero] / 0.75, rtol=1e-3, atol=1e-5)
    again = np.asarray(layer(x, real, training=True) - x)
    assert np.mean((again == 0) == is_zero) < 0.7


def test_dropout_is_part_of_the_model_and_its_states_are_saved():
    model = model_references.build(NAME, transformer_dropout=0.5)
    first, second = (np.asarray(call(model, *make_videos(), training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(call(model, *make_videos()), call(model, *make_videos()))
    known = {id(weight) for weight in model.weights}
    states = [variable for variable in model.variables if id(variable) not in known]
    assert len(states) == 1 + 2  # Of the sampling and of every block.
