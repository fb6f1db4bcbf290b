"""The exact posterior of linear regression with unknown noise.

Given sigma, theta is Gaussian and log p(y | sigma) is known, so one integral is left, over log sigma.
"""

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints

from .exact import GridMixture, Guide, SampledDensity
from .linear_diagonal import DiagonalRegression, RotatedNormal
from .quadrature import inverse_cdf, log_trapezoid, peak_interval, spread

TABLE = 4097  # nodes of the table that sigma is drawn from
STRIDE = 16  # every 16th of them is a node of the quadrature


class UnknownNoisePosterior:
    """p(theta, sigma | y) with sigma ~ HalfNormal: sigma by quadrature on log sigma, theta | sigma Gaussian.

    The density is the closed form over its integral; sigma is drawn by inverse CDF from a table of 4,097
    nodes that is log-linear between them (within 1e-5 nats of the density).

    Args:
        regression: the rotated table.
        noise_prior_scale: scale of sigma's half-normal prior.

    Attributes:
        log_evidence: log p(y) in nats, a scalar.
        sigma: the marginal p(sigma | y), a distribution.

    Raises:
        ValueError: the targets are fitted without a residual, so that sigma's posterior has no finite
            integral.
    """

    def __init__(self, regression: DiagonalRegression, noise_prior_scale: Tensor) -> None:
        self._regression = regression
        self._noise_prior_scale = noise_prior_scale.to(regression.loc)
        low, high = noise_bracket(regression, self._noise_prior_scale)
        try:
            ends = peak_interval(self._log_joint, low, high)
        except ArithmeticError:
            raise ValueError(NOISELESS) from None
        self._table = spread(*ends, TABLE)
        self._table_log_density = self._log_joint(self._table)
        nodes = self._table[::STRIDE]
        terms = log_trapezoid(nodes, self._table_log_density[::STRIDE])
        self.log_evidence = torch.logsumexp(terms, 0)
        weights = (terms - self.log_evidence).exp()
        kept = weights > 1e-18
        self._weights = weights[kept] / weights[kept].sum()
        self._nodes = nodes[kept].exp()
        self.sigma = SampledDensity(self._log_sigma, self._draw_sigma, torch.Size(), constraints.positive)

    def _log_joint(self, log_sigma: Tensor) -> Tensor:
        """Return log p(y, log sigma) in nats: the change of variable adds log sigma."""
        sigma = log_sigma.exp()
        return self._regression.log_evidence(sigma) + log_half_normal(sigma, self._noise_prior_scale) + sigma.log()

    def _log_sigma(self, sigma: Tensor) -> Tensor:
        log_sigma = sigma.to(self._regression.loc).log()
        return self._log_joint(log_sigma) - self.log_evidence - log_sigma

    def _draw_sigma(self, shape: torch.Size) -> Tensor:
        u = torch.rand(shape, dtype=torch.float64, device=self._table.device)
        return inverse_cdf(self._table, self._table_log_density, u).exp()

    def theta_given(self, sigma: Tensor) -> RotatedNormal:
        """Return p(theta | sigma, y), of batch shape sigma.shape."""
        return self._regression.theta_given(sigma.to(self._regression.loc))

    def sample(self, n: int) -> dict[str, Tensor]:
        """Return n draws: `theta` `(n, D)`, `sigma` `(n,)`, from torch's global generator."""
        sigma = self.sigma.sample((n,))
        return {"theta": self.theta_given(sigma).sample(), "sigma": sigma}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the log posterior density `(n,)`, in nats, of `theta` `(n, D)` and `sigma` `(n,)`."""
        return self._log_sigma(values["sigma"]) + self.theta_given(values["sigma"]).log_prob(values["theta"])

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior means: `theta` `(D,)` and `sigma`."""
        theta = self._weights @ self.theta_given(self._nodes).mean
        return {"theta": theta, "sigma": self._weights @ self._nodes}

    @property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviations: `theta` `(D,)` and `sigma`."""
        mean = self.mean
        given = self.theta_given(self._nodes)
        theta = self._weights @ (given.variance + (given.mean - mean["theta"]).square())
        sigma = self._weights @ (self._nodes - mean["sigma"]).square()
        return {"theta": theta.sqrt(), "sigma": sigma.sqrt()}

    def predictive(self, design: Tensor) -> GridMixture:
        """Return p(y* | x*, y) for design rows `(M, D)`, of batch shape `(M,)`: Gaussians over sigma."""
        z_mean, z_sd = self._regression.moments(self._nodes)
        rotated = design @ self._regression.basis
        loc = (design @ self._regression.loc).unsqueeze(-1) + rotated @ z_mean.mT
        scale = (self._nodes.square() + rotated.square() @ z_sd.square().mT).sqrt()
        return GridMixture(Normal, self._weights, loc, scale)

    def as_guide(self) -> Guide:
        """Return a guide that draws sigma, then theta given it, whatever it is called with."""

        def guide(*args: Any, **kwargs: Any) -> None:
            sigma = pyro.sample("sigma", self.sigma)
            pyro.sample("theta", self.theta_given(sigma))

        return guide


NOISELESS = (
    "the targets are a linear function of the inputs without noise, so sigma's posterior collapses to zero "
    "and has no finite density; give noise_scale, or data with noise"
)


def noise_bracket(regression: DiagonalRegression, noise_prior_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return two values of log sigma between which its posterior, and the joint density's mode, must lie.

    Below the smallest scale in sight a proper density falls by at least one nat for each unit of log sigma,
    hence 60 units; above the largest the half-normal prior falls by e^10 / 2.

    Raises:
        ValueError: the targets are fitted without a residual.
    """
    residual = regression.residual
    if float(residual) == 0.0 and regression.num_rows > regression.rank:
        raise ValueError(NOISELESS)
    scales = [regression.s[: regression.rank], noise_prior_scale.reshape(1)]
    scales += [scale.reshape(1) for scale in (regression.size.sqrt(), (residual / regression.num_rows).sqrt())]
    in_sight = torch.cat(scales)
    widest = torch.maximum(noise_prior_scale, regression.size.sqrt())
    return in_sight[in_sight > 0].min().log() - 60.0, widest.log() + 5.0


def log_half_normal(sigma: Tensor, scale: Tensor) -> Tensor:
    """Return log HalfNormal(sigma | scale) in nats."""
    return 0.5 * math.log(2.0 / math.pi) - scale.log() - 0.5 * (sigma / scale).square()
