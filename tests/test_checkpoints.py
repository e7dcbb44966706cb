"""Train directories: their lock, their list of checkpoints, and what killed processes leave."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time

import keras
import pytest
import tensorflow as tf

import checkpoints
import files
import programs
from utils import InputError

# --- The lock -------------------------------------------------------------------------------------


def _hold(train_dir, connection):
    with checkpoints.training_lock(str(train_dir)):
        connection.send("holds")
        time.sleep(100)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    context = multiprocessing.get_context("spawn")  # Forking a process with threads may deadlock.
    receiver, sender = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, sender))
    process.start()
    assert receiver.recv() == "holds"
    yield process
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_second_training_is_rejected_until_the_first_is_killed(holder, tmp_path, video_data):
    before = sorted(os.listdir(tmp_path))
    expected = f"another training run is active in {tmp_path}: process {holder.pid} on "
    for start in ((), ("--start_new_model",)):
        with pytest.raises(InputError, match=expected + socket.gethostname()):
            programs.train_logistic(tmp_path, video_data, "--max_steps=1", *start)
    assert sorted(os.listdir(tmp_path)) == before

    holder.kill()
    holder.join()
    assert (tmp_path / checkpoints.LOCK_FILE).exists()
    with checkpoints.training_lock(str(tmp_path)):
        text = (tmp_path / checkpoints.LOCK_FILE).read_text()
    assert text == f"process {os.getpid()} on {socket.gethostname()}"


def test_an_error_releases_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), checkpoints.training_lock(str(tmp_path)):
            raise KeyError


@pytest.mark.parametrize(
    ("kind", "index", "cluster", "first"),
    [
        ("worker", 0, {"worker": ["a:1", "b:1"]}, True),
        ("worker", 1, {"worker": ["a:1", "b:1"]}, False),
        ("chief", 0, {"chief": ["a:1"]}, True),
        ("worker", 0, {"chief": ["a:1"], "worker": ["b:1"]}, False),
    ],
)
def test_only_the_first_worker_takes_the_lock(tmp_path, monkeypatch, kind, index, cluster, first):
    config = {"task": {"type": kind, "index": index}, "cluster": cluster}
    with checkpoints.training_lock(str(tmp_path)):
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        rejected = pytest.raises(InputError) if first else contextlib.nullcontext()
        with rejected, checkpoints.training_lock(str(tmp_path)):
            pass


def test_a_directory_that_is_read_only_is_rejected_before_any_work(
    trained_mean, frame_data, monkeypatch
):
    monkeypatch.setattr("trainer.Trainer", None)
    read_only = PermissionError(13, "Permission denied")
    monkeypatch.setattr(files, "open_binary", _raising(read_only, files.open_binary))
    with pytest.raises(InputError, match=r"cannot write .*model_flags\.json: .*Permission denied"):
        programs.train_mean(trained_mean, frame_data)


def _raising(error, open_binary):
    """Returns a function that opens files for reading, and raises the error for others."""

    def open_for_reading(path, mode="rb", **options):
        if mode != "rb":
            raise error
        return open_binary(path, mode, **options)

    return open_for_reading


# --- Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "content"), [(os.symlink, "mine"), (os.symlink, None), (os.link, "mine")]
)
def test_the_lock_is_not_written_through_a_link(tmp_path, link, content):
    target = tmp_path / "target"
    if content is not None:
        target.write_text(content)
    (tmp_path / "run").mkdir()
    link(target, tmp_path / "run" / "training.lock")
    with (
        pytest.raises(InputError, match=r"run/training\.lock is a link"),
        checkpoints.training_lock(f"{tmp_path}/run"),
    ):
        pass
    assert (target.read_text() if target.exists() else None) == content


@pytest.mark.parametrize("name", ["train", "eval", "eval_ema"])
@pytest.mark.parametrize("start", [(), ("--start_new_model",)])
def test_training_neither_writes_nor_removes_through_linked_directories(
    tmp_path, trained_mean, frame_data, name, start
):
    run_dir, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(trained_mean, run_dir, ignore=shutil.ignore_patterns("train", "eval*"))
    other.mkdir()
    for kept in ("metrics.json", "events.out.tfevents.1"):
        (other / kept).write_text("mine")
    (run_dir / name).symlink_to(other)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"run/{name} is a link"):
        programs.train_mean(run_dir, frame_data, *start)
    assert sorted(tmp_path.rglob("*")) == before
    assert {path.read_text() for path in other.iterdir()} == {"mine"}


def test_evaluation_does_not_write_through_a_linked_directory(tmp_path, trained_mean, frame_data):
    run_dir = shutil.copytree(trained_mean, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    (tmp_path / "other").mkdir()
    (run_dir / "eval").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="run/eval is a link"):
        programs.evaluate(f"--train_dir={run_dir}", f"--eval_data_pattern={frame_data}")
    assert os.listdir(tmp_path / "other") == []


def test_training_replaces_and_removes_links_instead_of_their_targets(
    tmp_path, trained_mean, frame_data
):
    run_dir, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(trained_mean, other)
    run_dir.mkdir()
    for path in other.iterdir():
        if path.is_file() and path.name != checkpoints.LOCK_FILE:
            (run_dir / path.name).symlink_to(path)
    (run_dir / "model.ckpt-24_temp").symlink_to(other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    programs.train_mean(run_dir, frame_data, "--num_epochs=3", "--keep_checkpoints=1")
    assert checkpoints.names(str(run_dir)) == ["model.ckpt-30"]
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    programs.train_mean(run_dir, frame_data, "--max_steps=1", "--start_new_model")
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of a trained run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_copied_run_is_a_run_of_its_own(run_dir, trained):
    assert checkpoints.latest(str(run_dir)) == f"{run_dir}/model.ckpt-100"
    assert checkpoints.latest(f"{run_dir}/") == f"{run_dir}/model.ckpt-100"


def test_a_directory_without_a_list_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(str(tmp_path)) is None


@pytest.mark.parametrize(
    "content", [b"", b"garbage {", b"model_checkpoint_path: 5", b"\xff\xfe\x00"]
)
def test_a_damaged_list_does_not_pass_for_none(run_dir, content):
    (run_dir / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged\. .* has: model\.ckpt-100, "):
        checkpoints.find(str(run_dir))


@pytest.mark.parametrize("place", ["../other/model.ckpt-40", "{absolute}/model.ckpt-40"])
def test_a_list_that_names_another_run_is_rejected_and_harms_neither(run_dir, frame_data, place):
    # Training would remove these files once there are newer checkpoints.
    other = shutil.copytree(run_dir, run_dir.parent / "other")
    place = place.format(absolute=other)
    (run_dir / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-100"\n'
        f'all_model_checkpoint_paths: "{place}"\n'
        'all_model_checkpoint_paths: "model.ckpt-100"\n'
    )
    before = sorted(path.name for path in other.iterdir())
    flags = ("--num_epochs=20", "--max_steps=110", "--keep_checkpoints=1")
    with pytest.raises(InputError, match=r"names a checkpoint of another directory: .*ckpt-40"):
        programs.run_small(run_dir, frame_data, *flags)
    assert sorted(path.name for path in other.iterdir()) == before


def test_a_run_with_a_lost_checkpoint_does_not_pass_for_a_new_one(run_dir, frame_data):
    for path in run_dir.glob("model.ckpt-100.*"):
        path.unlink()
    with pytest.raises(InputError, match=r"model\.ckpt-100, which is not there\. .* has: model"):
        programs.run_small(run_dir, frame_data)


def test_a_list_that_training_has_just_replaced_is_read_again(run_dir, monkeypatch):
    """Training with --keep_checkpoints=1 saves step 100 and removes 80 after the list was read."""
    read = tf.train.get_checkpoint_state
    (run_dir / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-80"\n')

    def remove_after_reading(*arguments):
        state = read(*arguments)
        for path in run_dir.glob("model.ckpt-80.*"):
            path.unlink()
        (run_dir / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-100"\n')
        return state

    monkeypatch.setattr(tf.train, "get_checkpoint_state", remove_after_reading)
    assert checkpoints.latest(str(run_dir)) == f"{run_dir}/model.ckpt-100"


def test_a_checkpoint_that_is_removed_while_it_is_averaged_is_an_error(run_dir, monkeypatch):
    load = tf.train.load_checkpoint

    def remove_before_loading(path):
        for file in run_dir.glob("model.ckpt-40.*"):
            file.unlink()
        return load(path)

    monkeypatch.setattr(tf.train, "load_checkpoint", remove_before_loading)
    with pytest.raises(InputError, match=r"ckpt-40 was removed while it was read.*repeat"):
        programs.run(
            "average_checkpoints", f"--train_dir={run_dir}", f"--output_dir={run_dir}/averaged"
        )


def test_remains_of_an_interrupted_save_are_removed_when_training_resumes(run_dir, frame_data):
    before = sorted(path.name for path in run_dir.iterdir())
    (run_dir / "model.ckpt-120_temp").mkdir()
    (run_dir / "model.ckpt-120_temp" / "part-00000-of-00001.data").write_text("half")
    (run_dir / "checkpoint.tmp0123456789abcdef").write_text("half")
    programs.run_small(run_dir, frame_data, "--max_steps=1")
    assert sorted(path.name for path in run_dir.iterdir()) == before


@pytest.mark.parametrize("wait", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path, wait):
    folder = tmp_path / "run"
    weight = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD()
    manager = checkpoints.new_manager(str(folder), tf.train.Checkpoint(weight=weight.value))
    model = keras.Sequential()
    checkpoints.save(manager, model, optimizer, step=1, wait=True)
    assert (folder / "model.ckpt-1.index").exists()
    shutil.rmtree(folder)
    folder.touch()
    step = 2
    if not wait:
        # Written while training continues; the next save raises the error.
        checkpoints.save(manager, model, optimizer, step)
        step = 3
    with pytest.raises(tf.errors.OpError, match="run"):
        checkpoints.save(manager, model, optimizer, step, wait)


# --- Unfinished files of killed processes ---------------------------------------------------------


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_files_that_a_killed_process_left_unfinished_are_removed(tmp_path, dead_pid):
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


def test_a_directory_that_a_killed_process_left_unfinished_is_removed(tmp_path, dead_pid):
    abandoned = tmp_path / f"a.{socket.gethostname()}-{dead_pid}.partial"
    abandoned.mkdir()
    (abandoned / "file").touch()
    with files.atomic_directory(str(tmp_path / "a")):
        pass
    assert os.listdir(tmp_path) == ["a"]
