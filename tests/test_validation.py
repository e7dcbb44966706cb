"""Evaluation during training: its numbers, the best checkpoint, early stopping, interruptions."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import eval_util
import files
import predictor
import programs
import sample_records
import validation
from evaluation import evaluate
from programs import metrics_of, run, train_logistic, train_mean, weights_of
from run_config import RunConfig
from trainer import Trainer
from utils import InputError

# GAP by step: the first of two equal values is the best, and the last ones are worse.
GAPS = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.6, 10: 0.2, 12: 0.7}
PERIODS = ("--eval_steps=2", "--keep_best=gap", "--keep_checkpoints=1", "--max_steps=13")


def without_speed(entries):
    return [{**entry, "videos_per_second": None} for entry in entries]


def content_of(checkpoint):
    """Returns all that training resumes from in a checkpoint: name to array."""
    reader = tf.train.load_checkpoint(str(checkpoint))
    names = reader.get_variable_to_shape_map()
    names = [name for name in names if not name.startswith(("save_counter", "_CHECKPOINTABLE"))]
    return {name: reader.get_tensor(name) for name in names}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def validated(tmp_path_factory, frame_data):
    """`trained_mean`, but evaluated during training, and the order of traces and evaluations."""
    order = []
    warn, evaluate = Trainer._warn_of_unused, validation.Validation.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "_warn_of_unused", lambda *given: order.append("trace") or warn(*given)
        )
        patch.setattr(
            validation.Validation,
            "evaluate",
            lambda *given: order.append("evaluation") or evaluate(*given),
        )
        train_dir = train_mean(
            tmp_path_factory.mktemp("validated") / "run",
            frame_data,
            *("--num_epochs=2", "--export_model_steps=8", "--metrics_steps=4"),
            *(f"--eval_data_pattern={frame_data}", "--eval_steps=6", "--keep_best=loss"),
        )
    return train_dir, order


def test_the_numbers_are_those_of_eval_bit_by_bit(validated, frame_data, tmp_path):
    train_dir, _ = validated
    copy = shutil.copytree(train_dir, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    found = metrics_of(train_dir)
    assert [entry["step"] for entry in found] == [6, 12, 18, 20]
    flags = (f"--train_dir={copy}", f"--eval_data_pattern={frame_data}")
    run("eval", *flags, "--all_checkpoints")
    expected = [entry for entry in metrics_of(copy) if entry["step"] in (12, 18, 20)]
    assert without_speed(found[1:]) == without_speed(expected)
    tags = programs.tensorboard_tags(copy / "eval")
    assert programs.tensorboard_tags(train_dir / "eval") == tags
    assert len(list((train_dir / "eval").glob("events.out.tfevents.*"))) == 1


def test_training_learns_the_same_and_is_not_traced_again(validated, trained_mean):
    train_dir, order = validated
    assert_equal(
        content_of(train_dir / "model.ckpt-20"), content_of(trained_mean / "model.ckpt-20")
    )
    assert order == ["trace"] + ["evaluation"] * 4


def test_the_best_is_the_best_of_metrics_json(validated):
    train_dir, _ = validated
    best = json.loads((train_dir / "best.json").read_text())
    entries = {entry["loss"]: entry["step"] for entry in metrics_of(train_dir)}
    assert (best["value"], best["step"]) == min(entries.items())
    assert checkpoints.find(str(train_dir), "best") == str(train_dir / f"best.ckpt-{best['step']}")


def test_a_run_with_moving_averages_is_evaluated_with_them(tmp_path, video_data, caplog):
    caplog.set_level("INFO", logger="absl")
    given = f"--eval_data_pattern={video_data}"
    train_logistic(
        tmp_path, video_data, given, "--ema_decay=0.9", "--keep_best=map", "--max_steps=3"
    )
    assert "evaluated the moving averages of step 3" in caplog.text
    assert "--checkpoint=best --use_ema --output_dir=exported" in caplog.text
    assert f"report.py --train_dir={tmp_path} --use_ema" in caplog.text
    (entry,) = json.loads((tmp_path / "eval_ema" / "metrics.json").read_text())
    expected = programs.evaluate(f"--train_dir={tmp_path}", given, "--use_ema", "--checkpoint=best")
    assert without_speed([entry]) == without_speed([expected])


# --- Scripted metrics -----------------------------------------------------------------------------


class ScriptedPredictor:
    """Stands for a `Predictor`; needs a checkpoint, but restores nothing."""

    def __init__(self, train_dirs, **_):
        (self._train_dir,) = train_dirs
        self.data = RunConfig.load(self._train_dir).data

    def restore(self, checkpoint):
        self.step = checkpoints.step_of(checkpoints.find(self._train_dir, checkpoint))


def evaluate_scripted(model, *_, **__):
    """Stands for `evaluate`: the metrics of the restored step come from `GAPS`."""
    numbers = dict.fromkeys((*eval_util.METRICS, "class_prior_gap"), 0.0)
    summary = {"step": model.step, "num_videos": 1, "top_k": 20, "videos_per_second": 1.0}
    return {**summary, **numbers, "gap": GAPS.get(model.step, 0.0)}, None


def train_scripted(train_dir, video_data, *more):
    """Trains with evaluations that take no time and give the metrics in `GAPS`."""
    flags = (f"--eval_data_pattern={video_data}", *PERIODS, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "Predictor", ScriptedPredictor)
        patch.setattr(validation, "evaluate", evaluate_scripted)
        return train_logistic(train_dir, video_data, *flags)


def state_of(train_dir):
    """Returns the names of the files of checkpoints, best.json and the evaluated metrics."""
    names = sorted(path.name for path in train_dir.glob("*.ckpt*"))
    best = json.loads((train_dir / "best.json").read_text())
    return names, best, [(entry["step"], entry["gap"]) for entry in metrics_of(train_dir)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, video_data):
    return train_scripted(tmp_path_factory.mktemp("unbroken"), video_data)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, video_data):
    """A run that ended early at step 10, with the best step 4."""
    return train_scripted(tmp_path_factory.mktemp("stopped"), video_data, "--early_stopping=3")


def test_every_period_and_the_end_are_evaluated(unbroken):
    names, best, evaluated = state_of(unbroken)
    assert evaluated == [*GAPS.items(), (13, 0.0)]
    assert (best["step"], best["value"]) == (12, 0.7)
    assert {name.partition(".data")[0].removesuffix(".index") for name in names} == {
        "best.ckpt-12",
        "model.ckpt-13",
    }


def test_early_stopping_ends_after_evaluations_that_are_not_better(stopped):
    names, best, evaluated = state_of(stopped)
    assert evaluated == list(GAPS.items())[:5]
    assert (best["step"], best["evaluations_since"]) == (4, 3)
    assert {name.partition("-")[2].partition(".")[0] for name in names} == {"4", "10"}


def test_a_run_that_ended_early_ends_again_and_continues_with_more_patience(
    stopped, unbroken, video_data, tmp_path, caplog
):
    train_dir = shutil.copytree(stopped, tmp_path / "run")
    caplog.set_level("INFO", logger="absl")
    train_scripted(train_dir, video_data, "--early_stopping=3")
    assert "was better than the best, so training ends at step 10" in caplog.text
    assert "no step was made" not in caplog.text
    assert "the best evaluated step is 4, with gap 0.6000. --checkpoint=best" in caplog.text
    assert state_of(train_dir) == state_of(stopped)
    train_scripted(train_dir, video_data, "--early_stopping=4")
    assert state_of(train_dir) == state_of(unbroken)
    assert_equal(content_of(train_dir / "model.ckpt-13"), content_of(unbroken / "model.ckpt-13"))


class KilledError(Exception):
    """Stands for SIGKILL."""


# Where a run is killed, one after another: module, function, and which of its calls.
KILLS = (
    (ScriptedPredictor, "restore", lambda _, checkpoint: checkpoint == "4"),
    (checkpoints, "save_best", lambda _, best: best.last_step == 4),
    (files, "copy", lambda _, path: "best.ckpt-4.index" in path),
    (files, "write_json", lambda path, value: "best.json" in path and value["step"] == 4),
    (checkpoints, "_remove_other_best", lambda _, best: best is not None and best.step == 4),
    (checkpoints, "save_best", lambda _, best: best.last_step == 6),
)


def kill_in(patch, module, name, matches):
    """Makes a function raise an error instead of running, if its arguments match."""
    function = getattr(module, name)

    def call(*given):
        if matches(*given):
            raise KilledError
        return function(*given)

    patch.setattr(module, name, call)


def test_a_run_that_is_killed_again_and_again_keeps_the_same_best(unbroken, video_data, tmp_path):
    for kill in KILLS:
        with pytest.MonkeyPatch.context() as patch:
            kill_in(patch, *kill)
            with pytest.raises(KilledError):
                train_scripted(tmp_path, video_data)
        checkpoints.restore(str(tmp_path), "best", content_of)  # The best so far is complete.
    train_scripted(tmp_path, video_data)
    assert state_of(tmp_path) == state_of(unbroken)
    assert_equal(content_of(tmp_path / "model.ckpt-13"), content_of(unbroken / "model.ckpt-13"))


@pytest.fixture(scope="module")
def step_4(tmp_path_factory, video_data):
    return train_logistic(tmp_path_factory.mktemp("step_4"), video_data, "--max_steps=4")


def test_every_program_takes_the_best_checkpoint(stopped, step_4, video_data, tmp_path):
    train_dir, best = f"--train_dir={stopped}", "--checkpoint=best"
    assert_equal(weights_of(stopped, "best"), weights_of(step_4))
    summary = programs.evaluate(train_dir, best, f"--eval_data_pattern={video_data}")
    assert summary["step"] == 4
    programs.predict(stopped, video_data, tmp_path / "best.csv", best)
    programs.predict(step_4, video_data, tmp_path / "step_4.csv")
    assert (tmp_path / "best.csv").read_bytes() == (tmp_path / "step_4.csv").read_bytes()
    flags = (f"--train_dirs={stopped},{stopped}", best)
    run("export_model", *flags, f"--output_dir={tmp_path}/exported")
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert [model["step"] for model in manifest["models"]] == [4, 4]
    flags = ("--checkpoints=best,10", f"--output_dir={tmp_path}/averaged")
    run("average_checkpoints", train_dir, *flags)
    report = json.loads((tmp_path / "averaged" / "averaged.json").read_text())
    assert report["steps"] == [4, 10]
    video = np.zeros(12, np.float32)
    one, other = (
        predictor.load(folder, checkpoint=checkpoint).predict([video])
        for folder, checkpoint in ((stopped, "best"), (step_4, None))
    )
    assert one.equals(other)


def test_the_best_of_a_run_that_keeps_none_is_an_error(step_4):
    with pytest.raises(InputError, match=r"has no best checkpoint: .* --keep_best"):
        checkpoints.find(str(step_4), "best")


@pytest.mark.parametrize("content", ["[]", "{}", '{"metric": "gap"}', "x"])
def test_a_damaged_best_json_is_an_error(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(InputError, match=r"best\.json (was not written by|is not valid JSON)"):
        checkpoints.find(str(tmp_path), "best")


def test_another_metric_needs_a_new_beginning(stopped, video_data, tmp_path):
    train_dir = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(InputError, match="has kept the best checkpoint by gap"):
        train_scripted(train_dir, video_data, "--keep_best=loss")
    train_scripted(train_dir, video_data, "--keep_best=map", "--max_steps=2", "--start_new_model")
    names, best, evaluated = state_of(train_dir)
    assert (best["metric"], best["step"]) == ("map", 2)
    assert evaluated == [(2, 0.3)]
    assert not [name for name in names if "-2." not in name]


# --- What is rejected, and what is left out -------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_best=gap"], "--keep_best needs --eval_data_pattern, which is not given"),
        (["--early_stopping=2"], "--early_stopping needs --eval_data_pattern"),
        (["--eval_steps=2"], "--eval_steps needs --eval_data_pattern"),
        (["--eval_videos=2"], "--eval_videos needs --eval_data_pattern"),
        (["--eval_data_pattern=x", "--early_stopping=2"], "--early_stopping needs --keep_best"),
        (["--eval_data_pattern=/missing"], "/missing"),
    ],
)
def test_flags_that_lack_another_are_rejected(tmp_path, video_data, flags, message):
    with pytest.raises(InputError, match=message):
        train_logistic(tmp_path / "run", video_data, *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 11}, "says that the records have 11 classes, but the model has 10"),
        ({"dtype": "float16"}, "says that frames are stored as rgb:8"),
        ({"vocabulary": "names.csv"}, "name 1 classes differently"),
    ],
)
def test_other_data_are_rejected_before_training(tmp_path, changes, message):
    for name in ("trained", "evaluated"):
        folder = tmp_path / name
        folder.mkdir()
        sample_records.write_frame_files(folder, 1, 20)
        (folder / "names.csv").write_text(f"Index,Name\n0,{name}\n")
        storage = {"dtype": "uint8", "quantization": {"min": -2.0, "max": 2.0}}
        if name == "evaluated" and "dtype" in changes:
            storage = {"dtype": changes.pop("dtype")}
        features = [{"name": n, "size": s, **storage} for n, s in (("rgb", 8), ("audio", 4))]
        info = {"level": "frame", "features": features, "num_classes": 10}
        if "vocabulary" in changes:
            info["vocabulary"] = "names.csv"
        if name == "evaluated":
            info |= changes
        (folder / "dataset.json").write_text(json.dumps(info))
    flags = (
        "--model=FrameLevelLogisticModel",
        f"--eval_data_pattern={tmp_path}/evaluated/*.tfrecord",
    )
    with pytest.raises(InputError, match=message):
        programs.train(tmp_path / "run", f"{tmp_path}/trained/*.tfrecord", *flags)
    assert not (tmp_path / "run").exists()


def test_only_the_first_videos_are_evaluated(step_4, video_data):
    model = predictor.Predictor([str(step_4)])
    model.restore()
    found, _ = evaluate(model, model.data.reader(video_data), batch_size=16, max_videos=20)
    batch = next(model.data.reader(video_data).batches(20))
    gap = eval_util.calculate_gap(model.predict(batch.inputs), batch.labels)
    assert found["num_videos"] == 20
    assert found["gap"] == pytest.approx(gap, rel=1e-5)


def test_training_on_the_evaluated_files_gets_a_warning(tmp_path, video_data, logged_warnings):
    flags = (f"--eval_data_pattern={video_data}", "--eval_videos=20", "--max_steps=1")
    train_logistic(tmp_path, video_data, *flags)
    assert any("the evaluation does not measure generalization" in text for text in logged_warnings)
    assert [entry["num_videos"] for entry in metrics_of(tmp_path)] == [20]
