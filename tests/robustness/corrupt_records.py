"""Reads thousands of corrupt record files and checks that the reader returns nothing wrong.

    python tests/robustness/corrupt_records.py --cases=10000

Every case is one file. Its number decides the corruption; `--first=NUMBER --cases=1` repeats it.
Two oracles know the right result: the format of TFRecord files and the protobuf library. Checksums
reveal a corruption of the file's bytes, so the reader may return only videos that were written. A
corruption made before the checksums looks like intended content if the record is still valid; then
the video must be the one that the protobuf library sees. In each case the reader must return
exactly the good videos and count the others, or reject the file, naming it and the record.
"""

import collections
import gzip
import itertools
import os
import pathlib
import random
import resource
import signal
import struct
import tempfile
import time

import harness

# isort: split
import google_crc32c
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from google.protobuf.message import DecodeError

import readers
import records
import sample_records
from utils import InputError

SIZES = {"rgb": 6, "audio": 3}
NUM_CLASSES = 10
MAX_FRAMES = 8
# A case takes milliseconds; after this time it hangs.
MAX_SECONDS = 20
MAX_MEMORY_GROWTH = 100 << 20


# Writing.


def masked_crc(data):
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def header(length):
    encoded = struct.pack("<Q", length)
    return encoded + struct.pack("<I", masked_crc(encoded))


def framed(payload):
    return header(len(payload)) + payload + struct.pack("<I", masked_crc(payload))


def frames(rng, count, size):
    return [rng.randbytes(size) for _ in range(count)]


def message(frame_level, rng, number):
    """Returns a valid record of a video, a protobuf message."""
    labels = rng.sample(range(NUM_CLASSES), rng.randrange(4))
    given = (f"video{number}", labels, rng.choice(["id", "video_id"]))
    if not frame_level:
        means = {
            f"mean_{name}": [rng.uniform(-2, 2) for _ in range(size)]
            for name, size in SIZES.items()
        }
        return tf.train.Example.FromString(sample_records.video_record(*given, **means))
    count = rng.randrange(1, 13)
    rows = {name: frames(rng, count, size) for name, size in SIZES.items()}
    return tf.train.SequenceExample.FromString(sample_records.frame_record(*given, **rows))


def features_of(record):
    return record.context if isinstance(record, tf.train.SequenceExample) else record.features


# Corruptions of the bytes of a file, which checksums reveal.


def flip_bits(rng, content, _):
    corrupt = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        corrupt[rng.randrange(len(corrupt))] ^= 1 << rng.randrange(8)
    return bytes(corrupt)


def truncate(rng, content, _):
    return content[: rng.randrange(len(content))]


def truncate_at_a_boundary(rng, content, offsets):
    start, end = rng.choice(list(itertools.pairwise([*offsets, len(content)])))
    places = [start, start + 8, start + 12, end - 4, end - 1]
    return content[: rng.choice(places)]


def swap_lengths(rng, content, offsets):
    one, other = rng.sample(offsets, 2)
    size = rng.choice([8, 12])  # Without and with the checksum of the length.
    corrupt = bytearray(content)
    corrupt[one : one + size] = content[other : other + size]
    corrupt[other : other + size] = content[one : one + size]
    return bytes(corrupt)


def oversize_length(rng, content, offsets):
    offset = rng.choice(offsets)
    length = rng.choice([len(content), 10**6, 2**31, 2**40, 2**63, 2**64 - 16, 2**64 - 1])
    return content[:offset] + header(length) + content[offset + 12 :]


def change_length(rng, content, offsets):
    offset = rng.choice(offsets)
    (length,) = struct.unpack_from("<Q", content, offset)
    new = max(0, length + rng.choice([-9, -4, -1, 1, 4, 9, -length]))
    return content[:offset] + header(new) + content[offset + 12 :]


def insert_garbage(rng, content, _):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]


def delete_bytes(rng, content, _):
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randrange(1, 40) :]


def zero_a_block(rng, content, _):
    place, size = rng.randrange(len(content)), rng.randrange(1, 200)
    zeros = bytes(min(size, len(content) - place))
    return content[:place] + zeros + content[place + len(zeros) :]


def repeat_a_block(rng, content, _):
    place, size = rng.randrange(len(content)), rng.randrange(1, 200)
    return content[: place + size] + content[place:]


def compress(_, content, __):
    return gzip.compress(content, mtime=0)


def another_format(rng, *_):
    texts = [b"", b"hello", b"VideoId,Labels\n" * 9, rng.randbytes(300), b"\0" * 64, b"{}"]
    return rng.choice(texts)


FILE_CORRUPTIONS = (
    *(flip_bits, flip_bits, truncate, truncate_at_a_boundary, swap_lengths, oversize_length),
    *(change_length, insert_garbage, delete_bytes, zero_a_block, repeat_a_block, compress),
    another_format,
)


# Corruptions of the content of a record, before its checksum is made. Some return another payload,
# the others change the message.


def change_payload(rng, record):
    return flip_bits(rng, record.SerializeToString(deterministic=True), None)


def cut_payload(rng, record):
    return truncate(rng, record.SerializeToString(deterministic=True), None)


def join_payloads(rng, record):
    # Valid: protobuf merges repeated fields.
    payload = record.SerializeToString(deterministic=True)
    return payload + payload[: rng.choice([len(payload), rng.randrange(len(payload))])]


def oversize_field(rng, record):
    payload = bytearray(record.SerializeToString(deterministic=True))
    place = rng.choice([place for place, byte in enumerate(payload) if byte in (0x0A, 0x12)])
    length = rng.choice([b"\xff\xff\xff\xff\x07", b"\xff\xff\x7f", b"\xff" * 9 + b"\x01"])
    payload[place + 1 : place + 2] = length
    return bytes(payload)


def missing_feature(rng, record):
    maps = [features_of(record).feature]
    if isinstance(record, tf.train.SequenceExample):
        maps.append(record.feature_lists.feature_list)
    chosen = rng.choice(maps)
    del chosen[rng.choice(sorted(chosen))]


def extra_feature(rng, record):
    feature = sample_records.bytes_feature(rng.randbytes(20), b"")
    features_of(record).feature[rng.choice(["zzz", "Id", "rgb", ""])].CopyFrom(feature)
    if isinstance(record, tf.train.SequenceExample):
        record.feature_lists.feature_list["depth"].feature.append(feature)


def wrong_type(rng, record):
    others = [
        sample_records.float_feature([1.0, 2.0]),
        sample_records.int64_feature([3]),
        sample_records.bytes_feature(b"4"),
        tf.train.Feature(),
    ]
    features = features_of(record).feature
    places = [features[name] for name in sorted(features)]
    if isinstance(record, tf.train.SequenceExample):
        for name in SIZES:
            places += list(record.feature_lists.feature_list[name].feature)
    rng.choice(places).CopyFrom(rng.choice(others))


def label_out_of_range(rng, record):
    label = rng.choice([-1, NUM_CLASSES, 2**31, 2**63 - 1, -(2**63), NUM_CLASSES + 1])
    features_of(record).feature["labels"].int64_list.value.append(label)


def repeated_label(rng, record):
    labels = features_of(record).feature["labels"].int64_list.value
    labels.extend([rng.randrange(NUM_CLASSES)] * 3)


def strange_id(rng, record):
    strange = [b"\xff\xfe", b"", b"a\nb", b"=1+1", b"\x00", "\u00e9\u4e2d".encode(), b"x" * 5000]
    # The reader does not compare ids, so that of another record is allowed.
    ids = rng.choice([*([value] for value in strange), [b"video0"], [], [b"a", b"b"]])
    features_of(record).feature["id"].CopyFrom(sample_records.bytes_feature(*ids))


def other_number_of_frames(rng, record):
    if isinstance(record, tf.train.SequenceExample):
        # Many frames are slow, so they are rare.
        count = rng.choice([0, 1, MAX_FRAMES, MAX_FRAMES + 1, 300] * 3 + [10_000])
        for name in rng.sample(sorted(SIZES), rng.choice([1, 2])):
            _set_frames(record, name, frames(rng, count, SIZES[name]))


def other_size(rng, record):
    change = rng.choice([-1, 1, 100])
    if isinstance(record, tf.train.SequenceExample):
        name = rng.choice(sorted(SIZES))
        old = [f.bytes_list.value[0] for f in record.feature_lists.feature_list[name].feature]
        new = [frame[:change] if change < 0 else frame + bytes(change) for frame in old]
        _set_frames(record, name, new if rng.random() < 0.5 else [*old[:-1], new[-1]])
    else:
        values = record.features.feature["mean_rgb"].float_list.value
        values.pop() if change < 0 else values.extend([0.5] * change)


def not_finite(rng, record):
    if isinstance(record, tf.train.Example):
        values = record.features.feature["mean_audio"].float_list.value
        values[rng.randrange(len(values))] = rng.choice([float("nan"), float("inf"), -float("inf")])


def other_level(rng, record):
    return message(isinstance(record, tf.train.Example), rng, 77).SerializeToString(
        deterministic=True
    )


def _set_frames(record, name, values):
    features = map(sample_records.bytes_feature, values)
    record.feature_lists.feature_list[name].CopyFrom(tf.train.FeatureList(feature=features))


RECORD_CORRUPTIONS = (
    *(change_payload, change_payload, change_payload, cut_payload, join_payloads, oversize_field),
    *(missing_feature, extra_feature, wrong_type, label_out_of_range, repeated_label, strange_id),
    *(other_number_of_frames, other_size, not_finite, other_level),
)


def corrupted(corrupt, rng, record):
    """Returns the payload of a record after one of these corruptions."""
    payload = corrupt(rng, record)
    return record.SerializeToString(deterministic=True) if payload is None else payload


# The right result.


def expected_payloads(content):
    """Yields the payloads of a TFRecord file by its format; None for a corrupt record."""
    place = 0
    while place < len(content):
        head = content[place : place + 12]
        if len(head) < 12 or head != header(struct.unpack_from("<Q", head)[0]):
            yield None
            return
        end = place + 12 + struct.unpack_from("<Q", head)[0] + 4
        if end > len(content):
            yield None
            return
        payload = content[place + 12 : end - 4]
        yield payload if content[place:end] == framed(payload) else None
        place = end


def expected_video(payload, frame_level):
    """Returns `(id, labels, values)` by the protobuf library; None if it is not a valid video."""
    try:
        record = _parsed(payload)
    except DecodeError:
        return None
    context = record.context.feature
    if not frame_level and record.feature_lists.feature_list:
        return None
    ids = [list(context[name].bytes_list.value) for name in ("id", "video_id") if name in context]
    ids = [values[0] for values in ids if len(values) == 1]
    labels = context["labels"] if "labels" in context else tf.train.Feature()
    if not ids or labels.WhichOneof("kind") not in (None, "int64_list"):
        return None
    labels = list(labels.int64_list.value)
    if not all(0 <= label < NUM_CLASSES for label in labels):
        return None
    find = _expected_frames if frame_level else _expected_vector
    parts = [find(record, name, size) for name, size in SIZES.items()]
    if any(part is None for part in parts):
        return None
    if frame_level and len(parts[0]) != len(parts[1]):
        return None
    joined = np.concatenate(parts, axis=-1)
    return ids[0].decode("utf-8", "backslashreplace"), frozenset(labels), joined.tobytes()


def _parsed(payload):
    """Parses a record. The reader does not check features that it does not use, so they may be bad.

    Raises:
        DecodeError: if another part is bad.
    """
    try:
        return tf.train.SequenceExample.FromString(payload)
    except DecodeError:
        features, lists = records.parse_record(payload)
    used = ("id", "video_id", "labels", *(f"mean_{name}" for name in SIZES))
    record = tf.train.SequenceExample()
    for name in features.keys() & set(used):
        record.context.feature[name].ParseFromString(features[name])
    for name, content in lists.items():
        record.feature_lists.feature_list[name].ParseFromString(content)
    return record


def _expected_frames(record, name, size):
    values = []
    for feature in record.feature_lists.feature_list[name].feature:
        if len(feature.bytes_list.value) != 1 or len(feature.bytes_list.value[0]) != size:
            return None
        values.append(list(feature.bytes_list.value[0]))
    return np.array(values, np.uint8) if values else None


def _expected_vector(record, name, size):
    values = np.array(record.context.feature[f"mean_{name}"].float_list.value, np.float32)
    return values if len(values) == size and np.isfinite(values).all() else None


# A case.


def make_case(number):
    """Returns `(kind, frame_level, payloads, content)` of a case.

    `payloads` are those before a corruption of bytes, None if the records are corrupt themselves.
    """
    rng = random.Random(number)
    frame_level = rng.random() < 0.7
    messages = [message(frame_level, rng, index) for index in range(rng.randrange(2, 7))]
    payloads = [record.SerializeToString(deterministic=True) for record in messages]
    if number % 2:
        corrupt = rng.choice(RECORD_CORRUPTIONS)
        chosen = rng.randrange(len(messages))
        payloads[chosen] = corrupted(corrupt, rng, messages[chosen])
        return corrupt.__name__, frame_level, None, b"".join(map(framed, payloads))
    corrupt = rng.choice(FILE_CORRUPTIONS)
    parts = [framed(payload) for payload in payloads]
    offsets = [0, *itertools.accumulate(map(len, parts[:-1]))]
    return corrupt.__name__, frame_level, payloads, corrupt(rng, b"".join(parts), offsets)


def read_videos(path, frame_level, allowed):
    """Returns the videos that the reader returns, and the number of records that it skips."""
    kind = readers.YT8MFrameFeatureReader if frame_level else readers.YT8MAggregatedFeatureReader
    reader = kind(
        [path],
        feature_names=[name if frame_level else f"mean_{name}" for name in SIZES],
        feature_sizes=list(SIZES.values()),
        num_classes=NUM_CLASSES,
        max_frames=MAX_FRAMES,
        num_readers=2,
        skip_corrupt_records=allowed,
    )
    videos = []
    for batch in reader.batches(3):
        for row, video_id in enumerate(batch.video_ids):
            if frame_level:
                count = batch.inputs["num_frames"][row]
                values = batch.inputs["frames"][row, :count]
                harness.check(not batch.inputs["frames"][row, count:].any(), "padding is not 0")
            else:
                values = batch.inputs[row]
            labels = frozenset(np.flatnonzero(batch.labels[row]).tolist())
            videos.append((video_id, labels, values.tobytes()))
    return videos, reader.corrupt_records.count


def run_case(number, folder):
    """Checks one case and returns `(kind, outcome)`.

    Raises:
        harness.FaultError: if the reader did anything but what it must.
    """
    kind, frame_level, written, content = make_case(number)
    path = os.path.join(folder, "part.tfrecord")
    pathlib.Path(path).write_bytes(content)
    # The reader decompresses files.
    plain = gzip.decompress(content) if kind == compress.__name__ else content
    payloads = list(expected_payloads(plain))
    if written is not None:
        # Only written payloads pass the checksums.
        harness.check({*payloads} <= {*written, None}, "the oracle itself is wrong")
    expected = [
        None if payload is None else expected_video(payload, frame_level) for payload in payloads
    ]
    size = sum(SIZES.values()) * MAX_FRAMES if frame_level else None
    good = [(video[0], video[1], video[2][:size]) for video in expected if video is not None]
    bad = [index for index, video in enumerate(expected) if video is None]
    allowed = random.Random(f"allowed {number}").choice([0, 1000])
    signal.alarm(MAX_SECONDS)
    try:
        videos, num_skipped = read_videos(path, frame_level, allowed)
    except InputError as error:
        named = [f"record {index} of {path} (byte " for index in (bad if allowed else bad[:1])]
        if not good and (allowed or not bad):
            named.append(f"no video in 1 files, such as {path}")
        harness.check(any(name in str(error) for name in named), f"rejected with: {error}")
        return kind, "rejected"
    finally:
        signal.alarm(0)
    harness.check(videos == good, f"read {videos} instead of {good}")
    harness.check(num_skipped == len(bad), f"{num_skipped} skipped instead of {len(bad)}")
    return kind, "skipped" if bad else "read exactly"


def run(first, cases, *, verbose=False):
    """Runs cases and returns the number of each outcome, a Counter by (kind, outcome).

    Raises:
        harness.FaultError: naming the first case that fails.
    """
    outcomes = collections.Counter()
    memory = None
    with tempfile.TemporaryDirectory() as folder:
        signal.signal(signal.SIGALRM, _hangs)
        try:
            read_videos(folder, True, 0)
            raise harness.FaultError("a directory was read")
        except InputError as error:
            harness.check(f"cannot read {folder}: " in str(error), f"rejected with: {error}")
        for number in range(first, first + cases):
            try:
                outcomes[run_case(number, folder)] += 1
            except Exception as error:
                raise harness.FaultError(
                    f"case {number}, {make_case(number)[0]}: {error!r}"
                ) from error
            if number == first + 200:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if memory is not None:
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10
        harness.check(growth < MAX_MEMORY_GROWTH, f"memory grew by {growth} bytes")
        if verbose:
            print(f"memory grew by {growth / 2**20:.1f} MiB after the first 200 cases")
    return outcomes


def _hangs(*_):
    raise harness.FaultError(f"it took more than {MAX_SECONDS} s")


def main(_):
    logging.set_verbosity(logging.FATAL)
    start = time.perf_counter()
    outcomes = run(flags.FLAGS.first, flags.FLAGS.cases, verbose=True)
    kinds = sorted({kind for kind, _ in outcomes})
    columns = ("read exactly", "skipped", "rejected")
    print(f"{'corruption':26}" + "".join(f"{column:>14}" for column in columns))
    for kind in kinds:
        print(f"{kind:26}" + "".join(f"{outcomes[kind, column]:14}" for column in columns))
    totals = {column: sum(outcomes[kind, column] for kind in kinds) for column in columns}
    print(
        f"{flags.FLAGS.cases} corrupt files: "
        + ", ".join(f"{count} {column}" for column, count in totals.items())
        + f"; no fault; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("cases", 10_000, "Files to corrupt.")
    flags.DEFINE_integer("first", 0, "Number of the first case.")
    app.run(main)
