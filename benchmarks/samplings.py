"""Measures the cost of averaging over frame samplings, at full size, on random frames.

    python benchmarks/samplings.py
    python benchmarks/samplings.py --recipes=lfnl_netvlad --num_samplings=5

Prints the speed of N samplings, and of every frame once, relative to one sampling, for each model
and for all models in one graph. N samplings take 1 / ratio times as long. Tiling the input repeats
the whole model, so it takes N times as long by construction; --tiling measures it.
benchmarks/README.md explains the output.
"""

import dataclasses
import functools
import pathlib
import sys

import numpy as np
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import full_size
import layers
from ensemble import Ensemble, frozen_model
from options import option, same_option
from predictor import compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingsOptions(comparison.ComparisonOptions):
    """Options of this program."""

    rounds: int = same_option(comparison.ComparisonOptions, "rounds", default=3)
    recipes: tuple[str, ...] = option(
        full_size.PAPER, "Recipes whose models to measure.", group="model"
    )
    num_samplings: int = option(10, "N, the number of samplings.", group="prediction", above=0)
    batch_size: int = option(80, "Videos per batch.", group="prediction", above=0)
    tiling: bool = option(False, "Also measure tiling the input (slow).", group="prediction")
    dtype: str = option(
        "float32",
        "Type of the matrices and of their products, which are bfloat16 for int8.",
        group="prediction",
        choices=layers.STORAGE_DTYPES,
    )


def tiled(predict, num_samplings):
    """Returns a prediction function that repeats every video, as the paper's code did."""

    def predict_tiled(inputs):
        repeated = {name: np.repeat(array, num_samplings, axis=0) for name, array in inputs.items()}
        size = len(inputs["num_frames"])
        parts = [
            predict({name: array[start : start + size] for name, array in repeated.items()})
            for start in range(0, size * num_samplings, size)
        ]
        return np.concatenate(parts).reshape(size, num_samplings, -1).mean(axis=1)

    return predict_tiled


def make_work(predict, inputs, num_videos):
    """Returns a function that predicts one batch."""

    def work():
        predict(inputs)
        return num_videos

    return work


def main(options: SamplingsOptions):
    """Runs the program."""
    size, count = options.batch_size, options.num_samplings
    configs = [full_size.config_of_recipe(name, size) for name in options.recipes]
    inputs, _ = full_size.random_batch(configs[0])
    logging.set_verbosity(logging.WARNING)
    models = [frozen_model(config, options.dtype) for config in configs]
    measured = [([model], name) for model, name in zip(models, options.recipes, strict=True)]
    if len(models) > 1:
        measured.append((models, "all in one graph"))
    for members, name in measured:
        once = compiled(Ensemble(members, num_samplings=1))
        every_frame = compiled(Ensemble(members, num_samplings=0))
        several = compiled(Ensemble(members, num_samplings=count))
        ways = {
            "one sampling": once,
            f"{count} samplings": several,
            "every frame once": every_frame,
        }
        if options.tiling:
            ways[f"input tiled {count} times"] = tiled(once, count)
        makers = {key: functools.partial(make_work, way, inputs, size) for key, way in ways.items()}
        conditions = {"models": name, "batch_size": size, "dtype": options.dtype}
        comparison.run(makers, "one sampling", options, **conditions)


if __name__ == "__main__":
    program.run(main)
