"""Data and trained models shared by test files, which must not change them."""

import pytest

import layers
import programs
import sample_records


@pytest.fixture(scope="session", autouse=True)
def float32_by_default():
    """Makes results the same on every machine; tests that need bfloat16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "has_native_bfloat16", lambda: False)
        yield


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
    train_dir = tmp_path_factory.mktemp("trained_mean") / "run"
    periods = ("--export_model_steps=8", "--metrics_steps=8")
    programs.train_mean(train_dir, frame_data, "--num_epochs=2", *periods)
    return train_dir


@pytest.fixture(scope="session")
def trained(tmp_path_factory, frame_data):
    """Returns the train directory of a DbofModel with checkpoints 40, 80 and 100."""
    train_dir = tmp_path_factory.mktemp("trained") / "run"
    programs.run_small(train_dir, frame_data, "--num_epochs=10", "--export_model_steps=40")
    return train_dir


@pytest.fixture(scope="session")
def trained_netvlad(tmp_path_factory, frame_data):
    """Returns the train directory of an LFNLNetVLADModel with --ema_decay, steps 60 and 120."""
    train_dir = tmp_path_factory.mktemp("trained_netvlad") / "run"
    programs.train_netvlad(
        train_dir, frame_data, "--max_steps=120", "--export_model_steps=60", "--num_epochs=20"
    )
    return train_dir
