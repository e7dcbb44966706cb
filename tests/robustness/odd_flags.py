"""Gives every flag of the programs odd values, which must be used or rejected in one clear line.

python tests/robustness/odd_flags.py
python tests/robustness/odd_flags.py --programs=train --flags=batch_size,train_dir
"""

import contextlib
import importlib
import io
import os
import pathlib
import socket
import tempfile

import harness  # isort: skip

import program

from absl import app, flags, logging

import programs
import sample_records
from options import OptionType

NUMBERS = (
    *(
        "",
        " ",
        "-",
        "--",
        "0",
        "-1",
        " 2 ",
        "2.5",
        "1e3",
        "1e308",
        "-1e308",
        "1e-320",
        "nan",
        "-inf",
    ),
    *("0x10", "1_000", "٣", "true", "2,2", str(2**62), str(2**64), "9" * 400),
)
TEXTS = (
    "",
    " ",
    "-",
    "--",
    "-1",
    "ü日本",
    "a" * 300,
    "/".join(["b" * 200] * 30),
    "nosuch://a",
    "gs://",
    "{a,b}",
    "[",
    "*",
)
LISTS = (*TEXTS, ",", "1,,2", "nan,1", "1,-1", "0", "8,4,2", "rgb,rgb", "4,8", str(2**62), "1 , 2")
BOOLS = ("", "2", "yes", "None", "-", "TRUE")


def values_of(kind: OptionType, folder: pathlib.Path):
    """Returns odd values of an option of a type."""
    if kind.is_list:
        return LISTS
    if kind.base is bool:
        return BOOLS
    if kind.base in (int, float):
        return NUMBERS
    names = ("file", "file/below", "socket", "missing/file")
    places = (folder, *(folder / name for name in names))
    return (*TEXTS, *map(str, places))


def run(folder, chosen=(), names=("train", "eval", "inference")):
    """Yields (program, flag, value, outcome); the outcome is "used" or the error message.

    Args:
        folder: directory for data and output.
        chosen: flags to try; empty for all.
        names: programs to try.

    Raises:
        harness.FaultError: if a program fails in another way.
    """
    folder = pathlib.Path(folder)
    (folder / "file").write_text("file")
    with socket.socket(socket.AF_UNIX) as special:  # A special file that is no danger to lose.
        special.bind(str(folder / "socket"))
    data = sample_records.write_video_files(folder, 1, 40)
    trained = folder / "trained"
    small = [*programs.SMALL_LOGISTIC, "--max_steps=2", f"--train_data_pattern={data}"]
    programs.run("train", f"--train_dir={trained}", *small)
    model = f"--train_dir={trained}"
    base = {
        "train": [*small, "--start_new_model", f"--train_dir={folder}/run"],
        "eval": [model, f"--eval_data_pattern={data}", "--run_once"],
        "inference": [
            model,
            f"--input_data_pattern={data}",
            f"--output_file={folder}/predictions.csv",
            "--noresume",
        ],
    }
    for name in names:
        main = importlib.import_module(name).main
        for flag, kind in flags_of(main):
            if chosen and flag not in chosen:
                continue
            for value in values_of(kind, folder):
                yield (
                    name,
                    flag,
                    value,
                    outcome_of(main, [*base[name], f"--{flag}={value}"], folder),
                )


def flags_of(main):
    """Returns names and types of the flags of a program, including those of all models."""
    found = [(field.name, kind) for field, kind in program._options(main)]
    if "config" in program._option_classes(main):
        found += [
            (name, OptionType(uses[0][1].type, is_list=False, is_optional=True))
            for name, uses in program._model_flags().items()
        ]
    return found


def outcome_of(main, arguments, folder):
    """Runs a program in a working directory of its own; returns "used" or the error message."""
    before = os.getcwd()
    output = folder / "output"
    output.mkdir(exist_ok=True)
    os.chdir(output)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            program.call(main, arguments)
        return "used"
    except Exception as error:
        line = program.error_line(error)
        if line:
            return line
        raise harness.FaultError(
            f"{arguments[-1][:100]}: {type(error).__name__}: {error}"
        ) from error
    finally:
        os.chdir(before)


def main(_):
    logging.set_verbosity(logging.ERROR)
    counts = {"used": 0, "rejected": 0}
    with tempfile.TemporaryDirectory() as folder:
        cases = run(folder, flags.FLAGS.flags, flags.FLAGS.programs)
        for *_, outcome in cases:
            counts["used" if outcome == "used" else "rejected"] += 1
    print(f"odd flags: {counts['used']} used, {counts['rejected']} rejected in one clear line")


if __name__ == "__main__":
    flags.DEFINE_list("programs", ["train", "eval", "inference"], "Programs to try.")
    flags.DEFINE_list("flags", [], "Flags to try; all by default.")
    app.run(main)
