"""Priors on the weights of a network, and the log-uniform distribution.

    normal         w ~ N(0, scale^2), the scale a number or by fan-in: sqrt(2 / fan_in), so that the variance of a
                   rectified layer's outputs does not depend on its width (He et al. 2015; Neal 1996 for the idea)
    laplace        w ~ Laplace(0, b) with that standard deviation
    scale_mixture  w ~ share N(0, scales[0]^2) + (1 - share) N(0, scales[1]^2)   (Blundell et al. 2015)
    log_uniform    p(w) = 1 / |w|, improper                                      (Kingma et al. 2015)

Lecture: "Bayesian Neural Networks", "Sparse Bayesian Neural Networks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl

FAN_IN = "fan_in"


class WeightPrior(Protocol):
    """What a prior has to be: a distribution for one tensor of weights."""

    def distribution(self, shape: torch.Size, fan_in: int, like: Tensor) -> dist.TorchDistribution:
        """Return p(w) of batch shape `shape`, in the precision and on the device of `like`.

        Args:
            fan_in: inputs that each unit of the layer sums over; 0 for a bias.
        """
        ...


@dataclass(frozen=True)
class Normal:
    """Independent zero-mean normals.

    Attributes:
        scale: standard deviation of every weight and bias, or "fan_in": sqrt(2 / fan_in) for weights, 1 for biases.
    """

    scale: float | str = FAN_IN

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def distribution(self, shape: torch.Size, fan_in: int, like: Tensor) -> dist.Normal:
        """Return N(0, sd^2) of batch shape `shape`."""
        return dist.Normal(like.new_zeros(()), like.new_tensor(_sd(self.scale, fan_in))).expand(shape)


@dataclass(frozen=True)
class Laplace:
    """Independent zero-mean Laplace distributions; at a mode, the L1 penalty.

    Attributes:
        scale: standard deviation (the Laplace distribution's own scale times sqrt(2)), or "fan_in" as for `Normal`.
    """

    scale: float | str = FAN_IN

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def distribution(self, shape: torch.Size, fan_in: int, like: Tensor) -> dist.Laplace:
        """Return Laplace(0, sd / sqrt(2)) of batch shape `shape`."""
        return dist.Laplace(like.new_zeros(()), like.new_tensor(_sd(self.scale, fan_in) / math.sqrt(2))).expand(shape)


@dataclass(frozen=True)
class ScaleMixture:
    """A wide and a narrow normal: many weights near zero, some large (Blundell et al. 2015, section 3.3).

    Attributes:
        share: prior probability of the first component.
        scales: the two standard deviations.
    """

    share: float = 0.5
    scales: tuple[float, float] = (1.0, math.exp(-6.0))

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share is a probability between 0 and 1, got {self.share}")
        for scale in self.scales:
            _check_scale(scale, by_fan_in=False)

    def distribution(self, shape: torch.Size, fan_in: int, like: Tensor) -> TwoNormals:
        """Return the mixture of batch shape `shape`."""
        return TwoNormals(self.share, self.scales, like.new_zeros(()).expand(shape))


@dataclass(frozen=True)
class LogUniform:
    """p(log |w|) = constant: every order of magnitude is as probable as any other, zero infinitely so.

    The posterior has no finite integral either, wherever the likelihood does not vanish at zero (Hron, Matthews, Ghahramani
    2018, "Variational Bayesian dropout: pitfalls and fixes"): what is fitted under it is a rule for pruning rather than inference.
    """

    def distribution(self, shape: torch.Size, fan_in: int, like: Tensor) -> LogUniformDistribution:
        """Return 1 / |w| of batch shape `shape`."""
        return LogUniformDistribution(like.new_ones(()).expand(shape))


PRIORS: dict[str, type[Any]] = {
    "normal": Normal,
    "laplace": Laplace,
    "scale_mixture": ScaleMixture,
    "log_uniform": LogUniform,
}


def weight_prior(prior: str | WeightPrior) -> WeightPrior:
    """Return a prior by its name, or the prior itself."""
    if isinstance(prior, str):
        if prior not in PRIORS:
            raise ValueError(
                f"unknown prior '{prior}'; choose one of {', '.join(PRIORS)}, or pass one of bz.models.weight_priors"
            )
        made: WeightPrior = PRIORS[prior]()
        return made
    if not hasattr(prior, "distribution"):
        raise ValueError(
            f"prior must be one of {', '.join(PRIORS)} or an object with distribution(shape, fan_in, like), got {prior!r}"
        )
    return prior


class TwoNormals(dist.MixtureSameFamily):
    """A mixture of two zero-mean normals whose log density is written out weight by weight.

    Torch's own reduces over a last dimension of two, for which compiled code has no vectors.

    Args:
        share: probability of the first component.
        scales: the two standard deviations.
        like: a tensor of the wanted batch shape, precision and device.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, share: float, scales: tuple[float, float], like: Tensor, validate_args: bool | None = None) -> None:
        self.share, self.scales, self.like = share, scales, like
        shares = like.new_tensor([share, 1 - share]).expand(*like.shape, 2)
        components = dist.Normal(like.new_zeros(2), like.new_tensor(scales)).expand((*like.shape, 2))
        super().__init__(dist.Categorical(probs=shares), components, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TwoNormals:
        """Return the same mixture of another batch shape."""
        return TwoNormals(self.share, self.scales, self.like.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch's shape."""
        first, second = (
            math.log(share / (scale * math.sqrt(2 * math.pi))) - (0.5 / scale**2) * value**2
            for share, scale in zip((self.share, 1 - self.share), self.scales, strict=True)
        )
        # log(e^a + e^b) without the care for infinities and tiny numbers that logaddexp takes: the sum is of order one.
        return torch.maximum(first, second) + (1 + (-(first - second).abs()).exp()).log()


class LogUniformDistribution(dist.TorchDistribution):
    """The improper density 1 / |w| over the real numbers.

    Nothing fixes its constant. It is chosen such that the KL of N(0, sigma^2) to it is zero, as Molchanov et al. 2017 do.

    Args:
        like: a tensor of the wanted batch shape, precision and device.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real
    #: No draw, no evidence: what a bound would be compared with does not exist.
    improper = True

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogUniformDistribution:
        """Return the density over more weights."""
        return LogUniformDistribution(self.like.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return -log |w| - 2.0541 in nats."""
        # Among millions of draws some round to zero: the pole is cut off below what the precision resolves.
        return -value.abs().clamp_min(torch.finfo(value.dtype).eps ** 2).log() - _CONSTANT

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Raise ValueError: nothing can be drawn from an improper density."""
        raise ValueError(
            "the log-uniform prior is improper, so nothing can be drawn from it: a model with prior='log_uniform' has no prior "
            "predictive, no evidence and no calibration by simulation; choose a proper prior, such as 'normal', for those"
        )

    @property
    def variance(self) -> Tensor:
        """Infinite."""
        return torch.full_like(self.like, math.inf)


# Molchanov, Ashukha, Vetrov 2017, equation 14: a fit to the KL that is within 0.009 nats a weight for every alpha.
_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695

# Entropy of N(0, 1) minus E log |N(0, 1)|, that is (log(2 pi) + 1) / 2 + (Euler's constant + log 2) / 2.
_CONSTANT = (math.log(2 * math.pi) + 1) / 2 + (0.5772156649015329 + math.log(2)) / 2


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """Return KL(N(theta, alpha theta^2) || log-uniform) in nats, elementwise, zero where alpha is infinite.

    The density is improper, so the KL is known up to a constant only; Molchanov et al. choose the limit zero.
    """
    negative = _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) - 0.5 * torch.nn.functional.softplus(-log_alpha) - _K1
    return -negative


@register_kl(dist.Normal, LogUniformDistribution)
def _normal_log_uniform(q: dist.Normal, p: LogUniformDistribution) -> Tensor:
    # Guides that have log alpha as a parameter say so: taken from the two moments it would lose digits.
    log_alpha = getattr(q, "log_alpha", None)
    if log_alpha is None:
        # A mean of exactly zero has log alpha = infinity in the limit; the smallest square keeps its gradient finite.
        log_alpha = 2 * q.scale.log() - torch.log(q.loc.square() + 1e-16)
    return log_uniform_kl(log_alpha)


def _sd(scale: float | str, fan_in: int) -> float:
    if isinstance(scale, str):
        return math.sqrt(2 / fan_in) if fan_in else 1.0
    return float(scale)


def _check_scale(scale: float | str, *, by_fan_in: bool = True) -> None:
    if isinstance(scale, str):
        if scale != FAN_IN or not by_fan_in:
            raise ValueError(f"a prior's scale is a positive number{' or fan_in' if by_fan_in else ''}, got '{scale}'")
    elif not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"a prior's scale must be positive and finite, got {scale}")
