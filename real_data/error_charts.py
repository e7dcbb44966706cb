"""Charts of the share of clips that each model gets wrong, one per data set, as SVG files."""

import files
import recipes
from report_page import charts
from report_page.charts import COLOR

_WIDTH = 440
_ROW_HEIGHT = 17


def name(data_set):
    """Returns the name of the chart's file, without its suffix."""
    return f"errors_{data_set}"


def alt(data_set):
    """Returns a description of a chart for readers who do not see it."""
    return f"Share of wrong clips of every model on {recipes.RECIPES[data_set].title}"


def write(outcomes, folder):
    """Writes `NAME.svg` for every data set.

    Args:
        outcomes: `outcomes.Outcomes`.
        folder: `pathlib.Path`.
    """
    for data_set in outcomes.data_sets:
        with files.atomic_write(str(folder / f"{name(data_set)}.svg")) as file:
            file.write(charts.standalone(draw(outcomes, data_set)))


def draw(outcomes, data_set):
    """Returns the chart of a data set: a row per model, a dot per seed, a line at their mean."""
    title, goal = recipes.RECIPES[data_set].title, recipes.GOALS.get(data_set)
    least = 50 / outcomes.data.set_index("data_set").loc[data_set, outcomes.setting["split"]]
    rows = {}
    for subject in outcomes.subjects(data_set):
        hit_at_one = outcomes.final(data_set, subject)["hit_at_one"]
        # An axis of ratios has no 0: a seed without a wrong clip is at half a clip.
        rows[subject] = (100 * (1 - hit_at_one)).clip(lower=least)

    def paint(axes):
        for row, (subject, errors) in enumerate(reversed(rows.items())):
            color = _color(subject)
            axes.plot(errors, [row] * len(errors), "o", color=color, markersize=4.5, alpha=0.6)
            axes.plot([errors.mean()] * 2, [row - 0.35, row + 0.35], color=color, linewidth=2)
        axes.set(title=title, xlabel="clips whose best prediction is wrong, %")
        axes.set_yticks(range(len(rows)), [recipes.TITLES[each] for each in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        charts.use_log_scale(axes, "x")
        if goal:
            place = 100 * (1 - goal)
            axes.axvline(place, color=COLOR["text"], linewidth=1, linestyle=":")
            axes.annotate(
                "goal",
                (place, len(rows) - 0.7),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=10,
            )

    height = _ROW_HEIGHT * len(rows) + 64
    return charts.draw(paint, name(data_set), alt(data_set), width=_WIDTH, height=height)


def _color(subject):
    """Returns the color of a group of subjects; baselines are gray."""
    groups = (recipes.PAPER, recipes.ENSEMBLES, recipes.OTHERS)
    for number, group in enumerate(groups):
        if subject in group:
            return charts.series_style(number)["color"]
    return COLOR["soft"]
