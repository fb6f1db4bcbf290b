"""What a diagnosis looks at in a network: values of f, and whether restarts agree in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..export.function_space import MOST_INPUTS, Functions, functions_at
from .checks import LatentCheck, RestartCheck
from .moment_checks import Known, flat, moment_checks
from .psis import Weights

if TYPE_CHECKING:
    from ..result import Fit

#: Points' draws differ by rounding alone: sds below this share of the values count as none.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class FunctionDraws:
    """f of every restart at some inputs.

    Attributes:
        functions: where.
        inputs: in words.
        f: (S, M, K) of each restart.
        best: which restart is the fit's.
    """

    functions: Functions
    inputs: str
    f: tuple[Tensor, ...]
    best: int

    @property
    def spread(self) -> bool:
        """Whether the best restart's draws differ at all."""
        f = self.f[self.best].double()
        return bool(f.std(0).square().mean().sqrt() > _ROUNDING * f.square().mean().sqrt())

    def checks(self, weights: Weights | None, reference: Any) -> list[LatentCheck]:
        """One check a value of f.

        Args:
            weights: of the best restart's draws, if they are reliable.
            reference: f of a reference's draws (S, M, K), or None.
        """
        others = [flat(f).mean(0) for k, f in enumerate(self.f) if k != self.best] if self.spread else []
        known = None
        if reference is not None:
            known = Known(flat(reference).mean(0), flat(reference).std(0))
        return moment_checks(self.functions.scalars(), flat(self.f[self.best]), weights, known, others)

    def restart(self, number: int, **about: Any) -> RestartCheck:
        """One restart beside the best, in what they predict.

        Args:
            about: the other fields of the `RestartCheck`.
        """
        mean, var = _moments(self.functions.outcome(self.f[number]))
        best_mean, best_var = _moments(self.functions.outcome(self.f[self.best]))
        unit = math.sqrt(float(best_var.mean())) if self.spread else math.sqrt(float(best_mean.square().mean()))
        distance = math.sqrt(float((mean - best_mean).square().mean())) / max(unit, 1e-300)
        ratio = math.sqrt(float(var.mean()) / float(best_var.mean())) if self.spread else 1.0
        gap = (mean - best_mean).abs()
        disagreement = {"classes": float(gap.sum(-1).mean()) / 2, "binary": float(gap.mean())}.get(self.functions.kind)
        return RestartCheck(mean_distance=distance, sd_ratio=max(ratio, 1e-12), disagreement=disagreement, **about)


def _moments(outcome: Tensor) -> tuple[Tensor, Tensor]:
    return outcome.mean(0), outcome.var(0, correction=0)


def compared_at(fit: Fit, held_out: Any) -> tuple[Functions, str]:
    """Inputs at which functions are looked at: held-out ones, where functions differ most, or those of the training data."""
    if held_out is None:
        found = functions_at(fit)
        return found, f"the first {len(found.x)} rows of the training data"
    found = functions_at(fit, held_out.to(fit.device, fit.dtype), MOST_INPUTS)
    return found, f"the first {len(found.x)} held-out rows"


def reference_functions(fit: Fit, functions: Functions, reference: Any) -> Tensor | None:
    """f of a reference's draws, (S, M, K); None where it has no draws of all weights."""
    draws = getattr(reference, "draws", None)
    sites = fit.model.sites
    if not isinstance(draws, dict) or any(name not in draws for name in sites):
        return None
    values = {name: torch.as_tensor(draws[name]).to(fit.device, fit.dtype) for name in sites}
    return functions(fit.run.owned, values)


def identified(model: Any) -> bool:
    """Whether weights have a meaning of their own: without a hidden layer no two sets of them give the same function."""
    return len(getattr(model, "bayesian_layers", ())) == 1
