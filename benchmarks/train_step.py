"""Measures the training step of a full-size model on random frames.

    python benchmarks/train_step.py --model=LFNLNetVLADModel

The step is that of train.py; the batch lies in memory. benchmarks/README.md tells how to read it.
"""

import pathlib
import sys
import time

import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import full_size
import program
import trainer
from full_size import define_flags


def measure(model, config, rounds, steps):
    """Seconds per training step in every round; two steps before the first are not counted."""
    optimizer = trainer.build_optimizer(config)
    stepper = trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy())
    batch = tf.nest.map_structure(tf.constant, full_size.random_batch(config))
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    stepper.run(iterator, 2)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        stepper.run(iterator, steps)
        seconds.append((time.perf_counter() - start) / steps)
    stepper.check_finite()
    return seconds


def main(flag_values):
    """Runs the program."""
    full_size.report(measure, flag_values)


if __name__ == "__main__":
    program.run(main, define_flags)
