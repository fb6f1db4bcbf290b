"""The importance-weighted bound with a gradient whose noise does not drown it where there are many draws.

    theta:  sum_k w_k grad log p(x, z_k)
    phi:    sum_k w_k^2 d/dz [log p(x, z_k) - log q(z_k)] dz_k/dphi        w_k = p(x, z_k) / q(z_k), normalised over the draws

The plain gradient with respect to q's parameters has a signal that falls faster with the number of draws than its noise does
(Rainforth et al. 2018, "Tighter variational bounds are not necessarily better"): it keeps the score of q, whose mean is what a second
reparametrisation turns into the formula above (Tucker, Lawson, Gu, Maddison 2019, "Doubly reparameterized gradient estimators
for Monte Carlo objectives"). Both aim at the same gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.noise import FromRow, Row, vmap_random
from ..target.density import Factor, guide_factors, guide_values, model_factors, total
from ..target.program import DATA_PLATE

if TYPE_CHECKING:
    from .objective import Objective


def weighted_bound(objective: Objective, kwargs: Mapping[str, Any], noise: Row, *, strict: bool) -> tuple[Tensor, Tensor]:
    """The bound from these draws, with a guide that scores its own draws without a gradient through its parameters (`PathDerivative`).

    Args:
        noise: (K, n) normal and (K, m) uniform numbers.

    Returns:
        The tensor to differentiate and the value to report, scalars in nats.
    """

    def draw(normal: Tensor, uniform: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        with FromRow(Row(normal, uniform), strict=strict):
            trace = objective.guide_trace(kwargs)
        return guide_values(trace), *_densities(guide_factors(trace))

    def score(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _densities(model_factors(objective.program, objective.model, kwargs, values))

    over: Callable[..., Any] = vmap_random if objective.each.vectorized else _one_by_one
    values, log_q_rows, log_q_total = over(draw, *noise)
    weights: list[Tensor] = []  # known behind the densities, used in front of them: on the gradient's way back
    # Views, for log q was taken of the draws themselves, and its gradient has its weights already.
    values = {name: value.view_as(value) for name, value in values.items()}
    for name, value in values.items():
        if value.requires_grad:
            value.register_hook(lambda gradient, name=name: gradient * _beside(weights[0], gradient, objective, name))
    log_p_rows, log_p_total = over(score, values)
    own = bool(log_p_rows.shape[-1] and log_q_rows.shape[-1])  # every observation has its own average of weights
    log_p, log_q = (log_p_rows[:, 0], log_q_rows[:, 0]) if own else (log_p_total, log_q_total)
    scale = log_p_rows[0, 1] if own else torch.ones_like(log_p[0])
    log_w = (log_p - log_q).detach()
    weights.append(torch.softmax(log_w, 0))
    value = ((torch.logsumexp(log_w, 0) - math.log(len(log_w))) * scale).sum()
    return (scale * (weights[0] * log_p - weights[0].square() * log_q)).sum(), value


def _densities(factors: Sequence[Factor]) -> tuple[Tensor, Tensor]:
    """(2, N) the log density of each observation and what it counts, empty where latents are shared, and the whole's."""
    whole = total(factors)
    if not all(factor.local for factor in factors):
        return whole.new_zeros(0), whole
    rows = sum((factor.rows for factor in factors), start=torch.zeros_like(factors[0].rows))
    return torch.stack([rows, torch.as_tensor(factors[0].scale, dtype=rows.dtype, device=rows.device).expand_as(rows)]), whole


def _one_by_one(function: Callable[..., Any], *mapped: Any) -> Any:
    """`vmap` for what it cannot map."""

    def taken(tree: Any, k: int) -> Any:
        return {name: value[k] for name, value in tree.items()} if isinstance(tree, dict) else tree[k]

    def stacked(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], tuple):
            return tuple(stacked(part) for part in zip(*parts, strict=True))
        if isinstance(parts[0], dict):
            return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return torch.stack(list(parts))

    num = len(next(iter(mapped[0].values()))) if isinstance(mapped[0], dict) else len(mapped[0])
    return stacked([function(*(taken(tree, k) for tree in mapped)) for k in range(num)])


def _beside(weights: Tensor, draws: Tensor, objective: Objective, name: str) -> Tensor:
    """Weights (K,) or (K, N) in the dimensions of draws (K, *batch, *event)."""
    shape = [len(weights), *[1] * (draws.dim() - 1)]
    if weights.dim() > 1:
        site = objective.program.latents[name]
        plate = next(plate for plate in site.plates if plate.name == DATA_PLATE)
        shape[draws.dim() - site.event_dim + plate.dim] = weights.shape[1]
    return weights.reshape(shape)
