"""Models are found by name, and their hyperparameters derived from their constructors."""

import inspect
import re
import sys

import keras
import pytest

import frame_level_models
import registry
import video_level_models
from utils import InputError

SIZES = {"num_classes": 3, "feature_sizes": (4, 2)}
FRAME_LEVEL_ARGUMENTS = {
    "classifier_dropout",
    "iterations",
    "normalize_frames",
    "sample_random_frames",
    "video_level_classifier_model",
}
MOE_ARGUMENTS = {"moe_num_mixtures", "moe_l2", "moe_prob_gating"}


@pytest.fixture(autouse=True)
def _registered_models_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {**registry.models(), **registry.losses()})


@pytest.fixture
def pooled_model():
    """A frame-level model with its own argument and another default for its classifier."""

    @registry.register
    class PooledModel(frame_level_models.FrameLevelLogisticModel):
        """Pools.

        Args:
            power: float. Exponent of the
                pooling.
        """

        def __init__(
            self,
            *,
            power=2.0,
            moe_num_mixtures=5,
            video_level_classifier_model="MoeModel",
            **kwargs,
        ):
            super().__init__(
                moe_num_mixtures=moe_num_mixtures,
                video_level_classifier_model=video_level_classifier_model,
                **kwargs,
            )
            self.power = power

    return PooledModel


def defaults(name, classifier=None):
    parameters = registry.hyperparameters(name, classifier)
    return {key: parameter.default for key, parameter in parameters.items()}


def test_models_are_found_by_class_name_and_sorted():
    models = registry.models()
    assert list(models) == sorted(models)
    assert models["MoeModel"] is video_level_models.MoeModel
    assert registry.model_class("DbofModel") is frame_level_models.DbofModel


NEWCOMER = """
import registry, video_level_models
@registry.register
class NewcomerModel(video_level_models.LogisticModel):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the registry instead of its own; forgets the models in it afterwards."""
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("newcomers_models", "newcomers_losses", "newcomers"):
        sys.modules.pop(name, None)


def test_a_model_in_a_new_file_of_a_checkout_is_found_without_other_edits(folder):
    (folder / "newcomers_models.py").write_text(NEWCOMER)
    (folder / "pyproject.toml").touch()
    assert registry.model_class("NewcomerModel").__module__ == "newcomers_models"


def test_a_loss_in_a_new_file_of_a_checkout_is_found_without_other_edits(folder):
    (folder / "newcomers_losses.py").write_text(
        "import losses, registry\n@registry.register\nclass NewcomerLoss(losses.HingeLoss): pass\n"
    )
    (folder / "pyproject.toml").touch()
    assert registry.loss_class("NewcomerLoss").__module__ == "newcomers_losses"
    assert "NewcomerLoss" not in registry.models()
    assert registry.resolve_loss("NewcomerLoss", {"margin": 2}) == {
        "margin": 2.0,
        "label_smoothing": 0.0,
    }


@pytest.mark.parametrize("base", [keras.losses.Loss, keras.layers.Layer])
def test_what_is_neither_a_model_nor_a_label_loss_is_rejected(base):
    with pytest.raises(
        ValueError, match=r"Faulty must be a model .* or a loss \(losses\.LabelLoss"
    ):
        registry.register(type("Faulty", (base,), {}))


def test_models_and_losses_are_told_apart():
    assert not set(registry.models()) & set(registry.losses())
    with pytest.raises(InputError, match="unknown model 'FocalLoss'"):
        registry.model_class("FocalLoss")
    with pytest.raises(InputError, match="unknown loss 'MoeModel'"):
        registry.loss_class("MoeModel")


def test_installed_only_modules_named_in_the_environment_are_added(folder, monkeypatch):
    (folder / "newcomers_models.py").write_text("raise AssertionError('imported')")
    (folder / "newcomers.py").write_text(NEWCOMER)
    assert "NewcomerModel" not in registry.models()
    monkeypatch.setenv(registry.MODULES_VARIABLE, "newcomers, video_level_models")
    assert registry.model_class("NewcomerModel").__module__ == "newcomers"


def test_a_named_module_that_does_not_exist_is_reported(monkeypatch):
    monkeypatch.setenv(registry.MODULES_VARIABLE, "no_such_models")
    with pytest.raises(InputError, match=r"\$YOUTUBE8M_MODELS names 'no_such_models'"):
        registry.models()


def test_hyperparameters_are_the_keyword_arguments_with_their_defaults():
    assert defaults("MoeModel") == {
        "moe_num_mixtures": 2,
        "moe_l2": 1e-8,
        "moe_prob_gating": False,
    }


def test_hyperparameters_of_a_frame_level_model_include_those_of_its_classifier():
    assert set(defaults("GruModel")) == (
        FRAME_LEVEL_ARGUMENTS | MOE_ARGUMENTS | {"gru_cells", "gru_layers"}
    )
    assert set(defaults("FrameLevelLogisticModel")) == FRAME_LEVEL_ARGUMENTS | {"l2_penalty"}


def test_hyperparameters_follow_the_chosen_classifier():
    found = defaults("FrameLevelLogisticModel", classifier="MoeModel")
    assert set(found) == FRAME_LEVEL_ARGUMENTS | MOE_ARGUMENTS


def test_the_default_of_a_derived_class_wins_over_that_of_its_base():
    assert defaults("LstmModel")["iterations"] == 0
    assert defaults("DbofModel")["iterations"] == 30


def test_the_default_of_a_frame_level_model_wins_over_that_of_its_classifier(pooled_model):
    assert defaults("PooledModel")["moe_num_mixtures"] == 5
    assert registry.build_model("PooledModel", **SIZES).classifier.num_mixtures == 5
    model = registry.build_model("PooledModel", **SIZES, moe_num_mixtures=3)
    assert model.classifier.num_mixtures == 3


def test_the_description_comes_from_the_docstring_on_one_line(pooled_model):
    parameters = registry.hyperparameters("PooledModel")
    assert parameters["power"].help == "Exponent of the pooling."


def test_an_argument_with_a_new_default_keeps_its_description():
    described = {
        name: registry.hyperparameters(name)["video_level_classifier_model"].help
        for name in ("FrameLevelLogisticModel", "LstmModel")
    }
    assert described["FrameLevelLogisticModel"] == described["LstmModel"]


@pytest.mark.parametrize("cls", [*registry.models().values(), *registry.losses().values()])
def test_every_hyperparameter_is_described_with_its_type(cls):
    is_model = issubclass(cls, keras.Model)
    taken = (
        registry.hyperparameters(cls.__name__) if is_model else registry.own_hyperparameters(cls)
    )
    ancestors = inspect.getmro(cls)
    classifier = taken.get(registry.CLASSIFIER_ARGUMENT)
    if classifier is not None:
        ancestors += inspect.getmro(registry.model_class(classifier.default))
    described = "\n".join(filter(None, map(inspect.getdoc, ancestors)))
    wrong = [
        key
        for key, parameter in taken.items()
        if not re.search(rf"^ *{key}: {parameter.type.__name__}\b.*\. \S", described, re.MULTILINE)
        or not re.match(r"\S", parameter.help)
    ]
    assert wrong == []


def test_an_unknown_model_is_rejected_listing_the_known_ones():
    with pytest.raises(InputError, match=r"unknown model 'Moe'.*LogisticModel, LstmModel, Mix"):
        registry.model_class("Moe")


def test_resolve_overrides_the_defaults():
    assert registry.resolve("MoeModel", {"moe_num_mixtures": 4}) == {
        "moe_num_mixtures": 4,
        "moe_l2": 1e-8,
        "moe_prob_gating": False,
    }


def test_resolve_accepts_hyperparameters_of_the_chosen_classifier():
    given = {"video_level_classifier_model": "MoeModel", "moe_num_mixtures": 4}
    resolved = registry.resolve("FrameLevelLogisticModel", given)
    assert resolved["moe_num_mixtures"] == 4
    assert resolved["moe_l2"] == 1e-8
    assert "l2_penalty" not in resolved


NETVLAD_ARGUMENTS = FRAME_LEVEL_ARGUMENTS | {
    "early_fusion",
    "netvlad_cluster_size",
    "netvlad_centers",
    "netvlad_hidden_size",
    "nonlocal_block",
    "nonlocal_embedding",
    "nonlocal_scale",
    "nonlocal_pairwise",
    "nonlocal_normalize",
    "nonlocal_start",
    "nonlocal_attention",
    "gating",
}
LOGISTIC = {"video_level_classifier_model": "LogisticModel"}


@pytest.mark.parametrize("name", ["LFNLNetVLADModel", "LFNLNetRVLADModel", "EFNLNetVLADModel"])
def test_defaults_for_one_classifier_are_left_out_with_another(name):
    assert set(registry.resolve(name, {})) == NETVLAD_ARGUMENTS | MOE_ARGUMENTS
    given = {**LOGISTIC, "l2_penalty": 0.5, "netvlad_cluster_size": "2", "nonlocal_embedding": "2"}
    resolved = registry.resolve(name, given)
    assert set(resolved) == NETVLAD_ARGUMENTS | {"l2_penalty"}
    assert resolved["l2_penalty"] == 0.5
    model = registry.build_model(name, **SIZES, **resolved)
    assert type(model.classifier) is video_level_models.LogisticModel
    assert model.classifier.logistic.regularizer.l2 == 0.25


OTHER_HYPERPARAMETERS = [
    *[
        ("LFNLNetVLADModel", {**LOGISTIC, wrong: 1}, rf"{wrong}\. It takes: .*l2_penalty, netvlad")
        for wrong in ("l2_penaly", "moe_num_mixtures", "moe_l2", "gru_cells")
    ],
    (
        "GruModel",
        {"l2_penalty": 0.1},
        r"l2_penalty\. It takes: classifier_dropout, gru_cells, gru_layers, .*moe_l2",
    ),
    ("LogisticModel", {"depth": 1, "cells": 2, "l2_penalty": 0.1}, r"cells, depth\."),
]


@pytest.mark.parametrize(("name", "given", "message"), OTHER_HYPERPARAMETERS)
def test_all_hyperparameters_that_a_model_lacks_are_rejected_listing_its_own(name, given, message):
    with pytest.raises(InputError, match=f"^{name} does not take {message}"):
        registry.build_model(name, **SIZES, **given)


def test_a_hyperparameter_that_no_classifier_takes_is_rejected():
    class MistypedModel(frame_level_models.FrameLevelLogisticModel):
        def __init__(self, **kwargs):
            super().__init__(l2_penaly=0.1, moe_num_mixture=2, moe_l2=0.1, **kwargs)

    with pytest.raises(InputError, match=r"no video-level model takes l2_penaly, moe_num_mixture$"):
        MistypedModel(**SIZES)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("moe_num_mixtures", 2.0, "int"),
        ("moe_num_mixtures", True, "int"),
        ("moe_l2", "1e-6", "float"),
        ("moe_l2", None, "float"),
        ("moe_prob_gating", 1, "bool"),
    ],
)
def test_a_hyperparameter_of_the_wrong_type_is_rejected(parameter, value, expected):
    message = rf"'{parameter}' must be of type {expected}\. Received: {value!r}$"
    with pytest.raises(InputError, match=message):
        registry.resolve("MoeModel", {parameter: value})


def test_an_integer_is_a_valid_float():
    value = registry.resolve("MoeModel", {"moe_l2": 1})["moe_l2"]
    assert (type(value), value) == (float, 1.0)


def test_a_built_model_has_its_weights():
    assert registry.build_model("LogisticModel", **SIZES).count_params() == 6 * 3 + 3


def test_the_name_of_another_files_model_is_rejected():
    class MoeModel(video_level_models.MoeModel):
        pass

    message = r"'MoeModel' is .*registered.* by video_level_models\.py\. Choose another"
    with pytest.raises(ValueError, match=message):
        registry.register(MoeModel)
    assert registry.model_class("MoeModel") is video_level_models.MoeModel


@pytest.mark.parametrize(
    ("constructor", "problem"),
    [
        (lambda self, cells=4, **kwargs: None, "keyword-only"),
        (lambda self, *, cells, **kwargs: None, "have a default of"),
        *[
            (lambda self, *, cells=default, **kwargs: None, "have a default of")
            for default in (None, (1, 2), [3], len)
        ],
    ],
    ids=["positional", "required", "none", "tuple", "list", "function"],
)
def test_an_argument_that_no_flag_can_set_is_rejected(constructor, problem):
    model = type("FaultyModel", (video_level_models.LogisticModel,), {"__init__": constructor})
    with pytest.raises(ValueError, match=f"'cells' of FaultyModel must (be )?{problem}"):
        registry.register(model)
    assert "FaultyModel" not in registry.models()


def register_model_with_cells_of_none(annotation):
    class UnsetModel(video_level_models.LogisticModel):
        """Has no cells by default.

        Args:
            cells: Units.
        """

        def __init__(self, *, cells: annotation = None, **kwargs):
            super().__init__(**kwargs)

    return registry.register(UnsetModel)


@pytest.mark.parametrize(("kind", "value"), [(int, 3), (float, 0.5), (str, "a")])
def test_an_argument_that_is_none_by_default_has_its_annotated_type(kind, value):
    register_model_with_cells_of_none(kind | None)
    assert registry.hyperparameters("UnsetModel")["cells"].type is kind
    assert registry.resolve("UnsetModel", {})["cells"] is None
    assert registry.resolve("UnsetModel", {"cells": None})["cells"] is None
    assert registry.resolve("UnsetModel", {"cells": value})["cells"] == value
    message = f"'cells' must be of type {kind.__name__}. Received: True"
    with pytest.raises(InputError, match=message):
        registry.resolve("UnsetModel", {"cells": True})


@pytest.mark.parametrize("annotation", [int | str | None, list | None, type(None), float])
def test_an_argument_that_is_none_by_default_needs_one_annotated_type(annotation):
    with pytest.raises(ValueError, match=r"'cells' of UnsetModel .* annotation .*float \| None"):
        register_model_with_cells_of_none(annotation)
