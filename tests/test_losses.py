"""Every loss equals its definition, written as a plain loop."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
import registry
from utils import InputError


def reference_cross_entropy(labels, predictions):
    return -sum(
        y * math.log(p + 1e-5) + (1 - y) * math.log(1 - p + 1e-5)
        for y, p in zip(labels, predictions, strict=True)
    )


def reference_hinge(labels, scores):
    return sum(
        max(0.0, 1.0 - (score if y else -score)) for y, score in zip(labels, scores, strict=True)
    )


def reference_softmax(labels, scores):
    total = sum(math.exp(score) for score in scores)
    positives = [score for y, score in zip(labels, scores, strict=True) if y]
    return -sum(math.log(math.exp(score) / total) for score in positives) / max(len(positives), 1)


REFERENCES = {
    "CrossEntropyLoss": reference_cross_entropy,
    "HingeLoss": reference_hinge,
    "SoftmaxLoss": reference_softmax,
}
EVERY_LOSS = pytest.mark.parametrize("name", list(losses.LOSSES))


def reference_mean(name, labels, predictions):
    values = [
        REFERENCES[name](row, [float(p) for p in predicted])
        for row, predicted in zip(labels.tolist(), predictions, strict=True)
    ]
    return sum(values) / len(values)


def make_labels(dtype=np.float32):
    """Returns the labels of four videos; the second has none and the third has all."""
    return np.array([[1, 0, 1, 0, 0], [0] * 5, [1] * 5, [0, 1, 0, 0, 0]], dtype)


def make_predictions():
    return np.random.default_rng(3).random((4, 5), dtype=np.float32)


def test_every_loss_has_a_reference():
    assert set(losses.LOSSES) == set(REFERENCES)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_loss_is_summed_over_classes_and_averaged_over_videos(name, dtype):
    labels, predictions = make_labels(dtype), make_predictions()
    actual = losses.get_loss(name)(labels, predictions)
    assert float(actual) == pytest.approx(reference_mean(name, labels, predictions), rel=1e-5)


@EVERY_LOSS
def test_loss_works_in_compile(name):
    model = registry.build_model("LogisticModel", num_classes=5, feature_sizes=(6,), l2_penalty=0.0)
    model.compile(loss=losses.get_loss(name))
    inputs = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    expected = reference_mean(name, make_labels(), np.asarray(model(inputs)))
    # Batches of unequal size do not change the mean over videos.
    actual = model.evaluate(inputs, make_labels(), batch_size=3, verbose=0)
    assert actual == pytest.approx(expected, rel=1e-5)


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


def test_the_margin_of_hinge_loss_can_be_set():
    labels, scores = np.array([[1.0, 0.0]]), np.array([[0.5, 0.25]])
    # max(0, 0.6 - 0.5) + max(0, 0.6 + 0.25)
    assert float(losses.HingeLoss(margin=0.6)(labels, scores)) == pytest.approx(0.95, rel=1e-5)


def test_softmax_loss_of_videos_without_labels_is_zero():
    assert float(losses.SoftmaxLoss()(np.zeros((3, 5)), make_predictions()[:3])) == 0


def test_softmax_loss_of_large_scores_is_finite():
    loss = losses.SoftmaxLoss()(np.array([[1.0, 0.0]]), np.array([[-500.0, 500.0]]))
    assert float(loss) == pytest.approx(1000, rel=1e-5)


@EVERY_LOSS
def test_get_loss_returns_the_keras_loss_of_that_name(name):
    loss = losses.get_loss(name)
    assert isinstance(loss, keras.losses.Loss)
    assert type(loss).__name__ == name


def test_an_unknown_loss_is_rejected_listing_the_known_ones():
    with pytest.raises(InputError, match=r"'Focal'.*CrossEntropyLoss, HingeLoss, SoftmaxLoss"):
        losses.get_loss("Focal")
