"""Learning rate schedules against their formulas, and how a run gets the end of its schedule."""

import math

import keras
import numpy as np
import pytest

import optimizers
import programs
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
