"""Runs the study and writes its report.

    python study/run.py --output_dir=study_results
    python study/run.py --scale=quick

An interrupted study resumes when it is run again. The report is docs/study.md. To rewrite it from
its stored numbers, run:

    python study/run.py --report_only --report_dir=docs
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags, logging

import plan
import program
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
        "short training runs, eight minutes. miniature: two models, to test the study itself.",
        **own,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory for data, models and results. Default: study_SCALE in the working directory. "
        "Use a new directory after a change of the code, because finished jobs do not run again.",
        **own,
    )
    flags.DEFINE_string(
        "report_dir",
        None,
        "Directory for the report: study.md, and a folder study with numbers, plots and an HTML "
        "page. Default: report in --output_dir.",
        **own,
    )
    flags.DEFINE_boolean(
        "report_only", False, "Rewrite the report from the numbers in --report_dir.", **own
    )
    flags.DEFINE_integer(
        "num_parallel", os.cpu_count(), "Number of parallel jobs. Each uses one core.", **own
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
    # The same device as in the jobs, so that the report states their matmul precision.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    program.run(main, define_flags)
