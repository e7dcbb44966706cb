r"""Writes a page about a run or several, one HTML file that needs no network; or a table of runs.

    python report.py --train_dirs=runs/a,runs/b --output_file=report.html
    python report.py --train_dirs=runs/a,runs/b --eval_data_pattern='data/validate*.tfrecord' \
        --output_file=report.html
    python report.py --train_dirs='runs/*' --format=text

Without records, the page has what lies in the train directories: curves, settings and results, and
whether a run is still learning or overfits. With labelled records, it also has classes and why they
fail, labels that may be wrong, calibration and single videos. The page is about each run, and about
the mean of the predictions of all.

The table has a row per run: metrics, size, speed and the settings in which the runs differ.
"""

import dataclasses

import program

from absl import logging

import files
from options import option, same_option
from predictor import (
    ExportedPredictor,
    Predictor,
    PredictorOptions,
    load_class_names,
    load_configs,
    load_predictor,
)
from report_page import history
from report_page.runs_table import CURVES, SORT_CHOICES, RunsTable
from utils import InputError, comma_separated


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(PredictorOptions):
    """Options of this program."""

    eval_data_pattern: str | None = option(
        None,
        "Globs of records with labels, comma-separated; quote them. Default: none, for a page of "
        "what the train directories hold.",
        group="data",
        repeats=True,
    )
    class_names: str | None = option(
        None,
        "vocabulary.csv for the class names. Default: the vocabulary of the training run or of "
        "--exported_model, if it has one.",
        group="data",
    )
    train_dirs: tuple[str, ...] | None = same_option(
        PredictorOptions,
        "train_dirs",
        help="Several training runs, whose predictions are averaged. A quoted glob, for example "
        "'runs/*', stands for all directories with a run.",
    )
    format: str = option(
        "html",
        "html: a page. text, csv, markdown: a table of the runs, from what lies in their "
        "directories.",
        group="output",
        choices=("html", "text", "csv", "markdown"),
    )
    sort_by: str | None = option(
        None,
        "Column that orders the table; the best come first, runs without a value last. "
        "best_gap and best_step are of the evaluation with the highest GAP, the other metrics of "
        "the newest. Default: best_gap.",
        group="output",
        choices=SORT_CHOICES,
    )
    output_file: str | None = option(
        None,
        "File to write, replaced if it exists. Default: standard output, for a table only.",
        group="output",
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if self.eval_data_pattern is None:
            if self.exported_model:
                raise InputError(
                    "--exported_model needs --eval_data_pattern: an exported model holds no curves "
                    "and no results."
                )
            if self.class_names:
                raise InputError(
                    "--class_names names the classes of --eval_data_pattern, which is not given."
                )
        if self.format == "html":
            if self.output_file is None:
                raise InputError("--output_file must be given for a page, for example report.html.")
            if self.sort_by:
                raise InputError("--sort_by orders the rows of a table; --format=html has none.")
        elif self.eval_data_pattern:
            raise InputError(
                f"--format={self.format} lists what lies in the train directories and reads no "
                "records. Leave out --eval_data_pattern, or --format for a page."
            )


def make_report(options: ReportOptions) -> str:
    """Returns the page as HTML.

    Raises:
        InputError: if a directory holds no run, the runs take different data, or the records do not
            fit.
    """
    content, evaluation, page = _import_report_page()
    options = _with_found_dirs(options)
    runs = history.read_runs(options.run_dirs, options.use_ema)
    values = content.of_runs(runs)
    names = [run.name for run in runs] or history.short_names([str(options.exported_model)])
    subtitle = comma_separated(dict.fromkeys(run.config.model for run in runs) or names)
    if options.eval_data_pattern:
        paths = files.expand_patterns(options.eval_data_pattern)
        files.check_not_input(str(options.output_file), filter(None, (*paths, options.class_names)))
        predictors = dict(zip(names, load_predictors(options), strict=True))
        first = predictors[names[0]]
        class_names = load_class_names(first, options.class_names) or {}
        found = evaluation.evaluate(
            predictors,
            first.data.reader(paths, options),
            weights=options.weights,
            batch_size=options.batch_size,
            top_k=options.top_k,
        )
        values |= content.of_evaluation(
            found,
            runs,
            predictors,
            class_names,
            top_k=options.top_k,
            exported_model=options.exported_model,
        )
        values |= content.of_attention(found, predictors)
        values |= content.of_timelines(found, predictors, class_names)
        subtitle += f" on {found.num_videos:,} videos of {options.eval_data_pattern}"
    title = f"Report of {comma_separated(names)}"
    return page.render("report.html", title=title, subtitle=subtitle, **values)


def make_table(options: ReportOptions) -> str:
    """Returns the table of the runs in `options.format`.

    Raises:
        InputError: if a directory holds no run, or a file in it is damaged.
    """
    train_dirs = _with_found_dirs(options).run_dirs
    runs = history.read_runs(train_dirs, options.use_ema, CURVES)
    table = RunsTable(runs, options.sort_by or "best_gap")
    return {"text": table.text, "csv": table.csv, "markdown": table.markdown}[options.format]()


def _with_found_dirs(options):
    """Returns options with train directories in place of globs."""
    if not options.train_dirs:
        return options
    return dataclasses.replace(
        options, train_dirs=tuple(history.find_train_dirs(options.train_dirs))
    )


def load_predictors(options: ReportOptions) -> list[Predictor | ExportedPredictor]:
    """Returns one restored predictor per run, or that of the exported model.

    Raises:
        InputError: if runs take different data, or there is no checkpoint.
    """
    load_configs(options.run_dirs)
    alone = [
        dataclasses.replace(options, train_dir=train_dir, train_dirs=None, weights=None)
        for train_dir in options.run_dirs
    ]
    predictors = [load_predictor(each) for each in alone or [options]]
    for predictor in predictors:
        predictor.restore(options.checkpoint)
    return predictors


def _import_report_page():
    try:
        from report_page import content, evaluation, page
    except ImportError as error:
        raise InputError(
            f"report.py needs Jinja and matplotlib: {error}. Run: pip install '.[report]'"
        ) from error
    return content, evaluation, page


def main(options: ReportOptions) -> None:
    """Runs the program."""
    if options.output_file:
        files.check_writable(options.output_file)
    text = make_report(options) if options.format == "html" else make_table(options)
    if options.output_file is None:
        print(text, end="")
        return
    with files.atomic_write(options.output_file) as file:
        file.write(text)
    logging.info("%.2f MB: %s", len(text.encode()) / 1e6, files.absolute(options.output_file))


if __name__ == "__main__":
    program.run(main)
