"""Copies of fits: they answer as the fit did, whatever becomes of it, and of the networks that its model calls."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import bayeszoo as bz


def regression(net: nn.Module, x: Tensor, y: Tensor | None = None) -> None:
    pyro.module("net", net)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(net(x)[:, 0], scale), obs=y)


class Method(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(self.net, x, y)


class Called:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(self.net, x, y)


class Holds(PyroModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(self.net, x, y)


class Keeps(PyroModule):
    """The network is no submodule of it, and is copied with it or not."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.model(x, y)


class KeepsForTorch(nn.Module):
    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.model(x, y)


def function(net: nn.Module) -> Callable[..., Any]:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        regression(net, x, y)

    return model


def partly(net: nn.Module) -> Callable[..., Any]:
    return functools.partial(regression, net)


CALLERS: dict[str, Callable[[nn.Module], Any]] = {
    "function": function,
    "partial": partly,
    "method": lambda net: Method(net).model,
    "object": Called,
    "submodule": Holds,
    "module with a function": lambda net: Keeps(function(net)),
    "module with a partial": lambda net: Keeps(partly(net)),
    "torch module with a function": lambda net: KeepsForTorch(function(net)),
    "torch module with a partial": lambda net: KeepsForTorch(partly(net)),
}


def line() -> bz.data.Data:
    x = torch.linspace(-1.0, 1.0, 30)[:, None]
    return bz.data.Data({"x": x}, 2 * x[:, 0] + 0.1 * torch.sin(40 * x[:, 0]))


@torch.no_grad()
def spoil(values: Any) -> None:
    for value in values:
        value.fill_(0.3)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("family", ["mean_field", "auto"])
def test_a_copy_of_a_fit_answers_as_it_did(caller: str, family: str) -> None:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model = CALLERS[caller](net)
    guide = AutoNormal(model.__self__.model if caller == "method" else model) if family == "auto" else family
    fit = bz.fit(model, line(), guide, steps=30, compile=False, progress=False)
    x = line().inputs
    answers = fit.predict(x, n=20).mean
    spoil(net.state_dict().values())  # the user goes on with the network
    other = copy.deepcopy(fit)
    assert torch.equal(fit.predict(x, n=20).mean, answers)
    assert torch.equal(other.predict(x, n=20).mean, answers)
    with fit.run.owned.active():
        trained = {name: value.detach().clone() for name, value in fit.run.owned.parameters().items()}
        spoil(fit.run.owned.parameters().values())
        spoil(fit.run.owned.borrowed.buffers())
    assert not torch.equal(fit.predict(x, n=20).mean, answers)
    assert torch.equal(other.predict(x, n=20).mean, answers)
    with other.run.owned.active():
        found = other.run.owned.parameters()
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[name], value) for name, value in trained.items())


def test_what_cannot_be_pickled_says_how_it_is_kept() -> None:
    fit = bz.fit(function(nn.Linear(1, 1)), line(), "mean_field", steps=3, compile=False, progress=False)
    with pytest.raises(TypeError, match=r"a fit cannot be pickled: fit.save\(path\) writes it, and bz.load\(path\) reads it"):
        pickle.dumps(fit)
