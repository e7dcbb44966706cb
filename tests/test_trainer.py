"""The update of the weights: clipping, penalties and gradients of products in bfloat16."""

import shutil
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import distribution
import layers
import losses
import registry
import trainer
from run_config import RunConfig

SIZES = {"num_classes": 4, "feature_sizes": (6, 3)}


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (19,), (5, 3), (16, 3), (21, 2, 3)])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 1e3])
def test_clipping_is_that_of_tensorflow(shape, factor):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.float32(factor)
    gradient = tf.constant(values)
    expected = tf.clip_by_norm(gradient, 0.5)
    np.testing.assert_allclose(trainer.clip_by_norm(gradient, 0.5), expected, rtol=1e-6)


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


class AddsLoss(keras.Model):
    """A linear model with a penalty of its weights and a loss that it adds."""

    def __init__(self):
        super().__init__()
        penalty = keras.regularizers.L1L2(0.01, 0.02)
        self.dense = keras.layers.Dense(4, kernel_regularizer=penalty)
        self.dense.build((None, 5))

    def call(self, x, training=False):
        y = self.dense(x)
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(y)))
        return keras.ops.sigmoid(y)


def test_an_update_follows_loss_added_losses_and_penalties():
    config = sgd_config(base_learning_rate=1.0, regularization_penalty=0.7, clip_gradient_norm=0.05)
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(size=(3, 5)).astype(np.float32))
    labels = tf.constant(np.eye(4, dtype=np.float32)[:3])
    model = AddsLoss()
    kernel, bias = (tf.constant(weight) for weight in model.dense.get_weights())

    with tf.GradientTape() as tape:
        tape.watch([kernel, bias])
        y = tf.matmul(x, kernel) + bias
        penalty = 0.3 * tf.reduce_mean(y**2)
        penalty += 0.01 * tf.reduce_sum(tf.abs(kernel)) + 0.02 * tf.reduce_sum(kernel**2)
        loss = losses.CrossEntropyLoss()(labels, tf.sigmoid(y)) + 0.7 * penalty
    gradients = tape.gradient(loss, [kernel, bias])

    optimizer = config.build_optimizer()
    optimizer.build(model.trainable_variables)
    stepper = trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy())
    stepper.run(iter(tf.data.Dataset.from_tensors((x, labels))), 1)
    for weight, before, gradient in zip(
        model.trainable_variables, (kernel, bias), gradients, strict=True
    ):
        expected = before - tf.clip_by_norm(gradient, 0.05)
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


def test_gradients_of_products_in_bfloat16_keep_their_type_and_value():
    with layers.matmul_policy("mixed_bfloat16"):
        layer = layers.Linear(4)
    layer.build((None, 5))
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))

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


def test_a_model_of_the_project_has_penalties_that_the_update_finds():
    model = registry.build_model("MoeModel", **SIZES)
    model(tf.ones([2, 9]))
    assert [w.path for w in model.trainable_variables if w.regularizer is not None] == [
        "MoeModel/gates/kernel",
        "MoeModel/experts/kernel",
    ]
    assert len(model.losses) == 2


class PenalisesUnused(AddsLoss):
    """Has a penalised layer that predicts nothing."""

    def __init__(self):
        super().__init__()
        penalty = keras.regularizers.L2(0.1)
        self.unused = keras.layers.Dense(2, use_bias=False, kernel_regularizer=penalty)
        self.unused.build((None, 3))


def test_a_penalised_weight_that_predicts_nothing_shrinks(caplog):
    config = sgd_config(base_learning_rate=0.5, clip_gradient_norm=0.0)
    model = PenalisesUnused()
    kernel = model.unused.get_weights()[0]
    optimizer = config.build_optimizer()
    optimizer.build(model.trainable_variables)
    stepper = trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy())
    stepper.run(iter(tf.data.Dataset.from_tensors((tf.ones([3, 5]), tf.zeros([3, 4])))), 1)
    factor = 1 - 0.5 * config.regularization_penalty * 0.2
    np.testing.assert_allclose(model.unused.kernel, factor * kernel, rtol=1e-5)
    assert "does not depend on these weights" in caplog.text


@pytest.mark.parametrize("wait", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path, wait):
    folder = tmp_path / "run"
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(weight=tf.Variable(1.0)), str(folder), 5, checkpoint_name="model.ckpt"
    )
    nothing = types.SimpleNamespace(weights=[], variables=[])
    stepper = types.SimpleNamespace(model=nothing, optimizer=nothing, step=1)
    workers = distribution.Distribution(tf.distribute.get_strategy())
    trainer.save(stepper, manager, workers, wait=True)
    assert (folder / "model.ckpt-1.index").exists()
    shutil.rmtree(folder)
    folder.touch()
    stepper.step = 2
    if not wait:
        trainer.save(stepper, manager, workers)  # The error comes while training goes on.
        stepper.step = 3
    with pytest.raises(tf.errors.OpError, match="run"):
        trainer.save(stepper, manager, workers, wait=wait)
