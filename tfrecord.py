"""Reads TFRecord files record by record, and says exactly what is damaged where.

TensorFlow's own reader names neither the file nor the record of an error and gives up on the rest
of a file. A TFRecord is: length (8 bytes), checksum of the length (4), payload, checksum of the
payload (4); all little-endian, the checksums masked CRC-32C. A damaged payload therefore costs one
record; a damaged length costs the rest of its file.
"""

import dataclasses
import struct
import threading

import google_crc32c
from absl import logging

import files
from utils import InputError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_BUFFER_BYTES = 1 << 12


@dataclasses.dataclass(frozen=True, slots=True)
class RecordPlace:
    """Where a record stands: its file, its number in the file from 0, and its first byte."""

    path: str
    index: int
    offset: int

    def __str__(self):
        return f"record {self.index} of {self.path} (byte {self.offset})"


class DamageLog:
    """Counts damaged records and decides whether to go on without them.

    A record that is met again in a later epoch counts once.

    Args:
        allowed: int. How many damaged records may be skipped.

    Attributes:
        skipped: dict from the `RecordPlace` of each record skipped so far to the reason, a str.
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
        return {place: reason for place, reason in self.skipped.items() if place.path == path}

    def add(self, place, reason):
        """Notes a damaged record.

        Raises:
            InputError: if it is one more than allowed.
        """
        with self._lock:
            if place in self.skipped:
                return
            if self.count >= self.allowed:
                raise InputError(
                    f"{place}: {reason}. {self.count} damaged records were skipped before; to "
                    f"skip more, pass --skip_corrupt_records with a number above {self.allowed}."
                )
            self.skipped[place] = reason
        logging.warning(
            "skipped %s: %s (%d of %d allowed)", place, reason, self.count, self.allowed
        )


class TFRecordFile:
    """Reads one TFRecord file from its start; a context manager.

    Args:
        path: str. Local or remote file.
        damage: `DamageLog` that is told of every damaged record.
    """

    def __init__(self, path, damage):
        self._path = path
        self._damage = damage
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
            `(place, payload)` with the payload as bytes, or None at the end of the file.
        """
        while (found := self._next_header()) is not None:
            place, length = found
            payload = self._file.read(length)
            trailer = self._file.read(_CHECKSUM.size)
            if len(payload) < length or len(trailer) < _CHECKSUM.size:
                self._lose_rest(place, "the file became shorter while it was read")
            elif masked_crc32c(payload) != _CHECKSUM.unpack(trailer)[0]:
                self._damage.add(place, "its content does not match its checksum")
            else:
                return place, payload
        return None

    def skim(self):
        """Place of the next record, or None at the end; its content is neither read nor checked."""
        found = self._next_header()
        if found is None:
            return None
        self._file.seek(self._offset)
        return found[0]

    def seek(self, place):
        """Goes to a record, so that the next `read` returns it."""
        self._index, self._offset = place.index, place.offset
        self._file.seek(place.offset)

    def take_bytes_read(self):
        """Bytes passed since the last call."""
        passed, self._taken = self._offset - self._taken, self._offset
        return passed

    def _next_header(self):
        """Reads one header: `(place, length)`, or None where the file ends or is lost."""
        place = RecordPlace(self._path, self._index, self._offset)
        header = self._file.read(_HEADER.size)
        if not header:
            return None
        if len(header) < _HEADER.size:
            return self._lose_rest(place, "the file ends inside a record's header")
        length, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != checksum:
            return self._lose_rest(place, self._reason_for_bad_header(header))
        end = self._offset + _HEADER.size + length + _CHECKSUM.size
        if end > self._size:
            return self._lose_rest(
                place, f"the file is truncated: {self._size} bytes, the record ends at byte {end}"
            )
        self._index += 1
        self._offset = end
        return place, length

    def _reason_for_bad_header(self, header):
        if self._offset > 0:
            return "its length does not match its checksum, so the rest of the file is lost"
        if header.startswith(b"\x1f\x8b"):
            return "the file is compressed by gzip; decompress it first"
        return "this is not a TFRecord file, or its first length is damaged"

    def _lose_rest(self, place, reason):
        self._damage.add(place, reason)
        self._offset = self._size
        self._file.seek(self._size)


def masked_crc32c(data):
    """The checksum that TFRecord files store for `data`."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
