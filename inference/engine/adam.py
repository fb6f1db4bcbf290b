"""Adam's update with its scalars from a table.

The bias corrections are powers of the step's number. Written into the graph they would be computed again for every few
elements of every parameter; the host makes them for many steps at once instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def scalars_needed(optimizer: torch.optim.Optimizer) -> tuple[int, int] | None:
    """Shape of one step's scalars, (groups, 3), if the optimiser is Adam or AdamW as the paper has it; else None."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return None
    for group in optimizer.param_groups:
        if group["amsgrad"] or group["maximize"] or any(isinstance(beta, Tensor) for beta in group["betas"]):
            return None
    return len(optimizer.param_groups), 3


def scalars(
    optimizer: torch.optim.Optimizer, base_rates: Sequence[float], done: int, count: int, factors: float | Sequence[float]
) -> Tensor:
    """The scalars of the steps done + 1, ..., done + count, float64 (steps, groups, 3): learning rate, rate / (1 - beta1^t), (1 - beta2^t)^-1/2."""
    t = torch.arange(done + 1, done + 1 + count, dtype=torch.float64)
    factor = torch.as_tensor(factors, dtype=torch.float64)
    out = torch.empty(count, len(optimizer.param_groups), 3, dtype=torch.float64)
    for group, base, row in zip(optimizer.param_groups, base_rates, out.unbind(1), strict=True):
        first, second = group["betas"]
        rate = base * factor
        row[:, 0] = rate
        one, other = _without_power(first, t), _without_power(second, t)
        row[:, 1] = rate if one is None else rate / one
        row[:, 2] = 1 if other is None else other.rsqrt_()
    return out


def _without_power(beta: float, t: Tensor) -> Tensor | None:
    """1 - beta^t for 0 <= beta < 1; None where that is 1 in double precision."""
    if beta ** float(t[0]) < 2.0**-54:
        return None
    return (t * math.log(beta)).expm1_().neg_()


def update(optimizer: torch.optim.Optimizer, scalars: Tensor) -> None:
    """One update of all parameters that have a gradient, in place; the optimiser's own state is used and kept."""
    for group, (rate, step_size, inverse) in zip(optimizer.param_groups, scalars.unbind(0), strict=True):
        first, second = group["betas"]
        decay = group["weight_decay"]
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            state = optimizer.state[parameter]
            state["step"].add_(1)
            if decay and decoupled:
                parameter.mul_(1 - rate * decay)
            elif decay:
                grad = grad + decay * parameter
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(grad, 1 - first)
            square.mul_(second).addcmul_(grad, grad, value=1 - second)
            parameter.sub_(step_size * mean / (square.sqrt() * inverse + group["eps"]))
