"""Reads YouTube-8M records into batches.

Frames stay bytes or floats, as stored; models dequantize and normalize them. The order of the
videos depends only on the files, the seed and the epoch, never on the timing of threads, so a run
can resume where it stopped.
"""

import collections
import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

import files
import records
from quantization import DTYPES, FrameFormat, FrameStorage
from segments.ratings import Ratings, features_in
from utils import InputError, comma_separated, one_ahead

# Records that show whether the data fit the settings at all, and videos of which one must have a
# label.
_FIRST_RECORDS = 16
_MAX_UNLABELED = 1000
# Bytes are taken for floats if nearly all values that are not 0 are within such bounds.
_PLAUSIBLE_FLOATS = {"float16": (2**-14, 2**8), "float32": (1e-8, 1e8), "float64": (1e-8, 1e8)}
_PLAUSIBLE_SHARE, _BYTE_RATIO = 0.99, 1.5
_MIN_FLOATS, _MIN_FLOAT_BYTES = 64, 16
_NO_LABELS = np.zeros(0, np.int64)
# Bytes of a serialized Feature or FeatureList without values, at most.
_EMPTY_BYTES = 2
# Remedies for data of which all records are like this.
_TWO_KINDS = "If the pattern matches records of two kinds, leave out the files of one kind."
_OTHER_SIZES = "Use data that fit the model, or train with other --feature_sizes."
_ONE_STRING = "Store each frame as one string of equal size, or as a list of floats."
# Sizes of the numbers in frames, in bytes. Float64 is recognized, but not read.
_FLOAT_TYPES = {2: "float16", 4: "float32", 8: "float64"}
# Files read in turn, one video from each, so that neighbors in a file do not stay neighbors.
_OPEN_FILES = 8
# Further files, opened before their turn: on a remote file system, opening takes long.
_FILES_AHEAD = 4
# A file is read ahead in portions of at most this many records and about this many bytes. Portions
# of skipped records are shorter: those that turn out to be needed are read one by one.
_PORTION_RECORDS = 256
_PORTION_LOCATIONS = 64
_PORTION_BYTES = 2 << 20
# Records that TensorFlow parses in one call.
_PARSED_TOGETHER = 256
# TensorFlow uses arrays at addresses with this alignment without copying them.
_ALIGNMENT = 64
# Parameters of glibc's mallopt, with the highest values that its own adjustment reaches.
_M_MMAP_THRESHOLD = (-3, 32 << 20)
_M_TRIM_THRESHOLD = (-1, 64 << 20)


class Batch(NamedTuple):
    """Videos of one batch.

    Attributes:
        video_ids: B ids.
        inputs: inputs of the model. Frame level: a dict of `frames`, `[B, T, D]`, uint8, float16
            or float32, and `num_frames`, int32 `[B]`. Video level: float32 `[B, D]`.
        labels: float32 `[B, C]`, 1 for each label of the video; `[B, 0]` without `with_labels`.
        pair_weights: weight of each pair of video and class in the loss, float32 `[B, C]`; None
            if the reader reads no weights.
        ratings: ratings of the segments of each video, None for a video without; None if the
            reader reads no ratings.
    """

    video_ids: list[str]
    inputs: dict[str, np.ndarray] | np.ndarray
    labels: np.ndarray
    pair_weights: np.ndarray | None = None
    ratings: list[Ratings | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """One parsed record.

    Attributes:
        video_id: id of the video.
        labels: class numbers, int64 `[n]`.
        features: one array per feature, a view into the record where possible. Frame level:
            `[T, size]`, uint8, float16 or float32. Video level: float32 `[size]`.
        label_weights: weight of each label, float32 `[n]`; None without `label_weights`.
    """

    video_id: str
    labels: np.ndarray
    features: list[np.ndarray]
    label_weights: np.ndarray | None = None


class CorruptVideoError(Exception):
    """Raised for a record that matches its checksum but holds no usable video.

    Args:
        reason: the fault.
        remedy: sentence that says how to use the record nevertheless, if there is a way.
        remedy_for_one: sentence that says what to do if some records of the data are like this.
        remedy_for_all: sentence that says what to do if all are.
    """

    def __init__(
        self, reason: str, *, remedy: str = "", remedy_for_one: str = "", remedy_for_all: str = ""
    ):
        super().__init__(reason)
        self.remedy = remedy
        self.remedy_for_one = remedy_for_one
        self.remedy_for_all = remedy_for_all


class RecordReader:
    """Base of the two readers: reads files in order and makes batches of their videos.

    Args:
        paths: TFRecord files, for example from `files.expand_patterns`.
        feature_names: features to read, in this order.
        feature_sizes: sizes of the features, in the same order.
        num_classes: number of classes; labels must be 0 to num_classes - 1.
        max_frames: frames used of each video, at most (frame level only).
        num_readers: threads that read, and parse frames; by default `default_num_readers()`.
        skip_corrupt_records: corrupt records to skip before giving up.
        missing_features: `error`, or `zeros` to take zeros for a feature that a video lacks.
        trim_features: whether to cut the features of a video to the shortest if their numbers of
            frames differ (frame level only).
        with_labels: whether to read labels; prediction needs none.
        label_weights: name of the context feature with a weight for each label; None for no
            weights.

    Attributes:
        corrupt_records: log of the corrupt records skipped so far.
        bytes_read: bytes of the files read so far, for progress.
        has_pair_weights: whether batches have `pair_weights`.
        longest_example: largest number of frames of an example of a batch (frame level only).
    """

    # What an example of a batch is, for messages.
    example = "video"
    # Whether each record is one example of every epoch, so that it need not be read to skip it.
    has_one_example_per_record = True
    # Whether the ratings of segments are read.
    reads_ratings = False
    # Whether threads parse the records that they read, instead of `videos`.
    parses_ahead = True

    def __init__(
        self,
        paths: Sequence[str],
        *,
        feature_names: Sequence[str],
        feature_sizes: Sequence[int],
        num_classes: int,
        max_frames: int = 300,
        num_readers: int | None = None,
        skip_corrupt_records: int = 0,
        missing_features: str = "error",
        trim_features: bool = False,
        with_labels: bool = True,
        label_weights: str | None = None,
    ):
        if len(feature_names) != len(feature_sizes):
            raise InputError(
                "every feature needs a name and a size. Received the names "
                f"{comma_separated(feature_names)} and the sizes {comma_separated(feature_sizes)}."
            )
        self.paths = list(paths)
        self.feature_names = tuple(feature_names)
        self.feature_sizes = tuple(feature_sizes)
        self.num_classes = num_classes
        self.max_frames = max_frames
        self.num_readers = num_readers or default_num_readers()
        self.missing_features = missing_features
        self.trim_features = trim_features
        self.with_labels = with_labels
        self.label_weights = label_weights
        self.has_pair_weights = label_weights is not None
        self.longest_example = max_frames
        self.corrupt_records = records.CorruptRecordLog(skip_corrupt_records)
        self.bytes_read = 0
        self._min_videos = 1
        self._failure: Exception | None = None
        # Shared by the readers of single files.
        self._warnings: set[str] = set()
        self._first = _FirstRecords(self.paths, self._parse_payload, self.corrupt_records)

    @property
    def total_bytes(self) -> int:
        """Total size of the files."""
        with concurrent.futures.ThreadPoolExecutor(_OPEN_FILES) as pool:
            return sum(pool.map(files.file_size, self.paths))

    @property
    def _num_label_columns(self):
        return self.num_classes if self.with_labels else 0

    def for_file(self, path: str) -> "RecordReader":
        """Returns a reader of one file, which may be empty; both share `corrupt_records`."""
        reader = copy.copy(self)
        reader.paths, reader.bytes_read, reader._min_videos = [path], 0, 0
        return reader

    def check_first_records(self) -> None:
        """Rejects training data that cannot be right; call it before long work.

        Raises:
            InputError: if `check_labels` rejects them, or frames are floats stored as bytes.
        """
        self.check_labels()
        with contextlib.closing(self._first.read(_FIRST_RECORDS)) as first:
            videos = [video for record in first if (video := self.parse(*record)) is not None]
        self._check_values(videos)

    def check_labels(self) -> None:
        """Rejects data without labels.

        Raises:
            InputError: if none of the first 1000 videos, taken evenly from the first files, has a
                label, or a record before the first label is corrupt and may not be skipped.
        """
        self._require_one(
            lambda video: video.labels.size > 0,
            "has a label. Training and evaluation need the class numbers of each video, integers "
            "with the name 'labels'.",
        )

    def _require_one(self, is_suitable, need):
        """Rejects data of which no video of the first 1000 is suitable; `need` ends the message."""
        count, where, contents = 0, "", ""
        with contextlib.closing(self._first.read(_MAX_UNLABELED)) as first:
            for location, payload in first:
                video = self._parse_or_skip(location, payload)
                if video is None:
                    continue
                if is_suitable(video):
                    return
                if not count:
                    where = str(location)
                    contents = records.describe_features(records.parse_record(payload)[0])
                count += 1
        if count:
            raise InputError(
                f"none of the first {count} videos {need} The first video, {where}, has: "
                f"{contents}."
            )

    def batches(
        self,
        batch_size: int,
        *,
        num_epochs: int | None = 1,
        shuffle: bool = False,
        shuffle_buffer_size: int = 1024,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        first_epoch: int = 0,
        skip_batches: int = 0,
        drop_remainder: bool = False,
        pad_to_max_frames: bool = False,
        mix_videos: float = 0.0,
    ) -> Iterator[Batch]:
        """Yields batches; threads already read the next ones meanwhile.

        Batches may span epochs, so only the last one can have fewer than `batch_size` videos.

        Args:
            batch_size: videos per batch, B.
            num_epochs: how often to read every video; None for no end.
            shuffle: whether to shuffle the files, and the videos in a buffer, differently in each
                epoch.
            shuffle_buffer_size: videos in the buffer.
            seed: seed of the shuffling.
            shard: `(index, count)`, to read every count-th file from number index. Each worker
                reads its own shard.
            first_epoch: number of the first epoch, on which its order depends.
            skip_batches: batches to skip quickly at the beginning, because the interrupted run used
                them. Corrupt records among them go unnoticed, and each shifts the order by one
                video.
            drop_remainder: whether to drop a last batch that is not full. An epoch must then have
                at least `batch_size` videos.
            pad_to_max_frames: whether T is always `longest_example`, instead of the largest number
                of frames in the batch.
            mix_videos: probability that a video is mixed with another one of its batch; see
                `mixed_videos`.

        Raises:
            InputError: if more records are corrupt than may be skipped, a record does not fit the
                settings, or there are too few videos.
        """
        epochs = itertools.islice(itertools.count(first_epoch), num_epochs)
        order = _Order(
            self._shard(*shard),
            epochs,
            seed if shuffle else None,
            shuffle_buffer_size,
            min_examples=batch_size if drop_remainder else self._min_videos,
        )
        with (
            _threads(self.num_readers) as threads,
            contextlib.closing(order.examples(self, threads, skip_batches * batch_size)) as videos,
        ):
            groups = (
                group
                for group in _groups(videos, batch_size)
                if len(group) == batch_size or not drop_remainder
            )
            if mix_videos:
                key = f"mix {seed} {first_epoch} {shard[0]}"
                groups = (
                    mixed_videos(group, mix_videos, random.Random(f"{key} {number}"))
                    for number, group in enumerate(groups, skip_batches)
                )
            yield from one_ahead(self.assemble(group, pad_to_max_frames) for group in groups)

    def file_batches(
        self,
        batch_size: int,
        numbers: Iterable[int],
        before_opening: Callable[[int], None],
    ) -> Iterator[Batch | None]:
        """Yields the batches of one file after another; threads already read the next ones.

        A batch holds videos of one file. None follows the batches of each file, which may be empty.

        Args:
            batch_size: videos per batch, B.
            numbers: numbers of the files in `paths`, in the order to read them.
            before_opening: function that a thread calls with the number of each file before it
                opens the file.

        Raises:
            InputError: if more records are corrupt than may be skipped, or a record does not fit
                the settings.
        """
        with (
            _threads(self.num_readers) as threads,
            contextlib.closing(
                _opened_ahead(
                    _FileAhead(
                        self.paths[number],
                        self,
                        threads,
                        before_opening=functools.partial(before_opening, number),
                    )
                    for number in numbers
                )
            ) as opened,
        ):
            yield from one_ahead(self._batches_of_files(opened, batch_size))

    def _batches_of_files(self, opened, batch_size):
        for file in opened:
            with contextlib.closing(file):
                yield from map(self.assemble, _groups(self.videos(file), batch_size))
            yield None

    def dataset(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        """Returns a `tf.data.Dataset` of `(inputs, labels)` for `keras.Model.fit`.

        With `has_pair_weights`, it is of `(inputs, labels, pair_weights)`; `fit` passes the weights
        to the loss.

        Each iteration over the dataset continues the epoch numbers of the previous one, so
        `shuffle` gives a different order in each epoch of `fit`.

        Args:
            batch_size: videos per batch, B.
            **options: options of `batches`.
        """
        batch_dim = batch_size if options.get("drop_remainder") else None
        num_frames = self.longest_example if options.get("pad_to_max_frames") else None
        targets = ("labels", "pair_weights") if self.has_pair_weights else ("labels",)
        signature = (
            self._input_signature(batch_dim, num_frames),
            *[tf.TensorSpec([batch_dim, self._num_label_columns], tf.float32)] * len(targets),
        )

        first_epochs = itertools.count(step=options.get("num_epochs", 1) or 0)

        def generate():
            _keep_freed_memory()
            try:
                first_epoch = next(first_epochs)
                for batch in self.batches(batch_size, first_epoch=first_epoch, **options):
                    yield (batch.inputs, *(getattr(batch, name) for name in targets))
            except (InputError, OSError) as error:
                self._failure = error
                raise

        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).prefetch(1)
        # There is nothing to tune, and the tuner's thread delays the end of every iteration.
        settings = tf.data.Options()
        settings.autotune.enabled = False
        return dataset.with_options(settings)

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Replaces TensorFlow's error for a failed `dataset` with the error that caused it."""
        try:
            yield
        except tf.errors.OpError as error:
            if self._failure is not None and not isinstance(error, tf.errors.OutOfRangeError):
                raise self._failure from None
            raise

    def read_file(self, path: str) -> Iterator[Video]:
        """Yields the videos of one file in order, to inspect the data."""
        with records.TFRecordFile(path, self.corrupt_records) as file:
            while (record := file.read()) is not None:
                if (video := self.parse(*record)) is not None:
                    yield video

    def parse(self, location: records.RecordLocation, payload: bytes) -> Video | None:
        """Parses one record.

        Args:
            location: location of the record, for messages.
            payload: serialized Example or SequenceExample.

        Returns:
            The video, or None if the record is corrupt and may be skipped.

        Raises:
            InputError: if the record is corrupt and may not be skipped, or does not fit the
                settings.
        """
        video = self._parse_or_skip(location, payload)
        if video is not None and self.with_labels and not video.labels.size:
            self._warn_of_no_label(video, location, payload)
        return video

    def _warn_of_no_label(self, video, location, payload):
        self._warn_once(
            "video %r (%s) has no label: it counts as a negative of every class. The record "
            "has: %s. Further videos without labels are not reported.",
            video.video_id,
            location,
            records.describe_features(records.parse_record(payload)[0]),
        )

    def examples(self, entries: Iterable, key: str) -> Iterable:
        """Returns the examples of an epoch, in order.

        Args:
            entries: entries as in `videos`, in the order of the files.
            key: seed of random choices; it differs between epochs.
        """
        del key
        return entries

    def videos(self, entries: Iterable) -> Iterator[Video]:
        """Yields the videos of entries, in order, without corrupt records.

        Args:
            entries: videos, records as pairs of location and payload, or locations of records that
                were skipped at first.
        """
        for entry in entries:
            if isinstance(entry, Video):
                yield entry
            elif (record := self._record(entry)) and (video := self.parse(*record)) is not None:
                yield video

    def _record(self, entry):
        """Returns a record; reads it if the entry is a location. Returns None if it is corrupt."""
        if not isinstance(entry, records.RecordLocation):
            return entry
        with records.TFRecordFile(entry.path, self.corrupt_records) as file:
            file.seek(entry)
            record = file.read()
        return record if record is not None and record[0] == entry else None

    def fault(self, location: records.RecordLocation, payload: bytes) -> CorruptVideoError | None:
        """Returns why a record counts as corrupt, or None if it is usable.

        Raises:
            InputError: if a label is out of range, which is never skipped.
        """
        try:
            self._parse_payload(location, payload)
        except CorruptVideoError as error:
            return error
        return None

    def _parse_or_skip(self, location, payload):
        try:
            return self._parse_payload(location, payload)
        except CorruptVideoError as error:
            if self._first.num_unusable:
                message = (
                    f"{location}: {error}.",
                    f"Of the first {self._first.num_unusable} records, none is usable.",
                    error.remedy_for_all,
                    error.remedy,
                )
                raise InputError(" ".join(filter(None, message))) from error
            self.corrupt_records.add(location, str(error), error.remedy or error.remedy_for_one)
        return None

    def _parse_payload(self, location, payload):
        try:
            context, feature_lists = records.parse_record(payload)
            video = self._parse(location, context, feature_lists)
            if self.label_weights is None:
                return video
            return dataclasses.replace(video, label_weights=self._label_weights(video, context))
        except DecodeError as error:
            raise CorruptVideoError(
                f"it is not a YouTube-8M record: {error}",
                remedy_for_all="Frame-level data are SequenceExamples, video-level data Examples.",
            ) from error

    def _shard(self, index, count):
        if len(self.paths) < count:
            raise InputError(
                f"{count} workers need at least as many files. Received: {len(self.paths)}"
            )
        return self.paths[index::count]

    def _parse(self, location, context, feature_lists):
        raise NotImplementedError

    def _inputs(self, videos, pad_to_max_frames):
        raise NotImplementedError

    def _input_signature(self, batch_dim, num_frames):
        raise NotImplementedError

    def _video_id(self, context):
        video_id = records.video_id(context)
        if video_id is not None:
            return video_id
        raise CorruptVideoError(
            "it has no 'id' or 'video_id' that holds exactly one string. It has: "
            f"{records.describe_features(context)}",
            remedy_for_all="Store the id of each video as one string.",
        )

    def _labels(self, location, video_id, context):
        if not self.with_labels:
            return _NO_LABELS
        feature = tf.train.Feature.FromString(context.get("labels", b""))
        if feature.WhichOneof("kind") not in (None, "int64_list"):
            raise CorruptVideoError(
                f"the labels of video {video_id!r} are not integers: "
                f"{records.describe_features({'labels': context['labels']})}",
                remedy_for_all="Store the class numbers of each video as integers.",
            )
        labels = feature.int64_list.value
        if labels and not 0 <= min(labels) <= max(labels) < self.num_classes:
            wrong = next(label for label in labels if not 0 <= label < self.num_classes)
            raise InputError(
                f"video {video_id!r} ({location}) has label {wrong}, but labels must be 0 to "
                f"{self.num_classes - 1}. Use data that fit the model, or train with another "
                "--num_classes."
            )
        ratings = features_in(context)
        if ratings and not self.reads_ratings:
            self._warn_once(
                "the ratings of segments are not used, only the labels of whole videos. Not used: "
                "%s",
                comma_separated(ratings),
            )
        return np.array(labels, np.int64)

    def _label_weights(self, video, context):
        name = self.label_weights
        if name not in context:
            raise CorruptVideoError(
                f"video {video.video_id!r} has no feature {name!r} with the weights of its labels. "
                f"It has: {records.describe_features(context)}",
                remedy_for_all="Leave out --label_weights, or name the feature with the weights.",
            )
        weights = records.float_values(context[name])
        if len(context[name]) <= _EMPTY_BYTES:
            weights = np.zeros(0, np.float32)
        if weights is None or len(weights) != len(video.labels):
            raise CorruptVideoError(
                f"feature {name!r} of video {video.video_id!r} must have a float for each of its "
                f"{len(video.labels)} labels. It is: "
                f"{records.describe_features({name: context[name]})}"
            )
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise CorruptVideoError(
                f"the weights {name!r} of video {video.video_id!r} must be finite and at least 0. "
                f"Received: {comma_separated(weights)}"
            )
        return weights

    def _warn_once(self, text, *values):
        if text not in self._warnings:
            self._warnings.add(text)
            logging.warning(text, *values)

    def _missing(self, location, name, contents, reason):
        """Accepts a missing feature if zeros are wanted.

        Args:
            location: location of the record.
            name: name of the feature.
            contents: the features of the record, serialized, by name.
            reason: the fault.

        Raises:
            CorruptVideoError: otherwise.
        """
        has_others = any(
            len(contents.get(other, b"")) > _EMPTY_BYTES
            for other in self.feature_names
            if other != name
        )
        if self.missing_features == "error" or not has_others:
            raise CorruptVideoError(
                reason,
                remedy="--missing_features=zeros takes zeros instead." if has_others else "",
                remedy_for_all="Use data that fit the model, or train with other --feature_names "
                "and --feature_sizes.",
            )
        self._warn_once(
            "zeros are used for feature %r of %s, which lacks it. Further missing features are not "
            "reported.",
            name,
            location,
        )

    def _check_values(self, videos):
        """Rejects values of videos that cannot be right."""

    def assemble(self, videos: Sequence[Video], pad_to_max_frames: bool = False) -> Batch:
        """Returns a batch of videos.

        Args:
            videos: parsed videos.
            pad_to_max_frames: whether T is `longest_example`, instead of the largest number of
                frames.
        """
        labels = _aligned_empty((len(videos), self._num_label_columns), np.float32)
        labels[...] = 0.0
        counts = [len(video.labels) for video in videos]
        rows = np.repeat(np.arange(len(videos)), counts)
        labels[rows, np.concatenate([video.labels for video in videos])] = 1.0
        ids = [video.video_id for video in videos]
        weights = self._pair_weights(videos) if self.has_pair_weights else None
        return Batch(ids, self._inputs(videos, pad_to_max_frames), labels, weights)

    def _pair_weights(self, videos):
        weights = _aligned_empty((len(videos), self._num_label_columns), np.float32)
        for row, video in zip(weights, videos, strict=True):
            self._weigh_pairs(row, video)
        return weights

    def _weigh_pairs(self, weights, video):
        """Sets the weights of the classes, `[C]`, for a video."""
        weights[...] = 1.0
        weights[video.labels] = 0.0
        # Of several weights of a label, the largest counts.
        np.maximum.at(weights, video.labels, video.label_weights)


class YT8MFrameFeatureReader(RecordReader):
    """Reads frame-level records: SequenceExamples with one vector per frame and feature.

    Args:
        paths: TFRecord files.
        storages: how the frames of each feature are stored; None for YouTube-8M's bytes.
        **options: as for `RecordReader`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        storages: Sequence[FrameStorage] | None = None,
        **options: Any,
    ):
        super().__init__(paths, **options)
        self.storages = storages or [FrameStorage()] * len(self.feature_names)
        self._dtype = np.dtype(FrameFormat.of_features(self.storages, self.feature_sizes).dtype)

    def _parse(self, location, context, feature_lists):
        if not feature_lists:
            raise CorruptVideoError(
                "it has no frames, which the model takes. It has: "
                f"{records.describe_features(context)}",
                remedy_for_one=_TWO_KINDS,
                remedy_for_all="Choose frame-level data (SequenceExamples) or a video-level model.",
            )
        video_id = self._video_id(context)
        features = [
            self._frames(location, video_id, name, size, storage, feature_lists)
            for name, size, storage in self._features()
        ]
        counts = {
            name: len(frames)
            for name, frames in zip(self.feature_names, features, strict=True)
            if frames is not None
        }
        if not counts:
            raise CorruptVideoError(f"video {video_id!r} has no frame of any feature")
        num_frames = min(counts.values())
        if not self.trim_features and num_frames != max(counts.values()):
            numbers = comma_separated(f"{count} of {name!r}" for name, count in counts.items())
            raise CorruptVideoError(
                f"video {video_id!r} has unequal numbers of frames: {numbers}",
                remedy="--trim_features cuts the features of a video to the shortest.",
            )
        num_frames = min(num_frames, self.max_frames)
        used = [
            np.broadcast_to(storage.zero, (num_frames, size))
            if frames is None
            else frames[:num_frames]
            for frames, (_, size, storage) in zip(features, self._features(), strict=True)
        ]
        return Video(video_id, self._labels(location, video_id, context), used)

    def _features(self):
        """Returns triples of name, size and storage."""
        return zip(self.feature_names, self.feature_sizes, self.storages, strict=True)

    def _frames(self, location, video_id, name, size, storage, feature_lists):
        """Returns the frames of a feature; None if zeros are to be used."""
        if name not in feature_lists:
            found = records.describe_feature_lists(feature_lists)
            reason = f"it has no feature {name!r}. It has: {found}"
            return self._missing(location, name, feature_lists, reason)
        content = feature_lists[name]
        is_list = storage.dtype == "float_list"
        frames = records.frame_floats(content) if is_list else records.frame_bytes(content)
        if frames is None:
            found = records.describe_feature_lists({name: content})
            kind = "lists of floats" if is_list else "bytes"
            raise CorruptVideoError(
                f"video {video_id!r} has frames of {name!r} that differ in size or are not {kind}: "
                f"{found}",
                remedy_for_all=self._other_storage(name, content),
            )
        if not len(frames):
            reason = f"video {video_id!r} has no frame of {name!r}"
            return self._missing(location, name, feature_lists, reason)
        width = size if is_list else size * storage.type.itemsize
        if frames.shape[1] != width:
            raise self._wrong_frame_size(name, size, storage, frames)
        if storage.quantization is not None:
            return frames
        frames = frames.view(storage.type)
        if not np.isfinite(frames).all():
            raise CorruptVideoError(f"feature {name!r} of video {video_id!r} has NaN or infinity")
        return frames

    def _other_storage(self, name, content):
        """Returns a remedy for frames that are not stored in the expected way."""
        if records.frame_floats(content) is not None:
            return self._set_dtype(name, "float_list")
        if records.frame_bytes(content) is None:
            return _ONE_STRING
        (size,) = (size for other, size, _ in self._features() if other == name)
        itemsize = records.frame_bytes(content).shape[1] / size
        return self._set_dtype(name, _FLOAT_TYPES.get(itemsize, "uint8"))

    def _set_dtype(self, name, dtype):
        """Returns the sentence that names the flag for another dtype of a feature."""
        if dtype not in DTYPES:
            return "Store the values of frames as float32, float16 or uint8."
        dtypes = [
            dtype if other == name else storage.dtype for other, _, storage in self._features()
        ]
        return f"Train with --feature_dtypes={','.join(dtypes)}, which reads such frames."

    def _wrong_frame_size(self, name, size, storage, frames):
        """Returns the error for frames, bytes or floats `[T, width]`, of an unexpected width."""
        found = frames.shape[1]
        reason = f"feature {name!r} has size {found}, but the model takes size {size}"
        if storage.dtype in ("float16", "float32"):
            bytes_taken = size * storage.type.itemsize
            reason = (
                f"feature {name!r} has {found} bytes, but the model takes {size} {storage.dtype} "
                f"values, which are {bytes_taken} bytes"
            )
        dtype = "uint8" if found == size else _FLOAT_TYPES.get(found / size)
        if dtype is None or storage.dtype == "float_list":
            return CorruptVideoError(reason, remedy_for_one=_TWO_KINDS, remedy_for_all=_OTHER_SIZES)
        if dtype != "uint8" and stored_float_type(frames) == dtype:
            return CorruptVideoError(
                f"{reason}: its frames are {size} {dtype} values",
                remedy_for_all=self._set_dtype(name, dtype),
            )
        return CorruptVideoError(
            f"{reason}: that is the size of {size} {dtype} values",
            remedy_for_all=f"{self._set_dtype(name, dtype)} {_OTHER_SIZES}",
        )

    def _check_values(self, videos):
        for index, (name, size, storage) in enumerate(self._features()):
            if storage.quantization is None:
                continue
            frames = [video.features[index] for video in videos]
            float_type = stored_float_type(np.concatenate(frames)) if frames else None
            if float_type:
                values = size // np.dtype(float_type).itemsize
                raise InputError(
                    f"feature {name!r} has size {size}, but in the first {len(videos)} videos its "
                    f"bytes are those of {values} {float_type} values, not one byte per value. "
                    f"{self._set_dtype(name, float_type)} Set its size in --feature_sizes to "
                    f"{values}."
                )

    def _inputs(self, videos, pad_to_max_frames):
        num_frames = np.array([len(video.features[0]) for video in videos], np.int32)
        longest = self.longest_example if pad_to_max_frames else num_frames.max()
        frames = _aligned_empty((len(videos), longest, sum(self.feature_sizes)), self._dtype)
        for row, video in enumerate(videos):
            column = 0
            for feature, storage in zip(video.features, self.storages, strict=True):
                if feature.dtype != self._dtype:
                    feature = storage.to_float(feature)
                frames[row, : len(feature), column : column + feature.shape[1]] = feature
                column += feature.shape[1]
            frames[row, num_frames[row] :] = 0
        return {"frames": frames, "num_frames": num_frames}

    def _input_signature(self, batch_dim, num_frames):
        return {
            "frames": tf.TensorSpec([batch_dim, num_frames, sum(self.feature_sizes)], self._dtype),
            "num_frames": tf.TensorSpec([batch_dim], tf.int32),
        }


class YT8MAggregatedFeatureReader(RecordReader):
    """Reads video-level records: Examples with one float vector per feature."""

    parses_ahead = False

    def videos(self, entries: Iterable) -> Iterator[Video]:
        """Yields the videos of entries; parses many at a time. See `RecordReader.videos`."""
        found = filter(None, map(self._record, entries))
        for some in _groups_before_errors(found, _PARSED_TOGETHER):
            videos = self._parse_together([payload for _, payload in some])
            # Faults are found, and reported, record by record.
            yield from super().videos(some) if videos is None else videos

    def _parse_together(self, payloads):
        """Parses serialized Examples with TensorFlow.

        Returns:
            The videos; or None if labels have weights, or one of the records has a fault, no label,
            or something to warn of.
        """
        if self.label_weights is not None:
            return None
        try:
            first, _ = records.parse_record(payloads[0])
            if not all(map(records.is_example, payloads)) or features_in(first):
                return None
            sizes = tuple(zip(self.feature_names, self.feature_sizes, strict=True))
            parsed = _example_parser(sizes, self.with_labels)(tf.constant(payloads))
        except (DecodeError, UnicodeDecodeError, tf.errors.InvalidArgumentError):
            return None  # TensorFlow's message quotes the record, which may not be UTF-8.
        lists, vectors = tf.nest.map_structure(lambda tensor: tensor.numpy(), parsed)
        ids = self._ids(lists[: len(records.ID_NAMES)])
        if ids is None or not all(np.isfinite(values).all() for values in vectors):
            return None
        labels = [_NO_LABELS] * len(payloads)
        if self.with_labels and (labels := self._split_labels(*lists[2])) is None:
            return None
        return [
            Video(records.decoded(video_id), own_labels, own_vectors)
            for video_id, own_labels, *own_vectors in zip(ids, labels, *vectors, strict=True)
        ]

    def _ids(self, lists):
        """Returns the id of each video, or None if records differ in the name of the id."""
        for values, starts in lists:
            is_id = np.diff(starts) == 1
            if is_id.all():
                return values
            if is_id.any():
                return None
        return None

    def _split_labels(self, labels, starts):
        """Returns the labels of each video, or None if one has no label or a wrong one."""
        if (np.diff(starts) == 0).any() or labels.min() < 0 or labels.max() >= self.num_classes:
            return None
        return [labels[start:end] for start, end in itertools.pairwise(starts.tolist())]

    def _parse(self, location, context, feature_lists):
        if feature_lists:
            raise CorruptVideoError(
                f"it holds frame-level features ({comma_separated(sorted(feature_lists))}), but "
                "the model takes video-level features",
                remedy_for_one=_TWO_KINDS,
                remedy_for_all="Choose video-level data or a frame-level model.",
            )
        video_id = self._video_id(context)
        features = [
            self._vector(location, video_id, name, size, context)
            for name, size in zip(self.feature_names, self.feature_sizes, strict=True)
        ]
        return Video(video_id, self._labels(location, video_id, context), features)

    def _vector(self, location, video_id, name, size, context):
        if name not in context:
            found = records.describe_features(context)
            reason = f"it has no feature {name!r}. It has: {found}"
            self._missing(location, name, context, reason)
            return np.zeros(size, np.float32)
        if len(context[name]) <= _EMPTY_BYTES:
            reason = f"feature {name!r} of video {video_id!r} has no values"
            self._missing(location, name, context, reason)
            return np.zeros(size, np.float32)
        values = records.float_values(context[name])
        if values is None:
            raise CorruptVideoError(
                f"feature {name!r} of video {video_id!r} does not hold floats: "
                f"{records.describe_features({name: context[name]})}",
                remedy_for_all="Store each video-level feature as floats.",
            )
        if len(values) != size:
            raise CorruptVideoError(
                f"feature {name!r} has size {len(values)}, but the model takes size {size}",
                remedy_for_one=_TWO_KINDS,
                remedy_for_all=_OTHER_SIZES,
            )
        if not np.isfinite(values).all():
            raise CorruptVideoError(f"feature {name!r} of video {video_id!r} has NaN or infinity")
        return values

    def _inputs(self, videos, pad_to_max_frames):
        del pad_to_max_frames
        vectors = _aligned_empty((len(videos), sum(self.feature_sizes)), np.float32)
        np.concatenate(
            [values for video in videos for values in video.features], out=vectors.ravel()
        )
        return vectors

    def _input_signature(self, batch_dim, num_frames):
        del num_frames
        return tf.TensorSpec([batch_dim, sum(self.feature_sizes)], tf.float32)


@functools.lru_cache(maxsize=8)
def _example_parser(sizes, with_labels):
    """Returns a function that parses serialized Examples `[B]`, traced once for all readers.

    It returns values and row starts of both names of ids and of the labels, and a list of vectors
    `[B, size]`.

    Args:
        sizes: pairs of the name and the size of a feature.
        with_labels: whether to parse labels.
    """
    lists = [*records.ID_NAMES, *(["labels"] if with_labels else [])]
    features: dict[str, Any] = {
        name: tf.io.RaggedFeature(tf.string if name in records.ID_NAMES else tf.int64)
        for name in lists
    }
    for name, size in sizes:
        features[name] = tf.io.FixedLenFeature([size], tf.float32)

    def parse(payloads):
        with tf.device("CPU"):
            parsed = tf.io.parse_example(payloads, features)
        return (
            [(parsed[name].values, parsed[name].row_splits) for name in lists],
            [parsed[name] for name, _ in sizes],
        )

    # A concrete function, because TensorFlow warns of tracing when a program makes several.
    function = tf.function(parse, autograph=False)
    return function.get_concrete_function(tf.TensorSpec([None], tf.string))


# --- First records --------------------------------------------------------------------------------


class _FirstRecords:
    """The first records of a data set, which show whether it fits the settings at all."""

    def __init__(self, paths, parse, corrupt_log):
        self._paths = paths
        self._parse = parse
        self._corrupt_log = corrupt_log

    def read(self, count, corrupt_log=None):
        """Yields up to `count` records, taken evenly from the first files."""
        paths = self._paths[:count]
        for path in paths:
            with records.TFRecordFile(path, corrupt_log or self._corrupt_log) as file:
                for _ in range(math.ceil(count / len(paths))):
                    if (record := file.read()) is None:
                        break
                    yield record

    @functools.cached_property
    def num_unusable(self):
        """Number of the first records if none of them is usable, otherwise 0."""
        count = 0
        with contextlib.suppress(InputError):  # Reading the data reports it.
            for record in self.read(_FIRST_RECORDS, records.IgnoredCorruptRecords()):
                try:
                    self._parse(*record)
                except CorruptVideoError:
                    count += 1
                else:
                    return 0
            return count
        return 0


def stored_float_type(frames: np.ndarray) -> str | None:
    """Returns the float type whose bytes the frames are, or None.

    In quantized features, all bytes are alike. In floats, the highest byte of each value holds the
    exponent, which takes few values, and the lowest byte takes any.

    Args:
        frames: uint8 `[N, D]`.
    """
    size = frames.shape[1]
    for name, (low, high) in _PLAUSIBLE_FLOATS.items():
        dtype = np.dtype(name)
        if size < _MIN_FLOAT_BYTES or size % dtype.itemsize:
            continue
        values = np.ascontiguousarray(frames).view(dtype)
        sizes = np.abs(values[values != 0])
        is_plausible = (sizes > low) & (sizes < high)
        if len(sizes) < _MIN_FLOATS or is_plausible.mean() < _PLAUSIBLE_SHARE:
            continue
        lowest, highest = (
            frames[:, :: dtype.itemsize],
            frames[:, dtype.itemsize - 1 :: dtype.itemsize],
        )
        if len(np.unique(lowest)) > _BYTE_RATIO * len(np.unique(highest)):
            return name
    return None


# --- Threads --------------------------------------------------------------------------------------


def default_num_readers() -> int:
    """Returns the number of processor cores that the process may use, at most 8.

    More threads than cores slow each other down, and more than files in turn have nothing to do.
    """
    return min(len(os.sched_getaffinity(0)), _OPEN_FILES)


class _Threads(NamedTuple):
    """Threads that open files and read their first records, and threads that read the rest."""

    openers: concurrent.futures.Executor
    readers: concurrent.futures.Executor


@contextlib.contextmanager
def _threads(num_readers):
    with (
        concurrent.futures.ThreadPoolExecutor(_OPEN_FILES) as openers,
        concurrent.futures.ThreadPoolExecutor(num_readers) as readers,
    ):
        yield _Threads(openers, readers)


# --- Order of the videos --------------------------------------------------------------------------


class _Order:
    """Order of the examples of some files, epoch after epoch."""

    def __init__(self, paths, epochs, seed, buffer_size, min_examples):
        self._paths = paths
        self._epochs = epochs
        self._seed = seed
        self._buffer_size = buffer_size
        self._min_examples = min_examples

    def examples(self, reader, threads, skip):
        """Yields the examples after the first `skip`."""
        epoch_size = None
        can_skim = reader.has_one_example_per_record
        for epoch in self._epochs:
            if epoch_size is not None and skip >= epoch_size and can_skim:
                skip -= epoch_size
                continue
            stream = _Interleaved(
                self._shuffled_files(epoch), reader, threads, can_skim and skip > 0
            )
            entries = self._shuffled(reader.examples(stream, f"{self._seed} {epoch}"), epoch)
            epoch_size = 0
            for epoch_size, _ in enumerate(itertools.islice(entries, skip), 1):
                stream.skimming = can_skim and epoch_size < skip
            skip -= epoch_size
            for video in reader.videos(entries):
                epoch_size += 1
                yield video
            self._check_epoch_size(epoch_size, reader.example)

    def _check_epoch_size(self, size, example):
        if size < self._min_examples:
            where = f"{len(self._paths)} files, such as {self._paths[0]}"
            if size == 0:
                raise InputError(f"no {example} in {where}")
            raise InputError(
                f"a step takes {self._min_examples} {example}s, but there are only {size} in "
                f"{where}. Choose a smaller --batch_size or --gradient_accumulation"
            )

    def _shuffled_files(self, epoch):
        paths = list(self._paths)
        if self._seed is not None:
            random.Random(f"files {self._seed} {epoch}").shuffle(paths)
        return paths

    def _shuffled(self, entries, epoch):
        """Yields entries at random from a buffer, which the following entries refill."""
        if self._seed is None:
            yield from entries
            return
        draw = random.Random(f"videos {self._seed} {epoch}").randrange
        buffer = []
        for entry in entries:
            if len(buffer) < self._buffer_size:
                buffer.append(entry)
                continue
            index = draw(self._buffer_size)
            buffer[index], entry = entry, buffer[index]
            yield entry
        while buffer:
            index = draw(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            yield buffer.pop()


class _Interleaved:
    """Iterates over the entries of several files, taking one from each open file in turn.

    Entries are those of `RecordReader.videos`; while `skimming` is true, locations of records.
    """

    def __init__(self, paths, reader, threads, skimming):
        self._opened = _opened_ahead(
            _FileAhead(path, reader, threads, is_skimming=lambda: self.skimming) for path in paths
        )
        self.skimming = skimming

    def __iter__(self):
        turns = collections.deque()
        with contextlib.closing(self._opened):
            try:
                turns.extend(itertools.islice(self._opened, _OPEN_FILES))
                while turns:
                    entry = next(turns[0], None)
                    if entry is not None:
                        turns.rotate(-1)
                        yield entry
                        continue
                    turns.popleft().close()
                    if (file := next(self._opened, None)) is not None:
                        turns.appendleft(file)
            finally:
                for file in turns:
                    file.close()


def _opened_ahead(files_ahead):
    """Yields the `_FileAhead`s of an iterator, which the next few have left already."""
    ahead = collections.deque()
    try:
        for file in files_ahead:
            ahead.append(file)
            if len(ahead) > _FILES_AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        for file in ahead:
            file.close()


class _FileAhead:
    """Iterates over the entries of a file, which threads open and read before they are due.

    Entries are those of `RecordReader.videos`. Corrupt records are logged, and errors raised,
    when the iteration comes to them, so they do not depend on the timing of threads.

    Args:
        path: file to read.
        reader: reader whose settings and log of corrupt records to use.
        threads: `_Threads` to open and read it.
        is_skimming: function that returns whether to skip the contents of records.
        before_opening: function to call in a thread before the file is opened.
    """

    def __init__(
        self, path, reader, threads, *, is_skimming=lambda: False, before_opening=lambda: None
    ):
        self._path = path
        self._reader = reader
        self._threads = threads
        self._is_skimming = is_skimming
        self._before_opening = before_opening
        self._corrupt_log = records.PostponedCorruptRecords(reader.corrupt_records)
        self._parser = copy.copy(reader)
        self._parser.corrupt_records = self._corrupt_log
        self._first = threads.openers.submit(self._open)
        self._entries = self._iterate()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def close(self):
        """Closes the file."""
        self._entries.close()
        if not self._first.cancel():
            with contextlib.suppress(Exception):
                file, _ = self._first.result()
                file.close()

    def _open(self):
        """Returns the file and its first portion, which waits for the file system, too."""
        self._before_opening()
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(records.TFRecordFile(self._path, self._corrupt_log))
            portion = self._portion(file)
            opened.pop_all()  # `close` closes the file.
        return file, portion

    def _iterate(self):
        file, portion = self._first.result()
        while True:
            self._reader.bytes_read += file.pop_bytes_read()
            if not portion:
                return
            following = self._threads.readers.submit(self._portion, file)
            try:
                for entry in portion:
                    if callable(entry):
                        entry()
                    else:
                        yield entry
            finally:
                portion = following.result()

    def _portion(self, file):
        """Returns the next entries of a file, or an empty list at its end.

        They include functions that log a corrupt record or raise an error.
        """
        self._corrupt_log.calls = found = []
        try:
            self._read(file, found)
        except Exception as error:
            found.append(functools.partial(_raise, error))
        if not self._reader.parses_ahead:
            return found
        self._corrupt_log.calls = portion = []
        for entry in found:
            self._parse(entry, portion)
        return portion

    def _read(self, file, found):
        """Adds the next records to a list, or their locations while skimming."""
        size = 0
        while size < _PORTION_BYTES and len(found) < _PORTION_RECORDS:
            if self._is_skimming() and not file.is_compressed:
                if len(found) == _PORTION_LOCATIONS or (location := file.skim()) is None:
                    return
                found.append(location)
            else:
                if (record := file.read()) is None:
                    return
                size += len(record[1])
                found.append(record)

    def _parse(self, entry, portion):
        """Adds the video of a record, or what else `_read` has found, to a portion."""
        if not isinstance(entry, tuple):
            portion.append(entry)
            return
        try:
            video = self._parser.parse(*entry)
        except Exception as error:
            video = functools.partial(_raise, error)
        if video is not None:
            portion.append(video)


def _raise(error):
    raise error


def _groups(videos, size):
    """Returns an iterator over lists of `size` videos, of which the last may be shorter."""
    return iter(lambda: list(itertools.islice(videos, size)), [])


def _groups_before_errors(items, size):
    """Yields lists like `_groups`, also of the items before an error, which follows."""
    group = []
    try:
        for item in items:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


# --- Mixing ---------------------------------------------------------------------------------------


def mixed_videos(
    videos: Sequence[Video], probability: float, generator: random.Random
) -> list[Video]:
    """Mixes each video of a batch, with some probability, with another one of the batch.

    A mixed video has the frames 0, 2, 4, ... of the video, then the frames 1, 3, 5, ... of the
    other one (or its only frame), and the labels of both. So it has as many frames as an average of
    both, each half in order but at twice the speed.

    Args:
        videos: frame-level videos of a batch.
        probability: probability that a video is mixed.
        generator: draws which videos are mixed, and the other video of each, uniformly.

    Returns:
        As many videos, with the ids of the given ones.

    Raises:
        InputError: if the videos have no frames.

    Reference: [Zhang et al., 2021](https://arxiv.org/abs/2105.02668), who mix more from videos of
    classes that are not learned yet.
    """
    if any(feature.ndim != 2 for video in videos for feature in video.features):
        raise InputError("mix_videos mixes frames, but these videos are video-level features.")
    mixed = list(videos)
    for row, video in enumerate(videos):
        if len(videos) > 1 and generator.random() < probability:
            other = generator.randrange(len(videos) - 1)
            mixed[row] = _mixed(video, videos[other + (other >= row)])
    return mixed


def _mixed(video, other):
    weights = None
    if video.label_weights is not None:
        weights = np.concatenate([video.label_weights, other.label_weights])
    return Video(
        video.video_id,
        np.concatenate([video.labels, other.labels]),
        [
            np.concatenate([own[::2], others[1::2] if len(others) > 1 else others])
            for own, others in zip(video.features, other.features, strict=True)
        ],
        weights,
    )


# --- Memory ---------------------------------------------------------------------------------------


def _aligned_empty(shape, dtype):
    """Returns an uninitialized array that TensorFlow can use without copying it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _keep_freed_memory():
    """Restores the C library's default of reusing freed memory.

    `from_generator` makes the whole process return freed blocks above 128 KiB to the kernel at
    once. Every record would then be read into new pages, which doubles the reading time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Only glibc has mallopt.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(*_M_MMAP_THRESHOLD)
        mallopt(*_M_TRIM_THRESHOLD)
