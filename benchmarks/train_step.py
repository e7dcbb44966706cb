"""Measures the training step of a full-size model on random frames, against plain Keras.

    python benchmarks/train_step.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80
    KERAS_BACKEND=jax python benchmarks/train_step.py --flagfile=recipes/gru.flags --batch_size=80
    python benchmarks/train_step.py --flagfile=recipes/video_moe.flags --data_pattern='data/train*'

The step is that of train.py; under JAX, the same step is one compiled function. The batch is in
memory, unless records are given. benchmarks/README.md explains the output.
"""

import dataclasses
import functools
import pathlib
import sys

import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import full_size
import layers
from full_size import ModelBenchmarkOptions
from options import option
from run_config import RecipeOptions, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions(ModelBenchmarkOptions):
    """Options of this program."""

    data_pattern: str | None = option(
        None,
        "Comma-separated globs of records to train on, quoted. The baseline is then the same step "
        "on a batch in memory.",
        group="data",
    )


def build(config, dtype):
    """Returns the project's model for training."""
    return config.build_model(layers.training_policy(dtype))


def compare_with_memory(config, options):
    """Compares training from records with the same step on a batch in memory."""
    import tensorflow_step

    def in_memory(model, config, dtype):
        del dtype
        make = functools.partial(tensorflow_step.make_work, model, config, options.steps)
        return {"batch in memory": make}, {}

    from_records = functools.partial(
        tensorflow_step.make_work_from_records, pattern=options.data_pattern
    )
    options = dataclasses.replace(options, plain=False)
    full_size.run(build, from_records, config, options, make_bound=in_memory)


def main(config: RunConfig, recipe: RecipeOptions, options: StepOptions):
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    # Each backend runs where the other is not installed.
    if keras.backend.backend() == "jax":
        import jax_step

        full_size.run(build, jax_step.make_work, config, options, make_bound=jax_step.bound)
    elif options.data_pattern:
        compare_with_memory(config, options)
    else:
        import tensorflow_step

        make_step = tensorflow_step.plain_step
        full_size.run(build, tensorflow_step.make_work, config, options, make_step=make_step)


if __name__ == "__main__":
    program.run(main, backends=("tensorflow", "jax"))
