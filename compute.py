"""The type in which matrices are multiplied: float32, or bfloat16 where that is faster.

Matrix products round their operands and their results to bfloat16 and sum in float32 between.
Batch normalisation, softmax and everything else elementwise stay in float32, and so do the weights
that are trained; models for prediction store their matrices rounded.
"""

import pathlib

import keras
from absl import flags, logging

# Flags defined here belong to the program that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
# What Linux calls instructions that multiply bfloat16, on x86 and on ARM.
_CPU_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


def define_flags(flag_values):
    """Defines `--compute_dtype`."""
    flags.DEFINE_enum(
        "compute_dtype",
        None,
        list(_POLICIES),
        "Type of matrix products; everything elementwise is float32. By default bfloat16 "
        "where the device multiplies it natively, else float32.",
        flag_values=flag_values,
    )


def matrix_policy(compute_dtype=None):
    """The policy of a model to be trained, for `RunConfig.build_model`: a Keras dtype policy.

    Args:
        compute_dtype: str. As of `chosen_dtype`.
    """
    return _POLICIES[chosen_dtype(compute_dtype)]


def chosen_dtype(compute_dtype=None):
    """The type of matrix products, which is logged.

    Args:
        compute_dtype: str. float32 or bfloat16; by default bfloat16 where it is native.
    """
    chosen = compute_dtype or ("bfloat16" if multiplies_bfloat16() else "float32")
    reason = "as asked for" if compute_dtype else "the default on this device"
    logging.info("matrix products have %s operands, %s", chosen, reason)
    return chosen


def multiplies_bfloat16():
    """Whether the device that Keras computes on multiplies bfloat16 natively.

    Under JAX every GPU and TPU counts, and no CPU: its products in bfloat16 are no faster there.
    """
    if keras.backend.backend() == "jax":
        return keras.distribution.list_devices()[0].split(":")[0] != "cpu"
    # Imported here, as models need no TensorFlow.
    import tensorflow as tf

    if tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)
    return bool(_CPU_FEATURES & _cpu_features(pathlib.Path("/proc/cpuinfo")))


def _cpu_features(path):
    """What Linux says that the first processor can do; nothing on another system."""
    if not path.exists():
        return set()
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
