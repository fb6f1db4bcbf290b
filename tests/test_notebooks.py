"""The notebooks run as they are written, and what is committed is what the text says.

After an edit of a notebook's text `jupytext --to ipynb --execute notebooks/<name>.py` writes its outputs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
MAX_BYTES = 1_000_000
# Jupyter's own start-up, not the notebooks: clients and event loops that are closed by the garbage collector.
JUPYTER_NOISE = (
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

#: Those that take most of a minute or longer run with the slow tests.
LONG = ("02", "03", "04", "05", "06", "07")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

pytestmark = [
    *(pytest.mark.filterwarnings(rule) for rule in JUPYTER_NOISE),
]


def cells(notebook: Any) -> list[tuple[str, str]]:
    """Type and source of every cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code(notebook: Any) -> list[Any]:
    """The code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a kernel that is the running interpreter, whatever else is installed on the machine."""
    name = "bayeszoo-test"
    folder = tmp_path / "jupyter" / "kernels" / name
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": name, "language": "python"}), encoding="utf-8"
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tests run side by side
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    return name


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem.startswith(LONG) else p for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs(path: Path, kernel: str, tmp_path: Path) -> None:
    """The text runs from top to bottom in an empty folder, without an error and without a warning."""
    work = tmp_path / "work"
    work.mkdir()
    notebook = jupytext.read(path)
    resources = {"metadata": {"path": str(work)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    assert any("image/png" in o.get("data", {}) for o in outputs)


@each
def test_committed_notebook_is_the_text(path: Path) -> None:
    """Both halves of the pair hold the same cells."""
    committed = jupytext.read(path.with_suffix(".ipynb"))
    assert cells(committed) == cells(jupytext.read(path))


@each
def test_committed_notebook_has_outputs(path: Path) -> None:
    """Figures and numbers can be read without running anything, and name no folder of a machine."""
    ipynb = path.with_suffix(".ipynb")
    assert ipynb.stat().st_size < MAX_BYTES
    committed = jupytext.read(ipynb)
    assert all(cell.execution_count for cell in code(committed))
    outputs = [output for cell in code(committed) for output in cell.outputs]
    assert {"stream", "display_data"} <= {output.output_type for output in outputs}
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = json.dumps([o for o in outputs if "image/png" not in o.get("data", {})])
    assert not [word for word in ("/home/", "/root/", "/Users/", "/tmp/", "site-packages") if word in text]


@each
def test_is_a_lesson(path: Path) -> None:
    """Goals at the top, questions before figures, a guide by its name, ArviZ, and an exercise at the end."""
    notebook = jupytext.read(path)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    source = "\n".join(cell.source for cell in code(notebook))
    assert "**Goals.**" in prose[0]
    assert "## Exercise" in prose[-1]
    assert sum("**Before you look:**" in part for part in prose) >= 3
    assert "guide=" in source
    assert "diagnose(" in source
    assert "az.summary(" in source
    assert "from bayeszoo" not in source  # the public API only
