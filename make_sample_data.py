r"""Generates synthetic data sets in the YouTube-8M record format.

    python make_sample_data.py --output_dir=/tmp/sample --num_videos=20000 --num_classes=120 \
        --feature_sizes=64,16 --max_frames=40

sample_world.py defines the generative model. docs/sample_data.md describes it and lists the GAP of
simple models.
"""

import dataclasses
import itertools
import os
import re
import time

import program
from program import Progress

import numpy as np
import tensorflow as tf
from absl import logging

import quantization
import vocabulary
from dataset_info import FILE, DatasetInfo, Feature
from files import atomic_path, gfile
from options import Options, option, same_option
from record_writer import command, record_name, serialize_frames, set_context
from run_config import RunConfig
from sample_world import FACTORS, WORLDS, Generator, World
from segments.config import SEGMENT_SIZE
from utils import InputError, comma_separated

PROGRAM = "make_sample_data.py"
# A text at the beginning of the files that distinguish sample data from other data sets.
MARKS = {vocabulary.FILE: "/sample/0,", FILE: PROGRAM}
GENERATED_FILES = re.compile(r"(train|validate|test)\d{5,}\.tfrecord|vocabulary\.csv|dataset\.json")
VOCABULARY_COLUMNS = """Index TrainVideoCount KnowledgeGraphId Name WikiUrl
    Vertical1 Vertical2 Vertical3 WikiDescription"""
ADJECTIVES = """alpine antique coastal desert electric garden giant midnight
    miniature northern paper silent street tropical winter wooden"""
NOUNS = """boat bridge cake castle cat drum engine guitar
    horse kite lantern puppet robot rocket train violin"""
THEMES = """animation archery baking building cartoon collecting concert dancing
    festival game magic painting parade racing repair restoration"""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of the written data set.

    Attributes:
        videos: dict from split to number of videos.
        files: list of str. Record files in the order they were written.
        num_bytes: int. Total size of the record files.
        labels_per_video: float. Mean over all splits.
        videos_per_second: float.
    """

    videos: dict[str, int]
    files: list[str]
    num_bytes: int
    labels_per_video: float
    videos_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(Options):
    """Options of this program. Equal options give equal files."""

    output_dir: str = option(
        help="Directory for train*.tfrecord, validate*.tfrecord, test*.tfrecord, vocabulary.csv "
        "and dataset.json; created if missing.",
        group="output",
        required=True,
    )
    overwrite: bool = option(False, "Replace sample data in --output_dir.", group="output")
    num_videos: int = option(1000, "Number of training videos.", group="data", at_least=1)
    num_eval_videos: int = option(
        None,
        "Number of videos in validate, and in test. Default: a tenth of --num_videos, at least 1.",
        group="data",
        at_least=1,
    )
    num_classes: int = same_option(RunConfig, "num_classes")
    feature_names: tuple[str, ...] = option(
        ("rgb", "audio"),
        "Names of the features. The first feature is the visual one, the others are sounds.",
        group="data",
    )
    feature_sizes: tuple[int, ...] = same_option(RunConfig, "feature_sizes")
    max_frames: int = option(300, "Maximum number of frames per video.", group="data", at_least=1)
    min_frames: int = option(
        None,
        "Minimum number of frames. Lengths are uniform between it and --max_frames. Default: a "
        "fifth of --max_frames.",
        group="data",
        at_least=1,
    )
    shards: int = option(
        4,
        "Number of training files. validate and test have a quarter as many each, at least one. "
        "The videos do not depend on it.",
        group="data",
        at_least=1,
    )
    level: str = option(
        "frame",
        "frame: SequenceExamples with all frames. video: Examples with the mean over the frames of "
        "the same videos.",
        group="data",
        choices=("frame", "video"),
    )
    world: str = option(
        "scenes",
        "How classes differ. scenes: in the visual words that occur together. bag: some pairs of "
        "classes differ only in the order of their scenes, others only in their sound. relational: "
        "mostly in the correlation of the shifts of two words. unrelated: like relational, with "
        "independent shifts.",
        group="data",
        choices=tuple(WORLDS),
    )
    missing_labels: float = option(
        0.0,
        "Probability that a label is missing, in the training videos only.",
        group="data",
        at_least=0,
        below=1,
    )
    segments: bool = option(
        False,
        "Rate up to five segments of five frames in each video for a class: 1 if it fills most of "
        "the segment, otherwise 0; a twentieth of the ratings is wrong. The videos stay the same.",
        group="data",
    )
    seed: int = option(0, "Seed of the data.", group="data", at_least=0)

    def __post_init__(self):
        """Sets defaults that depend on other options, and checks such options."""
        if self.num_eval_videos is None:
            object.__setattr__(self, "num_eval_videos", max(1, self.num_videos // 10))
        if self.min_frames is None:
            object.__setattr__(self, "min_frames", max(1, self.max_frames // 5))
        super().__post_init__()
        self._check_together()
        self._check_features()

    def _check_together(self):
        if self.segments and self.level == "video":
            raise InputError("--segments needs --level=frame: a video-level record has no frames.")
        if self.segments and self.max_frames < SEGMENT_SIZE:
            raise InputError(
                f"--segments needs videos of at least {SEGMENT_SIZE} frames. "
                f"Received: --max_frames={self.max_frames}"
            )
        if self.min_frames > self.max_frames:
            raise InputError(
                "--min_frames must not be above --max_frames. "
                f"Received: {self.min_frames} and {self.max_frames}"
            )
        if self.shards > self.num_videos:
            raise InputError(
                "--shards must not be more than --num_videos, because no file may be empty. "
                f"Received: {self.shards} and {self.num_videos}"
            )

    def _check_features(self):
        names, sizes = self.feature_names, self.feature_sizes
        if len(names) != len(sizes):
            raise InputError(
                "there must be as many --feature_names as --feature_sizes. "
                f"Received: {comma_separated(names)} and {comma_separated(sizes)}"
            )
        if not names or not all(names) or len(set(names)) < len(names):
            raise InputError(
                f"--feature_names must be distinct names. Received: {comma_separated(names)}"
            )


def make_sample_data(options: SampleOptions) -> Summary:
    """Writes train, validate and test records, a vocabulary and, last, their `DatasetInfo`.

    Raises:
        InputError: if the directory is not writable or already holds records.
    """
    info = _describe(options)
    _prepare_directory(options.output_dir, options.overwrite)
    world = World(options.seed, options.num_classes, options.feature_sizes, WORLDS[options.world])
    generator = Generator(
        world,
        options.seed,
        options.feature_names,
        options.min_frames,
        options.max_frames,
        options.missing_labels,
        options.segments,
    )
    plan = _plan_files(
        options.output_dir, options.num_videos, options.num_eval_videos, options.shards
    )
    serialize = _serialize_frames if options.level == "frame" else _serialize_means
    summary = _write_all(generator, plan, serialize, options.output_dir)
    info.save(options.output_dir)
    return summary


def _describe(options):
    """Returns the `DatasetInfo` of the data that the options generate."""
    is_frame_level = options.level == "frame"
    prefix = "" if is_frame_level else "mean_"
    storage = (
        {"dtype": "uint8", "quantization": quantization.YOUTUBE8M.as_json()}
        if is_frame_level
        else {"dtype": "float32"}
    )
    return DatasetInfo(
        made_by=command(PROGRAM, dataclasses.asdict(options), ("output_dir", "overwrite")),
        level=options.level,
        features=tuple(
            Feature(name=f"{prefix}{name}", size=size, **storage)
            for name, size in zip(options.feature_names, options.feature_sizes, strict=True)
        ),
        num_classes=options.num_classes,
        max_frames=options.max_frames if is_frame_level else None,
        frames_per_second=1 if is_frame_level else None,
        vocabulary=vocabulary.FILE,
        videos={
            "train": options.num_videos,
            "validate": options.num_eval_videos,
            "test": options.num_eval_videos,
        },
    )


def _prepare_directory(output_dir, overwrite):
    """Creates the directory. With `overwrite`, removes earlier sample data from it."""
    try:
        gfile.makedirs(output_dir)
        old = sorted(name for name in gfile.listdir(output_dir) if GENERATED_FILES.fullmatch(name))
        for name, mark in MARKS.items():
            if name in old and mark not in _beginning(output_dir, name):
                raise InputError(
                    f"{output_dir!r} holds the {name} of another data set, which would be "
                    "overwritten. Choose another --output_dir."
                )
        if old and not overwrite:
            raise InputError(
                f"{output_dir!r} already holds sample data ({len(old)} files, including "
                f"{old[0]}). Choose another --output_dir, or replace the data with --overwrite."
            )
        for name in old:
            gfile.remove(os.path.join(output_dir, name))
    except tf.errors.OpError as error:
        raise InputError(f"cannot write to the directory {output_dir!r}: {error}") from error


def _beginning(output_dir, name):
    with gfile.GFile(os.path.join(output_dir, name)) as file:
        return file.read(1000)


def _plan_files(output_dir, num_videos, num_eval_videos, shards):
    """Maps every split to its files, as pairs of path and number of videos."""
    eval_size = num_eval_videos, min(max(1, shards // 4), num_eval_videos)
    sizes = {"train": (num_videos, shards), "validate": eval_size, "test": eval_size}
    plan = {}
    for split, (videos, files) in sizes.items():
        paths = [os.path.join(output_dir, record_name(split, file)) for file in range(files)]
        bounds = [videos * file // files for file in range(files + 1)]
        plan[split] = list(zip(paths, np.diff(bounds).tolist(), strict=True))
    return plan


def _write_all(generator, plan, serialize, output_dir):
    """Writes the planned files and the vocabulary, and returns a `Summary`."""
    start = time.perf_counter()
    videos = {split: sum(count for _, count in files) for split, files in plan.items()}
    total = sum(videos.values())
    label_counts = {}
    with Progress(total, "video") as progress:
        for split, files in plan.items():
            label_counts[split] = _write_split(generator, split, files, serialize, progress)
    _write_vocabulary(output_dir, label_counts["train"], generator.world)
    paths = [path for files in plan.values() for path, _ in files]
    return Summary(
        videos=videos,
        files=paths,
        num_bytes=sum(gfile.stat(path).length for path in paths),
        labels_per_video=sum(counts.sum() for counts in label_counts.values()).item() / total,
        videos_per_second=total / (time.perf_counter() - start),
    )


def _write_split(generator, split, files, serialize, progress):
    """Writes the files of a split, and returns the number of its videos with each label."""
    label_counts = np.zeros(generator.world.num_classes, np.int64)
    videos = generator.videos(split)
    for path, count in files:
        with atomic_path(path) as partial, tf.io.TFRecordWriter(partial) as writer:
            for video in itertools.islice(videos, count):
                writer.write(serialize(video))
                label_counts[video.labels] += 1
                progress.advance()
    return label_counts


def _serialize_frames(video):
    return serialize_frames(video.id, video.labels, video.features, video.ratings)


def _serialize_means(video):
    """Serializes an `Example` with the mean over the dequantized frames of every feature."""
    example = tf.train.Example()
    set_context(example.features, video.id, video.labels)
    for name, frames in video.features.items():
        mean = quantization.YOUTUBE8M.dequantize(frames.mean(axis=0))
        example.features.feature[f"mean_{name}"].float_list.value.extend(mean)
    return example.SerializeToString(deterministic=True)


def _write_vocabulary(output_dir, train_counts, world):
    """Writes the classes with the columns of YouTube-8M's vocabulary.

    `WikiDescription` is the factor of the class. Columns without a counterpart are empty.
    """
    rows = []
    for index, count in enumerate(train_counts):
        name, vertical = class_name(index)
        factor = FACTORS[world.factors[index]]
        rows.append((index, count, f"/sample/{index}", name, "", vertical, "", "", factor))
    vocabulary.write(output_dir, VOCABULARY_COLUMNS.split(), rows)


def class_name(index: int) -> tuple[str, str]:
    """Returns a unique invented name of a class, and its field (`Vertical1`)."""
    adjectives, nouns, themes = ADJECTIVES.split(), NOUNS.split(), THEMES.split()
    names = len(adjectives) * len(nouns) * len(themes)
    # Multiplying by an odd number permutes the names, so that names of adjacent classes differ.
    theme, rest = divmod(index * 1371 % names, len(adjectives) * len(nouns))
    adjective, noun = divmod(rest, len(nouns))
    name = f"{adjectives[adjective]} {nouns[noun]} {themes[theme]}".capitalize()
    repetition = index // names
    return (f"{name} {repetition + 1}" if repetition else name), themes[theme].capitalize()


def main(options: SampleOptions) -> None:
    """Runs the program."""
    summary = make_sample_data(options)
    logging.info(
        "wrote %s videos in %d files, %.1f MB, %.2f labels per video, %.0f videos/s: %s",
        " + ".join(f"{count} {split}" for split, count in summary.videos.items()),
        len(summary.files),
        summary.num_bytes / 1e6,
        summary.labels_per_video,
        summary.videos_per_second,
        options.output_dir,
    )


if __name__ == "__main__":
    program.run(main)
