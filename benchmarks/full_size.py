"""What the benchmarks of models share: their flags, and random full-size batches."""

import keras
import numpy as np
from absl import flags

import comparison
import compute
import plain_models
import program
import recipe_flags


def define_flags(flag_values):
    """Defines the flags of a benchmark of one model, which takes recipes as well."""
    recipe_flags.define_flags(flag_values)
    compute.define_flags(flag_values)
    comparison.define_flags(flag_values)
    flag_values.set_default("batch_size", 80)
    own = {"flag_values": flag_values}
    flags.DEFINE_integer("steps", 2, "Batches in each round.", **own)
    flags.DEFINE_boolean(
        "plain", True, "Measures the same model in plain Keras and float32, the baseline.", **own
    )


def run(build, way, flag_values, **plain_way):
    """Compares `way` for the project's model with that for its plain twin.

    Args:
        build: function of a config and a dtype, to the project's model.
        way: function of a model, its config and the number of batches, to what does the work.
        flag_values: with the flags of `define_flags`.
        **plain_way: more arguments of `way` for the plain model.
    """
    program.require_flags(flag_values, "model")
    program.require_positive(flag_values, "steps")
    config = recipe_flags.config_from_flags(flag_values)
    dtype = compute.chosen_dtype(flag_values.compute_dtype)
    keras.utils.set_random_seed(config.seed)
    model = build(config, dtype)
    steps = flag_values.steps
    makers = {"project": lambda: way(model, config, steps)}
    if flag_values.plain:
        plain = plain_models.PlainModel(model)
        makers["plain Keras, float32"] = lambda: way(plain, config, steps, **plain_way)
    comparison.run(
        makers,
        list(makers)[-1],
        flag_values,
        model=config.model,
        batch_size=config.batch_size,
        compute_dtype=dtype,
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
