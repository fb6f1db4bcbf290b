"""Whether the log density of an observation hangs on its own latents alone, as an importance-weighted bound of each one takes for granted.

    log p(x_n) >= E log 1/K sum_k w_kn,   w_kn = p(x_n, z_kn) / q(z_kn)

With a decoder that sees other rows, as batch norm with statistics of its batch does, w_kn belongs to the draws of all rows
together: an average for each row bounds nothing, and draws that are drawn again for each row meet others than they were weighed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.noise import kept_generators
from ..target.density import guide_factors, guide_values, model_factors
from ..target.program import DATA_PLATE

if TYPE_CHECKING:
    from .objective import Objective


def check_independent_rows(objective: Objective, kwargs: Mapping[str, Any]) -> None:
    """Scores rows of two draws taken in turn, and compares with both draws by themselves.

    Raises:
        ValueError: an observation's density depends on the latents of others.
    """
    if objective.discrete == "guide" and objective.program.discrete:
        return

    def rows(values: dict[str, Tensor]) -> Tensor | None:
        torch.manual_seed(0)  # what the model draws by itself is the same every time
        factors = model_factors(objective.program, objective.model, kwargs, values)
        if not all(factor.local for factor in factors):
            return None
        return sum((factor.rows for factor in factors), start=torch.zeros_like(factors[0].rows))

    with torch.no_grad(), kept_generators():
        traces = [objective.guide_trace(kwargs) for _ in range(2)]
        if not all(factor.local for factor in guide_factors(traces[0])):
            return
        one, other = (guide_values(trace) for trace in traces)
        a, b = rows(one), rows(other)
        if a is None or b is None:
            return
        first = torch.arange(len(a), device=a.device) % 2 == 0
        mixed = rows(
            {name: torch.where(_in_rows(first, value, objective, name), value, other[name]) for name, value in one.items()}
        )
        expected = torch.where(first, a, b)
    assert mixed is not None
    share = 1e-2 if mixed.dtype == torch.float32 else 1e-6
    finite = torch.isfinite(mixed) & torch.isfinite(expected)
    if bool(((mixed - expected).abs() > share * (1 + expected.abs()))[finite].any()):
        raise ValueError(
            "loss='importance_weighted' has a weight for each observation, and in this model the density of one depends on the latents of "
            "others (batch norm with the statistics of its batch, say); use another loss, or put such layers into evaluation mode"
        )


def _in_rows(rows: Tensor, value: Tensor, objective: Objective, name: str) -> Tensor:
    """(N,) in the dimensions of a site's value."""
    site = objective.program.latents[name]
    plate = next(plate for plate in site.plates if plate.name == DATA_PLATE)
    shape = [1] * value.dim()
    shape[value.dim() - site.event_dim + plate.dim] = len(rows)
    return rows.reshape(shape)
