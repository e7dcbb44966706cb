"""Several devices and machines train as one does; nothing is lost when a worker stops."""

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
import programs
import sample_records
import small_models
import train
from programs import ROOT, SMALL_DATA, train_logistic, weights_of
from run_config import RunConfig
from saved_runs import save_run
from trainer import Trainer
from utils import InputError

TRAINING = (
    "--base_learning_rate=0.01",
    "--batch_size=16",
    "--ema_decay=0.9",
    "--compute_dtype=float32",
    "--shuffle_buffer_size=1",
    "--log_steps=1",
    *SMALL_DATA,
)
# Frames are not sampled, so a batch has the same frames wherever it is computed. Of the models with
# batch normalization of frames and of vectors, this one compiles fastest.
SETTINGS = (
    "--model=EFNLNetVLADModel",
    "--iterations=0",
    "--netvlad_cluster_size=4",
    "--netvlad_hidden_size=8",
    "--nonlocal_block=false",
    "--label_weights=trust",
    *TRAINING,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with the same batches of 16 videos in one file and, half of each, in two files."""
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "halves").mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(160):
        frames = sample_records.random_frames(rng, 3 + number % 7, 12)
        labels = np.unique(frames[0, :2] % 10).tolist()
        features = {"rgb": frames[:, :8], "audio": frames[:, 8:]}
        weights = rng.uniform(0.5, 2.0, len(labels))
        records.append(
            sample_records.frame_record(f"v{number}", labels, weights=weights, **features)
        )
    sample_records.write_records(folder / "whole.tfrecord", records)
    for half in range(2):
        path = folder / "halves" / f"part{half}.tfrecord"
        sample_records.write_records(path, [r for n, r in enumerate(records) if n // 8 % 2 == half])
    return folder


STARTED = []


@pytest.fixture(scope="module", autouse=True)
def _kill_what_a_failed_test_left():
    yield
    for process in STARTED:
        process.kill()
        process.wait()
        process.stderr.close()


def start(*command, workers=None, worker=0):
    """Starts a Python program, as one of several workers if their addresses are given."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if workers:
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": worker}}
        )
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    STARTED.append(process)
    return process


def start_workers(*command, number=2):
    """Starts workers on free ports; `{worker}` in an argument stands for the worker's number."""
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
    """Returns the log of a process, which must end with the given exit status."""
    _, log = process.communicate(timeout=120)
    assert process.returncode == expected, log
    return log


def wait_for_step(process, step):
    """Reads the log of a process until it reports the given step or a later one."""
    for line in process.stderr:
        found = re.search(r"step (\d+) \|", line)
        if found and int(found[1]) >= step:
            return
    pytest.fail(f"ended before step {step}")


def losses(log):
    return [float(loss) for loss in re.findall(r"step \d+ \| loss (\S+)", log)]


def assert_close(found, expected, tolerance=1e-4):
    """Compares two files of `train_replicas.py`: weights, moving averages and optimizer."""
    found, expected = np.load(found), np.load(expected)
    assert set(found) == set(expected)
    for path in expected:
        difference = np.linalg.norm(found[path] - expected[path])
        assert difference <= tolerance * np.linalg.norm(expected[path]), path


def start_flags(folder):
    """Returns the flags with which all runs start with the weights of one, and keep some."""
    return f"--init_from={folder / 'source'}", "--freeze=centers"


@pytest.fixture(scope="module")
def trained_twice(data, tmp_path_factory):
    """Folder with the weights of 20 steps on one device and on two, MODE.npz, and the two logs."""
    folder = tmp_path_factory.mktemp("trained_twice")
    config = programs.options("train", *SETTINGS, "--train_data_pattern=x", "--train_dir=x")[
        "config"
    ]
    save_run(folder / "source", config)
    process = start(
        "tests/train_replicas.py",
        2,
        "one_device,mirrored",
        folder / "{mode}.npz",
        *SETTINGS,
        *start_flags(folder),
        "--max_steps=20",
        f"--train_dir={folder}/{{mode}}",
        f"--train_data_pattern={data / 'whole.tfrecord'}",
    )
    one_device, separator, mirrored = output_of(process).partition("MirroredStrategy: ")
    assert len(losses(one_device)) == 20
    assert losses(one_device)[-1] < losses(one_device)[0]
    return folder, one_device, separator + mirrored


@pytest.mark.slow
def test_two_devices_train_as_one(trained_twice):
    folder, one_device, mirrored = trained_twice
    assert "MirroredStrategy: 2 devices of 1 worker(s) share each batch" in mirrored
    assert "batches of 16 videos, 8 on each device" in mirrored
    np.testing.assert_allclose(losses(mirrored), losses(one_device), rtol=1e-4)
    assert_close(folder / "mirrored.npz", folder / "one_device.npz")
    centers = "EFNLNetVLADModel/encoder/netvlad_0/centers"
    frozen = np.load(folder / "mirrored.npz")[centers]
    np.testing.assert_array_equal(frozen, weights_of(folder / "source")[centers])


@pytest.mark.slow
def test_two_devices_accumulate_gradients_as_one(data, tmp_path):
    process = start(
        "tests/train_replicas.py",
        2,
        "one_device,mirrored",
        tmp_path / "{mode}.npz",
        # A quick model with batch normalization, whose batches must be the same.
        "--model=FrameLevelLogisticModel",
        "--video_level_classifier_model=MoeModel",
        "--moe_prob_gating",
        *TRAINING,
        "--batch_size=8",
        "--gradient_accumulation=2",
        "--clip=global",
        "--weight_decay=0.1",
        "--max_steps=4",
        f"--train_dir={tmp_path}/{{mode}}",
        f"--train_data_pattern={data / 'whole.tfrecord'}",
    )
    assert "batches of 8 videos, 4 on each device, 2 in each step" in output_of(process)
    assert_close(tmp_path / "mirrored.npz", tmp_path / "one_device.npz")


@pytest.mark.slow
def test_devices_and_workers_round_the_state_of_the_optimizer_alike(data, tmp_path):
    flags = (
        "--model=FrameLevelLogisticModel",
        "--video_level_classifier_model=MoeModel",
        *TRAINING,
        "--optimizer_state_dtype=bfloat16",
        "--max_steps=4",
    )
    devices = start(
        "tests/train_replicas.py",
        2,
        "one_device,mirrored",
        tmp_path / "{mode}.npz",
        *flags,
        f"--train_dir={tmp_path}/{{mode}}",
        f"--train_data_pattern={data / 'whole.tfrecord'}",
    )
    output_of(devices)  # Fails if its two devices differ.
    workers = start_workers(
        "tests/train_replicas.py",
        1,
        "multi_worker",
        tmp_path / "worker{worker}.npz",
        *flags,
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'halves' / '*'}",
    )
    for worker in workers:
        output_of(worker)
    one, other = (np.load(tmp_path / f"worker{worker}.npz") for worker in range(2))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
    # Sums over devices differ in the last bit, which turns a few roundings.
    for name in ("mirrored", "worker0"):
        assert_close(tmp_path / f"{name}.npz", tmp_path / "one_device.npz", tolerance=2e-3)


@pytest.mark.slow
def test_two_workers_train_as_one_device_and_end_equal(data, trained_twice, tmp_path):
    folder, one_device, _ = trained_twice
    workers = start_workers(
        "tests/train_replicas.py",
        1,
        "multi_worker",
        tmp_path / "weights{worker}.npz",
        *SETTINGS,
        *start_flags(folder),
        "--max_steps=20",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'halves' / '*'}",
    )
    chief, other = map(output_of, workers)
    np.testing.assert_allclose(losses(chief), losses(one_device), rtol=1e-4)
    assert_close(tmp_path / "weights0.npz", folder / "one_device.npz")
    first, second = (np.load(tmp_path / f"weights{worker}.npz") for worker in range(2))
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)
    assert not losses(other)
    (events,) = (tmp_path / "run" / "train").iterdir()
    assert events.name.startswith("events.out.tfevents")


@pytest.mark.slow
def test_workers_stop_and_resume_together(data, tmp_path):
    command = (
        "train.py",
        "--model=FrameLevelLogisticModel",
        "--batch_size=16",
        "--log_steps=1",
        *SMALL_DATA,
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

    # SIGTERM reaches only the worker on the machine that will be taken away.
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


@pytest.mark.slow
def test_the_chief_evaluates_and_both_workers_end_early_at_its_word(data, tmp_path):
    workers = start_workers(
        "train.py",
        "--model=FrameLevelLogisticModel",
        "--batch_size=16",
        "--base_learning_rate=1e-12",  # Learns nothing, so the second evaluation is not better.
        *SMALL_DATA,
        "--num_epochs=1000000",
        "--eval_steps=4",
        "--keep_best=hit_at_one",
        "--early_stopping=1",
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={data / 'halves' / '*'}",
        f"--eval_data_pattern={data / 'whole.tfrecord'}",
    )
    chief, other = map(output_of, workers)
    assert re.findall(r"evaluated step (\d+)", chief) == ["4", "8"]
    assert "the best evaluated step is 4, with hit_at_one" in chief
    assert "evaluated step" not in other
    for log in (chief, other):
        assert "so training ends at step 8" in log
        assert "ended at step 8" in log


def test_sigterm_in_a_training_also_ends_a_program_that_runs_several(
    tmp_path, video_data, monkeypatch
):
    write = train.TrainingLog.write

    def write_then_terminate(log, outputs):
        write(log, outputs)
        os.kill(os.getpid(), signal.SIGTERM)

    def end(*_):
        raise SystemExit("ended")

    monkeypatch.setattr(train.TrainingLog, "write", write_then_terminate)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit, match="ended"):
            train_logistic(tmp_path / "run", video_data, "--max_steps=20", "--log_steps=13")
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoints.names(str(tmp_path / "run")) == ["model.ckpt-13"]


def test_after_sigterm_the_next_start_resumes_at_that_step(tmp_path, video_data, monkeypatch):
    write = train.TrainingLog.write

    def write_then_terminate(log, outputs):
        write(log, outputs)
        if log._trainer.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = (video_data, "--max_steps=20", "--log_steps=13")
    train_logistic(tmp_path / "unbroken", *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(train.TrainingLog, "write", write_then_terminate)
        train_logistic(tmp_path / "stopped", *arguments)
    assert checkpoints.names(str(tmp_path / "stopped")) == ["model.ckpt-13"]
    train_logistic(tmp_path / "stopped", *arguments)
    unbroken, stopped = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "stopped")
    for path, weight in unbroken.items():
        np.testing.assert_array_equal(weight, stopped[path], err_msg=path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_checkpoints_are_also_saved_after_a_time(tmp_path, video_data, monkeypatch):
    # Each reading of the clock takes a second; a step that saves reads it twice.
    clock = types.SimpleNamespace(
        monotonic=itertools.count().__next__, perf_counter=time.perf_counter
    )
    monkeypatch.setattr(train, "time", clock)
    arguments = ("--max_steps=10", "--log_steps=1", "--checkpoint_secs=4")
    train_logistic(tmp_path, video_data, *arguments, "--export_model_steps=100")
    assert checkpoints.names(str(tmp_path)) == ["model.ckpt-10", "model.ckpt-3", "model.ckpt-7"]


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("{", "TF_CONFIG must look like"),
        ("[]", "TF_CONFIG must look like"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG must look like"),
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
def test_an_unusable_tf_config_is_rejected(tf_config, message):
    with pytest.raises(InputError, match=message):
        distribution.parse_tf_config(tf_config)


def test_the_first_worker_is_the_chief_unless_one_is_named():
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "1"}}
    workers, own = distribution.parse_tf_config(json.dumps(cluster))
    assert (workers, own) == ([("worker", 0), ("worker", 1)], ("worker", 1))
    cluster["cluster"]["chief"] = ["c:1"]
    workers, own = distribution.parse_tf_config(json.dumps(cluster))
    assert workers[0] == ("chief", 0)
    assert distribution.parse_tf_config(None) == distribution.parse_tf_config("{}") == ([], None)


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
        (["--distribution=mirrored", "--tpu=local"], "--tpu=local cannot be combined with"),
        (["--distribution=tpu", "--tpu=local"], "no TPU can be used.*tensorflow-tpu"),
        (["--checkpoint_secs=0"], "--checkpoint_secs must be above 0"),
    ],
)
def test_an_unavailable_distribution_is_rejected(tmp_path, video_data, monkeypatch, flags, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match=message):
        train_logistic(tmp_path, video_data, *flags)


class ThreeReplicas:
    """Stands in for a strategy with three devices."""

    num_replicas_in_sync = 3


def test_there_must_be_videos_and_files_for_every_worker():
    three = distribution.Distribution(ThreeReplicas(), num_workers=3)
    three.check_batch_size(12)
    three.check_num_files(3)
    with pytest.raises(InputError, match=r"a multiple of their number, 3\. Received: 16"):
        three.check_batch_size(16)
    with pytest.raises(InputError, match="there are 3 workers and --train_data_pattern matches 2"):
        three.check_num_files(2)


def test_replicas_draw_different_random_numbers_from_equal_states():
    drawn, states = [], []
    for replica in (None, layers.Replica(0, list), layers.Replica(1, list)):
        generator = layers.SeedGenerator(seed=3)
        with layers.running_replica(replica):
            drawn.append(keras.random.uniform([20], seed=generator).numpy())
        states.append(generator.state.numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[1] - drawn[2]).max() > 0.1
    np.testing.assert_array_equal(states[0], states[2])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MoeModel", {"optimizer": "Adam", "ema_decay": 0.9}),
        ("DbofModel", {}),
        *(
            small_models.marked(name, {}, slow=[name])
            for name in (
                "LstmModel",
                "GruModel",
                "SoftBoFModel",
                "EFNLNetVLADModel",
                "TransformerModel",
                "NetFVModel",
                "GatedDbofModel",
            )
        ),
    ],
)
def test_the_training_step_compiles_as_a_whole_as_tpus_require(name, settings):
    hyperparameters = dict(small_models.SMALL[name])
    if "iterations" in hyperparameters:
        hyperparameters["iterations"] = 5
    sizes = {"num_classes": 4, "feature_sizes": (6, 3)}
    config = RunConfig(
        name, hyperparameters=hyperparameters, **{"optimizer": "SGD", **sizes, **settings}
    )
    model = config.build_model()
    optimizer = config.build_optimizer(model)
    trainer = Trainer(config, model, optimizer, tf.distribute.get_strategy())
    inputs = small_models.make_inputs(name, (7, 3, 1, 4, 7, 2, 5, 6))
    before = model.get_weights()
    step = tf.function(trainer._replica_step, autograph=False, jit_compile=True)
    losses, predictions, _ = step(
        tf.nest.map_structure(tf.constant, inputs), tf.one_hot([0, 1, 2, 3] * 2, 4)
    )
    assert np.isfinite(losses).all()
    assert predictions.shape == (8, 4)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
