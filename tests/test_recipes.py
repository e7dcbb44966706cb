"""Recipes: the settings of the paper, sizes that fit it, commands that parse."""

import dataclasses
import re

import keras
import pytest

import documents
import programs

RECIPES = {path.stem: path for path in sorted((documents.ROOT / "recipes").glob("*.flags"))}
EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)

MOE = {
    "video_level_classifier_model": "MoeModel",
    "moe_num_mixtures": 2,
    "moe_prob_gating": False,
    "moe_l2": 1e-6,
}
ALL_FRAMES = {"iterations": 0, "sample_random_frames": True, **MOE}
SAMPLED = {**ALL_FRAMES, "iterations": 300}
SOFT_BOF = {**SAMPLED, "soft_bof_hidden_size": 1024, "gating": False}
NETVLAD = {
    **SAMPLED,
    "early_fusion": False,
    "netvlad_cluster_size": "64,32",
    "netvlad_centers": True,
    "netvlad_hidden_size": 1024,
    "nonlocal_block": True,
    "nonlocal_embedding": "64,32",
    "nonlocal_pairwise": "embedded_gaussian",
    "nonlocal_scale": None,
    "gating": True,
    "moe_prob_gating": True,
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected content of a recipe.

    `parameters` is in millions. `gap` holds the GAP of a single checkpoint and of averaged ones.
    """

    model: str
    hyperparameters: dict
    batch_size: int
    decay: float
    steps: int
    parameters: float
    mib: float
    gap: tuple = ()
    learning_rate: float = 2e-4
    decay_examples: int = 4_000_000
    data: tuple = (("rgb", "audio"), (1024, 128), 3862, 300)


# The first six are the table of the paper: https://arxiv.org/abs/1810.00207.
EXPECTED = {
    "lfnl_netvlad": Expected(
        "LFNLNetVLADModel",
        {**NETVLAD, "nonlocal_scale": 1 / 64, "moe_num_mixtures": 8},
        *(80, 0.8, 700_000, 155.0, 591),
        gap=("0.8703", "0.8716"),
    ),
    "lfnl_netrvlad": Expected(
        "LFNLNetRVLADModel",
        {
            **NETVLAD,
            "netvlad_centers": False,
            "nonlocal_embedding": "512,64",
            "moe_num_mixtures": 4,
        },
        *(80, 0.8, 700_000, 125.1, 477),
        gap=("0.8687", "0.8704"),
    ),
    "efnl_netvlad": Expected(
        "EFNLNetVLADModel",
        {
            **NETVLAD,
            "early_fusion": True,
            "netvlad_cluster_size": "64",
            "nonlocal_embedding": "64",
        },
        *(80, 0.8, 700_000, 111.7, 426),
        gap=("0.8674", "0.8704"),
    ),
    "soft_bof_4k": Expected(
        "SoftBoFModel",
        {**SOFT_BOF, "soft_bof_cluster_size": "4000,500"},
        *(80, 0.9, 800_000, 28.6, 109),
        gap=("0.8525", "0.8574"),
    ),
    "soft_bof_8k": Expected(
        "SoftBoFModel",
        {**SOFT_BOF, "soft_bof_cluster_size": "8000,1000"},
        *(80, 0.9, 800_000, 37.4, 142.5),
        gap=("0.8512", "0.8563"),
    ),
    "gru": Expected(
        "GruModel",
        {**ALL_FRAMES, "gru_cells": 1200, "gru_layers": 2},
        *(128, 0.9, 300_000, 63.5, 242),
        gap=("0.8568", "0.8612"),
    ),
    "video_moe": Expected(
        "MoeModel",
        {"moe_num_mixtures": 2, "moe_prob_gating": False, "moe_l2": 1e-8},
        *(1024, 0.95, 20_000, 22.25, 84.9),
        learning_rate=0.01,
        data=(("mean_rgb", "mean_audio"), (1024, 128), 3862, 300),
    ),
    "small_lfnl_netvlad": Expected(
        "LFNLNetVLADModel",
        {
            **NETVLAD,
            "iterations": 60,
            "netvlad_cluster_size": "32,16",
            "netvlad_hidden_size": 128,
            "nonlocal_embedding": "32,16",
            "nonlocal_scale": 1 / 64,
        },
        *(128, 0.8, 700, 0.4182, 1.595),
        learning_rate=0.003,
        decay_examples=7_000,
        data=(("rgb", "audio"), (64, 16), 120, 60),
    ),
    "small_moe": Expected(
        "FrameLevelLogisticModel",
        ALL_FRAMES,
        *(128, 0.8, 800, 0.04824, 0.184),
        learning_rate=0.1,
        decay_examples=12_800,
        data=(("rgb", "audio"), (64, 16), 120, 60),
    ),
}
OF_THE_PAPER = {name for name, expected in EXPECTED.items() if expected.gap}


def parsed(name, *more):
    """Returns the config and the options of train.py that a recipe sets."""
    arguments = (f"--flagfile={RECIPES[name]}", "--train_data_pattern=data", "--train_dir=run")
    found = programs.options("train", *arguments, *more)
    return found["config"], found["options"]


def header(name):
    """Returns the comment at the top of a recipe as one line."""
    comment, _, _ = RECIPES[name].read_text().partition("\n\n")
    return " ".join(re.sub(r"^#", "", comment, flags=re.MULTILINE).split())


@pytest.fixture(scope="module")
def sizes():
    """Returns the parameters of every recipe's model, built without memory for its weights."""
    found = {}
    for name in RECIPES:
        config, _ = parsed(name)
        with keras.StatelessScope(initialize_variables=False):
            found[name] = config.build_model().count_params()
    # Otherwise Keras creates all these weights when the next model is built.
    keras.utils.clear_session()
    return found


def test_the_table_covers_every_recipe():
    assert set(EXPECTED) == set(RECIPES)
    assert len(OF_THE_PAPER) == 6


@EVERY_RECIPE
def test_a_recipe_has_the_settings_of_the_table(name):
    (config, options), expected = parsed(name), EXPECTED[name]
    assert (config.model, config.hyperparameters) == (expected.model, expected.hyperparameters)
    assert (config.batch_size, config.learning_rate_decay) == (expected.batch_size, expected.decay)
    assert config.base_learning_rate == expected.learning_rate
    assert config.learning_rate_decay_examples == expected.decay_examples
    assert (config.optimizer, config.label_loss) == ("Adam", "CrossEntropyLoss")
    assert (config.clip_gradient_norm, config.regularization_penalty) == (1.0, 1.0)
    data = (config.feature_names, config.feature_sizes, config.num_classes, config.max_frames)
    assert data == expected.data
    assert options.max_steps == expected.steps
    assert options.keep_checkpoints == 20


@EVERY_RECIPE
def test_only_steps_end_a_run(name):
    _, options = parsed(name)
    assert options.max_steps > 0
    assert options.num_epochs == 0


@EVERY_RECIPE
def test_a_recipe_states_every_hyperparameter_that_matters(name):
    """A change of defaults must not change a recipe."""
    config, _ = parsed(name)
    values = config.hyperparameters
    flags = set(re.findall(r"^--(\w+)", RECIPES[name].read_text(), re.MULTILINE))
    missing = set(values) - flags - {flag.removeprefix("no") for flag in flags}
    if values.get("iterations") == 0:
        missing.discard("sample_random_frames")  # All frames are used.
    if values.get("nonlocal_scale", 0) is None:
        missing.discard("nonlocal_scale")  # No flag sets None.
    assert not missing


@pytest.mark.slow
def test_sizes_are_those_of_the_paper(sizes):
    for name, expected in EXPECTED.items():
        assert sizes[name] == pytest.approx(expected.parameters * 1e6, rel=0.005)
        assert sizes[name] * 4 / 2**20 == pytest.approx(expected.mib, rel=0.005)
    total = sum(sizes[name] for name in OF_THE_PAPER) * 4 / 2**20
    assert total == pytest.approx(1988, rel=0.005)


@pytest.mark.slow
def test_the_comment_of_a_recipe_states_size_steps_and_gap(sizes):
    for name, expected in EXPECTED.items():
        text = header(name)
        size = f"{sizes[name]:,}" if sizes[name] < 1e6 else f"{sizes[name] / 1e6:.1f} M"
        assert f"Size: {size} parameters" in text
        if sizes[name] >= 1e6:
            assert f"{round(sizes[name] * 4 / 2**20)} MiB in float32" in text
        assert f"Steps: {expected.steps:,} batches of {expected.batch_size} videos" in text
        assert "GAP@20" in text
        assert all(gap in text for gap in expected.gap)
        measured = r"Speed: [\d.]+ examples/s in training and \d+ in prediction, .* on two cores"
        if name in OF_THE_PAPER:
            assert re.search(measured, text)
            assert "see docs/performance.md" in text


def test_flags_after_the_recipe_win():
    config, _ = parsed("gru", "--batch_size=7", "--gru_cells=9", "--num_classes=5")
    assert (config.batch_size, config.num_classes) == (7, 5)
    assert config.hyperparameters["gru_cells"] == 9


@pytest.mark.parametrize("name", [*RECIPES, "README"])
def test_commands_parse(name, tmp_path, monkeypatch):
    if name == "README":
        commands = documents.commands(documents.ROOT / "recipes" / "README.md")
        scripts = ["train.py", "model_info.py"]
    else:
        script = tmp_path / "commands.sh"
        script.write_text(re.sub(r"^# ?", "", RECIPES[name].read_text(), flags=re.MULTILINE))
        commands = documents.commands(script)
        scripts = ["train.py", "eval.py"]
        if name.startswith("small_"):
            scripts = ["make_sample_data.py", *scripts]
        if name in OF_THE_PAPER:
            scripts = [*scripts, "average_checkpoints.py"]
    assert [command[1] for command in commands] == scripts
    monkeypatch.chdir(documents.ROOT)
    train_dirs = set()
    for _, script, *arguments in commands:
        found = programs.options(script.removesuffix(".py"), *arguments)
        if script in ("train.py", "eval.py", "average_checkpoints.py"):
            train_dirs.add(found["options"].train_dir)
        if script == "train.py" and name != "README":
            assert found["config"] == parsed(name)[0]
    assert len(train_dirs) == 1


def test_the_readme_lists_every_recipe_with_its_gap():
    text = (documents.ROOT / "recipes" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)\.flags` \|.*\| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == set(RECIPES)
    assert all(rows[name] == EXPECTED[name].gap[0] for name in OF_THE_PAPER)
