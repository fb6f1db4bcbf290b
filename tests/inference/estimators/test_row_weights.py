"""What a row counts scales all that belongs to it: the loss, and every kind of gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bayeszoo as bz


def network() -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    net = bz.models.networks.residual_mlp(3, 2, 2, 4)
    return bz.models.AdaptiveDepthResNet(net), bz.data.Data({"x": x}, (x[:, 0] > 0).long(), num_classes=2)


@pytest.mark.parametrize("z", ["exact", "amortized", "reinforce", "relaxed"])
def test_rows_that_count_twice_double_loss_and_gradients(z: str) -> None:
    model, data = network()
    fit = bz.fit(model, data, {"z": z}, steps=2, batch_size=10, compile=False, progress=False)
    objective, found = fit.run.objective, []
    for weights in (None, 2 * torch.ones(10)):
        objective.weights = weights
        with fit.run.owned.active(1):
            named = {n: p for n, p in fit.run.owned.parameters().items() if p.requires_grad}
            surrogate, value = objective(data.batch(torch.arange(10), fit.model))
            grads = torch.autograd.grad(surrogate, list(named.values()), allow_unused=True)
        found.append((value, dict(zip(named, grads, strict=True))))
    (once, single), (twice, double) = found
    torch.testing.assert_close(twice, 2 * once)
    for name, grad in single.items():
        if grad is not None:
            torch.testing.assert_close(double[name], 2 * grad, msg=lambda text, name=name: f"{name}: {text}")
