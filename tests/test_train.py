"""Training from end to end: learning, resuming, seeds, checkpoints, starting over."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

import losses
import programs
import registry
import train
from programs import SMALL_DATA, metrics_of, run, run_small, train_mean, weights_of
from run_config import RunConfig
from sample_records import flip_bit
from utils import InputError


def steps_in(train_dir):
    return sorted(int(path.stem.rpartition("-")[2]) for path in train_dir.glob("*.index"))


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for path, weight in one.items():
        np.testing.assert_array_equal(weight, other[path], err_msg=path)


@pytest.mark.slow
def test_a_frame_level_model_learns_and_beats_the_class_prior(trained, frame_data):
    run("eval", f"--train_dir={trained}", f"--eval_data_pattern={frame_data}", "--run_once")
    (summary,) = metrics_of(trained)
    assert summary["step"] == 100
    assert summary["num_videos"] == 160
    assert summary["gap"] > 2 * summary["class_prior_gap"]
    assert 0 < summary["hit_at_one"] <= 1
    assert 0 < summary["map"] <= 1


def test_a_video_level_model_learns_and_beats_the_class_prior(tmp_path, video_data):
    train_dir = tmp_path / "run"
    flags = ("--model=MoeModel", *SMALL_DATA, "--batch_size=20", "--base_learning_rate=0.1")
    programs.train(train_dir, video_data, *flags, "--num_epochs=10")
    run("eval", f"--train_dir={train_dir}", f"--eval_data_pattern={video_data}", "--run_once")
    (summary,) = metrics_of(train_dir)
    assert summary["gap"] > 2 * summary["class_prior_gap"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path, trained, frame_data):
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    for path in [trained / "model_flags.json", *trained.glob("model.ckpt-80.*")]:
        shutil.copy(path, resumed)
    (resumed / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-80"')
    run_small(resumed, frame_data, "--num_epochs=10")
    assert steps_in(resumed) == [80, 100]
    assert_equal_weights(weights_of(resumed), weights_of(trained))


def test_accumulated_batches_see_the_videos_of_one_large_batch_also_after_resuming(
    tmp_path, video_data, caplog
):
    caplog.set_level("INFO", logger="absl")
    several = ("--batch_size=4", "--gradient_accumulation=4")
    for name, flags in {
        "large": ("--batch_size=16", "--max_steps=12"),
        "several": (*several, "--max_steps=12"),
        "resumed": (*several, "--max_steps=5"),
    }.items():
        programs.train_logistic(tmp_path / name, video_data, *flags, "--log_steps=5")
    programs.train_logistic(tmp_path / "resumed", video_data, *several, "--max_steps=12")
    assert "batches of 4 videos, 4 in each step; from step 5" in caplog.text
    large, straight, resumed = (
        weights_of(tmp_path / name) for name in ("large", "several", "resumed")
    )
    assert_equal_weights(straight, resumed)
    for path, weight in large.items():
        np.testing.assert_allclose(straight[path], weight, rtol=1e-4, atol=1e-5, err_msg=path)


def test_raising_num_epochs_continues_a_finished_run(tmp_path, trained_mean, frame_data):
    train_mean(tmp_path, frame_data, "--num_epochs=1")
    train_mean(tmp_path, frame_data, "--num_epochs=2")
    assert steps_in(tmp_path) == [10, 20]
    assert_equal_weights(weights_of(tmp_path), weights_of(trained_mean))


@pytest.mark.parametrize(("files", "steps"), [("0", [5]), ("[01]", [5]), ("*", [5, 10])])
def test_a_run_continues_on_other_files_from_its_step(tmp_path, frame_data, files, steps, caplog):
    train_mean(tmp_path, frame_data.replace("*", "00[01]*"), "--num_epochs=1")
    caplog.set_level("INFO", logger="absl")
    train_mean(tmp_path, frame_data.replace("*", f"00{files}*"), "--num_epochs=1")
    assert steps_in(tmp_path) == steps
    assert ("no step was made: the run already used its" in caplog.text) == (steps == [5])


def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path, trained_mean, frame_data):
    for seed in (0, 6):
        train_mean(tmp_path / str(seed), frame_data, "--max_steps=8", f"--seed={seed}")
    same, other = (weights_of(tmp_path / str(seed)) for seed in (0, 6))
    assert_equal_weights(same, weights_of(trained_mean, 8))
    kernel = "FrameLevelLogisticModel/classifier/logistic/kernel"
    assert np.abs(same[kernel] - other[kernel]).max() > 0.01


def test_checkpoints_are_saved_at_the_period_and_at_the_end(trained_mean):
    assert steps_in(trained_mean) == [8, 16, 20]


def test_old_checkpoints_are_removed_beyond_the_number_to_keep(tmp_path, frame_data):
    train_mean(
        tmp_path, frame_data, "--max_steps=9", "--export_model_steps=2", "--keep_checkpoints=2"
    )
    assert steps_in(tmp_path) == [8, 9]


def test_the_config_next_to_the_weights_is_complete(trained_mean):
    values = json.loads((trained_mean / "model_flags.json").read_text())
    assert values["hyperparameters"]["iterations"] == 4
    assert values["hyperparameters"]["l2_penalty"] == 1e-8
    assert values["feature_sizes"] == [8, 4]
    assert values["frame_features"] is True
    assert set(values["versions"]) == {"tensorflow", "keras", "numpy", "python"}
    assert RunConfig.load(str(trained_mean)).batch_size == 16


def test_a_config_made_with_lists_equals_the_saved_one(tmp_path):
    config = RunConfig(
        "DbofModel", feature_names=["rgb", "audio"], feature_sizes=[8, 4], num_classes=10
    )
    config.save(str(tmp_path))
    assert RunConfig.load(str(tmp_path)) == config
    assert not config.differences(RunConfig.load(str(tmp_path)))


def test_tensorboard_gets_loss_and_learning_rate(trained_mean):
    tags = programs.tensorboard_tags(trained_mean / "train")
    assert tags == {"loss", "learning_rate", "examples/s", "GAP", "Hit@1", "PERR"}


def test_tensorboard_gets_all_settings_once_above_the_curves(tmp_path, trained_mean, frame_data):
    (logged,) = programs.tensorboard_settings(trained_mean)
    config = RunConfig.load(str(trained_mean))
    assert logged["model"] == "FrameLevelLogisticModel"
    assert logged["feature_sizes"] == "8,4"
    numbers = {
        name: value
        for name, value in {**vars(config), **config.hyperparameters}.items()
        if isinstance(value, bool | int | float)
    }
    assert len(numbers) > 12
    assert {name: logged[name] for name in numbers} == numbers
    resumed = shutil.copytree(trained_mean, tmp_path / "run")
    train_mean(resumed, frame_data, "--num_epochs=3")
    assert steps_in(resumed)[-1] == 30
    assert programs.tensorboard_settings(resumed) == [logged]


def test_tensorboard_dir_gets_the_settings_and_the_curves(tmp_path, frame_data):
    logs = tmp_path / "logs"
    train_mean(tmp_path / "run", frame_data, "--max_steps=1", f"--tensorboard_dir={logs}")
    assert len(programs.tensorboard_settings(logs)) == 1
    assert "loss" in programs.tensorboard_tags(logs / "train")
    assert not list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=", "--batch_size must be an integer. Received: ''"),
        ("--batch_size=-", "--batch_size must be an integer. Received: '-'"),
        ("--batch_size=1e3", "--batch_size must be an integer. Received: '1e3'"),
        ("--batch_size=-1", "--batch_size must be above 0. Received: -1"),
        (f"--max_steps={2**64}", "--max_steps must be below 2**32. Received: 18446744073709551616"),
        ("--base_learning_rate=1e308", "--base_learning_rate must be finite. Received: 1e+308"),
        ("--learning_rate_decay=nan", "--learning_rate_decay must be finite. Received: nan"),
        ("--l2_penalty=inf", "hyperparameter 'l2_penalty' must be finite. Received: inf"),
        ("--start_new_model=2", "--start_new_model must be true or false. Received: '2'"),
        ("--model=ü", "unknown model 'ü'."),
        ("--train_data_pattern=gs://", "cannot list the files that match 'gs://': "),
        ("--train_dir=/dev/null", "cannot write to --train_dir /dev/null: "),
        ("--tensorboard_dir=/dev/null", "cannot write /dev/null/train/events: "),
    ],
)
def test_odd_values_of_flags_are_rejected_before_any_work(tmp_path, frame_data, flag, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        train_mean(tmp_path / "run", frame_data, flag)
    assert not (tmp_path / "run").exists()


def test_start_new_model_removes_only_the_old_run(tmp_path, trained_mean, frame_data):
    """It also removes the remains of an interrupted save."""
    shutil.copytree(trained_mean, tmp_path, dirs_exist_ok=True)
    for name in ("notes.txt", "eval/mine.csv", "model.ckpt.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    unfinished = tmp_path / "model.ckpt-24_temp"
    unfinished.mkdir()
    (unfinished / "part-00000-of-00001.data").write_text("half")
    train_mean(tmp_path, frame_data, "--max_steps=2", "--start_new_model", "--l2_penalty=0.5")
    assert steps_in(tmp_path) == [2]
    assert not unfinished.exists()
    assert RunConfig.load(str(tmp_path)).hyperparameters["l2_penalty"] == 0.5
    assert [logged["l2_penalty"] for logged in programs.tensorboard_settings(tmp_path)] == [0.5]
    for name in ("notes.txt", "eval/mine.csv", "model.ckpt.txt"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_checkpoint(
    tmp_path, trained_mean, frame_data, monkeypatch
):
    train_dir = shutil.copytree(trained_mean, tmp_path / "run")

    class Exploding(losses.CrossEntropyLoss):
        def pair_losses(self, labels, predictions):
            return super().pair_losses(labels, predictions) / 0.0

    monkeypatch.setitem(registry._REGISTERED, "CrossEntropyLoss", Exploding)
    with pytest.raises(FloatingPointError, match="the loss of step 21 is not finite"):
        train_mean(train_dir, frame_data, "--num_epochs=3")
    assert_equal_weights(weights_of(train_dir), weights_of(trained_mean))


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path, frame_data):
    flags = ("--optimizer=SGD", "--base_learning_rate=1e38", "--clip_gradient_norm=0")
    with pytest.raises(FloatingPointError, match="not finite"):
        train_mean(tmp_path, frame_data, *flags, "--max_steps=20")
    assert not steps_in(tmp_path)


@pytest.mark.slow
def test_training_names_the_corrupt_record_and_continues_if_allowed(tmp_path, frame_data):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in tf.io.gfile.glob(frame_data):
        shutil.copy(path, folder)
    flip_bit(folder / "part002.tfrecord", -20)
    data = str(folder / "*")
    with pytest.raises(InputError, match=r"record 39 of .*part002\.tfrecord"):
        train_mean(tmp_path / "strict", data)
    train_mean(tmp_path / "lenient", data, "--skip_corrupt_records=1", "--num_epochs=2")
    # 159 good videos in each of two epochs, in batches of 16.
    assert steps_in(tmp_path / "lenient") == [19]


def test_the_training_function_leaves_signals_to_its_caller(tmp_path, video_data, monkeypatch):
    def fail(*_):
        raise AssertionError("a signal handler is installed")

    monkeypatch.setattr(signal, "signal", fail)
    options = programs.options(
        "train",
        *programs.SMALL_LOGISTIC,
        f"--train_dir={tmp_path / 'run'}",
        f"--train_data_pattern={video_data}",
        "--max_steps=1",
    )
    assert train.train(options["config"], options["options"]).step == 1
    with pytest.raises(AssertionError, match="handler"):
        train.main(**options)
