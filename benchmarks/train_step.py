"""Measures the training step of a full-size model on random frames, against plain Keras.

    python benchmarks/train_step.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80
    KERAS_BACKEND=jax python benchmarks/train_step.py --flagfile=recipes/gru.flags --batch_size=80

The step is that of train.py, under JAX the same in one compiled function; the batch lies in memory.
benchmarks/README.md tells how to read it.
"""

import pathlib
import sys

import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import full_size
import layers
import program
from full_size import define_flags


def build(config, dtype):
    """The project's model, to be trained."""
    return config.build_model(layers.training_policy(dtype))


def main(flag_values):
    """Runs the program."""
    # JAX runs where TensorFlow is not installed, and the other way round.
    if keras.backend.backend() == "jax":
        import jax_step

        full_size.run(build, jax_step.way, flag_values, make_bound=jax_step.bound)
    else:
        import tensorflow_step

        make_step = tensorflow_step.plain_step
        full_size.run(build, tensorflow_step.way, flag_values, make_step=make_step)


if __name__ == "__main__":
    program.run(main, define_flags, backends=("tensorflow", "jax"))
