"""Properties that must hold for all inputs, checked on those that hypothesis generates."""

import csv
import io
import json
import os
import re
import tempfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import average_checkpoints
import eval_util
import metric_references
import readers
import sample_records
import utils
from run_config import RunConfig
from utils import InputError

QUICK = settings(max_examples=40, derandomize=True, deadline=None, database=None)
SLOW = settings(QUICK, max_examples=12)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)

# --- Records ---

NUM_CLASSES, RGB, AUDIO = 6, 3, 2
LABELS = st.sets(st.integers(0, NUM_CLASSES - 1))


@st.composite
def frame_videos(draw):
    count = draw(st.integers(1, 5))
    features = [draw(arrays.arrays(np.uint8, (count, size))) for size in (RGB, AUDIO)]
    return draw(st.text()), draw(LABELS), features


@st.composite
def mean_videos(draw):
    features = [draw(arrays.arrays(np.float32, size, elements=FLOATS)) for size in (RGB, AUDIO)]
    return draw(st.text()), draw(LABELS), features


def check_round_trip(kind, write, videos, id_name):
    """Writes videos with `write` and reads them with a reader of this kind."""
    records = [
        write(name, sorted(labels), id_name, rgb=rgb, audio=audio)
        for name, labels, (rgb, audio) in videos
    ]
    sizes = {"feature_names": ("rgb", "audio"), "feature_sizes": (RGB, AUDIO)}
    with tempfile.TemporaryDirectory() as folder:
        path = sample_records.write_records(os.path.join(folder, "a"), records)
        found = list(kind([path], **sizes, num_classes=NUM_CLASSES).read_file(path))
    for video, (name, labels, features) in zip(found, videos, strict=True):
        assert (video.video_id, set(video.labels.tolist())) == (name, labels)
        for feature, values in zip(video.features, features, strict=True):
            np.testing.assert_array_equal(feature, values)


@QUICK
@given(st.lists(frame_videos(), min_size=1, max_size=4), st.sampled_from(["id", "video_id"]))
def test_any_frame_level_record_is_read_as_it_was_written(videos, id_name):
    check_round_trip(readers.YT8MFrameFeatureReader, sample_records.frame_record, videos, id_name)


@QUICK
@given(st.lists(mean_videos(), min_size=1, max_size=4), st.sampled_from(["id", "video_id"]))
def test_any_video_level_record_is_read_as_it_was_written(videos, id_name):
    check_round_trip(
        readers.YT8MAggregatedFeatureReader, sample_records.video_record, videos, id_name
    )


# --- Metrics ---


@st.composite
def scored(draw, unique=False):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 8)))
    few = st.sampled_from([-1.0, 0.0, 0.25, 1.0])
    elements = FLOATS if unique else st.one_of(few, FLOATS)
    scores = draw(arrays.arrays(np.float32, shape, elements=elements, unique=unique))
    labels = draw(arrays.arrays(bool, shape))
    return scores, labels, draw(st.integers(1, 10))


def metrics_of(scores, labels, top_k, cuts=()):
    metrics = eval_util.EvaluationMetrics(scores.shape[1], top_k)
    for part in np.split(np.arange(len(scores)), sorted(cuts)):
        if len(part):
            metrics.accumulate(scores[part], labels[part], np.zeros(len(part)))
    return metrics.get()


def check_same(found, expected):
    for name in ("avg_hit_at_one", "avg_perr", "gap", "map", "aps"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


@QUICK
@given(scored())
def test_metrics_equal_exact_loops(case):
    check_same(metrics_of(*case), metric_references.metrics(*case))


@QUICK
@given(scored(), st.lists(st.integers(0, 6)))
def test_metrics_do_not_depend_on_the_batches(case, cuts):
    check_same(metrics_of(*case, cuts), metrics_of(*case))


@QUICK
@given(scored(unique=True), st.randoms(use_true_random=False))
def test_metrics_of_distinct_scores_do_not_depend_on_the_order_of_videos(case, random):
    scores, labels, top_k = case
    order = random.sample(range(len(scores)), len(scores))
    check_same(metrics_of(scores[order], labels[order], top_k), metrics_of(*case))


@QUICK
@given(scored(unique=True), st.randoms(use_true_random=False))
def test_metrics_of_distinct_scores_do_not_depend_on_the_order_of_classes(case, random):
    scores, labels, top_k = case
    order = random.sample(range(scores.shape[1]), scores.shape[1])
    expected = metrics_of(*case)
    expected["aps"] = expected["aps"][order]
    check_same(metrics_of(scores[:, order], labels[:, order], top_k), expected)


# --- Lines of CSV ---

IDS = st.one_of(st.text(), st.text(alphabet="ab=+-@(|!,;'\"\\\r\n\t "))


def is_formula(cell):
    """Returns whether a spreadsheet program could run a cell as a formula."""
    begins_like_one = cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r")
    return begins_like_one and not re.fullmatch("[A-Za-z0-9_-]+", cell)


@QUICK
@given(st.lists(st.tuples(IDS, st.text("0123456789. ")), min_size=1))
def test_lines_of_csv_read_back_as_they_were_written(rows):
    text = "".join(map(utils.csv_line, rows))
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[1] for row in found] == [row[1] for row in rows]
    for (found_id, _), (written_id, _) in zip(found, rows, strict=True):
        assert not is_formula(found_id)
        # Control characters and wide signs in front of a formula are in test_utils.py.
        is_plain = re.fullmatch("[A-Za-z0-9_-]*", written_id)
        assert found_id == written_id or (found_id == f"'{written_id}" and not is_plain)


@QUICK
@given(st.lists(IDS.filter(lambda text: "\0" not in text), min_size=1))
def test_pandas_reads_lines_of_csv_as_the_csv_module_does(ids):
    text = "".join(map(utils.csv_line, [("id", "pairs"), *((value, "1 0.5") for value in ids)]))
    table = pd.read_csv(io.StringIO(text, newline=""), keep_default_na=False, dtype=str)
    assert table["id"].tolist() == [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert set(table["pairs"]) == {"1 0.5"}


# --- Averages of checkpoints ---

WEIGHTS = arrays.arrays(np.float32, (2, 3), elements=FLOATS)


def mean_of(values):
    """Returns the mean of checkpoints of one variable each, by average_checkpoints.py."""
    name = "weights/a/.ATTRIBUTES/VARIABLE_VALUE"
    with tempfile.TemporaryDirectory() as folder:
        for step, value in enumerate(values):
            average_checkpoints.write_checkpoint({name: value}, folder, step)
        paths = [os.path.join(folder, f"model.ckpt-{step}") for step in range(len(values))]
        return average_checkpoints.mean_of(paths)[name]


@SLOW
@given(WEIGHTS, st.integers(1, 5))
def test_the_mean_of_identical_checkpoints_is_identical(weights, count):
    np.testing.assert_array_equal(mean_of([weights] * count), weights)


@SLOW
@given(st.lists(WEIGHTS, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_checkpoints_does_not_change_their_mean(values, random):
    # Sums in float64 may differ in their last bit, and so may their float32 roundings.
    tolerance = {"rtol": 1e-6, "atol": np.max(np.abs(values)) * 1e-15}
    shuffled = random.sample(values, len(values))
    np.testing.assert_allclose(mean_of(shuffled), mean_of(values), **tolerance)


# --- Configs ---

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "num_classes": st.integers(1, 10**6),
        "feature_names": st.lists(st.text(min_size=1), min_size=2, max_size=2),
        "feature_sizes": st.lists(st.integers(1, 5000), min_size=2, max_size=2),
        "max_frames": st.integers(1, 1000),
        "base_learning_rate": st.floats(0, 3e38, exclude_min=True),
        "ema_decay": st.floats(0, 1, exclude_max=True),
        "seed": st.integers(0, 2**32 - 1),
        "hyperparameters": st.fixed_dictionaries(
            {},
            optional={
                "dbof_cluster_size": st.integers(1, 10**6),
                "dbof_pooling_method": st.text(),
                "dbof_add_batch_norm": st.booleans(),
            },
        ),
    },
)


@QUICK
@given(SETTINGS)
def test_a_config_is_read_as_it_was_written(chosen):
    config = RunConfig("DbofModel", **chosen)
    with tempfile.TemporaryDirectory() as folder:
        config.save(folder)
        assert RunConfig.load(folder) == config


@QUICK
@given(st.text(min_size=1), st.one_of(st.none(), st.booleans(), st.integers(), st.text()))
def test_an_unknown_key_of_a_config_is_rejected_by_name(key, value):
    config = RunConfig("LogisticModel")
    with tempfile.TemporaryDirectory() as folder:
        config.save(folder)
        path = os.path.join(folder, "model_flags.json")
        with open(path) as file:
            content = json.load(file)
        if key in content:
            return
        with open(path, "w") as file:
            json.dump({**content, key: value}, file)
        with pytest.raises(InputError) as caught:
            RunConfig.load(folder)
    assert f"Unknown keys: {key}; missing" in str(caught.value)
