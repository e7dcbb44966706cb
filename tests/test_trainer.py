"""The update of the weights: clipping, penalties, gradients of bfloat16 products, averages."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
import losses
import registry
import small_models
import trainer
from run_config import RunConfig


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (19,), (5, 3), (16, 3), (21, 2, 3)])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 1e3])
def test_gradients_are_clipped_as_by_tensorflow(shape, factor):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.float32(factor)
    gradient = tf.constant(values)
    expected = tf.clip_by_norm(gradient, 0.5)
    np.testing.assert_allclose(trainer.clip_by_norm(gradient, 0.5), expected, rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_gradients_are_clipped_by_their_joint_norm(clip_norm):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(np.float32) for shape in [(19,), (16, 3), ()]]
    gradients = [tf.constant(values[0]), None, *map(tf.constant, values[1:])]
    norm = math.sqrt(sum(np.sum(np.float64(value) ** 2) for value in values))
    factor = min(1.0, clip_norm / norm)
    first, none, *others = trainer.clip_by_global_norm(gradients, clip_norm)
    assert none is None
    for clipped, value in zip([first, *others], values, strict=True):
        np.testing.assert_allclose(clipped, factor * np.float64(value), rtol=1e-6)


def sgd_config(**settings):
    return RunConfig(
        model="LogisticModel",
        num_classes=4,
        feature_names=("mean_rgb",),
        feature_sizes=(5,),
        optimizer="SGD",
        batch_size=3,
        **settings,
    )


def make_trainer(config, model):
    """Returns a `Trainer` of any model with inputs `[3, 5]` and outputs `[3, 4]`."""
    optimizer = config.build_optimizer(model)
    return trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy())


def make_batches(count):
    """Returns an iterator over batches of random inputs `[3, 5]` and labels."""
    x = np.random.default_rng(1).normal(size=(count, 3, 5)).astype(np.float32)
    labels = np.tile(np.eye(4, dtype=np.float32)[:3], (count, 1, 1))
    return iter(tf.data.Dataset.from_tensor_slices((x, labels)))


class AddsLoss(registry.Model):
    """A linear model that penalizes its weights and adds a loss of its own."""

    def __init__(self):
        super().__init__()
        penalty = keras.regularizers.L1L2(0.01, 0.02)
        self.dense = keras.layers.Dense(4, kernel_regularizer=penalty)
        self.dense.build((None, 5))

    def call(self, x, training=False):
        y = self.dense(x)
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(y)))
        return keras.ops.sigmoid(y)


@pytest.mark.parametrize("clip", ["per_variable", "global"])
def test_an_update_follows_loss_added_losses_and_penalties(clip):
    config = sgd_config(
        base_learning_rate=1.0, regularization_penalty=0.7, clip_gradient_norm=0.05, clip=clip
    )
    model = AddsLoss()
    kernel, bias = (tf.constant(weight) for weight in model.dense.get_weights())

    x, labels = next(make_batches(1))
    with tf.GradientTape() as tape:
        tape.watch([kernel, bias])
        y = tf.matmul(x, kernel) + bias
        penalty = 0.3 * tf.reduce_mean(y**2)
        penalty += 0.01 * tf.reduce_sum(tf.abs(kernel)) + 0.02 * tf.reduce_sum(kernel**2)
        loss = losses.CrossEntropyLoss()(labels, tf.sigmoid(y)) + 0.7 * penalty
    gradients = tape.gradient(loss, [kernel, bias])
    if clip == "global":
        clipped, _ = tf.clip_by_global_norm(gradients, 0.05)
    else:
        clipped = [tf.clip_by_norm(gradient, 0.05) for gradient in gradients]

    make_trainer(config, model).run(make_batches(1), 1)
    updates = zip(model.trainable_variables, (kernel, bias), clipped, strict=True)
    for weight, before, change in updates:
        expected = before - change
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


def test_gradients_of_bfloat16_products_keep_their_dtype_and_value():
    with layers.matmul_policy("mixed_bfloat16"):
        layer = layers.Linear(4)
    layer.build((None, 5))
    x, _ = next(make_batches(1))

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x)))
        found = tape.gradient(loss, [weight.value for weight in layer.trainable_weights])
        return found, [trainer.without_cast(gradient) for gradient in found]

    (kernel, bias), (computed_kernel, computed_bias) = gradients()
    assert kernel.dtype == computed_bias.dtype == tf.float32
    assert computed_kernel.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(computed_kernel, tf.float32), kernel)
    np.testing.assert_array_equal(computed_bias, bias)


def test_the_penalties_of_a_registered_model_belong_to_its_matrices():
    model = registry.build_model("MoeModel", num_classes=4, feature_sizes=(6, 3))
    model(tf.ones([2, 9]))
    penalized = [w.path for w in model.trainable_variables if w.regularizer is not None]
    assert penalized == ["MoeModel/gates/kernel", "MoeModel/experts/kernel"]
    assert len(model.losses) == 2


class PenalizesUnused(AddsLoss):
    """Penalizes a layer that the predictions do not depend on."""

    def __init__(self):
        super().__init__()
        penalty = keras.regularizers.L2(0.1)
        self.unused = keras.layers.Dense(2, use_bias=False, kernel_regularizer=penalty)
        self.unused.build((None, 3))


def test_a_penalized_weight_without_effect_on_predictions_shrinks(caplog):
    config = sgd_config(base_learning_rate=0.5, clip_gradient_norm=0.0)
    model = PenalizesUnused()
    kernel = model.unused.get_weights()[0]
    make_trainer(config, model).run(make_batches(1), 1)
    factor = 1 - 0.5 * config.regularization_penalty * 0.2
    np.testing.assert_allclose(model.unused.kernel, factor * kernel, rtol=1e-5)
    assert "does not depend on these weights" in caplog.text


def test_each_update_has_the_learning_rate_of_its_step():
    """The penalty shrinks an unused weight by a share that is proportional to the rate."""
    config = sgd_config(
        base_learning_rate=0.5,
        learning_rate_schedule="cosine",
        learning_rate_decay_steps=5,
        warmup_steps=2,
        clip_gradient_norm=0.0,
    )
    model = PenalizesUnused()
    kernel = model.unused.get_weights()[0]
    make_trainer(config, model).run(make_batches(4), 4)
    rates = [0.25, 0.5, 0.5, 0.5 * (1 + math.cos(math.pi / 3)) / 2]
    factor = math.prod(1 - rate * 0.2 for rate in rates)
    np.testing.assert_allclose(model.unused.kernel, factor * kernel, rtol=1e-5)


class Normalizes(registry.Model):
    """A linear model with batch normalization."""

    def __init__(self):
        super().__init__()
        self.linear = layers.Linear(4, batch_norm=True)
        self.linear.build((None, 5))

    def call(self, x, training=False):
        return keras.ops.sigmoid(self.linear(x, training=training))


def test_moving_averages_of_weights_follow_their_recurrence():
    model = Normalizes()
    running = make_trainer(sgd_config(base_learning_rate=0.3, ema_decay=0.4), model)
    batches = make_batches(5)
    for step in range(1, 6):
        before = {path: np.float64(average) for path, average in running.ema.items()}
        running.run(batches, 1)
        # (1 + step) / (10 + step) is below 0.4 up to step 4.
        decay = min(0.4, (1 + step) / (10 + step))
        assert {weight.path for weight in model.weights} == set(running.ema)
        for weight in model.weights:
            value = np.float64(weight)
            expected = decay * before[weight.path] + (1 - decay) * value
            if weight.name == "num_updates":
                expected = value = step
            else:
                assert np.any(before[weight.path] != value)
            average = running.ema[weight.path]
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7, err_msg=weight.path)


# --- Gradient accumulation ------------------------------------------------------------------------


def train_small(name, optimizer, batch_size, gradient_accumulation, num_steps=3):
    """Trains a small model on 8 videos per step; returns the `Trainer` and its last outputs."""
    without_batch_norm = {"dbof_add_batch_norm": False} if name == "DbofModel" else {}
    config = RunConfig(
        name,
        hyperparameters={**small_models.SMALL[name], **without_batch_norm},
        optimizer=optimizer,
        num_classes=small_models.NUM_CLASSES,
        feature_sizes=small_models.FEATURE_SIZES,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        base_learning_rate=0.1,
        learning_rate_decay=0.5,
        learning_rate_decay_examples=12,
        clip="global",
        clip_gradient_norm=0.5,
        weight_decay=0.1,
        ema_decay=0.5,
    )
    keras.utils.set_random_seed(3)
    model = config.build_model()
    running = make_trainer(config, model)
    inputs = small_models.make_inputs(name, [5, 2, 4, 1, 3, 3, 2, 5] * num_steps)
    labels = small_models.make_labels(8 * num_steps)
    videos = tf.data.Dataset.from_tensor_slices((inputs, labels))
    return running, running.run(iter(videos.batch(8, drop_remainder=True)), num_steps, True)


@pytest.mark.parametrize(("name", "optimizer"), [("MoeModel", "Adam"), ("DbofModel", "SGD")])
def test_accumulated_batches_train_like_one_large_batch(name, optimizer):
    one, (predictions, labels) = train_small(name, optimizer, 8, 1)
    several, (last_predictions, last_labels) = train_small(name, optimizer, 2, 4)
    assert one.step == several.step == 3
    assert one.learning_rate == several.learning_rate == pytest.approx(0.1 * 0.5**2)
    assert several.pop_loss_sum() == pytest.approx(one.pop_loss_sum(), rel=1e-5)
    np.testing.assert_allclose(last_predictions, predictions[3::4], rtol=1e-4)
    np.testing.assert_array_equal(last_labels, labels[3::4])
    for path, average in one.ema.items():
        np.testing.assert_allclose(several.ema[path], average, rtol=1e-4, atol=1e-5, err_msg=path)
    for expected, found in zip(one.model.weights, several.model.weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=expected.path)


def test_an_accumulated_update_is_clipped_penalized_and_decayed_once():
    """Compares a step of two batches with the formula."""
    settings = {
        "base_learning_rate": 0.5,
        "regularization_penalty": 0.7,
        "clip_gradient_norm": 0.05,
        "weight_decay": 0.2,
    }
    model = AddsLoss()
    kernel, bias = (tf.constant(weight) for weight in model.dense.get_weights())
    parts = list(make_batches(2))
    with tf.GradientTape() as tape:
        tape.watch([kernel, bias])
        loss = 0.7 * (0.01 * tf.reduce_sum(tf.abs(kernel)) + 0.02 * tf.reduce_sum(kernel**2))
        for x, labels in parts:
            y = tf.matmul(x, kernel) + bias
            loss += losses.CrossEntropyLoss()(labels, tf.sigmoid(y)) / 2
            loss += 0.7 * 0.3 * tf.reduce_mean(y**2) / 2
    gradients = tape.gradient(loss, [kernel, bias])
    # The videos of a step take turns in going to its batches.
    batch = tf.nest.map_structure(
        lambda *tensors: tf.reshape(tf.stack(tensors, 1), (6, -1)), *parts
    )
    running = make_trainer(sgd_config(gradient_accumulation=2, **settings), model)
    for _ in range(2):  # The second step shows that the sums start again from 0.
        model.dense.set_weights([kernel, bias])
        running.run(iter(tf.data.Dataset.from_tensors(batch)), 1)
        found = model.dense.get_weights()
        for weight, before, gradient, decay in zip(
            found, (kernel, bias), gradients, (0.5 * 0.2, 0.0), strict=True
        ):
            expected = before * (1 - decay) - 0.5 * tf.clip_by_norm(gradient, 0.05)
            np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)
