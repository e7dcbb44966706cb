"""Training on several devices and machines is that on one; nothing is lost when a worker stops."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import distribution
import layers
import sample_records
import test_models
import train
from programs import ROOT, SMALL_NETVLAD, run_small, weights_of
from run_config import RunConfig
from utils import InputError

# Frames are not sampled, so that a batch has the same frames wherever it is.
SETTINGS = (
    *SMALL_NETVLAD,
    "--iterations=0",
    "--compute_dtype=float32",
    "--shuffle_buffer_size=1",
    "--log_steps=1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with the same batches of 16 videos in one file and in two, half of each in either."""
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "halves").mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(160):
        frames = sample_records.random_frames(rng, 3 + number % 7, 12)
        labels = [int(label) for label in np.unique(frames[0, :2] % 10)]
        records.append(
            sample_records.frame_record(
                f"v{number}", labels, rgb=frames[:, :8], audio=frames[:, 8:]
            )
        )
    sample_records.write_records(folder / "whole.tfrecord", records)
    for half in range(2):
        path = folder / "halves" / f"part{half}.tfrecord"
        sample_records.write_records(path, [r for n, r in enumerate(records) if n // 8 % 2 == half])
    return folder


def start(*command, workers=None, worker=0):
    """Starts a Python program; as one of several workers, if their addresses are given."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if workers:
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": worker}}
        )
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def start_workers(*command, number=2):
    """Starts workers on free ports; `{worker}` in an argument becomes the number of each."""
    sockets = [socket.socket() for _ in range(number)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    return [
        start(
            *(str(argument).replace("{worker}", str(worker)) for argument in command),
            workers=workers,
            worker=worker,
        )
        for worker in range(number)
    ]


def output_of(process, expected=0):
    """What a process logged until it ended, which must be with the given exit status."""
    _, log = process.communicate(timeout=120)
    assert process.returncode == expected, log
    return log


def wait_for_step(process, step):
    """Reads the log of a process until it tells of a step from the given one on."""
    for line in process.stderr:
        found = re.search(r"step (\d+) \|", line)
        if found and int(found[1]) >= step:
            return
    pytest.fail(f"ended before step {step}")


def losses(log):
    return [float(loss) for loss in re.findall(r"step \d+ \| loss (\S+)", log)]


def assert_close(found, expected):
    """Compares weights, optimizer and statistics of two files of `train_replicas.py`."""
    found, expected = np.load(found), np.load(expected)
    assert set(found) == set(expected)
    for path in expected:
        difference = np.linalg.norm(found[path] - expected[path])
        assert difference <= 1e-4 * np.linalg.norm(expected[path]), path


@pytest.fixture(scope="module")
def one_device(data, tmp_path_factory):
    """(losses, file of weights) of 20 steps on one device."""
    folder = tmp_path_factory.mktemp("one_device")
    process = start(
        "tests/train_replicas.py",
        1,
        folder / "weights.npz",
        *SETTINGS,
        "--max_steps=20",
        f"--train_dir={folder / 'run'}",
        f"--train_data_pattern={data / 'whole.tfrecord'}",
    )
    found = losses(output_of(process))
    assert len(found) == 20
    assert found[-1] < found[0]
    return found, folder / "weights.npz"


def test_two_devices_train_as_one(data, one_device, tmp_path):
    process = start(
        "tests/train_replicas.py",
        2,
        tmp_path / "weights.npz",
        *SETTINGS,
        "--distribution=mirrored",
        "--max_steps=20",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'whole.tfrecord'}",
    )
    log = output_of(process)
    assert "MirroredStrategy: 2 devices of 1 worker(s) share each batch" in log
    assert "batches of 16 videos, 8 on each device" in log
    np.testing.assert_allclose(losses(log), one_device[0], rtol=1e-4)
    assert_close(tmp_path / "weights.npz", one_device[1])


def test_two_workers_train_as_one_device_and_end_equal(data, one_device, tmp_path):
    workers = start_workers(
        "tests/train_replicas.py",
        1,
        tmp_path / "weights{worker}.npz",
        *SETTINGS,
        "--max_steps=20",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'halves' / '*'}",
    )
    chief, other = map(output_of, workers)
    np.testing.assert_allclose(losses(chief), one_device[0], rtol=1e-4)
    assert_close(tmp_path / "weights0.npz", one_device[1])
    first, second = (np.load(tmp_path / f"weights{worker}.npz") for worker in range(2))
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)
    assert not losses(other)
    (events,) = (tmp_path / "run" / "train").iterdir()
    assert events.name.startswith("events.out.tfevents")


def test_a_killed_worker_stops_the_others_and_all_go_on_together(data, tmp_path):
    command = (
        "train.py",
        *SETTINGS,
        "--num_epochs=1000000",
        "--export_model_steps=20",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'halves' / '*'}",
    )
    chief, other = start_workers(*command)
    wait_for_step(chief, 25)
    other.kill()
    killed = time.monotonic()
    log = output_of(chief, expected=1)
    assert time.monotonic() - killed < 60
    assert "Traceback" not in log
    assert "train.py: error: another worker has stopped" in log
    output_of(other, expected=-signal.SIGKILL)
    saved = checkpoints.step_of(checkpoints.find(str(tmp_path / "run")))
    assert saved >= 20
    assert saved % 20 == 0

    # A machine that will be taken away says so to its worker alone.
    chief, other = start_workers(*command)
    wait_for_step(chief, saved + 5)
    other.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    logs = output_of(chief), output_of(other)
    assert time.monotonic() - signalled < 30
    assert f"from step {saved}" in logs[1]
    for log in logs:
        (step,) = re.findall(r"SIGTERM\): saving step (\d+)", log)
        assert int(step) == checkpoints.step_of(checkpoints.find(str(tmp_path / "run")))
        assert int(step) >= saved + 5


def test_after_sigterm_the_next_start_goes_on_at_that_step(tmp_path, frame_data, monkeypatch):
    write = train.TrainingLog.write

    def write_then_terminate(log, outputs):
        write(log, outputs)
        if log._trainer.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    run_small(tmp_path / "unbroken", frame_data, "--max_steps=20", "--log_steps=13")
    with monkeypatch.context() as patch:
        patch.setattr(train.TrainingLog, "write", write_then_terminate)
        run_small(tmp_path / "stopped", frame_data, "--max_steps=20", "--log_steps=13")
    assert checkpoints.names(str(tmp_path / "stopped")) == ["model.ckpt-13"]
    run_small(tmp_path / "stopped", frame_data, "--max_steps=20", "--log_steps=13")
    unbroken, stopped = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "stopped")
    for path, weight in unbroken.items():
        np.testing.assert_array_equal(weight, stopped[path], err_msg=path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_checkpoints_are_also_saved_after_a_time(tmp_path, frame_data, monkeypatch):
    # Each look at the clock takes a second; there are two in a call of steps that saves.
    clock = types.SimpleNamespace(
        monotonic=itertools.count().__next__, perf_counter=time.perf_counter
    )
    monkeypatch.setattr(train.trainer, "time", clock)
    arguments = ("--max_steps=10", "--log_steps=1", "--checkpoint_secs=4")
    run_small(tmp_path, frame_data, *arguments, "--export_model_steps=100")
    assert checkpoints.names(str(tmp_path)) == ["model.ckpt-10", "model.ckpt-3", "model.ckpt-7"]


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("{", "TF_CONFIG must be as"),
        ("[]", "TF_CONFIG must be as"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG must be as"),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "Received types ps",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            r"Received task \('worker', 2\), which the cluster lacks",
        ),
    ],
)
def test_a_tf_config_that_is_not_usable_is_refused(tf_config, message):
    with pytest.raises(InputError, match=message):
        distribution.workers_of(tf_config)


def test_the_chief_is_the_first_worker_unless_there_is_one():
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "1"}}
    workers, own = distribution.workers_of(json.dumps(cluster))
    assert (workers, own) == ([("worker", 0), ("worker", 1)], ("worker", 1))
    cluster["cluster"]["chief"] = ["c:1"]
    workers, own = distribution.workers_of(json.dumps(cluster))
    assert workers[0] == ("chief", 0)
    assert distribution.workers_of(None) == distribution.workers_of("{}") == ([], None)


def test_a_cluster_of_one_machine_is_one_device(monkeypatch):
    cluster = {"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    for mode in ("auto", "multi_worker"):
        chosen = distribution.choose(mode)
        assert (chosen.num_replicas, chosen.num_workers, chosen.is_chief) == (1, 1, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distribution=multi_worker"], "needs the environment variable TF_CONFIG"),
        (["--distribution=mirrored", "--tpu=local"], "--tpu=local does not go with"),
        (["--distribution=tpu", "--tpu=local"], "no TPU can be used.*tensorflow-tpu"),
        (["--checkpoint_secs=0"], "--checkpoint_secs must be above 0"),
    ],
)
def test_a_distribution_that_there_is_not_is_refused(
    tmp_path, frame_data, monkeypatch, flags, message
):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match=message):
        run_small(tmp_path, frame_data, *flags)


class ThreeReplicas:
    """Stands for a strategy of three devices."""

    num_replicas_in_sync = 3


def test_batches_and_files_must_suffice_for_all():
    three = distribution.Distribution(ThreeReplicas(), num_workers=3)
    three.check_batch_size(12)
    three.check_num_files(3)
    with pytest.raises(InputError, match=r"a multiple of their number, 3\. Received: 16"):
        three.check_batch_size(16)
    with pytest.raises(InputError, match="there are 3 workers and --train_data_pattern matches 2"):
        three.check_num_files(2)


def test_replicas_draw_different_numbers_from_equal_states():
    drawn, states = [], []
    for replica in (None, layers.Replica(0, list), layers.Replica(1, list)):
        generator = layers.SeedGenerator(seed=3)
        with layers.running_replica(replica):
            drawn.append(keras.random.uniform([20], seed=generator).numpy())
        states.append(generator.state.numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[1] - drawn[2]).max() > 0.1
    np.testing.assert_array_equal(states[0], states[2])


@pytest.mark.parametrize("name", test_models.SMALL)
def test_the_training_step_compiles_as_tpus_need_it(name):
    sizes = {"num_classes": 4, "feature_sizes": (6, 3)}
    hyperparameters = dict(test_models.SMALL[name])
    if "iterations" in hyperparameters:
        hyperparameters["iterations"] = 5
    config = RunConfig(name, hyperparameters=hyperparameters, ema_decay=0.9, **sizes)
    model = config.build_model()
    optimizer = config.build_optimizer()
    optimizer.build(model.trainable_variables)
    stepper = Trainer(config, model, optimizer, tf.distribute.get_strategy())
    inputs = tf.ones([8, 9])
    if config.frame_level:
        frames = tf.cast(tf.reshape(tf.range(8 * 7 * 9) % 251, [8, 7, 9]), tf.uint8)
        inputs = {"frames": frames, "num_frames": tf.constant([7, 3, 1, 4, 7, 2, 5, 6])}
    before = model.get_weights()
    step = tf.function(stepper._replica_step, autograph=False, jit_compile=True)
    losses, predictions = step(inputs, tf.one_hot([0, 1, 2, 3] * 2, 4))
    assert np.isfinite(losses).all()
    assert predictions.shape == (8, 4)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
