"""Reads TFRecord files and takes YouTube-8M records apart, without copying.

TensorFlow's own reader names neither the file nor the record of an error and gives up on the rest
of a file. A TFRecord is: length (8 bytes), checksum of the length (4), payload, checksum of the
payload (4); all little-endian, the checksums masked CRC-32C. A corrupt payload therefore costs one
record; a corrupt length costs the rest of its file.

Features are views into the bytes of a serialized proto. Only the layout that writers of
`tf.train.Example` and `tf.train.SequenceExample` produce is read here; anything else goes through
the protobuf library, with the same result. Names of messages and fields are those of
tensorflow/core/example/*.proto.
"""

import dataclasses
import struct
import threading

import google_crc32c
import numpy as np
from absl import logging
from tensorflow.train import Feature, FeatureList, SequenceExample

import files
from utils import InputError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_BUFFER_BYTES = 1 << 12
# Tags of the length-delimited fields 1 and 2. In the usual layout there are no others.
_FIELD_1, _FIELD_2 = 0x0A, 0x12
_MAX_LENGTH_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLocation:
    """Where a record stands: its file, its number in the file from 0, and its first byte."""

    path: str
    index: int
    offset: int

    def __str__(self):
        return f"record {self.index} of {self.path} (byte {self.offset})"


class CorruptRecordLog:
    """Counts damaged records and decides whether to go on without them.

    A record that is met again in a later epoch counts once.

    Args:
        allowed: int. How many damaged records may be skipped.

    Attributes:
        skipped: dict from the `RecordLocation` of each record skipped so far to the reason, a str.
    """

    def __init__(self, allowed=0):
        self.allowed = allowed
        self.skipped = {}
        self._lock = threading.Lock()

    @property
    def count(self):
        """Number of different records skipped so far."""
        return len(self.skipped)

    def of_file(self, path):
        """The skipped records of a file, as in `skipped`."""
        return {
            location: reason for location, reason in self.skipped.items() if location.path == path
        }

    def add(self, location, reason):
        """Notes a damaged record.

        Raises:
            InputError: if it is one more than allowed.
        """
        with self._lock:
            if location in self.skipped:
                return
            if self.count >= self.allowed:
                raise InputError(
                    f"{location}: {reason}. {self.count} damaged records were skipped before; to "
                    f"skip more, pass --skip_corrupt_records with a number above {self.allowed}."
                )
            self.skipped[location] = reason
        logging.warning(
            "skipped %s: %s (%d of %d allowed)", location, reason, self.count, self.allowed
        )


class TFRecordFile:
    """Reads one TFRecord file from its start; a context manager.

    Args:
        path: str. Local or remote file.
        corrupt_records: `CorruptRecordLog` that is told of every damaged record.
    """

    def __init__(self, path, corrupt_records):
        self._path = path
        self._corrupt_records = corrupt_records
        self._index = 0
        self._offset = 0
        self._taken = 0
        try:
            self._size = files.file_size(path)
            self._file = files.open_binary(path, buffering=_BUFFER_BYTES)
        except (OSError, *files.REMOTE_ERRORS) as error:
            raise InputError(f"cannot read {path}: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self):
        """Reads the next good record.

        Returns:
            `(location, payload)` with the payload as bytes, or None at the end of the file.
        """
        while (found := self._next_header()) is not None:
            location, length = found
            payload = self._file.read(length)
            trailer = self._file.read(_CHECKSUM.size)
            if len(payload) < length or len(trailer) < _CHECKSUM.size:
                self._lose_rest(location, "the file became shorter while it was read")
            elif masked_crc32c(payload) != _CHECKSUM.unpack(trailer)[0]:
                self._corrupt_records.add(location, "its content does not match its checksum")
            else:
                return location, payload
        return None

    def skim(self):
        """Place of the next record, or None at the end; its content is neither read nor checked."""
        found = self._next_header()
        if found is None:
            return None
        self._file.seek(self._offset)
        return found[0]

    def seek(self, location):
        """Goes to a record, so that the next `read` returns it."""
        self._index, self._offset = location.index, location.offset
        self._file.seek(location.offset)

    def take_bytes_read(self):
        """Bytes passed since the last call."""
        passed, self._taken = self._offset - self._taken, self._offset
        return passed

    def _next_header(self):
        """Reads one header: `(location, length)`, or None where the file ends or is lost."""
        location = RecordLocation(self._path, self._index, self._offset)
        header = self._file.read(_HEADER.size)
        if not header:
            return None
        if len(header) < _HEADER.size:
            return self._lose_rest(location, "the file ends inside a record's header")
        length, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != checksum:
            return self._lose_rest(location, self._reason_for_bad_header(header))
        end = self._offset + _HEADER.size + length + _CHECKSUM.size
        if end > self._size:
            return self._lose_rest(
                location,
                f"the file is truncated: {self._size} bytes, the record ends at byte {end}",
            )
        self._index += 1
        self._offset = end
        return location, length

    def _reason_for_bad_header(self, header):
        if self._offset > 0:
            return "its length does not match its checksum, so the rest of the file is lost"
        if header.startswith(b"\x1f\x8b"):
            return "the file is compressed by gzip; decompress it first"
        return "this is not a TFRecord file, or its first length is damaged"

    def _lose_rest(self, location, reason):
        self._corrupt_records.add(location, reason)
        self._offset = self._size
        self._file.seek(self._size)


def masked_crc32c(data):
    """The checksum that TFRecord files store for `data`."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_record(payload):
    """Splits a serialized Example or SequenceExample into its features.

    The two share the number of their first field (`features`, `context`), so one parser serves
    both; an Example has no feature lists. What is inside a feature is checked when it is used.

    Args:
        payload: bytes.

    Returns:
        `(features, feature_lists)`: dicts from name to a serialized `Feature` and `FeatureList`,
        as a buffer that may be a view of `payload`.

    Raises:
        DecodeError: if the payload is neither.
    """
    data = memoryview(payload)
    features, feature_lists = {}, {}
    try:
        for tag, start, end in _fields(data, 0, len(data)):
            _parse_map(data, start, end, features if tag == _FIELD_1 else feature_lists)
    except (IndexError, ValueError):
        return _parse_with_protobuf(payload)
    return features, feature_lists


def float_values(feature):
    """Values of a serialized `Feature` that holds floats: float32 `[n]`, or None if it does not."""
    values = _only_field(feature, 0, len(feature), _FIELD_2)  # Feature.float_list
    packed = values and _only_field(feature, *values, _FIELD_1)  # FloatList.value
    if packed and (packed[1] - packed[0]) % 4 == 0:
        return np.frombuffer(feature, "<f4", (packed[1] - packed[0]) // 4, packed[0])
    parsed = Feature.FromString(feature)
    if parsed.WhichOneof("kind") != "float_list":
        return None
    return np.array(parsed.float_list.value, np.float32)


def frame_bytes(feature_list):
    """Frames of a serialized `FeatureList` with one bytes value in each feature.

    Returns:
        uint8 `[num_frames, size]`; `[0, 0]` without frames; None if the frames differ in size or
        are not one bytes value each.
    """
    frames = _equal_frames(feature_list)
    if frames is not None:
        return frames
    values = [feature.bytes_list.value for feature in FeatureList.FromString(feature_list).feature]
    if not values:
        return np.zeros((0, 0), np.uint8)
    sizes = {len(value[0]) if len(value) == 1 else None for value in values}
    if len(sizes) != 1 or None in sizes:
        return None
    content = b"".join(value[0] for value in values)
    return np.frombuffer(content, np.uint8).reshape(len(values), sizes.pop())


def _parse_with_protobuf(payload):
    record = SequenceExample.FromString(payload)
    return tuple(
        {name: message.SerializeToString() for name, message in entries.items()}
        for entries in (record.context.feature, record.feature_lists.feature_list)
    )


def _equal_frames(feature_list):
    """The frames as a strided view, if all have the same header; None otherwise.

    All features of equal size begin with the same bytes (tags and lengths), followed by the frame,
    so the list is a table whose first columns are constant.
    """
    # FeatureList.feature, Feature.bytes_list, BytesList.value: each inside the one before.
    feature = _first_field(feature_list, 0, len(feature_list), _FIELD_1)
    inner = feature and _only_field(feature_list, *feature, _FIELD_1)
    value = inner and _only_field(feature_list, *inner, _FIELD_1)
    if not value or len(feature_list) % value[1]:
        return None
    header_size, row_size = value
    rows = np.frombuffer(feature_list, np.uint8).reshape(-1, row_size)
    headers = rows[:, :header_size].tobytes()
    return rows[:, header_size:] if headers == headers[:header_size] * len(rows) else None


def _only_field(data, start, end, tag):
    """Bounds of the field `tag`, if it fills data[start:end]; None otherwise."""
    bounds = _first_field(data, start, end, tag)
    return bounds if bounds and bounds[1] == end else None


def _first_field(data, start, end, tag):
    """Bounds of the field `tag`, if it is the first one of data[start:end]; None otherwise."""
    try:
        found = next(_fields(data, start, end), None)
    except (IndexError, ValueError):
        return None
    return found[1:] if found and found[0] == tag else None


def _parse_map(data, start, end, entries):
    """Adds the entries of a serialized map<string, message> inside its wrapping message."""
    for tag, entry_start, entry_end in _fields(data, start, end):
        (key_tag, *key), (value_tag, *value) = _fields(data, entry_start, entry_end)
        name = str(data[slice(*key)], "utf-8")
        if (tag, key_tag, value_tag) != (_FIELD_1, _FIELD_1, _FIELD_2) or name in entries:
            raise ValueError("not an entry of the usual layout")
        entries[name] = data[slice(*value)]


def _fields(data, start, end):
    """Fields of data[start:end]: tuples (tag, start, end).

    Raises:
        IndexError, ValueError: if the layout is not the usual one.
    """
    while start < end:
        tag = data[start]
        length, start = _length(data, start + 1)
        if tag not in (_FIELD_1, _FIELD_2) or start + length > end:
            raise ValueError("not a field of the usual layout")
        yield tag, start, start + length
        start += length


def _length(data, position):
    """A length and the position behind it."""
    length = 0
    for location in range(_MAX_LENGTH_BYTES):
        byte = data[position + location]
        length |= (byte & 0x7F) << (7 * location)
        if byte < 0x80:
            return length, position + location + 1
    raise ValueError("not a length of the usual layout")
