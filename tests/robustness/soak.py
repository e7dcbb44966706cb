"""Trains for many small steps while eval.py runs, and watches memory, threads and open files.

    python tests/robustness/soak.py --steps=20000 --checkpoints=50

Training and evaluation are two processes, as users run them. Both are measured every second. After
a warm-up of a fifth of the time, neither may grow by more than 2% in memory or gain threads or open
files.
"""

import os
import pathlib
import tempfile
import time

import harness

# isort: split
import numpy as np
from absl import app, flags

import checkpoints
import processes
import programs
import sample_records

WARM_UP = 0.2
MAX_GROWTH = 0.02


def measure(pid):
    """Returns resident KiB, threads and open files of a process; None if it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        if "VmRSS" not in status:
            return None
        memory, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
        return memory, threads, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def growth(samples):
    """Returns the growth after the warm-up: memory as a fraction, threads and files as numbers.

    Compares the first fifth of the remaining samples with the last. Memory varies within a step, so
    its maximum counts; reading uses threads and files for a moment, so their minimum counts.
    """
    samples = np.array(samples)[int(len(samples) * WARM_UP) :]
    fifth = max(1, len(samples) // 5)
    first, last = samples[:fifth], samples[-fifth:]
    memory = last[:, 0].max() / first[:, 0].max() - 1.0
    threads, opened = last[:, 1:].min(axis=0) - first[:, 1:].min(axis=0)
    return memory, int(threads), int(opened)


def run(steps, num_checkpoints):
    """Trains and evaluates, and yields a line for each process.

    Raises:
        harness.FaultError: if one of them fails or grows.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data = sample_records.write_frame_files(folder, 4, 40)
        train_dir = folder / "run"
        of_run, period = f"--train_dir={train_dir}", steps // num_checkpoints
        duration = (f"--num_epochs={steps}", f"--max_steps={steps}")
        training_flags = (*programs.SMALL_DBOF, *duration, f"--export_model_steps={period}")
        training = processes.start(
            "train", [of_run, f"--train_data_pattern={data}", *training_flags]
        )
        evaluation = processes.start("eval", [of_run, f"--eval_data_pattern={data}"])
        watched = {"train": training, "eval": evaluation}
        samples = {name: [] for name in watched}
        try:
            while training.is_alive():
                for name, process in watched.items():
                    if (found := measure(process.pid)) is not None:
                        samples[name].append(found)
                harness.check(evaluation.is_alive(), "the evaluation ended")
                time.sleep(1.0)
        finally:
            training.kill()
            evaluation.kill()
            training.join()
            evaluation.join()
        harness.check(training.exitcode == 0, f"training ended with {training.exitcode}")
        found = checkpoints.step_of(checkpoints.find(str(train_dir)))
        harness.check(found == steps, f"training ended at step {found}")
        evaluated = len(programs.metrics_of(train_dir))
        for name in watched:
            memory, threads, opened = growth(samples[name])
            yield (
                f"{name}: {steps} steps, {evaluated} evaluations, {len(samples[name])} samples: "
                f"memory {samples[name][-1][0] / 1024:.0f} MiB, {memory:+.2%}; threads "
                f"{threads:+d}; open files {opened:+d}"
            )
            harness.check(memory < MAX_GROWTH, f"{name} grew by {memory:.2%}")
            harness.check(threads <= 0, f"{name} has {threads} threads more")
            harness.check(opened <= 0, f"{name} has {opened} open files more")


def main(_):
    for line in run(flags.FLAGS.steps, flags.FLAGS.checkpoints):
        print(line, flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 20_000, "Steps.")
    flags.DEFINE_integer("checkpoints", 50, "Checkpoints to save and evaluate.")
    app.run(main)
