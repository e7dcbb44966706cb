"""What the template report.html shows: charts, and tables as lists."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import serving
from predictor import ExportedPredictor, Predictor
from report_page import evaluation as evaluations
from report_page import failures, figures, history, label_errors, learning
from report_page.attention import frame_assignments
from report_page.evaluation import Evaluation
from report_page.history import Run
from segments.ensemble import SegmentEnsemble, SegmentSettings
from utils import comma_separated

# Best and worst classes in tables.
_NUM_BEST, _NUM_WORST = 7, 12
# Worst classes in the summary.
_NUM_WEAKEST = 3
PRIOR = "class prior"
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
# The metric that a page begins with, and its key: of videos with several labels or with one each.
_FIRST = {False: ("GAP", "gap"), True: ("accuracy", "hit_at_one")}


def of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what train directories alone can show."""
    entries = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    priors = [entry["class_prior_gap"] for entry in entries if "class_prior_gap" in entry]
    prior = {"gap": max(priors)} if priors else {}
    judged = [learning.judge(run) for run in runs]
    return {
        "columns": [*(run.name for run in runs), *([PRIOR] if prior else [])],
        "runs": runs,
        "curves": figures.training_curves(runs, "gap", "GAP", prior.get("gap")),
        "evaluated": any(entries),
        "size_chart": _size_chart(runs, entries, "GAP", "gap"),
        "results": [
            *_results(entries, prior),
            _row("step", "{:d}", [entry.get("step") for entry in entries]),
            *_best_evaluations(runs),
            _sizes(runs),
        ],
        "results_note": "The newest evaluation of each run, from its metrics.json."
        if any(entries)
        else "These runs have not been evaluated yet; eval.py does it.",
        "summary": [
            *_best(entries, [run.name for run in runs], prior, single_label=False),
            *_states(judged),
        ],
        "learning": judged,
        "learning_rules": learning.RULES,
        "states": learning.STATES,
        "main_settings": history.main_settings([run.config for run in runs]),
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
        size = _sizes(runs)
    correlation = evaluation.correlation
    prior, suspects = evaluation.class_prior, evaluation.label_errors
    single_label = evaluation.single_label
    title, metric = _FIRST[single_label]
    judged = [
        learning.judge(run, run.evaluations or [{"step": predictor.steps[0], "loss": model.loss}])
        for run, predictor, model in zip(runs, predictors.values(), evaluation.models, strict=False)
    ]
    classes = _classes(evaluation, all_names)
    return {
        "columns": [*(entry["name"] for entry in entries), PRIOR],
        "size_chart": _size_chart(runs, entries[: len(runs)], _capitalized(title), metric),
        "results": [*_results(entries, prior, single_label), _row("step", "{}", steps), size],
        "results_note": f"{evaluation.num_videos:,} videos; GAP and mAP count the {top_k} best "
        "predictions of each. "
        + ("Bold is the best of a row. " if len(entries) > 1 else "")
        + "Speed is that of prediction without reading.",
        "summary": [
            *_best(entries, [entry["name"] for entry in entries], prior, single_label),
            *_states(judged),
            ("classes", f"{classes['weakest']} {classes['frequency']}".rstrip()),
            ("label-errors", _count_suspects(suspects, single_label)),
        ],
        "learning": judged,
        "evaluation": evaluation,
        "names": all_names,
        "top_k": top_k,
        "threshold": evaluations.THRESHOLD,
        "num_best": evaluations.NUM_BEST,
        "member_names": list(predictors),
        "correlation": None if correlation is None else correlation.tolist(),
        "gap_without": evaluation.gap_without,
        "reliability": figures.reliability(evaluation.models),
        "suspects": suspects,
        "missing_score": label_errors.MISSING_SCORE,
        "wrong_share": label_errors.WRONG_SHARE,
        "known_ap": label_errors.KNOWN_AP,
        "unfinished": [one.name for one in judged if one.state == "learns"],
        **(
            {"curves": figures.training_curves(runs, metric, _capitalized(title))}
            if single_label
            else {}
        ),
        **classes,
    }


def of_attention(
    evaluation: Evaluation, predictors: Mapping[str, Predictor | ExportedPredictor]
) -> dict[str, Any]:
    """Returns the soft assignments of a few videos by the first model that has any."""
    shown = _shown_over_time(evaluation)
    for name, predictor in predictors.items():
        if isinstance(predictor, Predictor):
            (model,) = predictor.ensemble.models
            found = [
                (example, _assignment_charts(number, example, model, predictor.data.feature_names))
                for number, example in enumerate(shown)
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


def of_timelines(
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor | ExportedPredictor],
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Returns the classes of a few videos over time by the first frame-level model of a run."""
    for model_name, predictor in predictors.items():
        if isinstance(predictor, Predictor) and predictor.data.frame_level:
            ensemble = SegmentEnsemble(predictor.ensemble, SegmentSettings())
            listed = class_names(names, predictor.data.num_classes)
            found = [
                (example, _timeline_chart(number, example, ensemble, listed))
                for number, example in enumerate(_shown_over_time(evaluation))
            ]
            return {"timelines": found, "timeline_model": model_name}
    return {"timelines": None}


def _shown_over_time(evaluation):
    """Returns the first video of each kind, each once."""
    kinds = (evaluation.right, evaluation.mistakes, evaluation.missed)
    return list({example.video_id: example for kind in kinds for example in kind[:1]}.values())


def _timeline_chart(number, example, ensemble, names):
    """Returns a chart of the labels and the best classes of a video."""
    labels = list(dict.fromkeys(label for label, _ in (*example.labels, *example.best)))
    num_frames = int(example.inputs["num_frames"][0])
    size = ensemble.settings.size
    probabilities = ensemble(example.inputs)[0].numpy()[:, labels]
    # A row per frame, because the last segment may have fewer.
    by_frame = np.repeat(probabilities, size, axis=0)[:num_frames]
    listed = [names[label] for label in labels]
    return figures.timeline(by_frame, listed, len(example.labels), f"timeline-{number}")


def class_names(names: Mapping[int, str], num_classes: int) -> list[str]:
    """Returns a name for every class: its number if it has none."""
    return [names.get(label) or f"class {label}" for label in range(num_classes)]


def _results(entries, prior, single_label=False):
    """Returns rows of metrics, with those of the class prior in the last column if known."""
    metrics = dict(_METRICS)
    if single_label:
        del metrics["PERR"]  # It is equal to Hit@1.
        metrics = {"Accuracy (Hit@1)": metrics.pop("Hit@1"), **metrics}
    rows = [
        _row(title, style, [entry.get(key) for entry in entries], best, prior.get(key))
        for title, (key, style, best) in metrics.items()
    ]
    return [row for row in rows if any(cell["text"] for cell in row["cells"])]


def _best_evaluations(runs):
    """Returns rows for the evaluations with the highest GAP, if a run has several evaluations."""
    if all(len(run.evaluations) < 2 for run in runs):
        return []
    best = [run.best_evaluation or {} for run in runs]
    return [
        _row("best GAP", "{:.4f}", [entry.get("gap") for entry in best], max),
        _row("step of the best GAP", "{:d}", [entry.get("step") for entry in best]),
    ]


def _row(name, style, values, best=None, prior=None):
    """Returns a row of the table of results; the best of several values is marked."""
    known = [value for value in values if value is not None]
    top = best(known) if best and len(known) > 1 else None
    cells = [(value, value == top is not None) for value in values]
    cells += [] if prior is None else [(prior, False)]
    return {
        "name": name,
        "cells": [
            {"text": "" if value is None else style.format(value), "best": is_best}
            for value, is_best in cells
        ],
    }


def _best(entries, names, prior, single_label):
    """Returns the sentence about the best model: the id of its section, and the text."""
    title, key = _FIRST[single_label]
    found = {name: entry[key] for name, entry in zip(names, entries, strict=True) if key in entry}
    if not found:
        return []
    best = max(found, key=lambda name: found[name])
    text = f"Highest {title}: {found[best]:.4f}, {best}"
    text = text if len(found) > 1 else f"{_capitalized(title)}: {found[best]:.4f}"
    if prior:
        text += f"; the class prior, which ignores the videos, reaches {prior[key]:.4f}"
    return [("results", f"{text}.")]


def _states(judged):
    """Returns a sentence for every state in which a run is, with the id of its section."""
    names = {state: [one.name for one in judged if one.state == state] for state in learning.STATES}
    return [
        ("learning", f"{comma_separated(found)} {learning.STATES[state][len(found) > 1]}.")
        for state, found in names.items()
        if found
    ]


def _capitalized(text):
    return text[0].upper() + text[1:]


def _count_suspects(suspects, single_label):
    found = f"{suspects.num_missing} labels may be missing and {suspects.num_wrong} wrong"
    if single_label:
        found = f"{suspects.num_confused} labels may be wrong"
    return f"{found} in the {suspects.num_videos:,} videos that were searched."


def _sizes(runs):
    return _row(_SIZE, "{}", [None if run.mib is None else _two_digits(run.mib) for run in runs])


def _two_digits(number):
    """Formats a number above 0 with two decimals, or with two digits if it is below 0.1."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _size_chart(runs, entries, title, key):
    points = [
        (run.name, run.mib, entry[key])
        for run, entry in zip(runs, entries, strict=True)
        if run.mib is not None and key in entry
    ]
    several = len({mib for _, mib, _ in points}) > 1
    return figures.metric_and_size(points, title) if several else None


def _classes(evaluation, names):
    per_class = evaluation.per_class
    table = per_class[per_class.positives > 0]
    fewest = min(_FEWEST_POSITIVES, int(table.positives.nlargest(_FEW_CLASSES).min()))
    ranked = table[table.positives >= fewest].sort_values(
        ["ap", "positives"], ascending=False, kind="stable"
    )
    worst = ranked.sort_values(["ap", "positives"], ascending=[True, False], kind="stable")
    best = {}
    if len(table) <= _FEW_CLASSES:
        curves = listed = {"Classes, best first": ranked}
    else:
        rest = ranked.drop(index=[*ranked.index[:_NUM_CURVES], *worst.index[:_NUM_CURVES]])
        start = (len(rest) - _NUM_CURVES) // 2
        curves = {
            "Best classes": ranked[:_NUM_CURVES],
            "Classes in the middle": rest[start : start + _NUM_CURVES],
            "Worst classes": worst[:_NUM_CURVES],
        }
        best = {"Best classes": ranked[:_NUM_BEST]}
        listed = {"Worst classes": worst[:_NUM_WORST]}
    confused = failures.pairs(evaluation.confusions, per_class.positives)
    reasons = failures.Reasons(evaluation, confused, ranked)
    return {
        "classes_chart": figures.precision_by_frequency(per_class, names),
        "classes_counted": len(table) > figures.MAX_CLASSES,
        "fewest_positives": fewest,
        "num_rare": int((per_class.positives < fewest).sum()),
        "weakest": _weakest(worst[:_NUM_WEAKEST], names),
        "frequency": failures.by_frequency(table),
        "precision_recall": {
            title: figures.precision_recall(evaluation.histogram, per_class, part.index, names)
            for title, part in curves.items()
        },
        "class_tables": {title: list(part.itertuples()) for title, part in best.items()},
        "explained": {
            title: [reasons.explain(row) for row in part.itertuples()]
            for title, part in listed.items()
        },
        "ties": _ties(ranked, worst[:_NUM_WORST]),
        "reason_rules": reasons.rules,
        "has_frames": not np.isnan(evaluation.mean_frames),
        "confusions": [pair for pair in confused if pair.excess >= failures.MIN_EXCESS][
            : failures.NUM_CONFUSIONS
        ],
        "min_excess": failures.MIN_EXCESS,
    }


def _weakest(listed, names):
    """Returns a sentence that names classes and their AP."""
    classes = [f"{names[row.Index]} ({row.ap:.3f})" for row in listed.itertuples()]
    return f"Lowest AP: {comma_separated(classes)}."


def _ties(ranked, listed):
    """Returns a sentence about worst classes of equal AP; empty if there is none to explain."""
    if len(listed) == len(ranked):
        return ""
    ap = listed.ap.iloc[-1]
    ties, shown = int((ranked.ap == ap).sum()), int((listed.ap == ap).sum())
    if ties < 2:
        return ""
    text = f"{ties} classes have the same AP, {ap:.3f}"
    text += "" if ties == shown else f"; {shown} of them are listed"
    return f"{text}. Classes with more positives come first."
