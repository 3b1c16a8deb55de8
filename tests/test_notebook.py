"""The notebook of the documentation runs, and its committed outputs are what it prints."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "library.ipynb"
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*")


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell of code wrote; libraries' warnings depend on what else is installed."""
    return [
        "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


@pytest.mark.slow  # a fresh kernel imports torch and transformers
def test_a_fresh_kernel_prints_what_the_notebook_was_committed_with(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        fresh, timeout=120, resources={"metadata": {"path": str(ROOT)}}
    ).execute()

    for old, new in zip(printed(committed), printed(fresh), strict=True):
        assert NUMBER.sub("#", new) == NUMBER.sub("#", old)
        # Printed digits: the arithmetic is float64, but the last one may be rounded either way.
        assert numbers(new) == pytest.approx(numbers(old), rel=1e-3, abs=1e-4)


def test_every_cell_of_the_notebook_was_run_in_order_and_without_error():
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.get("name") == "stdout" for cell in cells for output in cell.outputs)
