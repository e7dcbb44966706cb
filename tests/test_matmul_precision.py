"""Matmul precision: when bfloat16 is the default, and that it hardly changes the results."""

import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from absl import logging as absl_logging

import layers
import programs

# The function itself, which `conftest.py` replaces for the tests.
HAS_NATIVE_BFLOAT16 = layers.has_native_bfloat16


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx2\n", False),
        ("processor\t: 0\n", False),
        (None, False),
    ],
)
def test_bfloat16_is_the_default_where_the_processor_multiplies_it(
    tmp_path, monkeypatch, text, native
):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    features = layers._cpu_features(path)
    assert bool(features & layers._CPU_FEATURES) == native
    monkeypatch.setattr(layers, "has_native_bfloat16", lambda: native)
    assert layers.training_policy() == ("mixed_bfloat16" if native else "float32")


@pytest.mark.parametrize(("capability", "native"), [((8, 0), True), ((7, 5), False), (None, False)])
def test_a_gpu_decides_by_its_compute_capability(monkeypatch, capability, native):
    details = {} if capability is None else {"compute_capability": capability}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert HAS_NATIVE_BFLOAT16() == native


def test_the_precision_is_logged(caplog):
    with caplog.at_level(logging.INFO, absl_logging.get_absl_logger().name):
        assert layers.training_policy("bfloat16") == "mixed_bfloat16"
        assert layers.training_policy("float32") == "float32"
    assert "matrix products in bfloat16, as requested" in caplog.text


def scalars(train_dir, tag):
    """Returns the values of a TensorBoard scalar by step."""
    found = {}
    for path in pathlib.Path(train_dir, "train").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf_record_iterator:")
@pytest.mark.parametrize("model", ["netvlad", "gru"])
def test_loss_curves_of_both_precisions_agree(frame_data, tmp_path, model):
    options = {
        # Early fusion compiles faster.
        "netvlad": (*programs.SMALL_NETVLAD, "--early_fusion", "--netvlad_cluster_size=4"),
        "gru": ("--model=GruModel", "--gru_cells=8", "--batch_size=16", *programs.SMALL_DATA),
    }[model]
    curves = []
    for dtype in ("float32", "bfloat16"):
        duration = ("--base_learning_rate=0.004", "--max_steps=100", "--num_epochs=100")
        flags = (*options, *duration, "--log_steps=10", f"--compute_dtype={dtype}")
        curves.append(scalars(programs.train(tmp_path / dtype, frame_data, *flags), "loss"))
    exact, rounded = curves
    assert list(exact) == list(rounded) == list(range(10, 101, 10))
    np.testing.assert_allclose(list(rounded.values()), list(exact.values()), rtol=0.01)
    assert list(rounded.values()) != list(exact.values())
    assert exact[100] < 0.8 * exact[10]


@pytest.mark.parametrize(
    "fixture", ["trained", pytest.param("trained_netvlad", marks=pytest.mark.slow)]
)
def test_predictions_of_both_precisions_agree(request, frame_data, tmp_path, fixture):
    float32, bfloat16 = (
        programs.predictions(
            tmp_path / f"{dtype}.csv",
            10,
            train_dir=request.getfixturevalue(fixture),
            input_data_pattern=frame_data,
            compute_dtype=dtype,
        )
        for dtype in ("float32", "bfloat16")
    )
    differences = [np.abs(float32[video] - bfloat16[video]).max() for video in float32]
    assert 0 < max(differences) < 0.02
