"""Tests of the sample data: record format, generative model, and rejection of bad input."""

import itertools
import pathlib
import shlex

import numpy as np
import pytest
import tensorflow as tf

import eval_util
import files
import make_sample_data
import programs
import quantization
import sample_world
from dataset_info import DatasetInfo, Feature
from utils import InputError

SMALL = {
    "num_videos": 100,
    "num_eval_videos": 20,
    "num_classes": 12,
    "feature_sizes": (8, 4),
    "max_frames": 12,
    "min_frames": 3,
}


def make(directory, **changes):
    options = make_sample_data.SampleOptions(output_dir=str(directory), **{**SMALL, **changes})
    return make_sample_data.make_sample_data(options)


def file_bytes(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def records(directory, split, proto):
    paths = sorted(str(path) for path in pathlib.Path(directory).glob(f"{split}*.tfrecord"))
    return [proto.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)]


def context(features):
    (video_id,) = features.feature["id"].bytes_list.value
    return video_id.decode(), list(features.feature["labels"].int64_list.value)


def frames(example, name):
    steps = example.feature_lists.feature_list[name].feature
    return np.stack([np.frombuffer(step.bytes_list.value[0], np.uint8) for step in steps])


@pytest.fixture(scope="module")
def frame_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("frame")
    make(directory)
    return directory


@pytest.fixture(scope="module")
def frame_examples(frame_dir):
    splits = sample_world.SPLITS
    return {split: records(frame_dir, split, tf.train.SequenceExample) for split in splits}


def generated(num_videos, seed=0, num_classes=40, sizes=(24, 6), max_frames=30):
    world = sample_world.World(seed, num_classes, sizes)
    names = ("rgb", "audio")
    videos = sample_world.Generator(world, seed, names, 6, max_frames).videos("train")
    return world, [next(videos) for _ in range(num_videos)]


def test_frame_records_hold_one_byte_string_per_frame_and_feature(frame_examples):
    lengths = set()
    for example in frame_examples["train"]:
        assert set(example.context.feature) == {"id", "labels"}
        assert set(example.feature_lists.feature_list) == {"rgb", "audio"}
        rgb, audio = frames(example, "rgb"), frames(example, "audio")
        assert rgb.shape[1:] == (8,)
        assert audio.shape[1:] == (4,)
        assert len(rgb) == len(audio)
        lengths.add(len(rgb))
    assert min(lengths) == 3
    assert max(lengths) == 12
    assert len(lengths) > 5


def test_feature_values_are_centered_and_rarely_clipped():
    _, videos = generated(300)
    stored = np.concatenate([video.features["rgb"] for video in videos])
    values = quantization.YOUTUBE8M.dequantize(stored.astype(np.float32))
    assert abs(values.mean()) < 0.1
    assert 0.5 < values.std() < 0.9
    assert np.mean((stored == 0) | (stored == 255)) < 0.02


def test_every_split_has_its_files_and_videos(frame_dir, frame_examples):
    assert {name for name in file_bytes(frame_dir) if name.endswith(".tfrecord")} == {
        *(f"train{shard:05d}.tfrecord" for shard in range(4)),
        "validate00000.tfrecord",
        "test00000.tfrecord",
    }
    counts = {split: len(found) for split, found in frame_examples.items()}
    assert counts == {"train": 100, "validate": 20, "test": 20}


def test_ids_are_unique_across_splits_and_videos_differ(frame_examples):
    examples = [example for found in frame_examples.values() for example in found]
    ids = {context(example.context)[0] for example in examples}
    pictures = {frames(example, "rgb").tobytes() for example in examples}
    assert len(ids) == len(pictures) == 140
    assert min(map(len, ids)) >= 4


def test_labels_are_one_to_five_distinct_classes_of_the_vocabulary(frame_examples):
    for example in itertools.chain.from_iterable(frame_examples.values()):
        _, labels = context(example.context)
        assert 1 <= len(labels) <= 5
        assert labels == sorted(set(labels))
        assert set(labels) <= set(range(12))


def test_videos_have_about_three_labels_that_follow_a_zipf_distribution():
    _, videos = generated(4000, num_classes=100, sizes=(2, 2), max_frames=10)
    counts = np.bincount([label for video in videos for label in video.labels], minlength=100)
    assert 2.8 < counts.sum() / 4000 < 3.2
    ranks = np.arange(10, 100)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert -1.2 < slope < -0.8
    assert counts[0] > counts[1] > counts[4] > counts[20]


def test_a_tenth_of_the_labels_are_noise():
    world = sample_world.World(0, 1000, (2, 2))
    rng = np.random.default_rng(0)
    shown = sample_world._sample_classes(world, rng, np.full(5000, 10))
    labels = sample_world._sample_labels(world, rng, shown)
    kept = sum(len(set(row) & set(true)) for row, true in zip(labels, shown.tolist(), strict=True))
    assert 0.89 < kept / (shown >= 0).sum() < 0.93
    assert 0.93 < kept / sum(map(len, labels)) < 0.97


def test_every_class_of_a_video_gets_a_frame_and_lengths_add_up():
    world = sample_world.World(0, 30, (2, 2))
    rng = np.random.default_rng(0)
    num_frames = rng.integers(1, 9, size=500)
    shown = sample_world._sample_classes(world, rng, num_frames)
    classes, lengths = sample_world._sample_runs(world, rng, shown, num_frames)
    assert (lengths.sum(axis=1) == num_frames).all()
    assert (lengths[:, 1::2][shown >= 0] >= 1).all()
    assert (lengths[:, 1::2][shown < 0] == 0).all()
    assert (classes[:, ::2] == 30).all()


def test_scenes_of_different_classes_share_words():
    world = sample_world.World(0, 120, (64, 16))
    classes_of_word = [set() for _ in world.words[0]]
    for number, scenes in enumerate(world.scenes):
        for word in scenes.ravel():
            classes_of_word[word].add(number)
    background = sample_world.BACKGROUND_WORDS
    assert all(owners == {120} for owners in classes_of_word[:background] if owners)
    assert np.median([len(owners) for owners in classes_of_word[background:]]) >= 3


def test_about_half_of_the_runs_have_the_sound_of_their_class():
    world = sample_world.World(0, 10, (4, 16))
    classes = np.full(2000, 7)
    rng = np.random.default_rng(0)
    sound = sample_world._sample_frames(world, rng, classes, np.ones(2000, int))[1]
    values = quantization.YOUTUBE8M.dequantize(sound.astype(np.float32))
    distances = np.linalg.norm(values[:, None] - world.words[1], axis=2)
    fraction = np.mean(distances.argmin(axis=1) == world.sounds[0][7])
    assert 0.4 < fraction < 0.6


def linear_gap(inputs, labels, train):
    """GAP@20 of ridge regression on the videos it was not fitted to."""
    inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    gram = inputs[:train].T @ inputs[:train] + np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[:train].T @ labels[:train])
    return eval_util.calculate_gap(inputs[train:] @ weights, labels[train:])


def test_frames_are_more_informative_than_their_mean_and_the_mean_more_than_the_prior():
    world, videos = generated(3000, num_classes=80, sizes=(48, 6))
    table = world.words[0]
    labels, means = np.zeros((3000, 80)), np.zeros((3000, 48))
    words = np.zeros((3000, len(table)))
    for index, video in enumerate(videos):
        labels[index, video.labels] = 1
        values = quantization.YOUTUBE8M.dequantize(video.features["rgb"].astype(np.float32))
        means[index] = values.mean(axis=0)
        nearness = values @ table.T - 0.5 * np.sum(table**2, axis=1)
        words[index, nearness.argmax(axis=1)] = 1
    frequencies = np.tile(labels[:2500].mean(axis=0), (500, 1))
    prior = eval_util.calculate_gap(frequencies, labels[2500:])
    by_mean, by_words = linear_gap(means, labels, 2500), linear_gap(words, labels, 2500)
    assert 0.1 < prior < 0.3
    assert prior + 0.1 < by_mean
    assert by_mean + 0.1 < by_words < 0.9


def test_equal_arguments_give_equal_bytes_and_another_seed_different_ones(frame_dir, tmp_path):
    make(tmp_path / "same")
    make(tmp_path / "other", seed=1)
    first, other = file_bytes(frame_dir), file_bytes(tmp_path / "other")
    assert first == file_bytes(tmp_path / "same")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_videos_do_not_depend_on_shards_or_num_videos(frame_examples, tmp_path):
    make(tmp_path, num_videos=45, shards=7)
    found = records(tmp_path, "train", tf.train.SequenceExample)
    assert found == frame_examples["train"][:45]


def test_video_level_is_the_mean_of_the_frame_level(frame_examples, tmp_path):
    make(tmp_path, level="video")
    for split, examples in frame_examples.items():
        means = records(tmp_path, split, tf.train.Example)
        for frame_level, video_level in zip(examples, means, strict=True):
            features = video_level.features
            assert set(features.feature) == {"id", "labels", "mean_rgb", "mean_audio"}
            assert context(features) == context(frame_level.context)
            for name in ("rgb", "audio"):
                values = quantization.YOUTUBE8M.dequantize(
                    frames(frame_level, name).astype(np.float32)
                )
                actual = features.feature[f"mean_{name}"].float_list.value
                np.testing.assert_allclose(actual, values.mean(axis=0), atol=1e-5)


def test_any_number_of_features_works(tmp_path):
    make(tmp_path / "three", feature_names=("rgb", "audio", "text"), feature_sizes=(8, 4, 3))
    example = records(tmp_path / "three", "train", tf.train.SequenceExample)[0]
    sizes = {name: frames(example, name).shape[1] for name in example.feature_lists.feature_list}
    assert sizes == {"rgb": 8, "audio": 4, "text": 3}
    make(tmp_path / "one", feature_names=("rgb",), feature_sizes=(8,), level="video")
    features = records(tmp_path / "one", "train", tf.train.Example)[0].features.feature
    assert set(features) == {"id", "labels", "mean_rgb"}


def test_one_class_one_frame_and_one_video_work(tmp_path):
    summary = make(tmp_path, num_videos=1, shards=1, num_classes=1, max_frames=1, min_frames=1)
    (example,) = records(tmp_path, "train", tf.train.SequenceExample)
    assert context(example.context)[1] == [0]
    assert frames(example, "rgb").shape == (1, 8)
    assert summary.labels_per_video == 1.0


def test_full_size_records_can_be_made(tmp_path):
    sizes = {"num_classes": 3862, "feature_sizes": (1024, 128), "max_frames": 300}
    make(tmp_path, num_videos=2, shards=1, num_eval_videos=1, min_frames=300, **sizes)
    example = records(tmp_path, "train", tf.train.SequenceExample)[0]
    assert frames(example, "rgb").shape == (300, 1024)
    assert frames(example, "audio").shape == (300, 128)


def test_vocabulary_names_every_class_and_counts_its_training_videos(frame_dir, frame_examples):
    header, *rows = (frame_dir / "vocabulary.csv").read_text().splitlines()
    assert header.startswith("Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,")
    cells = [row.split(",") for row in rows]
    assert {len(row) for row in cells} == {len(header.split(","))}
    labels = [label for example in frame_examples["train"] for label in context(example.context)[1]]
    counts = np.bincount(labels, minlength=12)
    assert [(int(row[0]), int(row[1])) for row in cells] == list(enumerate(counts))


def test_labels_are_missing_from_training_videos_only_and_nothing_else_changes(tmp_path):
    sizes = {"num_videos": 200, "num_classes": 12}
    make(tmp_path / "all", **sizes)
    make(tmp_path / "some", **sizes, missing_labels=0.3)
    num_labels = {"all": 0, "some": 0}
    for split in ("train", "validate", "test"):
        pairs = zip(
            *(
                records(tmp_path / name, split, tf.train.SequenceExample)
                for name in ("all", "some")
            ),
            strict=True,
        )
        for whole, rest in pairs:
            assert whole.feature_lists == rest.feature_lists
            (name, labels), (same, kept) = context(whole.context), context(rest.context)
            assert name == same
            assert set(kept) <= set(labels)
            if split == "train":
                num_labels["all"] += len(labels)
                num_labels["some"] += len(kept)
            else:
                assert kept == labels
    assert num_labels["some"] / num_labels["all"] == pytest.approx(0.7, abs=0.05)


def test_class_names_are_unique_beyond_the_combinations_of_words():
    assert len({make_sample_data.class_name(index)[0] for index in range(10000)}) == 10000


def test_the_summary_counts_what_was_written(tmp_path):
    summary = make(tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.tfrecord")}
    assert summary.videos == {"train": 100, "validate": 20, "test": 20}
    assert sorted(pathlib.Path(path).name for path in summary.files) == sorted(sizes)
    assert summary.num_bytes == sum(sizes.values())
    assert 1 <= summary.labels_per_video <= 5


@pytest.mark.parametrize("level", ["frame", "video"])
def test_dataset_json_describes_the_data_and_how_to_make_it_again(tmp_path, level):
    make(tmp_path / "data", level=level)
    info = DatasetInfo.load(str(tmp_path / "data" / "dataset.json"))
    if level == "frame":
        stored = {"dtype": "uint8", "quantization": {"min": -2, "max": 2}}
        assert (info.max_frames, info.frames_per_second) == (12, 1)
    else:
        stored = {"dtype": "float32"}
        assert (info.max_frames, info.frames_per_second) == (None, None)
    prefix = {"frame": "", "video": "mean_"}[level]
    assert info.features == (
        Feature(name=f"{prefix}rgb", size=8, **stored),
        Feature(name=f"{prefix}audio", size=4, **stored),
    )
    assert (info.level, info.num_classes, info.vocabulary) == (level, 12, "vocabulary.csv")
    assert info.videos == {"train": 100, "validate": 20, "test": 20}
    python, program, *flags = shlex.split(info.made_by)
    assert (python, program) == ("python", "make_sample_data.py")
    programs.run("make_sample_data", *flags, f"--output_dir={tmp_path / 'again'}")
    assert file_bytes(tmp_path / "again") == file_bytes(tmp_path / "data")


def test_dataset_json_is_written_last_and_removed_first(tmp_path, monkeypatch):
    make(tmp_path)

    def fail(path, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_sample_data, "_write_vocabulary", fail)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, num_classes=7, overwrite=True)
    assert {path.suffix for path in tmp_path.iterdir()} == {".tfrecord"}
    removed = []
    make(tmp_path, overwrite=True)
    remove = files.gfile.remove
    monkeypatch.setattr(files.gfile, "remove", lambda path: removed.append(path) or remove(path))
    make(tmp_path, num_classes=7, overwrite=True)
    assert removed[0] == str(tmp_path / "dataset.json")
    assert DatasetInfo.load(str(tmp_path / "dataset.json")).num_classes == 7


def test_the_description_of_another_data_set_is_not_overwritten(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds the dataset\.json of another data set"):
        make(tmp_path, overwrite=True)
    assert (tmp_path / "dataset.json").read_text() == "{}"


def test_existing_records_are_rejected_without_overwrite_which_keeps_other_files(tmp_path):
    (tmp_path / "train_notes.txt").write_text("mine")
    make(tmp_path, shards=8)
    before = file_bytes(tmp_path)
    with pytest.raises(InputError, match=r"already holds sample data.*--overwrite"):
        make(tmp_path, seed=1)
    assert file_bytes(tmp_path) == before
    make(tmp_path, shards=2, seed=1, overwrite=True)
    expected = {"train00000.tfrecord", "train00001.tfrecord", "train_notes.txt"}
    assert {path.name for path in tmp_path.glob("train*")} == expected
    assert (tmp_path / "train_notes.txt").read_text() == "mine"


def test_an_interrupted_file_does_not_appear(tmp_path, monkeypatch):
    def fail(video):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_sample_data, "_serialize_frames", fail)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_videos": 0}, "num_videos must be 1 or more. Received: 0"),
        ({"num_eval_videos": 0}, "num_eval_videos must be 1 or more"),
        ({"num_classes": 0}, "num_classes must be above 0"),
        ({"max_frames": 0, "min_frames": None}, "max_frames must be 1 or more"),
        ({"shards": 0}, "shards must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"min_frames": 13}, "min_frames must not be above --max_frames. Received: 13 and 12"),
        ({"shards": 101}, "shards must not be more than --num_videos.* Received: 101 and 100"),
        ({"level": "segment"}, "level must be one of frame, video. Received: segment"),
        ({"world": "flat"}, "world must be one of .*relational.* Received: flat"),
        ({"feature_names": ("rgb",)}, "as many --feature_names as --feature_sizes.* rgb and 8, 4"),
        ({"feature_names": ("rgb", "rgb")}, "feature_names must be distinct names"),
        ({"feature_names": (), "feature_sizes": ()}, "feature_names must be distinct names"),
        ({"feature_sizes": (8, 0)}, "feature_sizes must be above 0. Received: 0"),
    ],
)
def test_bad_arguments_are_reported_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to the directory '.*file/inside'"):
        make(tmp_path / "file" / "inside")


def test_the_program_obeys_its_flags(tmp_path, frame_dir):
    values = {**SMALL, "feature_sizes": "8,4", "output_dir": tmp_path}
    programs.run("make_sample_data", *(f"--{name}={value}" for name, value in values.items()))
    assert file_bytes(tmp_path) == file_bytes(frame_dir)


def test_the_program_requires_an_output_directory():
    with pytest.raises(InputError, match="--output_dir must be given"):
        programs.run("make_sample_data")


def pairs_with_factor(name, factor, num_classes=84):
    """Returns a world and the pairs of classes with a factor, `[P, 2]`."""
    world = sample_world.World(3, num_classes, (24, 6), sample_world.WORLDS[name])
    return world, np.flatnonzero(world.has_factor(factor)).reshape(-1, 2)


def sample_runs(world, label, runs=400, length=9):
    """Samples noiseless runs of a class: words `[R, T]` and values `[R, T, D]` of every feature."""
    rng = np.random.default_rng(0)
    classes, lengths = np.full(runs, label), np.full(runs, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_world, "NOISE_SCALE", 0.0)
        features = sample_world._sample_frames(world, rng, classes, lengths)
    values = [quantization.YOUTUBE8M.dequantize(feature.astype(np.float32)) for feature in features]
    nearest = [
        np.argmin(((value[:, None] - table) ** 2).sum(-1), axis=1).reshape(runs, length)
        for value, table in zip(values, world.words, strict=True)
    ]
    return nearest, [value.reshape(runs, length, -1) for value in values]


def test_order_pairs_show_the_same_two_scenes_in_opposite_order():
    world, pairs = pairs_with_factor("bag", "order")
    (words, sounds), _ = sample_runs(world, pairs[0, 0])
    (other_words, other_sounds), _ = sample_runs(world, pairs[0, 1])
    first, second = set(words[:, :5].ravel()), set(words[:, 5:].ravel())
    assert first != second
    assert set(other_words[:, :5].ravel()) == second
    assert set(other_words[:, 5:].ravel()) == first
    common = [np.bincount(part.ravel()).argmax() for part in (sounds, other_sounds)]
    assert common[0] == common[1]


def test_sound_pairs_share_words_and_always_have_their_own_sound():
    world, pairs = pairs_with_factor("bag", "sound")
    (words, sounds), _ = sample_runs(world, pairs[0, 0])
    (other_words, other_sounds), _ = sample_runs(world, pairs[0, 1])
    assert set(words.ravel()) == set(other_words.ravel())
    assert len(set(sounds.ravel())) == len(set(other_sounds.ravel())) == 1
    assert sounds[0, 0] != other_sounds[0, 0]


@pytest.mark.parametrize(("name", "related"), [("relational", 1.0), ("unrelated", 0.0)])
def test_relation_pairs_differ_in_the_product_of_two_shift_signs(name, related):
    world, pairs = pairs_with_factor(name, "relation")
    for label, sign in zip(pairs[0], (1, -1), strict=True):
        (words, _), (values, _) = sample_runs(world, label)
        both = sorted(set(words.ravel()))
        assert len(both) == 2
        signs = np.sign((values - world.words[0][words]) @ world.shift)
        by_word = np.stack([np.where(words == word, signs, 0).sum(axis=1) for word in both], axis=1)
        by_word = np.sign(by_word[(by_word != 0).all(axis=1)])
        # The shift of one word carries no label information.
        assert abs(by_word.mean(axis=0)).max() < 0.15
        assert abs(by_word.prod(axis=1).mean() - sign * related) < 0.15


def test_every_relation_of_the_study_has_its_own_scene():
    world, pairs = pairs_with_factor("relational", "relation", num_classes=160)
    scenes = {tuple(sorted(set(world.scenes[first].ravel()))) for first, _ in pairs}
    assert len(scenes) == len(pairs)


def test_the_unrelated_world_is_the_relational_one_except_for_shift_signs():
    worlds = [pairs_with_factor(name, "relation")[0] for name in ("relational", "unrelated")]
    assert (worlds[0].scenes == worlds[1].scenes).all()
    assert (worlds[0].words[0] == worlds[1].words[0]).all()
    assert (worlds[0].shift == worlds[1].shift).all()


def test_an_unpaired_last_class_needs_words():
    world = sample_world.World(0, 3, (8, 4), sample_world.WORLDS["relational"])
    assert sample_world.FACTORS[world.factors[2]] == "words"
    generator = sample_world.Generator(world, 0, ("rgb", "audio"), 2, 5)
    assert set(next(generator.videos("train")).labels) <= {0, 1, 2}


def test_the_vocabulary_lists_the_factors(tmp_path):
    make(tmp_path, world="bag")
    lines = (tmp_path / "vocabulary.csv").read_text().splitlines()[1:]
    named = [line.rpartition(",")[-1] for line in lines]
    assert named == [*["words"] * 4, *["order"] * 2, *["words"] * 4, *["sound"] * 2]
