"""Cloud jobs, as far as tests can check them without an account."""

import gzip
import io
import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest
import tensorflow as tf
import yaml
from tensorflow.python.training import checkpoint_utils

import files
import programs
from utils import InputError

CLOUD = programs.ROOT / "cloud"
DOCUMENT = programs.ROOT / "docs" / "cloud.md"
SPECS = sorted(path.stem for path in CLOUD.glob("*.yaml") if path.stem != "ai_platform")
VALUES = {
    "PROJECT": "my-project",
    "REGION": "us-central1",
    "IMAGE": "image",
    "DATA": "gs://my-data/frames",
    "OUTPUT": "gs://my-runs/run",
    "PACKAGE": "gs://my-runs/package.tar.gz",
}


@pytest.fixture
def workplace(tmp_path):
    """Returns a directory with the files of submit.sh, to which it may write, and a fake gcloud."""
    shutil.copytree(CLOUD, tmp_path / "cloud", ignore=shutil.ignore_patterns("jobs"))
    shutil.copytree(programs.ROOT / "recipes", tmp_path / "recipes")
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho ran gcloud "$@"\n')
    fake.chmod(0o755)
    return tmp_path


def submit(workplace, *arguments, **values):
    return subprocess.run(
        ["bash", "cloud/submit.sh", *arguments],
        cwd=workplace,
        env={"PATH": f"{workplace}/bin:{os.environ['PATH']}", **values},
        capture_output=True,
        text=True,
        check=False,
    )


def values_for(spec):
    """Returns values of the variables that a spec uses."""
    names = VALUES.keys() - ({"PACKAGE"} if spec != "package" else set())
    return {"SPEC": spec, **{name: VALUES[name] for name in names}}


def filled_spec(workplace, name):
    done = submit(workplace, **values_for(name))
    assert done.returncode == 0, done.stderr
    text = (workplace / f"cloud/jobs/youtube8m-{name}.yaml").read_text()
    assert not re.search(r"^[^#]*\$\{", text, re.MULTILINE)
    return yaml.safe_load(text)


@pytest.mark.parametrize("name", SPECS)
def test_specs_parse_and_have_only_flags_that_exist(name, workplace, monkeypatch):
    spec = filled_spec(workplace, name)
    assert set(spec) <= {"workerPoolSpecs", "scheduling", "baseOutputDirectory"}
    assert spec["baseOutputDirectory"] == {"outputUriPrefix": "gs://my-runs/run"}
    for pool in spec["workerPoolSpecs"]:
        assert pool["replicaCount"] >= 1
        assert pool["machineSpec"]["machineType"]
        if "containerSpec" in pool:
            assert pool["containerSpec"]["imageUri"] == "image"
            program, *arguments = pool["containerSpec"]["args"]
        else:
            package = pool["pythonPackageSpec"]
            assert package["packageUris"] == ["gs://my-runs/package.tar.gz"]
            program, arguments = f"{package['pythonModule']}.py", package["args"]
        assert (programs.ROOT / program).exists()
        monkeypatch.setenv("AIP_CHECKPOINT_DIR", "run")  # Set by Vertex AI.
        monkeypatch.chdir(programs.ROOT)
        options = programs.options(program.removesuffix(".py"), *arguments)["options"]
        assert options.train_data_pattern == "gs://my-data/frames/train*.tfrecord"


def test_there_are_specs_for_gpus_and_for_several_machines(workplace):
    (pool,) = filled_spec(workplace, "gpus")["workerPoolSpecs"]
    assert pool["machineSpec"]["acceleratorCount"] > 1
    chief, workers = filled_spec(workplace, "machines")["workerPoolSpecs"]
    assert chief["replicaCount"] == 1  # Vertex AI requires this of the first pool.
    assert workers["containerSpec"] == chief["containerSpec"]


def document_blocks():
    """Returns the fenced blocks of docs/cloud.md in order: (language, text)."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", DOCUMENT.read_text(), re.M | re.S)
    return [
        (language, re.sub(f"^{indent}", "", text, flags=re.M)) for indent, language, text in found
    ]


def test_without_arguments_the_command_of_the_document_is_printed(workplace):
    blocks = [text for _, text in document_blocks()]
    shown = [pair for pair in itertools.pairwise(blocks) if "cloud/submit.sh" in pair[0]]
    assert len(shown) == 2
    environment = {"PATH": f"{workplace}/bin:{os.environ['PATH']}"}
    for text, expected in shown:
        command = text[text.index("PROJECT=") :]
        assert run_command("bash", "-c", command, cwd=workplace, env=environment) == expected


def test_only_submit_runs_the_printed_command(workplace):
    printed = submit(workplace, **values_for("gpus"))
    submitted = submit(workplace, "--submit", **values_for("gpus"))
    assert printed.stdout.startswith("gcloud ")
    assert submitted.stdout == f"ran {printed.stdout}"


@pytest.mark.parametrize(
    "arguments",
    ["--dry_run", "--dry-run", "-n", "--submit=true", "submit", "foo --submit", "--submit foo"],
)
def test_unknown_arguments_submit_nothing(workplace, arguments):
    done = submit(workplace, *arguments.split(), **values_for("gpus"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"unknown arguments: {arguments}." in done.stderr


def test_help_needs_no_settings(workplace):
    done = submit(workplace, "--help")
    assert done.returncode == 0
    assert "bash cloud/submit.sh [--submit]" in done.stdout


@pytest.mark.parametrize("value", [None, "", "my values"])
@pytest.mark.parametrize("name", ["PROJECT", "REGION", "IMAGE", "DATA", "OUTPUT", "PACKAGE"])
def test_a_missing_or_wrong_value_is_named(workplace, name, value):
    values = {**values_for("package"), name: value}
    values = {key: value for key, value in values.items() if value is not None}
    done = submit(workplace, "--submit", **values)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Set {name} to " in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("SPEC", "gpu"),
            ("SPEC", "ai_platform"),
            ("RECIPE", "lfnl"),
            ("RECIPE", "../recipes/gru"),
        ),
        *(
            ("JOB", "../job"),
            ("DATA", "/data/frames"),
            ("DATA", "gs://"),
            ("DATA", "gs://a,gs://b"),
        ),
        *(("OUTPUT", "my-runs/run"), ("OUTPUT", "s3://my-runs/run")),
    ],
)
def test_a_wrong_setting_submits_nothing(workplace, name, value):
    done = submit(workplace, "--submit", **{**values_for("gpus"), name: value})
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Set {name} to " in done.stderr
    assert f"Received: '{value}'" in done.stderr
    assert not (workplace / "cloud/jobs").exists()


@pytest.mark.parametrize(
    ("spec", "name"), [("gpus", "PACKAGE"), ("tpu", "PACKAGE"), ("package", "RECIPE")]
)
def test_a_setting_that_the_spec_ignores_is_rejected(workplace, spec, name):
    done = submit(workplace, "--submit", **{**values_for(spec), name: "gs://my-runs/x.tar.gz"})
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cloud/{spec}.yaml does not use {name}." in done.stderr


def test_a_slash_at_the_end_of_a_directory_does_not_double(workplace):
    done = submit(workplace, **{**values_for("gpus"), "DATA": "gs://my-data/frames/"})
    assert done.returncode == 0
    text = (workplace / "cloud/jobs/youtube8m-gpus.yaml").read_text()
    assert "--train_data_pattern=gs://my-data/frames/train*.tfrecord" in text


def test_the_older_command_has_flags_that_exist_and_its_file_parses(monkeypatch):
    (text,) = [text for _, text in document_blocks() if text.startswith("gcloud ai-platform")]
    words = shlex.split(text.replace("\\\n", ""))
    assert "--config=cloud/ai_platform.yaml" in words
    program, *arguments = words[words.index("--") + 1 :]
    monkeypatch.chdir(programs.ROOT)
    programs.options(program.removesuffix(".py"), *arguments)
    assert yaml.safe_load((CLOUD / "ai_platform.yaml").read_text())["trainingInput"]


def test_the_dockerfile_copies_files_that_exist():
    text = (CLOUD / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for pattern in line.split():
            assert list(programs.ROOT.glob(pattern)), pattern


def test_the_image_does_not_run_as_root():
    text = (CLOUD / "Dockerfile").read_text()
    *_, user = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert user == "${RUN_AS}"
    assert "ARG RUN_AS=youtube8m\n" in text
    assert re.search(r"useradd .*\byoutube8m$", text, re.MULTILINE)


def test_directories_of_the_job_are_defaults_of_flags(tmp_path, frame_data, monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", f"{tmp_path}/checkpoints/")
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", f"{tmp_path}/logs/")
    monkeypatch.setenv("AIP_MODEL_DIR", f"{tmp_path}/model/")
    data = f"--train_data_pattern={frame_data}"
    programs.run("train", data, *programs.SMALL_MEAN, "--max_steps=2")
    assert tf.train.latest_checkpoint(f"{tmp_path}/checkpoints")
    assert list((tmp_path / "logs" / "train").glob("events.*"))
    assert not (tmp_path / "checkpoints" / "train").exists()
    programs.run("eval", f"--eval_data_pattern={frame_data}", "--run_once")
    assert (tmp_path / "checkpoints" / "eval" / "metrics.json").exists()
    assert list((tmp_path / "logs" / "eval").glob("events.*"))
    options = programs.options("export_model")["options"]
    assert options.train_dir == f"{tmp_path}/checkpoints/"
    assert options.output_dir == f"{tmp_path}/model/"
    # --exported_model replaces the default of --train_dir.
    arguments = ("--exported_model=model", "--input_data_pattern=x", "--output_file=y")
    assert programs.options("inference", *arguments)["options"].train_dir is None


def test_flags_override_the_environment(monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "/none")
    monkeypatch.setenv("AIP_MODEL_DIR", "/none")
    options = programs.options("export_model", "--train_dir=run", "--output_dir=model")["options"]
    assert (options.train_dir, options.output_dir) == ("run", "model")


def test_the_package_has_every_module_of_the_root():
    text = (programs.ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^py-modules = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1]
    modules = sorted(path.stem for path in programs.ROOT.glob("*.py"))
    assert re.findall(r'"(\w+)"', listed) == modules


def run_command(*command, **options):
    """Runs a command that must succeed and returns its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_archive(folder):
    """Builds the archive of the project, as docs/cloud.md does, and returns its path."""
    source = folder / "source"
    for name in ("requirements", "own_data", "report_page", "segments"):
        shutil.copytree(programs.ROOT / name, source / name)
    for pattern in ("*.py", "*.toml", "requirements.txt", "README.md", "LICENSE"):
        for path in programs.ROOT.glob(pattern):
            shutil.copy(path, source)
    run_command(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=source)
    return source / "dist" / "youtube8m-1.0.0.tar.gz"


def install(archive, folder):
    """Installs the archive into a fresh environment; returns its Python and its site-packages.

    The environment sees the packages of this one, so nothing is downloaded.
    """
    run_command(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    flags = ("-q", "--no-deps", "--no-build-isolation", "--no-index")
    run_command(python, "-m", "pip", "install", *flags, archive, cwd=folder)
    return python, packages


@pytest.mark.slow
def test_the_archive_installs_trains_and_predicts_in_a_fresh_environment(tmp_path, frame_data):
    """Other packages' files *_models.py next to the installed modules are not imported."""
    archive = build_archive(tmp_path)
    with tarfile.open(archive) as content:
        names = {pathlib.PurePath(name).name for name in content.getnames()}
    assert {"train.py", "requirements.txt", "gcs.txt"} <= names
    python, packages = install(archive, tmp_path / "fresh")
    assert (packages / "train.py").exists()
    assert (packages / "report_page" / "templates" / "report.html").exists()
    marker = tmp_path / "foreign"
    (packages / "foreign_models.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run_module(name, *arguments, **variables):
        """Runs `python -m NAME`, as Vertex AI does, away from the project."""
        arguments = [*arguments, f"--train_dir={tmp_path}/run"]
        run_command(python, "-m", name, *arguments, cwd=tmp_path, env=environment | variables)

    run_module("train", f"--train_data_pattern={frame_data}", *programs.SMALL_MEAN, "--max_steps=1")
    assert tf.train.latest_checkpoint(str(tmp_path / "run")).endswith("model.ckpt-1")
    assert not marker.exists()
    output = tmp_path / "predictions.csv"
    given = (f"--input_data_pattern={frame_data}", f"--output_file={output}")
    run_module("inference", *given, YOUTUBE8M_MODELS="foreign_models")
    assert len(programs.prediction_rows(output)) == 1 + 160
    assert marker.exists()


@pytest.mark.slow
def test_paths_of_another_file_system_work(frame_data, tmp_path, monkeypatch):
    """Like a bucket, ram:// is accessible only through TensorFlow's file operations.

    Unlike a bucket it cannot rename directories, so directories are written elsewhere.
    """
    gfile = tf.io.gfile

    def is_directory(path):
        """Replaces isdir of ram://, which is true of any prefix of a file's name."""
        return bool(gfile.glob(f"{path.rstrip('/')}/*"))

    monkeypatch.setattr(gfile, "isdir", is_directory)
    monkeypatch.setattr(checkpoint_utils.gfile, "IsDirectory", is_directory)
    gfile.makedirs("ram://data")
    for path in gfile.glob(frame_data):
        gfile.copy(path, f"ram://data/{os.path.basename(path)}", overwrite=True)
    with gfile.GFile("ram://data/vocabulary.csv", "w") as file:
        file.write("Index,Name\n0,Cat\n")
    data, names = "ram://data/part*", "--class_names=ram://data/vocabulary.csv"
    run, averaged = "--train_dir=ram://run", f"--output_dir={tmp_path}/averaged"
    programs.train_mean("ram://run", data, "--max_steps=4")
    training = ("--num_last=1", f"--train_data_pattern={data}")
    programs.run("average_checkpoints", run, averaged, *training)
    output = ("--per_class_csv=ram://out/classes.csv", "--metrics_json=ram://out/metrics.json")
    programs.run("eval", run, f"--eval_data_pattern={data}", "--run_once", names, *output)
    programs.run("export_model", run, f"--output_dir={tmp_path}/exported", names)
    programs.predict("ram://run", data, "ram://out/predictions.csv.gz")
    with gfile.GFile("ram://out/predictions.csv.gz", "rb") as file:
        assert len(gzip.decompress(file.read()).splitlines()) == 1 + 160
    assert gfile.exists("ram://out/classes.csv")
    assert gfile.exists("ram://run/eval/metrics.json")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs requirements/parquet.txt")
    output = ("ram://out/predictions.parquet", "--output_format=parquet", "--top_k=3")
    programs.predict("ram://run", data, *output, names)
    with gfile.GFile(output[0], "rb") as file:
        assert parquet.read_table(io.BytesIO(file.read())).num_rows == 3 * 160


def test_a_file_system_that_is_not_installed_is_an_input_error():
    with pytest.raises(InputError, match="scheme 'nosuch' not implemented"):
        files.expand_patterns("nosuch://bucket/part*")
