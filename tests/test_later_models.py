"""Tests of the study of later models: its plan, its scores, its report, and training under JAX."""

import importlib.util
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import programs

sys.path.insert(0, str(programs.ROOT / "study"))

import later_models
import later_plan
import later_report

SEEDED_TRAINING = """
import sys
sys.path[:0] = ["study", "benchmarks"]
import jax, keras, numpy as np
import jax_step, later_models, later_plan, layers, plan, seeds_on_jax

subject = later_plan.Subject("bag", "mix", plan.Model("mix", "--model=MixNeXtVLADModel "
    "--num_branches=2 --nextvlad_cluster_size=4,2 --nextvlad_groups=2 --nextvlad_hidden_size=8 "
    "--gating_reduction=2"))
config = later_models.config_of(subject, 8)
rng = np.random.default_rng(0)
inputs = {
    "frames": rng.integers(0, 256, (300, 48, 80), np.uint8),
    "num_frames": rng.integers(20, 49, 300).astype(np.int32),
}
labels = rng.random((300, 160)) < 0.02
together = seeds_on_jax.SeededModels(config, (3, 4), "float32")
together.train(inputs, labels, 3)
predicted = together.predict(inputs)
assert predicted.shape == (2, 300, 160)
branches = together.predict_branches(inputs)
assert branches.shape == (2, 2, 300, 160)
assert np.abs(branches[0] - branches[1]).max() > 1e-3
for number, seed in enumerate((3, 4)):
    keras.utils.set_random_seed(seed)
    model = config.build_model(layers.training_policy("float32"))
    model(jax.tree.map(lambda array: array[:1], inputs))
    step, variables = jax_step.training_step(model, config)
    for rows in seeds_on_jax.epochs(seed, 300, 3, config.batch_size):
        batch = {name: array[rows] for name, array in inputs.items()}
        variables, _ = step(variables, batch, labels[rows].astype("float32"))
    expected = model.stateless_call(*variables[:2], inputs, training=False)[0]
    np.testing.assert_allclose(predicted[number], expected, rtol=1e-3, atol=1e-5)
print("equal")
"""


def test_every_subject_has_flags_that_parse_and_a_name_of_its_own_in_its_world():
    names = [(subject.world, subject.name) for subject in later_plan.SUBJECTS]
    assert len(set(names)) == len(names)
    for flags in {subject.model.flags: subject for subject in later_plan.SUBJECTS}.values():
        assert later_models.config_of(flags, 1800).learning_rate_decay_examples == 28800
    in_bag = {name for world, name in names if world == "bag"}
    assert in_bag.issuperset((*later_plan.SIX, *later_plan.SEVENTH))


def test_the_videos_of_a_world_are_those_of_the_generator(tmp_path):
    scale = later_models.Scale(num_videos=40, num_test_videos=8, max_steps=1, seeds=(0,))
    later_models.make_world("unrelated_2", scale, tmp_path)
    inputs, labels = later_models._load(tmp_path / "unrelated_2", "train")
    assert inputs["frames"].shape == (40, 48, 80)
    lengths = inputs["num_frames"]
    assert set(lengths) <= set(range(20, 49))
    assert inputs["frames"][0, lengths[0] - 1].any()
    assert not inputs["frames"][0, lengths[0] :].any()
    assert labels.any(axis=1).all()
    assert not np.array_equal(
        inputs["frames"][:8], later_models._load(tmp_path / "unrelated_2", "test")[0]["frames"]
    )


def test_an_interrupt_ends_the_trainings_that_run_and_begins_no_other():
    start, waiting = time.monotonic(), []

    def interrupt():
        with later_models.worker_pool(1) as pool:
            waiting.extend(pool.submit(time.sleep, 60) for _ in range(3))
            while not waiting[0].running():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - start < 30
    assert all(future.exception() for future in waiting)


def test_the_page_in_docs_matches_its_numbers():
    docs = programs.ROOT / "docs"
    text = later_report.to_markdown(later_report.Numbers.load(docs / later_report.FOLDER))
    assert text == (docs / "later_models.md").read_text()


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs JAX")
@pytest.mark.slow
def test_seeds_that_train_together_equal_each_alone():
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    found = subprocess.run(
        [sys.executable, "-c", SEEDED_TRAINING],
        cwd=programs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "equal\n", found.stderr
