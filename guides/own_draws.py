"""A multivariate normal that scores its own draws by the noise they came from.

log q(u) of a draw u = m + L e is -e'e/2 - log det L up to a constant. Solving L e = u - m for e, which is what scoring a foreign
value takes, loses all digits where L is nearly singular, and an optimiser finds such L: log q then seems to fall without
bound, and the loss with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal


class OwnDraws(dist.MultivariateNormal):
    """N(loc, L L') given by its factor L, `scale_tril`."""

    def __init__(self, loc: Tensor, *, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril=scale_tril, validate_args=False)
        self._drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw with a gradient."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        draw: Tensor = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        self._drawn = draw, noise
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; of the last draw without solving for its noise."""
        if self._drawn is None or value is not self._drawn[0]:
            log_prob: Tensor = super().log_prob(value)
            return log_prob
        return self._from_noise(self._drawn[1], self._unbroadcasted_scale_tril)

    def path_log_prob(self, value: Tensor) -> Tensor | None:
        """Log density of the last draw whose gradient flows through the draw alone; None for any other value."""
        if self._drawn is None or value is not self._drawn[0]:
            return None
        noise, factor = self._drawn[1], self._unbroadcasted_scale_tril.detach()
        slope = -torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
        return self._from_noise(noise, factor) + (slope * (value - value.detach())).sum(-1)

    def _from_noise(self, noise: Tensor, factor: Tensor) -> Tensor:
        size = self.event_shape[0]
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (size * math.log(2 * math.pi) + noise.square().sum(-1)) - half_log_det

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """A plain multivariate normal of that shape."""
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril).expand(batch_shape)
