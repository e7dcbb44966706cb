"""Prints the error of stored unit-length vectors, for several ways to store them.

    python benchmarks/storage_error.py
    python benchmarks/storage_error.py --sizes=1024 --num_frames=50000

Ranges of bytes are fitted to other vectors than those that are measured. benchmarks/README.md
explains the output.
"""

import dataclasses
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

from options import Options, option
from own_data import fitted_range
from own_data.feature_storage import relative_error
from quantization import YOUTUBE8M, FrameStorage
from utils import aligned_table


def unit_vectors(rng, count, size):
    """Returns normally distributed vectors, `[count, size]`, divided by their lengths."""
    vectors = rng.normal(size=(count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def storages(sample):
    """Returns ways to store vectors such as those of a sample, by name."""
    return {
        "uint8, -2 to 2 as in YouTube-8M": FrameStorage("uint8", YOUTUBE8M),
        "uint8, one fitted range": FrameStorage("uint8", fitted_range.fit(sample, False)),
        "uint8, a fitted range per dimension": FrameStorage("uint8", fitted_range.fit(sample)),
        "float16": FrameStorage("float16", None),
    }


def measure(num_frames, size, seed=0):
    """Returns the relative error and the share of clipped values, by storage."""
    rng = np.random.default_rng(seed)
    sample, others = (unit_vectors(rng, num_frames, size) for _ in range(2))
    return {
        name: (
            relative_error(others, storage),
            storage.quantization.num_clipped(others) / others.size if storage.quantization else 0,
        )
        for name, storage in storages(sample).items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageErrorOptions(Options):
    """Options of this program."""

    sizes: tuple[int, ...] = option((512, 768), "Sizes of the vectors.", group="data", above=0)
    num_frames: int = option(
        16384, "Vectors to fit ranges to, and as many to measure.", group="data", above=0
    )


def main(options: StorageErrorOptions):
    """Runs the program."""
    rows = [
        (f"{size} values as {name}", f"{error:.3%}", f"{clipped:.4%}")
        for size in options.sizes
        for name, (error, clipped) in measure(options.num_frames, size).items()
    ]
    print(aligned_table(("unit-length vectors", "relative error", "clipped"), rows))


if __name__ == "__main__":
    program.run(main)
