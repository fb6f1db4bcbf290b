"""The single checks of a diagnosis, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Where raw and weighted (or reference) moments may lie apart, in sds and as a share of an sd.
FAR = 0.3

#: An sd below this share of the mean is none: what sums of draws that are all the same leave.
ROUNDING = 1e-12

#: How far two restarts' class probabilities may lie apart on average: one decision in ten could change.
FAR_PROBS = 0.1


@dataclass(frozen=True)
class LatentCheck:
    """The marginal of one scalar: a latent, or a network's output at one input.

    Attributes:
        name: the site and the entry, `theta[intercept]`; `f[3,cat]` of a network.
        mean, sd: of the draws.
        psis_mean, psis_sd: the same, weighted by p / q; None where there are no weights.
        reference_mean, reference_sd: of the reference, if there is one.
        apart: the greatest distance of another restart's mean, in sds; None where there is no other, or nobody looked.
    """

    name: str
    mean: float
    sd: float
    psis_mean: float | None = None
    psis_sd: float | None = None
    reference_mean: float | None = None
    reference_sd: float | None = None
    apart: float | None = None

    @property
    def shift(self) -> float | None:
        """(mean - PSIS mean) in PSIS sds."""
        return _distance(self.mean, self.psis_mean, self.psis_sd)

    @property
    def sd_change(self) -> float | None:
        """sd / PSIS sd - 1."""
        return _change(self.sd, self.psis_sd, self.psis_mean)

    @property
    def mean_error(self) -> float | None:
        """(mean - reference mean) in reference sds."""
        return _distance(self.mean, self.reference_mean, self.reference_sd)

    @property
    def sd_error(self) -> float | None:
        """sd / reference sd - 1."""
        return _change(self.sd, self.reference_sd, self.reference_mean)

    @property
    def severity(self) -> float:
        """The worst of all distances, 1 being 0.3 sd or 30 % of an sd."""
        found = [self.shift, self.sd_change, self.mean_error, self.sd_error, self.apart]
        return max([abs(x) for x in found if x is not None and not math.isnan(x)], default=0.0) / FAR


@dataclass(frozen=True)
class RestartCheck:
    """One restart beside the best.

    Attributes:
        mean_distance: of the means in sds of the best, the greatest over all latents. Of networks the root mean square over the
            likelihood's means at some inputs, in units of their root mean square sd.
        sd_ratio: the most extreme over all latents; of networks that of the root mean square sds.
        disagreement: of networks for classes, the total variation distance 1/2 sum_k |p_k - p'_k| of the class probabilities
            averaged over draws, mean over the inputs; None for other models.
    """

    loss: float
    k_hat: float | None
    verdict: str
    mean_distance: float
    sd_ratio: float
    converged: bool
    disagreement: float | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether it is another answer than the best."""
        if self.disagreement is not None:
            return self.disagreement > FAR_PROBS
        return self.mean_distance > FAR or max(self.sd_ratio, 1.0 / self.sd_ratio) > 1.0 + FAR


@dataclass(frozen=True)
class LooCheck:
    """PSIS-LOO: `elpd` and its error in nats, effective parameters, observations with too high a k-hat.

    Attributes:
        weighted: whether draws are weighted by p / q; otherwise those of q are taken for the posterior's.
    """

    elpd: float
    se: float
    p_loo: float
    bad_k: int
    num_data: int
    weighted: bool = True


@dataclass(frozen=True)
class ObservationCheck:
    """Weights p / q observation by observation, where latents belong to single ones; averages over these in nats.

    Attributes:
        of: which observations.
        log_p, log_p_error: log p(x), latents integrated out, and its Monte Carlo standard error.
        effective_draws, k_hat: medians.
        bad_k: observations with a k-hat above `k_threshold`.
        observed: what p is of, `x`, or `x, y` where labels are known.
    """

    of: str
    num_data: int
    log_p: float
    log_p_error: float
    elbo: float
    bits_per_dim: float
    effective_draws: float
    k_hat: float
    k_threshold: float
    bad_k: int
    observed: str = "x"


@dataclass(frozen=True)
class CoverageCheck:
    """Share of held-out observations inside the central predictive interval of probability `prob`."""

    site: str
    prob: float
    share: float
    num_data: int
    discrete: bool

    @property
    def off(self) -> bool:
        """Whether the share misses `prob` by 0.05 and three binomial errors (discrete: falls short of it)."""
        miss = self.prob - self.share
        limit = max(0.05, 3.0 * math.sqrt(self.prob * (1 - self.prob) / self.num_data))
        return miss > limit if self.discrete else abs(miss) > limit


@dataclass(frozen=True)
class ScoreCheck:
    """Predictions of held-out observations.

    Attributes:
        accuracy, nll, ece, confidence: of classes: share of right answers, nats an observation, calibration error, and the average
            highest probability, which is the accuracy that the model expects.
        rmse, log_density: of numbers, in the target's unit, and in nats an observation.
    """

    site: str
    num_data: int
    accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    confidence: float | None = None
    rmse: float | None = None
    log_density: float | None = None

    @property
    def off(self) -> bool:
        """Whether accuracy and confidence differ by more than 0.05 and three binomial errors."""
        if self.accuracy is None or self.confidence is None:
            return False
        limit = max(0.05, 3.0 * math.sqrt(self.confidence * (1 - self.confidence) / self.num_data))
        return abs(self.accuracy - self.confidence) > limit


def _distance(a: float, b: float | None, scale: float | None) -> float | None:
    if b is None or scale is None or math.isnan(b):
        return None
    if scale > ROUNDING * abs(b):
        return (a - b) / scale
    return 0.0 if abs(a - b) <= ROUNDING * abs(b) else math.inf


def _change(a: float, b: float | None, mean: float | None) -> float | None:
    if b is None or mean is None or math.isnan(b):
        return None
    if b > ROUNDING * abs(mean):
        return a / b - 1.0
    return 0.0 if a <= ROUNDING * abs(mean) else math.inf
