"""Trains all seeds of a model at the same time, as one compiled program under JAX.

S is the number of seeds, V of videos, T of frames, B the batch and C the classes.
"""

import pathlib
import sys

import jax
import keras
import numpy as np
from jax import numpy as jnp

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))

import jax_step
import layers

# Steps between two returns from the accelerator, and videos of a batch of prediction.
_STEPS_PER_CALL = 300
_PREDICTION_BATCH = 250


class SeededModels:
    """A model with S sets of weights, one for each seed.

    Args:
        config: `RunConfig`.
        seeds: sequence of int. Seeds of the initial weights, the frames drawn and the order of the
            videos.
        matmul_dtype: str. Type of the operands of products.
    """

    def __init__(self, config, seeds, matmul_dtype):
        self.config = config
        self._seeds = seeds
        starts = []
        # On an accelerator, the many small operations that make a model take long to compile.
        with jax.default_device(jax.devices("cpu")[0]):
            for seed in seeds:
                self.model = self._build(seed, matmul_dtype)
                self._step, variables = jax_step.pure_step(self.model, config)
                starts.append(jax.device_get(variables))
        self._variables = jax.device_put(jax.tree.map(lambda *arrays: np.stack(arrays), *starts))

    def train(self, inputs, labels, num_steps):
        """Trains on batches of videos, all of them in random order in each epoch.

        Args:
            inputs: dict of arrays `[V, ...]`, the inputs of the model.
            labels: bool `[V, C]`.
            num_steps: int.
        """

        def run_one(variables, indices, inputs, labels):
            def step(variables, rows):
                batch = {name: array[rows] for name, array in inputs.items()}
                return self._step(variables, batch, labels[rows].astype("float32"))

            return jax.lax.scan(step, variables, indices)

        run = jax.jit(jax.vmap(run_one, in_axes=(0, 0, None, None)), donate_argnums=0)
        inputs, labels = jax.device_put((inputs, labels))
        size = self.config.batch_size
        orders = [epochs(seed, len(labels), num_steps, size) for seed in self._seeds]
        for start in range(0, num_steps, _STEPS_PER_CALL):
            indices = jnp.stack([order[start : start + _STEPS_PER_CALL] for order in orders])
            self._variables, losses = run(self._variables, indices, inputs, labels)
            if not np.isfinite(losses).all():
                raise FloatingPointError(f"a loss is not finite by step {start}")

    def predict(self, inputs):
        """Returns probabilities `[S, V, C]`, from one sampling of the frames."""
        return _predict(self.model, self._variables[:2], inputs)

    def predict_branches(self, inputs):
        """Returns the probabilities of each branch of a mixture read out alone, `[M, S, V, C]`."""
        values = []
        for number in range(len(self._seeds)):
            weights, state = jax.tree.map(lambda array, n=number: array[n], self._variables[:2])
            for variable, value in zip(self._model_variables(), weights + state, strict=True):
                variable.assign(value)
            branches = [self.model.branch(number) for number in range(len(self.model.encoders))]
            values.append([_values(branch) for branch in branches])
        flat = [of_branch for branches in values for of_branch in branches]
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *flat)
        predicted = _predict(branches[0], stacked, inputs)
        return predicted.reshape(len(values), -1, *predicted.shape[1:]).swapaxes(0, 1)

    def _build(self, seed, matmul_dtype):
        keras.utils.set_random_seed(seed)
        model = self.config.build_model(layers.training_policy(matmul_dtype))
        size = (1, self.config.max_frames, sum(self.config.feature_sizes))
        model({"frames": np.zeros(size, np.uint8), "num_frames": np.ones(1, np.int32)})
        return model

    def _model_variables(self):
        return self.model.trainable_variables + self.model.non_trainable_variables


def _values(model):
    variables = model.trainable_variables, model.non_trainable_variables
    return tuple([variable.value for variable in kind] for kind in variables)


def epochs(seed, num_videos, num_steps, batch_size):
    """Returns the videos of each step, `[num_steps, B]`: all videos once, then again and so on."""
    rng = np.random.default_rng(seed)
    count = num_steps * batch_size
    videos = np.concatenate([rng.permutation(num_videos) for _ in range(-(-count // num_videos))])
    return videos[:count].reshape(num_steps, batch_size)


def _predict(model, variables, inputs):
    def predict_one(weights, state, batch):
        return model.stateless_call(weights, state, batch, training=False, num_samplings=1)[0]

    run = jax.jit(jax.vmap(predict_one, in_axes=(0, 0, None)))
    num_videos = len(inputs["num_frames"])
    batches = [
        {name: array[start : start + _PREDICTION_BATCH] for name, array in inputs.items()}
        for start in range(0, num_videos, _PREDICTION_BATCH)
    ]
    return np.concatenate([np.asarray(run(*variables, batch)) for batch in batches], axis=1)
