"""Reads TFRecord files and parses YouTube-8M records without copying their features."""

import dataclasses
import functools
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from absl import logging
from google.protobuf.message import DecodeError
from tensorflow.train import Feature, FeatureList, SequenceExample

import files
from utils import InputError, comma_separated

# --- TFRecord files -------------------------------------------------------------------------------
#
# A TFRecord consists of: length (8 bytes), checksum of the length (4), payload, checksum of the
# payload (4). All are little-endian; the checksums are masked CRC-32C. So a corrupt payload loses
# one record, and a corrupt length loses the rest of its file. TensorFlow's own reader does not say
# which file and record are corrupt, and gives up on the rest of the file in both cases. The whole
# file may be compressed by gzip or zlib.

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_BUFFER_BYTES = 1 << 16
# Bytes of a compressed file to read, and of its content to produce, at once.
_PACKED_BYTES, _PART_BYTES = 1 << 16, 1 << 18
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
# A longer record is no protobuf message.
_MAX_RECORD_BYTES = 1 << 31
# First bytes of files that are often mistaken for TFRecord files.
_OTHER_FORMATS = {
    b"BZh": "compressed by bzip2: decompress it",
    b"\xfd7zXZ\x00": "compressed by xz: decompress it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it",
    b"PK\x03\x04": "a zip archive: extract its files",
    b"PAR1": "a Parquet file: make_records.py converts it",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file: make_records.py converts it",
    b"\x93NUMPY": "a NumPy file: make_records.py converts it",
}


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLocation:
    """Location of a record.

    Attributes:
        path: file that holds the record.
        index: number of the record in the file, from 0.
        offset: first byte of the record in the file, after decompression.
    """

    path: str
    index: int
    offset: int

    def __str__(self):
        return f"record {self.index} of {self.path} (byte {self.offset})"


class CorruptRecordLog:
    """Log of the corrupt records that were skipped, and the limit on their number.

    A record that is read again in a later epoch counts once.

    Args:
        allowed: number of corrupt records that may be skipped.

    Attributes:
        skipped: location of each record skipped so far, and why it was skipped.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.skipped: dict[RecordLocation, str] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of distinct records skipped so far."""
        return len(self.skipped)

    def in_file(self, path: str) -> dict[RecordLocation, str]:
        """Returns the part of `skipped` that belongs to one file."""
        return {
            location: reason for location, reason in self.skipped.items() if location.path == path
        }

    def add(self, location: RecordLocation, reason: str, remedy: str = "") -> None:
        """Adds a corrupt record and logs a warning.

        Args:
            location: location of the record.
            reason: why it cannot be used.
            remedy: sentence that says how to use it, if there is a way.

        Raises:
            InputError: if the record exceeds the allowed number.
        """
        with self._lock:
            if location in self.skipped:
                return
            if self.count >= self.allowed:
                before = f"{self.count} corrupt records were skipped before. " if self.count else ""
                skipping = (
                    f"{before}To skip corrupt records, pass --skip_corrupt_records with a number "
                    f"above {self.allowed}."
                )
                raise InputError(
                    " ".join(filter(None, (f"{location}: {reason}.", remedy, skipping)))
                )
            self.skipped[location] = reason
        logging.warning(
            "skipped %s: %s (%d of %d allowed)", location, reason, self.count, self.allowed
        )


class IgnoredCorruptRecords(CorruptRecordLog):
    """Log that ignores corrupt records, for a look at the first records of a data set."""

    def add(self, location: RecordLocation, reason: str, remedy: str = "") -> None:
        """Does nothing."""


class PostponedCorruptRecords(CorruptRecordLog):
    """Log for reading ahead, which leaves it to the caller when a corrupt record counts.

    Args:
        log: log that the records belong to.

    Attributes:
        calls: list to which `add` appends a function without arguments that adds to `log`.
    """

    def __init__(self, log: CorruptRecordLog):
        super().__init__()
        self.calls: list[Any] = []
        self._log = log

    def add(self, location: RecordLocation, reason: str, remedy: str = "") -> None:
        """Postpones adding a record to the other log."""
        self.calls.append(functools.partial(self._log.add, location, reason, remedy))


class TFRecordFile:
    """Reads one TFRecord file from its start; a context manager.

    Recognizes files that are compressed by gzip or zlib by their content.

    Args:
        path: local or remote file.
        corrupt_log: log to which the reader adds every corrupt record.

    Raises:
        InputError: if the file cannot be read, or has more corrupt records than the log allows.
    """

    def __init__(self, path: str, corrupt_log: CorruptRecordLog):
        self._path = path
        self._corrupt_log = corrupt_log
        self._index = 0
        self._offset = 0
        self._popped_position = 0
        try:
            self._size = files.file_size(path)
            self._file = files.open_binary(path, buffering=_BUFFER_BYTES)
        except (OSError, *files.REMOTE_ERRORS) as error:
            raise self._unreadable(error) from error
        self._is_compressed: bool | None = None  # Not known before the first read.
        self._content: Any = self._file

    def __enter__(self) -> "TFRecordFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def is_compressed(self) -> bool:
        """Whether the file is compressed; then it can only be read in order."""
        if self._is_compressed is None:
            start = self._file.read(_HEADER.size)
            self._file.seek(0)
            self._is_compressed = not _is_header(start) and _has_compressed_start(start)
            if self._is_compressed:
                self._content = _DecompressedFile(self._file)
        return self._is_compressed

    def read(self) -> tuple[RecordLocation, bytes] | None:
        """Reads the next intact record.

        Returns:
            `(location, payload)`, or None at the end of the file.
        """
        try:
            while (found := self._next_header()) is not None:
                location, length = found
                payload = self._content.read(length)
                trailer = self._content.read(_CHECKSUM.size)
                if len(payload) < length or len(trailer) < _CHECKSUM.size:
                    self._lose_rest(location, "the file was truncated while it was read")
                elif masked_crc32c(payload) != _CHECKSUM.unpack(trailer)[0]:
                    self._corrupt_log.add(location, "its content does not match its checksum")
                else:
                    return location, payload
        except (OSError, *files.REMOTE_ERRORS) as error:
            raise self._unreadable(error) from error
        return None

    def skim(self) -> RecordLocation | None:
        """Skips the payload of the next record of an uncompressed file without checking it.

        Returns:
            Its location, or None at the end of the file.
        """
        found = self._next_header()
        if found is None:
            return None
        self._file.seek(self._offset)
        return found[0]

    def seek(self, location: RecordLocation) -> None:
        """Moves to a record of an uncompressed file, which the next `read` returns."""
        self._is_compressed = False
        self._index, self._offset = location.index, location.offset
        self._file.seek(location.offset)

    def pop_bytes_read(self) -> int:
        """Returns the number of bytes of the file read or skipped since the last call."""
        position = self._file.tell() if self._is_compressed else self._offset
        num_bytes, self._popped_position = position - self._popped_position, position
        return num_bytes

    def _next_header(self):
        """Returns `(location, length)` of the next record, or None if there is none to read."""
        is_compressed = self.is_compressed
        location = RecordLocation(self._path, self._index, self._offset)
        header = self._content.read(_HEADER.size)
        if not header and not self._decompression_fault:
            return None
        if len(header) < _HEADER.size:
            return self._lose_rest(location, "the file ends inside a record's header")
        if (length := _length_in(header)) is None:
            return self._lose_rest(location, *self._reason_for_bad_header(header))
        end = self._offset + _HEADER.size + length + _CHECKSUM.size
        if is_compressed and length > _MAX_RECORD_BYTES:
            return self._lose_rest(location, f"a record cannot have {length} bytes")
        if end > self._size and not is_compressed:
            self._size = files.file_size(self._path)  # The file may have grown.
        if end > self._size and not is_compressed:
            return self._lose_rest(
                location,
                f"the file is truncated or still being written: {self._size} bytes, the record "
                f"ends at byte {end}",
            )
        self._index += 1
        self._offset = end
        return location, length

    @property
    def _decompression_fault(self):
        return self._content.fault if self._is_compressed else None

    def _reason_for_bad_header(self, header):
        """Returns the reason and, for a file of another format, the remedy."""
        if self._offset > 0:
            return ("its length does not match its checksum, so the rest of the file is lost",)
        for start, name in _OTHER_FORMATS.items():
            if header.startswith(start):
                return (f"this is not a TFRecord file, but {name}",)
        return (
            "this is not a TFRecord file, or its first length is corrupt: it begins with "
            f"{bytes(header)}",
            "Leave out files of other formats.",
        )

    def _lose_rest(self, location, reason, remedy=""):
        self._corrupt_log.add(location, self._decompression_fault or reason, remedy)
        self._file.seek(self._size)
        self._offset = self._size
        if self._is_compressed:
            self._content = _DecompressedFile(self._file)

    def _unreadable(self, error):
        return InputError(f"cannot read {self._path}: {error}")


class _DecompressedFile:
    """Reads the content of a file that is compressed by gzip or zlib.

    Args:
        file: the compressed file, at its start.

    Attributes:
        fault: why the content ends early, or None.
    """

    def __init__(self, file: Any):
        self.fault: str | None = None
        self._file = file
        self._parts = self._decompress()
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer than `size` only at the end."""
        read = []
        while size and (self._rest or self._next_part()):
            read.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(read[-1])
        return b"".join(read)

    def _next_part(self):
        self._rest = memoryview(next(self._parts, b""))
        return bool(self._rest)

    def _decompress(self):
        """Yields the content in parts; one file may hold several compressed files in a row."""
        packed = self._file.read(_PACKED_BYTES)
        try:
            while packed:
                unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
                while not unpacker.eof:
                    part = unpacker.decompress(packed, _PART_BYTES)
                    if part:
                        yield part
                    packed = unpacker.unconsumed_tail
                    if not packed and len(part) < _PART_BYTES and not unpacker.eof:
                        packed = self._file.read(_PACKED_BYTES)
                        if not packed:
                            self.fault = "its compressed data end early"
                            return
                # Zeros may follow as padding.
                packed = unpacker.unused_data.lstrip(b"\0")
                while not packed and (more := self._file.read(_PACKED_BYTES)):
                    packed = more.lstrip(b"\0")
        except zlib.error as error:
            self.fault = f"its compressed data are corrupt: {error}"


def _is_header(start):
    """Returns whether a file or record starts with a length that matches its checksum."""
    return len(start) == _HEADER.size and _length_in(start) is not None


def _length_in(header):
    """Returns the length that a header holds, or None if it does not match its checksum."""
    length, checksum = _HEADER.unpack(header)
    return length if masked_crc32c(header[:8]) == checksum else None


def _has_compressed_start(start):
    """Returns whether a file starts like one of gzip or zlib."""
    is_zlib = start[:1] == b"x" and start[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda")
    return is_zlib or start.startswith(b"\x1f\x8b\x08")


def is_tfrecord_file(path: str) -> bool:
    """Returns whether a file starts like a TFRecord file, which may be compressed."""
    with files.open_binary(path) as file:
        start = file.read(_HEADER.size)
    return _is_header(start) or _has_compressed_start(start)


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum that TFRecord files store for `data`."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# --- Wire format of Example and SequenceExample ---------------------------------------------------
#
# The functions here parse the layout that the usual writers of `tf.train.Example` and
# `tf.train.SequenceExample` produce, and return views into the serialized bytes. They leave any
# other layout to the protobuf library, with the same result. Messages and fields are named as in
# tensorflow/core/example/*.proto.

# Tags of the length-delimited fields 1 and 2. The usual layout has no others.
_FIELD_1, _FIELD_2 = 0x0A, 0x12
_MAX_LENGTH_BYTES = 4

# Features that may hold the id of a video.
ID_NAMES = ("id", "video_id")
# A serialized message.
Serialized = bytes | memoryview


def parse_record(payload: bytes) -> tuple[dict[str, Serialized], dict[str, Serialized]]:
    """Splits a serialized Example or SequenceExample into its features.

    The first field of both messages (`features`, `context`) has the same number and type, so one
    parser serves both. An Example has no feature lists. The contents of a feature are checked only
    when it is used.

    Returns:
        `(features, feature_lists)`: serialized `Feature` and `FeatureList` messages by name, which
        may be views of `payload`.

    Raises:
        DecodeError: if the payload is neither message.
    """
    features: dict[str, Serialized] = {}
    feature_lists: dict[str, Serialized] = {}
    by_tag = {_FIELD_1: features, _FIELD_2: feature_lists}
    start, end = 0, len(payload)
    try:
        while start < end:
            tag, first, start = _field(payload, start, end)
            _parse_map(payload, first, start, by_tag[tag])
    except (LookupError, ValueError):
        return _parse_with_protobuf(payload)
    return features, feature_lists


def is_example(payload: bytes) -> bool:
    """Returns whether a payload is laid out as a serialized Example: with `features` only."""
    return _only_field(payload, 0, len(payload), _FIELD_1) is not None


def video_id(context: Mapping[str, Serialized], names: Sequence[str] = ID_NAMES) -> str | None:
    """Returns the id of a video, or None.

    Args:
        context: features of the record, serialized, by name.
        names: features that may hold the id; the first one that holds exactly one string counts.
    """
    for name in names:
        values = Feature.FromString(context.get(name, b"")).bytes_list.value
        if len(values) == 1:
            return decoded(values[0])
    return None


def decoded(video_id: bytes) -> str:
    """Returns the text of an id, which may hold any bytes."""
    return video_id.decode("utf-8", "backslashreplace")


def float_values(feature: Serialized) -> np.ndarray | None:
    """Returns the values of a serialized float `Feature`, float32 `[n]`; None for other types."""
    values = _only_field(feature, 0, len(feature), _FIELD_2)  # Feature.float_list
    packed = values and _only_field(feature, *values, _FIELD_1)  # FloatList.value
    if packed and (packed[1] - packed[0]) % 4 == 0:
        return np.frombuffer(feature, "<f4", (packed[1] - packed[0]) // 4, packed[0])
    parsed = Feature.FromString(feature)
    if parsed.WhichOneof("kind") != "float_list":
        return None
    return np.array(parsed.float_list.value, np.float32)


def frame_bytes(feature_list: Serialized) -> np.ndarray | None:
    """Returns the frames of a serialized `FeatureList` that stores one bytes value per feature.

    Returns:
        uint8 `[num_frames, size]`, which is `[0, 0]` without frames; None if the frames differ in
        size or are not one bytes value each.
    """
    frames = _equal_frames(feature_list, _FIELD_1)
    if frames is not None:
        return frames
    values = [feature.bytes_list.value for feature in FeatureList.FromString(feature_list).feature]
    if not values:
        return np.zeros((0, 0), np.uint8)
    if any(len(value) != 1 for value in values) or len({len(value[0]) for value in values}) > 1:
        return None
    content = b"".join(value[0] for value in values)
    return np.frombuffer(content, np.uint8).reshape(len(values), len(values[0][0]))


def frame_floats(feature_list: Serialized) -> np.ndarray | None:
    """Returns the frames of a serialized `FeatureList` that stores one list of floats per feature.

    Returns:
        float32 `[num_frames, size]`, which is `[0, 0]` without frames; None if the frames differ in
        size or are not floats.
    """
    frames = _equal_frames(feature_list, _FIELD_2)
    if frames is not None and frames.shape[1] % 4 == 0:
        return frames.view("<f4")
    features = FeatureList.FromString(feature_list).feature
    if not features:
        return np.zeros((0, 0), np.float32)
    rows = [feature.float_list.value for feature in features]
    if any(feature.WhichOneof("kind") != "float_list" for feature in features):
        return None
    return np.array(rows, np.float32) if len(set(map(len, rows))) == 1 else None


def describe_features(features: Mapping[str, Serialized]) -> str:
    """Returns names and contents for messages, such as `id (1 string), labels (2 integers)`."""
    return _described(features, lambda content: _describe_values(Feature.FromString(content)))


def describe_feature_lists(feature_lists: Mapping[str, Serialized]) -> str:
    """Returns names and contents for messages, such as `rgb (8 frames of 64 bytes)`."""
    return _described(feature_lists, _describe_frames)


def _described(entries, describe):
    texts = []
    for name, content in sorted(entries.items()):
        try:
            texts.append(f"{name} ({describe(bytes(content))})")
        except DecodeError:
            texts.append(f"{name} (not readable)")
    return comma_separated(texts)


def _describe_frames(content):
    frames = FeatureList.FromString(content).feature
    if not frames:
        return "no frames"
    sizes = sorted(set(map(_describe_frame, frames)))
    return f"{_counted(len(frames), 'frame')} of {' or '.join(sizes[:3])}"


def _describe_frame(feature):
    values = feature.bytes_list.value
    return _counted(len(values[0]), "byte") if len(values) == 1 else _describe_values(feature)


def _describe_values(feature):
    kind = feature.WhichOneof("kind")
    count = len(getattr(feature, kind).value) if kind else 0
    names = {"bytes_list": "string", "float_list": "float", "int64_list": "integer"}
    return _counted(count, names.get(kind, "value"))


def _counted(count, name):
    return f"{count} {name}{'s' * (count != 1)}"


def _parse_with_protobuf(payload):
    record = SequenceExample.FromString(payload)
    return tuple(
        {name: message.SerializeToString() for name, message in entries.items()}
        for entries in (record.context.feature, record.feature_lists.feature_list)
    )


def _equal_frames(feature_list, kind):
    """Returns the frames as a strided view if all have the same header, otherwise None.

    A feature consists of a header (tags and lengths) and the frame. Features of equal size have
    equal headers, so the list is a table whose first columns are constant.

    Args:
        feature_list: serialized `FeatureList`.
        kind: field of `Feature` that holds the frame: that of its bytes_list or its float_list.
    """
    # The nested messages FeatureList.feature, Feature.bytes_list and BytesList.value.
    feature = _first_field(feature_list, 0, len(feature_list), _FIELD_1)
    inner = feature and _only_field(feature_list, *feature, kind)
    value = inner and _only_field(feature_list, *inner, _FIELD_1)
    if not value or len(feature_list) % value[1]:
        return None
    header_size, row_size = value
    rows = np.frombuffer(feature_list, np.uint8).reshape(-1, row_size)
    headers = rows[:, :header_size].tobytes()
    return rows[:, header_size:] if headers == headers[:header_size] * len(rows) else None


def _only_field(data: Serialized, start: int, end: int, tag: int) -> tuple[int, int] | None:
    """Returns the bounds of the field `tag` if it fills data[start:end], otherwise None."""
    bounds = _first_field(data, start, end, tag)
    return bounds if bounds and bounds[1] == end else None


def _first_field(data, start, end, tag):
    """Returns the bounds of the field `tag` if it is first in data[start:end], otherwise None."""
    try:
        found, first, last = _field(data, start, end)
    except (IndexError, ValueError):
        return None
    return (first, last) if found == tag else None


def _parse_map(data, start, end, entries):
    """Adds the entries of a serialized map<string, message>, read from its wrapping message."""
    view = memoryview(data)
    while start < end:
        tag, first, start = _field(data, start, end)
        key_tag, key_start, key_end = _field(data, first, start)
        value_tag, value_start, value_end = _field(data, key_end, start)
        name = str(data[key_start:key_end], "utf-8")
        if (tag, key_tag, value_tag, value_end) != (_FIELD_1, _FIELD_1, _FIELD_2, start) or (
            name in entries
        ):
            raise ValueError("not an entry of the usual layout")
        entries[name] = view[value_start:value_end]


def _field(data, start, end):
    """Returns tag, start and end of the field at data[start:end].

    Raises:
        IndexError, ValueError: if there is none of the usual layout.
    """
    first = start + 2
    length = data[start + 1]
    if length > 0x7F:
        length, first = _length(data, start + 1)
    last = first + length
    if last > end:
        raise ValueError("not a field of the usual layout")
    return data[start], first, last


def _length(data, start):
    """Returns the length stored at data[start:], and the index after it."""
    length = 0
    for index in range(_MAX_LENGTH_BYTES):
        byte = data[start + index]
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return length, start + index + 1
    raise ValueError("not a length of the usual layout")
