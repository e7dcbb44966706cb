"""Keras losses of the YouTube-8M starter code: summed over classes, averaged over videos."""

import keras
from keras import ops

import utils
from utils import KERAS_PACKAGE, InputError, comma_separated


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class CrossEntropyLoss(keras.losses.Loss):
    """Binary cross entropy, summed over the classes.

        loss = -sum_c [ y_c log(p_c + epsilon) + (1 - y_c) log(1 - p_c + epsilon) ]

    Args:
        epsilon: float. Keeps the logarithms finite.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "epsilon": self.epsilon}

    def call(self, y_true, y_pred):
        """Returns the loss of each video, `[B]`, for labels and probabilities `[B, C]`."""
        check_labels(y_true, y_pred)
        positive = y_true * ops.log(y_pred + self.epsilon)
        negative = (1.0 - y_true) * ops.log(1.0 - y_pred + self.epsilon)
        return -ops.sum(positive + negative, axis=-1)


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class HingeLoss(keras.losses.Loss):
    """Hinge loss, summed over the classes.

        loss = sum_c max(0, margin - s_c p_c),  s_c = 1 for a label, -1 otherwise

    Args:
        margin: float. A label adds to the loss while its score is below this.
    """

    def __init__(self, margin=1.0, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "margin": self.margin}

    def call(self, y_true, y_pred):
        """Returns the loss of each video, `[B]`, for labels and scores `[B, C]`."""
        check_labels(y_true, y_pred)
        signs = 2.0 * y_true - 1.0
        return ops.sum(ops.relu(self.margin - signs * y_pred), axis=-1)


@keras.saving.register_keras_serializable(KERAS_PACKAGE)
class SoftmaxLoss(keras.losses.Loss):
    """Cross entropy between the normalized labels and a softmax over the scores.

        loss = -sum_c (y_c / sum_k y_k) log softmax(p)_c

    The loss of a video without labels is 0.
    """

    def call(self, y_true, y_pred):
        """Returns the loss of each video, `[B]`, for labels and scores `[B, C]`."""
        check_labels(y_true, y_pred)
        targets = y_true / ops.maximum(ops.sum(y_true, axis=-1, keepdims=True), 1.0)
        return -ops.sum(targets * ops.log_softmax(y_pred, axis=-1), axis=-1)


def check_labels(y_true, y_pred):
    """Rejects labels that would be broadcast to the predictions, such as indexes of classes."""
    labels, predictions = utils.static_shape(y_true), utils.static_shape(y_pred)
    if labels is None or predictions is None:
        return
    fits = len(labels) == len(predictions) and all(
        None in pair or pair[0] == pair[1] for pair in zip(labels[1:], predictions[1:], strict=True)
    )
    if not fits:
        raise InputError(
            f"labels must be [videos, {comma_separated(predictions[1:])}] like the predictions, 1 "
            f"for every class that a video has and 0 for the others. Received: {labels}"
        )


LOSSES = {loss.__name__: loss for loss in (CrossEntropyLoss, HingeLoss, SoftmaxLoss)}


def get_loss(name):
    """Returns a new loss by its class name, such as `CrossEntropyLoss`.

    Raises:
        InputError: if there is no such loss, listing those available.
    """
    if name not in LOSSES:
        raise InputError(f"unknown label loss {name!r}. Losses: {comma_separated(LOSSES)}.")
    return LOSSES[name]()
