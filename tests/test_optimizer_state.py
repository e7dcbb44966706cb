"""The optimizer's state in bfloat16: rounding, updates, checkpoints, averages and replicas."""

import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import optimizers
import programs
from optimizer_state import random_bits, stochastically_rounded
from programs import train_logistic, weights_of
from run_config import RunConfig
from utils import InputError

BFLOAT16 = "--optimizer_state_dtype=bfloat16"
WITH_MOMENTS = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax")
WITH_MOMENTS += ("Lamb", "Lion", "Muon", "Nadam", "RMSprop")

# --- Rounding -------------------------------------------------------------------------------------


def neighbors(values):
    """Returns the bfloat16 numbers around float32 values, toward zero and away from it."""
    lower = np.float32(values).view(np.uint32) & 0xFFFF0000
    return lower.view(np.float32), (lower + 0x10000).view(np.float32)


def assert_rounded(found, values):
    """Asserts that each number is a neighbor of its value, and their mean the value.

    Args:
        found: roundings, `[N, ...]`.
        values: float32 values, `[...]`, without numbers of bfloat16.
    """
    lower, upper = neighbors(values)
    is_upper = found == upper
    assert np.all(is_upper | (found == lower))
    share = (np.float64(values) - lower) / (np.float64(upper) - lower)
    error = np.sqrt(share * (1 - share) / len(found))
    deviations = (is_upper.mean(0) - share) / error
    assert np.abs(deviations).max() < 4.5
    assert np.sqrt(np.mean(deviations**2)) == pytest.approx(1, abs=0.25)


def test_roundings_of_a_value_are_its_two_neighbors_and_their_mean_the_value():
    rng = np.random.default_rng(0)
    values = np.float32(rng.normal(size=200) * 10.0 ** rng.uniform(-30, 30, 200))
    steps = np.arange(3000, dtype=np.int64)[:, None]
    by_step = stochastically_rounded(tf.constant(values), 7, steps, 3)
    assert by_step.dtype == tf.bfloat16
    assert_rounded(np.float32(tf.cast(by_step, tf.float32)), values)
    at_many_places = stochastically_rounded(tf.tile(values[None], [3000, 1]), 7, 5, 3)
    assert_rounded(np.float32(tf.cast(at_many_places, tf.float32)), values)


def test_rounding_keeps_what_bfloat16_represents_infinities_and_nan():
    exact = np.float32([0.0, -0.0, 1.0, -2.5, 2.0**-126, 3 * 2.0**100, np.inf, -np.inf])
    nans = np.uint32([0x7FC00000, 0xFFC00000, 0x7FFFFFFF]).view(np.float32)
    for step in range(50):
        rounded = tf.cast(stochastically_rounded(tf.constant(exact), 0, step, 0), tf.float32)
        np.testing.assert_array_equal(rounded.numpy().view(np.uint32), exact.view(np.uint32))
        assert np.isnan(
            tf.cast(stochastically_rounded(tf.constant(nans), 0, step, 0), tf.float32)
        ).all()


def lowbias32(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize(("seed", "step", "number"), [(0, 0, 0), (2**32 - 1, 700_000, 41)])
def test_random_bits_are_the_upper_half_of_a_known_hash(seed, step, number):
    key = 0
    for part in (seed, step, number):
        key = lowbias32((key + part) % 2**32)
    expected = [[lowbias32((key + 4 * n + m) % 2**32) >> 16 for m in range(4)] for n in range(3)]
    compiled = tf.function(lambda step: random_bits((3, 4), seed, step, number), jit_compile=True)
    for found in (random_bits((3, 4), seed, step, number), compiled(tf.constant(step, tf.int64))):
        np.testing.assert_array_equal(found, expected)


def test_random_bits_of_neighbors_steps_variables_and_seeds_are_unrelated():
    shape = (64, 1024)
    first = np.float64(random_bits(shape, 0, 10, 1))
    others = [random_bits(shape, *key) for key in ((0, 11, 1), (0, 10, 2), (1, 10, 1))]
    pairs = [(first, np.float64(other)) for other in others]
    pairs += [(first[:, :-n], first[:, n:]) for n in (1, 2, 3, 16)] + [(first[:-1], first[1:])]
    for one, other in pairs:
        # The deviation of a correlation of N independent pairs is 1 / sqrt(N).
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4.5 / one.size**0.5


# --- Updates --------------------------------------------------------------------------------------


def make_variables():
    rng = np.random.default_rng(1)
    values = {"matrix": rng.normal(size=(16, 32)), "bias": rng.normal(size=16)}
    return [keras.Variable(np.float32(value), name=name) for name, value in values.items()]


def make_optimizer(name, variables, dtype="bfloat16", learning_rate=0.01):
    options = {"epsilon": 1e-8} if name == "Adam" else {}
    optimizer = optimizers.optimizer_class(name, dtype)(learning_rate, name="optimizer", **options)
    optimizer.build(variables)
    return optimizer


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_every_optimizer_with_moments_updates_as_with_float32(name):
    changes = {}
    for dtype in optimizers.STATE_DTYPES:
        variables = make_variables()
        before = [variable.numpy() for variable in variables]
        optimizer = make_optimizer(name, variables, dtype)
        update = tf.function(optimizer.apply, autograph=False, jit_compile=True)
        rng = np.random.default_rng(2)
        for _ in range(4):
            update([tf.constant(np.float32(rng.normal(size=v.shape))) for v in variables])
        changes[dtype] = [v.numpy() - b for v, b in zip(variables, before, strict=True)]
        kinds = {str(v.dtype) for v in optimizer.variables if len(v.shape) > 1}
        assert kinds == {dtype}
        assert {str(v.dtype) for v in optimizer.variables if len(v.shape) == 1} <= {"float32"}
    (matrix, bias), (expected_matrix, expected_bias) = changes["bfloat16"], changes["float32"]
    # Lion takes the signs of sums, some of which are nearly 0.
    differs = np.abs(matrix - expected_matrix) > 0.03 * np.sqrt(np.mean(expected_matrix**2))
    assert np.mean(differs) < 0.005
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-5)


def test_adam_computes_in_float32_and_rounds_only_what_it_stores():
    variables = make_variables()
    optimizer = make_optimizer("Adam", variables)
    rng = np.random.default_rng(3)
    m = v = np.zeros((16, 32), np.float32)
    for step in range(1, 5):
        gradient = np.float32(rng.normal(size=(16, 32)))
        before = variables[0].numpy()
        optimizer.apply([tf.constant(gradient), tf.zeros(16)], variables)
        exact = {"momentum": m + (gradient - m) * np.float32(0.1)}
        exact["velocity"] = v + (gradient**2 - v) * np.float32(0.001)
        stored = {
            key: np.float32(tf.cast(optimizer.variables[2 + number].value, tf.float32))
            for number, key in enumerate(exact)
        }
        for key, values in exact.items():
            # The product may round the last bit of the exact value in another way.
            lower, upper = neighbors(values)
            assert np.all(np.abs(stored[key]) >= np.abs(lower) * (1 - 2**-20)), key
            assert np.all(np.abs(stored[key]) <= np.abs(upper) * (1 + 2**-20)), key
            assert 0.3 < np.mean(stored[key] == upper) < 0.7
        m, v = stored["momentum"], stored["velocity"]
        rate = 0.01 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected = before - rate * np.float64(m) / (np.sqrt(np.float64(v)) + 1e-8)
        np.testing.assert_allclose(variables[0], expected, rtol=1e-5, atol=1e-6)


def test_the_compiled_update_of_adam_copies_no_moment_and_keeps_none_in_float32():
    variables = make_variables()
    optimizer = make_optimizer("Adam", variables)
    update = tf.function(lambda *g: optimizer.apply(g), autograph=False, jit_compile=True)
    gradients = tf.zeros([16, 32], tf.bfloat16), tf.zeros(16)
    code = update.experimental_get_compiler_ir(*gradients)(stage="optimized_hlo")
    computed = re.findall(r"= (\w+\[16,32\])\S* (\w+)\(", code.partition("\nENTRY ")[2])
    # The inputs and, of each matrix, one pass. The order of two passes is XLA's choice.
    assert sorted(found for found in computed if found[1] != "parameter") == [
        ("bf16[16,32]", "fusion"),
        ("bf16[16,32]", "fusion"),
        ("f32[16,32]", "fusion"),
    ]


def test_a_velocity_decays_although_each_step_changes_less_than_bfloat16_resolves():
    variables = make_variables()
    optimizer = make_optimizer("Adam", variables)
    velocity = optimizer.variables[3]
    assert velocity.path.endswith("velocity")
    start = tf.random.stateless_uniform([16, 32], [1, 2], 1.0, 2.0)
    velocity.assign(start)
    before = np.float64(tf.cast(velocity.value, tf.float32))
    update = tf.function(optimizer.apply, autograph=False, jit_compile=True)
    for _ in range(200):
        update([tf.zeros([16, 32]), tf.zeros(16)])
    found = np.float64(tf.cast(velocity.value, tf.float32)) / before
    # Rounded to nearest, no velocity would have changed.
    assert found.mean() == pytest.approx(0.999**200, rel=0.01)
    assert found.std() < 0.1


@pytest.mark.parametrize("name", ["SGD", "Adafactor", "Ftrl", "ScheduleFreeAdamW"])
def test_an_optimizer_without_moments_of_each_weight_is_rejected(name):
    with pytest.raises(InputError) as error:
        RunConfig("LogisticModel", optimizer=name, optimizer_state_dtype="bfloat16")
    assert str(error.value) == (
        "--optimizer_state_dtype=bfloat16 is for optimizers that store moments of each weight: "
        f"{', '.join(WITH_MOMENTS)}. Received: {name}"
    )


# --- Runs -----------------------------------------------------------------------------------------


def stored(train_dir, step):
    """Returns the variables of a checkpoint by name, as they are stored."""
    reader = tf.train.load_checkpoint(str(train_dir / f"model.ckpt-{step}"))
    names = [name for name in reader.get_variable_to_shape_map() if "/.ATTRIBUTES/" in name]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


@pytest.fixture(scope="module")
def run(tmp_path_factory, video_data):
    """Train directory of a LogisticModel with moments in bfloat16, of the steps 6 and 12."""
    flags = ("--max_steps=12", "--export_model_steps=6", "--gradient_accumulation=2")
    folder = tmp_path_factory.mktemp("rounded")
    return train_logistic(folder, video_data, BFLOAT16, *flags, "--ema_decay=0.9")


def test_a_checkpoint_has_moments_of_matrices_in_bfloat16_and_all_weights_in_float32(run):
    values = stored(run, 12)
    moments = [v for name, v in values.items() if name.startswith("optimizer/") and v.ndim > 1]
    assert [value.dtype.name for value in moments] == ["bfloat16", "bfloat16"]
    others = {v.dtype.name for name, v in values.items() if name.startswith(("weights/", "ema/"))}
    assert others == {"float32"}


def test_a_resumed_run_rounds_in_the_same_way(run, video_data, tmp_path):
    shutil.copy(run / "model_flags.json", tmp_path)
    for path in run.glob("model.ckpt-6.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-6"')
    flags = ("--max_steps=12", "--gradient_accumulation=2", "--ema_decay=0.9")
    train_logistic(tmp_path, video_data, BFLOAT16, *flags)
    resumed, unbroken = stored(tmp_path, 12), stored(run, 12)
    assert resumed.keys() == unbroken.keys()
    for name, value in unbroken.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_run_cannot_continue_with_moments_in_another_dtype(run, video_data):
    flags = ("--max_steps=14", "--gradient_accumulation=2", "--ema_decay=0.9")
    with pytest.raises(InputError, match="optimizer_state_dtype: 'bfloat16' there, 'float32' now"):
        train_logistic(run, video_data, *flags)


def test_rounded_moments_are_averaged_in_float64_and_training_continues(run, video_data, tmp_path):
    mean = tmp_path / "mean"
    programs.run("average_checkpoints", f"--train_dir={run}", f"--output_dir={mean}")
    averaged, parts = stored(mean, 12), [stored(run, step) for step in (6, 12)]
    moments = [name for name, value in averaged.items() if value.dtype.name == "bfloat16"]
    assert len(moments) == 2
    for name in moments:
        expected = np.mean([np.float64(part[name]) for part in parts], axis=0)
        np.testing.assert_array_equal(averaged[name], expected.astype(averaged[name].dtype))
        assert np.any(averaged[name] != parts[1][name])
    flags = ("--max_steps=13", "--gradient_accumulation=2", "--ema_decay=0.9")
    train_logistic(mean, video_data, BFLOAT16, *flags)
    assert checkpoints.names(str(mean)) == ["model.ckpt-12", "model.ckpt-13"]


def test_frozen_weights_keep_their_values_and_have_no_moments(video_data, tmp_path):
    train_logistic(tmp_path, video_data, BFLOAT16, "--max_steps=2", "--freeze=bias")
    values = stored(tmp_path, 2)
    assert not [name for name in values if name.startswith("optimizer/") and "bias" in name]
    bias = next(value for path, value in weights_of(tmp_path).items() if path.endswith("bias"))
    np.testing.assert_array_equal(bias, np.zeros(10))


def test_moments_that_are_not_finite_are_not_saved(tmp_path):
    config = RunConfig("LogisticModel", optimizer_state_dtype="bfloat16", num_classes=3)
    model = config.build_model()
    optimizer = config.build_optimizer(model)
    moment = next(variable for variable in optimizer.variables if variable.dtype == "bfloat16")
    moment.assign(tf.fill(moment.shape, np.inf))
    manager = checkpoints.new_manager(str(tmp_path), checkpoints.training_state(model, optimizer))
    with pytest.raises(FloatingPointError, match=r"kernel_momentum is not finite at step 3"):
        checkpoints.save(manager, model, optimizer, 3)


def test_runs_of_other_seeds_round_in_other_ways():
    found = []
    for seed in (0, 0, 1):
        config = RunConfig("LogisticModel", optimizer_state_dtype="bfloat16", seed=seed)
        keras.utils.set_random_seed(0)
        model = config.build_model()
        optimizer = config.build_optimizer(model)
        optimizer.apply([tf.fill(v.shape, 0.123) for v in model.trainable_variables])
        found.append(tf.cast(optimizer.variables[1].value, tf.float32).numpy())
    np.testing.assert_array_equal(found[0], found[1])
    assert 0.1 < np.mean(found[0] != found[2]) < 0.9
