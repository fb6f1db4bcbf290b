"""Many people's coins: each person's chance is drawn from a population.

    mu    ~ Beta(alpha, beta)                           the population's mean chance
    kappa ~ LogNormal(loc, scale)                       its concentration: people are alike where it is large
    pi_n  ~ Beta(mu kappa, (1 - mu) kappa)              the chance of person n, local
    x_n   ~ Binomial(total_count_n, pi_n)

The lecture tosses one coin; the real data (Bartos et al. 2023, arXiv 2310.04153) have 48 people. The sd
between people is sqrt(mu (1 - mu) / (kappa + 1)): the default prior LogNormal(log 100, 2) has 95 % of kappa
between 2 and 5,000, that is, of the sd between 0.29 and 0.007 where mu is 0.5, which is proper, weak, and
wide around the 0.015 seen there. Given (mu, kappa) the people are conjugate and x_n is Beta-Binomial, so a
two-dimensional integral makes everything exact.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from . import settings
from .concentrated_beta import ConcentratedBeta
from .contract import BoundData, data_plate
from .counts import count_dtype, read_counts
from .exact import GridMixture
from .hierarchical_posterior import HierarchicalPosterior

LOG_100 = math.log(100.0)  # the default median of kappa is 100


class HierarchicalCoin(PyroModule):
    """Coins of many people, or tosses by many people, whose chances come from one Beta population.

    Args:
        alpha: prior weight of heads in the population's mean, above zero.
        beta: prior weight of tails in it, above zero.
        loc: prior median of kappa, as its natural logarithm.
        scale: prior standard deviation of log kappa, above zero.
    """

    alpha: Tensor
    beta: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        loc: float | Tensor = LOG_100,
        scale: float | Tensor = 2.0,
    ) -> None:
        super().__init__()
        self.register_buffer("alpha", settings.positive("alpha", alpha))
        self.register_buffer("beta", settings.positive("beta", beta))
        self.register_buffer("loc", settings.number("loc", loc))
        self.register_buffer("scale", settings.positive("scale", scale))

    def forward(
        self,
        x: Tensor | None = None,
        total_count: Tensor | None = None,
        *,
        num_data: int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Score the counts x, or simulate them where x is None.

        Args:
            x: `(N,)` heads of each person.
            total_count: `(N,)` flips of each person, or one number for all; None means one flip each.
            num_data: people in the whole data set, or the number to simulate.
            index: `(N,)` their rows in it, for batches.

        Returns:
            `(N,)` counts, observed or simulated.
        """
        dtype = count_dtype(self.alpha.dtype, x, total_count)
        mu = pyro.sample("mu", dist.Beta(self.alpha.to(dtype), self.beta.to(dtype)))
        kappa = pyro.sample("kappa", dist.LogNormal(self.loc.to(dtype), self.scale.to(dtype)))
        sized = x if x is not None else total_count
        rows = len(sized) if isinstance(sized, Tensor) and sized.dim() else None
        with data_plate(rows, num_data, index):
            pi = pyro.sample("pi", ConcentratedBeta(mu * kappa, (1.0 - mu) * kappa))
            counts = None if x is None else x.to(pi.dtype)
            if total_count is None:
                return pyro.sample("x", dist.Bernoulli(pi), obs=counts)
            return pyro.sample("x", dist.Binomial(total_count, pi), obs=counts)

    def check(self, data: BoundData) -> None:
        """Raise ValueError, with the row, where a count is not a whole number among 0..total_count."""
        read_counts(self, data)

    def exact_posterior(self, data: BoundData) -> HierarchicalPosterior:
        """Return p(mu, kappa, pi_1..N | x) by two-dimensional quadrature."""
        x, total_count = read_counts(self, data)
        prior = (setting.to(x) for setting in (self.alpha, self.beta, self.loc, self.scale))
        return HierarchicalPosterior(x, total_count, *prior)

    def log_evidence(self, data: BoundData) -> Tensor:
        """Return log p(x) in nats, a float64 scalar, with the counts' binomial coefficients."""
        return self.exact_posterior(data).log_evidence

    def exact_predictive(self, data: BoundData, total_count: int = 1, index: Tensor | None = None) -> GridMixture:
        """Return the distribution of heads among `total_count` further flips.

        Args:
            data: the data behind the posterior.
            total_count: further flips.
            index: `(M,)` the people who toss, by row; None stands for one new person of the same population.

        Returns:
            A mixture of Beta-Binomials, of batch shape `(M,)`, or `()` for a new person.
        """
        if total_count < 1:
            raise ValueError(f"total_count must be at least one further flip, but is {total_count}; give 1 or more")
        return self.exact_posterior(data).predictive(total_count, index)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as numbers."""
        return {name: settings.plain(value) for name, value in self.named_buffers()}

    def extra_repr(self) -> str:
        """Return the settings for print."""
        return ", ".join(f"{name}={float(value):g}" for name, value in self.named_buffers())
