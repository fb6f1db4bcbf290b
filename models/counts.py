"""The coins' outcomes: 0 or 1 for each flip, or the number of successes in `total_count` flips."""

from typing import Any

import torch
from torch import Tensor

from .contract import BoundData


def read_counts(model: Any, data: BoundData) -> tuple[Tensor, Tensor | None]:
    """Return the outcomes that the model would score, in float64.

    Returns:
        x: `(N,)` outcomes; total_count: `(N,)`, or None where x holds single flips.

    Raises:
        ValueError: an outcome that the model gives no probability to, with its row.
    """
    name = type(model).__name__
    bound = data.bind(model)
    x = bound.get("x")
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} needs the observed outcomes x, but the data hold none; pass them as observed")
    if x.dim() != 1 or len(x) == 0:
        raise ValueError(f"{name} takes outcomes x of shape (N,) with N >= 1, but they have the shape {tuple(x.shape)}")
    x = x.detach().double()
    given = bound.get("total_count")
    if given is None:
        _refuse(
            name,
            "outcome",
            x,
            (x != 0) & (x != 1),
            "0 or 1",
            "recode the flips, or pass total_count for counts",
        )
        return x, None
    total_count = torch.as_tensor(given, device=x.device).detach().double()
    if total_count.dim() == 0:
        total_count = total_count.expand_as(x)
    if total_count.shape != x.shape:
        raise ValueError(
            f"{name} takes one total_count for each outcome, but their shapes are {tuple(total_count.shape)} "
            f"and {tuple(x.shape)}; pass them row by row"
        )
    wrong = ~((total_count >= 0) & (total_count == total_count.round()))
    _refuse(name, "total_count", total_count, wrong, "a whole number from 0 up", "correct the table")
    wrong = ~((x >= 0) & (x <= total_count) & (x == x.round()))
    _refuse(name, "count", x, wrong, "a whole number from 0 to total_count", "correct the table")
    return x, total_count


def count_dtype(fallback: torch.dtype, *tensors: Tensor | float | None) -> torch.dtype:
    """Return the dtype that a call computes in: that of its first floating tensor, else the model's own."""
    floating = (t.dtype for t in tensors if isinstance(t, Tensor) and t.is_floating_point())
    return next(floating, fallback)


def _refuse(name: str, what: str, values: Tensor, wrong: Tensor, expected: str, remedy: str) -> None:
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"the {what} in row {row + 1} (counted from 1) is {float(values[row]):g}, where {name} expects {expected}; {remedy}"
        )
