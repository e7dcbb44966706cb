r"""Makes sample data: true YouTube-8M records, generated from a story that is worth learning.

    python make_sample_data.py --output_dir=/tmp/sample --num_videos=20000 --num_classes=120 \
        --feature_sizes=64,16 --max_frames=40

sample_world.py tells the story, docs/sample_data.md what simple models make of it.
"""

import dataclasses
import itertools
import os
import re
import time

import program

import numpy as np
import tensorflow as tf
from absl import flags, logging
from progress import Progress

import utils
from files import atomic_path, atomic_write, gfile
from sample_world import INGREDIENTS, STORIES, Generator, World
from utils import InputError, comma_separated

LEVELS = ("frame", "video")
VOCABULARY = "vocabulary.csv"
OWN_FILES = re.compile(r"(train|validate|test)\d{5,}\.tfrecord|vocabulary\.csv")
VOCABULARY_COLUMNS = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,"
    "Vertical1,Vertical2,Vertical3,WikiDescription"
)
ADJECTIVES = """alpine antique coastal desert electric garden giant midnight
    miniature northern paper silent street tropical winter wooden"""
NOUNS = """boat bridge cake castle cat drum engine guitar
    horse kite lantern puppet robot rocket train violin"""
THEMES = """animation archery baking building cartoon collecting concert dancing
    festival game magic painting parade racing repair restoration"""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        videos: dict from split to its number of videos.
        files: list of str. The record files, in the order in which they were written.
        num_bytes: int. Size of the record files.
        labels_per_video: float. Mean over all splits.
        videos_per_second: float.
    """

    videos: dict[str, int]
    files: list[str]
    num_bytes: int
    labels_per_video: float
    videos_per_second: float


def make_sample_data(
    output_dir,
    *,
    num_videos=1000,
    num_eval_videos=None,
    num_classes=3862,
    feature_names=("rgb", "audio"),
    feature_sizes=(1024, 128),
    max_frames=300,
    min_frames=None,
    shards=4,
    seed=0,
    level="frame",
    world="scenes",
    overwrite=False,
):
    """Writes train, validate and test records and a vocabulary.

    Args:
        output_dir: str. Where `train00000.tfrecord` and so on go; created if need be.
        num_videos: int. Training videos.
        num_eval_videos: int. Videos of `validate` and of `test`; `None` stands for a tenth of
            `num_videos`, at least 1.
        num_classes: int. Size of the vocabulary.
        feature_names: sequence of str. The first one is the picture, others are like sound.
        feature_sizes: sequence of int. Their sizes.
        max_frames: int. Frames of the longest videos.
        min_frames: int. Frames of the shortest ones; `None` stands for a fifth of `max_frames`.
        shards: int. Training files; the other splits have a quarter of it, at least one.
        seed: int. Equal arguments give equal files.
        level: str. `frame` for all frames, `video` for the mean over the same frames.
        world: str. What the videos tell, one of `sample_world.STORIES`.
        overwrite: bool. Whether to replace sample data in `output_dir`.

    Returns:
        A `Summary`.

    Raises:
        InputError: if an argument is not valid, or the directory has records or is not writable.
    """
    if num_eval_videos is None:
        num_eval_videos = max(1, num_videos // 10)
    if min_frames is None:
        min_frames = max(1, max_frames // 5)
    utils.check_at_least(0, seed=seed)
    utils.check_at_least(
        1,
        num_videos=num_videos,
        num_eval_videos=num_eval_videos,
        num_classes=num_classes,
        max_frames=max_frames,
        min_frames=min_frames,
        shards=shards,
    )
    _check_together(min_frames, max_frames, shards, num_videos)
    _check_features(feature_names, feature_sizes)
    utils.check_one_of(LEVELS, level=level)
    utils.check_one_of(STORIES, world=world)
    _prepare_directory(output_dir, overwrite)
    generator = Generator(
        World(seed, num_classes, feature_sizes, STORIES[world]),
        seed,
        tuple(feature_names),
        min_frames,
        max_frames,
    )
    plan = _plan_files(output_dir, num_videos, num_eval_videos, shards)
    serialize = _serialize_frames if level == "frame" else _serialize_means
    return _write_all(generator, plan, serialize, output_dir)


def _check_together(min_frames, max_frames, shards, num_videos):
    if min_frames > max_frames:
        raise InputError(
            f"min_frames must not be above max_frames. Received: {min_frames} and {max_frames}"
        )
    if shards > num_videos:
        raise InputError(
            "shards must not be more than num_videos, since no file may be empty. "
            f"Received: {shards} and {num_videos}"
        )


def _check_features(names, sizes):
    if len(names) != len(sizes):
        raise InputError(
            f"as many feature_names as feature_sizes are needed. "
            f"Received: {comma_separated(names)} and {comma_separated(sizes)}"
        )
    if not names or not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"feature_names must be distinct names. Received: {comma_separated(names)}"
        )
    if min(sizes) < 1:
        raise InputError(f"feature_sizes must be at least 1. Received: {comma_separated(sizes)}")


def _prepare_directory(output_dir, overwrite):
    """Creates the directory, or removes older sample data from it if that is allowed."""
    try:
        gfile.makedirs(output_dir)
        older = sorted(name for name in gfile.listdir(output_dir) if OWN_FILES.fullmatch(name))
        if VOCABULARY in older and "/sample/0," not in _beginning(output_dir, VOCABULARY):
            raise InputError(
                f"{output_dir!r} holds the {VOCABULARY} of other data, which would be overwritten. "
                "Choose another --output_dir."
            )
        if older and not overwrite:
            raise InputError(
                f"{output_dir!r} already holds sample data ({len(older)} files, as {older[0]}). "
                "Choose another --output_dir, or replace them with --overwrite."
            )
        for name in older:
            gfile.remove(os.path.join(output_dir, name))
    except tf.errors.OpError as error:
        raise InputError(f"cannot write to the directory {output_dir!r}: {error}") from error


def _beginning(output_dir, name):
    with gfile.GFile(os.path.join(output_dir, name)) as file:
        return file.read(1000)


def _plan_files(output_dir, num_videos, num_eval_videos, shards):
    """Files of every split: pairs of path and number of videos."""
    eval_size = num_eval_videos, min(max(1, shards // 4), num_eval_videos)
    sizes = {"train": (num_videos, shards), "validate": eval_size, "test": eval_size}
    plan = {}
    for split, (videos, files) in sizes.items():
        paths = [os.path.join(output_dir, f"{split}{file:05d}.tfrecord") for file in range(files)]
        bounds = [videos * file // files for file in range(files + 1)]
        plan[split] = list(zip(paths, np.diff(bounds).tolist(), strict=True))
    return plan


def _write_all(generator, plan, serialize, output_dir):
    """Writes the planned files and the vocabulary; returns a `Summary`."""
    began = time.perf_counter()
    videos = {split: sum(count for _, count in files) for split, files in plan.items()}
    total = sum(videos.values())
    label_counts = {}
    with Progress(total, "video") as progress:
        for split, files in plan.items():
            label_counts[split] = _write_split(generator, split, files, serialize, progress)
    _write_vocabulary(os.path.join(output_dir, VOCABULARY), label_counts["train"], generator.world)
    paths = [path for files in plan.values() for path, _ in files]
    return Summary(
        videos=videos,
        files=paths,
        num_bytes=sum(gfile.stat(path).length for path in paths),
        labels_per_video=sum(counts.sum() for counts in label_counts.values()).item() / total,
        videos_per_second=total / (time.perf_counter() - began),
    )


def _write_split(generator, split, files, serialize, progress):
    """Writes the files of a split; returns how many of its videos have each label."""
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
    """The video as a `SequenceExample`: a list of one byte string per frame for every feature."""
    example = tf.train.SequenceExample()
    _set_context(example.context, video)
    for name, frames in video.features.items():
        stored = example.feature_lists.feature_list[name].feature
        for frame in frames:
            stored.add().bytes_list.value.append(frame.tobytes())
    return example.SerializeToString(deterministic=True)


def _serialize_means(video):
    """The video as an `Example`: the mean over the dequantised frames of every feature."""
    example = tf.train.Example()
    _set_context(example.features, video)
    for name, frames in video.features.items():
        mean = utils.dequantize(frames.mean(axis=0))
        example.features.feature[f"mean_{name}"].float_list.value.extend(mean)
    return example.SerializeToString(deterministic=True)


def _set_context(features, video):
    features.feature["id"].bytes_list.value.append(video.id.encode())
    features.feature["labels"].int64_list.value.extend(video.labels)


def _write_vocabulary(path, train_counts, world):
    """Writes the classes with the columns of YouTube-8M's vocabulary; what is unknown is empty.

    The description tells what sets a class apart, its ingredient.
    """
    with atomic_write(path) as file:
        file.write(f"{VOCABULARY_COLUMNS}\n")
        for index, count in enumerate(train_counts):
            name, vertical = class_name(index)
            ingredient = INGREDIENTS[world.ingredients[index]]
            file.write(f"{index},{count},/sample/{index},{name},,{vertical},,,{ingredient}\n")


def class_name(index):
    """Invented name of a class, unlike any other's, and the field it belongs to."""
    adjectives, nouns, themes = ADJECTIVES.split(), NOUNS.split(), THEMES.split()
    names = len(adjectives) * len(nouns) * len(themes)
    # Multiplying by an odd number permutes the names, so that neighbours differ.
    theme, rest = divmod(index * 1371 % names, len(adjectives) * len(nouns))
    adjective, noun = divmod(rest, len(nouns))
    name = f"{adjectives[adjective]} {nouns[noun]} {themes[theme]}".capitalize()
    repetition = index // names
    return (f"{name} {repetition + 1}" if repetition else name), themes[theme].capitalize()


def define_flags(flag_values):
    """Defines the flags of the program."""
    program.define_flags(flag_values, "seed", "num_classes", "feature_sizes", "max_frames")
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory for train*.tfrecord, validate*.tfrecord, test*.tfrecord and vocabulary.csv; "
        "created if need be.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("num_videos", 1000, "Training videos.", flag_values=flag_values)
    flags.DEFINE_integer(
        "num_eval_videos",
        None,
        "Videos of validate, and as many again of test. Default: a tenth of --num_videos.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "min_frames",
        None,
        "Frames of the shortest videos; lengths vary evenly up to --max_frames. Default: a fifth "
        "of --max_frames.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "shards",
        4,
        "Training files. validate and test have a quarter as many each, at least one. Their "
        "number does not change the videos.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "level",
        "frame",
        "frame: SequenceExamples with every frame. video: Examples with the mean over the frames "
        "of the same videos.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "world",
        "scenes",
        list(STORIES),
        "What sets the classes apart. scenes: the visual words that occur together. bag: also the "
        "order of scenes, or the sound alone. relational: mostly the light in which two words are "
        "seen. unrelated: as relational, with lights that tell nothing.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "feature_names",
        ["rgb", "audio"],
        "Names of the features. The first one is the picture, others are like sound.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "overwrite", False, "Replace sample data in --output_dir.", flag_values=flag_values
    )


def main(flag_values):
    """Runs the program."""
    program.require_flags(flag_values, "output_dir")
    summary = make_sample_data(
        flag_values.output_dir,
        num_videos=flag_values.num_videos,
        num_eval_videos=flag_values.num_eval_videos,
        num_classes=flag_values.num_classes,
        feature_names=flag_values.feature_names,
        feature_sizes=program.integer_list(flag_values, "feature_sizes"),
        max_frames=flag_values.max_frames,
        min_frames=flag_values.min_frames,
        shards=flag_values.shards,
        seed=flag_values.seed,
        level=flag_values.level,
        world=flag_values.world,
        overwrite=flag_values.overwrite,
    )
    logging.info(
        "wrote %s videos in %d files, %.1f MB, %.2f labels a video, %.0f videos/s: %s",
        " + ".join(f"{count} {split}" for split, count in summary.videos.items()),
        len(summary.files),
        summary.num_bytes / 1e6,
        summary.labels_per_video,
        summary.videos_per_second,
        flag_values.output_dir,
    )


if __name__ == "__main__":
    program.run(main, define_flags)
