"""Measures the training step of a full-size model on random frames, against plain Keras.

    python benchmarks/train_step.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80
    KERAS_BACKEND=jax python benchmarks/train_step.py --flagfile=recipes/gru.flags --batch_size=80

The step is that of train.py; under JAX, the same step is one compiled function. The batch is in
memory. benchmarks/README.md explains the output.
"""

import pathlib
import sys

import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import full_size
import layers
from full_size import ModelBenchmarkOptions
from run_config import RecipeOptions, RunConfig


def build(config, dtype):
    """Returns the project's model for training."""
    return config.build_model(layers.training_policy(dtype))


def main(config: RunConfig, recipe: RecipeOptions, options: ModelBenchmarkOptions):
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    # Each backend runs where the other is not installed.
    if keras.backend.backend() == "jax":
        import jax_step

        full_size.run(build, jax_step.make_work, config, options, make_bound=jax_step.bound)
    else:
        import tensorflow_step

        make_step = tensorflow_step.plain_step
        full_size.run(build, tensorflow_step.make_work, config, options, make_step=make_step)


if __name__ == "__main__":
    program.run(main, backends=("tensorflow", "jax"))
