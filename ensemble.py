"""Models for prediction: frozen, averaged over samplings and over the members of an ensemble.

Evaluation, inference and exported graphs all predict through `Ensemble`, with one model or many.
"""

import contextlib
import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import frame_level_models
import layers
import private_api
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
            # Only the classifier has classes, as the last axis.
            positions = class_positions(value.shape[-1], config.num_classes, classes)
            value = tf.gather(value, positions, axis=-1)
        target.assign(value)
    # Keras models are part of reference cycles and hold up to 0.6 GiB until Python collects them.
    del trained, source
    gc.collect()


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
            if isinstance(layer, kind):
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
            into chunks that respect it; each chunk reads the weights again. The classifier has
            chunks of its own, of more videos.
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
        predictions = self._weighted_sum(self.member_predictions(inputs))
        return tf.ensure_shape(predictions, [None, self.num_classes])

    def predict_parts(self, inputs: dict) -> tf.Tensor:
        """Returns probabilities of parts of videos, such as segments, float32 `[B, N, C]`.

        Args:
            inputs: inputs of a `readers.Batch` and `frame_indices`, as for
                `FrameLevelModel.predict_parts`.
        """
        count = tf.shape(inputs["frame_indices"])[1]
        predict = [_for_samplings(model.predict_parts) for model in self.models]
        shapes = [[count, model.num_classes] for model in self.models]
        predictions = self._weighted_sum(self._member_outputs(inputs, predict, shapes))
        count = inputs["frame_indices"].shape[1]
        return tf.ensure_shape(predictions, [None, count, self.num_classes])

    def predict_whole_batch(self, inputs: dict | tf.Tensor) -> tf.Tensor:
        """Returns probabilities, float32 `[B, C]`, from every frame once.

        The graph has no loop over chunks and no case for empty batches, so that other runtimes
        than TensorFlow can run it. The activations of the whole batch are held at once.
        """
        options = {"num_samplings": 0} if self.models[0].frame_level else {}
        predictions = [model(inputs, training=False, **options) for model in self.models]
        return self._weighted_sum(predictions)

    def _weighted_sum(self, predictions):
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
        shapes = [[model.num_classes] for model in self.models]
        if not self.models[0].frame_level:
            predict = [functools.partial(model, training=False) for model in self.models]
            return self._member_outputs(inputs, predict, shapes)
        # The classifiers, whose matrices are large, run once for many chunks of frames.
        encode = [model.encode_samplings for model in self.models]
        return self._member_outputs(inputs, encode, shapes, self._classify)

    def _classify(self, number, encodings):
        """Returns the probabilities of a model for encodings of samplings, `[B, C]`."""
        model, count = self.models[number], max(self.num_samplings[number], 1)
        encodings = tf.ensure_shape(encodings, [None, count, model.embedding_size])
        return in_chunks(
            lambda chunk: model.classify_samplings(chunk["encodings"]),
            {"encodings": encodings},
            model.floats_per_classification(count),
            self.max_floats,
        )

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
        for model in self.models:
            if model.embedding_size is None:
                model.embed(None)  # Raises an error that explains it.
        return [model.embedding_size for model in self.models]

    def embeddings(self, inputs: dict | tf.Tensor) -> tf.Tensor:
        """Returns the embeddings of all models side by side, float32 `[B, E]`.

        They do not depend on the weights of the models.

        Raises:
            InputError: if a model has no embeddings.
        """
        sizes = self.embedding_sizes
        embed = [model.embed for model in self.models]
        shapes = [[size] for size in sizes]
        side_by_side = tf.concat(self._member_outputs(inputs, embed, shapes), axis=1)
        return tf.ensure_shape(side_by_side, [None, sum(sizes)])

    def _member_outputs(self, inputs, functions, shapes, finish=None):
        """Returns what a function of each model computes, float32 `[B, *shape]`.

        Args:
            inputs: inputs of a `readers.Batch`; with `frame_indices`, parts take the place of
                samplings.
            functions: functions of a chunk of `inputs`, `num_samplings` and `seed`.
            shapes: shape of the result of each function for a video.
            finish: function of the number of a model and the values of its function for all videos,
                which returns the result.
        """
        # Some of TensorFlow's kernels crash on empty tensors, even while it optimizes a graph.
        first = tf.nest.flatten(inputs)[0]
        nothing = [tf.zeros([0, *shape]) for shape in shapes]
        if first.shape[0] == 0:
            return nothing
        return tf.cond(
            tf.shape(first)[0] > 0, lambda: self._apply(functions, inputs, finish), lambda: nothing
        )

    def _apply(self, functions, inputs, finish):
        if not self.models[0].frame_level:
            return [function(inputs) for function in functions]
        videos = {**inputs, "num_frames": tf.cast(inputs["num_frames"], tf.int32)}
        norms = {}
        outputs = []
        for number, (model, function) in enumerate(zip(self.models, functions, strict=True)):
            values = (model.normalize_frames, model.frame_format)
            # One model after another, so that only one needs memory at a time.
            with tf.control_dependencies(outputs[-1:]):
                if values not in norms:
                    norms[values] = _inverse_norms(model, videos)
                inputs = {**videos, "inverse_norms": norms[values]}
                output = self._apply_in_chunks(function, number, inputs)
                outputs.append(finish(number, output) if finish else output)
        return outputs

    def _apply_in_chunks(self, function, number, videos):
        options = {"num_samplings": self.num_samplings[number], "seed": (self.seed, number)}
        length = tf.shape(videos["frames"])[1]
        count = max(self.num_samplings[number], 1)
        floats = self.models[number].floats_per_video(length, count)
        if "frame_indices" in videos:
            _, count, size = tf.unstack(tf.shape(videos["frame_indices"]))
            # What depends on a frame, and then the parts.
            floats = self.models[number].floats_per_video(length, 1)
            floats += self.models[number].floats_per_video(size, count)
        return in_chunks(lambda chunk: function(chunk, **options), videos, floats, self.max_floats)


def _for_samplings(predict_parts):
    """Returns a function with the arguments of one that draws samplings, and ignores them."""
    return lambda inputs, **_: predict_parts(inputs)


def _inverse_norms(model, videos):
    count, length, size = tf.unstack(tf.shape(videos["frames"]))
    norms = in_chunks(
        lambda chunk: model.inverse_norms(chunk["frames"]),
        videos,
        2 * length * size,
        _MAX_FLOATS_OF_NORMS,
    )
    return tf.reshape(norms, [count, length])


def in_chunks(
    function: Callable[[dict], tf.Tensor],
    inputs: dict[str, tf.Tensor],
    floats_per_video: tf.Tensor,
    max_floats: int,
) -> tf.Tensor:
    """Applies a function to chunks of a batch, and concatenates the results.

    Args:
        function: from inputs to a float32 tensor.
        inputs: tensors with one row per video.
        floats_per_video: int tensor, the number of floats that the function holds per video.
        max_floats: number of floats that it may hold, which limits a chunk.
    """
    count = tf.shape(next(iter(inputs.values())))[0]
    size = tf.maximum(max_floats // floats_per_video, 1)
    num_chunks = (count + size - 1) // size
    size = (count + num_chunks - 1) // num_chunks
    results = tf.TensorArray(tf.float32, num_chunks, infer_shape=False)

    def add_chunk(number, results):
        start = number * size
        chunk = {name: tensor[start : start + size] for name, tensor in inputs.items()}
        return number + 1, results.write(number, function(chunk))

    _, results = tf.while_loop(
        lambda number, _: number < num_chunks, add_chunk, (0, results), parallel_iterations=1
    )
    return results.concat()


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
