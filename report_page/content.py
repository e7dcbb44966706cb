"""What the template report.html shows: charts, and tables as lists."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import serving
from predictor import ExportedPredictor, Predictor
from report_page import evaluation as evaluations
from report_page import figures, history
from report_page.attention import frame_assignments
from report_page.evaluation import Evaluation
from report_page.history import Run

_NUM_CLASSES = 7
# Pairs of confused classes that are listed, considered, and the videos that each must have.
_NUM_CONFUSIONS = 15
_NUM_CANDIDATES = 10_000
_FEWEST_CONFUSIONS = 3
# Classes of each kind with a curve of their own, and of all three kinds.
_NUM_CURVES = 6
_FEW_CLASSES = 3 * _NUM_CURVES
# Positives that a class needs to be ranked; fewer if not enough classes have them for all curves.
_FEWEST_POSITIVES = 10
_SIZE = "MiB, float32"
_METRICS = {
    "GAP": ("gap", "{:.4f}", max),
    "mAP": ("map", "{:.4f}", max),
    "Hit@1": ("hit_at_one", "{:.4f}", max),
    "PERR": ("perr", "{:.4f}", max),
    "loss": ("loss", "{:.3f}", min),
    "videos/s": ("videos_per_second", "{:.0f}", None),
}


def of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what train directories alone can show."""
    entries = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    names = [run.name for run in runs]
    return {
        "columns": names,
        "runs": runs,
        "curves": figures.training_curves(runs),
        "evaluated": any(entries),
        "size_chart": _size_chart(runs, [entry.get("gap") for entry in entries]),
        "results": [
            *_results(entries),
            _row("step", "{:d}", [entry.get("step") for entry in entries]),
            _row(_SIZE, "{:.2f}", [run.mib for run in runs]),
        ],
        "results_note": "The newest evaluation of each run, as eval.py saved it."
        if any(entries)
        else "eval.py has not evaluated these runs yet.",
        "differences": history.differing_settings([run.config for run in runs]),
        "settings": history.settings,
        "evaluation": None,
    }


def of_evaluation(
    evaluation: Evaluation,
    runs: Sequence[Run],
    predictors: Mapping[str, Predictor | ExportedPredictor],
    names: Mapping[int, str],
    *,
    top_k: int,
    exported_model: str | None = None,
) -> dict[str, Any]:
    """Returns what an evaluation shows, which replaces part of `of_runs`.

    Args:
        evaluation: results of the predictors.
        runs: the runs of the predictors; none for an exported model.
        predictors: the evaluated predictors by name.
        names: names by class.
        top_k: predictions per video that count for GAP and mAP.
        exported_model: directory of the exported model, if the predictor is one.
    """
    entries = [vars(model) for model in evaluation.models]
    all_names = class_names(names, len(evaluation.per_class))
    steps = [", ".join(map(str, predictor.steps)) for predictor in predictors.values()]
    if exported_model:
        size = _row("MiB on disk", "{:.2f}", [serving.size(exported_model) / 2**20])
    else:
        size = _row(_SIZE, "{:.2f}", [run.mib for run in runs])
    correlation = evaluation.correlation
    return {
        "columns": [entry["name"] for entry in entries],
        "size_chart": _size_chart(runs, [entry["gap"] for entry in entries[: len(runs)]]),
        "results": [*_results(entries), _row("step", "{}", steps), size],
        "results_note": f"{evaluation.num_videos:,} videos; GAP and mAP count the {top_k} best "
        f"predictions of each. GAP of the class prior: {evaluation.class_prior_gap:.4f}. Speed is "
        "that of prediction without reading.",
        "evaluation": evaluation,
        "names": all_names,
        "top_k": top_k,
        "threshold": evaluations.THRESHOLD,
        "num_best": evaluations.NUM_BEST,
        "member_names": list(predictors),
        "correlation": None if correlation is None else correlation.tolist(),
        "gap_without": evaluation.gap_without,
        "reliability": figures.reliability(evaluation.models),
        "confusions": _confusions(evaluation),
        **_classes(evaluation, all_names),
    }


def of_attention(
    evaluation: Evaluation, predictors: Mapping[str, Predictor | ExportedPredictor]
) -> dict[str, Any]:
    """Returns the soft assignments of a few videos by the first model that has any."""
    kinds = (evaluation.right, evaluation.mistakes, evaluation.missed)
    shown = {example.video_id: example for kind in kinds for example in kind[:1]}
    for name, predictor in predictors.items():
        if isinstance(predictor, Predictor):
            (model,) = predictor.ensemble.models
            found = [
                (example, _assignment_charts(number, example, model, predictor.data.feature_names))
                for number, example in enumerate(shown.values())
            ]
            if any(charts for _, charts in found):
                return {
                    "attention": found,
                    "attention_model": name,
                    "cluster_limit": figures.NUM_CLUSTERS,
                }
    return {"attention": None}


def _assignment_charts(number, example, model, feature_names):
    if not isinstance(example.inputs, dict):
        return []
    found = frame_assignments(model, example.inputs)
    titles = feature_names if len(found) == len(feature_names) else ["all features"] * len(found)
    return [
        figures.attention(assignments, f"attention-{number}-{stream}", title)
        for stream, (assignments, title) in enumerate(zip(found, titles, strict=True))
    ]


def class_names(names: Mapping[int, str], num_classes: int) -> list[str]:
    """Returns a name for every class: its number if it has none."""
    return [names.get(label) or f"class {label}" for label in range(num_classes)]


def _results(entries):
    rows = [
        _row(title, style, [entry.get(key) for entry in entries], best)
        for title, (key, style, best) in _METRICS.items()
    ]
    return [row for row in rows if any(cell["text"] for cell in row["cells"])]


def _row(name, style, values, best=None):
    """Returns a row of the table of results; the best of several values is marked."""
    known = [value for value in values if value is not None]
    top = best(known) if best and len(known) > 1 else None
    return {
        "name": name,
        "cells": [
            {
                "text": "" if value is None else style.format(value),
                "best": value == top is not None,
            }
            for value in values
        ],
    }


def _size_chart(runs, gaps):
    points = [
        (run.name, run.mib, gap)
        for run, gap in zip(runs, gaps, strict=True)
        if run.mib is not None and gap is not None
    ]
    return figures.gap_and_size(points) if len(points) > 1 else None


def _classes(evaluation, names):
    per_class = evaluation.per_class
    table = per_class[per_class.positives > 0]
    fewest = min(_FEWEST_POSITIVES, int(table.positives.nlargest(_FEW_CLASSES).min()))
    ranked = table[table.positives >= fewest].sort_values(
        ["ap", "positives"], ascending=False, kind="stable"
    )
    if len(table) <= _FEW_CLASSES:
        tables = curves = {"Classes, best first": ranked}
    else:
        start = (len(ranked) - _NUM_CURVES) // 2
        curves = {
            "Best classes": ranked[:_NUM_CURVES],
            "Classes in the middle": ranked[start : start + _NUM_CURVES],
            "Worst classes": ranked[-_NUM_CURVES:],
        }
        tables = {
            "Best classes": ranked[:_NUM_CLASSES],
            "Worst classes": ranked[::-1][:_NUM_CLASSES],
        }
    return {
        "classes_chart": figures.precision_by_frequency(per_class, names),
        "classes_counted": len(table) > figures.MAX_CLASSES,
        "fewest_positives": fewest,
        "num_rare": int((per_class.positives < fewest).sum()),
        "precision_recall": {
            title: figures.precision_recall(evaluation.histogram, per_class, part.index, names)
            for title, part in curves.items()
        },
        "class_tables": {title: list(part.itertuples()) for title, part in tables.items()},
    }


def _confusions(evaluation):
    """Returns the pairs with the most videos, relative to the frequencies of both classes."""
    positives = np.asarray(evaluation.per_class.positives)
    rows = [
        {
            "label": label,
            "predicted": predicted,
            "count": count,
            "positives": positives[label],
            "share": count / positives[label],
            "rank": count / np.sqrt(positives[label] * max(positives[predicted], 1)),
        }
        for (label, predicted), count in evaluation.confusions.most_common(_NUM_CANDIDATES)
        if count >= _FEWEST_CONFUSIONS
    ]
    return sorted(rows, key=lambda row: -row["rank"])[:_NUM_CONFUSIONS]
