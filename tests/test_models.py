"""Properties of every registered model; a new model joins the tables in small_models.py."""

import functools
import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import losses
import registry
from small_models import (
    CHANGED,
    FAMILIES,
    FRAME_LEVEL_MODELS,
    MODELS,
    NUM_CLASSES,
    RELATIVES,
    SMALL,
    D,
    build,
    for_one_stream,
    make_inputs,
    make_labels,
    marked,
    predict,
    shared,
    signature,
)

VARIANTS = pytest.mark.parametrize("variant", ["small", "changed"])
EVERY_MODEL = pytest.mark.parametrize("name", [marked(name) for name in MODELS])
EVERY_FRAME_LEVEL_MODEL = pytest.mark.parametrize(
    "name", [marked(name) for name in FRAME_LEVEL_MODELS]
)


@pytest.fixture(autouse=True)
def _same_initial_weights():
    keras.utils.set_random_seed(1)


def without_sampling(model, monkeypatch):
    """Makes a model use every frame during a test, also in training."""
    if model.frame_level:
        monkeypatch.setattr(model, "iterations", 0)
    return model


def training_loss(model, inputs, labels):
    label_loss = functools.partial(losses.CrossEntropyLoss(), labels)
    loss = label_loss(predict(model, inputs, training=True))
    return loss + model.auxiliary_loss(label_loss) + sum(model.losses, tf.constant(0.0))


def shapes(model):
    return {weight.path: tuple(weight.shape) for weight in model.weights}


@pytest.mark.parametrize("table", [SMALL, CHANGED])
def test_tables_cover_exactly_the_registered_models(table):
    assert sorted(table) == MODELS


@EVERY_MODEL
def test_changed_variant_differs_from_the_default_in_every_hyperparameter(name):
    changed = CHANGED[name]
    parameters = registry.hyperparameters(name, changed.get(registry.CLASSIFIER_ARGUMENT))
    assert set(changed) == set(parameters)
    unchanged = [key for key in changed if changed[key] == parameters[key].default]
    assert unchanged == []


@EVERY_MODEL
@VARIANTS
def test_every_trainable_weight_gets_a_gradient(name, variant):
    model = shared(name, variant)
    inputs, labels = make_inputs(name), make_labels(5)
    with tf.GradientTape() as tape:
        # Without the penalties, whose gradient also reaches weights that predict nothing.
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
def test_bytes_and_amount_of_padding_do_not_change_predictions(name, variant, training):
    model = shared(name, variant)
    inputs = make_inputs(name)
    expected = predict(model, inputs, training)
    rng = np.random.default_rng(5)
    for extra, tolerance in ((0, 0), (1, 1e-5), (9, 1e-5)):
        frames = np.pad(inputs["frames"], [(0, 0), (0, extra), (0, 0)])
        padding = np.arange(frames.shape[1]) >= inputs["num_frames"][:, None]
        frames[padding] = rng.integers(1, 256, frames[padding].shape)
        actual = predict(model, {**inputs, "frames": frames}, training)
        np.testing.assert_allclose(actual, expected, rtol=tolerance)


@EVERY_FRAME_LEVEL_MODEL
def test_frames_before_the_padding_change_predictions(name):
    model = shared(name)
    inputs = make_inputs(name)
    changed = inputs["frames"].copy()
    for row, length in enumerate(inputs["num_frames"]):
        changed[row, length - 1] = 255 - changed[row, length - 1]
    difference = predict(model, {**inputs, "frames": changed}) - predict(model, inputs)
    assert np.all(np.max(np.abs(difference), axis=1) > 1e-6)


@EVERY_MODEL
@VARIANTS
def test_a_batch_of_one_predicts_the_same_as_a_larger_batch(name, variant):
    model = shared(name, variant)
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
def test_one_training_step_lowers_the_loss_of_its_batch(name, variant, monkeypatch):
    model = without_sampling(shared(name, variant), monkeypatch)
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
def test_num_frames_may_have_any_integer_type(name):
    model = shared(name)
    inputs = make_inputs(name)
    wider = {**inputs, "num_frames": inputs["num_frames"].astype(np.int64)}
    np.testing.assert_array_equal(predict(model, wider), predict(model, inputs))


@pytest.mark.parametrize("name", [marked(name) for name in FAMILIES])
@pytest.mark.parametrize(("feature_sizes", "num_classes"), [((5,), 7), ((3, 1, 4), 1)])
def test_any_number_of_features_and_classes_is_accepted(name, feature_sizes, num_classes):
    small = for_one_stream(SMALL[name])
    model = build(name, num_classes=num_classes, feature_sizes=feature_sizes, **small)
    predictions = predict(model, make_inputs(name, (3, 2), size=sum(feature_sizes)))
    assert predictions.shape == (2, num_classes)
    assert np.all(np.isfinite(predictions))


@EVERY_MODEL
def test_a_model_rebuilt_from_its_resolved_hyperparameters_is_the_same(name):
    saved = json.loads(json.dumps(registry.resolve(name, CHANGED[name])))
    model, rebuilt = shared(name, "changed"), build(name, **saved)
    # The paths too: Keras must not continue its numbers of layers in the second model.
    assert shapes(rebuilt) == shapes(model)
    rebuilt.set_weights(model.get_weights())
    inputs = make_inputs(name)
    np.testing.assert_array_equal(predict(rebuilt, inputs), predict(model, inputs))
    np.testing.assert_array_equal(rebuilt.losses, model.losses)


def test_dropout_hides_a_share_of_the_encoding_from_the_classifier_in_training_only():
    size = {"soft_bof_hidden_size": 200}
    plain = build("SoftBoFModel", **size)
    dropping = build("SoftBoFModel", classifier_dropout=0.25, **size)
    assert {v.path for v in plain.variables} < {v.path for v in dropping.variables}
    assert plain.classifier_dropout is None
    dropping.set_weights(plain.get_weights())
    inputs, seen = make_inputs("SoftBoFModel"), {}
    np.testing.assert_array_equal(predict(dropping, inputs), predict(plain, inputs))
    for model in (plain, dropping):

        def classify(encoding, training, model=model):
            seen[model] = np.asarray(encoding)
            return encoding

        object.__setattr__(model, "classifier", classify)
        predict(model, inputs, training=True)
    is_zero = seen[dropping] == 0
    assert is_zero.mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_allclose(seen[dropping][~is_zero], seen[plain][~is_zero] / 0.75, rtol=1e-4)


# These change only the initial weights, or only training; tests of their layers show how.
WITHOUT_EFFECT_ON_PREDICTIONS = ("nonlocal_start", "transformer_dropout", "classifier_dropout")


def hyperparameters_of_its_own(name):
    """Returns the hyperparameters in the model's constructor; for some models also inherited ones.

    One model that copies sampled frames and one that counts them stand for what all frame-level
    models inherit.
    """
    own = inspect.signature(registry.model_class(name).__init__).parameters
    if name in ("FrameLevelLogisticModel", "SoftBoFModel"):
        own = CHANGED[name]
    return [key for key in CHANGED[name] if key in own and key not in WITHOUT_EFFECT_ON_PREDICTIONS]


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        marked(name, key, slow=[*FAMILIES[2:], *RELATIVES])
        for name in MODELS
        for key in hyperparameters_of_its_own(name)
    ],
)
def test_every_hyperparameter_has_an_effect(name, parameter):
    # The kind of sampling matters only where frames are sampled.
    base = {"iterations": 4} if name in FRAME_LEVEL_MODELS else {}
    changed = {parameter: CHANGED[name][parameter]}
    if parameter not in registry.hyperparameters(name):
        classifier = CHANGED[name][registry.CLASSIFIER_ARGUMENT]
        base[registry.CLASSIFIER_ARGUMENT] = classifier
    if changed.get("early_fusion"):
        base |= for_one_stream(SMALL[name])
    model, other = shared(name, **base), build(name, **{**base, **changed})
    if shapes(model) == shapes(other):
        other.set_weights(model.get_weights())
        inputs = make_inputs(name)
        options = {"num_samplings": 1} if model.frame_level else {}
        found = [predict(each, inputs, **options) for each in (model, other)]
        in_training = [training_loss(each, inputs, make_labels(5)) for each in (model, other)]
        assert not np.array_equal(*found) or in_training[0] != in_training[1]


@EVERY_MODEL
@VARIANTS
def test_calls_predict_alike(name, variant):
    model, inputs = shared(name, variant), make_inputs(name)
    np.testing.assert_array_equal(predict(model, inputs), predict(model, inputs))


@EVERY_FRAME_LEVEL_MODEL
@pytest.mark.parametrize("variant", [{"iterations": 4}, {"variant": "changed"}])
@pytest.mark.parametrize("num_samplings", [0, 1, 5])
def test_the_prediction_for_a_video_does_not_depend_on_its_batch(name, variant, num_samplings):
    model, inputs = shared(name, **variant), make_inputs(name, (6, 7, 2))
    assert model.iterations > 0
    options = {"num_samplings": num_samplings, "seed": 3}
    together = predict(model, inputs, **options)
    for row in range(3):
        eight = {key: np.repeat(values[row : row + 1], 8, axis=0) for key, values in inputs.items()}
        padding = [(0, 0), (0, row), (0, 0)]
        eight["frames"] = np.pad(eight["frames"], padding, constant_values=77)
        actual = predict(model, eight, **options)
        np.testing.assert_allclose(actual, [together[row]] * 8, rtol=1e-5)
    changes = np.any(predict(model, inputs, num_samplings=num_samplings, seed=4) != together)
    assert changes == (num_samplings > 0)


@EVERY_FRAME_LEVEL_MODEL
@VARIANTS
@pytest.mark.parametrize("num_samplings", [0, 3])
def test_pooling_and_projecting_one_after_the_other_encodes_and_classifies(
    name, variant, num_samplings
):
    model = shared(name, variant, iterations=4)
    inputs = make_inputs(name, [3, 5])
    pooled = model.pool_samplings(inputs, num_samplings, seed=2)
    size = model.pooled_size or model.embedding_size
    assert pooled.shape == (2, max(num_samplings, 1), size)
    encodings = model.project_samplings(pooled)
    embeddings = np.mean(encodings, axis=1)
    np.testing.assert_allclose(
        embeddings, model.embed(inputs, num_samplings, seed=2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        model.classify_samplings(encodings),
        model(inputs, num_samplings=num_samplings, seed=2),
        rtol=1e-5,
    )


@EVERY_FRAME_LEVEL_MODEL
def test_a_prediction_uses_every_frame_once_unless_the_model_is_worse_then(name, monkeypatch):
    model, inputs = shared(name, iterations=4), make_inputs(name, (6, 7, 2))
    default, once = (predict(model, inputs, num_samplings=number) for number in (None, 0))
    assert np.array_equal(default, once) == (model.default_samplings == 0)
    monkeypatch.setattr(model, "iterations", 0)
    np.testing.assert_array_equal(predict(model, inputs, num_samplings=5), once)


@pytest.mark.parametrize(
    "name",
    [
        marked(name, slow=FAMILIES[2:])
        for name in ("MoeModel", "DbofModel", "GruModel", "LFNLNetVLADModel")
    ],
)
def test_fit_with_cross_entropy_lowers_the_loss(name):
    model = build(name)
    inputs, labels = make_inputs(name, (5, 2, 8, 1, 4, 6)), make_labels(6)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=losses.CrossEntropyLoss())
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(3)
    history = model.fit(data, epochs=8, shuffle=False, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert history[-1] < history[0]


@pytest.mark.parametrize("name", [marked(name) for name in FAMILIES])
@VARIANTS
def test_one_traced_function_predicts_batches_of_every_shape(name, variant):
    model = shared(name, variant)
    traced = tf.function(model, input_signature=[signature(name)])
    for num_frames in [(3, 5), (1,)]:
        inputs = make_inputs(name, num_frames)
        np.testing.assert_allclose(traced(inputs), predict(model, inputs), rtol=1e-5)


def test_the_mixture_of_experts_takes_an_empty_batch():
    model = shared("MoeModel")
    assert model(tf.zeros([0, D])).shape == (0, NUM_CLASSES)


@EVERY_MODEL
def test_one_symbolic_call_creates_the_weights(name, monkeypatch):
    calls, call = [], registry.model_class(name).call

    def count(model, *arguments, **options):
        calls.append(model.name)
        return call(model, *arguments, **options)

    monkeypatch.setattr(registry.model_class(name), "call", count)
    model = build(name)
    assert calls == [model.name]
    assert model.built
