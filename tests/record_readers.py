"""Readers and record files for the tests of readers."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import files
import readers
from sample_records import flip_bit, frame_record, random_frames, random_labels, write_records
from utils import InputError

NUM_CLASSES = 10
SIZES = {"rgb": 8, "audio": 4}
RECORD_HEADER_BYTES = 12


def frame_reader(record_files, sizes=SIZES, **options):
    return make_reader(readers.YT8MFrameFeatureReader, record_files, sizes, **options)


def video_reader(record_files, sizes=None, **options):
    sizes = sizes or {"mean_rgb": 8, "mean_audio": 4}
    return make_reader(readers.YT8MAggregatedFeatureReader, record_files, sizes, **options)


def make_reader(reader, record_files, sizes, *, num_classes=NUM_CLASSES, max_frames=6, **options):
    return reader(
        files.expand_patterns(str(record_files)),
        feature_names=tuple(sizes),
        feature_sizes=tuple(sizes.values()),
        num_classes=num_classes,
        max_frames=max_frames,
        **options,
    )


def make_videos(count, prefix="v", seed=0, sizes=SIZES):
    """Returns videos as (id, labels, features), with 1 to 9 frames and 1 to 3 labels each."""
    rng = np.random.default_rng(seed)
    videos = []
    for index in range(count):
        labels = random_labels(rng, NUM_CLASSES)
        length = rng.integers(1, 10)
        features = {name: random_frames(rng, length, size) for name, size in sizes.items()}
        videos.append((f"{prefix}{index}", labels, features))
    return videos


def write_videos(path, videos):
    records = [frame_record(video_id, labels, **frames) for video_id, labels, frames in videos]
    return write_records(path, records)


def write_files(folder, counts):
    """Writes a file per count and returns their glob. Video 3 of file 1 is `f1v3`."""
    for number, count in enumerate(counts):
        videos = make_videos(count, f"f{number}v", seed=number)
        write_videos(folder / f"part{number:02d}.tfrecord", videos)
    return str(folder / "part*.tfrecord")


def one_record(tmp_path, record):
    return write_records(tmp_path / "one.tfrecord", [record])


def read_ids(reader, batch_size=4, **options):
    return [video_id for batch in reader.batches(batch_size, **options) for video_id in batch[0]]


def error_of(reader, batch_size=4, **options):
    """Returns the message of the error that reading raises."""
    with pytest.raises(InputError) as caught:
        list(reader.batches(batch_size, **options))
    return str(caught.value)


def expected_batch(videos, num_frames_in_batch=None, max_frames=6, names=("rgb", "audio")):
    """Returns frames, numbers of frames and labels of a batch, built frame by frame."""
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


def before_parsing(monkeypatch, call):
    """Calls a function with the location of every frame-level record before it is parsed."""

    def parse_after(self, location, payload):
        call(location)
        return parse(self, location, payload)

    parse = readers.YT8MFrameFeatureReader.parse
    monkeypatch.setattr(readers.YT8MFrameFeatureReader, "parse", parse_after)


def assert_same_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.video_ids == other.video_ids
        for left, right in zip(tf.nest.flatten(one[1:]), tf.nest.flatten(other[1:]), strict=True):
            np.testing.assert_array_equal(left, right)


def corrupt_content(path, indices):
    """Flips a bit in the content of some records of a file."""
    lengths = [len(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
    starts = [0, *itertools.accumulate(RECORD_HEADER_BYTES + length + 4 for length in lengths)]
    for index in indices:
        flip_bit(path, starts[index] + RECORD_HEADER_BYTES + 2)
