"""log p(x) of single observations, by importance sampling from the fitted q(z | x).

    p(x) = E_q [ p(x, z) / q(z | x) ]  ~  1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x)

The logarithm of that average is a lower bound in expectation and exact for large K (Burda, Grosse, Salakhutdinov 2016); the
average of the logarithms is the ELBO, and what lies between them is the inference gap. `proposal="prior"` draws z from p(z)
instead, the naive estimate that the lecture warns of ("Monte Carlo doesn't help much").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ..asked_rows import has_table, refuse_other_rows, takes_numbers
from ..diagnosis.psis import LEAST_DRAWS, smooth, threshold
from ..draws import check_seed
from ..engine.noise import vmap_random
from ..engine.places import is_family
from ..prediction.new_inputs import new_observations
from ..target.arrays import as_tensor
from ..target.density import guide_factors, guide_values, model_factors, model_trace, site_factor
from ..target.program import DATA_PLATE, base_of, check_data, require_data, sample_sites

PROPOSALS = ("guide", "prior")

#: Numbers of observations times draws times their sizes that are held at once.
CHUNK_ELEMENTS = 8_000_000


@dataclass(frozen=True)
class LogMarginal:
    """log p(x) of N observations in nats, from K draws each.

    Attributes:
        values: (N,) log 1/K sum_k w_k.
        errors: (N,) its Monte Carlo standard error, by the delta method: sd(w) / (mean(w) sqrt K).
        ess: (N,) effective draws, (sum w)^2 / sum w^2, at most K.
        elbo: (N,) mean of log w, the evidence lower bound of the same draws.
        k_hat: (N,) shape of the weights' tail; above min(1 - 1 / log10 k, 0.7) the error cannot be trusted. It sees what the draws
            reached: a second mode that none of them found leaves it low.
        k: draws.
        dims: observed numbers in one observation, on average where some have labels.
        observed: what p is of: `x`, or `x, y` where labels are known.
        density: whether p is a density, whose value depends on the unit of x, and no probability.
    """

    values: Tensor
    errors: Tensor
    ess: Tensor
    elbo: Tensor
    k_hat: Tensor
    k: int
    dims: float
    density: bool = False
    observed: str = "x"

    @property
    def mean(self) -> float:
        """Average log p(x) in nats."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Monte Carlo standard error of `mean`: how far other draws for the same observations would move it."""
        return float(self.errors.square().sum().sqrt()) / len(self.values)

    @property
    def spread(self) -> float:
        """Standard error of `mean` as an estimate for other observations of the kind: sd over N / sqrt N."""
        return float(self.values.std()) / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan

    @property
    def bits_per_dim(self) -> float:
        """-log2 p(x) for each observed number: a code length of bits and grey levels; of a density it depends on the unit of x and may be negative."""
        return -self.mean / (self.dims * math.log(2))

    @property
    def gap(self) -> float:
        """Average of log p(x) - ELBO, the inference gap: KL(q || posterior)."""
        return float((self.values - self.elbo).mean())

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f" ± {self.error:.2g}"
        doubt = "; k-hat was not looked at"
        if not bool(self.k_hat.isnan().all()):
            limit = threshold(self.k)
            bad = int((self.k_hat > limit).sum())
            doubt = f"; k-hat above {limit:.2g} for {bad} of {len(self)}" if bad else ""
        bits = "" if self.density else f" ({self.bits_per_dim:.3f} bits a dimension)"
        return (
            f"log p({self.observed}) = {self.mean:.2f}{error} nats{bits} over {len(self)} observations, "
            f"{self.k} draws each, {float(self.ess.median()):.0f} effective; ELBO {float(self.elbo.mean()):.2f}, gap {self.gap:.2f}{doubt}"
        )


def log_marginal(
    fit: Any,
    data: Any = None,
    k: int = 1000,
    *,
    proposal: str = "guide",
    seed: int = 0,
    k_hat: bool = True,
    rows: Tensor | None = None,
) -> LogMarginal:
    """Estimates log p(x) of every observation; `Fit.log_marginal` documents the arguments.

    Args:
        rows: which of the observations, by default all.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be a whole number of draws, at least 1, got {k!r}")
    if proposal not in PROPOSALS:
        raise ValueError(f"proposal must be 'guide' (importance sampling) or 'prior' (naive), got {proposal!r}")
    check_seed(seed)
    seed = int(seed)
    data = local_data(fit, data, needs_guide=proposal == "guide")
    program = fit.program
    k, wanted = int(k), torch.arange(len(data)) if rows is None else rows
    held = elements_of_one(program)
    way = "select" if proposal == "prior" or data is not fit.data else _way(fit)
    most = len(wanted) if way == "whole" else max(1, min(len(wanted), CHUNK_ELEMENTS // (k * 8), CHUNK_ELEMENTS // held))
    found: list[tuple[Tensor, ...]] = []
    with fit.run.owned.active(seed), torch.no_grad():
        for index in wanted.split(most):
            guide, kwargs = _asked(fit, data, index.to(fit.device), way)
            weigher = _weigher(fit, guide, kwargs, proposal)
            chunk = max(1, min(k, CHUNK_ELEMENTS // ((len(data) if way == "whole" else len(index)) * held)))
            log_w = torch.cat([each_of(weigher, min(chunk, k - i), fit.device) for i in range(0, k, chunk)]).double()
            found.append(summary(log_w[:, index] if way == "whole" else log_w, k_hat=k_hat))
    values, errors, ess, elbo, tails = (torch.cat(parts) for parts in zip(*found, strict=True))
    given = (data if rows is None else data.select(rows)).bind(fit.model)
    known = observed_of_one(program, given)
    names = ", ".join(known) if len(known) > 1 else "x"
    return LogMarginal(
        values, errors, ess, elbo, tails, k, sum(known.values()) - unlabelled(known, given), is_density(program), names
    )


def local_data(fit: Any, data: Any, *, needs_guide: bool = True) -> Any:
    """The data whose latents are asked for, on the fit's device; refuses models and guides for which there is no answer."""
    program = fit.program
    shared = [name for name, site in program.latents.items() if not site.local]
    if shared or not program.latents:
        what = f"'{shared[0]}' is shared by all observations" if shared else "it has no latents"
        plates = [p.name for name in shared for p in program.latents[name].plates if p.size == program.num_data]
        if plates:
            what = f"'{shared[0]}' lies in plate '{plates[0]}', which must be called '{DATA_PLATE}' to be known as that over the observations"
        raise ValueError(
            f"log p(x) of one observation needs a model whose latents all belong to single observations, and {what}; see fit.loss and "
            "fit.loo() instead"
        )
    if needs_guide and fit.objective == "surrogate":
        raise ValueError(
            "a point guide has no density to weigh draws with; fit with guide='amortized', or use proposal='prior'"
        )
    if data is None:
        return fit.data
    if isinstance(data, np.ndarray):
        data = as_tensor(data)
    if isinstance(data, Tensor):
        data = new_observations(fit.data, data)
    require_data(data)
    if needs_guide and data is not fit.data:
        refuse_other_rows(fit.guide, fit.run.asked(fit.data), program)
    data = data.to(fit.device, fit.dtype)
    check_data(fit.model, data, new=True)
    return data


def observed_of_one(program: Any, given: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers are observed of one observation, by name, without those that nobody has observed: labels that are all below zero, or not given.

    Args:
        given: the model's keyword arguments.
    """

    def unknown(name: str) -> bool:
        value = given.get(name)
        labels = isinstance(value, Tensor) and not value.is_floating_point() and value.numel() > 0 and int(value.max()) < 0
        return labels or (value is None and len(program.observed) > 1 and any(other in given for other in program.observed))

    sizes = {n: site.shape[1:].numel() if site.local else site.shape.numel() for n, site in program.observed.items()}
    return {name: size for name, size in sorted(sizes.items()) if not unknown(name)}


def unlabelled(known: Mapping[str, int], given: Mapping[str, Any]) -> float:
    """How many of those numbers an observation lacks on average, because its label is below zero."""
    labels = [given[name] for name in known if isinstance(given.get(name), Tensor) and not given[name].is_floating_point()]
    return sum(float((y == -1).double().mean()) for y in labels if y.dim() == 1 and int(y.min()) == -1)


def is_density(program: Any) -> bool:
    """Whether some observed number has a density instead of a probability."""
    found = [base_of(site.distribution) for site in program.observed.values()]
    return any(not (getattr(fn, "probability", False) or getattr(fn.support, "is_discrete", False)) for fn in found)


def elements_of_one(program: Any) -> int:
    """Numbers that one draw of one observation's latents holds in memory, those of the likelihood's parameters included."""
    return sum(-(-site.elements // program.num_data) for site in (*program.observed.values(), *program.latents.values()))


class Joint(ValueError):
    """A guide has one density for the latents of all observations."""


def _way(fit: Any) -> str:
    """How a guide is asked about some of the training data: by their numbers (`batch`), alone (`select`), or with all others (`whole`)."""
    guide, how = fit.run.owned.guide, fit.run.asked(fit.data)
    if how == "number" or (is_family(guide) and how == "alone" and takes_numbers(fit.run.owned.model)):
        return "batch"
    return "select" if how == "alone" or has_table(guide) else "whole"


def _asked(fit: Any, data: Any, index: Tensor, way: str) -> tuple[Any, dict[str, Any]]:
    """The guide and the keyword arguments for some rows."""
    model, guide = fit.run.owned.model, fit.run.owned.guide
    if way == "select":
        table = has_table(guide) and data is fit.data
        return guide.select(index) if table else guide, data.select(index).bind(model)
    return guide, data.batch(index, model) if way == "batch" else data.bind(model)


def _weigher(fit: Any, guide: Any, kwargs: dict[str, Any], proposal: str) -> Callable[[], Tensor]:
    """A function that draws latents once and returns log w of each observation, (N,)."""
    program, model = fit.program, fit.run.owned.model
    zero = torch.zeros((), device=fit.device)

    def from_guide() -> Tensor:
        trace = poutine.trace(guide).get_trace(**kwargs)
        factors = model_factors(program, model, kwargs, guide_values(trace)) + [f.negative for f in guide_factors(trace)]
        if not all(f.local for f in factors):
            raise Joint(
                f"guide '{fit.run.family or type(guide).__name__}' has one density for the latents of all observations together, and log p(x) of each "
                "needs one for each; fit with guide='amortized', 'per_datum' or 'mean_field', or use proposal='prior'"
            )
        return sum((f.rows for f in factors), start=zero)

    def from_prior() -> Tensor:
        trace = model_trace(model, kwargs, {})
        return sum((site_factor(n, s).rows for n, s in sample_sites(trace) if s["is_observed"]), start=zero)

    return from_guide if proposal == "guide" else from_prior


def each_of(function: Callable[[], Tensor], num: int, device: torch.device) -> Tensor:
    """A random function called `num` times, stacked; by `torch.vmap` where the model allows it."""
    try:
        out: Tensor = vmap_random(lambda _: function(), torch.zeros(num, device=device))
        return out
    except Exception:  # what cannot be mapped (values read) is called one by one
        return torch.stack([function() for _ in range(num)])


def summary(log_w: Tensor, *, k_hat: bool) -> tuple[Tensor, ...]:
    """Of weights (K, N): log mean, its error, effective draws, mean of the logs, k-hat; each (N,) on the host."""
    log_w = log_w.cpu()
    k = len(log_w)
    values = torch.logsumexp(log_w, 0) - math.log(k)
    w = (log_w - values).exp()
    errors = (w - 1).square().sum(0).div(max(1, k - 1)).div(k).sqrt() if k > 1 else torch.full_like(values, math.nan)
    ess = w.sum(0).square() / w.square().sum(0)
    tails = torch.full_like(values, math.nan)
    if k_hat and k >= LEAST_DRAWS:
        tails = torch.tensor([smooth(column).k_hat for column in log_w.T], dtype=torch.float64)
    return values, errors, ess, log_w.mean(0), tails
