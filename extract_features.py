"""Computes frame features of videos with an image network.

    python extract_features.py --input_data_pattern='videos/*.mp4' --features_dir=features

Writes an array [T, D] per video, NAME.npz, with a row per second of video. To resume an interrupted
run, repeat its command: videos that have features are left out.

The features are not those of YouTube-8M, so models that were trained on its records cannot use
them.
"""

import collections
import dataclasses
import functools
import io
import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import program
from program import Progress

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import files
from options import Options, option
from own_data import backbones, video_frames
from own_data.video_frames import VideoDecoder
from utils import InputError, comma_separated, examples

_SETTINGS = "extract_features.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractOptions(Options):
    """Options of this program."""

    input_data_pattern: str = option(
        help="Globs of videos of any format that FFmpeg reads, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    frames_per_second: float = option(
        1.0, "Frames per second of video to compute features of.", group="data", above=0
    )
    max_frames: int = option(
        300, "Frames per video; later ones are left out.", group="data", above=0
    )
    backbone: str = option(
        "InceptionV3",
        "Image network: any of keras.applications by name, for example EfficientNetV2B0.",
        group="model",
    )
    weights: str = option(
        "imagenet",
        "Weights of the network: imagenet, which Keras downloads once; the path of a file of "
        "weights; or none for random weights, which are always the same.",
        group="model",
    )
    image_size: int | None = option(
        None,
        "Height and width in pixels to which frames are resized. Default: the size for which the "
        "network was trained.",
        group="model",
        above=0,
    )
    batch_size: int = option(32, "Frames per batch.", group="devices", above=0)
    features_dir: str = option(
        help="Directory to write NAME.npz to, for a video NAME.mp4.", group="output", required=True
    )
    feature_dtype: str = option(
        "float16", "Type of the features.", group="output", choices=("float16", "float32")
    )

    def __post_init__(self):
        """Checks the network."""
        super().__post_init__()
        backbones.check(self.backbone, self.weights)

    def settings(self) -> dict[str, Any]:
        """Returns everything that the features of a video depend on, as a dict for JSON."""
        weights: Any = self.weights
        if weights not in ("imagenet", "none"):
            fingerprint = files.fingerprint(weights)
            weights = {name: fingerprint[name] for name in ("size", "digest")}
        names = ("backbone", "frames_per_second", "max_frames", "feature_dtype")
        return {
            **{name: getattr(self, name) for name in names},
            "weights": weights,
            "image_size": self.image_size or backbones.default_image_size(self.backbone),
        }


def finished_features(folder: str, settings: dict[str, Any]) -> set[str]:
    """Returns the names of the files with features in a directory, which may not exist.

    Raises:
        InputError: if they have other settings, or their settings are unknown.
    """
    names = set(files.gfile.listdir(folder)) if files.gfile.isdir(folder) else set()
    finished = {name for name in names if name.endswith(".npz")}
    if finished and _SETTINGS not in names:
        raise InputError(
            f"{folder} has .npz files but no {_SETTINGS}, so extract_features.py did not write "
            "them. Choose another --features_dir."
        )
    if finished:
        _check_equal(folder, files.read_json(os.path.join(folder, _SETTINGS)), settings)
    return finished


def _check_equal(folder, found, settings):
    differing = [
        f"{name} is {found.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted({*found, *settings})
        if found.get(name) != settings.get(name)
    ]
    if differing:
        raise InputError(
            f"{folder} has features with other settings: {comma_separated(differing)}. Give the "
            "same flags to add videos, or choose another --features_dir."
        )


def output_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns the names of the files of features, by path of the video.

    Raises:
        InputError: if two videos have the same name without its ending.
    """
    found: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0] + ".npz"
        if name in found:
            raise InputError(
                f"the features of both {found[name]} and {path} would be {name}. Rename one of "
                "the videos, or use two directories."
            )
        found[name] = path
    return {path: name for name, path in found.items()}


def write_features(path: str, features: np.ndarray, dtype: str) -> None:
    """Writes the features of a video, `[T, D]`, completely or not at all.

    Raises:
        InputError: if a feature is not finite in this type.
    """
    with np.errstate(over="ignore"):
        features = features.astype(dtype)
    if not np.isfinite(features).all():
        raise InputError(
            f"{path} would have features that are not finite in {dtype}. Check --weights, or use "
            "--feature_dtype=float32."
        )
    content = io.BytesIO()
    np.savez(content, rgb=features)
    with files.atomic_path(path) as partial, files.open_binary(partial, "wb") as file:
        file.write(content.getvalue())


def extract_videos(
    network: keras.Model, videos: VideoDecoder, outputs: Sequence[str], batch_size: int, dtype: str
) -> int:
    """Writes the features of videos.

    A batch may hold frames of several videos. Memory does not grow with the number of videos.

    Args:
        network: model from images to features, as `backbones.build` returns it.
        videos: decoder of the videos.
        outputs: path to write, for each video.
        batch_size: frames per batch.
        dtype: type of the features.

    Returns:
        The number of frames.

    Raises:
        InputError: if a file cannot be written.
    """
    signature = tf.TensorSpec(network.input_shape, tf.uint8)
    compute = tf.function(functools.partial(network, training=False), input_signature=[signature])
    rows = collections.defaultdict(list)
    num_frames = num_done = 0
    start = time.perf_counter()
    with Progress(len(outputs), "video") as progress:
        for batch in _batches(videos, batch_size):
            images = [image for _, image in batch if image is not None]
            features = iter(compute(np.stack(images)).numpy() if images else [])
            for number, image in batch:
                if image is not None:
                    rows[number].append(next(features))
                    continue
                if number in rows:
                    write_features(outputs[number], np.stack(rows.pop(number)), dtype)
                num_done += 1
            num_frames += len(images)
            seconds = time.perf_counter() - start
            progress.tick(num_done, _progress_text(num_done, len(outputs), num_frames, seconds))
    return num_frames


def _batches(videos, batch_size):
    """Groups images, and the ends of videos between them, so that a group has batch_size images."""
    batch, num_images = [], 0
    for number, image in videos:
        batch.append((number, image))
        num_images += image is not None
        if num_images == batch_size:
            yield batch
            batch, num_images = [], 0
    yield batch


def _progress_text(num_done, total, num_frames, seconds):
    text = f"{num_done} of {total} videos, {num_frames / seconds:.0f} frames/s"
    if num_done:
        text += f", {(total - num_done) * seconds / num_done / 60:.0f} min left"
    return text


def main(options: ExtractOptions) -> None:
    """Runs the program."""
    video_frames.check_decoder()
    names = output_names(files.expand_patterns(options.input_data_pattern))
    settings = options.settings()
    finished = finished_features(options.features_dir, settings)
    paths = [path for path, name in names.items() if name not in finished]
    if len(paths) < len(names):
        logging.info("%d of %d videos have features already", len(names) - len(paths), len(names))
    videos = VideoDecoder(
        paths,
        image_size=settings["image_size"],
        frames_per_second=options.frames_per_second,
        max_frames=options.max_frames,
        buffer_size=2 * options.batch_size,
    )
    start = time.perf_counter()
    num_frames = 0
    if paths:
        network = backbones.build(options.backbone, options.weights, settings["image_size"])
        files.write_json(os.path.join(options.features_dir, _SETTINGS), settings)
        outputs = [os.path.join(options.features_dir, names[path]) for path in paths]
        num_frames = extract_videos(
            network, videos, outputs, options.batch_size, options.feature_dtype
        )
    logging.info(
        "features of %d videos, %d frames, %.1f s, %d videos damaged, %d skipped: %s",
        len(paths) - len(videos.skipped),
        num_frames,
        time.perf_counter() - start,
        len(videos.damaged),
        len(videos.skipped),
        files.absolute(options.features_dir),
    )
    print(f"Now make records of the features and your labels:\n    {_next_command(options)}")
    _report_skipped(videos)


def _next_command(options):
    return shlex.join(
        [
            *("python", "make_records.py", f"--input_data_pattern={options.features_dir}"),
            f"--frames_per_second={options.frames_per_second:g}",
            "--labels_file=labels.csv",
            "--output_dir=records",
        ]
    )


def _report_skipped(videos):
    """Fails if videos have no features, so that the exit status says so."""
    if videos.skipped:
        reasons = [f"{path} ({reason})" for path, reason in videos.skipped.items()]
        raise InputError(
            f"{len(reasons)} of {len(videos.paths)} videos cannot be decoded and have no features: "
            f"{examples(reasons)}. All others have features."
        )


if __name__ == "__main__":
    program.run(main)
