"""Compares exported models of different dtypes: size, memory, speed, probabilities.

    python benchmarks/export_dtypes.py
    python benchmarks/export_dtypes.py --recipes=gru --batch_size=1

The models of the recipes, at full size and with the random weights of their start, are exported
together, once for each dtype. benchmarks/README.md explains the output.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import checkpoints
import comparison
import full_size
import layers
import samplings
from export_model import ExportOptions, export
from options import option, same_option
from utils import aligned_table

# Imports only TensorFlow, as a server does. Memory is in GiB, over that of Python with TensorFlow.
_SERVE = """
import json
import sys
import numpy as np
import tensorflow as tf

def memory(key):
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(key))
    return int(line.split()[1]) / 2**20

start = memory("VmRSS")
loaded = tf.saved_model.load(sys.argv[1])
found = {"loaded": memory("VmRSS") - start}
with np.load(sys.argv[2]) as arrays:
    inputs = {name: tf.constant(arrays[name]) for name in arrays}
loaded.signatures["predict"](**inputs)
found["serving"] = memory("VmHWM") - start
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportDtypesOptions(comparison.ComparisonOptions):
    """Options of this program."""

    rounds: int = same_option(comparison.ComparisonOptions, "rounds", default=3)
    recipes: tuple[str, ...] = same_option(samplings.SamplingsOptions, "recipes")
    batch_size: int = same_option(samplings.SamplingsOptions, "batch_size")
    num_samplings: int | None = same_option(ExportOptions, "num_samplings")
    dtypes: tuple[str, ...] = option(
        layers.STORAGE_DTYPES,
        "Dtypes to compare, the first of which is the baseline.",
        group="output",
        choices=layers.STORAGE_DTYPES,
    )
    bfloat16_layers: tuple[str, ...] = same_option(ExportOptions, "bfloat16_layers")


def save_random_run(config, train_dir):
    """Writes a train directory with the initial weights of a model."""
    keras.utils.set_random_seed(config.seed)
    config.save(train_dir)
    state = tf.train.Checkpoint(weights=checkpoints.weights(config.build_model()))
    checkpoints.new_manager(train_dir, state).save(1)


def memory(export_dir, inputs_path):
    """Returns the memory of a new process after loading and after one prediction, in GiB."""
    command = [sys.executable, "-c", _SERVE, export_dir, inputs_path]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def exported_models(options, folder, inputs):
    """Exports the models with each dtype; returns the directories and a description of each."""
    train_dirs = []
    for name in options.recipes:
        train_dirs.append(os.path.join(folder, name))
        save_random_run(full_size.config_of_recipe(name, options.batch_size), train_dirs[-1])
    inputs_path = os.path.join(folder, "inputs.npz")
    np.savez(inputs_path, **inputs)
    found = {}
    for dtype in options.dtypes:
        export_dir = os.path.join(folder, f"exported_{dtype}")
        manifest = export(
            ExportOptions(
                train_dirs=tuple(train_dirs),
                output_dir=export_dir,
                num_samplings=options.num_samplings,
                dtype=(dtype,),
                bfloat16_layers=options.bfloat16_layers,
            )
        )
        found[dtype] = {"bytes": manifest["bytes"], **memory(export_dir, inputs_path)}
    return found


def make_work(predict, inputs):
    """Returns a function that predicts one batch."""

    def work():
        predict(**inputs)["predictions"].numpy()
        return len(inputs["num_frames"])

    return work


def main(options: ExportDtypesOptions):
    """Runs the program."""
    config = full_size.config_of_recipe(options.recipes[0], options.batch_size)
    inputs, _ = full_size.random_batch(config)
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = exported_models(options, folder, inputs)
        loaded = {
            dtype: tf.saved_model.load(os.path.join(folder, f"exported_{dtype}"))
            for dtype in options.dtypes
        }
    predict = {dtype: model.signatures["predict"] for dtype, model in loaded.items()}
    tensors = {name: tf.constant(array) for name, array in inputs.items()}
    expected, *_ = probabilities = [
        predict[dtype](**tensors)["predictions"].numpy() for dtype in options.dtypes
    ]
    print(
        aligned_table(
            ("dtype", "bytes", "GiB loaded", "GiB serving", "largest difference"),
            [
                (
                    dtype,
                    f"{found[dtype]['bytes']:,}",
                    f"{found[dtype]['loaded']:.2f}",
                    f"{found[dtype]['serving']:.2f}",
                    f"{np.abs(values - expected).max():.1e}",
                )
                for dtype, values in zip(options.dtypes, probabilities, strict=True)
            ],
        ),
        end="\n\n",
        flush=True,
    )
    makers = {dtype: functools.partial(make_work, predict[dtype], tensors) for dtype in predict}
    conditions = {"models": "+".join(options.recipes), "batch_size": options.batch_size}
    comparison.run(makers, options.dtypes[0], options, **conditions)


if __name__ == "__main__":
    program.run(main)
