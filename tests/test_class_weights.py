"""Weights of labels and classes, and smoothed labels, from the records and flags to the loss."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import dataset_info
import losses
import programs
import registry
import trainer
import vocabulary
from dataset_info import DatasetInfo, Feature
from record_readers import error_of, frame_reader, video_reader
from run_config import RunConfig
from sample_records import (
    float_feature,
    frame_record,
    int64_feature,
    video_record,
    write_records,
    write_video_files,
)
from utils import InputError

# --- Weights of labels in the records ---


def weighted_record(video_id, labels, weights):
    """Returns a video-level record with weights, which are a list of floats or a Feature."""
    values = weights if isinstance(weights, tf.train.Feature) else float_feature(weights)
    example = tf.train.Example.FromString(
        video_record(video_id, labels, mean_rgb=[float(len(labels))] * 8, mean_audio=[1.0] * 4)
    )
    example.features.feature["trust"].CopyFrom(values)
    return example.SerializeToString()


def test_labels_have_the_weights_of_their_record_and_other_pairs_weight_1(tmp_path):
    records = [
        weighted_record("a", [3, 1], [0.5, 0.0]),
        weighted_record("b", [], []),
        weighted_record("c", [2, 2, 0], [0.25, 2.0, 1.5]),
    ]
    path = write_records(tmp_path / "a", records)
    (batch,) = video_reader(path, label_weights="trust").batches(3)
    expected = np.ones((3, 10), np.float32)
    expected[0, [3, 1]], expected[2, [2, 0]] = (0.5, 0.0), (2.0, 1.5)
    np.testing.assert_array_equal(batch.pair_weights, expected)
    assert batch.labels.sum() == 4
    (element,) = video_reader(path, label_weights="trust").dataset(3)
    np.testing.assert_array_equal(element[2], expected)
    (batch,) = video_reader(path).batches(3)
    assert batch.pair_weights is None


def test_weights_of_frame_level_records_are_mixed_with_their_labels(tmp_path):
    videos = [("a", [1, 5], [0.5, 0.5]), ("b", [2, 5], [0.25, 0.25])]
    records = [
        frame_record(name, labels, weights=weights, rgb=[name.encode() * 8] * 3)
        for name, labels, weights in videos
    ]
    path = write_records(tmp_path / "a", records)
    reader = frame_reader(path, {"rgb": 8}, label_weights="trust")
    (batch,) = reader.batches(2, mix_videos=1 - 1e-12)
    expected = np.ones((2, 10), np.float32)
    expected[:, [1, 2, 5]] = 0.5, 0.25, 0.5
    np.testing.assert_array_equal(batch.pair_weights, expected)
    np.testing.assert_array_equal(batch.labels, expected < 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "feature 'trust' of video 'a' must have a float for each of its 2 labels"),
        ([0.5, -1.0], "weights 'trust' of video 'a' must be finite and at least 0. Received: 0.5"),
        ([0.5, np.nan], "weights 'trust' of video 'a' must be finite and at least 0"),
        (int64_feature([1, 1]), "feature 'trust' of video 'a' must have a float for each"),
    ],
)
def test_wrong_weights_of_labels_are_errors(tmp_path, weights, message):
    path = write_records(tmp_path / "a", [weighted_record("a", [3, 1], weights)])
    assert message in error_of(video_reader(path, label_weights="trust"))


def test_missing_weights_of_labels_are_an_error_that_names_the_flag(tmp_path):
    path = write_records(tmp_path / "a", [weighted_record("a", [3, 1], [1.0, 1.0])])
    message = error_of(video_reader(path, label_weights="confidence"))
    assert "video 'a' has no feature 'confidence' with the weights of its labels. It has" in message
    assert "Leave out --label_weights, or name the feature with the weights." in message


def test_a_step_ignores_pairs_of_weight_0(tmp_path):
    """A class whose labels have weight 0, in every video, is not learned."""
    config = RunConfig(
        "LogisticModel",
        hyperparameters={"l2_penalty": 0.0},
        num_classes=4,
        feature_names=("mean_rgb",),
        feature_sizes=(5,),
        optimizer="SGD",
        batch_size=3,
    )
    model = config.build_model()
    optimizer = config.build_optimizer(model)
    before = [weight.numpy().copy() for weight in model.trainable_variables]
    x = np.random.default_rng(1).normal(size=(1, 3, 5)).astype(np.float32)
    labels, weights = np.ones((1, 3, 4), np.float32), np.ones((1, 3, 4), np.float32)
    weights[:, :, 2] = 0.0
    batches = iter(tf.data.Dataset.from_tensor_slices((x, labels, weights)))
    trainer.Trainer(config, model, optimizer, tf.distribute.get_strategy()).run(batches, 1)
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert (weight.numpy()[..., 2] == old[..., 2]).all()
        assert (weight.numpy()[..., [0, 1, 3]] != old[..., [0, 1, 3]]).any()


# --- Numbers of each class ---


def describe(folder, counts, num_videos, **changes):
    """Writes a dataset.json and a vocabulary with numbers of training videos."""
    rows = [(number, f"class {number}", count) for number, count in enumerate(counts)]
    vocabulary.write(str(folder), ("Index", "Name", "TrainVideoCount"), rows)
    sizes = {"mean_rgb": 8, "mean_audio": 4}
    info = DatasetInfo(
        level="video",
        features=tuple(
            Feature(name=name, size=size, dtype="float32") for name, size in sizes.items()
        ),
        num_classes=10,
        vocabulary="vocabulary.csv",
        videos={"train": num_videos, "test": 7},
    )
    dataclasses.replace(info, **changes).save(str(folder))


def test_counts_of_several_directories_add_up_and_missing_classes_count_0(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        describe(tmp_path / str(number), [number, 5], 10 * number)
    paths = [str(tmp_path / name) for name in ("1/a", "1/b", "2/a")]
    assert dataset_info.class_counts(paths, 3) == ([3.0, 10.0, 0.0], 30)
    assert dataset_info.class_prior(paths, 2) == [0.1, 10 / 30]


@pytest.mark.parametrize(
    ("counts", "num_videos", "changes", "message"),
    [
        ([1], 5, {"vocabulary": None}, "must name a vocabulary and state the number of videos"),
        (
            [1],
            0,
            {},
            r"dataset\.json must name a vocabulary and state the number of videos in trai",
        ),
        ([9], 5, {}, "a class has 9 training videos according to the vocabulary, but dataset.json"),
        ([-1], 5, {}, r"cannot read TrainVideoCount .*vocabulary\.csv: .*at least 0. Received: -1"),
        (["x"], 5, {}, r"cannot read TrainVideoCount .*vocabulary\.csv: .*'x'"),
        ([1] * 11, 5, {}, r"Index must have classes from 0 to 9, each once\. It has: 10"),
    ],
)
def test_unusable_counts_are_errors(tmp_path, counts, num_videos, changes, message):
    describe(tmp_path, counts, num_videos, **changes)
    with pytest.raises(InputError, match=message):
        dataset_info.class_counts([str(tmp_path / "a")], 10)


def test_without_a_description_frequencies_are_an_error_that_says_what_to_write(tmp_path):
    with pytest.raises(InputError, match=r"no dataset\.json next to .* column TrainVideoCount\."):
        dataset_info.class_counts([str(tmp_path / "a")], 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index,weight\n0,1\n", "class 1 of 2 has no row"),
        ("Index,weight\n0,1\n1,1\n1,1\n", "each once. It has: 1"),
        ("Index,weight\n0,1\n1,inf\n", "weight must be at least 0. Received: inf"),
        ("Index,Weight\n0,1\n", "it has no column weight, but: ['Index', 'Weight']"),
        ("", "cannot read weight of the classes in "),
    ],
)
def test_a_wrong_file_of_weights_is_an_error(tmp_path, text, message):
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        vocabulary.read_numbers(str(path), "weight", 2)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_are_read_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text("Index, weight, note\n1, 0.5, rare\n0, 2, often\n")
    assert vocabulary.read_numbers(str(path), "weight", 2) == [2.0, 0.5]


# --- From the flags to the run ---


@pytest.fixture
def data(tmp_path):
    """Returns a glob of video-level files with a description."""
    folder = tmp_path / "data"
    folder.mkdir()
    pattern = write_video_files(folder, 1, 32)
    describe(folder, [16, 8, 4, 2, 1, 0, 32, 1, 1, 1], 32)
    return pattern


def train(train_dir, data, *flags):
    return programs.train_logistic(train_dir, data, *flags)


def test_smoothing_and_balanced_weights_are_saved_as_numbers_and_resume_without_the_counts(
    tmp_path, data
):
    flags = ("--label_smoothing=0.1", "--class_balance_beta=0.9", "--label_loss=FocalLoss")
    run = train(tmp_path / "run", data, *flags, "--max_steps=1")
    config = RunConfig.load(str(run))
    counts = [16, 8, 4, 2, 1, 0, 32, 1, 1, 1]
    assert config.loss_data == {
        "class_prior": [count / 32 for count in counts],
        "class_weights": losses.effective_number_weights(counts, 0.9),
    }
    loss = config.build_loss()
    assert type(loss) is losses.FocalLoss
    assert (loss.label_smoothing, loss.class_prior[6]) == (0.1, 1.0)
    describe(tmp_path / "data", [1] * 10, 32)  # The numbers of other training data.
    train(run, data, *flags, "--max_steps=2")
    assert RunConfig.load(str(run)) == config
    with pytest.raises(InputError, match=r"other settings \(.*class_balance_beta: 0\.9 there"):
        train(run, data, *flags, "--class_balance_beta=0.8", "--max_steps=3")
    # Evaluation compares with the labels as they are.
    metrics = programs.evaluate(f"--train_dir={run}", f"--eval_data_pattern={data}")
    (batch,) = config.data.reader(data).batches(32)
    plain = losses.FocalLoss()(batch.labels, checkpoints.load_model(str(run))(batch.inputs))
    assert metrics["loss"] == pytest.approx(float(plain), rel=1e-4)


def test_weights_of_classes_come_from_a_file_and_change_the_run(tmp_path, data):
    path = tmp_path / "weights.csv"
    path.write_text("Index,weight\n" + "".join(f"{index},{index % 2}\n" for index in range(10)))
    flags = (f"--class_weights={path}", "--max_steps=2")
    run = train(tmp_path / "run", data, *flags)
    assert RunConfig.load(str(run)).loss_data == {"class_weights": [0.0, 1.0] * 5}
    initial = RunConfig.load(str(run)).build_model().get_weights()
    for weight, start in zip(programs.weights_of(run).values(), initial, strict=True):
        assert (np.abs(weight - start).reshape(-1, 10).max(axis=0)[1::2] > 0).all()
    bias = programs.weights_of(run)["LogisticModel/logistic/bias"]
    assert (bias[::2] == 0).all()
    path.write_text("Index,weight\n" + "".join(f"{index},1\n" for index in range(10)))
    with pytest.raises(InputError, match=r"other settings \(loss_data: "):
        train(run, data, flags[0], "--max_steps=3")
    path.unlink()
    train(run, data, flags[0], "--max_steps=3")
    assert RunConfig.load(str(run)).loss_data == {"class_weights": [0.0, 1.0] * 5}
    with pytest.raises(InputError, match="--class_weights and --class_balance_beta cannot be com"):
        train(tmp_path / "other", data, *flags, "--class_balance_beta=0.9")


def test_weights_of_labels_change_the_run(tmp_path):
    def trained(weight):
        records = [weighted_record(f"v{n}", [n % 10], [weight]) for n in range(32)]
        path = write_records(tmp_path / f"{weight}.tfrecord", records)
        flags = ("--label_weights=trust", "--max_steps=1", "--optimizer=SGD")
        return programs.weights_of(train(tmp_path / str(weight), path, *flags))

    ones, zeros = trained(1.0), trained(0.0)
    for path, weight in ones.items():
        assert np.abs(weight - zeros[path]).max() > 1e-4


def test_a_config_of_an_earlier_version_has_the_default_loss(tmp_path):
    config = RunConfig("MoeModel")
    config.save(str(tmp_path))
    path = tmp_path / "model_flags.json"
    values = json.loads(path.read_text())
    for name in ("loss_hyperparameters", "loss_data", "label_weights", "class_balance_beta"):
        del values[name]
    del values["mix_videos"]
    path.write_text(json.dumps(values))
    loaded = RunConfig.load(str(tmp_path))
    assert loaded == config
    assert not loaded.differences(config)
    loss = loaded.build_loss()
    assert (type(loss), loss.epsilon) == (losses.CrossEntropyLoss, 1e-5)
    assert (loss.label_smoothing, loss.class_prior, loss.class_weights) == (0.0, None, None)


@pytest.mark.parametrize("name", list(registry.losses()))
def test_the_config_of_a_run_restores_its_loss(tmp_path, name):
    config = RunConfig(
        "MoeModel",
        label_loss=name,
        loss_hyperparameters={"label_smoothing": 0.25},
        loss_data={"class_prior": [0.5, 0.25], "class_weights": [1.0, 2.0]},
        num_classes=2,
    )
    config.save(str(tmp_path))
    loaded = RunConfig.load(str(tmp_path))
    assert loaded == config
    loss = loaded.build_loss()
    assert type(loss).__name__ == name
    assert (loss.label_smoothing, loss.class_prior) == (0.25, [0.5, 0.25])
    assert loss.class_weights == [1.0, 2.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_hyperparameters": {"build": 1}},
        {"loss_hyperparameters": {"epsilon": {"class_name": "Lambda"}}},
        {"loss_hyperparameters": ["epsilon"]},
        {"loss_data": {"name": [1.0]}},
        {"loss_data": {"class_weights": "1"}},
        {"loss_data": []},
    ],
    ids=str,
)
def test_a_config_with_an_invalid_loss_is_rejected(changes):
    with pytest.raises(InputError):
        RunConfig("MoeModel", **changes).build_loss()
