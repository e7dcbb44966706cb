"""Tests of the study: its plan, its scheduler, its report, and a miniature run."""

import dataclasses
import math
import pathlib
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import files
import pages
import programs
from report_page import document
from run_config import RunConfig
from utils import InputError

sys.path.insert(0, str(programs.ROOT / "study"))

import findings
import nonlocal_start
import plan
import plots
import results
import schedule
import seed_tables
import segment_training
import siblings
import training_options


@pytest.mark.parametrize("name", list(plan.SCALES))
def test_jobs_need_only_earlier_ones_and_have_unique_names_and_outputs(name, tmp_path):
    jobs = plan.Plan(plan.SCALES[name], tmp_path).jobs
    seen = set()
    for job in jobs:
        assert set(job.needs) <= seen
        seen.add(job.name)
    assert len(seen) == len({job.output for job in jobs}) == len(jobs)


def test_commands_use_only_existing_flags(tmp_path):
    for job in plan.Plan(plan.SCALES["full"], tmp_path).jobs:
        program, *arguments = job.command
        assert programs.options(program.removesuffix(".py"), *arguments)


def test_the_full_study_covers_the_paper(tmp_path):
    scale = plan.SCALES["full"]
    assert scale.members == plan.SIX
    assert [len(names) for names in scale.ensembles] == [2, 2, 2, 3, 4, 5, 6]
    assert len(scale.seeds) >= 3
    steps = plan.Plan(scale, tmp_path)
    trained = [job.name for job in steps.jobs if job.command[0] == "train.py"]
    assert len(trained) == 3 * (11 + 5 + 4)


def test_the_options_of_training_parse_and_the_page_in_docs_matches_its_numbers(tmp_path):
    for flags in training_options.OPTIONS.values():
        given = (*training_options.MODEL.split(), *flags.split(), "--train_data_pattern=data")
        assert programs.options("train", *given, "--train_dir=run")
    assert programs.options(
        "make_sample_data", "--output_dir=data", *training_options.data_flags().split()
    )
    docs = programs.ROOT / "docs"
    text = training_options.to_markdown(training_options.Scores.load(docs / "training_options"))
    assert text == (docs / "training_options.md").read_text()


def test_an_option_of_training_is_judged_by_its_differences_by_seed():
    gap = {training_options.DEFAULT: [0.5, 0.6, 0.55], "label smoothing": [0.52, 0.63, 0.575]}
    rows = [
        {"option": name, "seed": seed, "gap": gap.get(name, [0.4, 0.7, 0.5])[seed], "map": 0.25}
        for name in training_options.OPTIONS
        for seed in range(3)
    ]
    found = training_options.table(pd.DataFrame(rows)).set_index("option")
    assert found.loc["label smoothing", "GAP, difference"] == "+0.0200, +0.0300, +0.0250"
    assert found.loc["label smoothing", "GAP, verdict"] == "better"
    assert found.loc["focal loss", "GAP, verdict"] == "-"
    assert found.loc[training_options.DEFAULT, "GAP"] == "0.5500 ± 0.0500"


@pytest.mark.slow
def test_a_miniature_measurement_of_options_writes_its_report(tmp_path, monkeypatch):
    names = (training_options.DEFAULT, "mixed videos")
    options = {name: training_options.OPTIONS[name] for name in names}
    monkeypatch.setattr(training_options, "OPTIONS", options)
    given = {"scale": "miniature", "output_dir": str(tmp_path)}
    training_options.main(training_options.MeasurementOptions(**given))
    text = (tmp_path / "training_options.md").read_text()
    monkeypatch.setattr(training_options, "_train", None)  # Finished runs do not run again.
    training_options.main(training_options.MeasurementOptions(**given))
    assert (tmp_path / "training_options.md").read_text() == text
    assert text.count("\n| ") == 4


def test_the_ways_to_train_on_segments_parse_and_their_table_in_docs_matches_its_numbers():
    for flags in segment_training.WAYS.values():
        given = () if flags is None else ("--segment_labels", *flags.split())
        model = (*segment_training.MODEL.split(), "--train_data_pattern=data", "--train_dir=run")
        assert programs.options("train", *model, *given)
    assert programs.options("make_sample_data", "--output_dir=d", *segment_training.DATA.split())
    docs = programs.ROOT / "docs"
    text = segment_training.to_markdown(
        segment_training.Scores.load(docs / segment_training.FOLDER)
    )
    assert text in (docs / "segments.md").read_text()


def test_a_table_replaces_only_what_is_between_the_marks(tmp_path):
    path = tmp_path / "page.md"
    begin, end = segment_training.BEGIN, segment_training.END
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    segment_training.write_table(path, "new")
    assert path.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


@pytest.mark.slow
def test_a_miniature_measurement_of_segments_writes_its_table(tmp_path, monkeypatch):
    names = (segment_training.VIDEOS, segment_training.RATED)
    ways = {name: segment_training.WAYS[name] for name in names}
    monkeypatch.setattr(segment_training, "WAYS", ways)
    given = {"scale": "miniature", "output_dir": str(tmp_path)}
    segment_training.main(segment_training.SegmentMeasurementOptions(**given))
    text = (tmp_path / "segments.md").read_text()
    monkeypatch.setattr(segment_training, "_train", None)  # Finished runs do not run again.
    segment_training.main(segment_training.SegmentMeasurementOptions(**given))
    assert (tmp_path / "segments.md").read_text() == text
    assert text.count("\n| ") == 4


def job(tmp_path, name, script, needs=(), **options):
    path = tmp_path / f"{name}.py"
    path.write_text(script)
    output = tmp_path / f"{name}.out"
    return plan.Job(name, (str(path), str(output)), output, needs, **options)


def run_jobs(tmp_path, *jobs, setting=None):
    schedule.Runner(jobs, tmp_path / "state", 2, setting).run()


COUNT_RUNS = "import sys; open(sys.argv[1] + '.runs', 'a').write('x'); open(sys.argv[1], 'w')"


def runs_of(*jobs):
    counts = [pathlib.Path(f"{one.output}.runs") for one in jobs]
    return [len(path.read_text()) if path.exists() else 0 for path in counts]


def test_jobs_run_once_and_again_when_their_command_or_an_earlier_one_changes(tmp_path):
    first = job(tmp_path, "first", COUNT_RUNS)
    second = job(tmp_path, "second", COUNT_RUNS, ("first",))
    third = job(tmp_path, "third", COUNT_RUNS)
    changed = plan.Job("first", (*first.command, "--more"), first.output)

    def runs_after(first, setting=None):
        run_jobs(tmp_path, first, second, third, setting=setting)
        return runs_of(first, second, third)

    assert runs_after(first) == [1, 1, 1]
    assert runs_after(first) == [1, 1, 1]
    assert runs_after(changed) == [2, 2, 1]
    third.output.unlink()
    assert runs_after(changed) == [2, 2, 2]
    first.output.unlink()
    assert runs_after(changed) == [3, 3, 2]
    assert runs_after(changed, {"library": "2.0"}) == [4, 4, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("ends_on_sigterm")
def test_signals_end_the_jobs_which_are_not_done(tmp_path, number):
    script = f"""
import os, pathlib, signal, sys, time
output = pathlib.Path(sys.argv[1])
if not output.exists():
    output.touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.kill(os.getppid(), {int(number)})
    time.sleep(60)
output.write_text("resumed")
"""
    one, other = (job(tmp_path, name, script, resumes=True) for name in ("one", "other"))
    other = dataclasses.replace(other, needs=("one",))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        run_jobs(tmp_path, one, other)
    if number == signal.SIGTERM:
        assert str(ended.value).endswith("stopped by SIGTERM; repeat the command to continue")
    assert one.output.read_text() == ""
    assert not other.output.exists()
    other.output.touch()
    run_jobs(tmp_path, one)
    assert one.output.read_text() == "resumed"


def test_jobs_run_in_parallel_but_a_timed_one_runs_alone(tmp_path):
    script = """
import pathlib, sys, time
output = pathlib.Path(sys.argv[1])
running = output.parent / "running" / output.name
running.parent.mkdir(exist_ok=True)
running.touch()
time.sleep(1)
output.write_text(" ".join(path.stem for path in running.parent.iterdir()))
time.sleep(0.5)
running.unlink()
"""
    names = ("timed", "a", "b", "c")
    jobs = [job(tmp_path, name, script, alone=name == "timed") for name in names]
    run_jobs(tmp_path, *jobs)
    beside = {one.name: set(one.output.read_text().split()) for one in jobs}
    assert beside["timed"] == {"timed"}
    assert max(map(len, beside.values())) == 2


def test_a_failing_job_is_reported_with_its_log_and_runs_again(tmp_path):
    trouble = tmp_path / "trouble"
    trouble.touch()
    fail = f"import pathlib; sys.exit('no luck' if pathlib.Path('{trouble}').exists() else 0)\n"
    first = job(tmp_path, "first", f"{COUNT_RUNS}; {fail}")
    second = job(tmp_path, "second", COUNT_RUNS, ("first",))
    with pytest.raises(InputError, match=r"first failed: no luck \(see .*first\.log\)"):
        run_jobs(tmp_path, first, second)
    assert runs_of(second) == [0]
    trouble.unlink()
    run_jobs(tmp_path, first, second)
    assert runs_of(second) == [1]


def test_all_jobs_share_one_directory_of_compiled_updates_which_is_then_removed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TF_XLA_FLAGS", "--given")
    script = "import os, sys; flags = os.environ['TF_XLA_FLAGS']; open(sys.argv[1], 'w')"
    script += ".write(f'{flags} {os.path.isdir(flags.partition(chr(61))[2])}')"
    jobs = [job(tmp_path, name, script) for name in ("first", "second")]
    run_jobs(tmp_path, *jobs)
    found, other = (one.output.read_text() for one in jobs)
    given, cache, existed = found.split()
    assert found == other
    assert (given, existed) == ("--given", "True")
    option, _, directory = cache.partition("=")
    assert option == "--tf_xla_persistent_cache_directory"
    assert not pathlib.Path(directory).exists()


def test_the_output_of_an_interrupted_job_is_removed_unless_it_resumes(tmp_path):
    script = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); "
    script += "p.write_text(p.read_text() + 'b' if p.exists() else 'a')"
    for resumes, content in ((True, "ab"), (False, "a")):
        one = job(tmp_path, f"resumes_{resumes}", script, resumes=resumes)
        runner = schedule.Runner([one], tmp_path / "state", 1)
        runner._set_state(one, "started")
        one.output.write_text("a")
        runner.run()
        assert one.output.read_text() == content


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Runs a miniature study and returns the directory of its findings."""
    folder = tmp_path_factory.mktemp("study")
    given = ("--scale=miniature", f"--output_dir={folder}/out", f"--report_dir={folder}/report")
    programs.run("run", *given)
    return folder / "report"


@pytest.mark.slow
def test_no_technique_clearly_lowers_the_gap_of_a_miniature(miniature):
    gap = pd.read_csv(miniature / "study" / "gap.csv").set_index(["subject", "variant"])["gap"]
    ensemble = "lfnl_netvlad+soft_bof_4k"
    members = [gap[name, "averaged"] for name in ensemble.split("+")]
    for name in ensemble.split("+"):
        assert gap[name, "last"] > 1.5 * gap["prior", "last"]
        assert gap[name, "averaged"] > gap[name, "last"] - 0.03
    assert gap[ensemble, "samplings1"] > max(members) - 0.01
    assert gap[ensemble, "samplings10"] > gap[ensemble, "samplings1"] - 0.003
    assert abs(gap[ensemble, "exported_bfloat16"] - gap[ensemble, "exported_float32"]) < 0.002


@pytest.mark.slow
def test_the_report_starts_by_saying_that_the_data_are_generated(miniature):
    text = (miniature / "study.md").read_text()
    assert "generated videos, not from YouTube-8M" in text.splitlines()[0]
    for number in range(1, 5):
        assert f"## Table {number}" in text
    page = pages.Page(miniature / "study" / "index.html")
    assert page.tags.count("svg") == len(plots.PLOTS)


def test_the_report_in_docs_matches_its_numbers():
    docs = programs.ROOT / "docs"
    text = findings.to_markdown(results.Results.load(docs / findings.FOLDER))
    assert text == (docs / "study.md").read_text()


def test_the_page_has_every_table_and_plot_of_the_report_and_loads_nothing(tmp_path):
    docs = programs.ROOT / "docs"
    text = (docs / "study.md").read_text()
    path = tmp_path / "index.html"
    path.write_text(document.to_html(text, findings.TITLE, docs))
    page = pages.Page(path)
    assert page.loaded == []
    assert page.tags.count("svg") == len(plots.PLOTS)
    assert "img" not in page.tags
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [cell.strip(" *`") for line in lines for cell in line.split("|") if "--" not in cell]
    assert len(cells) > 300
    for cell in cells:
        assert cell in page.text
    assert path.stat().st_size < 300_000


def test_right_siblings_are_labels_above_the_other_class_of_their_pair():
    predicted = np.array(
        [
            [0.9, 0.1, 0.5, 0.2],  # Label 0, above 1.
            [0.1, 0.9, 0.5, 0.2],  # Label 0, below 1; label 3, below 2.
            [0.3, 0.3, 0.1, 0.2],  # Label 1, equal to 0; label 3, above 2.
            [0.9, 0.1, 0.5, 0.2],  # Labels 0 and 1 do not count.
        ]
    )
    labels = np.array([[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    assert siblings.right_siblings(predicted, labels, np.arange(4)) == (1 + 0 + 0 + 0.5 + 1) / 5
    assert siblings.right_siblings(predicted, labels, np.array([2, 3])) == 0.5


def scores_of(gap):
    """`findings.Scores` in the world `bag` of GAP by seed, keyed by subject and variant."""
    rows = [
        {"world": "bag", "seed": seed, "subject": subject, "variant": variant, "gap": value}
        for (subject, variant), values in gap.items()
        for seed, value in enumerate(values)
    ]
    return findings.Scores(SimpleNamespace(gap=pd.DataFrame(rows)))


def test_an_ensemble_is_compared_with_the_best_member_per_seed():
    scale = dataclasses.replace(
        plan.SCALES["full"], worlds={"bag": ("lfnl_netvlad", "soft_bof_4k")}
    )
    one, two, both = (0.50, 0.60, 0.55), (0.60, 0.50, 0.57), (0.62, 0.62, 0.59)
    ensemble = ("samplings1", "samplings10", "exported_float32", "exported_bfloat16")
    single = ("last", "last_recomputed", "ema", "averaged")
    scores = scores_of(
        {
            **{("lfnl_netvlad+soft_bof_4k", variant): both for variant in ensemble},
            **{("lfnl_netvlad", variant): one for variant in single},
            **{("soft_bof_4k", variant): two for variant in single},
        }
    )
    claims = findings.claims(scores, scale).set_index("claim")
    claim = claims.loc["M1 + M4 together above the best of them"]
    assert claim["difference"] == "0.0200 ± 0.0000"
    assert claim["by seed"] == "0.0200, 0.0200, 0.0200"
    assert claim["verdict"] == "holds"
    table = findings.ensembles(scores, scale)
    assert table["best member"].tolist() == ["0.5900 ± 0.0173 (M1 or M4)"]


def test_plots_name_every_model_of_the_world_bag():
    found = results.Results.load(programs.ROOT / "docs" / findings.FOLDER)
    for draw in (plots.gap_and_size, plots.curves, plots.reliability):
        chart = draw(found)
        for name in found.scale.worlds["bag"]:
            assert f">{plan.MODELS[name].title}</text>" in chart


def test_the_papers_models_have_colors_of_their_own():
    colors = [plots._color(name) for name in plan.SIX]
    assert len(set(colors)) == len(colors)


def test_an_interrupted_training_is_reported(tmp_path):
    (tmp_path / "eval").mkdir()
    history = [{"step": step} for step in (5, 7, 10)]
    files.write_json(str(tmp_path / "eval" / "metrics.json"), history[:2])
    with pytest.raises(InputError, match="interrupted at step 7 of 10"):
        results._history(tmp_path, (5, 10))
    files.write_json(str(tmp_path / "eval" / "metrics.json"), history)
    assert results._history(tmp_path, (5, 10)) == [{"step": 5}, {"step": 10}]


@pytest.mark.parametrize(
    ("differences", "expected", "verdict"),
    [
        ((0.10, 0.11, 0.12), "above", "holds"),
        ((-0.10, 0.00, 0.15), "above", "**does not hold**"),
        ((-0.10, 0.00, 0.15), "not below", "**does not hold**"),
        ((-0.002, 0.00, -0.001), "not below", "holds"),
        ((0.10, 0.20, 0.15), "not below", "holds"),
        ((-0.10, -0.11, -0.12), "above", "**the opposite holds**"),
        ((-0.10, -0.11, -0.12), "not below", "**does not hold**"),
        ((0.0, 0.0, 0.0), "not below", "holds"),
        ((0.10, 0.11, 0.12), "no gain", "**does not hold**"),
        ((-0.10, 0.00, 0.15), "no gain", "**does not hold**"),
        ((0.002, 0.00, 0.001), "no gain", "holds"),
        ((-0.0004, 0.0005, 0.0), "equal", "holds"),
        ((-0.0006, 0.0, 0.0), "equal", "**does not hold**"),
        ((0.5,), "above", "one seed, no verdict"),
    ],
)
def test_verdicts_need_two_standard_deviations(differences, expected, verdict):
    assert findings.verdict(pd.Series(differences), expected) == verdict


def p_of_t(t, seeds):
    """Closed forms of the upper tail of Student's t."""
    if seeds == 2:
        return 0.5 - math.atan(t) / math.pi
    assert seeds == 3
    return 0.5 - t / (2 * math.sqrt(2 + t**2))


@pytest.mark.parametrize(
    ("differences", "expected", "t"),
    [
        ((1.0, 3.0), "above", 2.0),
        ((1.0, 2.0, 3.0), "above", 2 * 3**0.5),
        ((-1.0, -2.0, -3.0), "above", -2 * 3**0.5),
        ((-0.003, -0.002, -0.001), "not below", 3 * 3**0.5),
        ((0.003, 0.002, 0.001), "no gain", 3 * 3**0.5),
        ((0.0001, 0.0002, 0.0003), "equal", 3 * 3**0.5),
        ((-0.0001, -0.0002, -0.0003), "equal", 3 * 3**0.5),
    ],
)
def test_p_values_are_those_of_one_sided_t_tests(differences, expected, t):
    found = seed_tables.p_value(pd.Series(differences), expected)
    assert found == pytest.approx(p_of_t(t, len(differences)), rel=1e-9)


@pytest.fixture(scope="module")
def start_of(frame_data):
    """Returns a function that measures the block of a small NetVLAD with some options."""

    def measure(**options):
        sizes = {"netvlad_cluster_size": "8", "nonlocal_embedding": "4", "iterations": 0}
        config = RunConfig(
            "LFNLNetVLADModel",
            hyperparameters={**sizes, "netvlad_hidden_size": 4, **options},
            num_classes=10,
            feature_sizes=(8, 4),
        )
        batch = next(config.data.reader(frame_data).batches(32))
        return list(nonlocal_start.measure(config, batch.inputs))

    return measure


def test_the_block_that_starts_as_the_identity_adds_nothing(start_of):
    for row in start_of(nonlocal_start="identity"):
        assert row["added_size"] == row["added_cosine"] == 0
        assert row["cosine_before"] == row["cosine_after"]


def test_the_papers_block_is_measured_to_add_a_common_vector(start_of):
    rows = start_of()
    assert [row["feature"] for row in rows] == ["rgb", "audio"]
    for row in rows:
        assert row["added_cosine"] > 0.9
        assert row["added_size"] > 0.2


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = np.array([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    expected = (0 + 2 * 0.5**0.5) / 3
    assert nonlocal_start.mean_cosine(vectors) == pytest.approx(expected)


def test_equal_differences_have_a_p_value_of_0_on_their_side():
    assert seed_tables.p_value(pd.Series([0.5, 0.5, 0.5])) == 0
    assert seed_tables.p_value(pd.Series([-0.5, -0.5, -0.5])) == 1
    assert seed_tables.p_value(pd.Series([0.0, 0.0, 0.0])) == 1


def test_p_values_of_many_seeds_are_those_of_tables():
    noise = pd.Series([-1.0, 1.0] * 5 + [0.0])  # 11 seeds with the deviation 1.
    found = seed_tables.p_value(noise + 2.764 / 11**0.5)
    assert found == pytest.approx(0.01, abs=1e-5)


def test_seeds_that_are_not_alike_are_shown_one_by_one():
    assert seed_tables.spread(pd.Series([0.45, 0.46, 0.44])) == "0.4500 ± 0.0100"
    unlike = pd.Series([0.449, 0.386, 0.463])
    assert seed_tables.spread(unlike) == "0.4327 ± 0.0410 (0.449, 0.386, 0.463)"
    assert seed_tables.spread(pd.Series([0.45])) == "0.4500"
