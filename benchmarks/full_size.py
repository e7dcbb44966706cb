"""Shared by the model benchmarks: their flags, and random full-size batches."""

import keras
import numpy as np
from absl import flags

import comparison
import layers
import plain_models
import program
import recipe_flags


def define_flags(flag_values):
    """Defines the flags of a benchmark of one model, including those that recipes set."""
    recipe_flags.define_flags(flag_values)
    compute.define_flags(flag_values)
    comparison.define_flags(
        flag_values, plain="Also measure the baseline: the same model in plain Keras and float32."
    )
    flag_values.set_default("batch_size", 80)
    flags.DEFINE_integer("steps", 2, "Batches per round.", flag_values=flag_values)


def run(build, make_work, flag_values, make_bound=None, **plain_options):
    """Compares the project's model with its plain Keras counterpart.

    Args:
        build: function `(config, dtype)` that returns the project's model.
        make_work: function `(model, config, steps)` that returns the function to measure, as in
            `comparison.run`.
        flag_values: parsed flags of `define_flags`.
        make_bound: function `(model, config, dtype)` that returns `(bounds, conditions)` for
            `comparison.run_against_plain`.
        **plain_options: further arguments of `make_work` for the plain model.
    """
    program.require_flags(flag_values, "model")
    program.require_positive(flag_values, "steps")
    config = recipe_flags.config_from_flags(flag_values)
    dtype = layers.resolve_compute_dtype(flag_values.compute_dtype)
    keras.utils.set_random_seed(config.seed)
    model = build(config, dtype)
    steps = flag_values.steps
    # Built before anything runs, because it rejects models without a plain counterpart.
    plain = plain_models.PlainModel(model) if flag_values.plain else None
    bounds, conditions = make_bound(model, config, dtype) if make_bound else ({}, {})
    comparison.run_against_plain(
        "plain Keras, float32",
        lambda: make_work(plain, config, steps, **plain_options),
        lambda: make_work(model, config, steps),
        flag_values,
        bounds,
        model=config.model,
        batch_size=config.batch_size,
        compute_dtype=dtype,
        **conditions,
    )


def random_batch(config):
    """Returns inputs and labels of random videos that all have `max_frames` frames."""
    rng = np.random.default_rng(config.seed)
    size, width = config.batch_size, sum(config.feature_sizes)
    labels = (rng.random((size, config.num_classes)) < 3 / config.num_classes).astype(np.float32)
    if not config.frame_level:
        return rng.standard_normal((size, width), dtype=np.float32), labels
    frames = rng.integers(0, 256, (size, config.max_frames, width), dtype=np.uint8)
    return {"frames": frames, "num_frames": np.full(size, config.max_frames, np.int32)}, labels
