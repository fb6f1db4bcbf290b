"""Pareto-smoothed importance sampling from q to p.

    w_s  proportional to  p(z_s, x) / q(z_s),   the largest smoothed by a generalised Pareto of shape k-hat

Vehtari et al. 2024, "Pareto smoothed importance sampling"; Yao et al. 2018, "Yes, but did it work?". k-hat
sees a q that is too narrow; one that is too wide or beside the posterior can have a small k-hat, and then the
weighted moments differ from the plain ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: With fewer draws the tail has fewer than the five values that a Pareto fit needs.
LEAST_DRAWS = 25

#: Ratios that differ by less than this, in nats, are good whatever the shape of their tail: every weight is
#: within 10 % of every other, and a shape fitted to such a tail says nothing about the moments.
NARROW = 0.1


@dataclass(frozen=True)
class Weights:
    """Smoothed, normalised weights of S draws.

    Attributes:
        weights: (S,), summing to one.
        k_hat: shape of the ratios' tail; minus infinity where all ratios are the same.
        threshold: min(1 - 1 / log10 S, 0.7); above it the weights are not to be trusted.
        spread: largest minus smallest log ratio, in nats.
    """

    weights: np.ndarray
    k_hat: float
    threshold: float
    spread: float = math.inf

    @property
    def exact(self) -> bool:
        """Whether all ratios are the same, as they are for q = p alone."""
        return self.k_hat == -math.inf

    @property
    def reliable(self) -> bool:
        """Whether importance sampling from q works."""
        return self.k_hat <= self.threshold or self.spread < NARROW

    @property
    def effective_draws(self) -> float:
        """1 / sum w^2, at most S."""
        return float(1.0 / np.square(self.weights).sum())

    def moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean and sd of values (S, K), each (K,)."""
        mean = self.weights @ values
        return mean, np.sqrt(self.weights @ np.square(values - mean))


def threshold(num: int) -> float:
    """The k-hat up to which weights of so many draws can be trusted (Vehtari et al. 2024)."""
    return min(1.0 - 1.0 / math.log10(num), 0.7)


def smooth(log_ratio: Tensor) -> Weights:
    """The weights of S draws from q.

    Args:
        log_ratio: (S,) log p(values, observations) - log q(values), in nats.

    Raises:
        ValueError: fewer than 25 draws, or a ratio that is NaN.
    """
    num = len(log_ratio)
    if num < LEAST_DRAWS:
        raise ValueError(f"importance weights need at least {LEAST_DRAWS} draws to look at their tail, got {num}")
    ratio = log_ratio.detach().double().cpu().numpy()
    bad = int(np.isnan(ratio).sum())
    if bad:
        raise ValueError(
            f"log p - log q is NaN for {bad} of {num} draws, so they cannot be weighted; fit with "
            f"dtype=torch.float64, or look at "
            "the model's log density there"
        )
    limit = threshold(num)
    # Ratios are differences of sums that round in float32 at about 1e-3 nats, in float64 far below 1e-6;
    # weights that are constant to d nats move no moment by more than d sds.
    spread = float(ratio.max() - ratio.min())
    if spread <= (1e-6 if log_ratio.dtype == torch.float64 else 5e-3):
        return Weights(np.full(num, 1.0 / num), -math.inf, limit, spread)
    from arviz_stats.base import array_stats  # slow to import, and most fits of a session need it late

    try:
        # ArviZ negates its argument, which it takes for the log likelihood of what is left out.
        log_weights, k_hat = array_stats.psislw(-ratio)
    except ValueError:  # the tail is a single value, so a few draws carry everything or the ratios are two-valued
        plain = np.exp(ratio - ratio.max())
        return Weights(plain / plain.sum(), math.inf, limit, spread)
    weights = np.exp(log_weights)
    return Weights(weights / weights.sum(), float(k_hat) if math.isfinite(k_hat) else math.inf, limit, spread)


@dataclass(frozen=True)
class Disagreement:
    """The latent whose plain and weighted moments differ most.

    Attributes:
        site: its name, with the entry's position.
        mean: distance of the means, in weighted sds.
        sd: plain sd over weighted sd, minus one.
    """

    site: str
    mean: float
    sd: float
