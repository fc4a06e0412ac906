"""Every notebook runs from top to bottom on a finished sweep, of which one run is enough for some."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_run import MICRO, in_a_process

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    points = ("--multirun", "objective=amm,kd", "seed=0,1")
    own = [knob for knob in MICRO.split() if not knob.startswith("critic.")]  # kd has no critic
    places = (f"cache.dir={folder / 'cache'}", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}")
    made = in_a_process(folder, *own, *points, *places)
    assert made.returncode == 0, made.stderr
    return folder / "sweep"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs(path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMD_LIGHTNING_RUN", str(finished / "0"))
    monkeypatch.setenv("AMD_LIGHTNING_SWEEP", str(finished))
    notebook = nbformat.read(path, as_version=4)
    root = str(NOTEBOOKS.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
