r"""Trains and evaluates the models of one data set with one seed, all in this process.

    python real_data/experiment.py --data_set=spoken_digits --records_dir=data/records \
        --feature_scale=data/scale.csv --output_dir=run

real_data.py runs it several times.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import pandas as pd

import average_checkpoints
import evaluation
import export_model
import files
import predictor
import recipes
import train
from options import Options, option, same_option
from run_config import TrainOptions

# Variants of a model or an ensemble, in addition to `samplings(N)`.
LAST, AVERAGED, EXPORTED = "last", "averaged", "exported"
ENSEMBLE = "ensemble"
METRICS = ("hit_at_one", "gap")
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Options):
    """Options of this program."""

    data_set: str = option(
        help="Data set to learn.", group="data", required=True, choices=tuple(recipes.RECIPES)
    )
    records_dir: str = option(
        help="Directory with records of all splits.", group="data", required=True
    )
    feature_scale: str | None = same_option(TrainOptions, "feature_scale")
    split: str = option(
        "test",
        "Split to evaluate on. test: train on train and validate. validate: train on train.",
        group="data",
        choices=("test", "validate"),
    )
    scale: str = option(
        "full", "Size of the experiment.", group="training", choices=tuple(recipes.SCALES)
    )
    seed: int = option(0, "Seed of training.", group="training", at_least=0)
    output_dir: str = option(
        help="New directory for the models and scores.csv.", group="output", required=True
    )


def training_splits(split):
    """Returns the splits to train on before an evaluation on `split`."""
    return ("train",) if split == "validate" else ("train", "validate")


def samplings(count):
    """Returns the name of the variant whose predictions average over samplings."""
    return f"samplings{count}"


class Experiment:
    """The models of one data set with one seed.

    Args:
        options: `ExperimentOptions`.

    Attributes:
        scores: list of dicts: subject (a model or `ENSEMBLE`), variant, hit_at_one, gap.
    """

    def __init__(self, options):
        self.scores = []
        self._options = options
        self._scale = recipes.SCALES[options.scale]
        self._recipe = self._scale.recipe(options.data_set)
        self._output = pathlib.Path(options.output_dir)
        self._train_pattern = ",".join(map(self._records, training_splits(options.split)))

    def run(self):
        """Trains every model, then averages, ensembles, samples and exports those of the paper."""
        averaged = []
        for name in self._scale.models[self._options.data_set]:
            run = self._train(name)
            self._score(name, LAST, [run])
            if name in recipes.PAPER:
                averaged.append(self._average(name, run))
                self._score(name, AVERAGED, averaged[-1:])
                if name == recipes.SAMPLED:
                    for count in recipes.SAMPLINGS:
                        self._score(name, samplings(count), averaged[-1:], num_samplings=count)
        self._score(ENSEMBLE, AVERAGED, averaged)
        self._evaluate(ENSEMBLE, EXPORTED, predictor.ExportedPredictor(self._export(averaged)))

    def _records(self, split):
        return str(pathlib.Path(self._options.records_dir, f"{split}*.tfrecord"))

    def _train(self, name):
        run = str(self._output / name / LAST)
        flags = [
            f"--train_data_pattern={self._train_pattern}",
            f"--train_dir={run}",
            f"--feature_scale={self._options.feature_scale}",
            f"--seed={self._options.seed}",
            f"--export_model_steps={self._recipe.max_steps // recipes.CHECKPOINTS}",
            f"--keep_checkpoints={recipes.AVERAGED_CHECKPOINTS}",
            f"--log_steps={self._recipe.max_steps}",
        ]
        program.call(train.main, [*flags, *self._recipe.flags(name)])
        return run

    def _average(self, name, run):
        folder = str(self._output / name / AVERAGED)
        flags = [
            f"--train_dir={run}",
            f"--output_dir={folder}",
            f"--num_last={recipes.AVERAGED_CHECKPOINTS}",
            f"--train_data_pattern={self._train_pattern}",
            f"--batch_norm_batches={recipes.BATCH_NORM_BATCHES}",
        ]
        program.call(average_checkpoints.main, flags)
        return folder

    def _export(self, folders):
        folder = str(self._output / EXPORTED)
        flags = [f"--train_dirs={','.join(folders)}", f"--output_dir={folder}"]
        program.call(export_model.main, flags)
        return folder

    def _score(self, subject, variant, folders, **options):
        self._evaluate(subject, variant, predictor.Predictor(folders, **options))

    def _evaluate(self, subject, variant, model):
        model.restore()
        reader = model.data.reader(self._records(self._options.split))
        summary, _ = evaluation.evaluate(model, reader, batch_size=_BATCH_SIZE)
        metrics = {name: summary[name] for name in METRICS}
        self.scores.append({"subject": subject, "variant": variant, **metrics})


def main(options: ExperimentOptions):
    """Runs the experiment and writes scores.csv."""
    experiment = Experiment(options)
    experiment.run()
    with files.atomic_write(str(pathlib.Path(options.output_dir, "scores.csv"))) as file:
        pd.DataFrame(experiment.scores).to_csv(file, index=False)


if __name__ == "__main__":
    program.run(main)
