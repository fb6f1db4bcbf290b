"""The skeletons in CONTRIBUTING.md work when copied: each is put where it says, and its own first test is run."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BLOCK = re.compile(r"^```python ([\w/]+\.py)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def blocks(root: Path) -> dict[str, str]:
    """File name -> source, as CONTRIBUTING.md shows them."""
    return dict(BLOCK.findall((root / "CONTRIBUTING.md").read_text(encoding="utf-8")))


@pytest.fixture
def copied(blocks: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str, str], ModuleType]]:
    """Imports a block under the name that it has once it is copied into its folder."""
    made: list[str] = []

    def copy(file: str, name: str) -> ModuleType:
        path = tmp_path / file.replace("/", "_")
        path.write_text(blocks[file], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        made.append(name)
        spec.loader.exec_module(module)
        return module

    yield copy
    for name in made:
        del sys.modules[name]


def run_tests(module: ModuleType) -> None:
    """Calls every test of a copied test file."""
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_model_skeleton_works_when_copied(copied: Callable[[str, str], ModuleType]) -> None:
    copied("models/poisson_rate.py", "bayeszoo.models.poisson_rate")
    run_tests(copied("tests/models/test_poisson_rate.py", "copied_test_poisson_rate"))


def test_the_guide_skeleton_works_when_copied(copied: Callable[[str, str], ModuleType]) -> None:
    copied("guides/scaled.py", "bayeszoo.guides.scaled")
    run_tests(copied("tests/guides/test_scaled.py", "copied_test_scaled"))


def test_the_model_skeleton_can_be_simulated_batched_and_saved(
    copied: Callable[[str, str], ModuleType], tmp_path: Path
) -> None:
    import bayeszoo as bz

    model = copied("models/poisson_rate.py", "bayeszoo.models.poisson_rate").PoissonRate()
    data = bz.data.simulate(model, 60, seed=2)
    fit = bz.fit(model, data, guide="mean_field", batch_size=20, steps=50, progress=False)
    # whatever the batch, the loss is a bound for the whole data set
    assert fit.loss + 4 * fit.loss_error >= -float(model.log_evidence(data))
    fit.save(tmp_path / "run")
    again = bz.load(tmp_path / "run", model=model)
    assert again.sample(5)["rate"].equal(fit.sample(5)["rate"])


def test_the_skeletons_are_compilable(copied: Callable[[str, str], ModuleType], uncompiled: None) -> None:
    import bayeszoo as bz

    model = copied("models/poisson_rate.py", "bayeszoo.models.poisson_rate").PoissonRate()
    guide = copied("guides/scaled.py", "bayeszoo.guides.scaled").Scaled
    data = bz.data.simulate(model, 60, seed=2).to(dtype=torch.float64)
    eager, graph = (bz.fit(model, data, guide=guide, steps=50, progress=False, compile=c) for c in (False, True))
    assert (eager.engine, graph.engine) == ("eager", "compiled")
    # double precision has 16 digits; 50 steps cost a few of them
    assert graph.losses == pytest.approx(eager.losses, rel=1e-10)


def test_what_is_not_compilable_is_refused_as_quoted(blocks: dict[str, str], root: Path, tmp_path: Path) -> None:
    import bayeszoo as bz

    source = blocks["models/poisson_rate.py"]
    broken = source.replace("        with data_plate(", "        scale = rate.item()\n        with data_plate(")
    file = tmp_path / "poisson_rate.py"
    file.write_text(broken, encoding="utf-8")
    names = {"__name__": "bayeszoo.models.poisson_rate", "__package__": "bayeszoo.models"}
    exec(compile(broken, str(file), "exec", dont_inherit=True), names)
    model: Any = names["PoissonRate"]
    data = bz.data.simulate(model(), 20, seed=2)
    with pytest.raises(ValueError, match="cannot be compiled") as caught:
        bz.fit(model(), data, guide="mean_field", steps=20, progress=False, compile=True)
    quoted = re.search(
        r"^```text\n(compile=True, .*?)(; use .*)\n```$", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    assert quoted is not None
    assert str(caught.value).startswith(quoted[1])
    assert str(caught.value).endswith(quoted[2])


def test_the_skeletons_keep_the_style(blocks: dict[str, str], root: Path, tmp_path: Path) -> None:
    import subprocess

    for file, source in blocks.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(root / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([*ruff, *command, *config], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
