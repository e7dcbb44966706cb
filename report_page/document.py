"""Documents: Markdown with charts in files, and the same as one self-contained HTML page."""

import pathlib
import re

import markdown
from markupsafe import Markup

from report_page import page

_PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
# Two charts fit side by side where GitHub shows a document.
_WIDTH = 420


def figures(folder: str, alts: dict[str, str], caption: str | None = None) -> str:
    """Returns Markdown that shows charts, side by side where there is room, and their caption.

    Args:
        folder: folder of the charts, relative to the document.
        alts: descriptions by the name of the chart's file without its suffix, svg.
        caption: by default, the descriptions.
    """
    images = (
        f'<img alt="{alt.replace("`", "")}" src="{folder}/{name}.svg" width="{_WIDTH}">'
        for name, alt in alts.items()
    )
    return "\n".join(images) + f"\n\n*{caption or ' '.join(alts.values())}*"


def to_html(text: str, title: str, directory: pathlib.Path) -> str:
    """Converts a document to a page that contains its charts.

    Args:
        text: Markdown.
        title: title of the page.
        directory: the document's directory.
    """

    def inline(match):
        charts = re.findall(r'src="([^"]*)"', match[0])
        parts = (f"<figure>{(directory / chart).read_text()}</figure>" for chart in charts)
        return f'<div class="charts">{"".join(parts)}</div>'

    body = markdown.markdown(text, extensions=["tables"]).replace(" ± ", _PLUS_MINUS)
    body = body.replace("<table>", '<div class="scroll"><table>')
    body = body.replace("</table>", "</table></div>")
    body = re.sub(r"<p>(?:<img [^>]*>\s*)+</p>", inline, body)
    return page.render("document.html", title=title, body=Markup(body))
