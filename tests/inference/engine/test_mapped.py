"""A Bernoulli density by logits under `torch.vmap` costs what it costs without, and is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from bayeszoo.inference.engine.mapped import PlainLosses

X = torch.cat([torch.linspace(-120, 120, 49, dtype=torch.float64), torch.randn(31, dtype=torch.float64)]).reshape(4, 20)
Y = (torch.arange(20) % 3 == 0).double()


def value_and_slopes(options: dict[str, Any], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The mapped loss, its gradients and its second derivative."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    loss = torch.vmap(lambda x: F.binary_cross_entropy_with_logits(x, y, **options))(x)
    slopes = torch.autograd.grad(loss.sum(), (x, y), create_graph=True)
    return loss, *slopes, torch.autograd.grad(slopes[0].sin().sum(), x)[0]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("grey", [False, True])
def test_value_and_derivatives(reduction: str, grey: bool) -> None:
    y = torch.rand(20, dtype=torch.float64) if grey else Y
    expected = value_and_slopes({"reduction": reduction}, X, y)
    with PlainLosses():
        found = value_and_slopes({"reduction": reduction}, X, y)
    for ours, theirs in zip(found, expected, strict=True):
        # torch's second derivative under vmap is not a number where an exponential is 0
        torch.testing.assert_close(ours.nan_to_num(), theirs.nan_to_num(), rtol=1e-9, atol=1e-12)


def functions(mapped: bool) -> list[str]:
    """What a density and its gradient compute."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        density = torch.vmap(lambda x: torch.distributions.Bernoulli(logits=x, validate_args=False).log_prob(y))(x)
        return torch.autograd.grad(density.sum(), x)[0]

    with PlainLosses() if mapped else torch.overrides.BaseTorchFunctionMode():
        module = make_fx(step)(X, Y)
    calls = [getattr(n.target, "overloadpacket", None) for n in module.graph.nodes if n.op == "call_function"]
    return [call._qualified_op_name.removeprefix("aten::").rstrip("_") for call in calls if call is not None]


def test_no_exponential_more_than_it_takes() -> None:
    assert functions(False).count("exp") == 2
    assert functions(True).count("exp") == 0
    assert "log_sigmoid_forward" in functions(True)


def test_what_is_not_mapped_or_has_weights_is_torchs() -> None:
    with PlainLosses():
        assert torch.equal(
            F.binary_cross_entropy_with_logits(X[0], Y), torch.ops.aten.binary_cross_entropy_with_logits(X[0], Y)
        )
        for weights in ({"weight": Y + 1}, {"pos_weight": Y + 1}):
            found = torch.vmap(lambda x, weights=weights: F.binary_cross_entropy_with_logits(x, Y, **weights))(X)
            expected = torch.stack([F.binary_cross_entropy_with_logits(x, Y, **weights) for x in X])
            torch.testing.assert_close(found, expected)
        with pytest.raises(ValueError, match="must be the same as input size"):
            torch.vmap(lambda x: F.binary_cross_entropy_with_logits(x, Y[:1]))(X)
