"""Cheaper elementary functions are those that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bayeszoo.inference.engine import elementary


def rewritten(step: Callable[..., object], *inputs: Tensor) -> fx.GraphModule:
    """The graph of a function, rewritten."""
    module: fx.GraphModule = make_fx(step, tracing_mode="fake")(*inputs)
    elementary.rewrite(module)
    return module


def targets(module: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in module.graph.nodes}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logarithm_of_a_mask_is_a_choice(dtype: torch.dtype) -> None:
    value, fixed = torch.tensor([[1.0, 2.0, torch.nan]], dtype=dtype), torch.tensor([[1.0], [2.0]], dtype=dtype)

    def density(value: Tensor, fixed: Tensor) -> Tensor:
        return (value == fixed).type(value.dtype).log()

    module = rewritten(density, value, fixed)
    assert not any("aten.log" in target for target in targets(module))
    found = module(value, fixed)
    assert found.dtype == dtype
    assert torch.equal(found, density(value, fixed))


def test_other_logarithms_stay() -> None:
    x = torch.rand(5)
    assert any("aten.log" in target for target in targets(rewritten(lambda x: x.double().log() + x.log(), x)))
