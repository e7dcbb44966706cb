"""Data that hold next to nothing: the programs run and give finite numbers."""

import math

import numpy as np
import pytest

import programs
import sample_records


def noise(rng, num_frames):
    return sample_records.random_frames(rng, num_frames, 12)


DATA = {
    "one class": (1, lambda rng, index: ([0] * (index % 2), noise(rng, 4))),
    "one class in every video": (1, lambda rng, index: ([0], noise(rng, 4))),
    "one positive": (10, lambda rng, index: ([3] * (index == 7), noise(rng, 4))),
    "one frame": (10, lambda rng, index: ([index % 5], noise(rng, 1))),
    "equal frames": (10, lambda rng, index: ([index % 5], np.full((4, 12), 77, np.uint8))),
    "zeros": (10, lambda rng, index: ([index % 5], np.zeros((4, 12), np.uint8))),
}
PROGRAMS = {
    "mean": programs.SMALL_MEAN,
    "netvlad": programs.SMALL_NETVLAD,
}
CASES = [
    pytest.param(name, model, marks=[pytest.mark.slow] * (name != "zeros" or model != "mean"))
    for name in DATA
    for model in PROGRAMS
]


def check(tmp_path, data, flags):
    """Trains, evaluates and predicts."""
    run, output = tmp_path / "run", tmp_path / "p.csv"
    programs.run("train", f"--train_dir={run}", f"--train_data_pattern={data}", *flags)
    metrics = programs.evaluate(f"--train_dir={run}", f"--eval_data_pattern={data}")
    assert all(map(math.isfinite, metrics.values()))
    classes = programs.predictions(output, 10, train_dir=run, input_data_pattern=data)
    assert len(classes) == 32
    assert all(np.isfinite(scores).all() for scores in classes.values())


@pytest.mark.parametrize(("name", "model"), CASES)
def test_programs_run_on_degenerate_data(tmp_path, name, model):
    rng = np.random.default_rng(0)
    num_classes, make = DATA[name]
    videos = [make(rng, index) for index in range(32)]
    records = [
        sample_records.frame_record(f"v{index}", labels, rgb=frames[:, :8], audio=frames[:, 8:])
        for index, (labels, frames) in enumerate(videos)
    ]
    data = sample_records.write_records(tmp_path / "a.tfrecord", records)
    check(tmp_path, data, (*PROGRAMS[model], f"--num_classes={num_classes}", "--max_steps=2"))


@pytest.mark.slow
def test_programs_run_on_features_of_size_one(tmp_path):
    data = sample_records.write_frame_files(tmp_path, 1, 32, sizes=(1, 1))
    flags = ("--feature_sizes=1,1", "--max_steps=2")
    check(tmp_path, data, (*programs.SMALL_NETVLAD, *flags))
