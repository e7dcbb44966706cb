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


# Functions of a random generator and a shape.
SCORES = {
    "uniform": lambda rng, shape: rng.random(shape),
    "negative": lambda rng, shape: -rng.random(shape),
    "above one": lambda rng, shape: 1 + 1e3 * rng.random(shape),
    "all ties": lambda rng, shape: np.full(shape, rng.choice([0.0, -0.0, 0.5, -3.0, 1e-45])),
    "few values": lambda rng, shape: rng.choice([-1.0, -0.0, 0.0, 0.5, 1.0], shape),
    # Largest and smallest numbers of float32, including subnormal ones.
    "extreme": lambda rng, shape: rng.choice([3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38, 0.0], shape),
    "equal in float32": lambda rng, shape: 0.5 + 1e-12 * rng.random(shape),
    "integers": lambda rng, shape: rng.integers(-5, 5, shape),
    "last class": lambda rng, shape: np.concatenate(
        [rng.random((shape[0], shape[1] - 1)), np.full((shape[0], 1), 2.0)], axis=1
    ),
}


def with_entry(rng, array, values):
    """Returns the array with one of the values at a random place."""
    changed = array.astype(np.float64)
    changed[tuple(rng.integers(array.shape))] = rng.choice(values)
    return changed


NOT_FINITE = "predictions must be finite float32 numbers. Received: "
# Functions of a random generator, scores and labels, and the errors that they lead to.
BAD_BATCHES = {
    "nan": (lambda rng, s, y: (with_entry(rng, s, [np.nan]), y), f"{NOT_FINITE}nan"),
    "infinity": (lambda rng, s, y: (with_entry(rng, s, [np.inf, -np.inf]), y), NOT_FINITE),
    "too large": (lambda rng, s, y: (with_entry(rng, s, [1e39]), y), f"{NOT_FINITE}inf"),
    "other label": (
        lambda rng, s, y: (s, with_entry(rng, y, [0.5, -1.0, 2.0, np.nan, np.inf])),
        "labels must be 0 or 1",
    ),
    "fewer classes": (lambda _, s, y: (s[:, 1:], y[:, 1:]), "predictions must have shape"),
    "fewer labels": (lambda _, s, y: (s, y[1:]), "labels must have the shape of predictions"),
    "no video": (lambda _, s, y: (s[:0], y[:0]), "predictions must hold at least one video"),
}


def run_case(number):
    """Checks one case and returns the names of its scores and of its bad batch."""
    rng = np.random.default_rng(number)
    num_classes = NUM_CLASSES if number % 50 == 0 else int(rng.integers(2, 40))
    num_videos = 1 if number % 5 == 0 else int(rng.integers(2, 12))
    shape = (num_videos, num_classes)
    kind = list(SCORES)[number % len(SCORES)]
    scores = SCORES[kind](rng, shape)
    labels = rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 1.0])
    if kind == "last class":
        labels[:, -1] = True
    top_k = int(rng.choice([1, 2, 20, 5000]))
    metrics = eval_util.EvaluationMetrics(num_classes, top_k)
    for part in np.array_split(np.arange(num_videos), rng.integers(1, 4)):
        if len(part):
            metrics.accumulate(scores[part], labels[part], 0.0)
    fault = random.Random(number).choice(list(BAD_BATCHES))
    spoil, message = BAD_BATCHES[fault]
    try:
        metrics.accumulate(*spoil(rng, scores, labels), 0.0)
    except ValueError as error:
        harness.check(message in str(error), f"{fault} is rejected with: {error}")
    else:
        raise harness.FaultError(f"{fault} is not rejected")
    expected = metric_references.metrics(scores.astype(np.float32), labels, top_k)
    for name, value in metrics.get().items():
        if name != "avg_loss":
            equal = np.allclose(value, expected[name], rtol=1e-12, atol=0, equal_nan=True)
            harness.check(equal, f"{name} is {value} instead of {expected[name]}")
    return kind, fault


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
