"""Compares the parser of records with the protobuf library, on usual and on unusual layouts."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError

import records
from sample_records import bytes_feature, float_feature, frame_record, int64_feature, video_record

SEEDS = range(300)
UTF8_NAMES = ["id", "labels", "rgb", "audio", "", "größe", "x" * 200]


def varint(value, padding=0):
    """Encodes a number as protobuf does, optionally with redundant bytes."""
    encoded = []
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    if padding:
        encoded[-1] |= 0x80
        encoded += [0x80] * (padding - 1) + [0]
    return bytes(encoded)


def field(number, content, padding=0):
    """Encodes a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content), padding) + content


def unknown_fields(rng):
    """Returns no bytes in most cases, else a field with an unknown number or wire type."""
    choices = [
        *[b""] * 40,
        field(4, b"x" * int(rng.integers(0, 20))),
        field(1000, b"y"),
        varint(7 << 3) + varint(int(rng.integers(0, 2**62))),
        varint(6 << 3 | 1) + rng.bytes(8),
        varint(9 << 3 | 5) + rng.bytes(4),
        varint(5 << 3 | 3) + field(2, b"in a group") + varint(5 << 3 | 4),
    ]
    return choices[rng.integers(len(choices))]


def float_list(rng, values):
    """Returns the content of a FloatList in a random layout."""
    packed = np.asarray(values, "<f4").tobytes()
    layout = rng.integers(3)
    if layout == 0:
        return field(1, packed)
    if layout == 1:
        return b"".join(b"\x0d" + packed[at : at + 4] for at in range(0, len(packed), 4))
    cut = 4 * int(rng.integers(0, len(values) + 1))
    return field(1, packed[:cut]) + unknown_fields(rng) + field(1, packed[cut:])


def int64_list(rng, values):
    """Returns the content of an Int64List in a random layout."""
    if rng.integers(2):
        return field(1, b"".join(varint(value) for value in values))
    return b"".join(b"\x08" + varint(value) for value in values)


def unusual_feature(rng):
    """Returns a serialized Feature of a random kind in a random valid layout."""
    kind = rng.integers(5)
    if kind == 0:
        return b""
    if kind == 1:
        values = [rng.bytes(int(rng.integers(0, 5))) for _ in range(rng.integers(0, 4))]
        content = field(1, unknown_fields(rng) + b"".join(field(1, value) for value in values))
    elif kind == 2:
        content = field(2, float_list(rng, rng.normal(size=rng.integers(0, 6))))
    elif kind == 3:
        content = field(3, int64_list(rng, rng.integers(0, 2**40, rng.integers(0, 6)).tolist()))
    else:  # The last of two kinds counts.
        content = unusual_feature(rng) + unusual_feature(rng)
    return content + unknown_fields(rng)


def unusual_feature_list(rng):
    """Returns a serialized FeatureList: mostly frames, of equal or unequal sizes."""
    size = int(rng.integers(0, 200))
    rows = []
    for _ in range(rng.integers(0, 6)):
        kind = rng.integers(12)
        if kind == 0:
            size = int(rng.integers(0, 200))
        if kind == 1:
            rows.append(unusual_feature(rng))
        elif kind == 2:  # Two values.
            rows.append(field(1, field(1, rng.bytes(size)) + field(1, rng.bytes(size))))
        else:
            rows.append(field(1, field(1, rng.bytes(size))))
    padding = int(rng.integers(20) == 0)
    return b"".join(unknown_fields(rng) + field(1, row, padding) for row in rows)


def unusual_map(rng, make_value):
    """Returns the content of Features or FeatureLists: unordered entries, some keys repeated."""
    content = b""
    for _ in range(rng.integers(0, 6)):
        key = field(1, UTF8_NAMES[rng.integers(len(UTF8_NAMES))].encode())
        value = field(2, make_value(rng))
        layouts = [key + value] * 60 + [
            value + key,
            key,
            value,
            b"",
            key + value + field(2, make_value(rng)),
            key + field(1, b"labels") + value,
            key + unknown_fields(rng) + value,
        ]
        content += field(1, layouts[rng.integers(len(layouts))]) + unknown_fields(rng)
    return content


def unusual_record(seed):
    """Returns a serialized SequenceExample in a valid layout that no known writer uses."""
    rng = np.random.default_rng(seed)
    parts = [field(1, unusual_map(rng, unusual_feature), padding=int(rng.integers(10) == 0))]
    parts += [field(2, unusual_map(rng, unusual_feature_list)) for _ in range(rng.integers(0, 3))]
    if rng.integers(2):  # Two contexts are merged.
        parts.append(field(1, unusual_map(rng, unusual_feature)))
    parts += [unknown_fields(rng), unknown_fields(rng)]
    return b"".join(parts[position] for position in rng.permutation(len(parts)))


def usual_record(seed):
    """Returns a record as protobuf writes it, with a random number of features."""
    rng = np.random.default_rng(seed)
    frames = {
        name: rng.integers(0, 256, (rng.integers(0, 6), rng.integers(0, 200)), dtype=np.uint8)
        for name in ("rgb", "audio", "depth")[: rng.integers(1, 4)]
    }
    labels = rng.integers(0, 4000, rng.integers(0, 4)).tolist()
    if rng.integers(2):
        return frame_record(f"video{seed}", labels, **frames)
    return video_record(f"video{seed}", labels, mean_rgb=rng.normal(size=rng.integers(0, 40)))


def reference_frames(feature_list):
    """Returns frames as a list of bytes; None where `frame_bytes` returns None."""
    values = [list(feature.bytes_list.value) for feature in feature_list.feature]
    if any(len(value) != 1 for value in values) or len({len(value[0]) for value in values}) > 1:
        return None
    return [value[0] for value in values]


def reference_floats(feature):
    """Returns floats as a list; None where `float_values` returns None."""
    return list(feature.float_list.value) if feature.WhichOneof("kind") == "float_list" else None


def reference_values(record):
    """Returns floats and frames by name."""
    features, lists = record.context.feature, record.feature_lists.feature_list
    return (
        {name: reference_floats(feature) for name, feature in features.items()},
        {name: reference_frames(frames) for name, frames in lists.items()},
    )


def reference_contents(payload):
    """Returns everything that readers take from a record, by the protobuf library, as text."""
    record = tf.train.SequenceExample.FromString(payload)
    return as_text(record.context.feature, *reference_values(record))


def contents(payload):
    """Returns the same, by `records`."""
    features, feature_lists = records.parse_record(payload)
    floats = {name: records.float_values(feature) for name, feature in features.items()}
    frames = {name: records.frame_bytes(rows) for name, rows in feature_lists.items()}
    return as_text(
        {name: tf.train.Feature.FromString(feature) for name, feature in features.items()},
        {name: values if values is None else values.tolist() for name, values in floats.items()},
        {name: rows if rows is None else list(map(bytes, rows)) for name, rows in frames.items()},
    )


def as_text(*parts):
    """Returns text that is equal for equal dicts, even with NaN."""
    return "; ".join(str(sorted((name, str(value)) for name, value in p.items())) for p in parts)


def outcome(read, payload):
    """Returns what `read` returns, or "rejected"."""
    try:
        return read(payload)
    except DecodeError:
        return "rejected"


def corrupted(payload, rng):
    """Returns the payload with a bit flipped, or with bytes inserted, removed or repeated."""
    data = bytearray(payload)
    position = int(rng.integers(0, len(data)))
    length = int(rng.integers(1, 5))
    kind = rng.integers(6)
    if kind == 0:
        data[position:position] = rng.bytes(length)
    elif kind == 1:
        del data[position : position + length]
    elif kind == 2:
        data[position : position + length] = data[position : position + length] * 2
    else:
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


@pytest.mark.parametrize("make", [usual_record, unusual_record])
def test_every_valid_layout_is_read_as_protobuf_reads_it(make):
    for seed in SEEDS:
        payload = make(seed)
        assert contents(payload) == reference_contents(payload), f"seed {seed}"


def test_unusual_layouts_cover_floats_and_all_kinds_of_frames():
    records = [tf.train.SequenceExample.FromString(unusual_record(seed)) for seed in SEEDS]
    read = [reference_values(record) for record in records]
    floats = [values for by_name, _ in read for values in by_name.values()]
    frames = [rows for _, by_name in read for rows in by_name.values()]
    assert sum(bool(values) for values in floats) > 50
    assert sum(rows is None for rows in frames) > 50
    assert sum(rows == [] for rows in frames) > 50
    assert sum(bool(rows) and bool(rows[0]) for rows in frames) > 50


def test_an_example_has_its_features_and_no_lists():
    payload = video_record("abc", [3, 5], mean_rgb=[0.5, -1.0])
    features, feature_lists = records.parse_record(payload)
    assert set(features) == {"id", "labels", "mean_rgb"}
    assert not feature_lists
    assert records.float_values(features["mean_rgb"]).tolist() == [0.5, -1.0]


def test_usual_frames_are_a_view_of_the_record():
    payload = frame_record("abc", [1], rgb=[b"ab", b"cd", b"ef"])
    frames = records.frame_bytes(records.parse_record(payload)[1]["rgb"])
    np.testing.assert_array_equal(frames, [[97, 98], [99, 100], [101, 102]])
    memory = np.frombuffer(payload, np.uint8)
    assert np.shares_memory(frames, memory)


def test_usual_floats_are_a_view_of_the_record():
    payload = video_record("abc", [1], mean_rgb=[1.0, 2.0])
    values = records.float_values(records.parse_record(payload)[0]["mean_rgb"])
    assert np.shares_memory(values, np.frombuffer(payload, np.uint8))


def test_rows_of_equal_size_with_different_headers_are_not_parsed_as_frames():
    # All three features have as many bytes, but the middle one holds two values.
    two_values = field(1, field(1, b"a") + field(1, b""))
    one_value = field(1, field(1, b"abc"))
    assert len(two_values) == len(one_value)
    rows = [one_value, two_values, one_value]
    assert records.frame_bytes(b"".join(field(1, row) for row in rows)) is None


@pytest.mark.parametrize(
    "feature",
    [bytes_feature(b"abcd"), int64_feature([1, 2]), tf.train.Feature()],
    ids=["bytes", "integers", "nothing"],
)
def test_a_feature_of_another_kind_holds_no_floats(feature):
    assert records.float_values(feature.SerializeToString()) is None


@pytest.mark.parametrize("size", [1, 3, 5, 6, 7])
def test_packed_floats_with_a_partial_float_are_rejected(size):
    with pytest.raises(DecodeError):
        records.float_values(field(2, field(1, b"x" * size)))


def test_a_float_list_without_values_is_empty():
    assert records.float_values(float_feature([]).SerializeToString()).shape == (0,)


def test_a_list_without_frames_has_none():
    assert records.frame_bytes(b"").shape == (0, 0)
    assert records.frame_bytes(field(9, b"unknown")).shape == (0, 0)


@pytest.mark.parametrize("make", [usual_record, unusual_record])
def test_every_truncation_is_read_or_rejected_as_by_protobuf(make):
    for seed in SEEDS[:12]:
        payload = make(seed)
        for end in range(0, len(payload), 1 + len(payload) // 300):
            cut = payload[:end]
            assert outcome(contents, cut) == outcome(reference_contents, cut), (seed, end)


@pytest.mark.parametrize("make", [usual_record, unusual_record])
def test_corrupt_records_are_read_or_rejected_as_by_protobuf(make):
    rng = np.random.default_rng(0)
    rejected = 0
    for seed in SEEDS:
        payload = make(seed)
        for _ in range(5 if payload else 0):
            changed = corrupted(payload, rng)
            expected = outcome(reference_contents, changed)
            assert outcome(contents, changed) == expected, (seed, changed)
            rejected += expected == "rejected"
    assert 150 < rejected < 1350


def test_random_bytes_are_read_or_rejected_as_by_protobuf():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        payload = rng.bytes(int(rng.integers(1, 40)))
        assert outcome(contents, payload) == outcome(reference_contents, payload), payload
    for _ in range(3000):  # Bytes that occur in records.
        payload = bytes(rng.choice(list(b"\x0a\x12\x02\x03\x04\x05\x06a"), rng.integers(1, 24)))
        assert outcome(contents, payload) == outcome(reference_contents, payload), payload


def test_garbage_inside_a_feature_is_rejected_when_the_feature_is_used():
    entry = field(1, b"broken") + field(2, b"\x0a\xff")
    good = field(1, field(1, b"good") + field(2, float_feature([1.5]).SerializeToString()))
    features, _ = records.parse_record(field(1, field(1, entry) + good))
    assert records.float_values(features["good"]).tolist() == [1.5]
    with pytest.raises(DecodeError):
        records.float_values(features["broken"])
    with pytest.raises(DecodeError):
        records.frame_bytes(b"\x0a\xff")


@pytest.mark.parametrize("name", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
def test_a_name_that_is_not_utf8_is_rejected(name):
    with pytest.raises(DecodeError):
        records.parse_record(field(1, field(1, field(1, name) + field(2, b""))))
