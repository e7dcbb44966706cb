"""Gathers what the jobs of the study wrote into tables."""

import csv
import dataclasses
import datetime
import os
import pathlib
import platform
import re

import numpy as np
import pandas as pd

import eval_util
import files
import layers
import plan
import run_config
from utils import InputError

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
        setting: dict: name of the scale, date, cores, processor, versions, products (type of the
            matrix products).
    """

    gap: pd.DataFrame
    curves: pd.DataFrame
    ingredients: pd.DataFrame
    reliability: pd.DataFrame
    sizes: pd.DataFrame
    exported: pd.DataFrame
    setting: dict

    @property
    def scale(self):
        """The `plan.Scale` that was run."""
        return plan.SCALES[self.setting["scale"]]

    def save(self, folder):
        """Writes one CSV file per table, with six digits, and setting.json.

        Args:
            folder: `pathlib.Path`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TABLES:
            with files.atomic_write(str(folder / f"{name}.csv")) as file:
                getattr(self, name).to_csv(file, index=False, float_format="%.6g")
        files.write_json(str(folder / _SETTING), self.setting)

    @classmethod
    def load(cls, folder):
        """What `save` wrote.

        Args:
            folder: `pathlib.Path`.

        Raises:
            InputError: if it is not there.
        """
        _, setting = files.read_description(str(folder), _SETTING, "study/run.py", "report_dir")
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in _TABLES}
        return cls(**tables, setting=setting)


_TABLES = [field.name for field in dataclasses.fields(Results) if field.type is pd.DataFrame]
_SETTING = "setting.json"


def collect(steps, scale_name):
    """The `Results` of a plan whose jobs are done.

    Args:
        steps: `plan.Plan`.
        scale_name: key of `plan.SCALES`.

    Raises:
        InputError: if a training ended early.
    """
    gap, curves, ingredients, probabilities, sizes = [], [], [], [], {}
    for world, names in steps.scale.worlds.items():
        labels = _labels(steps, world)
        for seed in steps.scale.seeds:
            key = {"world": world, "seed": seed}
            for name in names:
                run, named = steps.model_dir(world, seed, name), {**key, "subject": name}
                history = _history(run, steps.scale.steps)
                curves += [
                    {**named, "step": entry["step"], "gap": entry["gap"]} for entry in history
                ]
                gap.append({**named, "treatment": "last", "gap": history[-1]["gap"]})
                if name not in sizes:
                    model = run_config.RunConfig.load(str(run)).build_model()
                    sizes[name] = model.count_params() * _SIZE_OF_FLOAT / 2**20
                predicted = _predictions(steps.predictions(world, seed, name), labels)
                ingredients += [
                    {**named, **row} for row in _gap_by_ingredient(predicted, labels, steps, world)
                ]
                if world == "bag":
                    probabilities.append((name, predicted))
            prior = {**key, "subject": "prior"}
            gap.append({**prior, "treatment": "last", "gap": history[-1]["class_prior_gap"]})
            by_ingredient = _gap_by_ingredient(None, labels, steps, world)
            ingredients += [{**prior, **row} for row in by_ingredient]
        if world == "bag":
            reliability = list(_reliability(probabilities, labels))
    treated, exported = _evaluations(steps)
    return Results(
        gap=pd.DataFrame([*gap, *treated]),
        curves=pd.DataFrame(curves),
        ingredients=pd.DataFrame(ingredients),
        reliability=pd.DataFrame(reliability),
        sizes=pd.DataFrame({"subject": sizes.keys(), "mib": sizes.values()}),
        exported=pd.DataFrame(exported),
        setting={
            **{"scale": scale_name, "date": str(datetime.date.today())},
            **{"cores": os.cpu_count(), "processor": _processor()},
            **setting(),
        },
    )


def _history(run, steps):
    """Metrics of the checkpoints of a run at the given steps.

    A training that was stopped in between has one more, where it was stopped.
    """
    by_step = {entry["step"]: entry for entry in files.read_json(str(run / "eval/metrics.json"))}
    if steps[-1] not in by_step:
        raise InputError(
            f"the training in {run} ended at step {max(by_step)} of {steps[-1]}, as if it had been "
            "told to stop. Remove that directory and start again."
        )
    return [by_step[step] for step in steps]


def _evaluations(steps):
    """Rows of the tables `gap` and `exported` from all that was treated in some way."""
    gap, exported = [], []
    for one in steps.evaluations:
        summary = files.read_json(str(one.metrics))
        gap.append(
            {
                **{"world": "bag", "seed": one.seed, "subject": one.subject},
                **{"treatment": one.treatment, "gap": summary["gap"]},
            }
        )
        if one.treatment.startswith("exported_"):
            dtype = one.treatment.removeprefix("exported_")
            mib = _size(steps.export_dir(one.seed, dtype)) / 2**20
            rate = summary["videos_per_second"]
            exported.append(
                {"seed": one.seed, "dtype": dtype, "mib": mib, "videos_per_second": rate}
            )
    return gap, exported


def setting():
    """What figures depend on beside the commands: versions, and the type of matrix products."""
    return {"versions": run_config.versions(), "products": layers.resolve_compute_dtype()}


def _processor():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1) if found else platform.machine()


def _labels(steps, world):
    """Labels of all test videos of a world: a dict from id to bool `[C]`."""
    run = steps.model_dir(world, steps.scale.seeds[0], steps.scale.worlds[world][0])
    batches = run_config.RunConfig.load(str(run)).reader(steps.data(world)).batches(1024)
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
    """Rows of the table `ingredients`; without predictions, for the class prior."""
    table = pd.read_csv(steps.output_dir / "data" / world / "vocabulary.csv")
    labels = np.stack(list(labels.values()))
    for ingredient, classes in table.groupby("WikiDescription")["Index"]:
        chosen = labels[:, classes]
        if predicted is None:
            gap = eval_util.class_prior_gap(chosen.sum(axis=0), len(chosen))
        else:
            gap = eval_util.calculate_gap(predicted[:, classes], chosen)
        yield {"ingredient": ingredient, "labels": chosen.sum() / labels.sum(), "gap": gap}


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
