"""Cloud jobs, as far as they can be checked without an account."""

import gzip
import importlib
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
from absl import flags
from tensorflow.python.training import checkpoint_utils

import export_model
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


def check_flags(program, arguments, monkeypatch):
    """Parses arguments with the flags that a program really has, and returns them."""
    monkeypatch.chdir(programs.ROOT)
    module = importlib.import_module(program.removesuffix(".py"))
    flag_values = flags.FlagValues()
    module.define_flags(flag_values)
    assert flag_values([program, *arguments]) == [program]
    return flag_values


@pytest.fixture
def workplace(tmp_path):
    """A directory with what submit.sh uses, to which it may write."""
    shutil.copytree(CLOUD, tmp_path / "cloud", ignore=shutil.ignore_patterns("jobs"))
    shutil.copytree(programs.ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def submit(workplace, *arguments, **values):
    return subprocess.run(
        ["bash", "cloud/submit.sh", *arguments],
        cwd=workplace,
        env={"PATH": os.environ["PATH"], **values},
        capture_output=True,
        text=True,
        check=False,
    )


def filled_spec(workplace, name):
    done = submit(workplace, "--dry_run", **VALUES, SPEC=name)
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
        flag_values = check_flags(program, arguments, monkeypatch)
        assert flag_values.train_data_pattern == "gs://my-data/frames/train*.tfrecord"


def test_there_are_specs_of_gpus_and_of_several_machines(workplace):
    (pool,) = filled_spec(workplace, "gpus")["workerPoolSpecs"]
    assert pool["machineSpec"]["acceleratorCount"] > 1
    chief, workers = filled_spec(workplace, "machines")["workerPoolSpecs"]
    assert chief["replicaCount"] == 1  # What Vertex AI asks of the first pool.
    assert workers["containerSpec"] == chief["containerSpec"]


def document_blocks():
    """Fenced blocks of docs/cloud.md, in order: (language, text)."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", DOCUMENT.read_text(), re.M | re.S)
    return [
        (language, re.sub(f"^{indent}", "", text, flags=re.M)) for indent, language, text in found
    ]


def test_a_dry_run_prints_the_command_of_the_document(workplace):
    blocks = document_blocks()
    shown = [
        (text, blocks[number + 1][1])
        for number, (_, text) in enumerate(blocks)
        if "--dry_run" in text
    ]
    assert len(shown) == 2
    for text, expected in shown:
        command = text[text.index("PROJECT=") :]
        done = subprocess.run(
            ["bash", "-c", command], cwd=workplace, capture_output=True, text=True, check=True
        )
        assert done.stdout == expected


def test_submitting_runs_that_command(workplace):
    fake = workplace / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho gcloud "$@"\n')
    fake.chmod(0o755)
    real = submit(workplace, **VALUES, PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert real.stdout == submit(workplace, "--dry_run", **VALUES).stdout


@pytest.mark.parametrize("missing", ["PROJECT", "REGION", "IMAGE", "DATA", "OUTPUT"])
def test_a_missing_value_is_named(workplace, missing):
    values = {name: value for name, value in VALUES.items() if name != missing}
    done = submit(workplace, "--dry_run", **values)
    assert done.returncode != 0
    assert f"Set {missing} to" in done.stderr or f"Set {missing}," in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("name", "value"), [("SPEC", "gpu"), ("RECIPE", "lfnl")])
def test_a_wrong_name_is_refused(workplace, name, value):
    done = submit(workplace, "--dry_run", **VALUES, **{name: value})
    assert done.returncode != 0
    assert value in done.stderr


def test_the_older_command_has_flags_that_exist_and_its_file_parses(monkeypatch):
    (text,) = [text for _, text in document_blocks() if text.startswith("gcloud ai-platform")]
    words = shlex.split(text.replace("\\\n", ""))
    assert "--config=cloud/ai_platform.yaml" in words
    program, *arguments = words[words.index("--") + 1 :]
    check_flags(program, arguments, monkeypatch)
    assert yaml.safe_load((CLOUD / "ai_platform.yaml").read_text())["trainingInput"]


def test_the_dockerfile_copies_what_there_is():
    text = (CLOUD / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for pattern in line.split():
            assert list(programs.ROOT.glob(pattern)), pattern


def test_directories_of_the_job_are_the_defaults_of_flags(tmp_path, frame_data, monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", f"{tmp_path}/checkpoints/")
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", f"{tmp_path}/logs/")
    monkeypatch.setenv("AIP_MODEL_DIR", f"{tmp_path}/model/")
    data = f"--train_data_pattern={frame_data}"
    programs.run("train", data, *programs.SMALL_DBOF, "--max_steps=2")
    assert tf.train.latest_checkpoint(f"{tmp_path}/checkpoints")
    assert list((tmp_path / "logs" / "train").glob("events.*"))
    assert not (tmp_path / "checkpoints" / "train").exists()
    programs.run("eval", f"--eval_data_pattern={frame_data}", "--run_once")
    assert (tmp_path / "checkpoints" / "eval" / "metrics.json").exists()
    assert list((tmp_path / "logs" / "eval").glob("events.*"))
    programs.run(export_model)
    assert (tmp_path / "model" / "manifest.json").exists()
    # What predicts is said by another flag, which counts.
    output = f"--output_file={tmp_path}/predictions.csv"
    inputs = f"--input_data_pattern={frame_data}"
    programs.run("inference", f"--exported_model={tmp_path}/model", inputs, output)


def test_flags_count_more_than_the_environment(tmp_path, trained, monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "none"))
    programs.run("export_model", f"--train_dir={trained}", f"--output_dir={tmp_path}/model")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_archive_installs_and_trains_in_a_fresh_environment(tmp_path, frame_data):
    """The environment sees this one's packages, so that nothing is downloaded."""
    source = tmp_path / "source"
    names = [*programs.ROOT.glob("*.py"), *programs.ROOT.glob("requirements*.txt")]
    source.mkdir()
    for path in [*names, programs.ROOT / "MANIFEST.in", programs.ROOT / "README.md"]:
        shutil.copy(path, source)
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, **run)
    (archive,) = (source / "dist").glob("youtube8m-1.0.tar.gz")
    with tarfile.open(archive) as content:
        names = {pathlib.PurePath(name).name for name in content.getnames()}
    assert {"train.py", "requirements.txt"} <= names

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], **run)
    python = tmp_path / "fresh" / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = pathlib.Path(subprocess.run(asked, **run).stdout.strip())
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([python, *install, archive], cwd=tmp_path, **run)
    assert (packages / "train.py").exists()

    def trains(*arguments):
        """Runs `python -m train`, as Vertex AI does, away from the project."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [python, "-m", "train", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    assert "--train_data_pattern" in trains("--help").stdout
    done = trains(
        f"--train_data_pattern={frame_data}",
        f"--train_dir={tmp_path}/run",
        *programs.SMALL_DBOF,
        "--max_steps=1",
    )
    assert done.returncode == 0, done.stderr
    assert tf.train.latest_checkpoint(str(tmp_path / "run")).endswith("model.ckpt-1")


def test_paths_of_another_file_system_are_taken(frame_data, tmp_path, monkeypatch):
    """In TensorFlow's memory, which only its own file operations reach, as a bucket.

    It cannot rename directories, as a bucket can: what writes one writes it elsewhere.
    """
    gfile = tf.io.gfile

    def is_directory(path):
        """What it says itself is true of any beginning of a file's name."""
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
    programs.run(
        "train", f"--train_data_pattern={data}", run, *programs.SMALL_DBOF, "--max_steps=4"
    )
    programs.run(
        "average_checkpoints", run, "--num_last=1", averaged, f"--train_data_pattern={data}"
    )
    programs.run(
        "eval",
        run,
        f"--eval_data_pattern={data}",
        "--run_once",
        names,
        "--per_class_csv=ram://out/classes.csv",
        "--metrics_json=ram://out/metrics.json",
    )
    programs.run("export_model", run, f"--output_dir={tmp_path}/exported", names)
    programs.run(
        "inference",
        run,
        f"--input_data_pattern={data}",
        "--output_file=ram://out/predictions.csv.gz",
    )
    with gfile.GFile("ram://out/predictions.csv.gz", "rb") as file:
        assert len(gzip.decompress(file.read()).splitlines()) == 1 + 160
    assert gfile.exists("ram://out/classes.csv")
    assert gfile.exists("ram://run/eval/metrics.json")


def test_a_file_system_that_is_not_installed_is_an_input_error():
    with pytest.raises(InputError, match="scheme 'nosuch' not implemented"):
        files.expand_patterns("nosuch://bucket/part*")
