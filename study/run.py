"""Runs the study and writes its report.

    python study/run.py --output_dir=study_results
    python study/run.py --scale=quick

An interrupted study resumes when it is run again. The report is docs/study.md. To rewrite it from
its stored numbers, run:

    python study/run.py --report_only --report_dir=docs
"""

import dataclasses
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

from absl import logging

import findings
import plan
import results
import schedule
from options import Options, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """Options of this program."""

    scale: str = option(
        "full",
        "full: all models, three seeds, less than two hours on two cores. quick: one seed and "
        "short training runs, eight minutes. miniature: two models, to test the study itself.",
        group="training",
        choices=tuple(plan.SCALES),
    )
    output_dir: str | None = option(
        None,
        "Directory for data, models and results. Default: study_SCALE in the working directory. "
        "Use a new directory after a change of the code, because finished jobs do not run again.",
        group="output",
    )
    report_dir: str | None = option(
        None,
        "Directory for the report: study.md, and a folder study with numbers, plots and an HTML "
        "page. Default: report in --output_dir.",
        group="output",
    )
    report_only: bool = option(
        False, "Rewrite the report from the numbers in --report_dir.", group="output"
    )
    num_parallel: int = option(
        os.cpu_count(), "Number of parallel jobs. Each uses one core.", group="devices", above=0
    )


def main(options: StudyOptions):
    """Runs the study."""
    output_dir = pathlib.Path(options.output_dir or f"study_{options.scale}").absolute()
    report_dir = pathlib.Path(options.report_dir or output_dir / "report").absolute()
    if not options.report_only:
        steps = plan.Plan(plan.SCALES[options.scale], output_dir)
        setting = results.setting()
        schedule.Runner(steps.jobs, output_dir, options.num_parallel, setting).run()
        results.collect(steps, options.scale).save(report_dir / findings.FOLDER)
    findings.write(report_dir)
    logging.info("report: %s", report_dir / "study.md")


if __name__ == "__main__":
    # The same device as in the jobs, so that the report states their matmul precision.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    program.end_on_sigterm()
    program.run(main)
