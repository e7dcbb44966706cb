"""Searches: drawn settings, values of trials, early ends, interruption, shared studies, errors."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna", reason="needs requirements/search.txt")

import program

import programs
import search
import train
from run_config import RunConfig
from utils import InputError

# Stands in for train.py: it starts in a moment, and its GAP depends only on the learning rate.
TRAINING = """
import json, os, pathlib, signal, sys, time

train_dir = pathlib.Path([a for a in sys.argv if a.startswith("--train_dir=")][0].partition("=")[2])
rate = float([a for a in sys.argv if a.startswith("--base_learning_rate=")][0].partition("=")[2])
with open(train_dir / "starts", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if rate > 0.9:
    sys.exit(f"{sys.argv[0]}: error: the loss of step 3 is not finite")
history = []
for step, gap in enumerate([rate / 2, rate, rate / 4], start=1):
    history.append({"step": step, "gap": gap, "loss": 1 - gap})
    (train_dir / "eval").mkdir(exist_ok=True)
    (train_dir / "new").write_text(json.dumps(history))
    (train_dir / "new").rename(train_dir / "eval" / "metrics.json")
    if step == 1 and rate == 0.75 and not (train_dir / "interrupted").exists():
        (train_dir / "interrupted").touch()
        os.kill(os.getppid(), signal.SIGINT)
    if rate < 0.2:
        time.sleep(60)  # Falls behind.
"""
DATA = ("--model=LogisticModel", *programs.SMALL_DATA, "--eval_steps=1")
RATES = "--search=base_learning_rate=float:0.3,0.7"


@pytest.fixture
def run(tmp_path, monkeypatch, video_data):
    """Returns a function that searches with a stand-in for train.py, in `tmp_path / "runs"`."""
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    monkeypatch.setattr(search, "_TRAIN", path)
    monkeypatch.setattr(search, "_POLL_SECS", 0.02)
    data = (f"--train_data_pattern={video_data}", f"--eval_data_pattern={video_data}")
    directory = f"--search_dir={tmp_path / 'runs'}"
    return lambda *flags: programs.run("search", *DATA, *data, directory, *flags)


def choices(*rates):
    """Returns the flags of a search that tries learning rates in an order that a seed decides."""
    return (f"--search=base_learning_rate=choice:{','.join(map(str, rates))}", "--sampler=grid")


def starts(folder):
    """Returns the flags of each start of a training, by name."""
    lines = (folder / "starts").read_text().splitlines()
    return [
        dict(flag.removeprefix("--").partition("=")[::2] for flag in json.loads(line))
        for line in lines
    ]


def rates(tmp_path):
    """Returns the learning rates of the trials, in their order."""
    folders = sorted((tmp_path / "runs").glob("trial-*"))
    return [float(starts(folder)[-1]["base_learning_rate"]) for folder in folders]


def rows(text):
    """Returns the lines of a table below its header, split into cells."""
    table = text.partition("\n\n")[0]
    return [re.split(r"  +", line.strip()) for line in table.splitlines()[1:]]


# --- Trials ---


def test_a_trial_has_the_value_of_its_best_evaluation(run, tmp_path, capsys):
    run(RATES, "--num_trials=3", "--pruner=none")
    found = rows(capsys.readouterr().out)
    expected = sorted(rates(tmp_path), reverse=True)
    assert [float(row[2]) for row in found] == pytest.approx(expected, abs=1e-4)
    assert [float(row[1]) for row in found] == pytest.approx(expected, rel=1e-3)
    assert {row[0] for row in found} == {"trial-0000", "trial-0001", "trial-0002"}
    assert {tuple(row[3:]) for row in found} == {("3", "complete")}


def test_the_loss_is_minimized(run, tmp_path, capsys):
    run(RATES, "--num_trials=3", "--metric=loss", "--pruner=none")
    found = rows(capsys.readouterr().out)
    expected = sorted(1 - rate for rate in rates(tmp_path))
    assert [float(row[2]) for row in found] == pytest.approx(expected, abs=1e-4)


def test_the_printed_command_trains_like_the_best_trial(run, tmp_path, capsys):
    run(RATES, "--num_trials=2", "--l2_penalty=0.25", "--seed=7", "--search=batch_size=int:4,8")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["python", "train.py"]
    parsed = program.parse_options(train.main, command[2:])
    assert parsed["options"].train_dir == str(tmp_path / "runs" / "best")
    assert parsed["options"].keep_best == "gap"
    assert parsed["options"].eval_steps == 1
    config = parsed["config"]
    assert config.base_learning_rate == max(rates(tmp_path))
    assert config.hyperparameters["l2_penalty"] == 0.25
    assert config.seed == 7
    assert 4 <= config.batch_size <= 8
    (best,) = [
        start
        for folder in (tmp_path / "runs").glob("trial-*")
        for start in starts(folder)
        if float(start["base_learning_rate"]) == config.base_learning_rate
    ]
    best.pop("train_dir")
    assert {f"--{name}={value}" for name, value in best.items()} <= {*command}


def test_a_trial_that_falls_behind_ends_early(run, tmp_path, capsys):
    start = time.monotonic()
    run(*choices(0.1, 0.4, 0.5))
    assert time.monotonic() - start < 50
    found = {float(row[1]): row[3:] for row in rows(capsys.readouterr().out)}
    assert found[0.5] == ["3", "complete"]
    assert found[0.1] == ["1", "ended early"]


def test_a_grid_has_every_combination_once(run, tmp_path):
    run(*choices(0.3, 0.4, 0.5), "--search=batch_size=choice:4,8", "--pruner=none")
    folders = (tmp_path / "runs").glob("trial-*")
    tried = [
        (float(s["base_learning_rate"]), int(s["batch_size"])) for f in folders for s in starts(f)
    ]
    assert sorted(tried) == [(rate, size) for rate in (0.3, 0.4, 0.5) for size in (4, 8)]


def test_a_trial_that_fails_is_reported_and_the_search_continues(run, capsys, logged_warnings):
    run(*choices(0.4, 0.95))
    assert rows(capsys.readouterr().out)[1][2:] == ["0", "failed"]
    assert re.fullmatch(
        r"trial-000\d failed: the loss of step 3 is not finite", logged_warnings[-1]
    )


def test_a_search_without_a_trial_that_succeeds_is_an_error(run, tmp_path):
    with pytest.raises(
        InputError, match=r"no trial in .*runs has succeeded\. The end of .*train\.log"
    ):
        run(*choices(0.95, 0.96))


# --- Interruption ---


def test_an_interrupted_trial_continues_in_its_directory_with_its_settings(run, tmp_path, capsys):
    flags = (*choices(0.75, 0.5), "--pruner=none")
    with pytest.raises(KeyboardInterrupt):
        run(*flags)
    run(*flags)
    assert sorted(float(row[1]) for row in rows(capsys.readouterr().out)) == [0.5, 0.75]
    folders = sorted((tmp_path / "runs").glob("trial-*"))
    assert [folder.name for folder in folders] == ["trial-0000", "trial-0001"]
    (twice,) = [starts(folder) for folder in folders if (folder / "interrupted").exists()]
    assert len(twice) == 2
    assert twice[0] == twice[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_continued_draws_what_it_would_have_drawn_at_once(run, tmp_path, sampler):
    flags = (RATES, f"--sampler={sampler}", "--pruner=none")
    run(*flags, "--num_trials=2")
    run(*flags, "--num_trials=4")
    continued = rates(tmp_path)
    assert len(set(continued)) == 4
    (tmp_path / "runs").rename(tmp_path / "continued")
    run(*flags, "--num_trials=4")
    assert rates(tmp_path) == continued


def test_a_search_is_not_continued_with_other_flags(run):
    run(RATES, "--num_trials=1")
    message = (
        r"runs holds a search with other flags \(there: --search=base_learning_rate=float:0.3,0.7; "
        r"now: --search=base_learning_rate=float:0.3,0.8, --seed=1\)\. Give the same flags"
    )
    with pytest.raises(InputError, match=message):
        run("--search=base_learning_rate=float:0.3,0.8", "--seed=1")


def test_a_file_of_something_else_is_not_taken_for_a_study(run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "study.log").write_text("a line\n")
    with pytest.raises(InputError, match=r"study\.log is not the file of a search"):
        run(RATES)


def trials(folder):
    return sorted(path.name for path in folder.glob("trial-*"))


@pytest.mark.slow
def test_a_killed_search_is_finished_by_two_processes_that_share_it(tmp_path, video_data):
    folder = tmp_path / "runs"
    flags = [
        *(*programs.SMALL_LOGISTIC, "--num_epochs=0", "--max_steps=30", "--eval_steps=10"),
        *(f"--train_data_pattern={video_data}", f"--eval_data_pattern={video_data}"),
        *(f"--search_dir={folder}", "--num_trials=4", "--pruner=none"),
        "--search=base_learning_rate=log:1e-3,1e-1",
    ]
    command = [sys.executable, programs.ROOT / "search.py", *flags]

    def begin():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **pipes)

    killed = begin()
    while not (folder / "trial-0001" / "eval" / "metrics.json").exists():
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    log = folder / "trial-0001" / "train.log"
    before = log.stat().st_size
    both = [begin(), begin()]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert trials(folder) == [f"trial-{number:04d}" for number in range(4)]
    assert log.stat().st_size > before
    for name in trials(folder):
        assert programs.metrics_of(folder / name)[-1]["step"] == 30
        assert (folder / name / "best.json").exists()
        assert len(programs.tensorboard_settings(folder / name)) == 1
    found = [rows(output) for output, _ in outputs]
    complete = max(found, key=lambda table: [row[-1] for row in table].count("complete"))
    assert [row[-2:] for row in complete] == [["3", "complete"]] * 4
    gaps = [max(e["gap"] for e in programs.metrics_of(folder / row[0])) for row in complete]
    assert [float(row[2]) for row in complete] == pytest.approx(gaps, abs=1e-4)
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.slow
def test_a_training_is_asked_to_end_when_its_search_is_killed(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(
        "import pathlib, signal\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'asked').touch())\n"
        "(folder / 'ready').touch()\n"
        "signal.pause()\n"
    )
    code = (
        "import os, pathlib, signal, time, program, search\n"
        f"search._TRAIN = pathlib.Path({str(script)!r})\n"
        f"with search._training([], {str(tmp_path / 'log')!r}):\n"
        f"    while not os.path.exists({str(tmp_path / 'ready')!r}): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert programs.run_command("-c", code).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_loss_and_its_hyperparameters_can_be_searched():
    config = RunConfig(
        "LogisticModel", label_loss="FocalLoss", loss_hyperparameters={"focal_alpha": 0.5}
    )
    found = search.changed(config, {"focal_gamma": 1.0, "l2_penalty": 0.5})
    assert found.loss_hyperparameters["focal_gamma"] == 1.0
    assert found.loss_hyperparameters["focal_alpha"] == 0.5
    assert found.hyperparameters["l2_penalty"] == 0.5
    (setting,) = search.parse_settings("focal_gamma=float:0,4", config)
    assert setting.values == (0.0, 4.0)
    assert search.changed(RunConfig("MoeModel"), {"label_loss": "HingeLoss", "margin": 2.0}) == (
        RunConfig("MoeModel", label_loss="HingeLoss", loss_hyperparameters={"margin": 2.0})
    )
    flags = search.train_flags(config, SimpleNamespace(metric="gap"), frozenset({"label_loss"}))
    assert flags == {
        "model": "LogisticModel",
        "label_loss": "FocalLoss",
        "focal_alpha": 0.5,
        "keep_best": "gap",
    }


# --- Errors ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_learning_rate", "expected NAME=log:LOW,HIGH, NAME=int:LOW,HIGH"),
        ("base_learning_rate=1e-4,1e-2", "expected NAME=log:LOW,HIGH"),
        ("base_learning_rate=normal:0,1", "expected NAME=log:LOW,HIGH"),
        ("base_learning_rate=log:1e-4", "expected two numbers, the lower one first"),
        ("base_learning_rate=log:1e-2,1e-4", "expected two numbers, the lower one first"),
        ("base_learning_rate=log:1e-4,1e-3,1e-2", "expected two numbers, the lower one first"),
        ("l2_penalty=log:0,1", "a logarithmic scale needs numbers above 0"),
        ("base_learning_rate=log:low,1", "expected a number. Received: 'low'"),
        ("base_learning_rate=float:0,inf", "--base_learning_rate must be above 0. Received: 0.0"),
        (
            "base_learning_rate=int:1,2",
            "is of type float: search it with log: or float: or choice:",
        ),
        ("batch_size=float:1,2", "is of type int: search it with log: or int: or choice:"),
        ("batch_size=int:1.5,2", "expected an integer. Received: '1.5'"),
        ("batch_size=int:0,8", "--batch_size must be above 0. Received: 0"),
        ("label_loss=log:1,2", "is of type str: search it with choice:"),
        ("label_loss=choice:CrossEntropyLoss,NoLoss", "unknown loss 'NoLoss'"),
        ("label_loss=choice:HingeLoss,HingeLoss", "the choices must be different"),
        ("optimizer=choice:Adam,Nadir", "unknown optimizer 'Nadir'"),
        ("train_dir=choice:a,b", "train_dir cannot be searched. With LogisticModel, these can: "),
        ("max_steps=int:1,9", "max_steps cannot be searched"),
        ("num_classes=int:1,9", "num_classes cannot be searched"),
        ("dbof_cluster_size=int:1,9", "dbof_cluster_size cannot be searched"),
        ("l2_penalt=log:1e-8,1", "cannot be searched. Did you mean l2_penalty"),
    ],
)
def test_bad_ranges_are_refused_before_anything_is_created(run, tmp_path, text, message):
    with pytest.raises(InputError, match=f"^--search {re.escape(text)}: .*{message}"):
        run(f"--search={text}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((RATES, RATES), "--search names base_learning_rate more than once"),
        ((RATES, "--sampler=grid"), "--sampler=grid needs choice: in every --search"),
        ((RATES, "--train_dir=run"), "unknown flag --train_dir"),
        ((RATES, "--keep_best=gap"), "unknown flag --keep_best"),
        ((RATES, "--num_trials=0"), "--num_trials must be above 0"),
        ((RATES, "--base_learning_rat=1"), "unknown flag --base_learning_rat. Did you mean"),
        ((RATES, "--search_dir=gs://b/runs"), "--search_dir must be a directory of this machine"),
        ((RATES, "--eval_data_pattern=/none/*"), "no file"),
        ((), "--search must be given"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_created(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(*flags)
    assert not (tmp_path / "runs").exists()


def test_without_optuna_the_command_that_installs_it_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"search\.py needs Optuna: .*pip install '\.\[search\]'"):
        run(RATES)
