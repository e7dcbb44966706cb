"""What train directories hold of their runs: settings, results and curves."""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import files
import records
from run_config import CONFIG_FILE, RunConfig
from utils import InputError, comma_separated

_BYTES_PER_WEIGHT = 4
# Values of a setting that are listed; of more, the first three are.
_MOST_LISTED = 12
# Settings that a page shows of every run, if the model has them.
_MAIN_SETTINGS = (
    "model",
    "video_level_classifier_model",
    "iterations",
    "feature_names",
    "feature_sizes",
    "num_classes",
    "label_loss",
    "optimizer",
    "base_learning_rate",
    "learning_rate_decay",
    "learning_rate_decay_examples",
    "batch_size",
)
# Steps and values of a curve, two vectors of equal length.
Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: the end of its path, as long as needed to differ from the other runs.
        config: its settings.
        step: step of its newest checkpoint; None before the first.
        mib: size of its weights in float32; None before the first checkpoint.
        evaluations: the entries of metrics.json, in the order of the steps.
        training: curves that training logged, by name.
    """

    name: str
    config: RunConfig
    step: int | None
    mib: float | None
    evaluations: list[dict]
    training: dict[str, Curve]

    @property
    def best_evaluation(self) -> dict | None:
        """The evaluation with the highest GAP, the first of several; None without evaluations."""
        return max(self.evaluations, key=lambda entry: entry["gap"], default=None)

    def evaluation_curve(self, key: str) -> Curve:
        """Returns a metric of metrics.json over the steps."""
        found = [(entry["step"], entry[key]) for entry in self.evaluations if key in entry]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps), np.array(values, float)


def find_train_dirs(patterns: Sequence[str]) -> list[str]:
    """Returns train directories, each once: paths as they are, and those that globs match.

    A glob matches only directories that hold a run, in the order of their names; runs that another
    version wrote are left out with a warning.

    Raises:
        InputError: if a glob matches no run.
    """
    found: list[str] = []
    for pattern in patterns:
        if not re.search(r"[*?[]", pattern) or files.gfile.isdir(pattern):
            found.append(pattern)
            continue
        paths = sorted(files.gfile.glob(os.path.join(pattern, CONFIG_FILE)))
        matches = [os.path.dirname(path) for path in paths if _is_readable(os.path.dirname(path))]
        if not matches:
            raise InputError(
                f"no directory that matches {pattern!r} holds a run ({CONFIG_FILE}) of this "
                "version. Check the path, and quote the pattern."
            )
        found += matches
    return list(dict.fromkeys(found))


def _is_readable(train_dir):
    try:
        RunConfig.load(train_dir)
    except InputError as error:
        logging.warning("left out: %s", error)
        return False
    return True


def read_runs(
    train_dirs: Sequence[str], use_ema: bool = False, curves: Sequence[str] | None = None
) -> list[Run]:
    """Reads train directories.

    Args:
        train_dirs: the directories.
        use_ema: whether to read the evaluations of the moving average of the weights.
        curves: names of the curves of training to read; None for all.

    Raises:
        InputError: if a directory holds no run, or a file in it is damaged.
    """
    return [
        _read_run(name, train_dir, checkpoints.evaluation_kind(use_ema), curves)
        for name, train_dir in zip(short_names(train_dirs), train_dirs, strict=True)
    ]


def _read_run(name, train_dir, kind, curves):
    step, mib = newest_weights(train_dir)
    return Run(
        name=name,
        config=RunConfig.load(train_dir),
        step=step,
        mib=mib,
        evaluations=checkpoints.read_evaluations(checkpoints.metrics_path(train_dir, kind)),
        training=read_curves(os.path.join(train_dir, "train"), curves),
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the ends of paths, as many parts of each as make them all different."""
    parts = [files.absolute(path).split("/") for path in paths]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def newest_weights(train_dir: str) -> tuple[int | None, float | None]:
    """Returns step and MiB of a run's newest weights in float32; None twice if it has none."""
    if checkpoints.latest(train_dir) is None:
        return None, None
    shapes: list[list[int]] = []

    def list_weights(path):
        with checkpoints.reading(path):
            stored = tf.train.list_variables(path)
        shapes[:] = [
            shape for name, shape in stored if checkpoints.split_stored_name(name)[0] == "weights"
        ]

    path = checkpoints.restore(train_dir, None, list_weights)
    return checkpoints.step_of(path), sum(map(math.prod, shapes)) * _BYTES_PER_WEIGHT / 2**20


def read_curves(folder: str, names: Sequence[str] | None = None) -> dict[str, Curve]:
    """Reads the scalars in a directory of TensorBoard logs by name; none if it has no logs.

    A resumed run logs some steps again; its last value of a step counts.

    Args:
        folder: the directory.
        names: names of the scalars to read; None for all.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(files.gfile.glob(os.path.join(folder, "events.out.tfevents.*"))):
        for step, tag, value in _scalars(path, names):
            found.setdefault(tag, {})[step] = value
    return {
        tag: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for tag, values in found.items()
    }


def _scalars(path, names):
    """Yields steps, names and values in a log, whose end training may be writing."""
    with records.TFRecordFile(path, records.IgnoredCorruptRecords()) as file:
        while (record := file.read()) is not None:
            event = tf.compat.v1.Event.FromString(record[1])
            for value in event.summary.value:
                is_scalar = value.metadata.plugin_data.plugin_name == "scalars"
                if is_scalar and (names is None or value.tag in names):
                    yield event.step, value.tag, float(tf.make_ndarray(value.tensor))


def thin(curve: Curve, count: int) -> Curve:
    """Returns a curve of at most `count` points, the means of equal intervals of steps."""
    steps = curve[0]
    if len(steps) <= count:
        return curve
    edges = np.linspace(steps[0], steps[-1], count + 1)
    bins = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, count - 1)
    numbers = np.bincount(bins, minlength=count)
    sums = [np.bincount(bins, weights=column, minlength=count) for column in curve]
    some = numbers > 0
    return sums[0][some] / numbers[some], sums[1][some] / numbers[some]


def differing_settings(configs: Iterable[RunConfig]) -> dict[str, list[str]]:
    """Returns the settings in which configs differ: name to one text per config."""
    return {
        name: [_text(value) for value in values]
        for name, values in _settings_table(configs).items()
        if any(value != values[0] for value in values)
    }


def main_settings(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Returns the most important settings of configs, and all others in which they differ."""
    table = _settings_table(configs)
    main = {
        name: [_text(value) for value in table[name]] for name in _MAIN_SETTINGS if name in table
    }
    return main | differing_settings(configs)


def _settings_table(configs):
    all_settings = [config.settings for config in configs]
    names = dict.fromkeys(name for found in all_settings for name in found)
    return {name: [found.get(name, "") for found in all_settings] for name in names}


def settings(config: RunConfig) -> dict[str, str]:
    """Returns all settings of a run as text, by name, with the model first."""
    return {name: _text(value) for name, value in config.settings.items()}


def _text(value):
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        if len(value) > _MOST_LISTED:
            return f"{comma_separated(map(_text, value[:3]))}, ... ({len(value)} values)"
        return comma_separated(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
