"""Measures how many videos per second the readers deliver.

    python benchmarks/input.py
    python benchmarks/input.py --noframe_level --num_videos=20000 --batch_size=1024

Compares a reader, taking turns in one process, with a straightforward tf.data reader and with the
bare reading of records. benchmarks/README.md explains the output.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

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
# Records that Google's starter code parses together.
QUEUED_RECORDS = 1024
VECTORS = {f"mean_{name}": size for name, size in FEATURES.items()}


def write_records(folder, num_videos, num_files=NUM_FILES, seed=0, frame_level=True):
    """Writes full-size records of random values and returns a glob for the files."""
    make_record = random_record if frame_level else random_vector_record
    rng = np.random.default_rng(seed)
    for number in range(num_files):
        path = os.path.join(folder, f"part{number:03d}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for index in range(number, num_videos, num_files):
                writer.write(make_record(f"video{index}", rng))
    return os.path.join(folder, "part*.tfrecord")


def random_record(video_id, rng):
    """Returns a serialized SequenceExample with all frames and one to five labels."""
    example = tf.train.SequenceExample()
    add_id_and_labels(example.context.feature, video_id, rng)
    for name, size in FEATURES.items():
        frames = example.feature_lists.feature_list[name].feature
        for _ in range(MAX_FRAMES):
            frames.add().bytes_list.value.append(rng.bytes(size))
    return example.SerializeToString()


def random_vector_record(video_id, rng):
    """Returns a serialized Example with one to five labels."""
    example = tf.train.Example()
    add_id_and_labels(example.features.feature, video_id, rng)
    for name, size in VECTORS.items():
        example.features.feature[name].float_list.value.extend(rng.normal(size=size))
    return example.SerializeToString()


def add_id_and_labels(features, video_id, rng):
    """Adds the features that records of both kinds have."""
    features["id"].bytes_list.value.append(video_id.encode())
    labels = rng.choice(NUM_CLASSES, rng.integers(1, 6), replace=False)
    features["labels"].int64_list.value.extend(labels)


def parsed_vectors(records):
    """Returns vectors and labels, bool, of serialized Examples, parsed together."""
    features = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
        **{name: tf.io.FixedLenFeature([size], tf.float32) for name, size in VECTORS.items()},
    }
    parsed = tf.io.parse_example(records, features)
    vectors = tf.concat([parsed[name] for name in VECTORS], axis=1)
    return vectors, label_rows(parsed["labels"], [None])


def parsed_frames(record):
    """Returns dequantized, padded frames, their number and labels, bool, of a SequenceExample."""

    def frames_of(feature):
        values = quantization.YOUTUBE8M.dequantize(
            tf.cast(tf.io.decode_raw(feature, tf.uint8), tf.float32)
        )
        values = values[:MAX_FRAMES]
        return tf.pad(values, [[0, MAX_FRAMES - tf.shape(values)[0]], [0, 0]])

    context, sequence = tf.io.parse_single_sequence_example(
        record,
        {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)},
        {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in FEATURES},
    )
    frames = tf.concat([frames_of(sequence[name]) for name in FEATURES], axis=1)
    frames = tf.ensure_shape(frames, [MAX_FRAMES, sum(FEATURES.values())])
    num_frames = tf.minimum(tf.size(sequence["rgb"]), MAX_FRAMES)
    return frames, num_frames, label_rows(context["labels"], [])


def label_rows(labels, shape):
    """Returns which classes are labels, bool `[*shape, C]`."""
    return tf.ensure_shape(tf.sparse.to_indicator(labels, NUM_CLASSES), [*shape, NUM_CLASSES])


def baseline_dataset(paths, batch_size, num_readers, frame_level):
    """Returns the usual reader: it parses frames video by video, and vectors a batch at a time."""

    def parse(records):
        *inputs, labels = (parsed_frames if frame_level else parsed_vectors)(records)
        return *inputs, tf.cast(labels, tf.float32)

    dataset = tf.data.TFRecordDataset(paths, num_parallel_reads=num_readers)
    if frame_level:
        return dataset.map(parse, num_readers).batch(batch_size).prefetch(1)
    return dataset.batch(batch_size).map(parse, num_readers).prefetch(1)


def queue_reader(paths, batch_size, num_readers, frame_level):
    """Returns a function that reads all files once through the queues of TensorFlow 1.

    This is how Google's starter code reads for training: each reader takes files from a queue and
    puts parsed videos into a second one, which shuffles them into batches.
    """

    def parsed(names):
        reader = tf1.TFRecordReader()
        if not frame_level:
            return parsed_vectors(reader.read_up_to(names, QUEUED_RECORDS)[1])
        return [tensor[tf.newaxis] for tensor in parsed_frames(reader.read(names)[1])]

    with tf.Graph().as_default() as graph:
        names = tf1.train.string_input_producer(paths, num_epochs=1)
        *inputs, labels = tf1.train.shuffle_batch_join(
            [parsed(names) for _ in range(num_readers)],
            batch_size,
            capacity=5 * batch_size,
            min_after_dequeue=batch_size,
            enqueue_many=True,
            allow_smaller_final_batch=True,
        )
        # The batch stays where a training step would use it.
        with tf.control_dependencies([*inputs, tf.cast(labels, tf.float32)]):
            num_videos = tf.shape(labels)[0]
        start = tf1.local_variables_initializer()

    def read():
        count = 0
        # The queues end with the files, so each reading has a session of its own.
        with tf1.Session(graph=graph) as session, contextlib.suppress(tf.errors.OutOfRangeError):
            session.run(start)
            coordinator = tf.train.Coordinator()
            tf1.train.start_queue_runners(session, coordinator)
            while True:
                count += int(session.run(num_videos))
        coordinator.request_stop()
        coordinator.join()
        return count

    return read


def make_reader(paths, num_readers, frame_level):
    """Returns the reader to measure."""
    cls = readers.YT8MFrameFeatureReader if frame_level else readers.YT8MAggregatedFeatureReader
    features = FEATURES if frame_level else VECTORS
    return cls(
        paths,
        feature_names=tuple(features),
        feature_sizes=tuple(features.values()),
        num_classes=NUM_CLASSES,
        max_frames=MAX_FRAMES,
        num_readers=num_readers,
    )


def ways_to_read(paths, batch_size, num_readers, frame_level):
    """Returns the ways to compare: a dict from a name to a function that reads all files once.

    Each function returns the number of videos. Datasets are created once, as in training.
    """
    reader = make_reader(paths, num_readers, frame_level)

    def read_dataset(dataset):
        return sum(len(labels) for *_, labels in dataset)

    def read_batches(**options):
        return sum(len(batch.labels) for batch in reader.batches(batch_size, **options))

    baseline = baseline_dataset(paths, batch_size, num_readers, frame_level)
    plain = reader.dataset(batch_size)
    shuffled = reader.dataset(batch_size, shuffle=True)
    records = tf.data.TFRecordDataset(paths, num_parallel_reads=num_readers)
    return {
        baseline_name(frame_level): lambda: read_dataset(baseline),
        "TensorFlow 1 queues": queue_reader(paths, batch_size, num_readers, frame_level),
        "dataset()": lambda: read_dataset(plain),
        "dataset(), shuffled": lambda: read_dataset(shuffled),
        "batches()": read_batches,
        "batches(), shuffled": lambda: read_batches(shuffle=True),
        "bare records": lambda: sum(1 for _ in records),
    }


def baseline_name(frame_level):
    """Returns the name of the baseline."""
    return "per-example tf.data" if frame_level else "tf.data with parse_example"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions(comparison.ComparisonOptions):
    """Options of this program."""

    num_readers: int | None = same_option(ReadOptions, "num_readers")
    frame_level: bool = option(
        True, "Read frames; otherwise the mean features of videos.", group="data"
    )
    batch_size: int = option(80, "Videos per batch.", group="data", above=0)
    data_pattern: str | None = option(
        None,
        "Comma-separated globs of records with the features of YouTube-8M, quoted. By default, "
        "records of random values are written to a temporary directory.",
        group="data",
    )
    num_videos: int = option(400, "Videos to write without --data_pattern.", group="data", above=0)


def main(options: InputOptions):
    """Runs the program."""
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns that queues are deprecated.
    with contextlib.ExitStack() as stack:
        pattern = options.data_pattern
        if pattern is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            pattern = write_records(folder, options.num_videos, frame_level=options.frame_level)
        paths = files.expand_patterns(pattern)
        num_readers = options.num_readers or readers.default_num_readers()
        ways = ways_to_read(paths, options.batch_size, num_readers, options.frame_level)
        # The warm-up run of each way also brings the files into memory.
        comparison.run(
            {name: lambda read=read: read for name, read in ways.items()},
            baseline_name(options.frame_level),
            options,
            files=len(paths),
            megabytes=round(sum(map(files.file_size, paths)) / 1e6),
            batch_size=options.batch_size,
            num_readers=num_readers,
        )


if __name__ == "__main__":
    program.run(main)
