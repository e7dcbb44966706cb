"""Measures the prediction of a full-size model on random frames, against plain Keras.

    python benchmarks/predict.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80

The batch is in memory, and predictions are returned as an array, as in eval.py and inference.py.
benchmarks/README.md explains the output.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import full_size
from ensemble import Ensemble, frozen_model
from full_size import ModelBenchmarkOptions
from predictor import compiled
from run_config import RecipeOptions, RunConfig


def make_work(model, config, steps, plain=False):
    """Returns a function that predicts batches, after two warm-up batches."""
    # The plain model samples once.
    predict = compiled(model if plain else Ensemble([model], num_samplings=1))
    inputs, _ = full_size.random_batch(config)

    def work():
        for _ in range(steps):
            predict(inputs)
        return steps * config.batch_size

    predict(inputs)
    predict(inputs)
    return work


def main(config: RunConfig, recipe: RecipeOptions, options: ModelBenchmarkOptions):
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    full_size.run(frozen_model, make_work, config, options, plain=True)


if __name__ == "__main__":
    program.run(main)
