"""Train directories: their checkpoints, their lock, and models restored from them.

A checkpoint is a `tf.train.Checkpoint` over plain dicts from the path of a Keras variable to the
variable, so it does not depend on the attributes of Python objects.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

import distribution
import eval_util
import files
import private_api
import vocabulary
from options import Options, option
from run_config import CONFIG_FILE, RunConfig
from utils import InputError, check_at_least, check_finite, comma_separated, shortened

FILE_PREFIX = "model.ckpt"
LOCK_FILE = "training.lock"
# The checkpoint that --keep_best keeps: its name for `find`, its files, and what it is.
BEST = "best"
_BEST_PREFIX = "best.ckpt"
_BEST_FILE = "best.json"

# Files that training and evaluation write into a train directory, and --start_new_model removes.
# The config comes last, so that after an interruption it still identifies the remaining files.
_OWN_FILES = (
    "checkpoint",
    f"{FILE_PREFIX}-*",
    _BEST_FILE,
    f"{_BEST_PREFIX}-*",
    "events.out.tfevents.*",
    "train/events.out.tfevents.*",
    "eval*/events.out.tfevents.*",
    "eval*/metrics.json",
    vocabulary.FILE,
    CONFIG_FILE,
)


# --- Preparing a train directory ------------------------------------------------------------------


@contextlib.contextmanager
def training_lock(train_dir: str) -> Iterator[None]:
    """Keeps other training runs out of a directory until the block ends; see `files.lock`.

    Creates the directory if needed. With several workers, the first holds the lock.

    Raises:
        InputError: if another training run holds the lock, naming its process and host.
    """
    if files.is_remote(train_dir) or not distribution.is_first_worker():
        yield
        return
    try:
        os.makedirs(train_dir, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to --train_dir {train_dir}: {error}") from error
    with files.lock(
        os.path.join(train_dir, LOCK_FILE),
        f"another training run is active in {train_dir}",
        "Wait until it ends, stop it, or choose another --train_dir.",
    ):
        files.check_writable(os.path.join(train_dir, CONFIG_FILE))  # The lock may exist already.
        yield


def prepare_train_dir(
    train_dir: str, config: RunConfig, start_new_model: bool, class_names: str | None = None
) -> None:
    """Creates the directory, and rejects one that holds a run of another config.

    Args:
        train_dir: train directory.
        config: config of the run.
        start_new_model: whether to remove an earlier run first.
        class_names: path of the vocabulary of the data set; None if it is not known.

    Raises:
        InputError: naming the settings or classes that differ, or a directory inside that is a
            link.
    """
    try:
        tf.io.gfile.makedirs(train_dir)
        folders = [
            path
            for pattern in filter(None, map(os.path.dirname, _OWN_FILES))
            for path in tf.io.gfile.glob(os.path.join(train_dir, pattern))
        ]
    except (OSError, *files.PATH_ERRORS) as error:
        raise InputError(f"cannot create --train_dir {train_dir}: {error}") from error
    for path in folders:
        files.check_no_link(path)
    if start_new_model:
        if class_names:
            files.check_not_input(os.path.join(train_dir, vocabulary.FILE), [class_names])
        for pattern in _OWN_FILES:
            for path in tf.io.gfile.glob(os.path.join(train_dir, pattern)):
                files.remove(path)  # An interrupted save leaves a directory, model.ckpt-N_temp.
    if has_run(train_dir):
        differences = RunConfig.load(train_dir).differences(config)
        if differences:
            changes = "; ".join(
                f"{key}: {shortened(a)} there, {shortened(b)} now"
                for key, (a, b) in differences.items()
            )
            raise InputError(
                f"{train_dir} holds a run with other settings ({changes}). Give the same flags to "
                "resume it, another --train_dir, or --start_new_model to remove it and start over."
            )
    elif names(train_dir):
        raise InputError(
            f"{train_dir} holds checkpoints, but no {CONFIG_FILE}. Choose another --train_dir, or "
            "--start_new_model to remove them."
        )
    vocabulary.same_class_names(
        [*filter(None, (find_vocabulary(train_dir), class_names))],
        f"If only names have been corrected, replace {vocabulary.FILE} in {train_dir}. Otherwise "
        "give the same vocabulary, another --train_dir, or --start_new_model to start over.",
    )
    remove_unfinished(train_dir)
    latest(train_dir)  # Rejects a damaged list, which would be mistaken for no checkpoints.


def has_run(train_dir: str) -> bool:
    """Returns whether a directory holds a run, with a config at least."""
    return files.gfile.exists(os.path.join(train_dir, CONFIG_FILE))


def find_vocabulary(train_dir: str) -> str | None:
    """Returns the path of the vocabulary that a run was trained with, or None if it has none."""
    path = os.path.join(train_dir, vocabulary.FILE)
    return path if files.gfile.exists(path) else None


def save_vocabulary(train_dir: str, class_names: str | None) -> None:
    """Copies a vocabulary into a train directory, unless it has one or the path is None."""
    if class_names and not find_vocabulary(train_dir):
        files.copy(class_names, os.path.join(train_dir, vocabulary.FILE))


def remove_unfinished(train_dir: str) -> None:
    """Removes the remains of interrupted saves; no save may run in the directory meanwhile."""
    for pattern in (f"{FILE_PREFIX}-*_temp", "checkpoint.tmp*"):
        for path in tf.io.gfile.glob(os.path.join(train_dir, pattern)):
            files.remove(path)
    _remove_other_best(train_dir, read_best(train_dir))


# --- Saving and resuming --------------------------------------------------------------------------


def weights(model: keras.Model) -> dict[str, tf.Variable]:
    """Returns the weights of a model by path.

    Raises:
        ValueError: if two weights have the same path, because layers share a name.
    """
    return _by_path(model.weights)


def training_state(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    ema: dict[str, tf.Variable] | None = None,
) -> tf.train.Checkpoint:
    """Returns a `tf.train.Checkpoint` of everything that a resumed run needs.

    The step is the optimizer's number of updates, which is one of its variables.

    Args:
        model: built model.
        optimizer: built optimizer.
        ema: moving averages of the weights by path; None for none.
    """
    return tf.train.Checkpoint(
        weights=weights(model),
        optimizer=_by_path(optimizer.variables),
        **({} if ema is None else {"ema": ema}),
        random_state={
            str(number): variable.value for number, variable in enumerate(random_states(model))
        },
    )


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's seed generators, in the order of its layers."""
    known = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in known]


def new_manager(
    train_dir: str, state: tf.train.Checkpoint, keep_checkpoints: int = 0
) -> tf.train.CheckpointManager:
    """Returns a manager of the checkpoints of a train directory.

    Args:
        train_dir: train directory.
        state: everything to save, from `training_state`.
        keep_checkpoints: newest checkpoints to keep; 0 keeps all.
    """
    return tf.train.CheckpointManager(
        state, train_dir, max_to_keep=keep_checkpoints or None, checkpoint_name=FILE_PREFIX
    )


def resume(manager: tf.train.CheckpointManager, model: keras.Model) -> None:
    """Restores the newest checkpoint, if there is one."""
    path = manager.latest_checkpoint
    if path is None:
        return
    check_fits(weights(model), path)
    with reading(path):
        restored = manager.checkpoint.restore(path)
    restored.assert_consumed()


def save(
    manager: tf.train.CheckpointManager,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    step: int,
    wait: bool = False,
) -> None:
    """Saves a checkpoint of the current step, if there is none yet.

    Waits for the previous checkpoint and copies all variables; the files are then written while
    training continues. The next save raises an error of that writing. `manager.sync` raises none,
    so the last checkpoint of a run must be saved with `wait`.

    Args:
        manager: manager of the train directory.
        model: model to check for values that are not finite.
        optimizer: optimizer to check likewise.
        step: number of updates made.
        wait: whether to return only after the files are written.

    Raises:
        FloatingPointError: if a weight or the optimizer's state is not finite; then nothing is
            saved.
    """
    manager.sync()
    newest = manager.latest_checkpoint
    if newest is not None and step_of(newest) == step:
        return
    for variable in [*model.weights, *optimizer.variables]:
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if is_float and not tf.reduce_all(tf.math.is_finite(variable.value)):
            raise FloatingPointError(
                f"{variable.path} is not finite at step {step}, which is not saved. Train again "
                "with a lower --base_learning_rate or --clip_gradient_norm, in another --train_dir "
                "or with --start_new_model."
            )
    manager.save(
        checkpoint_number=step,
        options=tf.train.CheckpointOptions(experimental_enable_async_checkpoint=not wait),
    )


# --- The best checkpoint --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best(Options):
    """The best of the evaluated checkpoints of a run; the content of best.json.

    Attributes:
        metric: metric that decides, one of `eval_util.METRICS`.
        value: its value.
        step: step of the checkpoint.
        num_videos: number of videos that were evaluated.
        last_step: step of the newest evaluation.
        evaluations_since: number of evaluations after that of `step`.
    """

    metric: str = option(group="evaluation", choices=tuple(eval_util.METRICS))
    value: float = option(group="evaluation")
    step: int = option(group="evaluation", at_least=0)
    num_videos: int = option(group="evaluation", at_least=0)
    last_step: int = option(group="evaluation", at_least=0)
    evaluations_since: int = option(0, group="evaluation", at_least=0)

    def is_better_than(self, other: "Best") -> bool:
        """Returns whether the value is better than that of another checkpoint, not only equal."""
        if self.metric in eval_util.MINIMIZED:
            return self.value < other.value
        return self.value > other.value


def read_best(train_dir: str) -> Best | None:
    """Returns the content of best.json, or None if there is no such file.

    Raises:
        InputError: if the file is damaged.
    """
    path = os.path.join(train_dir, _BEST_FILE)
    if not tf.io.gfile.exists(path):
        return None
    values = files.read_json(path)
    try:
        return Best(**values)
    except (TypeError, InputError) as error:
        raise InputError(
            f"{path} was not written by train.py --keep_best: {error}. Remove it to begin without "
            "a best checkpoint."
        ) from error


def save_best(train_dir: str, best: Best) -> None:
    """Saves best.json, first copying the checkpoint that it names unless the copy is there.

    best.json changes at once, and only then the previous copy is removed, so at any moment there is
    a complete copy of the checkpoint that best.json names.
    """
    path = _best_path(train_dir, best)
    if not is_there(path):
        source = os.path.join(train_dir, f"{FILE_PREFIX}-{best.step}")
        # The index comes last: a checkpoint exists if its index does.
        for part in sorted(
            tf.io.gfile.glob(f"{source}.*"), key=lambda part: part.endswith("index")
        ):
            files.copy(part, path + part.removeprefix(source))
    files.write_json(os.path.join(train_dir, _BEST_FILE), dataclasses.asdict(best))
    _remove_other_best(train_dir, best)


def _best_path(train_dir, best):
    return os.path.join(train_dir, f"{_BEST_PREFIX}-{best.step}")


def _remove_other_best(train_dir, best):
    """Removes copies of checkpoints that best.json does not name, complete or not."""
    kept = re.escape(f"{_BEST_PREFIX}-{best.step}") if best else "(?!)"
    for path in tf.io.gfile.glob(os.path.join(train_dir, f"{_BEST_PREFIX}-*")):
        if not re.fullmatch(rf"{kept}\.(index|data-\d+-of-\d+)", os.path.basename(path)):
            files.remove(path)


# --- Finding and reading checkpoints --------------------------------------------------------------


def find(train_dir: str, checkpoint: str | None = None) -> str:
    """Returns the path prefix of a checkpoint.

    Args:
        train_dir: train directory.
        checkpoint: path prefix, step or `BEST`; by default the newest checkpoint.

    Raises:
        InputError: if there is no such checkpoint.
    """
    if checkpoint == BEST:
        best = read_best(train_dir)
        if best is None:
            raise InputError(
                f"{train_dir} has no best checkpoint: it was not trained with --keep_best. "
                "Choose a step, or the newest checkpoint."
            )
        checkpoint = _best_path(train_dir, best)
    if checkpoint is None:
        path = latest(train_dir)
        if path is None:
            raise InputError(f"{train_dir} has no checkpoint (yet). Has training saved one?")
        return path
    path = str(checkpoint)
    if path.isdecimal():
        path = os.path.join(train_dir, f"{FILE_PREFIX}-{path}")
    if not is_there(path):
        raise InputError(
            f"there is no checkpoint {path}. {train_dir} has: {comma_separated(names(train_dir))}."
        )
    return path


def latest(train_dir: str) -> str | None:
    """Returns the path prefix of the newest checkpoint of a directory, None if there is none.

    Training removes old checkpoints that the directory's list names, so the list must not name
    checkpoints of other directories.

    Raises:
        InputError: if the list is damaged, or names a checkpoint that is missing or elsewhere.
    """
    path = os.path.join(train_dir, "checkpoint")
    if not tf.io.gfile.exists(path):
        return None
    newest = _listed_newest(train_dir, path)
    while not is_there(newest):
        before, newest = newest, _listed_newest(train_dir, path)
        if newest == before:  # Otherwise training has just saved one, and removed the other.
            raise InputError(
                f"{path} names {newest}, which is not there. {train_dir} has: "
                f"{comma_separated(names(train_dir))}."
            )
    return newest


def _listed_newest(train_dir, path):
    try:
        state = tf.train.get_checkpoint_state(train_dir)
    except ValueError:
        state = None
    if state is None:
        raise InputError(
            f"{path}, the list of the checkpoints, is damaged. {train_dir} has: "
            f"{comma_separated(names(train_dir))}. Without that file, training starts over."
        )
    newest = state.model_checkpoint_path
    for listed in (*state.all_model_checkpoint_paths, newest):
        if files.absolute(os.path.dirname(listed)) != files.absolute(train_dir):
            raise InputError(f"{path} names a checkpoint of another directory: {listed}")
    return newest


def is_there(path: str) -> bool:
    """Returns whether the checkpoint with this path prefix exists; training removes old ones."""
    return tf.io.gfile.exists(f"{path}.index")


def names(train_dir: str) -> list[str]:
    """Returns the names of the checkpoints in a directory, such as `model.ckpt-1000`."""
    paths = tf.io.gfile.glob(os.path.join(train_dir, f"{FILE_PREFIX}-*.index"))
    return sorted(os.path.basename(path).removesuffix(".index") for path in paths)


def step_of(path: str) -> int:
    """Returns the step at the end of a checkpoint's path.

    Raises:
        InputError: if the path does not end in a step.
    """
    step = path.rpartition("-")[2]
    if not step.isdecimal():
        raise InputError(f"the name of a checkpoint must end in -STEP. Received: {path}")
    return int(step)


def load_model(train_dir: str, checkpoint: str | None = None, use_ema: bool = False) -> keras.Model:
    """Returns the trained model of a train directory.

    `run_config.RunConfig.load(train_dir)` returns its config.

    Args:
        train_dir: train directory.
        checkpoint: path prefix, step or `BEST`; by default the newest checkpoint.
        use_ema: whether to use the exponential moving averages of the weights.

    Raises:
        InputError: if there is no config or no checkpoint, or they do not belong together.
    """
    find(train_dir, checkpoint)  # Fails before the model is built.
    with private_api.zero_weights():
        model = RunConfig.load(train_dir).build_model()
    restore(train_dir, checkpoint, lambda path: restore_weights(model, path, use_ema))
    return model


def restore(train_dir: str, checkpoint: str | None, restore_path: Callable[[str], None]) -> str:
    """Restores a checkpoint and returns its path prefix.

    If training replaces the newest or best checkpoint before it is read, the next one is restored.

    Args:
        train_dir: train directory.
        checkpoint: path prefix, step or `BEST`; by default the newest checkpoint.
        restore_path: function that restores the checkpoint with a path prefix.

    Raises:
        InputError: if there is no such checkpoint, or it cannot be restored.
    """
    while True:
        path = find(train_dir, checkpoint)
        try:
            restore_path(path)
            return path
        except InputError:
            if checkpoint not in (None, BEST) or is_there(path):
                raise


def restore_weights(model: keras.Model, path: str, use_ema: bool = False) -> None:
    """Sets the weights of a model from a checkpoint, or from the moving averages in it.

    Raises:
        InputError: if the checkpoint is of another model, or a weight is not finite; names the
            weights.
    """
    variables = weights(model)
    check_fits(variables, path)
    kind = "ema" if use_ema else "weights"
    if use_ema and not _names_in(path, kind):
        raise _no_averages(path, "--use_ema")
    with reading(path):
        tf.train.Checkpoint(**{kind: variables}).restore(path).expect_partial()
    for name, variable in variables.items():
        if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
            raise _not_finite(name, path)


def read_weights(path: str, use_ema: bool = False) -> dict[str, np.ndarray]:
    """Returns the weights in a checkpoint, or the moving averages, by path of the variable.

    Raises:
        InputError: if it cannot be read, has no moving averages, or a weight is not finite.
    """
    kind = "ema" if use_ema else "weights"
    found = _names_in(path, kind)
    if use_ema and not found:
        raise _no_averages(path, "--init_use_ema")
    with reading(path):
        reader = tf.train.load_checkpoint(path)
        arrays = {split_stored_name(name)[1]: reader.get_tensor(name) for name in found}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise _not_finite(name, path)
    return arrays


def _names_in(path, kind):
    """Returns the names of the weights or of the moving averages, `ema`, in a checkpoint."""
    with reading(path):
        names = [name for name, _ in tf.train.list_variables(path)]
    return [name for name in names if name.startswith(f"{kind}/")]


def _no_averages(path, flag):
    return InputError(
        f"checkpoint {path} has no moving averages of the weights: it was not trained with "
        f"--ema_decay. Leave out {flag}."
    )


def _not_finite(name, path):
    return InputError(f"{name} in {path} is not finite. Choose another checkpoint.")


def evaluation_kind(use_ema: bool) -> str:
    """Returns the name of the directory for evaluations of the weights, or of their averages."""
    return "eval_ema" if use_ema else "eval"


def metrics_path(train_dir: str, kind: str) -> str:
    """Returns the path of the metrics.json of a kind of evaluation, from `evaluation_kind`."""
    return os.path.join(train_dir, kind, "metrics.json")


def read_evaluations(path: str) -> list[dict]:
    """Reads the metrics.json of eval.py: one dict per evaluated step; none if there is no file.

    Raises:
        InputError: if the file is damaged.
    """
    if not tf.io.gfile.exists(path):
        return []
    evaluations = files.read_json(path)
    try:
        if not isinstance(evaluations, list):
            raise TypeError(f"a list was expected, not {type(evaluations).__name__}")
        for entry in evaluations:
            check_at_least(0, step=entry["step"])
            check_finite(gap=entry["gap"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a list of evaluations: {error!r}") from error
    return evaluations


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns TensorFlow's errors for a damaged checkpoint into an `InputError` that names it."""
    try:
        yield
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        if not is_there(path):
            raise InputError(
                f"checkpoint {path} was removed while it was read. If training runs in that "
                "directory, it keeps only --keep_checkpoints; repeat this command."
            ) from error
        raise InputError(f"cannot read checkpoint {path}: {error}") from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of named arrays, sixteen hexadecimal digits."""
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(arrays[name]).tobytes())
    return hashed.hexdigest()[:16]


def check_fits(variables: Mapping[str, tf.Variable], path: str) -> None:
    """Rejects a checkpoint that lacks a weight or has it in another shape.

    Args:
        variables: variables by path, from `weights`.
        path: path prefix of the checkpoint.

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


def _by_path(variables: Sequence[keras.Variable]) -> dict[str, tf.Variable]:
    found = {variable.path: variable.value for variable in variables}
    if len(found) < len(variables):
        paths = [variable.path for variable in variables]
        repeated = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"weights must have different paths; give each layer its own name. "
            f"Received several of: {comma_separated(repeated)}"
        )
    return found


_STORED_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def stored_name(path: str, group: str = "weights") -> str:
    """Returns the name inside a checkpoint of the entry `path` of one of the dicts in it."""
    return f"{group}/{path.replace('.', '..').replace('/', '.S')}{_STORED_SUFFIX}"


def split_stored_name(name: str) -> tuple[str, str]:
    """Returns group and path of a name inside a checkpoint, the inverse of `stored_name`."""
    group, _, path = name.removesuffix(_STORED_SUFFIX).partition("/")
    return group, re.sub(r"\.[.S]", lambda match: {"..": ".", ".S": "/"}[match[0]], path)
