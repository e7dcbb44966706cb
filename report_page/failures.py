"""Which classes fail and why: pairs of confused classes, and probable reasons by fixed rules."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from report_page.evaluation import Confusions, Evaluation, wilson_interval

# Videos that a pair of confused classes must have, and how far it must exceed chance to be listed.
_FEWEST_CONFUSIONS = 3
MIN_EXCESS = 3
NUM_CONFUSIONS = 15
# A class fails by confusion if one class is predicted instead in this share of the videos that miss
# it, and this many times as often as by chance.
_CONFUSED_SHARE, _CONFUSED_LIFT = 0.2, 2.0
# Few frames are fewer than this share of the mean of all videos.
_FEW_FRAMES = 0.75
# Of classes by frequency, the share that is rare.
_RARE_SHARE = 0.25
# Classes by frequency are compared if there are so many.
_FEWEST_CLASSES = 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """A label that is missed, and a class predicted instead.

    Attributes:
        label: the missed label.
        predicted: the class.
        count: number of videos.
        missed: number of videos that miss the label.
        positives: number of videos with the label.
        lift: `count` as a multiple of the number expected by chance; see `Confusions.expected`.
        excess: `(count - expected) / sqrt(expected + 1)`.
    """

    label: int
    predicted: int
    count: int
    missed: int
    positives: int
    lift: float
    excess: float


def pairs(confusions: Confusions, positives: Sequence[int]) -> list[Pair]:
    """Returns the pairs of classes with enough videos, largest excess over chance first."""
    frequent = itertools.takewhile(
        lambda found: found[1] >= _FEWEST_CONFUSIONS, confusions.most_common(None)
    )
    found = []
    for (label, predicted), count in frequent:
        expected = confusions.expected(label, predicted)
        found.append(
            Pair(
                label=label,
                predicted=predicted,
                count=count,
                missed=confusions.num_missed[label],
                positives=int(positives[label]),
                lift=count / expected,
                excess=(count - expected) / np.sqrt(expected + 1),
            )
        )
    return sorted(found, key=lambda pair: -pair.excess)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A class, with what may explain its average precision.

    Attributes:
        label: the class.
        ap: average precision.
        positives: number of videos with the class as a label.
        found: share of these videos in which the class is among the n best predictions.
        found_interval: the ends of its 95% interval.
        frames: their mean number of frames; NaN without frames.
        instead: the pair with the largest excess over chance; None if no pair has enough videos.
        reasons: probable reasons, texts.
    """

    label: int
    ap: float
    positives: int
    found: float
    found_interval: tuple[float, float]
    frames: float
    instead: Pair | None
    reasons: list[str]


class Reasons:
    """Finds probable reasons for the failure of classes.

    Args:
        evaluation: an evaluation.
        confused: pairs from `pairs`.
        ranked: rows of its table `per_class` of the classes that are compared.
    """

    def __init__(self, evaluation: Evaluation, confused: Sequence[Pair], ranked: pd.DataFrame):
        rare = int(ranked.positives.quantile(_RARE_SHARE))
        # Classes of equal frequency are not rare.
        self._rare = rare if rare < ranked.positives.median() else 0
        self._evaluation = evaluation
        self._instead: dict[int, Pair] = {}
        for pair in confused:
            self._instead.setdefault(pair.label, pair)
        self.rules = (
            f"Reasons are given below an AP of {evaluation.subject.map:.3f}, the mean of all "
            "classes. Confused: one class is predicted instead in at least "
            f"{_CONFUSED_SHARE:.0%} of the videos that miss the class, and at least "
            f"{_CONFUSED_LIFT:g} times as often as by chance, that is, as if wrong predictions did "
            "not depend on the label."
        )
        if self._rare:
            self.rules += (
                f" Few positives: at most {rare}, the lower quartile here; training data are "
                "probably similar."
            )
        if not np.isnan(evaluation.mean_frames):
            self.rules += (
                f" Short videos: less than {_FEW_FRAMES:.0%} of the mean of "
                f"{evaluation.mean_frames:.0f} frames."
            )

    def explain(self, row: Any) -> Failure:
        """Returns a class, a row of `itertuples` of `per_class`, with its probable reasons."""
        instead = self._instead.get(row.Index)
        missed = self._evaluation.confusions.num_missed[row.Index]
        low, high = wilson_interval(row.positives - missed, row.positives)
        reasons = []
        if row.ap < self._evaluation.subject.map:
            if row.positives <= self._rare:
                reasons.append("few positives")
            if instead and (
                instead.count >= _CONFUSED_SHARE * instead.missed and instead.lift >= _CONFUSED_LIFT
            ):
                reasons.append("confused")
            if row.frames < _FEW_FRAMES * self._evaluation.mean_frames:
                reasons.append("short videos")
            reasons = reasons or ["no rule applies"]
        return Failure(
            label=row.Index,
            ap=row.ap,
            positives=int(row.positives),
            found=1 - missed / row.positives,
            found_interval=(float(low), float(high)),
            frames=row.frames,
            instead=instead,
            reasons=reasons,
        )


def by_frequency(table: pd.DataFrame) -> str:
    """Returns a sentence that compares the AP of rare and frequent classes.

    It is empty for few classes, and for classes of equal frequency.

    Args:
        table: rows of `per_class` with positives.
    """
    if len(table) < _FEWEST_CLASSES:
        return ""
    ordered = table.sort_values("positives", kind="stable")
    count = int(len(ordered) * _RARE_SHARE)
    rare, frequent = ordered[:count], ordered[-count:]
    if rare.positives.max() == frequent.positives.min():
        return ""
    low, high = rare.ap.mean(), frequent.ap.mean()
    head = "Rare classes fail most" if low < 0.8 * high else "Rare classes are not the main problem"
    return (
        f"{head}: the mean AP is {low:.3f} over the quarter of classes with the fewest positives "
        f"(at most {rare.positives.max()}) and {high:.3f} over the quarter with the most (at least "
        f"{frequent.positives.min()})."
    )
