"""The default models have exactly the weights that their formulas need."""

import math

import keras
import pytest

import registry
import small_models


def moe_parameters(width, num_classes, mixtures=2):
    """Gates with a dummy expert, and experts with bias."""
    return width * num_classes * (mixtures + 1) + (width + 1) * num_classes * mixtures


def recurrent_parameters(gates, width, cells):
    return gates * cells * (width + cells + 1)


def batch_norm_parameters(width):
    # Scale, offset, mean and variance, and the number of updates.
    return 4 * width + 1


def gating_parameters(width):
    return width * width + batch_norm_parameters(width)


def vlad_parameters(sizes, clusters, embeddings, mixtures, *, centers=True):
    """Streams of the given sizes into 1024 hidden units, then gated, classified, gated again."""
    streams = list(zip(sizes, clusters, embeddings, strict=True))
    kernels = sum(size * count for size, count, _ in streams)
    return (
        batch_norm_parameters(1152)
        + kernels * (2 if centers else 1)
        + sum(batch_norm_parameters(count) for count in clusters)
        # Theta, phi, g and out.
        + sum(4 * size * embedding for size, _, embedding in streams)
        + kernels * 1024
        + 1024
        + gating_parameters(1024)
        + moe_parameters(1024, 3862, mixtures)
        + gating_parameters(3862)
    )


def layer_norm_parameters(width):
    return 2 * width


def linear_parameters(width, units):
    return (width + 1) * units


def transformer_parameters(units, blocks, hidden, positions, queries):
    """The projected frames, their time, blocks, queries of the pooling, and the classifier."""
    block = (
        2 * layer_norm_parameters(units)
        + linear_parameters(units, 3 * units)
        + linear_parameters(units, units)
        + linear_parameters(units, hidden)
        + linear_parameters(hidden, units)
    )
    return (
        linear_parameters(1152, units)
        + 2 * layer_norm_parameters(units)
        + positions * units
        + blocks * block
        + queries * units
        + moe_parameters(queries * units, 3862)
    )


def nextvlad_parameters(clusters, reduction, hidden=2048, num_classes=3862):
    """Streams of 1024 and 128 with 8 and 4 groups, expanded to twice their size."""

    def stream(size, groups, clusters):
        return (
            size * 2 * size
            + 2 * size
            + 2 * size * groups
            + groups
            + 2 * size * groups * clusters
            + batch_norm_parameters(groups * clusters)
            + 2 * size // groups * clusters
        )

    flat = 2 * 1024 // 8 * clusters + 2 * 128 // 4 * (clusters // 2)
    return (
        stream(1024, 8, clusters)
        + stream(128, 4, clusters // 2)
        + batch_norm_parameters(flat)
        + flat * hidden
        + batch_norm_parameters(hidden)
        + 2 * hidden * (hidden // reduction)
        + batch_norm_parameters(hidden // reduction)
        + (hidden + 1) * num_classes
    )


# Weights of the default model for 3862 classes of 1024 + 128 features, counted by hand.
PARAMETER_COUNTS = {
    "DbofModel": 1152 * 8192
    + 8192 * 1024
    + sum(batch_norm_parameters(width) for width in (1152, 8192, 1024))
    + moe_parameters(1024, 3862),
    "EFNLNetVLADModel": vlad_parameters([1152], [64], [64], 2),
    "FrameLevelLogisticModel": 1152 * 3862 + 3862,
    "GatedDbofModel": 1024 * 4096
    + 128 * 512
    # The two matrices of the gate.
    + 2 * 1024 * 4096
    + (4096 + 512) * 1024
    + 1024
    + sum(batch_norm_parameters(width) for width in (1152, 4096, 4096, 512))
    + moe_parameters(1024, 3862),
    "GruModel": recurrent_parameters(3, 1152, 1200)
    + recurrent_parameters(3, 1200, 1200)
    + moe_parameters(2 * 1200, 3862),
    "LFNLNetRVLADModel": vlad_parameters([1024, 128], [64, 32], [512, 64], 4, centers=False),
    "LFNLNetVLADModel": vlad_parameters([1024, 128], [64, 32], [64, 32], 8),
    "LogisticModel": 1152 * 3862 + 3862,
    "LstmModel": recurrent_parameters(4, 1152, 1024)
    + recurrent_parameters(4, 1024, 1024)
    + moe_parameters(1024, 3862),
    "MixNeXtVLADModel": 3 * nextvlad_parameters(112, 16)
    + batch_norm_parameters(1152)
    + (1152 + 1) * 3,
    "MoeModel": moe_parameters(1152, 3862),
    # Assignment, centers and deviations; then the first and the second order.
    "NetFVModel": 3 * (1024 * 128 + 128 * 64)
    + 2 * (1024 * 128 + 128 * 64) * 1024
    + 1024
    + sum(batch_norm_parameters(width) for width in (1152, 128, 64))
    + gating_parameters(1024)
    + moe_parameters(1024, 3862)
    + gating_parameters(3862),
    "NeXtVLADModel": nextvlad_parameters(128, 8),
    "SoftBoFModel": 1024 * 4000
    + 128 * 500
    + 4500 * 1024
    + 1024
    + sum(batch_norm_parameters(width) for width in (1152, 4000, 500))
    + moe_parameters(1024, 3862),
    "TransformerModel": transformer_parameters(512, 4, 2048, positions=300, queries=4),
}
# Trainable weights of the published code of a model, with 2 mixtures, by hyperparameters.
PUBLISHED = [
    ("NeXtVLADModel", {}, 88_889_378),
    ("NeXtVLADModel", {"nextvlad_cluster_size": "112,56", "gating_reduction": 16}, 78_643_170),
    ("MixNeXtVLADModel", {}, 235_935_273),
    ("NetFVModel", {}, 321_388_732),
    ("GatedDbofModel", {}, 37_168_940),
    ("GatedDbofModel", {"moe_prob_gating": True}, 52_091_708),
]


@pytest.fixture(scope="module", autouse=True)
def _forget_weights_without_values():
    yield
    keras.utils.clear_session()


def test_every_model_has_its_number_of_parameters_here():
    assert sorted(PARAMETER_COUNTS) == small_models.MODELS


def build_without_memory(name, **hyperparameters):
    """Returns a model of full size whose weights have no values."""
    with keras.StatelessScope(initialize_variables=False):
        return registry.build_model(
            name, num_classes=3862, feature_sizes=(1024, 128), **hyperparameters
        )


@pytest.mark.parametrize("name", small_models.MODELS)
def test_default_model_has_the_exact_number_of_parameters(name):
    model = build_without_memory(name)
    count = sum(math.prod(weight.shape) for weight in model.weights)
    # The state of a seed generator, two numbers, is not a parameter.
    assert (count, model.count_params()) == (PARAMETER_COUNTS[name],) * 2


@pytest.mark.parametrize(("name", "hyperparameters", "count"), PUBLISHED)
def test_trainable_weights_are_as_many_as_in_the_published_code(name, hyperparameters, count):
    model = build_without_memory(name, **hyperparameters)
    assert sum(math.prod(weight.shape) for weight in model.trainable_weights) == count
