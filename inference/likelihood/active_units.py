"""Which numbers of a code say anything about the observation.

    A_i = Var_x( E_q(z_i | x) z_i )

A unit that the KL has switched off has the same posterior, the prior, whatever the observation, and A_i = 0. Burda, Grosse,
Salakhutdinov 2016 call a unit active where A_i > 0.01.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

#: The variance from which a unit counts as active (Burda et al. 2016).
ACTIVE = 0.01


@dataclass(frozen=True)
class ActiveUnits:
    """How much each latent number follows the observations.

    Attributes:
        site: the latent.
        variances: (D,) of the posterior means over the observations, without the noise of their estimates; NaN of a single one.
        codes: (N, D) posterior means of the observations.
    """

    site: str
    variances: Tensor
    codes: Tensor

    @property
    def active(self) -> Tensor:
        """(D,) whether a unit is active."""
        return self.variances > ACTIVE

    @property
    def count(self) -> int:
        """How many are."""
        return int(self.active.sum())

    @property
    def order(self) -> Tensor:
        """(D,) the units' numbers, the most active first."""
        return self.variances.argsort(descending=True)

    def __str__(self) -> str:
        if len(self.codes) == 1:
            return f"units are active where their means differ between observations, and this is '{self.site}' of one"
        shown = ", ".join(f"{v:.2g}" for v in self.variances[self.order].tolist())
        return f"{self.count} of {len(self.variances)} units of '{self.site}' are active; variances of their posterior means: {shown}"


def active_units(fit: Any, data: Any = None, n: int = 100, *, site: str | None = None, seed: int | None = None) -> ActiveUnits:
    """Measures how much each number of a code moves with the observations; `Fit.active_units` documents the arguments."""
    local = [name for name, latent in fit.program.local.items() if not latent.discrete]
    if not local or (site is not None and site not in local):
        have = (
            f"its latents of single observations are {', '.join(local)}"
            if local
            else "it has no latents of single observations"
        )
        raise ValueError(f"active units are numbers of an observation's code, and the model has none of that name: {have}")
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 2:
        raise ValueError(f"n must be a whole number of draws, at least 2, got {n!r}")
    site = local[0] if site is None else site
    draws = fit.sample(n - n % 2, data=data, seed=seed)[site].double()
    draws = draws.reshape(*draws.shape[:2], -1)
    # The variance of one mean would count its Monte Carlo noise, which is all that a switched-off unit has; that of two halves is apart.
    first, second = draws.unflatten(0, (2, -1)).mean(1)
    others = len(first) - 1
    products = ((first - first.mean(0)) * (second - second.mean(0))).sum(0)
    variances = products / others if others else torch.full_like(products, math.nan)
    return ActiveUnits(site, variances, torch.stack([first, second]).mean(0).to(fit.dtype))
