"""Measures how many videos per second the frame-level reader delivers.

    python benchmarks/input.py

Compares it, taking turns in one process, with a straightforward tf.data reader and with the bare
reading of records. benchmarks/README.md explains the output.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import files
import quantization
import readers
from options import option, same_option
from run_config import ReadOptions

NUM_CLASSES = 3862
MAX_FRAMES = 300
FEATURES = {"rgb": 1024, "audio": 128}
NUM_FILES = 8
BASELINE = "per-example tf.data"


def write_records(folder, num_videos, num_files=NUM_FILES, seed=0):
    """Writes full-size frame-level records of random bytes and returns a glob for the files."""
    rng = np.random.default_rng(seed)
    for number in range(num_files):
        path = os.path.join(folder, f"part{number:03d}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for index in range(number, num_videos, num_files):
                writer.write(random_record(f"video{index}", rng))
    return os.path.join(folder, "part*.tfrecord")


def random_record(video_id, rng):
    """Returns a serialized SequenceExample with all frames and one to five labels."""
    example = tf.train.SequenceExample()
    context = example.context.feature
    context["id"].bytes_list.value.append(video_id.encode())
    labels = rng.choice(NUM_CLASSES, rng.integers(1, 6), replace=False)
    context["labels"].int64_list.value.extend(labels)
    for name, size in FEATURES.items():
        frames = example.feature_lists.feature_list[name].feature
        for _ in range(MAX_FRAMES):
            frames.add().bytes_list.value.append(rng.bytes(size))
    return example.SerializeToString()


def baseline_dataset(paths, batch_size, num_readers):
    """Returns the usual reader, which parses, dequantizes and pads each video separately."""

    def frames_of(feature):
        values = quantization.YOUTUBE8M.dequantize(
            tf.cast(tf.io.decode_raw(feature, tf.uint8), tf.float32)
        )
        values = values[:MAX_FRAMES]
        return tf.pad(values, [[0, MAX_FRAMES - tf.shape(values)[0]], [0, 0]])

    def parse(record):
        context, sequence = tf.io.parse_single_sequence_example(
            record,
            {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)},
            {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in FEATURES},
        )
        frames = tf.concat([frames_of(sequence[name]) for name in FEATURES], axis=1)
        num_frames = tf.minimum(tf.size(sequence["rgb"]), MAX_FRAMES)
        labels = tf.cast(tf.sparse.to_indicator(context["labels"], NUM_CLASSES), tf.float32)
        return {"frames": frames, "num_frames": num_frames}, labels

    records = tf.data.TFRecordDataset(paths, num_parallel_reads=num_readers)
    return records.map(parse, num_readers).batch(batch_size).prefetch(1)


def ways_to_read(paths, batch_size, num_readers):
    """Returns the ways to compare: a dict from a name to a function that reads all files once.

    Each function returns the number of videos. Datasets are created once, as in training.
    """
    reader = readers.YT8MFrameFeatureReader(
        paths,
        feature_names=tuple(FEATURES),
        feature_sizes=tuple(FEATURES.values()),
        num_classes=NUM_CLASSES,
        max_frames=MAX_FRAMES,
        num_readers=num_readers,
    )

    def read_dataset(dataset):
        return sum(len(labels) for _, labels in dataset)

    def read_batches(**options):
        return sum(len(batch.labels) for batch in reader.batches(batch_size, **options))

    baseline = baseline_dataset(paths, batch_size, num_readers)
    plain = reader.dataset(batch_size)
    shuffled = reader.dataset(batch_size, shuffle=True)
    records = tf.data.TFRecordDataset(paths, num_parallel_reads=num_readers)
    return {
        BASELINE: lambda: read_dataset(baseline),
        "dataset()": lambda: read_dataset(plain),
        "dataset(), shuffled": lambda: read_dataset(shuffled),
        "batches()": read_batches,
        "batches(), shuffled": lambda: read_batches(shuffle=True),
        "bare records": lambda: sum(1 for _ in records),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions(comparison.ComparisonOptions):
    """Options of this program."""

    num_readers: int = same_option(ReadOptions, "num_readers")
    batch_size: int = option(80, "Videos per batch.", group="data", above=0)
    data_pattern: str | None = option(
        None,
        "Comma-separated globs of frame-level records with the features rgb and audio, quoted. "
        "By default, records of random bytes are written to a temporary directory.",
        group="data",
    )
    num_videos: int = option(400, "Videos to write without --data_pattern.", group="data", above=0)


def main(options: InputOptions):
    """Runs the program."""
    with contextlib.ExitStack() as stack:
        pattern = options.data_pattern
        if pattern is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            pattern = write_records(folder, options.num_videos)
        paths = files.expand_patterns(pattern)
        num_readers = options.num_readers or readers.default_num_readers()
        ways = ways_to_read(paths, options.batch_size, num_readers)
        # The warm-up run of each way also brings the files into memory.
        comparison.run(
            {name: lambda read=read: read for name, read in ways.items()},
            BASELINE,
            options,
            files=len(paths),
            megabytes=round(sum(map(files.file_size, paths)) / 1e6),
            batch_size=options.batch_size,
            num_readers=num_readers,
        )


if __name__ == "__main__":
    program.run(main)
