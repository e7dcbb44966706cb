"""Measures the prediction of a full-size model on random frames.

    python benchmarks/predict.py --model=LFNLNetVLADModel

The batch lies in memory; predictions come back as an array, as in eval.py and inference.py.
benchmarks/README.md tells how to read it.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import full_size
import predictor
import program
from ensemble import Ensemble
from full_size import define_flags


def measure(model, config, rounds, steps):
    """Seconds per batch in every round; two batches before the first are not counted."""
    predict = predictor.compiled(Ensemble([model]))
    inputs, _ = full_size.random_batch(config)
    for _ in range(2):
        predict(inputs)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            predict(inputs)
        seconds.append((time.perf_counter() - start) / steps)
    return seconds


def main(flag_values):
    """Runs the program."""
    full_size.report(measure, flag_values)


if __name__ == "__main__":
    program.run(main, define_flags)
