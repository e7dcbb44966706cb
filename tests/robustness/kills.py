"""Kills the programs at random moments and checks what they leave and that they recover.

    python tests/robustness/kills.py --kills=8 --stops=2
    python tests/robustness/kills.py --kills=8 --stops=0 --programs=train

Half of the moments are drawn from the duration of the program; the others come while it writes a
file. After each kill the same command runs again, without cleaning up.

train: killed repeatedly in one directory, it must resume each time, end with all variables equal,
bit by bit, to those of an undisturbed run, and leave the same files, evaluations and best
checkpoint.
The others: a killed run leaves no output or the complete output; the next run succeeds and writes
the output of an undisturbed run.

train and eval are also started as users start them, and stopped during their imports, the first
trace, the steps and the evaluation, by SIGKILL, SIGINT and SIGTERM: no traceback, and the same
promises. Finally, two evaluations of one directory run at once.
"""

import collections
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
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

# A small model with every kind of state: weights, batch normalization statistics, random states.
MODEL = (*programs.SMALL_MEAN, "--video_level_classifier_model=MoeModel", "--moe_prob_gating")
# Phases of a program: part of the log line that begins each, and the seconds that it may take.
PHASES = {
    "train": {
        "the start": ("", 5.0),
        "the first trace": ("the first step", 1.5),
        "the steps": ("step 10 |", 0.4),
    },
    "eval": {"the start": ("", 5.0), "evaluation": ("matrix products", 2.0)},
}
# Parts of the names of unfinished files.
UNFINISHED = ("_temp", ".tmp", ".partial", ".parts")


def start_and_kill(name, arguments, rng, seconds, folder):
    """Starts a program that takes some seconds and kills it at a random moment.

    Half of the moments are those at which `folder` has unfinished files. Returns whether the
    program was still running.
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
    """Returns the names of unfinished files in a folder."""
    return [name for name in os.listdir(folder) if any(part in name for part in UNFINISHED)]


def variables_of(train_dir):
    """Returns the content of the newest checkpoint of a directory, a dict from name to bytes."""
    reader = tf.train.load_checkpoint(checkpoints.find(str(train_dir)))
    names = reader.get_variable_to_shape_map()
    # The count of saves differs; the object graph holds no numbers.
    names = [name for name in names if not name.startswith(("save_counter", "_CHECKPOINTABLE"))]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}


def stop(name, arguments, phase, number, rng):
    """Starts a program as users do, and sends it a signal at a random moment of a phase.

    Returns the phase, or "their end" if the program had just finished.
    """
    first_line, seconds = PHASES[name][phase]
    seconds = rng.uniform(0.2, seconds)  # Before, Python itself starts.
    command = [sys.executable, harness.ROOT / f"{name}.py", *arguments]
    environment = {key: os.environ[key] for key in os.environ if key != "TF_CPP_MIN_LOG_LEVEL"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        text = ""
        while first_line not in text and (line := process.stderr.readline()):
            text += line
        time.sleep(seconds)
        process.send_signal(number)
        text += process.stderr.read()
    status = process.returncode
    ended = f"{name}, {number.name} {seconds:.2f} s into {phase}: {status}; {text[-3000:]}"
    harness.check(status in (0, -number) and "Traceback" not in text, ended)
    harness.check(status != -signal.SIGINT or f"{name}.py: interrupted" in text, ended)
    return phase if status or "a worker must stop (SIGTERM)" in text else "their end"


def stop_all(name, arguments, stops, rng):
    """Stops a program in each of its phases by each signal; returns a line about the phases."""
    signals = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    cases = itertools.product(PHASES[name], signals, range(stops))
    phases = collections.Counter(stop(name, arguments, *case[:2], rng) for case in cases)
    return ", ".join(f"{count} in {phase}" for phase, count in phases.items())


def stop_train(arguments, undisturbed, stops, rng):
    """Stops training in one directory, completes it, and returns a line about the phases."""
    train_dir = undisturbed.with_name("stopped")
    command = [f"--train_dir={train_dir}", *arguments]
    line = stop_all("train", command, stops, rng)
    processes.succeed("train", command)
    check_equal_runs(train_dir, undisturbed)
    return f"{line}; the completed run is bit-equal"


def stop_eval(arguments, trained, stops, rng):
    """Stops evaluations, and returns a line; then two at once must both succeed."""
    line = stop_all("eval", arguments, stops, rng)
    both = [processes.start("eval", [*arguments, "--all_checkpoints"]) for _ in range(2)]
    for process in both:
        process.join()
        harness.check(process.exitcode == 0, f"one of two evaluations ended: {process.exitcode}")
    steps = [entry["step"] for entry in programs.metrics_of(trained)]
    harness.check(steps == sorted(map(checkpoints.step_of, checkpoints.names(str(trained)))), steps)
    return f"{line}; two at once save steps {steps}"


def check_equal_runs(train_dir, undisturbed):
    """Checks that two runs ended with equal variables, bit by bit, and the same files."""
    found, expected = variables_of(train_dir), variables_of(undisturbed)
    differing = [name for name in found | expected if found.get(name) != expected.get(name)]
    harness.check(not differing, f"{differing} differ")
    # The names of TensorBoard's files end in a time; a run that was killed before its first
    # checkpoint has several.
    files_found, files_expected = (
        sorted({re.sub(r"(tfevents)\..*", r"\1", name) for name in os.listdir(path)})
        for path in (train_dir, undisturbed)
    )
    harness.check(files_found == files_expected, f"{files_found} instead of {files_expected}")
    for name in ("best.json", "eval/metrics.json"):
        harness.check(
            metrics(train_dir / name) == metrics(undisturbed / name), f"{name} of {train_dir}"
        )


def kill_train(arguments, undisturbed, seconds, kills, rng):
    """Kills training repeatedly and returns a line about the runs that ended right.

    Args:
        arguments: list of str, without the train directory.
        undisturbed: `pathlib.Path` of the train directory of an undisturbed run.
        seconds: float. Duration of that run.
        kills: int.
        rng: `random.Random`.
    """
    runs = killed = while_writing = 0
    while killed < kills:
        train_dir = undisturbed.with_name(f"run{runs}")
        train_dir.mkdir()
        command = [f"--train_dir={train_dir}", *arguments]
        while killed < kills and start_and_kill("train", command, rng, seconds, train_dir):
            killed += 1
            while_writing += bool(unfinished(train_dir))
        processes.succeed("train", command)
        check_equal_runs(train_dir, undisturbed)
        runs += 1
    return f"{killed} of {kills} resume, {while_writing} of them were saving; {runs} runs bit-equal"


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def kill_program(name, arguments, output, content, kills, rng):
    """Kills a program repeatedly; returns a line about the remains.

    Args:
        name: str. The program.
        arguments: list of str.
        output: `pathlib.Path` of its output.
        content: function from a path to the content that identifies an output.
        kills: int.
        rng: `random.Random`.
    """
    folder = output.parent
    seconds = processes.succeed(name, arguments)
    expected = content(output)
    killed = whole = while_writing = 0
    while killed < kills:
        remove(output)
        killed += start_and_kill(name, arguments, rng, seconds, folder)
        while_writing += bool(unfinished(folder))
        if output.exists():
            harness.check(content(output) == expected, f"only a part of {output} is left")
            whole += 1
            continue
        processes.succeed(name, arguments)
        harness.check(content(output) == expected, f"{output} differs after a kill")
        harness.check(not unfinished(folder), f"{unfinished(folder)} are left")
    remove(output)
    return (
        f"{killed} of {kills} left nothing or all ({while_writing} were writing, {whole} outputs "
        "were complete); the next run succeeds"
    )


def metrics(path):
    """Returns the content of best.json or metrics.json without the speed."""
    return re.sub(r'"videos_per_second": .*', "", path.read_text())


def exported(path):
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    return names, json.loads((path / "manifest.json").read_text())["digest"]


def commands(train_dir, data, output):
    """Returns arguments, path of the output and function to its content, by program."""
    of_run = f"--train_dir={train_dir}"
    return {
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
            train_dir / "eval" / "metrics.json",
            metrics,
        ),
    }


def run(names, kills, stops, seed=0):
    """Kills programs and yields a line for each.

    Args:
        names: of the programs.
        kills: kills of each program.
        stops: stops of train and eval, for each phase and signal.
        seed: of the moments.

    Raises:
        harness.FaultError: if a check fails.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data = sample_records.write_frame_files(folder, 4, 40)
        trained, output = folder / "trained", folder / "output"
        output.mkdir()
        training = [
            *(f"--train_data_pattern={data}", *MODEL),
            *("--num_epochs=4", "--export_model_steps=3", "--keep_checkpoints=2"),
            *(f"--eval_data_pattern={data}", "--eval_steps=10", "--keep_best=gap"),
        ]
        processes.run("train", [])  # Imports everything, which the other runs then share.
        seconds = processes.succeed("train", [f"--train_dir={trained}", *training])
        if "train" in names:
            yield f"kill -9 of train: {kill_train(training, trained, seconds, kills, rng)}"
            if stops:
                yield f"signals to train: {stop_train(training, trained, stops, rng)}"
        remove(trained / "eval")
        (trained / "eval").mkdir()
        given = commands(trained, data, output)
        for name in [name for name in names if name != "train"]:
            yield f"kill -9 of {name}: {kill_program(name, *given[name], kills, rng)}"
        if "eval" in names and stops:
            arguments = [f"--train_dir={trained}", f"--eval_data_pattern={data}"]
            yield f"signals to eval: {stop_eval(arguments, trained, stops, rng)}"


def main(_):
    for line in run(
        *(flags.FLAGS[name].value for name in ("programs", "kills", "stops", "kills_seed"))
    ):
        print(line, flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 8, "Kills per program.")
    flags.DEFINE_integer("stops", 2, "Stops of train and eval, for each phase and signal.")
    flags.DEFINE_integer("kills_seed", 0, "Seed of the moments.")
    flags.DEFINE_list("programs", list(processes.PROGRAMS), "Programs to kill.")
    app.run(main)
