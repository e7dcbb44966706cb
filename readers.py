"""Reads YouTube-8M records into batches.

Frames stay the uint8 in which they are stored: models dequantise and normalise. The order of the
videos depends on the files, the seed and the epoch only, never on the speed of threads, so that a
run can go on where it stopped.
"""

import collections
import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import itertools
import random
import typing

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

import files
import records
from utils import InputError, comma_separated

# Files that are read in turns, one video from each, so that neighbours in a file part.
_OPEN_FILES = 8
# A file is read ahead in portions of at most this many records and about this many bytes.
_PORTION_RECORDS = 64
_PORTION_BYTES = 2 << 20
# TensorFlow takes over arrays at such addresses without copying them.
_ALIGNMENT = 64
# Parameters of glibc's mallopt, with the highest values that it comes to by itself.
_M_MMAP_THRESHOLD = (-3, 32 << 20)
_M_TRIM_THRESHOLD = (-1, 64 << 20)


class Batch(typing.NamedTuple):
    """Videos of one batch.

    Attributes:
        video_ids: list of B str.
        inputs: what the model is called on. Frame level: a dict of `frames`, uint8 `[B, T, D]`, and
            `num_frames`, int32 `[B]`. Video level: float32 `[B, D]`.
        labels: float32 `[B, C]`, 1 for each label of the video.
    """

    video_ids: list
    inputs: dict | np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """One parsed record: its features are views into the record, one array per feature."""

    video_id: str
    labels: np.ndarray
    features: list


class RecordReader:
    """Base of the two readers: files, order, batches, damaged records.

    Args:
        paths: list of str. TFRecord files; `files.expand_patterns` makes it from globs.
        feature_names: sequence of str. Features to read, in this order.
        feature_sizes: sequence of int. Their sizes.
        num_classes: int. Labels must be 0 to num_classes - 1.
        max_frames: int. Frames of a video that are used at most (frame level only).
        num_readers: int. Threads that read and parse.
        skip_corrupt_records: int. How many damaged records to skip before giving up.

    Attributes:
        corrupt_records: `records.CorruptRecordLog` of the records that were skipped.
        bytes_read: int. Bytes of the files that were read so far, for showing progress.
    """

    def __init__(
        self,
        paths,
        *,
        feature_names,
        feature_sizes,
        num_classes,
        max_frames=300,
        num_readers=4,
        skip_corrupt_records=0,
    ):
        if len(feature_names) != len(feature_sizes):
            raise InputError(
                f"as many feature sizes as feature names are needed. Received the names "
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
        self._failure = None
        self._warned_of_no_labels = False

    @property
    def total_bytes(self):
        """Size of all files together."""
        return sum(map(files.file_size, self.paths))

    def of_file(self, path):
        """A reader of one of the files, which may be empty. Corruptd records count together."""
        reader = copy.copy(self)
        reader.paths, reader.bytes_read, reader._min_videos = [path], 0, 0
        return reader

    def batches(
        self,
        batch_size,
        *,
        num_epochs=1,
        shuffle=False,
        shuffle_buffer_size=1024,
        seed=0,
        shard=(0, 1),
        first_epoch=0,
        skip_batches=0,
        drop_remainder=False,
        pad_to_max_frames=False,
    ):
        """Yields `Batch`es, read ahead by threads.

        Batches run across the borders of epochs; only the very last one can be short.

        Args:
            batch_size: int. B.
            num_epochs: int, how often every video is read; None for without end.
            shuffle: bool. Whether to shuffle files and, in a buffer, videos; anew in each epoch.
            shuffle_buffer_size: int. Videos in the buffer.
            seed: int. Seed of the shuffling.
            shard: (index, count). Which of how many equal parts of the files to read: one for each
                worker.
            first_epoch: int. Number of the first epoch, which its order depends on.
            skip_batches: int. Batches to leave out at the beginning, quickly: what a resumed run
                has seen. Corruptd records among them are not noticed, and each of them shifts the
                order by one video.
            drop_remainder: bool. Whether to leave out a last batch that is not full; then an epoch
                must have a batch at least.
            pad_to_max_frames: bool. Whether T is always `max_frames` instead of the longest video
                of the batch.

        Raises:
            InputError: if a record is damaged beyond what may be skipped, or does not fit, or the
                data are too few.
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
            pending = collections.deque()
            while group := list(itertools.islice(videos, batch_size)):
                if len(group) < batch_size and drop_remainder:
                    break
                pending.append(pool.submit(self._assemble, group, pad_to_max_frames))
                if len(pending) > 1:
                    yield pending.popleft().result()
            for batch in pending:
                yield batch.result()

    def dataset(self, batch_size, **options):
        """A `tf.data.Dataset` of `(inputs, labels)`, as `keras.Model.fit` takes it.

        Each time that it is iterated over, its epochs have new numbers, so that `shuffle` gives
        another order in each epoch of `fit`.

        Args:
            batch_size: int. B.
            **options: as of `batches`.
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
        # There is nothing to tune, and the tuner's thread holds up the end of every iteration.
        settings = tf.data.Options()
        settings.autotune.enabled = False
        return dataset.with_options(settings)

    @contextlib.contextmanager
    def explained_errors(self):
        """Turns TensorFlow's error for a failed `dataset` back into the `InputError` behind it."""
        try:
            yield
        except tf.errors.OpError as error:
            if self._failure is not None and not isinstance(error, tf.errors.OutOfRangeError):
                raise self._failure from None
            raise

    def read_file(self, path):
        """Yields the videos of one file in order, for a look into the data."""
        with records.TFRecordFile(path, self.corrupt_records) as file:
            while (record := file.read()) is not None:
                if (video := self.parse(*record)) is not None:
                    yield video

    def parse(self, location, payload):
        """Parses one record.

        Args:
            location: `records.RecordLocation`. Where it stands, for messages.
            payload: bytes. A serialized Example or SequenceExample.

        Returns:
            A `Video`, or None if the record is damaged and may be skipped.

        Raises:
            InputError: if it is damaged and may not be skipped, or does not fit the settings.
        """
        try:
            context, feature_lists = records.parse_record(payload)
            return self._parse(location, context, feature_lists)
        except DecodeError as error:
            self.corrupt_records.add(location, f"it is not a record of YouTube-8M: {error}")
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

    def _video_id(self, location, context):
        for name in ("id", "video_id"):
            if name in context:
                values = tf.train.Feature.FromString(context[name]).bytes_list.value
                if len(values) == 1:
                    return values[0].decode("utf-8", "backslashreplace")
        raise CorruptVideoError(
            f"it has no 'id' (nor 'video_id') of one string. It has: {comma_separated(sorted(context))}"
        )

    def _labels(self, location, video_id, context):
        feature = tf.train.Feature.FromString(context.get("labels", b""))
        if feature.WhichOneof("kind") not in (None, "int64_list"):
            raise InputError(
                f"the labels of video {video_id!r} ({location}) are a {feature.WhichOneof('kind')}, "
                "but an int64_list of class numbers is expected."
            )
        labels = np.array(feature.int64_list.value, np.int64)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.size:
            raise InputError(
                f"video {video_id!r} ({location}) has label {wrong[0]}, but labels must be 0 to "
                f"{self.num_classes - 1}. Is --num_classes={self.num_classes} right?"
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
            "Set --feature_names and --feature_sizes to what the data have."
        )

    def _wrong_size(self, location, name, expected, found):
        return InputError(
            f"feature {name!r} has size {found} in {location}, but --feature_sizes says {expected}."
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
                f"{location} holds video-level features ({comma_separated(sorted(context))}), but the model "
                "takes frames. Choose frame-level data or a video-level model."
            )
        video_id = self._video_id(location, context)
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
                f"{location} holds frame-level features ({comma_separated(sorted(feature_lists))}), but the "
                "model takes video-level features. Choose video-level data or a frame-level model."
            )
        video_id = self._video_id(location, context)
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


class CorruptVideoError(Exception):
    """A record that was read whole, but holds no usable video."""


class _Order:
    """The order in which the videos of the files come, epoch after epoch."""

    def __init__(self, paths, epochs, seed, buffer_size, min_videos):
        self._paths = paths
        self._epochs = epochs
        self._seed = seed
        self._buffer_size = buffer_size
        self._min_videos = min_videos

    def videos(self, reader, pool, skip):
        """Yields `Video`s, without the first `skip`."""
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
            where = f"{len(self._paths)} files, as {self._paths[0]}"
            if size == 0:
                raise InputError(f"no video in {where}")
            raise InputError(
                f"--batch_size={self._min_videos} is larger than the data: {size} videos in {where}"
            )

    def _shuffled_files(self, epoch):
        paths = list(self._paths)
        if self._seed is not None:
            random.Random(f"files {self._seed} {epoch}").shuffle(paths)
        return paths

    def _shuffled(self, entries, epoch):
        """Passes entries through a buffer from which a random one leaves."""
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
    """Iterates over the videos of files, one from each of some open files in turn.

    While `skimming`, it yields the places of records instead of the videos.
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
        """Starts to read a file ahead and returns an iterator over its entries."""
        entries = self._entries(path)
        next(entries)
        return entries

    def _entries(self, path):
        """Yields None when the file is open, so that leaving early closes it; then its entries."""
        with records.TFRecordFile(path, self._reader.corrupt_records) as file:
            ahead = self._pool.submit(self._portion, file)
            yield None
            while True:
                portion = ahead.result()
                self._reader.bytes_read += file.take_bytes_read()
                if not portion:
                    return
                ahead = self._pool.submit(self._portion, file)
                yield from portion

    def _portion(self, file):
        """Reads the next videos of a file; an empty list at its end."""
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
    """Reads and parses one skimmed record; None if it is damaged."""
    with records.TFRecordFile(location.path, reader.corrupt_records) as file:
        file.seek(location)
        record = file.read()
    return reader.parse(*record) if record is not None and record[0] == location else None


def _aligned_empty(shape, dtype):
    """An uninitialised array that TensorFlow takes over without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _keep_freed_memory():
    """Lets the C library reuse freed blocks, as it does by itself.

    `from_generator` sets it, for the whole process, to give blocks above 128 KiB back to the
    kernel at once. Every record would then be read into new pages, which doubles the time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Only glibc has mallopt.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(*_M_MMAP_THRESHOLD)
        mallopt(*_M_TRIM_THRESHOLD)
