"""Prediction of segments: the files of inference.py and the signature of exported models."""

import csv
import json
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

import dataset_info
import inference
import programs
import saved_runs
import segment_eval_inference
import vocabulary
from predictor import Predictor, load_predictor
from run_config import RunConfig
from segments.ensemble import SegmentSettings
from segments.predictor import SegmentPredictor, load_segment_predictor, predict_segments
from segments.submission import Submission, SubmissionOptions
from segments.timeline import Timeline, TimelineOptions, median_filtered, occurrences
from utils import InputError

SIZES = {"num_classes": 10, "feature_sizes": (8, 4)}
SMALL = {
    "SoftBoFModel": {"soft_bof_cluster_size": "6,4", "soft_bof_hidden_size": 5},
    "GruModel": {"gru_cells": 5},
}


@pytest.fixture(scope="module")
def rated_data(tmp_path_factory):
    """Returns the directory of 24 generated videos with ratings, 16 in validate, in two files."""
    folder = tmp_path_factory.mktemp("rated")
    given = ("--num_videos=4", "--num_eval_videos=12", "--num_classes=10", "--feature_sizes=8,4")
    more = ("--min_frames=3", "--max_frames=33", "--segments", "--shards=1")
    programs.run("make_sample_data", f"--output_dir={folder}", *given, *more)
    return folder


@pytest.fixture(scope="module")
def pattern(rated_data):
    """Returns a pattern of two files with 24 videos."""
    return f"{rated_data}/validate*.tfrecord,{rated_data}/test*.tfrecord"


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """Returns a function that returns the directory of a run with random weights."""
    folder = tmp_path_factory.mktemp("runs")

    def save(model, seed=0):
        config = RunConfig(model=model, hyperparameters=SMALL[model], **SIZES)
        path = folder / f"{model}{seed}"
        return str(path if path.exists() else saved_runs.save_run(path, config, seed=seed))

    return save


def restored(run, settings=None, video_run=None):
    predictor = Predictor([run], num_samplings=0)
    if settings is not None:
        video = video_run and (predictor if video_run == run else Predictor([video_run]))
        predictor = SegmentPredictor(predictor, settings, video)
    predictor.restore()
    return predictor


def batch_of(predictor, rated_data):
    paths = [str(path) for path in sorted(rated_data.glob("validate*"))]
    (batch,) = predictor.data.reader(paths, with_labels=False).batches(50)
    return batch


def by_one_video_each(predictor, frames, size, context, shifts):
    """Predicts the segments of the frames of a video, each shifted copy as a video of its own."""
    rows = []
    for start in range(0, len(frames), size):
        copies = []
        for shift in shifts:
            first, end = start + shift, start + shift + size
            if max(first, 0) < min(end, len(frames)):
                shown = frames[max(first - context, 0) : end + context]
                inputs = {"frames": shown[None], "num_frames": np.array([len(shown)], np.int32)}
                copies.append(predictor.predict(inputs)[0])
        rows.append(np.mean(copies, axis=0))
    return np.array(rows)


# --- Predictors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*SMALL])
@pytest.mark.parametrize(
    ("settings", "shifts"),
    [(SegmentSettings(), [0]), (SegmentSettings(3, 2, 4), [0, 1, -1, 2])],
    ids=["plain", "shifted, with context"],
)
def test_a_segment_is_predicted_as_the_mean_of_videos_of_its_frames(
    saved_run, rated_data, model, settings, shifts
):
    run = saved_run(model)
    predictor, whole = restored(run, settings), restored(run)
    batch = batch_of(predictor, rated_data)
    found = predict_segments(predictor, batch.video_ids, batch.inputs)
    lengths = batch.inputs["num_frames"]
    assert len(set(lengths)) > 3
    for video, (num_frames, scores) in enumerate(found):
        assert num_frames == lengths[video]
        frames = batch.inputs["frames"][video, :num_frames]
        expected = by_one_video_each(whole, frames, settings.size, settings.context, shifts)
        np.testing.assert_allclose(scores, expected, atol=2e-6)


@pytest.mark.parametrize("own", [True, False])
def test_a_two_stage_score_multiplies_segment_and_video(saved_run, rated_data, own):
    run = saved_run("SoftBoFModel")
    video_run = run if own else saved_run("GruModel")
    one, two = restored(run, SegmentSettings()), restored(run, SegmentSettings(), video_run)
    batch = batch_of(one, rated_data)
    videos = Predictor([video_run], num_samplings=0 if own else None)
    videos.restore()
    expected = one.predict(batch.inputs) * videos.predict(batch.inputs)[:, None]
    np.testing.assert_allclose(two.predict(batch.inputs), expected, atol=1e-6)


def test_listed_classes_have_the_scores_that_they_have_among_all(saved_run, rated_data):
    run, video_run = saved_run("SoftBoFModel"), saved_run("GruModel")
    files = {"input_data_pattern": "input", "output_file": "output.csv"}
    options = inference.InferenceOptions(
        train_dir=run, segment_labels=True, segment_video_dirs=(video_run,), **files
    )
    inputs = batch_of(restored(run), rated_data).inputs
    predictors = [
        load_segment_predictor(load_predictor(options, classes=classes), options)
        for classes in (None, [2, 7])
    ]
    every, some = (predictor.restore() or predictor.predict(inputs) for predictor in predictors)
    assert some.shape == (*every.shape[:2], 2)
    np.testing.assert_allclose(some, every[..., [2, 7]], atol=1e-6)


def test_the_config_of_a_run_is_read_once(saved_run, rated_data, pattern, tmp_path, monkeypatch):
    runs = [saved_run("SoftBoFModel", seed) for seed in (0, 1)]
    read, load = [], RunConfig.load
    monkeypatch.setattr(RunConfig, "load", lambda path: read.append(path) or load(path))
    output, videos = tmp_path / "s.csv", f"--segment_video_dirs={runs[1]},{runs[0]}"
    predicted(runs[0], f"{rated_data}/test*.tfrecord", output, "--segment_labels", videos)
    assert read == runs
    runs_given = f"--train_dirs={runs[0]},{runs[1]}"
    programs.evaluate(runs_given, f"--eval_data_pattern={pattern}", "--segment_labels")
    assert read == 2 * runs


def test_segments_beyond_the_end_of_a_video_have_probability_0(saved_run, rated_data):
    predictor = restored(saved_run("SoftBoFModel"), SegmentSettings(5, 0, 3))
    batch = batch_of(predictor, rated_data)
    predictions = predictor.predict(batch.inputs)
    for segments, num_frames in zip(predictions, batch.inputs["num_frames"], strict=True):
        assert (segments[: -(-num_frames // 5)] > 0).all()
        assert (segments[-(-num_frames // 5) :] == 0).all()


# --- Submissions ----------------------------------------------------------------------------------


def submission(path):
    header, *lines = path.read_text().splitlines()
    assert header == "Class,Segments"
    return {int(line.partition(",")[0]): line.partition(",")[2].split() for line in lines}


def predicted(run, pattern, output, *more):
    given = (f"--train_dir={run}", f"--input_data_pattern={pattern}", f"--output_file={output}")
    programs.run("inference", *given, *more)


def brute_force(run, data_files, size, skip=(0, 0)):
    """Returns pairs of score and name of all whole segments, by class, best first."""
    predictor = restored(run, SegmentSettings(size))
    ranked = {label: [] for label in range(10)}
    for path in data_files:
        for batch in predictor.data.reader([str(path)], with_labels=False).batches(50):
            found = predict_segments(predictor, batch.video_ids, batch.inputs)
            for video_id, (num_frames, scores) in zip(batch.video_ids, found, strict=True):
                for number in range(skip[0], num_frames // size - skip[1]):
                    for label, score in enumerate(scores[number]):
                        ranked[label].append((score, f"{video_id}:{number * size}"))
    return {label: sorted(pairs, key=lambda pair: -pair[0]) for label, pairs in ranked.items()}


def predict_two_classes(predictor, video_ids, inputs):
    found = predict_segments(predictor, video_ids, inputs)
    assert all(scores.shape[1] == 2 for _, scores in found)
    return found


def test_a_submission_ranks_all_segments_of_each_class(
    trained_mean, rated_data, pattern, tmp_path, monkeypatch
):
    files = sorted([*rated_data.glob("validate*"), *rated_data.glob("test*")])
    output = tmp_path / "s.csv"
    flags = ("--segment_labels", "--num_samplings=0", "--batch_size=50")
    predicted(trained_mean, pattern, output, *flags)
    expected = brute_force(str(trained_mean), files, 5)
    assert submission(output) == {
        label: [name for _, name in pairs] for label, pairs in expected.items()
    }
    # Ratings are all of whole segments, and the videos of both files have some.
    ratings = segment_eval_inference.read_ratings(list(map(str, files)))
    table = segment_eval_inference.evaluate(str(output), ratings)
    assert table["listed"].all()
    assert 0 < table["average_precision"].mean() < 1
    given = (f"--train_dirs={trained_mean}", "--num_samplings=0", "--segment_labels")
    found = programs.evaluate(*given, f"--eval_data_pattern={pattern}")["segment_map"]
    assert found == pytest.approx(table["average_precision"].mean(), abs=1e-9)

    ids = tmp_path / "ids.csv"
    ids.write_text("Index\n7\n2\n7\n")
    more = (f"--segment_label_ids_file={ids}", "--segment_max_pred=3", "--skip_unrated_borders")
    monkeypatch.setattr(inference, "predict_segments", predict_two_classes)
    predicted(trained_mean, pattern, output, *flags, "--segment_size=2", *more)
    expected = brute_force(str(trained_mean), files, 2, skip=(6, 2))
    assert submission(output) == {
        label: [name for _, name in expected[label][:3]] for label in (2, 7)
    }


@pytest.mark.parametrize("merged", [False, True])
def test_an_interrupted_submission_resumes_with_the_same_result(
    trained_mean, pattern, tmp_path, monkeypatch, merged
):
    flags = ("--segment_labels", "--segment_size=3", *["--segment_max_pred=3"] * merged)
    predicted(trained_mean, pattern, tmp_path / "whole.csv", *flags)
    merges, merge = [], Submission.merge
    if merged:
        monkeypatch.setattr("segments.submission._MIN_MERGE_BYTES", 1)
        monkeypatch.setattr(Submission, "merge", lambda *args: merges.append(1) or merge(*args))
    videos, interrupted = [], tmp_path / "resumed.csv"

    def predict(predictor, video_ids, inputs):
        if any(video_id.startswith("validate") for video_id in video_ids) and len(videos) == 1:
            raise KeyboardInterrupt
        videos.append(video_ids)
        return predict_segments(predictor, video_ids, inputs)

    monkeypatch.setattr(inference, "predict_segments", predict)
    with pytest.raises(KeyboardInterrupt):
        predicted(trained_mean, pattern, interrupted, *flags)
    assert not interrupted.exists()
    with pytest.raises(InputError, match="another value of segments"):
        predicted(trained_mean, pattern, interrupted, flags[0], *flags[2:])
    videos.append([])
    predicted(trained_mean, pattern, interrupted, *flags)
    assert interrupted.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [len(ids) for ids in videos] == [12, 0, 12]
    assert len(merges) == merged
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("max_segments", [1, 4, 1000])
def test_merging_parts_changes_no_list(tmp_path, monkeypatch, max_segments):
    rng = np.random.default_rng(max_segments)
    options = SubmissionOptions(segment_max_pred=max_segments)
    format_ = Submission(options, SegmentSettings(), 3)
    paths, expected = [], {label: [] for label in range(3)}
    for number in range(6):
        counts = [] if number == 2 else rng.integers(0, 5, 4)
        scores = [rng.integers(0, 4, (count, 3)) / 4 for count in counts]  # With many ties.
        ids = [f"{number}-{video}" for video in range(len(scores))]
        videos = [(5 * len(of_video) + 2, of_video) for of_video in scores]
        paths.append(str(tmp_path / f"{number}.jsonl"))
        pathlib.Path(paths[-1]).write_text(format_.lines(ids, videos))
        for label, listed in expected.items():
            for video_id, of_video in zip(ids, scores, strict=True):
                pairs = enumerate(of_video[:, label])
                listed += ((score, f"{video_id}:{5 * number}") for number, score in pairs)
    for count in (3, 2):  # The first three, then the merged one with the next.
        merged = tmp_path / f"{count} of {len(paths)}.jsonl"
        with merged.open("w") as stream:
            format_.merge(paths[:count], stream)
        paths[:count] = [str(merged)]
    format_.join(paths, str(tmp_path / "found.csv"))
    assert submission(tmp_path / "found.csv") == {
        label: [name for _, name in sorted(pairs, key=lambda pair: -pair[0])[:max_segments]]
        for label, pairs in expected.items()
    }


def test_videos_without_a_whole_segment_have_empty_lists_also_once_merged(tmp_path):
    format_ = Submission(SubmissionOptions(), SegmentSettings(), 2)
    part, merged, output = (tmp_path / name for name in ("part", "merged", "output"))
    part.write_text(format_.lines(["a"], [(3, np.ones([1, 2]))]))
    with merged.open("w") as stream:
        format_.merge([str(part)], stream)
    for path in (part, merged):
        format_.join([str(path)], str(output))
        assert submission(output) == {0: [], 1: []}
    part.write_text(format_.lines(["b"], [(8, np.ones([2, 2]))]))
    format_.join([str(merged), str(part)], str(output))
    assert submission(output) == {0: ["b:0"], 1: ["b:0"]}


# --- Timelines ------------------------------------------------------------------------------------


def test_occurrences_are_runs_of_segments_above_the_threshold():
    scores = np.array([[0.9, 0.1], [0.7, 0.5], [0.2, 0.5], [0.6, 0.4]])
    found = occurrences(scores, 0.5)
    assert [run[:3] for run in found] == [(0, 2, 0), (1, 3, 1), (3, 4, 0)]
    assert [run[3] for run in found] == pytest.approx([0.8, 0.5, 0.6])


def test_the_median_fills_gaps_and_removes_peaks():
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.1])[:, None]
    found = median_filtered(scores, 3)[:, 0]
    assert found.tolist() == [0.9, 0.8, 0.2, 0.3, 0.3, 0.3, 0.1]
    np.testing.assert_array_equal(median_filtered(scores, 1), scores)


def timeline_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_timeline_states_when_classes_occur(saved_run, rated_data, pattern, tmp_path):
    run, output = saved_run("SoftBoFModel"), tmp_path / "timeline.csv"
    settings = SegmentSettings(4)
    predictor = restored(run, settings)
    batch = batch_of(predictor, rated_data)
    found = predict_segments(predictor, batch.video_ids, batch.inputs)
    threshold = float(np.median(np.concatenate([scores for _, scores in found])))
    expected = []
    for video_id, (num_frames, scores) in zip(batch.video_ids, found, strict=True):
        for label in range(10):
            shown = np.repeat(scores[:, label] >= threshold, 4)[:num_frames]
            changes = np.flatnonzero(np.diff(np.pad(shown, 1).astype(int)))
            for start, end in changes.reshape(-1, 2).tolist():
                if end - start >= 6:
                    expected.append((video_id, start, end, label))
    given = ("--output_format=timeline", "--segment_size=4", "--num_samplings=0")
    more = (f"--threshold={threshold!r}", "--min_duration=6", "--batch_size=50")
    names = f"--class_names={rated_data}/vocabulary.csv"
    predicted(run, f"{rated_data}/validate*.tfrecord", output, *given, *more, names)
    rows = timeline_rows(output)
    columns = ("id", "start", "end", "class")
    assert sorted(expected) == sorted(
        (row["id"], *(int(row[name]) for name in columns[1:])) for row in rows
    )
    assert any(int(row["end"]) % 4 for row in rows)  # A last segment with fewer frames.
    class_names = vocabulary.read_class_names(str(rated_data / "vocabulary.csv"))
    for row in rows:
        assert row["name"] == class_names[int(row["class"])]
        assert float(row["score"]) >= threshold * (1 - 1e-5)
        assert (row["start_seconds"], row["end_seconds"]) == (row["start"], row["end"])
    predicted(run, pattern, output, *given, "--frames_per_second=2.5")
    for row in timeline_rows(output):
        assert float(row["end_seconds"]) == pytest.approx(int(row["end"]) / 2.5)


def test_without_a_frame_rate_there_are_no_seconds(tmp_path):
    assert dataset_info.frames_per_second([str(tmp_path / "a.tfrecord")]) is None
    format_ = Timeline(TimelineOptions(), SegmentSettings(), [])
    assert format_.lines(["a"], [(3, np.array([[0.75]]))]) == "a,0,3,,,0,,0.75\n"


def test_frame_rates_that_differ_are_refused(tmp_path):
    paths = []
    for name, rate in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        info = dataset_info.DatasetInfo(
            level="frame",
            features=(dataset_info.Feature(name="rgb", size=2, dtype="float16"),),
            num_classes=3,
            frames_per_second=rate,
        )
        info.save(str(tmp_path / name))
        paths.append(str(tmp_path / name / "x.tfrecord"))
    assert dataset_info.frames_per_second(paths[:1]) == 1
    with pytest.raises(InputError, match="differ in frames_per_second"):
        dataset_info.frames_per_second(paths)


def test_a_report_shows_the_labels_and_the_best_classes_of_videos_over_time(
    saved_run, rated_data, monkeypatch
):
    pytest.importorskip("jinja2", reason="needs requirements/report.txt")
    from report_page import content, evaluation

    predictor = restored(saved_run("SoftBoFModel"))
    inputs = batch_of(predictor, rated_data).inputs
    longest = inputs["num_frames"].argmax()
    frames = inputs["frames"][longest : longest + 1]
    video = {"frames": frames, "num_frames": inputs["num_frames"][longest : longest + 1]}
    example = evaluation.Example(1.0, "v", 3, [(3, 0.9)], [(7, 0.8), (3, 0.9)], video)
    found = types.SimpleNamespace(right=[example], mistakes=[example], missed=[])
    drawn = []
    monkeypatch.setattr(content.figures, "timeline", lambda *args: drawn.append(args) or "chart")
    values = content.of_timelines(found, {"run": predictor}, {7: "Cat"})
    assert values == {"timelines": [(example, "chart")], "timeline_model": "run"}
    ((probabilities, names, num_labels, _),) = drawn
    assert num_labels == 1
    assert names == ["class 3", "Cat"]
    expected = by_one_video_each(predictor, frames[0], 5, 0, [0])[:, [3, 7]]
    expected = np.repeat(expected, 5, axis=0)[: len(frames[0])]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


# --- Exported models ------------------------------------------------------------------------------


def test_an_exported_graph_predicts_segments_as_the_run(saved_run, pattern, tmp_path):
    run, video_run = saved_run("SoftBoFModel"), saved_run("GruModel")
    settings = ("--segment_context=1", "--segment_shift_samplings=2")
    settings += (f"--segment_video_dirs={video_run}",)
    exported = tmp_path / "exported"
    given = (f"--train_dir={run}", f"--output_dir={exported}", "--dtype=float32")
    programs.run("export_model", *given, "--segment_labels", *settings)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["segments"]["settings"] == {"size": 5, "context": 1, "shift_samplings": 2}
    assert [model["config"]["model"] for model in manifest["segments"]["video_models"]] == [
        "GruModel"
    ]
    predicted(run, pattern, tmp_path / "run.csv", "--segment_labels", *settings)
    flags = (f"--exported_model={exported}", f"--input_data_pattern={pattern}", "--segment_labels")
    programs.run("inference", *flags, f"--output_file={tmp_path / 'exported.csv'}")
    assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "exported.csv").read_bytes()
    signature = tf.saved_model.load(str(exported)).signatures["segments"]
    frames = np.zeros([1, 12, 12], np.uint8)
    answer = signature(frames=tf.constant(frames), num_frames=tf.constant([12]))["predictions"]
    assert answer.shape == (1, 3, 10)
    with pytest.raises(InputError, match="--segment_size cannot be given with --exported_model"):
        programs.run("inference", *flags, "--output_file=x.csv", "--segment_size=4")


def test_an_exported_model_without_segments_says_how_to_get_them(exported, pattern, tmp_path):
    flags = (f"--exported_model={exported}", f"--input_data_pattern={pattern}")
    with pytest.raises(InputError, match="Export its runs again with --segment_labels"):
        programs.run("inference", *flags, "--segment_labels", f"--output_file={tmp_path / 'x.csv'}")


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--segment_size=3"], "--segment_size needs --segment_labels, which is not given"),
        (["--segment_shift_samplings=3"], "--segment_shift_samplings needs --segment_labels"),
        (["--segment_video_dirs=run"], "--segment_video_dirs needs --segment_labels"),
        (["--skip_unrated_borders"], "needs --segment_labels with --output_format=kaggle"),
        (["--threshold=0.2"], "--threshold needs --output_format=timeline"),
        (["--segment_labels", "--min_duration=3"], "needs --output_format=timeline"),
        (["--output_format=timeline", "--segment_max_pred=3"], "needs .*--output_format=kaggle"),
        (["--segment_labels", "--segment_size=0"], "--segment_size must be 1 or more"),
        (["--segment_labels", "--segment_context=-1"], "--segment_context must be 0 or more"),
        (["--segment_labels", "--segment_max_pred=0"], "--segment_max_pred must be 1 or more"),
        (["--output_format=timeline", "--median_filter=2"], "--median_filter must be odd"),
        (["--segment_labels", "--output=embeddings"], "is of whole videos"),
        (["--segment_labels", "--output_format=csv"], "not for --segment_labels, which has"),
    ],
)
def test_options_that_do_not_fit_are_refused(flags, message):
    given = ("--train_dir=run", "--input_data_pattern=data", "--output_file=x")
    with pytest.raises(InputError, match=message):
        programs.options("inference", *given, *flags)


@pytest.mark.parametrize("program", ["inference", "export_model"])
def test_a_video_level_model_predicts_no_segments(trained_moe, pattern, tmp_path, program):
    output = "--output_dir" if program == "export_model" else "--output_file"
    flags = [f"--train_dir={trained_moe}", f"{output}={tmp_path / 'x'}", "--segment_labels"]
    if program == "inference":
        flags.append(f"--input_data_pattern={pattern}")
    with pytest.raises(
        InputError, match=r"needs a frame-level model, but that of .* takes video-l"
    ):
        programs.run(program, *flags)
    assert not (tmp_path / "x").exists()


def test_only_a_saved_model_predicts_segments():
    flags = ("--train_dir=run", "--output_dir=x", "--format=onnx", "--segment_labels")
    with pytest.raises(InputError, match="--segment_labels needs --format=saved_model"):
        programs.options("export_model", *flags)


def test_runs_for_videos_must_take_the_data_of_those_for_segments(
    trained_mean, trained_moe, pattern, tmp_path
):
    flags = ("--segment_labels", f"--segment_video_dirs={trained_moe}")
    with pytest.raises(InputError, match="must take the same data and classes"):
        predicted(trained_mean, pattern, tmp_path / "x.csv", *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index\n3\n10\n", r"line 3 of .* a class of the model, 0 to 9. Received: '10'"),
        ("3\ncat\n", "line 2 of .* Received: 'cat'"),
        ("3\n-1\n", "line 2 of .* Received: '-1'"),
        ("Index\n\n", "has no class"),
    ],
)
def test_a_faulty_file_of_classes_is_explained(tmp_path, text, message):
    path = tmp_path / "ids.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        vocabulary.read_classes(str(path), 10)


def test_classes_are_read_from_a_vocabulary_too(tmp_path):
    path = tmp_path / "vocabulary.csv"
    path.write_text('Index,TrainVideoCount,Name\r\n7,5,"A, b"\r\n0,3,C\r\n')
    assert vocabulary.read_classes(str(path), 10) == [0, 7]


def test_an_id_that_a_list_cannot_hold_is_named():
    options = SubmissionOptions()
    submission = Submission(options, SegmentSettings(), 2)
    with pytest.raises(InputError, match="the id 'a b' has a character that separates"):
        submission.lines(["a b"], [(5, np.ones([1, 2]))])
