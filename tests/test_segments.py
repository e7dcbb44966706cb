"""Tests of rated segments: ratings in records, generated ratings, mAP@K and the scoring program."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import eval_util
import files
import programs
import sample_records
import sample_world
import segment_eval_inference
from metric_references import segment_average_precisions
from records import parse_record
from sample_records import float_feature, int64_feature
from segments.ranking import RankedSegments, SegmentMetrics
from segments.ratings import ENDS, LABELS, SCORES, STARTS, parse_ratings
from utils import InputError


def ratings_context(labels, starts, scores, size=5, **changes):
    """Returns the serialized context of a record with ratings."""
    values = {
        LABELS: int64_feature(labels),
        STARTS: int64_feature(starts),
        ENDS: int64_feature([start + size for start in starts]),
        SCORES: float_feature(scores),
    } | changes
    example = tf.train.SequenceExample(context=tf.train.Features(feature=values))
    return parse_record(example.SerializeToString())[0]


def rated_record(video_id, *ratings, num_frames=20):
    """Returns a serialized record with ratings `(start, class, score)`."""
    frames = np.zeros((num_frames, 4), np.uint8)
    record = sample_records.frame_record(video_id, [0], rgb=frames)
    return sample_records.with_ratings(record, ratings)


# --- Ratings in records ---------------------------------------------------------------------------


def test_ratings_are_sorted_and_each_pair_counts_once_present_if_any_rating_says_so():
    ratings = parse_ratings(ratings_context([7, 3, 3, 7, 3], [10, 5, 5, 0, 5], [0, 0, 1, 1, 0]))
    rows = [
        (start, classes.tolist(), scores.tolist())
        for start, classes, scores in ratings.by_segment()
    ]
    assert rows == [(0, [7], [1]), (5, [3], [1]), (10, [7], [0])]


def test_a_record_without_ratings_has_none():
    assert parse_ratings({"labels": b""}) is None


@pytest.mark.parametrize(
    ("context", "fault"),
    [
        (ratings_context([1], [3], [1]), "starts at 3, no multiple of 5"),
        (ratings_context([1], [-5], [1]), "starts at frame -5"),
        (ratings_context([1], [5], [1], size=6), "a segment of 6 frames instead of 5"),
        (ratings_context([1], [5], [0.5]), "score 0.5, not 0 or 1"),
        (ratings_context([1, 2], [5, 5], [1]), "differ in number: 2 segment_labels, 2"),
        (
            ratings_context([1], [5], [1], segment_labels=sample_records.bytes_feature(b"cat")),
            "segment_labels are not integers",
        ),
    ],
)
def test_faulty_ratings_are_explained(context, fault):
    with pytest.raises(ValueError, match=fault):
        parse_ratings(context)


# --- Generated ratings ----------------------------------------------------------------------------


def generated(num_videos, rates_segments):
    world = sample_world.World(0, 40, (24, 6))
    generator = sample_world.Generator(
        world, 0, ("rgb", "audio"), 4, 60, rates_segments=rates_segments
    )
    videos = generator.videos("train")
    return [next(videos) for _ in range(num_videos)]


def test_generated_ratings_say_whether_the_class_fills_most_of_the_segment_with_a_few_errors():
    right = collections.Counter()
    for video in generated(600, rates_segments=True):
        rated = 0
        for start, classes, scores in video.ratings.by_segment():
            shown = video.shown[start : start + 5]
            assert len(shown) == 5
            rated += 1
            for label, score in zip(classes, scores, strict=True):
                right[score, (np.sum(shown == label) > 2) == score] += 1
        assert rated == min(5, len(video.shown) // 5)
    total = sum(right.values())
    wrong = right[0, False] + right[1, False]
    assert 0.03 < wrong / total < 0.07
    assert 0.3 < (right[1, True] + right[1, False]) / total < 0.6


def test_ratings_do_not_change_the_videos():
    for rated, plain in zip(generated(40, True), generated(40, False), strict=True):
        assert rated.labels == plain.labels
        np.testing.assert_array_equal(rated.features["rgb"], plain.features["rgb"])
        assert plain.ratings is None


# --- mAP@K ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_average_precisions_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    count, classes = rng.integers(1, 3500), rng.integers(1, 70)
    max_segments = int(rng.integers(1, 1500))
    # Few distinct scores, so that many are tied.
    predictions = (rng.integers(rng.integers(2, 500), size=(count, classes)) / 500).astype("f4")
    ratings = rng.choice([-1, 0, 1], p=[0.9, 0.07, 0.03], size=(count, classes)).astype(np.int8)
    metrics = SegmentMetrics(classes, max_segments)
    for part in np.split(np.arange(count), np.sort(rng.integers(0, count, 4))):
        metrics.accumulate(predictions[part], ratings[part])
    np.testing.assert_allclose(
        metrics.average_precisions(),
        segment_average_precisions(predictions, ratings, max_segments),
        rtol=0,
        atol=1e-12,
    )


def test_unrated_segments_take_places_of_the_list_but_are_no_misses():
    metrics = SegmentMetrics(1, max_segments=3)
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    metrics.accumulate(scores, np.array([[-1], [0], [1], [1]], np.int8))
    # The fourth entry is cut off, the third is the second rated one.
    assert metrics.average_precisions() == pytest.approx([1 / 2 / 2])


def test_ranked_segments_keep_the_first_of_equal_scores():
    ranked = RankedSegments(2, max_segments=3)
    for start in range(0, 4000, 500):
        numbers = np.arange(start, start + 500)
        ranked.add(np.stack([np.ones(500), numbers], axis=1).astype(np.float32), numbers)
    values = [numbers.tolist() for numbers, _ in ranked.lists()]
    assert values == [[0, 1, 2], [3999, 3998, 3997]]


# --- The program ----------------------------------------------------------------------------------


@pytest.fixture
def rated_file(tmp_path):
    return sample_records.write_records(
        tmp_path / "rated.tfrecord",
        [
            rated_record("a:b", (0, 3, 1), (5, 3, 0), (5, 4, 1)),
            rated_record("c", (10, 3, 1), (0, 5, 0)),
            rated_record("unrated"),
        ],
    )


def evaluated(tmp_path, rated_file, text, **options):
    submission = tmp_path / "submission.csv"
    submission.write_text(text)
    ratings = segment_eval_inference.read_ratings([rated_file])
    return segment_eval_inference.evaluate(str(submission), ratings, **options)


def test_a_submission_is_scored_by_hand(tmp_path, rated_file):
    # Class 3: hit, miss, hit; the segment c:5 is unrated, a:b:0 counts once.
    table = evaluated(
        tmp_path, rated_file, "Class,Segments\n3,a:b:0 c:5 a:b:0 a:b:5 c:10\r\n5,c:0\n"
    )
    assert table["average_precision"].to_dict() == pytest.approx(
        {3: (1 + 2 / 3) / 2, 4: 0.0, 5: np.nan}, nan_ok=True
    )
    assert table["listed"].to_dict() == {3: True, 4: False, 5: True}


def test_a_list_is_cut_before_unrated_segments_are_removed(tmp_path, rated_file):
    table = evaluated(tmp_path, rated_file, "3,c:5 a:b:0 c:10\n", top_n=2)
    assert table.loc[3, "average_precision"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("3,a:b:0\n3,c:10\n", "line 2 of .* is the second one of class 3"),
        ("cat,a:b:0\n", "line 1 of .* must be a class number, a comma and segments"),
        ("3,x:0 y:5\n", "2 of 2 segments in .*, such as 'x:0', are of videos without ratings"),
        ("Class,Segments\n", "has no line of a class"),
    ],
)
def test_a_faulty_submission_is_explained(tmp_path, rated_file, text, fault):
    with pytest.raises(InputError, match=fault):
        evaluated(tmp_path, rated_file, text)


def test_some_unknown_videos_are_counted(tmp_path, rated_file, logged_warnings):
    evaluated(tmp_path, rated_file, "3,x:0 a:b:0\n")
    assert "1 of 2 segments" in logged_warnings[0]


def test_records_without_ratings_are_refused(tmp_path):
    path = sample_records.write_records(tmp_path / "plain.tfrecord", [rated_record("a")])
    with pytest.raises(InputError, match=r"no record of 1 files.*has ratings: segment_labels"):
        segment_eval_inference.read_ratings([path])


def test_a_faulty_rating_names_its_record(tmp_path):
    path = sample_records.write_records(tmp_path / "bad.tfrecord", [rated_record("a", (3, 1, 1))])
    with pytest.raises(InputError, match=r"record 0 of .*bad.tfrecord.*starts at 3"):
        segment_eval_inference.read_ratings([path])


def test_the_program_scores_again_from_its_cache(tmp_path, rated_file):
    submission, cache, table = (tmp_path / name for name in ("s.csv", "cache.csv", "classes.csv"))
    submission.write_text("3,a:b:0 c:10\n4,a:b:5\n")
    flags = [f"--submission_file={submission}", f"--label_cache={cache}"]
    programs.run(
        "segment_eval_inference",
        *flags,
        f"--eval_data_pattern={rated_file}",
        f"--per_class_csv={table}",
    )
    first = table.read_bytes()
    files.remove(rated_file)
    programs.run("segment_eval_inference", *flags, f"--per_class_csv={table}")
    assert table.read_bytes() == first
    assert first.decode().splitlines()[1] == "3,1.0,2,1,True"


def test_a_cache_of_another_format_is_refused(tmp_path):
    (tmp_path / "cache.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no cache of ratings"):
        programs.run(
            "segment_eval_inference",
            f"--submission_file={tmp_path / 's.csv'}",
            f"--label_cache={tmp_path / 'cache.csv'}",
        )


def test_average_precision_counts_positives_outside_the_list():
    assert eval_util.average_precision(np.array([1, 0, 1]), 4) == pytest.approx((1 + 2 / 3) / 4)
