"""Measures options of training where labels are missing, and writes docs/training_options.md.

    python study/training_options.py --output_dir=training_options --report_dir=docs

An interrupted measurement resumes when it is run again. To rewrite the report from its stored
numbers, run:

    python study/training_options.py --report_only --report_dir=docs
"""

import dataclasses
import itertools
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import keras
import pandas as pd
from absl import logging

import eval as eval_program
import files
import make_sample_data
import plan
import results
import schedule
import seed_tables
import train
from options import Options, option

FOLDER = "training_options"
METRICS_FILE = "metrics.json"
DEFAULT = "the defaults"
# Flags of train.py by option.
OPTIONS = {
    DEFAULT: "",
    "label smoothing": "--label_smoothing=0.1",
    "focal loss": "--label_loss=FocalLoss",
    "asymmetric loss": "--label_loss=AsymmetricLoss",
    "class weights by effective number": "--class_balance_beta=0.999",
    "mixed videos": "--mix_videos=0.5",
    "weight decay": "--weight_decay=0.05",
    "dropout": "--classifier_dropout=0.3",
    "global clipping": "--clip=global",
    "linear learning rate": "--learning_rate_schedule=linear",
    "cosine learning rate": "--learning_rate_schedule=cosine",
    "cosine with warm-up": "--learning_rate_schedule=cosine --warmup_steps=60",
    "constant learning rate": "--learning_rate_schedule=constant",
    "Muon": "--optimizer=Muon",
}
MODEL = "--model=DbofModel --iterations=16 --dbof_cluster_size=256 --dbof_hidden_size=128"
WORLD, MISSING_LABELS = "bag", 0.3
_VERDICTS = {"holds": "better", "**does not hold**": "-", "**the opposite holds**": "worse"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the measurement."""

    num_videos: int
    num_test_videos: int
    max_steps: int
    batch_size: int
    seeds: tuple[int, ...]


SCALES = {
    "full": Scale(
        num_videos=8000, num_test_videos=2000, max_steps=600, batch_size=64, seeds=(0, 1, 2)
    ),
    "miniature": Scale(num_videos=64, num_test_videos=32, max_steps=2, batch_size=16, seeds=(0, 1)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasurementOptions(Options):
    """Options of this program."""

    scale: str = option(
        "full",
        "full: three seeds, half an hour on one core. miniature: to test the program itself.",
        group="training",
        choices=tuple(SCALES),
    )
    output_dir: str = option(
        FOLDER,
        "Directory for data, models and results. Use a new one after a change of the code, because "
        "finished runs do not run again.",
        group="output",
    )
    report_dir: str | None = option(
        None, "Directory for the report. Default: --output_dir.", group="output"
    )
    report_only: bool = option(
        False, "Rewrite the report from the numbers in --report_dir.", group="output"
    )


@dataclasses.dataclass(frozen=True)
class Scores(seed_tables.SavedTables):
    """All numbers of the measurement.

    Attributes:
        scores: `pandas.DataFrame` with one row per run; see `measure_runs`.
        setting: dict: scale, date, cores, processor, versions.
    """

    scores: pd.DataFrame

    made_by = "study/training_options.py"


def measure(scale, output_dir):
    """Trains and evaluates every option with every seed; returns rows of `Scores`.

    Args:
        scale: `Scale`.
        output_dir: `pathlib.Path`.
    """
    data = output_dir / "data"
    if not (data / "dataset.json").exists():
        size = f"--num_videos={scale.num_videos} --num_eval_videos={scale.num_test_videos}"
        call(make_sample_data, f"--output_dir={data}", f"--overwrite {size} {data_flags()}")

    def train_run(run, name, seed):
        _train(scale, data, run, f"--seed={seed} {OPTIONS[name]}")
        evaluate(data, run, plan.ONE_SAMPLING)

    metrics = ("gap", "map")
    return measure_runs("option", OPTIONS, scale.seeds, output_dir, train_run, metrics)


def measure_runs(title, names, seeds, output_dir, train_run, metrics):
    """Trains and evaluates a run for every name and seed, unless it is done.

    Args:
        title: title of the names in a table.
        names: names of the runs of a seed.
        seeds: seeds of training.
        output_dir: `pathlib.Path` of all runs; see `run_dir`.
        train_run: function `(run, name, seed)` that trains and evaluates a run.
        metrics: keys of the metrics to return.

    Returns:
        list of dict: name, seed and metrics of each run.
    """
    rows = []
    for seed, name in itertools.product(seeds, names):
        run = run_dir(output_dir, name, seed)
        if not (run / METRICS_FILE).exists():
            train_run(run, name, seed)
        found = files.read_json(str(run / METRICS_FILE))
        rows.append({title: name, "seed": seed, **{key: found[key] for key in metrics}})
        logging.info("%s", rows[-1])
    return rows


def run_dir(output_dir, name, seed):
    """Returns the train directory of a run."""
    return output_dir / f"seed{seed}" / name.replace(" ", "_")


def evaluate(data, run, flags):
    """Evaluates a run on the split `test`, with further flags of eval.py."""
    call(
        eval_program,
        f"--train_dir={run}",
        f"--eval_data_pattern={data}/test*.tfrecord",
        f"--metrics_json={run / METRICS_FILE}",
        f"--run_once {flags}",
    )


def data_flags():
    """Returns the flags of make_sample_data.py, except for the sizes."""
    return (
        f"--world={WORLD} --missing_labels={MISSING_LABELS} --num_classes={plan.NUM_CLASSES} "
        f"--feature_sizes={plan.FEATURE_SIZES} --min_frames={plan.MIN_FRAMES} "
        f"--max_frames={plan.MAX_FRAMES}"
    )


def _train(scale, data, run, flags):
    decay_examples = scale.max_steps * scale.batch_size // plan.LEARNING_RATE_DECAYS
    call(
        train,
        f"--train_data_pattern={data}/train*.tfrecord",
        f"--train_dir={run}",
        f"{MODEL} {flags} --batch_size={scale.batch_size} --max_steps={scale.max_steps} "
        f"--num_epochs=1000000 --base_learning_rate={plan.LEARNING_RATE} "
        f"--learning_rate_decay={plan.LEARNING_RATE_DECAY} "
        f"--learning_rate_decay_examples={decay_examples} --log_steps=100 "
        "--metrics_steps=1000000",
    )


def call(module, *arguments):
    """Calls a program with paths, each an argument, and flags separated by spaces."""
    *paths, flags = arguments
    keras.backend.clear_session()  # Frees the models of earlier runs.
    program.call(module.main, [*paths, *flags.split()])


# --- The report -----------------------------------------------------------------------------------


def to_markdown(found):
    """Returns the report of `Scores` as Markdown."""
    scale, setting = SCALES[found.setting["scale"]], found.setting
    epochs = scale.max_steps * scale.batch_size / scale.num_videos
    blocks = [
        "# Options of training where labels are missing",
        "**These numbers come from generated videos, not from YouTube-8M.** In the world "
        f"`{WORLD}` of the [sample data](sample_data.md#other-worlds), "
        f"{MISSING_LABELS:.0%} of the labels of the training videos are missing "
        "(`make_sample_data.py --missing_labels`); the test videos have theirs. Each option trains "
        f"the same small model (`{MODEL}`) on {scale.num_videos} videos for {scale.max_steps} "
        f"steps of {scale.batch_size}, with {len(scale.seeds)} seeds of training, and predicts "
        f"{scale.num_test_videos} videos, with one sampling of the frames.",
        "The table has GAP@20 and mAP@20: mean ± standard deviation over the seeds, the "
        "differences from the defaults by seed, and the verdict. An option is better or worse if "
        "the mean difference is beyond two standard deviations of the differences. No option was "
        f"tuned, and {epochs:.1f} epochs are a short training, in which an option that keeps a "
        "model from fitting the training data has little to gain. All are off by default.",
        seed_tables.markdown_table(table(found.scores)),
        f"Measured on {setting['date']} with TensorFlow {setting['versions']['tensorflow']} by "
        "`python study/training_options.py --report_dir=docs`, on one thread.",
    ]
    return "\n\n".join(blocks) + "\n"


def table(scores):
    """Returns a `pandas.DataFrame` with a row per option."""
    rows = []
    for name, flags in OPTIONS.items():
        row = {"option": name, "flags": f"`{flags}`" if flags else ""}
        for key, title in (("gap", "GAP"), ("map", "mAP")):
            by_seed = scores.pivot(index="seed", columns="option", values=key)
            row[title] = seed_tables.mean_and_deviation(by_seed[name])
            differences = by_seed[name] - by_seed[DEFAULT]
            is_default = name == DEFAULT
            row[f"{title}, difference"] = "" if is_default else signed(differences)
            verdict = seed_tables.verdict(differences)
            row[f"{title}, verdict"] = "" if is_default else _VERDICTS.get(verdict, verdict)
        rows.append(row)
    return pd.DataFrame(rows)


def signed(values):
    """Formats the values of a series with their signs."""
    return ", ".join(f"{value:+.4f}" for value in values)


def measured(options, folder, scores, measure, scale):
    """Returns the directory of the report, and the scores, measured now or before.

    Args:
        options: `MeasurementOptions`.
        folder: name of the folder of the scores in that directory.
        scores: `Scores`, or a subclass of it.
        measure: function `(scale, output_dir)` that returns rows of `scores`.
        scale: first argument of `measure`.
    """
    output_dir = pathlib.Path(options.output_dir).absolute()
    report_dir = pathlib.Path(options.report_dir or output_dir).absolute()
    if not options.report_only:
        rows = measure(scale, output_dir)
        setting = {"scale": options.scale, **results.machine(), **results.setting()}
        scores(scores=pd.DataFrame(rows), setting=setting).save(report_dir / folder)
    return report_dir, scores.load(report_dir / folder)


def main(options: MeasurementOptions):
    """Runs the program."""
    report_dir, found = measured(options, FOLDER, Scores, measure, SCALES[options.scale])
    with files.atomic_write(str(report_dir / f"{FOLDER}.md")) as file:
        file.write(to_markdown(found))
    logging.info("report: %s", report_dir / f"{FOLDER}.md")


if __name__ == "__main__":
    os.environ.update(schedule.ENVIRONMENT)
    program.end_on_sigterm()
    program.run(main)
