"""Finds commands, code and links in the documents and scripts."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent
_PATTERNS = ("README.md", "docs/*.md", "benchmarks/*.md", "scripts/*.sh", "*.py")
SOURCES = [path for pattern in _PATTERNS for path in sorted(ROOT.glob(pattern))]
DOCUMENTS = [
    path for pattern in ("*.md", "docs/*.md", "*/README.md") for path in sorted(ROOT.glob(pattern))
]


def own_models_python(part):
    """Returns the Python of docs/own_models.md that contains a text."""
    return python_of("docs/own_models.md", part)


def python_of(document, part):
    """Returns the Python of a document that contains a text."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if part in block]
    return code


def commands(path):
    """Returns the commands `python PROGRAM.py ...` of a document or script, split into words."""
    text = path.read_text().replace("\\\n", "")
    text = text.replace("$model", "lfnl_netvlad")  # One recipe of a loop over several.
    if path.suffix == ".md":
        text += "\n" + "\n".join(re.findall(r"`(python [^`]*)`", text))
    found = re.findall(r"^ *(python [\w/]+\.py .*)$", text, re.MULTILINE)
    words = [shlex.split(command, comments=True) for command in found]
    return [command for command in words if command[1] != "PROGRAM.py"]


def links(path):
    """Returns the relative links of a Markdown file, those of images included."""
    text = _without_code(path.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\bsrc(?:set)?="([^"]+)"', text)
    return [link for link in found if not re.match(r"https?://|mailto:", link)]


def anchors(path):
    """Returns the anchors that GitHub makes of the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", _without_code(path.read_text(), inline=False), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def _without_code(text, inline=True):
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text) if inline else text
