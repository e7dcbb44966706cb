"""Gathers what the jobs of the study wrote into tables."""

import csv
import dataclasses

import numpy as np
import pandas as pd

import eval_util
import files
import plan
from run_config import RunConfig

# Edges of the bins in which predicted probabilities are compared with what was true.
_RELIABILITY_BINS = np.concatenate([[0.0, 0.01, 0.02, 0.05], np.linspace(0.1, 1.0, 10)])
_SIZE_OF_FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Results:
    """All numbers of the study.

    Attributes:
        gap: `pandas.DataFrame` with the columns world, seed, subject (a model, or models joined by
            +), treatment and gap: one row per evaluation.
        curves: world, seed, subject, step, gap: one row per checkpoint.
        ingredients: world, seed, subject, ingredient, labels (share of all labels), gap: GAP of
            the classes that differ in one ingredient.
        reliability: subject, mean_prediction, share_true, count: one row per bin of predicted
            probability, over all seeds of the world `bag`.
        sizes: subject, mib: size of the weights in float32.
        exported: seed, dtype, mib, videos_per_second: files of the exported ensemble on disk.
        plan: `plan.Plan`.
    """

    gap: pd.DataFrame
    curves: pd.DataFrame
    ingredients: pd.DataFrame
    reliability: pd.DataFrame
    sizes: pd.DataFrame
    exported: pd.DataFrame
    plan: plan.Plan


def collect(steps):
    """The `Results` of a plan whose jobs are done."""
    evaluations, curves, ingredients, probabilities, sizes, exported = [], [], [], [], {}, []
    labels = {}
    for world, names in steps.scale.worlds.items():
        for seed in steps.scale.seeds:
            key = {"world": world, "seed": seed}
            for name in names:
                run = steps.model_dir(world, seed, name)
                history = files.read_json(str(run / "eval" / "metrics.json"))
                named = {**key, "subject": name}
                curves += [
                    {**named, "step": entry["step"], "gap": entry["gap"]} for entry in history
                ]
                evaluations.append({**named, "treatment": "last", "gap": history[-1]["gap"]})
                config = RunConfig.load(str(run))
                if name not in sizes:
                    sizes[name] = config.build_model().count_params() * _SIZE_OF_FLOAT / 2**20
                if world not in labels:
                    labels[world] = _labels(config, steps.data(world))
                predicted = _predictions(steps.predictions(world, seed, name), labels[world])
                ingredients += [
                    {**named, **row}
                    for row in _gap_by_ingredient(predicted, labels[world], steps, world)
                ]
                if world == "bag":
                    probabilities.append((name, predicted))
            evaluations.append(
                {
                    **key,
                    "subject": "prior",
                    "treatment": "last",
                    "gap": history[-1]["class_prior_gap"],
                }
            )
            folder = steps.metrics(world, seed, "", "").parent
            for path in sorted(folder.glob("*/*.json")):
                summary = files.read_json(str(path))
                treated = {"subject": path.parent.name, "treatment": path.stem}
                evaluations.append({**key, **treated, "gap": summary["gap"]})
                if path.stem.startswith("exported_"):
                    dtype = path.stem.removeprefix("exported_")
                    exported.append(
                        {
                            "seed": seed,
                            "dtype": dtype,
                            "mib": _size(steps.export_dir(seed, dtype)) / 2**20,
                            "videos_per_second": summary["videos_per_second"],
                        }
                    )
    return Results(
        gap=pd.DataFrame(evaluations),
        curves=pd.DataFrame(curves),
        ingredients=pd.DataFrame(ingredients),
        reliability=pd.DataFrame(_reliability(probabilities, labels["bag"])),
        sizes=pd.DataFrame({"subject": sizes.keys(), "mib": sizes.values()}),
        exported=pd.DataFrame(exported),
        plan=steps,
    )


def _labels(config, pattern):
    """Labels of all videos of a pattern: a dict from id to bool `[C]`."""
    batches = config.reader(pattern).batches(1024)
    return {
        video_id: row
        for batch in batches
        for video_id, row in zip(batch.video_ids, np.asarray(batch.labels, bool), strict=True)
    }


def _predictions(path, labels):
    """Probabilities in a prediction file with all classes, in the order of the labels: `[N, C]`."""
    predicted = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            values = np.array(row["LabelConfidencePairs"].split(), np.float32)
            predicted[row["VideoId"]] = values[1::2][np.argsort(values[::2])]
    return np.stack([predicted[video_id] for video_id in labels])


def _gap_by_ingredient(predicted, labels, steps, world):
    table = pd.read_csv(steps.output_dir / "data" / world / "vocabulary.csv")
    labels = np.stack(list(labels.values()))
    for ingredient, classes in table.groupby("WikiDescription")["Index"]:
        chosen = labels[:, classes]
        yield {
            "ingredient": ingredient,
            "labels": chosen.sum() / labels.sum(),
            "gap": eval_util.calculate_gap(predicted[:, classes], chosen),
        }


def _reliability(probabilities, labels):
    labels = np.stack(list(labels.values())).ravel()
    for subject in dict.fromkeys(name for name, _ in probabilities):
        predicted = np.stack([array.ravel() for name, array in probabilities if name == subject])
        true = np.broadcast_to(labels, predicted.shape).ravel()
        predicted = predicted.ravel()
        place = np.digitize(predicted, _RELIABILITY_BINS[1:-1])
        counts = np.bincount(place, minlength=len(_RELIABILITY_BINS) - 1)
        predictions, trues = (np.bincount(place, part, len(counts)) for part in (predicted, true))
        for count, prediction, positive in zip(counts, predictions, trues, strict=True):
            if count:
                yield {
                    "subject": subject,
                    "mean_prediction": prediction / count,
                    "share_true": positive / count,
                    "count": count,
                }


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
