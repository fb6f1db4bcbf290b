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
    assert float(y[x.abs() < 9].abs().max()) < 1  # a user may take log(1 - y^2)
    assert torch.equal(y[x.abs() > 9.02], x[x.abs() > 9.02].sign())  # no slope where torch's has none
    unit = torch.from_numpy(np.spacing(exact.nan_to_num(1.0).abs().float().numpy())).double()
    assert float(((y.double() - exact).abs() / unit).nan_to_num().max()) < 6


ENDS = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-30,
    -1e-30,
    17.0,
    20.0,
    20.1,
    88.0,
    -88.0,
    -100.0,
    -104.0,
    -1e10,
    1e10,
    torch.inf,
    -torch.inf,
    torch.nan,
]


@pytest.mark.parametrize(
    ("function", "units"),
    [
        (lambda x: torch.where(x > 20.0, x, torch.log1p(torch.exp(x))), 4),  # softplus as Inductor sees it
        (lambda x: torch.log1p(torch.exp(-x.abs())), 4),
        (lambda x: torch.stack([torch.exp(-x.abs()), torch.sigmoid(x)]), 4),
    ],
)
def test_what_an_exponential_of_minus_the_size_gives(function: Callable[[Tensor], Tensor], units: int) -> None:
    x = torch.cat([torch.linspace(-110, 110, 400_001), torch.linspace(-2, 2, 100_001), torch.tensor(ENDS)])
    module = rewritten(function, x)
    assert not any(name in target for target in targets(module) for name in ("log1p", "sigmoid"))
    y, exact = module(x), function(x.double())
    assert torch.equal(y.isnan(), x.isnan().expand_as(y))
    unit = torch.from_numpy(np.spacing(exact.nan_to_num(1.0).abs().float().numpy())).double()
    # torch's own exponential is within one unit of the last place; what it makes of numbers below 1e-38 is not asked.
    fine = exact.isfinite() & (exact > 1e-37)
    assert float(((y.double() - exact).abs() / unit)[fine].max()) < units
    torch.testing.assert_close(y, function(x), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_what_only_looks_like_softplus_stays() -> None:
    x = torch.randn(5)
    for function in (
        lambda x: torch.where(x > 3.0, x, torch.log1p(torch.exp(x))),  # not the same above 3
        lambda x: torch.where(x > 20.0, -x, torch.log1p(torch.exp(x))),
        lambda x: torch.log1p(torch.exp(-x)),
        lambda x: torch.where(x.double() > 20.0, x.double(), torch.log1p(torch.exp(x.double()))),
    ):
        assert any("log1p" in target for target in targets(rewritten(function, x)))
    assert any("sigmoid" in target for target in targets(rewritten(lambda x: (torch.exp(-x), torch.sigmoid(x))[1], x)))


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


def test_a_choice_of_whole_numbers_is_one_in_single_precision() -> None:
    """The gradient of log-sigmoid has two of them, of 64 bits each."""
    x = torch.linspace(-3, 3, 50)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        sign = torch.where(x < 0, torch.full([], 1), torch.full([], -1))
        count = torch.where(x < 1, torch.full([], 3), torch.full([], 2**40))
        kept = torch.where(x < 2, torch.full([], 3), torch.full([], 4))
        return x * sign - 1, count * x, kept * x, kept + 1

    module = rewritten(step, x)
    kinds = [n.meta["val"].dtype for n in module.graph.nodes if n.target is torch.ops.aten.where.self]
    assert kinds.count(torch.float32) == 1  # the second is no number of single precision, the third is used as a whole number
    for ours, theirs in zip(module(x), step(x), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
