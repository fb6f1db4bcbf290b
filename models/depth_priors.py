"""Priors on the number of layers, 0 to L, that prefer few of them.

Lecture: "Bayesian Control Flow".
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

WORDS = ("geometric", "poisson", "uniform")


def geometric(depth: int, ratio: float = 0.5) -> Tensor:
    """Return p(z) proportional to ratio^z for z = 0 .. depth: (depth + 1,) probabilities, float64.

    Args:
        depth: the largest z.
        ratio: p(z + 1) / p(z); below 1 few layers are preferred, 1 is uniform.
    """
    if not _positive(ratio):
        raise ValueError(f"the ratio of a geometric prior is p(z + 1) / p(z) and must be positive, got {ratio!r}")
    return torch.softmax(_numbers(depth) * torch.tensor(ratio, dtype=torch.float64).log(), 0)


def poisson(depth: int, rate: float = 1.0) -> Tensor:
    """Return p(z) proportional to rate^z / z! for z = 0 .. depth: (depth + 1,) probabilities, float64."""
    if not _positive(rate):
        raise ValueError(f"the rate of a Poisson prior must be positive, got {rate!r}")
    z = _numbers(depth)
    return torch.softmax(z * torch.tensor(rate, dtype=torch.float64).log() - torch.lgamma(z + 1), 0)


def depth_prior(wanted: str | Sequence[float] | Tensor, depth: int, rate: float | None = None) -> Tensor:
    """Return a prior by word, or check one that is given.

    Args:
        wanted: `geometric`, `poisson`, `uniform`, or depth + 1 probabilities.
        depth: the largest z.
        rate: the geometric prior's ratio or the Poisson prior's rate; None takes 0.5 and depth / 4.

    Returns:
        (depth + 1,) probabilities, float64.

    Raises:
        ValueError: one sentence.
    """
    if isinstance(wanted, str):
        if wanted not in WORDS:
            raise ValueError(
                f"unknown depth_prior '{wanted}'; choose one of {', '.join(WORDS)}, or give {depth + 1} probabilities"
            )
        if wanted == "geometric":
            return geometric(depth, 0.5 if rate is None else rate)
        if wanted == "poisson":
            return poisson(depth, depth / 4 if rate is None else rate)
    if rate is not None:
        raise ValueError("depth_rate belongs to depth_prior 'geometric' or 'poisson'; leave it out")
    if isinstance(wanted, str):
        return geometric(depth, 1.0)
    try:
        probs = torch.as_tensor(wanted, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"depth_prior must be one of {', '.join(WORDS)}, or {depth + 1} probabilities, got {wanted!r}"
        ) from None
    if probs.dim() != 1 or len(probs) != depth + 1:
        raise ValueError(
            f"the prior on z needs {depth + 1} probabilities, one for each of 0 to {depth} layers, and has the shape {tuple(probs.shape)}"
        )
    if not bool((probs >= 0).all()):
        bad = float(probs[~(probs >= 0)][0])
        raise ValueError(f"the prior on z has probabilities, which are not negative, and one of its entries is {bad:g}")
    if not abs(float(probs.sum()) - 1) < 1e-6:
        raise ValueError(f"the prior on z must sum to 1, and sums to {float(probs.sum()):g}; divide it by its sum")
    return probs / probs.sum()


def _positive(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")


def _numbers(depth: int) -> Tensor:
    return torch.arange(depth + 1, dtype=torch.float64)
