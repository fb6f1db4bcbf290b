"""Means and sds of many scalars at once: of the draws, weighted, of a reference, of other restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .checks import FAR, ROUNDING, LatentCheck
from .psis import Weights


class Known(NamedTuple):
    """Moments of a reference, each (K,) float64."""

    mean: np.ndarray
    sd: np.ndarray


def flat(values: Tensor) -> np.ndarray:
    """(S, K) float64."""
    array: np.ndarray = values.detach().cpu().double().reshape(len(values), -1).numpy()
    return array


def moment_checks(
    names: Sequence[str],
    draws: np.ndarray,
    weights: Weights | None = None,
    known: Known | None = None,
    others: Sequence[np.ndarray] = (),
) -> list[LatentCheck]:
    """One check a scalar.

    Args:
        names: of the K scalars.
        draws: (S, K).
        weights: of the draws.
        known: what is compared with.
        others: means (K,) of other restarts.
    """
    mean, sd = draws.mean(0), draws.std(0)
    weighted = (None, None) if weights is None else weights.moments(draws)
    apart = None
    if others:
        gap = np.abs(np.stack(others) - mean).max(0)
        none = ROUNDING * np.abs(mean)
        apart = np.divide(gap, sd, out=np.where(gap > none, np.inf, 0.0), where=sd > none)
    columns = [column if column is None else column.tolist() for column in (*weighted, *(known or (None, None)), apart)]
    return [
        LatentCheck(name, float(mean[k]), float(sd[k]), *(None if column is None else column[k] for column in columns))
        for k, name in enumerate(names)
    ]


def worst(checks: Sequence[LatentCheck], most: int) -> tuple[LatentCheck, ...]:
    """The scalars that are furthest off, and of those equally far the widest."""
    return tuple(sorted(checks, key=lambda check: (-check.severity, -check.sd))[:most])


def judge_moments(checks: Sequence[LatentCheck], what: str, *, point: bool, weighted: bool, doubts: list[str]) -> None:
    """Says how many scalars have moments that weights or a reference contradict.

    Args:
        what: what the scalars are, plural.
        point: whether draws have no sd to be judged.
        weighted: whether PSIS moments are to be judged.
    """

    def beyond(mean: float | None, sd: float | None) -> bool:
        return max(abs(mean or 0.0), abs(sd or 0.0)) > FAR

    moved = [x for x in checks if weighted and beyond(x.shift, x.sd_change)]
    if moved:
        furthest = max(moved, key=lambda x: max(abs(x.shift or 0.0), abs(x.sd_change or 0.0)))
        doubts.append(
            f"{len(moved)} of {len(checks)} {what} have moments that importance weights move by more "
            f"than "
            f"{FAR} sd or {FAR:.0%} of an sd "
            f"(worst {furthest.name}: mean off by {furthest.shift:+.2f} sd, sd by {furthest.sd_change:+.0%}): do "
            f"not trust them"
        )
    wrong = [x for x in checks if beyond(x.mean_error, None if point else x.sd_error)]
    if wrong:
        furthest = max(wrong, key=lambda x: max(abs(x.mean_error or 0.0), abs(x.sd_error or 0.0)))
        doubts.append(
            f"{len(wrong)} of {len(checks)} {what} are more than {FAR} sd or {FAR:.0%} of an sd from "
            f"the reference (worst {furthest.name}: "
            f"mean {furthest.mean_error:+.2f} sd, sd {furthest.sd_error:+.0%})"
        )
