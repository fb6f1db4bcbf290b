"""Gaussian dropout with learned noise, and sparse variational dropout: q(w) = N(theta, alpha theta^2).

By the central limit theorem a sum of many dropped inputs is nearly normal with the variance of this q at
alpha = p / (1 - p): the lecture's step from a discrete to a continuous model, which makes alpha learnable. Under the
log-uniform prior 1 / |w| the KL depends on alpha alone and falls with it, so noise grows wherever the data allow.

    -KL = k1 sigmoid(k2 + k3 log alpha) - 0.5 log(1 + 1 / alpha) - k1,   k = 0.63576, 1.8732, 1.48695

The prior is improper: the loss is the negative ELBO up to a constant that nothing fixes, and is called a surrogate. The posterior
is improper, too, and q approximates nothing that exists (Hron, Matthews, Ghahramani 2018); what it prunes stands on its own.
Kingma, Salimans, Welling 2015; Molchanov, Ashukha, Vetrov 2017 (the formula is its equation 14).
Lecture: "Dropout as a Bayesian Procedure", "Sparse Bayesian Neural Networks".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData, Site
from .continuous import is_real, normal_in
from .weights import WeightGuide


class _LogUniformFamily(WeightGuide):
    """What both share: the prior that they are tied to, biases and noise scales as normals in unconstrained coordinates."""

    objective = "surrogate"
    improper = True
    loss_name = "negative ELBO up to the constant of the log-uniform prior"

    def __init__(self, model: Callable[..., Any], data: BoundData, *, init_log_variance: float) -> None:
        super().__init__(model, data)
        self.require_prior("log_uniform", "has the KL to the log-uniform prior in closed form")
        size = sum(self.space.shapes[name].numel() for name in self.others)
        if size:
            self.other_log_variance = nn.Parameter(torch.full((size,), init_log_variance, dtype=self.theta.dtype))

    @property
    def others(self) -> list[str]:
        """Latents that are no weight matrices."""
        return [name for name in self.space.sites if name not in self.weights]

    def other_site(self, name: str, site: Site, theta: Tensor) -> Any:
        """A normal in unconstrained coordinates."""
        return normal_in(site, theta, (self._other_log_variances()[name] / 2).exp())

    def log_alpha(self) -> dict[str, Tensor]:
        """log alpha of every weight by site, detached: above 3 a weight is noise (a dropout rate of 0.95)."""
        raise NotImplementedError

    def factorized_moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and sd of every layer's weights, and of biases that are latent, by site, detached."""
        points = {name: point.detach() for name, point in self.points().items()}
        means = self._weight_means()
        moments = {name: (means[name], sd) for name, sd in self._weight_sds().items()}
        others = [name for name in self.others if is_real(self.space.sites[name])]
        return moments | {name: (points[name], (self._other_log_variances()[name] / 2).exp().detach()) for name in others}

    def _weight_means(self) -> dict[str, Tensor]:
        """The means of every layer's weights by site, detached."""
        points = self.points()
        return {name: points[name].detach() for name in self.weights}

    def _weight_sds(self) -> dict[str, Tensor]:
        """The sds of every layer's weights by site, detached."""
        points = self.points()
        return {name: (alpha / 2).exp() * points[name].detach().abs() for name, alpha in self.log_alpha().items()}

    def _other_log_variances(self) -> dict[str, Tensor]:
        parts = self.other_log_variance.split([self.space.shapes[n].numel() for n in self.others])
        return {name: part.reshape(self.space.shapes[name]) for name, part in zip(self.others, parts, strict=True)}


class GaussianDropout(_LogUniformFamily):
    """w = theta (1 + sqrt(alpha) e) with one learned alpha a layer, unit or weight.

    Args:
        rate: the dropout rate where alpha = rate / (1 - rate) begins.
        share: what has an alpha of its own: each `layer`, each input `unit` of a layer, or each `weight`.
    """

    family = "gaussian_dropout"

    def __init__(self, model: Callable[..., Any], data: BoundData, *, rate: float = 0.2, share: str = "layer") -> None:
        super().__init__(model, data, init_log_variance=-8.0)
        if not 0 < rate < 1:
            raise ValueError(f"rate is the probability of a zero where the noise begins, between 0 and 1, got {rate}")
        if share not in _SHARES:
            raise ValueError(f"share says what has an alpha of its own: {', '.join(_SHARES)}; got {share!r}")
        self.alpha_shapes = {name: _SHARES[share](self.space.shapes[name], self.groups[name]) for name in self.weights}
        size = sum(shape.numel() for shape in self.alpha_shapes.values())
        self.log_alphas = nn.Parameter(torch.full((size,), math.log(rate / (1 - rate)), dtype=self.theta.dtype))

    def _alphas(self) -> dict[str, Tensor]:
        parts = self.log_alphas.split([shape.numel() for shape in self.alpha_shapes.values()])
        found = {}
        for name, part in zip(self.weights, parts, strict=True):
            shape, filters = self.alpha_shapes[name], self.space.shapes[name][0]
            alpha = part.reshape(shape)
            found[name] = alpha if shape[0] in (1, filters) else alpha.repeat_interleave(filters // shape[0], 0)
        return found

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """N(theta, alpha theta^2)."""
        return _Multiplied(theta, self._alphas()[name])

    def log_alpha(self) -> dict[str, Tensor]:
        """log alpha of every weight by site, detached."""
        return {name: alpha.detach().expand(self.space.shapes[name]) for name, alpha in self._alphas().items()}


def _one(shape: torch.Size, groups: int) -> torch.Size:
    return torch.Size([1] * len(shape))


def _inputs(shape: torch.Size, groups: int) -> torch.Size:
    return torch.Size([groups, shape[1], *[1] * (len(shape) - 2)])


def _each(shape: torch.Size, groups: int) -> torch.Size:
    return shape


_SHARES: dict[str, Callable[[torch.Size, int], torch.Size]] = {"layer": _one, "unit": _inputs, "weight": _each}


class _Multiplied(dist.Normal):
    """N(theta, alpha theta^2), whose KL to the log-uniform prior takes log alpha as it is, not from the two moments."""

    def __init__(self, theta: Tensor, log_alpha: Tensor) -> None:
        self.log_alpha = log_alpha.expand(theta.shape)
        # The smallest sd keeps the density of a weight at zero finite.
        super().__init__(theta, (log_alpha / 2).exp() * theta.abs() + 1e-12, validate_args=False)


def _log_alpha(theta: Tensor, log_variance: Tensor) -> Tensor:
    return log_variance - torch.log(theta.square() + 1e-16)


class _Thresholded(dist.Normal):
    """N(theta, sigma^2) where log alpha is at most the threshold, else N(0, sigma^2) with the KL of the former."""

    def __init__(self, theta: Tensor, log_variance: Tensor, threshold: float) -> None:
        self.log_alpha = _log_alpha(theta, log_variance)
        mean = torch.where(self.log_alpha > threshold, 0.0, theta)
        super().__init__(mean, (log_variance / 2).exp(), validate_args=False)


class SparseVariationalDropout(_LogUniformFamily):
    """Additive form w = theta + sigma e, with log alpha = log sigma^2 - log theta^2: its gradients have less noise.

    Weights whose log alpha ends above 3 are noise; `fit.sparsify()` removes them. The KL is switched on slowly unless
    `kl_weight` is given: nothing for the first 2.5 % of the steps, then more until 10 %, as a network pruned before it has
    learned anything ends empty.

    Args:
        init_log_variance: log sigma^2 at the start.
        threshold: log alpha above which a weight has mean zero while it is trained, too: the network learns to do without
            it, and prunes itself further. Its KL stays that of the mean it had, 0.025 nats at 3 and less above, so that it may
            come back. The programs of Molchanov et al. do so, though the paper does not say it: LeNet-300-100 has twice the
            compression on MNIST, with the same error. None keeps all means.
    """

    family = "sparse_vd"

    def __init__(
        self, model: Callable[..., Any], data: BoundData, *, init_log_variance: float = -10.0, threshold: float | None = 3.0
    ) -> None:
        super().__init__(model, data, init_log_variance=init_log_variance)
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and not math.isnan(threshold)
        if threshold is not None and not number:
            raise ValueError(
                f"threshold is the log alpha of weights without a mean, a number such as 3.0, or None; got {threshold!r}"
            )
        self.threshold = math.inf if threshold is None else float(threshold)
        size = sum(self.space.shapes[name].numel() for name in self.weights)
        self.log_variance = nn.Parameter(torch.full((size,), init_log_variance, dtype=self.theta.dtype))

    @staticmethod
    def kl_weight(step: int, steps: int) -> float:
        """Zero for 5 of 200 epochs, one from epoch 20 on (Molchanov et al. 2017 warm up likewise)."""
        return min(1.0, max(0.0, (step / steps - 0.025) / 0.075))

    def _log_variances(self) -> dict[str, Tensor]:
        parts = self.log_variance.split([self.space.shapes[name].numel() for name in self.weights])
        return {name: part.reshape(self.space.shapes[name]) for name, part in zip(self.weights, parts, strict=True)}

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """N(theta, sigma^2), or N(0, sigma^2) above the threshold."""
        log_variance = self._log_variances()[name]
        if self.threshold == math.inf:
            return dist.Normal(theta, (log_variance / 2).exp(), validate_args=False)
        return _Thresholded(theta, log_variance, self.threshold)

    def log_alpha(self) -> dict[str, Tensor]:
        """log alpha of every weight by site, detached."""
        points = self.points()
        return {name: _log_alpha(points[name], log_variance).detach() for name, log_variance in self._log_variances().items()}

    def _weight_means(self) -> dict[str, Tensor]:
        log_alpha = self.log_alpha()
        return {name: point * (log_alpha[name] <= self.threshold) for name, point in super()._weight_means().items()}

    def _weight_sds(self) -> dict[str, Tensor]:
        return {name: (log_variance / 2).exp().detach() for name, log_variance in self._log_variances().items()}
