"""Runs train.py on N logical CPUs, once per mode, and writes all that it has trained.

Fails if the devices of a process end with different values.

    python tests/train_replicas.py N MODE,... OUTPUT.npz --flag...

MODE is a value of --distribution. In the file name and the flags, `{mode}` stands for it. Several
modes in one process save the time to start it.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import programs
import train


def main(num_devices, modes, output, *arguments):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * int(num_devices)
    )
    logging.set_verbosity(logging.INFO)
    made, make_trainer = [], train.make_trainer
    train.make_trainer = lambda *settings: made.append(make_trainer(*settings)) or made[-1]
    for mode in modes.split(","):
        flags = (argument.replace("{mode}", mode) for argument in arguments)
        programs.run("train", f"--distribution={mode}", *flags)
        trainer = made.pop()
        variables = [*trainer.model.weights, *trainer.optimizer.variables]
        values = {variable.path: variable.numpy() for variable in variables}
        for variable in variables:
            for copy in trainer.strategy.experimental_local_results(variable.value):
                np.testing.assert_array_equal(copy, values[variable.path], err_msg=variable.path)
        values |= {f"ema/{path}": average.numpy() for path, average in trainer.ema.items()}
        # Files of NumPy cannot hold bfloat16.
        values = {path: np.float32(v) if v.dtype == "bfloat16" else v for path, v in values.items()}
        np.savez(output.replace("{mode}", mode), **values)


if __name__ == "__main__":
    main(*sys.argv[1:])
