"""Writes docs/later_models.md from the numbers of study/later_models.py.

python study/later_report.py --report_dir=docs
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import pandas as pd

import files
import later_plan
import plan
from options import Options, option
from seed_tables import (
    SavedTables,
    by_seed,
    claims_table,
    markdown_table,
    mean_and_deviation,
    spread,
)

FOLDER = "later_models"
# The branches of the mixture, each read out alone.
BRANCHES = {f"mix_nextvlad/branch{number}": f"its branch {number + 1} alone" for number in range(3)}
LOG = pathlib.Path(__file__).parent / "later_log.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Options of this program."""

    report_dir: str = option(
        FOLDER, f"Directory of the report and, in {FOLDER}, of its numbers.", group="output"
    )


@dataclasses.dataclass(frozen=True)
class Numbers(SavedTables):
    """All numbers.

    Attributes:
        numbers: `pandas.DataFrame` with columns world, subject, seed, split, metric and value.
        setting: dict: scale, date, device, versions.
    """

    numbers: pd.DataFrame

    made_by = "study/later_models.py"

    def by_seed(self, world, subject, metric="gap", split="test"):
        """Returns a metric by seed, `pandas.Series`; empty if it was not measured."""
        rows = self.numbers.query(
            "world == @world and subject == @subject and metric == @metric and split == @split"
        )
        return rows.set_index("seed")["value"]

    def parameters(self, subject):
        """Returns the number of weights of a subject."""
        rows = self.numbers.query("subject == @subject and metric == 'parameters'")
        return f"{rows['value'].iloc[0] / 1e6:.2f} M"


def to_markdown(found):
    """Returns the report of `Numbers`."""
    blocks = [
        "# The models that came after the paper, and its non-local block",
        "**These numbers come from generated videos, not from YouTube-8M.** They compare models in "
        "small worlds whose labels depend on known factors, and do not predict how they rank on "
        "real data.",
        _setting(found),
        "## Claims",
        "Differences are of GAP by seed, on the split `test`: mean and standard deviation, each "
        "seed, the p-value of a one-sided t-test, and a verdict. An advantage holds if its mean "
        "exceeds two standard deviations; the opposite holds if it is that far below 0. "
        '"Not below" holds if the loss, including two standard deviations, is at most 0.005. '
        "Nothing is corrected for the number of claims.",
        markdown_table(claims(found)),
        "## Models",
        "GAP of the last checkpoint, mean and standard deviation over the seeds; by seed where "
        "they are not alike. The columns after `bag` are GAP on its classes that differ in the "
        "order of two scenes, and how often their label scores above its sibling, the class of the "
        "reverse order. A model that cannot see the order is right half of the time.",
        markdown_table(models(found)),
        "## The non-local block",
        "LFNL-NetVLAD in `relational` with another world seed, from the paper's block to the one "
        "of [recipes/lfnl_netvlad_normalized.flags](../recipes/lfnl_netvlad_normalized.flags). "
        "Siblings differ in a relation of two residuals; the last column is how often the label "
        "scores above its sibling.",
        markdown_table(blocks_in_between(found)),
        "At twice the steps, and at twice the clusters, hidden units and embedding:",
        markdown_table(larger(found)),
        "The three models of the paper with residuals, GAP without the block, with the paper's and "
        "with the normalized one:",
        markdown_table(vlad_models(found)),
        "## A seventh member of the ensemble",
        "Mean of the predictions of the paper's six models in `bag`, and of one more.",
        markdown_table(ensembles(found)),
        LOG.read_text().strip(),
    ]
    return "\n\n".join(blocks) + "\n"


def _setting(found):
    setting = found.setting
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    worlds = ", ".join(
        f"{title} (world seed {seed})"
        for title, (_, seed) in zip(
            later_plan.WORLD_TITLES.values(), later_plan.WORLDS.values(), strict=True
        )
    )
    seeds = ", ".join(map(str, later_plan.SEEDS))
    return (
        f"Command: `KERAS_BACKEND=jax python study/later_models.py`, {setting['date']}, on one "
        f"{setting['device']}, {versions}. Worlds, sizes and recipe are those of the "
        f"[study](study.md): 1800 steps of {plan.BATCH_SIZE} videos, a learning rate of "
        f"{plan.LEARNING_RATE}, models of a quarter of their published widths; {worlds}. The seeds "
        f"of training, {seeds}, were not used before. All seeds of a model train as one program "
        "under JAX, with the models, losses and optimizers of `train.py`. Only the reading "
        "differs: all videos are in memory, and each epoch has a new order. Predictions draw one "
        "sampling of the frames. Choices are made on `validate`."
    )


def claims(found):
    """Returns the table of claims."""
    return claims_table(claim for claim in _claims(found) if claim[1].notna().any())


def _claims(found):
    """Yields claims, differences by seed and `verdict`'s `expected`."""
    gap, worlds = found.by_seed, later_plan.WORLD_TITLES
    for world in ("bag", "relational_2", "unrelated_2"):
        yield (
            f"NeXtVLAD ({found.parameters('nextvlad')}) above LFNL-NetVLAD "
            f"({found.parameters('lfnl_netvlad/paper')}), {worlds[world]}",
            gap(world, "nextvlad") - gap(world, "lfnl_netvlad/paper"),
        )
    for world in ("bag", "relational_2"):
        alone = gap(world, "branch")
        yield (
            "mixture of three NeXtVLADs above the mean of such branches trained alone, "
            f"{worlds[world]}",
            gap(world, "mix_nextvlad") - alone.mean(),
        )
        yield (
            f"mixture with distillation above the one without, {worlds[world]}",
            gap(world, "mix_nextvlad") - gap(world, "mix_undistilled"),
        )
    yield (
        "transformer with time above the one without, `bag`",
        gap("bag", "transformer") - gap("bag", "transformer_set"),
    )
    order = "gap_order"
    yield (
        "the same, GAP on the classes of order",
        gap("bag", "transformer", order) - gap("bag", "transformer_set", order),
    )
    yield (
        "transformer with time not below the GRU, GAP on the classes of order",
        gap("bag", "transformer", order) - gap("bag", "gru", order),
        "not below",
    )
    for name, title in later_plan.VLAD.items():
        for world in later_plan.WORLDS:
            is_relational = world.startswith("relational")
            yield (
                f"{title}: the normalized block {'above' if is_relational else 'not below'} no "
                f"block, {worlds[world]}",
                gap(world, f"{name}/normalized") - gap(world, f"{name}/none"),
                "above" if is_relational else "not below",
            )
    for suffix, title in (("steps", "twice the steps"), ("wide", "twice the width")):
        yield (
            f"LFNL-NetVLAD: the normalized block above no block at {title}, "
            f"{worlds['relational_2']}",
            gap("relational_2", f"lfnl_netvlad/normalized/{suffix}")
            - gap("relational_2", f"lfnl_netvlad/none/{suffix}"),
        )
    for name in later_plan.SEVENTH:
        yield (
            f"six models and {_title(name)} above six",
            gap("bag", f"six+{name}") - gap("bag", "six"),
        )
    yield (
        "a mixture of three NeXtVLADs adds more to six models than one NeXtVLAD",
        gap("bag", "six+mix_nextvlad") - gap("bag", "six+nextvlad"),
    )


def _title(name):
    known = later_plan.LATER | plan.MODELS
    return known[name].title


def models(found):
    """Returns the table of models."""
    names = [
        *(f"{name}/{block}" for name in later_plan.VLAD for block in ("none", "paper")),
        "soft_bof_4k",
        "gru",
        *later_plan.LATER,
    ]
    after = names.index("mix_nextvlad") + 1
    names[after:after] = BRANCHES
    titles = {subject.name: subject.model.title for subject in later_plan.SUBJECTS} | BRANCHES
    return pd.DataFrame(
        {
            "model": titles[name],
            "weights": "" if name in BRANCHES else found.parameters(name),
            "bag": spread(found.by_seed("bag", name)),
            "its classes of order": spread(found.by_seed("bag", name, "gap_order")),
            "siblings of order": spread(found.by_seed("bag", name, "siblings_order")),
            **{
                later_plan.WORLD_TITLES[world]: spread(found.by_seed(world, name))
                for world in ("relational_2", "unrelated_2")
            },
        }
        for name in names
    )


def blocks_in_between(found):
    """Returns the table of the variants of the block."""
    world, siblings = "relational_2", "siblings_relation"
    return pd.DataFrame(
        {
            "block": title,
            "GAP, validate": mean_and_deviation(
                found.by_seed(world, f"lfnl_netvlad/{block}", split="validate")
            ),
            "GAP, test": mean_and_deviation(found.by_seed(world, f"lfnl_netvlad/{block}")),
            "by seed": by_seed(found.by_seed(world, f"lfnl_netvlad/{block}"), 3),
            "right siblings": mean_and_deviation(
                found.by_seed(world, f"lfnl_netvlad/{block}", siblings)
            ),
        }
        for block, title in later_plan.BLOCK_TITLES.items()
    )


def larger(found):
    """Returns the table of more steps and larger models."""
    world = "relational_2"
    return pd.DataFrame(
        {
            "block": later_plan.BLOCK_TITLES[block],
            **{
                title: spread(found.by_seed(world, f"lfnl_netvlad/{block}{suffix}"))
                for suffix, title in (
                    ("", "as above"),
                    ("/steps", "twice the steps"),
                    ("/wide", "twice the width"),
                )
            },
        }
        for block in later_plan.COMPARED
    )


def vlad_models(found):
    """Returns the table of the block in the paper's models."""
    return pd.DataFrame(
        {
            "model": title,
            "block": later_plan.BLOCK_TITLES[block],
            **{
                later_plan.WORLD_TITLES[world]: spread(found.by_seed(world, f"{name}/{block}"))
                for world in later_plan.WORLDS
            },
            "right siblings, `relational`": spread(
                found.by_seed("relational", f"{name}/{block}", "siblings_relation")
            ),
        }
        for name, title in later_plan.VLAD.items()
        for block in later_plan.COMPARED
    )


def ensembles(found):
    """Returns the table of ensembles."""
    return pd.DataFrame(
        {
            "models": f"six and {_title(name)}" if name else "the paper's six",
            "weights of the seventh": found.parameters(name) if name else "-",
            "GAP": mean_and_deviation(found.by_seed("bag", f"six+{name}" if name else "six")),
            "of the seventh alone": (
                mean_and_deviation(found.by_seed("bag", name)) if name else "-"
            ),
        }
        for name in ("", *later_plan.SEVENTH)
    )


def main(options: ReportOptions):
    """Runs the program."""
    report_dir = pathlib.Path(options.report_dir)
    text = to_markdown(Numbers.load(report_dir / FOLDER))
    with files.atomic_write(str(report_dir / f"{FOLDER}.md")) as file:
        file.write(text)


if __name__ == "__main__":
    program.run(main)
