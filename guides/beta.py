"""q(pi) = Beta(a, b): the coin's matching family, which holds its exact posterior.

Lecture: "Another Example: Coin Tossing". Any latent in (0, 1) can have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values
from .path_derivative import PathDerivative


class BetaGuide(ContinuousGuide):
    """Independent Beta distributions with log-concentrations log a and log b as parameters."""

    family = "beta"

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        for site in self.space.sites.values():
            base = site.support
            while isinstance(base, constraints.independent):
                base = base.base_constraint
            if base is not constraints.unit_interval or site.local:
                raise ValueError(
                    f"guide 'beta' is for latents in (0, 1) that all observations share, and site '{site.name}' is not one; use "
                    "'mean_field' or 'full_rank'"
                )
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.register_buffer("start", torch.zeros(2, len(center), dtype=center.dtype))
        self.offset = nn.Parameter(torch.zeros_like(center))
        self.log_size = nn.Parameter(torch.zeros_like(center))

    def initialize(self, start: Start) -> None:
        """The Beta with the start's mean and sd in the logit: var(logit pi) is about 1/a + 1/b."""
        mean = torch.sigmoid(start.mean)
        size = 1.0 / (start.conditional_sd.square() * mean * (1 - mean)).clamp_min(1e-12)
        self.start.copy_(torch.stack([start.mean, size.log()]))
        self.center.copy_(start.mean)

    def concentrations(self, detach: bool = False) -> tuple[Tensor, Tensor]:
        """a and b, each (D,)."""
        offset, log_size = (self.offset.detach(), self.log_size.detach()) if detach else (self.offset, self.log_size)
        size = (self.start[1] + log_size).exp()
        logit = self.start[0]
        # The offset is in posterior sds of logit pi.
        sd = (size * torch.sigmoid(logit) * torch.sigmoid(-logit)).rsqrt()
        mean = torch.sigmoid(logit + sd.detach() * offset)
        return mean * size, (1 - mean) * size

    def summary(self) -> Tensor:
        """Means in posterior sds and log concentrations, (2 D,): what must settle before the fit has converged."""
        return torch.cat([self.offset, self.log_size / 2])

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every latent."""
        plates = Plates(self.program, index)
        a, b = (self.space.split(part) for part in self.concentrations())
        frozen_a, frozen_b = (self.space.split(part) for part in self.concentrations(detach=True))
        values = {}
        for name, site in self.space.sites.items():
            fn: Any = dist.Beta(a[name], b[name]).to_event(site.event_dim)
            if self.path_derivative:
                fn = PathDerivative(fn, dist.Beta(frozen_a[name], frozen_b[name]).to_event(site.event_dim))
            with plates.around(site):
                values[name] = pyro.sample(name, fn)
        return values
