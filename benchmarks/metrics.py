"""Measures how many videos per second the metrics accumulate, including the final result.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --num_videos=1100000 --noplain --rounds=1

The baseline is a straightforward implementation with one Python heap per class. The predictions are
in memory. benchmarks/README.md explains the output.
"""

import dataclasses
import heapq
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import comparison
import eval_util
from options import option

NUM_CLASSES = 3862
# Batches of predictions, used in turn.
DISTINCT_BATCHES = 4


class HeapMetrics:
    """GAP, mAP, Hit@1 and PERR from Python lists and heaps; ties are in arbitrary order.

    Args:
        num_class: int.
        top_k: int. Entries per video that count.
    """

    def __init__(self, num_class, top_k):
        self.top_k = top_k
        self.positives = np.zeros(num_class, np.int64)
        self.num_videos = 0
        self._hits = 0
        self._perr = 0.0
        self._pool = []
        self._per_class = [[] for _ in range(num_class)]

    def accumulate(self, predictions, labels):
        """Adds a batch of `[B, C]` predictions and labels."""
        for row, truth in zip(predictions, labels, strict=True):
            ranked = heapq.nlargest(self.top_k, range(len(row)), key=row.__getitem__)
            self.positives += truth.astype(np.int64)
            self.num_videos += 1
            self._hits += truth[ranked[0]] > 0
            count = int(truth.sum())
            self._perr += sum(truth[ranked[:count]]) / max(count, 1)
            for entry in ranked:
                heapq.heappush(self._pool, (-row[entry], truth[entry]))
                heapq.heappush(self._per_class[entry], (-row[entry], truth[entry]))

    def get(self):
        """Returns the metrics of everything accumulated."""
        pairs = zip(self._per_class, self.positives, strict=True)
        aps = [_average_precision(heap, count) for heap, count in pairs if count]
        return {
            "avg_hit_at_one": self._hits / self.num_videos,
            "avg_perr": self._perr / self.num_videos,
            "gap": _average_precision(self._pool, self.positives.sum()),
            "map": sum(aps) / len(aps),
        }


def _average_precision(heap, num_positives):
    hits, total, heap = 0, 0.0, list(heap)
    for rank in range(1, len(heap) + 1):
        if heapq.heappop(heap)[1]:
            hits += 1
            total += hits / rank
    return total / num_positives


def random_batch(rng, size):
    """Returns scores and labels of random videos; labels have higher scores than most classes."""
    labels = rng.random((size, NUM_CLASSES)) < 3 / NUM_CLASSES
    labels[:, 0] |= ~labels.any(axis=1)
    scores = rng.random((size, NUM_CLASSES), dtype=np.float32) ** 8
    return np.where(labels, np.sqrt(scores), scores), labels.astype(np.float32)


def make_work(make_metrics, num_videos, batches):
    """Returns a function that accumulates videos and computes the metrics."""

    def work():
        accumulate, get = make_metrics()
        done = 0
        while done < num_videos:
            predictions, labels = batches[done // len(batches[0][0]) % len(batches)]
            size = min(len(labels), num_videos - done)
            accumulate(predictions[:size], labels[:size])
            done += size
        get()
        return done

    return work


def project_metrics():
    """Returns `(accumulate, get)` of the metrics of eval.py."""
    metrics = eval_util.EvaluationMetrics(NUM_CLASSES, top_k=20)
    return lambda predictions, labels: metrics.accumulate(predictions, labels, 0.0), metrics.get


def heap_metrics():
    """Returns `(accumulate, get)` of the baseline."""
    metrics = HeapMetrics(NUM_CLASSES, top_k=20)
    return metrics.accumulate, metrics.get


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsOptions(comparison.PlainOptions):
    """Options of this program."""

    num_videos: int = option(20_000, "Videos for the project's metrics.", group="data", above=0)
    plain_videos: int = option(1000, "Videos for the baseline.", group="data", above=0)
    batch_size: int = option(1024, "Videos per batch.", group="data", above=0)


def main(options: MetricsOptions):
    """Runs the program."""
    rng = np.random.default_rng(0)
    batches = [random_batch(rng, options.batch_size) for _ in range(DISTINCT_BATCHES)]
    comparison.run_against_plain(
        "Python heaps",
        lambda: make_work(heap_metrics, options.plain_videos, batches),
        lambda: make_work(project_metrics, options.num_videos, batches),
        options,
        num_videos=options.num_videos,
        batch_size=options.batch_size,
    )


if __name__ == "__main__":
    program.run(main)
