"""A captured graph computes the same after it is rewritten for the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from bayeszoo.inference.engine import passes


def rewritten(step: Callable[..., object], *inputs: Tensor) -> fx.GraphModule:
    """The graph of a function, rewritten."""
    module: fx.GraphModule = make_fx(step)(*inputs)
    ShapeProp(module).propagate(*inputs)
    passes.rewrite(module)
    return module


def targets(module: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in module.graph.nodes}


def test_products_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LARGE", 10)
    x, w, bias = torch.randn(40, 6), torch.randn(6, 5), torch.randn(5)
    index = torch.tensor([3, 0, 39, 3])

    def step(x: Tensor, w: Tensor, bias: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        rows = x[index]
        return rows @ w, torch.addmm(bias, rows, w), x @ w[:, 0], rows.T @ (rows @ w)

    module = rewritten(step, x, w, bias, index)
    assert {"bayeszoo.rows.default", "bayeszoo.matmul.default"} <= targets(module)
    assert not any(name in target for target in targets(module) for name in ("aten.mm", "aten.mv", "aten.addmm"))
    torch.testing.assert_close(module(x, w, bias, index), step(x, w, bias, index), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_times_a_vector_is_a_product_where_those_are_our_own(
    transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(200, 12), torch.randn(200 if transposed else 12)

    def step(x: Tensor, w: Tensor) -> Tensor:
        return (x.T if transposed else x) @ w

    for vectors in ("AVX2", ""):
        monkeypatch.setattr(passes.products, "vectors", lambda vectors=vectors: vectors)
        module = rewritten(step, x, w)
        assert any("aten.mm" in target for target in targets(module)) == bool(vectors)
        torch.testing.assert_close(module(x, w), step(x, w), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(passes.products, "vectors", lambda: "AVX2")
    for few in (x[:100], x.double()):  # few numbers, and another precision
        assert not any(
            "aten.mm" in target for target in targets(rewritten(step, few, w[: len(few) if transposed else 12].to(few.dtype)))
        )


@pytest.mark.parametrize("columns", [2, 8])
def test_thin_products_keep_their_rows(columns: int) -> None:
    x, w, bias = torch.randn(200, 5), torch.randn(5, columns), torch.randn(columns)

    def step(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        product = x @ w
        return product.view(-1) * 2, (torch.addmm(bias, x, w) + 1).view(100, -1), product.as_strided((20,), (1,)) + 1

    module = rewritten(step, x, w, bias)
    products = [n for n in module.graph.nodes if "aten.mm" in str(n.target) or "addmm" in str(n.target)]
    assert all("aten.t.default" in str(n.args[0].target) for n in products)  # as their transposes
    for ours, theirs in zip(module(x, w, bias), step(x, w, bias), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_read_as_its_transpose_is_computed_as_that() -> None:
    """Rows of particles: what follows sums over the rows of each, and finds them side by side."""
    x, w = torch.randn(50, 5), torch.randn(5, 30)

    def turned(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        product = (x @ w).permute(1, 0)
        return product.exp().sum(1), product.view(30, 50) * 2, (w.T @ x.T).T.T.transpose(0, 1).sum(1)

    def straight(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        product = x @ w
        return product.T.exp(), product.sum(1), (w.T @ x.T).T.T.exp()

    for step, copies in ((turned, 2), (straight, 0)):
        module = rewritten(step, x, w)
        assert sum("aten.clone" in str(n.target) for n in module.graph.nodes) == copies
        for ours, theirs in zip(module(x, w), step(x, w), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
