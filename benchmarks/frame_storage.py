"""Measures a full-size model on frames that are stored in different ways.

    python benchmarks/frame_storage.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80
    python benchmarks/frame_storage.py --flagfile=recipes/lfnl_netvlad.flags --batch_size=80 --train

The ways are bytes with YouTube-8M's range, bytes with a range for each dimension, float16 and
float32. benchmarks/README.md explains the output.
"""

import dataclasses
import pathlib
import sys

import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import layers
import predict
import tensorflow_step
import train_step
from ensemble import frozen_model
from options import option, same_option
from run_config import RecipeOptions, RunConfig, TrainOptions

BASELINE = "bytes, -2 to 2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageOptions(comparison.ComparisonOptions):
    """Options of this program."""

    train: bool = option(False, "Measure training instead of prediction.", group="output")
    steps: int = option(2, "Batches per round.", group="output", above=0)
    compute_dtype: str | None = same_option(TrainOptions, "compute_dtype")


def storages(config):
    """Returns configs that differ only in the storage of the frames, by name."""
    rng = np.random.default_rng(0)
    ranges = {
        name: {"min": rng.uniform(-2, -1, size).tolist(), "max": rng.uniform(1, 2, size).tolist()}
        for name, size in zip(config.feature_names, config.feature_sizes, strict=True)
    }
    changes = {
        BASELINE: {},
        "bytes, a range per dimension": {"quantization": ranges},
        "float16": {"feature_dtypes": ("float16",)},
        "float32": {"feature_dtypes": ("float32",)},
    }
    return {name: dataclasses.replace(config, **change) for name, change in changes.items()}


def main(config: RunConfig, recipe: RecipeOptions, options: StorageOptions):
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    dtype = layers.resolve_compute_dtype(options.compute_dtype)
    build, module = (
        (train_step.build, tensorflow_step) if options.train else (frozen_model, predict)
    )

    def make(config):
        keras.utils.set_random_seed(config.seed)
        return module.make_work(build(config, dtype), config, options.steps)

    comparison.run(
        {name: lambda config=config: make(config) for name, config in storages(config).items()},
        BASELINE,
        options,
        work="training" if options.train else "prediction",
        model=config.model,
        batch_size=config.batch_size,
        compute_dtype=dtype,
    )


if __name__ == "__main__":
    program.run(main)
