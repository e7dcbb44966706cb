"""Labels that may be wrong or missing: where all models contradict them, and similar videos too.

Memory is bounded: only the first videos of an evaluation are searched.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

# Videos that are searched, labels listed of each kind, and the videos compared with each.
MAX_VIDEOS = 10_000
NUM_LISTED = 10
NUM_NEIGHBORS = 10
# All models must give a missing label this score. To a wrong label, they must give at most this
# share of the mean score of videos without it, and the AP of its class must be at least this.
MISSING_SCORE = 0.5
WRONG_SHARE = 0.2
KNOWN_AP = 0.5


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A label to check by eye.

    Attributes:
        video_id: id of the video.
        label: the class.
        score: the score that the models agree on: the lowest for a missing label, the highest for
            a wrong one.
        others: labels of the video, without this one.
        neighbors: number of the most similar videos that have the label; None without embeddings.
    """

    video_id: str
    label: int
    score: float
    others: list[int]
    neighbors: int | None


@dataclasses.dataclass(frozen=True)
class ConfusedLabel:
    """The label to check of a video with one label, and the class that it may have instead.

    Attributes:
        video_id: id of the video.
        label: its label.
        label_score: the highest score of the label by a model.
        predicted: the other class.
        predicted_score: the lowest score of that class by a model.
        label_neighbors: number of the most similar videos that have the label; None without
            embeddings.
        predicted_neighbors: number of those that have the other class; None without embeddings.
    """

    video_id: str
    label: int
    label_score: float
    predicted: int
    predicted_score: float
    label_neighbors: int | None
    predicted_neighbors: int | None


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """The labels to check.

    Attributes:
        missing: labels that may be missing, the surest first, at most `NUM_LISTED`.
        wrong: labels that may be wrong, likewise.
        num_missing: number of all that may be missing.
        num_wrong: number of all that may be wrong.
        confused: both as one list, a video at most once, if each searched video has exactly one
            label; at most `NUM_LISTED`, those that may lack a label first. Empty otherwise.
        num_confused: number of all such videos.
        num_videos: number of videos searched.
        num_neighbors: similar videos compared; 0 without embeddings.
    """

    missing: list[Suspect]
    wrong: list[Suspect]
    num_missing: int
    num_wrong: int
    confused: list[ConfusedLabel]
    num_confused: int
    num_videos: int
    num_neighbors: int


class LabelErrorSearch:
    """Gathers videos, then finds labels to check.

    Args:
        num_classes: C.
        max_videos: videos to search, the first ones.
    """

    def __init__(self, num_classes: int, max_videos: int = MAX_VIDEOS):
        self._num_classes, self._max_videos = num_classes, max_videos
        self._ids: list[str] = []
        self._embeddings: list[Sequence[np.ndarray]] = []
        # Row, class and agreed score of labels, of other classes that may be missing, and of the
        # best of the other classes of every video.
        self._labels: list[tuple[np.ndarray, ...]] = []
        self._missing: list[tuple[np.ndarray, ...]] = []
        self._best_others: list[tuple[np.ndarray, ...]] = []
        # Sums of the highest scores in videos without the label.
        self._sums, self._counts = np.zeros(num_classes), np.zeros(num_classes)

    @property
    def is_full(self) -> bool:
        """Whether further videos are not searched."""
        return len(self._ids) >= self._max_videos

    def add(
        self,
        video_ids: Sequence[str],
        predictions: np.ndarray,
        labels: np.ndarray,
        embeddings: Sequence[np.ndarray],
    ) -> None:
        """Adds a batch.

        Args:
            video_ids: B ids.
            predictions: scores of M models, `[M, B, C]`.
            labels: bool `[B, C]`.
            embeddings: an array `[B, E]` of each model that has embeddings.
        """
        first = len(self._ids)
        lowest, highest = predictions.min(axis=0), predictions.max(axis=0)
        self._sums += np.where(labels, 0.0, highest).sum(axis=0)
        self._counts += (~labels).sum(axis=0)
        for found, chosen, scores in (
            (self._labels, labels, highest),
            (self._missing, ~labels & (lowest >= MISSING_SCORE), lowest),
        ):
            rows, classes = np.nonzero(chosen)
            found.append((first + rows, classes, scores[rows, classes]))
        rows, classes = np.arange(len(labels)), np.where(labels, -np.inf, lowest).argmax(axis=1)
        self._best_others.append((first + rows, classes, lowest[rows, classes]))
        self._ids += video_ids
        self._embeddings.append(embeddings)

    def find(self, aps: np.ndarray) -> LabelErrors:
        """Returns the labels to check.

        A label may be missing if every model scores it at least `MISSING_SCORE` and at least a
        share of (1 + its frequency) / 2 of the most similar videos has it. A label may be wrong if
        every model scores it at most `WRONG_SHARE` times the mean score of the videos without it,
        the AP of its class is at least `KNOWN_AP`, and it is no more frequent among the most
        similar videos than among all. The similarity of videos is the cosine of their embeddings,
        minus the mean of all videos; its mean over the models.

        Args:
            aps: average precision of each class, `[C]`.
        """
        given, missing = _table(self._labels), _table(self._missing)
        labels = np.zeros((len(self._ids), self._num_classes), bool)
        labels[given.row, given.label] = True
        usual = (self._sums / np.maximum(self._counts, 1))[given.label]
        known = np.nan_to_num(aps)[given.label] >= KNOWN_AP
        ratio = given.score / np.maximum(usual, 1e-9)
        wrong = given.assign(ratio=ratio)[known & (ratio <= WRONG_SHARE)]
        wrong = wrong.sort_values(["ratio", "row"], kind="stable")
        missing = missing.sort_values("score", ascending=False, kind="stable")
        vectors = [
            _unit_vectors(np.concatenate(parts)) for parts in zip(*self._embeddings, strict=True)
        ]
        count = min(NUM_NEIGHBORS, len(self._ids) - 1) if vectors else 0
        if count:
            wrong = wrong.assign(neighbors=_neighbors_with(vectors, labels, wrong, count))
            missing = missing.assign(neighbors=_neighbors_with(vectors, labels, missing, count))
            frequency = labels.mean(axis=0)
            wrong = wrong[wrong.neighbors <= count * frequency[wrong.label]]
            missing = missing[missing.neighbors >= count * (1 + frequency[missing.label]) / 2]
        is_single = len(given) == len(self._ids) and bool(labels.any(axis=1).all())
        confused = self._confused(given, missing, wrong) if is_single else missing[:0]
        return LabelErrors(
            confused=self._confused_labels(confused, labels, vectors, count),
            num_confused=len(confused),
            missing=self._suspects(missing, labels),
            wrong=self._suspects(wrong, labels),
            num_missing=len(missing),
            num_wrong=len(wrong),
            num_videos=len(self._ids),
            num_neighbors=count,
        )

    def _confused(self, given, missing, wrong):
        """Returns a row per video with a suspect: its label, and the class predicted instead."""
        best = _table(self._best_others)
        found = pd.concat([missing[best.columns], best.loc[wrong.row]]).drop_duplicates("row")
        of_label = given.set_index("row").loc[found.row]
        return found.assign(
            given=of_label.label.to_numpy(), given_score=of_label.score.to_numpy()
        ).reset_index(drop=True)

    def _confused_labels(self, table, labels, vectors, count):
        table = table[:NUM_LISTED]
        neighbors = np.full((2, len(table)), None)
        if count and len(table):
            neighbors[0] = _neighbors_with(vectors, labels, table.assign(label=table.given), count)
            neighbors[1] = _neighbors_with(vectors, labels, table, count)
        return [
            ConfusedLabel(
                video_id=self._ids[row.row],
                label=int(row.given),
                label_score=float(row.given_score),
                predicted=int(row.label),
                predicted_score=float(row.score),
                label_neighbors=of_label,
                predicted_neighbors=of_predicted,
            )
            for row, of_label, of_predicted in zip(table.itertuples(), *neighbors, strict=True)
        ]

    def _suspects(self, table, labels):
        return [
            Suspect(
                video_id=self._ids[row.row],
                label=int(row.label),
                score=float(row.score),
                others=[int(c) for c in np.flatnonzero(labels[row.row]) if c != row.label],
                neighbors=int(row.neighbors) if "neighbors" in table else None,
            )
            for row in table[:NUM_LISTED].itertuples()
        ]


def _table(parts):
    columns = zip(*parts, strict=True) if parts else [[np.zeros(0, int)]] * 3
    names = ("row", "label", "score")
    return pd.DataFrame(dict(zip(names, map(np.concatenate, columns), strict=True)))


def _unit_vectors(embeddings):
    vectors = embeddings - embeddings.mean(axis=0)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _neighbors_with(vectors, labels, table, count):
    """Returns how many of the most similar videos have the label, for every row of a table."""
    numbers = np.zeros(len(table), int)
    for start in range(0, len(table), 256):
        part = table[start : start + 256]
        similarity = sum(one[part.row] @ one.T for one in vectors)
        similarity[np.arange(len(part)), part.row] = -np.inf
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        numbers[start : start + 256] = labels[nearest, part.label.to_numpy()[:, None]].sum(axis=1)
    return numbers
