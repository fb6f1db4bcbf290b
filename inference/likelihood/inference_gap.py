"""What a variational bound loses, and to which of its two approximations.

    log p(x) - ELBO  =  [log p(x) - ELBO(q*)]  +  [ELBO(q*) - ELBO(q_network)]
      inference gap         approximation gap          amortisation gap

q* is the best q for this one observation that the numbers which the network puts out can describe, found by following the ELBO's
gradient from where the network puts it; the model is kept, and so are the weights of a flow, which belong to all observations
(Cremer, Li, Duvenaud 2018, "Inference suboptimality in variational autoencoders"). What a flow of an observation's own would gain
beyond that counts as the family's.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..draws import check_seed
from ..engine.noise import vmap_random
from ..target.density import guide_factors, guide_values, model_factors
from .log_marginal import (
    CHUNK_ELEMENTS,
    LogMarginal,
    each_of,
    elements_of_one,
    is_density,
    local_data,
    observed_of_one,
    summary,
    unlabelled,
)

#: Adam's first step in units of the network's outputs; it falls to zero.
STEP = 0.05
#: Draws that one step averages over.
DRAWS = 8


@dataclass(frozen=True)
class InferenceGap:
    """The gap of N observations in nats.

    Attributes:
        log_marginal: log p(x) by importance sampling from q*, which has the higher bound of the two.
        elbo: (N,) the fitted guide's bound.
        best_elbo: (N,) the bound of q*.
        errors: (N,) Monte Carlo standard errors of the two bounds' difference.
    """

    log_marginal: LogMarginal
    elbo: Tensor
    best_elbo: Tensor
    errors: Tensor

    @property
    def amortization(self) -> Tensor:
        """(N,) what one network for all observations loses."""
        return self.best_elbo - self.elbo

    @property
    def approximation(self) -> Tensor:
        """(N,) what the family loses."""
        return self.log_marginal.values - self.best_elbo

    def __str__(self) -> str:
        total = float((self.log_marginal.values - self.elbo).mean())
        error = float(self.errors.square().sum().sqrt()) / len(self.elbo)
        return (
            f"log p(x) {self.log_marginal.mean:.2f}, ELBO {float(self.elbo.mean()):.2f} nats: of the gap of {total:.2f}, "
            f"{float(self.approximation.mean()):.2f} are the family's and {float(self.amortization.mean()):.2f} ± {error:.2g} the network's"
        )


def inference_gap(fit: Any, data: Any = None, *, steps: int = 300, k: int = 1000, seed: int = 0) -> InferenceGap:
    """Splits the inference gap; `Fit.inference_gap` documents the arguments."""
    guide = fit.guide
    if not (hasattr(guide, "rows") and hasattr(guide, "draw") and getattr(guide, "amortized", False)):
        raise ValueError(
            "the inference gap is split for a guide with an inference network ('amortized', 'amortized_full_rank', 'amortized_iaf'), and "
            f"this one is '{fit.run.family or type(guide).__name__}'"
        )
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 2:
        raise ValueError(f"k must be a whole number of draws, at least 2 for an error of each bound, got {k!r}")
    check_seed(seed)
    seed, k, steps = int(seed), int(k), int(steps)
    data = local_data(fit, data)
    many = max(1, CHUNK_ELEMENTS // (k * elements_of_one(fit.program)))
    parts = [
        _search(fit, data.select(slice(start, min(start + many, len(data)))), steps, k, seed + 1 + start)
        for start in range(0, len(data), many)
    ]
    values, spread, ess, best, tails, first, errors = (torch.cat(found) for found in zip(*parts, strict=True))
    given = data.bind(fit.model)
    known = observed_of_one(fit.program, given)
    whole = LogMarginal(
        values,
        spread,
        ess,
        best,
        tails,
        k,
        sum(known.values()) - unlabelled(known, given),
        is_density(fit.program),
    )
    return InferenceGap(whole, first, best, errors)


def _search(fit: Any, data: Any, steps: int, k: int, seed: int) -> tuple[Tensor, ...]:
    """Of some observations, (N,) each: the summary of q*'s weights, the network's bound, the error of the two bounds' difference."""
    program, model, guide = fit.program, fit.model, fit.guide
    kwargs = data.bind(model)

    def bound(rows: Tensor) -> Tensor:
        """(N,) log p - log q of one draw."""

        def draw() -> None:
            guide.draw(rows, guide.plate(len(rows), None, kwargs))

        trace = poutine.trace(draw).get_trace()
        factors = model_factors(program, model, kwargs, guide_values(trace)) + [f.negative for f in guide_factors(trace)]
        return sum((f.rows for f in factors), start=rows.new_zeros(()))

    with fit.run.owned.active(seed):
        with torch.no_grad():
            begin = guide.rows(kwargs)
        rows = begin.clone().requires_grad_()
        optimizer = torch.optim.Adam([rows], lr=STEP)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = STEP * (1 - step / steps)
            loss = -vmap_random(lambda _: bound(rows), torch.zeros(DRAWS, device=fit.device)).mean(0).sum()
            (rows.grad,) = torch.autograd.grad(loss, [rows])
            optimizer.step()
        with torch.no_grad():
            first = each_of(lambda: bound(begin), k, fit.device).double()
            best = each_of(lambda: bound(rows), k, fit.device).double()
    errors = (first.var(0) + best.var(0)).div(k).sqrt()
    return (*summary(best, k_hat=True), first.mean(0).cpu(), errors.cpu())
