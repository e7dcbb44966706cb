"""Two trainings never work in one directory."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

import checkpoints
import files
import programs
from utils import InputError


def _hold(train_dir, tell):
    with checkpoints.training_lock(str(train_dir)):
        tell.send("holds")
        time.sleep(100)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    context = multiprocessing.get_context("spawn")  # To fork beside threads may lock up.
    told, tell = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, tell))
    process.start()
    assert told.recv() == "holds"
    yield process
    process.kill()
    process.join()


def test_a_second_training_is_refused_naming_the_first(holder, tmp_path, frame_data):
    before = sorted(os.listdir(tmp_path))
    expected = f"another training works in {tmp_path}: process {holder.pid} on "
    for start in ((), ("--start_new_model",)):
        with pytest.raises(InputError, match=expected + socket.gethostname()):
            programs.run_small(tmp_path, frame_data, "--max_steps=1", *start)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.join()
    assert (tmp_path / checkpoints.LOCK_FILE).exists()
    with checkpoints.training_lock(str(tmp_path)):
        text = (tmp_path / checkpoints.LOCK_FILE).read_text()
    assert text == f"process {os.getpid()} on {socket.gethostname()}"


def test_the_lock_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), checkpoints.training_lock(str(tmp_path)):
            raise KeyError


def test_only_the_first_worker_takes_the_lock(tmp_path, monkeypatch):
    with checkpoints.training_lock(str(tmp_path)):
        workers = '"cluster": {"worker": ["a:1", "b:1"]}'
        monkeypatch.setenv("TF_CONFIG", f'{{"task": {{"type": "worker", "index": 1}}, {workers}}}')
        with checkpoints.training_lock(str(tmp_path)):
            pass
        for first in (
            f'{{"task": {{"type": "worker", "index": 0}}, {workers}}}',
            '{"task": {"type": "chief", "index": 0}, "cluster": {"chief": ["a:1"]}}',
        ):
            monkeypatch.setenv("TF_CONFIG", first)
            with pytest.raises(InputError), checkpoints.training_lock(str(tmp_path)):
                pass
        monkeypatch.setenv(
            "TF_CONFIG",
            '{"task": {"type": "worker", "index": 0},'
            ' "cluster": {"chief": ["a:1"], "worker": ["b:1"]}}',
        )
        with checkpoints.training_lock(str(tmp_path)):
            pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to --train_dir .*/file/run: "):
        programs.run(
            "train",
            f"--train_dir={tmp_path}/file/run",
            "--train_data_pattern=x",
            *programs.SMALL_DBOF,
        )


# What killed processes leave of files that they wrote.


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_and_that_of_others_is_not(tmp_path, dead_pid):
    host = socket.gethostname()
    abandoned = f"a.txt.{host}-{dead_pid}.partial"
    kept = {
        f"a.txt.{host}-{os.getppid()}.partial",  # It may still be writing.
        f"a.txt.elsewhere-{dead_pid}.partial",
        f"b.txt.{host}-{dead_pid}.partial",
    }
    for name in (abandoned, *kept):
        (tmp_path / name).touch()
    files.write_json(str(tmp_path / "a.txt"), 1)
    assert set(os.listdir(tmp_path)) == {"a.txt", *kept}


def test_a_directory_that_a_killed_process_left_is_removed(tmp_path, dead_pid):
    abandoned = tmp_path / f"a.{socket.gethostname()}-{dead_pid}.partial"
    abandoned.mkdir()
    (abandoned / "file").touch()
    with files.atomic_directory(str(tmp_path / "a")):
        pass
    assert os.listdir(tmp_path) == ["a"]
