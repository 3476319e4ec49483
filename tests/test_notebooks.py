"""Every notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_notebooks_are_kept_with_what_they_show():
    assert len(NOTEBOOKS) >= 4
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert '"image/png"' in text, path
        assert "Warning" not in text, path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    said = [o.text for cell in cells for o in cell.outputs if o.output_type == "stream"]
    assert not [text for text in said if "Warning" in text]
    shown = [o.data for cell in cells for o in cell.outputs if o.output_type == "display_data"]
    assert shown, "no pictures"
    # Without its picture a figure is shown as the text "<Figure size ...>".
    assert all("image/png" in data for data in shown)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 20
