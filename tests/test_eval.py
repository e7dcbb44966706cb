"""Evaluation from end to end: which checkpoints, what it writes, what it leaves alone."""

import concurrent.futures
import csv
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import checkpoints
from eval import separate_kind
from eval_util import calculate_gap
from evaluation import new_writer, save_summary
from programs import (
    ROOT,
    evaluate,
    metrics_of,
    predictions,
    run,
    tensorboard_tags,
    train_mean,
)
from run_config import RunConfig
from utils import InputError


def eval_flags(train_dir, data):
    return f"--train_dir={train_dir}", f"--eval_data_pattern={data}"


def test_eval_leaves_everything_that_training_resumes_from_untouched(trained_mean, frame_data):
    def state():
        return {path: path.read_bytes() for path in trained_mean.iterdir() if path.is_file()}

    before = state()
    evaluate(*eval_flags(trained_mean, frame_data))
    assert state() == before


@pytest.fixture
def train_dir(trained_mean, tmp_path):
    """A copy of a run that was not evaluated."""
    return shutil.copytree(trained_mean, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))


def test_eval_evaluates_a_step_or_all_and_keeps_one_entry_per_step(train_dir, frame_data):
    given = eval_flags(train_dir, frame_data)
    run("eval", *given, "--checkpoint=16")
    assert [entry["step"] for entry in metrics_of(train_dir)] == [16]
    run("eval", *given, "--all_checkpoints")
    history = metrics_of(train_dir)
    assert [entry["step"] for entry in history] == [8, 16, 20]
    assert len({entry["gap"] for entry in history}) == 3


def test_curves_of_evaluation_have_the_names_of_those_of_training(trained_mean, frame_data):
    run("eval", *eval_flags(trained_mean, frame_data), "--run_once")
    tags = tensorboard_tags(trained_mean / "eval")
    assert tags == {"loss", "GAP", "Hit@1", "PERR", "mAP"}
    assert tags - {"mAP"} <= tensorboard_tags(trained_mean / "train")


@pytest.mark.parametrize("mode", ["continuous", "--all_checkpoints", "--run_once"])
def test_a_checkpoint_that_training_removes_before_it_is_read_is_passed_over(
    train_dir, frame_data, monkeypatch, mode
):
    """Training with --keep_checkpoints=1 saves step 20 and removes 8 and 16 meanwhile."""
    (train_dir / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-16"\n')
    steps = iter([16, 20])
    monkeypatch.setattr(
        "tensorflow.train.checkpoints_iterator",
        lambda *_, **__: (f"{train_dir}/model.ckpt-{step}" for step in steps),
    )
    read = checkpoints.check_fits

    def remove_before_it_is_read(variables, path):
        if not path.endswith("-20"):
            for other in (*train_dir.glob("*-8.*"), *train_dir.glob("*-16.*")):
                other.unlink()
            (train_dir / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-20"\n')
        read(variables, path)

    monkeypatch.setattr(checkpoints, "check_fits", remove_before_it_is_read)
    mode = () if mode == "continuous" else (mode,)
    run("eval", *eval_flags(train_dir, frame_data), *mode)
    assert [entry["step"] for entry in metrics_of(train_dir)] == [20]
    with pytest.raises(InputError, match=r"there is no checkpoint .*-16"):
        run("eval", *eval_flags(train_dir, frame_data), "--checkpoint=16")


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"step": 1}]', '[{"step": "1", "gap": 0}]'])
def test_a_damaged_history_is_rejected_by_name(tmp_path, train_dir, frame_data, content):
    (train_dir / "eval").mkdir()
    (train_dir / "eval" / "metrics.json").write_text(content)
    for flags in (
        ("eval", *eval_flags(train_dir, frame_data), "--run_once"),
        (
            "average_checkpoints",
            f"--train_dir={train_dir}",
            f"--output_dir={tmp_path}/a",
            "--best=1",
        ),
    ):
        with pytest.raises(InputError, match=r"metrics\.json is not a list of evaluations"):
            run(*flags)


def test_all_checkpoints_of_a_run_without_one_is_an_error(tmp_path, trained_mean, frame_data):
    shutil.copy(trained_mean / "model_flags.json", tmp_path)
    with pytest.raises(InputError, match=r"has no checkpoint \(yet\)"):
        run("eval", *eval_flags(tmp_path, frame_data), "--all_checkpoints")


def test_all_checkpoints_needs_a_run_and_no_checkpoint():
    data = "--eval_data_pattern=data"
    with pytest.raises(InputError, match="--all_checkpoints and --checkpoint cannot be combined"):
        run("eval", "--train_dir=run", data, "--all_checkpoints", "--checkpoint=2")
    with pytest.raises(InputError, match="--train_dir must be given"):
        run("eval", data, "--all_checkpoints", "--exported_model=any")


@pytest.mark.slow
def test_eval_without_run_once_waits_for_new_checkpoints(train_dir, frame_data):
    command = (sys.executable, "eval.py", *eval_flags(train_dir, frame_data))
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_for_steps(train_dir, [20])
            train_mean(train_dir, frame_data, "--num_epochs=3")
            wait_for_steps(train_dir, [20, 30])
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


@pytest.mark.parametrize("num_samplings", [0, 1])
def test_metrics_are_those_of_inference_with_any_batch_size(
    trained_mean, frame_data, tmp_path, num_samplings
):
    flags = (*eval_flags(trained_mean, frame_data), f"--num_samplings={num_samplings}")
    one, other = (evaluate(*flags, f"--batch_size={size}") for size in (7, 160))
    for name in ("gap", "map", "hit_at_one", "perr", "loss"):
        assert one[name] == pytest.approx(other[name], rel=1e-5)
    predicted = predictions(
        tmp_path / "predictions.csv",
        10,
        train_dir=trained_mean,
        num_samplings=num_samplings,
        input_data_pattern=frame_data,
        batch_size=33,
    )
    (batch,) = RunConfig.load(str(trained_mean)).data.reader(frame_data).batches(160)
    scores = np.array([predicted[video] for video in batch.video_ids])
    assert calculate_gap(scores, batch.labels) == pytest.approx(one["gap"], abs=1e-4)


def test_per_class_csv_has_the_names_of_the_vocabulary(trained_mean, frame_data, tmp_path):
    vocabulary = tmp_path / "vocabulary.csv"
    names = ["=A1", 'Cat, "big"', "", *(f"Name {i}" for i in range(3, 10))]
    with vocabulary.open("w", newline="") as file:
        csv.writer(file).writerows([("Index", "Name"), *enumerate(names)])
    table = tmp_path / "classes.csv"
    flags = (f"--per_class_csv={table}", f"--class_names={vocabulary}")
    evaluate(*eval_flags(trained_mean, frame_data), *flags)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["class", "name", "ap", "positives"]
    expected = {str(i): name for i, name in enumerate(["'=A1", *names[1:]])}
    assert {row["class"]: row["name"] for row in rows} == expected
    # Tables of two runs can be laid side by side.
    assert [int(row["class"]) for row in rows] == list(range(10))


def test_evaluations_that_end_together_lose_no_entry(tmp_path):
    names = ("hit_at_one", "perr", "gap", "map", "loss")
    summaries = [{"step": step, **dict.fromkeys(names, 0.5)} for step in range(20)]

    def save(summary):
        save_summary(summary, str(tmp_path), "eval", new_writer(str(tmp_path), "eval"))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(save, summaries))
    assert metrics_of(tmp_path) == summaries
    assert not list(tmp_path.glob("eval/*lock"))


def test_a_train_directory_that_cannot_be_written_is_rejected_before_work(train_dir, frame_data):
    (train_dir / "eval").touch()
    with pytest.raises(
        InputError, match=r"cannot write .*/eval/metrics\.json: .* give --train_dirs"
    ):
        run("eval", *eval_flags(train_dir, frame_data), "--run_once")
    found = evaluate(f"--train_dirs={train_dir}", f"--eval_data_pattern={frame_data}")
    assert found["num_videos"] == 160


def test_evaluations_of_other_videos_are_saved_apart(tmp_path):
    def kind(num_videos, path, num_labels=70):
        summary = {"num_videos": num_videos, "num_labels": num_labels}
        return separate_kind(str(tmp_path), "eval", summary, [path])

    assert kind(20, "data/validate00000.tfrecord") == "eval"
    # Earlier versions saved no number of labels.
    for name, more in (("eval", '"num_labels": 70'), ("eval_test", '"loss": 1.0')):
        folder = tmp_path / name
        folder.mkdir()
        entry = f'{{"step": 1, "gap": 0.5, "num_videos": 20, {more}}}'
        (folder / "metrics.json").write_text(f"[{entry}]")
    assert kind(20, "data/validate00000.tfrecord") == "eval"
    assert kind(20, "data/test00000.tfrecord", num_labels=71) == "eval_test"
    assert kind(30, "data/validate00000.tfrecord") == "eval_validate"
    assert kind(30, "data/test00000.tfrecord") == "eval_test_30"
    (tmp_path / "eval_test_30").mkdir()
    entry = '{"step": 1, "gap": 0.5, "num_videos": 30, "num_labels": 70}'
    (tmp_path / "eval_test_30" / "metrics.json").write_text(f"[{entry}]")
    assert kind(30, "data/test00000.tfrecord", num_labels=71) == "eval_test_30_71"


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"num_videos": 20, "num_labels": 70}, {"gap": 0.6, "segment_map": 0.4}),
        ({"num_videos": 20, "num_labels": 71}, {"gap": 0.6}),
        ({"num_videos": 21, "num_labels": 70}, {"gap": 0.6}),
    ],
    ids=["same videos", "other labels", "other videos"],
)
def test_an_evaluation_keeps_what_only_another_of_the_same_videos_has(tmp_path, later, expected):
    first = {"num_videos": 20, "num_labels": 70, "gap": 0.5, "segment_map": 0.4}
    for step, summary in ((3, first), (4, first), (3, {**later, "gap": 0.6})):
        writer = new_writer(str(tmp_path), "eval")
        save_summary({"step": step, **summary}, str(tmp_path), "eval", writer)
    assert metrics_of(tmp_path) == [{"step": 3, **later, **expected}, {"step": 4, **first}]
