r"""Makes sample data: true YouTube-8M records, generated from a story that is worth learning.

The story, in the order in which a video comes about:

1. The world is drawn once from the seed. It has visual words: points of the picture's feature
   space, four times as many as it has dimensions. A scene is four words, seen 40, 30, 20 and 10
   percent of the time. A class owns one to three scenes. As the scenes of all classes are drawn
   from the same words, a single word decides nothing.
2. A video shows one to five classes, about three on average. Class c is drawn with weight
   1 / (c + 1): a Zipf law, so that class 0 is the most frequent one.
3. Each class is on screen for one run of frames, in one of its scenes, and every frame of the run
   shows one of the scene's words. The runs share the video at random, so that some are brief.
   Before, between and after them come frames of background scenes, the same in all videos.
4. A frame's feature is its word plus noise of its own, quantised to bytes.
5. Every other feature is like sound: it has its own words, and one of them lasts for a whole run.
   Half of the time it is the word of the class, else any word.
6. The labels are the classes shown, but a few are lost and a few replaced by another class.

So a model that ignores the frames can only score the class prior. The mean over the frames mixes
more words than it has dimensions, and brief runs drown in it. A model that looks at single frames
recognises the words and, from those that occur together, the scenes.

To make 20,000 small videos:

    python make_sample_data.py --output_dir=/tmp/sample --num_videos=20000 --num_classes=120 \
        --feature_sizes=64,16 --max_frames=40

docs/sample_data.md tells more, with the scores of simple models.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import time

import numpy as np
import tensorflow as tf
import tqdm
from absl import flags, logging

import program
import utils
from files import atomic_write, gfile
from utils import InputError, listing

SPLITS = ("train", "validate", "test")
LEVELS = ("frame", "video")
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

# The world.
WORDS_PER_DIMENSION = 4
BACKGROUND_WORDS = 8
MAX_SCENES = 3
SCENE_WORD_SHARES = (0.4, 0.3, 0.2, 0.1)
WORD_SPREAD = 0.5
FRAME_NOISE = 0.5

# The videos.
LABEL_COUNT_SHARES = (0.10, 0.22, 0.28, 0.24, 0.16)
BACKGROUND_WEIGHT = 0.4
SOUND_OF_CLASS_SHARE = 0.5
LOST_LABEL_SHARE = 0.05
REPLACED_LABEL_SHARE = 0.05

# Videos drawn together. They depend on the seed, the split and the number of the chunk, never on
# the other chunks, the files or the level.
VIDEOS_PER_CHUNK = 32


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


@dataclasses.dataclass(frozen=True)
class Video:
    """One generated video: its labels, ascending, and a uint8 array `[T, D]` per feature."""

    id: str
    labels: list[int]
    features: dict[str, np.ndarray]


class World:
    """What all videos share: the words of every feature and the classes made of them.

    The background is one class more, number `num_classes`, which is never a label.

    Args:
        seed: int.
        num_classes: int. Classes that can be labels, the most frequent one first.
        feature_sizes: sequence of int. The first feature is the picture, others are like sound.
    """

    def __init__(self, seed, num_classes, feature_sizes):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        weights = 1.0 / np.arange(1, num_classes + 1)
        self.num_classes = num_classes
        self.class_shares = weights / weights.sum()
        self.words = [_draw_words(rng, size) for size in feature_sizes]
        self.scenes = _draw_scenes(rng, num_classes, len(self.words[0]))
        self.sounds = [rng.integers(len(words), size=num_classes + 1) for words in self.words[1:]]


def _draw_words(rng, size):
    """Points of a feature space, `[WORDS_PER_DIMENSION * size + BACKGROUND_WORDS, size]`."""
    shape = (WORDS_PER_DIMENSION * size + BACKGROUND_WORDS, size)
    return WORD_SPREAD * rng.standard_normal(shape, dtype=np.float32)


def _draw_scenes(rng, num_classes, num_words):
    """Words of every scene, `[num_classes + 1, MAX_SCENES, words of a scene]`.

    A class with fewer scenes has them repeated. The first words belong to the background.
    """
    shape = (num_classes + 1, MAX_SCENES, len(SCENE_WORD_SHARES))
    words = rng.integers(BACKGROUND_WORDS, num_words, size=shape)
    words[-1] = rng.integers(BACKGROUND_WORDS, size=shape[1:])
    num_scenes = rng.integers(1, MAX_SCENES + 1, size=(num_classes + 1, 1))
    num_scenes[-1] = MAX_SCENES
    repeated = np.arange(MAX_SCENES) % num_scenes
    return np.take_along_axis(words, repeated[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Draws the videos of a world, each of `min_frames` to `max_frames` frames."""

    world: World
    seed: int
    feature_names: tuple[str, ...]
    min_frames: int
    max_frames: int

    def videos(self, split):
        """The endless videos of a split, in order and always the same ones."""
        for chunk in itertools.count():
            key = (1 + SPLITS.index(split), chunk)
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
            for index, (labels, features) in enumerate(self._draw_chunk(rng)):
                number = chunk * VIDEOS_PER_CHUNK + index
                yield Video(f"{split}{number:07d}", labels, features)

    def _draw_chunk(self, rng):
        """Labels and features of `VIDEOS_PER_CHUNK` videos."""
        num_frames = rng.integers(self.min_frames, self.max_frames + 1, size=VIDEOS_PER_CHUNK)
        shown = _draw_classes(self.world, rng, num_frames)
        labels = _draw_labels(self.world, rng, shown)
        classes, lengths = _draw_runs(self.world, rng, shown, num_frames)
        frames = _draw_frames(self.world, rng, classes.ravel(), lengths.ravel())
        ends = np.cumsum(num_frames)
        for row, start, end in zip(labels, ends - num_frames, ends, strict=True):
            features = [feature[start:end] for feature in frames]
            yield row, dict(zip(self.feature_names, features, strict=True))


def _draw_classes(world, rng, num_frames):
    """Distinct classes of every video in the order of their runs, `[V, L]`; -1 after the last.

    The largest log weights plus Gumbel noise are a weighted draw without replacement.
    """
    most = min(len(LABEL_COUNT_SHARES), world.num_classes)
    counts = 1 + rng.choice(len(LABEL_COUNT_SHARES), size=len(num_frames), p=LABEL_COUNT_SHARES)
    keys = rng.gumbel(size=(len(num_frames), world.num_classes)) + np.log(world.class_shares)
    drawn = np.argsort(-keys, axis=1)[:, :most]
    used = np.arange(most) < np.minimum(counts, num_frames)[:, None]
    order = np.argsort(np.where(used, rng.random(used.shape), 2.0), axis=1)
    return np.take_along_axis(np.where(used, drawn, -1), order, axis=1)


def _draw_labels(world, rng, shown):
    """Recorded labels of every video: those shown, a few lost or replaced, at least one left."""
    chance = rng.random(shown.shape)
    others = rng.choice(world.num_classes, size=shown.shape, p=world.class_shares)
    labels = np.where(chance < REPLACED_LABEL_SHARE, others, shown)
    lost = chance > 1.0 - LOST_LABEL_SHARE
    lost[:, 0] = False
    labels[lost | (shown < 0)] = -1
    return [sorted(set(row) - {-1}) for row in labels.tolist()]


def _draw_runs(world, rng, shown, num_frames):
    """Class and length of every run of frames, both `[V, 2 L + 1]`.

    Odd columns are the classes shown, each for at least one frame; the even ones are background.
    """
    counts = (shown >= 0).sum(axis=1)
    column = np.arange(2 * shown.shape[1] + 1)
    classes = np.full((len(shown), len(column)), world.num_classes)
    classes[:, 1::2] = shown
    weights = rng.standard_exponential(classes.shape)
    weights[:, ::2] *= BACKGROUND_WEIGHT
    weights[column > 2 * counts[:, None]] = 0.0
    ends = np.cumsum(weights, axis=1)
    ends = np.floor(ends / ends[:, -1:] * (num_frames - counts)[:, None]).astype(np.int64)
    lengths = np.diff(ends, axis=1, prepend=0)
    lengths[:, 1::2] += shown >= 0
    return classes, lengths


def _draw_frames(world, rng, classes, lengths):
    """Quantised features of all frames of all runs: for every feature a `[frames, D]` array."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    scene = rng.integers(MAX_SCENES, size=len(lengths))
    place = rng.choice(len(SCENE_WORD_SHARES), size=len(run), p=SCENE_WORD_SHARES)
    words = [world.scenes[classes[run], scene[run], place]]
    for table, sounds in zip(world.words[1:], world.sounds, strict=True):
        any_word = rng.integers(len(table), size=len(lengths))
        of_class = rng.random(len(lengths)) < SOUND_OF_CLASS_SHARE
        words.append(np.where(of_class, sounds[classes], any_word)[run])
    return [
        _draw_feature(rng, table, chosen) for table, chosen in zip(world.words, words, strict=True)
    ]


def _draw_feature(rng, table, words):
    values = rng.standard_normal((len(words), table.shape[1]), dtype=np.float32)
    values *= FRAME_NOISE
    values += table[words]
    return utils.quantize(values)


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
    _check_at_least(0, seed=seed)
    _check_at_least(
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
    if level not in LEVELS:
        raise InputError(f"level must be one of {listing(LEVELS)}. Received: {level!r}")
    _prepare_directory(output_dir, overwrite)
    world = World(seed, num_classes, feature_sizes)
    generator = Generator(world, seed, tuple(feature_names), min_frames, max_frames)
    plan = _plan_files(output_dir, num_videos, num_eval_videos, shards)
    serialize = _serialize_frames if level == "frame" else _serialize_means
    return _write_all(generator, plan, serialize, output_dir)


def _check_at_least(least, **numbers):
    for name, value in numbers.items():
        if value < least:
            raise InputError(f"{name} must be at least {least}. Received: {value}")


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
            f"Received: {listing(names)} and {listing(sizes)}"
        )
    if not names or not all(names) or len(set(names)) < len(names):
        raise InputError(f"feature_names must be distinct names. Received: {listing(names)}")
    if min(sizes) < 1:
        raise InputError(f"feature_sizes must be at least 1. Received: {listing(sizes)}")


def _prepare_directory(output_dir, overwrite):
    """Creates the directory, or removes older sample data from it if that is allowed."""
    try:
        gfile.makedirs(output_dir)
        older = sorted(name for name in gfile.listdir(output_dir) if OWN_FILES.fullmatch(name))
        if older and not overwrite:
            raise InputError(
                f"{output_dir!r} already holds sample data ({len(older)} files, as {older[0]}). "
                "Choose another --output_dir, or replace them with --overwrite."
            )
        for name in older:
            gfile.remove(os.path.join(output_dir, name))
    except tf.errors.OpError as error:
        raise InputError(f"cannot write to the directory {output_dir!r}: {error}") from error


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
    with tqdm.tqdm(total=total, unit="video", disable=None) as progress:
        for split, files in plan.items():
            label_counts[split] = _write_split(generator, split, files, serialize, progress)
    _write_vocabulary(os.path.join(output_dir, "vocabulary.csv"), label_counts["train"])
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
        with _record_file(path) as writer:
            for video in itertools.islice(videos, count):
                writer.write(serialize(video))
                label_counts[video.labels] += 1
                progress.update()
    return label_counts


@contextlib.contextmanager
def _record_file(path):
    """Opens a record file that appears under `path` only when it was written whole."""
    partial = f"{path}.partial"
    try:
        with tf.io.TFRecordWriter(partial) as writer:
            yield writer
        gfile.rename(partial, path, overwrite=True)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            gfile.remove(partial)
        if isinstance(error, tf.errors.OpError):
            raise InputError(f"cannot write {path!r}: {error}") from error
        raise


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


def _write_vocabulary(path, train_counts):
    """Writes the classes with the columns of YouTube-8M's vocabulary; what is unknown is empty."""
    with atomic_write(path) as file:
        file.write(f"{VOCABULARY_COLUMNS}\n")
        for index, count in enumerate(train_counts):
            name, vertical = class_name(index)
            file.write(f"{index},{count},/sample/{index},{name},,{vertical},,,\n")


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
