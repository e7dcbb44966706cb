"""Measures ways to train on rated segments, and writes the table of docs/segments.md.

    python study/segment_training.py --output_dir=segment_training --report_dir=docs

An interrupted measurement resumes when it is run again. To rewrite the table from its stored
numbers, run:

    python study/segment_training.py --report_only --report_dir=docs
"""

import dataclasses
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import pandas as pd
from absl import logging

import files
import make_sample_data
import schedule
import seed_tables
import train
import training_options
from options import same_option
from training_options import (
    MeasurementOptions,
    call,
    evaluate,
    measure_runs,
    measured,
    run_dir,
    signed,
)

METRICS = ("segment_map", "gap")
FOLDER, DOCUMENT = "segment_training", "segments.md"
BEGIN, END = "<!-- begin of the measured table -->", "<!-- end of the measured table -->"
VIDEOS = "the run on whole videos"
UNRATED = "unrated pairs as negatives"
RATED = "rated pairs only"
# Flags of train.py by way to fine-tune; None for no fine-tuning.
WAYS: dict[str, str | None] = {
    VIDEOS: None,
    UNRATED: "--segment_unrated_weight=1",
    RATED: "",
    "and mined negatives": "--segment_mined_weight=0.5",
    "and mined negatives of more weight": "--segment_mined_weight=20",
    "the same, classes balanced": "--segment_mined_weight=20 --segment_balance=0.5",
    "the same, with context": "--segment_mined_weight=20 --segment_context=3",
}
MODEL = (
    "--model=LFNLNetVLADModel --iterations=0 --netvlad_cluster_size=32,16 "
    "--netvlad_hidden_size=128 --nonlocal_embedding=32,16 --moe_num_mixtures=2"
)
DATA = "--num_classes=120 --feature_sizes=64,16 --min_frames=20 --max_frames=60 --segments"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the measurement: `steps` on whole videos, `segment_steps` on segments."""

    num_videos: int
    num_rated_videos: int
    steps: int
    segment_steps: int
    batch_size: int
    seeds: tuple[int, ...]


SCALES = {
    "full": Scale(
        num_videos=8000,
        num_rated_videos=2000,
        steps=500,
        segment_steps=200,
        batch_size=64,
        seeds=(0, 1, 2),
    ),
    "miniature": Scale(
        num_videos=48, num_rated_videos=24, steps=2, segment_steps=2, batch_size=16, seeds=(0, 1)
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentMeasurementOptions(MeasurementOptions):
    """Options of this program."""

    output_dir: str = same_option(MeasurementOptions, "output_dir", default=FOLDER)


class Scores(training_options.Scores):
    """All numbers of the measurement."""

    made_by = "study/segment_training.py"


def measure(scale, output_dir):
    """Trains and evaluates every way with every seed; returns rows of `Scores`.

    Args:
        scale: `Scale`.
        output_dir: `pathlib.Path`.
    """
    data = output_dir / "data"
    if not (data / "dataset.json").exists():
        size = f"--num_videos={scale.num_videos} --num_eval_videos={scale.num_rated_videos}"
        call(make_sample_data, f"--output_dir={data}", f"--overwrite {size} {DATA}")

    def train_run(run, way, seed):
        _train(scale, data, run, seed, WAYS[way], run_dir(output_dir, VIDEOS, seed))
        evaluate(data, run, "--segment_labels")

    return measure_runs("way", WAYS, scale.seeds, output_dir, train_run, METRICS)


def _train(scale, data, run, seed, flags, videos):
    """Trains a run on whole videos, or fine-tunes such a run with the given flags."""
    split, steps, start = "train", scale.steps, "--base_learning_rate=0.003"
    if flags is not None:
        split, steps = "validate", scale.segment_steps
        start = f"--segment_labels {flags} --init_from={videos} --base_learning_rate=0.001"
    call(
        train,
        f"--train_data_pattern={data}/{split}*.tfrecord",
        f"--train_dir={run}",
        f"{MODEL} {start} --seed={seed} --batch_size={scale.batch_size} --max_steps={steps} "
        f"--num_epochs=0 --learning_rate_schedule=linear --log_steps=100 --metrics_steps=1000000",
    )


# --- The report -----------------------------------------------------------------------------------


def to_markdown(found):
    """Returns the text of `Scores` for the document, as Markdown."""
    scale, setting = SCALES[found.setting["scale"]], found.setting
    return "\n\n".join(
        [
            f"A small model (`{MODEL}`) learns {scale.num_videos} generated videos for "
            f"{scale.steps} steps of {scale.batch_size}, and then the rated segments of "
            f"{scale.num_rated_videos} others for {scale.segment_steps} steps. The table has mAP "
            f"of the segments of {scale.num_rated_videos} test videos and, of the same runs, "
            f"GAP@20 of whole videos: mean ± standard deviation over {len(scale.seeds)} seeds of "
            f"training, and the differences from *{RATED}* by seed. Steps and learning rates are "
            "the same in all rows; they were not tuned.",
            seed_tables.markdown_table(table(found.scores)),
            f"Measured on {setting['date']} with TensorFlow {setting['versions']['tensorflow']} by "
            "`python study/segment_training.py --report_dir=docs`, on one thread.",
        ]
    )


def table(scores):
    """Returns a `pandas.DataFrame` with a row per way."""
    by_seed, gaps = (scores.pivot(index="seed", columns="way", values=key) for key in METRICS)
    rows = []
    for way, flags in WAYS.items():
        difference = signed(by_seed[way] - by_seed[RATED])
        rows.append(
            {
                "fine-tuned on": f"nothing: {VIDEOS}" if flags is None else way,
                "flags": "" if flags is None else f"`{f'--segment_labels {flags}'.strip()}`",
                "segment mAP": seed_tables.mean_and_deviation(by_seed[way]),
                "difference": "" if way == RATED else difference,
                "GAP of whole videos": seed_tables.mean_and_deviation(gaps[way]),
            }
        )
    return pd.DataFrame(rows)


def write_table(path, text):
    """Replaces the part of a document between the marks.

    Args:
        path: `pathlib.Path` of the document; if there is none, it is created.
        text: the new part.
    """
    content = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    with files.atomic_write(str(path)) as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(options: SegmentMeasurementOptions):
    """Runs the program."""
    report_dir, found = measured(options, FOLDER, Scores, measure, SCALES[options.scale])
    write_table(report_dir / DOCUMENT, to_markdown(found))
    logging.info("table: %s", report_dir / DOCUMENT)


if __name__ == "__main__":
    os.environ.update(schedule.ENVIRONMENT)
    program.end_on_sigterm()
    program.run(main)
