"""Structured: full rank over the shared latents, and each observation's latents a normal that follows them.

    g = center + frame (m + C e)                 shared latents
    l_n = a_n + B_n (m + C e) + s_n e_n          latents of observation n, given the shared ones

in unconstrained coordinates: what a hierarchical posterior needs and mean field lacks, and it trains on minibatches.
Ambrogioni et al. 2021 (structured variational inference); Hoffman & Blei 2015.
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

from ..inference.target.program import BoundData, Site
from ..inference.target.start import Start
from ..inference.target.unconstrained import Unconstrained
from .continuous import ContinuousGuide, Plates, prior_scale_values
from .own_draws import OwnDraws
from .path_derivative import PathDerivative


class Structured(ContinuousGuide):
    """Full rank over what observations share; each observation's latents depend on it linearly."""

    family = "structured"

    def __init__(self, model: Callable[..., Any], data: BoundData, *, init_scale: float = 0.1) -> None:
        super().__init__(model, data)
        sites = self.program.continuous
        shared = {n: s for n, s in sites.items() if not s.local}
        local = {n: s for n, s in sites.items() if s.local}
        if not local or not shared:
            raise ValueError(
                "guide 'structured' joins latents of single observations to shared ones, and the model has no "
                f"{'latents of single observations' if not local else 'shared latents'}; use 'full_rank' or 'mean_field'"
            )
        # Shared latents first, so that one slice of the start's mean belongs to them.
        self.shared, self.local = Unconstrained(shared), Unconstrained(local)
        self.space = Unconstrained({**shared, **local})
        center = prior_scale_values(self.program, self.space)
        g, n = self.shared.size, self.local.size
        like: dict[str, Any] = {"dtype": center.dtype, "device": center.device}
        self.register_buffer("center", center)
        self.register_buffer("frame", init_scale * torch.eye(g, **like))
        self.register_buffer("local_scale", torch.full((n,), init_scale, **like))
        self.register_buffer("local_slope", torch.zeros(n, g, **like))
        self.offset = nn.Parameter(torch.zeros(g, **like))
        self.tril = nn.Parameter(torch.zeros(g, g, **like))
        self.local_offset = nn.Parameter(torch.zeros(n, **like))
        self.local_log_scale = nn.Parameter(torch.zeros(n, **like))
        self.slope = nn.Parameter(torch.zeros(n, g, **like))

    def initialize(self, start: Start) -> None:
        """The start's Gaussian, split into the shared part and the regression of the local part on it."""
        g = self.shared.size
        self.center.copy_(start.mean)
        if start.scale_tril is None:
            self.frame.copy_(torch.diag(start.conditional_sd[:g]))
            self.local_scale.copy_(start.conditional_sd[g:])
            return
        # With the shared latents first, the Cholesky factor's lower left block is the regression itself.
        self.frame.copy_(start.scale_tril[:g, :g])
        self.local_slope.copy_(start.scale_tril[g:, :g])
        self.local_scale.copy_(start.conditional_sd[g:])

    def _widen(self, factor: float) -> None:
        self.tril.mul_(factor)
        self.tril.diagonal().div_(factor).add_(math.log(factor))
        self.local_log_scale.add_(math.log(factor))

    def summary(self) -> Tensor:
        """Means in posterior sds and log scales: what must settle before the fit has converged."""
        factor = self.tril.tril(-1) + self.tril.diagonal().exp().diag_embed()
        return torch.cat([self.offset, factor.square().sum(1).log() / 2, self.local_offset, self.local_log_scale])

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        plates = Plates(self.program, index)
        g = self.shared.size
        offset, tril = self.offset, self.tril
        base: Any = _shared(offset, tril)
        if self.path_derivative:
            base = PathDerivative(base, _shared(offset.detach(), tril.detach()))
        # The whitened shared draw; its density in u differs by the frame's determinant, a constant of the fit.
        white = pyro.sample("_structured", base, infer={"is_auxiliary": True})
        u = self.center[:g] + self.frame @ white
        log_frame = self.frame.diagonal().log().sum()
        values = {}
        for k, (name, (value, log_det)) in enumerate(self.shared.constrain_with_log_det(u).items()):
            site = self.shared.sites[name]
            density = -log_det
            if k == 0:  # the constant belongs to no site in particular: the first one carries it
                density = density - log_frame / max(1, log_det.numel())
            with plates.around(site):
                values[name] = pyro.sample(name, dist.Delta(value, log_density=density, event_dim=site.event_dim))
        self._draw_local(values, white, plates)
        return values

    def _draw_local(self, values: dict[str, Tensor], white: Tensor, plates: Plates) -> None:
        g = self.shared.size

        def parts(detach: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            offset: Tensor = self.local_offset
            log_scale: Tensor = self.local_log_scale
            slope: Tensor = self.slope
            if detach:
                offset, log_scale, slope = offset.detach(), log_scale.detach(), slope.detach()
            total_slope = self.local_slope + self.local_scale[:, None] * slope
            loc = self.center[g:] + self.local_scale * offset + total_slope @ white
            return self.local.split(loc), self.local.split(self.local_scale * log_scale.exp())

        live, frozen = parts(False), parts(True) if self.path_derivative else None
        for name, site in self.local.sites.items():
            fn = _local(site, plates.rows(site, live[0][name]), plates.rows(site, live[1][name]))
            if frozen is not None:
                fn = PathDerivative(fn, _local(site, plates.rows(site, frozen[0][name]), plates.rows(site, frozen[1][name])))
            with plates.around(site):
                values[name] = pyro.sample(name, fn)


def _shared(offset: Tensor, tril: Tensor) -> Any:
    return OwnDraws(offset, scale_tril=tril.tril(-1) + tril.diagonal().exp().diag_embed())


def _local(site: Site, loc: Tensor, scale: Tensor) -> Any:
    transform = biject_to(site.support)
    base = dist.Normal(loc, scale).to_event(transform.domain.event_dim)
    fn = dist.TransformedDistribution(base, [transform])
    return fn.to_event(site.event_dim - transform.codomain.event_dim)
