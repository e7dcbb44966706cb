"""The metrics of YouTube-8M: Hit@1, PERR, GAP@k and mAP, on NumPy arrays.

B is the batch (videos), C the classes. All scores are compared as float32, the type in which
`EvaluationMetrics` pools them, so results do not depend on the input precision. Scores may be any
finite numbers. Only their order matters, except that PERR ignores predictions that are not above 0.

Ties are broken by the order of the videos, then by the lowest class id.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Names in metrics.json, and the names in log lines and TensorBoard.
METRICS = {
    "gap": "GAP",
    "map": "mAP",
    "hit_at_one": "Hit@1",
    "perr": "PERR",
    "loss": "loss",
    "segment_map": "segment mAP",
}
# Those of which less is better.
MINIMIZED = ("loss",)


def top_k_predictions(predictions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best classes of every video, best first; ties put the lowest class id first.

    Args:
        predictions: finite scores `[B, C]`.
        k: entries per video; values above C mean C.

    Returns:
        `(classes, scores)`, int32 and float32 arrays `[B, k]`.

    Raises:
        ValueError: if a score is NaN or infinite, or the shape or `k` does not fit.
    """
    _check_positive_int("k", k)
    return _top_k(_checked_predictions(predictions), k)


def calculate_hit_at_one(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns Hit@1: the fraction of the videos whose best class is a label.

    Ties go to the lowest class id. A video without labels counts as a miss.

    Args:
        predictions: finite scores `[B, C]`.
        actuals: labels `[B, C]`, 1 (or True) for the labels of a video, 0 elsewhere.
    """
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    best = np.argmax(predictions, axis=1)
    return float(np.mean(labels[np.arange(len(labels)), best]))


def calculate_precision_at_equal_recall_rate(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns PERR: the mean precision of the n best classes of a video that has n labels.

    Only a prediction above 0 can be a hit, like in the starter code. The precision of a video
    without labels is 0.

    Args:
        predictions: finite scores `[B, C]`.
        actuals: labels `[B, C]`, 1 (or True) for the labels of a video, 0 elsewhere.
    """
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    label_counts = np.count_nonzero(labels, axis=1)
    classes, scores = _top_k(predictions, max(1, label_counts.max()))
    hits = np.take_along_axis(labels, classes, axis=1)
    return float(np.mean(_perr_per_video(hits, scores, label_counts)))


def calculate_gap(predictions: np.ndarray, actuals: np.ndarray, top_k: int = 20) -> float:
    """Returns the global average precision, GAP@top_k.

    The `top_k` best predictions of every video form a pool, which is sorted by score. GAP is the
    sum of the precisions at the hits of the pool, divided by the number of all labels, including
    labels outside the pool. Without any label it is 0.

    Args:
        predictions: finite scores `[B, C]`.
        actuals: labels `[B, C]`, 1 (or True) for the labels of a video, 0 elsewhere.
        top_k: predictions of each video in the pool.
    """
    _check_positive_int("top_k", top_k)
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    classes, scores = _top_k(predictions, top_k)
    hits = np.take_along_axis(labels, classes, axis=1)
    return pool_gap(scores, hits, int(np.count_nonzero(labels)))


def pool_gap(scores: np.ndarray, hits: np.ndarray, num_positives: int) -> float:
    """Returns the global average precision of a pool of predictions.

    Args:
        scores: scores of the pool, of any shape; ties go to the one that comes first.
        hits: whether each prediction is a label, of the same shape.
        num_positives: number of all labels, including labels outside the pool.
    """
    order = np.argsort(-scores, axis=None, kind="stable")
    return average_precision(hits.ravel()[order], num_positives)


def class_prior_gap(positives: ArrayLike, num_videos: int, top_k: int = 20) -> float:
    """Returns the GAP@top_k of a predictor that scores every video with the class frequencies.

    A model that ignores its input reaches this baseline. A model that scores no better has learned
    nothing about individual videos.

    All N videos have the same score for a class, so the pool consists of one block of N entries
    per class, most frequent class first. The n_r hits of block r are taken as evenly spread, since
    the order within a block is arbitrary. With H_r = n_1 + ... + n_r, entry i of block r has

        precision = (H_{r-1} + i * n_r / N) / ((r - 1) * N + i),    weight = n_r / N,

    and GAP is the weighted sum of the precisions, divided by the number of all positives, including
    positives outside the `top_k` most frequent classes. Without any positive it is 0.

    Args:
        positives: number of videos with each class as a label, `[C]`.
        num_videos: number of videos, N.
        top_k: predictions of each video in the pool.

    Raises:
        ValueError: if a class has fewer than 0 or more than `num_videos` positives.
    """
    _check_positive_int("num_videos", num_videos)
    _check_positive_int("top_k", top_k)
    positives = np.asarray(positives, dtype=np.float64)
    if positives.ndim != 1 or not np.all((positives >= 0) & (positives <= num_videos)):
        raise ValueError(
            f"positives must be a vector of counts from 0 to num_videos={num_videos}. "
            f"Received: {positives}. Count each class once per video, over the same videos."
        )
    entries = np.arange(1, num_videos + 1)
    total = hits_before = 0.0
    for block, count in enumerate(np.sort(positives)[::-1][:top_k]):
        rate = count / num_videos
        precisions = (hits_before + entries * rate) / (block * num_videos + entries)
        total += rate * np.sum(precisions)
        hits_before += count
    return float(total / max(1.0, np.sum(positives)))


class ClassPriorMetrics:
    """Metrics of a predictor that scores every video with the class frequencies.

    With frequencies f_c over N videos, classes in the order of their frequency, and hits spread
    evenly over videos of equal score:

        GAP    = `class_prior_gap`
        mAP    = mean of f_c over the classes with positives, f_c counted as 0 beyond the top_k
        Hit@1  = largest f_c
        PERR   = mean over the videos of the precision of the n most frequent classes, where n is
                 the number of labels of the video

    Args:
        num_class: number of classes, C.
        top_k: predictions of each video that count for GAP and mAP.
    """

    def __init__(self, num_class: int, top_k: int):
        _check_positive_int("num_class", num_class)
        _check_positive_int("top_k", top_k)
        self._num_class, self._top_k = num_class, top_k
        self._num_videos = 0
        # Positives `[C]` of the videos with n labels, by n.
        self._positives: dict[int, np.ndarray] = {}

    def accumulate(self, labels: np.ndarray) -> None:
        """Adds the labels of a batch, `[B, C]`, 1 (or True) for the labels of a video."""
        labels = np.asarray(labels) > 0
        label_counts = np.count_nonzero(labels, axis=1)
        self._num_videos += len(labels)
        for count in np.unique(label_counts).tolist():
            before = self._positives.get(count, 0)
            self._positives[count] = before + labels[label_counts == count].sum(axis=0)

    def get(self) -> dict[str, float]:
        """Returns `gap`, `map`, `hit_at_one` and `perr` over everything accumulated."""
        positives = sum(self._positives.values(), np.zeros(self._num_class, np.int64))
        order = np.argsort(-positives, kind="stable")
        frequencies = positives[order] / self._num_videos
        counted = np.where(np.arange(self._num_class) < self._top_k, frequencies, 0.0)
        hits = sum(
            found[order[:count]].sum() / count for count, found in self._positives.items() if count
        )
        return {
            "gap": class_prior_gap(positives, self._num_videos, self._top_k),
            "map": float(counted.sum() / max(1, np.count_nonzero(positives))),
            "hit_at_one": float(frequencies[0]),
            "perr": float(hits / self._num_videos),
        }


class EvaluationMetrics:
    """Metrics over all videos of an evaluation, accumulated batch by batch.

    The result does not depend on how videos are batched, except that ties are broken by the order
    of accumulation. Keeps 7 bytes per pooled prediction (9 above 65536 classes), about 150 MB for
    1.1 million videos; `get` temporarily needs about 800 MB more.

    Args:
        num_class: number of classes, C.
        top_k: predictions of each video in the pool, from which GAP and mAP are computed.
        top_n: best pooled predictions per class that count for its average precision, whose recall
            then refers to at most `top_n` positives. `None` counts all.

    Attributes:
        num_videos: number of videos accumulated.
        positives: number of accumulated videos with each class as a label, int64 `[C]`.
    """

    def __init__(self, num_class: int, top_k: int, top_n: int | None = None):
        _check_positive_int("num_class", num_class)
        _check_positive_int("top_k", top_k)
        if top_n is not None:
            _check_positive_int("top_n", top_n)
        self.num_class = num_class
        self.top_k = top_k
        self.top_n = top_n
        # NumPy sorts 16-bit integers by radix, in linear time.
        self._class_dtype = np.uint16 if num_class <= 65536 else np.int32
        self.clear()

    def clear(self) -> None:
        """Discards everything accumulated."""
        self.num_videos = 0
        self.positives = np.zeros(self.num_class, dtype=np.int64)
        self._hit_at_one_sum = 0
        self._perr_sum = 0.0
        self._loss_sum = 0.0
        self._pool: list[list[np.ndarray]] = []

    def accumulate(
        self, predictions: np.ndarray, labels: np.ndarray, loss: ArrayLike
    ) -> dict[str, float]:
        """Adds a batch; a rejected batch changes nothing.

        Args:
            predictions: finite scores `[B, C]`.
            labels: 1 (or True) for the labels of a video, 0 elsewhere, `[B, C]`.
            loss: mean over the batch, or one loss per video, `[B]`.

        Returns:
            The means over this batch: `hit_at_one`, `perr` and `loss`.

        Raises:
            ValueError: if a score is NaN or infinite, a label is neither 0 nor 1, or a shape
                does not fit.
        """
        predictions, labels = _checked_pair(predictions, labels, "labels", self.num_class)
        mean_loss = _mean_loss(loss, len(predictions))
        rows, positive_classes = _true_cells(labels)
        label_counts = np.bincount(rows, minlength=len(labels))
        # One ranking serves all metrics: PERR may need more entries than the pool.
        classes, scores = _top_k(predictions, max(self.top_k, label_counts.max()))
        hits = np.take_along_axis(labels, classes, axis=1)
        hit_at_one_sum = int(np.count_nonzero(hits[:, 0]))
        perr_sum = float(np.sum(_perr_per_video(hits, scores, label_counts)))

        num_videos = len(predictions)
        self.num_videos += num_videos
        self.positives += np.bincount(positive_classes, minlength=self.num_class)
        self._hit_at_one_sum += hit_at_one_sum
        self._perr_sum += perr_sum
        self._loss_sum += mean_loss * num_videos
        ranked = (scores, classes.astype(self._class_dtype), hits)
        self._pool.append([array[:, : self.top_k].flatten() for array in ranked])
        return {
            "hit_at_one": hit_at_one_sum / num_videos,
            "perr": perr_sum / num_videos,
            "loss": mean_loss,
        }

    def get(self) -> dict[str, Any]:
        """Returns the metrics over everything accumulated.

        Returns:
            The floats `avg_hit_at_one`, `avg_perr`, `avg_loss`, `gap` and `map`, and the average
            precision of each class as `aps`, float64 `[C]`, which is NaN for a class without
            positives. `map` is the mean over the other classes, NaN if there are none.

        Raises:
            ValueError: if nothing was accumulated.
        """
        if not self.num_videos:
            raise ValueError(
                "get() needs at least one accumulated video. Received: none. "
                "Call accumulate() first. If it was called, check that the input files hold videos."
            )
        scores, classes, hits = (np.concatenate(parts) for parts in zip(*self._pool, strict=True))
        by_score = np.argsort(np.negative(scores, out=scores), kind="stable")
        hits = hits[by_score]
        aps = self._average_precision_per_class(classes[by_score], hits)
        seen = self.positives > 0
        return {
            "avg_hit_at_one": self._hit_at_one_sum / self.num_videos,
            "avg_perr": self._perr_sum / self.num_videos,
            "avg_loss": self._loss_sum / self.num_videos,
            "aps": aps,
            "map": float(np.mean(aps[seen])) if seen.any() else float("nan"),
            "gap": average_precision(hits, np.sum(self.positives)),
        }

    def _average_precision_per_class(self, classes, hits):
        """Returns the average precision of each class, `[C]`.

        Args:
            classes: class of each pooled prediction, best prediction first.
            hits: whether each pooled prediction is a label.
        """
        by_class = np.argsort(classes, kind="stable")
        hit_indices = np.flatnonzero(hits[by_class])
        hit_classes = classes[by_class[hit_indices]]
        first_entry = _exclusive_cumsum(np.bincount(classes, minlength=self.num_class))
        first_hit = _exclusive_cumsum(np.bincount(hit_classes, minlength=self.num_class))
        ranks = hit_indices - first_entry[hit_classes] + 1
        precisions = (np.arange(len(ranks)) - first_hit[hit_classes] + 1) / ranks
        recall_sizes = self.positives
        if self.top_n is not None:
            precisions[ranks > self.top_n] = 0.0
            recall_sizes = np.minimum(recall_sizes, self.top_n)
        sums = np.bincount(hit_classes, weights=precisions, minlength=self.num_class)
        return np.where(recall_sizes > 0, sums / np.maximum(recall_sizes, 1), np.nan)


def _top_k(predictions, k):
    """Returns `top_k_predictions` of a float32 array that is already checked."""
    num_videos, num_class = predictions.shape
    k = min(k, num_class)
    thresholds = np.partition(predictions, num_class - k, axis=1)[:, num_class - k, np.newaxis]
    keep = predictions >= thresholds
    tied = np.count_nonzero(keep, axis=1) > k
    if tied.any():
        keep[tied] = _without_surplus_ties(predictions[tied], thresholds[tied], k)
    # In row-major order the classes of a video ascend, and the stable sort keeps that for ties.
    classes = _true_cells(keep)[1].astype(np.int32).reshape(num_videos, k)
    scores = np.take_along_axis(predictions, classes, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _true_cells(array):
    """Returns rows and columns of the True cells of `[B, C]`, in row-major order."""
    # Equals np.nonzero, but is about ten times faster when few cells are True.
    return np.divmod(np.flatnonzero(array), array.shape[1])


def _without_surplus_ties(predictions, thresholds, k):
    """Returns a mask of k entries per row: all above the threshold, then the first equal to it."""
    above = predictions > thresholds
    equal = predictions == thresholds
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))


def _perr_per_video(hits, scores, label_counts):
    """Returns PERR `[B]` of ranked lists `[B, k]`, with k of at least the largest label count."""
    counted = np.arange(hits.shape[1]) < label_counts[:, np.newaxis]
    found = np.count_nonzero(hits & counted & (scores > 0), axis=1)
    return found / np.maximum(label_counts, 1)


def average_precision(hits: np.ndarray, num_positives: int | np.integer) -> float:
    """Returns the sum of the precisions at the hits of a ranked list, over `num_positives`.

    Args:
        hits: whether each entry is a hit, best entry first, `[N]`.
        num_positives: all positives, listed or not.
    """
    ranks = np.flatnonzero(hits) + 1
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks) / max(1, num_positives))


def _exclusive_cumsum(counts):
    return np.cumsum(counts) - counts


def _checked_pair(predictions, labels, labels_name, num_class=None):
    """Returns predictions as float32 and labels as bool, both `[B, C]` with B of at least 1."""
    predictions = _checked_predictions(predictions, num_class)
    if not len(predictions):
        raise ValueError(
            f"predictions must hold at least one video. Received: shape {predictions.shape}. "
            "Skip empty batches."
        )
    labels = np.asarray(labels)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"{labels_name} must have the shape of predictions, {predictions.shape}. "
            f"Received: shape {labels.shape}. Pass multi-hot labels, one row per video."
        )
    if labels.dtype == bool:
        return predictions, labels
    positive = labels == 1
    wrong = ~(positive | (labels == 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{labels_name} must be 0 or 1. Received: {labels[row, column]} in row {row}, class "
            f"{column}. Pass multi-hot labels, unweighted and unsmoothed."
        )
    return predictions, positive


def _checked_predictions(predictions, num_class=None):
    """Returns predictions as finite float32 `[B, C]`, with C = `num_class` unless that is None."""
    # A float64 beyond the float32 range becomes infinite, which the check below reports.
    with np.errstate(over="ignore"):
        predictions = np.asarray(predictions, dtype=np.float32)
    shape = predictions.shape
    if len(shape) != 2 or not shape[1] or num_class not in (None, shape[1]):
        raise ValueError(
            f"predictions must have shape [videos, {num_class or 'classes'}]. "
            f"Received: shape {shape}. Pass one row of class scores per video, for the number of "
            "classes of the model."
        )
    finite = np.isfinite(predictions)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"predictions must be finite float32 numbers. Received: {predictions[row, column]} in "
            f"row {row}, class {column}. Check for a diverged model or broken input features."
        )
    return predictions


def _mean_loss(loss, num_videos):
    """Returns the mean loss of a batch, given as a mean or per video."""
    loss = np.asarray(loss, dtype=np.float64)
    if loss.shape not in ((), (num_videos,)):
        raise ValueError(
            f"loss must be a number or one number per video, shape ({num_videos},). "
            f"Received: shape {loss.shape}. Reduce the loss over the classes."
        )
    return float(np.mean(loss))


def _check_positive_int(name, value):
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(
            f"{name} must be an int of at least 1. Received: {value!r}. Pass 1 or more."
        )
