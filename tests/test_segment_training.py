"""train.py and eval.py --segment_labels: what is learned, kept and measured."""

import json
import re
import shlex
import shutil

import program

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import files
import programs
import sample_records
import saved_runs
from metric_references import segment_average_precisions
from programs import evaluate, metrics_of, train_mean, weights_of
from records import parse_record
from run_config import RunConfig
from segments.ratings import parse_ratings
from utils import InputError

SEGMENTS = ("--segment_labels", "--batch_size=8", "--export_model_steps=100")


def rated_records(prefix, count, seed, num_classes=sample_records.NUM_CLASSES - 2, sizes=(8, 4)):
    """Returns records of videos with three segments, of which some are rated; two have no class."""
    patterns = np.random.default_rng(99).integers(0, 256, (num_classes, sum(sizes)))
    rng = np.random.default_rng(seed)
    for number in range(count):
        shown = np.repeat(rng.choice(num_classes, 3), 5)
        frames = np.clip(patterns[shown] + rng.integers(-20, 21, (15, sum(sizes))), 0, 255)
        rgb, audio = np.split(frames.astype(np.uint8), [sizes[0]], axis=1)
        labels = sorted(set(shown.tolist()))
        plain = sample_records.frame_record(f"{prefix}{number}", labels, rgb=rgb, audio=audio)
        ratings = [
            (start, rated, int(rated == shown[start]))
            for start in (0, 5, 10)
            for rated in {int(shown[start]), int(rng.integers(num_classes))}
        ]
        yield sample_records.with_ratings(plain, ratings) if number % 4 else plain


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns globs of videos to train on and to evaluate."""
    folder = tmp_path_factory.mktemp("segments")
    for name, count in (("train0", 24), ("train1", 24), ("validate0", 16)):
        contents = rated_records(name, count, seed=len(name) + count + int(name[-1]))
        sample_records.write_records(folder / f"{name}.tfrecord", contents)
    return str(folder / "train*"), str(folder / "validate*")


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, data):
    """Returns the directories of a run on whole videos and of one fine-tuned on segments."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    videos = train_mean(folder / "videos", data[0], "--max_steps=20", "--num_epochs=0")
    run = train_mean(
        folder / "segments",
        data[0],
        *SEGMENTS,
        *(f"--init_from={videos}", f"--eval_data_pattern={data[1]}", "--num_epochs=0"),
        *("--max_steps=12", "--eval_steps=4", "--keep_best=segment_map", "--segment_context=2"),
    )
    return videos, run


def expected_segment_map(train_dir, pattern, context, checkpoint=None):
    """Returns segment mAP of a run that predicts each segment as a video of its own."""
    model = checkpoints.load_model(str(train_dir), checkpoint)
    scores, ratings = [], []
    for path in files.expand_patterns(pattern):
        for content in tf.data.TFRecordDataset(path).as_numpy_iterator():
            record = tf.train.SequenceExample.FromString(content)
            features = [
                np.stack(
                    [
                        np.frombuffer(frame.bytes_list.value[0], np.uint8)
                        for frame in record.feature_lists.feature_list[name].feature
                    ]
                )
                for name in ("rgb", "audio")
            ]
            frames = np.concatenate(features, axis=1)
            found = parse_ratings(parse_record(content)[0])
            for start in range(0, len(frames) - 4, 5):
                part = frames[max(start - context, 0) : start + 5 + context]
                inputs = {"frames": part[None], "num_frames": np.array([len(part)])}
                scores.append(np.array(model(inputs, num_samplings=0))[0])
                row = np.full(len(scores[-1]), -1)
                if found is not None:
                    own = found.starts == start
                    row[found.classes[own]] = found.scores[own]
                ratings.append(row)
    found = segment_average_precisions(np.array(scores), np.array(ratings), 100_000)
    return np.nanmean(found)


def test_the_best_by_segment_map_is_kept_and_is_that_of_each_segment_alone(fine_tuned, data):
    _, run = fine_tuned
    history = {entry["step"]: entry["segment_map"] for entry in metrics_of(run)}
    assert list(history) == [4, 8, 12]
    best = json.loads((run / "best.json").read_text())
    assert (best["metric"], best["value"]) == ("segment_map", max(history.values()))
    expected = expected_segment_map(run, data[1], context=2, checkpoint="best")
    assert best["value"] == pytest.approx(expected, abs=1e-6)
    assert "segment mAP" in programs.tensorboard_tags(run / "eval")


def test_an_evaluation_of_videos_keeps_the_segment_metrics_of_its_step(fine_tuned, data, tmp_path):
    run = shutil.copytree(fine_tuned[1], tmp_path / "run")
    before = metrics_of(run)
    programs.run("eval", f"--train_dir={run}", f"--eval_data_pattern={data[1]}", "--run_once")
    after = metrics_of(run)
    assert after[:-1] == before[:-1]
    assert after[-1]["videos_per_second"] != before[-1]["videos_per_second"]
    names = ("step", "segment_map", "segment_top_n", "num_segments", "num_rated_pairs")
    assert [after[-1][name] for name in names] == [before[-1][name] for name in names]


def test_eval_prints_both_metrics_in_one_run(fine_tuned, data, caplog):
    caplog.set_level("INFO", logger="absl")
    given = (f"--train_dirs={fine_tuned[0]}", f"--eval_data_pattern={data[1]}")
    plain, both = evaluate(*given), evaluate(*given, "--segment_labels", "--batch_size=5")
    assert "segment_map" not in plain
    for name in ("gap", "map", "hit_at_one", "perr"):
        assert both[name] == pytest.approx(plain[name], abs=1e-6)
    assert both["segment_map"] == pytest.approx(
        expected_segment_map(fine_tuned[0], data[1], context=0), abs=1e-6
    )
    assert (both["num_segments"], both["num_videos"]) == (16 * 3, 16)
    assert "GAP@20 " in caplog.text
    assert f"segment mAP@100000 {both['segment_map']:.4f} | 48 segments" in caplog.text


def test_the_settings_of_segments_are_saved_with_the_run(fine_tuned):
    config = RunConfig.load(str(fine_tuned[1]))
    assert (config.segment_labels, config.segment_size, config.segment_context) == (True, 5, 2)


def test_only_classes_with_ratings_learn(tmp_path, data):
    flags = (*SEGMENTS, "--regularization_penalty=0", "--optimizer=SGD")
    start, end = (
        weights_of(train_mean(tmp_path / str(steps), data[0], *flags, f"--max_steps={steps}"))
        for steps in (1, 9)
    )
    kernel = "FrameLevelLogisticModel/classifier/logistic/kernel"
    changed = (start[kernel] != end[kernel]).any(axis=0)
    # No segment is rated for the last two classes.
    assert changed.tolist() == [True] * 8 + [False] * 2


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, data):
    flags = (*SEGMENTS, "--segment_balance=0.5", "--segment_mined_weight=0.5", "--num_epochs=0")
    whole = train_mean(tmp_path / "whole", data[0], *flags, "--max_steps=30")
    train_mean(tmp_path / "resumed", data[0], *flags, "--max_steps=17")
    resumed = train_mean(tmp_path / "resumed", data[0], *flags, "--max_steps=30")
    for path, weight in weights_of(whole).items():
        np.testing.assert_array_equal(weight, weights_of(resumed)[path], err_msg=path)


def test_batch_metrics_are_not_reported_because_unrated_pairs_are_unknown(fine_tuned):
    tags = programs.tensorboard_tags(fine_tuned[1] / "train")
    assert tags == {"loss", "learning_rate", "examples/s"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--segment_context=2"], "--segment_context needs --segment_labels, which is not given"),
        (["--segment_labels", "--segment_size=0"], "--segment_size must be above 0. Received: 0"),
        (["--segment_labels", "--segment_context=-1"], "--segment_context must be 0 or more."),
        (
            ["--segment_labels", "--segment_mined_weight=1", "--segment_unrated_weight=1"],
            "--segment_mined_weight and --segment_unrated_weight cannot be combined",
        ),
        (["--segment_labels", "--mix_videos=0.5"], "--mix_videos is about whole videos"),
        (["--segment_labels", "--label_weights=trust"], "--label_weights is about whole videos"),
        (["--segment_labels", "--max_frames=4"], "--segment_size must not be above --max_frames"),
        (["--keep_best=segment_map"], "--keep_best=segment_map needs --segment_labels"),
    ],
)
def test_flags_that_do_not_fit_segments_are_refused(tmp_path, data, flags, message):
    with pytest.raises(InputError, match=message):
        train_mean(tmp_path / "run", data[0], f"--eval_data_pattern={data[1]}", *flags)
    assert not (tmp_path / "run").exists()


def test_video_level_models_have_no_segments(tmp_path, video_data):
    with pytest.raises(InputError, match=r"LogisticModel takes video-level features, which have"):
        programs.train_logistic(tmp_path / "run", video_data, "--segment_labels")
    config = RunConfig("LogisticModel", num_classes=10, feature_sizes=(8, 4))
    run = saved_runs.save_run(tmp_path / "saved", config)
    with pytest.raises(InputError, match=r"needs a frame-level model, but that of .* takes"):
        evaluate(f"--train_dir={run}", f"--eval_data_pattern={video_data}", "--segment_labels")


def test_records_without_ratings_are_refused(tmp_path, frame_data, trained_mean):
    with pytest.raises(InputError, match="none of the first 160 videos has a rated segment"):
        train_mean(tmp_path / "run", frame_data, "--segment_labels")
    with pytest.raises(InputError, match="none of the first 160 videos has a rated segment"):
        evaluate(
            f"--train_dirs={trained_mean}", f"--eval_data_pattern={frame_data}", "--segment_labels"
        )


def test_runs_of_different_segments_and_exports_of_videos_are_refused(tmp_path, data, fine_tuned):
    flags = (*SEGMENTS, "--max_steps=1", "--segment_context=1")
    other = train_mean(tmp_path / "other", data[0], *flags)
    given = (f"--eval_data_pattern={data[1]}", "--segment_labels")
    exported = tmp_path / "exported"
    programs.run("export_model", f"--train_dir={other}", f"--output_dir={exported}")
    with pytest.raises(InputError, match="different segments, with --segment_context of 1, 2"):
        evaluate(f"--train_dirs={other},{fine_tuned[1]}", *given)
    with pytest.raises(InputError, match="Export its runs again with --segment_labels"):
        evaluate(f"--exported_model={exported}", *given)
    # A run on whole videos has no segments of its own.
    both = evaluate(f"--train_dirs={','.join(map(str, fine_tuned))}", *given)
    assert 0 < both["segment_map"] <= 1


def test_commands_of_the_starter_code_run_with_other_paths(tmp_path):
    for name in ("train0", "validate0"):
        contents = rated_records(name, 60, 0, num_classes=100, sizes=(1024, 128))
        sample_records.write_records(tmp_path / f"{name}.tfrecord", contents)
    commands = f"""
    train.py --frame_features --model=FrameLevelLogisticModel --feature_names='rgb,audio'
        --feature_sizes='1024,128' --train_data_pattern='{tmp_path}/train*.tfrecord'
        --train_dir {tmp_path}/run --segment_labels --start_new_model
    eval.py --eval_data_pattern='{tmp_path}/validate*.tfrecord' --train_dir {tmp_path}/run
        --segment_labels --run_once
    """
    train, evaluation = commands.split("eval.py")
    programs.run("train", *shlex.split(train)[1:])
    programs.run("eval", *shlex.split(evaluation))
    (entry,) = metrics_of(tmp_path / "run")
    assert 0 < entry["segment_map"] <= 1


SMALL_SIZES = {
    "lfnl_netvlad": "--netvlad_cluster_size=4,3 --nonlocal_embedding=4 --netvlad_hidden_size=16",
    "nextvlad": "--nextvlad_groups=2,1 --nextvlad_cluster_size=4,2 --nextvlad_hidden_size=16",
    "gru": "--gru_cells=8",
    "transformer": "--transformer_units=16 --transformer_layers=1 --transformer_heads=2 "
    "--transformer_hidden_size=16 --transformer_positions=20",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_SIZES)
def test_a_recipe_fine_tunes_a_run_of_the_recipe_for_videos(tmp_path, data, caplog, name):
    caplog.set_level("INFO", logger="absl")
    size = (*programs.SMALL_DATA, *SMALL_SIZES[name].split(), "--batch_size=16", "--max_steps=2")
    recipe = f"--flagfile={programs.ROOT}/recipes/{name}"
    videos = programs.train(tmp_path / "videos", data[0], f"{recipe}.flags", *size)
    run = programs.train(
        tmp_path / "segments",
        data[0],
        *(f"{recipe}_segments.flags", *size, f"--init_from={videos}", "--eval_steps=1"),
        *(f"--eval_data_pattern={data[1]}", "--keep_best=segment_map"),
    )
    # All weights are taken; only the counters of batch normalization begin anew.
    assert f"taken from {videos}" in caplog.text
    assert set(re.findall(r" new: .*", caplog.text)) <= {" new: counts from 0"}
    assert [entry["step"] for entry in metrics_of(run)] == [1, 2]
    before, after = weights_of(videos), weights_of(run)
    assert any((before[path] != after[path]).any() for path in before)


def test_other_programs_say_where_the_flag_belongs(tmp_path):
    with pytest.raises(InputError, match=r"--segment_labels\. train\.py takes it"):
        program.parse_options(
            __import__("average_checkpoints").main,
            ["--segment_labels", f"--output_dir={tmp_path}", "--train_dir=run"],
        )
