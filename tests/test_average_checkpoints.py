"""Averaged checkpoints and moving averages of weights, through the programs."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import average_checkpoints
import checkpoints
import files
import programs
from run_config import RunConfig
from utils import InputError

STATISTICS = ("moving_mean", "moving_variance")
SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


def average(train_dir, output_dir, *more):
    programs.run(
        "average_checkpoints", f"--train_dir={train_dir}", f"--output_dir={output_dir}", *more
    )
    return json.loads((output_dir / "averaged.json").read_text())


def expected_mean(train_dir, steps):
    """Returns the mean of the weights in float64, by path."""
    all_weights = [programs.weights_of(train_dir, str(step)) for step in steps]
    return {
        path: np.mean([np.float64(weights[path]) for weights in all_weights], axis=0)
        for path in all_weights[0]
    }


def stored_values(path):
    """Returns the variables of a checkpoint by name."""
    reader = tf.train.load_checkpoint(str(path))
    names = [name for name in reader.get_variable_to_shape_map() if "/.ATTRIBUTES/" in name]
    return {name: reader.get_tensor(name) for name in names if name != SAVE_COUNTER}


# The mean of one checkpoint is that checkpoint.
@pytest.mark.parametrize(
    ("choice", "steps"), [("--num_last=3", [40, 80, 100]), ("--checkpoints=80", [80])]
)
def test_weights_are_the_float64_mean(trained, tmp_path, choice, steps):
    report = average(trained, tmp_path / "mean", choice)
    assert report["steps"] == steps
    assert report["batch_norm"] == "mean"
    averaged = programs.weights_of(tmp_path / "mean")
    last = programs.weights_of(trained, str(steps[-1]))
    for path, mean in expected_mean(trained, steps).items():
        if path.endswith("num_updates"):
            assert averaged[path] == last[path]
        else:
            np.testing.assert_array_equal(averaged[path], mean.astype(np.float32), err_msg=path)
        assert averaged[path].dtype == np.float32


def test_the_optimizer_is_averaged_too_and_its_step_is_the_last(trained, tmp_path):
    average(trained, tmp_path / "mean", "--num_last=2")
    merged = tf.train.load_checkpoint(str(tmp_path / "mean"))
    parts = [tf.train.load_checkpoint(str(trained / f"model.ckpt-{step}")) for step in (80, 100)]
    names = [name for name in merged.get_variable_to_shape_map() if name.startswith("optimizer/")]
    assert len(names) > 10
    for name in names:
        values = [part.get_tensor(name) for part in parts]
        expected = values[-1]
        if np.issubdtype(np.asarray(expected).dtype, np.floating):
            expected = np.mean(values, axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(merged.get_tensor(name), expected, err_msg=name)


@pytest.mark.parametrize(
    ("choice", "steps"),
    [
        (("--num_last=2",), [80, 100]),
        (("--first_step=41",), [80, 100]),
        (("--first_step=40", "--last_step=80"), [40, 80]),
        (("--last_step=99",), [40, 80]),
        (("--checkpoints=100,40",), [40, 100]),
        ((), [40, 80, 100]),
    ],
)
def test_checkpoints_are_chosen_by_step(trained, tmp_path, choice, steps):
    assert average(trained, tmp_path / "mean", *choice)["steps"] == steps
    assert (tmp_path / "mean" / f"model.ckpt-{steps[-1]}.index").exists()


def test_best_takes_the_checkpoints_of_highest_gap(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    with pytest.raises(InputError, match=r"--best needs .*metrics\.json"):
        average(copy, tmp_path / "mean", "--best=2")
    (copy / "eval").mkdir()
    gaps = [{"step": 40, "gap": 0.5}, {"step": 80, "gap": 0.3}, {"step": 100, "gap": 0.4}]
    (copy / "eval" / "metrics.json").write_text(json.dumps([*gaps, {"step": 9, "gap": 0.9}]))
    assert average(copy, tmp_path / "mean", "--best=2")["steps"] == [40, 100]


def test_digests_are_equal_only_for_equal_results(trained, tmp_path):
    digests = [
        average(trained, tmp_path / str(number), f"--num_last={count}")["digest"]
        for number, count in enumerate((2, 2, 3))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_batch_norm_last_takes_the_last_statistics_and_warns(trained, tmp_path, caplog):
    average(trained, tmp_path / "mean", "--batch_norm=last")
    assert "can be worse than that checkpoint" in caplog.text
    averaged, last = programs.weights_of(tmp_path / "mean"), programs.weights_of(trained)
    mean = expected_mean(trained, (40, 80, 100))
    for path, weight in averaged.items():
        expected = last[path] if path.endswith((*STATISTICS, "num_updates")) else mean[path]
        np.testing.assert_array_equal(weight, np.float32(expected), err_msg=path)


def test_recomputed_statistics_are_those_of_the_averaged_weights(trained, frame_data, tmp_path):
    data = f"--train_data_pattern={frame_data}"
    report = average(trained, tmp_path / "mean", data, "--batch_norm_batches=100")
    assert report["batch_norm"] == "recompute"
    averaged = programs.weights_of(tmp_path / "mean")
    mean = expected_mean(trained, (40, 80, 100))
    for path, weight in averaged.items():
        if not path.endswith((*STATISTICS, "num_updates")):
            np.testing.assert_array_equal(weight, np.float32(mean[path]), err_msg=path)
    # Statistics of the input depend on no weight, so they follow from the frames.
    reader = RunConfig.load(str(trained)).data.reader(files.expand_patterns(frame_data))
    frames = []
    for batch in reader.batches(40):
        # All videos count alike: the same number of frames is sampled from each.
        for video, count in zip(batch.inputs["frames"], batch.inputs["num_frames"], strict=True):
            values = video[:count] * (4 / 255) + 4 / 512 - 2
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            frames.append((values.mean(axis=0), (values**2).mean(axis=0)))
    first, second = (np.mean(part, axis=0) for part in zip(*frames, strict=True))
    norm = "DbofModel/input_norm"
    np.testing.assert_allclose(averaged[f"{norm}/moving_mean"], first, atol=5e-3)
    np.testing.assert_allclose(
        averaged[f"{norm}/moving_variance"], second - first**2, rtol=0.05, atol=1e-3
    )


def test_a_model_without_batch_norm_has_nothing_to_recompute(tmp_path, video_data, caplog):
    caplog.set_level("INFO", logger="absl")
    run = tmp_path / "run"
    programs.train_logistic(run, video_data, "--max_steps=2", "--export_model_steps=1")
    average(run, tmp_path / "mean", f"--train_data_pattern={video_data}")
    assert "nothing to recompute" in caplog.text


@pytest.mark.slow
def test_an_averaged_run_can_be_evaluated_used_and_trained_further(trained, frame_data, tmp_path):
    averaged = tmp_path / "mean"
    average(trained, averaged, f"--train_data_pattern={frame_data}", "--batch_norm_batches=50")
    alone = programs.evaluate(f"--train_dir={trained}", f"--eval_data_pattern={frame_data}")
    merged = programs.evaluate(f"--train_dir={averaged}", f"--eval_data_pattern={frame_data}")
    assert merged["step"] == 100
    assert merged["gap"] > 0.9 * alone["gap"]
    output = tmp_path / "p.csv"
    programs.predict(averaged, frame_data, output)
    assert len(programs.prediction_rows(output)) == 161
    programs.run_small(averaged, frame_data, "--num_epochs=100", "--max_steps=103")
    assert (averaged / "model.ckpt-103.index").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_last=4",), r"4 checkpoints were requested, but .* has 3"),
        (("--num_last=0",), "--num_last must be above 0"),
        (("--first_step=101",), "has none of the requested checkpoints"),
        (("--checkpoints=41",), r"there is no checkpoint .*model\.ckpt-41"),
        (("--checkpoints=40,80,40",), "--checkpoints must be of different steps"),
        (("--num_last=2", "--first_step=40"), "cannot be combined"),
        (("--batch_norm=recompute",), "recompute needs --train_data_pattern"),
        (("--train_data_pattern=x", "--batch_norm=mean"), "recompute needs --train_data_pattern"),
        (("--train_data_pattern=/no/such",), "no file matches '/no/such'"),
    ],
)
def test_bad_choices_are_rejected_and_leave_nothing(trained, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        average(trained, tmp_path / "mean", *arguments)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_directory_is_rejected(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        average(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_checkpoints_of_different_models_are_rejected_naming_variables(trained, tmp_path):
    values = stored_values(trained / "model.ckpt-80")
    values[checkpoints.stored_name("DbofModel/hidden/kernel")] = np.zeros([16, 9], np.float32)
    average_checkpoints.write_checkpoint(values, str(tmp_path / "other"), 1)
    other = tmp_path / "other" / "model.ckpt-1"
    with pytest.raises(InputError, match="different models") as error:
        average(trained, tmp_path / "mean", f"--checkpoints={other},40")
    assert "weights/DbofModel/hidden/kernel ([16, 9] and [16, 8])" in str(error.value)
    assert not (tmp_path / "mean").exists()


def test_a_checkpoint_that_is_not_finite_is_rejected_by_name(trained, tmp_path):
    values = stored_values(trained / "model.ckpt-40")
    values[checkpoints.stored_name("DbofModel/hidden/kernel")][0, 0] = np.nan
    for step in (1, 2):
        average_checkpoints.write_checkpoint(dict(values), str(tmp_path), step)
    paths = [str(tmp_path / f"model.ckpt-{step}") for step in (1, 2)]
    with pytest.raises(InputError, match=r"hidden/kernel in .*model\.ckpt-1 is not finite"):
        average_checkpoints.mean_of(paths)


def test_names_inside_a_checkpoint_can_be_split_again():
    for path in ("a/b", "a.b/c", "a..S/b", "model/layer.1/kernel"):
        name = checkpoints.stored_name(path, "ema")
        assert checkpoints.split_stored_name(name) == ("ema", path)


# --- Moving averages of the weights, by --ema_decay -----------------------------------------------


@pytest.fixture(scope="module")
def trained_with_averages(tmp_path_factory, frame_data):
    """Train directory of a DbofModel with --ema_decay and checkpoints of steps 50 and 100."""
    flags = ("--ema_decay=0.9", "--num_epochs=10", "--export_model_steps=50")
    return programs.run_small(tmp_path_factory.mktemp("averages"), frame_data, *flags)


def ema_of(train_dir, checkpoint=None):
    model = checkpoints.load_model(str(train_dir), checkpoint, use_ema=True)
    return {path: weight.numpy() for path, weight in checkpoints.weights(model).items()}


@pytest.mark.slow
def test_moving_averages_start_from_averaged_weights(trained_with_averages, frame_data, tmp_path):
    options = (f"--train_data_pattern={frame_data}", "--batch_norm_batches=5")
    digests = [average(trained_with_averages, tmp_path / name, *options)["digest"] for name in "ab"]
    assert digests[0] == digests[1]  # The sampled frames follow from the seed.
    weights, averages = programs.weights_of(tmp_path / "a"), ema_of(tmp_path / "a")
    for path, weight in weights.items():
        np.testing.assert_array_equal(averages[path], weight, err_msg=path)
    flags = ("--ema_decay=0.9", "--max_steps=102", "--num_epochs=20")
    programs.run_small(tmp_path / "a", frame_data, *flags)
    assert (tmp_path / "a" / "model.ckpt-102.index").exists()


def test_a_resumed_run_has_the_same_moving_averages(video_data, tmp_path):
    arguments = (video_data, "--ema_decay=0.9")
    programs.train_logistic(tmp_path / "unbroken", *arguments, "--max_steps=9")
    for steps in (4, 9):
        programs.train_logistic(tmp_path / "resumed", *arguments, f"--max_steps={steps}")
    unbroken, resumed = ema_of(tmp_path / "unbroken"), ema_of(tmp_path / "resumed")
    weights = programs.weights_of(tmp_path / "unbroken")
    for path, average in unbroken.items():
        np.testing.assert_array_equal(average, resumed[path], err_msg=path)
        assert np.any(average != weights[path])


@pytest.mark.slow
def test_eval_of_moving_averages_has_its_own_history(trained_with_averages, frame_data):
    data = (f"--train_dir={trained_with_averages}", f"--eval_data_pattern={frame_data}")
    plain, smooth = programs.evaluate(*data), programs.evaluate(*data, "--use_ema")
    assert plain["gap"] != smooth["gap"]
    assert smooth["gap"] > 2 * smooth["class_prior_gap"]
    (kept,) = json.loads((trained_with_averages / "eval_ema" / "metrics.json").read_text())
    assert kept == smooth
