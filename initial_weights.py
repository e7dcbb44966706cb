"""The weights that a run starts with: which come from another run, and which are frozen.

Weights are matched by path inside the model and by shape. Where the two runs have different
classes, the parts of the classifier that belong to shared classes move to their new places.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from absl import logging

import checkpoints
import files
import layers
import private_api
import tensorflow1_checkpoints
import vocabulary
from own_data import label_table
from run_config import RunConfig, TrainOptions
from utils import InputError, aligned_table, comma_separated, examples, shortened
from video_level_models import class_positions

# Settings that decide what the values mean that a model gets, however they are stored.
_INPUT_SETTINGS = ("feature_names", "feature_sizes", "feature_scale", "normalize_frames")
_NORMS = (layers.BatchNorm, keras.layers.BatchNormalization)
_TAKEN = "taken"


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        path: path prefix of the checkpoint.
        weights: arrays by path of the variable.
        config: config of the run.
        class_names: names by class; empty without a vocabulary.
    """

    path: str
    weights: Mapping[str, np.ndarray]
    config: RunConfig
    class_names: Mapping[int, str]


def prepare(model: keras.Model, config: RunConfig, options: TrainOptions) -> None:
    """Gives a new model the weights that its run starts with, and freezes weights.

    If the run has a checkpoint to resume from, `config.init_from` is not read.

    Args:
        model: model of the config, with random weights.
        config: config of the run.
        options: its directory and vocabulary.

    Raises:
        InputError: if a setting about initial weights does not fit, or no weight can be taken.
    """
    if config.freeze:
        freeze(model, config.freeze)
    resumes = not options.start_new_model and checkpoints.latest(options.train_dir)
    if not config.init_from or resumes:
        return
    folder, _ = _split(config.init_from)
    if os.path.realpath(folder) == os.path.realpath(options.train_dir):
        raise InputError(
            f"--init_from={config.init_from} is in --train_dir. Choose another --train_dir; to "
            "continue a run, repeat its command."
        )
    load(model, config, open_source(config), options.class_names)


def _inside(path):
    """Returns the path of a weight without the name of its model."""
    return path.partition("/")[2]


def _matching(model, pattern, flag):
    """Returns the paths, inside the model, that a regular expression matches anywhere."""
    paths = [_inside(weight.path) for weight in model.weights]
    found = {path for path in paths if re.search(pattern, path)}
    if not found:
        raise InputError(
            f"--{flag}={pattern} matches the path of no weight of {model.name}. It has: "
            f"{comma_separated(paths)}"
        )
    return found


def _excluded(model, config):
    """Returns the paths, inside the model, of the weights that the user excludes."""
    if not config.init_exclude:
        return set()
    return _matching(model, config.init_exclude, "init_exclude")


# --- Freezing -------------------------------------------------------------------------------------


def freeze(model: keras.Model, pattern: str) -> None:
    """Makes weights constant in training, and their batch normalization use its moving averages.

    Args:
        model: built model.
        pattern: regular expression for the paths of weights inside the model.

    Raises:
        InputError: if it matches no weight or leaves none to train.
    """
    frozen = frozen_paths(model, pattern)
    for norm in _norms_with(model, frozen):
        norm.trainable = False
    for weight in model.weights:
        if weight.path in frozen:
            weight.trainable = False
    if not model.trainable_variables:
        raise InputError(
            f"--freeze={pattern} leaves no weight of {model.name} to train. Leave the classifier "
            "out, for example."
        )
    num_values = sum(math.prod(weight.shape) for weight in model.weights if weight.path in frozen)
    logging.info(
        "--freeze=%s keeps %d of %d weights, %s of %s values: %s",
        pattern,
        len(frozen),
        len(model.weights),
        f"{num_values:,}",
        f"{model.count_params():,}",
        comma_separated(_inside(weight.path) for weight in model.weights if weight.path in frozen),
    )


def frozen_paths(model: keras.Model, pattern: str | None) -> set[str]:
    """Returns the paths of the weights that `freeze` makes constant.

    Raises:
        InputError: if the pattern matches no weight.
    """
    if not pattern:
        return set()
    names = _matching(model, pattern, "freeze")
    frozen = {weight.path for weight in model.weights if _inside(weight.path) in names}
    norms = _norms_with(model, frozen)
    return frozen | {weight.path for norm in norms for weight in norm.weights}


def _norms_with(model, paths):
    """Returns the batch normalizations that have one of some weights."""
    return [
        layer
        for layer in layers.sublayers(model)
        if isinstance(layer, _NORMS) and any(weight.path in paths for weight in layer.weights)
    ]


# --- Reading --------------------------------------------------------------------------------------


def open_source(config: RunConfig) -> Source:
    """Reads the weights to start from.

    Args:
        config: config of the new run. Its `init_from` is a train directory, for the newest
            checkpoint; or a checkpoint in it: `RUN/model.ckpt-STEP`, `RUN/STEP` or `RUN/best`.

    Raises:
        InputError: if there is no such run or checkpoint, or it cannot be read.
    """
    folder, checkpoint = _split(config.init_from)
    found: list[Source] = []
    try:
        checkpoints.restore(
            folder, checkpoint, lambda path: found.append(read_source(path, folder, config))
        )
    except InputError as error:
        raise InputError(f"--init_from={config.init_from}: {error}") from error
    return found[-1]


def _split(init_from):
    """Returns the directory, and the checkpoint in it for `checkpoints.find`."""
    if files.gfile.isdir(init_from):
        return init_from, None
    path = init_from.removesuffix(".index")
    folder, name = os.path.split(path)
    return folder or ".", name if name.isdecimal() or name == checkpoints.BEST else path


def read_source(path: str, folder: str, config: RunConfig) -> Source:
    """Returns the weights in a checkpoint, or their moving averages.

    A checkpoint of TensorFlow 1 has no config. It must fit `config`, except for the number of
    classes and the weights that `init_exclude` matches.

    Args:
        path: path prefix of the checkpoint.
        folder: train directory.
        config: config of the new run.
    """
    if not tensorflow1_checkpoints.is_tensorflow1(path):
        weights = checkpoints.read_weights(path, config.init_use_ema)
        old_config = RunConfig.load(folder)
    elif config.init_use_ema:
        raise InputError(
            f"no moving averages are read from {path}, a checkpoint of TensorFlow 1. Leave out "
            "--init_use_ema."
        )
    else:
        num_classes = tensorflow1_checkpoints.num_classes(path)
        old_config = dataclasses.replace(config, num_classes=num_classes)
        model = old_config.build_model()
        weights = tensorflow1_checkpoints.read(path, model, _excluded(model, config))
    names = checkpoints.find_vocabulary(folder)
    class_names = vocabulary.read_class_names(names, old_config.num_classes) if names else {}
    return Source(path, weights, old_config, class_names)


def read_classes(path: str) -> dict[str, str]:
    """Reads a CSV file with the columns `new` and `old`, classes as names or numbers.

    Returns:
        The old class by new class, as texts.

    Raises:
        InputError: naming the file, if it has other columns or no class, or a new class twice.
    """
    columns = label_table.read(path)
    if set(columns) != {"new", "old"}:
        raise InputError(f"{path} must have the columns new and old. It has: {list(columns)}")
    new, old = ([str(cell).strip() for cell in columns[name]] for name in ("new", "old"))
    repeated = sorted({label for label in new if new.count(label) > 1})
    if repeated or not new:
        problem = f"It repeats: {examples(repeated)}" if repeated else "It has no rows."
        raise InputError(f"{path} must name every new class once, of at least one. {problem}")
    return dict(zip(new, old, strict=True))


# --- Classes --------------------------------------------------------------------------------------


def class_map(
    config: RunConfig, class_names: Mapping[int, str], source: Source
) -> dict[int, int] | None:
    """Returns the old class by new class; None if every class keeps its number.

    Classes of the same name are the same. Only without two vocabularies, as many classes in both
    runs count as the same classes in the same order.

    Args:
        config: config of the new run; `init_classes` overrides the names.
        class_names: names by class of the new run; empty without a vocabulary.
        source: the old run.

    Raises:
        InputError: if `init_classes` names what is no class of a run.
    """
    if config.init_classes:
        return _given_classes(config, class_names, source)
    old_count, count = source.config.num_classes, config.num_classes
    if class_names and source.class_names:
        if count == old_count and _named(class_names) == _named(source.class_names):
            return None
        by_name = vocabulary.unique_names(source.class_names)
        new_names = vocabulary.unique_names(class_names)
        shared = {number: by_name[name] for name, number in new_names.items() if name in by_name}
        logging.info(
            "%d of the %d classes are among the %d of %s, by name: %s. --init_classes "
            "lists other pairs instead",
            *(len(shared), count, old_count, source.path),
            examples([class_names[number] for number in shared]),
        )
        return shared
    if count == old_count:
        logging.warning(
            "the classes are taken for those of %s, in the same order, because not both runs have "
            "a vocabulary. If they are others, give --init_classes or --init_exclude=^classifier",
            source.path,
        )
        return None
    logging.info(
        "%s has %d classes and this run %d, and not both have a vocabulary: their weights start "
        "anew. --init_classes maps classes",
        *(source.path, old_count, count),
    )
    return {}


def _given_classes(config, class_names, source):
    """Returns the old class by new class that `--init_classes` gives."""
    column = "column {} of --init_classes"
    new_labels, old_labels = config.init_classes, [*dict.fromkeys(config.init_classes.values())]
    new = vocabulary.find_classes(
        [*new_labels], class_names, config.num_classes, column.format("new")
    )
    old = vocabulary.find_classes(
        old_labels, source.class_names, source.config.num_classes, column.format("old")
    )
    numbers = dict(zip(old_labels, old, strict=True))
    return {number: numbers[label] for number, label in zip(new, new_labels.values(), strict=True)}


def _named(names):
    return {number: name for number, name in names.items() if name}


def class_axes(model: keras.Model, config: RunConfig) -> dict[str, list[int]]:
    """Returns the axes of weights along which classes lie, by path of the weight.

    They are the axes that are longer in a model of one class more.
    """
    with private_api.zero_weights():
        larger = dataclasses.replace(config, num_classes=config.num_classes + 1).build_model()
    return {
        weight.path: [axis for axis, size in enumerate(weight.shape) if size != other.shape[axis]]
        for weight, other in zip(model.weights, larger.weights, strict=True)
        if weight.shape != other.shape
    }


def with_classes(
    value: np.ndarray,
    old: np.ndarray,
    axes: Sequence[int],
    classes: Mapping[int, int],
    counts: tuple[int, int],
) -> np.ndarray | None:
    """Returns a weight with the entries of some classes from another run.

    An axis may hold several entries per class, such as those of a mixture's experts: one for each
    class, then the next for each class, and so on.

    Args:
        value: weight of this run.
        old: weight of the other run.
        axes: axes along which classes lie.
        classes: old class by new class.
        counts: numbers of classes of this run and of the other.

    Returns:
        A copy of `value` with other entries; None if the other weight does not have the shape for
        it.
    """
    fits = all(value.shape[axis] % counts[0] == 0 for axis in axes)
    shape = [
        size // counts[0] * counts[1] if axis in axes else size
        for axis, size in enumerate(value.shape)
    ]
    if not fits or list(old.shape) != shape:
        return None
    fitted = np.array(value)
    places = _places(value.shape, axes, counts[0], [*classes])
    fitted[places] = old[_places(old.shape, axes, counts[1], [*classes.values()])]
    return fitted


def _places(shape, axes, count, classes):
    """Returns an index for the entries of some of `count` classes, in their order."""
    places = [np.arange(size) for size in shape]
    for axis in axes:
        places[axis] = class_positions(shape[axis], count, classes)
    return np.ix_(*places)


# --- Loading --------------------------------------------------------------------------------------


def load(model: keras.Model, config: RunConfig, source: Source, class_names: str | None) -> None:
    """Sets the weights of a model to those of another run, where they fit, and logs a table.

    Args:
        model: model of the config, with random weights.
        config: config of the new run.
        source: weights to take.
        class_names: path of the vocabulary of the new run; None without.

    Raises:
        InputError: if no weight fits.
    """
    _report_settings(config, source)
    names = vocabulary.read_class_names(class_names) if class_names else {}
    classes = class_map(config, names, source)
    axes = {} if classes is None else class_axes(model, config)
    counts = config.num_classes, source.config.num_classes
    stored = {_inside(path): array for path, array in source.weights.items()}
    # Batch normalization counts its updates anew, so that its averages soon follow the new data.
    skipped = {name: "new: counts from 0" for name in stored if name.endswith(layers.COUNTER)}
    skipped |= dict.fromkeys(_excluded(model, config), "new: excluded")
    outcomes = {}
    for path, variable in checkpoints.weights(model).items():
        name = _inside(path)
        if name in skipped:
            outcomes[path] = skipped[name]
            continue
        value, outcomes[path] = _fitted(
            variable.numpy(), stored.get(name), axes.get(path, ()), classes or {}, counts
        )
        if value is not None:
            variable.assign(value)
    _report_outcomes(model, source, outcomes)
    random = [
        _inside(path)
        for path in sorted(frozen_paths(model, config.freeze))
        if outcomes[path] != _TAKEN and not path.endswith(layers.COUNTER)
    ]
    if random:
        logging.warning(
            "--freeze keeps weights that are not taken, or not wholly, at random values: %s",
            comma_separated(random),
        )


def _fitted(value, old, axes, classes, counts):
    """Returns the value that a weight takes from the other run, or None, and a text about it."""
    if old is None:
        return None, "new: not there"
    if axes and not classes:
        return None, "new: no class in common"
    fitted = with_classes(value, old, axes, classes, counts)
    if fitted is None:
        return None, f"new: {list(old.shape)} there"
    return fitted, f"taken for {len(classes)} of {counts[0]} classes" if axes else _TAKEN


def _report_settings(config, source):
    """Logs the settings that differ from those that the weights were trained with."""
    differing = {
        name: f"{name}: {shortened(old)} there, {shortened(new)} now"
        for name, (new, old) in config.differences(source.config).items()
    }
    inputs = [differing[name] for name in _INPUT_SETTINGS if name in differing]
    if inputs:
        logging.warning(
            "the weights of %s were trained on other features or values of them (%s). What they "
            "learned of their input may not hold here",
            source.path,
            "; ".join(inputs),
        )
    of_model = {"model", *config.hyperparameters} - {*_INPUT_SETTINGS}
    others = [text for name, text in differing.items() if name in of_model]
    if others:
        logging.info(
            "settings of the model that differ from %s: %s", source.path, "; ".join(others)
        )


def _report_outcomes(model, source, outcomes):
    """Logs which weights are taken, and rejects a source of which none is."""
    taken = {path for path, outcome in outcomes.items() if outcome.startswith(_TAKEN)}
    if not taken:
        raise InputError(
            f"no weight of {model.name} has the path and shape of one in {source.path}, which is "
            f"of a {source.config.model}. Choose that model and its sizes, or leave out "
            f"--init_from. {model.name} has: {examples([*map(_inside, outcomes)])}. There are: "
            f"{examples([*map(_inside, source.weights)])}"
        )
    rows = [
        (_inside(weight.path), str(list(weight.shape)), outcomes[weight.path])
        for weight in model.weights
    ]
    logging.info(
        "initial weights, %d of %d taken from %s:\n%s",
        len(taken),
        len(outcomes),
        source.path,
        aligned_table(("weight", "shape", "initial value"), rows),
    )
    known = set(map(_inside, outcomes))
    unused = [name for name in map(_inside, source.weights) if name not in known]
    if unused:
        logging.info("not used of %s: %s", source.path, comma_separated(unused))
