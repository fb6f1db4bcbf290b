"""A fit's own doubt: do importance weights confirm the guide's means and sds?

The guide's own draws never reach the tails that it cut off, so their weights miss a guide that is too narrow by a fifth.
Draws of the same guide widened a little do reach them (defensive importance sampling, Hesterberg 1995).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from .psis import Disagreement, Weights

#: A converged fit answers for means to 0.1 sd and for sds to 10 %: the check asks for less, its own Monte Carlo
#: error added.
LIMIT = 0.06


def widening(size: int) -> float:
    """The factor on all sds of a normal in `size` dimensions that keeps one fifth of the draws effective, at most 1.4.

    The weights' second moment is (f^2 / sqrt(2 f^2 - 1))^size.
    """
    low, high = 1.0, 1.4
    for _ in range(40):
        f = (low + high) / 2
        low, high = (f, high) if size * math.log(f * f / math.sqrt(2 * f * f - 1)) < math.log(5.0) else (low, f)
    return low


def contradiction(
    values: Mapping[str, Tensor], proposals: Mapping[str, Tensor], weights: Weights, *, means: bool = True
) -> Disagreement | None:
    """The continuous latent whose moments the weights contradict most, None if they confirm all.

    Args:
        values: the guide's own draws, site -> (S, ...).
        proposals: the draws that `weights` belong to. The same draws as `values` share their Monte Carlo error with them,
            so only the weights' own is left.
        means: whether to compare means, too: the guide's own draws tell them better than a widened guide's.
    """
    num = len(next(iter(values.values())))
    if proposals is values:
        noise = math.sqrt(max(0.0, 1 / weights.effective_draws - 1 / num))
    else:
        noise = math.sqrt(1 / weights.effective_draws + 1 / num)
    worst, found = 1.0, None
    for name, draws in values.items():
        if not draws.is_floating_point():
            continue
        raw = draws.detach().double().cpu().numpy().reshape(len(draws), -1)
        mean, sd = weights.moments(proposals[name].detach().double().cpu().numpy().reshape(len(proposals[name]), -1))
        sd = np.maximum(sd, 1e-300)
        shift, ratio = np.abs(raw.mean(0) - mean) / sd, raw.std(0) / sd - 1
        score = np.abs(ratio) / (LIMIT + noise / math.sqrt(2))
        if means:
            score = np.maximum(score, shift / (LIMIT + noise))
        k = int(np.nan_to_num(score).argmax())
        if score[k] > worst:
            place = ", ".join(str(int(i)) for i in np.unravel_index(k, draws.shape[1:])) if draws.dim() > 1 else ""
            worst, found = (
                float(score[k]),
                Disagreement(f"{name}[{place}]" if place else name, float(shift[k]), float(ratio[k])),
            )
    return found
