"""Takes YouTube-8M records apart without copying: views into the bytes of a serialized proto.

Only the layout that writers of `tf.train.Example` and `tf.train.SequenceExample` produce is read
here; anything else goes through the protobuf library, with the same result. Names of messages and
fields are those of tensorflow/core/example/*.proto.
"""

import numpy as np
from tensorflow.train import Feature, FeatureList, SequenceExample

# Tags of the length-delimited fields 1 and 2. In the usual layout there are no others.
_FIELD_1, _FIELD_2 = 0x0A, 0x12
_MAX_LENGTH_BYTES = 4


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
    for place in range(_MAX_LENGTH_BYTES):
        byte = data[position + place]
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return length, position + place + 1
    raise ValueError("not a length of the usual layout")
