"""One self-contained HTML file: it loads nothing, runs no script, and is legible light and dark."""

import re
from typing import Any

import jinja2
from markupsafe import Markup

from report_page import charts

# Ids of videos whose address is known: on YouTube, and in YouTube-8M, whose ids hide those of
# YouTube behind a look-up.
_ADDRESSES = {
    r"[A-Za-z0-9]{4}": "http://data.yt8m.org/2/j/i/{0:.2}/{0}.js",
    r"[A-Za-z0-9_-]{11}": "https://www.youtube.com/watch?v={0}",
}


def render(template: str, **values: Any) -> str:
    """Returns a page as HTML.

    Args:
        template: file in the folder templates.
        **values: what the template shows; text is escaped, except `Markup`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("report_page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "chart_css": charts.CSS,
        "css_variables": charts.css_variables,
        "video_address": video_address,
    }
    environment.filters |= {"breakable": breakable, "probability": probability}
    return environment.get_template(template).render(values)


def video_address(video_id: str) -> str | None:
    """Returns the web address of a video, or None if its id has neither known form."""
    for pattern, address in _ADDRESSES.items():
        if re.fullmatch(pattern, video_id):
            return address.format(video_id)
    return None


def breakable(name: str) -> Markup:
    """Returns a name that may break after underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def probability(value: float) -> str:
    """Formats a probability so that small ones differ from 0 and large ones from 1."""
    if 0.001 <= value <= 0.999:
        return f"{value:.3f}"
    return f"{value:.1g}" if value < 0.5 else f"{value:.5f}"
