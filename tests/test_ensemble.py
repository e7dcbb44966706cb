"""Ensembles: weighted means, samplings, chunks of a batch, fitted weights."""

import numpy as np
import pytest
import tensorflow as tf

import ensemble
import layer_references
import small_models
from ensemble import Ensemble
from run_config import RunConfig
from small_models import FAMILIES, FEATURE_SIZES, NUM_CLASSES, marked
from utils import InputError

ITERATIONS = {"LFNLNetVLADModel": 6, "SoftBoFModel": 6, "DbofModel": 6, "GruModel": 0}
SAMPLING = [name for name, iterations in ITERATIONS.items() if iterations]
EVERY_MODEL = pytest.mark.parametrize("name", ITERATIONS)


@pytest.fixture(scope="module")
def models():
    """Models that sample frames and one that does not, by name."""
    found = {}
    for name, iterations in ITERATIONS.items():
        found[name] = small_models.build(name, iterations=iterations)
        layer_references.randomize(found[name])
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.03)]
)
@pytest.mark.parametrize("name", [marked(name, slow=FAMILIES[2:]) for name in FAMILIES])
def test_a_frozen_model_predicts_as_the_trained_one(name, dtype, tolerance, monkeypatch):
    given = {"num_classes": NUM_CLASSES, "feature_sizes": FEATURE_SIZES}
    config = RunConfig(name, hyperparameters=small_models.SMALL[name], **given)
    trained, inputs = config.build_model(), small_models.make_inputs(name, (9, 2, 7, 5))
    for _ in range(3):  # Statistics of batch normalization.
        small_models.predict(trained, inputs, training=True)
    monkeypatch.setattr(
        ensemble.checkpoints,
        "restore_weights",
        lambda model, *_: model.set_weights(trained.get_weights()),
    )
    frozen = ensemble.frozen_model(config, dtype)
    ensemble.restore_frozen(frozen, config, "checkpoint")
    difference = np.abs(
        small_models.predict(frozen, inputs) - small_models.predict(trained, inputs)
    )
    assert difference.max() < tolerance
    assert (difference.max() > 0) or dtype == "float32"
    assert ensemble.count_parameters(frozen) == trained.count_params()
    kernels = {weight.dtype for weight in frozen.weights if weight.name == "kernel"}
    assert kernels == {dtype} or name == "LstmModel"


def small_config(name, **hyperparameters):
    given = {"num_classes": NUM_CLASSES, "feature_sizes": FEATURE_SIZES}
    hyperparameters = {**small_models.SMALL[name], **hyperparameters}
    return RunConfig(name, hyperparameters=hyperparameters, **given)


MIXES_CLASSES = {"LFNLNetVLADModel", "LFNLNetRVLADModel", "EFNLNetVLADModel", "NetFVModel"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("SoftBoFModel", dtype) for dtype in ("bfloat16", "int8")),
        *(("MixNeXtVLADModel", "float32"), ("LFNLNetVLADModel", "float32")),
        *(
            pytest.param(name, "float32", marks=pytest.mark.slow)
            for name in small_models.SMALL
            if name not in ("MixNeXtVLADModel", "LFNLNetVLADModel")
        ),
    ],
)
def test_some_classes_are_predicted_as_among_all(name, dtype, monkeypatch):
    config, classes = small_config(name), [1, 3]
    trained, inputs = config.build_model(), small_models.make_inputs(name, (9, 2))
    layer_references.randomize(trained)
    monkeypatch.setattr(
        ensemble.checkpoints,
        "restore_weights",
        lambda model, *_: model.set_weights(trained.get_weights()),
    )
    full, some = (ensemble.frozen_model(config, dtype, classes=given) for given in (None, classes))
    ensemble.restore_frozen(full, config, "checkpoint")
    ensemble.restore_frozen(some, config, "checkpoint", classes=classes)
    assert some.num_classes == (NUM_CLASSES if name in MIXES_CLASSES else 2)
    expected = Ensemble([full])(inputs).numpy()[:, classes]
    np.testing.assert_allclose(Ensemble([some], classes=classes)(inputs), expected, atol=1e-6)


def test_an_ensemble_predicts_some_classes_by_models_of_these_and_of_all_classes(monkeypatch):
    configs = [small_config("SoftBoFModel", moe_prob_gating=mixes) for mixes in (False, True)]
    trained, inputs = [], small_models.make_inputs("SoftBoFModel", (9, 2))
    for config in configs:
        trained.append(config.build_model())
        layer_references.randomize(trained[-1])
    monkeypatch.setattr(
        ensemble.checkpoints,
        "restore_weights",
        lambda model, number, *_: model.set_weights(trained[number].get_weights()),
    )

    def make(classes):
        models = [ensemble.frozen_model(config, "float32", classes=classes) for config in configs]
        for number, (model, config) in enumerate(zip(models, configs, strict=True)):
            ensemble.restore_frozen(model, config, number, classes=classes)
        return Ensemble(models, classes=classes, weights=[2, 1])

    some, every = make([0, 2]), make(None)
    assert [model.num_classes for model in some.models] == [2, NUM_CLASSES]
    indices = np.arange(6, dtype=np.int32).reshape(3, 2)
    parts = {**inputs, "frame_indices": np.stack([indices, indices])}
    for found, expected in (
        (some(inputs), every(inputs)),
        (some.predict_parts(parts), every.predict_parts(parts)),
    ):
        assert found.shape == (*expected.shape[:-1], 2)
        np.testing.assert_allclose(found, expected.numpy()[..., [0, 2]], atol=1e-6)


def test_what_a_base_class_says_of_classes_ends_where_a_class_redefines_their_prediction():
    base = small_models.registry.model_class("LogisticModel")

    class Softmax(base):
        def classify(self, x, training):
            return tf.nn.softmax(self.logistic(x))

    class Renamed(base):
        pass

    class Again(Softmax):
        has_separate_classes = True

    assert [cls.has_separate_classes for cls in (base, Softmax, Renamed, Again)] == [
        *(True, False, True, True)
    ]


def test_named_layers_stay_bfloat16_beside_others_in_int8():
    given = {"num_classes": NUM_CLASSES, "feature_sizes": FEATURE_SIZES}
    config = RunConfig("MoeModel", hyperparameters=small_models.SMALL["MoeModel"], **given)
    frozen = ensemble.frozen_model(config, "int8", bfloat16_layers=("gates",))
    dtypes = {weight.path.split("/", 1)[1]: weight.dtype for weight in frozen.weights}
    assert dtypes["gates/kernel"] == "bfloat16"
    assert "gates/kernel_scale" not in dtypes
    assert (dtypes["experts/kernel"], dtypes["experts/kernel_scale"]) == ("int8", "float32")


def make_inputs(num_videos=4):
    inputs = small_models.make_inputs("GruModel", (9, 2, 7, 5, 1, 3, 8)[:num_videos])
    return tf.nest.map_structure(tf.constant, inputs)


def predict(models, inputs, **options):
    return np.asarray(Ensemble(models, **options)(inputs))


def test_prediction_is_the_weighted_mean_of_the_members(models):
    members = Ensemble(list(models.values())).member_predictions(make_inputs())
    expected = sum(w * np.asarray(p) for w, p in zip((0.4, 0.3, 0.2, 0.1), members, strict=True))
    actual = predict(list(models.values()), make_inputs(), weights=(4, 3, 2, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_member_of_an_ensemble_predicts_as_a_single_model(models):
    pair = [models["LFNLNetVLADModel"], models["GruModel"]]
    member = Ensemble(pair).member_predictions(make_inputs())[0]
    np.testing.assert_allclose(member, predict(pair[:1], make_inputs()), rtol=1e-5)


@EVERY_MODEL
def test_predictions_depend_on_the_seed_only_if_the_model_samples(models, name):
    model, inputs = models[name], make_inputs()
    first = predict([model], inputs, num_samplings=1, seed=1)
    np.testing.assert_array_equal(predict([model], inputs, num_samplings=1, seed=1), first)
    np.testing.assert_allclose(model(inputs, num_samplings=1, seed=1), first, rtol=1e-5)
    others = [predict([model], inputs, num_samplings=1, seed=seed) for seed in range(2, 6)]
    assert np.any(others != first) == (name in SAMPLING)


class NegativeEncoding:
    """Base that redefines how a model encodes."""

    def encode(self, frames, frame_weights, training):
        return -super().encode(frames, frame_weights, training)


@pytest.mark.parametrize("inherits", [False, True])
def test_a_subclass_that_redefines_only_encode_predicts_by_it(inherits):
    class Negative(NegativeEncoding, small_models.registry.model_class("LFNLNetVLADModel")):
        if not inherits:
            encode = NegativeEncoding.encode

    given = {"num_classes": NUM_CLASSES, "feature_sizes": FEATURE_SIZES}
    model = Negative(**given, **small_models.SMALL_NETVLAD)
    model.build()
    np.testing.assert_allclose(
        predict([model], make_inputs(), max_floats=1), model(make_inputs()), rtol=1e-5
    )
    assert model.pooled_size is None
    np.testing.assert_allclose(
        Ensemble([model]).embeddings(make_inputs()), model.embed(make_inputs()), rtol=1e-5
    )


@EVERY_MODEL
def test_without_sampling_every_real_frame_is_used_once(models, name, monkeypatch):
    model, inputs = models[name], make_inputs()
    actual = predict([model], inputs, num_samplings=0)
    monkeypatch.setattr(model, "iterations", 0)
    np.testing.assert_allclose(actual, model(inputs), rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_several_samplings_equal_the_mean_over_their_frame_indices(models, name, monkeypatch):
    model, inputs = models[name], make_inputs()
    actual = model(inputs, num_samplings=5, seed=7)
    indices = model.draw_frame_indices(inputs["frames"], inputs["num_frames"], 5, 7)
    each = []
    for n in range(5):
        drawn = indices[:, n : n + 1]
        monkeypatch.setattr(model, "draw_frame_indices", lambda *_, drawn=drawn: drawn)
        each.append(np.asarray(model(inputs, num_samplings=1)))
    np.testing.assert_allclose(actual, np.mean(each, axis=0), rtol=1e-5)
    assert np.ptp(each, axis=0).max() > 1e-3


def test_models_that_do_not_sample_ignore_the_number_of_samplings(models):
    model, inputs = models["GruModel"], make_inputs()
    np.testing.assert_array_equal(
        predict([model], inputs, num_samplings=5), predict([model], inputs)
    )


def test_members_sample_as_often_as_each_of_them_does_by_default(models, monkeypatch):
    members = [models["SoftBoFModel"], models["GruModel"]]
    assert Ensemble(members).num_samplings == [0, 0]
    monkeypatch.setattr(models["GruModel"], "iterations", 6)
    for given, resolved in ((None, [0, 5]), (0, [0, 0]), (3, [3, 3])):
        assert Ensemble(members, num_samplings=given).num_samplings == resolved


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_several_samplings_have_the_distribution_of_single_passes(models, name):
    model, inputs = models[name], make_inputs()
    several = np.array([model(inputs, num_samplings=4, seed=seed) for seed in range(200)])
    single = np.array([model(inputs, num_samplings=1, seed=seed) for seed in range(1000, 1800)])
    error = np.sqrt(several.var(axis=0) / 200 + single.var(axis=0) / 800) + 1e-7
    assert np.abs(several.mean(axis=0) - single.mean(axis=0)).max() < (5 * error).max()
    # The mean of 4 samplings has a quarter of the variance.
    assert several.var(axis=0).sum() == pytest.approx(single.var(axis=0).sum() / 4, rel=0.3)


@pytest.mark.parametrize("max_floats", [1, 500])
def test_chunks_of_a_batch_predict_as_the_whole(models, max_floats):
    inputs = make_inputs(7)
    expected = predict(list(models.values()), inputs, num_samplings=3)
    actual = predict(list(models.values()), inputs, num_samplings=3, max_floats=max_floats)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_graph_predicts_chunks_as_the_whole(models):
    ensemble = Ensemble(list(models.values()), num_samplings=3, max_floats=500)
    function = tf.function(ensemble, input_signature=[small_models.signature("GruModel")])
    expected = predict(list(models.values()), make_inputs(7), num_samplings=3)
    np.testing.assert_allclose(function(make_inputs(7)), expected, rtol=1e-5)
    empty = tf.nest.map_structure(lambda values: values[:0], make_inputs())
    assert function(empty).shape == (0, NUM_CLASSES)


def test_matrices_of_the_frames_are_cast_once_for_all_chunks():
    given = {"num_classes": NUM_CLASSES, "feature_sizes": FEATURE_SIZES}
    config = RunConfig("SoftBoFModel", hyperparameters=small_models.SMALL["SoftBoFModel"], **given)
    frozen = ensemble.frozen_model(config, "int8")
    predict = tf.function(Ensemble([frozen], max_floats=1), autograph=False)
    graph = predict.get_concrete_function(make_inputs()).graph
    casts = [
        operation
        for operation in graph.get_operations()
        if operation.type == "Cast" and operation.inputs[0].dtype == tf.int8
    ]
    assert len(casts) == len(frozen.encoder.poolings)


def test_an_empty_batch_gives_no_predictions(models):
    empty = tf.nest.map_structure(lambda values: values[:0], make_inputs())
    assert predict(list(models.values()), empty, num_samplings=3).shape == (0, NUM_CLASSES)


def test_a_video_without_frames_does_not_affect_the_others(models):
    model, inputs = models["LFNLNetVLADModel"], make_inputs(2)
    videos = inputs["frames"], tf.constant([3, 0])
    _, weights = model.sample(*videos, model.draw_frame_indices(*videos, 1, 7))
    weights = np.asarray(weights)
    assert weights[0, :3].sum() == model.iterations
    assert weights[0, 3:].sum() == weights[1].sum() == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1,), "one weight per model: 2. Received: 1"),
        ((1, -1), "0 or more"),
        ((0, 0), "one of them above 0"),
        ((1, float("nan")), "0 or more"),
        ((1, float("inf")), "0 or more"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(weights, message):
    with pytest.raises(InputError, match=message):
        ensemble.normalized_weights(weights, 2)


def fit(predictions, labels, batch=5):
    stacking = ensemble.StackingFit(len(predictions))
    for start in range(0, len(labels), batch):
        rows = slice(start, start + batch)
        stacking.accumulate([values[rows] for values in predictions], labels[rows])
    return stacking.weights()


def test_fitted_weights_are_those_of_the_mixture_that_made_the_labels():
    rng = np.random.default_rng(0)
    predictions = rng.random((3, 40, 6))
    labels = np.einsum("M,MBC->BC", [0.7, 0.0, 0.3], predictions)
    np.testing.assert_allclose(fit(predictions, labels), [0.7, 0.0, 0.3], atol=1e-6)


def test_fitted_weights_are_the_best_on_a_grid():
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 6)) < 0.3).astype(float)
    predictions = [
        np.clip(labels * k + rng.normal(0.2, 0.3, labels.shape), 0, 1) for k in (0.2, 0.6, 0.4)
    ]
    weights = fit(predictions, labels)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)

    def error(w):
        return np.sum((np.einsum("M,MBC->BC", w, predictions) - labels) ** 2)

    grid = [(a, b, 20 - a - b) for a in range(21) for b in range(21 - a)]
    assert error(weights) <= min(error(np.array(point) / 20) for point in grid) + 1e-9


def test_parts_of_videos_have_the_weighted_mean_of_the_predictions_in_any_chunks(models):
    members = [models["SoftBoFModel"], models["GruModel"]]
    frame_indices = tf.constant([[[0, 1, 2], [1, 9, 9]]] * 4)
    inputs = {**make_inputs(), "frame_indices": frame_indices}
    first, second = (member.predict_parts(inputs).numpy() for member in members)
    for max_floats in (1, 2**20):
        together = Ensemble(members, weights=[3, 1], max_floats=max_floats)
        parts = together.predict_parts(inputs)
        np.testing.assert_allclose(parts, 0.75 * first + 0.25 * second, atol=1e-6)
    nothing = tf.nest.map_structure(lambda tensor: tensor[:0], inputs)
    assert together.predict_parts(nothing).shape == (0, 2, NUM_CLASSES)


def test_a_subclass_may_encode_without_the_encoder_of_its_base():
    class MeanFrame(small_models.registry.model_class("LFNLNetVLADModel")):
        takes_stored_frames = False

        def encode(self, frames, frame_weights, training):
            return tf.reduce_mean(frames, axis=1)

    model = MeanFrame(
        num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **small_models.SMALL_NETVLAD
    )
    model.build()
    expected = model(make_inputs())
    ensemble._fold(model)
    np.testing.assert_allclose(predict([model], make_inputs()), expected, rtol=1e-5)
