"""Batches as a `tf.data.Dataset`, and the threads that read them."""

import itertools
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import files
import readers
from record_readers import (
    NUM_CLASSES,
    before_parsing,
    corrupt_content,
    error_of,
    frame_reader,
    make_videos,
    video_reader,
    write_videos,
)
from sample_records import frame_record, video_record, write_records
from utils import InputError


@pytest.mark.parametrize("pad", [False, True])
def test_a_dataset_equals_the_batches(record_files, pad):
    reader = frame_reader(record_files)
    options = {"shuffle": True, "num_epochs": 2, "pad_to_max_frames": pad}
    expected = list(reader.batches(8, **options))
    found = list(reader.dataset(8, **options))
    assert len(found) == len(expected)
    for (inputs, labels), batch in zip(found, expected, strict=True):
        assert set(inputs) == {"frames", "num_frames"}
        np.testing.assert_array_equal(inputs["frames"], batch.inputs["frames"])
        np.testing.assert_array_equal(inputs["num_frames"], batch.inputs["num_frames"])
        np.testing.assert_array_equal(labels, batch.labels)


def test_a_dataset_can_be_iterated_again(record_files):
    dataset = frame_reader(record_files).dataset(8)
    first, second = ([labels.numpy().tolist() for _, labels in dataset] for _ in range(2))
    assert first == second


def test_a_dataset_declares_its_fixed_sizes(record_files):
    reader = frame_reader(record_files, max_frames=7)

    def shape(**options):
        return reader.dataset(8, **options).element_spec[0]["frames"].shape.as_list()

    assert shape() == [None, None, 12]
    assert shape(drop_remainder=True) == [8, None, 12]
    assert shape(drop_remainder=True, pad_to_max_frames=True) == [8, 7, 12]


def test_keras_fits_a_frame_level_dataset(record_files):
    frames = keras.Input([None, 12], name="frames", dtype="uint8")
    num_frames = keras.Input([], name="num_frames", dtype="int32")
    summed = keras.ops.sum(keras.ops.cast(frames, "float32"), axis=1)
    mean = summed / keras.ops.cast(num_frames, "float32")[:, None]
    outputs = keras.layers.Dense(NUM_CLASSES, activation="sigmoid")(mean / 255.0)
    model = keras.Model({"frames": frames, "num_frames": num_frames}, outputs)
    model.compile("sgd", "binary_crossentropy", jit_compile=False)
    dataset = frame_reader(record_files).dataset(8, num_epochs=None, shuffle=True)
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
    model.compile("sgd", "mse", jit_compile=False)
    dataset = reader.dataset(2, num_epochs=None)
    history = model.fit(dataset, steps_per_epoch=4, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_explained_errors_raises_the_input_error_behind_a_failed_dataset(tmp_path):
    path = write_videos(tmp_path / "a", make_videos(5))
    corrupt_content(path, [3])
    reader = frame_reader(path)
    with pytest.raises(InputError) as caught, reader.explained_errors():
        list(reader.dataset(2))
    assert str(caught.value) == error_of(frame_reader(path))
    # It leaves the end of a dataset unchanged even after that.
    with pytest.raises(tf.errors.OutOfRangeError), reader.explained_errors():
        raise tf.errors.OutOfRangeError(None, None, "end of sequence")


def test_explained_errors_leaves_other_errors_unchanged(record_files):
    reader = frame_reader(record_files)
    with pytest.raises(tf.errors.InvalidArgumentError), reader.explained_errors():
        tf.reshape(tf.zeros([3]), [2])
    with pytest.raises(KeyError), reader.explained_errors():
        raise KeyError("x")


def test_every_pass_over_a_shuffled_dataset_has_another_order(tmp_path):
    records = [frame_record(str(i), [i], rgb=[b"abcd"]) for i in range(9)]
    reader = frame_reader(write_records(tmp_path / "a", records), {"rgb": 4})
    dataset = reader.dataset(9, shuffle=True, seed=1)
    passes = [labels.numpy().argmax(axis=1).tolist() for _ in range(2) for _, labels in dataset]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(9))
    both = reader.dataset(9, shuffle=True, seed=1, num_epochs=2)
    assert passes == [labels.numpy().argmax(axis=1).tolist() for _, labels in both]


# --- Threads ---


def reader_threads():
    return [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def wait_for_threads_to_end():
    deadline = time.monotonic() + 10
    while reader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reader_threads()


@pytest.mark.parametrize("num_readers", [1, 4])
@pytest.mark.parametrize("error", [RuntimeError("broken"), InputError("bad"), MemoryError()])
def test_an_error_in_a_thread_reaches_the_caller(record_files, monkeypatch, error, num_readers):
    def fail(location):
        if location.index == 5:
            raise error

    before_parsing(monkeypatch, fail)
    with pytest.raises(type(error)) as caught:
        list(frame_reader(record_files, num_readers=num_readers).batches(4, num_epochs=None))
    assert caught.value is error
    assert not reader_threads()


def test_an_error_while_a_batch_is_assembled_reaches_the_caller(record_files, monkeypatch):
    def broken(shape, dtype):
        raise MemoryError(f"{shape} {dtype}")

    monkeypatch.setattr(readers, "_aligned_empty", broken)
    with pytest.raises(MemoryError):
        list(frame_reader(record_files).batches(4))
    assert not reader_threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_batches_early_ends_the_threads(record_files, taken):
    batches = frame_reader(record_files).batches(2, num_epochs=None, shuffle=True)
    for _ in itertools.islice(batches, taken):
        pass
    batches.close()
    assert not reader_threads()


def test_leaving_a_dataset_early_ends_the_threads(record_files):
    dataset = frame_reader(record_files).dataset(2, num_epochs=None)
    for _ in dataset.take(3):
        pass
    wait_for_threads_to_end()


def test_files_are_closed_when_batches_are_closed_early(record_files, monkeypatch):
    opened = []
    open_binary = files.open_binary

    def noting(*arguments, **options):
        opened.append(open_binary(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(files, "open_binary", noting)
    batches = frame_reader(record_files).batches(1, num_epochs=None)
    next(batches)
    batches.close()
    assert len(opened) == 11
    assert all(file.closed for file in opened)


def test_the_next_files_are_opened_while_one_is_read(record_files, monkeypatch):
    # Without five files being opened at the same time, the barrier breaks.
    together, opened, open_binary = threading.Barrier(5), [], files.open_binary

    def slow(path, *arguments, **options):
        opened.append(path)
        if len(opened) <= 5:
            together.wait(timeout=10)
        return open_binary(path, *arguments, **options)

    monkeypatch.setattr(files, "open_binary", slow)
    reader = frame_reader(record_files)
    found = list(reader.file_batches(4, range(11), lambda number: None))
    assert sorted(opened) == reader.paths
    expected = [[*frame_reader(path).batches(4), None] for path in reader.paths]
    for batch, other in zip(found, itertools.chain(*expected), strict=True):
        assert (batch and batch.video_ids) == (other and other.video_ids)


def test_each_file_is_announced_before_it_is_opened(record_files, monkeypatch):
    events, open_binary = [], files.open_binary

    def noting(path, *arguments, **options):
        events.append(path)
        return open_binary(path, *arguments, **options)

    monkeypatch.setattr(files, "open_binary", noting)
    reader = frame_reader(record_files)
    numbers = [3, 0, 7]
    assert list(reader.file_batches(4, numbers, events.append)).count(None) == 3
    for number in numbers:
        assert events.index(number) < events.index(reader.paths[number])
    assert len(events) == 6


def test_there_are_as_many_readers_as_cores_but_at_most_eight(record_files, monkeypatch):
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(readers.os, "sched_getaffinity", lambda _, n=cores: range(n))
        assert frame_reader(record_files).num_readers == expected
    assert frame_reader(record_files, num_readers=20).num_readers == 20
