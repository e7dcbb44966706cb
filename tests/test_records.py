"""Intact TFRecord files are read as TensorFlow reads them, corrupt ones as far as possible."""

import gzip
import os
import pathlib
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf

import records
from sample_records import flip_bit, write_records
from utils import InputError

HEADER_BYTES, TRAILER_BYTES = 12, 4


def random_payloads(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(size) for size in sizes]


def read_all(path, allowed=0):
    """Returns the payloads of a file and the log of its corrupt records."""
    log = records.CorruptRecordLog(allowed)
    with records.TFRecordFile(path, log) as file:
        payloads = []
        while (record := file.read()) is not None:
            payloads.append(record[1])
    return payloads, log


def error_of(path, allowed=0):
    """Returns the message of the error that reading a file raises."""
    with pytest.raises(InputError) as caught:
        read_all(path, allowed)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    """A file of three records, which begin at bytes 0, 36 and 66 and end at byte 132."""
    return write_records(tmp_path / "a.tfrecord", random_payloads([20, 14, 50]))


@pytest.mark.parametrize("prefix", ["", "file://"], ids=["local", "by TensorFlow"])
def test_an_intact_file_is_read_as_tensorflow_reads_it(tmp_path, prefix):
    payloads = random_payloads([0, 1, 100, 5000, (1 << 15) - 16, 1 << 15, 300_000, 0, 70_000])
    path = prefix + write_records(tmp_path / "a.tfrecord", payloads)
    read, log = read_all(path)
    assert read == payloads
    assert read == list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    assert log.count == 0


def test_records_have_their_index_and_offset(path):
    with records.TFRecordFile(path, records.CorruptRecordLog()) as file:
        locations = [file.read()[0] for _ in range(3)]
    places = [(location.index, location.offset) for location in locations]
    assert places == [(0, 0), (1, 36), (2, 66)]
    assert str(locations[1]) == f"record 1 of {path} (byte 36)"


def test_an_empty_file_has_no_records(tmp_path):
    assert read_all(write_records(tmp_path / "empty", []))[0] == []


@pytest.mark.parametrize("where", [0, 13, 17], ids=["first byte", "last byte", "checksum"])
def test_a_flipped_bit_is_reported_with_file_and_record(path, where):
    flip_bit(path, 36 + HEADER_BYTES + where)
    expected = f"record 1 of {path} (byte 36): its content does not match its checksum"
    assert error_of(path).startswith(expected)


def test_a_flipped_bit_costs_one_record(path, logged_warnings):
    before, _ = read_all(path)
    flip_bit(path, 36 + HEADER_BYTES)
    read, log = read_all(path, allowed=1)
    assert read == [before[0], before[2]]
    assert log.count == 1
    assert logged_warnings == [
        f"skipped record 1 of {path} (byte 36): its content does not match its checksum "
        "(1 of 1 allowed)"
    ]


@pytest.mark.parametrize("where", range(HEADER_BYTES))
def test_a_corrupt_length_costs_the_rest_of_the_file(path, where):
    before, _ = read_all(path)
    flip_bit(path, 36 + where)
    expected = (
        f"record 1 of {path} (byte 36): its length does not match its checksum, so the rest of "
        "the file is lost"
    )
    assert error_of(path).startswith(expected)
    read, log = read_all(path, allowed=1)
    assert read == before[:1]
    assert log.count == 1


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_truncation_at_any_byte_is_detected(path, allowed):
    before, _ = read_all(path)
    content = pathlib.Path(path).read_bytes()
    ends = [0, 36, 66, len(content)]
    for size in range(len(content)):
        pathlib.Path(path).write_bytes(content[:size])
        whole = sum(end <= size for end in ends[1:])
        if size in ends:  # Truncated between records: nothing shows it.
            assert read_all(path)[0] == before[:whole]
        elif allowed:
            read, log = read_all(path, allowed)
            assert (read, log.count) == (before[:whole], 1), f"{size} bytes"
        else:
            rest = size - ends[whole]
            reason = "the file ends inside" if rest < HEADER_BYTES else "the file is truncated"
            expected = f"record {whole} of {path} (byte {ends[whole]}): {reason}"
            assert error_of(path).startswith(expected)


def test_a_truncated_record_is_reported_with_both_sizes(path):
    os.truncate(path, 100)
    assert "still being written: 100 bytes, the record ends at byte 132" in error_of(path)


def test_a_file_that_shrinks_while_it_is_read_is_detected(tmp_path):
    path = write_records(tmp_path / "a", random_payloads([100_000, 100_000]))
    log = records.CorruptRecordLog(1)
    with records.TFRecordFile(path, log) as file:
        assert file.read() is not None
        os.truncate(path, 150_000)
        assert file.read() is None
        assert file.read() is None
    assert log.count == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"not records at all", "this is not a TFRecord file, or"),
        (b"\x00" * 100, "this is not a TFRecord file, or"),
        (b"{}" * 40, "this is not a TFRecord file, or"),
        (b"hello", "the file ends inside a record's header"),
        (gzip.compress(b"x" * 100), "this is not a TFRecord file, or"),
        (b"BZh91AY&SY" * 9, "this is not a TFRecord file, but compressed by bzip2: decompress it"),
        (
            b"PAR1" + bytes(20),
            "this is not a TFRecord file, but a Parquet file: make_records.py converts it.",
        ),
    ],
    ids=["text", "zeros", "JSON", "short", "compressed text", "bzip2", "Parquet"],
)
def test_a_file_of_another_format_is_rejected(tmp_path, content, problem):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(content)
    assert error_of(str(path)).startswith(f"record 0 of {path} (byte 0): {problem}")


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path):
    payloads = random_payloads([100, 200, 300])
    path = tmp_path / "a"
    write_records(path, payloads)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with records.TFRecordFile(str(path), records.CorruptRecordLog()) as file:
        read = [file.read()[1]]
        path.write_bytes(whole)
        while (record := file.read()) is not None:
            read.append(record[1])
    assert read == payloads


# --- Compressed files ---

COMPRESSIONS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "stored": lambda content: zlib.compress(content, 0),
    "two gzip files": lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:]),
    "padded": lambda content: gzip.compress(content) + bytes(100_000),
}


@pytest.mark.parametrize("prefix", ["", "file://"], ids=["local", "by TensorFlow"])
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_a_compressed_file_is_read_whatever_its_name(tmp_path, compress, prefix):
    payloads = [*random_payloads([0, 100, 300_000, 70_000]), bytes(2_000_000)]
    path = tmp_path / "a.tfrecord"
    write_records(path, payloads)
    path.write_bytes(compress(path.read_bytes()))
    with records.TFRecordFile(f"{prefix}{path}", records.CorruptRecordLog()) as file:
        assert file.is_compressed
        read, num_bytes = [], 0
        while (record := file.read()) is not None:
            read.append(record[1])
            num_bytes += file.pop_bytes_read()
            assert num_bytes <= path.stat().st_size
        num_bytes += file.pop_bytes_read()
    assert read == payloads
    assert num_bytes == path.stat().st_size


def test_what_tensorflow_compresses_is_read(tmp_path):
    payloads = random_payloads([10, 20])
    for kind in ("GZIP", "ZLIB"):
        with tf.io.TFRecordWriter(str(tmp_path / kind), kind) as writer:
            for payload in payloads:
                writer.write(payload)
        assert read_all(str(tmp_path / kind))[0] == payloads


def test_a_compressed_file_without_records_is_empty(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(b""))
    (tmp_path / "b").write_bytes(zlib.compress(b""))
    assert [read_all(str(tmp_path / name))[0] for name in "ab"] == [[], []]


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_truncated_compressed_file_is_read_as_far_as_possible(path, compress):
    before, _ = read_all(path)
    with open(path, "rb") as file:
        packed = compress(file.read())
    for size in range(12, len(packed)):
        with open(path, "wb") as file:
            file.write(packed[:size])
        read, log = read_all(path, allowed=1)
        assert read == before[: len(read)]
        assert list(log.skipped.values()) == ["its compressed data end early"]
        assert "its compressed data end early" in error_of(path)


def test_a_flipped_bit_in_a_compressed_file_is_detected(path):
    before, _ = read_all(path)
    with open(path, "rb") as file:
        packed = gzip.compress(file.read(), mtime=0)
    for place in range(10, len(packed)):  # The first bytes are a header that decides nothing.
        with open(path, "wb") as file:
            file.write(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :])
        read, log = read_all(path, allowed=9)
        assert log.count > 0
        assert all(payload in before for payload in read)


def test_a_plain_file_that_starts_like_a_compressed_one_is_plain(tmp_path):
    payloads = [bytes(0x9C78)]  # Its length is stored as the first bytes of a zlib file.
    assert read_all(write_records(tmp_path / "a", payloads))[0] == payloads


def test_a_directory_is_rejected(tmp_path):
    with pytest.raises(InputError, match=f"^cannot read {re.escape(str(tmp_path))}: "):
        records.TFRecordFile(str(tmp_path), records.CorruptRecordLog(9))


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_missing_file_is_rejected(tmp_path, prefix):
    path = f"{prefix}{tmp_path}/missing"
    with pytest.raises(InputError, match=f"^cannot read {re.escape(path)}: "):
        records.TFRecordFile(path, records.CorruptRecordLog(9))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("length", [10**9, 2**40, 2**63, 2**64 - 1])
def test_a_huge_length_with_a_valid_checksum_takes_no_memory(tmp_path, length, compressed):
    encoded = struct.pack("<Q", length)
    path = tmp_path / "a"
    content = encoded + struct.pack("<I", records.masked_crc32c(encoded)) + b"x" * 100
    path.write_bytes(gzip.compress(content) if compressed else content)
    tracemalloc.start()
    message = error_of(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if not compressed:
        expected = f"still being written: 112 bytes, the record ends at byte {length + 16}"
    elif length > 2**31:
        expected = f"a record cannot have {length} bytes"
    else:
        expected = "the file was truncated while it was read"
    assert expected in message
    assert peak < 1 << 21


def test_checksums_are_those_that_tensorflow_writes(path):
    content = pathlib.Path(path).read_bytes()
    assert struct.unpack("<I", content[8:12])[0] == records.masked_crc32c(content[:8])
    assert struct.unpack("<I", content[32:36])[0] == records.masked_crc32c(content[12:32])


def test_one_corrupt_record_more_than_allowed_is_rejected(tmp_path):
    path = write_records(tmp_path / "a", random_payloads([10] * 6))
    for index in (1, 2, 4):
        flip_bit(path, 26 * index + HEADER_BYTES)
    assert read_all(path, allowed=3)[1].count == 3
    message = error_of(path, allowed=2)
    assert message.startswith(f"record 4 of {path} (byte 104): its content")
    assert re.search(
        r"2 corrupt records were skipped before.*--skip_corrupt_records .* above 2\.$", message
    )


def test_a_corrupt_record_that_is_read_again_counts_once(path, logged_warnings):
    flip_bit(path, 36 + HEADER_BYTES)
    log = records.CorruptRecordLog(1)
    for _ in range(3):
        with records.TFRecordFile(path, log) as file:
            assert file.read()[0].index == 0
            assert file.read()[0].index == 2
            assert file.read() is None
    assert log.count == 1
    assert len(logged_warnings) == 1


def test_equal_corrupt_records_of_two_files_count_twice(tmp_path):
    log = records.CorruptRecordLog(2)
    for name in ("a", "b"):
        path = write_records(tmp_path / name, random_payloads([10]))
        flip_bit(path, HEADER_BYTES)
        with records.TFRecordFile(path, log) as file:
            assert file.read() is None
    assert log.count == 2


@pytest.mark.parametrize("prefix", ["", "file://"], ids=["local", "by TensorFlow"])
def test_skimming_finds_every_location_and_seeking_returns_to_it(tmp_path, prefix):
    payloads = random_payloads([10, 100_000, 0, 50_000])
    path = prefix + write_records(tmp_path / "a", payloads)
    with records.TFRecordFile(path, records.CorruptRecordLog()) as file:
        locations = []
        while (location := file.skim()) is not None:
            locations.append(location)
        assert [location.index for location in locations] == [0, 1, 2, 3]
        for index in (2, 0, 3, 1):
            file.seek(locations[index])
            assert file.read() == (locations[index], payloads[index])
        assert file.read() == (locations[2], payloads[2])


def test_reading_continues_where_skimming_stopped(path):
    before, _ = read_all(path)
    with records.TFRecordFile(path, records.CorruptRecordLog()) as file:
        file.skim()
        assert file.read()[1] == before[1]
        file.skim()
        assert file.read() is None


def test_skimming_detects_a_truncated_end_but_not_a_flipped_bit(path):
    flip_bit(path, HEADER_BYTES)
    os.truncate(path, 100)
    log = records.CorruptRecordLog(1)
    with records.TFRecordFile(path, log) as file:
        assert [file.skim().index, file.skim().index] == [0, 1]
        assert file.skim() is None
    assert log.count == 1


def test_bytes_read_add_up_to_the_size_even_of_a_corrupt_file(path):
    flip_bit(path, 66)
    log = records.CorruptRecordLog(1)
    with records.TFRecordFile(path, log) as file:
        file.read()
        assert file.pop_bytes_read() == 36
        assert file.pop_bytes_read() == 0
        file.read()
        assert file.pop_bytes_read() == 30
        assert file.read() is None
        assert file.pop_bytes_read() == 66
    assert log.count == 1
