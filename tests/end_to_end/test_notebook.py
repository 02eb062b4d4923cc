"""The notebook of phase 1, run from top to bottom on the processor, with drawn images."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.command import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "infra" / "colab" / "phase1.ipynb"


def test_the_notebook_trains_and_shows_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"SOURCE": "drawn", "WORK": tmp_path / "work", "REPOSITORY": ROOT, "EPOCHS": 2, "IMAGES_PER_CLASS": 24}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=HANG_SECONDS, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert "loss " in said
    assert "no GPU: its memory is not known" in said
    assert "top-1 " in said
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= shown
    assert (tmp_path / "work" / "runs" / "colab" / "result.json").is_file()


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
