"""The Beta distribution where it is sharp.

The textbook density subtracts log-gamma functions of size kappa log kappa from each other, where kappa = alpha + beta; of
their 16 digits too few are left once kappa reaches 1e6. With Stirling's series the large terms cancel on paper:

    log p(x) = alpha log(x kappa / alpha) + beta log((1 - x) kappa / beta) - log x - log(1 - x)
               + 1/2 log(alpha beta / (2 pi kappa)) + S(kappa) - S(alpha) - S(beta)

    S(a) = 1 / (12 a) - 1 / (360 a^3) + 1 / (1260 a^5) - ...
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

#: Both concentrations above this: the first term left out of the series is then below 1e-16.
SHARP = 100.0


class ConcentratedBeta(dist.Beta):
    """Beta(alpha, beta) whose log density keeps its digits at any concentration."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, of the shape that value and parameters broadcast to."""
        a, b = self.concentration1, self.concentration0
        sharp = (a > SHARP) & (b > SHARP)
        a_large, b_large = a.clamp_min(SHARP), b.clamp_min(SHARP)
        kappa = a_large + b_large
        # The same difference in both terms: its rounding cancels between them.
        excess = value * kappa - a_large
        series = (
            a_large * torch.log1p(excess / a_large)
            + b_large * torch.log1p(-excess / b_large)
            - torch.log(value)
            - torch.log1p(-value)
            + 0.5 * torch.log(a_large * b_large / (2 * math.pi * kappa))
            + _stirling(kappa)
            - _stirling(a_large)
            - _stirling(b_large)
        )
        a_small, b_small = torch.where(sharp, torch.ones_like(a), a), torch.where(sharp, torch.ones_like(b), b)
        return torch.where(sharp, series, dist.Beta(a_small, b_small, validate_args=False).log_prob(value))


def _stirling(a: Tensor) -> Tensor:
    """What Stirling's formula lacks of log-gamma."""
    return (1 / 12 - (1 / 360 - (1 / 1260) / a.square()) / a.square()) / a
