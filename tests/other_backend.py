"""Computes predictions and gradients of models under JAX, with weights and inputs from a file.

    KERAS_BACKEND=jax python other_backend.py INPUT.npz OUTPUT.npz

This is a program because a process has only one backend. INPUT has `models` and `sizes` in JSON,
the hyperparameters of each model and the other arguments of `registry.build_model`; `frames`,
`num_frames`, `vectors` and `labels`; and every weight by its path. OUTPUT has, for each model,
`NAME/predictions` and the gradients of a training step, `NAME/gradients/PATH`; `gru/own/NAME` and
`gru/keras/NAME`, gradients of a recurrent layer and of the same layer in Keras; `metrics/NAME`,
what `evaluate` reports for `scores` and `score_labels` in batches; and `imported_tensorflow`.
"""

import functools
import json
import pathlib
import sys

import jax
import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras_metrics
import layer_references as references
import losses
import recurrent
import registry


def main(input_path, output_path):
    # The weights come from the file, and random initializers take long to compile.
    for kind in ("VarianceScaling", "Orthogonal", "RandomNormal"):
        getattr(keras.initializers, kind).__call__ = keras.initializers.Zeros.__call__
    with np.load(input_path) as file:
        arrays = dict(file)
    sizes = json.loads(str(arrays["sizes"]))
    results = {}
    for name, hyperparameters in json.loads(str(arrays["models"])).items():
        model = registry.build_model(name, **sizes, **hyperparameters)
        for weight in model.weights:
            weight.assign(arrays[weight.path])
        inputs = arrays["vectors"]
        if model.frame_level:
            inputs = {key: arrays[key] for key in ("frames", "num_frames")}
        results[f"{name}/predictions"] = predict(model, inputs)
        model.iterations = 4  # A frame-level model samples frames in the training step.
        gradients = training_gradients(model, inputs, arrays["labels"])
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            results[f"{name}/gradients/{weight.path}"] = gradient
    results |= gru_gradients() | metrics(arrays["scores"], arrays["score_labels"])
    results["imported_tensorflow"] = "tensorflow" in sys.modules
    np.savez(output_path, **results)


def values(variables):
    return [variable.value for variable in variables]


def predict(model, inputs):
    weights, state = values(model.trainable_variables), values(model.non_trainable_variables)
    return jax.jit(model.stateless_call)(weights, state, inputs)[0]


def training_gradients(model, inputs, labels):
    """Returns the gradient of the loss in a training step, for each trainable weight."""
    state = values(model.non_trainable_variables)

    @jax.jit
    @jax.grad
    def gradients(weights):
        predictions, _ = model.stateless_call(weights, state, inputs, training=True)
        label_loss = functools.partial(losses.CrossEntropyLoss(), labels)
        return label_loss(predictions) + model.auxiliary_loss(label_loss)

    return gradients(values(model.trainable_variables))


def metrics(scores, labels):
    """Returns the metrics of a model whose predictions are its inputs."""
    model = keras.Sequential([keras.Input(scores.shape[1:]), keras.layers.Identity()])
    metrics = [
        keras_metrics.GlobalAveragePrecision(),
        keras_metrics.HitAtOne(),
        keras_metrics.PrecisionAtEqualRecallRate(),
    ]
    model.compile(loss=losses.HingeLoss(), metrics=metrics)
    found = model.evaluate(scores, labels, batch_size=4, return_dict=True, verbose=0)
    return {f"metrics/{name}": value for name, value in found.items()}


def gru_gradients():
    """Returns the gradients of one function through the project's GRU and through that of Keras."""
    rng = np.random.default_rng(5)
    frames = rng.normal(size=(2, 5, 4)).astype(np.float32)
    factor = rng.normal(size=(2, 5, 3)).astype(np.float32)
    real = np.array([[True] * 5, [True] * 3 + [False] * 2])
    layer = recurrent.GRU(3)
    layer.build(frames.shape)
    references.randomize(layer)
    twin = references.keras_gru(layer, frames.shape)
    found = {}
    for name, gru, masks in (("own", layer, {"real": real}), ("keras", twin, {"mask": real})):
        state = values(gru.non_trainable_variables)

        def total(weights, frames, gru=gru, masks=masks, state=state):
            (states, _), _ = gru.stateless_call(weights, state, frames, **masks)
            return (states * factor).sum()

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
        by_weight, found[f"gru/{name}/frames"] = gradients(values(gru.trainable_variables), frames)
        paths = (weight.path.split("/")[-1] for weight in gru.trainable_variables)
        found |= {f"gru/{name}/{path}": value for path, value in zip(paths, by_weight, strict=True)}
    matrices = [found.pop(f"gru/own/{name}") for name in ("gates", "candidate")]
    return {**found, "gru/own/recurrent_kernel": np.concatenate(matrices, axis=1)}


if __name__ == "__main__":
    main(*sys.argv[1:])
