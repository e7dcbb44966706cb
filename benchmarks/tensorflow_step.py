"""The training step under TensorFlow: the project's, also from records, and the plain one."""

import functools

import tensorflow as tf

import full_size
import losses
import trainer
from run_config import ReadOptions


def make_work(model, config, steps, make_step=None):
    """Returns a function that runs training steps, after two warm-up steps."""
    batch = tf.nest.map_structure(tf.constant, full_size.random_batch(config))
    make_step = make_step or project_step
    return repeated(make_step(model, config, batch), config, steps)


def make_work_from_records(model, config, steps, pattern):
    """Returns a function like `make_work` that reads its batches as train.py does."""
    dataset = config.training_dataset(config.training_reader(pattern, ReadOptions()))
    return repeated(step_on(model, config, dataset), config, steps)


def repeated(step, config, steps):
    """Returns a function that runs a step several times, after two runs to warm up."""

    def work():
        for _ in range(steps):
            step()
        return steps * config.batch_size

    step()
    step()
    return work


def project_step(model, config, batch):
    """Returns the training step of train.py on a batch in memory."""
    return step_on(model, config, tf.data.Dataset.from_tensors(batch).repeat())


def step_on(model, config, dataset):
    """Returns the training step of train.py on the batches of a dataset."""
    optimizer = config.build_optimizer(model)
    stepper = trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy())
    iterator = iter(dataset)

    def step():
        stepper.run(iterator, 1)
        stepper.check_finite()

    return step


def plain_step(model, config, batch):
    """Returns a straightforward step with the same loss, clipping and optimizer."""
    label_loss = losses.get_loss(config.label_loss)

    @tf.function(autograph=False)
    def step():
        inputs, labels = batch
        with tf.GradientTape() as tape:
            penalty = config.regularization_penalty
            loss = label_loss(labels, model(inputs, training=True))
            loss += model.auxiliary_loss(functools.partial(label_loss, labels))
            loss += penalty * tf.add_n(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        if config.clip_gradient_norm > 0 and config.clip == "global":
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_gradient_norm)
        elif config.clip_gradient_norm > 0:
            gradients = [tf.clip_by_norm(g, config.clip_gradient_norm) for g in gradients]
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    # Keras layers create their weights in the first call.
    model(tf.nest.map_structure(lambda tensor: tensor[:1], batch[0]))
    optimizer = config.build_optimizer(model)
    return lambda: step().numpy()
