"""The notebooks of examples/: without outputs, which would go stale, and executed whole."""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = {
    "properties_of_my_filter.ipynb": "hypothesis",
    "verify_my_torch_code.ipynb": "torch",
    "watch_a_step.ipynb": "numpy",
}
"""Notebook -> the package that it is about."""


def cells(name):
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]


def test_no_notebook_holds_an_output():
    assert {file.name for file in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)
    for name in NOTEBOOKS:
        found = cells(name)
        assert found[0]["source"][0].startswith("# ")
        for cell in found:
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None), name


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_to_files(name):
    text = "".join(line for cell in cells(name) for line in cell["source"])
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (EXAMPLES / link).is_file(), link


@pytest.mark.larger
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name):
    """In a kernel of its own, as a reader would; every cell prints or shows something."""
    for package, extra in (("nbclient", "docs"), ("ipykernel", "docs"), (NOTEBOOKS[name], "...")):
        pytest.importorskip(package, reason=f"{package} is not installed (extra '{extra}')")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")

    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(map(bool, shown)) >= 2
    assert not [o for outputs in shown for o in outputs if o.output_type == "error"]
