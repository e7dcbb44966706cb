"""Plots of the study, as SVG files whose colors follow the reader's system."""

import files
import plan
from report_page import charts
from report_page.charts import COLOR

_HEIGHT = 300
_COLUMNS = 3


def write(results, folder):
    """Writes `NAME.svg` for every plot.

    Args:
        results: `results.Results`.
        folder: `pathlib.Path`.
    """
    for name, draw in PLOTS.items():
        with files.atomic_write(str(folder / f"{name}.svg")) as file:
            file.write(charts.standalone(draw(results)))


def gap_and_size(results):
    """GAP in the world `bag` against the size of the weights."""
    table = results.gap
    by_model = table[(table.world == "bag") & (table.variant == "last")].groupby("subject")["gap"]
    deviations, gap = by_model.std().fillna(0), by_model.mean()
    sizes = results.sizes.set_index("subject")["mib"]

    def paint(axes):
        for name in _models(gap):
            look = {"color": _color(name), "marker": "o", "markersize": 6}
            axes.errorbar(sizes[name], gap[name], deviations[name], linestyle="", **look)
        axes.set(xlabel="MiB in float32", ylabel="GAP@20")
        charts.use_log_scale(axes, "x")
        axes.axhline(gap["prior"], color=COLOR["soft"], linewidth=1, linestyle=":")
        place = (sizes.min(), gap["prior"])
        axes.annotate("class prior", place, xytext=(0, 4), textcoords="offset points", fontsize=10)
        charts.label_points(
            axes, [(sizes[name], gap[name], _title(name), _color(name)) for name in _models(gap)]
        )

    alt = "GAP against the size of the weights"
    return charts.draw(paint, "gap_and_size", alt, height=_HEIGHT)


def curves(results):
    """GAP during training, mean over the seeds."""
    table = results.curves[results.curves.world == "bag"]
    means = table.groupby(["subject", "step"])["gap"].mean()

    def paint(axes):
        names = _models(means.index.levels[0])
        for name in names:
            axes.plot(means[name].index, means[name], color=_color(name), linewidth=1.4)
        axes.set(xlabel="training steps", ylabel="GAP@20")
        charts.label_ends(
            axes,
            [
                (means[name].index[-1], means[name].iloc[-1], _title(name), _color(name))
                for name in names
            ],
        )

    return charts.draw(paint, "curves", "GAP during training", height=_HEIGHT)


def factors(results):
    """GAP of every model, in one panel per world and factor."""
    means = results.factors.groupby(["world", "factor", "subject"])["gap"]
    deviations, means = means.std().fillna(0), means.mean()
    panels = list(dict.fromkeys(key[:2] for key in means.index))
    counts = [len(_models(means[panel].index)) for panel in panels]

    def paint(figure):
        grid = {"height_ratios": counts, "sharex": True, "squeeze": False}
        all_axes = figure.subplots(len(panels), 1, **grid)[:, 0]
        for axes, panel in zip(all_axes, panels, strict=True):
            names = list(_models(means[panel].index))[::-1]
            for row, name in enumerate(names):
                look = {"color": _color(name), "marker": "o", "markersize": 6}
                gap = means[panel][name]
                axes.errorbar(gap, row, xerr=deviations[panel][name], linestyle="", **look)
            axes.axvline(means[panel]["prior"], color=COLOR["soft"], linewidth=1, linestyle=":")
            axes.set_yticks(range(len(names)), [_title(name) for name in names])
            axes.set_title("{}: {}".format(*panel), fontsize=11)
            axes.set_ylim(-0.6, len(names) - 0.4)
        all_axes[-1].set_xlabel("GAP of the classes with the factor")

    height = 17 * sum(counts) + 44 * len(panels)
    alt = "GAP on the classes with each factor"
    return charts.draw_figure(paint, "factors", alt, width=charts.WIDTH, height=height)


def reliability(results):
    """Fraction of positive labels by predicted probability, in one panel per model."""
    table = results.reliability
    names = _models(table.subject.unique())
    rows = -(-len(names) // _COLUMNS)

    def paint(figure):
        all_axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes in all_axes.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(all_axes.flat, names, strict=False):
            own = table[table.subject == name]
            axes.plot([0, 1], [0, 1], color=COLOR["soft"], linewidth=1, linestyle=":")
            look = {"color": _color(name), "marker": "o", "markersize": 3}
            axes.plot(own.mean_prediction, own.fraction_true, linewidth=1.4, **look)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1))
            axes.set_title(charts.shortened(_title(name)), fontsize=9.5)
        figure.supxlabel("predicted probability", fontsize=11, color=COLOR["soft"])
        figure.supylabel("fraction of positives", fontsize=11, color=COLOR["soft"])

    alt = "Fraction of positives by predicted probability"
    return charts.draw_figure(paint, "reliability", alt, width=charts.WIDTH, height=40 + 125 * rows)


PLOTS = {draw.__name__: draw for draw in (gap_and_size, curves, factors, reliability)}


def _models(names):
    """Filters the models among the names, and returns them in the plan's order."""
    return [name for name in plan.MODELS if name in names]


def _title(name):
    return plan.MODELS[name].title


def _color(name):
    """Returns the color of a model: the paper's models have their own, all others are gray."""
    if name in plan.SIX:
        return charts.series_style(plan.SIX.index(name))["color"]
    return COLOR["soft"]
