r"""Measures the GAP of trained models with every frame once, and with samplings of the frames.

    python benchmarks/sampling_gap.py --train_dirs=run \
        --eval_data_pattern='data/validate*.tfrecord'

Prints, for each run and number of samplings, the mean and the standard deviation of GAP over the
seeds. Samplings are those of every prediction: a video chooses one of a fixed number of sets of
random numbers. --independent draws new numbers for every video.
"""

import dataclasses
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import checkpoints
import eval_util
from options import option
from predictor import load_configs
from run_config import ReadOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingGapOptions(ReadOptions):
    """Options of this program."""

    train_dirs: tuple[str, ...] = option(
        help="Directories of training runs of frame-level models.", group="model", required=True
    )
    eval_data_pattern: str = option(
        help="Globs of records with labels, comma-separated; quote them.",
        group="data",
        required=True,
    )
    num_samplings: tuple[int, ...] = option(
        (0, 1, 5, 10),
        "Numbers of samplings to average over; 0 uses every frame once.",
        group="prediction",
        at_least=0,
    )
    num_seeds: int = option(20, "Number of seeds of the samplings.", group="prediction", above=0)
    independent: bool = option(
        False, "Draw new random numbers for every video.", group="prediction"
    )
    batch_size: int = option(250, "Videos per batch.", group="prediction", above=0)


def gap(model, batches, num_samplings, seed, independent=False):
    """Returns the GAP of a model.

    Args:
        model: frame-level model.
        batches: list of `readers.Batch`.
        num_samplings: int. Samplings per video; 0 for every frame once.
        seed: int. Seed of the samplings.
        independent: bool. Whether to draw new random numbers for every video.
    """
    model.sampling_seed.state.assign([seed, 0])
    seed = None if independent else seed
    predictions = [
        np.asarray(model(batch.inputs, num_samplings=num_samplings, seed=seed)) for batch in batches
    ]
    labels = np.concatenate([batch.labels for batch in batches])
    return eval_util.calculate_gap(np.concatenate(predictions), labels)


def main(options: SamplingGapOptions):
    """Runs the program."""
    for train_dir, config in zip(options.train_dirs, load_configs(options.train_dirs), strict=True):
        model = checkpoints.load_model(train_dir)
        reader = config.data.reader(options.eval_data_pattern, options)
        batches = list(reader.batches(options.batch_size))
        for number in options.num_samplings:
            seeds = range(options.num_seeds if number else 1)
            gaps = [gap(model, batches, number, seed, options.independent) for seed in seeds]
            print(f"{train_dir} | {number} | {np.mean(gaps):.4f} ± {np.std(gaps):.4f}", flush=True)


if __name__ == "__main__":
    program.run(main)
