"""Measures the prediction of all segments of videos, at full size, on random frames.

    python benchmarks/segment_prediction.py
    python benchmarks/segment_prediction.py --recipes=soft_bof_4k --batch_size=16 --dtype=bfloat16

Prints the speed of predicting all segments of 300-frame videos, for all classes and for 1000,
relative to predicting each segment as a video of its own, next to one pass over the video and as
many samplings of its frames.
benchmarks/README.md explains the output.
"""

import dataclasses
import functools
import pathlib
import sys

import numpy as np
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import full_size
import samplings
from ensemble import Ensemble, frozen_model
from options import option, same_option
from predictor import compiled
from segments.ensemble import SegmentEnsemble, SegmentSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentBenchmarkOptions(comparison.ComparisonOptions):
    """Options of this program."""

    rounds: int = same_option(comparison.ComparisonOptions, "rounds", default=3)
    recipes: tuple[str, ...] = same_option(
        samplings.SamplingsOptions, "recipes", default=("soft_bof_4k", "lfnl_netvlad")
    )
    segment_size: int = option(5, "Frames of a segment.", group="prediction", above=0)
    segment_context: int = option(0, "Context of a segment.", group="prediction", at_least=0)
    segment_shift_samplings: int = option(
        1, "Shifted copies of a segment.", group="prediction", above=0
    )
    listed_classes: int = option(
        1000, "Also predict only this many of the classes.", group="prediction", above=0
    )
    batch_size: int = same_option(samplings.SamplingsOptions, "batch_size", default=16)
    dtype: str = same_option(samplings.SamplingsOptions, "dtype")


def as_videos(predict, size):
    """Returns a function that predicts each segment as a video of its own."""

    def predict_parts(inputs):
        frames = inputs["frames"]
        videos, length, width = frames.shape
        num_frames = np.full(videos * (length // size), size, np.int32)
        segments = frames[:, : length // size * size].reshape(-1, size, width)
        # One video's segments at a time are a batch of usual size.
        count = length // size
        return [
            predict({"frames": segments[part], "num_frames": num_frames[part]})
            for part in (slice(video * count, (video + 1) * count) for video in range(videos))
        ]

    return predict_parts


def main(options: SegmentBenchmarkOptions):
    """Runs the program."""
    logging.set_verbosity(logging.WARNING)
    settings = SegmentSettings(
        options.segment_size, options.segment_context, options.segment_shift_samplings
    )
    for name in options.recipes:
        config = full_size.config_of_recipe(name, options.batch_size)
        inputs, _ = full_size.random_batch(config)
        model = frozen_model(config, options.dtype)
        every_frame = compiled(Ensemble([model], num_samplings=0))
        listed_classes = min(options.listed_classes, config.num_classes)
        classes = np.linspace(0, config.num_classes - 1, listed_classes).astype(int)
        listed = Ensemble([frozen_model(config, options.dtype, classes=classes)], classes=classes)
        count = settings.count(config.max_frames)
        ways = {
            "each segment as a video": as_videos(every_frame, settings.size),
            "all segments": compiled(SegmentEnsemble(Ensemble([model]), settings)),
            f"all segments, {len(classes)} classes": compiled(SegmentEnsemble(listed, settings)),
            "one pass over the video": every_frame,
            f"{count} samplings": compiled(Ensemble([model], num_samplings=count)),
        }
        makers = {
            way: functools.partial(samplings.make_work, predict, inputs, options.batch_size)
            for way, predict in ways.items()
        }
        conditions = {"model": name, "batch_size": options.batch_size, "dtype": options.dtype}
        comparison.run(makers, "each segment as a video", options, **conditions)


if __name__ == "__main__":
    program.run(main)
