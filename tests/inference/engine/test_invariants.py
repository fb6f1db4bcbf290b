"""What depends on the data alone is computed before the steps, and nothing that may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.engine import capture, compiled
from bayeszoo.inference.engine.invariants import hoist


def hoisted(step: Callable[[], tuple[Tensor, ...]], fixed: list[Tensor], changing: list[Tensor]) -> capture.Graph:
    """The graph of a step without what the fixed tensors decide."""
    graph = capture.capture(step, changing=changing, modules=[])
    return hoist(graph, {id(t) for t in fixed})


def names(graph: capture.Graph) -> set[str]:
    return {node.target.__name__.split(".")[0] for node in graph.module.graph.nodes if node.op == "call_function"}


def test_terms_of_the_data_leave_the_step() -> None:
    y, rate = torch.arange(50.0), torch.rand(50)

    def step() -> tuple[Tensor, ...]:
        return ((y * rate.log() - rate - (y + 1).lgamma()).sum(),)

    graph = hoisted(step, [y], [rate])
    assert "lgamma" not in names(graph)
    assert "log" in names(graph)
    torch.testing.assert_close(graph.module(*graph.inputs)[0], step()[0])
    rate.mul_(2)  # the next step
    torch.testing.assert_close(graph.module(*graph.inputs)[0], step()[0])


def test_sums_and_products_leave_but_cheap_and_large_results_stay() -> None:
    x, w = torch.rand(40, 50), torch.rand(40)

    def step() -> tuple[Tensor, ...]:
        gram = x @ x.T
        outer = x.exp().flatten()[:, None] * x.exp().flatten()  # 4,000,000 numbers of 2,000
        return gram @ w, (1 - x).sum(1) * w, (2 * x)[:, 0] * w, (outer[:40, :40] * w)

    graph = hoisted(step, [x], [w])
    assert "exp" not in names(graph)
    assert names(graph) >= {"mv", "mul"}
    assert max(t.numel() for t in graph.inputs) == 2000  # the data themselves
    for ours, theirs in zip(graph.module(*graph.inputs), step(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_written_or_drawn_stays() -> None:
    y, total = torch.rand(30), torch.zeros(())

    def step() -> tuple[Tensor, ...]:
        written = y.log()
        written.view(5, 6).add_(total)  # through a view
        total.add_(1)
        return written, torch.bernoulli(y.sigmoid()).exp(), y.exp() * total

    graph = hoisted(step, [y], [total])
    assert {"log", "bernoulli"} <= names(graph)
    first = [t.clone() for t in graph.module(*graph.inputs)]
    second = graph.module(*graph.inputs)
    torch.testing.assert_close(second[0], first[0] + 1)
    assert not torch.equal(second[1], first[1])
    assert graph.inputs[-1].requires_grad is False


#: A number that is neither parameter nor data.
SHIFT = torch.zeros((), dtype=torch.float64)


class Counts(PyroModule):
    """y_n ~ Poisson(exp(a + erf(SHIFT)))."""

    def forward(self, y: Tensor | None = None) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", 200, dim=-1):
            pyro.sample("y", dist.Poisson((a + SHIFT.erf()).exp()), obs=y)


@pytest.mark.parametrize("watched", [False, True])
def test_a_fit_is_the_same_and_callbacks_still_reach_the_model(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gained: list[set[str]] = []

    def noted(graph: capture.Graph, fixed: Any) -> capture.Graph:
        after = hoist(graph, fixed)
        gained.append(names(graph) - names(after))
        return after

    monkeypatch.setattr(compiled, "hoist", noted)
    y = torch.arange(200, dtype=torch.float64) % 7
    losses = []
    for compile in (True, False):
        SHIFT.zero_()
        fit = bz.fit(
            Counts(), bz.data.Data({}, y), "mean_field", steps=20, compile=compile, progress=False, seed=1,
            callbacks=[lambda progress: SHIFT.fill_(-0.1 * progress.step) and None] if watched else [],
        )  # fmt: skip
        assert fit.engine == ("compiled" if compile else "eager")
        losses.append(torch.tensor(fit.losses))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    assert "lgamma" in gained[0]
    assert ("erf" in gained[0]) is not watched
