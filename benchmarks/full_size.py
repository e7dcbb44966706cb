"""What the benchmarks of models share: random full-size batches and the circumstances."""

import importlib.metadata
import json
import os
import resource
import statistics
import sys

import keras
import numpy as np
from absl import flags

import compute
import program
import recipe_flags

PACKAGES = ("tensorflow", "keras", "numpy")


def define_flags(flag_values):
    """Defines the flags of a benchmark of one model, which takes recipes as well."""
    recipe_flags.define_flags(flag_values)
    compute.define_flags(flag_values)
    flag_values.set_default("batch_size", 80)
    own = {"flag_values": flag_values}
    flags.DEFINE_integer("rounds", 5, "How often to measure.", **own)
    flags.DEFINE_integer("steps", 2, "Batches in each round.", **own)
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the result.", **own)


def config_from_flags(flag_values):
    """The `RunConfig` to measure."""
    program.require_flags(flag_values, "model")
    program.require_positive(flag_values, "rounds", "steps")
    return recipe_flags.config_from_flags(flag_values)


def random_batch(config):
    """Inputs and labels of a batch of random videos, all of `max_frames` frames."""
    rng = np.random.default_rng(config.seed)
    size, width = config.batch_size, sum(config.feature_sizes)
    labels = (rng.random((size, config.num_classes)) < 3 / config.num_classes).astype(np.float32)
    if not config.frame_level:
        return rng.standard_normal((size, width), dtype=np.float32), labels
    frames = rng.integers(0, 256, (size, config.max_frames, width), dtype=np.uint8)
    return {"frames": frames, "num_frames": np.full(size, config.max_frames, np.int32)}, labels


def report(measure, flag_values):
    """Prints what `measure(model, config, rounds, steps)`, seconds per batch, comes to."""
    config = config_from_flags(flag_values)
    keras.utils.set_random_seed(config.seed)
    policy = compute.matrix_policy(flag_values.compute_dtype)
    seconds = measure(config.build_model(policy), config, flag_values.rounds, flag_values.steps)
    values = {**summary(config, seconds), "matrix_policy": policy}
    print(json.dumps(values, indent=2) if flag_values.format == "json" else as_lines(values))


def summary(config, seconds):
    """The result: medians over the rounds of the seconds per batch, and the circumstances."""
    median = statistics.median(seconds)
    return {
        "model": config.model,
        "seconds_per_batch": round(median, 4),
        "seconds_min": round(min(seconds), 4),
        "seconds_max": round(max(seconds), 4),
        "examples_per_second": round(config.batch_size / median, 1),
        # Kilobytes on Linux; of the whole process, its input and TensorFlow itself included.
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "batch_size": config.batch_size,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def as_lines(values):
    """A result as text for a terminal."""
    return (
        (
            "{model}: {seconds_per_batch:.3f} s per batch of {batch_size} ({seconds_min:.3f} to "
            "{seconds_max:.3f}), {examples_per_second:.1f} examples/s, peak memory "
            "{peak_memory_gib:.2f} GiB, {cores} cores, {matrix_policy}"
        ).format(**values)
        + "\n"
        + ", ".join(f"{k} {v}" for k, v in values["versions"].items())
    )
