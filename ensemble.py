"""Models for prediction: frozen, averaged over samplings and over the members of an ensemble.

Evaluation, inference and exported graphs all predict through `Ensemble`, with one model or many.
"""

import contextlib
import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import frame_level_models
import layers
import private_api
import stored_matrix
from run_config import RunConfig
from stored_matrix import Int8Matrix, TransposedMatrix, stored_matrices
from utils import InputError
from video_level_models import class_positions

# Norms of frames are computed in small chunks, which stay in the processor's cache.
_MAX_FLOATS_OF_NORMS = 2**20


# --- Frozen models --------------------------------------------------------------------------------
#
# Batch normalization after a matrix, and that of the frames before an assignment to clusters, is
# folded into the matrix. Matrices are stored in the dtype of the products, or in int8; no weight is
# trainable.


def frozen_model(
    config: RunConfig,
    dtype: str,
    name: str | None = None,
    bfloat16_layers: Sequence[str] = layers.BFLOAT16_LAYERS,
    classes: Sequence[int] | None = None,
) -> keras.Model:
    """Builds a frozen model, whose weights `restore_frozen` sets.

    Args:
        config: config of the run.
        dtype: dtype in which matrices are stored, one of `layers.STORAGE_DTYPES`. They are also
            multiplied in it, those in int8 in bfloat16.
        name: prefix of the names of all nodes in its graph.
        bfloat16_layers: layers or matrices that are bfloat16 with `dtype="int8"`.
        classes: numbers of the classes to predict, ascending; None for all. If they depend on
            others, the model predicts all.
    """
    if classes is not None and len(classes) < config.num_classes:
        smaller = dataclasses.replace(config, num_classes=len(classes))
        model = frozen_model(smaller, dtype, name, bfloat16_layers)
        if model.has_separate_classes:
            return model
    with contextlib.ExitStack() as stack:
        stack.enter_context(tf.variable_creator_scope(_not_trainable))
        stack.enter_context(private_api.zero_weights())
        if dtype == "int8":
            stack.enter_context(layers.int8_storage(bfloat16_layers))
            dtype = "bfloat16"
        model = config.build_model(dtype, name)
    _fold(model)
    return model


def restore_frozen(
    frozen: keras.Model,
    config: RunConfig,
    path: str,
    use_ema: bool = False,
    classes: Sequence[int] | None = None,
) -> None:
    """Sets the weights of a frozen model from a checkpoint; see `checkpoints.restore_weights`.

    Args:
        frozen: model of `frozen_model`.
        config: config of the run.
        path: path prefix of the checkpoint.
        use_ema: whether to take the moving averages of the weights.
        classes: as for `frozen_model`.
    """
    has_all_classes = frozen.num_classes == config.num_classes
    is_float32 = {weight.dtype for weight in frozen.weights} == {"float32"}
    if has_all_classes and is_float32 and frozen.name == config.model:
        checkpoints.restore_weights(frozen, path, use_ema)
        _fold(frozen)
        return
    # Matrices of fewer bits cannot hold the weights that are folded.
    with private_api.zero_weights():
        trained = config.build_model()
    checkpoints.restore_weights(trained, path, use_ema)
    _fold(trained)
    for source, target in zip(trained.weights, trained_weights(frozen).values(), strict=True):
        value = source.value
        if not has_all_classes and tuple(value.shape) != tuple(target.shape):
            _check_is_of_classifier(trained, source)
            # The last axis has the classes.
            positions = class_positions(value.shape[-1], config.num_classes, classes)
            value = tf.gather(value, positions, axis=-1)
        target.assign(value)
    # Keras models are part of reference cycles and hold up to 0.6 GiB until Python collects them.
    del trained, source
    gc.collect()


def _check_is_of_classifier(model, weight):
    classifier = getattr(model, "classifier", model)
    if weight.path not in {other.path for other in classifier.weights}:
        raise InputError(
            f"{weight.path} depends on the number of classes, but is not part of the classifier. "
            f"Write has_separate_classes = False in the class {type(model).__name__}, to predict "
            "all classes and select some."
        )


def trained_weights(
    model: keras.Model,
) -> dict[str, keras.Variable | Int8Matrix | TransposedMatrix]:
    """Returns the weights of a frozen model that training knows, by path, in its order.

    A matrix that is stored otherwise takes the place of its variables.
    """
    weights = {weight.path: weight for weight in model.weights}
    for layer in layers.sublayers(model):
        for matrix in stored_matrices(layer):
            first, *others = matrix.variables
            weights[first.path] = matrix
            for variable in others:
                del weights[variable.path]
    return weights


def count_parameters(model: keras.Model) -> int:
    """Returns the number of weights of a frozen model, which does not depend on its dtype."""
    return sum(math.prod(weight.shape) for weight in trained_weights(model).values())


def _fold(model):
    for kind in (frame_level_models.StreamEncoder, layers.Linear):
        for layer in layers.sublayers(model):
            # A subclass of a model may not use all layers, which then have no weights.
            if isinstance(layer, kind) and layer.weights:
                layer.fold()


def _not_trainable(create, **options):
    return create(**{**options, "trainable": False})


# --- Ensembles ------------------------------------------------------------------------------------


class Ensemble:
    """Weighted mean of the predictions of several models, in one graph.

    The norms of the frames are computed once for all models that take the same values. The
    prediction for a video depends on the seed, but not on its batch.

    Args:
        models: models with the same input and classes.
        weights: one weight per model; None for equal weights. Only their proportions count.
        num_samplings: samplings of the frames to average over, for models that sample; 0 uses
            every frame once; None stands for the default of each model.
        seed: seed of the samplings. Each model has its own, from this one and its number.
        max_floats: limit on the activations of a model, about 768 MiB by default. A batch is split
            into chunks that respect it; each chunk reads the weights again. What follows the
            pooling, and the classifier, have chunks of their own, of more videos.
        classes: numbers of the classes to predict, which models of fewer classes predict only;
            None for those of the models.

    Raises:
        InputError: if the weights do not fit.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        num_samplings: int | None = None,
        seed: int = 0,
        max_floats: int = 192 * 2**20,
        classes: Sequence[int] | None = None,
    ):
        self.models = models
        self.classes = classes
        self.weights = normalized_weights(weights, len(models))
        self.num_samplings = [
            model.resolve_samplings(num_samplings) if model.frame_level else 0 for model in models
        ]
        self.seed = seed
        self.max_floats = max_floats

    @property
    def num_classes(self) -> int:
        """Number of the predicted classes, C."""
        return self.models[0].num_classes if self.classes is None else len(self.classes)

    def __call__(self, inputs: dict | tf.Tensor) -> tf.Tensor:
        """Returns probabilities, float32 `[B, C]`, for the inputs of a `readers.Batch`."""
        return self.mean(self.member_predictions(inputs))

    def predict_parts(self, inputs: dict) -> tf.Tensor:
        """Returns probabilities of parts of videos, such as segments, float32 `[B, N, C]`.

        Args:
            inputs: inputs of a `readers.Batch` and `frame_indices`, as for
                `FrameLevelModel.predict_parts`.
        """
        count, num_parts, size = tf.unstack(tf.shape(inputs["frame_indices"]))

        def predict(number, videos):
            model = self.models[number]

            def predict_chunk(chunk):
                return tf.reshape(model.predict_parts(chunk), [-1, model.num_classes])

            # What depends on a frame, and then the parts.
            floats = model.floats_per_video(tf.shape(videos["frames"])[1], 1)
            floats += model.floats_per_video(size, num_parts)
            return self._in_chunks(predict_chunk, videos, [model.num_classes], floats)

        predictions = self.mean(self._for_each_model(inputs, predict))
        predictions = tf.reshape(predictions, [count, num_parts, self.num_classes])
        return tf.ensure_shape(
            predictions, [None, inputs["frame_indices"].shape[1], self.num_classes]
        )

    def predict_whole_batch(self, inputs: dict | tf.Tensor) -> tf.Tensor:
        """Returns probabilities, float32 `[B, C]`, from every frame once.

        The graph has no loop over chunks and no case for empty batches, so that other runtimes
        than TensorFlow can run it. The activations of the whole batch are held at once.
        """
        options = {"num_samplings": 0} if self.models[0].frame_level else {}
        predictions = [model(inputs, training=False, **options) for model in self.models]
        return self.mean(predictions)

    def mean(self, predictions: list[tf.Tensor]) -> tf.Tensor:
        """Returns the weighted mean of the predictions of the models for `classes`."""
        selected = map(self._selected, self.models, predictions)
        pairs = zip(self.weights, selected, strict=True)
        return tf.add_n([weight * probabilities for weight, probabilities in pairs])

    def _selected(self, model, predictions):
        """Returns the predictions of `classes`, from those of a model for these or for all."""
        if model.num_classes == self.num_classes:
            return predictions
        return tf.gather(predictions, self.classes, axis=-1)

    def member_predictions(self, inputs: dict | tf.Tensor) -> list[tf.Tensor]:
        """Returns the probabilities of each model, float32 `[B, C]`."""
        if self.models[0].frame_level:
            return self.classify(self.encodings(inputs))

        def predict(number, vectors):
            model = functools.partial(self.models[number], training=False)
            return self._in_chunks(model, vectors, [self.models[number].num_classes])

        return self._for_each_model(inputs, predict)

    def encodings(self, inputs: dict) -> list[tf.Tensor]:
        """Returns what `classify` and `embed` take: for each model, float32 `[B, max(N, 1), size]`.

        Args:
            inputs: inputs of a `readers.Batch` of frames.
        """
        return self._for_each_model(inputs, self._encode)

    def _encode(self, number, videos):
        """Returns the encodings of the samplings of a model."""
        model, num_samplings = self.models[number], self.num_samplings[number]
        pool = functools.partial(
            model.pool_samplings, num_samplings=num_samplings, seed=(self.seed, number)
        )
        count = max(num_samplings, 1)
        floats = model.floats_per_video(tf.shape(videos["frames"])[1], count)
        shape = [count, model.pooled_size or model.embedding_size]

        def encode(videos):
            pooled = self._in_chunks(pool, videos, shape, floats)
            return model.project_samplings(pooled)

        if model.pooled_size is None:
            return encode(videos)
        return self._in_chunks(encode, videos, [count, model.embedding_size], math.prod(shape))

    def classify(self, encodings: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the probabilities of each model for its `encodings`, float32 `[B, C]`."""

        # The matrices of classifiers are large, so they are read once for many chunks of frames.
        def classify(number, encodings):
            model, count = self.models[number], max(self.num_samplings[number], 1)
            floats = model.floats_per_classification(count)
            return self._in_chunks(
                model.classify_samplings, encodings[number], [model.num_classes], floats
            )

        # Encoding ends first, so that only one model needs memory at a time.
        with tf.control_dependencies(encodings):
            return self._for_each_model(encodings, classify)

    @property
    def has_embeddings(self) -> bool:
        """Whether all models have embeddings."""
        return all(model.embedding_size is not None for model in self.models)

    @property
    def embedding_sizes(self) -> list[int]:
        """Sizes of the embeddings of the models.

        Raises:
            InputError: if a model has no embeddings.
        """
        self._check_embeddings()
        return [model.embedding_size for model in self.models]

    def embeddings(self, inputs: dict | tf.Tensor) -> tf.Tensor:
        """Returns the embeddings of all models side by side, float32 `[B, E]`.

        Raises:
            InputError: if a model has no embeddings.
        """
        self._check_embeddings()
        return self.embed(self.encodings(inputs))

    def _check_embeddings(self):
        for model in self.models:
            if model.embedding_size is None:
                model.embed(None)  # Raises an error that explains it.

    def embed(self, encodings: list[tf.Tensor]) -> tf.Tensor:
        """Returns the embeddings of all models side by side, float32 `[B, E]`.

        They do not depend on the weights of the models.
        """
        means = [tf.reduce_mean(values, axis=1) for values in encodings]
        return tf.concat(means, axis=1)

    def _for_each_model(self, inputs, function):
        """Returns what a function of the number of a model and `inputs` computes for each model.

        Args:
            inputs: inputs of a `readers.Batch`, to which inverse norms of frames are added; or a
                list.
            function: function of the number of a model and of the inputs.
        """
        norms, outputs = {}, []
        for number, model in enumerate(self.models):
            # One model after another, so that only one needs memory at a time.
            with tf.control_dependencies(outputs[-1:]):
                if isinstance(inputs, dict):
                    inputs = self._with_norms(model, inputs, norms)
                outputs.append(function(number, inputs))
        return outputs

    def _in_chunks(self, function, inputs, shape, floats_per_video=1):
        return in_chunks(function, inputs, shape, floats_per_video, self.max_floats)

    def _with_norms(self, model, inputs, norms):
        """Returns inputs with the inverse norms of frames, which models that agree share."""
        videos = {**inputs, "num_frames": tf.cast(inputs["num_frames"], tf.int32)}
        values = (model.normalize_frames, model.frame_format)
        if values not in norms:
            norms[values] = _inverse_norms(model, videos)
        return {**videos, "inverse_norms": norms[values]}


def _inverse_norms(model, videos):
    count, length, size = tf.unstack(tf.shape(videos["frames"]))

    def inverse_norms(chunk):
        return tf.reshape(model.inverse_norms(chunk["frames"]), [-1])

    norms = in_chunks(inverse_norms, videos, [], 2 * length * size, _MAX_FLOATS_OF_NORMS)
    return tf.reshape(norms, [count, length])


def in_chunks(
    function: Callable[[Any], tf.Tensor],
    inputs: Any,
    shape: Sequence[int],
    floats_per_video: tf.Tensor | int,
    max_floats: int,
) -> tf.Tensor:
    """Applies a function to chunks of a batch, and concatenates the results.

    An empty batch has no chunks. Some of TensorFlow's kernels crash on empty tensors.

    Args:
        function: from inputs to float32 `[rows, *shape]`.
        inputs: tensor, or dict of tensors, with one row per video.
        shape: shape of a row of the results.
        floats_per_video: the number of floats that the function holds per video.
        max_floats: number of floats that it may hold, which limits a chunk.
    """
    first = tf.nest.flatten(inputs)[0]
    # Even while TensorFlow optimizes a graph.
    if first.shape[0] == 0:
        return tf.zeros([0, *shape])
    count = tf.shape(first)[0]
    # An empty batch may have videos of no frames.
    size = tf.maximum(max_floats // tf.maximum(floats_per_video, 1), 1)
    num_chunks = (count + size - 1) // size
    size = (count + num_chunks - 1) // tf.maximum(num_chunks, 1)
    results = tf.TensorArray(
        tf.float32, num_chunks, infer_shape=False, element_shape=[None, *shape]
    )

    def add_chunk(number, results):
        start = number * size
        chunk = tf.nest.map_structure(lambda tensor: tensor[start : start + size], inputs)
        return number + 1, results.write(number, function(chunk))

    with casts_outside_loops():
        _, results = tf.while_loop(
            lambda number, _: number < num_chunks, add_chunk, (0, results), parallel_iterations=1
        )
    return tf.ensure_shape(results.concat(), [None, *shape])


def casts_outside_loops() -> contextlib.AbstractContextManager:
    """Casts the matrices of the frames once, before the outermost loop, not in each chunk."""
    if tf.executing_eagerly() or stored_matrix.is_casting_elsewhere():
        return contextlib.nullcontext()
    graph = tf.compat.v1.get_default_graph()

    def cast(function):
        with graph.as_default():
            return function()

    return stored_matrix.casting_by(cast)


def normalized_weights(
    weights: Sequence[float] | np.ndarray | None, num_models: int
) -> list[float]:
    """Returns weights of models that sum to 1.

    Args:
        weights: one weight per model, or None for equal weights.
        num_models: number of models.

    Raises:
        InputError: if their number does not fit, or they are negative or all 0.
    """
    weights = [1.0] * num_models if weights is None else [float(weight) for weight in weights]
    if len(weights) != num_models:
        raise InputError(
            f"there must be one weight per model: {num_models}. Received: {len(weights)}"
        )
    if not all(0 <= weight < np.inf for weight in weights) or not any(weights):
        raise InputError(f"weights must be 0 or more, and one of them above 0. Received: {weights}")
    return [weight / sum(weights) for weight in weights]


def with_weight(
    train_dirs: Sequence[str], weights: Sequence[float] | np.ndarray | None
) -> tuple[list[int], list[float] | None]:
    """Leaves out the runs whose weight is 0, with a log line.

    Args:
        train_dirs: directories of training runs.
        weights: one weight per run; None for equal weights.

    Returns:
        The positions of the other runs, and their weights.

    Raises:
        InputError: if the weights do not fit.
    """
    if weights is None:
        return list(range(len(train_dirs))), None
    normalized_weights(weights, len(train_dirs))  # Checks them.
    for train_dir, weight in zip(train_dirs, weights, strict=True):
        if not weight:
            logging.info("%s has weight 0 and is left out", train_dir)
    kept = [number for number, weight in enumerate(weights) if weight]
    return kept, [float(weights[number]) for number in kept]


class StackingFit:
    """Fits the weights of an ensemble to labels by least squares.

    The error is a quadratic function of the weights, so two small sums over all videos suffice.
    Weights are 0 or more and sum to 1.

    Args:
        num_models: number of models.

    Reference: Breiman, Stacked Regressions, Machine Learning 24, 1996.
    """

    def __init__(self, num_models: int):
        self._products = np.zeros((num_models, num_models))
        self._targets = np.zeros(num_models)

    def accumulate(self, predictions: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Adds videos: a list of `[B, C]` predictions, one per model, and labels `[B, C]`."""
        rows = np.stack([np.ravel(values) for values in predictions]).astype(np.float64)
        self._products += rows @ rows.T
        self._targets += rows @ np.ravel(labels)

    def weights(self) -> np.ndarray:
        """Returns the best weights for the videos so far, `[num_models]`."""
        best, best_error = np.zeros(len(self._targets)), np.inf
        for members in _subsets(len(self._targets)):
            weights = self._weights_of(members)
            error = weights @ self._products @ weights - 2 * self._targets @ weights
            if weights.min() >= 0 and error < best_error:
                best, best_error = weights, error
        return best

    def _weights_of(self, members):
        """Returns the best weights that sum to 1 over some models, by a Lagrange multiplier."""
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
