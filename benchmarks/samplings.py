"""Measures the cost of averaging over frame samplings, at full size, on random frames.

    python benchmarks/samplings.py
    python benchmarks/samplings.py --recipes=lfnl_netvlad --num_samplings=5

Prints the speed of N samplings relative to one, for each model and for all models in one graph. N
samplings take 1 / ratio times as long. Tiling the input repeats the whole model, so it takes N
times as long by construction; --tiling measures it. benchmarks/README.md explains the output.
"""

import functools
import pathlib
import sys

import numpy as np
from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import comparison
import freezing
import full_size
import predictor
import program
import recipe_flags
from ensemble import Ensemble

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes"
PAPER = ("lfnl_netvlad", "lfnl_netrvlad", "efnl_netvlad", "soft_bof_4k", "soft_bof_8k", "gru")


def config_of_recipe(name, batch_size):
    """Returns the `RunConfig` of a recipe with another batch size."""
    flag_values = flags.FlagValues()
    recipe_flags.define_flags(flag_values)
    flags.DEFINE_string("flagfile", None, "", flag_values=flag_values)
    flag_values([sys.argv[0], *_flags_of_recipe(name), f"--batch_size={batch_size}"])
    return recipe_flags.config_from_flags(flag_values)


def _flags_of_recipe(name):
    text = (RECIPES / f"{name}.flags").read_text()
    return [line for line in text.splitlines() if line.startswith("--")]


def tiled(predict, num_samplings):
    """Returns a prediction function that repeats every video, as the paper's code did."""

    def predict_tiled(inputs):
        repeated = {name: np.repeat(array, num_samplings, axis=0) for name, array in inputs.items()}
        size = len(inputs["num_frames"])
        parts = [
            predict({name: array[start : start + size] for name, array in repeated.items()})
            for start in range(0, size * num_samplings, size)
        ]
        joined = np.concatenate(parts)
        return joined.reshape(size, num_samplings, -1).mean(axis=1)

    return predict_tiled


def make_work(predict, inputs, num_videos):
    """Returns a function that predicts one batch."""

    def work():
        predict(inputs)
        return num_videos

    return work


def define_flags(flag_values):
    """Defines the flags of this program."""
    comparison.define_flags(flag_values, rounds=3)
    own = {"flag_values": flag_values}
    flags.DEFINE_list("recipes", list(PAPER), "Recipes whose models to measure.", **own)
    flags.DEFINE_integer("num_samplings", 10, "N, the number of samplings to average.", **own)
    flags.DEFINE_integer("batch_size", 80, "Videos per batch.", **own)
    flags.DEFINE_boolean("tiling", False, "Also measure tiling the input, which is slow.", **own)
    flags.DEFINE_enum(
        "dtype", "float32", freezing.DTYPES, "Type of the matrices and of their products.", **own
    )


def main(flag_values):
    """Runs the program."""
    program.require_positive(flag_values, "num_samplings", "batch_size")
    size, count = flag_values.batch_size, flag_values.num_samplings
    configs = [config_of_recipe(name, size) for name in flag_values.recipes]
    inputs, _ = full_size.random_batch(configs[0])
    logging.set_verbosity(logging.WARNING)
    models = [freezing.new_model(config, flag_values.dtype) for config in configs]
    measured = [([model], name) for model, name in zip(models, flag_values.recipes, strict=True)]
    if len(models) > 1:
        measured.append((models, "all in one graph"))
    for members, name in measured:
        once = predictor.compiled(Ensemble(members))
        several = predictor.compiled(Ensemble(members, num_samplings=count))
        ways = {"one sampling": once, f"{count} samplings": several}
        if flag_values.tiling:
            ways[f"input tiled {count} times"] = tiled(once, count)
        comparison.run(
            {
                key: functools.partial(make_work, predict, inputs, size)
                for key, predict in ways.items()
            },
            "one sampling",
            flag_values,
            models=name,
            batch_size=size,
            dtype=flag_values.dtype,
        )


if __name__ == "__main__":
    program.run(main, define_flags)
