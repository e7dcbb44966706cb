"""What every registered model must do; a new model is added to the three tables."""

import functools
import inspect
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import losses
import registry

FEATURE_SIZES = (6, 3)
D = sum(FEATURE_SIZES)
NUM_CLASSES = 4


def moe_parameters(width, num_classes, mixtures=2):
    gates = width * num_classes * (mixtures + 1)
    experts = width * num_classes * mixtures + num_classes * mixtures
    return gates + experts


def gru_parameters(width, cells):
    return 3 * cells * (width + cells + 1)


def lstm_parameters(width, cells):
    return 4 * cells * (width + cells + 1)


def batch_norm_parameters(width):
    # Scale, offset, mean and variance, and the number of updates.
    return 4 * width + 1


def gating_parameters(width):
    return width * width + batch_norm_parameters(width)


def vlad_parameters(sizes, clusters, embeddings, mixtures, *, centers=True):
    """Streams of the given sizes into 1024 hidden units, then gated, classified, gated again."""
    streams = list(zip(sizes, clusters, embeddings, strict=True))
    kernels = sum(size * count for size, count, _ in streams)
    return (
        batch_norm_parameters(1152)
        + kernels * (2 if centers else 1)
        + sum(batch_norm_parameters(count) for count in clusters)
        # Theta, phi, g and out.
        + sum(4 * size * embedding for size, _, embedding in streams)
        + kernels * 1024
        + 1024
        + gating_parameters(1024)
        + moe_parameters(1024, 3862, mixtures)
        + gating_parameters(3862)
    )


def soft_bof_parameters(clusters):
    return (
        batch_norm_parameters(1152)
        + sum(size * count for size, count in zip((1024, 128), clusters, strict=True))
        + sum(batch_norm_parameters(count) for count in clusters)
        + sum(clusters) * 1024
        + 1024
        + moe_parameters(1024, 3862)
    )


# Weights of the default model for 3862 classes of 1024 + 128 features, counted by hand.
PARAMETER_COUNTS = {
    "DbofModel": 1152 * 8192
    + 8192 * 1024
    + sum(batch_norm_parameters(width) for width in (1152, 8192, 1024))
    + moe_parameters(1024, 3862),
    "EFNLNetVLADModel": vlad_parameters([1152], [64], [64], 2),
    "FrameLevelLogisticModel": 1152 * 3862 + 3862,
    "GruModel": gru_parameters(1152, 1200)
    + gru_parameters(1200, 1200)
    + moe_parameters(2 * 1200, 3862),
    "LFNLNetRVLADModel": vlad_parameters([1024, 128], [64, 32], [512, 64], 4, centers=False),
    "LFNLNetVLADModel": vlad_parameters([1024, 128], [64, 32], [64, 32], 8),
    "LogisticModel": 1152 * 3862 + 3862,
    "LstmModel": lstm_parameters(1152, 1024)
    + lstm_parameters(1024, 1024)
    + moe_parameters(1024, 3862),
    "MoeModel": moe_parameters(1152, 3862),
    "SoftBoFModel": soft_bof_parameters([4000, 500]),
}

# Size in MiB of the models of the paper, in its Table 1, and ours by arithmetic.
PAPER_SIZES = {
    "LFNLNetVLADModel": (593, PARAMETER_COUNTS["LFNLNetVLADModel"]),
    "LFNLNetRVLADModel": (478, PARAMETER_COUNTS["LFNLNetRVLADModel"]),
    "EFNLNetVLADModel": (427, PARAMETER_COUNTS["EFNLNetVLADModel"]),
    "SoftBoFModel with 4000 clusters": (109, PARAMETER_COUNTS["SoftBoFModel"]),
    "SoftBoFModel with 8000 clusters": (143, soft_bof_parameters([8000, 1000])),
    "GruModel": (243, PARAMETER_COUNTS["GruModel"]),
}

SMALL_NETVLAD = {
    "iterations": 0,
    "netvlad_cluster_size": "4,3",
    "netvlad_hidden_size": 5,
    "nonlocal_embedding": "2,3",
}
CHANGED_NETVLAD = {
    "iterations": 3,
    "sample_random_frames": False,
    "video_level_classifier_model": "LogisticModel",
    "l2_penalty": 0.5,
    "netvlad_cluster_size": "3,5",
    "netvlad_hidden_size": 6,
    "nonlocal_block": False,
    "nonlocal_embedding": "3,2",
    "nonlocal_scale": 0.5,
    "nonlocal_pairwise": "dot_product",
    "gating": False,
}

# Hyper-parameters of a model that is small, and otherwise as by default.
SMALL = {
    "DbofModel": {"iterations": 0, "dbof_cluster_size": 8, "dbof_hidden_size": 5},
    "EFNLNetVLADModel": SMALL_NETVLAD,
    "FrameLevelLogisticModel": {},
    "GruModel": {"gru_cells": 5},
    "LFNLNetRVLADModel": SMALL_NETVLAD,
    "LFNLNetVLADModel": SMALL_NETVLAD,
    "LogisticModel": {},
    "LstmModel": {"lstm_cells": 5},
    "MoeModel": {},
    "SoftBoFModel": {
        "iterations": 0,
        "soft_bof_cluster_size": "6,4",
        "soft_bof_hidden_size": 5,
    },
}

# A small model with another value than the default for every hyper-parameter.
CHANGED = {
    "DbofModel": {
        "iterations": 3,
        "sample_random_frames": False,
        "video_level_classifier_model": "LogisticModel",
        "l2_penalty": 0.5,
        "dbof_cluster_size": 7,
        "dbof_hidden_size": 6,
        "dbof_pooling_method": "average",
        "dbof_add_batch_norm": False,
    },
    "EFNLNetVLADModel": {**CHANGED_NETVLAD, "early_fusion": False, "netvlad_centers": False},
    "FrameLevelLogisticModel": {
        "iterations": 3,
        "sample_random_frames": False,
        "video_level_classifier_model": "MoeModel",
        "moe_num_mixtures": 3,
        "moe_l2": 0.5,
        "moe_prob_gating": True,
    },
    "GruModel": {
        "iterations": 3,
        "sample_random_frames": False,
        "video_level_classifier_model": "LogisticModel",
        "l2_penalty": 0.5,
        "gru_cells": 4,
        "gru_layers": 1,
    },
    "LFNLNetRVLADModel": {**CHANGED_NETVLAD, "early_fusion": True, "netvlad_centers": True},
    "LFNLNetVLADModel": {**CHANGED_NETVLAD, "early_fusion": True, "netvlad_centers": False},
    "LogisticModel": {"l2_penalty": 0.5},
    "LstmModel": {
        "iterations": 3,
        "sample_random_frames": False,
        "video_level_classifier_model": "LogisticModel",
        "l2_penalty": 0.5,
        "lstm_cells": 4,
        "lstm_layers": 1,
    },
    "MoeModel": {"moe_num_mixtures": 3, "moe_l2": 0.5, "moe_prob_gating": True},
    "SoftBoFModel": {
        "iterations": 3,
        "sample_random_frames": False,
        "video_level_classifier_model": "LogisticModel",
        "l2_penalty": 0.5,
        "soft_bof_cluster_size": "5",
        "soft_bof_hidden_size": 6,
        "gating": True,
    },
}

MODELS = list(registry.models())
FRAME_LEVEL_MODELS = [name for name, model in registry.models().items() if model.frame_level]
VARIANTS = pytest.mark.parametrize("variant", ["small", "changed"])
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_FRAME_LEVEL_MODEL = pytest.mark.parametrize("name", FRAME_LEVEL_MODELS)


@pytest.fixture(autouse=True)
def _same_initial_weights():
    keras.utils.set_random_seed(1)


def build(name, variant="small", *, num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **other):
    arguments = {**{"small": SMALL, "changed": CHANGED}[variant].get(name, {}), **other}
    return registry.build_model(
        name, num_classes=num_classes, feature_sizes=feature_sizes, **arguments
    )


def shared(name, variant="small", **other):
    """A model that tests share, as building takes its time; it must be left as it was."""
    given = {"small": SMALL, "changed": CHANGED}[variant].get(name, {})
    return _build_once(name, **registry.resolve(name, {**given, **other}))


@functools.cache
def _build_once(name, **arguments):
    return registry.build_model(
        name, num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **arguments
    )


def without_sampling(name):
    """Arguments of a model that uses every frame, so that it predicts the same in every call."""
    return {"iterations": 0} if name in FRAME_LEVEL_MODELS else {}


def make_inputs(name, num_frames=(3, 2, 5, 1, 4), *, size=D, seed=0):
    """Inputs of as many videos as there are numbers of frames."""
    rng = np.random.default_rng(seed)
    if name not in FRAME_LEVEL_MODELS:
        return rng.normal(size=(len(num_frames), size)).astype(np.float32)
    frames = rng.integers(0, 256, (len(num_frames), max(num_frames), size), dtype=np.uint8)
    for row, length in enumerate(num_frames):
        frames[row, length:] = 0
    return {"frames": frames, "num_frames": np.array(num_frames, np.int32)}


def make_labels(count, num_classes=NUM_CLASSES, seed=0):
    labels = np.random.default_rng(seed).random((count, num_classes)) < 0.4
    return labels.astype(np.float32)


def predict(model, inputs, training=False):
    """Predictions after setting the sampling of frames to its start."""
    if isinstance(inputs, dict):
        model.sampling_seed.state.assign([3, 0])
    return model(tf.nest.map_structure(tf.constant, inputs), training=training)


def training_loss(model, inputs, labels):
    penalty = sum(model.losses, tf.constant(0.0))
    return losses.CrossEntropyLoss()(labels, predict(model, inputs, training=True)) + penalty


def shapes(model):
    return {weight.path: tuple(weight.shape) for weight in model.weights}


@pytest.mark.parametrize("table", [PARAMETER_COUNTS, SMALL, CHANGED])
def test_tables_cover_exactly_the_registered_models(table):
    assert sorted(table) == MODELS


@EVERY_MODEL
def test_changed_variant_differs_from_the_default_in_every_hyperparameter(name):
    changed = CHANGED[name]
    parameters = registry.hyperparameters(name, changed.get(registry.CLASSIFIER_ARGUMENT))
    assert set(changed) == set(parameters)
    unchanged = [key for key in changed if changed[key] == parameters[key].default]
    assert unchanged == []


@pytest.fixture
def full_size(monkeypatch):
    """Builds a model for 3862 classes of 1024 + 128 features, with weights of 0.

    Random weights of full size take seconds.
    """
    for kind in ("GlorotUniform", "Orthogonal", "RandomNormal"):
        zeros = keras.initializers.Zeros.__call__
        monkeypatch.setattr(getattr(keras.initializers, kind), "__call__", zeros)
    return functools.partial(registry.build_model, num_classes=3862, feature_sizes=(1024, 128))


@EVERY_MODEL
def test_default_model_has_the_exact_number_of_parameters(name, full_size):
    model = full_size(name)
    count = sum(math.prod(weight.shape) for weight in model.weights)
    # Seed generators have a state of two numbers each, which is no parameter.
    assert (count, model.count_params()) == (PARAMETER_COUNTS[name],) * 2


def test_soft_bof_of_8000_clusters_has_the_exact_number_of_parameters(full_size):
    model = full_size("SoftBoFModel", soft_bof_cluster_size="8000,1000")
    assert model.count_params() == soft_bof_parameters([8000, 1000])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (PARAMETER_COUNTS["LFNLNetVLADModel"], 154_970_737),
        (PARAMETER_COUNTS["LFNLNetRVLADModel"], 125_099_545),
        (PARAMETER_COUNTS["EFNLNetVLADModel"], 111_710_060),
        (PARAMETER_COUNTS["SoftBoFModel"], 28_572_799),
        (soft_bof_parameters([8000, 1000]), 37_358_799),
        (PARAMETER_COUNTS["GruModel"], 63_466_124),
    ],
)
def test_arithmetic_of_the_papers_models_comes_to_their_known_numbers(count, expected):
    assert count == expected


def test_papers_models_have_the_sizes_of_its_table():
    sizes = {name: 4 * count / 2**20 for name, (_, count) in PAPER_SIZES.items()}
    assert sizes == pytest.approx({name: size for name, (size, _) in PAPER_SIZES.items()}, rel=5e-3)
    assert sum(sizes.values()) == pytest.approx(1988, rel=5e-3)


@EVERY_MODEL
@VARIANTS
def test_every_trainable_weight_gets_a_gradient(name, variant):
    model = shared(name, variant)
    inputs, labels = make_inputs(name), make_labels(5)
    with tf.GradientTape() as tape:
        # Without the penalties, which would give a gradient to a weight that predicts nothing.
        loss = losses.CrossEntropyLoss()(labels, predict(model, inputs, training=True))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    without = {
        weight.path
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
        if not np.any(gradient)
    }
    assert model.trainable_weights
    assert all(gradient is not None for gradient in gradients)
    assert without <= references.WITHOUT_EFFECT


@EVERY_FRAME_LEVEL_MODEL
@VARIANTS
@pytest.mark.parametrize("training", [False, True])
def test_bytes_in_padding_change_no_prediction(name, variant, training):
    model = shared(name, variant)
    inputs = make_inputs(name)
    expected = predict(model, inputs, training)
    rng = np.random.default_rng(5)
    garbage = inputs["frames"].copy()
    for row, length in enumerate(inputs["num_frames"]):
        garbage[row, length:] = rng.integers(1, 256, garbage[row, length:].shape)
    assert np.any(garbage != inputs["frames"])
    actual = predict(model, {**inputs, "frames": garbage}, training)
    np.testing.assert_array_equal(actual, expected)


@EVERY_FRAME_LEVEL_MODEL
@VARIANTS
@pytest.mark.parametrize("training", [False, True])
def test_amount_of_padding_changes_no_prediction(name, variant, training):
    model = shared(name, variant)
    inputs = make_inputs(name)
    expected = predict(model, inputs, training)
    for extra in (1, 9):
        padded = np.pad(inputs["frames"], [(0, 0), (0, extra), (0, 0)], constant_values=77)
        actual = predict(model, {**inputs, "frames": padded}, training)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@EVERY_FRAME_LEVEL_MODEL
def test_frames_before_the_padding_change_the_prediction(name):
    model = shared(name, **without_sampling(name))
    inputs = make_inputs(name)
    changed = inputs["frames"].copy()
    for row, length in enumerate(inputs["num_frames"]):
        changed[row, length - 1] = 255 - changed[row, length - 1]
    difference = predict(model, {**inputs, "frames": changed}) - predict(model, inputs)
    assert np.all(np.max(np.abs(difference), axis=1) > 1e-6)


@EVERY_MODEL
@VARIANTS
def test_batch_of_one_predicts_as_a_batch_of_many(name, variant):
    model = shared(name, variant, **without_sampling(name))
    inputs = make_inputs(name)
    together = predict(model, inputs)
    for row in (0, 3):
        alone = tf.nest.map_structure(lambda values, row=row: values[row : row + 1], inputs)
        np.testing.assert_allclose(predict(model, alone)[0], together[row], rtol=1e-5)


@EVERY_MODEL
@VARIANTS
@pytest.mark.parametrize("training", [False, True])
def test_predictions_are_float32_probabilities_of_every_class(name, variant, training):
    predictions = predict(shared(name, variant), make_inputs(name), training)
    assert predictions.dtype == tf.float32
    assert predictions.shape == (5, NUM_CLASSES)
    assert np.all((predictions >= 0) & (predictions <= 1))
    assert np.ptp(predictions) > 0


@EVERY_MODEL
@VARIANTS
def test_one_training_step_lowers_the_loss_of_its_batch(name, variant):
    model = shared(name, variant, **without_sampling(name))
    initial_weights = model.get_weights()
    inputs, labels = make_inputs(name), make_labels(5)
    with tf.GradientTape() as tape:
        before = training_loss(model, inputs, labels)
    gradients = tape.gradient(before, [weight.value for weight in model.trainable_weights])
    keras.optimizers.SGD(1e-3).apply(gradients, model.trainable_weights)
    after = training_loss(model, inputs, labels)
    model.set_weights(initial_weights)
    assert after < before


@EVERY_MODEL
@VARIANTS
def test_weights_have_different_paths(name, variant):
    model = shared(name, variant)
    assert len(shapes(model)) == len(model.weights)


@EVERY_FRAME_LEVEL_MODEL
def test_number_of_frames_may_be_of_any_integer_type(name):
    model = shared(name)
    inputs = make_inputs(name)
    wider = {**inputs, "num_frames": inputs["num_frames"].astype(np.int64)}
    np.testing.assert_array_equal(predict(model, wider), predict(model, inputs))


@EVERY_MODEL
@pytest.mark.parametrize(("feature_sizes", "num_classes"), [((5,), 7), ((3, 1, 4), 1)])
def test_any_number_of_features_and_classes_is_accepted(name, feature_sizes, num_classes):
    model = build(name, num_classes=num_classes, feature_sizes=feature_sizes)
    predictions = predict(model, make_inputs(name, (3, 2), size=sum(feature_sizes)))
    assert predictions.shape == (2, num_classes)
    assert np.all(np.isfinite(predictions))


@EVERY_MODEL
@VARIANTS
def test_model_rebuilt_from_its_resolved_hyperparameters_is_the_same(name, variant):
    given = {"small": SMALL, "changed": CHANGED}[variant][name]
    saved = json.loads(json.dumps(registry.resolve(name, given)))
    model, rebuilt = shared(name, variant), build(name, **saved)
    # Also the paths, which a second model in the same process must not count up.
    assert shapes(rebuilt) == shapes(model)
    rebuilt.set_weights(model.get_weights())
    inputs = make_inputs(name)
    np.testing.assert_array_equal(predict(rebuilt, inputs), predict(model, inputs))
    np.testing.assert_array_equal(rebuilt.losses, model.losses)


def hyperparameters_of_its_own(name):
    """Those of `CHANGED` that the model does not take just as another registered model does."""
    model, *bases = inspect.getmro(registry.model_class(name))
    if not any(base.__name__ in MODELS for base in bases):
        return list(CHANGED[name])
    return [key for key in CHANGED[name] if key in inspect.signature(model.__init__).parameters]


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, parameter) for name in MODELS for parameter in hyperparameters_of_its_own(name)],
)
def test_every_hyperparameter_has_an_effect(name, parameter):
    # The manner of sampling shows only where frames are sampled.
    base = {"iterations": 4} if name in FRAME_LEVEL_MODELS else {}
    changed = {parameter: CHANGED[name][parameter]}
    if parameter not in registry.hyperparameters(name):
        classifier = CHANGED[name][registry.CLASSIFIER_ARGUMENT]
        base[registry.CLASSIFIER_ARGUMENT] = classifier
    model, other = shared(name, **base), build(name, **{**base, **changed})
    if shapes(model) == shapes(other):
        other.set_weights(model.get_weights())
        inputs = make_inputs(name)
        same_losses = np.array_equal(model.losses, other.losses)
        assert not (same_losses and np.array_equal(predict(model, inputs), predict(other, inputs)))


@EVERY_MODEL
@VARIANTS
def test_inference_without_sampling_is_deterministic(name, variant):
    model = shared(name, variant, **without_sampling(name))
    inputs = tf.nest.map_structure(tf.constant, make_inputs(name))
    np.testing.assert_array_equal(model(inputs), model(inputs))


@EVERY_FRAME_LEVEL_MODEL
@pytest.mark.parametrize("sampling", [{"iterations": 4}, {"variant": "changed"}])
def test_inference_with_sampling_depends_on_the_state_of_the_seed_alone(name, sampling):
    model = shared(name, **sampling)
    assert model.iterations > 0
    inputs = tf.nest.map_structure(tf.constant, make_inputs(name, (6, 7, 7)))
    model.sampling_seed.state.assign([3, 0])
    first, second = model(inputs), model(inputs)
    model.sampling_seed.state.assign([3, 0])
    np.testing.assert_array_equal([model(inputs), model(inputs)], [first, second])
    assert np.any(first != second)


@EVERY_MODEL
def test_fit_with_cross_entropy_lowers_the_loss(name):
    model = build(name)
    inputs, labels = make_inputs(name, (5, 2, 8, 1, 4, 6)), make_labels(6)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=losses.CrossEntropyLoss())
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(3)
    history = model.fit(data, epochs=8, shuffle=False, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert history[-1] < history[0]


@EVERY_MODEL
@VARIANTS
def test_one_traced_function_predicts_batches_of_every_shape(name, variant):
    model = shared(name, variant)
    if name in FRAME_LEVEL_MODELS:
        signature = {
            "frames": tf.TensorSpec([None, None, D], tf.uint8),
            "num_frames": tf.TensorSpec([None], tf.int32),
        }
    else:
        signature = tf.TensorSpec([None, D], tf.float32)
    traced = tf.function(model, input_signature=[signature])
    for num_frames in [(3, 5), (1,)]:
        inputs = make_inputs(name, num_frames)
        expected = predict(model, inputs)
        if name in FRAME_LEVEL_MODELS:
            model.sampling_seed.state.assign([3, 0])
        np.testing.assert_allclose(traced(inputs), expected, rtol=1e-5)


def test_the_mixture_of_experts_takes_no_videos():
    model = shared("MoeModel", "small")
    assert model(tf.zeros([0, D])).shape == (0, NUM_CLASSES)
