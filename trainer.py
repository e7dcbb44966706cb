"""The training step: losses, gradients, clipping, update, moving averages."""

import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

import checkpoints
import distribution
import initial_weights
import layers
import losses
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
        self._label_loss = losses.get_loss(config.label_loss)
        self._loss_sum = tf.Variable(0.0, trainable=False)
        self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self.ema = self._make_ema() if config.ema_decay else None
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
            iterator: iterator over batches, from `Distribution.batches`.
            num_steps: number of steps.
            keep_outputs: whether to return the outputs of the last step.

        Returns:
            `(predictions, labels)` of the last step, per replica; None if they are not wanted or
            the data ended before that step.
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
    def _run_step(self, inputs, labels):
        return self._step(inputs, labels)

    def _step(self, inputs, labels):
        both_losses, predictions = self.strategy.run(self._replica_step, args=(inputs, labels))
        label_loss, loss = tf.unstack(self.strategy.reduce("MEAN", both_losses, axis=None))
        self._loss_sum.assign_add(label_loss)
        is_first_bad = ~tf.math.is_finite(loss) & (self._first_bad_step < 0)
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        self._first_bad_step.assign(tf.where(is_first_bad, step, self._first_bad_step))
        return predictions, labels

    def _replica_step(self, inputs, labels):
        weights = self.model.trainable_variables
        with layers.running_replica(distribution.this_replica(self._sync_batch_norm)):
            with tf.GradientTape() as tape:
                predictions = self.model(inputs, training=True)
                label_loss = self._mean_label_loss(labels, predictions)
                auxiliary_loss = self.model.auxiliary_loss(
                    functools.partial(self._mean_label_loss, labels)
                )
                loss = tf.add_n([label_loss, *self._added_losses()]) + auxiliary_loss
            gradients = tape.gradient(loss, weights)
        self._warn_of_unused(weights, gradients)
        self._update(self._merged(gradients))
        if self.ema is not None:
            self._update_ema()
        return tf.stack([label_loss, loss]), predictions

    def _mean_label_loss(self, labels, predictions):
        # Keras' own mean would be divided by the number of replicas.
        return tf.reduce_mean(self._label_loss.call(labels, predictions))

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

    def _update_ema(self):
        updates = tf.cast(self.optimizer.iterations.value, tf.float32)
        # The first weights are far off, so they fade faster at the beginning.
        decay = tf.minimum(self.config.ema_decay, (1.0 + updates) / (10.0 + updates))
        for path, weight in checkpoints.weights(self.model).items():
            if path in self._frozen:  # Its average is the weight; arithmetic would round it.
                continue
            kept = 0.0 if path.endswith("num_updates") else decay
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
        """Adds the gradients of weight penalties, clips each gradient and updates the weights.

        In a compiled update, the first two cost no extra pass through memory.
        """
        weights, penalty_gradients = self.model.trainable_variables, self._penalty_gradients()
        self.optimizer.apply(
            [
                self._clipped(self._with_penalty(gradient, penalty_gradients.get(w.path), w))
                for gradient, w in zip(gradients, weights, strict=True)
            ],
            weights,
        )

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

    def _clipped(self, gradient):
        norm = self.config.clip_gradient_norm
        return clip_by_norm(gradient, norm) if gradient is not None and norm > 0 else gradient

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


def clip_by_norm(gradient: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Computes `tf.clip_by_norm` in one pass through memory when XLA compiles it for a CPU.

    XLA sums a large tensor in several passes, but adds slices entry by entry in the same pass that
    squares them.
    """
    rows = gradient.shape[0] // _SUMMANDS * _SUMMANDS if gradient.shape.rank else 0
    total = tf.reduce_sum(tf.square(gradient[rows:] if rows else gradient))
    if rows:
        slices = tf.split(gradient[:rows], _SUMMANDS)
        total += tf.reduce_sum(tf.add_n([tf.square(part) for part in slices]))
    return gradient * (clip_norm / tf.maximum(tf.sqrt(total), clip_norm))
