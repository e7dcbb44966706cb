r"""Converts frame features and labels of your own videos to records that train.py reads.

    python make_records.py --input_data_pattern='clips/*.npy' --labels_file=labels.csv \
        --output_dir=records

The input is an array [frames, values] per video and feature, in any of several kinds of files, and
a table of labels. The output is record files for training, validation and test, with the videos in
random order; vocabulary.csv with the classes; and dataset.json, from which train.py takes all
settings of the data. docs/own_data.md describes them.

If the program is interrupted, the same command resumes it and gives the same files.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import program
from program import Progress

import tensorflow as tf
from absl import logging

import files
import record_writer
import vocabulary
from dataset_info import TRAIN, DatasetInfo
from options import option, options_of
from own_data import feature_sources, feature_storage, record_state, record_summary, video_labels
from own_data.clips import Clip, ClipChecker, EmptyClipError, FeatureSource
from own_data.feature_storage import Encoder, StorageOptions
from own_data.record_plan import SPLITS, RecordPlan
from own_data.record_state import FileCounts, RecordState
from own_data.record_summary import Summary
from own_data.video_labels import LabelOptions
from utils import InputError, comma_separated, examples

PROGRAM = "make_records.py"
# Options that do not decide what the files contain.
_OF_PLACE = ("output_dir", "overwrite")
# Size of a record file by default, and of the records that are held in memory at a time.
_FILE_BYTES, _MEMORY_BYTES = 64e6, 256e6
# Number of training files by default, at least.
_MIN_FILES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordsOptions(feature_sources.SourceOptions, LabelOptions, StorageOptions):
    """Options of this program."""

    input_data_pattern: str = option(
        help="Globs of files with features, comma-separated, or a directory; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    trim_features: bool = option(
        False,
        "Cut the features of a video to the shortest if their numbers of frames differ.",
        group="data",
    )
    frames_per_second: float | None = option(
        None, "Frames per second of the features, for dataset.json.", group="data", above=0
    )
    like: str | None = option(
        None,
        "dataset.json of other records. Stores the same features in the same way, with the same "
        "classes: for new videos that a model predicts which was trained on those records.",
        group="data",
    )
    output_dir: str = option(
        help="Directory for train*.tfrecord, validate*.tfrecord, test*.tfrecord, vocabulary.csv, "
        f"dataset.json and {record_state.FILE}, the state of this program; created if missing.",
        group="output",
        required=True,
    )
    overwrite: bool = option(
        False, "Replace records of this program in --output_dir.", group="output"
    )
    videos_per_file: int | None = option(
        None,
        f"Videos per record file. Default: as many as take {_FILE_BYTES / 1e6:.0f} MB, or fewer so "
        f"that there are {_MIN_FILES} training files.",
        group="output",
        above=0,
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        for name in ("storage", "quantization") if self.like is not None else ():
            if getattr(self, name) != getattr(RecordsOptions, name):
                raise InputError(
                    f"--like and --{name} contradict each other: --like takes over how the other "
                    "records store features."
                )


def make_records(options: RecordsOptions) -> Summary:
    """Writes record files, the vocabulary and, last, their `DatasetInfo`.

    Resumes an interrupted call with equal options.

    Raises:
        InputError: if the input is not usable, naming file and reason, or the directory holds other
            files of a data set.
    """
    source = feature_sources.open_source(options.input_data_pattern, options)
    ids = source.ids()
    labels = video_labels.match(_read_labels(source, ids, options), ids, options)
    like = _load_like(options)
    names = (video.names for video in labels.values())
    classes = vocabulary.classes(names, options.vocabulary or _vocabulary_of(like, options))
    fractions = _fractions(labels, options)
    plan = RecordPlan(labels, classes.numbers, fractions)
    _warn_of_empty_splits(plan, fractions)
    settings = _settings(plan, classes, options)
    with _locked(options.output_dir):
        state = record_state.resume(options.output_dir, settings, options.overwrite)
        state = state or _new_state(source, plan, settings, like, options)
        _write_files(source, plan, state, options)
        info = _describe(state, classes, options)
        counts = _class_counts(plan, state)
        rows = ((number, name, counts[number]) for number, name in sorted(classes.names.items()))
        vocabulary.write(options.output_dir, ("Index", "Name", vocabulary.COUNTS), rows)
        info.save(options.output_dir)
    return record_summary.summarize(info, state, plan, classes, len(ids), options.output_dir)


def _fractions(labels, options):
    """Returns the fractions of validate and test; test has all videos if none has a label."""
    given = options.eval_fraction is not None or options.test_fraction is not None
    has_labels = any(video.names for video in labels.values())
    return options.fractions if given or has_labels else (0.0, 1.0)


def _warn_of_empty_splits(plan, fractions):
    for split, share in zip(SPLITS, (1 - sum(fractions), *fractions), strict=True):
        if share and not plan.by_split[split]:
            logging.warning("no video belongs to %s", split)


def _read_labels(source, ids, options):
    """Returns labels by id: those of the file, or else of the source."""
    if options.labels_file is not None:
        return video_labels.read_labels(options, ids)
    logging.info("reading the labels in the feature files")
    return {clip.video_id: video_labels.labels_of(clip) for clip in source.clips()}


def _load_like(options):
    """Returns the description of the records that --like names, or None."""
    if options.like is None:
        return None
    info = DatasetInfo.load(options.like)
    types = sorted({feature.dtype for feature in info.features} - set(feature_storage.DTYPES))
    if info.level != "frame" or types:
        raise InputError(
            f"--like={options.like} describes {info.level}-level records of "
            f"{comma_separated(types) or 'vectors'}, which this program does not write."
        )
    return info


def _vocabulary_of(info, options):
    """Returns the path of the vocabulary of a data set, None without a data set."""
    if info is None:
        return None
    if info.vocabulary is None:
        raise InputError(f"{options.like} names no vocabulary. Give it with --vocabulary.")
    return os.path.join(os.path.dirname(options.like), info.vocabulary)


def _settings(plan, classes, options):
    """Returns the values on which the content of the files depends, as JSON has them."""
    values = {
        name: value for name, value in dataclasses.asdict(options).items() if name not in _OF_PLACE
    }
    values["videos"] = _digest(plan.classes, plan.by_split)
    values["classes"] = _digest(classes.names)
    return json.loads(json.dumps(values))


def _digest(values, *others):
    """Returns a text that stands for values, which shows how many there are."""
    content = json.dumps([values, *others]).encode()
    return f"{len(values)} with digest {hashlib.sha256(content).hexdigest()[:12]}"


def _locked(output_dir):
    return files.lock(
        os.path.join(output_dir, "make_records.lock"),
        f"another {PROGRAM} writes to {output_dir}",
        "Wait for it, or choose another --output_dir.",
    )


# --- The storage ----------------------------------------------------------------------------------


def _new_state(source, plan, settings, like, options):
    """Returns the state of a new data set, with ranges of bytes that fit the training videos."""
    splits = plan.by_split
    ids = (splits["train"] or list(plan.classes))[: feature_storage.SAMPLE_VIDEOS]
    features = () if like is None else like.features
    checker = _checker(features, options)
    logging.info("reading a sample of %d videos", len(ids))
    clips = _usable(source.clips(ids), checker, options, lambda video_id: None)
    sample = feature_storage.take_sample(clips, len(ids))
    if not sample.num_videos:
        raise InputError(f"none of {len(ids)} videos of a sample has frames.")
    features = features or feature_storage.choose_features(sample, options)
    frame_bytes = sum(feature.size * feature.storage.type.itemsize for feature in features)
    video_bytes = max(1.0, sample.num_frames * frame_bytes)
    videos_per_file = options.videos_per_file or max(
        1, min(int(_FILE_BYTES / video_bytes), -(-max(map(len, splits.values())) // _MIN_FILES))
    )
    written = dict.fromkeys(plan.files(videos_per_file))
    return RecordState(settings, features, videos_per_file, video_bytes, written)


def _checker(features, options):
    """Returns a checker of clips that have certain features, or any if they are not known yet."""
    names = [feature.name for feature in features] or options.feature_names
    return ClipChecker(names, {feature.name: feature.size for feature in features})


def _usable(
    clips: Iterable[Clip], checker: ClipChecker, options: RecordsOptions, on_empty: Any
) -> Iterator[Clip]:
    """Yields the clips that have frames, checked; calls `on_empty` with the other ids."""
    for clip in clips:
        if options.trim_features:
            clip = _trimmed(clip)
        try:
            checker.check(clip)
        except EmptyClipError:
            on_empty(clip.video_id)
        else:
            yield clip


def _trimmed(clip):
    shapes = [values.shape for values in clip.features.values()]
    length = min((shape[0] for shape in shapes if shape), default=0)
    features = {
        name: values[:length] if values.ndim else values for name, values in clip.features.items()
    }
    return clip._replace(features=features)


# --- The files ------------------------------------------------------------------------------------


def _write_files(
    source: FeatureSource, plan: RecordPlan, state: RecordState, options: RecordsOptions
) -> None:
    """Writes the missing record files, a few at a time, and saves the state after each time.

    The videos of a few files are held in memory, because their order is not that of the source.
    """
    folder = options.output_dir
    state.save(folder)
    ids_of = plan.files(state.videos_per_file)
    missing = state.missing(folder)
    at_once = max(1, int(_MEMORY_BYTES / (state.video_bytes * state.videos_per_file)))
    num_left = sum(len(ids_of[name]) for name in missing)
    num_videos = len(plan.classes)
    with Progress(num_videos, "video", initial=num_videos - num_left) as progress:
        for start in range(0, len(missing), at_once):
            group = {name: ids_of[name] for name in missing[start : start + at_once]}
            records, counts = _read_records(source, group, plan, state, options, progress)
            for name, ids in group.items():
                _write_file(os.path.join(folder, name), filter(None, map(records.pop, ids)))
            state.files.update(counts)
            state.save(folder)


def _read_records(source, group, plan, state, options, progress):
    """Returns the serialized videos of some files by id, None without frames; and their counts."""
    file_of = {video_id: name for name, ids in group.items() for video_id in ids}
    counts = {name: FileCounts() for name in group}
    records: dict[str, bytes | None] = {}
    encoder = Encoder(state.features, options.fixed_range)
    checker = _checker(state.features, options)

    def skip(video_id):
        records[video_id] = None
        counts[file_of[video_id]].without_frames.append(video_id)

    for clip in _usable(source.clips(file_of), checker, options, skip):
        stored, clipped = encoder.encode(clip)
        counts[file_of[clip.video_id]].add(clip, stored, clipped)
        records[clip.video_id] = record_writer.serialize_frames(
            clip.video_id, plan.classes[clip.video_id], stored
        )
        progress.advance()
    gone = [video_id for video_id in file_of if video_id not in records]
    if gone:
        raise InputError(f"videos have disappeared from the input: {examples(gone)}.")
    return records, counts


def _write_file(path, records):
    with files.atomic_path(path) as partial, tf.io.TFRecordWriter(partial) as writer:
        for record in records:
            writer.write(record)


# --- The result -----------------------------------------------------------------------------------


def _class_counts(plan, state):
    """Returns the number of written training videos with each class."""
    counts = filter(None, state.files.values())
    skipped = {name for found in counts for name in found.without_frames}
    written = (name for name in plan.by_split[TRAIN] if name not in skipped)
    return Counter(number for name in written for number in plan.classes[name])


def _describe(state, classes, options):
    """Returns the description of the written files."""
    counts = {name: found for name, found in state.files.items() if found is not None}
    videos: dict[str, int] = {}
    for name, found in counts.items():
        split = record_writer.split_name(name)
        videos[split] = videos.get(split, 0) + found.videos
    defaults = {field.name: field.default for field, _ in options_of(RecordsOptions)}
    given = {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if value != defaults[name]
    }
    return DatasetInfo(
        made_by=record_writer.command(PROGRAM, given, _OF_PLACE),
        level="frame",
        features=state.features,
        num_classes=classes.num_classes,
        max_frames=max(found.max_frames for found in counts.values()) or None,
        frames_per_second=options.frames_per_second,
        vocabulary=vocabulary.FILE,
        videos=videos,
    )


def main(options: RecordsOptions) -> None:
    """Runs the program."""
    summary = make_records(options)
    print(record_summary.report(summary, options.output_dir))


if __name__ == "__main__":
    program.run(main)
