"""The charts of a report.

Every function returns charts as SVG elements, each with a bounded number of points.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import eval_util
from report_page import charts
from report_page.charts import COLOR, draw, label_ends, label_points, series_style
from report_page.evaluation import ModelResult, ScoreHistogram, wilson_interval
from report_page.history import Curve, Run, thin

_MAX_POINTS = 120
# Classes that are drawn one by one; more are counted in cells.
MAX_CLASSES = 400
_CELLS = (36, 20)
# Classes that are named, classes that may be, and, in the axes, the width of a character and the
# radius of a point.
_NUM_OUTLIERS = 10
_NUM_CANDIDATES = 100
_CHARACTER = 0.016
_POINT = 0.008
NUM_CLUSTERS = 10
# The axis of a metric does not begin at 0 if all values are above this share of the highest.
_TOO_HIGH = 0.75
RELIABILITY_EDGES = np.concatenate([[0.001, 0.01, 0.05], np.linspace(0.1, 0.9, 9)])
# Gray-blue between the colors of a light and a dark page, for images, which cannot adapt.
_IMAGE_COLOR = "#3f87d9"
# Steps of the color bar of an image.
_NUM_COLORS = 64


# --- Training -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """A line with its label.

    Attributes:
        label: text at its end; empty for none.
        curve: steps and values.
        style: arguments of matplotlib's `plot`.
    """

    label: str
    curve: Curve
    style: dict[str, Any]


def training_curves(
    runs: Sequence[Run], metric: str, title: str, prior: float | None = None
) -> list[Markup]:
    """Returns charts of loss, a metric and learning rate over the steps, where there are data.

    Training is a thin line, evaluation a thick one with a point per checkpoint.

    Args:
        runs: the runs.
        metric: key of `eval_util.METRICS`.
        title: title of the metric's chart.
        prior: value of the metric of the class prior, for a line; None for no line.
    """
    panels = {
        "Loss": ("loss", "loss", _cut_start, None),
        title: (eval_util.METRICS[metric], metric, _cut_low_start, prior),
        "Learning rate": ("learning_rate", None, _show_ratios, None),
    }
    found = {
        name: (_run_lines(runs, tag, key), *look) for name, (tag, key, *look) in panels.items()
    }
    return [_lines_chart(name, *look) for name, look in found.items() if look[0]]


def _run_lines(runs, tag, key):
    """Returns the lines of all runs: a curve of training and, unless `key` is None, a metric."""
    lines = []
    for number, run in enumerate(runs):
        training = run.training.get(tag, ((), ()))
        evaluation = run.evaluation_curve(key) if key else ((), ())
        both = len(training[0]) > 0 and len(evaluation[0]) > 0
        looks = {
            "training": (training, {"linewidth": 0.9, "alpha": 0.6} if both else {}),
            "evaluation": (evaluation, {"marker": "o", "markersize": 4}),
        }
        for kind, (curve, look) in looks.items():
            if not len(curve[0]):
                continue
            if len(runs) == 1:
                label = kind if key else ""
            else:
                label = "" if both and kind == "training" else run.name
            marker = {"marker": "o"} if len(curve[0]) == 1 else {}
            steps = {} if key else {"drawstyle": "steps-post"}
            style = {**series_style(number), **look, **marker, **steps}
            lines.append(Line(label, thin(curve, _MAX_POINTS), style))
    return lines


def _lines_chart(title, lines, set_limits, prior):
    def paint(axes: Axes) -> None:
        for line in lines:
            axes.plot(*line.curve, **line.style)
        axes.set(title=title, xlabel="training step")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ends = [
            (line.curve[0][-1], line.curve[1][-1], line.label, line.style["color"])
            for line in lines
            if line.label
        ]
        set_limits(axes, [line.curve[1] for line in lines])
        if prior is not None and prior >= axes.get_ylim()[0]:
            axes.axhline(prior, color=COLOR["soft"], linewidth=1, linestyle=":")
            ends.append((axes.get_xlim()[1], prior, "class prior", COLOR["soft"]))
        label_ends(axes, ends)
        if any("alpha" in line.style and not line.label for line in lines):
            _explain_kinds(axes)

    labels = ", ".join(dict.fromkeys(line.label for line in lines if line.label))
    return draw(paint, f"curve-{title}", f"{title} over the training steps: {labels}")


def _explain_kinds(axes):
    """Adds a legend of the lines of training and evaluation, of whatever color."""
    kinds = {"training": {"linewidth": 0.9, "alpha": 0.6}, "evaluation": {"marker": "o"}}
    handles = [
        Line2D([], [], color=COLOR["soft"], markersize=4, label=kind, **look)
        for kind, look in kinds.items()
    ]
    charts.legend_beside_title(axes, handles=handles, ncols=len(handles))


def _cut_start(axes, curves):
    """Lets a high start, such as the loss of the first steps, leave the chart at the top."""
    low = min(values.min() for values in curves)
    high = max(values[len(values) // 10 :].max() for values in curves)
    if high > low:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _cut_low_start(axes, curves):
    """Begins at 0, unless all but the first values are so high that nobody could distinguish them.

    Then a low start leaves the chart at the bottom.
    """
    low = min(values[len(values) // 10 :].min() for values in curves)
    high = max(values.max() for values in curves)
    if low <= _TOO_HIGH * high:
        _begin_at_0(axes, curves)
    else:
        margin = 0.1 * (high - low) or 0.1 * high
        axes.set_ylim(low - margin, high + margin)


def _begin_at_0(axes, curves):
    axes.set_ylim(0, 1.1 * max(values.max() for values in curves) or 1)


def _show_ratios(axes, curves):
    """Makes the axis logarithmic, if the values are far apart."""
    low, high = min(values.min() for values in curves), max(values.max() for values in curves)
    if 0 < 5 * low < high:
        charts.use_log_scale(axes, "y")
    else:
        _begin_at_0(axes, curves)


def metric_and_size(points: Sequence[tuple[str, float, float]], title: str) -> Markup:
    """Returns a chart of a metric against the size of the weights.

    Args:
        points: name, MiB and metric of each model.
        title: name of the metric.
    """

    def paint(axes: Axes) -> None:
        ends = []
        for number, (name, mib, value) in enumerate(points):
            color = series_style(number)["color"]
            axes.plot(mib, value, "o", markersize=8, color=color)
            ends.append((mib, value, name, color))
        axes.set(title=f"{title} and size", xlabel="MiB of weights in float32", ylabel=title)
        sizes = [mib for _, mib, _ in points]
        if max(sizes) > 5 * min(sizes):
            charts.use_log_scale(axes, "x")
        axes.margins(0.15)
        label_points(axes, ends)

    return draw(paint, "metric-and-size", f"{title} against the size of the weights")


# --- Classes --------------------------------------------------------------------------------------


def precision_by_frequency(per_class: pd.DataFrame, names: Sequence[str]) -> Markup:
    """Returns a chart of average precision against the number of positives, with some names.

    Args:
        per_class: table with the columns `ap` and `positives`.
        names: one name per class.
    """
    table = per_class[per_class.positives > 0]

    def paint(axes: Axes) -> None:
        if len(table) > MAX_CLASSES:
            _paint_cells(axes, table)
        else:
            look = {"s": 22, "color": COLOR["series-0"], "alpha": 0.7, "linewidth": 0}
            axes.scatter(table.positives, table.ap, **look)
        charts.use_log_scale(axes, "x")
        # Values of good classes could not be distinguished on an axis from 0 to 1.
        low = table.ap.min() if table.ap.min() > _TOO_HIGH * table.ap.max() else 0.0
        margin = 0.03 * (1 - low) or 0.03
        axes.set(
            title="Average precision by class",
            xlabel="videos with the class",
            ylabel="average precision",
            ylim=(low - margin, 1 + margin),
        )
        trend = _trend(table)
        order = np.argsort(table.positives.to_numpy(), kind="stable")
        look = {"color": COLOR["soft"], "linewidth": 1, "linestyle": "--"}
        axes.plot(table.positives.to_numpy()[order], trend[order], label="trend", **look)
        charts.legend_beside_title(axes)
        _label_outliers(axes, table, trend, names)

    alt = "Average precision of each class against its number of positive videos, and their trend"
    return draw(paint, "classes", alt, width=420, height=320)


def _paint_cells(axes, table):
    """Draws squares that grow with the number of classes in each cell."""
    positions = np.log10(table.positives)
    width = max(positions.max() - positions.min(), 1e-9)
    columns = np.minimum((positions - positions.min()) / width * _CELLS[0], _CELLS[0] - 1)
    rows = np.minimum(table.ap * _CELLS[1], _CELLS[1] - 1)
    cells = pd.DataFrame({"column": columns.astype(int), "row": rows.astype(int)}).value_counts()
    column, row = (cells.index.get_level_values(level) + 0.5 for level in range(2))
    axes.scatter(
        10 ** (positions.min() + column / _CELLS[0] * width),
        row / _CELLS[1],
        s=150 * np.sqrt(cells / cells.max()),
        marker="s",
        linewidth=0,
        color=COLOR["series-0"],
        alpha=0.6,
    )


def _trend(table):
    """Returns the least-squares line of AP over the logarithm of the positives, at each class."""
    frequency = np.log10(table.positives.to_numpy())
    degree = 1 if table.positives.nunique() > 1 else 0
    return np.polyval(np.polyfit(frequency, table.ap, degree), frequency)


def _label_outliers(axes, table, trend, names):
    """Names the classes furthest from the trend, relative to the noise of few positives."""
    surprise = (table.ap - trend).abs() * np.sqrt(table.positives)
    order = surprise.sort_values(ascending=False, kind="stable").index[:_NUM_CANDIDATES]
    points = zip(table.positives, table.ap, strict=True)
    places = dict(zip(table.index, (charts.in_axes(axes, *point) for point in points), strict=True))
    texts = {label: charts.shortened(names[label], 24) for label in order}
    for label, side in itertools.islice(_free_sides(places, texts), _NUM_OUTLIERS):
        axes.annotate(
            texts[label],
            (table.positives[label], table.ap[label]),
            xytext=(5 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9.5,
        )


def _free_sides(places, texts):
    """Yields labels whose names cover neither names nor points, and the side of the name, 1 or -1.

    Args:
        places: place of every point in the axes, by label.
        texts: names by label, the most important first.
    """
    taken = np.array(list(places.values()))  # Of points, and of the names so far.
    for label, text in texts.items():
        x, y = places[label]
        half = _CHARACTER * len(text) / 2
        for side in (-1, 1) if x > 0.5 else (1, -1):
            center = x + side * (half + _POINT)
            covered = (np.abs(taken[:, 0] - center) < half) & (np.abs(taken[:, 1] - y) < 0.05)
            if half < center < 1 - half and not covered.any():
                # A name is as wide as several points.
                name = [(center + offset, y) for offset in np.linspace(-half, half, 5)]
                taken = np.concatenate([taken, name])
                yield label, side
                break


def precision_recall(
    histogram: ScoreHistogram, per_class: pd.DataFrame, classes: Sequence[int], names: Sequence[str]
) -> list[Markup]:
    """Returns a small chart of precision against recall for each of some classes."""
    return [
        _precision_recall(histogram, label, names[label], per_class.loc[label]) for label in classes
    ]


def _precision_recall(histogram, label, name, row):
    precision, recall = histogram.precision_recall(label)
    precision, recall = np.append(precision[:1], precision), np.append(0.0, recall)

    def paint(axes: Axes) -> None:
        axes.plot(recall, precision, drawstyle="steps-pre", color=COLOR["series-0"])
        axes.fill_between(
            recall, precision, step="pre", color=COLOR["series-0"], alpha=0.15, linewidth=0
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set(xlabel="recall", ylabel="precision")
        axes.set_title(charts.shortened(name, 22), fontsize=10.5, pad=17)
        axes.text(
            0,
            1.05,
            f"AP {row.ap:.2f}, {int(row.positives)} videos",
            transform=axes.transAxes,
            fontsize=9.5,
            color=COLOR["soft"],
        )

    alt = f"Precision against recall of {name}: average precision {row.ap:.2f}"
    return draw(paint, f"pr-{label}", alt, width=190, height=180)


# --- Probabilities --------------------------------------------------------------------------------


def reliability(models: Sequence[ModelResult]) -> list[Markup]:
    """Returns a chart per model: fraction of labels by predicted probability."""
    return [_reliability(number, model) for number, model in enumerate(models)]


def _reliability(number, model):
    table = model.histogram.reliability(RELIABILITY_EDGES)
    color = series_style(number)["color"]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=COLOR["soft"], linewidth=1, linestyle=":")
        axes.plot(table.mean_prediction, table.fraction_true, color=color)
        ends = wilson_interval(table.fraction_true * table["count"], table["count"])
        axes.vlines(table.mean_prediction, *ends, color=color, linewidth=1, alpha=0.6)
        sizes = 8 + 14 * np.log10(table["count"])
        axes.scatter(table.mean_prediction, table.fraction_true, s=sizes, color=color, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel="predicted probability", ylabel="fraction of labels")
        axes.set_title(charts.shortened(model.name, 30))
        axes.text(
            0.97,
            0.05,
            f"calibration error {model.histogram.calibration_error():.3f}",
            ha="right",
            color=COLOR["soft"],
        )

    alt = f"Fraction of labels by predicted probability: {model.name}"
    return draw(paint, f"reliability-{number}", alt, width=260, height=270)


# --- Single videos --------------------------------------------------------------------------------


def attention(assignments: np.ndarray, name: str, title: str) -> Markup:
    """Returns a chart of the soft assignment of one video's frames to its largest clusters.

    Colors reach from 0 to the largest share in the chart.

    Args:
        assignments: `[T, K]`.
        name: unique among the charts of a page.
        title: title of the chart.
    """
    totals = assignments.sum(axis=0)
    chosen = np.argsort(-totals, kind="stable")[:NUM_CLUSTERS]
    times = np.arange(len(assignments)) @ assignments[:, chosen] / np.maximum(totals[chosen], 1e-9)
    chosen = chosen[np.argsort(times, kind="stable")]
    share = totals[chosen].sum() / max(len(assignments), 1)
    alt = f"Assignment of {len(assignments)} frames to {len(chosen)} clusters, {share:.0%} of all"
    return _over_time(
        assignments[:, chosen],
        [str(cluster) for cluster in chosen],
        name,
        alt,
        "share of the frame",
        highest=float(assignments[:, chosen].max(initial=0.0)),
        ylabel="cluster",
        title=title,
    )


def timeline(probabilities: np.ndarray, names: Sequence[str], num_labels: int, name: str) -> Markup:
    """Returns a chart of the probabilities of classes over the frames of one video.

    Args:
        probabilities: `[T, C]`.
        names: names of the C classes.
        num_labels: number of the first classes that are labels of the video.
        name: unique among the charts of a page.
    """
    alt = f"Probabilities of {len(names)} classes in {len(probabilities)} frames"
    short = [charts.shortened(class_name) for class_name in names]
    short[:num_labels] = [f"{class_name} (label)" for class_name in short[:num_labels]]
    return _over_time(probabilities, short, name, alt, "probability", highest=1.0)


def _over_time(values, names, name, alt, unit, *, highest, **labels):
    """Returns a chart of values from 0 to `highest` over the frames of a video.

    Args:
        values: `[T, K]`.
        names: names of the K rows.
        name: as for `draw`.
        alt: as for `draw`.
        unit: label of the color bar.
        highest: value of the strongest color.
        **labels: arguments of matplotlib's `Axes.set`.
    """

    def paint(axes: Axes) -> None:
        extent = (0, len(values), len(names), 0)
        shades = _shades(values.T / (highest or 1.0))
        axes.imshow(shades, aspect="auto", interpolation="none", extent=extent)
        bar = axes.inset_axes((1.03, 0, 0.035, 1))
        ramp = _shades(np.linspace(1, 0, _NUM_COLORS)[:, np.newaxis])
        bar.imshow(ramp, aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
        ticks = (0, 0.5, 1)
        bar.grid(False)
        bar.yaxis.tick_right()
        bar.yaxis.set_label_position("right")
        bar.set(xticks=(), ylabel=unit)
        bar.set_yticks(ticks, [f"{tick * highest:.2g}" for tick in ticks])
        axes.grid(False)
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="frame", **labels)
        axes.title.set_fontsize(10.5)

    return draw(paint, name, alt, height=70 + 15 * len(names))


def _shades(values):
    """Returns an image of values from 0 to 1, RGBA: the larger a value, the more opaque."""
    image = np.empty((*values.shape, 4))
    image[...] = to_rgba(_IMAGE_COLOR)
    image[..., 3] = values
    return image
