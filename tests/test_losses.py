"""Every loss and its gradient equal its definition, written as a plain loop in float64."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
import registry
from gradient_checks import central_differences
from utils import InputError

EPSILON = 1e-5


def reference_cross_entropy(y, p, epsilon=EPSILON):
    return [
        -(a * math.log(b + epsilon) + (1 - a) * math.log(1 - b + epsilon))
        for a, b in zip(y, p, strict=True)
    ]


def reference_focal(y, p, focal_gamma=2.0, focal_alpha=0.25, epsilon=EPSILON):
    pairs = []
    for a, b in zip(y, p, strict=True):
        right, wrong = b + epsilon, 1 - b + epsilon
        positive = -focal_alpha * wrong**focal_gamma * math.log(right)
        negative = -(1 - focal_alpha) * right**focal_gamma * math.log(wrong)
        pairs.append(a * positive + (1 - a) * negative)
    return pairs


def reference_asymmetric(
    y,
    p,
    asymmetric_gamma_neg=4.0,
    asymmetric_gamma_pos=0.0,
    asymmetric_clip=0.05,
    epsilon=EPSILON,
):
    pairs = []
    for a, b in zip(y, p, strict=True):
        shifted = max(b - asymmetric_clip, 0.0)
        positive = -((1 - b + epsilon) ** asymmetric_gamma_pos) * math.log(b + epsilon)
        focus = (shifted + epsilon) ** asymmetric_gamma_neg
        pairs.append(a * positive - (1 - a) * focus * math.log(1 - shifted + epsilon))
    return pairs


def reference_hinge(y, scores, margin=1.0):
    return [max(0.0, margin - (2 * a - 1) * score) for a, score in zip(y, scores, strict=True)]


def reference_softmax(y, scores):
    total, mass = sum(math.exp(score) for score in scores), max(sum(y), 1.0)
    return [-a / mass * math.log(math.exp(b) / total) for a, b in zip(y, scores, strict=True)]


# The loss of each class of a video, for its labels, predictions and hyperparameters.
REFERENCES = {
    "AsymmetricLoss": reference_asymmetric,
    "CrossEntropyLoss": reference_cross_entropy,
    "FocalLoss": reference_focal,
    "HingeLoss": reference_hinge,
    "SoftmaxLoss": reference_softmax,
}
# Every hyperparameter but label_smoothing, with another value than its default.
CHANGED = {
    "AsymmetricLoss": {
        "asymmetric_gamma_neg": 1.5,
        "asymmetric_gamma_pos": 0.5,
        "asymmetric_clip": 0.1,
        "epsilon": 0.01,
    },
    "CrossEntropyLoss": {"epsilon": 0.01},
    "FocalLoss": {"focal_gamma": 0.5, "focal_alpha": 0.6, "epsilon": 0.01},
    "HingeLoss": {"margin": 0.6},
    "SoftmaxLoss": {},
}
LOSSES = list(registry.losses())
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
PRIOR = [0.5, 0.25, 0.125, 0.0, 1.0]
CLASS_WEIGHTS = [1.0, 2.0, 0.5, 0.0, 3.0]
SMOOTHED = {"label_smoothing": 0.2, "class_prior": PRIOR}


def reference_mean(name, labels, predictions, weights=None, **hyperparameters):
    """Returns the mean loss over videos; classes of weight 0 do not exist."""
    weights = np.ones(labels.shape) if weights is None else weights
    total = 0.0
    for y, p, w in zip(labels.astype(float), np.float64(predictions), weights, strict=True):
        pairs = REFERENCES[name](y[w > 0], p[w > 0], **hyperparameters)
        total += sum(w[w > 0] * pairs)
    return total / len(labels)


def make_labels(dtype=np.float32):
    """Returns the labels of four videos; the second has none and the third has all."""
    return np.array([[1, 0, 1, 0, 0], [0] * 5, [1] * 5, [0, 1, 0, 0, 0]], dtype)


def make_predictions():
    return np.random.default_rng(3).random((4, 5), dtype=np.float32)


def make_weights():
    weights = np.random.default_rng(4).uniform(0.5, 2.0, (4, 5)).astype(np.float32)
    weights[0, 0] = weights[0, 1] = weights[2, 4] = weights[3, 2] = 0.0
    return weights


def test_every_loss_has_a_reference_and_changed_hyperparameters():
    assert set(LOSSES) == set(REFERENCES)
    for name, loss in registry.losses().items():
        taken = registry.own_hyperparameters(loss)
        assert set(taken) == {*CHANGED[name], "label_smoothing"}
        assert all(taken[key].default != value for key, value in CHANGED[name].items())


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_loss_is_summed_over_classes_and_averaged_over_videos(name, dtype):
    labels, predictions = make_labels(dtype), make_predictions()
    actual = losses.get_loss(name)(labels, predictions)
    assert float(actual) == pytest.approx(reference_mean(name, labels, predictions), rel=1e-5)


def loss_and_gradient(loss):
    """Returns a compiled function from labels, predictions and weights to loss and gradient."""

    @tf.function(autograph=False)
    def compute(labels, predictions, weights):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            value = loss(labels, predictions, weights)
        return value, tape.gradient(value, predictions)

    return lambda *arrays: [result.numpy() for result in compute(*map(tf.constant, arrays))]


@EVERY_LOSS
def test_loss_and_gradient_equal_the_formula_with_weights_and_smoothed_labels(name):
    labels, predictions, weights = make_labels(), make_predictions(), make_weights()
    loss = losses.get_loss(name, **CHANGED[name], **SMOOTHED, class_weights=CLASS_WEIGHTS)
    value, gradient = loss_and_gradient(loss)(labels, predictions, weights)
    smoothed = 0.8 * labels + 0.2 * np.array(PRIOR)
    given = {"weights": np.float64(weights) * CLASS_WEIGHTS, **CHANGED[name]}
    expected = reference_mean(name, smoothed, predictions, **given)
    assert value == pytest.approx(expected, rel=1e-5)
    expected = central_differences(
        lambda changed: reference_mean(name, smoothed, changed, **given), np.float64(predictions)
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert np.count_nonzero(expected) >= 12


@EVERY_LOSS
@pytest.mark.parametrize("of_classes", [True, False])
def test_a_pair_of_weight_0_has_no_gradient_and_no_effect(name, of_classes):
    labels, predictions, weights = make_labels(), make_predictions(), np.ones((4, 5), np.float32)
    class_weights = [1.0, 0.0, 1.0, 1.0, 0.0] if of_classes else None
    weights = weights if of_classes else make_weights()
    loss = losses.get_loss(name, **SMOOTHED, class_weights=class_weights)
    ignored = np.broadcast_to(np.equal(class_weights, 0), (4, 5)) if of_classes else weights == 0
    compute = loss_and_gradient(loss)
    value, gradient = compute(labels, predictions, weights)
    assert (gradient[ignored] == 0).all()
    for wrong in (0.0, 1.0, math.nan, math.inf, 1e30):
        others = np.where(ignored, np.float32(wrong), predictions)
        other_labels = np.where(ignored, 1 - labels, labels)
        actual = compute(other_labels, others, weights)
        assert actual[0] == value
        np.testing.assert_array_equal(actual[1], gradient)


@EVERY_LOSS
def test_weights_of_1_change_nothing_and_weights_of_videos_multiply_their_loss(name):
    labels, predictions = make_labels(), make_predictions()
    loss = losses.get_loss(name)
    plain = float(loss(labels, predictions))
    assert float(loss(labels, predictions, np.ones((4, 5)))) == pytest.approx(plain, rel=1e-6)
    per_video = np.array([1.0, 2.0, 0.0, 0.5])
    expected = float(loss(labels, predictions, np.repeat(per_video[:, None], 5, axis=1)))
    assert float(loss(labels, predictions, per_video)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(labels, predictions, per_video[:, None])) == pytest.approx(expected, rel=1e-6)


@EVERY_LOSS
def test_loss_works_in_compile_and_fit_takes_weights_of_pairs(name):
    model = registry.build_model("LogisticModel", num_classes=5, feature_sizes=(6,), l2_penalty=0.0)
    model.compile(optimizer="sgd", loss=losses.get_loss(name))
    inputs = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    predictions = np.asarray(model(inputs))
    expected = reference_mean(name, make_labels(), predictions)
    # Batches of unequal size do not change the mean over videos.
    actual = model.evaluate(inputs, make_labels(), batch_size=3, verbose=0)
    assert actual == pytest.approx(expected, rel=1e-5)
    history = model.fit(inputs, make_labels(), sample_weight=make_weights(), verbose=0)
    expected = reference_mean(name, make_labels(), predictions, np.float64(make_weights()))
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-5)]


@EVERY_LOSS
def test_the_config_of_a_loss_restores_it(name):
    loss = losses.get_loss(name, **CHANGED[name], **SMOOTHED, class_weights=CLASS_WEIGHTS)
    config = keras.losses.serialize(loss)
    restored = keras.losses.deserialize(config)
    assert type(restored) is type(loss)
    assert keras.losses.serialize(restored) == config
    assert restored.get_config() == loss.get_config()
    assert {**CHANGED[name], **SMOOTHED}.items() <= loss.get_config().items()
    values = [float(one(make_labels(), make_predictions())) for one in (loss, restored)]
    assert values[0] == values[1]


@EVERY_LOSS
@pytest.mark.parametrize("shape", [(4,), (5,), (4, 1), (4, 4)])
def test_labels_that_are_not_one_number_per_class_are_rejected(name, shape):
    predictions = np.zeros((len(np.zeros(shape)), 5), np.float32)
    with pytest.raises(InputError, match=r"labels must be \[videos, 5\].* Received: \["):
        losses.get_loss(name)(np.zeros(shape), predictions)


def test_labels_of_unknown_size_are_accepted():
    signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None, 5])]
    loss = tf.function(losses.CrossEntropyLoss(), input_signature=signature)
    expected = reference_mean("CrossEntropyLoss", make_labels(), make_predictions())
    assert float(loss(make_labels(), make_predictions())) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_certain_predictions_is_finite():
    loss = losses.CrossEntropyLoss()
    wrong = float(loss(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])))
    assert wrong == pytest.approx(-2 * math.log(1e-5), rel=1e-5)
    right = float(loss(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]])))
    assert right == pytest.approx(-2 * math.log(1 + 1e-5), rel=0.02)


@pytest.mark.parametrize("name", ["AsymmetricLoss", "FocalLoss"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_gradients_of_certain_predictions_are_finite_for_every_exponent(name, gamma):
    exponents = {key for key in CHANGED[name] if "gamma" in key}
    loss = losses.get_loss(name, **dict.fromkeys(exponents, gamma))
    labels = np.array([[1, 0, 1, 0]], np.float32)
    certain = np.array([[0, 0, 1, 1]], np.float32)
    value, gradient = loss_and_gradient(loss)(labels, certain, np.ones_like(labels))
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()


def test_focal_loss_by_hand():
    # A label at 0.9 and another class at 0.2, with gamma 2 and alpha 0.25.
    expected = -0.25 * 0.1**2 * math.log(0.9) - 0.75 * 0.2**2 * math.log(0.8)
    actual = float(losses.FocalLoss(epsilon=1e-9)(np.array([[1.0, 0.0]]), np.array([[0.9, 0.2]])))
    assert actual == pytest.approx(expected, rel=1e-5)


def test_an_easy_negative_of_asymmetric_loss_has_neither_loss_nor_gradient():
    labels, predictions = np.zeros((1, 3), np.float32), np.array([[0.0, 0.04, 0.05]], np.float32)
    compute = loss_and_gradient(losses.AsymmetricLoss())
    value, gradient = compute(labels, predictions, np.ones_like(labels))
    assert value == pytest.approx(0.0, abs=1e-12)
    assert not gradient.any()


def test_labels_are_smoothed_towards_the_class_prior_by_hand():
    loss = losses.CrossEntropyLoss(label_smoothing=0.5, class_prior=[0.2, 0.4], epsilon=1e-9)
    # The labels become 0.5 * 1 + 0.5 * 0.2 and 0.5 * 0.4.
    expected = -(0.6 * math.log(0.9) + 0.4 * math.log(0.1))
    expected -= 0.2 * math.log(0.3) + 0.8 * math.log(0.7)
    actual = float(loss(np.array([[1.0, 0.0]]), np.array([[0.9, 0.3]])))
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_margin_of_hinge_loss_can_be_set():
    labels, scores = np.array([[1.0, 0.0]]), np.array([[0.5, 0.25]])
    # max(0, 0.6 - 0.5) + max(0, 0.6 + 0.25)
    assert float(losses.HingeLoss(margin=0.6)(labels, scores)) == pytest.approx(0.95, rel=1e-5)


def test_softmax_loss_of_videos_without_labels_is_zero():
    assert float(losses.SoftmaxLoss()(np.zeros((3, 5)), make_predictions()[:3])) == 0


def test_softmax_loss_of_large_scores_is_finite():
    loss = losses.SoftmaxLoss()(np.array([[1.0, 0.0]]), np.array([[-500.0, 500.0]]))
    assert float(loss) == pytest.approx(1000, rel=1e-5)


def test_weights_by_effective_number_by_hand():
    # (1 - 0.5^n) / 0.5 is 1, 1.5 and 1.75; classes without videos count as with one.
    inverse = np.array([1.0, 1.0, 1 / 1.5, 1 / 1.75])
    weights = losses.effective_number_weights([0, 1, 2, 3], beta=0.5)
    np.testing.assert_allclose(weights, 4 * inverse / inverse.sum())
    assert losses.effective_number_weights([1, 10, 1000], beta=0.0) == [1.0, 1.0, 1.0]


@EVERY_LOSS
def test_get_loss_returns_the_keras_loss_of_that_name(name):
    loss = losses.get_loss(name)
    assert isinstance(loss, keras.losses.Loss)
    assert type(loss).__name__ == name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Focal", {}, r"unknown loss 'Focal'.*: AsymmetricLoss, CrossEntropyLoss, FocalLoss, H"),
        ("FocalLoss", {"margin": 1.0}, r"FocalLoss does not take margin\. It takes: epsilon, fo"),
        ("FocalLoss", {"focal_gamma": "2"}, r"'focal_gamma' must be of type float"),
        ("FocalLoss", {"focal_gamma": -1.0}, r"focal_gamma must be at least 0"),
        ("FocalLoss", {"focal_alpha": 0.0}, r"focal_alpha must be above 0"),
        ("FocalLoss", {"focal_alpha": 1.0}, r"focal_alpha must be at least 0 and below 1"),
        ("AsymmetricLoss", {"asymmetric_gamma_pos": -1.0}, r"asymmetric_gamma_pos must be at le"),
        ("AsymmetricLoss", {"asymmetric_clip": 1.0}, r"asymmetric_clip must be at least 0 and"),
        ("CrossEntropyLoss", {"epsilon": 0.0}, r"epsilon must be above 0"),
        ("HingeLoss", {"label_smoothing": 0.1}, r"label_smoothing needs class_prior"),
        ("HingeLoss", {"label_smoothing": 1.0, "class_prior": [0.5]}, r"label_smoothing must be"),
        ("HingeLoss", {"class_prior": [1.5]}, r"class_prior must be .* and at most 1\. Rec"),
        ("HingeLoss", {"class_weights": [-1.0]}, r"class_weights must be one number for each"),
        ("HingeLoss", {"class_weights": [math.nan]}, r"class_weights must be one number for ea"),
    ],
)
def test_unknown_losses_and_wrong_arguments_are_rejected(name, arguments, message):
    with pytest.raises(InputError, match=message):
        losses.get_loss(name, **arguments)


@pytest.mark.parametrize("arguments", [{"class_weights": [1.0] * 4}, {**SMOOTHED}])
def test_numbers_of_other_classes_than_the_predictions_are_rejected(arguments):
    loss = losses.CrossEntropyLoss(**arguments)
    count = 4 if "class_weights" in arguments else 5
    with pytest.raises(InputError, match=f"of {count} classes, but the predictions are of 6"):
        loss(np.zeros((2, 6)), np.zeros((2, 6), np.float32))
