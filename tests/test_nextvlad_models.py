"""NeXtVLAD and its mixture: formulas, gradients, losses of the branches, frozen models."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import ensemble
import layer_references
import losses
import model_references
import nextvlad
import nextvlad_models
import nextvlad_references as references
import programs
import registry
import small_models
from gradient_checks import (
    assert_close,
    assert_gradients_equal_finite_differences,
    central_differences,
)
from run_config import RunConfig
from trainer import Trainer
from utils import InputError

SIZE, EXPANDED, GROUPS, CLUSTERS = 3, 4, 2, 3
# Three videos; some frames count several times, some not at all.
FRAME_WEIGHTS = np.array([[2, 0, 1, 3], [1, 3, 0, 2], [0, 0, 4, 0]], np.float32)
BOTH_MODES = pytest.mark.parametrize("training", [False, True])
MODELS = ["NeXtVLADModel", "MixNeXtVLADModel"]


def make_frames(seed=0):
    return np.random.default_rng(seed).normal(size=(*FRAME_WEIGHTS.shape, SIZE)).astype(np.float32)


def make_pooling():
    """Returns a NeXtVLAD with random weights."""
    layer = nextvlad.NeXtVLAD(EXPANDED, GROUPS, CLUSTERS)
    layer(make_frames(), FRAME_WEIGHTS)
    layer_references.randomize(layer)
    return layer


def build(name, **hyperparameters):
    """Returns a small model with random weights and without dropout, shared by the tests."""
    fixed = {"normalize_frames": "l2", "nextvlad_dropout": 0.0}
    if name == "MixNeXtVLADModel":
        fixed["num_branches"] = 2
    return model_references.build(name, **{**fixed, **hyperparameters})


def make_videos():
    """Returns inputs, and the frames that they stand for."""
    frames, num_frames = model_references.make_videos()
    inputs = {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}
    return inputs, model_references.reference_frames(frames, num_frames)


def sigmoids(logits):
    return 1 / (1 + np.exp(-logits))


# --- Layers ---------------------------------------------------------------------------------------


def test_two_groups_and_three_clusters_give_the_residuals_computed_by_hand():
    layer = nextvlad.NeXtVLAD(4, 2, 3)
    frame = np.array([[[2, 0, 0, 4]]], np.float32)
    layer(frame, np.ones([1, 1]))
    layer.expansion.set_weights([np.eye(4), np.zeros(4)])
    # Attention 1/2 and 3/4; assignments 1/4, 1/2, 1/4 and 1/4, 1/4, 1/2.
    layer.attention.kernel.assign(np.zeros([4, 2]))
    layer.attention.bias.assign([0, math.log(3)])
    layer.assignment.kernel.assign(np.zeros([4, 6]))
    layer.assignment.norm.beta.assign(np.log([1, 2, 1, 1, 1, 2]))
    layer.centers.assign([[0, 0], [1, 0], [0, 2]])
    # v_1 = 1/8 (2, 0) + 3/16 (0, 4) = (1/4, 3/4)
    # v_2 = 1/4 (1, 0) + 3/16 (-1, 4) = (1/16, 3/4)
    # v_3 = 1/8 (2, -2) + 3/8 (0, 2) = (1/4, 1/2)
    expected = [
        *np.array([1, 3]) / math.sqrt(10),
        *np.array([1, 12]) / math.sqrt(145),
        *np.array([1, 2]) / math.sqrt(5),
    ]
    assert_close(layer(frame, np.ones([1, 1])), [expected])


@BOTH_MODES
def test_nextvlad_equals_its_formula(training):
    layer, frames = make_pooling(), make_frames()
    weights = layer_references.weights_of(layer)
    expected = references.nextvlad(frames.astype(float), FRAME_WEIGHTS, weights, training)
    assert_close(layer(frames, FRAME_WEIGHTS, training=training), expected)


@BOTH_MODES
def test_gradients_of_nextvlad_equal_finite_differences(training):
    layer = make_pooling()
    assert_gradients_equal_finite_differences(
        layer,
        lambda x: layer(x, FRAME_WEIGHTS, training=training),
        lambda x, weights: references.nextvlad(x, FRAME_WEIGHTS, weights, training),
        make_frames(),
    )


def make_excitation():
    """Returns a gate with random weights, and rows for it."""
    layer = nextvlad.SqueezeExcitation(2)
    x = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32)
    layer(x)
    layer_references.randomize(layer)
    return layer, x


@BOTH_MODES
def test_squeeze_and_excitation_equals_its_formula(training):
    layer, x = make_excitation()
    weights = layer_references.weights_of(layer)
    expected = references.squeeze_excitation(x.astype(float), weights, training)
    assert_close(layer(x, training=training), expected)


@BOTH_MODES
def test_gradients_of_squeeze_and_excitation_equal_finite_differences(training):
    layer, x = make_excitation()
    assert_gradients_equal_finite_differences(
        layer,
        lambda x: layer(x, training=training),
        lambda x, weights: references.squeeze_excitation(x, weights, training),
        x,
    )


def test_padding_changes_no_moving_average():
    averages = []
    for extra in (0, 5):
        layer = make_pooling()
        frames = np.pad(make_frames(), [(0, 0), (0, extra), (0, 0)], constant_values=100)
        layer(frames, np.pad(FRAME_WEIGHTS, [(0, 0), (0, extra)]), training=True)
        averages.append(layer.assignment.norm.get_weights())
    for without, padded in zip(*averages, strict=True):
        np.testing.assert_allclose(padded, without, rtol=1e-5)


def test_initial_weights_are_truncated_normal_by_their_fan_in():
    keras.utils.set_random_seed(2)
    options = {"nextvlad_groups": "4", "nextvlad_cluster_size": "40", "nextvlad_hidden_size": 128}
    model = registry.build_model(
        "NeXtVLADModel", num_classes=60, feature_sizes=(100,), gating_reduction=2, **options
    )
    weights = layer_references.weights_of(model)
    fans_in = {
        "encoder_0/nextvlad_0/expansion/kernel": 100,
        "encoder_0/nextvlad_0/attention/kernel": 200,
        "encoder_0/nextvlad_0/assignment/kernel": 200,
        "encoder_0/nextvlad_0/centers": 50,
        "encoder_0/hidden/kernel": 2000,
        "encoder_0/gating/squeeze/kernel": 128,
        "encoder_0/gating/excite/kernel": 64,
        "classifier/kernel": 128,
    }
    drawn = {path for path in weights if path.endswith(("kernel", "centers"))}
    assert set(fans_in) == drawn
    for path, fan_in in fans_in.items():
        values = weights[path].ravel() / math.sqrt(2 / fan_in)
        assert abs(values.std() - 1) < 6 / math.sqrt(2 * values.size)
        # Cut at two standard deviations of the normal, whose own is larger by 1 / 0.8796.
        assert np.abs(values).max() <= 2 / 0.8796


# --- Models ---------------------------------------------------------------------------------------


@BOTH_MODES
def test_nextvlad_model_equals_its_formula(training):
    model, (inputs, videos) = build("NeXtVLADModel"), make_videos()
    expected = sigmoids(references.model_branches(model, videos, training)[:, 0])
    assert_close(model(inputs, training=training), expected)


@BOTH_MODES
def test_mixture_equals_its_formula(training):
    model, (inputs, videos) = build("MixNeXtVLADModel"), make_videos()
    mixed, _ = references.mixture(model, videos, training)
    assert_close(model(inputs, training=training), sigmoids(mixed))


def test_the_penalty_is_half_the_squared_norm_of_weights_and_biases_of_every_branch():
    model = build("MixNeXtVLADModel", l2_penalty=0.25)
    squares = [
        np.sum(value**2)
        for path, value in layer_references.weights_of(model).items()
        if path.startswith("classifier/")
    ]
    assert len(squares) == 2 * len(model.encoders)
    assert_close(sum(model.losses), 0.25 * sum(squares) / 2)


def test_dropout_acts_in_training_only_and_differs_between_steps_and_branches():
    model, (inputs, _) = build("MixNeXtVLADModel", nextvlad_dropout=0.5), make_videos()
    np.testing.assert_array_equal(model(inputs), model(inputs))
    outputs = []
    for encoder in model.encoders:
        ones = tf.ones([4, 30])
        outputs += [np.asarray(encoder.dropout(ones, training=True)) for _ in range(2)]
    assert len(np.unique(outputs, axis=0)) == 2 * len(model.encoders)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_model_predicts_the_same(name, dtype):
    trained, (inputs, _) = build(name, nextvlad_dropout=0.5), make_videos()
    config = RunConfig(
        name,
        hyperparameters={key: trained.get_config()[key] for key in registry.hyperparameters(name)},
        num_classes=small_models.NUM_CLASSES,
        feature_sizes=small_models.FEATURE_SIZES,
    )
    frozen = ensemble.frozen_model(config, dtype)
    copy = config.build_model()
    copy.set_weights(trained.get_weights())
    ensemble._fold(copy)
    targets = ensemble.trained_weights(frozen).values()
    for source, target in zip(copy.weights, targets, strict=True):
        target.assign(source.value)
    matrices = [weight for weight in frozen.weights if weight.name in ("kernel", "centers")]
    assert {weight.dtype for weight in matrices} == {dtype}
    tolerance = {"float32": 1e-5, "bfloat16": 0.03}[dtype]
    np.testing.assert_allclose(frozen(inputs), trained(inputs), rtol=tolerance, atol=tolerance)


# --- Losses of the branches -----------------------------------------------------------------------


def expected_auxiliary_loss(model, videos, labels):
    mixed, branches = references.mixture(model, videos, training=True)
    loss = sum(references.cross_entropy(labels, z) for z in np.moveaxis(branches, 1, 0))
    divergence = references.distillation(mixed, branches, model.distillation_temperature)
    return mixed, loss + model.distillation_weight * divergence


@pytest.mark.parametrize(("weight", "temperature"), [(9.0, 3.0), (0.5, 1.0), (0.0, 3.0)])
def test_the_losses_of_a_mixture_equal_their_formula(weight, temperature):
    model = build(
        "MixNeXtVLADModel", distillation_weight=weight, distillation_temperature=temperature
    )
    (inputs, videos), labels = make_videos(), small_models.make_labels(4)
    _, expected = expected_auxiliary_loss(model, videos, labels)
    model(inputs, training=True)
    actual = model.auxiliary_loss(functools.partial(losses.CrossEntropyLoss(), labels))
    assert_close(actual, expected)


def test_weights_of_pairs_are_for_the_losses_of_the_branches_and_not_for_the_distillation():
    model = build("MixNeXtVLADModel")
    (inputs, videos), labels = make_videos(), small_models.make_labels(4)
    rated = np.random.default_rng(3).random(labels.shape) < 0.3
    mixed, branches = references.mixture(model, videos, training=True)
    divergence = references.distillation(mixed, branches, model.distillation_temperature)
    for weights in (rated, np.zeros_like(rated)):
        right = np.where(labels == 1, 1.0, -1.0)[:, None] * branches  # Its sigmoid: p of the truth.
        per_branch = -np.log(1 / (1 + np.exp(-right)) + 1e-5).sum(axis=1)
        expected = (weights * per_branch).sum() / 4 + model.distillation_weight * divergence
        model(inputs, training=True)
        loss = functools.partial(
            losses.CrossEntropyLoss(), labels, sample_weight=weights.astype(np.float32)
        )
        assert_close(model.auxiliary_loss(loss), expected)


def test_the_gradient_of_the_distillation_flows_through_teacher_and_students():
    rng = np.random.default_rng(2)
    teacher, students = rng.normal(size=(3, 5)), rng.normal(size=(3, 2, 5))
    tensors = [tf.constant(values.astype(np.float32)) for values in (teacher, students)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = nextvlad_models.distillation_loss(*tensors, 2.0)
    gradients = tape.gradient(loss, tensors)
    of_teacher = central_differences(lambda z: references.distillation(z, students, 2.0), teacher)
    of_students = central_differences(lambda z: references.distillation(teacher, z, 2.0), students)
    for actual, expected in zip(gradients, (of_teacher, of_students), strict=True):
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sample_weight", [None, np.array([1, 0, 2, 3], np.float32)])
def test_fit_minimizes_the_losses_of_the_branches_and_evaluate_leaves_them_out(sample_weight):
    model = build("MixNeXtVLADModel", l2_penalty=0.0, distillation_weight=0.0)
    (inputs, videos), labels = make_videos(), small_models.make_labels(4)
    mixed, branches = references.mixture(model, videos, training=True)

    def weighted(logits):
        if sample_weight is None:
            return references.cross_entropy(labels, logits)
        each = [references.cross_entropy(labels[n : n + 1], logits[n : n + 1]) for n in range(4)]
        return np.mean(sample_weight * each)

    expected = weighted(mixed) + sum(weighted(z) for z in np.moveaxis(branches, 1, 0))
    mixed, _ = references.mixture(model, videos, training=False)
    options = {"sample_weight": sample_weight, "verbose": 0}
    model.compile(keras.optimizers.SGD(0.01), losses.CrossEntropyLoss())
    assert model.evaluate(inputs, labels, **options) == pytest.approx(weighted(mixed), rel=1e-4)
    history = model.fit(inputs, labels, **options).history
    assert history["loss"] == pytest.approx([expected], rel=1e-4)


def test_the_regularization_penalty_does_not_scale_the_losses_of_the_branches():
    """With a rate of 1, a step of SGD moves the last bias by the gradient of the whole loss."""
    settings = {
        **small_models.SMALL["MixNeXtVLADModel"],
        "nextvlad_dropout": 0.0,
        "l2_penalty": 0.0,
    }
    settings["normalize_frames"] = "l2"
    config = RunConfig(
        "MixNeXtVLADModel",
        hyperparameters={**settings, "distillation_weight": 2.0},
        num_classes=small_models.NUM_CLASSES,
        feature_sizes=small_models.FEATURE_SIZES,
        optimizer="SGD",
        base_learning_rate=1.0,
        clip_gradient_norm=0.0,
        regularization_penalty=0.1,
        batch_size=4,
    )
    (inputs, videos), labels = make_videos(), small_models.make_labels(4)
    model = config.build_model()
    layer_references.randomize(model)
    bias = model.classifier.branches[1].bias
    before = np.asarray(bias, np.float64)
    mixed, _ = references.mixture(model, videos, training=True)

    def whole_loss(value):
        model.classifier.branches[1].bias.assign(value)
        mixed, auxiliary = expected_auxiliary_loss(model, videos, labels)
        return references.cross_entropy(labels, mixed) + auxiliary

    gradient = central_differences(whole_loss, before, step=1e-3)
    bias.assign(before)
    optimizer = config.build_optimizer(model)
    trainer = Trainer(config, model, optimizer, tf.distribute.get_strategy())
    trainer.run(iter(tf.data.Dataset.from_tensors((inputs, labels))), 1)
    np.testing.assert_allclose(before - np.asarray(bias), gradient, rtol=1e-3, atol=1e-5)
    assert trainer.pop_loss_sum() == pytest.approx(
        references.cross_entropy(labels, mixed), rel=1e-5
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_branch_becomes_a_model_of_its_own(number):
    model, (inputs, videos) = build("MixNeXtVLADModel", nextvlad_cluster_size="2,3"), make_videos()
    branch = model.branch(number)
    assert type(branch) is nextvlad_models.NeXtVLADModel
    expected = sigmoids(references.model_branches(model, videos, training=False)[:, number])
    assert_close(branch(inputs), expected)
    rebuilt = type(branch).from_config(branch.get_config())
    assert rebuilt.count_params() == branch.count_params()


@pytest.mark.slow
def test_a_mixture_is_trained_evaluated_and_exported_by_the_programs(frame_data, tmp_path):
    flags = ("--model=MixNeXtVLADModel", "--nextvlad_groups=2", "--nextvlad_cluster_size=4")
    sizes = ("--nextvlad_hidden_size=16", "--gating_reduction=4", "--num_branches=2")
    settings = ("--batch_size=16", "--base_learning_rate=0.01", "--num_epochs=6")
    run = programs.train(
        tmp_path / "run", frame_data, *flags, *sizes, *settings, *programs.SMALL_DATA
    )
    metrics = programs.evaluate(f"--train_dir={run}", f"--eval_data_pattern={frame_data}")
    assert metrics["gap"] > 0.5
    exported = tmp_path / "exported"
    given = (f"--train_dir={run}", f"--output_dir={exported}", "--dtype=float32")
    programs.run("export_model", *given)
    predictions = [
        programs.predictions(tmp_path / f"{name}.csv", 10, input_data_pattern=frame_data, **model)
        for name, model in (
            ("run", {"train_dir": run}),
            ("exported", {"exported_model": exported}),
        )
    ]
    for video, expected in predictions[0].items():
        np.testing.assert_allclose(predictions[1][video], expected, atol=2e-6)


# --- Bad hyperparameters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nextvlad_groups": "3"}, "nextvlad_groups must divide .* feature, 8. Received: 3"),
        ({"nextvlad_groups": "0"}, "nextvlad_groups must be at least 1. Received: 0"),
        ({"nextvlad_cluster_size": "8,x"}, "nextvlad_cluster_size must be integers .*: '8,x'"),
        ({"nextvlad_expansion": 0}, "nextvlad_expansion must be at least 1. Received: 0"),
        ({"nextvlad_hidden_size": 0}, "nextvlad_hidden_size must be at least 1. Received: 0"),
        ({"gating_reduction": 0}, "gating_reduction must be at least 1. Received: 0"),
        ({"gating_reduction": 3}, "gating_reduction must divide nextvlad_hidden_size, 2048. .*: 3"),
        (
            {"nextvlad_dropout": 1.0},
            "nextvlad_dropout must be at least 0 and below 1. Received: 1.0",
        ),
        (
            {"nextvlad_dropout": -0.1},
            "nextvlad_dropout must be at least 0 and below 1. Received: -0.1",
        ),
        ({"l2_penalty": -1.0}, "l2_penalty must be at least 0. Received: -1.0"),
        ({"num_branches": 0}, "num_branches must be at least 1. Received: 0"),
        ({"distillation_weight": -1.0}, "distillation_weight must be at least 0. Received: -1.0"),
        ({"distillation_temperature": 0.0}, "distillation_temperature must be above 0. .*: 0.0"),
    ],
)
def test_bad_hyperparameters_are_rejected_by_name(given, message):
    with pytest.raises(InputError, match=f"^MixNeXtVLADModel: {message}$"):
        registry.build_model("MixNeXtVLADModel", num_classes=3, feature_sizes=(4, 2), **given)
