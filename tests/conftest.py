"""Shared by all tests: one thread, no screen, the same seed, and what a machine may lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch and matplotlib are imported: test processes share the cores, and there may be no screen.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import matplotlib
import matplotlib.pyplot as plt
import pyro
import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seed and with an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def plots_closed() -> Iterator[None]:
    """Figures are closed after the test, and nothing has changed matplotlib's settings."""
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test data that are not part of the product; BAYESZOO_DATA names it."""
    folder = Path(os.environ.get("BAYESZOO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the test data are absent: name their folder in BAYESZOO_DATA")
    return folder


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured graphs run operation by operation: compiling takes seconds, and has tests of its own."""
    from bayeszoo.inference.engine import compiled
    from bayeszoo.inference.engine.capture import Graph
    from bayeszoo.inference.engine.inductor import Compiled

    def as_it_is(graph: Graph) -> Compiled:
        return Compiled(graph.module, None)

    monkeypatch.setattr(compiled, "compile_graph", as_it_is)


@pytest.fixture
def eager_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` then wants to compile at once."""
    from bayeszoo.inference.engine import compiled

    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS_A_NODE", 0.0)
