"""Learning rate schedules, weight decay and Muon: formulas, and the weights they are for."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import layer_references
import layers
import optimizers
import programs
import registry
import small_models
import train
from programs import train_mean
from run_config import RunConfig
from utils import InputError

BASE, DECAY, PERIOD, END = 0.02, 0.7, 2.5, 12

# --- Schedules ------------------------------------------------------------------------------------

FORMULAS = {
    "staircase": lambda t, _: DECAY ** math.floor(t / PERIOD),
    "exponential": lambda t, _: DECAY ** (t / PERIOD),
    "cosine": lambda t, length: (1 + math.cos(math.pi * min(t / length, 1))) / 2,
    "linear": lambda t, length: 1 - min(t / length, 1),
    "constant": lambda t, _: 1.0,
}


def make_schedule(name, warmup_steps):
    return optimizers.make_schedule(
        name, BASE, decay=DECAY, decay_period=PERIOD, end=END, warmup_steps=warmup_steps
    )


@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_a_learning_rate_follows_its_formula_after_a_linear_warmup(name, warmup_steps):
    schedule = make_schedule(name, warmup_steps)
    rates = [float(schedule(step)) for step in range(END + 3)]
    expected = [BASE * (step + 1) / warmup_steps for step in range(warmup_steps)]
    for step in range(warmup_steps, END + 3):
        expected.append(BASE * FORMULAS[name](step - warmup_steps, END - warmup_steps))
    np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("warmup_steps", [0, 4])
@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_a_schedule_survives_saving_with_keras(name, warmup_steps):
    schedules = keras.optimizers.schedules
    schedule = make_schedule(name, warmup_steps)
    loaded = schedules.deserialize(schedules.serialize(schedule))
    assert [float(loaded(step)) for step in range(15)] == [
        float(schedule(step)) for step in range(15)
    ]


def test_the_decay_of_a_config_counts_videos():
    config = RunConfig(
        "LogisticModel",
        base_learning_rate=BASE,
        learning_rate_decay=DECAY,
        learning_rate_decay_examples=40,
        batch_size=16,
    )
    schedule = config.make_schedule()
    for step in range(12):
        expected = BASE * DECAY ** math.floor(16 * step / 40)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learning_rate_schedule": "polynomial"},
            "--learning_rate_schedule must be one of staircase, exponential, cosine, linear, "
            "constant. Received: polynomial",
        ),
        (
            {"learning_rate_decay_steps": 10},
            "--learning_rate_decay_steps is for --learning_rate_schedule=cosine or linear. "
            "Received: staircase",
        ),
        (
            {
                "learning_rate_schedule": "linear",
                "learning_rate_decay_steps": 10,
                "warmup_steps": 10,
            },
            "--warmup_steps must be below --learning_rate_decay_steps, 10, the end of the "
            "learning rate. Received: 10",
        ),
    ],
)
def test_a_schedule_that_cannot_work_is_rejected(settings, message):
    with pytest.raises(InputError) as error:
        RunConfig("LogisticModel", **settings)
    assert str(error.value) == message


def test_a_config_of_an_earlier_version_gets_the_defaults(tmp_path):
    config = RunConfig("FrameLevelLogisticModel", base_learning_rate=BASE)
    config.save(str(tmp_path))
    path = tmp_path / "model_flags.json"
    values = json.loads(path.read_text())
    for name in (
        *("learning_rate_schedule", "learning_rate_decay_steps", "warmup_steps"),
        *("weight_decay", "clip", "gradient_accumulation"),
    ):
        del values[name]
    del values["hyperparameters"]["classifier_dropout"]
    path.write_text(json.dumps(values))
    assert RunConfig.load(str(tmp_path)) == config
    assert type(config.make_schedule()) is keras.optimizers.schedules.ExponentialDecay


# --- The end of a schedule ------------------------------------------------------------------------


def test_a_run_keeps_the_end_of_its_learning_rate_when_it_gets_longer(tmp_path, frame_data, caplog):
    flags = ("--learning_rate_schedule=cosine", "--optimizer=SGD")
    train_mean(tmp_path, frame_data, *flags, "--max_steps=2")
    assert RunConfig.load(str(tmp_path)).learning_rate_decay_steps == 2
    assert "the learning rate is 0" not in caplog.text
    names = (f"--train_dir={tmp_path}", f"--train_data_pattern={frame_data}", *programs.SMALL_MEAN)
    for more in ([], ["--max_steps=3"]):
        options = programs.options("train", *names, *flags, *more)
        config = train.with_end_of_schedule(options["config"], options["options"])
        assert config.learning_rate_decay_steps == 2
    assert "the learning rate is 0 from step 2 on, but --max_steps is 3" in caplog.text
    with pytest.raises(InputError, match="learning_rate_decay_steps: 2 there, 3 now"):
        train_mean(tmp_path, frame_data, *flags, "--learning_rate_decay_steps=3")
    again = programs.options("train", *names, *flags, "--max_steps=3", "--start_new_model")
    assert (
        train.with_end_of_schedule(again["config"], again["options"]).learning_rate_decay_steps == 3
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--learning_rate_schedule=linear"],
            "--learning_rate_schedule=linear needs the step at which the learning rate reaches 0. "
            "Give --max_steps or --learning_rate_decay_steps.",
        ),
        (
            ["--warmup_steps=5", "--max_steps=5"],
            "--warmup_steps must be below --max_steps, 5. Received: 5",
        ),
    ],
)
def test_a_run_whose_learning_rate_has_no_end_or_only_a_start_is_rejected(
    tmp_path, frame_data, flags, message
):
    with pytest.raises(InputError) as error:
        train_mean(tmp_path / "run", frame_data, *flags)
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


# --- Weight decay ---------------------------------------------------------------------------------

# The matrices of all registered models, and what has two axes but is no matrix. A new name must
# join one of them.
MATRICES = {
    *("kernel", "recurrent_kernel", "candidate", "gates"),
    *("theta", "phi", "g", "out", "queries"),
}
POINTS = {"centers", "deviation_roots", "time_embedding", "class_token"}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(small_models.marked(name, "small") for name in small_models.MODELS),
        ("TransformerModel", "changed"),
    ],
)
def test_the_matrices_of_all_models_are_known(name, variant):
    for variable in small_models.shared(name, variant).trainable_variables:
        assert optimizers.is_matrix(variable) == (variable.name in MATRICES)
        assert variable.name in MATRICES | POINTS or len(variable.shape) == 1


class Small(registry.Model):
    """A hidden layer, points in its space, and a classifier."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Linear(6, batch_norm=True, name="hidden")
        self.hidden.build((None, 4))
        self.centers = self.add_weight(shape=(3, 6), name="centers")
        self.classifier = layers.Linear(5, name="classifier")
        self.classifier.build((None, 6))


def small_model():
    model = Small()
    layer_references.randomize(model)
    return model


def values_by_name(model):
    """Returns the trainable variables in float64, by path."""
    return {v.path: np.float64(v) for v in model.trainable_variables}


def update(model, name, gradients, learning_rate=0.1, **options):
    """Returns the variables before and after a step with gradients by name, by default 0."""
    before = values_by_name(model)
    optimizer = optimizers.build(name, model, learning_rate, **options)
    optimizer.apply(
        [
            keras.ops.convert_to_tensor(gradients.get(key, 0 * value), "float32")
            for key, value in before.items()
        ],
        model.trainable_variables,
    )
    return before, values_by_name(model)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Lion", "Lamb", "Adafactor", "Muon"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_matrices_decay_and_nothing_else_and_only_if_asked(name, weight_decay):
    before, after = update(small_model(), name, {}, weight_decay=weight_decay)
    assert len(before) == 6
    for key, value in after.items():
        factor = 1 - 0.1 * weight_decay if key.endswith("kernel") else 1.0
        np.testing.assert_allclose(value, factor * before[key], rtol=1e-6, err_msg=key)


def test_weight_decay_does_not_pass_through_the_gradient(caplog):
    """A step of SGD by hand, and one of AdamW, whose first step has the sign of the gradient."""
    caplog.set_level("INFO", logger="absl")
    gradient = np.random.default_rng(0).normal(size=(4, 6))
    steps = {"SGD": gradient, "AdamW": np.sign(gradient)}
    for name, step in steps.items():
        before, after = update(small_model(), name, {"hidden/kernel": gradient}, weight_decay=0.3)
        expected = before["hidden/kernel"] * (1 - 0.1 * 0.3) - 0.1 * step
        np.testing.assert_allclose(after["hidden/kernel"], expected, rtol=1e-5, atol=1e-6)
    assert (
        "weight decay 0.3 applies to 2 of 6 variables, with 54 of 89 weights; not to: beta, bias, "
        "centers, gamma" in caplog.text
    )


def test_frozen_variables_have_no_state_and_do_not_decay():
    model = small_model()
    model.hidden.trainable = False
    frozen = model.hidden.get_weights()
    optimizer = optimizers.build("AdamW", model, 0.1, weight_decay=0.3)
    assert not [v.path for v in optimizer.variables if "hidden" in v.path]
    optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    for before, after in zip(frozen, model.hidden.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(InputError, match="has none to train"):
        optimizers.build("Muon", model, 0.1)


# --- Muon -----------------------------------------------------------------------------------------


def orthogonalized(matrix, steps=5):
    """Returns a matrix whose singular values Newton and Schulz' iteration brings close to 1."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_orthogonalizes_hidden_matrices_and_updates_all_else_like_adamw():
    rng = np.random.default_rng(1)
    gradients = {key: rng.normal(size=v.shape) for key, v in values_by_name(small_model()).items()}
    before, after = update(small_model(), "Muon", gradients)
    for key, gradient in gradients.items():
        # The first step of Adam, whose second moment is 0.001 g^2, with epsilon 1e-8.
        step = gradient / (np.abs(gradient) + 1e-8 / math.sqrt(0.001))
        if key == "hidden/kernel":
            # Nesterov's momentum scales the first gradient; the update has AdamW's size.
            step = 0.2 * math.sqrt(6) * orthogonalized(gradient)
        np.testing.assert_allclose(
            after[key], before[key] - 0.1 * step, rtol=1e-4, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize("name", [small_models.marked(name) for name in small_models.MODELS])
def test_muon_updates_the_matrices_before_the_classifier(name):
    model = small_models.shared(name)
    if name not in small_models.FRAME_LEVEL_MODELS or name == "FrameLevelLogisticModel":
        with pytest.raises(InputError, match=rf"but {name} has none to train other"):
            optimizers.build("Muon", model, 0.1)
        return
    optimizer = optimizers.build("Muon", model, 0.1)
    by_muon = {
        variable.path
        for variable, velocity in zip(
            model.trainable_variables, optimizer.adam_velocities, strict=True
        )
        if velocity is None
    }
    assert by_muon == {
        variable.path
        for variable in model.trainable_variables
        if variable.name in MATRICES and not variable.path.startswith(f"{name}/classifier/")
    }


@pytest.mark.parametrize("name", ["AdamOptimizer", "Adam"])
def test_the_names_of_the_starter_code_are_known(name):
    assert optimizers.optimizer_class(name) is keras.optimizers.Adam
