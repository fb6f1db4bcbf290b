"""Mean field: q(z) = prod_i N(u_i | m_i, s_i^2), independent normals in unconstrained coordinates.

Lecture: "Variational Inference"; Kucukelbir et al. 2017, ADVI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from ..inference.program import BoundData, Site
from ..inference.start import Start
from .continuous import ContinuousGuide, Plates, first_basis, moved, prior_scale_values, set_basis
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

    def _widen(self, factor: float) -> None:
        self.log_scale.add_(math.log(factor))

    def site_distribution(self, site: Site, loc: Tensor, scale: Tensor) -> Any:
        """q of one site in its own support; `loc` and `scale` have the site's unconstrained shape."""
        transform = biject_to(site.support)
        base = dist.Normal(loc, scale)
        if site.support is torch.distributions.constraints.real or _is_real(site):
            return base.to_event(site.event_dim)
        depth = transform.domain.event_dim
        fn = dist.TransformedDistribution(base.to_event(depth), [transform])
        return fn.to_event(site.event_dim - transform.codomain.event_dim)

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        loc = self.space.split(self.location())
        scale = self.space.split(self.frame * self.log_scale.exp())
        plates = Plates(self.program, index)
        values = {}
        for name, site in self.space.sites.items():
            m, s = plates.rows(site, loc[name]), plates.rows(site, scale[name])
            fn = self.site_distribution(site, m, s)
            if self.path_derivative:
                fn = PathDerivative(fn, self.site_distribution(site, m.detach(), s.detach()))
            with plates.around(site):
                values[name] = pyro.sample(name, fn)
        return values


def _is_real(site: Site) -> bool:
    support = site.support
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    return support in (torch.distributions.constraints.real, torch.distributions.constraints.real_vector)
