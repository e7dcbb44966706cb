"""What README, docs and scripts show must work."""

import importlib
import re

import pytest
from absl import flags

import documents
import sample_records

COMMANDS = [
    (path.name, command) for path in documents.SOURCES for command in documents.commands(path)
]


def test_there_are_commands_to_check():
    names = {name for name, _ in COMMANDS}
    assert {"README.md", "demo.sh", "train.py"} <= names


@pytest.mark.parametrize(
    ("source", "command"), COMMANDS, ids=[f"{name}-{' '.join(c)[:60]}" for name, c in COMMANDS]
)
def test_commands_have_only_flags_that_exist(source, command, monkeypatch):
    _, script, *arguments = command
    assert (documents.ROOT / script).exists()
    if "/" in script or script == "setup.py":
        return  # Benchmarks define their flags for themselves.
    program = importlib.import_module(script.removesuffix(".py"))
    flag_values = flags.FlagValues()
    program.define_flags(flag_values)
    # The flag of the README's own model exists only where that model does.
    arguments = [argument for argument in arguments if "--attention_units" not in argument]
    monkeypatch.chdir(documents.ROOT)
    assert flag_values([script, *arguments]) == [script]


def test_flags_in_the_readme_exist():
    known = {"--flagfile", "--help", "--attention_units", "--logdir", "--dry_run", "--quick"}
    for path in documents.ROOT.glob("*.py"):
        if "program.run(main" not in path.read_text():
            continue
        name, flag_values = path.stem, flags.FlagValues()
        importlib.import_module(name).define_flags(flag_values)
        known |= {f"--{flag}" for flag in flag_values} | {f"--no{flag}" for flag in flag_values}
    text = (documents.ROOT / "README.md").read_text()
    text = re.sub(r'--beam_options="[^"]*"', "--beam_options", text)  # Those flags are Beam's.
    assert set(re.findall(r"--[a-z_]+", text)) <= known


def test_the_readme_lists_every_module_and_folder():
    text = (documents.ROOT / "README.md").read_text()
    modules = {path.name for path in documents.ROOT.glob("*.py")}
    assert modules == set(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE))


# Keras warns of its own default for `shuffle`, and that it did not know the length of the data.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = [
        block
        for block in documents.code_blocks(documents.ROOT / "README.md", "python")
        if "model.fit" in block
    ]
    (tmp_path / "data").mkdir()
    sizes = (1024, 128)
    sample_records.write_frame_files(tmp_path / "data", 1, 8, sizes=sizes)
    (tmp_path / "data" / "part000.tfrecord").rename(tmp_path / "data" / "train0.tfrecord")
    monkeypatch.chdir(tmp_path)
    train = importlib.import_module("train")
    config = train.RunConfig(
        "DbofModel",
        hyperparameters={"dbof_cluster_size": 16, "dbof_hidden_size": 8},
        batch_size=4,
    )
    train.train(config, train_data_pattern="data/train*", train_dir="run", max_steps=1)
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["probabilities"].shape == (8, 3862)
