"""The training loop: steps, log lines, checkpoints."""

import math
import time

import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import distribution
import eval_util
import losses
import replicas
from utils import listing

# One call runs as many steps as fit in about this time, so that the progress shown is fresh.
_SECONDS_PER_CALL = 1.0
_MOST_STEPS_PER_CALL = 50
# Slices of a gradient whose squares are added up before they are summed.
_SUMMANDS = 8


class Trainer:
    """The training step and what it accumulates between two log lines."""

    def __init__(self, config, model, optimizer, strategy, sync_batch_norm=True):
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.strategy = strategy
        self._sync_batch_norm = sync_batch_norm
        self._label_loss = losses.get_loss(config.label_loss)
        self._loss_sum = tf.Variable(0.0, trainable=False)
        self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self.ema = self._make_ema() if config.ema_decay else None
        self._is_distributed = distribution.is_distributed(strategy)
        if self._is_distributed:
            _leave_out_reduction(optimizer)
            self._update = self._clip_and_apply
        else:
            # Compiled, the update goes through the memory of the weights fewer times.
            self._update = tf.function(self._clip_and_apply, autograph=False, jit_compile=True)

    @property
    def step(self):
        """Number of updates made."""
        return int(self.optimizer.iterations.numpy())

    @property
    def learning_rate(self):
        """Current learning rate."""
        return float(self.optimizer.learning_rate)

    def take_loss_sum(self):
        """Sum of the label losses since the last call."""
        value = float(self._loss_sum)
        self._loss_sum.assign(0.0)
        return value

    def check_finite(self):
        """Raises FloatingPointError if a loss since the start was NaN or infinite."""
        bad_step = int(self._first_bad_step)
        if bad_step >= 0:
            raise FloatingPointError(
                f"the loss of step {bad_step} is not finite. Try a lower --base_learning_rate or "
                "--clip_gradient_norm; the checkpoints from before that step are intact."
            )

    def run(self, iterator, num_steps, keep_outputs=False):
        """Runs `num_steps` steps, or fewer if the data end.

        Args:
            iterator: iterator over the batches of the strategy, as of `Distribution.batches`.
            num_steps: int.
            keep_outputs: bool. Whether to return the outputs of the last step.

        Returns:
            `(predictions, labels)` of the last step, per replica; None if they are not wanted or
            the data ended before.
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
        # Under several replicas TensorFlow loses inputs of a function that is called in a loop.
        step = self._step if self._is_distributed else self._run_step

        def run_next(done):
            exists, batch = distribution.next_batch(iterator, self.strategy)

            def run_batch():
                step(*batch())
                return done + 1

            # An exhausted iterator must change nothing, not even a counter of random numbers.
            return tf.cond(exists, run_batch, lambda: num_steps)

        tf.while_loop(lambda done: done < num_steps, run_next, [0])

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
        with replicas.running(distribution.this_replica(self._sync_batch_norm)):
            with tf.GradientTape() as tape:
                predictions = self.model(inputs, training=True)
                # Keras' own mean would be divided by the number of replicas.
                label_loss = tf.reduce_mean(self._label_loss.call(labels, predictions))
                loss = tf.add_n([label_loss, *self._added_losses()])
            gradients = tape.gradient(loss, weights)
        self._warn_of_unused(weights, gradients)
        self._update(self._merged(gradients))
        if self.ema is not None:
            self._update_ema()
        return tf.stack([label_loss, loss]), predictions

    def _added_losses(self):
        """What layers added to the loss; the penalties of weights, the last ones, come later."""
        losses = self.model.losses
        added = losses[: len(losses) - len(self._regularized())]
        return [self.config.regularization_penalty * loss for loss in added]

    def _regularized(self):
        return [w for w in self.model.trainable_variables if w.regularizer is not None]

    def _make_ema(self):
        """Moving averages of all weights, a dict from path to `tf.Variable`."""
        # Without aggregation: replicas hold the same weights, and so the same averages.
        with self.strategy.scope():
            return {
                path: tf.Variable(weight, trainable=False)
                for path, weight in checkpoints.weights(self.model).items()
            }

    def _update_ema(self):
        updates = tf.cast(self.optimizer.iterations.value, tf.float32)
        # The first weights are far off: in the beginning they fade faster.
        decay = tf.minimum(self.config.ema_decay, (1.0 + updates) / (10.0 + updates))
        for path, weight in checkpoints.weights(self.model).items():
            kept = 0.0 if path.endswith("num_updates") else decay
            self.ema[path].assign(kept * self.ema[path] + (1.0 - kept) * weight)

    def _merged(self, gradients):
        """Mean over the replicas."""
        if not self._is_distributed:
            return [as_computed(gradient) for gradient in gradients]
        context = tf.distribute.get_replica_context()
        known = [gradient for gradient in gradients if gradient is not None]
        sums = iter(context.all_reduce("SUM", known))
        count = self.strategy.num_replicas_in_sync
        return [None if gradient is None else next(sums) / count for gradient in gradients]

    def _clip_and_apply(self, gradients):
        """Adds the penalties of weights, clips the gradient of each and updates the weights.

        In a compiled update neither costs a pass through the memory of its own.
        """
        weights, regularized = self.model.trainable_variables, self._regularized()
        with tf.GradientTape() as tape:
            penalties = [weight.regularizer(weight) for weight in regularized]
        penalties = tape.gradient(penalties, regularized)
        of_penalty = dict(zip((w.path for w in regularized), penalties, strict=True))
        norm = self.config.clip_gradient_norm

        def whole(gradient, weight):
            penalty = of_penalty.get(weight.path)
            if gradient is None and penalty is None:
                return None
            if gradient is None:
                gradient = tf.zeros_like(penalty)
            gradient = tf.ensure_shape(tf.cast(gradient, weight.dtype), weight.shape)
            if penalty is not None:
                gradient += self.config.regularization_penalty * penalty
            return clip_by_norm(gradient, norm) if norm > 0 else gradient

        self.optimizer.apply(
            [whole(gradient, w) for gradient, w in zip(gradients, weights, strict=True)], weights
        )

    def _warn_of_unused(self, weights, gradients):
        unused = [w.path for w, g in zip(weights, gradients, strict=True) if g is None]
        if unused:
            logging.warning("the loss does not depend on these weights: %s", listing(unused))


def _leave_out_reduction(optimizer):
    """Keeps a Keras optimizer from adding up over the replicas what is merged already.

    Clipping comes between merging and the update. To merge twice would send every gradient twice.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            "this version of Keras merges gradients in another way than the trainer knows. Use "
            "Keras 3.15, or train on one device."
        )
    optimizer._all_reduce_sum_gradients = list


def as_computed(gradient):
    """A gradient in the type in which it was computed.

    That of a matrix comes from a product in bfloat16 and is then converted to the float32 of the
    weight. The update is told the value before, the same in half the memory.
    """
    if isinstance(gradient, tf.Tensor) and gradient.op.type == "Cast":
        (source,) = gradient.op.inputs
        return source if source.dtype == tf.bfloat16 else gradient
    return gradient


def clip_by_norm(gradient, most):
    """`tf.clip_by_norm` that XLA turns into one pass through the memory on CPU.

    It sums a large tensor in several passes, but what is added up entry by entry first in the same
    pass as its squares.
    """
    rows = gradient.shape[0] // _SUMMANDS * _SUMMANDS if gradient.shape.rank else 0
    total = tf.reduce_sum(tf.square(gradient[rows:] if rows else gradient))
    if rows:
        parts = tf.split(gradient[:rows], _SUMMANDS)
        total += tf.reduce_sum(tf.add_n([tf.square(part) for part in parts]))
    return gradient * (most / tf.maximum(tf.sqrt(total), most))


def run_loop(
    trainer,
    iterator,
    progress,
    manager,
    workers,
    *,
    max_steps,
    save_steps,
    save_secs,
    log_steps,
    metrics_steps,
    stopping,
):
    """Runs steps, logs and saves until the data or the steps end, or a worker is to stop.

    Args:
        trainer: `Trainer`.
        iterator: iterator over batches, as of `Distribution.batches`.
        progress: `progress.Progress`; None for a worker that writes nothing.
        manager: `tf.train.CheckpointManager`.
        workers: `distribution.Distribution`.
        max_steps: number. Steps of the whole run.
        save_steps: int. Steps between two checkpoints.
        save_secs: number. Seconds after which one is saved besides.
        log_steps: int. Steps between two log lines.
        metrics_steps: int. Steps between two log lines with metrics of the batch.
        stopping: function that tells whether this worker is to stop.

    Returns:
        Mean label loss of the steps that the last log line tells of; NaN if no step was made.
    """
    log = TrainingLog(trainer, progress)
    periods = (log_steps, metrics_steps, save_steps)
    steps_per_call, saved = 1, time.monotonic()
    while (step := trainer.step) < max_steps:
        # All workers must make, save and end at the same steps.
        stop, due, steps_per_call = workers.agree(
            of_any=[stopping()],
            of_chief=[time.monotonic() - saved >= save_secs, steps_per_call],
        )
        if stop:
            logging.warning("a worker is to stop (SIGTERM): saving step %d and ending", step)
            break
        if due:
            save(trainer, manager, workers)
            saved = time.monotonic()
        target = min(
            max_steps,
            step + int(steps_per_call),
            *((step // period + 1) * period for period in periods),
        )
        start = time.perf_counter()
        outputs = trainer.run(iterator, target - step, keep_outputs=target % metrics_steps == 0)
        trainer.check_finite()
        seconds_per_step = (time.perf_counter() - start) / (target - step)
        steps_per_call = min(
            max(1, int(_SECONDS_PER_CALL / seconds_per_step)), _MOST_STEPS_PER_CALL
        )
        ended = trainer.step < target
        if ended or outputs is not None or target % log_steps == 0 or target == max_steps:
            log.write(outputs)
        if ended:
            break
        if target % save_steps == 0:
            save(trainer, manager, workers)
            saved = time.monotonic()
    save(trainer, manager, workers, wait=True)
    return log.last_loss


class TrainingLog:
    """Log lines and TensorBoard scalars of a run.

    Args:
        trainer: `Trainer`.
        progress: `progress.Progress`; None for a worker that writes nothing.
    """

    def __init__(self, trainer, progress):
        self.last_loss = math.nan
        self._trainer = trainer
        self._progress = progress
        self._step = trainer.step
        self._time = time.perf_counter()

    def write(self, outputs):
        """Reports the steps since the last call.

        Args:
            outputs: predictions and labels of the last step, per replica, or None; with them come
                metrics.
        """
        trainer, now = self._trainer, time.perf_counter()
        step, seconds = trainer.step, now - self._time
        steps = step - self._step
        if not steps:
            return
        self.last_loss = trainer.take_loss_sum() / steps
        self._step, self._time = step, now
        if self._progress is None:
            return
        values = {
            "loss": self.last_loss,
            "examples/s": steps * trainer.config.batch_size / seconds,
            "learning_rate": trainer.learning_rate,
        }
        if outputs is not None:
            values |= batch_metrics(outputs, trainer.strategy)
        self._progress.advance_to(step)
        self._progress.report(
            f"step {step} | " + " | ".join(f"{name} {value:.4g}" for name, value in values.items())
        )
        for name, value in values.items():
            tf.summary.scalar(name, value, step)


def batch_metrics(outputs, strategy):
    """Hit@1, PERR and GAP of one batch, of several workers those of the chief's part."""
    predictions, labels = (
        np.concatenate([part.numpy() for part in strategy.experimental_local_results(output)])
        for output in outputs
    )
    return {
        "Hit@1": eval_util.calculate_hit_at_one(predictions, labels),
        "PERR": eval_util.calculate_precision_at_equal_recall_rate(predictions, labels),
        "GAP": eval_util.calculate_gap(predictions, labels),
    }


def resume(manager, model):
    """Restores the newest checkpoint, if there is one."""
    path = manager.latest_checkpoint
    if path is None:
        return
    checkpoints.check_fits(checkpoints.weights(model), path)
    with checkpoints.reading(path):
        restored = manager.checkpoint.restore(path)
    restored.assert_consumed()


def save(trainer, manager, workers, wait=False):
    """Saves a checkpoint of the current step, if there is none and this worker is the chief.

    It waits for the checkpoint before and copies all variables; the files are then written while
    training goes on. An error in that is raised by the next save. `manager.sync` raises none, so
    the last checkpoint of a run must be saved with `wait`.

    Args:
        trainer: `Trainer`.
        manager: `tf.train.CheckpointManager`.
        workers: `distribution.Distribution`.
        wait: bool. Whether to return only when the files are written.

    Raises:
        FloatingPointError: if a weight or the optimizer's state is not finite; then nothing is
            saved.
    """
    if not workers.is_chief:
        return
    manager.sync()
    latest = manager.latest_checkpoint
    if latest is not None and checkpoints.step_of(latest) == trainer.step:
        return
    for variable in [*trainer.model.weights, *trainer.optimizer.variables]:
        if variable.dtype == "float32" and not tf.reduce_all(tf.math.is_finite(variable.value)):
            raise FloatingPointError(
                f"{variable.path} is not finite at step {trainer.step}, which is not saved. Try a "
                "lower --base_learning_rate or --clip_gradient_norm."
            )
    manager.save(
        checkpoint_number=trainer.step,
        options=tf.train.CheckpointOptions(experimental_enable_async_checkpoint=not wait),
    )
