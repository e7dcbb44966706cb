"""The training step under JAX, without TensorFlow, and a bound from its matrix products."""

import functools
import math

import jax
import numpy as np
from jax import numpy as jnp

import full_size
import losses


def make_work(model, config, steps):
    """Returns a function that runs training steps of any Keras model, after two warm-up steps."""
    inputs, labels = jax.device_put(full_size.random_batch(config))
    if not model.built:
        # Keras layers create their weights in the first call.
        model(jax.tree.map(lambda array: array[:1], inputs))
    step, variables = training_step(model, config)

    def work(steps=steps):
        nonlocal variables
        for _ in range(steps):
            variables, loss = step(variables, inputs, labels)
        # Each step depends on the previous one, so this waits for all of them.
        if not np.isfinite(loss):
            raise FloatingPointError("the loss is not finite")
        return steps * config.batch_size

    work(2)
    return work


def training_step(model, config):
    """Builds the step of train.py as one compiled function.

    Args:
        model: built `keras.Model`. The first step consumes its arrays (they are donated).
        config: `RunConfig`.

    Returns:
        `(step, variables)`. `step` maps `(variables, inputs, labels)` to `(variables, loss)`;
        `variables` are the initial ones of model and optimizer.
    """
    step, variables = pure_step(model, config)
    return jax.jit(step, donate_argnums=0), variables


def pure_step(model, config):
    """Returns what `training_step` does, with a function that is not compiled."""
    optimizer = config.build_optimizer(model)
    gradients_of = gradient_function(model, config)

    def step(variables, inputs, labels):
        weights, state, slots = variables
        (loss, state), gradients = gradients_of(weights, state, inputs, labels)
        if config.clip_gradient_norm > 0 and config.clip == "global":
            gradients = clip_by_global_norm(gradients, config.clip_gradient_norm)
        elif config.clip_gradient_norm > 0:
            gradients = [clip_by_norm(g, config.clip_gradient_norm) for g in gradients]
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return (weights, state, slots), loss

    kinds = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return step, tuple([variable.value for variable in kind] for kind in kinds)


def gradient_function(model, config):
    """Returns a function `(weights, state, inputs, labels)` to `((loss, state), gradients)`."""
    label_loss = losses.get_loss(config.label_loss)

    def loss_of(weights, state, inputs, labels):
        predictions, state, added = model.stateless_call(
            weights, state, inputs, training=True, return_losses=True
        )
        loss = label_loss(labels, predictions) + config.regularization_penalty * sum(added)
        return loss + model.auxiliary_loss(functools.partial(label_loss, labels)), state

    return jax.value_and_grad(loss_of, has_aux=True)


def clip_by_norm(gradient, max_norm):
    """Scales a gradient down to `max_norm` where its norm is larger."""
    return gradient * (max_norm / jnp.maximum(jnp.linalg.norm(gradient.ravel()), max_norm))


def clip_by_global_norm(gradients, max_norm):
    """Scales gradients down by one factor where their joint norm is larger than `max_norm`."""
    norm = jnp.linalg.norm(jnp.stack([jnp.linalg.norm(g.ravel()) for g in gradients]))
    return [gradient * (max_norm / jnp.maximum(norm, max_norm)) for gradient in gradients]


def bound(model, config, dtype):
    """Returns an upper bound for the speed of a step: only its matrix products, at peak speed.

    Large square products stand for those of the step. The speed of another way relative to this one
    is the fraction of the peak matrix-product speed that it reaches.

    Args:
        model: model of the project.
        config: its `RunConfig`.
        dtype: str. Type of the operands.

    Returns:
        `(bounds, conditions)` for `comparison.run_against_plain`.
    """
    arguments = (
        model.trainable_variables,
        model.non_trainable_variables,
        *full_size.random_batch(config),
    )
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arguments)
    jaxpr = jax.make_jaxpr(gradient_function(model, config))(*shapes)
    per_video = product_operations(jaxpr) / config.batch_size

    def products():
        multiply, operations = large_product(dtype)
        count = max(math.ceil(config.batch_size * per_video / operations), 10)

        def work():
            multiply(count)
            return count * operations / per_video

        return work

    return {"its matrix products alone": products}, {
        "device": jax.devices()[0].device_kind,
        "gflop_per_video": float(f"{per_video / 1e9:.4g}"),
    }


def large_product(dtype):
    """Returns `(multiply, operations)` for measuring the speed of large products on the device.

    `multiply(count)` multiplies two square matrices `count` times; each product takes that many
    `operations`.
    """
    # Side of matrices that are large for the device.
    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.matmul)

    def multiply(count):
        for _ in range(count):
            result = product(left, right)
        result.block_until_ready()

    return multiply, 2 * size**3


def product_operations(jaxpr):
    """Counts the floating-point operations of all matrix products in a jaxpr, loops included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summands = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summands * equation.outvars[0].aval.size
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns"):
                    total += times * product_operations(part)
    return total
