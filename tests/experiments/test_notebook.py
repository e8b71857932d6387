"""The notebook of experiments/, executed by a real kernel."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "tour.ipynb"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_tour_runs_from_its_first_cell_to_its_last(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = client.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    (table,) = [output["text"] for output in outputs if output.get("name") == "stdout"]
    assert "label_only" in table and "kd" in table
    assert (tmp_path / "raykd-store").is_dir()
