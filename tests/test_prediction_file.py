"""A prediction file of an interrupted run is completed by the next run."""

import os
import pathlib
import shutil
import signal

import pytest

import programs
import sample_records
from utils import InputError

# Runs inference.py and kills the process before it marks the fourth input file as finished.
KILLED_RUN = """
import os, signal, sys
import inference
import prediction_file
import program

finish = prediction_file.PredictionParts.finish

def finish_or_die(parts, number, *arguments):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(parts, number, *arguments)

prediction_file.PredictionParts.finish = finish_or_die
program.call(inference.main, sys.argv[1:])
"""


@pytest.fixture
def input_files(tmp_path, video_data):
    """Paths of six input files of 60 videos each."""
    folder = tmp_path / "input"
    folder.mkdir()
    sources = sorted(pathlib.Path(video_data).parent.glob("part*"))
    paths = [folder / f"test{number}.tfrecord" for number in range(6)]
    for number, path in enumerate(paths):
        shutil.copy(sources[number % len(sources)], path)
    return paths


@pytest.fixture
def corrupt_files(input_files):
    """Paths of three input files; the first and the last have a corrupt record."""
    for path in input_files[3:]:
        path.unlink()
    for path in (input_files[0], input_files[2]):
        sample_records.flip_bit(path, 200)
    return input_files[:3]


def arguments(train_dir, inputs, output):
    return (
        f"--train_dir={train_dir}",
        f"--input_data_pattern={inputs[0].parent}/*.tfrecord",
        f"--output_file={output}",
        "--batch_size=16",
    )


def finished_parts(output):
    return sorted(pathlib.Path(f"{output}.parts").glob("[0-9]*.json"))


@pytest.mark.slow
def test_a_killed_run_is_resumed_without_reading_finished_files_again(
    tmp_path, trained_moe, input_files
):
    unbroken, broken = tmp_path / "unbroken.csv", tmp_path / "broken.csv"
    # float32, as in this process.
    given = (*arguments(trained_moe, input_files, broken), "--compute_dtype=float32")
    killed = programs.run_command("-c", KILLED_RUN, *given)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not broken.exists()
    programs.run("inference", *arguments(trained_moe, input_files, unbroken))
    finished = [int(path.stem) for path in finished_parts(broken)]
    assert finished == [0, 1, 2]
    for number in finished:
        input_files[number].write_bytes(b"?" * input_files[number].stat().st_size)
    programs.run("inference", *given)
    assert broken.read_bytes() == unbroken.read_bytes()
    assert not pathlib.Path(f"{broken}.parts").exists()
    assert len(programs.prediction_rows(broken)) == 1 + 6 * 60


def test_lines_are_in_the_order_of_the_input_files(tmp_path, trained_moe, video_data):
    output = tmp_path / "predictions.csv"
    inputs = sorted(pathlib.Path(video_data).parent.glob("part*"))
    programs.run("inference", *arguments(trained_moe, inputs, output))
    ids = [row[0] for row in programs.prediction_rows(output)[1:]]
    assert ids == [f"v{file}_{index}" for file in range(3) for index in range(60)]


def interrupt(given):
    """Leaves the parts of two of three files: the corrupt record of the last one is an error."""
    with pytest.raises(InputError, match=r"record 1 of .*test2"):
        programs.run("inference", *given, "--skip_corrupt_records=1")


def test_corrupt_records_of_both_runs_are_added(tmp_path, trained_moe, corrupt_files):
    output = tmp_path / "predictions.csv"
    given = arguments(trained_moe, corrupt_files, output)
    interrupt(given)
    assert len(finished_parts(output)) == 2
    with pytest.raises(InputError, match="1 corrupt records were skipped before"):
        programs.run("inference", *given, "--skip_corrupt_records=1")
    with pytest.raises(InputError, match=r"test0\.tfrecord"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--skip_corrupt_records=2")
    assert len(programs.prediction_rows(output)) == 1 + 3 * 60 - 2


def test_parts_of_other_settings_are_rejected_unless_the_run_starts_over(
    tmp_path, trained_moe, corrupt_files
):
    output = tmp_path / "predictions.csv"
    given = arguments(trained_moe, corrupt_files, output)
    interrupt(given)
    with pytest.raises(InputError, match="another value of top_k"):
        programs.run("inference", *given, "--top_k=3")
    with pytest.raises(InputError, match="another value of checkpoint_steps, model_weights"):
        programs.run("inference", *given, "--checkpoint=90")
    shutil.copy(corrupt_files[1], corrupt_files[1].with_name("test9.tfrecord"))
    with pytest.raises(InputError, match="another value of input_files"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--noresume", "--skip_corrupt_records=3")
    assert len(programs.prediction_rows(output)) == 1 + 4 * 60 - 2


def test_an_empty_file_is_allowed_but_not_as_the_only_one(tmp_path, trained_moe, video_data):
    (tmp_path / "input").mkdir()
    empty = tmp_path / "input" / "a.tfrecord"
    sample_records.write_records(empty, [])
    output = tmp_path / "predictions.csv"
    with pytest.raises(InputError, match="no video in 1 files"):
        programs.run("inference", *arguments(trained_moe, [empty], output))
    assert os.listdir(tmp_path) == ["input"]
    shutil.copy(next(pathlib.Path(video_data).parent.glob("part*")), empty.with_name("b.tfrecord"))
    programs.run("inference", *arguments(trained_moe, [empty], output))
    assert len(programs.prediction_rows(output)) == 1 + 60
