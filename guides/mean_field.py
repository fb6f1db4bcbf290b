"""Mean field: q(z) = prod_i N(u_i | m_i, s_i^2), independent normals in unconstrained coordinates.

Lecture: "Variational Inference"; Kucukelbir et al. 2017, ADVI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, first_basis, is_real, moved, normal_in, prior_scale_values, set_basis
from .path_derivative import PathDerivative


class MeanField(ContinuousGuide):
    """One normal a coordinate, each site drawn in its own statement, so a closed-form KL to a normal prior applies.

    Latents of single observations have one mean and scale an observation, and train on minibatches.

    Args:
        init_scale: sd in unconstrained coordinates before the start has looked at the posterior.
    """

    family = "mean_field"
    factorized = True

    def __init__(self, model: Callable[..., Any], data: BoundData, *, init_scale: float = 0.1) -> None:
        super().__init__(model, data)
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.register_buffer("frame", torch.full_like(center, init_scale))
        self.register_buffer("basis", first_basis(center, init_scale))
        self.offset = nn.Parameter(torch.zeros_like(center))
        self.log_scale = nn.Parameter(torch.zeros_like(center))

    def initialize(self, start: Start) -> None:
        """Means at the mode, sds from the precision's diagonal: what the best factorised normal has."""
        self.center.copy_(start.mean)
        self.frame.copy_(start.conditional_sd)
        set_basis(self.basis, start)

    def location(self) -> Tensor:
        """Means in unconstrained coordinates, (D,)."""
        return self.center + moved(self.basis, self.offset)

    def summary(self) -> Tensor:
        """Means in posterior sds and log scales, (2 D,): what must settle before the fit has converged."""
        return torch.cat([self.offset, self.log_scale])

    def factorized_moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and sd of every real-valued latent by site, detached."""
        loc, scale = self.space.split(self.location()), self.space.split(self.frame * self.log_scale.exp())
        real = [n for n, site in self.space.sites.items() if self.space.shapes[n] == site.shape and is_real(site)]
        return {name: (loc[name].detach(), scale[name].detach()) for name in real}

    def _widen(self, factor: float) -> None:
        self.log_scale.add_(math.log(factor))

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        loc = self.space.split(self.location())
        scale = self.space.split(self.frame * self.log_scale.exp())
        plates = Plates(self.program, index)
        values = {}
        for name, site in self.space.sites.items():
            m, s = plates.rows(site, loc[name]), plates.rows(site, scale[name])
            fn = normal_in(site, m, s)
            if self.path_derivative:
                fn = PathDerivative(fn, normal_in(site, m.detach(), s.detach()))
            with plates.around(site):
                values[name] = pyro.sample(name, fn)
        return values
