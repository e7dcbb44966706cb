"""The page that report.py writes: its numbers, what it refers to, and how a browser shows it."""

import csv
import dataclasses
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs requirements/report.txt")

import files
import pages
import programs
import sample_records
from report_page import history, page
from report_page.evaluation import MEAN
from run_config import RunConfig
from utils import InputError

NAMES = ["Drum & <b>bass</b>", "$x_1$", "Katze", "\u6f22\u5b57", *"efghij"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained_mean, trained_netvlad, frame_data):
    """A folder with two evaluated runs, mean and netvlad, and vocabulary.csv."""
    folder = tmp_path_factory.mktemp("report")
    for name, train_dir in (("mean", trained_mean), ("netvlad", trained_netvlad)):
        shutil.copytree(train_dir, folder / name, ignore=shutil.ignore_patterns("eval"))
        given = (f"--train_dir={folder / name}", f"--eval_data_pattern={frame_data}")
        programs.run("eval", *given, "--all_checkpoints")
    rows = "".join(f'{number},"{name}"\n' for number, name in enumerate(NAMES))
    (folder / "vocabulary.csv").write_text(f"Index,Name\n{rows}")
    return folder


def write_report(path, *flags):
    """Runs report.py and returns the path of the page."""
    programs.run("report", *flags, f"--output_file={path}")
    return path


@pytest.fixture(scope="module")
def report(folder, frame_data):
    """The page of both runs on labelled records."""
    return write_report(
        folder / "report.html",
        f"--train_dirs={folder / 'mean'},{folder / 'netvlad'}",
        f"--eval_data_pattern={frame_data}",
        f"--class_names={folder / 'vocabulary.csv'}",
    )


def table_rows(path):
    """Returns the rows of all tables of a page: lists of the texts of their cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", path.read_text(), re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.split(r"</t[dh]>", row)[:-1]]
        for row in rows
    ]


def prior_gap(path):
    return float(row_of(path, "GAP")[-1])


def row_of(path, name):
    (row,) = [row for row in table_rows(path) if row and row[0] == name]
    return row[1:]


@pytest.mark.slow
def test_the_page_has_the_metrics_of_each_run_and_of_their_mean(report, folder, frame_data):
    dirs = [folder / "mean", folder / "netvlad"]
    data = f"--eval_data_pattern={frame_data}"
    expected = [programs.evaluate(f"--train_dirs={path}", data) for path in dirs]
    expected.append(programs.evaluate(f"--train_dirs={dirs[0]},{dirs[1]}", data))
    for row, key in (("GAP", "gap"), ("mAP", "map"), ("Hit@1", "hit_at_one"), ("PERR", "perr")):
        *values, prior = [float(text) for text in row_of(report, row)]
        assert values == pytest.approx([metrics[key] for metrics in expected], abs=6e-5), row
        assert 0 < prior < max(values)
    assert prior_gap(report) == pytest.approx(expected[0]["class_prior_gap"], abs=6e-5)
    assert MEAN in pages.Page(report).text
    assert row_of(report, "step") == ["20", "120", "", ""]


@pytest.mark.slow
def test_the_page_shows_settings_that_differ_and_all_others(report):
    rows = table_rows(report)
    # Only one run has clusters.
    assert [row for row in rows if row[0] == "netvlad_cluster_size"] == [
        ["netvlad_cluster_size", "", "4,3"],
        ["netvlad_cluster_size", "4,3"],
    ]
    # A main setting is shown although it is equal.
    batch_sizes = [row for row in rows if row[0] == "batch_size"]
    assert batch_sizes == [["batch_size", "16", "16"], *[["batch_size", "16"]] * 2]


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_nothing(report):
    found = pages.Page(report)
    assert found.loaded == []
    assert not {"script", "link", "iframe", "object", "embed", "img", "b"} & set(found.tags)
    assert len(set(found.ids)) == len(found.ids)
    assert report.stat().st_size < 2e6
    assert found.tags.count("svg") > 10


@pytest.mark.slow
def test_names_of_classes_are_text(report):
    content = report.read_text()
    assert "<b>bass" not in content
    assert "Drum & <b>bass</b>" in pages.Page(report).text
    assert "\u6f22\u5b57" in content


@pytest.mark.slow
def test_the_summary_names_the_worst_classes(report):
    rows = [row[:2] for row in table_rows(report) if len(row) == 7]
    listed = [row for row in rows if re.fullmatch(r"0\.\d{3}", row[1])]
    summary = re.search(r'<ul class="summary">(.*?)</ul>', report.read_text(), re.DOTALL)[1]
    name, ap = re.search(r"Lowest AP: (.*?) \((0\.\d{3})\)", summary).groups()
    assert [name, ap] in listed
    assert ap == min(ap for _, ap in listed)
    assert not re.search(r"<li>\s*<a", summary)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark", "background"),
    [(400, False, "rgb(252, 252, 251)"), (1200, True, "rgb(26, 26, 25)")],
)
def test_a_browser_shows_the_page_within_its_window(report, tmp_path, width, dark, background):
    assert pages.measure(report, tmp_path, width, dark) == (width, 0, background, 0)


@pytest.mark.slow
def test_without_records_the_page_has_curves_settings_and_results(folder):
    path = write_report(
        folder / "directories.html", f"--train_dirs={folder / 'mean'},{folder / 'netvlad'}"
    )
    metrics = [programs.metrics_of(folder / name)[-1] for name in ("mean", "netvlad")]
    assert row_of(path, "GAP")[:2] == [f"{entry['gap']:.4f}" for entry in metrics]
    assert prior_gap(path) == pytest.approx(metrics[0]["class_prior_gap"], abs=6e-5)
    text = pages.Page(path).text
    for part in ("Loss", "GAP and size", "Learning rate", "netvlad", "best GAP", "overfit"):
        assert part in text
    assert "Reliability" not in text


def test_a_run_that_was_not_evaluated_has_a_page(trained_mean, tmp_path):
    train_dir = shutil.copytree(
        trained_mean, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "train")
    )
    path = write_report(tmp_path / "page.html", f"--train_dir={train_dir}")
    text = pages.Page(path).text
    assert "These runs have not been evaluated yet" in text
    assert "base_learning_rate" in text
    assert "Learning rate" not in text


@pytest.mark.slow
def test_an_exported_model_has_a_page_with_its_own_metrics(exported, frame_data, tmp_path):
    data = f"--eval_data_pattern={frame_data}"
    path = write_report(tmp_path / "page.html", f"--exported_model={exported}", data)
    expected = programs.evaluate(f"--exported_model={exported}", data)
    assert row_of(path, "GAP")[0] == f"{expected['gap']:.4f}"
    assert float(row_of(path, "MiB on disk")[0]) > 0
    assert "class 3" in pages.Page(path).text


@pytest.mark.slow
def test_a_model_of_video_level_features_has_a_page_without_frames(
    trained_moe, video_data, tmp_path
):
    data = f"--eval_data_pattern={video_data}"
    path = write_report(tmp_path / "page.html", f"--train_dir={trained_moe}", data)
    text = pages.Page(path).text
    assert "Most confident mistakes" in text
    assert "The models have no embeddings" in text
    assert "clusters" not in text


@pytest.mark.slow
def test_a_page_of_3862_classes_is_small_and_shows_ids_as_text(tmp_path):
    """Frequencies fall like those of YouTube-8M."""
    rng = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 3863)
    records = []
    for number in range(1500):
        labels = rng.choice(3862, 3, replace=False, p=frequencies / frequencies.sum())
        records.append(
            sample_records.video_record(
                f"<i>{number}", labels.tolist(), mean_rgb=rng.normal(size=8), mean_audio=[1.0] * 4
            )
        )
    data = sample_records.write_records(tmp_path / "part.tfrecord", records)
    flags = ("--num_classes=3862", "--feature_sizes=8,4", "--max_steps=3", "--batch_size=500")
    run = programs.train(tmp_path / "run", data, "--model=LogisticModel", *flags)
    rows = "".join(f"{number},{'A long name of a class ' * 3}{number}\n" for number in range(3862))
    (tmp_path / "vocabulary.csv").write_text(f"Index,Name\n{rows}")
    path = write_report(
        tmp_path / "page.html",
        *(f"--train_dir={run}", f"--eval_data_pattern={data}"),
        f"--class_names={tmp_path / 'vocabulary.csv'}",
    )
    assert path.stat().st_size < 1e6
    found = pages.Page(path)
    assert found.loaded == []
    assert "i" not in found.tags
    assert "<i>" in found.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exported_model=e"], "--exported_model needs --eval_data_pattern"),
        (["--train_dir=a", "--class_names=v.csv"], "--class_names names the classes of"),
        ([], "--train_dir or --train_dirs or --exported_model must be given"),
        (["--train_dir=a", "--format=csv", "--eval_data_pattern=d"], "--format=csv lists what"),
        (["--train_dir=a", "--sort_by=gap"], "--sort_by orders the rows of a table"),
    ],
)
def test_flags_that_do_not_fit_are_rejected(flags, message):
    with pytest.raises(InputError, match=message):
        programs.options("report", "--output_file=x.html", *flags)


def test_a_page_needs_a_file():
    with pytest.raises(InputError, match="--output_file must be given for a page"):
        programs.options("report", "--train_dir=a")


# --- Tables of runs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained_mean):
    """A folder with runs that differ in what they hold, and directories without a run."""
    folder = tmp_path_factory.mktemp("runs")

    def entry(step, gap):
        return {"step": step, "gap": gap, "map": gap / 2, "hit_at_one": 0.75, "loss": 10 - gap}

    evaluations = {"a": [entry(8, 0.5)], "b": [entry(8, 0.9), entry(16, 0.25)], "c|d": None}
    for number, (name, entries) in enumerate(evaluations.items()):
        (folder / name / "eval").mkdir(parents=True)
        config = RunConfig.load(str(trained_mean))
        dataclasses.replace(config, base_learning_rate=0.1 + number).save(str(folder / name))
        if entries:
            files.write_json(str(folder / name / "eval" / "metrics.json"), entries)
    shutil.copytree(trained_mean / "train", folder / "a" / "train")
    for path in [*trained_mean.glob("model.ckpt-20*"), trained_mean / "checkpoint"]:
        shutil.copy(path, folder / "a")
    (folder / "without a run").mkdir()
    (folder / "notes.txt").write_text("no run")
    (folder / "old").mkdir()
    (folder / "old" / "model_flags.json").write_text('{"model": "Dbof", "weights_format": 1}')
    return folder


def table_of(runs, capsys, *flags):
    programs.run("report", f"--train_dirs={runs}/*", *flags)
    return capsys.readouterr().out


def test_a_table_has_what_the_directories_hold(runs, capsys):
    rows = list(csv.DictReader(table_of(runs, capsys, "--format=csv").splitlines()))
    assert [row["run"] for row in rows] == ["b", "a", "c|d"]
    b, a, c = rows
    assert (b["best_gap"], b["best_step"], b["gap"], b["eval_step"]) == (
        "0.9",
        "8",
        "0.25",
        "16",
    )
    assert (b["map"], b["hit_at_one"], b["loss"]) == ("0.125", "0.75", "9.75")
    assert (b["step"], b["mib"], b["examples_per_s"]) == ("", "", "")
    assert a["step"] == "20"
    assert float(a["mib"]) > 0
    assert float(a["examples_per_s"]) > 0
    assert [row["base_learning_rate"] for row in (a, b, c)] == ["0.1", "1.1", "2.1"]
    assert c["best_gap"] == ""
    assert "batch_size" not in a


@pytest.mark.parametrize(
    ("sort_by", "names"),
    [
        ("gap", ["a", "b", "c|d"]),
        ("loss", ["a", "b", "c|d"]),
        ("run", ["a", "b", "c|d"]),
        ("best_gap", ["b", "a", "c|d"]),
        ("step", ["a", "b", "c|d"]),
    ],
)
def test_the_best_runs_come_first_and_those_without_a_value_last(runs, capsys, sort_by, names):
    lines = table_of(runs, capsys, "--format=text", f"--sort_by={sort_by}").splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == names
    assert lines[3].split()[1:4] == ["-", "-", "-"]
    assert "the newest evaluation" in " ".join(lines[4:])


def test_a_markdown_table_has_a_cell_for_every_column(runs, capsys, tmp_path):
    path = tmp_path / "runs.md"
    assert table_of(runs, capsys, "--format=markdown", f"--output_file={path}") == ""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[0].startswith("| run | best GAP | at step | GAP | mAP | Hit@1 | loss |")


def test_a_glob_takes_only_runs_and_reports_those_of_other_versions(runs, logged_warnings):
    found = history.find_train_dirs([f"{runs}/*", f"{runs}/a", "elsewhere"])
    assert [pathlib.Path(path).name for path in found] == ["a", "b", "c|d", "elsewhere"]
    (warning,) = logged_warnings
    assert "left out" in warning
    assert "old" in warning
    with pytest.raises(InputError, match=r"no directory that matches .*x\*. holds a run"):
        history.find_train_dirs([f"{runs}/x*"])


def test_a_page_of_a_glob_has_its_runs(runs, tmp_path):
    path = write_report(tmp_path / "page.html", f"--train_dirs={runs}/[ab]")
    assert row_of(path, "best GAP") == ["0.5000", "0.9000"]
    assert row_of(path, "step of the best GAP") == ["8", "8"]


def test_missing_packages_are_named(monkeypatch, trained_mean, tmp_path):
    for name in [name for name in sys.modules if name.startswith("report_page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"needs Jinja.* Run: pip install '\.\[report\]'"):
        write_report(tmp_path / "page.html", f"--train_dir={trained_mean}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("video_id", "address"),
    [
        ("dQw4w9WgXcQ", "https://www.youtube.com/watch?v=dQw4w9WgXcQ"),
        ("aB3d", "http://data.yt8m.org/2/j/i/aB/aB3d.js"),
        ("validate0000001", None),
        ("a/\"'><b", None),
        ("javascript:", None),
    ],
)
def test_ids_of_youtube_have_addresses(video_id, address):
    assert page.video_address(video_id) == address


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (0.0012, "0.001"), (0.00012, "0.0001"), (0.99912, "0.99912"), (0.0, "0")],
)
def test_probabilities_near_0_and_1_keep_digits(value, text):
    assert page.probability(value) == text


def test_training_ends_by_naming_the_command(frame_data, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    run = programs.train_mean(tmp_path / "a run", frame_data, "--max_steps=1")
    command = caplog.records[-1].getMessage().partition("python report.py ")[2]
    assert command == f"--train_dir='{run}' --output_file=report.html"
