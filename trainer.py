"""The training step: losses, gradients, clipping, update, moving averages."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

import checkpoints
import distribution
import initial_weights
import layers
import private_api
import registry
from run_config import RunConfig
from utils import comma_separated

# Slices of a gradient whose squares are added entry by entry before they are summed.
_SUMMANDS = 8


class Trainer:
    """A model, its optimizer and its training step, with the loss since the last log line.

    Args:
        config: what to learn.
        model: built model, a `registry.Model`.
        optimizer: Keras optimizer, built for the model's trainable variables.
        strategy: strategy under which both were built.
        sync_batch_norm: whether batch normalization uses the batch of all devices.

    Attributes:
        ema: moving averages of the weights, a dict from path to `tf.Variable`; None without
            `ema_decay`.
    """

    def __init__(
        self,
        config: RunConfig,
        model: registry.Model,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
        sync_batch_norm: bool = True,
    ):
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.strategy = strategy
        self._sync_batch_norm = sync_batch_norm
        self._label_loss = config.build_loss()
        self._loss_sum = tf.Variable(0.0, trainable=False)
        self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self.ema = self._make_ema() if config.ema_decay else None
        self._gradient_sums = self._make_gradient_sums() if config.gradient_accumulation > 1 else []
        self._frozen = initial_weights.frozen_paths(model, config.freeze)
        self._is_distributed = distribution.is_distributed(strategy)
        self._update: Any = self._clip_and_apply
        if self._is_distributed:
            private_api.skip_gradient_sum(optimizer)
        else:
            # Compiled, the update reads and writes the weights fewer times.
            self._update = tf.function(self._clip_and_apply, autograph=False, jit_compile=True)

    @property
    def step(self) -> int:
        """Number of updates made."""
        return int(self.optimizer.iterations.numpy())

    @property
    def learning_rate(self) -> float:
        """Current learning rate."""
        return float(self.optimizer.learning_rate)

    def pop_loss_sum(self) -> float:
        """Returns the sum of the label losses since the last call."""
        value = float(self._loss_sum)
        self._loss_sum.assign(0.0)
        return value

    def check_finite(self) -> None:
        """Raises `FloatingPointError` if any loss so far was NaN or infinite."""
        bad_step = int(self._first_bad_step)
        if bad_step >= 0:
            raise FloatingPointError(
                f"the loss of step {bad_step} is not finite. Train again with a lower "
                "--base_learning_rate or --clip_gradient_norm, in another --train_dir or with "
                "--start_new_model. The checkpoints from before that step are intact."
            )

    def run(
        self, iterator: Iterator, num_steps: int, keep_outputs: bool = False
    ) -> tuple[Any, Any] | None:
        """Runs `num_steps` steps, or fewer if the data end.

        Args:
            iterator: iterator over the videos of each step, from `Distribution.batches`.
            num_steps: number of steps.
            keep_outputs: whether to return the outputs of the last step.

        Returns:
            `(predictions, labels)` of the last batch, per replica; None if they are not wanted or
            the data ended before the last step.
        """
        if not keep_outputs:
            self._run_steps(iterator, tf.constant(num_steps))
            return None
        if num_steps > 1:
            self._run_steps(iterator, tf.constant(num_steps - 1))
        exists, batch = distribution.next_batch(iterator, self.strategy)
        return self._run_step(*batch()) if exists else None

    @tf.function(autograph=False)
    def _run_steps(self, iterator, num_steps):
        # On several replicas, TensorFlow loses inputs of a function that is called in a loop.
        step = self._step if self._is_distributed else self._run_step

        def run_one_step(num_done):
            exists, batch = distribution.next_batch(iterator, self.strategy)

            def run_batch():
                step(*batch())
                return num_done + 1

            # An exhausted iterator must change nothing, not even a counter of random numbers.
            return tf.cond(exists, run_batch, lambda: num_steps)

        tf.while_loop(lambda num_done: num_done < num_steps, run_one_step, [0])

    @tf.function(autograph=False)
    def _run_step(self, *batch):
        return self._step(*batch)

    def _step(self, *batch):
        """Runs a step on inputs, labels and, with `label_weights`, weights `[B, C]`."""
        earlier_losses = self._accumulate(batch) if self._gradient_sums else None
        replica_losses, predictions, labels = self.strategy.run(self._replica_step, args=batch)
        losses = self.strategy.reduce("MEAN", replica_losses, axis=None)
        if earlier_losses is not None:
            losses = (earlier_losses + losses) / self.config.gradient_accumulation
        label_loss, loss = tf.unstack(losses)
        self._loss_sum.assign_add(label_loss)
        is_first_bad = ~tf.math.is_finite(loss) & (self._first_bad_step < 0)
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        self._first_bad_step.assign(tf.where(is_first_bad, step, self._first_bad_step))
        return predictions, labels

    def _accumulate(self, batch):
        """Adds up the gradients of all batches of a step but the last; sums their losses."""
        last = self.config.gradient_accumulation - 1

        def add_batch(number, losses):
            replica_losses = self.strategy.run(self._add_gradients, args=(number, *batch))
            return number + 1, losses + self.strategy.reduce("MEAN", replica_losses, axis=None)

        # One batch at a time, since memory is the reason for several.
        _, losses = tf.while_loop(
            lambda number, _: number < last, add_batch, [0, tf.zeros([2])], parallel_iterations=1
        )
        return losses

    def _add_gradients(self, number, *batch):
        losses, gradients, _ = self._gradients(*self._batch_of_step(number, batch))
        for total, gradient in zip(self._gradient_sums, gradients, strict=True):
            if gradient is not None:
                total.assign_add(tf.cast(gradient, total.dtype))
        return losses

    def _replica_step(self, *batch):
        """Updates the weights from the last batch of a step and the sums over the others."""
        _, labels, *_ = batch = self._batch_of_step(self.config.gradient_accumulation - 1, batch)
        losses, gradients, predictions = self._gradients(*batch)
        self._warn_of_unused(self.model.trainable_variables, gradients)
        self._update(self._merged(self._mean_over_batches(gradients)))
        if self.ema is not None:
            self._update_ema()
        return losses, predictions, labels

    def _batch_of_step(self, number, batch):
        count = self.config.gradient_accumulation
        return batch if count == 1 else nth_part(batch, number, count)

    def _gradients(self, inputs, labels, *pair_weights):
        """Returns label loss and loss, `[2]`, the gradients of the loss, and predictions."""
        targets = (labels, *pair_weights) if pair_weights else labels
        weights = self.model.trainable_variables
        with layers.running_replica(distribution.this_replica(self._sync_batch_norm)):
            with tf.GradientTape() as tape:
                predictions = self.model(inputs, training=True)
                label_loss = self._mean_label_loss(targets, predictions)
                auxiliary_loss = self.model.auxiliary_loss(
                    functools.partial(self._mean_label_loss, targets)
                )
                loss = tf.add_n([label_loss, *self._added_losses()]) + auxiliary_loss
            gradients = tape.gradient(loss, weights)
        return tf.stack([label_loss, loss]), gradients, predictions

    def _mean_label_loss(self, targets, predictions):
        # Keras' own mean would be divided by the number of replicas.
        return tf.reduce_mean(self._label_loss.call(targets, predictions))

    def _added_losses(self):
        """Returns the losses that layers added, without the weight penalties, which come last."""
        losses = self.model.losses
        added = losses[: len(losses) - len(self._regularized())]
        return [self.config.regularization_penalty * loss for loss in added]

    def _regularized(self):
        return [w for w in self.model.trainable_variables if w.regularizer is not None]

    def _make_ema(self):
        # Without aggregation: replicas hold the same weights, hence the same averages.
        with self.strategy.scope():
            return {
                path: tf.Variable(weight, trainable=False)
                for path, weight in checkpoints.weights(self.model).items()
            }

    def _make_gradient_sums(self):
        with self.strategy.scope():
            return [
                tf.Variable(
                    tf.zeros(weight.shape, weight.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for weight in self.model.trainable_variables
            ]

    def _mean_over_batches(self, gradients):
        """Returns the mean gradients of a step, and sets their sums to 0 for the next."""
        if not self._gradient_sums:
            return gradients
        means = []
        for total, gradient in zip(self._gradient_sums, gradients, strict=True):
            if gradient is not None:
                gradient = total + tf.cast(gradient, total.dtype)
                gradient /= self.config.gradient_accumulation
                total.assign(tf.zeros_like(total))
            means.append(gradient)
        return means

    def _update_ema(self):
        updates = tf.cast(self.optimizer.iterations.value, tf.float32)
        # The first weights are far off, so they fade faster at the beginning.
        decay = tf.minimum(self.config.ema_decay, (1.0 + updates) / (10.0 + updates))
        for path, weight in checkpoints.weights(self.model).items():
            if path in self._frozen:  # Its average is the weight; arithmetic would round it.
                continue
            kept = 0.0 if path.endswith(layers.COUNTER) else decay
            self.ema[path].assign(kept * self.ema[path] + (1.0 - kept) * weight)

    def _merged(self, gradients):
        """Returns the mean of the gradients over the replicas."""
        if not self._is_distributed:
            return [without_cast(gradient) for gradient in gradients]
        context = tf.distribute.get_replica_context()
        known = [gradient for gradient in gradients if gradient is not None]
        sums = iter(context.all_reduce("SUM", known))
        count = self.strategy.num_replicas_in_sync
        return [None if gradient is None else next(sums) / count for gradient in gradients]

    def _clip_and_apply(self, gradients):
        """Adds the gradients of weight penalties, clips the gradients and updates the weights.

        In a compiled update, the first two cost no extra pass through memory.
        """
        weights, penalty_gradients = self.model.trainable_variables, self._penalty_gradients()
        gradients = [
            self._with_penalty(gradient, penalty_gradients.get(w.path), w)
            for gradient, w in zip(gradients, weights, strict=True)
        ]
        self.optimizer.apply(self._clipped(gradients), weights)

    def _penalty_gradients(self):
        """Returns the gradients of the weight penalties, by path of the weight."""
        regularized = self._regularized()
        with tf.GradientTape() as tape:
            penalties = [weight.regularizer(weight) for weight in regularized]
        gradients = tape.gradient(penalties, regularized)
        return {w.path: gradient for w, gradient in zip(regularized, gradients, strict=True)}

    def _with_penalty(self, gradient, penalty_gradient, weight):
        if penalty_gradient is not None:
            penalty_gradient = self.config.regularization_penalty * penalty_gradient
        if gradient is None:
            return penalty_gradient
        gradient = tf.ensure_shape(tf.cast(gradient, weight.dtype), weight.shape)
        return gradient if penalty_gradient is None else gradient + penalty_gradient

    def _clipped(self, gradients):
        norm = self.config.clip_gradient_norm
        if not norm:
            return gradients
        if self.config.clip == "global":
            return clip_by_global_norm(gradients, norm)
        return [
            None if gradient is None else clip_by_norm(gradient, norm) for gradient in gradients
        ]

    def _warn_of_unused(self, weights, gradients):
        unused = [w.path for w, g in zip(weights, gradients, strict=True) if g is None]
        if unused:
            logging.warning(
                "the loss does not depend on these weights: %s", comma_separated(unused)
            )


def without_cast(gradient: tf.Tensor | None) -> tf.Tensor | None:
    """Returns a gradient in the dtype in which it was computed.

    The gradient of a matrix comes from a bfloat16 product and is then cast to the float32 of the
    weight. The value before the cast is equal and takes half the memory.
    """
    if isinstance(gradient, tf.Tensor) and gradient.op.type == "Cast":
        (source,) = gradient.op.inputs
        return source if source.dtype == tf.bfloat16 else gradient
    return gradient


def nth_part(tensors: Any, number: int | tf.Tensor, count: int) -> Any:
    """Returns one of `count` equal parts of tensors: the rows `number`, `number + count` and so on.

    The parts of several replicas then make the same part of the whole batch.

    Args:
        tensors: tensors in nested tuples and dicts.
        number: index of the part.
        count: number of parts, a divisor of the sizes of the first axes.
    """

    def part(tensor):
        shape = tf.shape(tensor)
        rows = tf.reshape(tensor, tf.concat([[shape[0] // count, count], shape[1:]], 0))
        return tf.ensure_shape(tf.gather(rows, number, axis=1), [None, *tensor.shape[1:]])

    return tf.nest.map_structure(part, tensors)


def clip_by_norm(gradient: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Scales a gradient down to an L2 norm where its norm is larger."""
    return gradient * _clipping_factor(_squared_norm(gradient), clip_norm)


def clip_by_global_norm(
    gradients: Sequence[tf.Tensor | None], clip_norm: float
) -> list[tf.Tensor | None]:
    """Scales all gradients by one factor, so that their joint L2 norm is at most `clip_norm`.

    Reference: [Pascanu et al., 2013](https://arxiv.org/abs/1211.5063), algorithm 1.
    """
    total = tf.add_n([_squared_norm(gradient) for gradient in gradients if gradient is not None])
    factor = _clipping_factor(total, clip_norm)
    return [None if gradient is None else gradient * factor for gradient in gradients]


def _clipping_factor(squared_norm, clip_norm):
    return clip_norm / tf.maximum(tf.sqrt(squared_norm), clip_norm)


def _squared_norm(gradient):
    """Sums squares in one pass through memory when XLA compiles it for a CPU.

    XLA sums a large tensor in several passes, but adds slices entry by entry in the same pass that
    squares them.
    """
    squares = tf.square(gradient)
    size = gradient.shape[0] if gradient.shape.rank else 0
    rows = size // _SUMMANDS * _SUMMANDS
    if not rows:
        return tf.reduce_sum(squares)
    if rows < size:
        return _sum_of_slices(squares[:rows]) + tf.reduce_sum(squares[rows:])
    return _sum_of_slices(squares)


def _sum_of_slices(tensor):
    return tf.reduce_sum(tf.add_n(tf.split(tensor, _SUMMANDS)))
