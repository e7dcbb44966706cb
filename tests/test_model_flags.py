"""Programs derive a flag from every hyperparameter of a model or loss."""

import program

import pytest
from absl import flags

import losses
import options
import programs
import registry
import train
import video_level_models
from run_config import RunConfig, TrainOptions
from utils import InputError


@pytest.fixture(autouse=True)
def _registered_models_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {**registry.models(), **registry.losses()})


def defaults(name):
    return {key: value.default for key, value in registry.hyperparameters(name).items()}


def parsed(model, *arguments):
    """Returns the resolved hyperparameters of a model, with the given flags of train.py."""
    return parsed_config(model, *arguments).hyperparameters


def parsed_config(model, *arguments):
    required = ("--train_dir=run", "--train_data_pattern=data")
    return programs.options("train", f"--model={model}", *required, *arguments)["config"]


def test_every_hyperparameter_has_one_flag_and_there_are_no_others():
    names = {name for model in registry.models() for name in registry.hyperparameters(model)}
    for loss in registry.losses().values():
        names |= set(registry.own_hyperparameters(loss))
    others = {
        field.name for cls in (RunConfig, TrainOptions) for field, _ in options.options_of(cls)
    }
    flag_values = flags.FlagValues()
    program.define_flags(train.main, flag_values)
    assert set(flag_values) == names | others
    assert not names & others


@pytest.mark.parametrize(
    ("kind", "value", "text"), [(int, 3, "3"), (float, 0.5, "0.5"), (str, "a", "a")]
)
def test_the_flag_of_a_new_model_is_derived(kind, value, text):
    @registry.register
    class NewModel(video_level_models.LogisticModel):
        def __init__(self, *, cells: kind | None = None, **kwargs):
            super().__init__(**kwargs)

    assert parsed("NewModel")["cells"] is None
    assert parsed("NewModel", f"--cells={text}")["cells"] == value


@pytest.mark.parametrize(
    ("model", "default"), [("DbofModel", 30), ("SoftBoFModel", 300), ("GruModel", 0)]
)
def test_help_shows_the_description_and_the_default_of_the_model(model, default):
    text = " ".join(program.help_text(train.main, model).split())
    description = registry.hyperparameters(model)["iterations"].help
    assert f"--iterations=INT {description} Default: {default}." in text


def test_values_of_flags_have_the_type_of_the_default():
    given = parsed(
        "DbofModel",
        "--moe_num_mixtures=4",
        "--moe_l2=1e-6",
        "--moe_prob_gating",
        "--nosample_random_frames",
        "--dbof_pooling_method=average",
    )
    assert given == {
        **defaults("DbofModel"),
        "dbof_pooling_method": "average",
        "moe_l2": 1e-6,
        "moe_num_mixtures": 4,
        "moe_prob_gating": True,
        "sample_random_frames": False,
    }
    for name in ("moe_l2", "moe_num_mixtures", "moe_prob_gating"):
        assert type(given[name]) is type(defaults("MoeModel")[name])


@pytest.mark.parametrize(
    "argument", ["--moe_num_mixtures=2.5", "--moe_l2=small", "--moe_prob_gating=maybe"]
)
def test_flags_of_the_wrong_type_are_rejected(argument):
    with pytest.raises(InputError, match=argument.partition("=")[2]):
        parsed("MoeModel", argument)


def test_a_model_receives_only_flags_on_the_command_line():
    assert parsed("LogisticModel") == defaults("LogisticModel")
    # Also if the value is another model's default.
    with pytest.raises(InputError, match="LogisticModel does not take iterations"):
        parsed("LogisticModel", "--iterations=0")


def test_a_flag_that_has_different_types_in_two_models_is_rejected():
    @registry.register
    class OddModel(video_level_models.LogisticModel):
        def __init__(self, *, gru_cells=0.5, **kwargs):
            super().__init__(**kwargs)

    message = "'gru_cells' has different types in GruModel, OddModel. Use one type."
    with pytest.raises(ValueError, match=message):
        program.define_flags(train.main, flags.FlagValues())


def test_the_flags_of_a_loss_are_its_arguments_and_belong_to_it_only():
    config = parsed_config("MoeModel", "--label_loss=FocalLoss", "--focal_gamma=1")
    assert config.loss_hyperparameters == {
        "label_smoothing": 0.0,
        "epsilon": 1e-5,
        "focal_gamma": 1.0,
        "focal_alpha": 0.25,
    }
    assert config.settings["focal_gamma"] == 1.0
    assert parsed_config("MoeModel").loss_hyperparameters.keys() == {"label_smoothing", "epsilon"}
    with pytest.raises(
        InputError, match=r"HingeLoss does not take focal_gamma\. It takes: label_sm"
    ):
        parsed_config("MoeModel", "--label_loss=HingeLoss", "--focal_gamma=1")
    with pytest.raises(InputError, match="unknown loss 'Focal'"):
        parsed_config("MoeModel", "--label_loss=Focal")


def test_help_lists_the_losses_and_the_flags_of_the_given_or_default_loss():
    text = " ".join(program.help_text(train.main, label_loss="FocalLoss").split())
    assert "--focal_gamma=FLOAT Exponent gamma; 0 gives the cross entropy" in text
    assert "Losses: AsymmetricLoss, CrossEntropyLoss, FocalLoss, HingeLoss, SoftmaxLoss." in text
    text = program.help_text(train.main)
    assert "--epsilon=FLOAT" in text
    assert "--label_smoothing=FLOAT" in text
    assert "--focal_gamma" not in text
    with pytest.raises(InputError, match="unknown loss 'FocalLos'"):
        program.help_text(train.main, label_loss="FocalLos")


def test_the_flag_of_a_new_loss_is_derived_and_must_not_be_a_models():
    @registry.register
    class NewLoss(losses.HingeLoss):
        """A loss.

        Args:
            steepness: float. Steepness of the hinge.
        """

        def __init__(self, *, steepness=1.5, **kwargs):
            super().__init__(**kwargs)
            self.steepness = steepness

    config = parsed_config("MoeModel", "--label_loss=NewLoss", "--steepness=2", "--margin=3")
    expected = {"label_smoothing": 0.0, "margin": 3.0, "steepness": 2.0}
    assert config.loss_hyperparameters == expected
    assert config.build_loss().get_config().items() >= expected.items()

    @registry.register
    class OtherLoss(losses.HingeLoss):
        def __init__(self, *, gru_cells=1, **kwargs):
            super().__init__(**kwargs)

    with pytest.raises(InputError, match="'gru_cells' of OtherLoss has the name of another flag"):
        program.define_flags(train.main, flags.FlagValues())
