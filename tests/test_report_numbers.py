"""The numbers and charts of a report: curves, scores, confusions, single videos, attention."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

pytest.importorskip("jinja2", reason="needs requirements/report.txt")

from matplotlib.figure import Figure

import eval_util
import layer_references as references
import losses
import model_references
import readers
import small_models
from layer_references import sub_weights, weights_of
from report_page import (
    attention,
    charts,
    content,
    evaluation,
    failures,
    figures,
    history,
    label_errors,
    learning,
    page,
)
from run_config import RunConfig
from small_models import FEATURE_SIZES
from utils import InputError

C = 6


@pytest.fixture(scope="module")
def scores():
    """Random scores and labels of 500 videos; every video has a label."""
    rng = np.random.default_rng(0)
    predictions = rng.beta(0.4, 1.5, (500, C)).astype(np.float32)
    labels = rng.random((500, C)) < predictions
    labels[np.arange(500), rng.integers(0, C, 500)] = True
    return predictions, labels


# --- Histograms -----------------------------------------------------------------------------------


def test_a_histogram_adds_up_over_batches_and_counts_labels_by_class(scores):
    predictions, labels = scores
    histogram = evaluation.ScoreHistogram(C)
    for rows in np.split(np.arange(500), [7, 300]):
        histogram.add(predictions[rows], labels[rows])
    np.testing.assert_array_equal(histogram.counts[:, 1].sum(axis=1), labels.sum(axis=0))
    np.testing.assert_array_equal(histogram.counts[:, 0].sum(axis=1), (~labels).sum(axis=0))
    assert histogram.sums.sum() == pytest.approx(predictions.sum(dtype=np.float64), rel=1e-6)


def test_precision_and_recall_lie_on_the_exact_curve(scores):
    predictions, labels = scores
    histogram = evaluation.ScoreHistogram(C)
    histogram.add(predictions, labels)
    for label in range(C):
        precision, recall = histogram.precision_recall(label)
        order = np.argsort(-predictions[:, label], kind="stable")
        hits = np.cumsum(labels[order, label])
        exact = set(zip(hits / labels[:, label].sum(), hits / np.arange(1, 501), strict=True))
        assert set(zip(recall, precision, strict=True)) <= exact
        assert recall[-1] == 1
        assert len(recall) > 30


def test_reliability_is_the_fraction_of_labels_by_score(scores):
    predictions, labels = scores
    histogram = evaluation.ScoreHistogram()
    histogram.add(predictions, labels)
    table = histogram.reliability(np.array([0.1, 0.5]))
    # Bins of the histogram are not cut at the edges, so scores near an edge may count on either
    # side.
    for row, (low, high) in zip(table.itertuples(), [(0, 0.1), (0.1, 0.5), (0.5, 1)], strict=True):
        chosen = (predictions >= low) & (predictions < high)
        assert row.fraction_true == pytest.approx(labels[chosen].mean(), abs=0.02)
        assert row.mean_prediction == pytest.approx(predictions[chosen].mean(), abs=0.01)
        assert row.count == pytest.approx(chosen.sum(), rel=0.05)


def test_calibrated_scores_have_no_calibration_error_and_halved_ones_have():
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(0.02, 0.98, (20_000, 1)).astype(np.float32)
    labels = rng.random(probabilities.shape) < probabilities
    errors = []
    for factor in (1.0, 0.5):
        histogram = evaluation.ScoreHistogram()
        histogram.add(factor * probabilities, labels)
        errors.append(histogram.calibration_error())
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(0.25, abs=0.02)


def test_the_interval_has_the_probabilities_whose_score_test_accepts():
    """Its ends p solve |k / n - p| = 1.96 sqrt(p (1 - p) / n)."""
    for count, total in ((0, 10), (3, 10), (10, 10), (57, 59), (1, 1)):
        for end in evaluation.wilson_interval(count, total):
            distance = abs(count / total - end)
            assert distance == pytest.approx(1.96 * np.sqrt(end * (1 - end) / total), abs=1e-12)
    low, high = evaluation.wilson_interval(np.array([0, 5, 10]), np.array([10, 10, 10]))
    assert (low[0], high[2]) == (0, 1)
    assert low[1] == pytest.approx(1 - high[1])
    assert np.all(low <= [0, 0.5, 1])
    assert np.all(high >= [0, 0.5, 1])


def test_scores_of_exactly_0_and_1_are_counted():
    histogram = evaluation.ScoreHistogram()
    histogram.add(np.array([[0.0, 1.0]], np.float32), np.array([[False, True]]))
    assert histogram.counts[0, 0, 0] == histogram.counts[0, 1, -1] == 1


# --- Confusions and examples ----------------------------------------------------------------------


def test_a_missed_label_pairs_with_every_wrong_class_among_the_best():
    confusions = evaluation.Confusions()
    best = np.array([3, 1, 4, 0, 2])
    confusions.add(best, np.array([1, 2]))  # 3 and 1 are predicted: 2 is missed, 3 is wrong.
    confusions.add(best, np.array([0, 2]))  # Both are missed, 3 and 1 are wrong.
    confusions.add(best, np.array([3, 1]))  # All right.
    expected = {(2, 3): 2, (0, 3): 1, (0, 1): 1, (2, 1): 1}
    assert dict(confusions.most_common(10)) == expected


def test_rare_pairs_are_dropped_when_there_are_many(monkeypatch):
    monkeypatch.setattr(evaluation, "_MAX_PAIRS", 4)
    confusions = evaluation.Confusions()
    for label in (9, 9, 9, 1, 2, 3, 4, 5):
        confusions.add(np.array([0]), np.array([label]))
    pairs = dict(confusions.most_common(10))
    assert len(pairs) <= 4
    assert pairs[9, 0] == 3


def confusions_of(videos):
    """Returns the confusions of videos: the best classes and the labels of each."""
    confusions = evaluation.Confusions()
    for best, labels in videos:
        confusions.add(np.array(best), np.array(labels))
    return confusions


def test_pairs_of_a_model_that_ignores_its_input_are_as_frequent_as_chance():
    # The same class first, whatever the label.
    confusions = confusions_of([([0], [label]) for label in (1, 2, 3) for _ in range(20)])
    found = failures.pairs(confusions, [0, 20, 20, 20])
    assert [(pair.label, pair.predicted, pair.count, pair.lift) for pair in found] == [
        (label, 0, 20, 1) for label in (1, 2, 3)
    ]
    assert max(pair.excess for pair in found) == 0


def test_confused_pairs_come_in_the_order_of_their_excess_over_chance():
    videos = [([0], [1])] * 6 + [([3], [2])] * 4 + [([0], [2])] * 2 + [([4], [4])] * 9
    found = failures.pairs(confusions_of(videos), [0, 7, 8, 0, 9])
    # 12 videos miss a label. Two videos are too few for a pair.
    expected = {(1, 0): 6 * 8 / 12, (2, 3): 6 * 4 / 12}
    order = [(pair.label, pair.predicted) for pair in found]
    assert order == [(2, 3), (1, 0)]
    for pair in found:
        chance = expected[pair.label, pair.predicted]
        assert pair.lift == pytest.approx(pair.count / chance)
        assert pair.excess == pytest.approx((pair.count - chance) / np.sqrt(chance + 1))
    assert (found[0].count, found[0].missed, found[0].positives) == (4, 6, 8)


def test_examples_keep_the_largest_keys():
    keys = np.random.default_rng(2).permutation(50).astype(float)
    examples = evaluation.Examples(4)
    for key in keys:
        if examples.wants(key):
            examples.add(evaluation.Example(key, f"v{key}", 0, [], [], {}))
    assert [example.key for example in examples.sorted()] == [49, 48, 47, 46]


# --- Evaluation -----------------------------------------------------------------------------------


class FakePredictor:
    """Looks predictions up by the first byte of a video."""

    label_loss, steps = losses.CrossEntropyLoss(), [7]

    def __init__(self, predictions, embeddings=None):
        self._predictions, self._embeddings = predictions, embeddings
        self.data = SimpleNamespace(num_classes=predictions.shape[1])

    @property
    def embedding_sizes(self):
        if self._embeddings is None:
            raise InputError("no embeddings")
        return [self._embeddings.shape[1]]

    def embed(self, inputs):
        return self._embeddings[inputs["number"]]

    def predict(self, inputs):
        return self._predictions[inputs["number"]]


class FakeReader:
    """Yields videos whose inputs hold their number and, from it, their number of frames."""

    total_bytes = bytes_read = 0
    corrupt_records = SimpleNamespace(count=0)

    def __init__(self, labels):
        self._labels = labels.astype(np.float32)

    def check_labels(self):
        pass

    def batches(self, batch_size):
        count = len(self._labels)
        for rows in np.split(np.arange(count), range(batch_size, count, batch_size)):
            inputs = {
                "number": rows,
                "num_frames": 1 + rows % 3,
                "frames": np.zeros((len(rows), 4, 2), np.uint8),
            }
            yield readers.Batch([f"v{row}" for row in rows], inputs, self._labels[rows])


@pytest.fixture(scope="module")
def members(scores):
    """Predictions of three models, `[M, N, C]`: the scores with more or less noise."""
    rng = np.random.default_rng(3)
    noise = rng.random((3, *scores[0].shape))
    shares = np.array([0.2, 0.5, 0.9])[:, None, None]
    return ((1 - shares) * scores[0] + shares * noise).astype(np.float32)


@pytest.fixture(scope="module")
def found(scores, members):
    predictors = {f"model{number}": FakePredictor(one) for number, one in enumerate(members)}
    return evaluation.evaluate(
        predictors, FakeReader(scores[1]), weights=(2, 1, 1), batch_size=64, top_k=3
    )


def test_metrics_are_those_of_each_model_and_of_the_weighted_mean(found, scores, members):
    mean = (2 * members[0] + members[1] + members[2]) / 4
    assert [model.name for model in found.models] == ["model0", "model1", "model2", evaluation.MEAN]
    for model, predictions in zip(found.models, [*members, mean], strict=True):
        assert model.gap == pytest.approx(eval_util.calculate_gap(predictions, scores[1], 3))
        assert model.hit_at_one == eval_util.calculate_hit_at_one(predictions, scores[1])
    assert found.subject.name == evaluation.MEAN
    assert found.num_videos == 500
    np.testing.assert_array_equal(found.per_class.positives, scores[1].sum(axis=0))


def test_gap_without_a_model_is_that_of_the_mean_of_the_others(found, scores, members):
    others = [members[1] + members[2], 2 * members[0] + members[2], 2 * members[0] + members[1]]
    expected = [eval_util.calculate_gap(predictions, scores[1], 3) for predictions in others]
    assert found.gap_without == pytest.approx(expected, abs=1e-6)


def test_correlations_are_those_of_the_errors(found, scores, members):
    errors = (members - scores[1]).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(found.correlation, np.corrcoef(errors), atol=1e-6)


def test_examples_are_the_extreme_videos(found, scores, members):
    labels, mean = scores[1], (2 * members[0] + members[1] + members[2]) / 4
    wrong = np.where(labels, -1, mean)
    hardest = np.where(labels, mean, 2).min(axis=1)
    assert min(example.key for example in found.mistakes) > 0.5
    kinds = [(found.mistakes, -wrong.max(axis=1)), (found.missed, hardest), (found.right, -hardest)]
    for examples, keys in kinds:
        order = np.argsort(keys, kind="stable")[: evaluation.NUM_EXAMPLES]
        assert [example.video_id for example in examples] == [f"v{row}" for row in order]
    first = found.mistakes[0]
    row = int(first.video_id[1:])
    assert first.focus == wrong[row].argmax()
    assert [label for label, _ in first.labels] == sorted(
        np.flatnonzero(labels[row]), key=lambda label: -mean[row, label]
    )
    assert [label for label, _ in first.best[:3]] == np.argsort(-mean[row])[:3].tolist()
    assert first.inputs["frames"].shape == (1, 1 + row % 3, 2)


# Videos of 6 classes and their labels.
SINGLE_VIDEOS = {
    "five labels, and the wrong class after them": (
        [0.9, 0.9, 0.9, 0.8, 0.8, 0.6],
        [0, 1, 2, 3, 4],
    ),
    "wrong, but below 0.5 and after a label": ([0.6, 0.49, 0.1, 0, 0, 0], [0, 2]),
    "wrong, below 0.5, but first": ([0.2, 0.3, 0, 0, 0, 0], [0]),
    "right": ([0.5, 0.8, 0.062, 0, 0, 0], [0, 1]),
    "without labels, low": ([0.4, 0, 0, 0, 0, 0], []),
    "without labels, high": ([0.7, 0, 0, 0, 0, 0], []),
    "all classes are labels": ([0.9, 0.9, 0.9, 0.9, 0.9, 0.3], range(6)),
}


@pytest.fixture(scope="module")
def single_videos():
    """The evaluation of `SINGLE_VIDEOS`."""
    labels = np.array([np.isin(range(C), given) for _, given in SINGLE_VIDEOS.values()])
    predictions = np.array([row for row, _ in SINGLE_VIDEOS.values()], np.float32)
    return evaluation.evaluate(
        {"only": FakePredictor(predictions)}, FakeReader(labels), batch_size=100, top_k=3
    )


def focus_by_video(examples):
    names = list(SINGLE_VIDEOS)
    return {names[int(example.video_id[1:])]: example.focus for example in examples}


def test_mistakes_score_at_least_a_half_or_rank_first(single_videos):
    assert focus_by_video(single_videos.mistakes) == {
        "without labels, high": 0,
        "five labels, and the wrong class after them": 5,
        "wrong, below 0.5, but first": 1,
    }


def test_missed_labels_score_below_a_half(single_videos):
    assert focus_by_video(single_videos.missed) == {
        "wrong, but below 0.5 and after a label": 2,
        "wrong, below 0.5, but first": 0,
        "all classes are labels": 5,
    }


def test_every_example_lists_its_focus_with_the_score(single_videos):
    for example in (*single_videos.mistakes, *single_videos.missed):
        row = list(SINGLE_VIDEOS.values())[int(example.video_id[1:])][0]
        score = dict([*example.labels, *example.best])[example.focus]
        assert score == pytest.approx(row[example.focus])
        assert len(dict(example.best)) == len(example.best) <= 4


def rendered(found, num_classes=C):
    """Returns the page of an evaluation of one model."""
    predictors = {"only": FakePredictor(np.zeros((1, num_classes)))}
    values = content.of_runs([]) | content.of_evaluation(found, [], predictors, {}, top_k=3)
    values |= content.of_attention(found, predictors)
    values |= content.of_timelines(found, predictors, {})
    return page.render("report.html", title="title", subtitle="", **values)


def test_every_card_highlights_its_mistake(single_videos):
    html = rendered(single_videos)
    cards = html.split('<div class="card">')[1:]
    examples = [*single_videos.mistakes, *single_videos.missed]
    for card, example in zip(cards, examples, strict=True):
        focus = re.search(r'class="focus"><span>class (\d)</span><span>([\d.]+)', card)
        score = dict([*example.labels, *example.best])[example.focus]
        assert int(focus[1]) == example.focus
        assert float(focus[2]) == pytest.approx(score, abs=6e-4)


def test_a_page_without_mistakes_says_so(single_videos):
    html = rendered(dataclasses.replace(single_videos, mistakes=[], missed=[]))
    assert "None: no wrong class scores 0.5 or ranks first." in html
    assert "None: every label scores at least 0.5." in html
    assert 'class="card"' not in html


# Scores of videos with one label, class 0.
ONE_LABEL = {
    "right": [0.9, 0.1, 0.0],
    "right, but unsure": [0.3, 0.2, 0.0],
    "right, and a wrong class high": [0.8, 0.6, 0.0],
    "first is wrong": [0.3, 0.4, 0.0],
    "first is wrong and sure": [0.01, 0.1, 0.95],
}


@pytest.fixture(scope="module")
def one_label():
    """The evaluation of videos that have one label each, and their predictor."""
    predictions = np.array(list(ONE_LABEL.values()), np.float32)
    labels = np.eye(3)[np.zeros(len(predictions), int)]
    return evaluation.evaluate(
        {"only": FakePredictor(predictions)}, FakeReader(labels), batch_size=2, top_k=3
    )


def test_videos_with_one_label_each_are_confused_if_another_class_ranks_first(one_label, scores):
    names = list(ONE_LABEL)
    assert one_label.single_label
    confused = [names[int(example.video_id[1:])] for example in one_label.confused]
    assert confused == ["first is wrong and sure", "first is wrong"]


def test_a_video_with_two_labels_or_none_makes_data_multi_label(found, single_videos):
    assert not found.single_label
    labels = np.array([[1, 0, 0], [0, 0, 0]])
    predictor = FakePredictor(np.full((2, 3), 0.5, np.float32))
    for rows in (labels, 1 - labels):
        result = evaluation.evaluate({"only": predictor}, FakeReader(rows), batch_size=2, top_k=3)
        assert not result.single_label
        assert result.label_errors.confused == []


def test_the_page_of_videos_with_one_label_begins_with_accuracy(one_label):
    html = rendered(one_label, num_classes=3)
    assert html.index("Accuracy: 0.6000") < html.index("<h2")
    titles = re.findall(r"<tr><td>(.*?)</td>", html.split('id="results"')[1])
    assert titles[:3] == ["Accuracy (Hit@1)", "GAP", "mAP"]
    assert "PERR" not in titles
    assert "Each video has exactly one label" in html
    rows = [re.sub("<[^>]*>", " ", row).split() for row in html.split("<tr>")]
    assert [row for row in rows if row[:1] == ["v4"]][-1] == (
        ["v4", "class", "0", "0.010", "class", "2", "0.950"]
    )
    assert 'class="card"' not in html
    assert "may be missing" not in html


def test_the_page_of_other_videos_does_not_speak_of_accuracy(single_videos):
    html = rendered(single_videos)
    assert "ccuracy" not in html
    assert "PERR" in html
    assert "Labels that may be missing" in html


def test_one_model_has_no_mean(scores):
    alone = evaluation.evaluate(
        {"only": FakePredictor(scores[0])}, FakeReader(scores[1]), batch_size=100, top_k=3
    )
    assert [model.name for model in alone.models] == ["only"]
    assert alone.correlation is None
    assert alone.gap_without is None


# --- Classes --------------------------------------------------------------------------------------


def class_parts(positives, aps):
    """Returns the classes of the panels and of the tables by title, and what else is shown."""
    count = len(positives)
    histogram = evaluation.ScoreHistogram(count)
    histogram.add(np.full((1, count), 0.5, np.float32), np.ones((1, count), bool))
    found = content._classes(
        SimpleNamespace(
            per_class=pd.DataFrame({"ap": aps, "positives": positives, "frames": np.nan}),
            mean_frames=np.nan,
            histogram=histogram,
            confusions=evaluation.Confusions(),
            subject=SimpleNamespace(map=np.mean(aps)),
        ),
        [f"class{label}." for label in range(count)],
    )
    panels = {
        title: [int(re.search(r"recall of class(\d+)\.", chart)[1]) for chart in panels]
        for title, panels in found["precision_recall"].items()
    }
    tables = {title: [row.Index for row in rows] for title, rows in found["class_tables"].items()}
    tables |= {title: [row.label for row in rows] for title, rows in found["explained"].items()}
    return panels, tables, found


def test_few_classes_are_all_shown_once_in_order():
    # The worst class is rare, and one has no positives.
    panels, tables, _ = class_parts([20, 4, 30, 0, 1], [1.0, 0.95, 1.0, 0.0, 0.99])
    assert list(panels.values()) == list(tables.values()) == [[2, 0, 4, 1]]


@pytest.mark.parametrize(
    ("positives", "fewest", "num_rare"),
    [
        ([9] * 2 + [10] * 30, 10, 2),
        # Only three classes have ten positives: the 18th has five.
        ([10] * 3 + [5] * 20 + [4] * 9, 5, 9),
    ],
)
def test_panels_of_many_classes_do_not_repeat_classes(positives, fewest, num_rare):
    aps = np.random.default_rng(4).permutation(len(positives)) / len(positives)
    panels, tables, found = class_parts(positives, aps)
    assert (found["fewest_positives"], found["num_rare"]) == (fewest, num_rare)
    ranked = [label for label in np.argsort(-aps) if positives[label] >= fewest]
    best, middle, worst = panels.values()
    assert best == ranked[:6]
    assert worst == ranked[::-1][:6]
    assert len({*best, *middle, *worst}) == 18
    assert list(tables.values()) == [ranked[:7], ranked[::-1][:12]]
    assert found["ties"] == ""


def test_ties_among_the_worst_classes_are_counted_and_ordered_by_positives(monkeypatch):
    def panels_of(histogram, per_class, classes, names):
        return [f"recall of {names[label]}" for label in classes]

    monkeypatch.setattr(figures, "precision_recall", panels_of)
    positives = np.random.default_rng(5).permutation(np.arange(10, 50))
    panels, tables, found = class_parts(positives, [0.5] * 10 + [0.0] * 30)
    worst = sorted(range(10, 40), key=lambda label: -positives[label])
    assert tables["Worst classes"] == worst[:12]
    assert panels["Worst classes"] == worst[:6]
    assert len({label for labels in panels.values() for label in labels}) == 18
    assert found["ties"].startswith("30 classes have the same AP, 0.000; 12 of them are listed.")


def test_reasons_follow_their_rules():
    # Class 0 is confused with 9 in 3 of its 5 missed videos, class 1 with others as by chance.
    videos = [([9], [0])] * 3 + [([1], [0])] * 2
    videos += [([label], [1]) for label in (2, 3, 4, 5, 6, 7, 8, 2, 3, 4)]
    table = pd.DataFrame(
        {
            "ap": [0.1, 0.1, 0.1, 0.1, 0.9, *[0.9] * 4],
            "positives": [60, 60, 10, 60, 10, *[60] * 4],
            "frames": [100.0, 100.0, 100.0, 74.0, 100.0, *[100.0] * 4],
        }
    )
    found = SimpleNamespace(
        confusions=confusions_of(videos), subject=SimpleNamespace(map=0.5), mean_frames=100.0
    )
    confused = failures.pairs(found.confusions, [60] * 10)
    reasons = failures.Reasons(found, confused, pd.DataFrame({"positives": [10, 10, 60, 60, 60]}))
    rows = [reasons.explain(row) for row in table.itertuples()]
    assert [row.reasons for row in rows[:5]] == [
        ["confused"],
        ["no rule applies"],
        ["few positives"],
        ["short videos"],
        [],  # A good class needs no reason.
    ]
    assert rows[0].instead.predicted == 9
    assert rows[0].found == pytest.approx(55 / 60)


def test_rare_and_frequent_classes_are_compared_by_quarters():
    positives = [1, 2, 30, 40, 50, 60, 700, 800]
    table = pd.DataFrame({"positives": positives, "ap": [0.0, 0.2, 0.4, 0.4, 0.4, 0.4, 0.6, 1.0]})
    text = failures.by_frequency(table)
    assert text.startswith("Rare classes fail most: the mean AP is 0.100 ")
    assert "(at most 2) and 0.800 over the quarter with the most (at least 700)" in text
    assert "not the main problem" in failures.by_frequency(table.assign(ap=0.5))
    assert failures.by_frequency(table[1:]) == ""
    assert failures.by_frequency(table.assign(positives=9)) == ""


# --- Labels that may be wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_planted_label_errors_are_found_and_only_they(with_embeddings):
    """Two groups of similar videos, of class 0 and of class 1; class 2 is everywhere, or not."""
    rng = np.random.default_rng(6)
    count = 100
    group = np.arange(count) % 2
    labels = np.stack([group == 0, group == 1, rng.random(count) < 0.5], axis=1)
    scores = np.where(labels, 0.9, 0.05) + rng.uniform(0, 0.05, labels.shape)
    scores[:, 2] = 0.5  # Nothing is known about class 2.
    # Video 0 lacks its label, video 1 has that of the other group.
    labels[0, 0], labels[1, 0] = False, True
    scores[1, 0] = 0.001
    # The model is sure of a label that no similar video has.
    scores[3, 0] = 0.95
    embeddings = np.eye(2)[group] + rng.normal(0, 0.01, (count, 2))
    search = label_errors.LabelErrorSearch(3)
    models = np.stack([scores, scores * 0.99]).astype(np.float32)
    for rows in np.split(np.arange(count), [30, 64]):
        vectors = [embeddings[rows], 7 * embeddings[rows]] if with_embeddings else []
        search.add([f"v{row}" for row in rows], models[:, rows], labels[rows], vectors)
    found = search.find(np.array([0.9, 0.9, 0.3]))
    missing = {suspect.video_id: suspect for suspect in found.missing}
    assert set(missing) == ({"v0"} if with_embeddings else {"v0", "v3"})
    assert missing["v0"].label == 0
    assert missing["v0"].score == pytest.approx(scores[0, 0] * 0.99)  # The model that agrees least.
    (wrong,) = found.wrong
    assert (wrong.video_id, wrong.label) == ("v1", 0)
    assert wrong.score == pytest.approx(0.001)
    assert 1 in wrong.others
    assert (missing["v0"].neighbors, wrong.neighbors) == (
        (10, 0) if with_embeddings else (None,) * 2
    )
    assert found.num_videos == count


def test_suspects_among_videos_with_one_label_are_pairs_of_classes():
    """Two groups of similar videos; a video of each has the label of the other."""
    rng = np.random.default_rng(7)
    group = np.arange(60) % 2
    given = np.where(np.isin(np.arange(60), (4, 9)), 1 - group, group)
    scores = np.where(np.eye(2, dtype=bool)[group], 0.9, 0.1)
    scores[4] = [0.7, 0.02]  # The class of its group may be missing, and its label wrong.
    scores[9] = [0.001, 0.3]  # Its label may be wrong, but no other class scores 0.5.
    embeddings = np.eye(2)[group] + rng.normal(0, 0.01, (60, 2))
    search = label_errors.LabelErrorSearch(2)
    models = np.stack([scores, 0.9 * scores]).astype(np.float32)
    for rows in np.split(np.arange(60), [25]):
        ids = [f"v{row}" for row in rows]
        search.add(ids, models[:, rows], np.eye(2, dtype=bool)[given[rows]], [embeddings[rows]])
    found = search.find(np.array([0.9, 0.9]))
    assert found.num_confused == 2
    first, second = (dataclasses.astuple(one) for one in found.confused)
    assert first == ("v4", 1, pytest.approx(0.02), 0, pytest.approx(0.63), 0, 10)
    assert second == ("v9", 0, pytest.approx(0.001), 1, pytest.approx(0.27), 0, 10)


def test_all_models_must_agree_on_a_label_error():
    labels = np.zeros((4, 2), bool)
    scores = np.full((2, 4, 2), 0.9, np.float32)
    scores[1] = 0.4
    search = label_errors.LabelErrorSearch(2, max_videos=4)
    search.add(["a", "b", "c", "d"], scores, labels, [])
    assert search.is_full
    assert search.find(np.array([1.0, 1.0])).missing == []


def test_an_evaluation_searches_label_errors_with_embeddings(scores):
    predictions, labels = scores
    found = evaluation.evaluate(
        {"a": FakePredictor(predictions, predictions), "b": FakePredictor(predictions)},
        FakeReader(labels),
        batch_size=64,
        top_k=3,
    )
    assert found.label_errors.num_neighbors == 10
    assert found.label_errors.num_missing >= len(found.label_errors.missing) > 0
    frames = 1 + np.arange(500) % 3
    assert found.mean_frames == pytest.approx(frames.mean())
    np.testing.assert_allclose(found.per_class.frames, frames @ labels / labels.sum(axis=0))


# --- Learning -------------------------------------------------------------------------------------


def judged(evaluation_losses, training_losses, rates=(1.0, 1.0)):
    """Judges a run of 400 steps with losses at equal distances."""

    def curve(values):
        steps = np.linspace(400 / max(len(values), 1), 400, len(values))
        return steps.astype(int), np.array(values, float)

    training = {"loss": curve(training_losses), "learning_rate": curve(rates)}
    entries = [
        {"step": step, "loss": loss, "gap": 0.5}
        for step, loss in zip(*curve(evaluation_losses), strict=True)
    ]
    return learning.judge(history.Run("run", None, 400, 1.0, entries, training))


FALLING = [9, 8, 7, 6, 5, 4, 3, 2]


@pytest.mark.parametrize(
    ("evaluation_losses", "training_losses", "state"),
    [
        ([8, 6, 6.1, 6.2], FALLING, "overfits"),
        ([8, 6, 6.1, 6.2], FALLING[::-1], "worse"),
        ([8, 6, 6.1, 6.2], [], "worse"),
        ([8, 7, 6, 5.9], FALLING, "learns"),
        ([8, 6, 5.01, 5], FALLING, "settled"),
        ([5], FALLING, "learns"),
        ([5], [9, 8, 7, 6, 5, 5, 5, 4.98], "settled"),
        ([], FALLING, "learns"),
        ([5], [3], "unknown"),
        ([], [], "unknown"),
    ],
)
def test_losses_decide_what_a_run_is_said_to_do(evaluation_losses, training_losses, state):
    assert judged(evaluation_losses, training_losses).state == state


def test_the_reason_has_the_losses_and_their_gap():
    reason = judged([8, 6, 6.1, 6.2], FALLING).reason
    assert "rose from 6.000 at step 200 to 6.200 at step 400" in reason
    assert "fell from 6.000 to 2.000" in reason
    assert "a large gap: regularization or more data may help (+210%)" in reason
    assert "has decayed to 2.0%" in judged([5, 5, 5], FALLING, (1.0, 0.02)).reason
    assert "cannot show whether it overfits" in judged([5], FALLING).reason
    assert judged([], FALLING).reason.endswith("It was not evaluated.")


# --- Train directories ----------------------------------------------------------------------------


def write_log(folder, steps, value):
    with tf.summary.create_file_writer(str(folder)).as_default():
        for step in steps:
            tf.summary.scalar("loss", value * step, step)


def test_curves_take_the_last_value_of_a_step_and_pass_over_an_unfinished_end(tmp_path):
    write_log(tmp_path, range(1, 6), 1.0)
    (first,) = tmp_path.glob("events.*")
    first.rename(tmp_path / "events.out.tfevents.1")
    write_log(tmp_path, range(4, 8), 10.0)
    (second,) = set(tmp_path.glob("events.*")) - {tmp_path / "events.out.tfevents.1"}
    content = second.read_bytes()
    (tmp_path / "events.out.tfevents.2").write_bytes(content[:-5])
    second.unlink()
    steps, values = history.read_curves(str(tmp_path))["loss"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert values.tolist() == [1, 2, 3, 40, 50, 60]
    assert history.read_curves(str(tmp_path / "none")) == {}


def test_a_thinned_curve_has_the_means_of_equal_intervals():
    steps = np.arange(0, 1000)
    thinned = history.thin((steps, 2.0 * steps), 10)
    assert len(thinned[0]) == 10
    np.testing.assert_allclose(thinned[1], 2 * thinned[0])
    assert thinned[0][0] == pytest.approx(49.5, abs=1)
    assert history.thin((steps[:10], steps[:10]), 10)[0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/b"], ["b"]),
        (["/a/x/", "/a/y"], ["x", "y"]),
        (["/a/run", "/b/run"], ["a/run", "b/run"]),
        (["gs://bucket/run"], ["run"]),
        (["/a", "/a"], ["/a (1)", "/a (2)"]),
    ],
)
def test_runs_have_the_shortest_names_that_differ(paths, names):
    assert history.short_names(paths) == names


def test_differing_settings_leave_out_equal_ones():
    one = RunConfig("DbofModel", {"dbof_cluster_size": 16}, num_classes=10)
    other = dataclasses.replace(one, base_learning_rate=0.5)
    assert history.differing_settings([one, one]) == {}
    assert history.differing_settings([one, other]) == {"base_learning_rate": ["0.001", "0.5"]}
    models = history.differing_settings([one, RunConfig("LstmModel", num_classes=10)])
    assert models["model"] == ["DbofModel", "LstmModel"]
    assert models["dbof_cluster_size"] == ["16", ""]
    main = history.main_settings([one, other])
    assert next(iter(main)) == "model"
    assert main["batch_size"] == ["128", "128"]
    assert "iterations" in main
    assert "netvlad_cluster_size" not in main


def test_settings_with_a_value_per_dimension_are_short_and_compared_in_full():
    size = 1024
    ranges = [{"rgb": {"min": [-0.5] * size, "max": [1.0] * (size - 1) + [end]}} for end in (2, 3)]
    data = {"num_classes": 10, "feature_names": ("rgb",), "feature_sizes": (size,)}
    configs = [RunConfig("DbofModel", **data, quantization=values) for values in ranges]
    text = history.settings(configs[0])["quantization"]
    assert text == (
        "rgb: min: -0.5, -0.5, -0.5, ... (1024 values); max: 1, 1, 1, ... (1024 values)"
    )
    assert list(history.differing_settings(configs)) == ["quantization"]


def test_the_size_of_a_run_is_that_of_its_weights(trained_mean, tmp_path):
    model = RunConfig.load(str(trained_mean)).build_model()
    expected = sum(weight.numpy().nbytes for weight in model.weights) / 2**20
    assert history.newest_weights(str(trained_mean)) == (20, pytest.approx(expected))
    empty = tmp_path / "run"
    shutil.copytree(trained_mean, empty, ignore=shutil.ignore_patterns("model.ckpt*", "check*"))
    assert history.newest_weights(str(empty)) == (None, None)


# --- Attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LFNLNetVLADModel", "SoftBoFModel"])
def test_assignments_are_those_of_the_formula(name):
    model = model_references.build(name)
    frames, num_frames = model_references.make_videos()
    row = num_frames.argmax()
    inputs = {"frames": frames[row : row + 1], "num_frames": num_frames[row : row + 1]}
    found = attention.frame_assignments(model, inputs)
    video = np.array(model_references.reference_frames(frames, num_frames)[row])[None]
    encoder = sub_weights(weights_of(model), "encoder")
    normalized = references.batch_norm(video, sub_weights(encoder, "input_norm"), False)
    streams = np.split(normalized, np.cumsum(FEATURE_SIZES)[:-1], axis=-1)
    layer = {"LFNLNetVLADModel": "netvlad", "SoftBoFModel": "soft_bof"}[name]
    assert len(found) == len(streams)
    for number, stream in enumerate(streams):
        weights = sub_weights(encoder, f"{layer}_{number}/assignment")
        expected = references.soft_assignment(stream, None, weights, False)[0]
        np.testing.assert_allclose(found[number], expected, atol=1e-5)
    # The model computes as before.
    again = attention.frame_assignments(model, inputs)
    np.testing.assert_array_equal(again[0], found[0])


def test_a_chart_of_assignments_has_a_scale_with_its_unit():
    assignments = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    chart = figures.attention(assignments, "chart", "rgb")
    assert "share of the frame" in chart
    assert re.findall(r">(0\.\d+|1)</text>", chart)[-2:] == ["0.35", "0.7"]


def test_a_chart_of_classes_over_time_names_them():
    names = ["Cat", "A name of very many characters"]
    chart = figures.timeline(np.full((5, 2), 0.5), names, 1, "a")
    assert re.findall(r">([^<>]*label[^<>]*)</text>", chart) == ["Cat (label)"]
    assert "probability" in chart
    assert "5 frames" in chart


def test_a_model_without_soft_assignment_has_none():
    inputs = small_models.make_inputs("DbofModel", (3,))
    assert attention.frame_assignments(small_models.shared("DbofModel"), inputs) == []


# --- Charts ---------------------------------------------------------------------------------------


def test_spread_numbers_keep_their_order_and_distance():
    numbers = [0.5, 0.52, 0.1, 0.51]
    moved = charts.spread(numbers, 0.1)
    assert moved[2] == 0.1
    assert np.argsort(moved).tolist() == np.argsort(numbers).tolist()
    np.testing.assert_allclose(sorted(moved)[1:], [0.41, 0.51, 0.61])
    assert charts.spread([], 0.1) == []


def test_spread_groups_that_grow_into_each_other_merge():
    moved = charts.spread([0.0, 0.01, 0.15, 0.16], 0.1)
    assert np.diff(moved).min() == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name", ["</text><script>alert(1)</script>", "$x_1$ & <b>", "\u6f22\u5b57"]
)
def test_names_in_charts_are_text(name):
    def paint(axes):
        axes.plot([1, 2], [3, 4])
        axes.set_title(name)

    chart = charts.draw(paint, "chart", name)
    assert "<script" not in chart
    assert "<b>" not in chart
    assert "<!--" not in chart
    text = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{text}</text>" in chart


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.2, 0.4, 0.5], (0, 0.55)),
        ([0.8, 0.9, 1.0], (0.78, 1.02)),
        # A low first value of many leaves the chart at the bottom.
        ([0.1, 0.85, *[0.9] * 8, 0.95], (0.84, 0.96)),
        ([0.9, 0.9], (0.81, 0.99)),
    ],
)
def test_the_axis_of_a_metric_begins_at_0_unless_all_values_are_high(values, limits):
    axes = Figure().subplots()
    figures._cut_low_start(axes, [np.array(values)])
    assert axes.get_ylim() == pytest.approx(limits)


def test_charts_have_no_color_of_their_own():
    def paint(axes):
        for number in range(8):
            axes.plot([1, 2], [3, number], **charts.series_style(number), label="x")

    chart = charts.draw(paint, "chart", "lines")
    assert "var(--series-5)" in chart
    assert "#000" not in chart
