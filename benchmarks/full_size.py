"""Shared by the model benchmarks: their flags, and random full-size batches."""

import dataclasses
import pathlib

import program

import keras
import numpy as np

import comparison
import layers
import plain_models
from options import option, same_option
from run_config import RecipeOptions, RunConfig, TrainOptions
from utils import InputError

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes"
# Recipes of the paper's models.
PAPER = ("lfnl_netvlad", "lfnl_netrvlad", "efnl_netvlad", "soft_bof_4k", "soft_bof_8k", "gru")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBenchmarkOptions(comparison.PlainOptions):
    """Options of a benchmark of one model, beyond those that a recipe sets."""

    steps: int = option(2, "Batches per round.", group="output", above=0)
    compute_dtype: str | None = same_option(TrainOptions, "compute_dtype")


def run(build, make_work, config, options, make_bound=None, **plain_options):
    """Compares the project's model with its plain Keras counterpart.

    Args:
        build: function `(config, dtype)` that returns the project's model.
        make_work: function `(model, config, steps)` that returns the function to measure, as in
            `comparison.run`.
        config: `RunConfig`.
        options: `ModelBenchmarkOptions`.
        make_bound: function `(model, config, dtype)` that returns `(bounds, conditions)` for
            `comparison.run_against_plain`.
        **plain_options: further arguments of `make_work` for the plain model.
    """
    dtype = layers.resolve_compute_dtype(options.compute_dtype)
    keras.utils.set_random_seed(config.seed)
    model = build(config, dtype)
    steps = options.steps
    # Built before anything runs, because it rejects models without a plain counterpart.
    plain = plain_models.PlainModel(model) if options.plain else None
    plain_config = dataclasses.replace(config, optimizer_state_dtype="float32")
    bounds, conditions = make_bound(model, config, dtype) if make_bound else ({}, {})
    comparison.run_against_plain(
        "plain Keras, float32",
        lambda: make_work(plain, plain_config, steps, **plain_options),
        lambda: make_work(model, config, steps),
        options,
        bounds,
        model=config.model,
        batch_size=config.batch_size,
        compute_dtype=dtype,
        **conditions,
    )


def config_of_recipe(name, batch_size):
    """Returns the `RunConfig` of a recipe with another batch size.

    Args:
        name: str. Name in `recipes/`, or path, of a flag file without its extension.
        batch_size: int.
    """

    def main(config: RunConfig, recipe: RecipeOptions):
        return config

    recipe = RECIPES / f"{name}.flags"
    return program.call(main, [f"--flagfile={recipe}", f"--batch_size={batch_size}"])


def random_batch(config):
    """Returns inputs and labels of random videos that all have `max_frames` frames.

    Raises:
        InputError: if a step would take several batches.
    """
    if config.gradient_accumulation > 1:
        raise InputError("benchmarks measure steps of one batch, without --gradient_accumulation.")
    rng = np.random.default_rng(config.seed)
    size, width = config.batch_size, sum(config.feature_sizes)
    labels = (rng.random((size, config.num_classes)) < 3 / config.num_classes).astype(np.float32)
    if not config.frame_level:
        return rng.standard_normal((size, width), dtype=np.float32), labels
    if config.frame_format.is_quantized:
        frames = rng.integers(0, 256, (size, config.max_frames, width), dtype=np.uint8)
    else:
        frames = rng.standard_normal((size, config.max_frames, width), dtype=np.float32)
        frames = frames.astype(config.frame_format.dtype)
    return {"frames": frames, "num_frames": np.full(size, config.max_frames, np.int32)}, labels
