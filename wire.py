"""Takes YouTube-8M records apart without copying: views into the bytes of a serialized proto.

Only the layout that writers of `tf.train.Example` and `tf.train.SequenceExample` produce is read
here; anything else that is valid goes through the protobuf library, with the same result. Names of
messages and fields are those of tensorflow/core/example/*.proto.
"""

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.train import Feature, FeatureList

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


def parse_record(payload):
    """Splits a serialized Example or SequenceExample into its features.

    The two share the number of their first field (`features`, `context`), so one parser serves
    both; an Example has no feature lists.

    Args:
        payload: bytes.

    Returns:
        `(features, feature_lists)`: dicts from name to the bytes of a serialized `Feature` and
        `FeatureList`.

    Raises:
        DecodeError: if the payload is neither.
    """
    features, feature_lists = {}, {}
    try:
        for field, start, end in _fields(payload, 0, len(payload)):
            if field == 1:
                _parse_map(payload, start, end, features)
            elif field == 2:
                _parse_map(payload, start, end, feature_lists)
    except (IndexError, UnicodeDecodeError) as error:
        raise DecodeError("it ends in the middle of a field") from error
    return features, feature_lists


def float_values(feature):
    """Values of a serialized `Feature` that holds floats: float32 `[n]`, or None if it does not."""
    values = _only_field(feature, 0, len(feature), 2)  # Feature.float_list
    packed = values and _only_field(feature, *values, 1)  # FloatList.value
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
    if not feature_list:
        return np.zeros((0, 0), np.uint8)
    frames = _equal_frames(feature_list)
    if frames is not None:
        return frames
    values = [feature.bytes_list.value for feature in FeatureList.FromString(feature_list).feature]
    sizes = {len(value[0]) if len(value) == 1 else None for value in values}
    if len(sizes) != 1 or None in sizes:
        return None
    content = b"".join(value[0] for value in values)
    return np.frombuffer(content, np.uint8).reshape(len(values), sizes.pop())


def _equal_frames(feature_list):
    """The frames as a strided view, if all have the same header; None otherwise.

    All features of equal size begin with the same bytes (tags and lengths), followed by the frame,
    so the list is a table whose first columns are constant.
    """
    try:
        # FeatureList.feature, Feature.bytes_list, BytesList.value: each inside the one before.
        fields = _fields(feature_list, 0, len(feature_list))
        number, start, row_end = next(fields)
        inner = _only_field(feature_list, start, row_end, 1)
        value = inner and _only_field(feature_list, *inner, 1)
    except (IndexError, DecodeError):
        return None
    if number != 1 or not value or len(feature_list) % row_end:
        return None
    rows = np.frombuffer(feature_list, np.uint8).reshape(-1, row_end)
    header = rows[:, : value[0]]
    return rows[:, value[0] :] if (header == header[0]).all() else None


def _only_field(data, start, end, number):
    """Bounds of the one length-delimited field `number` that fills data[start:end], or None."""
    if start == end:
        return None
    try:
        found, inner_start, inner_end = next(_fields(data, start, end))
    except (IndexError, DecodeError, StopIteration):
        return None
    return (inner_start, inner_end) if found == number and inner_end == end else None


def _parse_map(data, start, end, entries):
    """Adds the entries of a serialized map<string, message> inside its wrapping message."""
    for field, entry_start, entry_end in _fields(data, start, end):
        if field != 1:
            continue
        name, value = "", b""
        for number, value_start, value_end in _fields(data, entry_start, entry_end):
            if number == 1:
                name = data[value_start:value_end].decode()
            elif number == 2:
                value = data[value_start:value_end]
        entries[name] = value


def _fields(data, start, end):
    """Length-delimited fields in data[start:end]: tuples (number, start, end); others are passed.

    Raises:
        DecodeError: if a field does not end where it should.
    """
    position = start
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
            if position + length > end:
                raise DecodeError("a field is longer than what holds it")
            yield tag >> 3, position, position + length
            position += length
        elif kind == _VARINT:
            _, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise DecodeError(f"wire type {kind} is not valid")
    if position != end:
        raise DecodeError("a field is longer than what holds it")


def _varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise DecodeError("a number is longer than 64 bits")
