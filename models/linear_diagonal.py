"""Exact linear regression: all that Gaussian algebra gives, in the basis where it is diagonal.

With theta = mu_0 + L z' and L L^T the prior covariance, the design matrix becomes A = X L. Its singular
values s and right vectors V make everything a list of D independent problems in z = V^T z':

    z_d | sigma, y ~ N(s_d c_d / (s_d^2 + sigma^2), sigma^2 / (s_d^2 + sigma^2)),      c = U^T (y - X mu_0)
    log p(y | sigma) = -1/2 [N log 2 pi + (N - D) log sigma^2 + sum_d log(s_d^2 + sigma^2)
                             + rss / sigma^2 + sum_d c_d^2 / (s_d^2 + sigma^2)]

so a new sigma costs O(D), and no Gram matrix squares the condition number.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

ROUNDING = 1e-12  # relative size below which a singular value or a residual is float64's rounding


class RotatedNormal(TorchDistribution):
    """theta = loc + basis z with independent z ~ N(z_mean, z_sd^2): a Gaussian that costs O(D^2), not O(D^3).

    Args:
        loc: `(D,)`.
        basis: `(D, D)`, of full rank.
        inverse: `(D, D)`, the basis' inverse.
        log_stretch: scalar, log |det basis|.
        z_mean: `(*batch_shape, D)`.
        z_sd: `(*batch_shape, D)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, basis: Tensor, inverse: Tensor, log_stretch: Tensor, z_mean: Tensor, z_sd: Tensor) -> None:
        self.loc, self.basis, self.inverse, self.log_stretch = loc, basis, inverse, log_stretch
        self.z_mean, self.z_sd = z_mean, z_sd
        super().__init__(z_mean.shape[:-1], z_mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means `(*batch_shape, D)`."""
        return self.loc + self.z_mean @ self.basis.mT

    @property
    def variance(self) -> Tensor:
        """Variances `(*batch_shape, D)`."""
        return self.z_sd.square() @ self.basis.square().mT

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RotatedNormal":
        """Return the distribution with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        moments = self.z_mean.expand(shape), self.z_sd.expand(shape)
        return RotatedNormal(self.loc, self.basis, self.inverse, self.log_stretch, *moments)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws `(*sample_shape, *batch_shape, D)`."""
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.z_mean + self.z_sd * noise) @ self.basis.mT

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats."""
        z = (value.to(self.loc) - self.loc) @ self.inverse.mT
        return Normal(self.z_mean, self.z_sd, validate_args=False).log_prob(z).sum(-1) - self.log_stretch


@dataclass(frozen=True)
class DiagonalRegression:
    """A table and a Gaussian prior in the basis above; see the module's formulae.

    Attributes:
        loc: `(D,)` prior mean mu_0.
        basis: `(D, D)` L V.
        inverse: `(D, D)` its inverse.
        log_stretch: scalar, log |det basis|.
        s: `(D,)` singular values, zero beyond the rank.
        c: `(D,)` projected targets.
        rss: scalar, the squared residual that no theta explains.
        size: squared norm of y - X mu_0, the scale that rss is small against.
        num_rows: N.
    """

    loc: Tensor
    basis: Tensor
    inverse: Tensor
    log_stretch: Tensor
    s: Tensor
    c: Tensor
    rss: Tensor
    size: Tensor
    num_rows: int

    @classmethod
    def of(cls, design: Tensor, y: Tensor, loc: Tensor, prior_tril: Tensor) -> "DiagonalRegression":
        """Rotate a design matrix `(N, D)` and targets `(N,)` under the prior N(loc, L L^T)."""
        num_rows, dim = design.shape
        target = y - design @ loc
        q, r = torch.linalg.qr(design @ prior_tril)
        u, s, vh = torch.linalg.svd(r, full_matrices=True)
        inner = q.mT @ target
        rss = (target - q @ inner).square().sum() if num_rows > dim else torch.zeros_like(target[0])
        missing = dim - len(s)
        inverse_tril = torch.linalg.solve_triangular(prior_tril, torch.eye(dim).to(prior_tril), upper=False)
        return cls(
            loc=loc,
            basis=prior_tril @ vh.mT,
            inverse=vh @ inverse_tril,
            log_stretch=prior_tril.diagonal().log().sum(),
            s=torch.cat([s, s.new_zeros(missing)]),
            c=torch.cat([u.mT @ inner, s.new_zeros(missing)]),
            rss=rss,
            size=target.square().sum(),
            num_rows=num_rows,
        )

    @property
    def rank(self) -> int:
        """How many coefficients the rows determine."""
        return int(self._determined.sum())

    @property
    def _determined(self) -> Tensor:
        return self.s > ROUNDING * self.s.max()

    @property
    def residual(self) -> Tensor:
        """The squared residual at the best theta, a scalar; exactly zero where only rounding is left."""
        residual = self.rss + self.c[~self._determined].square().sum()
        return torch.where(residual <= ROUNDING**2 * self.size, 0.0, residual)

    def log_evidence(self, sigma: Tensor) -> Tensor:
        """Return log p(y | sigma) in nats, of sigma's shape."""
        variance = sigma.square()
        total = self.s.square() + variance.unsqueeze(-1)
        fit = self.rss / variance + (self.c.square() / total).sum(-1)
        spread = 2.0 * (self.num_rows - len(self.s)) * sigma.log() + total.log().sum(-1)
        return -0.5 * (self.num_rows * math.log(2.0 * math.pi) + spread + fit)

    def log_peak(self, sigma: Tensor) -> Tensor:
        """Return log p(y, theta | sigma) at its best theta, in nats up to a constant, of sigma's shape."""
        variance = sigma.square()
        total = self.s.square() + variance.unsqueeze(-1)
        return -self.num_rows * sigma.log() - 0.5 * (self.rss / variance + (self.c.square() / total).sum(-1))

    def moments(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and sd of z | sigma, each `(*sigma.shape, D)`."""
        sigma = sigma.unsqueeze(-1)
        total = self.s.square() + sigma.square()
        return self.s * self.c / total, sigma / total.sqrt()

    def theta_given(self, sigma: Tensor) -> RotatedNormal:
        """Return p(theta | sigma, y), of batch shape sigma.shape."""
        return RotatedNormal(self.loc, self.basis, self.inverse, self.log_stretch, *self.moments(sigma))

    def multivariate_normal(self, sigma: Tensor) -> MultivariateNormal:
        """Return N(mu_N, Sigma_N) for one known sigma, with the Cholesky factor from a QR decomposition."""
        mean, sd = self.moments(sigma)
        r = torch.linalg.qr((self.basis * sd).mT).R
        tril = (r * r.diagonal().sign().unsqueeze(-1)).mT.tril()
        return MultivariateNormal(self.loc + self.basis @ mean, scale_tril=tril)
