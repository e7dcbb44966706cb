"""Collects the scores of all experiments into tables."""

import dataclasses
import importlib.metadata

import numpy as np
import pandas as pd

import baselines
import experiment
import recipes
import results
from data_sets import SPLITS
from seed_tables import SavedTables


@dataclasses.dataclass(frozen=True)
class Outcomes(SavedTables):
    """All numbers of the page.

    Attributes:
        scores: one row per evaluation: data_set, seed, subject (see `recipes.TITLES`), variant,
            hit_at_one, gap.
        data: one row per data set: data_set, values_per_frame, classes, labels (per clip),
            min_frames, max_frames, and the number of clips of every split.
    """

    scores: pd.DataFrame
    data: pd.DataFrame

    made_by = "real_data/real_data.py"

    @property
    def data_sets(self):
        """Names of the data sets."""
        return list(self.data["data_set"])

    def of(self, data_set, subject, variant=experiment.LAST):
        """Returns a table of the scores by seed; empty if it was not run."""
        scores = self.scores
        chosen = (scores["data_set"] == data_set) & (scores["subject"] == subject)
        return scores[chosen & (scores["variant"] == variant)].set_index("seed")

    def final(self, data_set, subject):
        """Returns a table like `of`, of averaged checkpoints where a subject has them."""
        averaged = self.of(data_set, subject, experiment.AVERAGED)
        return self.of(data_set, subject) if averaged.empty else averaged

    def subjects(self, data_set):
        """Returns the subjects that were scored on a data set, in the order of tables."""
        scored = set(self.scores[self.scores["data_set"] == data_set]["subject"])
        return [subject for subject in recipes.TITLES if subject in scored]


def collect(clips, jobs, split, scale_name):
    """Returns the `Outcomes` of experiments that are done.

    Args:
        clips: list of `data_sets.Clip` by data set.
        jobs: dict from (data set, seed) to the directory of the experiment.
        split: the split that was evaluated.
        scale_name: key of `recipes.SCALES`.
    """
    tables = [
        pd.read_csv(folder / "scores.csv").assign(data_set=data_set, seed=seed)
        for (data_set, seed), folder in jobs.items()
    ]
    rows = [
        {"data_set": data_set, **row}
        for data_set, own in clips.items()
        for row in _baseline_scores(own, split)
    ]
    setting = results.setting()
    setting["versions"]["scikit-learn"] = importlib.metadata.version("scikit-learn")
    return Outcomes(
        scores=pd.concat([pd.DataFrame(rows), *tables]),
        data=pd.DataFrame({"data_set": name, **_describe(own)} for name, own in clips.items()),
        setting={
            "scale": scale_name,
            "split": split,
            **results.machine(),
            **setting,
        },
    )


def _baseline_scores(clips, split):
    splits = experiment.training_splits(split)
    for statistic in baselines.STATISTICS:
        predictions, labels = baselines.predict(clips, splits, split, statistic)
        yield {
            "subject": f"sklearn_{statistic}",
            "variant": experiment.LAST,
            "seed": 0,
            **experiment.score(predictions, labels),
        }


def _describe(clips):
    lengths = [len(clip.frames) for clip in clips]
    splits = [clip.split for clip in clips]
    return {
        "values_per_frame": clips[0].frames.shape[1],
        "classes": len({label for clip in clips for label in clip.labels}),
        "labels": np.mean([len(clip.labels) for clip in clips]),
        "min_frames": min(lengths),
        "max_frames": max(lengths),
        **{split: splits.count(split) for split in SPLITS},
    }
