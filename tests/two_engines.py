"""Two engines on one model: what tests of either compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

import bayeszoo as bz


def assert_same(a: bz.inference.Fit, b: bz.inference.Fit, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(torch.tensor(b.losses), torch.tensor(a.losses), rtol=tolerance, atol=0.0)
    for mine, other in zip(parameters(a), parameters(b), strict=True):
        torch.testing.assert_close(other, mine, rtol=tolerance, atol=tolerance)


def parameters(fit: bz.inference.Fit) -> list[Tensor]:
    with fit.run.owned.active():
        return [p.detach().clone() for p in fit.run.owned.parameters().values()]


class Slope(PyroModule):
    """Two standard normal latents and an observation; `extra` sees the draws."""

    extra: Callable[[Tensor, Tensor], Any] = staticmethod(lambda a, b: 0.0)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
        shift = self.extra(a, b)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("y", dist.Normal(a + b * x + shift, 1.0), obs=y)


def slope(extra: Callable[[Tensor, Tensor], Any] | None = None) -> tuple[Any, bz.data.Data]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    y = 0.3 + 0.7 * x + torch.randn(30, generator=generator, dtype=torch.float64)
    model = Slope()
    if extra is not None:
        object.__setattr__(model, "extra", extra)
    return model, bz.data.Data(inputs={"x": x}, observed=y)


def fit_slope(extra: Callable[[Tensor, Tensor], Any] | None = None, **options: Any) -> bz.inference.Fit:
    model, data = slope(extra)
    return bz.fit(model, data, "mean_field", progress=False, **{"steps": 60, "loss": "monte_carlo", **options})
