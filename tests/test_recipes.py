"""Recipes: the settings of the paper, sizes that fit it, commands that parse."""

import dataclasses
import re

import keras
import pytest

import documents
import programs
import registry

RECIPES = {path.stem: path for path in sorted((documents.ROOT / "recipes").glob("*.flags"))}
EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)

MOE = {
    "video_level_classifier_model": "MoeModel",
    "moe_num_mixtures": 2,
    "moe_prob_gating": False,
    "moe_l2": 1e-6,
}
ALL_FRAMES = {
    "normalize_frames": "l2",
    "iterations": 0,
    "sample_random_frames": True,
    "classifier_dropout": 0.0,
    **MOE,
}
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
    "nonlocal_normalize": False,
    "nonlocal_start": "paper",
    "nonlocal_attention": "softmax",
    "nonlocal_scale": None,
    "gating": True,
    "moe_prob_gating": True,
}


NEXTVLAD = {
    "normalize_frames": "none",
    "iterations": 0,
    "sample_random_frames": True,
    "nextvlad_expansion": 2,
    "nextvlad_groups": "8,4",
    "nextvlad_cluster_size": "128,64",
    "nextvlad_hidden_size": 2048,
    "gating_reduction": 8,
    "nextvlad_dropout": 0.5,
    "l2_penalty": 1e-5,
}
NEXTVLAD_STEPS = (160, 0.8, 120_000)


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected content of a recipe.

    Of the paper's table are `mib`, the size, and `gap`, the GAP of one checkpoint and of averaged
    ones.
    """

    model: str
    hyperparameters: dict
    batch_size: int
    decay: float
    steps: int
    parameters: int
    mib: int = 0
    gap: tuple = ()
    learning_rate: float = 2e-4
    decay_examples: int = 4_000_000
    segments: bool = False
    data: tuple = (("rgb", "audio"), (1024, 128), 3862, 300)


# The first six are the table of the paper: https://arxiv.org/abs/1810.00207.
EXPECTED = {
    "lfnl_netvlad": Expected(
        "LFNLNetVLADModel",
        {**NETVLAD, "nonlocal_scale": 1 / 64, "moe_num_mixtures": 8},
        *(80, 0.8, 700_000, 154_970_737, 593),
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
        *(80, 0.8, 700_000, 125_099_545, 478),
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
        *(80, 0.8, 700_000, 111_710_060, 427),
        gap=("0.8674", "0.8704"),
    ),
    "soft_bof_4k": Expected(
        "SoftBoFModel",
        {**SOFT_BOF, "soft_bof_cluster_size": "4000,500"},
        *(80, 0.9, 800_000, 28_572_799, 109),
        gap=("0.8525", "0.8574"),
    ),
    "soft_bof_8k": Expected(
        "SoftBoFModel",
        {**SOFT_BOF, "soft_bof_cluster_size": "8000,1000"},
        *(80, 0.9, 800_000, 37_358_799, 143),
        gap=("0.8512", "0.8563"),
    ),
    "gru": Expected(
        "GruModel",
        {**ALL_FRAMES, "gru_cells": 1200, "gru_layers": 2},
        *(128, 0.9, 300_000, 63_466_124, 243),
        gap=("0.8568", "0.8612"),
    ),
    "lfnl_netvlad_normalized": Expected(
        "LFNLNetVLADModel",
        {
            **NETVLAD,
            "nonlocal_pairwise": "dot_product",
            "nonlocal_normalize": True,
            "nonlocal_start": "identity",
            "nonlocal_scale": 0.125,
            "moe_num_mixtures": 8,
        },
        *(80, 0.8, 700_000, 154_970_737),
    ),
    "netfv": Expected(
        "NetFVModel",
        {
            **SAMPLED,
            "fv_cluster_size": "128,64",
            "fv_hidden_size": 1024,
            "fv_second_order_norm": "global",
            "gating": True,
            "moe_prob_gating": True,
        },
        *(80, 0.8, 600_000, 321_401_197),
    ),
    "gated_dbof": Expected(
        "GatedDbofModel",
        {
            **SAMPLED,
            "gated_dbof_cluster_size": "4096,512",
            "gated_dbof_hidden_size": 1024,
            "gated_dbof_streams": 1,
            "gating": False,
        },
        *(80, 0.95, 1_000_000, 37_188_656),
    ),
    "transformer": Expected(
        "TransformerModel",
        {
            **ALL_FRAMES,
            "transformer_units": 512,
            "transformer_layers": 4,
            "transformer_heads": 8,
            "transformer_hidden_size": 2048,
            "transformer_dropout": 0.1,
            "transformer_positions": 300,
            "transformer_pooling": "attention",
            "transformer_queries": 4,
        },
        *(80, 0.8, 300_000, 52_912_172),
    ),
    "nextvlad": Expected(
        "NeXtVLADModel", NEXTVLAD, *NEXTVLAD_STEPS, 88_970_279, decay_examples=2_000_000
    ),
    "mix_nextvlad": Expected(
        "MixNeXtVLADModel",
        {
            **NEXTVLAD,
            "nextvlad_cluster_size": "112,56",
            "gating_reduction": 16,
            "num_branches": 3,
            "distillation_weight": 9.0,
            "distillation_temperature": 3.0,
        },
        *NEXTVLAD_STEPS,
        236_150_905,
        decay_examples=2_500_000,
    ),
    "video_moe": Expected(
        "MoeModel",
        {"moe_num_mixtures": 2, "moe_prob_gating": False, "moe_l2": 1e-8},
        *(1024, 0.95, 20_000, 22_252_844),
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
        *(128, 0.8, 700, 418_197),
        learning_rate=0.003,
        decay_examples=7_000,
        data=(("rgb", "audio"), (64, 16), 120, 60),
    ),
    "small_moe": Expected(
        "FrameLevelLogisticModel",
        ALL_FRAMES,
        *(128, 0.8, 800, 48_240),
        learning_rate=0.1,
        decay_examples=12_800,
        data=(("rgb", "audio"), (64, 16), 120, 60),
    ),
}
# The same models, of fewer frames, fine-tuned on segments.
EXPECTED |= {
    f"{name}_segments": dataclasses.replace(
        EXPECTED[name],
        hyperparameters=EXPECTED[name].hyperparameters | {"iterations": 0},
        **{"batch_size": 512, "decay": 0.8, "steps": 5000, "decay_examples": 1_000_000},
        **{"mib": 0, "gap": (), "segments": True},
    )
    for name in ("lfnl_netvlad", "nextvlad", "gru", "transformer")
}
# What a dataset.json states.
DATA = ("feature_sizes", "num_classes", "max_frames")
OF_THE_PAPER = {name for name, expected in EXPECTED.items() if expected.gap}


def parsed(name, *more):
    """Returns the config and the options of train.py that a recipe sets, on its data."""
    _, sizes, num_classes, max_frames = EXPECTED[name].data
    data = (
        f"--feature_sizes={','.join(map(str, sizes))}",
        f"--num_classes={num_classes}",
        f"--max_frames={max_frames}",
    )
    arguments = (f"--flagfile={RECIPES[name]}", "--train_data_pattern=data", "--train_dir=run")
    found = programs.options("train", *arguments, *data, *more)
    return found["config"], found["options"]


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
    assert (options.max_steps, options.num_epochs) == (expected.steps, 0)  # Only steps end a run.
    assert options.keep_checkpoints == (1 if expected.segments else 20)  # Or only the best.
    found = config.segment_labels, config.segment_context, config.segment_mined_weight
    assert found == ((True, 3, 0.5) if expected.segments else (False, 0, 0.0))


@pytest.mark.parametrize("name", ["gated_dbof", "netfv", *sorted(OF_THE_PAPER - {"soft_bof_8k"})])
def test_defaults_of_a_model_are_those_of_its_authors(name):
    assert registry.resolve(EXPECTED[name].model, {}) == EXPECTED[name].hyperparameters


@EVERY_RECIPE
def test_a_recipe_trains_on_any_data(name):
    text = RECIPES[name].read_text()
    flags = set(re.findall(r"^--(\w+)", text, re.MULTILINE))
    assert not flags & {"feature_names", "feature_sizes", "num_classes", "max_frames"}


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
@EVERY_RECIPE
def test_a_model_has_the_exact_number_of_parameters(name):
    with keras.StatelessScope(initialize_variables=False):  # Without memory for the weights.
        model = parsed(name)[0].build_model()
    # Otherwise Keras creates these weights when the next model is built.
    keras.utils.clear_session()
    assert model.count_params() == EXPECTED[name].parameters


def test_sizes_are_those_of_the_paper():
    sizes = {name: EXPECTED[name].parameters * 4 / 2**20 for name in OF_THE_PAPER}
    assert sizes == pytest.approx({name: EXPECTED[name].mib for name in OF_THE_PAPER}, rel=5e-3)
    assert sum(sizes.values()) == pytest.approx(1988, rel=5e-3)


@EVERY_RECIPE
def test_the_comment_of_a_recipe_states_size_steps_and_gap(name):
    expected = EXPECTED[name]
    comment, _, _ = RECIPES[name].read_text().partition("\n\n")
    text = " ".join(re.sub(r"^#", "", comment, flags=re.MULTILINE).split())
    size = expected.parameters
    if size < 1e6:
        assert f"Size: {size:,} parameters" in text
    else:
        assert f"Size: {size / 1e6:.1f} M parameters" in text
        assert f"{round(size * 4 / 2**20)} MiB in float32" in text
    example, metric = ("segments", "Segment mAP") if expected.segments else ("videos", "GAP@20")
    assert f"Steps: {expected.steps:,} batches of {expected.batch_size} {example}" in text
    assert metric in text
    assert all(gap in text for gap in expected.gap)
    if name in OF_THE_PAPER:
        measured = r"Speed: [\d.]+ examples/s in training and \d+ in prediction, .* on two cores"
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
            config, _ = parsed(name)
            # The command leaves out what the dataset.json next to its data states.
            data = {key: getattr(config, key) for key in DATA}
            assert dataclasses.replace(found["config"], init_from=None, **data) == config
            assert bool(found["config"].init_from) == EXPECTED[name].segments
    assert len(train_dirs) == 1


def test_the_readme_lists_every_recipe_with_its_gap():
    text = (documents.ROOT / "recipes" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)\.flags` \|.*\| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == set(RECIPES)
    assert all(rows[name] == EXPECTED[name].gap[0] for name in OF_THE_PAPER)
