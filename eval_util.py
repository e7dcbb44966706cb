"""The metrics of YouTube-8M: Hit@1, PERR, GAP@k and mAP, on NumPy arrays.

B is the batch (videos), C the classes. Scores are compared as float32, the type of the pool that
`EvaluationMetrics` keeps, so that a result never depends on the precision they arrive in. Any
finite score is allowed, below 0 and above 1 too: only their order matters, except that PERR does
not count a prediction of exactly 0.

Equal scores are ordered by the position of their videos, then by lowest class id.
"""

import numpy as np


def top_k_predictions(predictions, k):
    """The k best classes of every video, best first; of equal scores, the lowest class id first.

    Args:
        predictions: array `[B, C]`. Finite scores.
        k: int. Entries per video; more than C stands for C.

    Returns:
        `(classes, scores)`, int32 and float32 arrays `[B, k]`.

    Raises:
        ValueError: if a score is NaN or infinite, or the shape or `k` does not fit.
    """
    _check_positive_int("k", k)
    return _top_k(_checked_predictions(predictions), k)


def calculate_hit_at_one(predictions, actuals):
    """Share of the videos whose best class is a label.

    Of equal best scores the lowest class id counts. A video without labels counts as a miss.

    Args:
        predictions: array `[B, C]`. Finite scores.
        actuals: array `[B, C]`. 1 (or True) for the labels of a video, 0 elsewhere.

    Returns:
        float, 0 to 1.
    """
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    best = np.argmax(predictions, axis=1)
    return float(np.mean(labels[np.arange(len(labels)), best]))


def calculate_precision_at_equal_recall_rate(predictions, actuals):
    """PERR: mean over the videos of the share of labels among their n best classes, n = labels.

    A prediction of exactly 0 does not count. A video without labels counts 0.

    Args:
        predictions: array `[B, C]`. Finite scores.
        actuals: array `[B, C]`. 1 (or True) for the labels of a video, 0 elsewhere.

    Returns:
        float, 0 to 1.
    """
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    label_counts = np.count_nonzero(labels, axis=1)
    classes, scores = _top_k(predictions, max(1, label_counts.max()))
    hits = np.take_along_axis(labels, classes, axis=1)
    return float(np.mean(_perr_per_video(hits, scores, label_counts)))


def calculate_gap(predictions, actuals, top_k=20):
    """Global average precision: the average precision of the pooled `top_k` of every video.

    The pool is sorted by score, and the sum of the precisions at its hits is divided by all
    labels, also those outside the top_k. Without any label the result is 0.

    Args:
        predictions: array `[B, C]`. Finite scores.
        actuals: array `[B, C]`. 1 (or True) for the labels of a video, 0 elsewhere.
        top_k: int. Entries that each video puts into the pool.

    Returns:
        float, 0 to 1.
    """
    _check_positive_int("top_k", top_k)
    predictions, labels = _checked_pair(predictions, actuals, "actuals")
    classes, scores = _top_k(predictions, top_k)
    hits = np.take_along_axis(labels, classes, axis=1)
    order = np.argsort(-scores, axis=None, kind="stable")
    return _average_precision(hits.ravel()[order], np.count_nonzero(labels))


def class_prior_gap(positives, num_videos, top_k=20):
    """The GAP@top_k of a predictor that gives every video the class frequencies as scores.

    It is the baseline that a model ignoring its input reaches: a model that scores no better has
    learnt nothing about single videos.

    All N videos share the score of a class, so that the pool consists of one block of N entries
    per class, most frequent class first. Within a block the order is a matter of chance; its n_r
    hits are taken as spread evenly. With H_r = n_1 + ... + n_r, entry i of block r has

        precision = (H_{r-1} + i * n_r / N) / ((r - 1) * N + i),    weight = n_r / N,

    and the weighted sum of the precisions is divided by all positives, also those outside the
    `top_k` most frequent classes. Without any positive the result is 0.

    Args:
        positives: array `[C]`. Videos that have each class as a label.
        num_videos: int. N, the number of videos.
        top_k: int. Entries that each video puts into the pool.

    Returns:
        float, 0 to 1.

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


class EvaluationMetrics:
    """Metrics over all videos of an evaluation, accumulated batch by batch.

    The result does not depend on how the videos are cut into batches, but for the order of equal
    scores, which is the order of accumulation. Keeps 7 bytes per pooled entry (9 above 65536
    classes), about 150 MB for 1.1 million videos; `get` needs some 800 MB more for a moment.

    Args:
        num_class: int. C, the number of classes.
        top_k: int. Entries that each video puts into the pool of GAP and of the class lists.
        top_n: int. Ranked entries per class that count for its average precision, whose recall
            then refers to at most `top_n` positives. `None` stands for all.

    Attributes:
        num_videos: int. Videos accumulated.
        positives: int64 array `[C]`. Accumulated videos that have each class as a label.
    """

    def __init__(self, num_class, top_k, top_n=None):
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

    def clear(self):
        """Forgets everything accumulated."""
        self.num_videos = 0
        self.positives = np.zeros(self.num_class, dtype=np.int64)
        self._hit_at_one_sum = 0
        self._perr_sum = 0.0
        self._loss_sum = 0.0
        self._pool = []

    def accumulate(self, predictions, labels, loss):
        """Adds a batch; a batch that is refused changes nothing.

        Args:
            predictions: array `[B, C]`. Finite scores.
            labels: array `[B, C]`. 1 (or True) for the labels of a video, 0 elsewhere.
            loss: float, the mean over the batch, or array `[B]`, one loss per video.

        Returns:
            dict of floats, the means over this batch: `hit_at_one`, `perr`, `loss`.

        Raises:
            ValueError: if a score is NaN or infinite, a label is neither 0 nor 1, or a shape
                does not fit.
        """
        predictions, labels = _checked_pair(predictions, labels, "labels", self.num_class)
        loss = _mean_loss(loss, len(predictions))
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
        self._loss_sum += loss * num_videos
        ranked = (scores, classes.astype(self._class_dtype), hits)
        self._pool.append([array[:, : self.top_k].flatten() for array in ranked])
        return {
            "hit_at_one": hit_at_one_sum / num_videos,
            "perr": perr_sum / num_videos,
            "loss": loss,
        }

    def get(self):
        """The metrics over everything accumulated.

        Returns:
            dict with the floats `avg_hit_at_one`, `avg_perr`, `avg_loss`, `gap` and `map`, and
            `aps`, a float64 array `[C]` with the average precision of every class: NaN for a
            class without positives. `map` is the mean of the others, NaN where there are none.

        Raises:
            ValueError: if nothing was accumulated.
        """
        if not self.num_videos:
            raise ValueError(
                "get() needs at least one accumulated video. Received: none. "
                "Call accumulate() first; if it was, check that the input files hold videos."
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
            "gap": _average_precision(hits, np.sum(self.positives)),
        }

    def _average_precision_per_class(self, classes, hits):
        """Average precision `[C]` of the lists that a pool, best entry first, holds per class."""
        by_class = np.argsort(classes, kind="stable")
        hit_positions = np.flatnonzero(hits[by_class])
        hit_classes = classes[by_class[hit_positions]]
        first_entry = _exclusive_cumsum(np.bincount(classes, minlength=self.num_class))
        first_hit = _exclusive_cumsum(np.bincount(hit_classes, minlength=self.num_class))
        ranks = hit_positions - first_entry[hit_classes] + 1
        precisions = (np.arange(len(ranks)) - first_hit[hit_classes] + 1) / ranks
        recall_sizes = self.positives
        if self.top_n is not None:
            precisions[ranks > self.top_n] = 0.0
            recall_sizes = np.minimum(recall_sizes, self.top_n)
        sums = np.bincount(hit_classes, weights=precisions, minlength=self.num_class)
        return np.where(recall_sizes > 0, sums / np.maximum(recall_sizes, 1), np.nan)


def _top_k(predictions, k):
    """`top_k_predictions` of a float32 array that was checked."""
    num_videos, num_class = predictions.shape
    k = min(k, num_class)
    thresholds = np.partition(predictions, num_class - k, axis=1)[:, num_class - k, np.newaxis]
    keep = predictions >= thresholds
    tied = np.count_nonzero(keep, axis=1) > k
    if tied.any():
        keep[tied] = _without_surplus_ties(predictions[tied], thresholds[tied], k)
    # Row-major: the classes of a video ascend, and the stable sort keeps that order for ties.
    classes = _true_cells(keep)[1].astype(np.int32).reshape(num_videos, k)
    scores = np.take_along_axis(predictions, classes, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _true_cells(array):
    """Rows and columns of the True cells of `[B, C]`, row by row."""
    # What np.nonzero returns, some ten times faster when few cells are True.
    return np.divmod(np.flatnonzero(array), array.shape[1])


def _without_surplus_ties(predictions, thresholds, k):
    """Marks k entries per row: those above the threshold, then the first that equal it."""
    above = predictions > thresholds
    equal = predictions == thresholds
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))


def _perr_per_video(hits, scores, label_counts):
    """PERR `[B]` of ranked lists `[B, k]` that reach at least as far as `label_counts` `[B]`."""
    counted = np.arange(hits.shape[1]) < label_counts[:, np.newaxis]
    found = np.count_nonzero(hits & counted & (scores != 0), axis=1)
    return found / np.maximum(label_counts, 1)


def _average_precision(hits, num_positives):
    """Sum of the precisions at the hits of a ranked list, divided by `num_positives`."""
    ranks = np.flatnonzero(hits) + 1
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks) / max(1, num_positives))


def _exclusive_cumsum(counts):
    return np.cumsum(counts) - counts


def _checked_pair(predictions, labels, labels_name, num_class=None):
    """Predictions as float32 and labels as bool, both `[B, C]` with at least one video."""
    predictions = _checked_predictions(predictions, num_class)
    if not len(predictions):
        raise ValueError(
            f"predictions must hold at least one video. Received: shape {predictions.shape}. "
            "Leave out empty batches."
        )
    labels = np.asarray(labels)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"{labels_name} must have the shape of predictions, {predictions.shape}. "
            f"Received: shape {labels.shape}. Pass multi-hot labels, a row per prediction."
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
    """Predictions as a finite float32 array `[B, C]`, with C = `num_class` unless None."""
    # Too large a float64 becomes infinite, which the check below reports.
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
            f"row {row}, class {column}. Look for a diverged model or broken input features."
        )
    return predictions


def _mean_loss(loss, num_videos):
    """Mean of a batch's loss, given as that mean or per video."""
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
