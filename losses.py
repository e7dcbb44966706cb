"""Losses of the YouTube-8M starter code, as Keras losses: summed over classes, mean over videos."""

import keras
from keras import ops

from utils import InputError, comma_separated


class CrossEntropyLoss(keras.losses.Loss):
    """Binary cross entropy of every class, summed over the classes.

        loss = -sum_c [ y_c log(p_c + epsilon) + (1 - y_c) log(1 - p_c + epsilon) ]

    Args:
        epsilon: float. Keeps the logarithms finite.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        """Loss of each video, `[B]`, of labels and probabilities `[B, C]`."""
        positive = y_true * ops.log(y_pred + self.epsilon)
        negative = (1.0 - y_true) * ops.log(1.0 - y_pred + self.epsilon)
        return -ops.sum(positive + negative, axis=-1)


class HingeLoss(keras.losses.Loss):
    """Hinge loss of every class, summed over the classes.

        loss = sum_c max(0, margin - s_c p_c),  s_c = 1 for a label, -1 otherwise

    Args:
        margin: float. The score of a label below which it costs.
    """

    def __init__(self, margin=1.0, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def call(self, y_true, y_pred):
        """Loss of each video, `[B]`, of labels and scores `[B, C]`."""
        signs = 2.0 * y_true - 1.0
        return ops.sum(ops.relu(self.margin - signs * y_pred), axis=-1)


class SoftmaxLoss(keras.losses.Loss):
    """Cross entropy between the labels, sharing 1 equally, and a softmax over the scores.

    A video without labels costs nothing.
    """

    def call(self, y_true, y_pred):
        """Loss of each video, `[B]`, of labels and scores `[B, C]`."""
        targets = y_true / ops.maximum(ops.sum(y_true, axis=-1, keepdims=True), 1.0)
        return -ops.sum(targets * ops.log_softmax(y_pred, axis=-1), axis=-1)


LOSSES = {loss.__name__: loss for loss in (CrossEntropyLoss, HingeLoss, SoftmaxLoss)}


def get_loss(name):
    """A new loss by its class name, as `CrossEntropyLoss`.

    Raises:
        InputError: if there is none; lists what there is.
    """
    if name not in LOSSES:
        raise InputError(f"unknown label loss {name!r}. Losses: {comma_separated(LOSSES)}.")
    return LOSSES[name]()
