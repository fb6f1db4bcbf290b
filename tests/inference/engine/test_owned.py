"""Whose parameters a fit trains: those of modules, of functions, and of `pyro.param` statements in either."""

from __future__ import annotations

import threading
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

import bayeszoo as bz


class _Scale(PyroModule):
    """Its noise is a `pyro.param`, in a module."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        _scaled(x, y)


def _scaled(x: Tensor, y: Tensor | None = None) -> None:
    scale = pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + 0.7 * x, scale), obs=y)


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"restarts": 2}, {"restarts": 2, "compile": True}])
def test_param_statements_in_modules_are_trained(options: dict[str, Any], uncompiled: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    data = bz.data.Data({"x": x}, 0.3 + 0.7 * x + 0.1 * torch.randn(30, generator=generator, dtype=torch.float64))
    options = {"steps": 300, "progress": False, "compile": False} | options
    function, module = (bz.fit(part, data, "mean_field", **options) for part in (_scaled, _Scale()))
    for a, b in zip(function.runs, module.runs, strict=True):
        assert b.history.losses == pytest.approx(a.history.losses, rel=1e-9)
        with b.owned.active():
            found = float(b.owned.parameters()["model.param.scale"].detach().exp())
        with a.owned.active():
            assert found == pytest.approx(float(a.owned.parameters()["param.scale"].detach().exp()))
        assert found < 0.5  # it began at 3, and the noise is 0.1
    if not options["compile"] and "restarts" not in options:
        tables = [bz.inference.gradient_variance(part, "mean_field", data, num_samples=40) for part in (_scaled, _Scale())]
        first, second = ([line.split()[:-1] for line in str(table).splitlines()[1:]] for table in tables)  # last: the time
        assert first == second


def test_modules_that_cannot_be_copied_are_refused_in_words() -> None:
    class Locked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, y: Tensor | None = None) -> None:
            with pyro.plate("data", 3):
                pyro.sample("y", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(ValueError, match=r"are copied before they are fitted, and these cannot be .*lock") as caught:
        bz.fit(Locked(), bz.data.Data({}, {"y": torch.zeros(3)}), "mean_field", steps=3, progress=False)
    assert "\n" not in str(caught.value)
