"""Collects the outputs of the study's jobs into tables."""

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
import nonlocal_start
import plan
import run_config
from seed_tables import SavedTables
from siblings import right_siblings
from utils import InputError

# Edges of the bins of predicted probability.
_RELIABILITY_BINS = np.concatenate([[0.0, 0.01, 0.02, 0.05], np.linspace(0.1, 1.0, 10)])
_SIZE_OF_FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Results(SavedTables):
    """All numbers of the study.

    Attributes:
        gap: `pandas.DataFrame` with one row per evaluation: world, seed, subject (a model, models
            of an ensemble joined by +, or `prior`), variant (see `plan.AVERAGES`), gap.
        curves: one row per checkpoint: world, seed, subject, step, gap.
        factors: GAP of the classes with each factor: world, seed, subject, factor, label_fraction
            (of all labels), gap.
        siblings: right siblings, see `siblings.right_siblings`, among the classes with a relation
            in the world `relational`: world, seed, subject, share.
        reliability: one row per bin of predicted probability, over all seeds of the world `bag`:
            subject, mean_prediction, fraction_true, count.
        nonlocal_start: what the non-local block of M1 does with initial weights: world, seed, and
            the columns of `nonlocal_start.measure`.
        sizes: subject, mib: size of the weights in float32.
        exported: seed, dtype, mib, videos_per_second: size on disk and speed of exported ensembles.
        setting: dict: scale, date, cores, processor, versions, matmul_precision.
    """

    gap: pd.DataFrame
    curves: pd.DataFrame
    factors: pd.DataFrame
    siblings: pd.DataFrame
    reliability: pd.DataFrame
    nonlocal_start: pd.DataFrame
    sizes: pd.DataFrame
    exported: pd.DataFrame

    made_by = "study/run.py"

    @property
    def scale(self):
        """The `plan.Scale` of the study."""
        return plan.SCALES[self.setting["scale"]]


def collect(steps, scale_name):
    """Collects the `Results` of a plan whose jobs are done.

    Args:
        steps: `plan.Plan`.
        scale_name: key of `plan.SCALES`.

    Raises:
        InputError: if a training ended early.
    """
    gap, curves, factors, siblings, probabilities, sizes = [], [], [], [], [], {}
    for world, names in steps.scale.worlds.items():
        (video_ids, labels), classes_of = _labels(steps, world), _classes_by_factor(steps, world)
        for seed in steps.scale.seeds:
            key = {"world": world, "seed": seed}
            for name in names:
                run, row = steps.model_dir(world, seed, name), {**key, "subject": name}
                history = _history(run, steps.scale.steps)
                curves += [{**row, "step": entry["step"], "gap": entry["gap"]} for entry in history]
                gap.append({**row, "variant": "last", "gap": history[-1]["gap"]})
                sizes[name] = sizes.get(name) or _weights_mib(run)
                predicted = _predictions(steps.predictions(world, seed, name), video_ids)
                factors += [{**row, **of} for of in _gap_by_factor(predicted, labels, classes_of)]
                if world == "bag":
                    probabilities.append((name, predicted))
                if world == "relational":
                    share = right_siblings(predicted, labels, classes_of["relation"])
                    siblings.append({**row, "share": share})
            row = {**key, "subject": "prior"}
            gap.append({**row, "variant": "last", "gap": history[-1]["class_prior_gap"]})
            factors += [{**row, **of} for of in _gap_by_factor(None, labels, classes_of)]
        if world == "bag":
            reliability = _reliability(probabilities, labels)
    return Results(
        gap=pd.DataFrame([*gap, *_gap_of_variants(steps)]),
        curves=pd.DataFrame(curves),
        factors=pd.DataFrame(factors),
        siblings=pd.DataFrame(siblings, columns=["world", "seed", "subject", "share"]),
        reliability=reliability,
        nonlocal_start=pd.DataFrame(_nonlocal_start(steps)),
        sizes=pd.DataFrame({"subject": sizes.keys(), "mib": sizes.values()}),
        exported=pd.DataFrame(_exported(steps)),
        setting={
            "scale": scale_name,
            **machine(),
            **setting(),
        },
    )


def _nonlocal_start(steps):
    for world in steps.scale.worlds:
        for seed in steps.scale.seeds:
            run = steps.model_dir(world, seed, "lfnl_netvlad")
            config = run_config.RunConfig.load(str(run))
            batch = next(config.data.reader(steps.data(world)).batches(nonlocal_start.NUM_VIDEOS))
            for row in nonlocal_start.measure(config, batch.inputs):
                yield {"world": world, "seed": seed, **row}


def _history(run, steps):
    """Returns the metrics of a run's checkpoints at the given steps.

    An interrupted training has additional checkpoints.
    """
    by_step = {entry["step"]: entry for entry in files.read_json(str(run / "eval/metrics.json"))}
    if steps[-1] not in by_step:
        raise InputError(
            f"the training in {run} was interrupted at step {max(by_step)} of {steps[-1]}. "
            "Remove that directory and run the study again."
        )
    return [by_step[step] for step in steps]


def _weights_mib(run):
    model = run_config.RunConfig.load(str(run)).build_model()
    return model.count_params() * _SIZE_OF_FLOAT / 2**20


def _gap_of_variants(steps):
    for evaluation in steps.evaluations:
        yield {
            "world": "bag",
            "seed": evaluation.seed,
            "subject": evaluation.subject,
            "variant": evaluation.variant,
            "gap": files.read_json(str(evaluation.metrics))["gap"],
        }


def _exported(steps):
    for evaluation in steps.evaluations:
        if evaluation.variant.startswith("exported_"):
            dtype = evaluation.variant.removeprefix("exported_")
            exported = steps.export_dir(evaluation.seed, dtype).rglob("*")
            yield {
                "seed": evaluation.seed,
                "dtype": dtype,
                "mib": sum(path.stat().st_size for path in exported if path.is_file()) / 2**20,
                "videos_per_second": files.read_json(str(evaluation.metrics))["videos_per_second"],
            }


def setting():
    """Returns what results depend on in addition to the commands."""
    return {"versions": run_config.versions(), "matmul_precision": layers.resolve_compute_dtype()}


def machine():
    """Returns the date and the machine, for the report."""
    return {
        "date": str(datetime.date.today()),
        "cores": os.cpu_count(),
        "processor": _processor(),
    }


def _processor():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1) if found else platform.machine()


def _labels(steps, world):
    """Returns the ids of the test videos of a world, a list, and their labels, bool `[N, C]`."""
    run = steps.model_dir(world, steps.scale.seeds[0], steps.scale.worlds[world][0])
    reader = run_config.RunConfig.load(str(run)).data.reader(steps.data(world))
    batches = list(reader.batches(1024))
    labels = np.concatenate([np.asarray(batch.labels, bool) for batch in batches])
    return [video_id for batch in batches for video_id in batch.video_ids], labels


def _predictions(path, video_ids):
    """Reads a prediction file with all classes, in the order of `video_ids`: `[N, C]`."""
    predicted = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            values = np.array(row["LabelConfidencePairs"].split(), np.float32)
            predicted[row["VideoId"]] = values[1::2][np.argsort(values[::2])]
    return np.stack([predicted[video_id] for video_id in video_ids])


def _classes_by_factor(steps, world):
    """Maps each factor of a world to the indices of its classes."""
    vocabulary = pd.read_csv(steps.output_dir / "data" / world / "vocabulary.csv")
    by_factor = vocabulary.groupby("WikiDescription")["Index"]
    return {factor: classes.to_numpy() for factor, classes in by_factor}


def _gap_by_factor(predicted, labels, classes_of):
    """Yields columns of the table `factors`; for the class prior if `predicted` is None."""
    for factor, classes in classes_of.items():
        chosen = labels[:, classes]
        if predicted is None:
            gap = eval_util.class_prior_gap(chosen.sum(axis=0), len(chosen))
        else:
            gap = eval_util.calculate_gap(predicted[:, classes], chosen)
        yield {"factor": factor, "label_fraction": chosen.sum() / labels.sum(), "gap": gap}


def _reliability(probabilities, labels):
    labels = labels.ravel()
    tables = []
    for subject in dict.fromkeys(name for name, _ in probabilities):
        predicted = np.stack([array.ravel() for name, array in probabilities if name == subject])
        true = np.broadcast_to(labels, predicted.shape).ravel()
        predicted = predicted.ravel().astype(np.float64)
        bins = np.digitize(predicted, _RELIABILITY_BINS[1:-1])
        table = pd.DataFrame({"mean_prediction": predicted, "fraction_true": true}).groupby(bins)
        tables.append(table.mean().assign(count=table.size()))
        tables[-1].insert(0, "subject", subject)
    return pd.concat(tables)
