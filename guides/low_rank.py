"""Low rank: q(z) = N(u | m, F F^T + diag(s^2)), correlations along a few directions only.

Ong, Nott, Smith 2018, Gaussian variational approximation with a factor covariance structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, first_basis, moved, prior_scale_values, sample_joint, set_basis
from .path_derivative import PathDerivative


class LowRank(ContinuousGuide):
    """A multivariate normal with `rank` factors: cost O(D rank) where `full_rank` costs O(D^2).

    Args:
        rank: number of factors; by default the square root of the number of latents, rounded up, and 30 at most.
    """

    family = "low_rank"

    def __init__(self, model: Callable[..., Any], data: BoundData, *, rank: int | None = None, init_scale: float = 0.1) -> None:
        super().__init__(model, data)
        size = self.space.size
        rank = min(30, math.ceil(math.sqrt(size))) if rank is None else rank
        if not 1 <= rank <= size:
            raise ValueError(f"rank must be between 1 and the number of latent values, {size}; got {rank}")
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.register_buffer("frame", torch.full_like(center, init_scale))
        self.register_buffer("basis", first_basis(center, init_scale))
        self.offset = nn.Parameter(torch.zeros_like(center))
        self.log_scale = nn.Parameter(torch.zeros_like(center))
        # Exactly zero factors have no gradient: they begin small.
        self.factor = nn.Parameter(0.01 * torch.randn(size, rank, dtype=center.dtype, device=center.device))

    def initialize(self, start: Start) -> None:
        """Factors along the largest eigenvectors of the start's correlation matrix, the rest on the diagonal."""
        self.center.copy_(start.mean)
        set_basis(self.basis, start)
        if start.scale_tril is None:
            self.frame.copy_(start.conditional_sd)
            return
        covariance = start.scale_tril @ start.scale_tril.T
        sd = covariance.diagonal().sqrt()
        self.frame.copy_(sd)
        values, vectors = torch.linalg.eigh(covariance / sd / sd[:, None])
        rank = self.factor.shape[1]
        top, directions = values[-rank:], vectors[:, -rank:]
        rest = float(values[:-rank].mean()) if rank < len(values) else float(values[0]) / 2
        with torch.no_grad():
            factor = directions * (top - rest).clamp_min(1e-4).sqrt()
            left = (1.0 - factor.square().sum(1)).clamp_min(0.01)
            self.factor.copy_(factor)
            self.log_scale.copy_(left.log() / 2)

    def _widen(self, factor: float) -> None:
        self.factor.mul_(factor)
        self.log_scale.add_(math.log(factor))

    def base(self, detach: bool = False) -> Any:
        """q(u)."""
        offset: Tensor = self.offset
        log_scale: Tensor = self.log_scale
        factor: Tensor = self.factor
        if detach:
            offset, log_scale, factor = offset.detach(), log_scale.detach(), factor.detach()
        return dist.LowRankMultivariateNormal(
            self.center + moved(self.basis, offset),
            cov_factor=self.frame[:, None] * factor,
            cov_diag=(self.frame * log_scale.exp()).square(),
        )

    def summary(self) -> Tensor:
        """Means and log sds in units of the start, (2 D,); the factors themselves may rotate without changing q."""
        variance = self.factor.square().sum(1) + (2 * self.log_scale).exp()
        return torch.cat([self.offset, variance.log() / 2])

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        self.refuse_minibatch(index)
        base = PathDerivative(self.base(), self.base(detach=True)) if self.path_derivative else self.base()
        return sample_joint(self, base, Plates(self.program, index))
