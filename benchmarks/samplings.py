"""Measures what averaging over samplings of the frames costs, at full size, on random frames.

    python benchmarks/samplings.py
    python benchmarks/samplings.py --recipes=lfnl_netvlad --num_samplings=5

Prints the time of N samplings relative to one, for each model alone and for all in one graph.
Tiling the input, which repeats the whole model, costs N by construction; it is measured as well.
"""

import pathlib
import sys
import time

import numpy as np
from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import full_size
import predictor
import program
import recipe_flags
from ensemble import Ensemble

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes"
PAPER = ("lfnl_netvlad", "lfnl_netrvlad", "efnl_netvlad", "soft_bof_4k", "soft_bof_8k", "gru")


def config_of_recipe(name, batch_size):
    """The `RunConfig` of a recipe, with another batch size."""
    flag_values = flags.FlagValues()
    recipe_flags.define_flags(flag_values)
    flags.DEFINE_string("flagfile", None, "", flag_values=flag_values)
    flag_values([sys.argv[0], *_lines(name), f"--batch_size={batch_size}"])
    return recipe_flags.config_from_flags(flag_values)


def _lines(name):
    text = (RECIPES / f"{name}.flags").read_text()
    return [line for line in text.splitlines() if line.startswith("--")]


def seconds_of(functions, inputs, rounds):
    """Median seconds of each function over rounds in which all take turns; one is not counted."""
    seconds = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(inputs)
            if number:
                times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in seconds]


def tiled(predict, num_samplings):
    """Prediction that repeats every video, as the paper's code did."""

    def predict_tiled(inputs):
        repeated = {name: np.repeat(array, num_samplings, axis=0) for name, array in inputs.items()}
        size = len(inputs["num_frames"])
        parts = [
            predict({name: array[start : start + size] for name, array in repeated.items()})
            for start in range(0, size * num_samplings, size)
        ]
        joined = np.concatenate(parts)
        return joined.reshape(size, num_samplings, -1).mean(axis=1)

    return predict_tiled


def measure(models, inputs, flag_values):
    """Seconds of one sampling, of N, and of tiling for N."""
    count = flag_values.num_samplings
    once = predictor.compiled(Ensemble(models))
    functions = [once, predictor.compiled(Ensemble(models, num_samplings=count))]
    if flag_values.tiling:
        functions.append(tiled(once, count))
    return seconds_of(functions, inputs, flag_values.rounds)


def define_flags(flag_values):
    """Defines the flags of this program."""
    own = {"flag_values": flag_values}
    flags.DEFINE_list("recipes", list(PAPER), "Recipes of the models to measure.", **own)
    flags.DEFINE_integer("num_samplings", 10, "N, samplings to average over.", **own)
    flags.DEFINE_integer("batch_size", 80, "Videos in a batch.", **own)
    flags.DEFINE_integer("rounds", 3, "How often to measure.", **own)
    flags.DEFINE_boolean("tiling", False, "Measures tiling the input too, which takes long.", **own)
    flags.DEFINE_enum(
        "dtype", "float32", ("float32", "bfloat16"), "Type of matrices and their products.", **own
    )


def main(flag_values):
    """Runs the program."""
    program.require_positive(flag_values, "num_samplings", "batch_size", "rounds")
    configs = [config_of_recipe(name, flag_values.batch_size) for name in flag_values.recipes]
    inputs, _ = full_size.random_batch(configs[0])
    logging.set_verbosity(logging.WARNING)
    models = [config.build_model(flag_values.dtype) for config in configs]
    measured = [([model], name) for model, name in zip(models, flag_values.recipes, strict=True)]
    if len(models) > 1:
        measured.append((models, "all in one graph"))
    count = flag_values.num_samplings
    for members, name in measured:
        one, several, *tiling = seconds_of_line = measure(members, inputs, flag_values)
        ratio = f"{name}: {count} samplings take {several / one:.2f} times as long as one"
        if tiling:
            ratio += f", tiling the input {tiling[0] / one:.2f} times"
        print(ratio, [f"{seconds:.3f} s" for seconds in seconds_of_line], flush=True)


if __name__ == "__main__":
    program.run(main, define_flags)
