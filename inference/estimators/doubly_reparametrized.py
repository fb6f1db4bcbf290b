"""The importance-weighted bound with a gradient whose noise does not drown it where there are many draws.

    theta:  sum_k w_k grad log p(x, z_k)
    phi:    sum_k w_k^2 d/dz [log p(x, z_k) - log q(z_k)] dz_k/dphi        w_k = p(x, z_k) / q(z_k), normalised over the draws

The plain gradient with respect to q's parameters has a signal that falls faster with the number of draws than its noise does
(Rainforth et al. 2018, "Tighter variational bounds are not necessarily better"): it keeps the score of q, whose mean is what a second
reparametrisation turns into the formula above (Tucker, Lawson, Gu, Maddison 2019, "Doubly reparameterized gradient estimators
for Monte Carlo objectives"). Both aim at the same gradient.

Both are means over draws with chances w_k, of grad log p and of w_k times the rest. Drawing from these (`resample`) leaves the aim
as it is and differentiates the model a few times a step instead of K; Burda et al. 2016, section 3, name it for one draw. What is
saved is up to two thirds of a step, and the price is noise: that of one draw from what the weights say of the posterior.
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


def weighted_bound(
    objective: Objective, kwargs: Mapping[str, Any], noise: Row, common: Tensor, *, strict: bool
) -> tuple[Tensor, Tensor]:
    """The bound from these draws, with a guide that scores its own draws without a gradient through its parameters (`PathDerivative`).

    Args:
        noise: (K, n) normal and (K, m) uniform numbers.
        common: uniform numbers that resampling takes, one for each row.

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
    if objective.resample:
        return _resampled(objective, over, score, values, (log_q_rows, log_q_total), common)
    weights: list[Tensor] = []  # known behind the densities, used in front of them: on the gradient's way back
    # Views, for log q was taken of the draws themselves, and its gradient has its weights already.
    values = {name: value.view_as(value) for name, value in values.items()}
    for name, value in values.items():
        if value.requires_grad:
            value.register_hook(
                lambda gradient, name=name: gradient * _beside(weights[0], gradient, objective, name).to(gradient.dtype)
            )
    log_p_rows, log_p_total = over(score, values)
    log_p, log_q, scale = _together((log_p_rows, log_p_total), (log_q_rows, log_q_total))
    log_w = (log_p - log_q).detach()
    weights.append(torch.softmax(log_w, 0))
    return (scale * (weights[0] * log_p - weights[0].square() * log_q)).sum(), _value(log_w, scale)


def _resampled(
    objective: Objective,
    over: Callable[..., Any],
    score: Callable[..., Any],
    values: dict[str, Tensor],
    of_q: tuple[Tensor, Tensor],
    common: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same with a gradient of draws that are drawn by their weights."""
    with torch.no_grad():
        log_p, log_q, scale = _together(over(score, values), of_q)
        log_w = log_p - log_q
        weights = torch.softmax(log_w, 0)
        # Systematic: one number for each row, a step apart within it; every draw comes as often as its weight says.
        begin = common[: log_w[0].numel()].reshape(1, *log_w.shape[1:])
        step = torch.arange(objective.resample, device=begin.device).reshape(-1, *[1] * (begin.dim() - 1))
        below = weights.cumsum(0)
        places = (begin + step) / objective.resample * below[-1:]
        which = (places.unsqueeze(1) >= below).sum(1).clamp_max(len(log_w) - 1)
        weight = torch.take_along_dim(weights, which, 0)
    chosen = {}
    for name, value in values.items():
        drawn = torch.take_along_dim(value, _beside(which, value, objective, name), 0)
        # The value of the draw, and its gradient times the weight.
        if drawn.requires_grad:
            drawn = torch.lerp(drawn.detach(), drawn, _beside(weight, drawn, objective, name).to(drawn.dtype))
        chosen[name] = drawn
    log_p, log_q, scale = _together(over(score, chosen), of_q)
    log_q = torch.take_along_dim(log_q, which, 0)
    return (scale * (log_p - weight * log_q)).mean(0).sum(), _value(log_w, scale)


def check_resampling(objective: Objective, resample: int, guide: str) -> None:
    """Refuses fits whose gradient is no mean over draws with these weights.

    Args:
        guide: its name.
    """
    if objective.estimator != "importance_weighted":
        raise ValueError(
            "resample draws by the weights of an importance-weighted bound, and this loss has none; add loss='importance_weighted', or leave "
            "it out"
        )
    if resample >= objective.num_particles:
        raise ValueError(
            f"resample={resample} draws of {objective.num_particles} would save nothing; take fewer of them than num_particles, or leave it out"
        )
    if not objective.doubly and objective.layer_noise != "shared":
        raise ValueError(
            f"resample draws whole networks again, and estimator='{objective.layer_noise}' draws noise in their layers; add estimator='shared'"
        )
    if not objective.doubly:
        raise ValueError(
            f"resample is for fits whose gradient is doubly reparametrised, and that of guide '{guide}' for this model is not: it takes a "
            "family whose draws carry a gradient and can be scored apart (mean_field, full_rank, amortized, amortized_full_rank), a model "
            "without noise of its own (dropout, say), and rows that are drawn alike"
        )


def _together(of_p: tuple[Tensor, Tensor], of_q: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """log p and log q, (K, N) where every observation has its own average of weights and (K,) elsewhere, and what each average counts."""
    if of_p[0].shape[-1] and of_q[0].shape[-1]:
        return of_p[0][:, 0], of_q[0][:, 0], of_p[0][0, 1]
    return of_p[1], of_q[1], torch.ones_like(of_p[1][0])


def _value(log_w: Tensor, scale: Tensor) -> Tensor:
    """The bound to report."""
    return ((torch.logsumexp(log_w, 0) - math.log(len(log_w))) * scale).sum()


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
