"""Reads YouTube-8M records into batches.

Frames stay uint8, as stored; models dequantize and normalize them. The order of the videos depends
only on the files, the seed and the epoch, never on the timing of threads, so a run can resume where
it stopped.
"""

import collections
import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

import files
import records
from utils import InputError, comma_separated

# Files read in turn, one video from each, so that neighbors in a file do not stay neighbors.
_OPEN_FILES = 8
# A file is read ahead in portions of at most this many records and about this many bytes.
_PORTION_RECORDS = 64
_PORTION_BYTES = 2 << 20
# TensorFlow uses arrays at addresses with this alignment without copying them.
_ALIGNMENT = 64
# Parameters of glibc's mallopt, with the highest values that its own adjustment reaches.
_M_MMAP_THRESHOLD = (-3, 32 << 20)
_M_TRIM_THRESHOLD = (-1, 64 << 20)


class Batch(NamedTuple):
    """Videos of one batch.

    Attributes:
        video_ids: B ids.
        inputs: inputs of the model. Frame level: a dict of `frames`, uint8 `[B, T, D]`, and
            `num_frames`, int32 `[B]`. Video level: float32 `[B, D]`.
        labels: float32 `[B, C]`, 1 for each label of the video.
    """

    video_ids: list[str]
    inputs: dict[str, np.ndarray] | np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """One parsed record.

    Attributes:
        video_id: id of the video.
        labels: class numbers, int64 `[n]`.
        features: one array per feature, a view into the record where possible. Frame level: uint8
            `[T, size]`. Video level: float32 `[size]`.
    """

    video_id: str
    labels: np.ndarray
    features: list[np.ndarray]


class CorruptVideoError(Exception):
    """Raised for a record that matches its checksum but holds no usable video."""


class RecordReader:
    """Base of the two readers: reads files in order and makes batches of their videos.

    Args:
        paths: TFRecord files, for example from `files.expand_patterns`.
        feature_names: features to read, in this order.
        feature_sizes: sizes of the features, in the same order.
        num_classes: number of classes; labels must be 0 to num_classes - 1.
        max_frames: frames used of each video, at most (frame level only).
        num_readers: threads that read and parse.
        skip_corrupt_records: corrupt records to skip before giving up.

    Attributes:
        corrupt_records: log of the corrupt records skipped so far.
        bytes_read: bytes of the files read so far, for progress.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        feature_names: Sequence[str],
        feature_sizes: Sequence[int],
        num_classes: int,
        max_frames: int = 300,
        num_readers: int = 4,
        skip_corrupt_records: int = 0,
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
        self.num_readers = num_readers
        self.corrupt_records = records.CorruptRecordLog(skip_corrupt_records)
        self.bytes_read = 0
        self._min_videos = 1
        self._failure: Exception | None = None
        self._warned_of_no_labels = False

    @property
    def total_bytes(self) -> int:
        """Total size of the files."""
        return sum(map(files.file_size, self.paths))

    def for_file(self, path: str) -> "RecordReader":
        """Returns a reader of one file, which may be empty; both share `corrupt_records`."""
        reader = copy.copy(self)
        reader.paths, reader.bytes_read, reader._min_videos = [path], 0, 0
        return reader

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
    ) -> Iterator[Batch]:
        """Yields batches, which threads read ahead.

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
            pad_to_max_frames: whether T is always `max_frames`, instead of the largest number of
                frames in the batch.

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
            min_videos=batch_size if drop_remainder else self._min_videos,
        )
        with concurrent.futures.ThreadPoolExecutor(self.num_readers) as pool:
            videos = order.videos(self, pool, skip_batches * batch_size)
            pending: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
            while group := list(itertools.islice(videos, batch_size)):
                if len(group) < batch_size and drop_remainder:
                    break
                pending.append(pool.submit(self._assemble, group, pad_to_max_frames))
                if len(pending) > 1:
                    yield pending.popleft().result()
            for batch in pending:
                yield batch.result()

    def dataset(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        """Returns a `tf.data.Dataset` of `(inputs, labels)` for `keras.Model.fit`.

        Each iteration over the dataset continues the epoch numbers of the previous one, so
        `shuffle` gives a different order in each epoch of `fit`.

        Args:
            batch_size: videos per batch, B.
            **options: options of `batches`.
        """
        batch_dim = batch_size if options.get("drop_remainder") else None
        num_frames = self.max_frames if options.get("pad_to_max_frames") else None
        signature = (
            self._input_signature(batch_dim, num_frames),
            tf.TensorSpec([batch_dim, self.num_classes], tf.float32),
        )

        first_epochs = itertools.count(step=options.get("num_epochs", 1) or 0)

        def generate():
            _keep_freed_memory()
            try:
                first_epoch = next(first_epochs)
                for batch in self.batches(batch_size, first_epoch=first_epoch, **options):
                    yield batch.inputs, batch.labels
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
        try:
            context, feature_lists = records.parse_record(payload)
            return self._parse(location, context, feature_lists)
        except DecodeError as error:
            self.corrupt_records.add(location, f"it is not a YouTube-8M record: {error}")
        except CorruptVideoError as error:
            self.corrupt_records.add(location, str(error))
        return None

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
        for name in ("id", "video_id"):
            if name in context:
                values = tf.train.Feature.FromString(context[name]).bytes_list.value
                if len(values) == 1:
                    return values[0].decode("utf-8", "backslashreplace")
        raise CorruptVideoError(
            "it has no 'id' or 'video_id' that holds exactly one string. It has: "
            f"{comma_separated(sorted(context))}"
        )

    def _labels(self, location, video_id, context):
        feature = tf.train.Feature.FromString(context.get("labels", b""))
        if feature.WhichOneof("kind") not in (None, "int64_list"):
            raise InputError(
                f"the labels of video {video_id!r} ({location}) are a "
                f"{feature.WhichOneof('kind')}, but an int64_list of class numbers is expected."
            )
        labels = np.array(feature.int64_list.value, np.int64)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.size:
            raise InputError(
                f"video {video_id!r} ({location}) has label {wrong[0]}, but labels must be 0 to "
                f"{self.num_classes - 1}. Use data that fit the model, or train with another "
                "--num_classes."
            )
        if not labels.size and not self._warned_of_no_labels:
            self._warned_of_no_labels = True
            logging.warning(
                "video %r (%s) has no label: it counts as a negative of every class. The record "
                "has: %s. Further videos without labels are not reported.",
                video_id,
                location,
                comma_separated(sorted(context)),
            )
        return labels

    def _missing_feature(self, location, name, found):
        return InputError(
            f"feature {name!r} is not in {location}, which has: {comma_separated(sorted(found))}. "
            "Use data that fit the model, or train with other --feature_names and --feature_sizes."
        )

    def _wrong_size(self, location, name, expected, found):
        return InputError(
            f"feature {name!r} has size {found} in {location}, but the model takes size "
            f"{expected}. Use data that fit the model, or train with other --feature_sizes."
        )

    def _assemble(self, videos, pad_to_max_frames):
        labels = _aligned_empty((len(videos), self.num_classes), np.float32)
        labels[...] = 0.0
        for row, video in enumerate(videos):
            labels[row, video.labels] = 1.0
        ids = [video.video_id for video in videos]
        return Batch(ids, self._inputs(videos, pad_to_max_frames), labels)


class YT8MFrameFeatureReader(RecordReader):
    """Reads frame-level records: SequenceExamples with one uint8 vector per frame and feature."""

    def _parse(self, location, context, feature_lists):
        if not feature_lists and any(name.startswith("mean_") for name in context):
            raise InputError(
                f"{location} holds video-level features ({comma_separated(sorted(context))}), but "
                "the model takes frames. Choose frame-level data or a video-level model."
            )
        video_id = self._video_id(context)
        features = [
            self._frames(location, video_id, name, size, feature_lists)
            for name, size in zip(self.feature_names, self.feature_sizes, strict=True)
        ]
        counts = [len(frames) for frames in features]
        if len(set(counts)) > 1:
            numbers = comma_separated(
                f"{count} of {name!r}"
                for name, count in zip(self.feature_names, counts, strict=True)
            )
            raise CorruptVideoError(f"video {video_id!r} has unequal numbers of frames: {numbers}")
        used = [frames[: self.max_frames] for frames in features]
        return Video(video_id, self._labels(location, video_id, context), used)

    def _frames(self, location, video_id, name, size, feature_lists):
        if name not in feature_lists:
            raise self._missing_feature(location, name, feature_lists)
        frames = records.frame_bytes(feature_lists[name])
        if frames is None:
            raise CorruptVideoError(
                f"video {video_id!r} has frames of {name!r} that differ in size or are not bytes"
            )
        if not len(frames):
            raise CorruptVideoError(f"video {video_id!r} has no frame of {name!r}")
        if frames.shape[1] != size:
            raise self._wrong_size(location, name, size, frames.shape[1])
        return frames

    def _inputs(self, videos, pad_to_max_frames):
        num_frames = np.array([len(video.features[0]) for video in videos], np.int32)
        longest = self.max_frames if pad_to_max_frames else num_frames.max()
        frames = _aligned_empty((len(videos), longest, sum(self.feature_sizes)), np.uint8)
        for row, video in enumerate(videos):
            column = 0
            for feature in video.features:
                frames[row, : len(feature), column : column + feature.shape[1]] = feature
                column += feature.shape[1]
            frames[row, num_frames[row] :] = 0
        return {"frames": frames, "num_frames": num_frames}

    def _input_signature(self, batch_dim, num_frames):
        return {
            "frames": tf.TensorSpec([batch_dim, num_frames, sum(self.feature_sizes)], tf.uint8),
            "num_frames": tf.TensorSpec([batch_dim], tf.int32),
        }


class YT8MAggregatedFeatureReader(RecordReader):
    """Reads video-level records: Examples with one float vector per feature."""

    def _parse(self, location, context, feature_lists):
        if feature_lists:
            raise InputError(
                f"{location} holds frame-level features ({comma_separated(sorted(feature_lists))})"
                ", but the model takes video-level features. Choose video-level data or a "
                "frame-level model."
            )
        video_id = self._video_id(context)
        features = [
            self._vector(location, video_id, name, size, context)
            for name, size in zip(self.feature_names, self.feature_sizes, strict=True)
        ]
        return Video(video_id, self._labels(location, video_id, context), features)

    def _vector(self, location, video_id, name, size, context):
        if name not in context:
            raise self._missing_feature(location, name, context)
        values = records.float_values(context[name])
        if values is None:
            raise CorruptVideoError(f"feature {name!r} of video {video_id!r} does not hold floats")
        if len(values) != size:
            raise self._wrong_size(location, name, size, len(values))
        if not np.isfinite(values).all():
            raise CorruptVideoError(f"feature {name!r} of video {video_id!r} has NaN or infinity")
        return values

    def _inputs(self, videos, pad_to_max_frames):
        del pad_to_max_frames
        return np.stack([np.concatenate(video.features) for video in videos])

    def _input_signature(self, batch_dim, num_frames):
        del num_frames
        return tf.TensorSpec([batch_dim, sum(self.feature_sizes)], tf.float32)


# --- Order of the videos --------------------------------------------------------------------------


class _Order:
    """Order of the videos of some files, epoch after epoch."""

    def __init__(self, paths, epochs, seed, buffer_size, min_videos):
        self._paths = paths
        self._epochs = epochs
        self._seed = seed
        self._buffer_size = buffer_size
        self._min_videos = min_videos

    def videos(self, reader, pool, skip):
        """Yields the videos after the first `skip`."""
        epoch_size = None
        for epoch in self._epochs:
            if epoch_size is not None and skip >= epoch_size:
                skip -= epoch_size
                continue
            stream = _Interleaved(self._shuffled_files(epoch), reader, pool, skip > 0)
            epoch_size = 0
            for entry in self._shuffled(stream, epoch):
                epoch_size += 1
                if skip > 0:
                    skip -= 1
                    stream.skimming = skip > 0
                elif isinstance(entry, Video):
                    yield entry
                elif (video := _load(reader, entry)) is not None:
                    yield video
            self._check_epoch_size(epoch_size)

    def _check_epoch_size(self, size):
        if size < self._min_videos:
            where = f"{len(self._paths)} files, such as {self._paths[0]}"
            if size == 0:
                raise InputError(f"no video in {where}")
            raise InputError(
                f"a batch takes {self._min_videos} videos, but there are only {size} in {where}"
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
    """Iterates over the videos of several files, taking one from each open file in turn.

    While `skimming` is true, it yields the locations of records instead of videos.
    """

    def __init__(self, paths, reader, pool, skimming):
        self._paths = iter(paths)
        self._reader = reader
        self._pool = pool
        self.skimming = skimming

    def __iter__(self):
        turns = collections.deque(map(self._open, itertools.islice(self._paths, _OPEN_FILES)))
        while turns:
            entries = turns.popleft()
            entry = next(entries, None)
            if entry is not None:
                turns.append(entries)
                yield entry
            elif (path := next(self._paths, None)) is not None:
                turns.appendleft(self._open(path))

    def _open(self, path):
        """Starts to read a file ahead, and returns an iterator over its entries."""
        entries = self._entries(path)
        next(entries)
        return entries

    def _entries(self, path):
        """Yields None once the file is open, then its entries; ending early closes the file."""
        with records.TFRecordFile(path, self._reader.corrupt_records) as file:
            ahead = self._pool.submit(self._portion, file)
            yield None
            while True:
                portion = ahead.result()
                self._reader.bytes_read += file.pop_bytes_read()
                if not portion:
                    return
                ahead = self._pool.submit(self._portion, file)
                yield from portion

    def _portion(self, file):
        """Returns the next entries of a file, or an empty list at its end."""
        portion, size = [], 0
        while not portion or (len(portion) < _PORTION_RECORDS and size < _PORTION_BYTES):
            if self.skimming:
                if (location := file.skim()) is None:
                    break
                portion.append(location)
            else:
                if (record := file.read()) is None:
                    break
                size += len(record[1])
                if (video := self._reader.parse(*record)) is not None:
                    portion.append(video)
        return portion


def _load(reader, location):
    """Reads and parses one skimmed record; returns None if it is corrupt."""
    with records.TFRecordFile(location.path, reader.corrupt_records) as file:
        file.seek(location)
        record = file.read()
    return reader.parse(*record) if record is not None and record[0] == location else None


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
