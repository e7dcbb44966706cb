"""Generative model of the sample data: its parameters (`World`) and its videos (`Generator`).

Sampling a data set works as follows:

1. The parameters of the world are sampled once from the seed. Visual words are points of the visual
   feature space, four times as many as it has dimensions. A scene is a distribution over four
   words with probabilities 0.4, 0.3, 0.2 and 0.1. Each class has one to three scenes. The scenes of
   all classes use the same words, so a single word does not identify a class.
2. A video shows one to five classes, about three on average. Class c has a probability proportional
   to 1 / (c + 1), a Zipf distribution with class 0 as the most frequent class.
3. Each class occupies one run of consecutive frames and uses one of its scenes. Every frame of the
   run shows one word of the scene. Run lengths are random, and some runs are short. Background
   frames, from scenes that all videos share, fill the time before, between and after the runs.
4. The feature of a frame is its word plus Gaussian noise, quantized to bytes.
5. Every further feature, such as audio, has its own words, called sounds. A run keeps one sound: in
   half of the runs the sound of the class, otherwise a random one.
6. The labels are the classes shown, except that a few are dropped and a few replaced.
7. If wanted, some segments of five frames are rated for a class: 1 if the class fills most of the
   segment, otherwise 0, except that a few ratings are wrong.

A model that ignores the frames can only score the class prior. The mean over the frames mixes more
words than it has dimensions, and short runs have little weight in it. A model of single frames can
recognize the words, and infer scenes from words that occur together.

This is the world `scenes`. In the other `WORLDS`, classes come in pairs that differ in a single
factor: the order of two scenes, the sound, or the correlation of the shifts of two words.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import quantization
from segments.config import SEGMENT_SIZE

if TYPE_CHECKING:
    from segments.ratings import Ratings

SPLITS = ("train", "validate", "test")

# The world.
WORDS_PER_DIMENSION = 4
BACKGROUND_WORDS = 8
MAX_SCENES = 3
SCENE_WORD_PROBABILITIES = (0.4, 0.3, 0.2, 0.1)
WORD_SCALE = 0.5
NOISE_SCALE = 0.5

# The videos.
BACKGROUND_WEIGHT = 0.4
CLASS_SOUND_PROBABILITY = 0.5
LABEL_DROP_RATE = 0.05
LABEL_REPLACEMENT_RATE = 0.05

# The ratings. A rated class is the one that fills most of the segment, or one that the video shows,
# or any class, with these probabilities.
SEGMENTS_PER_VIDEO = 5
RATED_CLASS_PROBABILITIES = (0.5, 0.25, 0.25)
RATING_ERROR_RATE = 0.05

# Videos are sampled in chunks. A chunk depends only on the seed, the split and its index, not on
# other chunks, the files or the level.
VIDEOS_PER_CHUNK = 32

FACTORS = ("words", "order", "sound", "relation")


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Configuration of a world.

    Classes 2k and 2k + 1 form a pair. One factor distinguishes the two classes:

    - `words`: the scenes and the sound differ.
    - `order`: both have the same two scenes and the same sound. Runs of the even class show the
      scenes in one order, runs of the odd class in the reverse order.
    - `sound`: both have the same scenes. Every run has the sound of its class.
    - `relation`: both have the same scene of two words and the same sound. In a run of the even
      class, both words are shifted in the same direction, in a run of the odd class in opposite
      directions.

    Attributes:
        factors: tuple of str. Factors of the pairs, repeated cyclically.
        label_count_probabilities: tuple of float. Probabilities of 1, 2, ... classes in a video.
        zipf_offset: float. Class c has a probability proportional to `1 / (c + 1 + zipf_offset)`.
        num_words: int. Visual words, not counting those of the background. `None` stands for
            `WORDS_PER_DIMENSION` times the size of the feature.
        shift_scale: float. Magnitude, in every dimension, of the shift of the visual words. All
            words are shifted along the same line; each run samples the directions.
        related_shifts: bool. If false, the shifts of a `relation` are independent, and no model
            can distinguish the classes of the pair.
    """

    factors: tuple[str, ...] = ("words",)
    label_count_probabilities: tuple[float, ...] = (0.10, 0.22, 0.28, 0.24, 0.16)
    zipf_offset: float = 0.0
    num_words: int | None = None
    shift_scale: float = 0.0
    related_shifts: bool = True


_RELATIONAL = WorldConfig(
    factors=("words", "relation", "relation"),
    label_count_probabilities=(0.55, 0.30, 0.10, 0.03, 0.02),
    zipf_offset=10.0,
    num_words=12,
    shift_scale=0.25,
)
WORLDS = {
    "scenes": WorldConfig(),
    "bag": WorldConfig(factors=("words", "words", "order", "words", "words", "sound", "words")),
    "relational": _RELATIONAL,
    "unrelated": dataclasses.replace(_RELATIONAL, related_shifts=False),
}


@dataclasses.dataclass(frozen=True)
class Video:
    """A generated video.

    Attributes:
        id: str.
        labels: list of int, ascending.
        features: dict from the name of each feature to its uint8 array `[T, D]`.
        shown: class that each frame shows, int array `[T]`; `num_classes` for the background.
        ratings: `segments.ratings.Ratings`, or None.
    """

    id: str
    labels: list[int]
    features: dict[str, np.ndarray]
    shown: np.ndarray
    ratings: "Ratings | None" = None


class World:
    """Parameters that all videos share: the words of every feature, and scenes and sounds by class.

    The background is an additional class with index `num_classes` that is never a label.

    Args:
        seed: int.
        num_classes: int. Number of classes, in order of decreasing frequency.
        feature_sizes: sequence of int. The first feature is the visual one, the others are sounds.
        config: `WorldConfig`.
    """

    def __init__(self, seed, num_classes, feature_sizes, config=WORLDS["scenes"]):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        weights = 1.0 / (np.arange(1, num_classes + 1) + config.zipf_offset)
        self.num_classes = num_classes
        self.config = config
        self.class_probabilities = weights / weights.sum()
        self.words = [
            _sample_words(rng, size, None if feature else config.num_words)
            for feature, size in enumerate(feature_sizes)
        ]
        self.scenes = _sample_scenes(rng, num_classes, len(self.words[0]))
        self.sounds = [rng.integers(len(words), size=num_classes + 1) for words in self.words[1:]]
        self.shift = config.shift_scale * rng.choice(np.float32([-1.0, 1.0]), size=feature_sizes[0])
        self.factors = _class_factors(config, num_classes)
        self._tie_pairs(rng)

    def has_factor(self, name: str) -> np.ndarray:
        """Returns which classes, and the background, have this factor: bool `[C + 1]`."""
        return self.factors == FACTORS.index(name)

    def _tie_pairs(self, rng):
        """Makes the classes of a pair equal in everything but their factor."""
        order, sound, relation = (self.has_factor(name) for name in FACTORS[1:])
        classes = np.arange(self.num_classes + 1)
        first = classes // 2 * 2
        # With `order`, the pair has one scene of each class. A run starts with its own.
        self.scenes[order, 1] = self.scenes[classes[order] ^ 1, 0]
        self.scenes[sound] = self.scenes[first[sound]]
        if relation.any():
            words = itertools.combinations(range(BACKGROUND_WORDS, len(self.words[0])), 2)
            words = rng.permutation(np.array(list(words)))
            rank = np.unique(first[relation], return_inverse=True)[1]
            self.scenes[relation] = np.tile(words[rank % len(words)], 2)[:, None]
        for sounds in self.sounds:
            tied = order | relation
            sounds[tied] = sounds[first[tied]]
            second = np.flatnonzero(sound & (classes > first))
            equal = second[sounds[second] == sounds[first[second]]]
            sounds[equal] ^= 1


def _class_factors(config, num_classes):
    """Index of the factor of every class and of the background, `[C + 1]`."""
    cycle = np.array([FACTORS.index(name) for name in config.factors])
    factors = cycle[np.arange(num_classes + 1) // 2 % len(cycle)]
    factors[num_classes // 2 * 2 :] = FACTORS.index("words")  # Not part of a pair.
    return factors


def _sample_words(rng, size, num_words):
    """Points of a feature space, `[num_words + BACKGROUND_WORDS, size]`."""
    shape = ((num_words or WORDS_PER_DIMENSION * size) + BACKGROUND_WORDS, size)
    return WORD_SCALE * rng.standard_normal(shape, dtype=np.float32)


def _sample_scenes(rng, num_classes, num_words):
    """Words of every scene, `[C + 1, MAX_SCENES, words of a scene]`.

    A class with fewer scenes repeats them. The first `BACKGROUND_WORDS` words belong to the
    background.
    """
    shape = (num_classes + 1, MAX_SCENES, len(SCENE_WORD_PROBABILITIES))
    words = rng.integers(BACKGROUND_WORDS, num_words, size=shape)
    words[-1] = rng.integers(BACKGROUND_WORDS, size=shape[1:])
    num_scenes = rng.integers(1, MAX_SCENES + 1, size=(num_classes + 1, 1))
    num_scenes[-1] = MAX_SCENES
    repeated = np.arange(MAX_SCENES) % num_scenes
    return np.take_along_axis(words, repeated[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples the videos of a world, each with `min_frames` to `max_frames` frames.

    Each label of a training video is missing with the probability `missing_labels`. With
    `rates_segments`, videos have ratings. Everything else of a video depends on neither.
    """

    world: World
    seed: int
    feature_names: tuple[str, ...]
    min_frames: int
    max_frames: int
    missing_labels: float = 0.0
    rates_segments: bool = False

    def videos(self, split: str) -> Iterator[Video]:
        """Yields the videos of a split without end, always the same ones in the same order."""
        for chunk in itertools.count():
            key = (1 + SPLITS.index(split), chunk)
            for_videos, for_labels, for_ratings = (
                np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=spawn_key))
                for spawn_key in (key, (1 + len(SPLITS), chunk), (*key, 0))
            )
            for index, (labels, features, shown) in enumerate(self._sample_chunk(for_videos)):
                if split == "train" and self.missing_labels:
                    kept = for_labels.random(len(labels)) >= self.missing_labels
                    labels = np.array(labels)[kept].tolist()
                number = chunk * VIDEOS_PER_CHUNK + index
                rates = self.rates_segments
                ratings = _sample_ratings(self.world, for_ratings, shown) if rates else None
                yield Video(f"{split}{number:07d}", labels, features, shown, ratings)

    def _sample_chunk(self, rng):
        """Yields labels, features and the classes shown of `VIDEOS_PER_CHUNK` videos."""
        num_frames = rng.integers(self.min_frames, self.max_frames + 1, size=VIDEOS_PER_CHUNK)
        shown = _sample_classes(self.world, rng, num_frames)
        labels = _sample_labels(self.world, rng, shown)
        classes, lengths = _sample_runs(self.world, rng, shown, num_frames)
        frames = _sample_frames(self.world, rng, classes.ravel(), lengths.ravel())
        of_frames = np.repeat(classes.ravel(), lengths.ravel())
        ends = np.cumsum(num_frames)
        for row, start, end in zip(labels, ends - num_frames, ends, strict=True):
            features = [feature[start:end] for feature in frames]
            yield row, dict(zip(self.feature_names, features, strict=True)), of_frames[start:end]


def _sample_classes(world, rng, num_frames):
    """Distinct classes of every video in the order of their runs, `[V, L]`, padded with -1.

    The classes with the largest log weights plus Gumbel noise are a weighted sample without
    replacement.
    """
    probabilities = world.config.label_count_probabilities
    most = min(len(probabilities), world.num_classes)
    counts = 1 + rng.choice(len(probabilities), size=len(num_frames), p=probabilities)
    keys = rng.gumbel(size=(len(num_frames), world.num_classes)) + np.log(world.class_probabilities)
    sampled = np.argsort(-keys, axis=1)[:, :most]
    used = np.arange(most) < np.minimum(counts, num_frames)[:, None]
    order = np.argsort(np.where(used, rng.random(used.shape), 2.0), axis=1)
    return np.take_along_axis(np.where(used, sampled, -1), order, axis=1)


def _sample_labels(world, rng, shown):
    """Labels of every video: the classes shown with label noise, at least one per video."""
    chance = rng.random(shown.shape)
    others = rng.choice(world.num_classes, size=shown.shape, p=world.class_probabilities)
    labels = np.where(chance < LABEL_REPLACEMENT_RATE, others, shown)
    dropped = chance > 1.0 - LABEL_DROP_RATE
    dropped[:, 0] = False
    labels[dropped | (shown < 0)] = -1
    return [sorted(set(row) - {-1}) for row in labels.tolist()]


def _sample_ratings(world, rng, shown):
    """Rates up to `SEGMENTS_PER_VIDEO` segments of a video for one class each.

    Args:
        world: `World`.
        rng: random generator.
        shown: class that each frame shows, `[T]`.

    Returns:
        `segments.ratings.Ratings`.
    """
    # Imported here because segments needs TensorFlow, and videos without ratings do not.
    from segments.ratings import Ratings

    segments = shown[: len(shown) // SEGMENT_SIZE * SEGMENT_SIZE].reshape(-1, SEGMENT_SIZE)
    count = min(SEGMENTS_PER_VIDEO, len(segments))
    chosen = np.sort(rng.choice(len(segments), count, replace=False))
    middle = np.sort(segments[chosen], axis=1)[:, SEGMENT_SIZE // 2]  # That of most frames, if any.
    candidates = np.stack(
        [
            middle,
            rng.choice(shown, count),
            rng.choice(world.num_classes, count, p=world.class_probabilities),
        ]
    )
    kind = rng.choice(len(candidates), count, p=RATED_CLASS_PROBABILITIES)
    rated = candidates[kind, np.arange(count)]
    rated = np.where(rated == world.num_classes, candidates[-1], rated)  # Not the background.
    fills = (segments[chosen] == rated[:, None]).sum(axis=1) > SEGMENT_SIZE // 2
    is_wrong = rng.random(count) < RATING_ERROR_RATE
    return Ratings(chosen * SEGMENT_SIZE, rated, (fills ^ is_wrong).astype(np.int64))


def _sample_runs(world, rng, shown, num_frames):
    """Class and length of every run of frames, both `[V, 2 L + 1]`.

    Odd columns are the classes shown, with at least one frame each. Even columns are background.
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


def _sample_frames(world, rng, classes, lengths):
    """Quantized features of the frames of all runs: a list with a `[frames, D]` array each."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    scene = rng.integers(MAX_SCENES, size=len(lengths))[run]
    second_half = np.arange(len(run)) >= (np.cumsum(lengths) - lengths // 2)[run]
    scene = np.where(world.has_factor("order")[classes[run]], second_half, scene)
    slot = rng.choice(len(SCENE_WORD_PROBABILITIES), size=len(run), p=SCENE_WORD_PROBABILITIES)
    words = [world.scenes[classes[run], scene, slot]]
    for table, sounds in zip(world.words[1:], world.sounds, strict=True):
        random_sounds = rng.integers(len(table), size=len(lengths))
        of_class = rng.random(len(lengths)) < CLASS_SOUND_PROBABILITY
        of_class |= world.has_factor("sound")[classes]
        words.append(np.where(of_class, sounds[classes], random_sounds)[run])
    means = [table[chosen] for table, chosen in zip(world.words, words, strict=True)]
    if world.config.shift_scale:
        signs = _sample_shift_signs(world, rng, classes)
        means[0] += signs[run, slot % 2, None] * world.shift
    return [_add_noise(rng, mean) for mean in means]


def _sample_shift_signs(world, rng, classes):
    """Sign of the shift of the words in even and in odd slots of every run's scene, `[runs, 2]`."""
    signs = rng.choice(np.float32([-1.0, 1.0]), size=(len(classes), 2))
    if world.config.related_shifts:
        related = world.has_factor("relation")[classes]
        product = np.where(classes % 2 == 0, 1.0, -1.0)
        signs[related, 1] = (product * signs[:, 0])[related]
    return signs


def _add_noise(rng, means):
    """Adds Gaussian noise and quantizes."""
    values = rng.standard_normal(means.shape, dtype=np.float32)
    values *= NOISE_SCALE
    values += means
    return quantization.YOUTUBE8M.quantize(values)
