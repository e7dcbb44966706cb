"""Checkpoints of a train directory: what is in them, and models restored from them.

A checkpoint is a `tf.train.Checkpoint` over plain dicts from the path of a Keras variable to the
variable, so that it does not depend on the attributes of Python objects.
"""

import contextlib
import hashlib
import os
import re

import numpy as np
import tensorflow as tf

import files
import run_config
from utils import InputError, listing

FILE_PREFIX = "model.ckpt"


def weights(model):
    """The weights of a model by path: a dict to `tf.Variable`.

    Raises:
        ValueError: if two weights have the same path, as when layers share a name.
    """
    return _by_path(model.weights)


def training_state(model, optimizer, ema=None):
    """A `tf.train.Checkpoint` of all that a resumed run needs.

    The step is the number of updates that the optimizer has made, one of its variables.

    Args:
        model: `keras.Model`.
        optimizer: Keras optimizer, built.
        ema: dict from path to `tf.Variable`, the moving averages of the weights; None for none.
    """
    return tf.train.Checkpoint(
        weights=weights(model),
        optimizer=_by_path(optimizer.variables),
        **({} if ema is None else {"ema": ema}),
        random_state={
            str(number): variable.value for number, variable in enumerate(random_states(model))
        },
    )


def random_states(model):
    """States of the seed generators of a model, `keras.Variable`s, in the order of its layers."""
    known = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in known]


def find(train_dir, checkpoint=None):
    """Path prefix of a checkpoint.

    Args:
        train_dir: str. Directory of a training run.
        checkpoint: str. A path prefix or a step; by default the newest one.

    Raises:
        InputError: if there is no such checkpoint.
    """
    if checkpoint is None:
        path = latest(train_dir)
        if path is None:
            raise InputError(f"{train_dir} has no checkpoint (yet). Has training saved one?")
        return path
    path = str(checkpoint)
    if path.isdecimal():
        path = os.path.join(train_dir, f"{FILE_PREFIX}-{path}")
    if not tf.io.gfile.exists(f"{path}.index"):
        raise InputError(
            f"there is no checkpoint {path}. {train_dir} has: {listing(names(train_dir))}."
        )
    return path


def latest(train_dir):
    """Path prefix of the newest checkpoint of a directory, None if there is none.

    Training removes the checkpoints that the list of a directory names when they are old, so the
    list must not name others.

    Raises:
        InputError: if the list is damaged, or names a checkpoint that is not there or elsewhere.
    """
    path = os.path.join(train_dir, "checkpoint")
    if not tf.io.gfile.exists(path):
        return None
    try:
        state = tf.train.get_checkpoint_state(train_dir)
    except ValueError:
        state = None
    if state is None:
        raise InputError(
            f"{path}, the list of the checkpoints, is damaged. {train_dir} has: "
            f"{listing(names(train_dir))}. Without that file, training begins anew."
        )
    newest = state.model_checkpoint_path
    for listed in (*state.all_model_checkpoint_paths, newest):
        if files.absolute(os.path.dirname(listed)) != files.absolute(train_dir):
            raise InputError(f"{path} names a checkpoint of another directory: {listed}")
    if not tf.io.gfile.exists(f"{newest}.index"):
        raise InputError(
            f"{path} names {newest}, which is not there. {train_dir} has: "
            f"{listing(names(train_dir))}."
        )
    return newest


def remove_unfinished(train_dir):
    """Removes what a save left that was interrupted; none may run in the directory meanwhile."""
    for pattern in (f"{FILE_PREFIX}-*_temp", "checkpoint.tmp*"):
        for path in tf.io.gfile.glob(os.path.join(train_dir, pattern)):
            files.remove(path)


def names(train_dir):
    """Names of the checkpoints in a directory, as `model.ckpt-1000`."""
    paths = tf.io.gfile.glob(os.path.join(train_dir, f"{FILE_PREFIX}-*.index"))
    return sorted(os.path.basename(path).removesuffix(".index") for path in paths)


def step_of(path):
    """The step at the end of a checkpoint's path.

    Raises:
        InputError: if there is none.
    """
    step = path.rpartition("-")[2]
    if not step.isdecimal():
        raise InputError(f"the name of a checkpoint must end in -STEP. Received: {path}")
    return int(step)


def load_model(train_dir, checkpoint=None, use_ema=False):
    """The trained model of a train directory.

    Args:
        train_dir: str. Directory of a training run.
        checkpoint: str. A path prefix or a step; by default the newest one.
        use_ema: bool. Whether to take the exponential moving averages of the weights.

    Returns:
        A `keras.Model`; its `RunConfig` is `run_config.RunConfig.load(train_dir)`.

    Raises:
        InputError: if there is no config or no checkpoint, or they do not belong together.
    """
    path = find(train_dir, checkpoint)
    model = run_config.RunConfig.load(train_dir).build_model()
    restore_weights(model, path, use_ema)
    return model


def restore_weights(model, path, use_ema=False):
    """Sets the weights of a model to those of a checkpoint, or to their moving averages.

    Raises:
        InputError: if the checkpoint is of another model, or a weight is not finite; names the
            weights.
    """
    variables = weights(model)
    check_fits(variables, path)
    if use_ema and not any(name.startswith("ema/") for name, _ in tf.train.list_variables(path)):
        raise InputError(
            f"checkpoint {path} has no moving averages of the weights: it was not trained with "
            "--ema_decay. Leave out --use_ema."
        )
    kind = "ema" if use_ema else "weights"
    with reading(path):
        tf.train.Checkpoint(**{kind: variables}).restore(path).expect_partial()
    for name, variable in variables.items():
        if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
            raise InputError(f"{name} in {path} is not finite. Choose another checkpoint.")


@contextlib.contextmanager
def reading(path):
    """Turns TensorFlow's errors for a damaged checkpoint into an `InputError` that names it."""
    try:
        yield
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error}") from error


def digest(arrays):
    """Sixteen hexadecimal digits that tell arrays apart, of a dict from name to array."""
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(arrays[name]).tobytes())
    return hashed.hexdigest()[:16]


def check_fits(variables, path):
    """Refuses a checkpoint that lacks a weight or has it in another shape.

    Args:
        variables: dict from path to `tf.Variable`, as of `weights`.
        path: str. Path prefix of the checkpoint.

    Raises:
        InputError: naming the weights that do not fit.
    """
    with reading(path):
        stored = dict(tf.train.list_variables(path))
    wrong = []
    for name, variable in variables.items():
        shape = stored.get(stored_name(name))
        if shape is None:
            wrong.append(f"{name} is missing")
        elif shape != variable.shape.as_list():
            wrong.append(f"{name} is {shape} instead of {variable.shape.as_list()}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"checkpoint {path} is not of this model: {'; '.join(wrong[:5])}{more}.")


def _by_path(variables):
    found = {variable.path: variable.value for variable in variables}
    if len(found) < len(variables):
        paths = [variable.path for variable in variables]
        repeated = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"weights must have different paths; give each layer its own name. "
            f"Received several of: {listing(repeated)}"
        )
    return found


_STORED_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def stored_name(path, group="weights"):
    """Name inside a checkpoint of the entry `path` of one of the dicts in it."""
    return f"{group}/{path.replace('.', '..').replace('/', '.S')}{_STORED_SUFFIX}"


def split_stored_name(name):
    """Group and path of a name inside a checkpoint, the inverse of `stored_name`."""
    group, _, path = name.removesuffix(_STORED_SUFFIX).partition("/")
    return group, re.sub(r"\.[.S]", lambda match: {"..": ".", ".S": "/"}[match[0]], path)
