"""Feeds the metrics scores and labels that are meant to break them.

    python tests/robustness/adversarial_scores.py --cases=2000

Each case is drawn from its number. Its metrics must equal those of plain loops over exact
fractions. A bad batch follows: the metrics must reject it with a message that names the fault, and
keep what they have accumulated.
"""

import collections
import random

import harness

# isort: split
import numpy as np
from absl import app, flags

import eval_util
import metric_references

NUM_CLASSES = 3862


def uniform(rng, shape):
    return rng.random(shape)


def negative(rng, shape):
    return -rng.random(shape)


def above_one(rng, shape):
    return 1 + 1e3 * rng.random(shape)


def all_ties(rng, shape):
    return np.full(shape, rng.choice([0.0, -0.0, 0.5, -3.0, 1e-45]))


def few_values(rng, shape):
    return rng.choice([-1.0, -0.0, 0.0, 0.5, 1.0], shape)


def extreme(rng, shape):
    # Largest and smallest numbers of float32, including subnormal ones.
    return rng.choice([3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38, 0.0], shape)


def equal_in_float32(rng, shape):
    return 0.5 + 1e-12 * rng.random(shape)


def integers(rng, shape):
    return rng.integers(-5, 5, shape)


def last_class(rng, shape):
    scores = rng.random(shape)
    scores[:, -1] = 2.0
    return scores


SCORES = (
    *(uniform, negative, above_one, all_ties, few_values, extreme, equal_in_float32),
    *(integers, last_class),
)


def nan(rng, scores, labels):
    scores[tuple(rng.integers(scores.shape))] = np.nan
    return scores, labels, "predictions must be finite float32 numbers. Received: nan"


def infinity(rng, scores, labels):
    scores[tuple(rng.integers(scores.shape))] = rng.choice([-1, 1]) * np.inf
    return scores, labels, "predictions must be finite float32 numbers. Received: "


def too_large_for_float32(rng, scores, labels):
    scores[tuple(rng.integers(scores.shape))] = 1e39
    return scores, labels, "predictions must be finite float32 numbers. Received: inf"


def other_label(rng, scores, labels):
    labels = labels.astype(np.float64)
    labels[tuple(rng.integers(labels.shape))] = rng.choice([0.5, -1.0, 2.0, np.nan, np.inf])
    return scores, labels, "labels must be 0 or 1"


def fewer_classes(rng, scores, labels):
    del rng
    return scores[:, 1:], labels[:, 1:], "predictions must have shape"


def other_labels_shape(rng, scores, labels):
    del rng
    return scores, labels[1:], "labels must have the shape of predictions"


def no_video(rng, scores, labels):
    del rng
    return scores[:0], labels[:0], "predictions must hold at least one video"


BAD_BATCHES = (
    *(nan, infinity, too_large_for_float32, other_label, fewer_classes, other_labels_shape),
    no_video,
)


def run_case(number):
    """Checks one case and returns the names of its scores and of its bad batch."""
    rng = np.random.default_rng(number)
    num_classes = NUM_CLASSES if number % 50 == 0 else int(rng.integers(2, 40))
    num_videos = 1 if number % 5 == 0 else int(rng.integers(2, 12))
    shape = (num_videos, num_classes)
    make = SCORES[number % len(SCORES)]
    scores = make(rng, shape)
    labels = rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 1.0])
    if make is last_class:
        labels[:, -1] = True
    top_k = int(rng.choice([1, 2, 20, 5000]))
    metrics = eval_util.EvaluationMetrics(num_classes, top_k)
    for part in np.array_split(np.arange(num_videos), rng.integers(1, 4)):
        if len(part):
            metrics.accumulate(scores[part], labels[part], 0.0)
    spoil = random.Random(number).choice(BAD_BATCHES)
    bad_scores, bad_labels, message = spoil(rng, scores.astype(np.float64), labels)
    try:
        metrics.accumulate(bad_scores, bad_labels, 0.0)
    except ValueError as error:
        harness.check(message in str(error), f"{spoil.__name__} is rejected with: {error}")
    else:
        raise harness.FaultError(f"{spoil.__name__} is not rejected")
    expected = metric_references.metrics(scores.astype(np.float32), labels, top_k)
    for name, value in metrics.get().items():
        if name != "avg_loss":
            equal = np.allclose(value, expected[name], rtol=1e-12, atol=0, equal_nan=True)
            harness.check(equal, f"{name} is {value} instead of {expected[name]}")
    return make.__name__, spoil.__name__


def run(cases):
    """Runs cases and counts the kinds of scores and of bad batches.

    Raises:
        harness.FaultError: naming the first case that fails.
    """
    kinds = collections.Counter()
    for number in range(cases):
        try:
            kinds.update(run_case(number))
        except Exception as error:
            raise harness.FaultError(f"case {number}: {error!r}") from error
    return kinds


def main(_):
    kinds = run(flags.FLAGS.cases)
    print(", ".join(f"{name} {count}" for name, count in sorted(kinds.items())))
    print(
        f"{flags.FLAGS.cases} cases of adversarial scores: as many results equal to exact "
        "fractions, as many bad batches rejected; no fault"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("cases", 2000, "Cases.")
    app.run(main)
