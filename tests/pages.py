"""Checks of HTML pages: what they refer to, and how a browser shows them."""

import html.parser
import pathlib
import re
import shutil
import subprocess

import pytest

# Attributes with which a page loads something, and links, which it does not follow by itself.
_LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_MEASURES = """<script>parent.postMessage([
    document.documentElement.scrollWidth,
    performance.getEntriesByType("resource").length,
    getComputedStyle(document.body).backgroundColor,
    [...document.querySelectorAll("svg")].filter(svg => svg.clientWidth < 100).length,
].join(";"), "*")</script>"""
# A frame may be narrower than the smallest window.
_FRAME = """<script>onmessage = event => document.title = event.data</script>
<iframe src="measured.html" style="width: {width}px; height: 2000px; border: 0"></iframe>"""


class Page(html.parser.HTMLParser):
    """An HTML page.

    Attributes:
        text: its text without tags.
        tags: names of its elements, a list.
        links: addresses that a reader may follow.
        loaded: addresses that a browser loads.
        ids: values of the attribute id.
    """

    def __init__(self, path):
        super().__init__()
        content = pathlib.Path(path).read_text()
        self.tags, self.links, self.loaded, self.ids, self._text = [], [], [], [], []
        self.loaded += re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]*)", content)
        self.feed(content)
        self.close()
        self.text = " ".join("".join(self._text).split())
        self.loaded = [link for link in self.loaded if not re.match(r"#|data:image/png;", link)]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in _LOADING:
                (self.links if tag == "a" else self.loaded).append(value)

    def handle_data(self, data):
        self._text.append(data)


def browser():
    """Returns the path of a browser, or skips the test."""
    for name in _BROWSERS:
        if path := shutil.which(name):
            return path
    return pytest.skip("needs Chromium")


def measure(path, folder, width, dark):
    """Opens a page in a browser.

    Returns:
        A tuple: width of the content in pixels, number of resources loaded, color of the
        background, number of charts that are too small to see.
    """
    content = pathlib.Path(path).read_text()
    (folder / "measured.html").write_text(content.replace("</body>", f"{_MEASURES}</body>"))
    frame = folder / "frame.html"
    frame.write_text(_FRAME.format(width=width))
    done = subprocess.run(
        [
            *(browser(), "--headless=new", "--no-sandbox", "--hide-scrollbars", "--dump-dom"),
            *("--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *("--window-size=1300,2000", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    width, resources, color, small = re.search(r"<title>(.*?)</title>", done.stdout)[1].split(";")
    return int(width), int(resources), color, int(small)
