"""What train directories hold of their runs: settings, results and curves."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

import checkpoints
import files
from run_config import RunConfig
from utils import comma_separated

_BYTES_PER_WEIGHT = 4
# Values of a setting that are listed; of more, the first three are.
_MOST_LISTED = 12
# Steps and values of a curve, two vectors of equal length.
Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: the end of its path, as long as needed to differ from the other runs.
        config: its settings.
        mib: size of its weights in float32; None before the first checkpoint.
        evaluations: the entries of metrics.json, in the order of the steps.
        training: curves that training logged, by name.
    """

    name: str
    config: RunConfig
    mib: float | None
    evaluations: list[dict]
    training: dict[str, Curve]

    def evaluation_curve(self, key: str) -> Curve:
        """Returns a metric of metrics.json over the steps."""
        found = [(entry["step"], entry[key]) for entry in self.evaluations if key in entry]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps), np.array(values, float)


def read_runs(train_dirs: Sequence[str], use_ema: bool = False) -> list[Run]:
    """Reads train directories.

    Args:
        train_dirs: the directories.
        use_ema: whether to read the evaluations of the moving average of the weights.

    Raises:
        InputError: if a directory holds no run, or a file in it is damaged.
    """
    kind = checkpoints.evaluation_kind(use_ema)
    return [
        Run(
            name=name,
            config=RunConfig.load(train_dir),
            mib=weights_mib(train_dir),
            evaluations=checkpoints.read_evaluations(checkpoints.metrics_path(train_dir, kind)),
            training=read_curves(os.path.join(train_dir, "train")),
        )
        for name, train_dir in zip(short_names(train_dirs), train_dirs, strict=True)
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the ends of paths, as many parts of each as make them all different."""
    parts = [files.absolute(path).split("/") for path in paths]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def weights_mib(train_dir: str) -> float | None:
    """Returns the size of a run's weights in float32, or None if it has no checkpoint."""
    path = checkpoints.latest(train_dir)
    if path is None:
        return None
    with checkpoints.reading(path):
        stored = tf.train.list_variables(path)
    count = sum(
        math.prod(shape)
        for name, shape in stored
        if checkpoints.split_stored_name(name)[0] == "weights"
    )
    return count * _BYTES_PER_WEIGHT / 2**20


def read_curves(folder: str) -> dict[str, Curve]:
    """Reads the scalars in a directory of TensorBoard logs by name; none if it has no logs.

    A resumed run logs some steps again; its last value of a step counts.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(files.gfile.glob(os.path.join(folder, "events.out.tfevents.*"))):
        for step, tag, value in _scalars(path):
            found.setdefault(tag, {})[step] = value
    return {
        tag: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for tag, values in found.items()
    }


def _scalars(path):
    """Yields steps, names and values in a log, whose end training may be writing."""
    with contextlib.suppress(tf.errors.DataLossError):
        for payload in tf.data.TFRecordDataset(path).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(payload)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
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
    all_settings = [config.settings for config in configs]
    names = dict.fromkeys(name for found in all_settings for name in found)
    table = {name: [found.get(name, "") for found in all_settings] for name in names}
    return {
        name: [_text(value) for value in values]
        for name, values in table.items()
        if any(value != values[0] for value in values)
    }


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
