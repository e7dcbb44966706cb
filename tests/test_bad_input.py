"""Bad input: every program rejects it with a sentence and leaves earlier results alone."""

import dataclasses
import json
import shutil

import pytest

import predictor
import sample_records
from programs import SMALL_DATA, evaluate, predict, run, run_command, train, train_mean
from run_config import RunConfig
from utils import InputError


@pytest.fixture
def run_copy(trained_mean, tmp_path):
    """Returns a copy of a train directory, to change."""
    return shutil.copytree(trained_mean, tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model=NoSuchModel", "unknown model 'NoSuchModel'. Registered models: DbofModel"),
        ("--lstm_cells=3", "FrameLevelLogisticModel does not take lstm_cells. It takes: clas"),
        ("--optimizer=NoSuch", "unknown optimizer 'NoSuch'. Optimizers:"),
        ("--batch_size=0", "--batch_size must be above 0. Received: 0"),
        ("--feature_sizes=8,x", "--feature_sizes must be integers"),
        ("--feature_sizes=8", "every feature needs a name and a size"),
        ("--feature_names=rgb,sound", "it has no feature 'sound'"),
        ("--num_classes=4", "labels must be 0 to 3"),
        ("--noframe_features", "FrameLevelLogisticModel takes frames"),
        (
            "--model=DbofModel --dbof_pooling_method=median",
            "dbof_pooling_method must be one of max, average",
        ),
        ("--video_level_classifier_model=LstmModel", "must be a video-level model"),
        pytest.param(
            "--batch_size=161",
            "a step takes 161 videos, but there are only 160 in 4 files",
            marks=pytest.mark.slow,
        ),
        ("--train_data_pattern=/no/such/*.tfrecord", "no file matches '/no/such/*.tfrecord'"),
        ("--train_dir=/proc/none/run", "cannot write to --train_dir /proc/none/run"),
        ("--seed=-1", "--seed must be 0 or more. Received: -1"),
        ("--keep_checkpoints=-1", "--keep_checkpoints must be 0 or more. Received: -1"),
        ("--clip_gradient_norm=-1", "--clip_gradient_norm must be 0 or more. Received: -1"),
        ("--ema_decay=1", "--ema_decay must be below 1. Received: 1.0"),
    ],
)
def test_train_rejects_bad_flags_with_a_sentence(tmp_path, frame_data, flags, message):
    with pytest.raises(InputError) as error:
        train_mean(tmp_path, frame_data, *flags.split())
    assert message in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--feature_sizes=9,4",
        "--model=DbofModel --dbof_pooling_method=median",
        "--optimizer=NoSuch",
    ],
)
def test_bad_input_leaves_an_old_run_alone(run_copy, frame_data, flags):
    with pytest.raises(InputError):
        train_mean(run_copy, frame_data, "--start_new_model", *flags.split())
    assert (run_copy / "model.ckpt-20.index").exists()
    assert (run_copy / "model_flags.json").exists()


def test_retraining_with_other_settings_is_rejected_and_shows_the_differences(
    trained_mean, frame_data
):
    with pytest.raises(InputError, match=r"l2_penalty: 1e-08 there, 0\.5 now") as error:
        train_mean(trained_mean, frame_data, "--l2_penalty=0.5")
    assert "iterations" not in str(error.value)
    assert "--start_new_model" in str(error.value)


def test_no_output_replaces_an_input(tmp_path, trained_mean, frame_data):
    data = tmp_path / "data.tfrecord"
    shutil.copy(frame_data.replace("*", "000"), data)
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("Index,Name\n0,Game\n")
    (tmp_path / "link").symlink_to(tmp_path)
    content = data.read_bytes()
    for output in (data, tmp_path / "link" / data.name):
        message = f"{output} would replace an input file"
        with pytest.raises(InputError, match=message):
            predict(trained_mean, data, output)
        given = (f"--train_dir={trained_mean}", f"--eval_data_pattern={data}", "--run_once")
        for flag in ("metrics_json", "per_class_csv"):
            with pytest.raises(InputError, match=message):
                run("eval", *given, f"--{flag}={output}")
    given = (f"--class_names={vocabulary}", f"--per_class_csv={vocabulary}")
    with pytest.raises(InputError, match=r"vocabulary\.csv would replace an input file"):
        evaluate_run(trained_mean, data, *given)
    assert data.read_bytes() == content
    assert vocabulary.read_text() == "Index,Name\n0,Game\n"


def test_levels_of_data_and_model_must_agree(tmp_path, frame_data, video_data):
    with pytest.raises(InputError, match="has no frames, which the model takes"):
        train_mean(tmp_path, video_data)
    with pytest.raises(InputError, match="holds frame-level features"):
        train(tmp_path, frame_data, "--model=MoeModel", *SMALL_DATA)


def evaluate_run(train_dir, data, *more):
    evaluate(f"--train_dir={train_dir}", f"--eval_data_pattern={data}", *more)


def test_a_directory_without_a_run_is_rejected(tmp_path, frame_data):
    with pytest.raises(InputError, match=r"has no model_flags\.json"):
        evaluate_run(tmp_path, frame_data)
    with pytest.raises(InputError, match=r"has no model_flags\.json"):
        predict(tmp_path, frame_data, tmp_path / "p.csv")


def test_a_directory_without_a_checkpoint_is_rejected(tmp_path, trained_mean, frame_data):
    shutil.copy(trained_mean / "model_flags.json", tmp_path)
    with pytest.raises(InputError, match="has no checkpoint"):
        evaluate_run(tmp_path, frame_data)


def test_checkpoints_without_their_config_are_rejected(run_copy, frame_data):
    (run_copy / "model_flags.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints, but no model_flags\.json"):
        train_mean(run_copy, frame_data)


def test_a_missing_step_is_rejected_and_the_existing_ones_are_named(trained_mean, frame_data):
    with pytest.raises(InputError, match=r"model\.ckpt-5.*has: model\.ckpt-16, model\.ckpt-20"):
        evaluate_run(trained_mean, frame_data, "--checkpoint=5")


def test_a_checkpoint_without_a_step_in_its_name_is_rejected(trained_mean, frame_data, tmp_path):
    for path in trained_mean.glob("model.ckpt-8.*"):
        shutil.copy(path, tmp_path / path.name.replace("-8", "-best"))
    with pytest.raises(InputError, match="must end in -STEP"):
        evaluate_run(trained_mean, frame_data, f"--checkpoint={tmp_path / 'model.ckpt-best'}")


def test_a_checkpoint_of_another_model_is_rejected_naming_weights(
    tmp_path, trained_mean, frame_data
):
    config = RunConfig.load(str(trained_mean))
    dataclasses.replace(config, num_classes=9).save(str(tmp_path))
    with pytest.raises(InputError, match=r"logistic/kernel is \[12, 10\] instead of \[12, 9\]"):
        evaluate_run(tmp_path, frame_data, f"--checkpoint={trained_mean / 'model.ckpt-8'}")


def test_a_run_whose_weights_would_be_misread_is_rejected(run_copy):
    path = run_copy / "model_flags.json"
    values = json.loads(path.read_text())
    del values["weights_format"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="checkpoints have format 1; this version reads format 2"):
        predictor.Predictor([str(run_copy)])


def test_eval_rejects_data_without_any_label(tmp_path, trained_mean):
    record = sample_records.frame_record("a", [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    with pytest.raises(InputError, match="none of the first 1 videos has a label"):
        evaluate_run(trained_mean, path)


def test_an_unwritable_output_is_rejected_before_the_model_is_built(frame_data):
    with pytest.raises(InputError, match=r"cannot write /proc/none/p\.csv"):
        predict("/no/run", frame_data, "/proc/none/p.csv")
    with pytest.raises(InputError, match="cannot write /proc/none/classes"):
        evaluate_run("/no/run", "/no/such/file", "--per_class_csv=/proc/none/classes.csv")


def test_class_names_without_a_table_are_rejected():
    with pytest.raises(InputError, match="--per_class_csv, which is not given"):
        evaluate_run("/no/run", "/no/such/file", "--class_names=vocabulary.csv")


@pytest.mark.slow
def test_another_backend_of_keras_is_rejected():
    code = "import keras; keras.backend.backend = lambda: 'jax'; import program; "
    code += "program.run(lambda: None)"
    result = run_command("-c", code)
    assert result.returncode == 1
    assert "KERAS_BACKEND=tensorflow" in result.stderr.splitlines()[-1]
