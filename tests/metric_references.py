"""The metrics as plain loops over exact fractions, written from their definitions.

Predictions are rows of numbers, labels rows of 0 and 1; equal scores are ordered by video, then by
class.
"""

from fractions import Fraction

import numpy as np


def ranked(row, k):
    """Returns the k best classes of one video, ties by lowest class id."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]


def hit_at_one(predictions, labels):
    hits = sum(
        int(label[ranked(row, 1)[0]]) for row, label in zip(predictions, labels, strict=True)
    )
    return Fraction(hits, len(predictions))


def perr(predictions, labels):
    total = Fraction(0)
    for row, label in zip(predictions, labels, strict=True):
        n = int(sum(label))
        if n:
            found = [c for c in ranked(row, n) if label[c] and row[c] > 0]
            total += Fraction(len(found), n)
    return total / len(predictions)


def ap(hits, num_positives):
    found, total = 0, Fraction(0)
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += Fraction(found, rank)
    return total / num_positives if num_positives else Fraction(0)


def pool(predictions, labels, top_k):
    """Returns sorted entries (-score, video, class, hit): ties by video, then by class."""
    return sorted(
        (-predictions[v][c], v, c, bool(labels[v][c]))
        for v in range(len(predictions))
        for c in ranked(predictions[v], top_k)
    )


def gap(predictions, labels, top_k):
    entries = pool(predictions, labels, top_k)
    return ap([entry[3] for entry in entries], sum(int(sum(label)) for label in labels))


def aps(predictions, labels, top_k, top_n):
    """Returns average precision per class, None for a class without positives."""
    entries = pool(predictions, labels, top_k)
    found = []
    for c in range(len(predictions[0])):
        positives = sum(int(label[c]) for label in labels)
        hits = [entry[3] for entry in entries if entry[2] == c]
        if top_n is not None:
            hits, positives = hits[:top_n], min(positives, top_n)
        found.append(ap(hits, positives) if positives else None)
    return found


def as_floats(aps):
    return np.array([np.nan if ap is None else float(ap) for ap in aps])


def metrics(predictions, labels, top_k, top_n=None):
    """Returns the values of `eval_util.EvaluationMetrics.get` except the loss."""
    predictions, labels = np.asarray(predictions).tolist(), np.asarray(labels).tolist()
    found = as_floats(aps(predictions, labels, top_k, top_n))
    seen = found[~np.isnan(found)]
    return {
        "avg_hit_at_one": float(hit_at_one(predictions, labels)),
        "avg_perr": float(perr(predictions, labels)),
        "gap": float(gap(predictions, labels, top_k)),
        "aps": found,
        "map": float(np.mean(seen)) if len(seen) else float("nan"),
    }


def segment_average_precisions(predictions, ratings, max_segments):
    """Returns the average precision of each class of rated segments, by a loop over its list."""
    results = []
    for scores, rated in zip(predictions.T, ratings.T, strict=True):
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        hits, seen, total = 0, 0, 0.0
        for index in order[:max_segments]:
            if rated[index] == -1:  # Unrated.
                continue
            seen += 1
            if rated[index]:
                hits += 1
                total += hits / seen
        positives = int((rated == 1).sum())
        results.append(total / positives if positives else np.nan)
    return np.array(results)
