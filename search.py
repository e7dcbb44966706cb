r"""Searches for the settings with which a model learns best, by Optuna.

    python search.py --model=DbofModel --train_data_pattern='data/train*.tfrecord' \
        --eval_data_pattern='data/validate*.tfrecord' --eval_steps=500 --max_steps=5000 \
        --search_dir=runs --num_trials=20 \
        --search base_learning_rate=log:1e-4,1e-2 \
        --search dbof_cluster_size=int:512,4096 \
        --search label_loss=choice:CrossEntropyLoss,HingeLoss

Each trial is a run of train.py in a directory of its own, such as runs/trial-0007, with the flags
of train.py that are given here. Its value is its best evaluation on --eval_data_pattern. Trials
that fall behind end early. Repeat the command to resume a search that was interrupted, and run it
in several processes or on several machines with one --search_dir to share the trials. At the end, a
table lists the trials, and the command of the best is printed.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import program

import tensorflow as tf
from absl import logging

import checkpoints
import dataset_info
import eval_util
import files
import private_api
import registry
import validation
from options import arguments, option, options_of, same_option
from run_config import RunConfig, TrainOptions
from utils import InputError, aligned_table, comma_separated, import_optional

_TRAIN = pathlib.Path(__file__).with_name("train.py")
_STUDY_FILE = "study.log"
_LOCK_FILE = "search.lock"
_LOG_FILE = "train.log"
_POLL_SECS = 1.0
_SYNTAX = (
    "NAME=log:LOW,HIGH, NAME=int:LOW,HIGH, NAME=float:LOW,HIGH or NAME=choice:A,B,..., where NAME "
    "is a flag of train.py without its hyphens"
)
# What the states of Optuna mean here.
_STATES = {
    "COMPLETE": "complete",
    "FAIL": "failed",
    "PRUNED": "ended early",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions(TrainOptions):
    """Options of this program, and those of train.py except the ones that each trial has its own.

    Attributes:
        train_dir: not used.
        start_new_model: not used.
        tensorboard_dir: not used.
        keep_best: `metric`.
    """

    train_dir: str = ""
    start_new_model: bool = False
    tensorboard_dir: str | None = None
    keep_best: str | None = None

    eval_data_pattern: str = same_option(
        TrainOptions,
        "eval_data_pattern",
        default=dataclasses.MISSING,
        help="Globs of records with labels, comma-separated; quote them. They decide which trial "
        "is best, so test on others.",
        required=True,
    )
    search: str = option(
        help="Setting to vary: base_learning_rate=log:1e-4,1e-2 (even on a logarithmic scale), "
        "batch_size=int:32,256, ema_decay=float:0,0.9, optimizer=choice:Adam,AdamW.",
        group="search",
        required=True,
        repeats=True,
    )
    search_dir: str = option(
        help="Directory of the search: the study, and a train directory for each trial.",
        group="search",
        required=True,
    )
    num_trials: int = option(
        20,
        "Trials of the whole search, including those of other processes and before a restart.",
        group="search",
        above=0,
    )
    metric: str = option(
        "gap",
        "Metric of --eval_data_pattern that decides which trial is best.",
        group="search",
        choices=tuple(eval_util.METRICS),
    )
    sampler: str = option(
        "tpe",
        "How settings are drawn: tpe (from where the trials so far were good), random, or grid "
        "(every combination once; all settings must be of kind choice).",
        group="search",
        choices=("tpe", "random", "grid"),
    )
    pruner: str = option(
        "halving",
        "Which trials end early: halving (successive halving: a trial continues after 1, 4, "
        "16, ... evaluations if it is in the best quarter there), or none.",
        group="search",
        choices=("halving", "none"),
    )
    prune_after: int = option(
        1,
        "Evaluations before halving first ends a trial; each later number grows by this factor.",
        group="search",
        above=0,
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        object.__setattr__(self, "keep_best", self.metric)
        super().__post_init__()
        if files.is_remote(self.search_dir):
            raise InputError(
                f"--search_dir must be a directory of this machine or of a shared file system, "
                f"because Optuna locks its files. Received: {self.search_dir}"
            )


# --- Settings to search ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that trials vary.

    Attributes:
        name: name of the flag.
        kind: log, int, float or choice.
        values: the choices, or the lowest and the highest value.
    """

    name: str
    kind: str
    values: tuple

    def suggest(self, trial: Any) -> Any:
        """Returns the value of an Optuna trial, drawn at the first call."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.values)
        is_int = all(isinstance(value, int) for value in self.values)
        suggest = trial.suggest_int if is_int else trial.suggest_float
        return suggest(self.name, *self.values, log=self.kind == "log")


def parse_settings(texts: str, config: RunConfig) -> list[Setting]:
    """Returns the settings that lines such as `base_learning_rate=log:1e-4,1e-2` describe.

    Args:
        texts: values of --search, one per line.
        config: config that the trials change.

    Raises:
        InputError: if a line is malformed, or a setting cannot be searched or have such values.
    """
    settings = []
    for text in texts.split("\n"):
        with _named(text):
            settings.append(_parse(text, config))
    names = [setting.name for setting in settings]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"--search names {comma_separated(repeated)} more than once.")
    first = {setting.name: setting.values[0] for setting in settings}
    for text, setting in zip(texts.split("\n"), settings, strict=True):
        with _named(text):
            for value in setting.values:
                changed(config, {**first, setting.name: value})  # Rejects bad values.
    return settings


@contextlib.contextmanager
def _named(text):
    try:
        yield
    except InputError as error:
        raise InputError(f"--search {text}: {error}") from error


def _parse(text, config):
    name, equals, rest = text.partition("=")
    kind, colon, listed = rest.partition(":")
    if not (equals and colon and kind in ("log", "int", "float", "choice")):
        raise InputError(f"expected {_SYNTAX}.")
    types = _searchable(config)
    if name not in types:
        similar = difflib.get_close_matches(name, types)
        hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
        raise InputError(
            f"{name} cannot be searched. {hint}With {config.model}, these can: "
            f"{comma_separated(types)}."
        )
    base = types[name]
    values = tuple(_value(entry, base) for entry in listed.split(","))
    if kind == "choice":
        if len(set(values)) < len(values):
            raise InputError("the choices must be different.")
        return Setting(name, kind, values)
    if base not in (int, float) or kind not in ("log", base.__name__):
        ranges = f"log: or {base.__name__}: or " if base in (int, float) else ""
        raise InputError(f"{name} is of type {base.__name__}: search it with {ranges}choice:.")
    if len(values) != 2 or not values[0] < values[1]:
        raise InputError("expected two numbers, the lower one first.")
    if kind == "log" and values[0] <= 0:
        raise InputError("a logarithmic scale needs numbers above 0.")
    return Setting(name, kind, values)


def _value(text, base):
    try:
        return {"true": True, "false": False}[text] if base is bool else base(text)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "an integer", float: "a number"}[base]
        raise InputError(f"expected {expected}. Received: {text!r}") from None


def _searchable(config):
    """Returns the types of the settings that a search may vary, by name."""
    own = {
        field.name: kind.base
        for field, kind in options_of(RunConfig)
        if field.metadata["group"] != "data" and field.name != "model"
    }
    taken = _of_model(config) | _of_loss(config)
    return own | {name: each.type for name, each in taken.items()}


def _of_model(config):
    """Returns the hyperparameters of the model of a config."""
    classifier = config.hyperparameters.get(registry.CLASSIFIER_ARGUMENT)
    return registry.hyperparameters(config.model, classifier)


def _of_loss(config):
    """Returns the hyperparameters of the label loss of a config."""
    return registry.own_hyperparameters(registry.loss_class(config.label_loss))


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns a config with other values of settings, by name.

    Raises:
        InputError: if a value is not valid.
    """
    own = {field.name for field in dataclasses.fields(RunConfig)}
    loss = registry.loss_class(values.get("label_loss", config.label_loss))
    of_loss = registry.own_hyperparameters(loss)
    own_values = {name: value for name, value in values.items() if name in own}
    others = {name: value for name, value in values.items() if name not in own}
    of_model, given_of_loss = _given(config)
    return dataclasses.replace(
        config,
        hyperparameters=of_model
        | {name: value for name, value in others.items() if name not in of_loss},
        loss_hyperparameters=given_of_loss
        | {name: value for name, value in others.items() if name in of_loss},
        **own_values,
    )


def _given(config):
    """Returns the hyperparameters of model and loss that differ from their defaults."""
    return tuple(
        {name: value for name, value in values.items() if value != taken[name].default}
        for taken, values in (
            (_of_model(config), config.hyperparameters),
            (_of_loss(config), config.loss_hyperparameters),
        )
    )


def train_flags(
    config: RunConfig, options: SearchOptions, given: program.GivenFlags
) -> dict[str, Any]:
    """Returns what train.py gets in every trial, values by name of the flag."""
    own = {field.name for field, _ in options_of(RunConfig)}
    of_training = {field.name for field, _ in options_of(TrainOptions)}
    of_model, of_loss = _given(config)
    return {
        "model": config.model,
        **{name: getattr(config, name) for name in sorted(given & own)},
        **of_model,
        **of_loss,
        **{name: getattr(options, name) for name in sorted(given & of_training - own)},
        "keep_best": options.metric,
    }


# --- The study ------------------------------------------------------------------------------------


class Search:
    """A study, whose trials several processes share.

    Args:
        config: config that the trials change.
        options: options of the program.
        settings: settings that the trials vary.
        flags: flags of train.py in every trial, from `train_flags`.

    Raises:
        InputError: if the directory holds a search with other flags, or Optuna is missing.
    """

    def __init__(
        self,
        config: RunConfig,
        options: SearchOptions,
        settings: list[Setting],
        flags: Mapping[str, Any],
    ):
        self._optuna = import_optional("optuna", "search.py needs Optuna", "search")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._states = self._optuna.trial.TrialState
        self._config = config
        self._options = options
        self._settings = settings
        self._flags = flags
        files.check_writable(self._path(_STUDY_FILE))
        with self._locked():
            self._study = self._open()

    def _path(self, *names):
        return os.path.join(self._options.search_dir, *names)

    def _locked(self):
        """Returns a context in which no other process takes a trial."""
        return files.lock(self._path(_LOCK_FILE), wait=True)

    def _open(self):
        path = self._path(_STUDY_FILE)
        journal = self._optuna.storages.journal
        pruners = self._optuna.pruners
        pruner = pruners.NopPruner()
        if self._options.pruner == "halving":
            pruner = pruners.SuccessiveHalvingPruner(min_resource=self._options.prune_after)
        try:
            study = self._optuna.create_study(
                storage=journal.JournalStorage(journal.JournalFileBackend(path)),
                study_name="search",
                direction="minimize" if self._is_minimized else "maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} is not the file of a search: {error!r}") from error
        searches = [f"--search={text}" for text in self._options.search.split("\n")]
        own = sorted([*arguments(self._flags), *searches])
        stored = study.user_attrs.get("flags", own)
        if stored != own:
            there, now = sorted({*stored} - {*own}), sorted({*own} - {*stored})
            raise InputError(
                f"{self._options.search_dir} holds a search with other flags (there: "
                f"{comma_separated(there)}; now: {comma_separated(now)}). Give the same flags to "
                "resume it, or another --search_dir."
            )
        study.set_user_attr("flags", own)
        return study

    @property
    def _is_minimized(self):
        return self._options.metric in eval_util.MINIMIZED

    def _trials(self, *states):
        return self._study.get_trials(deepcopy=False, states=states or None)

    # --- Trials ---

    def run(self) -> None:
        """Runs trials until there are enough, of which other processes may run the last."""
        while True:
            with contextlib.ExitStack() as held:
                with self._locked():
                    trial = self._next_trial(held)
                if trial is None:
                    return
                self._run_trial(trial)

    def _next_trial(self, held):
        """Returns a trial that was interrupted, or else a new one, or None if there are enough.

        The lock of its directory, which this process keeps while it runs the trial, joins `held`.
        """
        interrupted = self._interrupted_trial(held)
        number = interrupted.number if interrupted else len(self._trials())
        if number >= self._num_trials:
            return None
        # The seeds differ, so that no process repeats what another draws.
        self._study.sampler = self._sampler(self._config.seed + number)
        if interrupted:
            logging.info("%s was interrupted and continues", _name(interrupted))
            trial = private_api.running_trial(self._study, interrupted)
        else:
            trial = self._study.ask()
            held.enter_context(files.lock(self._path(_name(trial), _LOCK_FILE)))
        for setting in self._settings:
            setting.suggest(trial)
        # At the end of a trial, GridSampler stops a loop of Optuna, which there is none here.
        self._study.sampler = self._optuna.samplers.RandomSampler()
        return trial

    def _interrupted_trial(self, held):
        for trial in self._trials(self._states.RUNNING):
            try:
                held.enter_context(files.lock(self._path(_name(trial), _LOCK_FILE)))
            except InputError:  # Another process runs it.
                continue
            # That process may just have finished it.
            if self._trials()[trial.number].state == self._states.RUNNING:
                return trial
        return None

    @property
    def _num_trials(self):
        if self._options.sampler != "grid":
            return self._options.num_trials
        size = math.prod(len(setting.values) for setting in self._settings)
        return min(size, self._options.num_trials)

    def _sampler(self, seed):
        samplers = self._optuna.samplers
        if self._options.sampler == "grid":
            grid = {setting.name: setting.values for setting in self._settings}
            return samplers.GridSampler(grid, seed=self._config.seed)
        if self._options.sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed)

    def _run_trial(self, trial):
        values = {setting.name: setting.suggest(trial) for setting in self._settings}
        logging.info("%s: %s", _name(trial), " ".join(arguments(values)))
        train_dir = self._path(_name(trial))
        use_ema = changed(self._config, values).ema_decay > 0
        metrics_path = checkpoints.metrics_path(train_dir, checkpoints.evaluation_kind(use_ema))
        # The training may still be saving that a killed search left behind.
        with files.lock(os.path.join(train_dir, checkpoints.LOCK_FILE), wait=True):
            pass
        flags = {**self._flags, **values, "train_dir": train_dir}
        log_path = os.path.join(train_dir, _LOG_FILE)
        with _training(arguments(flags), log_path) as process:
            is_behind = False
            while process.poll() is None and not is_behind:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECS)
                is_behind = self._report(trial, metrics_path) and process.poll() is None
        self._report(trial, metrics_path)
        self._end(trial, is_behind, process.returncode, log_path)

    def _end(self, trial, is_behind, status, log_path):
        values = self._values(trial)
        if is_behind:
            self._study.tell(trial, state=self._states.PRUNED)
        elif status or not values:
            self._study.tell(trial, state=self._states.FAIL)
            reason = f"signal {-status}" if status < 0 else _last_line(log_path)
            logging.warning("%s failed: %s", _name(trial), reason)
            return
        else:
            self._study.tell(trial, values[-1])
        logging.info(
            "%s ends%s: %s %.4f",
            _name(trial),
            " early" * is_behind,
            self._options.metric,
            values[-1],
        )

    def _report(self, trial, metrics_path):
        """Reports the best value after each new evaluation, and returns whether it falls behind."""
        is_behind = False
        known = self._values(trial)
        evaluations = checkpoints.read_evaluations(metrics_path)
        values = [entry[self._options.metric] for entry in evaluations]
        for number in range(len(known) + 1, len(values) + 1):
            trial.report(
                min(values[:number]) if self._is_minimized else max(values[:number]), number
            )
            is_behind |= trial.should_prune()
            logging.info(
                "%s: step %d, %s %.4f",
                _name(trial),
                evaluations[number - 1]["step"],
                self._options.metric,
                values[number - 1],
            )
        return is_behind

    # --- Results ---

    def _values(self, trial):
        """Returns the best value after each evaluation of a trial."""
        return list(self._trials()[trial.number].intermediate_values.values())

    def table(self) -> str:
        """Returns a table of the trials, the best first; those without evaluation come last."""
        rows = []
        for trial in self._trials():
            values = self._values(trial)
            rows.append(
                (
                    values[-1] * (1 if self._is_minimized else -1) if values else math.inf,
                    _name(trial),
                    *(_short(trial.params.get(setting.name, "")) for setting in self._settings),
                    f"{values[-1]:.4f}" if values else "",
                    str(len(values)),
                    _STATES[trial.state.name],
                )
            )
        names = (setting.name for setting in self._settings)
        header = ["", *names, self._options.metric, "evaluations", "state"]
        return aligned_table(header, [row for _, *row in sorted(rows, key=lambda row: row[0])])

    def describe_best(self) -> str:
        """Describes the best of the complete trials, and how to train like it.

        Raises:
            InputError: if there is none, and none is running.
        """
        running = len(self._trials(self._states.RUNNING))
        text = f"Other processes run {running} more trials.\n" if running else ""
        if not self._trials(self._states.COMPLETE):
            if running:
                return text
            raise InputError(
                f"no trial in {self._options.search_dir} has succeeded. The end of "
                f"{self._path('trial-*', _LOG_FILE)} says why."
            )
        best = self._study.best_trial
        values = {**self._flags, **best.params, "train_dir": self._path("best")}
        return (
            f"{text}The best is {self._path(_name(best))}, with {self._options.metric} "
            f"{best.value:.4f}; --checkpoint=best selects its weights. To train like it again:\n"
            + shlex.join(["python", "train.py", *arguments(values)])
        )


def _name(trial):
    return f"trial-{trial.number:04d}"


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last_line(path):
    """Returns the error at the end of a log of train.py."""
    with open(path, errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1].removeprefix(f"{_TRAIN}: error: ") if lines else "it printed nothing"


@contextlib.contextmanager
def _training(given, log_path):
    """Yields a process of train.py, which ends with the block."""
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, _TRAIN, *given],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=program.end_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()  # If it runs, it saves a checkpoint and ends.
        process.wait()


def _check_data(config, options, given):
    """Fails on bad data before the first trial."""
    paths = files.expand_patterns(options.train_data_pattern)
    config = dataset_info.complete(config, given, paths)
    config.data.reader(paths, options).check_first_records()
    validation.check_records(config, options, files.expand_patterns(options.eval_data_pattern))


def main(config: RunConfig, options: SearchOptions, given: program.GivenFlags) -> None:
    """Runs the program."""
    tf.config.set_visible_devices([], "GPU")  # The trials need its memory.
    settings = parse_settings(options.search, config)
    if options.sampler == "grid" and any(setting.kind != "choice" for setting in settings):
        raise InputError("--sampler=grid needs choice: in every --search.")
    _check_data(config, options, given)
    search = Search(config, options, settings, train_flags(config, options, given))
    search.run()
    print(f"{search.table()}\n")
    print(search.describe_best())


if __name__ == "__main__":
    program.end_on_sigterm()
    program.run(main)
