"""The order of videos: interleaving, shuffling, epochs, shards, resuming."""

import gzip
import itertools
import math
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf

import files
from record_readers import (
    assert_same_batches,
    before_parsing,
    corrupt_content,
    error_of,
    frame_reader,
    make_videos,
    read_ids,
    write_files,
    write_videos,
)


@pytest.fixture(scope="module")
def all_ids(record_files):
    dataset = tf.data.TFRecordDataset(files.expand_patterns(record_files)).as_numpy_iterator()
    contexts = [tf.train.SequenceExample.FromString(record).context for record in dataset]
    return sorted(context.feature["id"].bytes_list.value[0].decode() for context in contexts)


def test_without_shuffling_files_are_interleaved(tmp_path):
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


def test_num_epochs_none_repeats_forever(tmp_path):
    reader = frame_reader(write_videos(tmp_path / "a", make_videos(5)))
    batches = reader.batches(3, num_epochs=None)
    assert [len(batch.labels) for batch in itertools.islice(batches, 50)] == [3] * 50
    batches.close()


@pytest.mark.parametrize("buffer_size", [1, 10, 1000])
def test_shuffling_keeps_every_video_once_per_epoch(record_files, all_ids, buffer_size):
    reader = frame_reader(record_files)
    ids = read_ids(reader, 5, num_epochs=3, shuffle=True, shuffle_buffer_size=buffer_size)
    epochs = [ids[start : start + 75] for start in (0, 75, 150)]
    assert [sorted(epoch) for epoch in epochs] == [all_ids] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed(record_files):
    orders = {
        tuple(read_ids(frame_reader(record_files), shuffle=True, seed=seed)) for seed in range(4)
    }
    assert len(orders) == 4


def test_the_order_does_not_depend_on_the_number_of_readers(record_files):
    options = {"num_epochs": 2, "shuffle": True, "shuffle_buffer_size": 20, "seed": 5}
    orders = [
        read_ids(frame_reader(record_files, num_readers=number), **options)
        for number in (1, 3, 8, 8)
    ]
    assert orders[1:] == orders[:1] * 3


def test_the_order_does_not_depend_on_the_speed_of_threads(record_files, monkeypatch):
    expected = read_ids(frame_reader(record_files), shuffle=True)

    def wait(location):
        time.sleep(hash((location.path, location.index)) % 5 * 1e-3)

    before_parsing(monkeypatch, wait)
    assert read_ids(frame_reader(record_files), shuffle=True) == expected


@pytest.mark.parametrize("buffer_size", [100, 1000])
def test_a_large_buffer_shuffles_uniformly(tmp_path, buffer_size):
    path = write_videos(tmp_path / "a", make_videos(100))
    options = {"num_epochs": 40, "shuffle": True, "shuffle_buffer_size": buffer_size}
    ids = read_ids(frame_reader(path), 100, **options)
    order = np.array([int(name[1:]) for name in ids]).reshape(40, 100)
    assert len({tuple(epoch) for epoch in order.tolist()}) == 40
    # The mean of 40 draws from 0..99 has a standard deviation of 4.6.
    np.testing.assert_allclose(order.mean(axis=0), 49.5, atol=5 * 4.6)
    assert abs(np.corrcoef(order.ravel(), np.tile(np.arange(100), 40))[0, 1]) < 0.1


@pytest.mark.parametrize("count", [1, 2, 4, 11])
def test_shards_are_disjoint_and_complete(record_files, all_ids, count):
    for shuffle in (False, True):
        parts = [
            read_ids(frame_reader(record_files), shard=(index, count), shuffle=shuffle)
            for index in range(count)
        ]
        assert all(parts)
        assert sorted(itertools.chain(*parts)) == all_ids


def test_more_shards_than_files_are_rejected(record_files):
    message = error_of(frame_reader(record_files), shard=(0, 12))
    assert message == "12 workers need at least as many files. Received: 11"


# --- Resuming ---


# An epoch has 15 batches of 5 videos; batches of 8 cross epochs.
SKIPS = [(5, skip) for skip in (1, 2, 14, 15, 16, 23, 29, 30, 31, 44, 45)]
SKIPS += [(8, skip) for skip in (3, 10, 12, 20)]


@pytest.mark.parametrize("shuffle_buffer_size", [None, 20, 200])
@pytest.mark.parametrize(("size", "skip"), SKIPS)
def test_skipping_batches_equals_dropping_them(record_files, size, skip, shuffle_buffer_size):
    options = {"num_epochs": 3, "seed": 3}
    if shuffle_buffer_size:
        options |= {"shuffle": True, "shuffle_buffer_size": shuffle_buffer_size}
    reader = frame_reader(record_files)
    expected = list(reader.batches(size, **options))[skip:]
    assert len(expected) == math.ceil(225 / size) - skip
    assert_same_batches(reader.batches(size, skip_batches=skip, **options), expected)


def test_skipping_more_batches_than_exist_yields_none(record_files):
    assert list(frame_reader(record_files).batches(8, num_epochs=2, skip_batches=100)) == []


def test_skipped_videos_are_not_parsed(record_files, monkeypatch):
    parsed = []
    before_parsing(monkeypatch, parsed.append)
    batches = list(frame_reader(record_files).batches(5, num_epochs=3, skip_batches=43))
    assert len(batches) == 2
    assert len(parsed) == 10


def test_a_corrupt_record_after_the_skipped_batches_is_skipped_too(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(10))
    corrupt_content(path, [7])
    reader = frame_reader(path, skip_corrupt_records=1)
    ids = read_ids(reader, 2, shuffle=True, shuffle_buffer_size=20, skip_batches=1)
    assert len(ids) == len(set(ids)) == 7
    assert "v7" not in ids
    assert reader.corrupt_records.count == 1


@pytest.mark.parametrize("skip_batches", [0, 5, 25])
def test_compressed_files_give_the_same_batches(record_files, tmp_path, skip_batches):
    for path in files.expand_patterns(record_files):
        content = pathlib.Path(path).read_bytes()
        (tmp_path / pathlib.Path(path).name).write_bytes(gzip.compress(content))
    options = {"shuffle": True, "num_epochs": 3, "skip_batches": skip_batches}
    reader = frame_reader(tmp_path / "*.tfrecord")
    plain = frame_reader(record_files).batches(4, **options)
    assert_same_batches(reader.batches(4, **options), plain)
    if not skip_batches:
        assert reader.bytes_read == 3 * reader.total_bytes
