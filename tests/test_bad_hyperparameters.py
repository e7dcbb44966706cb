"""Models reject bad hyperparameters by name."""

import pytest

import registry
from model_references import NETVLAD_MODELS
from utils import InputError

SIZES = {"num_classes": 3, "feature_sizes": (4, 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"num_classes must be positive integers. Received: \[0\]"),
        ({"num_classes": 3.0}, r"num_classes must be positive integers. Received: \[3.0\]"),
        ({"feature_sizes": ()}, r"feature_sizes must be positive integers. Received: \[\]"),
        ({"feature_sizes": (4, 0)}, r"feature_sizes must be positive .* Received: \[4, 0\]"),
        ({"iterations": -1}, "DbofModel: iterations must be at least 0. Received: -1"),
        ({"dbof_cluster_size": 0}, "DbofModel: dbof_cluster_size must be at least 1. Received: 0"),
        ({"dbof_hidden_size": 0}, "DbofModel: dbof_hidden_size must be at least 1. Received: 0"),
        ({"dbof_pooling_method": "sum"}, "must be one of max, average. Received: 'sum'"),
        ({"moe_num_mixtures": 0}, "moe_num_mixtures must be at least 1. Received: 0"),
        ({"moe_l2": -0.5}, "moe_l2 must be at least 0. Received: -0.5"),
        ({"moe_l2": float("nan")}, "hyperparameter 'moe_l2' must be finite. Received: nan"),
        (
            {"video_level_classifier_model": "GruModel"},
            "video_level_classifier_model must be a video-level model. Received: GruModel",
        ),
        ({"video_level_classifier_model": "Moe"}, "unknown model 'Moe'. Registered models: "),
    ],
)
def test_build_model_rejects_bad_values_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        registry.build_model("DbofModel", **{**SIZES, **arguments})


NETVLAD_PROBLEMS = [
    ("iterations", -1, "must be at least 0. Received: -1"),
    ("netvlad_cluster_size", "0", "must be at least 1. Received: 0"),
    ("netvlad_cluster_size", "64,-2", "must be at least 1. Received: -2"),
    ("netvlad_cluster_size", "64,x", "must be integers .*, one per stream. Received: '64,x'"),
    ("netvlad_cluster_size", "64,", "must be integers .*, one per stream. Received: '64,'"),
    ("netvlad_cluster_size", "", "must be integers .*, one per stream. Received: ''"),
    ("netvlad_cluster_size", "6.5", "must be integers .*, one per stream. Received: '6.5'"),
    ("netvlad_hidden_size", 0, "must be at least 1. Received: 0"),
    ("nonlocal_embedding", "64,0", "must be at least 1. Received: 0"),
    ("nonlocal_embedding", "64;32", "must be integers .*, one per stream. Received: '64;32'"),
    ("nonlocal_scale", 0.0, "must be above 0. Received: 0.0"),
    ("nonlocal_scale", -1.0, "must be above 0. Received: -1.0"),
    (
        "nonlocal_pairwise",
        "concat",
        "must be one of embedded_gaussian, gaussian, dot_product. Received: 'concat'",
    ),
    ("nonlocal_start", "zero", "must be one of paper, identity. Received: 'zero'"),
    ("nonlocal_attention", "mean", "must be one of softmax, centered. Received: 'mean'"),
    ("moe_num_mixtures", 0, "must be at least 1. Received: 0"),
    ("moe_l2", -1.0, "must be at least 0. Received: -1.0"),
]
PROBLEMS = [
    *((name, *problem) for name in NETVLAD_MODELS for problem in NETVLAD_PROBLEMS),
    ("SoftBoFModel", "soft_bof_cluster_size", "0", "must be at least 1. Received: 0"),
    ("SoftBoFModel", "soft_bof_cluster_size", "8,x", "must be integers .* stream. Received: '8,x'"),
    ("SoftBoFModel", "soft_bof_hidden_size", 0, "must be at least 1. Received: 0"),
    ("SoftBoFModel", "moe_num_mixtures", 0, "must be at least 1. Received: 0"),
    ("GruModel", "classifier_dropout", 1.0, "must be at least 0 and below 1. Received: 1.0"),
    ("NetFVModel", "fv_cluster_size", "0", "must be at least 1. Received: 0"),
    ("NetFVModel", "fv_hidden_size", 0, "must be at least 1. Received: 0"),
    ("NetFVModel", "fv_second_order_norm", "l2", "must be one of global, intra. Received: 'l2'"),
    ("GatedDbofModel", "gated_dbof_cluster_size", "0", "must be at least 1. Received: 0"),
    ("GatedDbofModel", "gated_dbof_hidden_size", 0, "must be at least 1. Received: 0"),
    ("GatedDbofModel", "gated_dbof_streams", -1, "must be at least 0. Received: -1"),
    *(
        ("TransformerModel", f"transformer_{name}", 0, "must be at least 1. Received: 0")
        for name in ("units", "layers", "heads", "hidden_size", "queries")
    ),
    ("TransformerModel", "transformer_positions", -1, "must be at least 0. Received: -1"),
    *(
        (
            "TransformerModel",
            "transformer_dropout",
            value,
            f"must be at least 0 and below 1. Received: {value}",
        )
        for value in (-0.1, 1.0)
    ),
    (
        "TransformerModel",
        "transformer_units",
        12,
        "must be a multiple of transformer_heads, 8. Received: 12",
    ),
    (
        "TransformerModel",
        "transformer_pooling",
        "max",
        "must be one of mean, attention, class_token. Received: 'max'",
    ),
    ("LstmModel", "lstm_cells", 0, "must be at least 1. Received: 0"),
    ("LstmModel", "lstm_layers", 0, "must be at least 1. Received: 0"),
    ("GruModel", "gru_cells", 0, "must be at least 1. Received: 0"),
    ("GruModel", "gru_layers", 0, "must be at least 1. Received: 0"),
]


@pytest.mark.parametrize(("name", "argument", "value", "problem"), PROBLEMS)
def test_models_reject_bad_values_by_name(name, argument, value, problem):
    with pytest.raises(InputError, match=f"^{name}: {argument} {problem}$"):
        registry.build_model(name, **SIZES, **{argument: value})


def test_centered_attention_without_a_softmax_is_rejected():
    given = {"nonlocal_pairwise": "dot_product", "nonlocal_attention": "centered"}
    message = "^LFNLNetVLADModel: attention=centered needs a softmax, and pairwise=dot_product "
    with pytest.raises(InputError, match=message):
        registry.build_model("LFNLNetVLADModel", **SIZES, **given)


@pytest.mark.parametrize(
    ("name", "features", "given", "message"),
    [
        (
            "LFNLNetVLADModel",
            (4,),
            {"netvlad_cluster_size": "8,4", "nonlocal_embedding": "6,3"},
            "netvlad_cluster_size=8,4, nonlocal_embedding=6,3: there are more numbers than "
            "streams. The features form 1, of size 4. Give at most 1, for example "
            "netvlad_cluster_size=8, nonlocal_embedding=6.",
        ),
        (
            "EFNLNetVLADModel",
            (4, 2),
            {"nonlocal_embedding": "8,4"},
            "nonlocal_embedding=8,4: .* form 1, of size 6. .* example nonlocal_embedding=8.",
        ),
        (
            "SoftBoFModel",
            (4, 2),
            {"soft_bof_cluster_size": "8,4,2"},
            "soft_bof_cluster_size=8,4,2: .* form 2, of size 4, 2. .* soft_bof_cluster_size=8,4.",
        ),
    ],
)
def test_more_numbers_than_streams_are_rejected_with_the_numbers_to_give(
    name, features, given, message
):
    with pytest.raises(InputError, match=f"^{name}: {message}$"):
        registry.build_model(name, num_classes=3, feature_sizes=features, **given)


@pytest.mark.parametrize("name", ["LFNLNetVLADModel", "SoftBoFModel"])
def test_the_first_number_of_a_default_applies_to_a_single_stream(name):
    model = registry.build_model(name, num_classes=2, feature_sizes=(4,))
    assert model.clusters == [{"LFNLNetVLADModel": 64, "SoftBoFModel": 4000}[name]]
