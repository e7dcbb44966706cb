"""Finds commands and code in the documents and scripts."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent
_PATTERNS = ("README.md", "docs/*.md", "benchmarks/*.md", "scripts/*.sh", "*.py")
SOURCES = [path for pattern in _PATTERNS for path in sorted(ROOT.glob(pattern))]


def code_blocks(path, language):
    """Fenced code blocks of a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path):
    """Commands `python PROGRAM.py ...` of a document or script, split into words."""
    text = path.read_text().replace("\\\n", "")
    text = text.replace("$model", "lfnl_netvlad")  # Of a loop over recipes, one.
    if path.suffix == ".md":
        text += "\n" + "\n".join(re.findall(r"`(python [^`]*)`", text))
    found = re.findall(r"^ *(python [\w/]+\.py .*)$", text, re.MULTILINE)
    words = [shlex.split(command, comments=True) for command in found]
    return [
        [word for word in command if word != "..."]
        for command in words
        if command[1] != "PROGRAM.py"
    ]
