"""Gives an exported model inputs that it was not made for.

    python tests/robustness/served_model.py --cases=1000

The inputs are tensors of wrong shapes and types, batches of 0, 1 and 1024 videos, videos without
frames, and records that are garbage or corrupt. The exported model must predict the same as the
model in this process, or raise a clear error of TensorFlow; afterwards it must work as before.
"""

import collections
import pathlib
import random
import tempfile

import harness

# isort: split
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from google.protobuf.message import DecodeError

import corrupt_records
import programs
import sample_records
from predictor import Predictor

SIZE = sum(corrupt_records.SIZES.values())
ERRORS = (tf.errors.InvalidArgumentError, TypeError, ValueError)
SMALL = (
    *("--model=FrameLevelLogisticModel", "--iterations=0"),
    *("--batch_size=16", f"--num_classes={corrupt_records.NUM_CLASSES}", "--feature_sizes=6,3"),
    *(f"--max_frames={corrupt_records.MAX_FRAMES}", "--max_steps=3"),
)
# Arguments of the signature predict: shape and type of frames, num_frames; part of the error.
BAD_TENSORS = (
    ((2, 5, SIZE - 1), tf.uint8, [5, 5], "frames must have 9 entries each"),
    ((2, 5), tf.uint8, [5, 5], "frames must have 9 entries each"),
    ((2, 5, SIZE, 1), tf.uint8, [5, 5], "shape"),
    ((2, 5, SIZE), tf.float32, [5, 5], "float|uint8"),
    ((2, 5, SIZE), tf.uint8, [5], "the same number of videos"),
    ((2, 5, SIZE), tf.uint8, [5, 6], "at most the frames given"),
    ((2, 5, SIZE), tf.uint8, [5, 0], "at least 1"),
    ((2, 5, SIZE), tf.uint8, [5, -1], "at least 1"),
    ((2, 0, SIZE), tf.uint8, [0, 0], "at least 1"),
    ((2, 5, SIZE), tf.uint8, [[5, 5]], "the same number of videos"),
    ((2, 5, SIZE), tf.uint8, [[5], [5]], "the same number of videos"),
    ((0, 5, SIZE), tf.uint8, [5], "the same number of videos"),
)


def check_bad_tensors(loaded):
    for shape, dtype, num_frames, part in BAD_TENSORS:
        frames, text = tf.zeros(shape, dtype), None
        try:
            loaded.signatures["predict"](frames=frames, num_frames=tf.constant(num_frames))
        except ERRORS as error:
            text = str(error)
        found = text is not None and any(word in text for word in part.split("|"))
        harness.check(found, f"frames {shape} {dtype.name}, num_frames {num_frames}: {text}")


def check_batches(loaded, reference):
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 1024):
        frames = rng.integers(0, 256, (size, 8, SIZE), dtype=np.uint8)
        num_frames = rng.integers(1, 9, size).astype(np.int32)
        inputs = {"frames": tf.constant(frames), "num_frames": tf.constant(num_frames)}
        found = loaded.signatures["predict"](**inputs)["predictions"].numpy()
        harness.check(found.shape == (size, corrupt_records.NUM_CLASSES), f"shape {found.shape}")
        if size:
            check_close(found, reference(inputs))


def check_close(found, expected):
    difference = np.abs(found - expected).max()
    harness.check(difference < 1e-5, f"predictions differ by {difference}")


def check_records(loaded, reference, cases):
    """Checks single records: garbage, corrupt and good ones. Returns counts by outcome."""
    serve = loaded.signatures["serving_default"]
    counts = collections.Counter()
    for number in range(cases):
        rng = random.Random(number)
        record = corrupt_records.message(True, rng, number)
        corrupt = rng.choice([None, *corrupt_records.RECORD_CORRUPTIONS])
        payload = record.SerializeToString()
        if corrupt:
            payload = corrupt_records.corrupted(corrupt, rng, record)
        if number % 10 == 0:
            payload = rng.randbytes(rng.randrange(200))
        try:
            outputs = serve(tf.constant([payload]))
        except ERRORS as error:
            harness.check(corrupt or number % 10 == 0, f"case {number}: a good record gave {error}")
            harness.check(str(error), "an error without a message")
            counts["clear errors"] += 1
            continue
        served = as_served(payload)
        if served is None:
            # TensorFlow's parser skips features that it is not asked for.
            counts["unchecked predictions"] += 1
            continue
        counts["right predictions"] += 1
        video = corrupt_records.expected_video(served, frame_level=True)
        harness.check(video is not None, f"case {number}: a prediction for an invalid video")
        harness.check(outputs["video_id"].numpy()[0] is not None, "no id")
        frames = np.frombuffer(video[2], np.uint8).reshape(1, -1, SIZE)
        frames = frames[:, : corrupt_records.MAX_FRAMES]
        expected = reference({"frames": frames, "num_frames": np.int32([frames.shape[1]])})[0]
        classes = outputs["class_indexes"].numpy()[0]
        check_close(outputs["predictions"].numpy()[0], expected[classes])
    return counts


def as_served(payload):
    """Returns what the exported model reads of a record, serialized; None if it is garbage."""
    try:
        record = tf.train.SequenceExample.FromString(payload)
    except DecodeError:
        return None
    features = record.context.feature
    features.pop("labels", None)
    # An id of another type is returned as an empty one.
    ids = [features[name].bytes_list.value for name in ("id", "video_id") if name in features]
    if not any(len(values) == 1 for values in ids):
        features["id"].CopyFrom(sample_records.bytes_feature(b""))
    return record.SerializeToString()


def run(cases):
    """Checks an exported model and returns a line about the outcomes.

    Raises:
        harness.FaultError: if a check fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data = sample_records.write_frame_files(folder, 1, 40, sizes=(6, 3))
        trained, exported = folder / "trained", folder / "exported"
        programs.run("train", f"--train_dir={trained}", f"--train_data_pattern={data}", *SMALL)
        programs.run(
            "export_model", f"--train_dir={trained}", f"--output_dir={exported}", "--dtype=float32"
        )
        predictor = Predictor([str(trained)], compute_dtype="float32")
        predictor.restore()
        loaded = tf.saved_model.load(str(exported))
        check_bad_tensors(loaded)
        counts = check_records(loaded, predictor.predict, cases)
        check_batches(loaded, predictor.predict)
    return (
        f"exported model: {len(BAD_TENSORS)} wrong tensors rejected, batches of 0 to 1024 right, "
        f"{cases} records: "
        + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    )


def main(_):
    logging.set_verbosity(logging.WARNING)
    print(run(flags.FLAGS.cases))


if __name__ == "__main__":
    flags.DEFINE_integer("cases", 1000, "Records.")
    app.run(main)
