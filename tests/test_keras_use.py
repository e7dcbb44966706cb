"""Models are ordinary Keras models: saved, cloned and fitted, or refused with the reason."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import documents
import layers
import losses
import nonlocal_vlad
import recurrent
import registry
from small_models import (
    MODELS,
    NUM_CLASSES,
    D,
    build,
    make_inputs,
    make_labels,
    marked,
    predict,
    shared,
)
from utils import InputError

EVERY_MODEL = pytest.mark.parametrize("name", [marked(name) for name in MODELS])
POLICIES = pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float64"]
)


def check_same(restored, model, inputs):
    """Checks config, weights, penalties and predictions of a restored model."""
    assert type(restored) is type(model)
    assert restored.get_config() == model.get_config()
    assert [weight.path for weight in restored.weights] == [weight.path for weight in model.weights]
    np.testing.assert_array_equal(predict(restored, inputs), predict(model, inputs))
    np.testing.assert_array_equal(restored.losses, model.losses)


def dataset(name, num_batches=3):
    """Returns a dataset of unknown length, like those of the readers."""
    inputs, labels = make_inputs(name), make_labels(5)
    signature = tf.nest.map_structure(
        lambda values: tf.TensorSpec([None, *values.shape[1:]], values.dtype), (inputs, labels)
    )
    return tf.data.Dataset.from_generator(
        lambda: iter([(inputs, labels)] * num_batches), output_signature=signature
    )


@pytest.fixture
def global_policy(policy):
    """Sets Keras' global dtype policy during a test."""
    keras.config.set_dtype_policy(policy)
    yield policy
    keras.config.set_dtype_policy("float32")


# --- Saving ---


@EVERY_MODEL
def test_a_saved_model_and_a_clone_are_the_same_model(name, tmp_path):
    model = shared(name, "changed")
    model.save(tmp_path / "model.keras")
    check_same(keras.models.load_model(tmp_path / "model.keras"), model, make_inputs(name))
    clone = keras.models.clone_model(model)
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    check_same(clone, model, make_inputs(name))


@pytest.mark.parametrize("name", ["MoeModel", "DbofModel"])
def test_a_model_made_by_its_constructor_is_saved_with_all_arguments(name, tmp_path):
    inputs, given = make_inputs(name), {"moe_num_mixtures": 3, "moe_prob_gating": True}
    model = registry.model_class(name)(num_classes=NUM_CLASSES, feature_sizes=(6, 3), **given)
    predict(model, inputs)
    model.trainable = False
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    check_same(restored, model, inputs)
    assert not restored.trainable_weights
    config = model.get_config()
    assert given.items() <= config.items()
    assert set(registry.hyperparameters(name)) <= set(config)


def test_a_saved_model_keeps_which_layers_are_frozen(tmp_path):
    name = "DbofModel"
    model = build(name)
    for layer in model.layers:
        layer.trainable = layer is model.classifier
    model.compile("adam", losses.CrossEntropyLoss())
    model.fit(make_inputs(name), make_labels(5), verbose=0)
    model.save(tmp_path / "model.keras")
    trained = {weight.path for weight in model.trainable_weights}
    assert {path.split("/")[1] for path in trained} == {"classifier"}
    restored = keras.models.load_model(tmp_path / "model.keras")
    for same in (restored, keras.models.clone_model(model)):
        assert {weight.path for weight in same.trainable_weights} == trained
        assert same.get_config() == model.get_config()
    assert len(restored.optimizer.variables) == len(model.optimizer.variables)


@pytest.mark.parametrize("name", ["MoeModel", "DbofModel"])
def test_a_model_is_part_of_a_functional_model_and_of_a_saved_graph(name, tmp_path):
    model, inputs = shared(name), make_inputs(name)
    symbolic = model.input_spec_tensors()
    whole = keras.Model(symbolic, model(symbolic))
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_array_equal(whole.predict(inputs, verbose=0), expected)
    model.export(tmp_path / "model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "model")
    served = exported.serve(tf.nest.map_structure(tf.constant, inputs))
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_inside_a_model_can_be_cloned():
    classifier = shared("DbofModel").classifier
    clone = keras.models.clone_model(classifier)
    clone.set_weights(classifier.get_weights())
    assert clone.get_config() == classifier.get_config()
    encoding = np.eye(5, dtype=np.float32)
    np.testing.assert_array_equal(clone(encoding), classifier(encoding))


def test_a_saved_model_keeps_its_matmul_precision(tmp_path):
    name = "MoeModel"
    model = build(name, moe_prob_gating=True, matmul_policy="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    check_same(restored, model, make_inputs(name))
    policies = {
        layer.dtype_policy.name
        for layer in layers.sublayers(restored)
        if isinstance(layer, layers.MatmulLayer)
    }
    assert policies == {"mixed_bfloat16"}


def test_the_example_model_needs_nothing_but_the_decorator_to_be_saved(tmp_path, monkeypatch):
    code = documents.own_models_python("class AttentionModel")
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    exec(compile(code, "my_models.py", "exec"), {"__name__": "my_models"})
    model = build("AttentionModel", attention_units=5)
    model.save(tmp_path / "model.keras")
    inputs = make_inputs("DbofModel")
    check_same(keras.models.load_model(tmp_path / "model.keras"), model, inputs)


def test_a_model_that_is_not_registered_is_not_saved(tmp_path):
    class ForgottenModel(registry.model_class("LogisticModel")):
        pass

    model = ForgottenModel(num_classes=NUM_CLASSES, feature_sizes=(D,))
    model(np.zeros([1, D], np.float32))
    with pytest.raises(InputError, match="unknown model 'ForgottenModel'"):
        model.save(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.BatchNorm(decay=0.5, epsilon=0.1),
        lambda: layers.Linear(3, use_bias=False),
        layers.ContextGating,
        lambda: nonlocal_vlad.SoftAssignment(4),
        lambda: nonlocal_vlad.NetVLAD(4, centers=False),
        lambda: nonlocal_vlad.NonLocalBlock(3, scale=0.5, pairwise="dot_product"),
        lambda: nonlocal_vlad.SoftBagOfFeatures(4),
        lambda: recurrent.GRU(3),
        lambda: recurrent.GRUStack(3, 2),
    ],
)
def test_layers_are_rebuilt_from_their_configs(make):
    with layers.matmul_policy("mixed_bfloat16"):
        layer = make()
    restored = type(layer).from_config(layer.get_config())
    assert restored.get_config() == layer.get_config()
    assert restored.dtype_policy.name == layer.dtype_policy.name


# --- Training ---


def test_fit_saves_whole_models_and_resumes_them(tmp_path):
    name = "MoeModel"
    model = build(name)
    model.compile("adam", losses.CrossEntropyLoss(epsilon=0.01))
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "epoch{epoch}.keras")
    data = dataset(name)
    model.fit(data, epochs=2, verbose=0, validation_data=data, callbacks=[saving])
    restored = keras.models.load_model(tmp_path / "epoch2.keras")
    check_same(restored, model, make_inputs(name))
    assert restored.loss.get_config() == model.loss.get_config()
    assert restored.loss.epsilon == 0.01
    histories = [each.fit(data, verbose=0).history["loss"] for each in (model, restored)]
    assert histories[0] == histories[1]


def test_a_dataset_of_unknown_length_gives_no_warning():
    model = build("MoeModel")
    model.compile("sgd", losses.CrossEntropyLoss())
    data = dataset("MoeModel")
    model.fit(data, verbose=0)
    assert np.isfinite(model.evaluate(data, verbose=0))
    assert model.predict(data, verbose=0).shape == (15, NUM_CLASSES)


def test_warnings_that_mean_something_stay():
    model = build("MoeModel")
    model.compile("sgd", losses.CrossEntropyLoss())
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(dataset("MoeModel"), steps_per_epoch=5, verbose=0)
    with pytest.warns(UserWarning, match="`shuffle=True` was passed"):
        model.fit(dataset("MoeModel"), shuffle=True, verbose=0)


def test_class_weights_are_refused_because_a_video_has_several_labels():
    model = build("MoeModel")
    model.compile("sgd", losses.CrossEntropyLoss())
    inputs, labels = make_inputs("MoeModel"), make_labels(5)
    weights = {0: 1.0, 1: 5.0}
    train = functools.partial(model.train_on_batch, inputs, labels)
    fit = functools.partial(model.fit, inputs, labels, verbose=0)
    for call in (train, fit):
        with pytest.raises(InputError, match=r"class_weight .* several labels.* sample_weight"):
            call(class_weight=weights)
        call(sample_weight=np.ones(5))


# --- Inputs ---


FRAMES = np.zeros((2, 3, D), np.uint8)
FRAMES_EXPECTED = rf"takes uint8 \[videos, frames, {D}\]\. Received: "
VECTORS_EXPECTED = rf"takes float32 \[videos, {D}\]\. Received: "


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES.astype(np.float32), FRAMES_EXPECTED + r"float32 .*YOUTUBE8M\.quantize"),
        (FRAMES.astype(np.float64), FRAMES_EXPECTED + "float32 "),
        (FRAMES.astype(np.int64), FRAMES_EXPECTED + "int64 "),
        (FRAMES[..., 1:], FRAMES_EXPECTED + rf"uint8 \[2, 3, {D - 1}\]"),
        (FRAMES[0], FRAMES_EXPECTED + rf"uint8 \[3, {D}\]"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "predict"])
def test_frames_that_are_not_the_stored_bytes_are_refused(frames, message, method):
    model = shared("DbofModel")
    inputs = {"frames": frames, "num_frames": np.array([3] * len(frames))}
    with pytest.raises(InputError, match=message):
        getattr(model, method)(inputs)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (FRAMES[:, 0], VECTORS_EXPECTED + r"uint8 .*YOUTUBE8M\.dequantize"),
        (np.zeros((2, D + 1)), VECTORS_EXPECTED + rf"float32 \[2, {D + 1}\]"),
        (np.zeros((2, 3, D)), VECTORS_EXPECTED + rf"float32 \[2, 3, {D}\]"),
        ({"frames": FRAMES, "num_frames": np.array([3, 3])}, "one vector per video, not frames"),
    ],
)
def test_vectors_that_are_not_mean_features_are_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        shared("MoeModel")(vectors)


@pytest.mark.parametrize("num_frames", [np.int32(3), np.full([2, 1], 3)])
def test_numbers_of_frames_that_are_not_one_per_video_are_refused(num_frames):
    message = r"num_frames must be \[videos\], one number per video\. Received: \["
    for name in ("DbofModel", "GruModel"):
        with pytest.raises(InputError, match=message):
            shared(name)({"frames": FRAMES, "num_frames": num_frames})


@pytest.mark.parametrize("wrong", [np.zeros(D), np.zeros((2, 3, D))])
def test_vectors_of_another_rank_are_refused_after_right_ones(wrong):
    model = build("LogisticModel")
    for vectors in (np.zeros((2, D)), np.zeros((3, D)), np.zeros((2, D))):
        model.predict(vectors, verbose=0)
    with pytest.raises(InputError, match=VECTORS_EXPECTED + "float32 "):
        model.predict(wrong, verbose=0)


def test_an_array_of_frames_without_their_numbers_is_refused():
    with pytest.raises(InputError, match="DbofModel takes a dict of frames and num_frames"):
        shared("DbofModel")(FRAMES)


# --- Global dtype policies ---


@POLICIES
@pytest.mark.usefixtures("global_policy")
@pytest.mark.parametrize("name", ["MoeModel", "DbofModel"])
def test_a_global_dtype_policy_is_refused_with_the_way_to_choose_the_precision(name, policy):
    message = rf"dtype policy is {policy}.*build_model\('mixed_bfloat16'\).*--compute_dtype"
    with pytest.raises(InputError, match=message):
        build(name)


@pytest.mark.parametrize("floatx", ["float16", "float64"])
def test_another_float_type_of_keras_is_refused(floatx, monkeypatch):
    monkeypatch.setattr(keras.config, "floatx", lambda: floatx)
    with pytest.raises(InputError, match=rf"floatx {floatx}.*keras\.config\.set_floatx"):
        build("MoeModel")


@POLICIES
@pytest.mark.parametrize(
    "make",
    [
        layers.BatchNorm,
        lambda: layers.Linear(3, batch_norm=True),
        layers.ContextGating,
        lambda: nonlocal_vlad.SoftAssignment(4),
    ],
)
@pytest.mark.usefixtures("global_policy")
def test_layers_ignore_a_global_dtype_policy(make):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    outputs = make()(x, training=True)
    assert outputs.dtype == tf.float32
