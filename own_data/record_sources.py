"""Sources of features in SequenceExamples: TFRecord files with any names, and MediaPipe's files.

Each feature list is a feature of its name. A frame of it is a list of floats or one bytes value,
which holds uint8 numbers unless `bytes_dtype` says otherwise. Feature lists of integers, such as
time stamps, are no features. The integers or strings in the context feature `labels`, if any, are
the labels.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.train import Feature, FeatureList

import files
import records
from own_data.clips import Clip, FeatureSource, SourceOptions, reading
from readers import stored_float_type
from utils import InputError

_LABELS = "labels"


class _RecordSource(FeatureSource):
    """Base of the sources of SequenceExamples."""

    _own_options: tuple[str, ...] = ("bytes_dtype",)

    def __init__(self, paths: Sequence[str], options: SourceOptions):
        super().__init__(paths, options)
        self._checked: set[str] = set()

    def _clip(self, video_id, content, origin):
        """Returns the clip of a parsed record."""
        context, lists = content
        if not lists:
            raise InputError(
                f"{origin} has no feature lists, so it is no SequenceExample with frames. It has: "
                f"{records.describe_features(context)}."
            )
        # Sorted, because the order of the features differs between records.
        stored = sorted(name for name in lists if not _holds_integers(lists[name]))
        selected = self._options.select(stored, origin)
        features = {name: self._frames(lists[old], old, origin) for name, old in selected.items()}
        return Clip(video_id, features, origin, _labels(context))

    def _frames(self, feature_list, name, origin):
        """Returns `[T, D]`, or an object array `[T]` if frames differ in size."""
        frames = records.frame_bytes(feature_list)
        if frames is not None:
            return self._numbers(frames, name, origin)
        frames = records.frame_floats(feature_list)
        if frames is not None:
            return frames
        return np.empty(len(FeatureList.FromString(feature_list).feature), object)

    def _numbers(self, frames, name, origin):
        """Returns the numbers in frames of bytes, uint8 `[T, B]`."""
        dtype = self._options.bytes_dtype
        if dtype is None and name not in self._checked:
            self._checked.add(name)
            if float_type := stored_float_type(frames):
                raise InputError(
                    f"{origin}: the bytes of {name} look like {float_type} numbers. Give "
                    f"--bytes_dtype={float_type}, or --bytes_dtype=uint8 if each byte is a number."
                )
        numbers = np.dtype(dtype or "uint8").newbyteorder("<")
        if frames.shape[1] % numbers.itemsize:
            raise InputError(
                f"{origin}: frames of {name} have {frames.shape[1]} bytes, which are no {dtype} "
                "numbers. Correct --bytes_dtype."
            )
        return frames.view(numbers)


class TFRecordFiles(_RecordSource):
    """TFRecord files of SequenceExamples, such as AudioSet's, which may be compressed.

    The id is a string in the context: `id` or `video_id`, or the feature that `id_name` names.
    """

    _own_options = ("bytes_dtype", "id_name")

    def _list_file(self, path):
        for video_id, _, origin in self._records(path):
            yield video_id, origin

    def _read_file(self, path, wanted):
        for video_id, content, origin in self._records(path):
            if video_id in wanted:
                yield self._clip(video_id, content, origin)

    def _records(self, path):
        """Yields `(video_id, content, origin)` of each record."""
        with records.TFRecordFile(path, _NoDamage()) as file:
            while (found := file.read()) is not None:
                location, payload = found
                content = _parse(payload, str(location))
                yield self._video_id(content[0], location), content, str(location)

    def _video_id(self, context, location):
        names = (self._options.id_name,) if self._options.id_name else records.ID_NAMES
        video_id = records.video_id(context, names)
        if video_id is not None:
            return video_id
        raise InputError(
            f"{location} has no {' or '.join(names)} that holds exactly one string. It has: "
            f"{records.describe_features(context)}. Name the feature of the id with --id_name."
        )


class MessageFiles(_RecordSource):
    """Files of one serialized SequenceExample each, without the frame of a TFRecord file.

    MediaPipe writes such files; its features are `RGB/feature/floats` and `AUDIO/feature/floats`.
    The name of the file is the id: `ID.pb`.
    """

    def _list_file(self, path):
        yield os.path.splitext(os.path.basename(path))[0], path

    def _read_file(self, path, wanted):
        for video_id, _ in self._list_file(path):
            if video_id in wanted:
                with (
                    reading(path, "a serialized SequenceExample"),
                    files.open_binary(path) as file,
                ):
                    content = _parse(file.read(), path)
                yield self._clip(video_id, content, path)


class _NoDamage(records.CorruptRecordLog):
    """Log that accepts no damaged record."""

    def add(self, location, reason, remedy=""):
        raise InputError(f"{location}: {reason}. {remedy}".rstrip())


def _parse(payload, origin):
    """Returns the features and feature lists of a record, serialized."""
    try:
        return records.parse_record(payload)
    except DecodeError as error:
        raise InputError(f"{origin} is no SequenceExample: {error}.") from error


def _holds_integers(feature_list):
    frames = FeatureList.FromString(feature_list).feature
    return bool(frames) and frames[0].WhichOneof("kind") == "int64_list"


def _labels(context: Mapping[str, records.Serialized]) -> list | None:
    """Returns the labels in a context, None without any."""
    if _LABELS not in context:
        return None
    feature = Feature.FromString(context[_LABELS])
    names = [name.decode("utf-8", "backslashreplace") for name in feature.bytes_list.value]
    return names or list(feature.int64_list.value)
