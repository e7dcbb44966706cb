"""The models have the sizes and the defaults of the paper."""

import math

import keras
import pytest

import registry
import small_models


def moe_parameters(width, num_classes, mixtures=2):
    gates = width * num_classes * (mixtures + 1)
    experts = width * num_classes * mixtures + num_classes * mixtures
    return gates + experts


def gru_parameters(width, cells):
    return 3 * cells * (width + cells + 1)


def lstm_parameters(width, cells):
    return 4 * cells * (width + cells + 1)


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


def soft_bof_parameters(clusters):
    return (
        batch_norm_parameters(1152)
        + sum(size * count for size, count in zip((1024, 128), clusters, strict=True))
        + sum(batch_norm_parameters(count) for count in clusters)
        + sum(clusters) * 1024
        + 1024
        + moe_parameters(1024, 3862)
    )


# Weights of the default model for 3862 classes of 1024 + 128 features, counted by hand.
PARAMETER_COUNTS = {
    "DbofModel": 1152 * 8192
    + 8192 * 1024
    + sum(batch_norm_parameters(width) for width in (1152, 8192, 1024))
    + moe_parameters(1024, 3862),
    "EFNLNetVLADModel": vlad_parameters([1152], [64], [64], 2),
    "FrameLevelLogisticModel": 1152 * 3862 + 3862,
    "GruModel": gru_parameters(1152, 1200)
    + gru_parameters(1200, 1200)
    + moe_parameters(2 * 1200, 3862),
    "LFNLNetRVLADModel": vlad_parameters([1024, 128], [64, 32], [512, 64], 4, centers=False),
    "LFNLNetVLADModel": vlad_parameters([1024, 128], [64, 32], [64, 32], 8),
    "LogisticModel": 1152 * 3862 + 3862,
    "LstmModel": lstm_parameters(1152, 1024)
    + lstm_parameters(1024, 1024)
    + moe_parameters(1024, 3862),
    "MoeModel": moe_parameters(1152, 3862),
    "SoftBoFModel": soft_bof_parameters([4000, 500]),
}

# Size in MiB of the models of the paper, in its Table 1, and ours by arithmetic.
PAPER_SIZES = {
    "LFNLNetVLADModel": (593, PARAMETER_COUNTS["LFNLNetVLADModel"]),
    "LFNLNetRVLADModel": (478, PARAMETER_COUNTS["LFNLNetRVLADModel"]),
    "EFNLNetVLADModel": (427, PARAMETER_COUNTS["EFNLNetVLADModel"]),
    "SoftBoFModel with 4000 clusters": (109, PARAMETER_COUNTS["SoftBoFModel"]),
    "SoftBoFModel with 8000 clusters": (143, soft_bof_parameters([8000, 1000])),
    "GruModel": (243, PARAMETER_COUNTS["GruModel"]),
}


def full_size(name, **hyperparameters):
    """Builds a model for 3862 classes of 1024 + 128 features, without memory for its weights."""
    with keras.StatelessScope(initialize_variables=False):
        return registry.build_model(
            name, num_classes=3862, feature_sizes=(1024, 128), **hyperparameters
        )


@pytest.fixture(scope="module", autouse=True)
def _forget_weights_without_values():
    yield
    keras.utils.clear_session()


def test_every_model_has_its_number_of_parameters_here():
    assert sorted(PARAMETER_COUNTS) == small_models.MODELS


@pytest.mark.parametrize("name", small_models.MODELS)
def test_default_model_has_the_exact_number_of_parameters(name):
    model = full_size(name)
    count = sum(math.prod(weight.shape) for weight in model.weights)
    # The state of a seed generator, two numbers, is not a parameter.
    assert (count, model.count_params()) == (PARAMETER_COUNTS[name],) * 2


def test_soft_bof_of_8000_clusters_has_the_exact_number_of_parameters():
    model = full_size("SoftBoFModel", soft_bof_cluster_size="8000,1000")
    assert model.count_params() == soft_bof_parameters([8000, 1000])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (PARAMETER_COUNTS["LFNLNetVLADModel"], 154_970_737),
        (PARAMETER_COUNTS["LFNLNetRVLADModel"], 125_099_545),
        (PARAMETER_COUNTS["EFNLNetVLADModel"], 111_710_060),
        (PARAMETER_COUNTS["SoftBoFModel"], 28_572_799),
        (soft_bof_parameters([8000, 1000]), 37_358_799),
        (PARAMETER_COUNTS["GruModel"], 63_466_124),
    ],
)
def test_counts_of_the_papers_models_are_the_known_numbers(count, expected):
    assert count == expected


def test_papers_models_have_the_sizes_of_its_table():
    sizes = {name: 4 * count / 2**20 for name, (_, count) in PAPER_SIZES.items()}
    assert sizes == pytest.approx({name: size for name, (size, _) in PAPER_SIZES.items()}, rel=5e-3)
    assert sum(sizes.values()) == pytest.approx(1988, rel=5e-3)


FRAMES_OF_THE_PAPER = {
    "iterations": 300,
    "sample_random_frames": True,
    "video_level_classifier_model": "MoeModel",
    "moe_l2": 1e-6,
}
NETVLAD_OF_THE_PAPER = {
    **FRAMES_OF_THE_PAPER,
    "netvlad_hidden_size": 1024,
    "nonlocal_block": True,
    "nonlocal_pairwise": "embedded_gaussian",
    "gating": True,
    "moe_prob_gating": True,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "LFNLNetVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": False,
                "netvlad_cluster_size": "64,32",
                "netvlad_centers": True,
                "nonlocal_embedding": "64,32",
                "nonlocal_scale": 1 / 64,
                "moe_num_mixtures": 8,
            },
        ),
        (
            "LFNLNetRVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": False,
                "netvlad_cluster_size": "64,32",
                "netvlad_centers": False,
                "nonlocal_embedding": "512,64",
                "nonlocal_scale": None,
                "moe_num_mixtures": 4,
            },
        ),
        (
            "EFNLNetVLADModel",
            {
                **NETVLAD_OF_THE_PAPER,
                "early_fusion": True,
                "netvlad_cluster_size": "64",
                "netvlad_centers": True,
                "nonlocal_embedding": "64",
                "nonlocal_scale": None,
                "moe_num_mixtures": 2,
            },
        ),
        (
            "SoftBoFModel",
            {
                **FRAMES_OF_THE_PAPER,
                "soft_bof_cluster_size": "4000,500",
                "soft_bof_hidden_size": 1024,
                "gating": False,
                "moe_num_mixtures": 2,
                "moe_prob_gating": False,
            },
        ),
        (
            "GruModel",
            {
                **FRAMES_OF_THE_PAPER,
                "iterations": 0,
                "gru_cells": 1200,
                "gru_layers": 2,
                "moe_num_mixtures": 2,
                "moe_prob_gating": False,
            },
        ),
    ],
)
def test_defaults_are_those_of_the_paper(name, expected):
    assert registry.resolve(name, {}) == expected
