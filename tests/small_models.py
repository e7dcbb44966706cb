"""Small models of every kind with inputs and labels, for tests that go over all models."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import registry

FEATURE_SIZES = (6, 3)
D = sum(FEATURE_SIZES)
NUM_CLASSES = 4

SMALL_NETVLAD = {
    "iterations": 0,
    "netvlad_cluster_size": "4,3",
    "netvlad_hidden_size": 5,
    "nonlocal_embedding": "2,3",
}

SMALL_NEXTVLAD = {
    "nextvlad_groups": "2,1",
    "nextvlad_cluster_size": "3,2",
    "nextvlad_hidden_size": 6,
    "gating_reduction": 2,
}


def for_one_stream(hyperparameters):
    """Returns hyperparameters with only the first of several numbers per stream."""
    return {
        key: value.partition(",")[0] if isinstance(value, str) else value
        for key, value in hyperparameters.items()
    }


# Hyperparameters of a small model that otherwise has the defaults.
SMALL = {
    "DbofModel": {"iterations": 0, "dbof_cluster_size": 8, "dbof_hidden_size": 5},
    "EFNLNetVLADModel": for_one_stream(SMALL_NETVLAD),
    "FrameLevelLogisticModel": {},
    "GatedDbofModel": {
        "iterations": 0,
        "gated_dbof_cluster_size": "6,4",
        "gated_dbof_hidden_size": 5,
    },
    "GruModel": {"gru_cells": 5},
    "LFNLNetRVLADModel": SMALL_NETVLAD,
    "LFNLNetVLADModel": SMALL_NETVLAD,
    "LogisticModel": {},
    "LstmModel": {"lstm_cells": 5},
    "MixNeXtVLADModel": SMALL_NEXTVLAD,
    "MoeModel": {},
    "NetFVModel": {"iterations": 0, "fv_cluster_size": "4,3", "fv_hidden_size": 5},
    "NeXtVLADModel": SMALL_NEXTVLAD,
    "SoftBoFModel": {"iterations": 0, "soft_bof_cluster_size": "6,4", "soft_bof_hidden_size": 5},
    # Dropout would make training differ from call to call.
    "TransformerModel": {
        "transformer_units": 6,
        "transformer_layers": 2,
        "transformer_heads": 2,
        "transformer_hidden_size": 7,
        "transformer_dropout": 0.0,
        "transformer_positions": 8,
        "transformer_queries": 2,
    },
}

CHANGED_MOE = {"moe_num_mixtures": 3, "moe_l2": 0.5, "moe_prob_gating": True}
CHANGED_SAMPLING = {
    "normalize_frames": "none",
    "iterations": 3,
    "sample_random_frames": False,
}
CHANGED_FRAMES = {
    **CHANGED_SAMPLING,
    "classifier_dropout": 0.25,
    "video_level_classifier_model": "LogisticModel",
    "l2_penalty": 0.5,
}
CHANGED_NETVLAD = {
    **CHANGED_FRAMES,
    "netvlad_cluster_size": "3",
    "netvlad_hidden_size": 6,
    "nonlocal_block": False,
    "nonlocal_embedding": "3",
    "nonlocal_scale": 0.5,
    "nonlocal_pairwise": "gaussian",
    "nonlocal_normalize": True,
    "nonlocal_start": "identity",
    "nonlocal_attention": "centered",
    "gating": False,
}
CHANGED_NEXTVLAD = {
    **CHANGED_SAMPLING,
    "normalize_frames": "l2",
    "nextvlad_expansion": 3,
    "nextvlad_groups": "3",
    "nextvlad_cluster_size": "2",
    "nextvlad_hidden_size": 8,
    "gating_reduction": 1,
    "nextvlad_dropout": 0.25,
    "l2_penalty": 0.5,
}
# A small model in which every hyperparameter differs from its default.
CHANGED = {
    "DbofModel": {
        **CHANGED_FRAMES,
        "dbof_cluster_size": 7,
        "dbof_hidden_size": 6,
        "dbof_pooling_method": "average",
        "dbof_add_batch_norm": False,
    },
    "EFNLNetVLADModel": {**CHANGED_NETVLAD, "early_fusion": False, "netvlad_centers": False},
    "FrameLevelLogisticModel": {
        **CHANGED_SAMPLING,
        "classifier_dropout": 0.25,
        "video_level_classifier_model": "MoeModel",
        **CHANGED_MOE,
    },
    "GatedDbofModel": {
        **CHANGED_FRAMES,
        "gated_dbof_cluster_size": "5",
        "gated_dbof_hidden_size": 6,
        "gated_dbof_streams": 2,
        "gating": True,
    },
    "GruModel": {**CHANGED_FRAMES, "gru_cells": 4, "gru_layers": 1},
    "LFNLNetRVLADModel": {**CHANGED_NETVLAD, "early_fusion": True, "netvlad_centers": True},
    "LFNLNetVLADModel": {**CHANGED_NETVLAD, "early_fusion": True, "netvlad_centers": False},
    "LogisticModel": {"l2_penalty": 0.5},
    "LstmModel": {**CHANGED_FRAMES, "lstm_cells": 4, "lstm_layers": 1},
    "MixNeXtVLADModel": {
        **CHANGED_NEXTVLAD,
        "num_branches": 2,
        "distillation_weight": 0.5,
        "distillation_temperature": 2.0,
    },
    "MoeModel": CHANGED_MOE,
    "NetFVModel": {
        **CHANGED_FRAMES,
        "fv_cluster_size": "5",
        "fv_hidden_size": 6,
        "fv_second_order_norm": "intra",
        "gating": False,
    },
    "NeXtVLADModel": CHANGED_NEXTVLAD,
    "SoftBoFModel": {
        **CHANGED_FRAMES,
        "soft_bof_cluster_size": "5",
        "soft_bof_hidden_size": 6,
        "gating": True,
    },
    "TransformerModel": {
        **CHANGED_FRAMES,
        "transformer_units": 4,
        "transformer_layers": 1,
        "transformer_heads": 1,
        "transformer_hidden_size": 5,
        "transformer_dropout": 0.0,
        "transformer_positions": 2,
        "transformer_pooling": "class_token",
        "transformer_queries": 3,
    },
}
VARIANTS = {"small": SMALL, "changed": CHANGED}

MODELS = list(registry.models())
FRAME_LEVEL_MODELS = [name for name, model in registry.models().items() if model.frame_level]
# One model of each kind, for what does not depend on the settings in which its relatives differ.
FAMILIES = [
    "MoeModel",
    "DbofModel",
    "LstmModel",
    "GruModel",
    "LFNLNetVLADModel",
    "SoftBoFModel",
    "TransformerModel",
    "NetFVModel",
    "GatedDbofModel",
    "NeXtVLADModel",
    "MixNeXtVLADModel",
]
# Models that set other defaults of LFNLNetVLADModel or repeat another model. Their tests are slow.
RELATIVES = ["EFNLNetVLADModel", "LFNLNetRVLADModel", "MixNeXtVLADModel"]


def marked(name, *values, slow=tuple(RELATIVES)):
    """Returns a parameter of tests, marked as slow for the models in `slow`."""
    return pytest.param(name, *values, marks=[pytest.mark.slow] if name in slow else [])


def build(name, variant="small", *, num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **other):
    """Builds a model of `SMALL` or `CHANGED`, with other hyperparameters as given."""
    hyperparameters = {**VARIANTS[variant].get(name, {}), **other}
    return registry.build_model(
        name, num_classes=num_classes, feature_sizes=feature_sizes, **hyperparameters
    )


def shared(name, variant="small", **other):
    """Returns a model that tests share because building takes time; they must not change it."""
    given = {**VARIANTS[variant].get(name, {}), **other}
    given = registry.resolve(name, given)
    return build_once(name, num_classes=NUM_CLASSES, feature_sizes=FEATURE_SIZES, **given)


build_once = functools.cache(registry.build_model)


def make_inputs(name, num_frames=(3, 2, 5, 1, 4), *, size=D, seed=0):
    """Returns inputs of videos with the given numbers of frames."""
    rng = np.random.default_rng(seed)
    if name not in FRAME_LEVEL_MODELS:
        return rng.normal(size=(len(num_frames), size)).astype(np.float32)
    frames = rng.integers(0, 256, (len(num_frames), max(num_frames), size), dtype=np.uint8)
    for row, length in enumerate(num_frames):
        frames[row, length:] = 0
    return {"frames": frames, "num_frames": np.array(num_frames, np.int32)}


def signature(name):
    """Returns the specification of inputs of any number of videos and frames."""
    if name not in FRAME_LEVEL_MODELS:
        return tf.TensorSpec([None, D], tf.float32)
    frames = tf.TensorSpec([None, None, D], tf.uint8)
    return {"frames": frames, "num_frames": tf.TensorSpec([None], tf.int32)}


def make_labels(count, num_classes=NUM_CLASSES, seed=0):
    labels = np.random.default_rng(seed).random((count, num_classes)) < 0.4
    return labels.astype(np.float32)


def predict(model, inputs, training=False, **options):
    """Returns predictions; in training, with the random numbers that the model draws first."""
    if training:
        reset_random_numbers(model)
    return model(tf.nest.map_structure(tf.constant, inputs), training=training, **options)


def reset_random_numbers(model):
    """Makes a model sample frames and drop entries in the next call as in the call before."""
    for state in checkpoints.random_states(model):
        state.assign([3, 0])
