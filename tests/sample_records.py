"""Writes small YouTube-8M records for tests."""

import pathlib

import numpy as np
import tensorflow as tf

from segments.ratings import ENDS, LABELS, SCORES, STARTS

NUM_CLASSES = 10


def bytes_feature(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def int64_feature(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def float_feature(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def frame_record(video_id, labels, id_name="id", weights=None, **features):
    """Returns a serialized SequenceExample; each feature is uint8 `[T, D]` or a list of bytes.

    The weights of the labels are a list of floats with the name `trust`.
    """
    context = {id_name: bytes_feature(video_id.encode()), "labels": int64_feature(labels)}
    if weights is not None:
        context["trust"] = float_feature(weights)
    lists = {
        name: tf.train.FeatureList(feature=[bytes_feature(bytes(frame)) for frame in frames])
        for name, frames in features.items()
    }
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(feature_list=lists),
    ).SerializeToString(deterministic=True)


def with_ratings(record, ratings, size=5):
    """Returns a serialized SequenceExample with ratings `(start, class, score)` added."""
    record = tf.train.SequenceExample.FromString(record)
    starts, labels, scores = zip(*ratings, strict=True) if ratings else ((), (), ())
    for name, feature in {
        LABELS: int64_feature(labels),
        STARTS: int64_feature(starts),
        ENDS: int64_feature([start + size for start in starts]),
        SCORES: float_feature(scores),
    }.items():
        record.context.feature[name].CopyFrom(feature)
    return record.SerializeToString(deterministic=True)


def video_record(video_id, labels, id_name="id", **features):
    """Returns a serialized Example; each feature is a vector of floats."""
    values = {id_name: bytes_feature(video_id.encode()), "labels": int64_feature(labels)}
    values |= {name: float_feature(vector) for name, vector in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString(
        deterministic=True
    )


def write_records(path, records):
    """Writes serialized records as a TFRecord file and returns its path as str."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def flip_bit(path, offset):
    """Flips a bit in a byte of a file."""
    content = bytearray(pathlib.Path(path).read_bytes())
    content[offset] ^= 1
    pathlib.Path(path).write_bytes(content)


def random_frames(rng, num_frames, size):
    return rng.integers(0, 256, (num_frames, size), dtype=np.uint8)


def random_labels(rng, num_classes):
    """Returns one to three labels in ascending order."""
    return sorted(rng.choice(num_classes, rng.integers(1, 4), replace=False).tolist())


def write_frame_files(folder, num_files, videos_per_file, sizes=(8, 4)):
    """Writes files of learnable frame-level videos and returns a glob that matches them.

    Each of ten labels adds its own pattern to frames.
    """
    patterns = np.random.default_rng(99).integers(0, 256, (NUM_CLASSES, sum(sizes)))

    def make_record(rng, video_id, labels):
        shown = rng.choice(labels, rng.integers(3, 9))
        noise = rng.integers(-20, 21, (len(shown), sum(sizes)))
        frames = np.clip(patterns[shown] + noise, 0, 255).astype(np.uint8)
        rgb, audio = np.split(frames, [sizes[0]], axis=1)
        return frame_record(video_id, labels, rgb=rgb, audio=audio)

    return _write_files(folder, num_files, videos_per_file, make_record)


def write_video_files(folder, num_files, videos_per_file):
    """Writes files of learnable video-level videos and returns a glob that matches them."""
    patterns = np.random.default_rng(99).normal(size=(NUM_CLASSES, 12))

    def make_record(rng, video_id, labels):
        mean = patterns[labels].mean(axis=0) + rng.normal(0, 0.1, 12)
        return video_record(video_id, labels, mean_rgb=mean[:8], mean_audio=mean[8:])

    return _write_files(folder, num_files, videos_per_file, make_record)


def _write_files(folder, num_files, videos_per_file, make_record):
    rng = np.random.default_rng(0)
    for number in range(num_files):
        records = []
        for index in range(videos_per_file):
            labels = random_labels(rng, NUM_CLASSES)
            records.append(make_record(rng, f"v{number}_{index}", labels))
        write_records(folder / f"part{number:03d}.tfrecord", records)
    return str(folder / "part*.tfrecord")
