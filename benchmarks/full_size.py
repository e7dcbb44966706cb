"""What the benchmarks of models share: their flags, and random full-size batches."""

import keras
import numpy as np
from absl import flags

import comparison
import layers
import plain_models
import program
import recipe_flags


def define_flags(flag_values):
    """Defines the flags of a benchmark of one model, which takes recipes as well."""
    recipe_flags.define_flags(flag_values)
    compute.define_flags(flag_values)
    comparison.define_flags(
        flag_values, plain="Measures the same model in plain Keras and float32, the baseline."
    )
    flag_values.set_default("batch_size", 80)
    flags.DEFINE_integer("steps", 2, "Batches in each round.", flag_values=flag_values)


def run(build, way, flag_values, make_bound=None, **plain_way):
    """Compares `way` for the project's model with that for its plain twin.

    Args:
        build: function of a config and a dtype, to the project's model.
        way: function of a model, its config and the number of batches, to what does the work.
        flag_values: with the flags of `define_flags`.
        make_bound: function of the model, its config and the dtype, to ways that bound the
            project's and conditions to tell, as of `comparison.run`.
        **plain_way: more arguments of `way` for the plain model.
    """
    program.require_flags(flag_values, "model")
    program.require_positive(flag_values, "steps")
    config = recipe_flags.config_from_flags(flag_values)
    dtype = layers.resolve_compute_dtype(flag_values.compute_dtype)
    keras.utils.set_random_seed(config.seed)
    model = build(config, dtype)
    steps = flag_values.steps
    # Made first, since a model without a twin is refused.
    plain = plain_models.PlainModel(model) if flag_values.plain else None
    bounds, conditions = make_bound(model, config, dtype) if make_bound else ({}, {})
    comparison.run_beside(
        "plain Keras, float32",
        lambda: way(plain, config, steps, **plain_way),
        lambda: way(model, config, steps),
        flag_values,
        bounds,
        model=config.model,
        batch_size=config.batch_size,
        compute_dtype=dtype,
        **conditions,
    )


def random_batch(config):
    """Inputs and labels of a batch of random videos, all of `max_frames` frames."""
    rng = np.random.default_rng(config.seed)
    size, width = config.batch_size, sum(config.feature_sizes)
    labels = (rng.random((size, config.num_classes)) < 3 / config.num_classes).astype(np.float32)
    if not config.frame_level:
        return rng.standard_normal((size, width), dtype=np.float32), labels
    frames = rng.integers(0, 256, (size, config.max_frames, width), dtype=np.uint8)
    return {"frames": frames, "num_frames": np.full(size, config.max_frames, np.int32)}, labels
