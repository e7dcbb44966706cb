"""Runs train.py on N logical CPUs, and writes all that it has trained.

python tests/train_replicas.py N OUTPUT.npz --flag...
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import programs
import train


def main(num_devices, output, *arguments):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * int(num_devices)
    )
    logging.set_verbosity(logging.INFO)
    made, make_trainer = [], train.make_trainer
    train.make_trainer = lambda *settings: made.append(make_trainer(*settings)) or made[-1]
    programs.run("train", *arguments)
    (stepper,) = made
    variables = [*stepper.model.weights, *stepper.optimizer.variables]
    np.savez(output, **{variable.path: variable.numpy() for variable in variables})


if __name__ == "__main__":
    main(*sys.argv[1:])
