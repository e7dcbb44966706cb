"""Runs that start with the weights of another run: what is taken, where classes go, freezing."""

import dataclasses
import re
import shutil
import zlib

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import distribution
import initial_weights
import programs
import registry
import small_models
import train
from programs import run_small, weights_of
from run_config import RunConfig, TrainOptions
from saved_runs import make_model, save_run, write_vocabulary
from small_models import marked
from utils import InputError

WORDS = ("cat", "dog", "owl", "fox")


def make_config(name, variant="small", **settings):
    """Returns the config of a small model that starts with the weights of another run."""
    return RunConfig(
        name,
        hyperparameters={**small_models.VARIANTS[variant].get(name, {})},
        **{
            "num_classes": small_models.NUM_CLASSES,
            "feature_sizes": small_models.FEATURE_SIZES,
            "init_from": "run",
            **settings,
        },
    )


def make_source(config, model, names=()):
    weights = {path: weight.numpy() for path, weight in checkpoints.weights(model).items()}
    return initial_weights.Source("run/model.ckpt-7", weights, config, dict(enumerate(names)))


def initial_values(config, **options):
    """Returns the weights with which a run starts, by path inside the model."""
    options = {"train_data_pattern": "none", "train_dir": "/nowhere/run", **options}
    trainer = train.make_trainer(config, tf.distribute.get_strategy(), TrainOptions(**options))
    return inside(checkpoints.weights(trainer.model))


def inside(weights):
    return {path.partition("/")[2]: np.asarray(weight) for path, weight in weights.items()}


# --- Classes --------------------------------------------------------------------------------------


# Video-level models, frame-level models with a classifier of their own, and one without.
CLASSIFIERS = [
    *(
        name
        for name, model in registry.models().items()
        if not model.frame_level or registry.CLASSIFIER_ARGUMENT in model.fixed_arguments
    ),
    "FrameLevelLogisticModel",
]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("MoeModel", "small"),
        *(
            marked(name, "changed", slow=["NeXtVLADModel", "MixNeXtVLADModel"])
            for name in CLASSIFIERS
        ),
    ],
)
def test_predictions_move_with_the_classes_whatever_the_classifier(name, variant):
    config = make_config(name, variant)
    model = make_model(config)
    classes = {"0": "2", "1": "0", "2": "3", "3": "1"}
    moved = dataclasses.replace(config, init_classes=classes)
    other = make_model(moved, seed=1)
    initial_weights.load(other, moved, make_source(config, model), None)
    inputs = small_models.make_inputs(name)
    expected = np.asarray(small_models.predict(model, inputs))[:, [2, 0, 3, 1]]
    np.testing.assert_allclose(small_models.predict(other, inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_mixture_of_experts_keeps_the_columns_of_mapped_classes_and_no_others():
    config = make_config("MoeModel", "changed", num_classes=3)  # Three mixtures and gating.
    model = make_model(config)
    classes = {4: 0, 1: 2, 3: 2}
    given = {str(new): str(old) for new, old in classes.items()}
    larger = dataclasses.replace(config, num_classes=5, init_classes=given)
    other = make_model(larger, seed=1)
    expected = inside(checkpoints.weights(other))
    old = inside(checkpoints.weights(model))
    for new, number in classes.items():
        for mixture in range(4):
            expected["gates/kernel"][:, mixture * 5 + new] = old["gates/kernel"][
                :, mixture * 3 + number
            ]
        for mixture in range(3):
            for name in ("experts/kernel", "experts/bias"):
                expected[name][..., mixture * 5 + new] = old[name][..., mixture * 3 + number]
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            name = f"prob_gating/gate/norm/{name}"
            expected[name][new] = old[name][number]
        for column, other_number in classes.items():
            kernel = "prob_gating/gate/kernel"
            expected[kernel][new, column] = old[kernel][number, other_number]
    initial_weights.load(other, larger, make_source(config, model), None)
    for name, value in inside(checkpoints.weights(other)).items():
        if not name.endswith("num_updates"):
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def class_map(new_names, old_names, count=4, old_count=4, **settings):
    source = initial_weights.Source(
        "run/model.ckpt-7", {}, make_config("MoeModel", num_classes=old_count), old_names
    )
    config = make_config("MoeModel", num_classes=count, **settings)
    return initial_weights.class_map(config, new_names, source)


def test_classes_of_one_name_are_one_class(logged_warnings):
    words = dict(enumerate(WORDS))
    assert class_map(words, words) is None
    assert class_map(words, {**words, 4: ""}) is None
    assert class_map({0: "fox", 1: "cat", 2: "bee", 3: "dog"}, words) == {0: 3, 1: 0, 3: 1}
    assert class_map({0: "bee", 1: "cow"}, words, count=2) == {}
    # A name that two classes share, or none, identifies no class.
    assert class_map({0: "cat", 1: "cat", 2: "dog", 3: ""}, words) == {2: 1}
    assert class_map(words, {0: "dog", 1: "dog", 2: "fox", 3: ""}) == {3: 2}
    assert not logged_warnings


@pytest.mark.parametrize("names", [({}, {}), ({}, {0: "cat"}), ({0: "cat"}, {})])
def test_without_two_vocabularies_as_many_classes_are_the_same_which_is_said(
    names, logged_warnings
):
    assert class_map(*names, count=4, old_count=5) == {}
    assert not logged_warnings
    assert class_map(*names) is None
    assert "the classes are taken for those of run/model.ckpt-7" in logged_warnings[0]


def test_given_classes_are_names_or_numbers():
    words = dict(enumerate(WORDS))
    assert class_map(words, words, init_classes={"owl": "3", "cat": "0"}) == {2: 3, 0: 0}
    assert class_map({}, {}, init_classes={"2": "3", "0": "3"}) == {2: 3, 0: 3}
    numbers = {0: "3", 1: "2", 2: "1", 3: "0"}  # Names that look like numbers are names.
    assert class_map(numbers, words, init_classes={"3": "owl"}) == {0: 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"bee": "cat"},
            "column new of --init_classes: 1 of 1 are no classes: 'bee'. Expected: "
            "numbers from 0 to 3, or names that only one class has, such as 'cat', 'dog'",
        ),
        ({"cat": "bee", "dog": "0"}, "column old of --init_classes: 2 of 2 are no classes"),
        ({"4": "cat"}, "column new of --init_classes: 1 of 1 are no classes: '4'"),
        ({"0": "4", "1": "-1"}, "column old of --init_classes: 2 of 2 are no classes: '4', '-1'"),
        ({"1": "0", "01": "2"}, "column new of --init_classes: these are the same class: '1', '"),
    ],
)
def test_given_classes_that_do_not_exist_or_repeat_are_rejected(given, message):
    words = dict(enumerate(WORDS))
    with pytest.raises(InputError, match=re.escape(message)):
        class_map(words, words, init_classes=given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("old,now\n1,2\n", "must have the columns new and old. It has: ['old', 'now']"),
        ("new,old\n", "must name every new class once, of at least one. It has no rows."),
        ("new,old\na,b\na,c\n", "must name every new class once, of at least one. It repeats: 'a'"),
        ("new,old\na\n", "data row 1: it has 1 cells instead of 2"),
        ("", "cannot read"),
    ],
)
def test_a_damaged_file_of_classes_is_rejected(tmp_path, text, message):
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        initial_weights.read_classes(str(path))


def test_a_file_of_classes_has_the_columns_new_and_old_in_any_order(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text('old;new\n"a;b"; c\n1;d\n')
    assert initial_weights.read_classes(str(path)) == {"c": "a;b", "d": "1"}


def test_vocabularies_decide_which_classes_stay(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    config = make_config("LogisticModel")
    run = save_run(tmp_path / "run", dataclasses.replace(config, init_from=None), names=WORDS)
    new = dataclasses.replace(config, num_classes=3, init_from=str(run))
    names = write_vocabulary(tmp_path / "new.csv", ("fox", "bee", "cat"))
    weights, old = initial_values(new, class_names=names), inside(weights_of(run))
    np.testing.assert_array_equal(
        weights["logistic/kernel"][:, [0, 2]], old["logistic/kernel"][:, [3, 0]]
    )
    expected = [old["logistic/bias"][3], 0, old["logistic/bias"][0]]  # A new bias is 0.
    np.testing.assert_array_equal(weights["logistic/bias"], expected)
    assert "2 of the 3 classes are among the 4 of" in caplog.text
    assert re.search(r"logistic/kernel +\[9, 3\] +taken for 2 of 3 classes", caplog.text)
    # As many classes, but others: nothing is left of a classifier that is all there is.
    names = write_vocabulary(tmp_path / "new.csv", ("a", "b", "c", "d"))
    with pytest.raises(InputError, match="no weight of LogisticModel has the path and shape of"):
        initial_values(dataclasses.replace(new, num_classes=4), class_names=names)


# --- What is taken --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train directory of a DbofModel of the steps 3, the best, and 7, with moving averages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = make_config("DbofModel", init_from=None)
    save_run(folder, config, step=3, seed=3)
    best = checkpoints.Best(metric="gap", value=0.5, step=3, num_videos=9, last_step=3)
    checkpoints.save_best(str(folder), best)
    return save_run(folder, config, step=7, seed=7, ema_seed=8)


def test_weights_come_from_a_run_or_a_checkpoint(run, logged_warnings):
    config = make_config("DbofModel")
    for init_from, seed in {
        run: 7,
        f"{run}/": 7,
        f"{run}/3": 3,
        f"{run}/best": 3,
        f"{run}/model.ckpt-3": 3,
        f"{run}/model.ckpt-3.index": 3,
    }.items():
        values = initial_values(dataclasses.replace(config, init_from=str(init_from)))
        expected = inside(checkpoints.weights(make_model(config, seed)))
        assert values.keys() == expected.keys()
        for name, value in values.items():
            counts = name.endswith("num_updates")
            np.testing.assert_array_equal(value, 0 if counts else expected[name], err_msg=name)
    averages = initial_values(dataclasses.replace(config, init_from=str(run), init_use_ema=True))
    expected = inside(checkpoints.weights(make_model(config, 8)))
    np.testing.assert_array_equal(averages["hidden/kernel"], expected["hidden/kernel"])
    assert all("the classes are taken for" in warning for warning in logged_warnings)


def test_what_does_not_fit_starts_anew_and_the_log_says_why(run, caplog):
    caplog.set_level("INFO", logger="absl")
    config = make_config("DbofModel", init_from=str(run), init_exclude="^input_norm")
    config = dataclasses.replace(
        config,
        hyperparameters={**config.hyperparameters, "dbof_hidden_size": 6, "moe_prob_gating": True},
        freeze="^clusters|prob_gating/gate/kernel",
    )
    values, old = initial_values(config), inside(weights_of(run))
    for name in values:
        line = re.search(rf"^{name} +(\[[\d, ]*\]) +(\S.*)$", caplog.text, re.MULTILINE)
        assert line[1] == str(list(values[name].shape))
        if name.startswith("input_norm"):
            expected = "new: excluded"
        elif name.startswith("classifier/prob_gating"):
            expected = "new: not there"
        elif name.endswith("num_updates"):
            expected = "new: counts from 0"
        elif values[name].shape != old[name].shape:
            expected = f"new: {list(old[name].shape)} there"
        else:
            expected = "taken"
            np.testing.assert_array_equal(values[name], old[name])
        assert line[2] == expected, name
    random = "classifier/prob_gating/gate/kernel"
    assert f"at random values: {random}\n" in caplog.text
    for text in ("dbof_hidden_size: 5 there, 6 now", "moe_prob_gating: False there, True now"):
        assert text in caplog.text


def test_other_input_than_the_weights_were_trained_on_is_a_warning(run, logged_warnings):
    config = make_config(
        "DbofModel", init_from=str(run), feature_scale={"factor": [2.0] * 9, "offset": [0.0] * 9}
    )
    other = {**config.hyperparameters, "normalize_frames": "none"}
    initial_values(dataclasses.replace(config, hyperparameters=other))
    assert "feature_scale: None there, {" in logged_warnings[0]
    assert "normalize_frames: 'l2' there, 'none' now" in logged_warnings[0]
    assert "dbof" not in logged_warnings[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "{run}/5"}, "there is no checkpoint {run}/model.ckpt-5. {run} has: model"),
        ({"init_from": "{run}/no"}, "--init_from={run}/no: there is no checkpoint {run}/no. "),
        ({"init_from": "{empty}"}, "--init_from={empty}: {empty} has no checkpoint (yet). "),
        ({"init_exclude": "moe"}, "--init_exclude=moe matches the path of no weight of DbofModel"),
        (
            {"freeze": "z"},
            "--freeze=z matches the path of no weight of DbofModel. It has: classifier",
        ),
        ({"freeze": "."}, "--freeze=. leaves no weight of DbofModel to train."),
        ({"init_exclude": "."}, "no weight of DbofModel has the path and shape of one in {run}"),
    ],
)
def test_a_start_that_is_not_possible_is_rejected(run, tmp_path, settings, message):
    places = {"run": run, "empty": tmp_path}
    settings = {name: value.format(**places) for name, value in settings.items()}
    config = make_config("DbofModel", **{"init_from": str(run), **settings})
    with pytest.raises(InputError, match=re.escape(message.format(**places))):
        initial_values(config)


def test_a_model_that_shares_nothing_with_the_run_is_rejected(run):
    config = make_config("LogisticModel", init_from=str(run))
    message = r"no weight of LogisticModel has the path .* which is of a DbofModel"
    with pytest.raises(InputError, match=message):
        initial_values(config)


def test_a_run_without_moving_averages_cannot_give_them(run):
    config = make_config("DbofModel", init_from=f"{run}/3", init_use_ema=True)
    with pytest.raises(InputError, match=r"no moving averages .* Leave out --init_use_ema"):
        initial_values(config)


def test_a_weight_that_is_not_finite_is_rejected(tmp_path, run):
    config = make_config("LogisticModel", init_from=None)
    model = make_model(config)
    model.logistic.bias.assign([1.0, np.nan, 1.0, 1.0])
    folder = save_run(tmp_path / "run", config)
    manager = checkpoints.new_manager(
        str(folder), tf.train.Checkpoint(weights=checkpoints.weights(model))
    )
    manager.save(checkpoint_number=9)
    with pytest.raises(InputError, match=r"logistic/bias in .*-9 is not finite"):
        initial_values(dataclasses.replace(config, init_from=str(folder)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "run", "init_exclude": "("}, "--init_exclude must be a regular expression."),
        ({"freeze": "*"}, "--freeze must be a regular expression. Received: '*' (nothing to"),
        ({"init_exclude": "a"}, "--init_exclude is about the weights of --init_from. Give that"),
        ({"init_use_ema": True}, "--init_use_ema is about the weights of --init_from."),
        ({"init_classes": {"1": "2"}}, "--init_classes is about the weights of --init_from."),
    ],
)
def test_settings_that_say_nothing_are_rejected(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_config("DbofModel", **{"init_from": None, **settings})


# --- Training -------------------------------------------------------------------------------------

# Every optimizer step also shrinks the weights, and so does the penalty, if they are not frozen.
FINE_TUNING = ("--optimizer=AdamW", "--moe_l2=0.1", "--ema_decay=0.9", "--freeze=^(clusters|input)")


def tune(train_dir, data, source, *flags):
    """Trains a small DbofModel from another run, with frozen clusters."""
    return run_small(train_dir, data, f"--init_from={source}", *FINE_TUNING, *flags)


def read_all(path, group):
    """Returns the values of one kind in a checkpoint, by path."""
    reader = tf.train.load_checkpoint(path)
    names = {
        name: checkpoints.split_stored_name(name) for name in reader.get_variable_to_shape_map()
    }
    return {path: reader.get_tensor(name) for name, (kind, path) in names.items() if kind == group}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, frame_data):
    """Train directory of a DbofModel after one step."""
    return run_small(tmp_path_factory.mktemp("first_run"), frame_data, "--max_steps=1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, frame_data, first_run):
    """Train directory of a run of 20 steps that starts with the weights of another."""
    folder = tmp_path_factory.mktemp("tuned")
    return tune(folder, frame_data, first_run, "--num_epochs=2", "--export_model_steps=10")


def test_frozen_weights_stay_bit_by_bit_and_have_no_state(first_run, tuned):
    old = read_all(str(first_run / "model.ckpt-1"), "weights")
    path = str(tuned / "model.ckpt-20")
    new, averages, optimizer = (read_all(path, kind) for kind in ("weights", "ema", "optimizer"))
    frozen = {name for name in old if "/clusters/" in name or "/input_norm/" in name}
    assert {"DbofModel/clusters/norm/moving_mean", "DbofModel/input_norm/gamma"} < frozen
    for name in old:
        if name in frozen:
            expected = 0 if name.endswith("num_updates") else old[name]
            np.testing.assert_array_equal(new[name], expected, err_msg=name)
            np.testing.assert_array_equal(averages[name], expected, err_msg=name)
        else:
            assert np.any(new[name] != old[name]), name
            assert np.any(averages[name] != new[name]) or name.endswith("num_updates"), name
    trained = sum("/norm/m" not in name and "num_" not in name for name in set(old) - frozen)
    # Two moments of each trained weight, the step and the learning rate.
    assert len(optimizer) == 2 * trained + 1 + ("optimizer/learning_rate" in optimizer)
    assert not [name for name in optimizer if "clusters" in name or "input_norm" in name]


def test_a_resumed_run_needs_no_other_run_and_ends_bit_equal(
    tmp_path, first_run, tuned, frame_data
):
    source = shutil.copytree(first_run, tmp_path / "source")
    folder = tune(tmp_path / "run", frame_data, source, "--max_steps=10")
    shutil.rmtree(source)
    tune(folder, frame_data, source, "--num_epochs=2")
    for kind in ("weights", "ema", "optimizer"):
        expected = read_all(str(tuned / "model.ckpt-20"), kind)
        for name, value in read_all(str(folder / "model.ckpt-20"), kind).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    with pytest.raises(
        InputError, match=r"other settings \(freeze: '\^\(clusters|input\)' there, 'x"
    ):
        tune(folder, frame_data, source, "--freeze=x")


def test_a_run_does_not_start_over_from_itself(tmp_path, first_run, frame_data):
    folder = shutil.copytree(first_run, tmp_path / "run")
    with pytest.raises(InputError, match=r"--init_from=.* is in --train_dir"):
        tune(folder, frame_data, folder / "model.ckpt-1", "--start_new_model")
    assert (folder / "model.ckpt-1.index").exists()


def test_averaging_leaves_frozen_batch_normalization_as_it_is(tmp_path, tuned, frame_data):
    folder = tmp_path / "averaged"
    programs.run(
        "average_checkpoints",
        *(f"--train_dir={tuned}", f"--output_dir={folder}", f"--train_data_pattern={frame_data}"),
        "--batch_norm_batches=2",
    )
    old, new = weights_of(tuned), weights_of(folder)
    for layer, stays in {"clusters/norm": True, "input_norm": True, "hidden/norm": False}.items():
        for name in ("moving_mean", "moving_variance"):
            path = f"DbofModel/{layer}/{name}"
            assert np.array_equal(old[path], new[path]) == stays, path
    values = initial_values(
        dataclasses.replace(RunConfig.load(str(folder)), init_from=str(folder), freeze=None)
    )
    np.testing.assert_array_equal(values["hidden/kernel"], new["DbofModel/hidden/kernel"])


def test_flags_name_the_classes_and_the_config_keeps_them(tmp_path, video_data):
    config = RunConfig("LogisticModel", num_classes=10, feature_sizes=(8, 4))
    save_run(tmp_path / "run", config)
    classes = tmp_path / "classes.csv"
    classes.write_text("new,old\n1,9\n")
    given = (f"--init_from={tmp_path / 'run'}", f"--init_classes={classes}", "--max_steps=1")
    folder = programs.train_logistic(
        tmp_path / "tuned", video_data, *given, "--base_learning_rate=1e-9"
    )
    assert RunConfig.load(str(folder)).init_classes == {"1": "9"}
    old, new = (
        weights_of(run)["LogisticModel/logistic/kernel"] for run in (tmp_path / "run", folder)
    )
    np.testing.assert_allclose(new[:, 1], old[:, 9], atol=1e-6)
    assert np.abs(new - old).min(axis=0)[[0, *range(2, 10)]].max() > 1e-3


def test_workers_that_read_other_weights_stop(monkeypatch):
    worker = distribution.Distribution(tf.distribute.get_strategy(), num_workers=2, is_chief=False)
    weights = [np.arange(3.0), np.float32(2)]
    chiefs = []
    monkeypatch.setattr(distribution.Distribution, "agree", lambda self, from_chief: chiefs)
    checksum = 0
    for weight in weights:
        checksum = zlib.crc32(weight.tobytes(), checksum)
    chiefs.append(float(checksum))
    worker.check_same_weights(weights)
    with pytest.raises(InputError, match="this worker has read other weights"):
        worker.check_same_weights([weights[0] + 1e-12, weights[1]])
