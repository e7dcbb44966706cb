r"""Measures what the weights of another run are worth to a run on few videos.

    python benchmarks/fine_tuning.py --output_dir=/tmp/fine_tuning

For each seed, generates a world (docs/sample_data.md) and trains a `DbofModel` on many videos with
the labels of half of its classes. Then trains on few other videos, 5 % as many, with a vocabulary
that shares half of its classes with the first: from random weights, and from those of the first
run, without and with the part of its classifier for the shared classes. Prints the GAP of each on
test videos.
"""

import dataclasses
import itertools
import pathlib
import sys

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import evaluation
import train
from options import Options, option
from predictor import Predictor
from record_writer import serialize_frames
from run_config import RunConfig, TrainOptions
from sample_world import Generator, World
from utils import aligned_table

SIZES = (64, 16)
MODEL = {"dbof_cluster_size": 256, "dbof_hidden_size": 64, "iterations": 20}
# Settings of the runs on few videos.
STARTS = {
    "random weights": {},
    "other run, without classifier": {"init_exclude": "^classifier"},
    "other run": {},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuningOptions(Options):
    """Options of this program."""

    output_dir: str = option(
        help="Directory for records and runs; it must not exist yet.", group="output", required=True
    )
    num_videos: int = option(4000, "Videos of the first run.", group="data", at_least=20)
    num_classes: int = option(
        60, "Classes of the first run; a third as many in the others.", group="data", at_least=3
    )
    num_epochs: int = option(12, "Epochs of the first run.", group="training", above=0)
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of data and runs.", group="data")


def write_records(path, videos, new_labels):
    """Writes the videos that show a class whose new label is known.

    Args:
        path: file to write.
        videos: `sample_world.Video`s.
        new_labels: dict from label to the label to write.
    """
    with tf.io.TFRecordWriter(path) as writer:
        for video in videos:
            labels = sorted(new_labels[label] for label in video.labels if label in new_labels)
            if labels:
                writer.write(serialize_frames(video.id, labels, video.features))


def make_data(folder, options, seed):
    """Writes old.tfrecord, few.tfrecord and test.tfrecord.

    Classes with even numbers are those of the first run. The most frequent, even and odd, are those
    of the runs on few videos.
    """
    world = World(seed, 2 * options.num_classes, SIZES)
    generator = Generator(world, seed, ("rgb", "audio"), 8, 40)
    old = {2 * number: number for number in range(options.num_classes)}
    new = {label: label for label in range(options.num_classes // 3)}
    num_few = options.num_videos // 20
    for name, split, count, labels in (
        ("old", "train", options.num_videos, old),
        ("few", "validate", num_few, new),
        ("test", "test", 5 * num_few, new),
    ):
        videos = itertools.islice(generator.videos(split), count)
        write_records(str(folder / f"{name}.tfrecord"), videos, labels)


def train_run(folder, name, data, epochs, batch_size, **settings):
    """Trains a model and returns its train directory."""
    config = RunConfig(
        "DbofModel",
        hyperparameters=MODEL,
        feature_sizes=SIZES,
        base_learning_rate=0.01,
        batch_size=batch_size,
        **settings,
    )
    options = TrainOptions(
        train_data_pattern=str(folder / data), train_dir=str(folder / name), num_epochs=epochs
    )
    train.train(config, options)
    return options.train_dir


def gap_on(path, train_dir):
    """Returns the GAP of a run on the videos of a file."""
    reader = RunConfig.load(train_dir).data.reader(str(path))
    predictor = Predictor([train_dir])
    predictor.restore()
    summary, _ = evaluation.evaluate(predictor, reader, batch_size=128)
    return summary["gap"]


def compare(folder, options, seed):
    """Returns the GAP of each of `STARTS` for one seed."""
    folder.mkdir(parents=True)
    make_data(folder, options, seed)
    settings = {"num_classes": options.num_classes, "seed": seed}
    first = train_run(folder, "first", "old.tfrecord", options.num_epochs, 64, **settings)
    gaps = []
    count = options.num_classes // 3
    shared = {str(label): str(label // 2) for label in range(0, count, 2)}
    for number, (name, start) in enumerate(STARTS.items()):
        settings = {"num_classes": count, "seed": seed, **start}
        if name != "random weights":
            settings |= {"init_from": first, "init_classes": shared}
        # Batches of a quarter of the size, because there are few.
        train_dir = train_run(folder, f"few_{number}", "few.tfrecord", 20, 16, **settings)
        gaps.append(gap_on(folder / "test.tfrecord", train_dir))
    return gaps


def main(options: FineTuningOptions):
    """Runs the program."""
    folder = pathlib.Path(options.output_dir)
    gaps = [compare(folder / str(seed), options, seed) for seed in options.seeds]
    rows = [
        (start, *(f"{gap:.3f}" for gap in found), f"{np.mean(found):.3f}")
        for start, found in zip(STARTS, zip(*gaps, strict=True), strict=True)
    ]
    print(aligned_table(("start", *(f"seed {seed}" for seed in options.seeds), "mean"), rows))


if __name__ == "__main__":
    program.run(main)
