"""REINFORCE observation by observation.

A draw that belongs to one observation moves that observation's terms of the bound and no others, so its score is weighted
by those alone: sum_n (f_n - b_n) grad log q(z_n), instead of (sum_n f_n) times the sum of all scores. With N observations
that is about N times less variance (Rao-Blackwellisation: Ranganath, Gerrish, Blei 2014). A guide may name a baseline b_n,
`infer={"baseline": b}` at its site, which is trained to predict f_n by least squares (Mnih, Gregor 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..target.density import Factor


def row_scores(sites: Sequence[tuple[Any, Factor]], factors: Sequence[Factor], like: Tensor) -> Tensor:
    """Return (3,) zeros whose gradients are the score terms of the likelihood, of the KL, and of the baselines; (0,) without sites.

    Args:
        sites: the guide's sites without reparametrised draws, each in the data plate, with its factor.
        factors: the terms of the bound; those of observations make up the likelihood, the others minus the KL.
        like: a tensor of the precision and device wanted.
    """
    if not sites:
        return like.new_zeros(0)
    zero = torch.zeros_like(like)
    likelihood: Tensor | float = sum((f.rows for f in factors if f.local and f.observed), start=zero)
    kl: Tensor | float = -sum((f.rows for f in factors if f.local and not f.observed), start=zero)
    parts = [zero, zero, zero]
    for site, factor in sites:
        log_q = factor.rows
        step = (log_q - log_q.detach()) * factor.scale
        parts[0] = parts[0] + (torch.as_tensor(likelihood).detach() * step).sum()
        parts[1] = parts[1] + (torch.as_tensor(kl).detach() * step).sum()
        baseline = site["infer"].get("baseline")
        if baseline is not None:
            miss = (torch.as_tensor(likelihood - kl).detach() - baseline).square() * factor.scale
            parts[2] = parts[2] - (baseline.detach() * step).sum() - 0.5 * (miss - miss.detach()).sum()
    return torch.stack(parts)
