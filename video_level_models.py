"""Models that classify one vector per video.

They serve as models of their own, for mean features of videos, and as classifiers of frame-level
models, which first encode the frames into one vector.
"""

import keras
import numpy as np
from keras import ops

import layers
import registry
import utils


class VideoLevelModel(registry.Model):
    """Base of the models that classify a vector `[B, D]` into probabilities `[B, C]`.

    A subclass creates its layers in the constructor and implements `classify`.

    Args:
        num_classes: int. C.
        feature_sizes: sequence of int. Sizes of the features; their sum is D.
        l2_normalize_input: bool. Whether to scale the input to L2 norm 1 first: true for mean
            features, false for the encoding of a frame-level model.
    """

    frame_level = False

    def __init__(self, *, num_classes, feature_sizes=(), l2_normalize_input=True, name=None):
        super().__init__(name=name)
        self.num_classes = num_classes
        self.feature_sizes = tuple(feature_sizes)
        self.l2_normalize_input = l2_normalize_input

    def build(self, input_shape=None):
        """Creates the weights by one symbolic call; without a shape, for the features."""
        if not self.built:
            is_classifier = not self.feature_sizes
            self.compute_output_spec(
                keras.Input(input_shape[1:]) if is_classifier else self.input_spec_tensors()
            )

    def input_spec_tensors(self):
        """Returns a symbolic input, with which `build` creates the weights."""
        return keras.Input([sum(self.feature_sizes)], dtype="float32")

    def call(self, inputs, training=False):
        """Returns the probabilities, float32 `[B, C]`, of vectors, float32 `[B, D]`."""
        if isinstance(inputs, dict):
            raise utils.InputError(f"{self.name} takes one vector per video, not frames.")
        self.check_input(
            inputs,
            ("float32",),
            ("videos",),
            "quantization.YOUTUBE8M.dequantize returns the features of stored bytes.",
        )
        if self.l2_normalize_input:
            inputs = layers.l2_normalize(inputs)
        return self.classify(inputs, training)

    def classify(self, x, training):
        """Returns the probabilities `[B, C]` of vectors `[B, D]`."""
        raise NotImplementedError


@registry.register
class LogisticModel(VideoLevelModel):
    """One logistic regression per class.

        p = sigmoid(W x + b)

    Args:
        l2_penalty: float. Weight of the L2 penalty, half the sum of squares of W; 0 turns it off.
    """

    has_separate_classes = True

    def __init__(self, *, l2_penalty=1e-8, **kwargs):
        super().__init__(**kwargs)
        self.logistic = layers.Linear(
            self.num_classes, regularizer=half_l2("l2_penalty", l2_penalty), name="logistic"
        )

    def classify(self, x, training):
        """Returns the probabilities `[B, C]` of vectors `[B, D]`."""
        return ops.sigmoid(self.logistic(x))


@registry.register
class MoeModel(VideoLevelModel):
    """Mixture of M experts per class, with a dummy expert that always predicts 0.

        p_c = sum_m softmax_m(G_c x) * sigmoid(w_cm x + b_cm),  m = 1..M of M + 1

    The softmax, the gate probabilities, covers the M experts and the dummy expert. The columns of
    gates and experts hold the first mixture for all classes, then the second, and so on.

    With `moe_prob_gating`, context gating of the class probabilities follows, which lets classes
    support or suppress each other.

    Args:
        moe_num_mixtures: int. Experts per class, not counting the dummy expert that always
            predicts 0.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts; 0
            turns it off.
        moe_prob_gating: bool. Whether context gating follows the class probabilities.

    Reference: [Abu-El-Haija et al., 2016](https://arxiv.org/abs/1609.08675).
    """

    def __init__(self, *, moe_num_mixtures=2, moe_l2=1e-8, moe_prob_gating=False, **kwargs):
        super().__init__(**kwargs)
        utils.check_at_least(1, moe_num_mixtures=moe_num_mixtures)
        self.num_mixtures = moe_num_mixtures
        self.gates = layers.Linear(
            self.num_classes * (moe_num_mixtures + 1),
            use_bias=False,
            regularizer=half_l2("moe_l2", moe_l2),
            name="gates",
        )
        self.experts = layers.Linear(
            self.num_classes * moe_num_mixtures,
            regularizer=half_l2("moe_l2", moe_l2),
            name="experts",
        )
        self.prob_gating = layers.ContextGating(name="prob_gating") if moe_prob_gating else None

    @property
    def has_separate_classes(self):
        """Whether a class depends on no other; see `registry.Model`."""
        return self.prob_gating is None

    def classify(self, x, training):
        """Returns the probabilities `[B, C]` of vectors `[B, D]`."""
        gate_logits = ops.reshape(self.gates(x), (-1, self.num_mixtures + 1, self.num_classes))
        expert_logits = ops.reshape(self.experts(x), (-1, self.num_mixtures, self.num_classes))
        # Classes are the last axis, and the dummy expert is a row like the others: whole tensors
        # with long rows are several times as fast as slices and a softmax over a short axis.
        experts = ops.pad(ops.sigmoid(expert_logits), ((0, 0), (0, 1), (0, 0)))
        largest = ops.max(gate_logits, axis=1, keepdims=True, initial=float("-inf"))
        # Gate probabilities, except for their common denominator.
        gates = ops.exp(gate_logits - ops.stop_gradient(largest))
        probabilities = ops.sum(gates * experts, axis=1) / ops.sum(gates, axis=1)
        if self.prob_gating is None:
            return probabilities
        return self.prob_gating(probabilities, training=training)


def class_positions(size, num_classes, classes):
    """Returns the positions of some classes along an axis of a weight, in their order.

    Args:
        size: int. Size of the axis, which may hold several entries per class, such as those of the
            experts of `MoeModel`: one for each class, then the next for each class, and so on.
        num_classes: int. C.
        classes: sequence of int. Numbers of the classes.
    """
    return np.arange(size).reshape(-1, num_classes)[:, classes].ravel()


def half_l2(name, weight):
    """Returns a Keras regularizer for `weight * sum(w^2) / 2`, the penalty of the starter code.

    Args:
        name: str. Name of the hyperparameter, for the error message.
        weight: float. At least 0.

    Raises:
        InputError: if the weight is negative or NaN.
    """
    utils.check_at_least(0, **{name: weight})
    return keras.regularizers.L2(weight / 2)
