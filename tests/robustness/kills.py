"""Kills the programs at random moments, and checks what they leave and that they go on.

    python tests/robustness/kills.py --kills=20
    python tests/robustness/kills.py --kills=20 --programs=train

Half of the moments are drawn from the time that the program takes, the others come when a file is
being written. After each kill the same command runs again, and nothing is cleaned between.

train: killed again and again in one directory, it must go on each time and end with all variables
equal, bit by bit, to those of a run that nobody disturbed, and leave the same files.
The others: a killed run leaves no output, or the whole; the second run succeeds and gives the
output that an undisturbed run gives.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time

import harness

# isort: split
import numpy as np
import tensorflow as tf
from absl import app, flags

import checkpoints
import processes
import programs
import sample_records

# What files are called while they are written.
UNFINISHED = ("_temp", ".tmp", ".partial", ".parts")


def start_and_kill(name, arguments, rng, seconds, folder):
    """Starts a program and kills it at some moment; returns whether it was still running.

    Args:
        name: str. The program.
        arguments: list of str.
        rng: `random.Random`.
        seconds: float. How long it takes.
        folder: `pathlib.Path`. Where it writes.
    """
    process = processes.start(name, arguments)
    process.join(rng.uniform(0.0, seconds))
    if rng.random() < 0.5:
        while process.is_alive() and not unfinished(folder):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.005))
    process.kill()
    process.join()
    harness.check(process.exitcode in (0, -signal.SIGKILL), f"{name}: {process.exitcode}")
    return process.exitcode == -signal.SIGKILL


def unfinished(folder):
    """Names of files in a folder that are being written, or were when their writer was killed."""
    return [name for name in os.listdir(folder) if any(sign in name for sign in UNFINISHED)]


def variables_of(train_dir):
    """All that the newest checkpoint of a directory holds, a dict from name to array."""
    reader = tf.train.load_checkpoint(checkpoints.find(str(train_dir)))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name)
        for name in names
        # The count of saves differs, and the graph is that of Python objects.
        if not name.startswith(("save_counter", "_CHECKPOINTABLE"))
    }


def kill_train(folder, data, kills, rng):
    """Kills training again and again; returns how many trainings were finished in spite of it."""
    arguments = [
        f"--train_data_pattern={data}",
        *programs.SMALL_DBOF,
        *("--num_epochs=4", "--export_model_steps=3", "--keep_checkpoints=2"),
    ]
    undisturbed = folder / "undisturbed"
    seconds = processes.succeed("train", [f"--train_dir={undisturbed}", *arguments])
    expected, files_expected = variables_of(undisturbed), sorted(os.listdir(undisturbed))
    runs = killed = while_writing = 0
    while killed < kills:
        train_dir = folder / f"run{runs}"
        train_dir.mkdir()
        command = [f"--train_dir={train_dir}", *arguments]
        while killed < kills and start_and_kill("train", command, rng, seconds, train_dir):
            killed += 1
            while_writing += bool(unfinished(train_dir))
        processes.succeed("train", command)
        found = variables_of(train_dir)
        harness.check(found.keys() == expected.keys(), "other variables")
        for name, value in expected.items():
            harness.check(np.array_equal(found[name], value), f"{name} differs")
        files_found = sorted(os.listdir(train_dir))
        harness.check(files_found == files_expected, f"{files_found} instead of {files_expected}")
        runs += 1
    return f"{killed} of {kills} go on, {while_writing} of them were saving; {runs} runs bit-equal"


def kill_program(name, arguments, folder, output, content, kills, rng):
    """Kills a program that writes `output` in `folder`; returns what was left, in words.

    Args:
        name: str. The program.
        arguments: list of str.
        folder: `pathlib.Path`.
        output: `pathlib.Path` of what it writes.
        content: function of a path to what must be equal for two outputs to be equal.
        kills: int.
        rng: `random.Random`.
    """
    seconds = processes.succeed(name, arguments)
    expected = content(output)
    killed = whole = while_writing = 0
    while killed < kills:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        killed += start_and_kill(name, arguments, rng, seconds, folder)
        while_writing += bool(unfinished(folder))
        if output.exists():
            harness.check(content(output) == expected, f"a part of {output} was left")
            whole += 1
            continue
        processes.succeed(name, arguments)
        harness.check(content(output) == expected, f"{output} is another after a kill")
        harness.check(not unfinished(folder), f"{unfinished(folder)} are left")
    return (
        f"{killed} of {kills} left nothing or all ({while_writing} were writing, {whole} outputs "
        "were whole); a second run succeeds"
    )


def metrics(path):
    speed = "videos_per_second"
    return [{**entry, speed: None} for entry in json.loads(path.read_text())]


def exported(path):
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    return names, json.loads((path / "manifest.json").read_text())["digest"]


def run(names, kills, seed=0):
    """Kills programs and yields a line for each.

    Raises:
        harness.FaultError: if something is not as it must be.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data = sample_records.write_frame_files(folder, 4, 40)
        trained, output = folder / "trained", folder / "output"
        output.mkdir()
        if set(names) - {"train"}:
            processes.succeed(
                "train",
                [
                    *(f"--train_dir={trained}", f"--train_data_pattern={data}"),
                    *programs.SMALL_DBOF,
                    *("--num_epochs=2", "--export_model_steps=10"),
                ],
            )
        of_run, evaluated = f"--train_dir={trained}", trained / "eval"
        commands = {
            "average_checkpoints": (
                [of_run, f"--output_dir={output}/averaged", f"--train_data_pattern={data}"],
                output / "averaged",
                lambda path: json.loads((path / "averaged.json").read_text())["digest"],
            ),
            "export_model": ([of_run, f"--output_dir={output}/model"], output / "model", exported),
            "inference": (
                [of_run, f"--input_data_pattern={data}", f"--output_file={output}/a.csv"],
                output / "a.csv",
                pathlib.Path.read_bytes,
            ),
            "eval": (
                [of_run, f"--eval_data_pattern={data}", "--run_once"],
                evaluated / "metrics.json",
                metrics,
            ),
        }
        for name in names:
            if name == "train":
                yield f"kill -9 of train: {kill_train(folder, data, kills, rng)}"
                continue
            arguments, path, content = commands[name]
            path.parent.mkdir(exist_ok=True)
            line = kill_program(name, arguments, path.parent, path, content, kills, rng)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield f"kill -9 of {name}: {line}"


def main(_):
    for line in run(flags.FLAGS.programs, flags.FLAGS.kills, flags.FLAGS.kills_seed):
        print(line, flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "How often to kill each program.")
    flags.DEFINE_integer("kills_seed", 0, "Of the moments.")
    flags.DEFINE_list("programs", list(processes.PROGRAMS), "Programs to kill.")
    app.run(main)
