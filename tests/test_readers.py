"""Reads generated records and compares every byte; damages them and reads the messages."""

import itertools
import math
import re
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

import files
import readers
from sample_records import (
    bytes_feature,
    float_feature,
    frame_record,
    int64_feature,
    random_frames,
    video_record,
    write_records,
)
from utils import InputError

NUM_CLASSES = 10
SIZES = {"rgb": 8, "audio": 4}
RECORD_HEADER_BYTES = 12


def frame_reader(pattern, sizes=SIZES, **options):
    return make_reader(readers.YT8MFrameFeatureReader, pattern, sizes, **options)


def video_reader(pattern, sizes=None, **options):
    sizes = sizes or {"mean_rgb": 8, "mean_audio": 4}
    return make_reader(readers.YT8MAggregatedFeatureReader, pattern, sizes, **options)


def make_reader(reader, pattern, sizes, *, num_classes=NUM_CLASSES, max_frames=6, **options):
    return reader(
        files.expand_patterns(str(pattern)),
        feature_names=tuple(sizes),
        feature_sizes=tuple(sizes.values()),
        num_classes=num_classes,
        max_frames=max_frames,
        **options,
    )


def make_videos(count, prefix="v", seed=0, sizes=SIZES):
    """Videos as (id, labels, features): one to nine frames and up to three labels each."""
    rng = np.random.default_rng(seed)
    videos = []
    for index in range(count):
        labels = sorted(rng.choice(NUM_CLASSES, rng.integers(1, 4), replace=False).tolist())
        length = rng.integers(1, 10)
        features = {name: random_frames(rng, length, size) for name, size in sizes.items()}
        videos.append((f"{prefix}{index}", labels, features))
    return videos


def write_videos(path, videos):
    records = [frame_record(video_id, labels, **frames) for video_id, labels, frames in videos]
    return write_records(path, records)


def write_files(folder, counts):
    """Files with as many videos as given; returns their glob. Video 3 of file 1 is `f1v3`."""
    for number, count in enumerate(counts):
        videos = make_videos(count, f"f{number}v", seed=number)
        write_videos(folder / f"part{number:02d}.tfrecord", videos)
    return folder / "part*.tfrecord"


def one_record(tmp_path, record):
    return write_records(tmp_path / "one.tfrecord", [record])


def read_ids(reader, batch_size=4, **options):
    return [video_id for batch in reader.batches(batch_size, **options) for video_id in batch[0]]


def refusal(reader, batch_size=4, **options):
    """The message with which reading fails."""
    with pytest.raises(InputError) as caught:
        list(reader.batches(batch_size, **options))
    return str(caught.value)


def expected_batch(videos, num_frames_in_batch=None, max_frames=6, names=("rgb", "audio")):
    """Frames, their numbers and labels, one video and one frame after the other."""
    lengths = [min(len(features[names[0]]), max_frames) for _, _, features in videos]
    width = sum(videos[0][2][name].shape[1] for name in names)
    frames = np.zeros((len(videos), num_frames_in_batch or max(lengths), width), np.uint8)
    labels = np.zeros((len(videos), NUM_CLASSES), np.float32)
    for row, (_, own_labels, features) in enumerate(videos):
        for time_step in range(lengths[row]):
            frame = b"".join(bytes(features[name][time_step]) for name in names)
            frames[row, time_step] = list(frame)
        for label in own_labels:
            labels[row, label] = 1.0
    return frames, lengths, labels


def assert_same_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.video_ids == other.video_ids
        for left, right in zip(tf.nest.flatten(one[1:]), tf.nest.flatten(other[1:]), strict=True):
            np.testing.assert_array_equal(left, right)


def flip_bit_of_content(path, indices):
    """Damages the content of some records of a file."""
    offset, index, wanted = 0, 0, set(indices)
    with open(path, "r+b") as file:
        while header := file.read(8):
            if index in wanted:
                file.seek(offset + RECORD_HEADER_BYTES + 2)
                value = file.read(1)[0]
                file.seek(offset + RECORD_HEADER_BYTES + 2)
                file.write(bytes([value ^ 1]))
            offset += RECORD_HEADER_BYTES + int.from_bytes(header, "little") + 4
            index += 1
            file.seek(offset)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that are logged, as text."""
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: logged.append(text % values))
    return logged


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """Eleven files of unequal size, 75 videos together."""
    counts = [7, 1, 12, 5, 9, 3, 20, 2, 6, 4, 6]
    return write_files(tmp_path_factory.mktemp("records"), counts)


@pytest.fixture(scope="module")
def all_ids(pattern):
    return sorted(
        tf.train.SequenceExample.FromString(record)
        .context.feature["id"]
        .bytes_list.value[0]
        .decode()
        for record in tf.data.TFRecordDataset(
            files.expand_patterns(str(pattern))
        ).as_numpy_iterator()
    )


# What is in a batch.


def test_frame_level_batches_hold_exactly_the_records(tmp_path):
    videos = make_videos(10)
    batches = list(frame_reader(write_videos(tmp_path / "a", videos)).batches(4))
    assert [len(batch.video_ids) for batch in batches] == [4, 4, 2]
    for start, batch in zip((0, 4, 8), batches, strict=True):
        part = videos[start : start + 4]
        frames, lengths, labels = expected_batch(part)
        assert batch.video_ids == [video[0] for video in part]
        np.testing.assert_array_equal(batch.inputs["frames"], frames)
        np.testing.assert_array_equal(batch.inputs["num_frames"], lengths)
        np.testing.assert_array_equal(batch.labels, labels)
        types = [batch.inputs["frames"].dtype, batch.inputs["num_frames"].dtype, batch.labels.dtype]
        assert types == [np.uint8, np.int32, np.float32]


def test_video_level_batches_hold_exactly_the_records(tmp_path):
    rng = np.random.default_rng(0)
    rgb, audio = rng.normal(size=(5, 8)), rng.normal(size=(5, 4))
    records = [
        video_record(f"v{index}", [index], mean_rgb=rgb[index], mean_audio=audio[index])
        for index in range(5)
    ]
    first, second = video_reader(write_records(tmp_path / "a", records)).batches(3)
    assert first.video_ids + second.video_ids == ["v0", "v1", "v2", "v3", "v4"]
    inputs = np.concatenate([first.inputs, second.inputs])
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, np.concatenate([rgb, audio], axis=1).astype(np.float32))
    np.testing.assert_array_equal(second.labels, np.eye(5, NUM_CLASSES)[3:])


@pytest.mark.parametrize("name", ["id", "video_id"])
def test_either_name_of_the_id_is_read(tmp_path, name):
    frames = one_record(tmp_path, frame_record("äbc", [1], name, rgb=[b"abcd"]))
    assert read_ids(frame_reader(frames, {"rgb": 4})) == ["äbc"]
    video = one_record(tmp_path, video_record("abc", [1], name, mean_rgb=[0.5]))
    assert read_ids(video_reader(video, {"mean_rgb": 1})) == ["abc"]


@pytest.mark.parametrize(
    "names", [("audio", "rgb"), ("rgb",), ("depth", "rgb", "audio"), ("audio", "depth")]
)
def test_features_stand_in_the_order_of_their_names(tmp_path, names):
    sizes = {"rgb": 8, "audio": 4, "depth": 3}
    videos = make_videos(3, sizes=sizes)
    path = write_videos(tmp_path / "a", videos)
    (batch,) = frame_reader(path, {name: sizes[name] for name in names}).batches(3)
    np.testing.assert_array_equal(batch.inputs["frames"], expected_batch(videos, names=names)[0])


def test_video_level_features_stand_in_the_order_of_their_names(tmp_path):
    path = one_record(tmp_path, video_record("a", [], one=[1.0], two=[2.0, 2.5], three=[3.0]))
    (batch,) = video_reader(path, {"three": 1, "one": 1, "two": 2}).batches(3)
    assert batch.inputs.tolist() == [[3.0, 1.0, 2.0, 2.5]]


@pytest.mark.parametrize("max_frames", [1, 3, 9, 20])
def test_videos_are_cut_at_max_frames_and_t_is_the_longest(tmp_path, max_frames):
    videos = make_videos(20)
    path = write_videos(tmp_path / "a", videos)
    (batch,) = frame_reader(path, max_frames=max_frames).batches(20)
    frames, lengths, _ = expected_batch(videos, max_frames=max_frames)
    assert frames.shape[1] == min(max_frames, 9)
    np.testing.assert_array_equal(batch.inputs["frames"], frames)
    np.testing.assert_array_equal(batch.inputs["num_frames"], lengths)


def test_pad_to_max_frames_makes_t_the_same_in_every_batch(tmp_path):
    videos = make_videos(6)
    reader = frame_reader(write_videos(tmp_path / "a", videos), max_frames=20)
    batches = list(reader.batches(2, pad_to_max_frames=True))
    for batch, part in zip(batches, (videos[:2], videos[2:4], videos[4:]), strict=True):
        expected = expected_batch(part, num_frames_in_batch=20, max_frames=20)[0]
        np.testing.assert_array_equal(batch.inputs["frames"], expected)


def test_arrays_begin_at_an_address_that_tensorflow_takes_over(pattern):
    for batch in frame_reader(pattern).batches(3):
        for array in (batch.inputs["frames"], batch.labels):
            assert array.ctypes.data % 64 == 0
            assert array.flags.c_contiguous


def test_read_file_yields_the_videos_of_one_file(tmp_path):
    videos = make_videos(3)
    path = write_videos(tmp_path / "a", videos)
    read = list(frame_reader(path).read_file(path))
    assert [video.video_id for video in read] == ["v0", "v1", "v2"]
    for video, (_, labels, features) in zip(read, videos, strict=True):
        assert video.labels.tolist() == labels
        for name, feature in zip(SIZES, video.features, strict=True):
            np.testing.assert_array_equal(feature, features[name][:6])


# Files and order.


def test_several_patterns_are_read_together_and_each_file_once(tmp_path):
    for name in ("a1", "a2", "b1"):
        write_videos(tmp_path / name, make_videos(2, f"{name}v"))
    reader = frame_reader(f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/?1")
    assert sorted(read_ids(reader)) == ["a1v0", "a1v1", "a2v0", "a2v1", "b1v0", "b1v1"]


def test_a_pattern_without_a_file_is_named(pattern, tmp_path):
    with pytest.raises(InputError, match=f"^no file matches '{re.escape(str(tmp_path))}/x\\*' "):
        frame_reader(f"{pattern},{tmp_path}/x*")


def test_an_empty_pattern_is_refused():
    with pytest.raises(InputError, match=r"^a file pattern was expected\. Received: ' ,'$"):
        frame_reader(" ,")


def test_without_shuffling_files_are_read_in_turns(tmp_path):
    write_files(tmp_path, [3, 1, 2])
    expected = ["f0v0", "f1v0", "f2v0", "f0v1", "f2v1", "f0v2"]
    assert read_ids(frame_reader(tmp_path / "part*")) == expected


def test_batches_run_across_epochs(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(5))
    batches = [batch.video_ids for batch in frame_reader(path).batches(3, num_epochs=2)]
    assert batches == [["v0", "v1", "v2"], ["v3", "v4", "v0"], ["v1", "v2", "v3"], ["v4"]]


@pytest.mark.parametrize(("batch_size", "num_batches"), [(2, 5), (3, 3), (4, 2), (5, 2)])
def test_drop_remainder_leaves_out_a_short_last_batch(tmp_path, batch_size, num_batches):
    reader = frame_reader(write_videos(tmp_path / "a", make_videos(5)))
    batches = reader.batches(batch_size, num_epochs=2, drop_remainder=True)
    assert [len(batch.labels) for batch in batches] == [batch_size] * num_batches
    full = frame_reader(reader.paths[0]).batches(3, drop_remainder=True)
    assert [len(batch.labels) for batch in full] == [3]


def test_num_epochs_none_never_ends(tmp_path):
    reader = frame_reader(write_videos(tmp_path / "a", make_videos(5)))
    batches = reader.batches(3, num_epochs=None)
    assert [len(batch.labels) for batch in itertools.islice(batches, 50)] == [3] * 50
    batches.close()


@pytest.mark.parametrize("buffer_size", [1, 10, 1000])
def test_shuffling_keeps_every_video_once_per_epoch(pattern, all_ids, buffer_size):
    reader = frame_reader(pattern)
    ids = read_ids(reader, 5, num_epochs=3, shuffle=True, shuffle_buffer_size=buffer_size)
    epochs = [ids[start : start + 75] for start in (0, 75, 150)]
    assert [sorted(epoch) for epoch in epochs] == [all_ids] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed(pattern):
    orders = {tuple(read_ids(frame_reader(pattern), shuffle=True, seed=seed)) for seed in range(4)}
    assert len(orders) == 4


def test_the_order_does_not_depend_on_the_number_of_readers(pattern):
    options = {"num_epochs": 2, "shuffle": True, "shuffle_buffer_size": 20, "seed": 5}
    orders = [
        read_ids(frame_reader(pattern, num_readers=number), **options) for number in (1, 3, 8, 8)
    ]
    assert orders[1:] == orders[:1] * 3


def test_the_order_does_not_depend_on_the_speed_of_threads(pattern, monkeypatch):
    expected = read_ids(frame_reader(pattern), shuffle=True)
    parse = readers.YT8MFrameFeatureReader.parse

    def slow_parse(self, place, payload):
        time.sleep(hash((place.path, place.index)) % 5 * 1e-3)
        return parse(self, place, payload)

    monkeypatch.setattr(readers.YT8MFrameFeatureReader, "parse", slow_parse)
    assert read_ids(frame_reader(pattern), shuffle=True) == expected


@pytest.mark.parametrize("buffer_size", [100, 1000])
def test_a_large_buffer_makes_all_places_alike(tmp_path, buffer_size):
    path = write_videos(tmp_path / "a", make_videos(100))
    options = {"num_epochs": 40, "shuffle": True, "shuffle_buffer_size": buffer_size}
    ids = read_ids(frame_reader(path), 100, **options)
    order = np.array([int(name[1:]) for name in ids]).reshape(40, 100)
    assert len({tuple(epoch) for epoch in order.tolist()}) == 40
    # The mean of 40 draws from 0..99 has a standard deviation of 4.6.
    np.testing.assert_allclose(order.mean(axis=0), 49.5, atol=5 * 4.6)
    assert abs(np.corrcoef(order.ravel(), np.tile(np.arange(100), 40))[0, 1]) < 0.1


@pytest.mark.parametrize("count", [1, 2, 4, 11])
def test_shards_are_disjoint_and_complete(pattern, all_ids, count):
    for shuffle in (False, True):
        parts = [
            read_ids(frame_reader(pattern), shard=(index, count), shuffle=shuffle)
            for index in range(count)
        ]
        assert all(parts)
        assert sorted(itertools.chain(*parts)) == all_ids


def test_more_shards_than_files_are_refused(pattern):
    message = refusal(frame_reader(pattern), shard=(0, 12))
    assert message == "12 workers need at least as many files. Received: 11"


# Where a run goes on.


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("skip", [1, 2, 14, 15, 16, 23, 29, 30, 31, 44, 45])
def test_skipping_batches_equals_dropping_them(pattern, skip, shuffle):
    # An epoch has 15 batches.
    options = {"num_epochs": 3, "shuffle": shuffle, "shuffle_buffer_size": 20, "seed": 3}
    reader = frame_reader(pattern)
    expected = list(reader.batches(5, **options))[skip:]
    assert len(expected) == 45 - skip
    assert_same_batches(reader.batches(5, skip_batches=skip, **options), expected)


@pytest.mark.parametrize("skip", [3, 10, 12, 20])
def test_skipping_works_where_batches_cross_the_borders_of_epochs(pattern, skip):
    options = {"num_epochs": 3, "shuffle": True, "shuffle_buffer_size": 200}
    reader = frame_reader(pattern)
    expected = list(reader.batches(8, **options))[skip:]
    assert_same_batches(reader.batches(8, skip_batches=skip, **options), expected)


def test_skipping_more_than_there_is_leaves_nothing(pattern):
    assert list(frame_reader(pattern).batches(8, num_epochs=2, skip_batches=100)) == []


def test_skipped_videos_are_not_parsed(pattern, monkeypatch):
    parsed = []
    parse = readers.YT8MFrameFeatureReader.parse

    def counting_parse(self, place, payload):
        parsed.append(place)
        return parse(self, place, payload)

    monkeypatch.setattr(readers.YT8MFrameFeatureReader, "parse", counting_parse)
    batches = list(frame_reader(pattern).batches(5, num_epochs=3, skip_batches=43))
    assert len(batches) == 2
    assert len(parsed) == 10


def test_a_damaged_record_behind_the_skipped_ones_is_skipped_too(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(10))
    flip_bit_of_content(path, [7])
    reader = frame_reader(path, skip_corrupt_records=1)
    ids = read_ids(reader, 2, shuffle=True, shuffle_buffer_size=20, skip_batches=1)
    assert len(ids) == len(set(ids)) == 7
    assert "v7" not in ids
    assert reader.damage.count == 1


# As a tf.data.Dataset.


@pytest.mark.parametrize("pad", [False, True])
def test_a_dataset_equals_the_batches(pattern, pad):
    reader = frame_reader(pattern)
    options = {"shuffle": True, "num_epochs": 2, "pad_to_max_frames": pad}
    expected = list(reader.batches(8, **options))
    found = list(reader.dataset(8, **options))
    assert len(found) == len(expected)
    for (inputs, labels), batch in zip(found, expected, strict=True):
        assert set(inputs) == {"frames", "num_frames"}
        np.testing.assert_array_equal(inputs["frames"], batch.inputs["frames"])
        np.testing.assert_array_equal(inputs["num_frames"], batch.inputs["num_frames"])
        np.testing.assert_array_equal(labels, batch.labels)


def test_a_dataset_starts_anew_whenever_it_is_iterated(pattern):
    dataset = frame_reader(pattern).dataset(8)
    first, second = ([labels.numpy().tolist() for _, labels in dataset] for _ in range(2))
    assert first == second


def test_a_dataset_tells_the_shapes_that_do_not_change(pattern):
    reader = frame_reader(pattern, max_frames=7)

    def shape(**options):
        return reader.dataset(8, **options).element_spec[0]["frames"].shape.as_list()

    assert shape() == [None, None, 12]
    assert shape(drop_remainder=True) == [8, None, 12]
    assert shape(drop_remainder=True, pad_to_max_frames=True) == [8, 7, 12]


def test_keras_fits_a_frame_level_dataset(pattern):
    frames = keras.Input([None, 12], name="frames", dtype="uint8")
    num_frames = keras.Input([], name="num_frames", dtype="int32")
    summed = keras.ops.sum(keras.ops.cast(frames, "float32"), axis=1)
    mean = summed / keras.ops.cast(num_frames, "float32")[:, None]
    outputs = keras.layers.Dense(NUM_CLASSES, activation="sigmoid")(mean / 255.0)
    model = keras.Model({"frames": frames, "num_frames": num_frames}, outputs)
    model.compile("sgd", "binary_crossentropy")
    dataset = frame_reader(pattern).dataset(8, num_epochs=None, shuffle=True)
    history = model.fit(dataset, steps_per_epoch=3, epochs=2, shuffle=False, verbose=0).history
    assert len(history["loss"]) == 2
    assert np.isfinite(history["loss"]).all()


def test_keras_fits_a_video_level_dataset(tmp_path):
    records = [
        video_record(f"v{n}", [n], mean_rgb=[n / 4] * 8, mean_audio=[1.0] * 4) for n in range(5)
    ]
    reader = video_reader(write_records(tmp_path / "a", records))
    assert [len(inputs) for inputs, _ in reader.dataset(2)] == [2, 2, 1]
    model = keras.Sequential([keras.Input([12]), keras.layers.Dense(NUM_CLASSES)])
    model.compile("sgd", "mse")
    dataset = reader.dataset(2, num_epochs=None)
    history = model.fit(dataset, steps_per_epoch=4, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_a_failing_dataset_is_explained(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(5))
    flip_bit_of_content(path, [3])
    reader = frame_reader(path)
    with pytest.raises(InputError) as caught, reader.explained_errors():
        list(reader.dataset(2))
    assert str(caught.value) == refusal(frame_reader(path))


def test_other_errors_are_left_as_they_are(pattern):
    reader = frame_reader(pattern)
    with pytest.raises(tf.errors.InvalidArgumentError), reader.explained_errors():
        tf.reshape(tf.zeros([3]), [2])
    with pytest.raises(KeyError), reader.explained_errors():
        raise KeyError("x")


def test_the_end_of_a_dataset_is_not_taken_for_a_failure(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(2))
    flip_bit_of_content(path, [1])
    reader = frame_reader(path)
    with pytest.raises(InputError), reader.explained_errors():
        list(reader.dataset(2))
    with pytest.raises(tf.errors.OutOfRangeError), reader.explained_errors():
        raise tf.errors.OutOfRangeError(None, None, "end of sequence")


# Data that do not fit.


def test_names_and_sizes_must_be_as_many(pattern):
    with pytest.raises(InputError, match=r"names rgb, audio and the sizes 8\.$"):
        readers.YT8MFrameFeatureReader(
            files.expand_patterns(str(pattern)),
            feature_names=("rgb", "audio"),
            feature_sizes=(8,),
            num_classes=NUM_CLASSES,
        )


def test_a_wrong_size_of_frames_tells_the_size_found(pattern):
    message = refusal(frame_reader(pattern, {"rgb": 16, "audio": 4}))
    assert re.fullmatch(
        r"feature 'rgb' has size 8 in record 0 of .*part00\.tfrecord \(byte 0\), but "
        r"--feature_sizes says 16\.",
        message,
    )


def test_a_wrong_size_of_vectors_tells_the_size_found(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0] * 5))
    message = refusal(video_reader(path, {"mean_rgb": 4}))
    assert message.startswith(f"feature 'mean_rgb' has size 5 in record 0 of {path} (byte 0), but")


def test_frame_level_readers_refuse_video_level_data(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0], mean_audio=[1.0]))
    assert refusal(frame_reader(path)) == (
        f"record 0 of {path} (byte 0) holds video-level features (id, labels, mean_audio, "
        "mean_rgb), but the model takes frames. Choose frame-level data or a video-level model."
    )


def test_video_level_readers_refuse_frame_level_data(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(1))
    assert refusal(video_reader(path)) == (
        f"record 0 of {path} (byte 0) holds frame-level features (audio, rgb), but the model takes "
        "video-level features. Choose video-level data or a frame-level model."
    )


def test_a_missing_feature_of_frames_lists_what_there_is(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(1))
    assert refusal(frame_reader(path, {"rgb": 8, "depth": 4})) == (
        f"feature 'depth' is not in record 0 of {path} (byte 0), which has: audio, rgb. Set "
        "--feature_names and --feature_sizes to what the data have."
    )


def test_a_missing_feature_of_videos_lists_what_there_is(tmp_path):
    path = one_record(tmp_path, video_record("a", [1], mean_rgb=[1.0]))
    message = refusal(video_reader(path, {"mean_audio": 1}))
    assert f"feature 'mean_audio' is not in record 0 of {path} (byte 0), which has: id" in message
    assert "id, labels, mean_rgb" in message


@pytest.mark.parametrize("label", [10, 4000, -1, 2**40])
def test_a_label_out_of_range_names_the_video(tmp_path, label):
    path = one_record(tmp_path, frame_record("abc", [3, label], rgb=[b"abcd"]))
    assert refusal(frame_reader(path, {"rgb": 4}, skip_corrupt_records=9)) == (
        f"video 'abc' (record 0 of {path} (byte 0)) has label {label}, but labels must be 0 to 9. "
        "Is --num_classes=10 right?"
    )


def test_a_batch_larger_than_the_data_is_refused_if_it_must_be_full(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(5))
    message = refusal(frame_reader(path), 6, drop_remainder=True, num_epochs=None)
    expected = f"--batch_size=6 is larger than the data: 5 videos in 1 files, as {path}"
    assert message == expected


@pytest.mark.parametrize("num_epochs", [1, None])
def test_files_without_a_video_are_refused(tmp_path, num_epochs):
    for name in ("a", "b"):
        write_records(tmp_path / name, [])
    message = refusal(frame_reader(tmp_path / "?"), num_epochs=num_epochs)
    assert message == f"no video in 2 files, as {tmp_path}/a"


# Damaged records.


def frame_lists(**features):
    return tf.train.FeatureLists(
        feature_list={
            name: tf.train.FeatureList(feature=values) for name, values in features.items()
        }
    )


def raw_frame_record(context, **features):
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=frame_lists(**features)
    ).SerializeToString()


ID = {"id": bytes_feature(b"abc")}
DAMAGED_FRAMES = {
    "no frame": (
        raw_frame_record(ID, rgb=[]),
        "video 'abc' has no frame of 'rgb'",
    ),
    "unequal sizes": (
        raw_frame_record(ID, rgb=[bytes_feature(b"abcd"), bytes_feature(b"abc")]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "two values": (
        raw_frame_record(ID, rgb=[bytes_feature(b"abcd", b"abcd")]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "floats": (
        raw_frame_record(ID, rgb=[float_feature([1.0])]),
        "video 'abc' has frames of 'rgb' that differ in size or are not bytes",
    ),
    "no id": (
        raw_frame_record({"labels": int64_feature([1])}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' (nor 'video_id') of one string. It has: labels",
    ),
    "two ids": (
        raw_frame_record({"id": bytes_feature(b"a", b"b")}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' (nor 'video_id') of one string. It has: id",
    ),
    "integer id": (
        raw_frame_record({"id": int64_feature([5])}, rgb=[bytes_feature(b"abcd")]),
        "it has no 'id' (nor 'video_id') of one string. It has: id",
    ),
    "no record": (b"\x0a\xff\xff", "it is not a record of YouTube-8M: "),
}
DAMAGED_VECTORS = {
    "NaN": (
        video_record("abc", [1], mean_rgb=[1.0, math.nan]),
        "feature 'mean_rgb' of video 'abc' has NaN or infinity",
    ),
    "infinity": (
        video_record("abc", [1], mean_rgb=[-math.inf, 1.0]),
        "feature 'mean_rgb' of video 'abc' has NaN or infinity",
    ),
    "no floats": (
        tf.train.Example(
            features=tf.train.Features(feature={**ID, "mean_rgb": int64_feature([1, 2])})
        ).SerializeToString(),
        "feature 'mean_rgb' of video 'abc' does not hold floats",
    ),
    "no id": (
        video_record("abc", [1], "name", mean_rgb=[1.0, 2.0]),
        "it has no 'id' (nor 'video_id') of one string. It has: labels, mean_rgb, name",
    ),
    "no record": (b"\x0a\xff\xff", "it is not a record of YouTube-8M: "),
}


@pytest.mark.parametrize(("record", "reason"), DAMAGED_FRAMES.values(), ids=DAMAGED_FRAMES)
def test_a_record_without_usable_frames_is_damaged(tmp_path, record, reason):
    good = [frame_record(name, [1], rgb=[b"abcd"]) for name in ("a", "b")]
    path = write_records(tmp_path / "a", [good[0], record, good[1]])
    offset = RECORD_HEADER_BYTES + len(good[0]) + 4
    expected = f"record 1 of {path} (byte {offset}): {reason}"
    assert refusal(frame_reader(path, {"rgb": 4})).startswith(expected)
    reader = frame_reader(path, {"rgb": 4}, skip_corrupt_records=1)
    assert read_ids(reader, num_epochs=2) == ["a", "b", "a", "b"]
    assert reader.damage.count == 1


@pytest.mark.parametrize(("record", "reason"), DAMAGED_VECTORS.values(), ids=DAMAGED_VECTORS)
def test_a_record_without_usable_vectors_is_damaged(tmp_path, record, reason):
    good = [video_record(name, [1], mean_rgb=[1.0, 2.0]) for name in ("a", "b")]
    path = write_records(tmp_path / "a", [good[0], record, good[1]])
    offset = RECORD_HEADER_BYTES + len(good[0]) + 4
    expected = f"record 1 of {path} (byte {offset}): {reason}"
    assert refusal(video_reader(path, {"mean_rgb": 2})).startswith(expected)
    reader = video_reader(path, {"mean_rgb": 2}, skip_corrupt_records=1)
    assert read_ids(reader) == ["a", "b"]
    assert reader.damage.count == 1


def test_unequal_numbers_of_frames_are_damage(tmp_path):
    path = one_record(tmp_path, frame_record("abc", [1], rgb=[b"abcd"] * 3, audio=[b"ab"] * 2))
    message = refusal(frame_reader(path, {"rgb": 4, "audio": 2}))
    assert "video 'abc' has unequal numbers of frames: 3 of 'rgb', 2 of 'audio'" in message


def test_unequal_numbers_of_frames_are_damage_behind_max_frames_too(tmp_path):
    path = one_record(tmp_path, frame_record("abc", [1], rgb=[b"abcd"] * 3, audio=[b"ab"] * 2))
    message = refusal(frame_reader(path, {"rgb": 4, "audio": 2}, max_frames=1))
    assert "video 'abc' has unequal numbers of frames: 3 of 'rgb', 2 of 'audio'" in message


def test_a_video_without_labels_is_a_negative_and_warned_of_once(tmp_path, warnings):
    no_labels = raw_frame_record(ID, rgb=[bytes_feature(b"abcd")])
    records = [
        no_labels,
        frame_record("b", [], rgb=[b"abcd"]),
        frame_record("c", [2], rgb=[b"abcd"]),
    ]
    path = write_records(tmp_path / "a", records)
    (batch,) = frame_reader(path, {"rgb": 4}).batches(3)
    assert batch.labels.sum(axis=1).tolist() == [0, 0, 1]
    assert warnings == [
        f"video 'abc' (record 0 of {path} (byte 0)) has no label: it counts as a negative of every "
        "class. The record has: id. Further videos without labels are not reported."
    ]


def test_an_id_that_is_not_utf8_is_shown_escaped(tmp_path):
    record = raw_frame_record({"id": bytes_feature(b"a\xff")}, rgb=[bytes_feature(b"abcd")])
    assert read_ids(frame_reader(one_record(tmp_path, record), {"rgb": 4})) == ["a\\xff"]


@pytest.mark.parametrize("portion", [1, 4, 64])
def test_many_damaged_records_in_a_row_do_not_end_a_file(tmp_path, monkeypatch, portion):
    monkeypatch.setattr(readers, "_PORTION_RECORDS", portion)
    path = write_videos(tmp_path / "a", make_videos(200))
    flip_bit_of_content(path, range(50, 180))
    reader = frame_reader(path, skip_corrupt_records=130)
    expected = [f"v{index}" for index in [*range(50), *range(180, 200)]]
    assert read_ids(reader, num_epochs=2) == expected * 2
    assert reader.damage.count == 130
    assert refusal(frame_reader(path, skip_corrupt_records=129)).startswith("record 179 of")


@pytest.mark.parametrize("portion_bytes", [1, 1000])
def test_many_records_without_a_video_in_a_row_do_not_end_a_file(
    tmp_path, monkeypatch, portion_bytes
):
    monkeypatch.setattr(readers, "_PORTION_BYTES", portion_bytes)
    no_id = raw_frame_record({}, rgb=[bytes_feature(b"abcd")])
    good = frame_record("good", [1], rgb=[b"abcd"])
    path = write_records(tmp_path / "a", [no_id] * 50 + [good] + [no_id] * 50 + [good])
    reader = frame_reader(path, {"rgb": 4}, skip_corrupt_records=100)
    assert read_ids(reader) == ["good", "good"]
    assert reader.damage.count == 100


def test_damaged_records_at_the_end_of_one_file_leave_the_others(tmp_path):
    pattern = write_files(tmp_path, [80, 5, 3])
    flip_bit_of_content(tmp_path / "part00.tfrecord", range(1, 80))
    reader = frame_reader(pattern, skip_corrupt_records=79)
    assert len(read_ids(reader)) == 9


@pytest.mark.parametrize("damage", ["nothing", "content of the last", "length of the last"])
def test_bytes_read_add_up_to_the_total(tmp_path, damage):
    paths = [write_videos(tmp_path / name, make_videos(10, name)) for name in "ab"]
    if damage == "content of the last":
        flip_bit_of_content(paths[1], [9])
    elif damage == "length of the last":
        with open(paths[1], "r+b") as file:
            file.truncate(files.file_size(paths[1]) - 1)
    reader = frame_reader(tmp_path / "?", skip_corrupt_records=1)
    assert reader.total_bytes == sum(files.file_size(path) for path in paths)
    num_videos = len(read_ids(reader, num_epochs=2))
    assert num_videos == (40 if damage == "nothing" else 38)
    assert reader.bytes_read == 2 * reader.total_bytes


# Threads.


def reader_threads():
    return [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def wait_for_threads_to_end():
    deadline = time.monotonic() + 10
    while reader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reader_threads()


@pytest.mark.parametrize("num_readers", [1, 4])
@pytest.mark.parametrize("error", [RuntimeError("broken"), InputError("bad"), MemoryError()])
def test_an_error_in_a_thread_reaches_the_caller(pattern, monkeypatch, error, num_readers):
    def broken_parse(self, place, payload):
        if place.index == 5:
            raise error
        return parse(self, place, payload)

    parse = readers.YT8MFrameFeatureReader.parse
    monkeypatch.setattr(readers.YT8MFrameFeatureReader, "parse", broken_parse)
    with pytest.raises(type(error)) as caught:
        list(frame_reader(pattern, num_readers=num_readers).batches(4, num_epochs=None))
    assert caught.value is error
    assert not reader_threads()


def test_an_error_while_a_batch_is_put_together_reaches_the_caller(pattern, monkeypatch):
    def broken(shape, dtype):
        raise MemoryError(f"{shape} {dtype}")

    monkeypatch.setattr(readers, "_aligned_empty", broken)
    with pytest.raises(MemoryError):
        list(frame_reader(pattern).batches(4))
    assert not reader_threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_batches_early_ends_the_threads(pattern, taken):
    batches = frame_reader(pattern).batches(2, num_epochs=None, shuffle=True)
    for _ in itertools.islice(batches, taken):
        pass
    batches.close()
    assert not reader_threads()


def test_leaving_a_dataset_early_ends_the_threads(pattern):
    dataset = frame_reader(pattern).dataset(2, num_epochs=None)
    for _ in dataset.take(3):
        pass
    wait_for_threads_to_end()


def test_files_are_closed_when_batches_are_closed_early(pattern, monkeypatch):
    opened = []
    open_binary = files.open_binary

    def noting(*arguments, **options):
        opened.append(open_binary(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(files, "open_binary", noting)
    batches = frame_reader(pattern).batches(1, num_epochs=None)
    next(batches)
    batches.close()
    assert len(opened) == 8
    assert all(file.closed for file in opened)


def test_every_pass_over_a_shuffled_dataset_has_another_order(tmp_path):
    rng = np.random.default_rng(0)
    path = write_records(
        tmp_path / "a.tfrecord",
        [frame_record(str(i), [i], rgb=random_frames(rng, 1, 4)) for i in range(9)],
    )
    reader = readers.YT8MFrameFeatureReader(
        [path], feature_names=("rgb",), feature_sizes=(4,), num_classes=9
    )
    dataset = reader.dataset(9, shuffle=True, seed=1)
    passes = [labels.numpy().argmax(axis=1).tolist() for _ in range(2) for _, labels in dataset]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(9))
    both = reader.dataset(9, shuffle=True, seed=1, num_epochs=2)
    assert passes == [labels.numpy().argmax(axis=1).tolist() for _, labels in both]


def test_labels_of_another_kind_are_refused(tmp_path):
    example = tf.train.SequenceExample.FromString(frame_record("abc", [], rgb=[b"1234"]))
    example.context.feature["labels"].float_list.value.append(1.0)
    path = write_records(tmp_path / "a.tfrecord", [example.SerializeToString()])
    reader = readers.YT8MFrameFeatureReader(
        [path], feature_names=("rgb",), feature_sizes=(4,), num_classes=9
    )
    with pytest.raises(InputError, match=r"labels of video 'abc' .* are a float_list"):
        list(reader.batches(1))
