"""Plots of the study, each for a light and a dark page.

Plots are 5 inches wide, so their text is readable on a phone.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import files
import plan

MODES = ("light", "dark")
_PAGE = {
    "light": {"back": "#fcfcfb", "text": "#1f1e1b", "soft": "#5f5e58", "line": "#d9d8d2"},
    "dark": {"back": "#1a1a19", "text": "#f2f1ec", "soft": "#b3b2a9", "line": "#3d3d39"},
}
# The paper's models have distinct colors, all other models are gray.
_COLORS = {
    "light": ("#2a78d6", "#eb6834", "#4a3aa7", "#1baf7a", "#c98500", "#d1437f"),
    "dark": ("#5598e7", "#f0814f", "#9085e9", "#2cbd8b", "#d9a022", "#e87ba4"),
}
_MARKERS = "osD^vP"
_GRAY_MARKERS = dict(logistic="x", moe="*", dbof="p", lstm="d", netvlad="<", lfnl_dot=">")
_WIDTH = 5.0


def write(results, folder):
    """Writes `NAME_light.png` and `NAME_dark.png` for every plot.

    Args:
        results: `results.Results`.
        folder: `pathlib.Path`.
    """
    for mode in MODES:
        with plt.rc_context(_style(mode)):
            for name, draw in PLOTS.items():
                figure = draw(results, mode)
                with files.atomic_path(str(folder / f"{name}_{mode}.png")) as partial:
                    figure.savefig(partial, format="png", dpi=200, metadata={"Software": None})
                plt.close(figure)


def gap_and_size(results, mode):
    """GAP in the world `bag` against the size of the weights."""
    table = results.gap
    by_model = table[(table.world == "bag") & (table.variant == "last")].groupby("subject")["gap"]
    deviations, gap = by_model.std().fillna(0), by_model.mean()
    sizes = results.sizes.set_index("subject")["mib"]
    figure, axes = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    for name in _models(gap):
        place, look = (sizes[name], gap[name], deviations[name]), _look(name, mode)
        axes.errorbar(*place, linestyle="", **look, label=_title(name))
    axes.axhline(gap["prior"], color=_PAGE[mode]["soft"], linewidth=1, linestyle=":")
    axes.annotate(
        "class prior",
        (1, gap["prior"]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color=_PAGE[mode]["soft"],
    )
    axes.set(xscale="log", xlabel="MiB in float32", ylabel="GAP@20")
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def curves(results, mode):
    """GAP during training, mean over the seeds."""
    table = results.curves[results.curves.world == "bag"]
    means = table.groupby(["subject", "step"])["gap"].mean()
    figure, axes = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    for name in _models(means.index.levels[0]):
        look = {**_look(name, mode), "markersize": 4}
        axes.plot(means[name].index, means[name], linewidth=1.6, **look, label=_title(name))
    axes.set(xlabel="training steps", ylabel="GAP@20")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def factors(results, mode):
    """GAP of every model, in one panel per world and factor."""
    means = results.factors.groupby(["world", "factor", "subject"])["gap"]
    deviations, means = means.std().fillna(0), means.mean()
    panels = list(dict.fromkeys(key[:2] for key in means.index))
    counts = [len(_models(means[panel].index)) for panel in panels]
    figure, all_axes = plt.subplots(
        len(panels),
        1,
        figsize=(_WIDTH, 0.24 * sum(counts) + 0.62 * len(panels)),
        height_ratios=counts,
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for axes, panel in zip(all_axes[:, 0], panels, strict=True):
        names = list(_models(means[panel].index))[::-1]
        for row, name in enumerate(names):
            place, deviation = (means[panel][name], row), deviations[panel][name]
            axes.errorbar(*place, xerr=deviation, linestyle="", **_look(name, mode))
        prior = means[panel]["prior"]
        axes.axvline(prior, color=_PAGE[mode]["soft"], linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), [_title(name) for name in names])
        axes.set_title("{}: {}".format(*panel), loc="left", fontsize=10, fontweight="bold")
        axes.set_ylim(-0.6, len(names) - 0.4)
    all_axes[-1, 0].set_xlabel("GAP of the classes with the factor")
    return figure


def reliability(results, mode):
    """Fraction of positive labels by predicted probability."""
    figure, axes = plt.subplots(figsize=(_WIDTH, 5.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color=_PAGE[mode]["soft"], linewidth=1, linestyle=":")
    for name in _models(results.reliability.subject.unique()):
        table = results.reliability[results.reliability.subject == name]
        place = (table.mean_prediction, table.fraction_true)
        look = {**_look(name, mode), "markersize": 4}
        axes.plot(*place, linewidth=1.2, **look, label=_title(name))
    axes.set(xlabel="predicted probability", ylabel="fraction of positives", aspect="equal")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


PLOTS = {draw.__name__: draw for draw in (gap_and_size, curves, factors, reliability)}


def _models(names):
    """Filters the models among the names, and returns them in the plan's order."""
    return [name for name in plan.MODELS if name in names]


def _title(name):
    return plan.MODELS[name].title


def _look(name, mode):
    """Color and marker of a model. Markers differ too, for color-blind readers."""
    if name in plan.SIX:
        number = plan.SIX.index(name)
        return {"color": _COLORS[mode][number], "marker": _MARKERS[number]}
    return {"color": _PAGE[mode]["soft"], "marker": _GRAY_MARKERS[name]}


def _style(mode):
    page = _PAGE[mode]
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page["back"]),
        **dict.fromkeys(("text.color", "axes.labelcolor"), page["text"]),
        **dict.fromkeys(("xtick.color", "ytick.color"), page["soft"]),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), page["line"]),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.linewidth": 0.6,
        "font.size": 10,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.markersize": 7,
    }
