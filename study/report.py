"""Writes what the study found: tables beside the paper's, claims and verdicts, plots, an HTML page.

The report is a list of blocks, which are written as Markdown and as HTML.
"""

import base64
import dataclasses
import html
import pathlib
import re

import pandas as pd

import files
import plan
import plots
from results import Results

FOLDER = "study"
LOG = pathlib.Path(__file__).parent / "log.md"

# GAP@20 of the paper's Tables 1 to 4, on its own validation split of YouTube-8M, and MB in float32.
PAPER_SINGLE = dict(zip(plan.SIX, (0.8703, 0.8687, 0.8674, 0.8525, 0.8512, 0.8568), strict=True))
PAPER_AVERAGED = dict(zip(plan.SIX, (0.8716, 0.8704, 0.8704, 0.8574, 0.8563, 0.8612), strict=True))
PAPER_SIZE = dict(zip(plan.SIX, (593, 478, 427, 109, 143, 243), strict=True))
PAPER_COMBINATIONS = (0.8752, 0.8778, 0.8782, 0.8800, 0.8820, 0.8839, 0.8842)
PAPER_SAMPLINGS = {1: 0.8842, 5: 0.8846, 10: 0.8847}

# Loss or gain of GAP that does not count.
TOLERANCE = 0.005

TREATMENTS = {
    "last": "last checkpoint",
    "last_recomputed": "last, batch norm anew",
    "averaged": "averaged, batch norm anew",
    "averaged_mean_bn": "averaged, mean batch norm",
    "averaged_last_bn": "averaged, last batch norm",
    "ema": "moving average",
}


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot, by the name of its files, and what it shows."""

    name: str
    caption: str


class Scores:
    """GAP by seed of whatever was evaluated."""

    def __init__(self, results):
        keys = ["world", "subject", "treatment", "seed"]
        self._gap = results.gap.set_index(keys)["gap"].sort_index()

    def by_seed(self, subject, treatment="last", world="bag"):
        """`pandas.Series` of GAP by seed; None if it was not run."""
        key = (world, subject, treatment)
        return self._gap.loc[key] if key in self._gap.index else None

    def table(self, subjects, treatment="last"):
        """`pandas.DataFrame` of GAP in the world `bag`: seeds by subjects."""
        by_subject = {subject: self.by_seed(subject, treatment) for subject in subjects}
        return pd.DataFrame(by_subject)

    def text(self, *key, **more):
        """Mean and standard deviation over the seeds."""
        return spread(self.by_seed(*key, **more))


def spread(values):
    """Mean and standard deviation of a series as text; a dash for None."""
    if values is None or not len(values):
        return "-"
    deviation = f" ± {values.std():.4f}" if len(values) > 1 else ""
    mean = round(values.mean(), 4) + 0.0  # without the sign of a rounded -0.00001
    return f"{mean:.4f}{deviation}"


def write(report_dir):
    """Writes study.md, study/index.html and the plots from the numbers in the folder study.

    Args:
        report_dir: `pathlib.Path`. Where study.md goes.
    """
    folder = report_dir / FOLDER
    results = Results.load(folder)
    plots.write(results, folder)
    blocks = make_blocks(results)
    with files.atomic_write(str(report_dir / "study.md")) as file:
        file.write(to_markdown(blocks))
    with files.atomic_write(str(folder / "index.html")) as file:
        file.write(to_html(blocks, folder))


def make_blocks(results):
    """The report: `Heading`s, paragraphs (str), tables (`pandas.DataFrame`) and `Figure`s."""
    scores, scale = Scores(results), results.scale
    return [
        "**These numbers come from generated videos, not from YouTube-8M.** They show what each "
        "idea of the paper brings in small worlds whose labels need known ingredients; they do not "
        "tell how the models rank on real data.",
        _setting(results.setting, scale),
        Heading("What holds"),
        "M1 to M6 are the paper's models, as numbered in Table 1. Differences of GAP are taken "
        "seed by seed, with mean and standard deviation over the seeds. All seeds have the same "
        "videos, so that the deviation is that of training alone. An advantage holds if the mean "
        "is above two standard deviations, and its opposite if it is as far below 0. "
        f'"Not below" and "no gain" hold if less than {TOLERANCE} is lost or gained, two standard '
        'deviations included, and "within 0.0005" if every seed is. Of the worlds, `relational` '
        "was chosen for what a non-local block can learn there (see the log).",
        claims(scores, scale),
        Heading("Table 1: single models"),
        "GAP@20 of the last checkpoint; mean and standard deviation over the seeds. Gated NetVLAD "
        "is LFNL-NetVLAD without the non-local block; with a dot product, the block weighs by "
        "products instead of a softmax (embedded Gaussian). What is said of the paper, here and "
        "below, is on YouTube-8M.",
        singles(results, scores),
        Figure(
            "gap_and_size",
            "GAP of the world bag against the size of the weights in float32; bars are a standard "
            "deviation.",
        ),
        Figure(
            "curves",
            "GAP on the test videos of the world bag while training, mean over the seeds.",
        ),
        Heading("What the labels need"),
        "GAP of the classes that one ingredient tells apart, each group by itself. A model that "
        "cannot tell siblings apart still finds the pair, and one of two is right.",
        ingredients(results),
        Figure(
            "ingredients",
            "GAP of the classes that need an ingredient; bars are a standard deviation, dotted "
            "lines the class prior.",
        ),
        Heading("Table 2: averaged checkpoints"),
        f"In the world `bag`, as all that follows. The last {plan.AVERAGED_CHECKPOINTS} of "
        f"{plan.CHECKPOINTS} checkpoints. The fair control is the last checkpoint with its batch "
        "normalisation computed anew as well.",
        averages(scores, scale),
        Heading("Table 3: ensembles"),
        "Averaged checkpoints; the plain mean of the predictions. The best member is that of each "
        "seed.",
        combinations(scores, scale),
        Heading("Table 4: samplings"),
        f"The last ensemble of Table 3. Its models sample 32 of {plan.MIN_FRAMES} to "
        f"{plan.MAX_FRAMES} frames, but a GRU takes all. Without sampling every frame counts once.",
        samplings(scores, scale),
        Heading("Export"),
        "The last ensemble as one graph. Sizes include the graph itself. The speed is that of "
        "eval.py with one thread and nothing beside it, start and reading included; what larger "
        "models gain is in docs/performance.md.",
        exports(results, scores),
        Heading("Reliability of the probabilities"),
        Figure(
            "reliability",
            "Share of classes that were true, by predicted probability, in the world bag. On the "
            "diagonal, predictions can be taken as probabilities.",
        ),
        Heading("Log"),
        LOG.read_text().strip(),
    ]


def _setting(setting, scale):
    name = setting["scale"]
    command = "bash scripts/study.sh" + ("" if name == "full" else f" --scale={name}")
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    return (
        f"Command: `{command}`, {setting['date']}, on {setting['cores']} cores of "
        f"{setting['processor']}, {versions}, matrix products in {setting['products']}. "
        f"{scale.num_videos} training and {scale.num_test_videos} "
        f"test videos of {plan.MIN_FRAMES} to {plan.MAX_FRAMES} frames, {plan.NUM_CLASSES} "
        f"classes, features of {plan.FEATURE_SIZES.replace(',', ' and ')} values. The paper's "
        f"models have a quarter of its widths; all see {scale.max_steps} batches of "
        f"{plan.BATCH_SIZE} videos, with Adam and a learning rate of {plan.LEARNING_RATE} "
        f"({plan.LEARNING_RATE_OF_THE_MEAN} in the two models of the mean), "
        f"multiplied by {plan.LEARNING_RATE_DECAY} after every 1/{plan.LEARNING_RATE_DECAYS} of "
        "training. Figures are of the split `test`; recipes were chosen by another, `validate`. "
        "docs/sample_data.md describes the worlds: in `bag`, labels need words, the order of "
        "frames or the sound alone; in `relational`, most need a relation between residuals; "
        "`unrelated` is the same world with that relation taken out."
    )


def verdict(differences, expected="above"):
    """Whether differences of GAP by seed are as expected.

    Args:
        differences: `pandas.Series`.
        expected: str. `above`: the mean is above 0 by two standard deviations. `not below` or `no
            gain`: it is within `TOLERANCE` of 0 on that side, two standard deviations included.
            `equal`: all are within 0.0005.
    """
    if len(differences) == 1:
        return "one seed, no verdict"
    mean, margin = differences.mean(), 2 * differences.std()
    if expected == "above" and mean < -margin:
        return "**the opposite holds**"
    holds = {
        "above": mean > margin,
        "not below": mean - margin >= -TOLERANCE,
        "no gain": mean + margin <= TOLERANCE,
        "equal": differences.abs().max() <= 5e-4,
    }[expected]
    return "holds" if holds else "**does not hold**"


def claims(scores, scale):
    """What the paper makes one expect, the difference measured, and whether it holds."""
    rows = []

    def add(claim, differences, expected="above"):
        if differences is not None:
            rows.append(
                {
                    "claim": claim,
                    "difference": spread(differences),
                    "verdict": verdict(differences, expected),
                }
            )

    def gain(better, worse):
        return None if better is None or worse is None else better - worse

    of_the_mean = [name for name in plan.MEAN_POOLED if name in scale.worlds["bag"]]
    if of_the_mean:
        best = scores.table(of_the_mean).max(axis=1)
        for name in scale.members:
            add(
                f"{_short([name])} above the best model of the mean",
                gain(scores.by_seed(name), best),
            )
    anew = "last_recomputed" in scale.averages
    control = "last_recomputed" if anew else "last"
    for name in scale.members:
        add(
            f"averaged checkpoints of {_short([name])} above the last one"
            + (", batch norm anew in both" if anew else ""),
            gain(scores.by_seed(name, "averaged"), scores.by_seed(name, control)),
        )
    add(
        "moving average of the weights above the last checkpoint, mean of the models",
        gain(*(scores.table(scale.members, which).mean(axis=1) for which in ("ema", "last"))),
    )
    for names in scale.combinations:
        add(
            f"{_short(names)} together above the best of them",
            gain(
                scores.by_seed("+".join(names), "samplings1"),
                scores.table(names, "averaged").max(axis=1),
            ),
        )
    everyone = "+".join(scale.combinations[-1])
    add(
        "10 samplings not below 1",
        gain(scores.by_seed(everyone, "samplings10"), scores.by_seed(everyone, "samplings1")),
        "not below",
    )
    exported = [scores.by_seed(everyone, f"exported_{dtype}") for dtype in plan.EXPORT_DTYPES]
    add("bfloat16 within 0.0005 of float32", exported[1] - exported[0], "equal")
    for world, expected, what in (
        ("bag", "above", "above NetVLAD without the block"),
        ("relational", "above", "above NetVLAD without the block"),
        ("unrelated", "no gain", "no gain over NetVLAD without the block"),
    ):
        plain = scores.by_seed("netvlad", world=world)
        for name in ("lfnl_netvlad", "lfnl_dot"):
            title = {"lfnl_netvlad": "embedded Gaussian", "lfnl_dot": "dot product"}[name]
            add(
                f"non-local block, {title}: {what} ({world})",
                gain(scores.by_seed(name, world=world), plain),
                expected,
            )
    return pd.DataFrame(rows)


def singles(results, scores):
    """Table 1."""
    sizes = results.sizes.set_index("subject")["mib"]
    worlds = results.scale.worlds
    rows = [
        {"model": _title("prior"), **{world: scores.text("prior", world=world) for world in worlds}}
    ]
    for name in plan.MODELS:
        if name in sizes.index:
            rows.append(
                {
                    "model": _title(name),
                    **{world: scores.text(name, world=world) for world in worlds},
                    "MiB": f"{sizes[name]:.2f}",
                    "GAP in the paper": _number(PAPER_SINGLE.get(name)),
                    "MB in the paper": _number(PAPER_SIZE.get(name), "d"),
                }
            )
    return pd.DataFrame(rows).fillna("-")


def ingredients(results):
    """GAP by ingredient."""
    table = results.ingredients
    share = table.groupby(["world", "ingredient"])["labels"].mean()
    rows = []
    for name in ("prior", *plan.MODELS):
        row = {"model": _title(name)}
        for (world, ingredient), labels in share.items():
            chosen = table[
                (table.world == world) & (table.ingredient == ingredient) & (table.subject == name)
            ]
            row[f"{world}: {ingredient} ({labels:.0%} of labels)"] = spread(chosen["gap"])
        if set(row.values()) - {row["model"], "-"}:
            rows.append(row)
    return pd.DataFrame(rows)


def averages(scores, scale):
    """Table 2."""
    return pd.DataFrame(
        {
            "model": _title(name),
            **{
                title: scores.text(name, treatment)
                for treatment, title in TREATMENTS.items()
                if scores.by_seed(scale.members[0], treatment) is not None
            },
            "paper": f"{PAPER_SINGLE[name]:.4f} → {PAPER_AVERAGED[name]:.4f}",
        }
        for name in scale.members
    )


def combinations(scores, scale):
    """Table 3."""
    paper = {
        tuple(plan.SIX[number - 1] for number in numbers): gap
        for numbers, gap in zip(plan.COMBINATIONS, PAPER_COMBINATIONS, strict=True)
    }
    rows = []
    for names in scale.combinations:
        members = scores.table(names, "averaged")
        best = [name for name in names if name in set(members.idxmax(axis=1))]
        rows.append(
            {
                "models": _short(names),
                "GAP": scores.text("+".join(names), "samplings1"),
                "best member": f"{spread(members.max(axis=1))} ({_short(best, ' or ')})",
                "paper": f"{paper[names]:.4f}",
            }
        )
    return pd.DataFrame(rows)


def samplings(scores, scale):
    """Table 4."""
    everyone = "+".join(scale.combinations[-1])
    return pd.DataFrame(
        {
            "samplings": str(number) if number else "none, every frame once",
            "GAP": scores.text(everyone, f"samplings{number}"),
            "paper": _number(PAPER_SAMPLINGS.get(number)),
        }
        for number in plan.SAMPLINGS
    )


def exports(results, scores):
    """float32 against bfloat16."""
    everyone = "+".join(results.scale.combinations[-1])
    by_dtype = results.exported.groupby("dtype")[["mib", "videos_per_second"]].mean()
    return pd.DataFrame(
        {
            "weights": dtype,
            "GAP": scores.text(everyone, f"exported_{dtype}"),
            "MiB on disk": f"{by_dtype.mib[dtype]:.2f}",
            "videos/s": f"{by_dtype.videos_per_second[dtype]:.0f}",
        }
        for dtype in plan.EXPORT_DTYPES
    )


def _short(names, separator=" + "):
    """Models by their numbers in the paper, as M1 + M4."""
    return separator.join(f"M{plan.SIX.index(name) + 1}" for name in names)


def _title(name):
    """A model's title, with the paper's number if it has one."""
    if name == "prior":
        return "class prior"
    return (f"{_short([name])} " if name in plan.SIX else "") + plan.MODELS[name].title


def _number(value, style=".4f"):
    return "-" if value is None else format(value, style)


def to_markdown(blocks):
    """The report as Markdown."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block.text}")
        elif isinstance(block, Figure):
            parts.append(
                f'<picture><source media="(prefers-color-scheme: dark)" '
                f'srcset="{FOLDER}/{block.name}_dark.png">'
                f'<img alt="{block.caption}" src="{FOLDER}/{block.name}_light.png" width="600">'
                f"</picture>\n\n*{block.caption}*"
            )
        elif isinstance(block, pd.DataFrame):
            lines = [block.columns, ["---"] * len(block.columns), *block.to_numpy()]
            parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
        else:
            parts.append(block)
    return "\n\n".join(
        [parts[0], "# The study: what each idea of the paper brings", *parts[1:], ""]
    )


_STYLE = """
:root { color-scheme: light dark; --back: #fcfcfb; --text: #1f1e1b; --soft: #5f5e58;
  --line: #d9d8d2; --mark: #f1efe8; }
@media (prefers-color-scheme: dark) { :root { --back: #1a1a19; --text: #f2f1ec; --soft: #b3b2a9;
  --line: #3d3d39; --mark: #262624; } }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--back);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem;
  position: sticky; left: 0; background: var(--back); }
figure { margin: 1.5rem 0; } img { width: 100%; max-width: 40rem; height: auto; }
figcaption { color: var(--soft); font-size: .875rem; }
.first { background: var(--mark); padding: .8rem 1rem; border-radius: .4rem; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem; white-space: normal; }
  th:first-child, td:first-child { min-width: 7rem; } }
"""


def to_html(blocks, folder):
    """The report as one self-contained HTML page."""
    first, *others = blocks
    title = "The study: what each idea of the paper brings"
    body = "\n".join(_block_to_html(block, folder) for block in others)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<p class="first">{_inline(first)}</p>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n'
    )


def _block_to_html(block, folder):
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Figure):
        light, dark = (_embedded(folder / f"{block.name}_{mode}.png") for mode in plots.MODES)
        return (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{html.escape(block.caption)}" src="{light}"></picture>'
            f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
        )
    if isinstance(block, pd.DataFrame):
        head = "".join(f"<th>{_inline(name)}</th>" for name in block.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{_inline(str(value))}</td>' for value in row)}</tr>"
            for row in block.to_numpy()
        )
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    paragraphs = re.split(r"\n\n+", block)
    return "\n".join(_paragraph(text) for text in paragraphs)


def _paragraph(text):
    if not text.startswith("- "):
        return f"<p>{_inline(text)}</p>"
    items = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"


def _inline(text):
    text = text.replace(" ± ", "\N{NO-BREAK SPACE}± ")
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _embedded(path):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
