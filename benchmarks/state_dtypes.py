"""Measures what storing the optimizer's moments in bfloat16 does to learning.

    python benchmarks/state_dtypes.py

Trains small models on generated videos (docs/sample_data.md), with each seed once for every
storage: float32; bfloat16, rounded stochastically, as --optimizer_state_dtype=bfloat16 does; and
bfloat16, rounded to nearest. For each tenth of a run, prints the mean training loss in float32, its
deviation between the seeds, and the differences of the other storages, as mean and range over the
seeds; and the same for the GAP of the last weights on test videos.
"""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import keras
import numpy as np

import distribution
import keras_metrics
import make_sample_data
import optimizer_state
import train
from options import Options, option
from run_config import RunConfig, TrainOptions
from utils import aligned_table

MODELS = {
    "LFNL-NetVLAD": {
        "model": "LFNLNetVLADModel",
        "hyperparameters": {
            "iterations": 16,
            "netvlad_cluster_size": "8,4",
            "netvlad_hidden_size": 128,
            "nonlocal_embedding": "8,4",
            "moe_num_mixtures": 2,
        },
        "base_learning_rate": 0.005,
    },
    "MoE on the mean": {
        "model": "FrameLevelLogisticModel",
        "hyperparameters": {"iterations": 0, "video_level_classifier_model": "MoeModel"},
        "base_learning_rate": 0.02,
    },
}
# The dtype of the moments, and what rounds them.
STORAGES = {
    "float32": ("float32", contextlib.nullcontext),
    "stochastic": ("bfloat16", contextlib.nullcontext),
    "nearest": (
        "bfloat16",
        lambda: mock.patch.object(
            optimizer_state,
            "stochastically_rounded",
            lambda values, *_: keras.ops.cast(values, "bfloat16"),
        ),
    ),
}
NUM_CLASSES, FEATURE_SIZES, BATCH_SIZE = 160, (64, 16), 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveOptions(Options):
    """Options of this program."""

    models: tuple[str, ...] = option(
        tuple(MODELS), "Models to train.", group="model", choices=tuple(MODELS)
    )
    optimizer: str = option("Adam", "Keras optimizer.", group="optimizer")
    num_steps: int = option(2000, "Steps of a run.", group="training", at_least=10)
    num_videos: int = option(8000, "Training videos.", group="data", at_least=64)
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of training.", group="training")


def make_data(folder, num_videos):
    """Writes the records of training and test videos, the same for all runs."""
    program.call(
        make_sample_data.main,
        [
            f"--output_dir={folder}",
            f"--num_videos={num_videos}",
            f"--num_eval_videos={num_videos // 4}",
            f"--num_classes={NUM_CLASSES}",
            f"--feature_sizes={','.join(map(str, FEATURE_SIZES))}",
            *("--min_frames=20", "--max_frames=48"),
        ],
    )


def run_config(name, storage, seed, options):
    """Returns the `RunConfig` of a run, whose learning rate decays eight times."""
    return RunConfig(
        **MODELS[name],
        optimizer=options.optimizer,
        optimizer_state_dtype=STORAGES[storage][0],
        num_classes=NUM_CLASSES,
        feature_sizes=FEATURE_SIZES,
        max_frames=48,
        batch_size=BATCH_SIZE,
        learning_rate_decay=0.9,
        learning_rate_decay_examples=options.num_steps * BATCH_SIZE // 8,
        seed=seed,
    )


def train_run(folder, config, num_steps):
    """Trains a model; returns its mean loss in each tenth of the run, and its GAP."""
    keras.backend.clear_session()  # Frees the models of earlier runs.
    keras.utils.set_random_seed(config.seed)
    devices = distribution.choose("one_device")
    settings = TrainOptions(train_data_pattern="", train_dir="", compute_dtype="float32")
    trainer = train.make_trainer(config, devices.strategy, settings)
    reader = config.data.reader(f"{folder}/train*.tfrecord")
    batches = devices.batches(
        reader, config.batch_size, num_epochs=None, shuffle=True, seed=config.seed
    )
    losses = []
    for _ in range(10):
        trainer.run(batches, num_steps // 10)
        losses.append(trainer.pop_loss_sum() / (num_steps // 10))
    trainer.check_finite()
    return np.array(losses), gap_of(trainer.model, config.data.reader(f"{folder}/test*.tfrecord"))


def gap_of(model, reader):
    """Returns the GAP of a model on the videos of a reader."""
    gap = keras_metrics.GlobalAveragePrecision()
    for inputs, labels in reader.dataset(256):
        gap.update_state(labels, model(inputs))
    return float(gap.result())


def compare(folder, name, options):
    """Trains all storages with all seeds; returns the rows of the table of a model."""
    runs = {}
    for storage, (_, rounding) in STORAGES.items():
        with rounding():
            found = [
                train_run(folder, run_config(name, storage, seed, options), options.num_steps)
                for seed in options.seeds
            ]
        curves, gaps = zip(*found, strict=True)
        runs[storage] = np.column_stack([curves, gaps])  # [seeds, 11]
    exact, others = runs["float32"], [runs[storage] for storage in list(STORAGES)[1:]]
    points = [f"loss to step {options.num_steps // 10 * n}" for n in range(1, 11)]
    return [
        (
            f"{name}, {point}",
            f"{exact[:, n].mean():.4f}",
            f"{exact[:, n].std(ddof=1) / exact[:, n].mean():.2%}" if len(exact) > 1 else "",
            *(difference(other[:, n] / exact[:, n] - 1) for other in others),
        )
        for n, point in enumerate([*points, "GAP"])
    ]


def difference(values):
    """Formats relative differences as their mean and range over the seeds."""
    return f"{values.mean():+.2%} ({values.min():+.2%} to {values.max():+.2%})"


def main(options: CurveOptions):
    """Runs the program."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(folder, options.num_videos)
        rows = [row for name in options.models for row in compare(folder, name, options)]
    print(aligned_table(("", "float32", "deviation", *list(STORAGES)[1:]), rows))


if __name__ == "__main__":
    program.run(main)
