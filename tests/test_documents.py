"""Commands, code, flags and links in README, docs and scripts work; --help is complete."""

import importlib
import json
import re
import shutil

import program

import keras
import numpy as np
import pytest
from absl import flags

import documents
import programs
import registry
import run_config
import sample_records
import train

COMMANDS = [
    (path.name, command) for path in documents.SOURCES for command in documents.commands(path)
]
GROUPS = ["Programs", "Models", "Data", "Numbers", "A run", "Prediction", "Base"]
FLAG_DOCUMENTS = [
    "distribution",
    "export",
    "extract_features",
    "flags",
    "own_data",
    "own_models",
    "security",
    "training",
]
# Flags of the model and the loss in docs/own_models.md, which do not exist here.
EXAMPLE_FLAGS = ("--attention_units", "--label_factor")
# Flags of absl, TensorBoard and the scripts.
OTHER_FLAGS = {"--flagfile", "--help", "--logdir", "--submit", "--quick", "--fast"}
# Flags of TensorFlow Serving and Triton.
OTHER_FLAGS |= {"--model_name", "--model_base_path", "--rest_api_port", "--port", "--model"}


def test_there_are_commands_to_check():
    names = {name for name, _ in COMMANDS}
    assert {"README.md", "demo.sh", "train.py"} <= names


@pytest.mark.parametrize(
    ("source", "command"), COMMANDS, ids=[f"{name}-{' '.join(c)[:60]}" for name, c in COMMANDS]
)
def test_commands_parse(source, command, monkeypatch):
    _, script, *arguments = command
    path = documents.ROOT / script
    assert path.exists()
    if script.startswith(("real_data/", "study/", "tests/")):
        return  # Run by other tests.
    monkeypatch.chdir(documents.ROOT)
    monkeypatch.syspath_prepend(str(path.parent))
    main = importlib.import_module(path.stem).main
    if "..." not in arguments:
        program.parse_options(main, arguments)
        return
    arguments = [
        argument for argument in arguments if not argument.startswith(("...", *EXAMPLE_FLAGS))
    ]
    flag_values = flags.FlagValues()
    program.define_flags(main, flag_values)
    assert flag_values([script, *arguments]) == [script]


@pytest.fixture(scope="module")
def known_flags():
    """Returns the flags of all programs, with leading hyphens."""
    known = set()
    for path in documents.ROOT.glob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text():
            flag_values = flags.FlagValues()
            program.define_flags(importlib.import_module(path.stem).main, flag_values)
            known |= {f"--{flag}" for flag in flag_values} | {f"--no{flag}" for flag in flag_values}
    return known


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}.md" for name in FLAG_DOCUMENTS)])
def test_flags_in_documents_exist(name, known_flags):
    text = (documents.ROOT / name).read_text()
    text = re.sub(r'--beam_options="[^"]*"', "--beam_options", text)  # Those flags are Beam's.
    named = set(re.findall(r"--[a-z]\w*", text))
    assert named
    assert named <= known_flags | OTHER_FLAGS | {*EXAMPLE_FLAGS}


def test_the_readme_lists_every_module_by_group():
    text = (documents.ROOT / "README.md").read_text()
    modules = sorted(path.name for path in documents.ROOT.glob("*.py"))
    text = text.partition("\n## Files\n")[2]
    assert sorted(re.findall(r"`(\w+\.py)`:", text)) == modules
    assert re.findall(r"^- \*\*([\w ]+)\.\*\*", text, re.MULTILINE) == GROUPS


def test_every_file_of_requirements_is_an_extra_of_the_package():
    text = (documents.ROOT / "pyproject.toml").read_text()
    extras = dict(
        re.findall(r'^(\w+) = \{ file = "requirements/(\w+)\.txt" \}$', text, re.MULTILINE)
    )
    names = [path.stem for path in sorted((documents.ROOT / "requirements").glob("*.txt"))]
    assert extras == {name: name for name in names}


def test_help_explains_every_hyperparameter_with_its_default():
    for model in registry.models():
        text = " ".join(program.help_text(train.main, model).split())
        for name, parameter in registry.hyperparameters(model).items():
            assert f"--{name}=" in text or f"--[no]{name}" in text
            assert parameter.help in text
            if parameter.default is not None:
                assert f"Default: {parameter.default}".lower() in text.lower()


@pytest.mark.parametrize(
    "path", documents.DOCUMENTS, ids=lambda path: str(path.relative_to(documents.ROOT))
)
def test_links_resolve(path):
    for link in documents.links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in documents.anchors(target), link


@pytest.mark.slow
def test_the_python_with_fit_runs(tmp_path, monkeypatch):
    code = documents.own_models_python("model.fit")
    data = tmp_path / "data"
    data.mkdir()
    sample_records.write_frame_files(data, 1, 8, sizes=(1024, 128))
    (data / "part000.tfrecord").rename(data / "train0.tfrecord")
    (data / "validate0.tfrecord").write_bytes((data / "train0.tfrecord").read_bytes())
    monkeypatch.chdir(tmp_path)
    small = {"dbof_cluster_size": 16, "dbof_hidden_size": 8}
    config = run_config.RunConfig("DbofModel", hyperparameters=small, batch_size=4)
    options = run_config.TrainOptions(
        train_data_pattern="data/train*", train_dir="run", max_steps=1
    )
    train.train(config, options)
    full_size = '{"dbof_cluster_size": 2048}'
    assert full_size in code
    scope = {}
    exec(compile(code.replace(full_size, repr(small)), "own_models.md", "exec"), scope)
    assert scope["probabilities"].shape == (8, 3862)
    assert keras.models.load_model("dbof.keras").num_classes == 3862


def test_the_example_loss_is_a_loss_with_a_flag(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {**registry.models(), **registry.losses()})
    code = documents.own_models_python("class SquaredLoss")
    assert len(code.splitlines()) <= 22
    exec(compile(code, "own_models.md", "exec"), {"__name__": "my_losses"})
    given = ("--model=MoeModel", "--label_loss=SquaredLoss", "--label_factor=5")
    options = programs.options("train", *given, "--train_dir=run", "--train_data_pattern=data")
    loss = options["config"].build_loss()
    labels, predictions = np.array([[1.0, 0.0]]), np.array([[0.5, 0.25]])
    assert float(loss(labels, predictions)) == 5 * 0.25 + 0.0625
    assert float(loss(labels, predictions, np.array([[0.0, 2.0]]))) == 0.125


@pytest.mark.slow
def test_the_example_model_in_a_new_file_is_a_model_with_flags_in_all_programs(
    tmp_path, frame_data
):
    project = tmp_path / "project"
    project.mkdir()
    for source in [*documents.ROOT.glob("*.py"), documents.ROOT / "pyproject.toml"]:
        (project / source.name).write_bytes(source.read_bytes())
    for package in ("own_data", "segments"):
        shutil.copytree(documents.ROOT / package, project / package)
    code = documents.own_models_python("class AttentionModel")
    assert len(code.splitlines()) <= 28
    (project / "my_models.py").write_text(code)
    train_dir, output = tmp_path / "run", tmp_path / "p.csv"
    run, model = f"--train_dir={train_dir}", ("--model=AttentionModel", "--attention_units=5")
    size = (*programs.SMALL_DATA, "--batch_size=16", "--max_steps=5")
    training = [run, f"--train_data_pattern={frame_data}", *model, *size]
    prediction = [run, f"--input_data_pattern={frame_data}", f"--output_file={output}"]
    # Both programs in one process, because starting one takes seconds.
    code = "import program, train, inference\n"
    code += f"program.call(train.main, {training!r})\n"
    code += f"program.call(inference.main, {prediction!r})\n"
    result = programs.run_command("-c", code, cwd=project)
    assert result.returncode == 0, result.stderr
    assert len(programs.prediction_rows(output)) == 161
    config = json.loads((train_dir / "model_flags.json").read_text())
    assert config["hyperparameters"]["attention_units"] == 5
