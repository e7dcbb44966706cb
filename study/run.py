"""Runs the study and writes its report.

    python study/run.py --output_dir=study_results
    python study/run.py --scale=quick

Started again after an interruption, it goes on with what is missing. docs/study.md is the report.
It can be written anew from its numbers alone:

    python study/run.py --report_only --report_dir=docs
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

from absl import flags, logging

import plan
import report
import results
import schedule


def define_flags(flag_values):
    """Defines the flags of the study."""
    own = {"flag_values": flag_values}
    flags.DEFINE_enum(
        "scale",
        "full",
        list(plan.SCALES),
        "full: all models, three seeds, less than two hours on two cores. quick: one seed and "
        "short trainings, eight minutes. miniature: two models, a test of the study itself.",
        **own,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory for data, models and results. Default: study_SCALE in the current one. Take "
        "a new one after a change of the code: what is done there is not done again.",
        **own,
    )
    flags.DEFINE_string(
        "report_dir",
        None,
        "Directory for the report: study.md and the folder study with plots, an HTML page and the "
        "numbers. Default: report in --output_dir.",
        **own,
    )
    flags.DEFINE_boolean(
        "report_only", False, "Writes the report from the numbers in --report_dir again.", **own
    )
    flags.DEFINE_integer(
        "num_parallel", os.cpu_count(), "Jobs that run at the same time, each on one core.", **own
    )


def main(flag_values):
    """Runs the study."""
    program.require_positive(flag_values, "num_parallel")
    output_dir = pathlib.Path(flag_values.output_dir or f"study_{flag_values.scale}").absolute()
    report_dir = pathlib.Path(flag_values.report_dir or output_dir / "report").absolute()
    if not flag_values.report_only:
        steps = plan.Plan(plan.SCALES[flag_values.scale], output_dir)
        setting = results.setting()
        schedule.Runner(steps.jobs, output_dir, flag_values.num_parallel, setting).run()
        results.collect(steps, flag_values.scale).save(report_dir / report.FOLDER)
    report.write(report_dir)
    logging.info("report: %s", report_dir / "study.md")


if __name__ == "__main__":
    # As in the jobs, so that the report tells their type of products.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    program.run(main, define_flags)
