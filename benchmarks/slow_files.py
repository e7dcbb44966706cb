"""Measures how long evaluation and inference wait for files that are slow to open.

    python benchmarks/slow_files.py

Files on object storage take a fraction of a second to open. This program delays the opening of
local files, and predicts by waiting. benchmarks/README.md explains the output.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import files
import inference
import input as full_size_input
import losses
from evaluation import evaluate
from options import Options, option
from run_config import DataConfig

DATA = DataConfig(
    frame_level=True,
    feature_names=tuple(full_size_input.FEATURES),
    feature_sizes=tuple(full_size_input.FEATURES.values()),
    num_classes=full_size_input.NUM_CLASSES,
    max_frames=full_size_input.MAX_FRAMES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowFilesOptions(Options):
    """Options of this program."""

    num_files: int = option(30, "Files to write.", group="data", above=0)
    num_videos: int = option(1200, "Videos in all files together.", group="data", above=0)
    seconds_to_open: float = option(0.25, "Delay of opening a file.", group="data", at_least=0)
    seconds_to_predict: float = option(
        7.5, "Time to predict all videos.", group="prediction", at_least=0
    )
    batch_size: int = option(80, "Videos per batch.", group="prediction", above=0)
    rounds: int = option(3, "Measurements of each program.", group="output", above=0)


class WaitingPredictor:
    """Predicts by waiting, with the interface of `predictor.Predictor` that the programs use."""

    data = DATA
    label_loss = losses.CrossEntropyLoss()
    steps = (0,)

    def __init__(self, seconds_per_video):
        self._seconds_per_video = seconds_per_video
        self._row = np.linspace(0.0, 1.0, DATA.num_classes, dtype=np.float32)

    def predict(self, inputs):
        """Returns the same probabilities for every video, `[B, C]`."""
        num_videos = len(inputs["num_frames"])
        time.sleep(num_videos * self._seconds_per_video)
        return np.tile(self._row, (num_videos, 1))

    def identity(self):
        """Returns nothing: all predictions are the same."""
        return {}


@contextlib.contextmanager
def slow_to_open(paths, seconds):
    """Delays the opening of some files for reading."""
    open_binary = files.open_binary

    def open_slowly(path, *arguments, **options):
        if path in paths:
            time.sleep(seconds)
        return open_binary(path, *arguments, **options)

    files.open_binary = open_slowly
    try:
        yield
    finally:
        files.open_binary = open_binary


def measure(work):
    """Returns wall time and CPU time of a function, in seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu_start


def ways(paths, options, output_file):
    """Returns the functions to measure by name."""
    predictor = WaitingPredictor(options.seconds_to_predict / options.num_videos)

    def read():
        for _ in DATA.reader(paths).batches(options.batch_size):
            pass

    def predict():
        time.sleep(options.seconds_to_predict)

    def evaluate_all():
        evaluate(predictor, DATA.reader(paths), batch_size=options.batch_size)

    def write_all():
        reader = DATA.reader(paths, with_labels=False)
        inference.write_predictions(predictor, reader, output_file, batch_size=options.batch_size)

    return {
        "reading": read,
        "predicting": predict,
        "eval.py": evaluate_all,
        "inference.py": write_all,
    }


def main(options: SlowFilesOptions):
    """Runs the program."""
    with tempfile.TemporaryDirectory() as folder:
        pattern = full_size_input.write_records(folder, options.num_videos, options.num_files)
        paths = files.expand_patterns(pattern)
        works = ways(paths, options, os.path.join(folder, "predictions.csv"))
        for path in paths:  # Brings the files into memory.
            pathlib.Path(path).read_bytes()
        seconds = {name: [] for name in works}
        with slow_to_open(frozenset(paths), options.seconds_to_open):
            for _ in range(options.rounds):
                for name, work in works.items():
                    seconds[name].append(measure(work))
    print(f"{'':14}{'seconds':>8}{'CPU':>8}{'ratio':>8}  (min to max)")
    for name, found in seconds.items():
        bounds = [
            max(reading[0], predicting[0])
            for reading, predicting in zip(seconds["reading"], seconds["predicting"], strict=True)
        ]
        ratios = sorted(wall / bound for (wall, _), bound in zip(found, bounds, strict=True))
        wall, cpu = np.median(found, axis=0)
        print(
            f"{name:14}{wall:8.1f}{cpu:8.1f}{np.median(ratios):8.2f}"
            f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    print(
        f"\nRatio of time to the larger of reading and predicting. {options.num_files} files, "
        f"{options.num_videos} videos, {options.seconds_to_open} s to open a file, peak memory "
        f"{comparison.peak_memory_gib():.2f} GiB"
    )


if __name__ == "__main__":
    program.run(main)
