"""Runs the programs on small data."""

import csv
import functools
import gzip
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

import program

import numpy as np

import checkpoints

ROOT = pathlib.Path(program.__file__).parent
SMALL_DATA = ("--num_classes=10", "--feature_sizes=8,4")
SMALL_TRAINING = ("--base_learning_rate=0.01", "--batch_size=16", *SMALL_DATA)
SMALL_DBOF = (
    *("--model=DbofModel", "--dbof_cluster_size=16", "--dbof_hidden_size=8"),
    *SMALL_TRAINING,
)
SMALL_LOGISTIC = ("--model=LogisticModel", *SMALL_TRAINING)
# Trains in a quarter of the time: logistic regression on the mean of sampled frames.
SMALL_MEAN = ("--model=FrameLevelLogisticModel", "--iterations=4", *SMALL_TRAINING)
SMALL_NETVLAD = (
    *("--model=LFNLNetVLADModel", "--iterations=6", "--netvlad_cluster_size=4,3"),
    *("--nonlocal_embedding=4", "--netvlad_hidden_size=16", "--moe_num_mixtures=2"),
    *("--ema_decay=0.9", *SMALL_TRAINING),
)


def run(name, *arguments):
    """Runs a program's main in this process, with its flags parsed as on the command line."""
    return program.call(importlib.import_module(name).main, [*map(str, arguments)])


def options(name, *arguments):
    """Returns the options of a program, parsed as on the command line, by parameter of main."""
    return program.parse_options(importlib.import_module(name).main, [*map(str, arguments)])


def run_command(*arguments, cwd=ROOT):
    """Runs `python arguments...` as a user would."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def train_small(flags, train_dir, data, *more):
    """Trains a small model, one of the above."""
    run("train", f"--train_dir={train_dir}", f"--train_data_pattern={data}", *flags, *more)


run_small = functools.partial(train_small, SMALL_DBOF)
# Two weights of video-level data, which compile in a moment.
train_logistic = functools.partial(train_small, SMALL_LOGISTIC)
train_mean = functools.partial(train_small, SMALL_MEAN)
train_netvlad = functools.partial(train_small, SMALL_NETVLAD)


def evaluate(*arguments):
    """Returns the metrics that eval.py computes with the given flags, a dict."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "metrics.json")
        run("eval", *arguments, "--run_once", f"--metrics_json={path}")
        return json.loads(path.read_text())


def predictions(path, num_classes, **options):
    """Runs inference.py and returns an array of class probabilities by video."""
    given = [f"--{name}={value}" for name, value in options.items()]
    run("inference", *given, f"--output_file={path}", f"--top_k={num_classes}")
    found = {}
    for video, pairs in prediction_rows(path)[1:]:
        values = pairs.split()
        found[video] = np.zeros(num_classes)
        found[video][[int(label) for label in values[::2]]] = [float(v) for v in values[1::2]]
    return found


def weights_of(train_dir, checkpoint=None):
    """Returns the weights in a checkpoint, a dict from path to array."""
    model = checkpoints.load_model(str(train_dir), checkpoint)
    return {path: weight.numpy() for path, weight in checkpoints.weights(model).items()}


def metrics_of(train_dir):
    """Returns the evaluations of a run, one dict per step."""
    return json.loads((train_dir / "eval" / "metrics.json").read_text())


def prediction_rows(path):
    """Returns the rows of a prediction file, the header first."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return list(csv.reader(text.decode().splitlines()))
