"""Data and trained models shared by test files, which must not change them."""

import gc
import signal

import program

import pytest
from absl import logging

import layers
import programs
import record_readers
import sample_records
import small_models


@pytest.fixture(scope="session", autouse=True)
def float32_by_default():
    """Makes results the same on every machine; tests that need bfloat16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "has_native_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="module", autouse=True)
def free_models():
    """Frees the models of each test file, which are reference cycles and large."""
    yield
    small_models.build_once.cache_clear()
    gc.collect()


@pytest.fixture
def ends_on_sigterm():
    """Lets SIGTERM raise SystemExit, as in programs that run several trainings in turn."""
    before = signal.getsignal(signal.SIGTERM)
    program.end_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def frame_data(tmp_path_factory):
    """Returns a glob of 160 learnable frame-level videos in four files."""
    return sample_records.write_frame_files(tmp_path_factory.mktemp("frames"), 4, 40)


@pytest.fixture(scope="session")
def video_data(tmp_path_factory):
    """Returns a glob of 180 learnable video-level videos in three files."""
    return sample_records.write_video_files(tmp_path_factory.mktemp("videos"), 3, 60)


@pytest.fixture(scope="session")
def trained_mean(tmp_path_factory, frame_data):
    """Returns the train directory of a FrameLevelLogisticModel with checkpoints 8, 16 and 20."""
    flags = ("--num_epochs=2", "--export_model_steps=8", "--metrics_steps=8")
    return programs.train_mean(tmp_path_factory.mktemp("trained_mean"), frame_data, *flags)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, frame_data):
    """Returns the train directory of a DbofModel with checkpoints 40, 80 and 100."""
    flags = ("--num_epochs=10", "--export_model_steps=40")
    return programs.run_small(tmp_path_factory.mktemp("trained"), frame_data, *flags)


@pytest.fixture(scope="session")
def trained_netvlad(tmp_path_factory, frame_data):
    """Returns the train directory of an LFNLNetVLADModel with --ema_decay, steps 60 and 120."""
    flags = ("--max_steps=120", "--export_model_steps=60", "--num_epochs=20")
    train_dir = tmp_path_factory.mktemp("trained_netvlad")
    return programs.train(train_dir, frame_data, *programs.SMALL_NETVLAD, *flags)


@pytest.fixture(scope="session")
def record_files(tmp_path_factory):
    """Glob of eleven frame-level files of unequal size, 75 videos in total."""
    counts = [7, 1, 12, 5, 9, 3, 20, 2, 6, 4, 6]
    return record_readers.write_files(tmp_path_factory.mktemp("record_files"), counts)


@pytest.fixture
def logged_warnings(monkeypatch):
    """The text of the warnings that are logged."""
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: logged.append(text % values))
    return logged


@pytest.fixture(scope="session")
def trained_moe(tmp_path_factory, video_data):
    """Train directory of a video-level MoeModel with --ema_decay, of the steps 90 and 180."""
    return programs.train(
        tmp_path_factory.mktemp("trained_moe"),
        video_data,
        *("--model=MoeModel", "--moe_prob_gating", *programs.SMALL_DATA, "--batch_size=20"),
        *("--num_epochs=20", "--export_model_steps=90"),
        *("--base_learning_rate=0.02", "--ema_decay=0.9"),
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    """Exported DbofModel in bfloat16, without sampling, with a frozen graph."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    flags = ("--num_samplings=0", "--top_k=3", "--frozen_graph")
    programs.run("export_model", f"--train_dir={trained}", f"--output_dir={folder}", *flags)
    return folder


@pytest.fixture(scope="session")
def exported_sampling(tmp_path_factory, trained):
    """Exported DbofModel in float32, averaged over five samplings."""
    folder = tmp_path_factory.mktemp("exported_sampling") / "model"
    flags = ("--num_samplings=5", "--dtype=float32")
    programs.run("export_model", f"--train_dir={trained}", f"--output_dir={folder}", *flags)
    return folder
