"""A captured graph computes the same after it is rewritten for the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
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


def test_tanh_is_within_six_units_in_the_last_place() -> None:
    special = [0.0, -0.0, 1e-45, 1e-30, -1e-30, 20.0, -1e10, torch.inf, -torch.inf, torch.nan]
    x = torch.cat([torch.linspace(-10, 10, 400_001), torch.logspace(-30, 1, 100_001), torch.tensor(special)])
    module = rewritten(torch.tanh, x)
    assert not any("tanh" in target for target in targets(module))
    y, exact = module(x), torch.tanh(x.double())
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[-10:-8].signbit(), torch.tensor([False, True]))
    assert float(y.nan_to_num().abs().max()) < 1  # a user may take log(1 - y^2)
    unit = torch.from_numpy(np.spacing(exact.nan_to_num(1.0).abs().float().numpy())).double()
    assert float(((y.double() - exact).abs() / unit).nan_to_num().max()) < 6


def test_tanh_in_double_precision_stays_torchs() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert any("aten.tanh" in target for target in targets(rewritten(torch.tanh, x)))


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
