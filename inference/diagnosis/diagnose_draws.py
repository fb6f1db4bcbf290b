"""The draws behind a diagnosis, their importance weights, and why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..draws import Draws
from ..export.export import run_draws
from ..export.fit_attributes import guide_name
from ..export.function_space import MOST_INPUTS, F, is_network, num_shared
from ..export.network_draws import Wanted, collect_network
from ..export.tree_arrays import Arrays
from ..pruning.sparsify import emptiness
from ..run import HOPELESS
from .diagnose_functions import FunctionDraws, compared_at
from .psis import Weights, smooth

if TYPE_CHECKING:
    from ..result import Fit

#: LOO takes about half a millisecond an observation: with more of them it is left to `fit.loo`.
LOO_LIMIT = 5_000

#: Draws of a diagnosis: fewer say nothing about a tail.
LEAST_DRAWS = 100

#: Products of draws, observations and weights that a diagnosis of a network computes: some seconds on one core.
DIAGNOSED_PRODUCTS = 50_000_000_000
#: Drawing a weight takes as long as so many products.
_DRAWING = 500

#: With more latents than this a covariance over all of them, or a flow, has too many parameters to be learned.
MOST_CORRELATED = 500

_RICHER = {
    "mean_field": "'full_rank', or 'structured' where latents depend on each other in the model's order",
    "low_rank": "'full_rank', or a flow such as 'iaf'",
    "full_rank": "a flow such as 'iaf' or 'spline', or another parametrisation of the model",
    "laplace": "'full_rank', or a flow such as 'iaf'",
    "structured": "a flow such as 'iaf', or another parametrisation of the model",
    "beta": "'full_rank', or a flow such as 'iaf'",
    "iaf": "'spline', more layers, or another parametrisation of the model",
    "spline": "'iaf', more layers, or another parametrisation of the model",
    "amortized": "'amortized_full_rank' or 'amortized_iaf'",
    "amortized_full_rank": "'amortized_iaf'",
    "amortized_iaf": "'amortized_iaf' with more transforms, or a larger network",
    "per_datum": "'amortized_full_rank' or 'amortized_iaf'",
    "semi_supervised": "'semi_supervised' with a larger network (hidden= of the model)",
}
#: The same for more latents.
_RICHER_OF_MANY = {
    "mean_field": "'low_rank', which adds a few correlated directions",
    "laplace": "'low_rank'",
    "low_rank": "'low_rank' with a higher rank (guide_options={'rank': ...})",
}


@dataclass
class Material:
    """What a diagnosis looks at.

    Attributes:
        num: draws of each restart.
        network: whether the model is a network, whose predictions can be compared.
        hopeless: whether the observations share more latents than a ratio over all can take.
        draws: of each restart; none of a network with thousands of weights, none of which is kept.
        weights: of these draws by restart, None where they mean nothing.
        functions: f of each restart, of networks.
        log_likelihood: (n, N) of the best restart, where it was computed along with f.
        empty: why nothing of the inputs reaches the outputs of a pruned network, or "".
    """

    fit: Fit
    num: int
    network: bool
    hopeless: bool
    draws: list[Draws] = field(default_factory=list)
    weights: list[Weights | None] = field(default_factory=list)
    functions: FunctionDraws | None = None
    log_likelihood: np.ndarray | None = None
    empty: str = ""

    @property
    def best(self) -> Draws | None:
        """Draws of the best restart."""
        return self.draws[self.fit.best] if self.draws else None

    @property
    def best_weights(self) -> Weights | None:
        """Their weights."""
        return self.weights[self.fit.best]

    @property
    def trusted_weights(self) -> Weights | None:
        """The same, but for networks None where the weights are not reliable: their moments are then those of a few draws."""
        weights = self.best_weights
        return None if weights is None or (self.network and not weights.reliable) else weights

    @property
    def spread(self) -> bool:
        """Whether draws of the best restart differ."""
        if self.functions is not None:
            return self.functions.spread
        return not self.fit.run.point or any(bool((v != v[:1]).any()) for v in self.draws[self.fit.best].values.values())


def affordable(fit: Fit, n: int, rows: int, restarts: int = 1) -> int:
    """Draws of a network for so many observations."""
    return min(n, max(LEAST_DRAWS, DIAGNOSED_PRODUCTS // (num_shared(fit.program) * (rows + _DRAWING) * restarts)))


def gather(fit: Fit, n: int, held_out: Any, seed: int, notes: list[str]) -> Material:
    """Draws what is looked at."""
    size = num_shared(fit.program)
    empty = emptiness(fit)
    found = Material(fit, n, is_network(fit.model, fit.program), size > HOPELESS, empty="" if empty is None else str(empty))
    functions, inputs = compared_at(fit, held_out) if found.network else (None, "")
    if functions is not None and found.hopeless:
        loo = fit.objective == "elbo" and len(fit.data) <= LOO_LIMIT
        rows = MOST_INPUTS + (len(fit.data) if loo else 0)
        found.num = affordable(fit, n, rows, len(fit.runs))
        if found.num < n:
            notes.append(f"{found.num} draws instead of {n}, because each costs {size} weights times {rows} inputs a restart")
        collected = collect_network(fit, found.num, seed, Wanted(_nothing, functions, fit if loo else None))
        values = [torch.as_tensor(f) for f in collected.posterior[F]]
        found.log_likelihood = next(iter(collected.log_likelihood.values()))[fit.best] if loo else None
        found.weights = [None] * len(fit.runs)
    else:
        found.draws = [run_draws(fit, run, n, seed) for run in fit.runs]
        found.weights = [_weights(fit, draws, found.hopeless) for draws in found.draws]
        values = (
            []
            if functions is None
            else [functions(run.owned, draws.values) for run, draws in zip(fit.runs, found.draws, strict=True)]
        )
    if functions is not None:
        found.functions = FunctionDraws(functions, inputs, tuple(values), fit.best)
    return found


def _nothing(values: Any) -> Arrays:
    return {}


def _weights(fit: Fit, draws: Draws, hopeless: bool) -> Weights | None:
    return None if draws.log_ratio is None or fit.improper or hopeless else smooth(draws.log_ratio)


def judge_weights(material: Material, doubts: list[str], notes: list[str]) -> None:
    """Says what the k-hat says, or why there is none and what to look at instead."""
    fit, weights = material.fit, material.best_weights
    if weights is None:
        notes.append(_absent(material))
        return
    local = fit.program.num_local
    if local:
        if len(fit.program.local) < len(fit.program.continuous):
            says = "it is pessimistic for the shared latents"
        else:
            says = "it says little of any one of them; fit.log_marginal().k_hat has one for each observation"
        notes.append(
            f"the k-hat is of the joint ratio over {local} latents of single observations, where small errors add up: {says}"
        )
    if not weights.reliable:
        better = richer(fit)
        columns = "" if material.network else ", and the PSIS columns are no better than the raw ones"
        doubts.append(
            f"k-hat {weights.k_hat:.2f} is above {weights.threshold:.2f}, so q misses a part of the "
            f"posterior that importance weights cannot "
            f"mend{columns}: try guide {better}"
        )
        if material.network:
            notes.append(f"a network's predictions can be good where k-hat is not: {_instead(material)}")


def richer(fit: Fit) -> str:
    """A guide that may hold more of the posterior."""
    if num_shared(fit.program) > MOST_CORRELATED:
        return _RICHER_OF_MANY.get(fit.run.family, "'low_rank', or a model with fewer latents")
    return _RICHER.get(fit.run.family, "a richer family, such as 'full_rank' or 'iaf'")


def _absent(material: Material) -> str:
    fit = material.fit
    if material.empty:
        return "there is nothing to look at in a network whose answers do not depend on its inputs"
    if fit.run.point and not material.spread:
        return "a point guide has no log q, so there is no k-hat, no LOO, no KL and no gap to the evidence"
    if fit.improper:
        return (
            f"a prior is improper, so there is no evidence, and with it no KL, no k-hat and no LOO by weights; guide "
            f"'{guide_name(fit)}' trains on a surrogate ({fit.loss_name}): {_instead(material)}"
        )
    if fit.run.point:
        return (
            f"guide '{guide_name(fit)}' trains on a surrogate ({fit.loss_name}), and its draws have no density beside the prior's, so "
            f"there is no k-hat, no LOO, no KL and no gap to the evidence: {_instead(material)}"
        )
    return (
        f"k-hat over {num_shared(fit.program)} latents is hopeless whatever the guide, because one ratio p / q over so many is never "
        f"even: {_instead(material)}"
    )


def _instead(material: Material) -> str:
    """What to look at."""
    fit = material.fit
    parts = ["accuracy, NLL and calibration on held-out data (diagnose(held_out=test), fit.predict(x).scores(y))"]
    if fit.objective == "elbo":
        parts.append("LOO's k-hat of each observation")
    if material.network:
        parts.append("restarts in function space (fit(..., restarts=3))")
    return "look at " + (f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else parts[0])
