"""Losses of labels: a sum over classes, averaged over videos.

A loss is a class that derives from `LabelLoss` and is decorated with `@registry.register`. Its
keyword-only constructor arguments are its hyperparameters, like those of a model.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import registry
import utils
from utils import InputError, comma_separated


class LabelLoss(keras.losses.Loss):
    """Base of the losses of labels; a subclass implements `pair_losses`.

        loss = sum_c w_c l(y_c, p_c),  y = (1 - label_smoothing) * labels + label_smoothing * prior

    The weight w_c of a pair of video and class is the product of the class weight and of the weight
    given for the pair. A pair of weight 0 counts like a class that does not exist: neither its
    label nor its prediction has any effect. A subclass stores every argument under its name.

    Args:
        label_smoothing: float. Share of each label that is replaced by the class prior, the share
            of the training videos with the class.
        class_weights: sequence of C floats. Weight of each class; None for 1.
        class_prior: sequence of C floats. The class prior, which `label_smoothing` needs.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    # What `pair_losses` gets as the prediction of a pair of weight 0.
    absent_prediction = 0.5

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        class_prior: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        utils.check_share(label_smoothing=label_smoothing)
        if label_smoothing and class_prior is None:
            raise InputError("label_smoothing needs class_prior, the frequency of each class.")
        self.label_smoothing = label_smoothing
        self.class_weights = _checked("class_weights", class_weights, highest=np.inf)
        self.class_prior = _checked("class_prior", class_prior, highest=1.0)

    def get_config(self):
        """Returns the arguments of the constructor."""
        names = (*registry.own_hyperparameters(type(self)), "class_weights", "class_prior")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the mean loss over the videos, as Keras' losses do.

        Args:
            y_true: labels, `[B, C]`.
            y_pred: predictions, `[B, C]`.
            sample_weight: weights of videos, `[B]`, or of pairs of video and class, `[B, C]`.
        """
        shape = None if sample_weight is None else utils.static_shape(sample_weight)
        if shape is not None and len(shape) == 2 and shape[1] != 1:
            return super().__call__((y_true, sample_weight), y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each video, `[B]`.

        Args:
            y_true: labels, `[B, C]`; or a tuple of labels and weights of pairs, both `[B, C]`.
            y_pred: predictions, `[B, C]`.
        """
        labels, weights = y_true if isinstance(y_true, tuple) else (y_true, None)
        check_labels(labels, y_pred)
        if self.class_prior is not None and self.label_smoothing:
            prior = self._per_class(self.class_prior, y_pred)
            labels = (1.0 - self.label_smoothing) * labels + self.label_smoothing * prior
        if self.class_weights is not None:
            class_weights = self._per_class(self.class_weights, y_pred)
            weights = class_weights if weights is None else weights * class_weights
        if weights is None:
            return ops.sum(self.pair_losses(labels, y_pred), axis=-1)
        counts = weights > 0
        # Chosen before the loss is computed, so that no infinite gradient is multiplied by 0.
        predictions = ops.where(counts, y_pred, self.absent_prediction)
        pair_losses = self.pair_losses(ops.where(counts, labels, 0.0), predictions)
        return ops.sum(weights * pair_losses, axis=-1)

    def pair_losses(self, labels: Any, predictions: Any) -> Any:
        """Returns the loss of each pair of video and class, without weights, `[B, C]`.

        Args:
            labels: 1 for a label, 0 otherwise, or in between, `[B, C]`.
            predictions: probabilities, or scores of any size, `[B, C]`.
        """
        raise NotImplementedError

    def _per_class(self, numbers, predictions):
        shape = utils.static_shape(predictions)
        if shape and shape[-1] not in (None, len(numbers)):
            raise InputError(
                f"{type(self).__name__} has weights or frequencies of {len(numbers)} classes, but "
                f"the predictions are of {shape[-1]}."
            )
        return ops.convert_to_tensor(numbers, predictions.dtype)[None]


@registry.register
class CrossEntropyLoss(LabelLoss):
    """Binary cross entropy, summed over the classes.

        loss = -sum_c [ y_c log(p_c + epsilon) + (1 - y_c) log(1 - p_c + epsilon) ]

    Args:
        epsilon: float. Keeps the logarithms in the loss finite.
    """

    def __init__(self, *, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        utils.check_above(0, epsilon=epsilon)
        self.epsilon = epsilon

    def pair_losses(self, labels, predictions):
        """Returns the cross entropy of each pair, `[B, C]`."""
        positive = labels * ops.log(predictions + self.epsilon)
        negative = (1.0 - labels) * ops.log(1.0 - predictions + self.epsilon)
        return -(positive + negative)


@registry.register
class FocalLoss(CrossEntropyLoss):
    """Cross entropy in which pairs that are predicted well count less.

        loss = -sum_c [ alpha y_c (1 - p_c)^gamma log(p_c)
                        + (1 - alpha) (1 - y_c) p_c^gamma log(1 - p_c) ]

    with `epsilon` added to every p_c and 1 - p_c.

    Args:
        focal_gamma: float. Exponent gamma; 0 gives the cross entropy, weighted by alpha.
        focal_alpha: float. Weight alpha of the labels, between 0 and 1; the pairs without label
            have the weight 1 - alpha.

    Reference: [Lin et al., 2017](https://arxiv.org/abs/1708.02002).
    """

    def __init__(self, *, focal_gamma=2.0, focal_alpha=0.25, **kwargs):
        super().__init__(**kwargs)
        utils.check_at_least(0, focal_gamma=focal_gamma)
        utils.check_above(0, focal_alpha=focal_alpha)
        utils.check_share(focal_alpha=focal_alpha)
        self.focal_gamma = focal_gamma
        self.focal_alpha = focal_alpha

    def pair_losses(self, labels, predictions):
        """Returns the focal loss of each pair, `[B, C]`."""
        p, q = predictions + self.epsilon, 1.0 - predictions + self.epsilon
        positive = self.focal_alpha * labels * q**self.focal_gamma * ops.log(p)
        negative = (1.0 - self.focal_alpha) * (1.0 - labels) * p**self.focal_gamma * ops.log(q)
        return -(positive + negative)


@registry.register
class AsymmetricLoss(CrossEntropyLoss):
    """Focal loss with exponents of its own for labels and for pairs without label.

        loss = -sum_c [ y_c (1 - p_c)^gamma_pos log(p_c)
                        + (1 - y_c) m_c^gamma_neg log(1 - m_c) ],  m_c = max(0, p_c - clip)

    with `epsilon` added to p_c, 1 - p_c, m_c and 1 - m_c. A class without label has no gradient
    while its probability is below `clip`.

    Args:
        asymmetric_gamma_neg: float. Exponent gamma_neg of pairs without label.
        asymmetric_gamma_pos: float. Exponent gamma_pos of labels.
        asymmetric_clip: float. Probability that is subtracted for pairs without label.

    Reference: [Ridnik et al., 2021](https://arxiv.org/abs/2009.14119).
    """

    def __init__(
        self, *, asymmetric_gamma_neg=4.0, asymmetric_gamma_pos=0.0, asymmetric_clip=0.05, **kwargs
    ):
        super().__init__(**kwargs)
        utils.check_at_least(
            0, asymmetric_gamma_neg=asymmetric_gamma_neg, asymmetric_gamma_pos=asymmetric_gamma_pos
        )
        utils.check_share(asymmetric_clip=asymmetric_clip)
        self.asymmetric_gamma_neg = asymmetric_gamma_neg
        self.asymmetric_gamma_pos = asymmetric_gamma_pos
        self.asymmetric_clip = asymmetric_clip

    def pair_losses(self, labels, predictions):
        """Returns the asymmetric loss of each pair, `[B, C]`."""
        p, q = predictions + self.epsilon, 1.0 - predictions + self.epsilon
        shifted = ops.relu(predictions - self.asymmetric_clip)
        focus = (shifted + self.epsilon) ** self.asymmetric_gamma_neg
        positive = labels * q**self.asymmetric_gamma_pos * ops.log(p)
        negative = (1.0 - labels) * focus * ops.log(1.0 - shifted + self.epsilon)
        return -(positive + negative)


@registry.register
class HingeLoss(LabelLoss):
    """Hinge loss, summed over the classes.

        loss = sum_c max(0, margin - s_c p_c),  s_c = 1 for a label, -1 otherwise

    Args:
        margin: float. A label adds to the hinge loss while its score is below this.
    """

    def __init__(self, *, margin=1.0, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def pair_losses(self, labels, predictions):
        """Returns the hinge loss of each pair, `[B, C]`."""
        signs = 2.0 * labels - 1.0
        return ops.relu(self.margin - signs * predictions)


@registry.register
class SoftmaxLoss(LabelLoss):
    """Cross entropy between the normalized labels and a softmax over the scores.

        loss = -sum_c (y_c / sum_k y_k) log softmax(p)_c

    The loss of a video without labels is 0. Classes of weight 0 take no part in the softmax.
    """

    absent_prediction = -1e9

    def pair_losses(self, labels, predictions):
        """Returns the term of each class, `[B, C]`."""
        targets = labels / ops.maximum(ops.sum(labels, axis=-1, keepdims=True), 1.0)
        return -targets * ops.log_softmax(predictions, axis=-1)


def get_loss(name: str, /, **arguments: Any) -> LabelLoss:
    """Returns a new loss by its class name, such as `CrossEntropyLoss`.

    Args:
        name: a registered loss.
        **arguments: hyperparameters that override the defaults, and `class_weights` and
            `class_prior`.

    Raises:
        InputError: if there is no such loss, listing those available, or an argument is not valid.
    """
    data = {key: arguments.pop(key, None) for key in ("class_weights", "class_prior")}
    hyperparameters = registry.resolve_loss(name, arguments)
    return registry.loss_class(name)(**hyperparameters, **data)


def effective_number_weights(counts: Sequence[float], beta: float) -> list[float]:
    """Returns weights of classes that are proportional to 1 / effective number of videos.

        w_c = C e_c / sum_k e_k,  e_c = (1 - beta) / (1 - beta^n_c)

    A class without videos has the weight of a class with one.

    Args:
        counts: number n_c of training videos with the class.
        beta: at least 0 and below 1; 0 gives equal weights, 1 would weight by 1 / n_c.

    Reference: [Cui et al., 2019](https://arxiv.org/abs/1901.05555).
    """
    utils.check_share(beta=beta)
    inverse = (1.0 - beta) / (1.0 - beta ** np.maximum(counts, 1.0))
    return (len(counts) * inverse / inverse.sum()).tolist()


def _checked(name, numbers, highest):
    """Returns numbers of classes as a list of floats, or None."""
    if numbers is None:
        return None
    try:
        values = np.asarray(numbers, np.float64)
        is_valid = values.ndim == 1 and np.isfinite(values).all()
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid or values.min() < 0 or values.max() > highest:
        bound = "" if np.isinf(highest) else f" and at most {highest:g}"
        raise InputError(
            f"{name} must be one number for each class, at least 0{bound}. "
            f"Received: {utils.shortened(numbers)}"
        )
    return values.tolist()


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
