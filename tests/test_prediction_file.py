"""A prediction file whose run is interrupted is finished by the next one."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

import programs
import sample_records
from utils import InputError


@pytest.fixture
def many_files(tmp_path, frame_data):
    """Paths of 80 input files."""
    folder = tmp_path / "input"
    folder.mkdir()
    sources = sorted(pathlib.Path(frame_data).parent.glob("part*"))
    paths = [folder / f"test{number:03d}.tfrecord" for number in range(80)]
    for number, path in enumerate(paths):
        shutil.copy(sources[number % len(sources)], path)
    return paths


@pytest.fixture
def damaged_files(tmp_path, frame_data):
    """Paths of three input files; a record of the first and one of the last are damaged."""
    folder = tmp_path / "input"
    folder.mkdir()
    paths = []
    for number, source in enumerate(sorted(pathlib.Path(frame_data).parent.glob("part*"))[:3]):
        content = bytearray(source.read_bytes())
        content[200] ^= number != 1
        paths.append(folder / f"test{number}.tfrecord")
        paths[-1].write_bytes(content)
    return paths


def arguments(train_dir, inputs, output):
    return (
        f"--train_dir={train_dir}",
        f"--input_data_pattern={inputs[0].parent}/*.tfrecord",
        f"--output_file={output}",
        "--batch_size=16",
    )


def finished_parts(output):
    return sorted(pathlib.Path(f"{output}.parts").glob("[0-9]*.json"))


def start_and_kill(given, output):
    """Runs inference.py and kills it when it has finished three input files."""
    process = subprocess.Popen(
        [sys.executable, "inference.py", *given],
        cwd=programs.ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(finished_parts(output)) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_bytes_without_reading_finished_files(
    tmp_path, trained_netvlad, many_files
):
    unbroken, broken = tmp_path / "unbroken.csv", tmp_path / "broken.csv"
    # float32, as this process predicts.
    given = (*arguments(trained_netvlad, many_files, broken), "--compute_dtype=float32")
    start_and_kill(given, broken)
    assert not broken.exists()
    programs.run("inference", *arguments(trained_netvlad, many_files, unbroken))
    finished = [int(path.stem) for path in finished_parts(broken)]
    assert 3 <= len(finished) < 80
    for number in finished:
        size = many_files[number].stat().st_size
        many_files[number].write_bytes(b"?" * size)
    programs.run("inference", *given)
    assert broken.read_bytes() == unbroken.read_bytes()
    assert not pathlib.Path(f"{broken}.parts").exists()
    assert len(programs.prediction_rows(broken)) == 1 + 80 * 40


def test_lines_are_in_the_order_of_the_input_files(tmp_path, trained, frame_data):
    output = tmp_path / "predictions.csv"
    inputs = sorted(pathlib.Path(frame_data).parent.glob("part*"))
    programs.run("inference", *arguments(trained, inputs, output))
    ids = [row[0] for row in programs.prediction_rows(output)[1:]]
    assert ids == [f"v{file}_{index}" for file in range(4) for index in range(40)]


def interrupt(given):
    """Leaves the parts of two of three files, by the damaged record of the last."""
    with pytest.raises(InputError, match=r"record 1 of .*test2"):
        programs.run("inference", *given, "--skip_corrupt_records=1")


def test_damaged_records_of_both_runs_count_together(tmp_path, trained, damaged_files):
    output = tmp_path / "predictions.csv"
    given = arguments(trained, damaged_files, output)
    interrupt(given)
    assert len(finished_parts(output)) == 2
    with pytest.raises(InputError, match="1 damaged records were skipped before"):
        programs.run("inference", *given, "--skip_corrupt_records=1")
    with pytest.raises(InputError, match=r"test0\.tfrecord"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--skip_corrupt_records=2")
    assert len(programs.prediction_rows(output)) == 1 + 3 * 40 - 2


def test_parts_are_not_mixed_with_others_unless_they_are_given_up(tmp_path, trained, damaged_files):
    output = tmp_path / "predictions.csv"
    given = arguments(trained, damaged_files, output)
    interrupt(given)
    with pytest.raises(InputError, match="another value of top_k"):
        programs.run("inference", *given, "--top_k=3")
    with pytest.raises(InputError, match="another value of checkpoint_steps, model_weights"):
        programs.run("inference", *given, "--checkpoint=40")
    shutil.copy(damaged_files[1], tmp_path / "input" / "test9.tfrecord")
    with pytest.raises(InputError, match="another value of input_files"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--noresume", "--skip_corrupt_records=3")
    assert len(programs.prediction_rows(output)) == 1 + 4 * 40 - 2


def test_an_empty_file_is_allowed_among_others_but_not_alone(tmp_path, trained, frame_data):
    (tmp_path / "input").mkdir()
    empty = tmp_path / "input" / "a.tfrecord"
    sample_records.write_records(empty, [])
    output = tmp_path / "predictions.csv"
    with pytest.raises(InputError, match="no video in 1 files"):
        programs.run("inference", *arguments(trained, [empty], output))
    assert os.listdir(tmp_path) == ["input"]
    shutil.copy(next(pathlib.Path(frame_data).parent.glob("part*")), empty.with_name("b.tfrecord"))
    programs.run("inference", *arguments(trained, [empty], output))
    assert len(programs.prediction_rows(output)) == 1 + 40
