"""Models that classify one vector per video.

They are models by themselves, for the mean features of videos, and the classifiers of frame-level
models, which reduce the frames to one vector first.
"""

import keras
from keras import ops

import layers
import registry
import utils


class VideoLevelModel(keras.Model):
    """Base of the models that classify a vector `[B, D]` into probabilities `[B, C]`.

    A subclass makes its layers in the constructor and implements `classify`.

    Args:
        num_classes: int. C.
        feature_sizes: sequence of int. Sizes of the features; their sum is D.
        l2_normalize_input: bool. Whether the input is normalised to length 1 first, as mean
            features are; the encoding of a frame-level model is not.
    """

    frame_level = False

    def __init__(self, *, num_classes, feature_sizes=(), l2_normalize_input=True, name=None):
        super().__init__(name=name or type(self).__name__)
        self.num_classes = num_classes
        self.feature_sizes = tuple(feature_sizes)
        self.l2_normalize_input = l2_normalize_input

    def input_spec_tensors(self):
        """Symbolic input, by which the weights are made."""
        return keras.Input([sum(self.feature_sizes)], dtype="float32")

    def call(self, inputs, training=False):
        """Probabilities, float32 `[B, C]`, of float32 `[B, D]`."""
        if self.l2_normalize_input:
            inputs = layers.l2_normalize(inputs)
        return self.classify(inputs, training)

    def classify(self, x, training):
        """Probabilities `[B, C]` of vectors `[B, D]`."""
        raise NotImplementedError


@registry.register
class LogisticModel(VideoLevelModel):
    """One logistic regression per class.

        p = sigmoid(W x + b)

    Args:
        l2_penalty: float. Weight of the L2 penalty, half the sum of squares of W.
    """

    def __init__(self, *, l2_penalty=1e-8, **kwargs):
        super().__init__(**kwargs)
        self.logistic = layers.Linear(
            self.num_classes, regularizer=half_l2("l2_penalty", l2_penalty), name="logistic"
        )

    def classify(self, x, training):
        """Probabilities `[B, C]` of vectors `[B, D]`."""
        return ops.sigmoid(self.logistic(x))


@registry.register
class MoeModel(VideoLevelModel):
    """Mixture of experts: per class, a softmax over M experts and one that always says no.

        p_c = sum_m softmax_m(G_c x) * sigmoid(w_cm x + b_cm),  m = 1..M of M + 1

    The columns of gates and experts are those of the first mixture for all classes, then those of
    the second, and so on.

    With `moe_prob_gating`, context gating of the class probabilities follows, which lets classes
    support or suppress each other.

    Args:
        moe_num_mixtures: int. M, experts per class without the one that always says no.
        moe_l2: float. Weight of the L2 penalty, half the sum of squares of gates and experts.
        moe_prob_gating: bool. Whether context gating of the probabilities follows.

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

    def classify(self, x, training):
        """Probabilities `[B, C]` of vectors `[B, D]`."""
        gates = ops.reshape(self.gates(x), (-1, self.num_mixtures + 1, self.num_classes))
        experts = ops.reshape(self.experts(x), (-1, self.num_mixtures, self.num_classes))
        # Classes come last, and the expert that always says no is one of all: long rows and whole
        # tensors are several times as fast as a softmax over a short axis and a part of it.
        experts = ops.pad(ops.sigmoid(experts), ((0, 0), (0, 1), (0, 0)))
        largest = ops.stop_gradient(ops.max(gates, axis=1, keepdims=True, initial=float("-inf")))
        shares = ops.exp(gates - largest)
        probabilities = ops.sum(shares * experts, axis=1) / ops.sum(shares, axis=1)
        if self.prob_gating is None:
            return probabilities
        return self.prob_gating(probabilities, training=training)


def half_l2(name, weight):
    """Keras regularizer for `weight * sum(w^2) / 2`, the penalty of the starter code."""
    utils.check_at_least(0, **{name: weight})
    return keras.regularizers.L2(weight / 2)
