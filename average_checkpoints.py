"""Averages checkpoints of a training run into a new train directory.

    python average_checkpoints.py --train_dir=run --num_last=10 --output_dir=averaged \
        --train_data_pattern='data/train*.tfrecord'

With training data, the statistics of batch normalisation are computed anew for the averaged
weights. eval.py, inference.py, export_model.py and further training read the result like any run.
"""

import os

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging

import checkpoints
import files
import nonlocal_vlad
import program
from progress import Progress
from run_config import RunConfig
from utils import InputError, listing

BATCH_NORM_MODES = ("recompute", "mean", "last")
REPORT = "averaged.json"

# What counts instead of measuring, and is taken of the last checkpoint.
_COUNTERS = ("num_updates",)
_STATISTICS = ("moving_mean", "moving_variance")
# What tf.train.Checkpoint adds by itself.
_NOT_OURS = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter")


def average(
    train_dir,
    output_dir,
    paths,
    *,
    batch_norm="mean",
    train_data_pattern=None,
    batch_norm_batches=300,
    num_readers=4,
    skip_corrupt_records=0,
):
    """Writes the mean of checkpoints as a train directory of its own.

    All floating-point variables are averaged in float64, the optimizer's among them; integers,
    counts and random states are those of the last checkpoint. Moving averages of the weights begin
    anew from the result. Memory holds the result, the model and one variable more.

    Args:
        train_dir: str. Directory of the training run.
        output_dir: str. Directory to write, which must not exist.
        paths: list of str. Path prefixes of the checkpoints, as of `select`.
        batch_norm: str. Statistics of batch normalisation: `recompute` on data, `mean` of the
            checkpoints, or those of the `last` one.
        train_data_pattern: str. Globs of record files, for `recompute`.
        batch_norm_batches: int. Batches to compute the statistics from.
        num_readers: int. Threads that read records.
        skip_corrupt_records: int. How many damaged records to skip.

    Returns:
        The content of averaged.json, a dict.

    Raises:
        InputError: if the checkpoints do not fit together, a value is not finite, or the directory
            cannot be written.
    """
    config = RunConfig.load(train_dir)
    keras.utils.set_random_seed(config.seed)
    model = config.build_model()
    checkpoints.check_fits(checkpoints.weights(model), paths[-1])
    with files.atomic_directory(output_dir) as partial:
        means = mean_of(paths, _STATISTICS if batch_norm == "last" else ())
        if batch_norm == "recompute":
            reader = config.reader(
                train_data_pattern,
                num_readers=num_readers,
                skip_corrupt_records=skip_corrupt_records,
            )
            means |= recomputed_statistics(model, config, means, reader, batch_norm_batches)
        _check_finite(means, "the mean or the statistics")
        weights = {name: value for name, value in means.items() if name.startswith("weights/")}
        for name in [name for name in means if name.startswith("ema/")]:
            means[name] = weights[name.replace("ema/", "weights/", 1)]
        report = {
            "steps": [checkpoints.step_of(path) for path in paths],
            "train_dir": files.absolute(train_dir),
            "batch_norm": batch_norm,
            "digest": checkpoints.digest(weights),
        }
        del weights
        write_checkpoint(means, partial, checkpoints.step_of(paths[-1]))
        config.save(partial)
        files.write_json(os.path.join(partial, REPORT), report)
    return report


def select(train_dir, *, first_step=None, last_step=None, num_last=None, names=None, best=None):
    """Path prefixes of the checkpoints to average, by step.

    Args:
        train_dir: str. Directory of a training run.
        first_step: int. The lowest step.
        last_step: int. The highest step.
        num_last: int. How many of the newest.
        names: list of str. Path prefixes or steps.
        best: int. How many of those with the highest GAP in metrics.json.

    Raises:
        InputError: if there is no such checkpoint, or several kinds of choices are made.
    """
    by_range = first_step is not None or last_step is not None
    chosen = [by_range, num_last is not None, bool(names), best is not None]
    if sum(chosen) > 1:
        raise InputError(
            "--first_step and --last_step, --num_last, --checkpoints and --best exclude each "
            "other. Give one kind."
        )
    if names:
        found = [checkpoints.find(train_dir, name) for name in names]
        if len({checkpoints.step_of(path) for path in found}) < len(found):
            raise InputError(
                f"--checkpoints must be of different steps. Received: {listing(found)}"
            )
    else:
        found = [os.path.join(train_dir, name) for name in checkpoints.names(train_dir)]
    found = {checkpoints.step_of(path): path for path in found}
    steps = sorted(found)
    if by_range:
        low = steps[:1] if first_step is None else [first_step]
        high = steps[-1:] if last_step is None else [last_step]
        steps = [step for step in steps if low[0] <= step <= high[0]]
    if num_last is not None:
        steps = _exactly(num_last, steps[-num_last:], train_dir, "checkpoints")
    if best is not None:
        steps = sorted(_best_steps(train_dir, best, steps))
    if not steps:
        raise InputError(
            f"no checkpoint in {train_dir} is among those asked for. It has: {listing(found)}."
        )
    return [found[step] for step in steps]


def _best_steps(train_dir, count, steps):
    path = os.path.join(train_dir, "eval", "metrics.json")
    if not files.gfile.exists(path):
        raise InputError(f"--best needs {path}, which eval.py writes for each checkpoint.")
    gaps = {entry["step"]: entry["gap"] for entry in files.read_json(path)}
    ranked = sorted((step for step in steps if step in gaps), key=lambda step: -gaps[step])
    return _exactly(count, ranked[:count], train_dir, "evaluated checkpoints")


def _exactly(count, steps, train_dir, what):
    if len(steps) < count:
        raise InputError(
            f"{count} {what} were asked for, but {train_dir} has {len(steps)}: {listing(steps)}."
        )
    return steps


def mean_of(paths, from_last=()):
    """Mean of the variables of checkpoints: a dict from name in the checkpoint to array.

    Args:
        paths: list of str. Path prefixes; the last one gives what cannot be averaged.
        from_last: sequence of str. Endings of the paths of variables to take of the last one too.

    Raises:
        InputError: if the checkpoints have different variables, or one is not finite.
    """
    readers = []
    for path in paths:
        with checkpoints.reading(path):
            readers.append(tf.train.load_checkpoint(path))
    shapes = [_shapes(reader) for reader in readers]
    for path, other in zip(paths, shapes, strict=True):
        names = {**other, **shapes[-1]}
        differing = [name for name in names if other.get(name) != shapes[-1].get(name)]
        if differing:
            # Weights first: their names say most.
            differing.sort(key=lambda name: (not name.startswith("weights/"), name))
            told = [
                f"{_readable(name)} ({other.get(name)} and {shapes[-1].get(name)})"
                for name in differing[:5]
            ]
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise InputError(
                f"{path} and {paths[-1]} are checkpoints of different models: they differ in "
                f"{listing(told)}{more}."
            )
    endings = (*_COUNTERS, *from_last)
    means = {}
    with Progress(len(shapes[-1]), "variable") as progress:
        for done, name in enumerate(sorted(shapes[-1])):
            with checkpoints.reading(paths[-1]):
                last = readers[-1].get_tensor(name)
            is_mean = np.issubdtype(np.asarray(last).dtype, np.floating)
            if is_mean and not _readable(name).endswith(endings):
                last = _mean(readers, paths, name, last.dtype)
            means[name] = last
            progress.tick(done + 1, f"averaged {done + 1} variables")
    return means


def _mean(readers, paths, name, dtype):
    total = 0.0
    for reader, path in zip(readers, paths, strict=True):
        with checkpoints.reading(path):
            value = reader.get_tensor(name)
        _check_finite({name: value}, path)
        total = total + value.astype(np.float64)
    return (total / len(readers)).astype(dtype)


def _check_finite(values, where):
    for name, value in values.items():
        if np.issubdtype(np.asarray(value).dtype, np.floating) and not np.isfinite(value).all():
            raise InputError(
                f"{_readable(name)} in {where} is not finite. Leave that checkpoint out."
            )


def _shapes(reader):
    shapes = reader.get_variable_to_shape_map()
    return {name: shape for name, shape in shapes.items() if not name.startswith(_NOT_OURS)}


def _readable(name):
    return "/".join(checkpoints.split_stored_name(name))


def recomputed_statistics(model, config, means, reader, num_batches):
    """Statistics of batch normalisation of the averaged weights: equal mean over batches.

    Args:
        model: `keras.Model` of the config.
        config: `RunConfig`.
        means: dict from name in the checkpoint to array, as of `mean_of`.
        reader: `readers.RecordReader` of training data.
        num_batches: int. Batches of the config's size.

    Returns:
        A dict from name in the checkpoint to array, of the statistics alone.
    """
    norms = [
        layer for layer in model._flatten_layers() if isinstance(layer, nonlocal_vlad.BatchNorm)
    ]
    if not norms:
        logging.info(
            "%s has no batch normalisation, so there is nothing to recompute", config.model
        )
        return {}
    variables = checkpoints.weights(model)
    for path, variable in variables.items():
        variable.assign(means[checkpoints.stored_name(path)])
    for norm in norms:
        norm.cumulative = True
        norm.num_updates.assign(0.0)
    forward = tf.function(lambda inputs: model(inputs, training=True), autograph=False)
    dataset = reader.dataset(
        config.batch_size,
        num_epochs=None,
        shuffle=True,
        shuffle_buffer_size=config.shuffle_buffer_size,
        seed=config.seed,
        drop_remainder=True,
    )
    with reader.explained_errors(), Progress(num_batches, "batch") as progress:
        for done, (inputs, _) in enumerate(dataset.take(num_batches)):
            forward(inputs)
            progress.tick(done + 1, f"batch normalisation: {done + 1} of {num_batches} batches")
    return {
        checkpoints.stored_name(path): variable.numpy()
        for path, variable in variables.items()
        if path.endswith(_STATISTICS)
    }


def write_checkpoint(values, directory, step):
    """Writes variables as a checkpoint.

    Args:
        values: dict from name in a checkpoint to array; it is emptied, to hold each only once.
        directory: str.
        step: int.
    """
    groups = {}
    for name in sorted(values):
        group, path = checkpoints.split_stored_name(name)
        groups.setdefault(group, {})[path] = tf.Variable(values.pop(name), trainable=False)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(**groups), directory, None, checkpoint_name=checkpoints.FILE_PREFIX
    )
    manager.save(checkpoint_number=step)


def define_flags(flag_values):
    """Defines the flags of this program."""
    program.define_flags(flag_values, "train_dir", "num_readers", "skip_corrupt_records")
    own = {"flag_values": flag_values}
    flags.DEFINE_string("output_dir", None, "Train directory to write; must not exist yet.", **own)
    flags.DEFINE_integer("first_step", None, "Lowest step of the checkpoints to average.", **own)
    flags.DEFINE_integer("last_step", None, "Highest step of the checkpoints to average.", **own)
    flags.DEFINE_integer("num_last", None, "Averages so many of the newest checkpoints.", **own)
    flags.DEFINE_list(
        "checkpoints", None, "Averages these checkpoints: steps, as 1000,2000, or paths.", **own
    )
    flags.DEFINE_integer(
        "best",
        None,
        "Averages so many checkpoints of highest GAP by eval.py's metrics.json.",
        **own,
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        BATCH_NORM_MODES,
        "Statistics of batch normalisation: recompute, on --train_data_pattern, the default with "
        "it; mean of the checkpoints, the default without; or those of the last checkpoint, which "
        "need not fit the averaged weights.",
        **own,
    )
    flags.DEFINE_string(
        "train_data_pattern", None, "Globs of training records, comma-separated; quote them.", **own
    )
    flags.DEFINE_integer(
        "batch_norm_batches", 300, "Batches from which --batch_norm=recompute computes.", **own
    )


def main(flag_values):
    """Runs the program."""
    program.require_flags(flag_values, "train_dir", "output_dir")
    program.require_positive(flag_values, "num_last", "best", "batch_norm_batches", "num_readers")
    program.require_not_negative(flag_values, "first_step", "last_step", "skip_corrupt_records")
    batch_norm, pattern = flag_values.batch_norm, flag_values.train_data_pattern
    batch_norm = batch_norm or ("recompute" if pattern else "mean")
    if (batch_norm == "recompute") != bool(pattern):
        raise InputError(
            "--batch_norm=recompute and --train_data_pattern go together: give both or neither."
        )
    if batch_norm == "last":
        logging.warning(
            "the statistics of the last checkpoint need not fit the averaged weights; the result "
            "can be worse than that checkpoint. With --train_data_pattern they are recomputed"
        )
    paths = select(
        flag_values.train_dir,
        first_step=flag_values.first_step,
        last_step=flag_values.last_step,
        num_last=flag_values.num_last,
        names=flag_values.checkpoints,
        best=flag_values.best,
    )
    report = average(
        flag_values.train_dir,
        flag_values.output_dir,
        paths,
        batch_norm=batch_norm,
        train_data_pattern=pattern,
        batch_norm_batches=flag_values.batch_norm_batches,
        num_readers=flag_values.num_readers,
        skip_corrupt_records=flag_values.skip_corrupt_records,
    )
    logging.info(
        "averaged %d checkpoints of steps %s, batch normalisation by %s, digest %s: %s",
        len(paths),
        listing(report["steps"]),
        batch_norm,
        report["digest"],
        files.absolute(flag_values.output_dir),
    )


if __name__ == "__main__":
    program.run(main, define_flags)
