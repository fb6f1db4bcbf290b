"""The posterior predictive distribution of new observations.

    p(y | x, D) = E_{q(z)} p(y | x, z)

The mean and the variance average the likelihood's own moments over the draws (the law of total variance), which has less
Monte Carlo error than the moments of simulated outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from ..draws import chunk_size, map_random
from ..engine.noise import vmap_random
from ..engine.owned import Owned
from ..target.program import Fix, Program, sample_sites
from .likelihoods import Likelihoods

if TYPE_CHECKING:
    from .scores import ClassScores, NumberScores


@dataclass(frozen=True)
class Prediction:
    """Posterior predictive of one observed site; all tensors are on the CPU, in the units of the data's own target.

    Uncertainty comes in two parts, `total = aleatoric + epistemic`, one number an outcome:

    - classes and yes or no: entropies in nats (Houlsby et al. 2011, BALD). `total` is the entropy of the averaged probabilities,
      `aleatoric` the average entropy of each draw's, `epistemic` the mutual information of outcome and latents;
    - numbers: variances in squared units of the target. `total` is `sd ** 2`, `aleatoric` the average variance of the
      likelihood, `epistemic` the variance of its mean over the draws.

    Attributes:
        draws: (S, N, ...) simulated outcomes, one a posterior draw; None if they were not kept.
        mean: (N, ...); of classes, of their numbers.
        sd: (N, ...), noise of the likelihood and posterior uncertainty together.
        probs: (N, K) class probabilities, or (N,) the probability of a one, for discrete outcomes; else None.
        own: (N, ...) the average over the draws of each likelihood's own entropy or variance; None where it has none.
        likelihoods: the likelihood of every draw, for numbers; None for classes, or if draws were not kept.
        num_draws: S.
    """

    draws: Tensor | None
    mean: Tensor
    sd: Tensor
    probs: Tensor | None = None
    own: Tensor | None = None
    likelihoods: Likelihoods | None = None
    num_draws: int = 0

    @property
    def label(self) -> Tensor:
        """(N,) the most probable class."""
        if self.probs is None:
            raise ValueError("label needs a discrete outcome, and this prediction is continuous; use mean")
        return self.probs.argmax(-1) if self.probs.dim() > self.mean.dim() else (self.probs > 0.5).long()

    @property
    def class_probs(self) -> Tensor:
        """(N, K) probabilities of the classes; two, no and yes, for a Bernoulli outcome."""
        if self.probs is None:
            raise ValueError("class probabilities need a discrete outcome, and this prediction is of numbers; use mean and sd")
        return by_class(self.probs, self.mean)

    @property
    def total(self) -> Tensor:
        """(N, ...) uncertainty of the outcome: entropy of the averaged probabilities in nats, or the variance."""
        return self.sd.square() if self.probs is None else entropy(self.class_probs)

    @property
    def aleatoric(self) -> Tensor:
        """(N, ...) what stays if the latents were known: the draws' average entropy in nats, or average variance."""
        if self.own is None:
            raise ValueError(
                "the likelihood of this outcome has no variance of its own, so its uncertainty cannot be split; use total"
            )
        return self.own

    @property
    def epistemic(self) -> Tensor:
        """(N, ...) what the latents add: mutual information in nats, or the variance of the draws' means.

        At least 0, and exactly 0 where all draws say the same, as those of a point guide (`map`, `mle`) do.
        """
        total = self.total
        gap = total - self.aleatoric
        # A sum of S terms is off by up to S eps of its size; an entropy also by that much of the probabilities' sum, 1.
        size = total if self.probs is None else 1 + total
        return torch.where(gap > 4 * (1 + self.num_draws) * torch.finfo(gap.dtype).eps * size, gap, 0.0)

    def interval(self, prob: float = 0.9) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of the draws with the given probability: lower and upper, each (N, ...)."""
        if not 0 < prob < 1:
            raise ValueError(f"an interval's probability lies between 0 and 1, got {prob}")
        if self.draws is None:
            raise ValueError("an interval needs the simulated outcomes, and they were not kept; predict with keep_draws=True")
        tail = (1 - prob) / 2
        ordered = self.draws.double().sort(0).values
        last = len(ordered) - 1

        def at(q: float) -> Tensor:
            low = int(q * last)
            share = q * last - low
            return ordered[low] * (1 - share) + ordered[min(low + 1, last)] * share

        return at(tail), at(1 - tail)

    def scores(self, y: Any) -> ClassScores | NumberScores:
        """How good this prediction is for known outcomes: see `scores.scores`.

        Args:
            y: `Data`, standardised or not, or a tensor (N, ...) in the target's original units.
        """
        from .scores import scores

        return scores(self, y)

    def __repr__(self) -> str:
        return f"Prediction(mean {tuple(self.mean.shape)}, {self.num_draws} draws)"


def by_class(probs: Tensor, outcome: Tensor) -> Tensor:
    """Probabilities (..., K) of all classes; those of a one, which have the outcome's shape, become two."""
    return probs if probs.dim() > outcome.dim() else torch.stack([1 - probs, probs], -1)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    out: Tensor = torch.special.entr(probs).sum(-1)
    return out


def simulate_observed(
    owned: Owned, program: Program, kwargs: Mapping[str, Any], values: Mapping[str, Tensor], *, rows: int, num: int = 1
) -> dict[str, dict[str, Tensor]]:
    """Runs the model forward from each draw; call inside `owned.active`.

    Args:
        kwargs: the model's arguments without the observed ones.
        values: latents (S, *shape); latents that are missing are drawn from the model.
        num: runs of a model whose latents are all missing.

    Returns:
        For each observed site `draw` (S, N, ...), and where the likelihood has them `mean`, `variance`, `probs`.
    """

    def one(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with Fix(latents):
            trace = poutine.trace(owned.model).get_trace(**kwargs)
        out: dict[str, Tensor] = {}
        for name, site in sample_sites(trace):
            if name not in program.observed:
                continue
            out |= {f"{name}|{what}": value for what, value in outcome(site).items()}
        return out

    chunk = chunk_size(rows, torch.finfo(owned.dtype).bits // 8, program.width)
    with torch.no_grad():
        if values:
            flat = map_values(one, values, chunk)
        else:
            flat = map_random(lambda: one({}), num, owned.device, chunk)
    result: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        name, what = key.rsplit("|", 1)
        result.setdefault(name, {})[what] = tensor
    return result


def map_values(
    one: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], values: Mapping[str, Tensor], chunk: int
) -> dict[str, Tensor]:
    """A random function of one draw for each of many, stacked, by `torch.vmap` where it allows."""
    num = len(next(iter(values.values())))
    try:
        parts = [vmap_random(one, {k: v[i : i + chunk] for k, v in values.items()}) for i in range(0, num, chunk)]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    except Exception:  # models that read values run one draw at a time
        single = [one({k: v[s] for k, v in values.items()}) for s in range(num)]
        return {k: torch.stack([p[k] for p in single]) for k in single[0]}


def outcome(site: Any) -> dict[str, Tensor]:
    """What one run of the model says about an observed site of its trace.

    Returns:
        `draw`, the simulated value; `probs` (N, K) or (N,) of classes in float64; else `mean` and `variance` of the likelihood, of
        the draw's shape, where it has them.
    """
    fn, value = site["fn"], site["value"]
    out = {"draw": value}
    probs = _probs(fn)
    if probs is not None:
        return out | {"probs": probs}
    for which in ("mean", "variance"):
        moment = _moment(fn, which, value)
        if moment is not None:
            out[which] = moment.expand(value.shape)
    return out


def _moment(fn: Any, which: str, value: Tensor) -> Tensor | None:
    try:
        moment = getattr(fn, which)
    except (NotImplementedError, AttributeError):
        return None
    return moment if isinstance(moment, Tensor) and moment.dim() <= value.dim() else None


def _probs(fn: Any) -> Tensor | None:
    """Probabilities of a Bernoulli or categorical outcome; from the logits, where an instance was made with them.

    In float32 the softmax rounds probabilities below 1e-45 to zero, and their logarithm is then infinite.
    """
    inner = fn
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    binary = type(inner).__name__.startswith("Bernoulli")
    if not binary and not type(inner).__name__.startswith("Categorical"):
        return None
    # An instance made with logits keeps the probabilities too, once it has been sampled.
    if "logits" not in vars(inner):
        return wide(inner.probs)
    return torch.sigmoid(wide(inner.logits)) if binary else torch.softmax(wide(inner.logits), -1)


def wide(tensor: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return tensor if tensor.device.type == "mps" else tensor.double()
