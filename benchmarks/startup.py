"""Measures what the programs compute before training runs, or the first prediction is there.

    python benchmarks/startup.py

Each program is a process of its own that trains or predicts for a batch or two on generated data.
benchmarks/README.md explains the output.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import make_sample_data
from options import Options, option

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("import", "data", "building", "restoring", "tracing", "batches", "rest")
# Train, and train with the compiled update of an earlier run, which TensorFlow keeps on disk.
TRAIN, TRAIN_AGAIN = "train.py", "train.py, update cached"
_PLAIN_OF = {TRAIN: "training step", TRAIN_AGAIN: "training step"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartupOptions(Options):
    """Options of this program."""

    recipe: str = option(
        str(ROOT / "recipes/small_lfnl_netvlad.flags"), "Flag file of train.py.", group="model"
    )
    num_videos: int = option(300, "Videos to train on; as many to predict.", group="data", above=0)
    rounds: int = option(3, "Measurements of each program.", group="output", above=0)
    format: str = option("table", "Output format.", group="output", choices=("table", "json"))


def parts_of(name, flags, environment):
    """Returns the CPU seconds of the parts of a program, from a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/program_parts.py"), name, *flags]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def commands(folder, options):
    """Returns `(program, flags, environment)` of everything to measure, by name."""
    run, data = f"{folder}/run", f"{folder}/data"
    recipe = f"--flagfile={options.recipe}"
    train = (
        recipe,
        f"--train_data_pattern={data}/train*.tfrecord",
        f"--train_dir={run}",
        "--start_new_model",
        "--max_steps=1",
    )
    predict = (f"--train_dir={run}",)
    cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={folder}/cache"}
    sizes = ("--num_classes=120", "--feature_sizes=64,16", "--max_frames=60")
    return {
        "plain": ("plain", (recipe, *sizes), {}),
        TRAIN: ("train", train, {}),
        TRAIN_AGAIN: ("train", train, cache),
        "eval.py": (
            "eval",
            (*predict, f"--eval_data_pattern={data}/validate*.tfrecord", "--run_once"),
            {},
        ),
        "inference.py": (
            "inference",
            (
                *predict,
                f"--input_data_pattern={data}/validate*.tfrecord",
                f"--output_file={folder}/predictions.csv",
            ),
            {},
        ),
    }


def measure(options):
    """Returns the seconds of the parts in each round, a list of dicts by name."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--output_dir={folder}/data",
            f"--num_videos={options.num_videos}",
            f"--num_eval_videos={options.num_videos}",
            "--num_classes=120",
            "--feature_sizes=64,16",
            "--min_frames=20",
            "--max_frames=60",
        )
        program.call(make_sample_data.main, flags)
        ways = commands(folder, options)
        parts_of(*ways[TRAIN_AGAIN])  # Fills the cache.
        return [
            {name: parts_of(*command) for name, command in ways.items()}
            for _ in range(options.rounds)
        ]


def summarize(rounds):
    """Returns median seconds by part, and the ratio to the plain model, by name of the program."""
    summary = {}
    for name in (name for name in rounds[0] if name != "plain"):
        totals = [sum(found[name].values()) for found in rounds]
        plain = [
            found["plain"]["import"] + found["plain"][_PLAIN_OF.get(name, "prediction")]
            for found in rounds
        ]
        summary[name] = {
            **{part: _median(found[name].get(part, 0.0) for found in rounds) for part in PARTS},
            "total": _median(totals),
            "plain": _median(plain),
            "ratio": _median(a / b for a, b in zip(totals, plain, strict=True)),
        }
    return summary


def _median(values):
    return round(float(np.median(list(values))), 3)


def as_table(summary):
    """Formats the summary for a terminal."""
    columns = (*PARTS, "total", "plain", "ratio")
    width = max(map(len, summary)) + 2
    lines = ["".join([" " * width, *(f"{column:>10}" for column in columns)])]
    for name, row in summary.items():
        lines.append("".join([f"{name:{width}}", *(f"{row[column]:10.2f}" for column in columns)]))
    return "\n".join(lines)


def main(options: StartupOptions):
    """Runs the program."""
    summary = summarize(measure(options))
    result = {"results": summary, "conditions": comparison.environment()}
    print(json.dumps(result, indent=2) if options.format == "json" else as_table(summary))
    if options.format == "table":
        print(f"\nCPU seconds, medians of {options.rounds} rounds. {comparison.environment()}")


if __name__ == "__main__":
    program.run(main)
