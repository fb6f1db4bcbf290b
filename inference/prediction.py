"""The posterior predictive distribution of new observations.

    p(y | x, D) = E_{q(z)} p(y | x, z)

The mean and the variance average the likelihood's own moments over the draws (the law of total variance), which has less
Monte Carlo error than the moments of simulated outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .draws import chunk_size, map_random
from .noise import vmap_random
from .owned import Owned
from .program import Fix, Program, sample_sites


@dataclass(frozen=True)
class Prediction:
    """Posterior predictive of one observed site; all tensors are on the CPU, in the units of the data's own target.

    Attributes:
        draws: (S, N, ...) simulated outcomes, one a posterior draw.
        mean: (N, ...).
        sd: (N, ...), noise of the likelihood and posterior uncertainty together.
        probs: (N, K) class probabilities, or (N,) the probability of a one, for discrete outcomes; else None.
    """

    draws: Tensor
    mean: Tensor
    sd: Tensor
    probs: Tensor | None = None

    @property
    def label(self) -> Tensor:
        """(N,) the most probable class."""
        if self.probs is None:
            raise ValueError("label needs a discrete outcome, and this prediction is continuous; use mean")
        return self.probs.argmax(-1) if self.probs.dim() > self.mean.dim() else (self.probs > 0.5).long()

    def interval(self, prob: float = 0.9) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of the draws with the given probability: lower and upper, each (N, ...)."""
        if not 0 < prob < 1:
            raise ValueError(f"an interval's probability lies between 0 and 1, got {prob}")
        tail = (1 - prob) / 2
        ordered = self.draws.double().sort(0).values
        last = len(ordered) - 1

        def at(q: float) -> Tensor:
            low = int(q * last)
            share = q * last - low
            return ordered[low] * (1 - share) + ordered[min(low + 1, last)] * share

        return at(tail), at(1 - tail)

    def __repr__(self) -> str:
        return f"Prediction(mean {tuple(self.mean.shape)}, {len(self.draws)} draws)"


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
    keys: dict[str, list[str]] = {}

    def one(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with Fix(latents):
            trace = poutine.trace(owned.model).get_trace(**kwargs)
        out = {}
        for name, site in sample_sites(trace):
            if name not in program.observed:
                continue
            out[f"{name}|draw"] = site["value"]
            for key, get in _MOMENTS.items():
                moment = get(site["fn"], site["value"])
                if moment is not None:
                    out[f"{name}|{key}"] = moment.expand(site["value"].shape) if key != "probs" else moment
        keys["all"] = list(out)
        return out

    chunk = chunk_size(rows, torch.finfo(owned.dtype).bits // 8)
    with torch.no_grad():
        if values:
            flat = _map_values(one, values, chunk)
        else:
            flat = map_random(lambda: one({}), num, owned.device, chunk)
    result: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        name, what = key.rsplit("|", 1)
        result.setdefault(name, {})[what] = tensor
    return result


def _map_values(
    one: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], values: Mapping[str, Tensor], chunk: int
) -> dict[str, Tensor]:
    num = len(next(iter(values.values())))
    try:
        parts = [vmap_random(one, {k: v[i : i + chunk] for k, v in values.items()}) for i in range(0, num, chunk)]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    except Exception:  # models that read values run one draw at a time
        single = [one({k: v[s] for k, v in values.items()}) for s in range(num)]
        return {k: torch.stack([p[k] for p in single]) for k in single[0]}


def _mean(fn: Any, value: Tensor) -> Tensor | None:
    return _moment(fn, "mean", value)


def _variance(fn: Any, value: Tensor) -> Tensor | None:
    return _moment(fn, "variance", value)


def _moment(fn: Any, which: str, value: Tensor) -> Tensor | None:
    try:
        moment = getattr(fn, which)
    except (NotImplementedError, AttributeError):
        return None
    return moment if isinstance(moment, Tensor) and moment.dim() <= value.dim() and _finite_kind(fn) else None


def _finite_kind(fn: Any) -> bool:
    """A categorical's mean is no number."""
    return "Categorical" not in type(fn).__name__


def _probs(fn: Any, value: Tensor) -> Tensor | None:
    inner = fn
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    if type(inner).__name__.startswith(("Bernoulli", "Categorical")):
        probs: Tensor = inner.probs
        return probs
    return None


_MOMENTS: dict[str, Callable[[Any, Tensor], Tensor | None]] = {"mean": _mean, "variance": _variance, "probs": _probs}


def summarize(parts: Mapping[str, Tensor], scaler: Any = None) -> Prediction:
    """A `Prediction` from what `simulate_observed` found for one site, in original units if a scaler is given."""
    draws = parts["draw"]
    numbers = draws.double()
    mean = parts["mean"].double().mean(0) if "mean" in parts else numbers.mean(0)
    if "mean" in parts and "variance" in parts:
        variance = parts["variance"].double().mean(0) + parts["mean"].double().var(0, correction=0)
    else:
        variance = numbers.var(0) if len(numbers) > 1 else torch.zeros_like(mean)
    sd = variance.sqrt()
    mean, sd = mean.to(torch.float64).cpu(), sd.cpu()
    draws = draws.cpu()
    if scaler is not None and getattr(scaler, "target_scaled", False):
        draws, mean, sd = scaler.inverse_target(draws.double()), scaler.inverse_target(mean), scaler.inverse_scale(sd)
    probs = parts["probs"].double().mean(0).cpu() if "probs" in parts else None
    return Prediction(draws, mean, sd, probs)
