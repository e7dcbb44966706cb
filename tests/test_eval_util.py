"""Compares the metrics with plain loops over exact fractions, written from the definitions."""

import itertools
import random

import numpy as np
import pytest

import eval_util
import metric_references as references

SEEDS = range(120)


def random_case(seed):
    """Returns predictions and labels `[B, C]` with ties, empty rows and full rows."""
    rng = np.random.default_rng(seed)
    num_videos = 1 if seed % 10 == 1 else int(rng.integers(2, 14))
    num_class = 1 if seed % 10 == 2 else int(rng.integers(2, 45))
    shape = (num_videos, num_class)
    kind = seed % 6
    if kind == 0:
        predictions = rng.random(shape)
    elif kind == 1:
        predictions = rng.integers(0, 4, shape) / 4
    elif kind == 2:
        predictions = rng.integers(-3, 4, shape).astype(np.float64)
    elif kind == 3:
        predictions = np.full(shape, rng.choice([0.0, 0.5, -2.0]))
    elif kind == 4:
        predictions = np.where(rng.random(shape) < 0.8, 0.0, rng.random(shape))
    else:
        predictions = rng.normal(size=shape) * 1e6
    labels = rng.random(shape) < rng.choice([0.05, 0.2, 0.5])
    labels[rng.random(num_videos) < 0.2] = False
    if seed % 4 == 0:
        labels[rng.integers(num_videos)] = True
    return predictions.astype(np.float32), labels


def accumulated(predictions, labels, top_k, top_n=None, cuts=(), losses=None):
    """Returns EvaluationMetrics of the batches between `cuts`."""
    losses = np.zeros(len(predictions)) if losses is None else losses
    metrics = eval_util.EvaluationMetrics(predictions.shape[1], top_k, top_n)
    edges = [0, *cuts, len(predictions)]
    for begin, end in itertools.pairwise(edges):
        part = slice(begin, end)
        metrics.accumulate(predictions[part], labels[part], losses[part])
    return metrics


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_equal_exact_loops_on_random_cases(seed):
    predictions, labels = random_case(seed)
    rng = np.random.default_rng(1000 + seed)
    top_k = int(rng.choice([1, 2, 5, 20, 50]))
    top_n = [None, 1, 3, 10][rng.integers(4)]
    cuts = {cut for cut in rng.integers(0, 14, 2).tolist() if 0 < cut < len(predictions)}
    result = accumulated(predictions, labels, top_k, top_n, sorted(cuts)).get()
    functions = {
        "avg_hit_at_one": eval_util.calculate_hit_at_one(predictions, labels),
        "avg_perr": eval_util.calculate_precision_at_equal_recall_rate(predictions, labels),
        "gap": eval_util.calculate_gap(predictions, labels, top_k),
    }
    expected = references.metrics(predictions, labels, top_k, top_n)
    for found in (result, functions):
        for name in expected.keys() & found.keys():
            np.testing.assert_allclose(found[name], expected[name], 1e-12, 1e-15, err_msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_top_k_equals_a_full_sort_with_ties_by_lowest_class(seed):
    predictions, _ = random_case(seed)
    for k in (1, 3, 20, 100):
        classes, scores = eval_util.top_k_predictions(predictions, k)
        expected = [references.ranked(row, k) for row in predictions.tolist()]
        np.testing.assert_array_equal(classes, expected)
        np.testing.assert_array_equal(scores, np.take_along_axis(predictions, classes, axis=1))
        assert classes.shape == scores.shape == (len(predictions), min(k, predictions.shape[1]))
        assert classes.dtype == np.int32


def test_top_k_mixes_tied_and_untied_rows_in_one_batch_and_treats_both_zeros_as_equal():
    rows = [[0.1, 0.5, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1], [-0.0, 0.0, -0.0, 0.0], [1, 2, 3, 2]]
    classes, scores = eval_util.top_k_predictions(rows, 2)
    assert classes.tolist() == [[1, 2], [0, 1], [0, 1], [2, 1]]
    np.testing.assert_allclose(scores, [[0.5, 0.5], [0.4, 0.3], [0, 0], [3, 2]], rtol=1e-6)


def test_top_k_of_no_videos_is_empty():
    classes, scores = eval_util.top_k_predictions(np.zeros((0, 7)), 3)
    assert classes.shape == scores.shape == (0, 3)


HAND_PREDICTIONS = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.85]])
HAND_LABELS = np.array([[1, 0, 1], [0, 0, 1]])


def test_hand_computed_batch():
    # Pool of the top 2: 0.9 hit, 0.85 hit, 0.8 miss, 0.7 miss; 3 labels in all.
    metrics = eval_util.EvaluationMetrics(num_class=3, top_k=2)
    batch = metrics.accumulate(HAND_PREDICTIONS, HAND_LABELS, 2.5)
    assert batch == {"hit_at_one": 1.0, "perr": 0.75, "loss": 2.5}
    result = metrics.get()
    assert set(result) == {"avg_hit_at_one", "avg_perr", "avg_loss", "aps", "map", "gap"}
    assert result["gap"] == pytest.approx(2 / 3)
    np.testing.assert_allclose(result["aps"], [1.0, np.nan, 0.5])
    assert result["map"] == np.nanmean(result["aps"]) == 0.75
    assert metrics.num_videos == 2
    assert metrics.positives.tolist() == [1, 0, 2]
    assert metrics.positives.dtype == np.int64


def test_gap_divides_by_labels_outside_the_top_k():
    predictions, labels = [[0.9, 0.5, 0.1]], [[1, 1, 1]]
    gaps = [eval_util.calculate_gap(predictions, labels, top_k) for top_k in (1, 2, 3)]
    assert gaps == pytest.approx([1 / 3, 2 / 3, 1])


def test_gap_pools_20_entries_by_default():
    scores = np.linspace(1, 0.5, 30)[np.newaxis]
    labels = np.ones((1, 30))
    assert eval_util.calculate_gap(scores, labels) == pytest.approx(20 / 30)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_gap_orders_equal_scores_by_video_then_by_class(shape):
    equal = np.full(shape, 0.5)
    assert eval_util.calculate_gap(equal, np.reshape([1, 0], shape)) == 1.0
    assert eval_util.calculate_gap(equal, np.reshape([0, 1], shape)) == 0.5


def test_scores_that_differ_only_in_float64_are_ties():
    nearly_equal = np.array([[0.5, 0.5 + 1e-12]])
    assert eval_util.calculate_hit_at_one(nearly_equal, [[1, 0]]) == 1.0
    assert eval_util.calculate_gap(nearly_equal, [[1, 0]]) == 1.0
    assert accumulated(nearly_equal, np.array([[1, 0]]), 2).get()["gap"] == 1.0


def test_hit_at_one_takes_the_lowest_class_of_a_tie():
    assert eval_util.calculate_hit_at_one([[0.3, 0.7, 0.7]], [[0, 1, 0]]) == 1.0
    assert eval_util.calculate_hit_at_one([[0.3, 0.7, 0.7]], [[0, 0, 1]]) == 0.0


def test_perr_counts_only_predictions_above_zero():
    perr = eval_util.calculate_precision_at_equal_recall_rate
    assert perr([[0.5, 0.0, 0.0]], [[1, 1, 0]]) == 0.5
    assert perr([[0.5, 1e-9, 0.0]], [[1, 1, 0]]) == 1.0
    assert perr([[0.5, -1.0, -2.0]], [[1, 1, 0]]) == 0.5
    assert perr([[-0.5, -1.0, -2.0]], [[1, 1, 0]]) == 0.0


def starter_code_perr(predictions, labels):
    """Returns PERR as Google's starter code computes it, in float64, for distinct scores."""
    total = 0.0
    for row, label in zip(np.float64(predictions), labels, strict=True):
        best = np.argsort(-row)[: int(np.sum(label))]
        total += np.sum(label[best] * (row[best] > 0)) / max(1, len(best))
    return total / len(labels)


@pytest.mark.parametrize("shift", [-2.0, -0.5, 0.0, 1.0])
def test_perr_of_any_scores_is_the_starter_codes(shift):
    random = np.random.default_rng(7)
    predictions = np.float32(random.uniform(-1, 1, (40, 12)) + shift)
    labels = random.random((40, 12)) < 0.3
    labels[3] = False
    expected = starter_code_perr(predictions, labels)
    perr = eval_util.calculate_precision_at_equal_recall_rate(predictions, labels)
    assert perr == pytest.approx(expected, rel=1e-12)
    metrics = eval_util.EvaluationMetrics(12, 5)
    metrics.accumulate(predictions, labels, 0.0)
    assert metrics.get()["avg_perr"] == pytest.approx(expected, rel=1e-12)


def test_videos_without_labels_count_zero_in_the_means():
    predictions, labels = [[0.9, 0.1], [0.9, 0.1]], [[1, 0], [0, 0]]
    assert eval_util.calculate_hit_at_one(predictions, labels) == 0.5
    assert eval_util.calculate_precision_at_equal_recall_rate(predictions, labels) == 0.5
    assert eval_util.calculate_gap(predictions, labels) == 1.0


def test_unlabeled_data_gives_zero_gap_and_nan_map():
    result = accumulated(np.ones((3, 4)), np.zeros((3, 4)), 2).get()
    assert result["gap"] == result["avg_perr"] == result["avg_hit_at_one"] == 0.0
    assert np.isnan(result["map"])
    assert np.isnan(result["aps"]).all()


def test_top_n_cuts_the_class_list_and_its_recall():
    # The list of the one class reads hit, miss, hit, hit: 3 positives.
    predictions, labels = np.array([[0.9], [0.8], [0.7], [0.6]]), np.array([[1], [0], [1], [1]])
    whole = (1 + 2 / 3 + 3 / 4) / 3
    for top_n, ap in {None: whole, 1: 1.0, 2: 1 / 2, 3: (1 + 2 / 3) / 3, 9: whole}.items():
        result = accumulated(predictions, labels, 1, top_n).get()
        assert result["aps"].tolist() == pytest.approx([ap])
        assert result["gap"] == pytest.approx(whole)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_labels_may_have_any_numeric_type(dtype):
    metrics = accumulated(HAND_PREDICTIONS, HAND_LABELS.astype(dtype), 2)
    assert metrics.get()["gap"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_results_do_not_depend_on_the_batches(seed):
    rng = np.random.default_rng(seed)
    predictions = (rng.integers(0, 30, (57, 40)) / 30).astype(np.float32)
    labels = rng.random((57, 40)) < 0.1
    losses = rng.random(57)
    whole = accumulated(predictions, labels, 7, losses=losses)
    cuts = sorted(rng.choice(np.arange(1, 57), size=rng.integers(1, 10), replace=False).tolist())
    parts = accumulated(predictions, labels, 7, cuts=cuts, losses=losses)
    expected, received = whole.get(), parts.get()
    assert received["gap"] == expected["gap"]
    np.testing.assert_array_equal(received["aps"], expected["aps"])
    for key in ("avg_hit_at_one", "avg_perr", "avg_loss"):
        assert received[key] == pytest.approx(expected[key], rel=1e-12)
    assert expected["avg_loss"] == pytest.approx(losses.mean(), rel=1e-12)
    np.testing.assert_array_equal(parts.positives, labels.sum(axis=0))
    assert parts.num_videos == 57


def test_mean_losses_are_weighted_by_batch_size():
    metrics = eval_util.EvaluationMetrics(3, 2)
    metrics.accumulate(np.ones((4, 3)), np.zeros((4, 3)), 1.0)
    metrics.accumulate(np.ones((1, 3)), np.zeros((1, 3)), np.float32(6.0))
    assert metrics.get()["avg_loss"] == pytest.approx(2.0)


def test_batch_values_describe_only_that_batch():
    metrics = eval_util.EvaluationMetrics(2, 2)
    metrics.accumulate([[0.1, 0.9]], [[1, 0]], 3.0)
    batch = metrics.accumulate([[0.9, 0.1], [0.9, 0.1]], [[1, 0], [1, 0]], [1.0, 2.0])
    assert batch == {"hit_at_one": 1.0, "perr": 1.0, "loss": 1.5}


def test_get_can_be_called_between_batches():
    metrics = eval_util.EvaluationMetrics(3, 2)
    metrics.accumulate(HAND_PREDICTIONS[:1], HAND_LABELS[:1], 0.0)
    first = metrics.get()
    np.testing.assert_array_equal(metrics.get()["aps"], first["aps"])
    metrics.accumulate(HAND_PREDICTIONS[1:], HAND_LABELS[1:], 0.0)
    assert metrics.get()["gap"] == pytest.approx(2 / 3)


def test_accumulate_keeps_no_view_of_its_inputs():
    metrics = eval_util.EvaluationMetrics(3, 3)
    predictions, labels = HAND_PREDICTIONS.astype(np.float32), HAND_LABELS.astype(bool)
    metrics.accumulate(predictions, labels, 0.0)
    before = metrics.get()["gap"]
    predictions[:], labels[:] = 0, False
    assert metrics.get()["gap"] == before


def test_clear_forgets_everything():
    metrics = accumulated(HAND_PREDICTIONS[::-1], HAND_LABELS, 2)
    metrics.clear()
    assert metrics.num_videos == 0
    assert metrics.positives.tolist() == [0, 0, 0]
    metrics.accumulate(HAND_PREDICTIONS, HAND_LABELS, 2.5)
    assert metrics.get()["gap"] == pytest.approx(2 / 3)


def test_more_classes_than_16_bits_can_hold_are_distinguished():
    predictions, labels = np.zeros((2, 65540), np.float32), np.zeros((2, 65540), bool)
    predictions[0, [2, 65538]] = 0.9, 0.8
    predictions[1, [2, 65538]] = 0.3, 0.4
    labels[:, 65538] = True
    result = accumulated(predictions, labels, 2).get()
    assert result["aps"][65538] == 1.0
    assert result["gap"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def reference_prior_gap(positives, num_videos, top_k, rng, trials):
    """Returns the mean GAP of class frequencies as scores, over random orders of equal scores."""
    total = 0.0
    for _ in range(trials):
        rank, found, score = 0, 0, 0.0
        for count in sorted(positives, reverse=True)[:top_k]:
            block = [True] * count + [False] * (num_videos - count)
            rng.shuffle(block)
            for hit in block:
                rank += 1
                if hit:
                    found += 1
                    score += found / rank
        total += score / sum(positives)
    return total / trials


@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_class_prior_gap_is_the_mean_over_random_tie_orders(top_k):
    positives, num_videos = [40, 700, 1500, 0, 2000, 300], 2000
    expected = reference_prior_gap(positives, num_videos, top_k, random.Random(7), trials=60)
    received = eval_util.class_prior_gap(positives, num_videos, top_k)
    assert received == pytest.approx(expected, rel=3e-3)


def test_class_prior_gap_of_hand_computed_blocks():
    # Block 1 holds 2 hits in 2 entries, block 2 one hit in 2; 3 positives and 1 outside the top 2.
    expected = (1 + 1 + 0.5 * (2.5 / 3) + 0.5 * (3 / 4)) / 4
    assert eval_util.class_prior_gap([1, 2, 1], 2, top_k=2) == pytest.approx(expected)


def test_metrics_of_the_class_prior_are_those_of_its_predictions():
    rng = np.random.default_rng(7)
    labels = rng.random((300, 6)) < [0.1, 0.6, 0.05, 0.3, 0.0, 0.2]
    prior = eval_util.ClassPriorMetrics(6, top_k=3)
    for part in np.split(labels, [1, 120]):
        prior.accumulate(part.astype(np.float32))
    found = prior.get()
    frequencies = labels.mean(axis=0)
    predictions = np.tile(frequencies.astype(np.float32), (300, 1))
    assert found["hit_at_one"] == pytest.approx(float(references.hit_at_one(predictions, labels)))
    assert found["perr"] == pytest.approx(float(references.perr(predictions, labels)))
    assert found["gap"] == eval_util.class_prior_gap(labels.sum(axis=0), 300, 3)
    # Five classes have positives, and the three most frequent count.
    assert found["map"] == pytest.approx(np.sort(frequencies)[-3:].sum() / 5)


def test_average_precision_of_the_class_prior_is_about_the_mean_over_random_orders():
    rng = np.random.default_rng(8)
    labels = np.zeros((2000, 1), bool)
    labels[:500] = True
    aps = []
    for _ in range(20):
        metrics = eval_util.EvaluationMetrics(1, top_k=1)
        metrics.accumulate(np.full((2000, 1), 0.5), rng.permutation(labels), 0.0)
        aps.append(metrics.get()["map"])
    prior = eval_util.ClassPriorMetrics(1, top_k=1)
    prior.accumulate(labels)
    assert prior.get()["map"] == pytest.approx(np.mean(aps), abs=0.01)


def test_class_prior_gap_is_right_at_its_extremes():
    assert eval_util.class_prior_gap([5, 5], 5) == pytest.approx(1.0)
    assert eval_util.class_prior_gap([0, 0], 5) == 0.0
    assert eval_util.class_prior_gap([5, 5], 5, top_k=1) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_prediction_that_is_not_finite_is_rejected_with_row_and_class(bad):
    predictions = np.zeros((5, 4))
    predictions[3, 2] = bad
    labels = np.zeros((5, 4))
    metrics = eval_util.EvaluationMetrics(4, 2)
    calls = [
        lambda: eval_util.top_k_predictions(predictions, 2),
        lambda: eval_util.calculate_hit_at_one(predictions, labels),
        lambda: eval_util.calculate_precision_at_equal_recall_rate(predictions, labels),
        lambda: eval_util.calculate_gap(predictions, labels),
        lambda: metrics.accumulate(predictions, labels, 0.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"finite.*Received: .* in row 3, class 2\."):
            call()
    assert metrics.num_videos == 0


@pytest.mark.parametrize(
    ("predictions_shape", "labels_shape", "loss_shape", "message"),
    [
        ((4, 5), (4, 5), (), r"predictions must have shape \[videos, 3\].*shape \(4, 5\)"),
        ((3,), (3,), (), r"predictions must have shape \[videos, 3\].*shape \(3,\)"),
        ((0, 3), (0, 3), (), r"predictions must hold at least one video.*\(0, 3\)"),
        ((4, 3), (5, 3), (), r"labels must have the shape of predictions, \(4, 3\).*\(5, 3\)"),
        ((4, 3), (4,), (), r"labels must have the shape of predictions, \(4, 3\).*\(4,\)"),
        ((4, 3), (4, 3), (3,), r"loss must be .*shape \(4,\).*Received: shape \(3,\)"),
        ((4, 3), (4, 3), (4, 3), r"loss must be .*Received: shape \(4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_rejected(predictions_shape, labels_shape, loss_shape, message):
    metrics = eval_util.EvaluationMetrics(3, 2)
    arrays = [np.zeros(shape) for shape in (predictions_shape, labels_shape, loss_shape)]
    with pytest.raises(ValueError, match=message):
        metrics.accumulate(*arrays)
    assert metrics.num_videos == 0


@pytest.mark.parametrize("bad", [-1, 2, 0.5, np.nan])
def test_labels_other_than_zero_and_one_are_rejected(bad):
    labels = np.zeros((2, 3))
    labels[1, 2] = bad
    with pytest.raises(ValueError, match=r"actuals must be 0 or 1.*in row 1, class 2\."):
        eval_util.calculate_gap(np.zeros((2, 3)), labels)


def test_get_without_videos_is_rejected():
    with pytest.raises(ValueError, match=r"at least one accumulated video.*Call accumulate\(\)"):
        eval_util.EvaluationMetrics(3, 2).get()


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "3"])
def test_sizes_must_be_positive_ints(bad):
    calls = {
        "num_class": lambda: eval_util.EvaluationMetrics(bad, 2),
        "top_k": lambda: eval_util.EvaluationMetrics(3, bad),
        "top_n": lambda: eval_util.EvaluationMetrics(3, 2, bad),
        "k": lambda: eval_util.top_k_predictions(HAND_PREDICTIONS, bad),
        "num_videos": lambda: eval_util.class_prior_gap([1], bad),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} must be an int of at least 1\. Received: "):
            call()


@pytest.mark.parametrize("bad", [[3, -1], [6], [np.nan], [[1, 2]]])
def test_class_prior_gap_rejects_impossible_counts(bad):
    with pytest.raises(ValueError, match=r"positives must be .* from 0 to num_videos=5"):
        eval_util.class_prior_gap(bad, 5)
