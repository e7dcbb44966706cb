"""The story behind the sample data: a world of words, scenes and classes, and its videos.

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

That is the world `scenes`. In other ones (`STORIES`) some classes come in pairs of siblings, which
look alike but for one ingredient: the order of two scenes, the sound, or the relation between the
lights in which two words are seen.
"""

import dataclasses
import itertools

import numpy as np

import utils

SPLITS = ("train", "validate", "test")

# The world.
WORDS_PER_DIMENSION = 4
BACKGROUND_WORDS = 8
MAX_SCENES = 3
SCENE_WORD_SHARES = (0.4, 0.3, 0.2, 0.1)
WORD_SPREAD = 0.5
FRAME_NOISE = 0.5

# The videos.
BACKGROUND_WEIGHT = 0.4
SOUND_OF_CLASS_SHARE = 0.5
LOST_LABEL_SHARE = 0.05
REPLACED_LABEL_SHARE = 0.05

# Videos drawn together. They depend on the seed, the split and the number of the chunk, never on
# the other chunks, the files or the level.
VIDEOS_PER_CHUNK = 32

INGREDIENTS = ("words", "order", "sound", "relation")


@dataclasses.dataclass(frozen=True)
class Story:
    """What the classes of a world differ in.

    Classes 2k and 2k + 1 are a pair. Both have the same ingredient:

    - `words`: each has scenes and a sound of its own.
    - `order`: they share two scenes and the sound. A run of the first one shows the scenes one
      after the other, a run of the second one the other way round.
    - `sound`: they share the scenes, and each is always heard with its own sound.
    - `relation`: they share a scene of two words, and the sound. A run of the first one shows both
      words in the same light, a run of the second one in opposite lights.

    Attributes:
        ingredients: tuple of str. The ingredients of the pairs, in turns.
        label_count_shares: tuple of float. Shares of the videos that show 1, 2, ... classes.
        zipf_shift: float. Class c is drawn with weight `1 / (c + 1 + zipf_shift)`.
        num_words: int. Visual words beside those of the background; None for `WORDS_PER_DIMENSION`
            times the size of the feature.
        light: float. Every run shows its words bright or dark: this much is added to, or taken
            from, each value of the picture along a direction that all words share.
        relations: bool. Whether the lights of the two words of a `relation` are related. Without,
            no model can tell the siblings apart.
    """

    ingredients: tuple[str, ...] = ("words",)
    label_count_shares: tuple[float, ...] = (0.10, 0.22, 0.28, 0.24, 0.16)
    zipf_shift: float = 0.0
    num_words: int | None = None
    light: float = 0.0
    relations: bool = True


_RELATIONAL = Story(
    ingredients=("words", "relation", "relation"),
    label_count_shares=(0.55, 0.30, 0.10, 0.03, 0.02),
    zipf_shift=10.0,
    num_words=12,
    light=0.25,
)
STORIES = {
    "scenes": Story(),
    "bag": Story(ingredients=("words", "words", "order", "words", "words", "sound", "words")),
    "relational": _RELATIONAL,
    "unrelated": dataclasses.replace(_RELATIONAL, relations=False),
}


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
        story: `Story`.
    """

    def __init__(self, seed, num_classes, feature_sizes, story=STORIES["scenes"]):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        weights = 1.0 / (np.arange(1, num_classes + 1) + story.zipf_shift)
        self.num_classes = num_classes
        self.story = story
        self.class_shares = weights / weights.sum()
        self.words = [
            _draw_words(rng, size, None if feature else story.num_words)
            for feature, size in enumerate(feature_sizes)
        ]
        self.scenes = _draw_scenes(rng, num_classes, len(self.words[0]))
        self.sounds = [rng.integers(len(words), size=num_classes + 1) for words in self.words[1:]]
        self.light = story.light * rng.choice(np.float32([-1.0, 1.0]), size=feature_sizes[0])
        self.ingredients = _ingredients(story, num_classes)
        self._make_siblings_alike(rng)

    def has(self, ingredient):
        """Which classes, the background included, have an ingredient: bool `[C + 1]`."""
        return self.ingredients == INGREDIENTS.index(ingredient)

    def _make_siblings_alike(self, rng):
        """Gives the classes of a pair what they share, and siblings in sound different ones."""
        order, sound, relation = (self.has(name) for name in INGREDIENTS[1:])
        classes = np.arange(self.num_classes + 1)
        first = classes // 2 * 2
        # The scenes of an order are one of each sibling: the own one comes first in a run.
        self.scenes[order, 1] = self.scenes[classes[order] ^ 1, 0]
        self.scenes[sound] = self.scenes[first[sound]]
        if relation.any():
            pairs = itertools.combinations(range(BACKGROUND_WORDS, len(self.words[0])), 2)
            pairs = rng.permutation(np.array(list(pairs)))
            rank = np.unique(first[relation], return_inverse=True)[1]
            own = pairs[rank % len(pairs)]
            self.scenes[relation] = np.tile(own, 2)[:, None]
        for sounds in self.sounds:
            alike = order | relation
            sounds[alike] = sounds[first[alike]]
            second = np.flatnonzero(sound & (classes > first))
            equal = second[sounds[second] == sounds[first[second]]]
            sounds[equal] ^= 1


def _ingredients(story, num_classes):
    """Number of the ingredient of every class and the background, `[num_classes + 1]`."""
    turns = np.array([INGREDIENTS.index(name) for name in story.ingredients])
    ingredients = turns[np.arange(num_classes + 1) // 2 % len(turns)]
    ingredients[num_classes // 2 * 2 :] = INGREDIENTS.index("words")  # Without a sibling.
    return ingredients


def _draw_words(rng, size, num_words):
    """Points of a feature space, `[num_words + BACKGROUND_WORDS, size]`."""
    shape = ((num_words or WORDS_PER_DIMENSION * size) + BACKGROUND_WORDS, size)
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
    shares = world.story.label_count_shares
    most = min(len(shares), world.num_classes)
    counts = 1 + rng.choice(len(shares), size=len(num_frames), p=shares)
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
    scene = rng.integers(MAX_SCENES, size=len(lengths))[run]
    later = np.arange(len(run)) >= (np.cumsum(lengths) - lengths // 2)[run]
    scene = np.where(world.has("order")[classes[run]], later, scene)
    place = rng.choice(len(SCENE_WORD_SHARES), size=len(run), p=SCENE_WORD_SHARES)
    words = [world.scenes[classes[run], scene, place]]
    for table, sounds in zip(world.words[1:], world.sounds, strict=True):
        any_word = rng.integers(len(table), size=len(lengths))
        of_class = rng.random(len(lengths)) < SOUND_OF_CLASS_SHARE
        of_class |= world.has("sound")[classes]
        words.append(np.where(of_class, sounds[classes], any_word)[run])
    points = [table[chosen] for table, chosen in zip(world.words, words, strict=True)]
    if world.story.light:
        lights = _draw_lights(world, rng, classes)
        points[0] += lights[run, place % 2, None] * world.light
    return [_blur(rng, point) for point in points]


def _draw_lights(world, rng, classes):
    """Lights of the words at even and at odd places of every run's scene, -1 or 1, `[runs, 2]`."""
    lights = rng.choice(np.float32([-1.0, 1.0]), size=(len(classes), 2))
    if world.story.relations:
        related = world.has("relation")[classes]
        same = np.where(classes % 2 == 0, 1.0, -1.0)
        lights[related, 1] = (same * lights[:, 0])[related]
    return lights


def _blur(rng, points):
    """The points with noise, quantised."""
    values = rng.standard_normal(points.shape, dtype=np.float32)
    values *= FRAME_NOISE
    values += points
    return utils.quantize(values)
