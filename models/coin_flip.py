"""Coin tossing: is the coin fair, and how will it land next?

    pi  ~ Beta(alpha, beta)                 the chance of heads; alpha = beta = 1 is uniform
    x_n ~ Bernoulli(pi)                     single flips, or
    x_n ~ Binomial(total_count_n, pi)       heads among total_count_n flips

Lecture: "Another Example: Coin Tossing". The posterior is Beta(alpha + heads, beta + tails) and, after N - 1
flips, the next one is heads with probability (alpha + heads) / (N - 1 + alpha + beta), for a uniform prior
(1 + heads) / (N + 1).
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from . import settings
from .contract import BoundData, data_plate
from .counts import count_dtype, read_counts
from .exact import ConjugatePosterior


class CoinFlip(PyroModule):
    """Flips of one coin whose chance of heads, `pi`, is unknown.

    Args:
        alpha: prior weight of heads, above zero.
        beta: prior weight of tails, above zero.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, alpha: float | Tensor = 1.0, beta: float | Tensor = 1.0) -> None:
        super().__init__()
        self.register_buffer("alpha", settings.positive("alpha", alpha))
        self.register_buffer("beta", settings.positive("beta", beta))

    def forward(
        self,
        x: Tensor | None = None,
        total_count: Tensor | None = None,
        *,
        num_data: int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Score the outcomes x, or simulate them where x is None.

        Args:
            x: `(N,)` outcomes: 0 or 1, or counts of heads where `total_count` is given.
            total_count: `(N,)` flips behind each count, or one number for all.
            num_data: observations in the whole data set, or the number to simulate.
            index: `(N,)` their rows in it, for batches.

        Returns:
            `(N,)` outcomes, observed or simulated.
        """
        dtype = count_dtype(self.alpha.dtype, x, total_count)
        pi = pyro.sample("pi", dist.Beta(self.alpha.to(dtype), self.beta.to(dtype)))
        sized = x if x is not None else total_count
        rows = len(sized) if isinstance(sized, Tensor) and sized.dim() else None
        outcomes = None if x is None else x.to(pi.dtype)
        with data_plate(rows, num_data, index):
            if total_count is None:
                return pyro.sample("x", dist.Bernoulli(pi), obs=outcomes)
            return pyro.sample("x", dist.Binomial(total_count, pi), obs=outcomes)

    def check(self, data: BoundData) -> None:
        """Raise ValueError, with the row, where an outcome is not 0 or 1, or a count is out of range."""
        read_counts(self, data)

    def exact_posterior(self, data: BoundData) -> ConjugatePosterior:
        """Return p(pi | x) = Beta(alpha + heads, beta + tails)."""
        heads, tails = self._tally(data)
        alpha, beta = self._prior(heads)
        return ConjugatePosterior({"pi": dist.Beta(alpha + heads, beta + tails)})

    def log_evidence(self, data: BoundData, *, sequence: bool = False) -> Tensor:
        """Return log p(x) in nats, a float64 scalar.

        It is that of the data as the model scores them: counts have their binomial coefficients, single flips
        have none. With `sequence=True` counts too are scored as one particular order of the flips, without
        coefficients.
        """
        heads, tails = self._tally(data)
        alpha, beta = self._prior(heads)
        evidence = _log_beta(alpha + heads, beta + tails) - _log_beta(alpha, beta)
        x, total_count = read_counts(self, data)
        if total_count is not None and not sequence:
            evidence = evidence - (_log_beta(x + 1, total_count - x + 1) + (total_count + 1).log()).sum()
        return evidence

    def exact_predictive(self, data: BoundData) -> dist.Bernoulli:
        """Return the distribution of the next flip, p(x_N | x_<N)."""
        return dist.Bernoulli(self.exact_posterior(data).mean["pi"])

    def update(self, data: BoundData) -> "CoinFlip":
        """Return the model whose prior is this posterior, in float64, ready for the data that come next."""
        posterior = self.exact_posterior(data)["pi"]
        return CoinFlip(posterior.concentration1, posterior.concentration0)

    def maximum_likelihood(self, data: BoundData) -> dict[str, Tensor]:
        """Return the pi that makes the data likeliest, heads / N (the lecture's pi*).

        Raises:
            ValueError: no coin was flipped (all total_count are zero).
        """
        heads, tails = self._tally(data)
        if float(heads + tails) == 0.0:
            raise ValueError("maximum likelihood needs at least one flip, but total_count is zero in every row; add data")
        return {"pi": heads / (heads + tails)}

    def maximum_a_posteriori(self, data: BoundData) -> dict[str, Tensor]:
        """Return the posterior's mode in pi itself; for a uniform prior heads / N, exactly.

        The mode of Beta(a, b) is (a - 1) / (a + b - 2) inside the interval; it is 0 where a <= 1 < b or a < 1
        = b, and 1 where b <= 1 < a or b < 1 = a.

        Raises:
            ValueError: the posterior is flat (a = b = 1) or has a mode at either end (a, b < 1).
        """
        posterior = self.exact_posterior(data)["pi"]
        a, b = posterior.concentration1, posterior.concentration0
        if (float(a) < 1.0 and float(b) < 1.0) or (float(a) == 1.0 and float(b) == 1.0):
            raise ValueError(
                f"the posterior Beta({float(a):g}, {float(b):g}) has no single mode; use its mean, or a "
                "prior with alpha and beta above one"
            )
        above_a, above_b = (a - 1.0).clamp_min(0.0), (b - 1.0).clamp_min(0.0)
        if float(above_a + above_b) == 0.0:  # one is below one and the other is one: the density climbs to one end
            return {"pi": (a > b).to(a)}
        return {"pi": above_a / (above_a + above_b)}

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as numbers."""
        return {"alpha": settings.plain(self.alpha), "beta": settings.plain(self.beta)}

    def extra_repr(self) -> str:
        """Return the settings for print."""
        return f"alpha={float(self.alpha):g}, beta={float(self.beta):g}"

    def _tally(self, data: BoundData) -> tuple[Tensor, Tensor]:
        """Return how many heads and tails there are, float64 scalars (exact up to 2^53 flips)."""
        x, total_count = read_counts(self, data)
        flips = torch.ones_like(x) if total_count is None else total_count
        return x.sum(), (flips - x).sum()

    def _prior(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha.to(like), self.beta.to(like)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return log B(a, b)."""
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
