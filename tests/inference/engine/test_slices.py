"""Gradients of parts of one tensor, put side by side, are the sums that they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bayeszoo.inference.engine import slices


def gradient(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[torch.fx.GraphModule, Tensor]:
    """The traced gradient of a function of one tensor, and a point to take it at."""
    torch.manual_seed(0)
    at = torch.randn(shape, dtype=torch.float64)

    def differentiated(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x), x)[0]

    return make_fx(differentiated)(at), at


def counted(module: torch.fx.GraphModule) -> tuple[int, int]:
    """How many gradients of parts there are, and how many concatenations."""
    targets = [node.target for node in module.graph.nodes]
    return sum(targets.count(t) for t in (slices._SLICE, slices._ROW)), targets.count(torch.ops.aten.cat.default)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x[:3].exp().sum() + x[3:7].sin().sum() + x[7:].pow(2).sum(), (10,)),
        (lambda x: x[1:3].exp().sum() + x[5:7].sin().sum(), (10,)),
        (lambda x: (x[:-1] * torch.arange(9.0)).sum().exp() + x[-1] ** 3, (10,)),
        (lambda x: x[7:].exp().sum() + x[2] ** 2 + x[:2].sin().sum(), (10,)),
        (lambda x: x[0] * x[2], (3,)),
        (lambda x: x[:6].exp().sum() + x.pow(2).sum() + x[6:].sin().sum(), (10,)),
        (lambda x: x[:, :2].exp().sum() + x[:, 2:].sin().sum(), (4, 5)),
        (lambda x: x[..., 0].exp().sum() + x[..., 1:].sin().sum(), (2, 3, 4)),
    ],
)
def test_parts_side_by_side(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    module, at = gradient(function, *shape)
    before = module(at)
    assert counted(module)[0] > 1
    slices.rewrite(module.graph)
    module.recompile()
    assert counted(module) == (0, 1)
    assert torch.equal(module(at), before)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:6].exp().sum() + x[4:].sin().sum(),  # they overlap
        lambda x: x[::2].exp().sum() + x[1::2].sin().sum(),
        lambda x: x[:6].exp().sum() + x[6:].sin().sum() + x.pow(2).sum() + x.exp().sum(),  # two others in one order
        lambda x: x[:6].exp().sum(),
        lambda x: x[2] ** 2 + x[2].exp(),
    ],
)
def test_what_stays_a_sum(function: Callable[[Tensor], Tensor]) -> None:
    module, at = gradient(function, 10)
    before, parts = module(at), counted(module)
    slices.rewrite(module.graph)
    module.recompile()
    assert counted(module) == parts
    assert torch.equal(module(at), before)


def test_sum_that_is_read_twice() -> None:
    """A part of a sum that something else reads is there still."""
    a, b, c = (torch.randn(n) for n in (2, 3, 5))

    def function(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        part = torch.ops.aten.slice_backward.default
        two = part(a, [10], 0, 0, 2, 1) + part(b, [10], 0, 2, 5, 1)
        return two + part(c, [10], 0, 5, 10, 1), two * 2

    module = make_fx(function)(a, b, c)
    before = module(a, b, c)
    slices.rewrite(module.graph)
    module.recompile()
    assert all(torch.equal(x, y) for x, y in zip(module(a, b, c), before, strict=True))


@pytest.mark.parametrize("what", ["the gradient", "through a view", "the part"])
def test_parts_that_are_written_into_stay(what: str) -> None:
    a = torch.randn(5)
    part = torch.ops.aten.slice_backward.default

    def function(a: Tensor) -> Tensor:
        own = a * 2
        first, second = part(own, [10], 0, 0, 5, 1), part(own, [10], 0, 5, 10, 1)
        {"the gradient": own, "through a view": own[1:], "the part": first}[what].add_(1)
        return first + second

    module = make_fx(function)(a)
    before = module(a)
    slices.rewrite(module.graph)
    module.recompile()
    assert torch.equal(module(a), before)


def test_scaled_sum_stays() -> None:
    a = torch.randn(5)
    part = torch.ops.aten.slice_backward.default
    module = make_fx(lambda a: torch.add(part(a, [10], 0, 0, 5, 1), part(a, [10], 0, 5, 10, 1), alpha=3))(a)
    before = module(a)
    slices.rewrite(module.graph)
    module.recompile()
    assert torch.equal(module(a), before)
