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


def test_kept_values_lie_in_memory_as_they_did() -> None:
    x, w = torch.rand(40, 5), torch.rand(40)

    def step() -> tuple[Tensor, ...]:
        both = x.log().t() * w
        return both.t().reshape(-1), x.exp().t().as_strided((20,), (1,)) * w[:20], x.exp()[::2, 0] * w[:20]

    graph = hoisted(step, [x], [w])
    assert "exp" not in names(graph)
    for ours, theirs in zip(graph.module(*graph.inputs), step(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_written_by_keyword_stays() -> None:
    x, w = torch.rand(50), torch.rand(50)

    def step() -> tuple[Tensor, ...]:
        room = torch.zeros(50)
        part = room.view(5, 10)
        torch.exp(w, out=room)
        return part.lgamma() + x.sum(), x.lgamma() * w

    graph = hoisted(step, [x], [w])
    w.mul_(2)
    for ours, theirs in zip(graph.module(*graph.inputs), step(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_running_statistics_stay() -> None:
    norm, x, w = torch.nn.BatchNorm1d(1, affine=False), torch.rand(50, 1), torch.rand(50)

    def step() -> tuple[Tensor, ...]:
        return (norm(x)[:, 0].exp() * w,)

    graph = capture.capture(step, changing=[w], modules=[])
    assert any("batch_norm" in name for name in names(hoist(graph, {id(t) for t in graph.inputs} - {id(w)})))
    norm.eval()
    graph = capture.capture(step, changing=[w], modules=[])
    assert not any("batch_norm" in name for name in names(hoist(graph, {id(t) for t in graph.inputs} - {id(w)})))


def test_what_is_kept_has_a_bound() -> None:
    y, w = torch.rand(5000), torch.rand(30)

    def step() -> tuple[Tensor, ...]:
        return (sum(((y + k).lgamma() * w[k]).sum() for k in range(30)), y.lgamma().sum().expand(5000) * w[0])  # type: ignore[return-value]

    graph = hoisted(step, [y], [w])
    assert sum(t.numel() for t in graph.inputs) <= 5 * 5000 + 30
    for ours, theirs in zip(graph.module(*graph.inputs), step(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Mean(PyroModule):
    """y_n ~ N(b, 1)."""

    def forward(self, y: Tensor | None = None) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", 200, dim=-1):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)


class Scaled(PyroModule):
    """A guide whose scale is a function of another tensor over the mean's memory, and of part of a buffer that it writes."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))
        object.__setattr__(self, "stopped", self.mean.detach())
        object.__setattr__(self, "part", self.seen[:1])

    def forward(self, y: Tensor | None = None) -> None:
        scale = (self.part.exp()[0] - self.stopped).exp()
        self.seen.add_(0.01)
        pyro.sample("b", dist.Normal(self.mean, scale))


def test_other_tensors_over_memory_that_changes() -> None:
    data = bz.data.Data({}, torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3)
    losses = [
        torch.tensor(bz.fit(Mean(), data, Scaled, steps=15, optimizer=0.1, compile=c, seed=1, progress=False).losses)
        for c in (True, False)
    ]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)


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
    for name in ("lgamma", "erf"):  # of the data, which a callback may change, too
        assert (name in gained[0]) is not watched
