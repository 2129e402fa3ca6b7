"""The notebook is made from its twin, and runs from top to bottom."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "notebook.py"


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("notebook_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_its_twin(program):
    made = program.make_notebook(program.TWIN.read_text(encoding="utf-8"))
    assert len(made["cells"]) >= 8
    shown = json.loads(program.TWIN.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert shown == made, f"python {PROGRAM.relative_to(PROGRAM.parents[2])}"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)  # of jupyter_client and its event loops
def test_the_notebook_runs(program, tiny_folder, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    import numpy as np
    from fixtures_media import noise

    from combo_hf.results.video import write_video

    film = tmp_path / "film.mp4"
    write_video(film, [np.full((48, 64, 3), 20 * k, np.uint8) for k in range(8)], 4, noise(2))
    text = json.dumps(program.make_notebook(program.TWIN.read_text(encoding="utf-8")))
    for ours, tiny in (
        ('combo_hf.ASSETS / \\"demo_real.mp4\\"', repr(str(film))),
        ("MODEL = None", f"MODEL = {str(tiny_folder)!r}"),
    ):
        assert ours in text
        text = text.replace(ours, tiny)
    notebook = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "segmented" / "film_overlay.mp4").is_file()
