"""The command line: help, unknown flags, errors, models in files of the user."""

import json

import program

import pytest

import documents
import processes
import registry
import train
from programs import ROOT, SMALL_DATA, prediction_rows, run_command, train_mean
from utils import InputError


def test_unknown_flags_are_rejected_with_a_suggestion(tmp_path, frame_data):
    with pytest.raises(InputError, match="Did you mean: dbof_cluster_size"):
        train_mean(tmp_path, frame_data, "--dbof_cluster_sizes=3")


@pytest.mark.slow
def test_bad_input_ends_a_program_with_one_line_and_status_1(tmp_path):
    ended = processes.run(
        "eval", [f"--train_dir={tmp_path}", "--eval_data_pattern=x", "--run_once"]
    )
    assert ended.status == 1
    assert "Traceback" not in ended.text
    assert ended.text.splitlines()[-1].startswith("eval.py: error: ")


def test_help_explains_every_hyperparameter_with_its_default():
    for model in registry.models():
        text = " ".join(program.help_text(train.main, model).split())
        for name, parameter in registry.hyperparameters(model).items():
            assert f"--{name}=" in text or f"--[no]{name}" in text
            assert parameter.help in text
            if parameter.default is not None:
                assert f"Default: {parameter.default}".lower() in text.lower()


# In one process, because starting one takes seconds.
STARTS = """
import contextlib, sys
import keras
import program, train

with contextlib.suppress(SystemExit):
    sys.argv = ["train.py", "--help", "--model=DbofModel"]
    program.run(train.main)
keras.backend.backend = lambda: "jax"
sys.argv = ["other.py"]
program.run(lambda: None)
"""


@pytest.mark.slow
def test_help_is_printed_and_another_backend_of_keras_rejected():
    result = run_command("-c", STARTS)
    assert result.stdout.strip() == program.help_text(train.main, "DbofModel").strip()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("other.py: error: ")
    assert "KERAS_BACKEND=tensorflow" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_readme_model_in_a_new_file_is_a_model_with_flags_in_all_programs(tmp_path, frame_data):
    project = tmp_path / "project"
    project.mkdir()
    for source in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        (project / source.name).write_bytes(source.read_bytes())
    (code,) = [
        block
        for block in documents.code_blocks(ROOT / "README.md", "python")
        if "@registry.register" in block
    ]
    assert len(code.splitlines()) <= 28
    (project / "my_models.py").write_text(code)
    train_dir, output = tmp_path / "run", tmp_path / "p.csv"
    commands = [
        (
            "train",
            "--model=AttentionModel",
            "--attention_units=5",
            f"--train_data_pattern={frame_data}",
            *SMALL_DATA,
            "--batch_size=16",
            "--max_steps=5",
        ),
        ("inference", f"--input_data_pattern={frame_data}", f"--output_file={output}"),
    ]
    # Both programs in one process, because starting one takes seconds.
    code = "import program, train, inference\n"
    for name, *arguments in commands:
        code += f"program.call({name}.main, {[*arguments, f'--train_dir={train_dir}']!r})\n"
    result = run_command("-c", code, cwd=project)
    assert result.returncode == 0, result.stderr
    assert len(prediction_rows(output)) == 161
    config = json.loads((train_dir / "model_flags.json").read_text())
    assert config["hyperparameters"]["attention_units"] == 5
