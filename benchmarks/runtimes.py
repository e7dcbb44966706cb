"""Measures exported models in TensorFlow, ONNX Runtime and LiteRT on random full-size frames.

    python benchmarks/runtimes.py --flagfile=recipes/soft_bof_4k.flags --batch_size=1

Every frame is used once. The batch is in memory; every runtime uses all cores.
benchmarks/README.md explains the output.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import keras
import tensorflow as tf

import comparison
import full_size
import other_runtimes
import serving
from ensemble import Ensemble, frozen_model
from options import option
from run_config import RecipeOptions, RunConfig

BASELINE = "TensorFlow, float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeBenchmarkOptions(comparison.ComparisonOptions):
    """Options of this benchmark."""

    steps: int = option(2, "Batches per round.", group="output", above=0)


def random_ensemble(config, dtype):
    """Returns a frozen model with random weights, because equal weights are stored only once."""
    model = frozen_model(config, dtype)
    for weight in model.weights:
        values = keras.random.normal(weight.shape, stddev=0.02)
        if weight.name.endswith("variance"):
            values = keras.ops.abs(values)
        weight.assign(keras.ops.cast(values, weight.dtype))
    return Ensemble([model], num_samplings=0)


def make_saved_model(config, dtype, folder):
    """Writes a SavedModel and returns its signature for stored frames."""
    module = serving.make_module(random_ensemble(config, dtype), config.data, 20)
    tf.saved_model.save(module, folder, signatures=module.served)
    del module
    loaded = tf.saved_model.load(folder)

    def predict(inputs):
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        return loaded.signatures["predict"](**tensors)["predictions"].numpy()

    return predict


def make_other(config, name, folder):
    """Writes a file for another runtime and returns its function."""
    os.makedirs(folder)
    other_runtimes.write(name, random_ensemble(config, "float32"), config.data, folder)
    runtime = other_runtimes.RUNTIMES[name]
    return runtime.load(os.path.join(folder, runtime.file_name))


def main(config: RunConfig, recipe: RecipeOptions, options: RuntimeBenchmarkOptions):
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    inputs, _ = full_size.random_batch(config)
    if not config.frame_level:
        inputs = {"features": inputs}

    def make_work(predict):
        def work():
            for _ in range(options.steps):
                predict(inputs)
            return options.steps * config.batch_size

        work()
        return work

    with tempfile.TemporaryDirectory() as folder:
        paths = {BASELINE: "float32", "TensorFlow, bfloat16": "bfloat16"}
        paths |= {runtime.name: name for name, runtime in other_runtimes.RUNTIMES.items()}
        paths = {name: os.path.join(folder, path) for name, path in paths.items()}
        # Files are written before anything is measured, because writing needs much more memory.
        predict = {
            name: make_saved_model(config, os.path.basename(path), path)
            if name.startswith("TensorFlow")
            else make_other(config, os.path.basename(path), path)
            for name, path in paths.items()
        }
        makers = {
            name: (lambda function=function: make_work(function))
            for name, function in predict.items()
        }
        sizes = {
            f"MiB of {name}": round(serving.size(path) / 2**20, 2) for name, path in paths.items()
        }
        comparison.run(
            makers,
            BASELINE,
            options,
            model=config.model,
            batch_size=config.batch_size,
            **sizes,
        )


if __name__ == "__main__":
    program.run(main)
