"""Full rank: q(z) = N(u | m, S) over all continuous latents jointly, in unconstrained coordinates.

Lecture: "Variational Inference" (q(theta | Lambda) = N(mu(Lambda), Sigma(Lambda))); Kucukelbir et al. 2017, ADVI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values, refuse_poles, sample_joint
from .own_draws import OwnDraws
from .path_derivative import PathDerivative

#: The Cholesky factor of so many latents has 8 million numbers.
LIMIT = 4_000


class FullRank(ContinuousGuide):
    """One multivariate normal: u = center + frame (m + C e), e ~ N(0, I), C lower triangular."""

    family = "full_rank"
    #: A covariance is far from the posterior's unless it begins at the curvature, also where a model says where to begin.
    starts_at_mode = True

    def __init__(self, model: Callable[..., Any], data: BoundData, *, init_scale: float = 0.1) -> None:
        super().__init__(model, data)
        if self.space.size > LIMIT:
            raise ValueError(
                f"guide '{self.family}' needs a {self.space.size} x {self.space.size} covariance, more than {LIMIT} rows; "
                "use 'low_rank' or 'mean_field'"
            )
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        center = prior_scale_values(self.program, self.space)
        eye = torch.eye(len(center), dtype=center.dtype, device=center.device)
        self.register_buffer("center", center)
        self.register_buffer("frame", init_scale * eye)
        self.offset = nn.Parameter(torch.zeros_like(center))
        self.tril = nn.Parameter(torch.zeros_like(eye))

    def initialize(self, start: Start) -> None:
        """The Laplace approximation of the start."""
        self.center.copy_(start.mean)
        self.frame.copy_(torch.diag(start.conditional_sd) if start.scale_tril is None else start.scale_tril)

    def _widen(self, factor: float) -> None:
        self.tril.mul_(factor)
        # The diagonal is a logarithm.
        self.tril.diagonal().div_(factor).add_(math.log(factor))

    def base(self, detach: bool = False) -> Any:
        """q(u)."""
        offset, tril = (self.offset.detach(), self.tril.detach()) if detach else (self.offset, self.tril)
        factor = tril.tril(-1) + tril.diagonal().exp().diag_embed()
        return OwnDraws(self.center + self.frame @ offset, scale_tril=self.frame @ factor)

    def summary(self) -> Tensor:
        """Means in posterior sds and log sds of every coordinate, (2 D,): what must settle before the fit has converged."""
        factor = self.tril.tril(-1) + self.tril.diagonal().exp().diag_embed()
        return torch.cat([self.offset, factor.square().sum(1).log() / 2])

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        self.refuse_minibatch(index)
        base = PathDerivative(self.base(), self.base(detach=True)) if self.path_derivative else self.base()
        return sample_joint(self, base, Plates(self.program, index))


class Laplace(FullRank):
    """The Gaussian at the posterior mode with the inverse Hessian as covariance, in unconstrained coordinates.

    Nothing is trained: the start is the fit. Above 400 latents the covariance is the inverse of the Hessian's diagonal, from
    16 random probes. Lecture: "Approximation Methods"; MacKay 1992.
    """

    family = "laplace"
    starts_at_mode = False  # it is the mode, whatever that is like
    made_at_mode = True

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        refuse_poles(self)
        trained = [n for n, p in model.named_parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
        if trained:
            raise ValueError(self.why_not(trained[0]))
        self.offset.requires_grad_(False)
        self.tril.requires_grad_(False)

    def why_not(self, parameter: str) -> str:
        """Why it does not fit a model that trains a parameter beside its latents."""
        return (
            f"guide '{self.family}' is made at the mode of the latents and not trained, and the model trains '{parameter}' beside them, which "
            "would move the mode: make it latent, or keep it as it is (freeze=True of a BayesianNN), or use 'mean_field' or 'full_rank'"
        )

    def disperse(self, generator_scale: float = 2.0) -> None:
        """Nothing to move."""
