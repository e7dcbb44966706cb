"""Writes the study's report: tables next to the paper's, claims with verdicts, plots, and a log.

The report is a list of Markdown blocks and tables, from which an HTML page is converted.
"""

import pathlib

import pandas as pd

import files
import nonlocal_start
import plan
import plots
from report_page import document
from results import Results
from seed_tables import (
    ALIKE,
    TOLERANCE,
    by_seed,
    claims_table,
    markdown_table,
    p_value,
    spread,
    verdict,
)

FOLDER = "study"
TITLE = "Study: what each idea of the paper contributes"
LOG = pathlib.Path(__file__).parent / "log.md"

# GAP@20 in the paper's Tables 1 to 4, on its own validation split of YouTube-8M, and MB in float32.
PAPER_SINGLE = dict(zip(plan.SIX, (0.8703, 0.8687, 0.8674, 0.8525, 0.8512, 0.8568), strict=True))
PAPER_AVERAGED = dict(zip(plan.SIX, (0.8716, 0.8704, 0.8704, 0.8574, 0.8563, 0.8612), strict=True))
PAPER_SIZE = dict(zip(plan.SIX, (593, 478, 427, 109, 143, 243), strict=True))
PAPER_ENSEMBLES = (0.8752, 0.8778, 0.8782, 0.8800, 0.8820, 0.8839, 0.8842)
PAPER_SAMPLINGS = {1: 0.8842, 5: 0.8846, 10: 0.8847}

VARIANTS = {
    "last": "last checkpoint",
    "last_recomputed": "last, batch norm recomputed",
    "averaged": "averaged, batch norm recomputed",
    "averaged_mean_bn": "averaged, mean batch norm",
    "averaged_last_bn": "averaged, last batch norm",
    "ema": "moving average",
}


class Scores:
    """GAP by seed of all models and ensembles."""

    def __init__(self, results):
        keys = ["world", "subject", "variant", "seed"]
        self._gap = results.gap.set_index(keys)["gap"].sort_index()

    def by_seed(self, subject, variant="last", world="bag"):
        """`pandas.Series` of GAP by seed; empty if it was not run."""
        key = (world, subject, variant)
        return self._gap.loc[key] if key in self._gap.index else pd.Series(dtype=float)

    def table(self, subjects, variant="last"):
        """`pandas.DataFrame` of GAP in the world `bag`: seeds by subjects."""
        return pd.DataFrame({subject: self.by_seed(subject, variant) for subject in subjects})

    def text(self, *key, **more):
        """Mean and standard deviation over the seeds."""
        return spread(self.by_seed(*key, **more))


def write(report_dir):
    """Writes study.md, study/index.html and the plots from the numbers in the folder study.

    Args:
        report_dir: `pathlib.Path`. Directory for study.md.
    """
    folder = report_dir / FOLDER
    results = Results.load(folder)
    plots.write(results, folder)
    text = to_markdown(results)
    html = document.to_html(text, TITLE, report_dir)
    written = {report_dir / "study.md": text, folder / "index.html": html}
    for path, content in written.items():
        with files.atomic_write(str(path)) as file:
            file.write(content)


def to_markdown(results):
    """Returns the report as Markdown."""
    scores, scale = Scores(results), results.scale
    blocks = [
        "**These numbers come from generated videos, not from YouTube-8M.** They show what each "
        "idea of the paper contributes in small worlds whose labels depend on known factors. They "
        "do not predict how the models rank on real data.",
        f"# {TITLE}",
        _figures(
            gap_and_size="GAP in the world `bag` against the size of the weights in float32. Bars "
            "show one standard deviation.",
            curves="GAP on the test videos of the world `bag` during training, mean over the "
            "seeds.",
        ),
        _setting(results.setting, scale),
        "## Claims",
        "M1 to M6 are the paper's models, as numbered in Table 1. Differences of GAP are computed "
        "per seed; the table shows their mean and standard deviation over the seeds, and each of "
        "them. All seeds use the same videos of one world, so the deviation is that of training in "
        "this world, and worlds with other videos may differ more. An advantage holds if its mean "
        "exceeds two standard deviations. The opposite holds if the mean is that far below 0. "
        '"Not below" and "no gain" hold if the loss or gain, including two standard deviations, is '
        f'at most {TOLERANCE}, and "within 0.0005" if this is true of every seed. The world '
        "`relational` was selected for what a non-local block can learn there (see the log).",
        *_significance(scores, scale),
        markdown_table(claims(scores, scale)),
        "## Table 1: single models",
        "GAP@20 of the last checkpoint: mean and standard deviation over the seeds. Here and in "
        f"all tables, the values of the seeds follow if their deviation is above {ALIKE}: then the "
        "seeds are not alike, and no single number stands for them. Gated NetVLAD "
        "is LFNL-NetVLAD without the non-local block. In the dot product variant, the weights of "
        "the block are dot products instead of a softmax (embedded Gaussian). All predictions "
        "except those of Table 4 draw one sampling of the frames, the paper's protocol. The "
        "paper's numbers, here and below, are on YouTube-8M.",
        markdown_table(singles(results, scores)),
        "## GAP by factor",
        "GAP on the classes with each factor, evaluated separately. A model that cannot "
        "distinguish the classes of a pair can still recognize the pair and be right half of the "
        "time.",
        markdown_table(factors(results)),
        _figures(
            factors="GAP on the classes with each factor. Bars show one standard deviation, dotted "
            "lines the class prior.",
        ),
        *_siblings(results),
        "## What the non-local block does at first",
        *_plateau(results, scores),
        "## Table 2: averaged checkpoints",
        "This section and all following ones are on the world `bag`. Averages are of the last "
        f"{plan.AVERAGED_CHECKPOINTS} of {plan.CHECKPOINTS} checkpoints. The fair baseline is the "
        "last checkpoint with recomputed batch normalization statistics.",
        markdown_table(averages(scores, scale)),
        "## Table 3: ensembles",
        "Mean of the predictions of models with averaged checkpoints. The best member is "
        "determined per seed.",
        markdown_table(ensembles(scores, scale)),
        "## Table 4: samplings",
        f"The last ensemble of Table 3. Its models sample 32 of {plan.MIN_FRAMES} to "
        f"{plan.MAX_FRAMES} frames, except the GRU, which reads all frames. Without sampling, "
        "every frame counts once.",
        markdown_table(samplings(scores, scale)),
        "## Export",
        "The last ensemble of Table 3 as a single graph. Sizes on disk include the graph. Speed is "
        "that of eval.py with one thread and no other job running, including startup and reading. "
        "docs/performance.md reports how much larger models gain.",
        markdown_table(exports(results, scores)),
        "## Reliability of the probabilities",
        _figures(
            reliability="Fraction of positive labels by predicted probability, in the world `bag`. "
            "On the diagonal, predictions are calibrated probabilities.",
        ),
        "## Log",
        LOG.read_text(),
    ]
    return "\n\n".join(blocks)


def _setting(setting, scale):
    name = setting["scale"]
    command = "bash scripts/study.sh" + ("" if name == "full" else f" --scale={name}")
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    return (
        f"Command: `{command}`, {setting['date']}, on {setting['cores']} cores of "
        f"{setting['processor']}, {versions}, matmul precision {setting['matmul_precision']}. "
        f"{scale.num_videos} training and {scale.num_test_videos} test videos of "
        f"{plan.MIN_FRAMES} to {plan.MAX_FRAMES} frames, {plan.NUM_CLASSES} classes, features of "
        f"{plan.FEATURE_SIZES.replace(',', ' and ')} values. The paper's models have a quarter of "
        f"its widths. All models are trained on {scale.max_steps} batches of {plan.BATCH_SIZE} "
        f"videos, with Adam and a learning rate of {plan.LEARNING_RATE} "
        f"({plan.LEARNING_RATE_OF_MEAN_MODELS} for the two models of the mean) that is multiplied "
        f"by {plan.LEARNING_RATE_DECAY} after every 1/{plan.LEARNING_RATE_DECAYS} of training. "
        "Metrics are on the split `test`; recipes were selected on `validate`. "
        "docs/sample_data.md describes the worlds. In `bag`, labels depend on words, the order of "
        "frames, or only the sound. In `relational`, most depend on a relation between residuals. "
        "`unrelated` is the same world without that relation."
    )


def claims(scores, scale):
    """Claims that the paper's results suggest, the measured differences, and verdicts."""
    return claims_table(_tested(scores, scale))


def _significance(scores, scale):
    """Returns a paragraph on the p-values of all claims, or none if there is only one seed."""
    if len(scale.seeds) == 1:
        return []
    tested = [test for _, *test in _tested(scores, scale)]
    p_values = [p_value(*test) for test in tested if verdict(*test) == "holds"]
    corrected = 0.05 / len(tested)
    return [
        f"{len(tested)} claims are tested, without a correction for their number; "
        f"{len(p_values)} hold. p is that of a one-sided t-test of the claim over the seeds. With "
        f"{len(scale.seeds)} seeds, it depends much on the assumption that differences are "
        f"normally distributed. {sum(p < 0.01 for p in p_values)} of the claims that hold have "
        f"p < 0.01, and {sum(p < corrected for p in p_values)} have p < {corrected:.4f}, which "
        "Bonferroni's correction demands for 0.05."
    ]


def _tested(scores, scale):
    """Returns the claims of `_claims` that were run."""
    return [claim for claim in _claims(scores, scale) if claim[1].notna().any()]


def _claims(scores, scale):
    """Yields claims, differences of GAP by seed (NaN if not run) and `verdict`'s `expected`."""
    members, largest = scale.members, "+".join(scale.ensembles[-1])
    best_mean_model = scores.table(plan.MEAN_MODELS).max(axis=1)
    for name in members:
        yield (
            f"{_short([name])} above the best model of the mean",
            scores.by_seed(name) - best_mean_model,
        )
    last, how = "last", ""
    if "last_recomputed" in scale.averages:
        last, how = "last_recomputed", ", batch norm recomputed in both"
    for name in members:
        yield (
            f"averaged checkpoints of {_short([name])} above the last one{how}",
            scores.by_seed(name, "averaged") - scores.by_seed(name, last),
        )
    yield (
        "moving average of the weights above the last checkpoint, mean over the models",
        scores.table(members, "ema").mean(axis=1) - scores.table(members).mean(axis=1),
    )
    for names in scale.ensembles:
        yield (
            f"{_short(names)} together above the best of them",
            scores.by_seed("+".join(names), "samplings1")
            - scores.table(names, "averaged").max(axis=1),
        )
    yield (
        "10 samplings not below 1",
        scores.by_seed(largest, "samplings10") - scores.by_seed(largest, "samplings1"),
        "not below",
    )
    yield (
        "bfloat16 within 0.0005 of float32",
        scores.by_seed(largest, "exported_bfloat16") - scores.by_seed(largest, "exported_float32"),
        "equal",
    )
    for world in ("bag", "relational", "unrelated"):
        claim = "no gain over" if world == "unrelated" else "above"
        for name, block in (("lfnl_netvlad", "embedded Gaussian"), ("lfnl_dot", "dot product")):
            yield (
                f"non-local block, {block}: {claim} NetVLAD without the block ({world})",
                scores.by_seed(name, world=world) - scores.by_seed("netvlad", world=world),
                claim.removesuffix(" over"),
            )


def singles(results, scores):
    """Table 1."""
    sizes = results.sizes.set_index("subject")["mib"]
    return pd.DataFrame(
        {
            "model": _title(name),
            **{world: scores.text(name, world=world) for world in results.scale.worlds},
            "MiB": _number(sizes.get(name), ".2f"),
            "GAP in the paper": _number(PAPER_SINGLE.get(name)),
            "MB in the paper": _number(PAPER_SIZE.get(name), "d"),
        }
        for name in ("prior", *plan.MODELS)
        if name == "prior" or name in sizes
    )


def factors(results):
    """GAP by factor."""
    fractions = results.factors.groupby(["world", "factor"])["label_fraction"].mean()
    gap = results.factors.groupby(["subject", "world", "factor"])["gap"].agg(spread)
    return pd.DataFrame(
        {
            "model": _title(name),
            **{
                f"{world}: {factor} ({fraction:.0%} of labels)": gap.get((name, world, factor), "-")
                for (world, factor), fraction in fractions.items()
            },
        }
        for name in ("prior", *plan.MODELS)
        if name in gap.index
    )


def _siblings(results):
    """Returns blocks about the right siblings."""
    if results.siblings.empty:
        return [
            "[later_models.md](later_models.md#the-non-local-block) has the share of right "
            "siblings in `relational`, from five trainings with other seeds."
        ]
    share = results.siblings.groupby("subject")["share"].agg(spread)
    return [
        "### Right siblings",
        "The share of labels that score above the other class of their pair, among the labels with "
        "a relation in `relational`. Videos with both classes of the pair as labels do not count. "
        "0.5 is chance: only the relation tells the two classes apart.",
        markdown_table(
            pd.DataFrame(
                {"model": _title(name), "right siblings": share[name]}
                for name in plan.MODELS
                if name in share.index
            )
        ),
    ]


def _plateau(results, scores):
    """Returns blocks about the non-local block with initial weights, and what follows."""
    blocks = [
        "With initial weights, the softmax of the paper's block is almost uniform. So it adds "
        "almost the same vector to the residuals of all clusters of a video, and makes them more "
        "alike. The table shows, for M1 and the first "
        f"{nonlocal_start.NUM_VIDEOS} test videos: the mean cosine between the vectors that the "
        "block adds to two clusters; their size relative to the median residual; and the mean "
        "cosine between two residuals in front of the block and behind it. Residuals of clusters "
        "with few frames drown in the common vector before each is scaled to norm 1, and with them "
        "the relations between residuals.",
        markdown_table(first_steps(results)),
    ]
    if "relational" in results.scale.worlds:
        with_block, without = (
            scores.by_seed(name, world="relational") for name in ("lfnl_netvlad", "netvlad")
        )
        of_relation = results.factors.query("world == 'relational' and factor == 'relation'")
        of_relation = of_relation.set_index("subject")["gap"]
        blocks.append(
            "This is a likely reason why training with the block can stay on a plateau. In "
            f"`relational`, M1 scores {by_seed(with_block, 3)} by seed, and NetVLAD without the "
            f"block {by_seed(without, 3)}. On the classes with a relation, M1 scores "
            f"{by_seed(of_relation['lfnl_netvlad'], 3)}, and the MoE on the mean, which cannot see "
            f"relations, {by_seed(of_relation['moe'], 3)}."
        )
    blocks.append(
        "[Wang et al.](https://arxiv.org/abs/1711.07971), who introduced non-local blocks, start "
        "them as the identity: the output weights are 0. The block of the paper's code does not, "
        "and the paper has no comparison with NetVLAD without the block. The options "
        "`--nonlocal_start=identity`, `--nonlocal_normalize` and `--nonlocal_attention=centered` "
        "change the state at first. [later_models.md](later_models.md#the-non-local-block) "
        "compares them with five other seeds, also in a second world. There the block of the "
        "recipe `lfnl_netvlad_normalized` gains in every training."
    )
    return blocks


def first_steps(results):
    """What the non-local block does with initial weights, by world and feature."""
    table = results.nonlocal_start.groupby(["world", "feature"])
    columns = {
        "cosine between added vectors": "added_cosine",
        "their relative size": "added_size",
        "cosine between residuals before": "cosine_before",
        "after": "cosine_after",
    }
    return pd.DataFrame(
        {
            "world": world,
            "feature": feature,
            **{title: spread(rows[name]) for title, name in columns.items()},
        }
        for (world, feature), rows in table
    )


def averages(scores, scale):
    """Table 2."""
    return pd.DataFrame(
        {
            "model": _title(name),
            **{
                title: scores.text(name, variant)
                for variant, title in VARIANTS.items()
                if len(scores.by_seed(scale.members[0], variant))
            },
            "paper": f"{PAPER_SINGLE[name]:.4f} → {PAPER_AVERAGED[name]:.4f}",
        }
        for name in scale.members
    )


def ensembles(scores, scale):
    """Table 3."""
    paper = {
        tuple(plan.SIX[number - 1] for number in numbers): gap
        for numbers, gap in zip(plan.ENSEMBLES, PAPER_ENSEMBLES, strict=True)
    }

    def row(names):
        members = scores.table(names, "averaged")
        best = [name for name in names if name in set(members.idxmax(axis=1))]
        return {
            "models": _short(names),
            "GAP": scores.text("+".join(names), "samplings1"),
            "best member": f"{spread(members.max(axis=1))} ({_short(best, ' or ')})",
            "paper": f"{paper[names]:.4f}",
        }

    return pd.DataFrame(map(row, scale.ensembles))


def samplings(scores, scale):
    """Table 4."""
    largest = "+".join(scale.ensembles[-1])
    return pd.DataFrame(
        {
            "samplings": str(number) if number else "none, every frame once",
            "GAP": scores.text(largest, f"samplings{number}"),
            "paper": _number(PAPER_SAMPLINGS.get(number)),
        }
        for number in plan.SAMPLINGS
    )


def exports(results, scores):
    """Exported ensembles in float32 and bfloat16."""
    largest = "+".join(results.scale.ensembles[-1])
    by_dtype = results.exported.groupby("dtype")[["mib", "videos_per_second"]].mean()
    return pd.DataFrame(
        {
            "weights": dtype,
            "GAP": scores.text(largest, f"exported_{dtype}"),
            "MiB on disk": f"{by_dtype.mib[dtype]:.2f}",
            "videos/s": f"{by_dtype.videos_per_second[dtype]:.0f}",
        }
        for dtype in plan.EXPORT_DTYPES
    )


def _short(names, separator=" + "):
    """Formats models as their numbers in the paper, such as M1 + M4."""
    return separator.join(f"M{plan.SIX.index(name) + 1}" for name in names)


def _title(name):
    """Title of a model, with its number in the paper if it has one."""
    if name == "prior":
        return "class prior"
    return (f"{_short([name])} " if name in plan.SIX else "") + plan.MODELS[name].title


def _number(value, style=".4f"):
    return "-" if value is None else format(value, style)


def _figures(**alts):
    return document.figures(FOLDER, alts)
