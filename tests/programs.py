"""Runs the programs on small data."""

import csv
import gzip
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

import program

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import metadata as hparams_metadata

import checkpoints

ROOT = pathlib.Path(program.__file__).parent
SMALL_DATA = ("--num_classes=10", "--feature_sizes=8,4")
_SMALL = ("--base_learning_rate=0.01", "--batch_size=16", *SMALL_DATA)
SMALL_DBOF = ("--model=DbofModel", "--dbof_cluster_size=16", "--dbof_hidden_size=8", *_SMALL)
SMALL_LOGISTIC = ("--model=LogisticModel", *_SMALL)
# Trains in a quarter of the time: logistic regression on the mean of sampled frames.
SMALL_MEAN = ("--model=FrameLevelLogisticModel", "--iterations=4", *_SMALL)
SMALL_NETVLAD = (
    "--model=LFNLNetVLADModel",
    "--iterations=6",
    "--netvlad_cluster_size=4,3",
    "--nonlocal_embedding=4",
    "--netvlad_hidden_size=16",
    "--moe_num_mixtures=2",
    "--ema_decay=0.9",
    *_SMALL,
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


def train(train_dir, data, *flags):
    """Runs train.py and returns the train directory."""
    run("train", f"--train_dir={train_dir}", f"--train_data_pattern={data}", *flags)
    return train_dir


def run_small(train_dir, data, *more):
    """Trains a small DbofModel."""
    return train(train_dir, data, *SMALL_DBOF, *more)


def train_logistic(train_dir, data, *more):
    """Trains a LogisticModel on video-level data: two weights, which compile in a moment."""
    return train(train_dir, data, *SMALL_LOGISTIC, *more)


def train_mean(train_dir, data, *more):
    """Trains a small FrameLevelLogisticModel, for tests that any model passes."""
    return train(train_dir, data, *SMALL_MEAN, *more)


def evaluate(*arguments):
    """Returns the metrics that eval.py computes with the given flags, a dict."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "metrics.json")
        run("eval", *arguments, "--run_once", f"--metrics_json={path}")
        return json.loads(path.read_text())


def predict(train_dir, data, output, *more):
    """Runs inference.py on a run."""
    given = (f"--train_dir={train_dir}", f"--input_data_pattern={data}", f"--output_file={output}")
    run("inference", *given, *more)


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


def tensorboard_tags(folder):
    """Returns the names of the curves in a directory of TensorBoard logs, a set."""
    return {value.tag for value in _summary_values(folder)}


def tensorboard_settings(folder):
    """Returns what each session logged for the HParams tab in a directory, a list of dicts."""
    sessions = [
        hparams_metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
        for value in _summary_values(folder)
        if value.tag == hparams_metadata.SESSION_START_INFO_TAG
    ]
    return [
        {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()}
        for session in sessions
    ]


def _summary_values(folder):
    for path in folder.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            yield from event.summary.value


def prediction_rows(path):
    """Returns the rows of a prediction file, the header first."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return list(csv.reader(text.decode().splitlines()))
