"""End to end through the programs: train, resume, evaluate, predict, and what they refuse."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import documents
import inference
import predictor
import registry
import sample_records
import train
from programs import (
    ROOT,
    SMALL_DATA,
    metrics_of,
    prediction_rows,
    run,
    run_command,
    run_small,
    weights_of,
)
from run_config import RunConfig
from utils import InputError


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
    run(
        "train",
        "--model=MoeModel",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={video_data}",
        *SMALL_DATA,
        "--num_epochs=40",
        "--batch_size=20",
        "--base_learning_rate=0.02",
    )
    run("eval", f"--train_dir={train_dir}", f"--eval_data_pattern={video_data}", "--run_once")
    (summary,) = metrics_of(train_dir)
    assert summary["gap"] > 2 * summary["class_prior_gap"]


def test_the_predictions_are_those_of_the_evaluated_model(trained, frame_data, tmp_path):
    output = tmp_path / "predictions.csv"
    data = f"--input_data_pattern={frame_data}"
    run("inference", f"--train_dir={trained}", data, f"--output_file={output}", "--top_k=3")
    header, *rows = prediction_rows(output)
    assert header == ["VideoId", "LabelConfidencePairs"]
    assert len(rows) == 160
    assert len({row[0] for row in rows}) == 160
    for _, pairs in rows:
        classes, scores = pairs.split()[::2], [float(score) for score in pairs.split()[1::2]]
        assert len(set(classes)) == 3
        assert scores == sorted(scores, reverse=True)
    assert not list(tmp_path.glob("*.partial"))


def test_a_compressed_prediction_file_has_the_same_content(trained, frame_data, tmp_path):
    for name in ("plain.csv", "packed.csv.gz"):
        run(
            "inference",
            f"--train_dir={trained}",
            f"--input_data_pattern={frame_data}",
            f"--output_file={tmp_path / name}",
        )
    assert prediction_rows(tmp_path / "plain.csv") == prediction_rows(tmp_path / "packed.csv.gz")


def test_the_seed_decides_the_sampled_frames_of_a_prediction(trained, frame_data, tmp_path):
    outputs = []
    for number, seed in enumerate((1, 1, 2)):
        output = tmp_path / f"{number}.csv"
        run(
            "inference",
            f"--train_dir={trained}",
            f"--input_data_pattern={frame_data}",
            f"--output_file={output}",
            f"--seed={seed}",
        )
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_resumed_run_equals_an_unbroken_one_bit_by_bit(tmp_path, frame_data):
    run_small(tmp_path / "unbroken", frame_data, "--max_steps=26")
    run_small(tmp_path / "resumed", frame_data, "--max_steps=7")
    run_small(tmp_path / "resumed", frame_data, "--max_steps=26")
    unbroken, resumed = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "resumed")
    for path, weight in unbroken.items():
        np.testing.assert_array_equal(weight, resumed[path], err_msg=path)


def test_a_run_whose_data_ended_goes_on_as_if_it_had_not(tmp_path, frame_data):
    run_small(tmp_path / "unbroken", frame_data, "--num_epochs=3")
    run_small(tmp_path / "resumed", frame_data, "--num_epochs=1")
    run_small(tmp_path / "resumed", frame_data, "--num_epochs=3")
    unbroken, resumed = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "resumed")
    for path, weight in unbroken.items():
        np.testing.assert_array_equal(weight, resumed[path], err_msg=path)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, frame_data):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run_small(tmp_path / name, frame_data, "--max_steps=3", f"--seed={seed}")
    a, b, c = (weights_of(tmp_path / name) for name in "abc")
    kernel = "DbofModel/clusters/kernel"
    np.testing.assert_array_equal(a[kernel], b[kernel])
    assert np.abs(a[kernel] - c[kernel]).max() > 0.01


def test_checkpoints_are_saved_at_the_period_and_at_the_end(trained):
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in trained.glob("*.index"))
    assert steps == [40, 80, 100]


def test_old_checkpoints_are_removed_beyond_the_number_to_keep(tmp_path, frame_data):
    run_small(
        tmp_path, frame_data, "--max_steps=9", "--export_model_steps=2", "--keep_checkpoints=2"
    )
    assert {path.stem for path in tmp_path.glob("*.index")} == {"model.ckpt-8", "model.ckpt-9"}


def test_eval_leaves_all_that_training_resumes_from_untouched(trained, frame_data):
    def state():
        return {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}

    before = state()
    run("eval", f"--train_dir={trained}", f"--eval_data_pattern={frame_data}", "--run_once")
    assert state() == before


def test_eval_takes_a_step_and_keeps_one_entry_per_step(trained, frame_data):
    for step in (80, 40, 80):
        run(
            "eval",
            f"--train_dir={trained}",
            f"--eval_data_pattern={frame_data}",
            f"--checkpoint={step}",
        )
    steps = [entry["step"] for entry in metrics_of(trained)]
    assert steps == sorted(set(steps))
    assert {40, 80} <= set(steps)


def test_eval_of_all_checkpoints_gives_a_learning_curve(tmp_path, frame_data):
    run_small(tmp_path, frame_data, "--max_steps=6", "--export_model_steps=2")
    given = (f"--train_dir={tmp_path}", f"--eval_data_pattern={frame_data}", "--all_checkpoints")
    run("eval", *given)
    history = metrics_of(tmp_path)
    assert [entry["step"] for entry in history] == [2, 4, 6]
    assert len({entry["gap"] for entry in history}) == 3
    with pytest.raises(InputError, match="--all_checkpoints and --checkpoint exclude each other"):
        run("eval", *given, "--checkpoint=2")
    with pytest.raises(InputError, match="--train_dir must be given"):
        run("eval", *given[1:], "--exported_model=any")


def test_eval_without_run_once_waits_for_new_checkpoints(tmp_path, frame_data):
    train_dir = tmp_path / "run"
    run_small(train_dir, frame_data, "--max_steps=2")
    command = ("eval.py", f"--train_dir={train_dir}", f"--eval_data_pattern={frame_data}")
    with subprocess.Popen([sys.executable, *command], cwd=ROOT) as process:
        try:
            wait_for_steps(train_dir, [2])
            run_small(train_dir, frame_data, "--max_steps=4")
            wait_for_steps(train_dir, [2, 4])
            assert process.poll() is None
        finally:
            process.kill()


def wait_for_steps(train_dir, steps, seconds=120):
    deadline = time.monotonic() + seconds
    found = None
    while found != steps and time.monotonic() < deadline:
        time.sleep(0.2)
        if (train_dir / "eval" / "metrics.json").exists():
            found = [entry["step"] for entry in metrics_of(train_dir)]
    assert found == steps


def test_metrics_do_not_depend_on_the_batch_size(tmp_path, frame_data):
    train_dir = tmp_path / "run"
    run_small(train_dir, frame_data, "--max_steps=20", "--iterations=0")
    summaries = []
    for batch_size in (7, 160):
        run(
            "eval",
            f"--train_dir={train_dir}",
            f"--eval_data_pattern={frame_data}",
            f"--batch_size={batch_size}",
            "--run_once",
        )
        summaries.append(metrics_of(train_dir)[0])
    for name in ("gap", "map", "hit_at_one", "perr", "loss"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-5)


def test_per_class_csv_has_the_names_of_the_vocabulary(trained, frame_data, tmp_path):
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("Index,Name\n" + "".join(f"{i},Name {i}\n" for i in range(10)))
    table = tmp_path / "classes.csv"
    run(
        "eval",
        f"--train_dir={trained}",
        f"--eval_data_pattern={frame_data}",
        "--run_once",
        f"--per_class_csv={table}",
        f"--class_names={vocabulary}",
    )
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["name"] for row in rows} == {f"Name {i}" for i in range(10)}
    scores = [float(row["ap"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(row["name"] == f"Name {row['class']}" for row in rows)


def test_the_config_beside_the_weights_is_complete(trained):
    values = json.loads((trained / "model_flags.json").read_text())
    assert values["hyperparameters"]["dbof_cluster_size"] == 16
    assert values["hyperparameters"]["moe_num_mixtures"] == 2
    assert values["feature_sizes"] == [8, 4]
    assert values["frame_features"] is True
    assert set(values["versions"]) == {"tensorflow", "keras", "numpy", "python"}
    assert RunConfig.load(str(trained)).batch_size == 16


def test_tensorboard_gets_loss_and_learning_rate(trained):
    (path,) = (trained / "train").glob("events.out.tfevents.*")
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"loss", "learning_rate", "examples/s", "GAP", "Hit@1", "PERR"} <= tags


def test_retraining_with_other_settings_is_refused_and_shows_what_differs(trained, frame_data):
    with pytest.raises(InputError, match=r"dbof_hidden_size: 8 there, 9 now") as error:
        run_small(trained, frame_data, "--dbof_hidden_size=9")
    assert "dbof_cluster_size" not in str(error.value)
    assert "--start_new_model" in str(error.value)


def test_start_new_model_removes_the_old_run_and_nothing_else(tmp_path, frame_data):
    run_small(tmp_path, frame_data, "--max_steps=3")
    for name in ("notes.txt", "eval/mine.csv", "model.ckpt.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    run_small(tmp_path, frame_data, "--max_steps=2", "--start_new_model", "--dbof_hidden_size=9")
    assert {path.stem for path in tmp_path.glob("*.index")} == {"model.ckpt-2"}
    assert RunConfig.load(str(tmp_path)).hyperparameters["dbof_hidden_size"] == 9
    for name in ("notes.txt", "eval/mine.csv", "model.ckpt.txt"):
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "flag", ["--feature_sizes=9,4", "--dbof_pooling_method=median", "--optimizer=NoSuch"]
)
def test_bad_input_leaves_an_old_run_alone(tmp_path, frame_data, flag):
    run_small(tmp_path, frame_data, "--max_steps=3")
    with pytest.raises(InputError):
        run_small(tmp_path, frame_data, "--start_new_model", flag)
    assert (tmp_path / "model.ckpt-3.index").exists()


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_checkpoint(
    tmp_path, frame_data, monkeypatch
):
    run_small(tmp_path, frame_data, "--max_steps=3")
    kernel = weights_of(tmp_path)["DbofModel/hidden/kernel"]

    class Exploding(train.trainer.losses.CrossEntropyLoss):
        def call(self, y_true, y_pred):
            return super().call(y_true, y_pred) / 0.0

    monkeypatch.setitem(train.trainer.losses.LOSSES, "CrossEntropyLoss", Exploding)
    with pytest.raises(FloatingPointError, match="the loss of step 4 is not finite"):
        run_small(tmp_path, frame_data, "--max_steps=9")
    np.testing.assert_array_equal(weights_of(tmp_path)["DbofModel/hidden/kernel"], kernel)


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path, frame_data):
    with pytest.raises(FloatingPointError, match="not finite"):
        run_small(
            tmp_path,
            frame_data,
            "--optimizer=SGD",
            "--base_learning_rate=1e38",
            "--clip_gradient_norm=0",
            "--max_steps=20",
        )
    assert not list(tmp_path.glob("*.index"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=NoSuchModel", "unknown model 'NoSuchModel'. Registered models: DbofModel"),
        ("--lstm_cells=3", "DbofModel does not take lstm_cells. It takes: dbof_add_batch_norm"),
        ("--optimizer=NoSuch", "unknown optimizer 'NoSuch'. Optimizers:"),
        ("--batch_size=0", "--batch_size must be above 0. Received: 0"),
        ("--feature_sizes=8,x", "--feature_sizes must be integers"),
        ("--feature_sizes=8", "as many feature sizes as feature names"),
        ("--feature_names=rgb,sound", "feature 'sound' is not in"),
        ("--num_classes=4", "labels must be 0 to 3"),
        ("--noframe_features", "DbofModel takes frames"),
        ("--dbof_pooling_method=median", "dbof_pooling_method must be one of max, average"),
        ("--video_level_classifier_model=LstmModel", "must be a video-level model"),
        ("--batch_size=161", "--batch_size=161 is larger than the data: 160 videos in 4 files"),
        ("--train_data_pattern=/no/such/*.tfrecord", "no file matches '/no/such/*.tfrecord'"),
        ("--train_data_pattern=", "--train_data_pattern must be given"),
        ("--train_dir=/proc/none/run", "cannot write to --train_dir /proc/none/run"),
    ],
)
def test_train_refuses_bad_flags_with_a_sentence(tmp_path, frame_data, flag, message):
    with pytest.raises(InputError) as error:
        run_small(tmp_path, frame_data, flag)
    assert message in str(error.value)


def test_unknown_flags_are_refused_with_a_suggestion(tmp_path, frame_data):
    with pytest.raises(flags.UnrecognizedFlagError, match="Did you mean: dbof_cluster_size"):
        run_small(tmp_path, frame_data, "--dbof_cluster_sizes=3")


def test_levels_of_data_and_model_must_agree(tmp_path, frame_data, video_data):
    with pytest.raises(InputError, match="holds video-level features"):
        run_small(tmp_path, video_data)
    with pytest.raises(InputError, match="holds frame-level features"):
        run(
            "train",
            "--model=MoeModel",
            f"--train_dir={tmp_path}",
            f"--train_data_pattern={frame_data}",
            *SMALL_DATA,
        )


def test_a_directory_without_a_run_is_refused(tmp_path, frame_data):
    output = f"--output_file={tmp_path / 'p.csv'}"
    for program, flag, more in ((eval_program, "eval", "--run_once"), (inference, "input", output)):
        with pytest.raises(InputError, match=r"has no model_flags\.json"):
            run(
                program,
                f"--train_dir={tmp_path}",
                f"--{flag}_data_pattern={frame_data}",
                more,
            )


def test_a_directory_without_a_checkpoint_is_refused(tmp_path, trained, frame_data):
    (tmp_path / "model_flags.json").write_bytes((trained / "model_flags.json").read_bytes())
    with pytest.raises(InputError, match="has no checkpoint"):
        run(
            "eval",
            f"--train_dir={tmp_path}",
            f"--eval_data_pattern={frame_data}",
            "--run_once",
        )


def test_a_missing_step_is_refused_and_names_those_there_are(trained, frame_data):
    with pytest.raises(InputError, match=r"model\.ckpt-41.*has: model\.ckpt-100, model\.ckpt-40"):
        run(
            "eval",
            f"--train_dir={trained}",
            f"--eval_data_pattern={frame_data}",
            "--checkpoint=41",
        )


def test_a_checkpoint_of_another_model_is_refused_naming_weights(tmp_path, trained, frame_data):
    run_small(tmp_path, frame_data, "--max_steps=1", "--dbof_hidden_size=9")
    with pytest.raises(InputError, match=r"DbofModel/hidden/kernel is \[16, 9\] instead of \[16"):
        run(
            "eval",
            f"--train_dir={trained}",
            f"--eval_data_pattern={frame_data}",
            f"--checkpoint={tmp_path / 'model.ckpt-1'}",
        )


def test_checkpoints_without_their_config_are_refused(tmp_path, frame_data):
    run_small(tmp_path, frame_data, "--max_steps=1")
    (tmp_path / "model_flags.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints, but no model_flags\.json"):
        run_small(tmp_path, frame_data)


def test_eval_refuses_data_without_any_label(tmp_path, trained):
    record = sample_records.frame_record("a", [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    with pytest.raises(InputError, match="none of the 1 videos has a label"):
        run("eval", f"--train_dir={trained}", f"--eval_data_pattern={path}", "--run_once")


def test_inference_takes_data_without_labels(tmp_path, trained):
    record = sample_records.frame_record("a,b", [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    output = tmp_path / "predictions.csv"
    run(
        "inference",
        f"--train_dir={trained}",
        f"--input_data_pattern={path}",
        f"--output_file={output}",
    )
    assert prediction_rows(output)[1][0] == "a,b"


def test_an_unwritable_output_is_refused_before_the_model_is_built(trained, frame_data):
    with pytest.raises(InputError, match=r"cannot write /proc/none/p\.csv"):
        run(
            "inference",
            f"--train_dir={trained}",
            f"--input_data_pattern={frame_data}",
            "--output_file=/proc/none/p.csv",
        )


def test_a_damaged_record_stops_inference_without_an_output_file(tmp_path, trained, frame_data):
    source = next(pathlib.Path(frame_data).parent.glob("part000*"))
    content = bytearray(source.read_bytes())
    content[200] ^= 1
    damaged = tmp_path / "damaged.tfrecord"
    damaged.write_bytes(content)
    output = tmp_path / "predictions.csv"
    arguments = (
        f"--train_dir={trained}",
        f"--input_data_pattern={damaged}",
        f"--output_file={output}",
    )
    with pytest.raises(InputError, match=r"record \d+ of .*damaged\.tfrecord"):
        run("inference", *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged.tfrecord"}
    run("inference", *arguments, "--skip_corrupt_records=1")
    assert len(prediction_rows(output)) == 1 + 39


def test_training_names_the_damaged_record_and_goes_on_if_allowed(tmp_path, frame_data):
    folder = tmp_path / "data"
    folder.mkdir()
    for source in pathlib.Path(frame_data).parent.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    victim = folder / "part002.tfrecord"
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    data = str(folder / "*")
    with pytest.raises(InputError, match=r"record 39 of .*part002\.tfrecord"):
        run_small(tmp_path / "strict", data)
    run_small(tmp_path / "lenient", data, "--skip_corrupt_records=1", "--num_epochs=2")
    # 159 good videos in each of two epochs, in batches of 16.
    assert (tmp_path / "lenient" / "model.ckpt-19.index").exists()


def test_the_readme_model_in_a_new_file_is_a_model_with_flags_in_all_programs(tmp_path, frame_data):
    project = tmp_path / "project"
    project.mkdir()
    for source in ROOT.glob("*.py"):
        (project / source.name).write_bytes(source.read_bytes())
    (code,) = [
        block
        for block in documents.code_blocks(ROOT / "README.md", "python")
        if "@registry.register" in block
    ]
    assert len(code.splitlines()) <= 28
    (project / "my_models.py").write_text(code)
    train_dir, output = tmp_path / "run", tmp_path / "p.csv"
    commands = [
        (
            "train.py",
            "--model=AttentionModel",
            "--attention_units=5",
            f"--train_data_pattern={frame_data}",
            *SMALL_DATA,
            "--batch_size=16",
            "--max_steps=5",
        ),
        (
            "inference.py",
            f"--input_data_pattern={frame_data}",
            f"--output_file={output}",
        ),
    ]
    for command in commands:
        result = run_command(*command, f"--train_dir={train_dir}", cwd=project)
        assert result.returncode == 0, result.stderr
    assert len(prediction_rows(output)) == 161
    config = json.loads((train_dir / "model_flags.json").read_text())
    assert config["hyperparameters"]["attention_units"] == 5


def test_bad_input_ends_a_program_with_one_line_and_status_1(tmp_path):
    result = run_command(
        "eval.py", f"--train_dir={tmp_path}", "--eval_data_pattern=x", "--run_once"
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("eval.py: error: ")


def test_help_teaches_every_hyperparameter_with_its_default():
    result = run_command("train.py", "--help")
    text = " ".join(result.stdout.split())
    for model in registry.models():
        for name, parameter in registry.hyperparameters(model).items():
            assert f"{name}: " in text
            assert repr(parameter.default) in text


def test_start_new_model_also_removes_what_an_interrupted_save_left(tmp_path, frame_data):
    run_small(tmp_path, frame_data, "--max_steps=2")
    left = tmp_path / "model.ckpt-3_temp"
    left.mkdir()
    (left / "part-00000-of-00001.data").write_text("half")
    run_small(tmp_path, frame_data, "--max_steps=1", "--start_new_model")
    assert not left.exists()
    assert {path.stem for path in tmp_path.glob("*.index")} == {"model.ckpt-1"}


@pytest.mark.parametrize("flag", ["--seed=-1", "--keep_checkpoints=-1", "--clip_gradient_norm=-1"])
def test_negative_values_are_refused(tmp_path, frame_data, flag):
    name, _, value = flag.partition("=")
    with pytest.raises(InputError, match=rf"{name} must be 0 or more\. Received: {value}"):
        run_small(tmp_path, frame_data, flag)


def test_a_checkpoint_without_a_step_in_its_name_is_refused(trained, frame_data, tmp_path):
    for path in trained.glob("model.ckpt-40.*"):
        (tmp_path / path.name.replace("40", "best")).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="must end in -STEP"):
        run(
            "eval",
            f"--train_dir={trained}",
            f"--eval_data_pattern={frame_data}",
            f"--checkpoint={tmp_path / 'model.ckpt-best'}",
        )


def test_eval_refuses_an_unwritable_table_and_names_without_a_table_at_once(trained):
    arguments = (f"--train_dir={trained}", "--eval_data_pattern=/no/such/file", "--run_once")
    with pytest.raises(InputError, match="cannot write /proc/none/classes"):
        run("eval", *arguments, "--per_class_csv=/proc/none/classes.csv")
    with pytest.raises(InputError, match="--per_class_csv, which is not given"):
        run("eval", *arguments, "--class_names=vocabulary.csv")


def test_a_config_made_with_lists_is_the_one_that_was_saved(tmp_path):
    config = RunConfig(
        "DbofModel", feature_names=["rgb", "audio"], feature_sizes=[8, 4], num_classes=10
    )
    config.save(str(tmp_path))
    assert RunConfig.load(str(tmp_path)) == config
    assert not config.differences(RunConfig.load(str(tmp_path)))


def test_programs_refuse_another_backend_of_keras(tmp_path):
    code = "import keras, sys; keras.backend.backend = lambda: 'jax'; import program; "
    code += "sys.argv = ['x.py']; program.run(lambda flags: None, lambda flags: None)"
    result = run_command("-c", code)
    assert result.returncode == 1
    assert "KERAS_BACKEND=tensorflow" in result.stderr.splitlines()[-1]


def test_a_run_whose_weights_would_be_read_wrongly_is_refused(trained, video_data, tmp_path):
    train_dir = tmp_path / "run"
    shutil.copytree(trained, train_dir)
    path = train_dir / "model_flags.json"
    values = json.loads(path.read_text())
    del values["weights_format"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="checkpoints have format 1; this version reads format 2"):
        predictor.Predictor([str(train_dir)])
