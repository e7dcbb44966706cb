"""Charts as SVG inside a page: without references, legible on a light and on a dark background.

Charts are drawn in the colors of `COLOR`, placeholders that `to_svg` replaces by CSS variables. One
unit of a chart is one CSS pixel at its natural width.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# Colors by name, for a light and for a dark page. Those of series differ for color-blind readers.
PALETTE = {
    "back": ("#fcfcfb", "#1a1a19"),
    "text": ("#1f1e1b", "#f2f1ec"),
    "soft": ("#5f5e58", "#b3b2a9"),
    "line": ("#d9d8d2", "#3d3d39"),
    "mark": ("#f1efe8", "#262624"),
    "series-0": ("#2a78d6", "#5598e7"),
    "series-1": ("#d95a21", "#f0814f"),
    "series-2": ("#4a3aa7", "#9085e9"),
    "series-3": ("#128a5f", "#2cbd8b"),
    "series-4": ("#a66e00", "#d9a022"),
    "series-5": ("#d1437f", "#e87ba4"),
}
COLOR = {name: f"#{number + 1:06x}" for number, name in enumerate(PALETTE)}
_NUM_SERIES = sum(name.startswith("series-") for name in PALETTE)
# Lines of series that share a color.
_DASHES = ("-", "--", ":", "-.")

# Text keeps its distance from lines that it crosses.
CSS = """svg { font-family: system-ui, sans-serif; stroke-linejoin: round; }
svg text { paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
"""

WIDTH = 360
_UNITS_PER_INCH = 72
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOR["line"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": COLOR["soft"],
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOR["text"],
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.size": 11,
    "grid.color": COLOR["line"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markeredgewidth": 0,
    "svg.fonttype": "none",
    "text.color": COLOR["text"],
    "text.parse_math": False,
    "xtick.color": COLOR["line"],
    "xtick.labelcolor": COLOR["soft"],
    # Minor ticks are shorter; their labels are on the line of the others.
    "xtick.minor.pad": 5.0,
    "ytick.color": COLOR["line"],
    "ytick.labelcolor": COLOR["soft"],
    "ytick.minor.pad": 5.0,
}


def series_style(number: int) -> dict[str, str]:
    """Returns color and line style of a series; those of the first 24 differ."""
    repetition, number = divmod(number, _NUM_SERIES)
    return {
        "color": COLOR[f"series-{number}"],
        "linestyle": _DASHES[repetition % len(_DASHES)],
    }


def draw(
    paint: Callable[[Axes], None], name: str, alt: str, *, width: float = WIDTH, height: float = 240
) -> Markup:
    """Returns a chart of one pair of axes; see `draw_figure`.

    Args:
        paint: draws on the axes of the chart.
        name: unique among the charts of a page.
        alt: description for readers who do not see the chart.
        width: natural width, in CSS pixels.
        height: natural height, in CSS pixels.
    """
    return draw_figure(
        lambda figure: paint(figure.subplots()), name, alt, width=width, height=height
    )


def draw_figure(
    paint: Callable[[Figure], None], name: str, alt: str, *, width: float, height: float
) -> Markup:
    """Returns a chart as an SVG element for a page; arguments as for `draw`."""
    size = (width / _UNITS_PER_INCH, height / _UNITS_PER_INCH)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser has the glyphs; matplotlib only measures the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size)
        paint(figure)
        return to_svg(figure, alt)


def standalone(chart: Markup) -> str:
    """Returns a chart as the content of an SVG file, with the colors of the reader's system.

    The file has the natural size of the chart.
    """
    style = (
        f":root {{ {css_variables('light')} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables('dark')} }} }} {CSS}"
        "svg { background: var(--back); }"
    )
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, content = chart.split(">", 1)
    width, height = head.split('"')[1].split()[2:]
    size = f'width="{width}" height="{height}"'
    return f"{head} {size} {spaces}><style>{style}</style>{content}\n"


def to_svg(figure: Figure, alt: str) -> Markup:
    """Returns a figure drawn in the colors of `COLOR` as an SVG element for a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    content = text[text.index("</metadata>") + len("</metadata>") :]
    content = re.sub(r"<!--.*?-->|<style.*?</style>", "", content, flags=re.DOTALL)
    content = re.sub(r"<[^>]*>", _compact_tag, content)
    content = re.sub(r">\s+<", "><", content)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox.")
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], alt)
    return head + Markup(content.strip())


def _compact_tag(match):
    """Shortens a tag: no ids of groups, no fonts, two decimals, CSS variables for colors."""
    tag = match[0]
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r"(?<=style=\")([^\"]*?)font-family:[^;\"]*;? ?", r"\1", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag)
    tag = re.sub(r"\s+", " ", tag.replace("rotate(-0 ", "rotate(0 "))
    return re.sub(r"#0000[0-9a-f]{2}\b", lambda color: _VARIABLE.get(color[0], color[0]), tag)


_VARIABLE = {color: f"var(--{name})" for name, color in COLOR.items()}


def use_log_scale(axes: Axes, name: str) -> None:
    """Makes the axis `x` or `y` logarithmic, with plain numbers at powers of ten, and 2 and 5."""
    getattr(axes, f"set_{name}scale")("log", subs=(2, 5))
    axis = getattr(axes, f"{name}axis")
    limits = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if limits[1] < 100 * limits[0] else NullFormatter())


def legend_beside_title(axes: Axes, **options: Any) -> None:
    """Adds a legend to the right of the title, where it covers no line and no point.

    Args:
        axes: axes with a short title.
        **options: arguments of matplotlib's `Axes.legend`.
    """
    look = {"frameon": False, "fontsize": 9.5, "columnspacing": 1, "handlelength": 1.5}
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, **look, **options)


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, size: float = 10
) -> None:
    """Writes labels to the right of the axes, next to the ends of lines, without overlaps.

    Args:
        axes: axes with their final limits and scales.
        ends: x, y, text and color of each line's end.
        size: font size.
    """
    places = [in_axes(axes, x, y)[1] for x, y, _, _ in ends]
    line_height = 1.25 * size / (axes.get_figure().get_figheight() * _UNITS_PER_INCH * 0.75)
    for (x, y, text, color), place in zip(ends, spread(places, line_height), strict=True):
        _label(axes, x, y, text, color, (1.03, place), size)


def label_points(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], *, size: float = 10
) -> None:
    """Writes labels next to points on the left, and of all others like `label_ends`."""
    right = []
    for point in points:
        place = in_axes(axes, *point[:2])
        if place[0] < 0.5:
            _label(axes, *point, (place[0] + 0.03, place[1]), size)
        else:
            right.append(point)
    label_ends(axes, right, size=size)


def _label(axes, x, y, text, color, place, size):
    """Writes a label at a place in the axes, with a line to its point."""
    axes.annotate(
        shortened(text),
        (x, y),
        xytext=place,
        textcoords="axes fraction",
        va="center",
        fontsize=size,
        color=color,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0},
    )


def in_axes(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Returns the place of a point in the axes, from 0 to 1 in both directions."""
    axes.autoscale_view()
    place = (axes.transData + axes.transAxes.inverted()).transform((x, y))
    return float(place[0]), float(place[1])


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves numbers apart to at least a distance, keeping their order and, about, their mean."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []  # Mean and size of groups of adjacent numbers.
    for index in order:
        groups.append([places[index], 1])
        while len(groups) > 1:
            (first, count), (second, more) = groups[-2:]
            if second - first >= gap * (count + more) / 2:
                break
            total = count + more
            groups[-2:] = [[(first * count + second * more) / total, total]]
    moved = [
        mean + gap * (number - (count - 1) / 2)
        for mean, count in groups
        for number in range(int(count))
    ]
    result = [0.0] * len(places)
    for index, place in zip(order, moved, strict=True):
        result[index] = place
    return result


def shortened(text: str, length: int = 20) -> str:
    """Returns a text of limited length; an ellipsis replaces the middle of a longer one."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[half + 1 - length :]}"


def css_variables(mode: str) -> str:
    """Returns the colors of a mode, `light` or `dark`, as CSS declarations."""
    column = ("light", "dark").index(mode)
    return " ".join(f"--{name}: {colors[column]};" for name, colors in PALETTE.items())
