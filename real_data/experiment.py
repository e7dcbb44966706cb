r"""Trains and evaluates the models of one data set with one seed, all in this process.

    python real_data/experiment.py --data_set=spoken_digits --records_dir=data/records \
        --feature_scale=data/scale.csv --output_dir=run

real_data.py runs it several times. An interrupted experiment resumes when it is run again: models
that were trained are not trained again.
"""

import dataclasses
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import numpy as np
import pandas as pd

import average_checkpoints
import checkpoints
import eval_util
import export_model
import files
import predictor
import recipes
import train
from options import Options, option, same_option
from run_config import TrainOptions

# Variants of a model or an ensemble, in addition to `samplings(N)` and `exported(DTYPE)`.
LAST, AVERAGED = "last", "averaged"
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
        help="Directory for the models and scores.csv, or that of an interrupted experiment.",
        group="output",
        required=True,
    )


def training_splits(split):
    """Returns the splits to train on before an evaluation on `split`."""
    return ("train",) if split == "validate" else ("train", "validate")


def samplings(count):
    """Returns the name of the variant whose predictions average over samplings."""
    return f"samplings{count}"


def exported(dtype):
    """Returns the name of the variant that is exported with matrices of a dtype."""
    return f"exported_{dtype}"


def score(predictions, labels):
    """Returns the metrics of predictions `[N, C]`, by name."""
    return {
        "hit_at_one": eval_util.calculate_hit_at_one(predictions, labels),
        "gap": eval_util.calculate_gap(predictions, labels),
    }


class Experiment:
    """The models of one data set with one seed.

    Args:
        options: `ExperimentOptions`.

    Attributes:
        scores: list of dicts: subject (a model or an ensemble), variant, hit_at_one, gap.
    """

    def __init__(self, options):
        self.scores = []
        self._options = options
        self._scale = recipes.SCALES[options.scale]
        self._recipe = self._scale.recipe(options.data_set)
        self._output = pathlib.Path(options.output_dir)
        self._train_pattern = ",".join(map(self._records, training_splits(options.split)))

    def run(self):
        """Trains and scores every model, then samples, ensembles and exports."""
        averaged, predictions = {}, {}
        for name in self._scale.models[self._options.data_set]:
            run = self._train(name)
            model = predictor.Predictor([run])
            self._score(name, LAST, self._predict(model))
            if name in recipes.AVERAGED:
                averaged[name] = self._average(name, run)
                # The same graph with other weights.
                checkpoint = checkpoints.latest(averaged[name])
                predictions[name] = self._predict(model, checkpoint)
                self._score(name, AVERAGED, predictions[name])
            if name == recipes.SAMPLED:
                for count in recipes.SAMPLINGS:
                    sampled = predictor.Predictor([run], num_samplings=count)
                    self._score(name, samplings(count), self._predict(sampled, checkpoint))
        ensembles = self._scale.ensembles(self._options.data_set)
        folders = [averaged[name] for name in ensembles.pop(recipes.ENSEMBLE)]
        # With the samplings of the exported ensemble, which those of a model alone are not.
        self._score(recipes.ENSEMBLE, AVERAGED, self._predict(predictor.Predictor(folders)))
        for ensemble, members in ensembles.items():
            own = [predictions[name] for name in members]
            self._score(ensemble, AVERAGED, np.mean(own, axis=0))
        for dtype in recipes.EXPORT_DTYPES:
            model = predictor.ExportedPredictor(self._export(folders, dtype))
            self._score(recipes.ENSEMBLE, exported(dtype), self._predict(model))

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
        shutil.rmtree(folder, ignore_errors=True)  # What an interrupted experiment left.
        program.call(average_checkpoints.main, flags)
        return folder

    def _export(self, folders, dtype):
        folder = str(self._output / exported(dtype))
        flags = [f"--train_dirs={','.join(folders)}", f"--output_dir={folder}", f"--dtype={dtype}"]
        shutil.rmtree(folder, ignore_errors=True)
        program.call(export_model.main, flags)
        return folder

    def _predict(self, model, checkpoint=None):
        """Returns the predictions `[N, C]` of the split, by default of the newest checkpoint."""
        model.restore(checkpoint)
        batches = model.data.reader(self._records(self._options.split)).batches(_BATCH_SIZE)
        predictions, labels = zip(
            *(
                (predictor.predict_videos(model, batch.video_ids, batch.inputs), batch.labels)
                for batch in batches
            ),
            strict=True,
        )
        self._labels = np.concatenate(labels)
        return np.concatenate(predictions)

    def _score(self, subject, variant, predictions):
        metrics = score(predictions, self._labels)
        self.scores.append({"subject": subject, "variant": variant, **metrics})


def main(options: ExperimentOptions):
    """Runs the experiment and writes scores.csv."""
    experiment = Experiment(options)
    experiment.run()
    with files.atomic_write(str(pathlib.Path(options.output_dir, "scores.csv"))) as file:
        pd.DataFrame(experiment.scores).to_csv(file, index=False)


if __name__ == "__main__":
    program.end_on_sigterm()
    program.run(main)
