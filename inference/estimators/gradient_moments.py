"""Mean and variance of random gradients, with error bars, from blocks of draws.

    trace of the covariance    mean over blocks of sum_i var_i, and the spread of the blocks for its error
    |E g|^2                    mean over pairs of blocks j != k of  m_j . m_k,   m_j the mean gradient of block j

The second is unbiased as it stands: the square of one mean would add its own Monte Carlo variance, which in thousands of
dimensions is larger than any bias that one looks for. Its variance is that of a U-statistic (Hoeffding 1948), estimated
from the same pairs. It holds where E g is zero as well: there it is a little large, because what a mean adds to it is
estimated and cannot be negative (by up to 40 % of the error with few parameters, 7 % with a hundred).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """What is known of one estimator's gradient.

    Attributes:
        grouped: whether draws 2 i and 2 i + 1 saw the same batch of rows.
        means: the mean gradient of each block, (P,).
        totals: for each block an unbiased estimate of the trace of the covariance.
        within: the same for the covariance given the batch.
        variances: sum over blocks of each parameter's variance, (P,).
    """

    grouped: bool
    means: list[Tensor] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    variances: Tensor | None = None

    def add(self, gradients: Tensor) -> None:
        """Takes one block of draws, (n, P)."""
        gradients = gradients.double()
        if self.grouped:
            first, second = gradients[0::2], gradients[1::2]
            inside = (first - second).square().mean(0) / 2
            # The mean of two draws from one batch has half their variance and all of the batch's.
            variance = ((first + second) / 2).var(0) + inside / 2
        else:
            variance = inside = gradients.var(0)
        self.means.append(gradients.mean(0))
        self.totals.append(float(variance.sum()))
        self.within.append(float(inside.sum()))
        self.variances = variance if self.variances is None else self.variances + variance

    @property
    def per_parameter(self) -> Tensor:
        """Each parameter's variance, (P,)."""
        assert self.variances is not None
        return self.variances / len(self.means)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean of independent numbers, and its standard error."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def ratio_and_error(values: list[float], others: list[float]) -> tuple[float, float]:
    """mean(values) / mean(others) of paired numbers, and its standard error (delta method)."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (values, others))
    if float(y.mean()) == 0.0:
        return math.nan, math.nan
    ratio = float(x.mean() / y.mean())
    return ratio, float((x - ratio * y).std() / y.mean()) / math.sqrt(len(x))


def squared_norm(means: Tensor) -> tuple[float, float]:
    """|E m|^2 of independent vectors with one distribution, and its standard error.

    Args:
        means: (M, P), M at least 4.

    Returns:
        An unbiased estimate, which may be negative where the norm is zero, and its standard error.
    """
    m = len(means)
    products = (means @ means.T).fill_diagonal_(0.0)
    rows = products.sum(1)
    once, twice, linked = float(rows.sum()), float(products.square().sum()), float(rows.square().sum())
    pairs = m * (m - 1)
    # E[k(1,2)^2], E[k(1,2) k(1,3)] and E[k(1,2) k(3,4)] for k(i, j) = m_i . m_j.
    same = twice / pairs
    chained = (linked - twice) / (pairs * (m - 2))
    apart = (once**2 - 4 * linked + 2 * twice) / (pairs * (m - 2) * (m - 3))
    variance = 4 * (m - 2) / pairs * max(chained - apart, 0.0) + 2 / pairs * max(same - apart, 0.0)
    return once / pairs, math.sqrt(variance)
