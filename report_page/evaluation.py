"""What a page shows of predictions: metrics, histograms of scores, confusions, single videos.

Videos pass once, batch by batch. Except for `eval_util.EvaluationMetrics`, memory does not grow
with their number. Letters: B batch, C classes, M models.
"""

import collections
import dataclasses
import heapq
import itertools
import time
from collections.abc import Sequence

from program import Progress

import keras
import numpy as np
import pandas as pd

import eval_util
from ensemble import normalized_weights
from predictor import ExportedPredictor, Predictor, embed_videos, predict_videos
from readers import RecordReader
from report_page.label_errors import LabelErrors, LabelErrorSearch
from utils import InputError

MEAN = "mean of all"
# Videos kept of each kind, and the best predictions that a page lists of each.
NUM_EXAMPLES = 8
NUM_BEST = 3
# Score from which on a class counts as predicted, whatever its rank.
THRESHOLD = 0.5
# Bins of scores are equally wide in log-odds, from -14 to 14: scores next to 0 and 1 differ too.
NUM_BINS = 224
_LIMIT = 14.0
# Standard deviations on both sides of the mean that hold 95% of a normal distribution.
_Z = 1.96
# Pairs of classes counted at the same time; the rarest half is dropped when there are more.
_MAX_PAIRS = 1_000_000


# --- Scores ---------------------------------------------------------------------------------------


class ScoreHistogram:
    """Number of predictions by score, separately for labels and for other classes.

    Args:
        num_classes: C, to count by class; 1 to count all classes together.

    Attributes:
        counts: int64 `[C, 2, bins]`; row 1 of the second axis counts labels.
        sums: sum of the scores in each bin over all classes, float64 `[bins]`.
    """

    def __init__(self, num_classes: int = 1):
        self.counts = np.zeros((num_classes, 2, NUM_BINS), np.int64)
        self.sums = np.zeros(NUM_BINS)

    def add(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Counts a batch of scores `[B, C]` with labels, bool `[B, C]`."""
        bins = _bins(predictions)
        rows = np.arange(predictions.shape[1]) % len(self.counts)
        cells = (2 * rows + labels) * NUM_BINS + bins
        self.counts += np.bincount(cells.ravel(), minlength=self.counts.size).reshape(
            self.counts.shape
        )
        self.sums += np.bincount(bins.ravel(), weights=predictions.ravel(), minlength=NUM_BINS)

    def precision_recall(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns precision and recall of a class at every bin's lower edge, best score first."""
        negatives, positives = np.cumsum(self.counts[label, :, ::-1], axis=-1)
        some = positives + negatives > 0
        precision = positives[some] / (positives + negatives)[some]
        return precision, positives[some] / max(1, positives[-1])

    def reliability(self, edges: np.ndarray) -> pd.DataFrame:
        """Returns mean score, fraction of labels and number of predictions between scores.

        Args:
            edges: scores, ascending, without 0 and 1.
        """
        group = np.searchsorted(np.asarray(edges), _centers(), side="right")
        totals = [
            np.bincount(group, weights=column, minlength=len(edges) + 1)
            for column in (self.counts.sum(axis=(0, 1)), self.counts[:, 1].sum(axis=0), self.sums)
        ]
        count, positives, sums = (total[totals[0] > 0] for total in totals)
        return pd.DataFrame(
            {"mean_prediction": sums / count, "fraction_true": positives / count, "count": count}
        )

    def calibration_error(self) -> float:
        """Returns the expected calibration error of the scores above 0.01.

        It is the mean distance between score and fraction of labels, over bins, weighted by their
        numbers of predictions. The many scores near 0 would hide everything else.
        """
        table = self.reliability(np.concatenate([[0.01], np.linspace(0.1, 0.9, 9)]))
        table = table[table.mean_prediction > 0.01]
        gaps = (table.mean_prediction - table.fraction_true).abs()
        return float((gaps * table["count"]).sum() / max(1, table["count"].sum()))


def wilson_interval(
    count: np.ndarray | int, total: np.ndarray | int
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Returns the 95% interval of the probability of which `count` of `total` is a sample.

    With p = count / total, n = total and z = 1.96, its ends are

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Reference: [Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953).

    Args:
        count: number, or array of numbers, from 0 to `total`.
        total: number above 0, or array of the same shape.
    """
    share, square = count / total, _Z**2 / total
    center = share + square / 2
    radius = np.sqrt(square * (share * (1 - share) + square / 4))
    # Rounding must not put an end beyond the share.
    low = np.minimum((center - radius) / (1 + square), share)
    return np.maximum(low, 0.0), np.maximum((center + radius) / (1 + square), share)


def _bins(scores):
    scores = np.clip(scores.astype(np.float32), 1e-7, 1 - 1e-7)
    log_odds = np.log(scores / (1 - scores))
    return np.clip(
        ((log_odds + _LIMIT) * (NUM_BINS / (2 * _LIMIT))).astype(np.int64), 0, NUM_BINS - 1
    )


def _centers():
    """Returns the score in the middle of each bin."""
    log_odds = (np.arange(NUM_BINS) + 0.5) * (2 * _LIMIT / NUM_BINS) - _LIMIT
    return 1 / (1 + np.exp(-log_odds))


# --- Confusions and single videos -----------------------------------------------------------------


class Confusions:
    """Counts pairs of a missed label and a class predicted instead.

    Of a video with n labels, the n best classes count as predicted. Every label among the others is
    missed, and pairs with every predicted class that is no label.

    Attributes:
        num_missed: number of videos that miss a label, by label.
        num_wrong: number of videos that wrongly have a class among the predicted, by class.
        num_videos: number of videos that miss any label.
    """

    def __init__(self):
        self._pairs = collections.Counter()
        self.num_missed, self.num_wrong = collections.Counter(), collections.Counter()
        self.num_videos = 0

    def add(self, best: np.ndarray, labels: np.ndarray) -> None:
        """Counts a video.

        Args:
            best: classes, best first; at least as many as there are labels.
            labels: classes of the video.
        """
        predicted = best[: len(labels)].tolist()
        given = labels.tolist()
        missed, wrong = set(given).difference(predicted), set(predicted).difference(given)
        self._pairs.update(itertools.product(missed, wrong))
        self.num_missed.update(missed)
        self.num_wrong.update(wrong)
        self.num_videos += bool(missed)
        if len(self._pairs) > _MAX_PAIRS:
            self._pairs = collections.Counter(dict(self._pairs.most_common(_MAX_PAIRS // 2)))

    def most_common(self, count: int | None = None) -> list[tuple[tuple[int, int], int]]:
        """Returns the most frequent pairs, by default all, with their numbers of videos."""
        return self._pairs.most_common(count)

    def expected(self, label: int, predicted: int) -> float:
        """Returns the expected count of a pair if wrong classes did not depend on missed labels.

        A model that predicts the same classes for every video, like the class prior, has about
        these counts.
        """
        return self.num_missed[label] * self.num_wrong[predicted] / max(1, self.num_videos)


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """A video that a page shows.

    Attributes:
        key: number that decides whether the video is shown; those with the largest are.
        video_id: its id.
        focus: the class that the video is shown for.
        labels: its classes with their scores, best first.
        best: the best classes with their scores, and the focus if it is neither among them nor
            a label.
        inputs: its inputs, a batch of one video.
    """

    key: float
    video_id: str
    focus: int = dataclasses.field(compare=False)
    labels: list[tuple[int, float]] = dataclasses.field(compare=False)
    best: list[tuple[int, float]] = dataclasses.field(compare=False)
    inputs: dict | np.ndarray = dataclasses.field(compare=False, repr=False)


class Examples:
    """Keeps the videos with the largest keys."""

    def __init__(self, count: int = NUM_EXAMPLES):
        self._count = count
        self._heap: list[Example] = []

    def wants(self, key: float) -> bool:
        """Returns whether a video with this key would be kept."""
        return len(self._heap) < self._count or key > self._heap[0].key

    def add(self, example: Example) -> None:
        """Adds a video, which may push out another."""
        heapq.heappush(self._heap, example)
        if len(self._heap) > self._count:
            heapq.heappop(self._heap)

    def sorted(self) -> list[Example]:
        """Returns the videos, largest key first."""
        return sorted(self._heap, reverse=True)


def _single(inputs, row):
    """Returns a copy of the inputs of one video of a batch, without padding."""
    if not isinstance(inputs, dict):
        return inputs[row : row + 1].copy()
    length = int(inputs["num_frames"][row])
    single = {name: value[row : row + 1].copy() for name, value in inputs.items()}
    return {**single, "frames": single["frames"][:, :length].copy()}


# --- Several models -------------------------------------------------------------------------------


class ErrorCorrelation:
    """Correlation of the errors of M models, prediction minus label, over videos and classes."""

    def __init__(self, num_models: int):
        self._count = 0
        self._sums = np.zeros(num_models)
        self._products = np.zeros((num_models, num_models))

    def add(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Adds the predictions of a batch, `[M, B, C]`, and its labels, `[B, C]`."""
        errors = (predictions - labels).reshape(len(predictions), -1).astype(np.float64)
        self._count += errors.shape[1]
        self._sums += errors.sum(axis=1)
        self._products += errors @ errors.T

    def get(self) -> np.ndarray:
        """Returns the correlations, `[M, M]`."""
        means = self._sums / self._count
        covariance = self._products / self._count - np.outer(means, means)
        deviations = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
        return covariance / np.outer(deviations, deviations)


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """Results of one model, or of the mean of several.

    Attributes:
        name: what the page calls it.
        gap: GAP@top_k; also `map`, `hit_at_one`, `perr`, `loss`.
        videos_per_second: speed of prediction without reading; None for a mean.
        histogram: scores of all classes together.
    """

    name: str
    gap: float
    map: float
    hit_at_one: float
    perr: float
    loss: float
    videos_per_second: float | None
    histogram: ScoreHistogram


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a page shows of the predictions of one or several models.

    The attributes from `per_class` on refer to the subject: the only model, or the mean of several.

    Attributes:
        models: results of the models; the subject is the last.
        class_prior: metrics of a predictor that knows only the frequencies of the classes; see
            `eval_util.ClassPriorMetrics`.
        num_videos: number of videos.
        single_label: whether each of them has exactly one label.
        num_skipped: number of corrupt records that were skipped.
        correlation: correlation of the models' errors, `[M, M]`; None for one model.
        gap_without: GAP of the mean of all other models, for each model; None for fewer than three.
        per_class: table with a row per class and the columns `ap`, `positives`, and `frames`, the
            mean number of frames of the positives (NaN without frames).
        mean_frames: mean number of frames of all videos; NaN without frames.
        histogram: scores by class.
        confusions: pairs of missed label and wrong class, with their numbers of videos.
        mistakes: videos with the highest scores of classes that are no labels, where such a class
            scores at least `THRESHOLD` or ranks before all labels.
        missed: videos with the lowest scores of labels, below `THRESHOLD`.
        confused: videos whose best class is no label, those with its highest scores.
        right: videos whose labels all have high scores.
        label_errors: labels that may be wrong or missing, by all models.
    """

    models: list[ModelResult]
    class_prior: dict[str, float]
    num_videos: int
    single_label: bool
    num_skipped: int
    correlation: np.ndarray | None
    gap_without: list[float] | None
    per_class: pd.DataFrame
    mean_frames: float
    histogram: ScoreHistogram
    confusions: Confusions
    mistakes: list[Example]
    missed: list[Example]
    confused: list[Example]
    right: list[Example]
    label_errors: LabelErrors

    @property
    def subject(self) -> ModelResult:
        """The model, or the mean of several, that the details are about."""
        return self.models[-1]


class _Model:
    """Accumulates the results of one model."""

    def __init__(self, name, num_classes, top_k, loss):
        self.name, self._loss = name, loss
        self.metrics = eval_util.EvaluationMetrics(num_classes, top_k)
        self.histogram = ScoreHistogram()
        # The first batch compiles the model.
        self._seconds, self._timed = 0.0, 0

    def add(self, predictions, labels, seconds=None):
        loss = float(keras.ops.convert_to_numpy(self._loss(labels, predictions)))
        if self.metrics.num_videos and seconds is not None:
            self._seconds += seconds
            self._timed += len(labels)
        self.metrics.accumulate(predictions, labels, loss)
        self.histogram.add(predictions, labels > 0)

    def result(self):
        values = self.metrics.get()
        return ModelResult(
            name=self.name,
            gap=values["gap"],
            map=values["map"],
            hit_at_one=values["avg_hit_at_one"],
            perr=values["avg_perr"],
            loss=values["avg_loss"],
            videos_per_second=self._timed / self._seconds if self._timed else None,
            histogram=self.histogram,
        )


class _Details:
    """Accumulates what the page shows only of the subject."""

    def __init__(self, num_classes):
        self.histogram = ScoreHistogram(num_classes)
        self.confusions = Confusions()
        self.mistakes, self.missed, self.right = Examples(), Examples(), Examples()
        self.confused = Examples(2 * NUM_EXAMPLES)
        self.single_label = True
        # Sums of the numbers of frames, of the positives of each class and of all videos.
        self._frames, self._all_frames = np.zeros(num_classes), 0.0

    def frames(self, positives, num_videos):
        """Returns mean numbers of frames, by class and of all videos; NaN without frames."""
        if not self._all_frames:
            return np.full(len(positives), np.nan), np.nan
        return self._frames / np.maximum(positives, 1), self._all_frames / num_videos

    def add(self, batch, predictions):
        labels = batch.labels > 0
        self.single_label &= bool((labels.sum(axis=1) == 1).all())
        self.histogram.add(predictions, labels)
        if isinstance(batch.inputs, dict):
            num_frames = batch.inputs["num_frames"]
            self._frames += num_frames @ labels
            self._all_frames += num_frames.sum()
        most = max(NUM_BEST, int(labels.sum(axis=1).max()))
        best, _ = eval_util.top_k_predictions(predictions, most)
        for row, scores in enumerate(predictions):
            given = np.flatnonzero(labels[row])
            self.confusions.add(best[row], given)
            for examples, focus, key in self._kinds(scores, labels[row]):
                if examples.wants(float(key)):
                    examples.add(_example(batch, row, scores, given, best[row], focus, key))

    def _kinds(self, scores, labels):
        """Yields the examples among which a video may be, with focus and key."""
        wrong = np.where(labels, -1.0, scores).argmax()
        ranks_first = labels.any() and scores[wrong] > scores[labels].max()
        if not labels[wrong] and (scores[wrong] >= THRESHOLD or ranks_first):
            yield self.mistakes, wrong, scores[wrong]
        if ranks_first:
            yield self.confused, wrong, scores[wrong]
        if labels.any():
            hardest = np.where(labels, scores, 2.0).argmin()
            yield self.right, hardest, scores[hardest]
            if scores[hardest] < THRESHOLD:
                yield self.missed, hardest, -scores[hardest]


def _example(batch, row, scores, given, best, focus, key):
    def scored(classes):
        return [(int(label), float(scores[label])) for label in classes]

    shown = best[:NUM_BEST].tolist()
    if focus not in given and focus not in shown:
        shown.append(focus)
    return Example(
        key=float(key),
        video_id=batch.video_ids[row],
        focus=int(focus),
        labels=sorted(scored(given), key=lambda pair: -pair[1]),
        best=scored(shown),
        inputs=_single(batch.inputs, row),
    )


def evaluate(
    predictors: dict[str, Predictor | ExportedPredictor],
    reader: RecordReader,
    *,
    weights: Sequence[float] | None = None,
    batch_size: int,
    top_k: int,
) -> Evaluation:
    """Evaluates models, and the mean of their predictions if there are several.

    Args:
        predictors: restored predictors of the same classes, by name.
        reader: reader of records with labels.
        weights: weights of the models in the mean; None for equal weights.
        batch_size: videos per batch.
        top_k: predictions per video that count for GAP and mAP.

    Raises:
        InputError: if no video has a label, or a prediction is not finite.
    """
    reader.check_labels()
    first = next(iter(predictors.values()))
    num_classes = first.data.num_classes
    size = (num_classes, top_k, first.label_loss)
    shares = np.array(normalized_weights(weights, len(predictors)), np.float32)
    models = [_Model(name, *size) for name in predictors]
    mean = _Model(MEAN, *size) if len(models) > 1 else None
    without = [eval_util.EvaluationMetrics(num_classes, top_k) for _ in models]
    details, correlation = _Details(num_classes), ErrorCorrelation(len(models))
    prior, search = eval_util.ClassPriorMetrics(num_classes, top_k), LabelErrorSearch(num_classes)
    embedding = [predictor for predictor in predictors.values() if _has_embeddings(predictor)]
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            predictions = np.stack(
                [
                    _timed_prediction(predictor, batch, model)
                    for predictor, model in zip(predictors.values(), models, strict=True)
                ]
            )
            subject = np.tensordot(shares, predictions, axes=1)
            if mean is not None:
                mean.add(subject, batch.labels)
                correlation.add(predictions, batch.labels)
            if len(models) > 2:
                for number, metrics in enumerate(without):
                    others = subject - shares[number] * predictions[number]
                    metrics.accumulate(others, batch.labels, 0.0)
            details.add(batch, subject)
            prior.accumulate(batch.labels)
            if not search.is_full:
                vectors = [embed_videos(one, batch.video_ids, batch.inputs) for one in embedding]
                search.add(batch.video_ids, predictions, batch.labels > 0, vectors)
            progress.tick(reader.bytes_read, f"evaluated {models[0].metrics.num_videos} videos")
    metrics = models[0].metrics
    aps = (mean or models[0]).metrics.get()["aps"]
    frames, mean_frames = details.frames(metrics.positives, metrics.num_videos)
    return Evaluation(
        models=[model.result() for model in (*models, *([mean] if mean else []))],
        class_prior=prior.get(),
        num_videos=metrics.num_videos,
        single_label=details.single_label,
        num_skipped=reader.corrupt_records.count,
        correlation=correlation.get() if mean else None,
        gap_without=[one.get()["gap"] for one in without] if len(models) > 2 else None,
        per_class=pd.DataFrame({"ap": aps, "positives": metrics.positives, "frames": frames}),
        mean_frames=mean_frames,
        histogram=details.histogram,
        confusions=details.confusions,
        mistakes=details.mistakes.sorted(),
        missed=details.missed.sorted(),
        confused=details.confused.sorted(),
        right=details.right.sorted(),
        label_errors=search.find(aps),
    )


def _has_embeddings(predictor):
    try:
        return bool(predictor.embedding_sizes)
    except InputError:
        return False


def _timed_prediction(predictor, batch, model):
    start = time.perf_counter()
    predictions = predict_videos(predictor, batch.video_ids, batch.inputs)
    model.add(predictions, batch.labels, time.perf_counter() - start)
    return predictions
