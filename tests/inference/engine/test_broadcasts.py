"""What many numbers share is computed once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bayeszoo.inference.engine import broadcasts


def rewritten(function: Callable[..., object], *inputs: Tensor) -> tuple[fx.GraphModule, list[tuple[str, int]]]:
    """The functional graph of a function, rewritten, and its operations with the numbers that each computes."""
    module: fx.GraphModule = make_fx(torch.func.functionalize(function), tracing_mode="fake")(*inputs)
    broadcasts.rewrite(module)
    calls = [n for n in module.graph.nodes if n.op == "call_function"]
    return module, [(str(n.target).split(".")[1], n.meta["val"].numel()) for n in calls if isinstance(n.meta["val"], Tensor)]


def test_a_density_with_a_shared_parameter() -> None:
    p, x = torch.rand(8, 1), torch.rand(100)

    def step(p: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(torch.logit(p.expand(8, 100)), x.expand(8, 100))

    module, operations = rewritten(step, p, x)
    torch.testing.assert_close(module(p, x), step(p, x))
    costly = [(name, size) for name, size in operations if name in broadcasts.COSTLY | {"logit", "exp", "log"}]
    assert costly
    assert all(size == 8 for _, size in costly), costly
    assert ("kept", 8) in operations


def test_several_ranks_and_expansions() -> None:
    a, b, c = torch.rand(30, 1), torch.rand(()), torch.rand(5, 1, 1)

    def step(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        wide_a, wide_b = a.expand(5, 30, 40), b.expand(30, 40)
        both = (wide_a.exp() + wide_b.log()) * 2.0
        return both, torch.where(both > 1, both, -both), (both + c.expand(5, 30, 40).exp()).sum(-1), both.permute(2, 0, 1) * 3

    module, operations = rewritten(step, a, b, c)
    for ours, theirs in zip(module(a, b, c), step(a, b, c), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert ("exp", 6000) not in operations
    assert ("log", 1200) not in operations


def test_products_and_flattened_copies_keep_a_dense_operand() -> None:
    a, w = torch.rand(64, 1), torch.rand(50, 3)

    def step(a: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        wide = a.expand(64, 50).exp()
        return wide @ w, wide.reshape(-1) * 2, wide.unsqueeze(0).view(-1) + 1

    module, _ = rewritten(step, a, w)
    for ours, theirs in zip(module(a, w), step(a, w), strict=True):
        torch.testing.assert_close(ours, theirs)
    product = next(n for n in module.graph.nodes if "mm" in str(n.target))
    assert 0 not in product.args[0].meta["val"].stride()  # BLAS has no form for numbers that are repeated


def test_draws_stay_independent() -> None:
    p = torch.full((1,), 0.5)
    module, operations = rewritten(lambda p: torch.bernoulli(p.expand(1000)), p)
    torch.manual_seed(0)
    assert 400 < float(module(p).sum()) < 600
    assert ("bernoulli", 1000) in operations


@pytest.mark.parametrize("size", [20, 200])
def test_few_numbers_are_left_alone(size: int) -> None:
    _, operations = rewritten(lambda p: p.expand(size).exp() * 2, torch.rand(1))
    assert ("exp", size if size < broadcasts.LEAST_NUMBERS else 1) in operations


def test_scattered_numbers_are_gathered_once() -> None:
    """A column of the noise, say: every vector of numbers computed from it would read it one by one."""
    table, x = torch.rand(64, 21), torch.rand(64, 1000)

    def step(table: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        column = table[:, 20:].reshape(64) * 2
        return x.t() + column, x.t() * (table[0, :1] + 1)

    module, operations = rewritten(step, table, x)
    assert ("kept", 64) in operations
    assert ("kept", 1) not in operations
    for ours, theirs in zip(module(table, x), step(table, x), strict=True):
        torch.testing.assert_close(ours, theirs)
