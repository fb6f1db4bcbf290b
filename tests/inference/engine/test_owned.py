"""Whose parameters a fit trains: those of modules, of functions, and of `pyro.param` statements in either."""

from __future__ import annotations

import threading
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
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


class Scale(PyroModule):
    """Says a scale, kept as a `PyroParam`."""

    def __init__(self) -> None:
        super().__init__()
        self.value = PyroParam(torch.tensor(3.0), constraint=constraints.positive)

    def forward(self) -> Tensor:
        return self.value


class Statement(PyroModule):
    def forward(self) -> Tensor:
        return pyro.param("value", torch.tensor(3.0), constraint=constraints.positive)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("kind", [Scale, Statement])
@pytest.mark.parametrize("compile", [False, True])
def test_modules_that_a_function_calls_are_trained(
    kind: Any, registered: bool, compile: bool, uncompiled: None, tmp_path: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator)
    data = bz.data.Data({"x": x}, 0.3 + 0.7 * x + 0.1 * torch.randn(30, generator=generator))

    def with_module(net: Any) -> Any:
        def model(x: Tensor, y: Tensor | None = None) -> None:
            if registered:
                pyro.module("net", net)
            scale, a = net(), pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(a + 0.7 * x, scale), obs=y)

        return model

    net = kind()
    fit = bz.fit(with_module(net), data, "mean_field", steps=200, progress=False, compile=compile)
    plain = bz.fit(_scaled, data, "mean_field", steps=200, progress=False, compile=False)
    assert fit.losses == pytest.approx(plain.losses, rel=1e-5)
    fit.save(tmp_path)
    again = bz.load(tmp_path, model=with_module(kind()))
    with again.run.owned.active(), fit.run.owned.active():
        named = again.run.owned.parameters()
        for name, value in fit.run.owned.parameters().items():
            assert torch.equal(named[name], value)
    tables = [
        bz.inference.gradient_variance(part, "mean_field", data, num_samples=40) for part in (_scaled, with_module(kind()))
    ]
    first, second = ([row.split()[:-1] for row in str(table).splitlines()[1:]] for table in tables)  # last: the time
    assert first == second


def test_a_module_that_a_guide_function_calls_is_trained() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(torch.tensor(2.0))

        def forward(self, y: Tensor | None = None) -> None:
            pyro.sample("a", dist.Normal(self.loc, 0.3))

    def model(y: Tensor | None = None) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 9):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    own, data = Guide(), bz.data.Data({}, {"y": torch.zeros(9)})
    options: dict[str, Any] = {"steps": 60, "progress": False, "compile": False}
    by_function = bz.fit(model, data, lambda y=None: own(y), **options)
    assert by_function.losses == pytest.approx(bz.fit(model, data, Guide(), **options).losses, rel=1e-6)
