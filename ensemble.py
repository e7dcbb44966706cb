"""The weighted mean of several models' predictions, each averaged over samplings of the frames.

Evaluation, inference and exported graphs all predict through `Ensemble`, with one model or many.
"""

import numpy as np
import tensorflow as tf

import frame_level_models
import stored_frames
from utils import InputError

# The lengths of the frames are found in smaller parts, which stay in the processor's cache.
_MOST_SCALES = 2**20


class Ensemble:
    """Predicts with several models in one graph.

    The lengths of the frames, by which they are normalised, are found once for all models. A
    prediction depends on nothing but the input and the seed: the same batch gives the same result
    at every call.

    Args:
        models: list of `keras.Model`s with the same input and classes.
        weights: sequence of float, one per model; None for equal ones. Only their proportions
            count.
        num_samplings: int. Samplings of the frames to average over, for models that sample; 0
            takes every frame once instead.
        seed: int. Of the samplings.
        most_values: int. A model gets as many videos at once as keep its activations at about so
            many floats, by default 768 MiB. Each part of a batch goes through all weights again.

    Raises:
        InputError: if the weights do not fit.
    """

    def __init__(self, models, *, weights=None, num_samplings=1, seed=0, most_values=192 * 2**20):
        self.models = models
        self.weights = normalized_weights(weights, len(models))
        self.num_samplings = num_samplings
        self.seed = seed
        self.most_values = most_values

    def __call__(self, inputs):
        """Probabilities, float32 `[B, C]`, of the inputs of a `readers.Batch` as tensors."""
        predictions = tf.add_n(
            [
                weight * probabilities
                for weight, probabilities in zip(
                    self.weights, self.member_predictions(inputs), strict=True
                )
            ]
        )
        return tf.ensure_shape(predictions, [None, self.models[0].num_classes])

    def member_predictions(self, inputs):
        """Probabilities of each model by itself: a list of float32 `[B, C]`."""
        # Some of TensorFlow's kernels crash on empty tensors, even while it optimises a graph.
        first = tf.nest.flatten(inputs)[0]
        nothing = [tf.zeros([0, model.num_classes]) for model in self.models]
        if first.shape[0] == 0:
            return nothing
        return tf.cond(
            tf.shape(first)[0] > 0, lambda: self._member_predictions(inputs), lambda: nothing
        )

    def _member_predictions(self, inputs):
        if not self.models[0].frame_level:
            return [model(inputs, training=False) for model in self.models]
        videos = {
            "frames": inputs["frames"],
            "num_frames": tf.cast(inputs["num_frames"], tf.int32),
        }
        count, length, size = tf.unstack(tf.shape(videos["frames"]))
        scales = in_parts(
            lambda part: stored_frames.frame_scales(part["frames"]),
            videos,
            2 * length * size,
            _MOST_SCALES,
        )
        videos["scales"] = tf.reshape(scales, [count, length])
        predictions = []
        for number, model in enumerate(self.models):
            # One model after the other, so that the memory of one is that of all.
            with tf.control_dependencies(predictions[-1:]):
                predictions.append(self._predict(model, number, videos))
        return predictions

    def _predict(self, model, number, videos):
        num_frames, length = videos["num_frames"], tf.shape(videos["frames"])[1]
        if model.iterations and self.num_samplings == 0:
            positions = frame_level_models.all_positions(num_frames, length)
        else:
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            positions = model.draw_positions(num_frames, self.num_samplings, seed)
        inputs = videos if positions is None else {**videos, "positions": positions}
        values = model.values_per_video(length, max(self.num_samplings, 1))
        return in_parts(lambda part: model(part, training=False), inputs, values, self.most_values)


def in_parts(function, inputs, values, most_values):
    """Joins what a function gives for some videos at a time.

    Args:
        function: from inputs to a float32 tensor.
        inputs: dict of tensors, each with one row per video.
        values: int tensor. How many floats the function holds per video.
        most_values: int. How many it may hold; it limits a part.
    """
    count = tf.shape(inputs["num_frames"])[0]
    size = tf.maximum(most_values // values, 1)
    num_parts = (count + size - 1) // size
    size = (count + num_parts - 1) // num_parts
    parts = tf.TensorArray(tf.float32, num_parts, infer_shape=False)

    def add_part(number, parts):
        start = number * size
        part = {name: tensor[start : start + size] for name, tensor in inputs.items()}
        return number + 1, parts.write(number, function(part))

    _, parts = tf.while_loop(
        lambda number, _: number < num_parts, add_part, (0, parts), parallel_iterations=1
    )
    return parts.concat()


def normalized_weights(weights, num_models):
    """Weights of models that sum to 1, a list of float.

    Args:
        weights: sequence of float, or None for equal ones.
        num_models: int.

    Raises:
        InputError: if there is not one for each model, or they are negative or all 0.
    """
    weights = [1.0] * num_models if weights is None else [float(weight) for weight in weights]
    if len(weights) != num_models:
        raise InputError(
            f"there must be one weight per model: {num_models}. Received: {len(weights)}"
        )
    if not all(0 <= weight < np.inf for weight in weights) or not any(weights):
        raise InputError(f"weights must be 0 or more, and one of them above 0. Received: {weights}")
    return [weight / sum(weights) for weight in weights]


class StackingFit:
    """Finds the weights that make an ensemble closest to the labels, in squared error.

    The error is a quadratic function of the weights, so that two small sums over all videos are
    all that it needs. Weights are 0 or more and sum to 1.

    Args:
        num_models: int.

    Reference: Breiman, Stacked Regressions, Machine Learning 24, 1996.
    """

    def __init__(self, num_models):
        self._products = np.zeros((num_models, num_models))
        self._targets = np.zeros(num_models)

    def accumulate(self, predictions, labels):
        """Adds videos: a list of `[B, C]` predictions, one per model, and labels `[B, C]`."""
        rows = np.stack([np.ravel(values) for values in predictions]).astype(np.float64)
        self._products += rows @ rows.T
        self._targets += rows @ np.ravel(labels)

    def weights(self):
        """The best weights for the videos so far, `[num_models]`."""
        best, best_error = None, np.inf
        for members in _subsets(len(self._targets)):
            weights = self._weights_of(members)
            error = weights @ self._products @ weights - 2 * self._targets @ weights
            if weights.min() >= 0 and error < best_error:
                best, best_error = weights, error
        return best

    def _weights_of(self, members):
        """Best weights that sum to 1 over some models, by a Lagrange multiplier."""
        size = len(members)
        system = np.ones((size + 1, size + 1))
        system[:size, :size] = self._products[np.ix_(members, members)]
        system[size, size] = 0.0
        right = np.append(self._targets[members], 1.0)
        weights = np.zeros(len(self._targets))
        weights[members] = np.linalg.lstsq(system, right, rcond=None)[0][:size]
        return weights


def _subsets(count):
    for bits in range(1, 2**count):
        yield [number for number in range(count) if bits >> number & 1]
