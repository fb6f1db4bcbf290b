"""Bayesian linear regression.

    theta ~ N(mu_0, diag(prior_scale^2))      the intercept, where there is one, first
    sigma ~ HalfNormal(noise_prior_scale)     unless the noise is known: noise_scale
    y_n   ~ N(theta . x_n, sigma^2)

Lecture: "Example: Bayesian Linear Regression". With known noise p(theta | x, y) = N(mu_N, Sigma_N) and the
predictive is N(mu_N^T x, sigma^2 + x^T Sigma_N x). The lecture divides by p(D) and writes one sigma_N^2;
inputs are conditioned on, the evidence is p(y | x), and sigma_N^2 depends on x. With unknown noise everything
is still Gaussian given sigma, so one integral over sigma makes it exact.
"""

from typing import Any, ClassVar, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from . import settings
from .contract import BoundData, data_plate
from .exact import ConjugatePosterior, GridMixture
from .linear_diagonal import DiagonalRegression
from .linear_mode import joint_mode, least_squares
from .linear_posterior import UnknownNoisePosterior


class TableScale(Protocol):
    """Means and standard deviations that a table was standardised with (`bayeszoo.data.Scaler` is one)."""

    input_mean: Tensor
    input_sd: Tensor
    target_mean: Tensor | None
    target_sd: Tensor | None


class BayesianLinearRegression(PyroModule):
    """Linear regression with a Gaussian prior on its coefficients.

    The coefficients are one site, `theta`, of event shape `(D,)` with D = dim + intercept, the intercept
    first. The noise is a second site, `sigma`, unless it is known.

    Args:
        dim: columns of x.
        prior_mean: mu_0, one number or `(D,)`.
        prior_scale: prior standard deviations, one number or `(D,)`; or the lower Cholesky factor `(D, D)` of
            the prior covariance.
        noise_scale: the known sigma; None means that sigma is unknown and inferred.
        noise_prior_scale: scale of the half-normal prior of an unknown sigma.
        intercept: whether there is an intercept.
    """

    dims: ClassVar[dict[str, list[str]]] = {"theta": ["feature"]}

    prior_mean: Tensor
    prior_scale: Tensor
    noise_scale: Tensor | None
    noise_prior_scale: Tensor

    def __init__(
        self,
        dim: int,
        prior_mean: float | list[float] | Tensor = 0.0,
        prior_scale: float | list[float] | Tensor = 1.0,
        noise_scale: float | Tensor | None = None,
        noise_prior_scale: float | Tensor = 1.0,
        intercept: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a whole number of columns from 1 up, but is {dim!r}; give x.shape[1]")
        self.dim = dim
        self.intercept = bool(intercept)
        size = dim + self.intercept
        self.register_buffer("prior_mean", settings.vector("prior_mean", prior_mean, size))
        self.register_buffer("prior_scale", settings.scale("prior_scale", prior_scale, size))
        known = None if noise_scale is None else settings.positive("noise_scale", noise_scale)
        self.register_buffer("noise_scale", known)
        self.register_buffer("noise_prior_scale", settings.positive("noise_prior_scale", noise_prior_scale))

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Score the targets y, or simulate them where y is None.

        Args:
            x: `(N, dim)` inputs, without a column of ones.
            y: `(N,)` targets.
            num_data: observations in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            `(N,)` targets, observed or simulated.
        """
        # A copy of the mean: a guide that starts at the prior's mean would else train this buffer.
        loc, scale = self.prior_mean.to(x, copy=True), self.prior_scale.to(x)
        prior: dist.TorchDistribution
        if scale.dim() == 2:
            prior = dist.MultivariateNormal(loc, scale_tril=scale)
        else:
            prior = dist.Normal(loc, scale).to_event(1)
        theta = pyro.sample("theta", prior)
        if self.noise_scale is None:
            sigma = pyro.sample("sigma", dist.HalfNormal(self.noise_prior_scale.to(x)))
        else:
            sigma = self.noise_scale.to(x)
        with data_plate(len(x), num_data, index):
            return pyro.sample("y", dist.Normal(self.predict_mean(theta, x), sigma), obs=y)

    def predict_mean(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return theta . x.

        Args:
            theta: `(D,)`, or `(*S, 1, D)` with leading sample dimensions.
            x: `(N, dim)`.

        Returns:
            `(N,)`, or `(*S, N)`.
        """
        slopes = theta[..., 1:] if self.intercept else theta
        x = x.to(theta.dtype)  # the exact posterior draws float64, whatever the data are
        if theta.dim() == 1:
            mean = x @ slopes
        elif theta.shape[-2] == 1:
            mean = slopes.squeeze(-2) @ x.mT  # one matrix product, nothing of size S x N x D
        else:
            mean = (slopes * x).sum(-1)  # one theta for each row
        return mean + theta[..., 0] if self.intercept else mean

    def check(self, data: BoundData) -> None:
        """Raise ValueError where the table does not fit the model: columns of x, shape of y."""
        self._table(data)

    def coords(self, data: BoundData) -> dict[str, list[str]]:
        """Return the names of theta's entries, for ArviZ: `intercept`, then the data's features or x0, x1."""
        names = [str(name) for name in getattr(data, "feature_names", ())]
        if len(names) != self.dim:
            names = [f"x{d}" for d in range(self.dim)]
        return {"feature": (["intercept"] if self.intercept else []) + names}

    def exact_posterior(self, data: BoundData) -> ConjugatePosterior | UnknownNoisePosterior:
        """Return p(theta | x, y) = N(mu_N, Sigma_N), or p(theta, sigma | x, y) where the noise is unknown.

        Raises:
            ValueError: unknown noise, and targets that are fitted without a residual.
        """
        regression = self._diagonal(data)
        if self.noise_scale is None:
            return UnknownNoisePosterior(regression, self.noise_prior_scale)
        return ConjugatePosterior({"theta": regression.multivariate_normal(self.noise_scale.to(regression.loc))})

    def log_evidence(self, data: BoundData) -> Tensor:
        """Return log p(y | x) in nats, a float64 scalar."""
        regression = self._diagonal(data)
        if self.noise_scale is None:
            return UnknownNoisePosterior(regression, self.noise_prior_scale).log_evidence
        return regression.log_evidence(self.noise_scale.to(regression.loc))

    def exact_predictive(self, data: BoundData, x: Tensor) -> dist.Normal | GridMixture:
        """Return p(y | x, data) for new inputs x `(M, dim)`, of batch shape `(M,)`.

        It is N(mu_N^T x, sigma^2 + x^T Sigma_N x), or the mixture of such Gaussians over sigma's posterior.
        """
        regression = self._diagonal(data)
        design = self._design(x.to(regression.loc))
        if self.noise_scale is None:
            return UnknownNoisePosterior(regression, self.noise_prior_scale).predictive(design)
        sigma = self.noise_scale.to(regression.loc)
        mean, sd = regression.moments(sigma)
        rotated = design @ regression.basis
        variance = sigma.square() + rotated.square() @ sd.square()
        return dist.Normal(design @ regression.loc + rotated @ mean, variance.sqrt())

    def update(self, data: BoundData) -> "BayesianLinearRegression":
        """Return the model whose prior is this posterior, in float64, ready for the data that come next.

        Raises:
            ValueError: the noise is unknown, so the posterior is not of the prior's family.
        """
        if self.noise_scale is None:
            raise ValueError(
                "with unknown noise the posterior is no Gaussian and cannot be the next prior; give "
                "noise_scale, or fit the old and the new data together"
            )
        regression = self._diagonal(data)
        sigma = self.noise_scale.to(regression.loc)
        posterior = regression.multivariate_normal(sigma)
        return BayesianLinearRegression(
            self.dim, posterior.loc, posterior.scale_tril, noise_scale=sigma, intercept=self.intercept
        )

    def maximum_likelihood(self, data: BoundData) -> dict[str, Tensor]:
        """Return the least-squares theta and, where the noise is unknown, sigma = sqrt(rss / N).

        Raises:
            ValueError: more than one theta fits best, or sigma would be zero.
        """
        x, y = self._table(data)
        theta, sigma = least_squares(self._design(x), y)
        if self.noise_scale is not None:
            return {"theta": theta}
        if sigma is None:
            raise ValueError(
                "the likelihood grows without bound as sigma falls to zero, because the coefficients fit "
                "every target; give noise_scale, or more rows than coefficients, with noise"
            )
        return {"theta": theta, "sigma": sigma}

    def maximum_a_posteriori(self, data: BoundData) -> dict[str, Tensor]:
        """Return the mode of the joint posterior density in theta and, where it is unknown, sigma themselves.

        Raises:
            ValueError: unknown noise and no more rows than coefficients: the density is unbounded at sigma =
                0.
        """
        regression = self._diagonal(data)
        if self.noise_scale is not None:
            return {"theta": regression.theta_given(self.noise_scale.to(regression.loc)).mean}
        sigma = joint_mode(regression, self.noise_prior_scale.to(regression.loc))
        return {"theta": regression.theta_given(sigma).mean, "sigma": sigma}

    def to_original(self, draws: dict[str, Tensor], scaler: TableScale) -> dict[str, Tensor]:
        """Return draws of a fit to a standardised table in the table's own units.

        Args:
            draws: `theta` `(*S, D)` and perhaps `sigma` `(*S,)`; other entries are passed through.
            scaler: the table's means and standard deviations.

        Raises:
            ValueError: a model without intercept, whose line the standardisation has shifted off the origin.
        """
        theta = draws["theta"]
        wide = theta.double()
        shift, sd = scaler.input_mean.to(wide), scaler.input_sd.to(wide)
        unscaled = scaler.target_mean is None or scaler.target_sd is None
        y_mean = torch.zeros_like(sd[0]) if scaler.target_mean is None else scaler.target_mean.to(wide)
        y_sd = torch.ones_like(sd[0]) if scaler.target_sd is None else scaler.target_sd.to(wide)
        if not self.intercept and bool(shift.any() | y_mean.any()):
            raise ValueError(
                "standardisation shifted the table, so without an intercept the coefficients have no "
                "original units; use intercept=True, or fit the table as it is"
            )
        slopes = y_sd * (wide[..., 1:] if self.intercept else wide) / sd
        if self.intercept:
            level = y_mean + y_sd * wide[..., 0] - slopes @ shift
            slopes = torch.cat([level.unsqueeze(-1), slopes], -1)
        original = {**draws, "theta": slopes.to(theta)}
        if "sigma" in draws and not unscaled:
            original["sigma"] = (y_sd * draws["sigma"].double()).to(draws["sigma"])
        return original

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as numbers and lists."""
        return {
            "dim": self.dim,
            "prior_mean": settings.plain(self.prior_mean),
            "prior_scale": settings.plain(self.prior_scale),
            "noise_scale": None if self.noise_scale is None else settings.plain(self.noise_scale),
            "noise_prior_scale": settings.plain(self.noise_prior_scale),
            "intercept": self.intercept,
        }

    def extra_repr(self) -> str:
        """Return the settings for print."""
        noise = "unknown" if self.noise_scale is None else f"{float(self.noise_scale):g}"
        return f"dim={self.dim}, intercept={self.intercept}, noise_scale={noise}"

    def _design(self, x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x[:, :1]), x], 1) if self.intercept else x

    def _diagonal(self, data: BoundData) -> DiagonalRegression:
        x, y = self._table(data)
        loc, scale = self.prior_mean.to(x), self.prior_scale.to(x)
        return DiagonalRegression.of(self._design(x), y, loc, scale if scale.dim() == 2 else scale.diag())

    def _table(self, data: BoundData) -> tuple[Tensor, Tensor]:
        """Return x `(N, dim)` and y `(N,)` in float64, checked."""
        bound = data.bind(self)
        x, y = bound["x"], bound.get("y")
        if y is None:
            raise ValueError("the regression needs observed targets y, but the data hold none; pass them as observed")
        if x.dim() != 2 or x.shape[1] != self.dim:
            columns = f"{x.shape[1]} columns" if x.dim() == 2 else f"the shape {tuple(x.shape)}"
            raise ValueError(f"the model was made for dim={self.dim} columns, but x has {columns}; make it with dim=data.dim")
        if y.shape != x.shape[:1] or len(y) == 0:
            raise ValueError(
                f"the model takes one target for each row, but x has {len(x)} rows and y the shape "
                f"{tuple(y.shape)}; pass y of shape (N,) with N >= 1"
            )
        return x.detach().double(), y.detach().to(x.device).double()
