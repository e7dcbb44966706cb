r"""Averages checkpoints of a training run into a new train directory.

    python average_checkpoints.py --train_dir=run --num_last=10 --output_dir=averaged \
        --train_data_pattern='data/train*.tfrecord'

Without a selection such as --num_last, all checkpoints are averaged. With training data, batch
normalization statistics are recomputed for the averaged weights. eval.py,
inference.py, export_model.py and further training read the result like any other run.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import program
from program import Progress

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import files
import initial_weights
import layers
from options import option, same_option
from readers import RecordReader
from run_config import ReadOptions, RunConfig, TrainOptions
from utils import InputError, comma_separated

REPORT = "averaged.json"

_STATISTICS = ("moving_mean", "moving_variance")
# Entries that tf.train.Checkpoint adds.
_NOT_OURS = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageOptions(ReadOptions):
    """Options of this program."""

    train_dir: str = option(
        help="Directory of the training run.", group="checkpoints", required=True
    )
    output_dir: str = option(
        help="Train directory to write; it must not exist yet.", group="output", required=True
    )
    num_last: int | None = option(
        None, "Average the newest N checkpoints.", group="checkpoints", above=0
    )
    first_step: int | None = option(
        None, "Lowest step of the checkpoints to average.", group="checkpoints", at_least=0
    )
    last_step: int | None = option(
        None, "Highest step of the checkpoints to average.", group="checkpoints", at_least=0
    )
    checkpoints: tuple[str, ...] | None = option(
        None,
        "Average these checkpoints: steps, for example 1000,2000, best, or paths.",
        group="checkpoints",
    )
    best: int | None = option(
        None,
        "Average the N checkpoints with the highest GAP in eval/metrics.json.",
        group="checkpoints",
        above=0,
    )
    batch_norm: str | None = option(
        None,
        "Batch normalization statistics: recompute them on --train_data_pattern (the default with "
        "it); the mean of the checkpoints (the default without); or those of the last checkpoint, "
        "which may not fit the averaged weights.",
        group="prediction",
        choices=("recompute", "mean", "last"),
    )
    train_data_pattern: str | None = same_option(
        TrainOptions, "train_data_pattern", default=None, required=False
    )
    batch_norm_batches: int = option(
        300, "Number of batches for --batch_norm=recompute.", group="data", above=0
    )

    def __post_init__(self):
        """Chooses the statistics, and checks options that depend on each other."""
        super().__post_init__()
        if self.batch_norm is None:
            chosen = "recompute" if self.train_data_pattern else "mean"
            object.__setattr__(self, "batch_norm", chosen)
        if (self.batch_norm == "recompute") != bool(self.train_data_pattern):
            raise InputError(
                "--batch_norm=recompute needs --train_data_pattern; --batch_norm=mean and last do "
                "not use it."
            )
        by_range = self.first_step is not None or self.last_step is not None
        if sum(map(bool, (by_range, self.num_last, self.checkpoints, self.best))) > 1:
            raise InputError(
                "--first_step and --last_step, --num_last, --checkpoints and --best cannot be "
                "combined. Use only one of them."
            )


def average(options: AverageOptions) -> dict:
    """Writes the mean of checkpoints as a new train directory.

    All floating-point variables are averaged in float64, including the optimizer's; integers,
    counters and random states are those of the last checkpoint. Moving averages of the weights
    start from the result. Memory holds the result, the model and one more variable.

    Returns:
        The content of averaged.json.

    Raises:
        InputError: if the checkpoints do not fit together, a value is not finite, or the directory
            cannot be written.
    """
    config = RunConfig.load(options.train_dir)
    paths = select(options)
    pattern = options.train_data_pattern
    # Fails on a pattern that matches no file before anything is built.
    reader = config.data.reader(pattern, options, with_labels=False) if pattern else None
    keras.utils.set_random_seed(config.seed)
    model = config.build_model()
    if config.freeze:
        initial_weights.freeze(model, config.freeze)
    checkpoints.check_fits(checkpoints.weights(model), paths[-1])
    with files.atomic_directory(options.output_dir) as partial:
        means = mean_of(paths, _STATISTICS if options.batch_norm == "last" else ())
        if reader is not None:
            means |= recomputed_statistics(model, config, means, reader, options.batch_norm_batches)
        _check_finite(means, "after averaging", "Check the checkpoints and the training data.")
        weights = {name: value for name, value in means.items() if name.startswith("weights/")}
        for name in [name for name in means if name.startswith("ema/")]:
            means[name] = weights[name.replace("ema/", "weights/", 1)]
        report = {
            "steps": [checkpoints.step_of(path) for path in paths],
            "train_dir": files.absolute(options.train_dir),
            "batch_norm": options.batch_norm,
            "digest": checkpoints.digest(weights),
        }
        del weights
        write_checkpoint(means, partial, checkpoints.step_of(paths[-1]))
        checkpoints.save_vocabulary(partial, checkpoints.find_vocabulary(options.train_dir))
        config.save(partial)
        files.write_json(os.path.join(partial, REPORT), report)
    return report


def select(options: AverageOptions) -> list[str]:
    """Returns the path prefixes of the checkpoints to average, by step.

    Raises:
        InputError: if there is no such checkpoint.
    """
    train_dir = options.train_dir
    if options.checkpoints:
        paths = [checkpoints.find(train_dir, name) for name in options.checkpoints]
        if len({checkpoints.step_of(path) for path in paths}) < len(paths):
            raise InputError(
                f"--checkpoints must be of different steps. Received: {comma_separated(paths)}"
            )
    else:
        paths = [os.path.join(train_dir, name) for name in checkpoints.names(train_dir)]
    found = {checkpoints.step_of(path): path for path in paths}
    steps = sorted(found)
    if options.first_step is not None:
        steps = [step for step in steps if step >= options.first_step]
    if options.last_step is not None:
        steps = [step for step in steps if step <= options.last_step]
    if options.num_last is not None:
        steps = _exactly(options.num_last, steps[-options.num_last :], train_dir, "checkpoints")
    if options.best is not None:
        steps = sorted(_best_steps(train_dir, options.best, steps))
    if not steps:
        raise InputError(
            f"{train_dir} has none of the requested checkpoints. It has: {comma_separated(found)}."
        )
    return [found[step] for step in steps]


def _best_steps(train_dir, count, steps):
    path = checkpoints.metrics_path(train_dir, checkpoints.evaluation_kind(use_ema=False))
    if not files.gfile.exists(path):
        raise InputError(f"--best needs {path}, which eval.py writes for each checkpoint.")
    gaps = {entry["step"]: entry["gap"] for entry in checkpoints.read_evaluations(path)}
    ranked = sorted((step for step in steps if step in gaps), key=lambda step: -gaps[step])
    return _exactly(count, ranked[:count], train_dir, "evaluated checkpoints")


def _exactly(count, steps, train_dir, what):
    if len(steps) < count:
        raise InputError(
            f"{count} {what} were requested, but {train_dir} has {len(steps)}: "
            f"{comma_separated(steps)}."
        )
    return steps


def mean_of(paths: Sequence[str], from_last: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Returns the mean of the variables of checkpoints, by name in the checkpoint.

    Args:
        paths: path prefixes; variables that cannot be averaged come from the last.
        from_last: suffixes of the paths of further variables to take from the last.

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
            # Weights first: their names are the most helpful.
            differing.sort(key=lambda name: (not name.startswith("weights/"), name))
            described = [
                f"{_readable(name)} ({other.get(name)} and {shapes[-1].get(name)})"
                for name in differing[:5]
            ]
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise InputError(
                f"{path} and {paths[-1]} are checkpoints of different models: they differ in "
                f"{comma_separated(described)}{more}."
            )
    # A counter counts instead of measuring; the last checkpoint's value is used.
    endings = (layers.COUNTER, *from_last)
    means = {}
    with Progress(len(shapes[-1]), "variable") as progress:
        for done, name in enumerate(sorted(shapes[-1])):
            with checkpoints.reading(paths[-1]):
                last = readers[-1].get_tensor(name)
            if _is_float(last) and not _readable(name).endswith(endings):
                last = _mean(readers, paths, name, last.dtype)
            means[name] = last
            progress.tick(done + 1, f"averaged {done + 1} variables")
    return means


def _mean(readers, paths, name, dtype):
    total = 0.0
    for reader, path in zip(readers, paths, strict=True):
        with checkpoints.reading(path):
            value = reader.get_tensor(name)
        _check_finite({name: value}, f"in {path}", "Leave that checkpoint out.")
        total = total + value.astype(np.float64)
    return (total / len(readers)).astype(dtype)


def _check_finite(values, where, remedy):
    for name, value in values.items():
        if _is_float(value) and not np.isfinite(value).all():
            raise InputError(f"{_readable(name)} {where} is not finite. {remedy}")


def _is_float(value):
    # NumPy does not count bfloat16 among the floating types.
    return tf.as_dtype(np.asarray(value).dtype).is_floating


def _shapes(reader):
    shapes = reader.get_variable_to_shape_map()
    return {name: shape for name, shape in shapes.items() if not name.startswith(_NOT_OURS)}


def _readable(name):
    return "/".join(checkpoints.split_stored_name(name))


def recomputed_statistics(
    model: keras.Model,
    config: RunConfig,
    means: Mapping[str, np.ndarray],
    reader: RecordReader,
    num_batches: int,
) -> dict[str, np.ndarray]:
    """Returns batch normalization statistics for averaged weights: the plain mean over batches.

    Args:
        model: model of the config.
        config: config of the run.
        means: averaged variables, from `mean_of`.
        reader: reader of training data.
        num_batches: number of batches, of the config's size.

    Returns:
        The statistics, by name in the checkpoint.
    """
    norms = [
        layer
        for layer in layers.sublayers(model)
        if isinstance(layer, layers.BatchNorm) and layer.trainable
    ]
    if not norms:
        logging.info(
            "%s has no batch normalization that learns, so there is nothing to recompute",
            config.model,
        )
        return {}
    variables = checkpoints.weights(model)
    for path, variable in variables.items():
        variable.assign(means[checkpoints.stored_name(path)])
    for norm in norms:
        norm.cumulative = True
        norm.num_updates.assign(0.0)
    dataset = config.training_dataset(reader)
    # One graph for all numbers of frames.
    forward = tf.function(
        lambda inputs: model(inputs, training=True),
        input_signature=dataset.element_spec[:1],
        autograph=False,
    )
    with reader.explained_errors(), Progress(num_batches, "batch") as progress:
        for done, (inputs, _) in enumerate(dataset.take(num_batches)):
            forward(inputs)
            progress.tick(done + 1, f"batch normalization: {done + 1} of {num_batches} batches")
    return {
        checkpoints.stored_name(path): variable.numpy()
        for path, variable in variables.items()
        if path.endswith(_STATISTICS)
    }


def write_checkpoint(values: dict[str, np.ndarray], directory: str, step: int) -> None:
    """Writes variables as a checkpoint.

    Args:
        values: arrays by name in the checkpoint; emptied, so that memory holds each only once.
        directory: train directory.
        step: step of the checkpoint.
    """
    groups: dict[str, dict] = {}
    for name in sorted(values):
        group, path = checkpoints.split_stored_name(name)
        groups.setdefault(group, {})[path] = tf.Variable(values.pop(name), trainable=False)
    manager = checkpoints.new_manager(directory, tf.train.Checkpoint(**groups))
    manager.save(checkpoint_number=step)


def main(options: AverageOptions) -> None:
    """Runs the program."""
    if options.batch_norm == "last":
        logging.warning(
            "the statistics of the last checkpoint may not fit the averaged weights; the result "
            "can be worse than that checkpoint. To recompute them, replace --batch_norm=last by "
            "--train_data_pattern"
        )
    report = average(options)
    logging.info(
        "averaged %d checkpoints of steps %s, batch normalization by %s, digest %s: %s",
        len(report["steps"]),
        comma_separated(report["steps"]),
        options.batch_norm,
        report["digest"],
        files.absolute(options.output_dir),
    )


if __name__ == "__main__":
    program.run(main)
