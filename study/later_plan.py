"""Worlds, models and variants of the study of later models.

Models have a quarter of their published widths, and the recipe of the study (`plan.py`).
"""

import dataclasses

import plan

# Variants of the non-local block, from the paper's to the one that recipes/
# lfnl_netvlad_normalized.flags names. "embedding" stands for the block's sizes.
_DOT = "--nonlocal_pairwise=dot_product"
_IDENTITY, _NORMALIZE = "--nonlocal_start=identity", "--nonlocal_normalize"
BLOCKS = {
    "none": "--nononlocal_block",
    "paper": "",
    "softmax_identity": _IDENTITY,
    "softmax_normalized": _NORMALIZE,
    "softmax_normalized_identity": f"{_NORMALIZE} {_IDENTITY}",
    "centered": f"{_NORMALIZE} {_IDENTITY} --nonlocal_attention=centered",
    "dot": _DOT,
    "dot_identity": f"{_DOT} {_IDENTITY}",
    "dot_normalized": f"{_DOT} {_NORMALIZE} --nonlocal_scale=0.25",
    "normalized": f"{_DOT} {_NORMALIZE} {_IDENTITY} --nonlocal_scale=0.25",
}
BLOCK_TITLES = {
    "none": "no block",
    "paper": "the paper's block",
    "softmax_identity": "softmax, identity start",
    "softmax_normalized": "softmax, normalized",
    "softmax_normalized_identity": "softmax, normalized, identity start",
    "centered": "centered softmax, normalized, identity start",
    "dot": "dot product",
    "dot_identity": "dot product, identity start",
    "dot_normalized": "dot product, normalized",
    "normalized": "dot product, normalized, identity start",
}
# Those that are compared in every VLAD model and world.
COMPARED = ("none", "paper", "normalized")
# The VLAD models of the paper, without their block's flags.
VLAD = {
    "lfnl_netvlad": "LFNL-NetVLAD",
    "lfnl_netrvlad": "LFNL-NetRVLAD",
    "efnl_netvlad": "EFNL-NetVLAD",
}
_WIDE = (
    "--model=LFNLNetVLADModel --iterations=32 --netvlad_cluster_size=32,16 "
    "--netvlad_hidden_size=512 --nonlocal_embedding=32,16"
)
_NEXTVLAD = "--nextvlad_hidden_size=512"
_TRANSFORMER = (
    "--model=TransformerModel --transformer_units=128 --transformer_layers=2 "
    "--transformer_heads=4 --transformer_hidden_size=512"
)
_ORDERED = f"{_TRANSFORMER} --transformer_positions={plan.MAX_FRAMES}"
_SET = f"{_TRANSFORMER} --transformer_positions=0"

LATER = {
    "nextvlad": plan.Model(
        "NeXtVLAD",
        f"--model=NeXtVLADModel --nextvlad_cluster_size=32,16 --gating_reduction=8 {_NEXTVLAD}",
    ),
    "branch": plan.Model(
        "NeXtVLAD, size of a branch",
        f"--model=NeXtVLADModel --nextvlad_cluster_size=28,14 --gating_reduction=16 {_NEXTVLAD}",
    ),
    "mix_nextvlad": plan.Model(
        "MixNeXtVLAD, three branches",
        f"--model=MixNeXtVLADModel --nextvlad_cluster_size=28,14 --gating_reduction=16 {_NEXTVLAD}",
    ),
    "mix_undistilled": plan.Model(
        "MixNeXtVLAD, without distillation",
        "--model=MixNeXtVLADModel --nextvlad_cluster_size=28,14 --gating_reduction=16 "
        f"{_NEXTVLAD} --distillation_weight=0",
    ),
    "transformer": plan.Model("transformer", _ORDERED),
    "transformer_slow": plan.Model("transformer, learning rate 0.001", _ORDERED, 0.001),
    "transformer_set": plan.Model("transformer without time", _SET),
    "transformer_set_slow": plan.Model(
        "transformer without time, learning rate 0.001", _SET, 0.001
    ),
    "netfv": plan.Model(
        "NetFV",
        "--model=NetFVModel --iterations=32 --fv_cluster_size=16,8 --fv_hidden_size=256",
    ),
    "gated_dbof": plan.Model(
        "gated DBoF",
        "--model=GatedDbofModel --iterations=32 --gated_dbof_cluster_size=1000,125 "
        "--gated_dbof_hidden_size=256",
    ),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is trained in a world, with all seeds.

    Attributes:
        world: key of `WORLDS`.
        name: name in the tables of numbers.
        model: `plan.Model`.
        times_steps: factor on the number of steps.
    """

    world: str
    name: str
    model: plan.Model
    times_steps: int = 1


# Name and seed of each world. The study has the worlds of seed 0.
WORLDS = {
    "bag": ("bag", 0),
    "relational_2": ("relational", 1),
    "unrelated_2": ("unrelated", 1),
    "relational": ("relational", 0),
}
WORLD_TITLES = {
    "bag": "`bag`",
    "relational_2": "`relational`, another world seed",
    "unrelated_2": "`unrelated`, another world seed",
    "relational": "`relational`",
}
# The log says which seeds the variant of the block was found with.
SEEDS = (10, 11, 12, 13, 14)


def with_block(name, block, flags=None):
    """Returns a VLAD model of the study with a variant of the non-local block."""
    flags = plan.MODELS[name].flags if flags is None else flags
    return plan.Model(f"{VLAD[name]}, {BLOCK_TITLES[block]}", f"{flags} {BLOCKS[block]}")


def _subjects():
    """Yields all subjects, in the order in which they are trained."""
    for world in WORLDS:
        for name in VLAD:
            for block in BLOCKS:
                if _is_trained(world, name, block):
                    yield Subject(world, f"{name}/{block}", with_block(name, block))
        if world != "relational":
            names = ("gru", "soft_bof_4k", *(("soft_bof_8k",) if world == "bag" else ()))
            for name, model in ({name: plan.MODELS[name] for name in names} | LATER).items():
                yield Subject(world, name, model)
    for block in COMPARED:
        model, wide = (with_block("lfnl_netvlad", block, flags) for flags in (None, _WIDE))
        yield Subject("relational_2", f"lfnl_netvlad/{block}/steps", model, times_steps=2)
        yield Subject("relational_2", f"lfnl_netvlad/{block}/wide", wide)


def _is_trained(world, name, block):
    return block in COMPARED or (world == "relational_2" and name == "lfnl_netvlad")


SUBJECTS = tuple(_subjects())
# Ensembles in the world `bag`: the paper's six models, and those with one more.
SIX = (
    "lfnl_netvlad/paper",
    "lfnl_netrvlad/paper",
    "efnl_netvlad/paper",
    "soft_bof_4k",
    "soft_bof_8k",
    "gru",
)
SEVENTH = ("mix_nextvlad", "nextvlad", "transformer_slow")
