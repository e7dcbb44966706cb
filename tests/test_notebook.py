"""The example notebook runs from the first cell to the last, and is stored without its outputs."""

import re

import pytest

pytest.importorskip("nbclient", reason="needs requirements/notebook.txt")
pytest.importorskip("jinja2", reason="needs requirements/report.txt")

import nbclient
import nbformat

import programs

PATH = programs.ROOT / "examples" / "quickstart.ipynb"
# Less data and fewer steps than in the notebook.
SMALL = {"range(1500)": "range(400)", "max_steps=200": "max_steps=60"}


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def cells_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook, kind):
    """Returns what the cells show in a format, a list of texts."""
    outputs = [output for cell in cells_of(notebook) for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_the_notebook_trains_a_model_and_shows_charts_and_named_predictions(
    notebook, tmp_path, monkeypatch
):
    for text, small in SMALL.items():
        (cell,) = [cell for cell in cells_of(notebook) if text in cell.source]
        cell.source = cell.source.replace(text, small)
    monkeypatch.setenv("PYTHONPATH", str(programs.ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    _, metrics, *_, predictions = shown(notebook, "text/plain")
    gap, prior = (float(number) for number in re.findall(r"GAP@20.* (0\.\d+)", metrics))
    assert gap > 1.5 * prior
    charts = shown(notebook, "image/svg+xml")
    assert len(charts) == 4
    assert all(re.match(r"<svg [^>]*width=", chart) for chart in charts)
    # Columns: row, id, class, name, score.
    rows = [line.split() for line in predictions.splitlines()[1:]]
    assert [row[1] for row in rows] == list("aaabbbccc")
    names = re.search(r"LABELS = (\[.*\])", cells_of(notebook)[1].source)[1]
    assert all(f'"{row[3]}"' in names for row in rows)


def test_the_notebook_is_stored_without_outputs(notebook):
    for cell in cells_of(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
