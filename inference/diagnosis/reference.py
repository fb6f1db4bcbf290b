"""Reference posteriors: the truth that a fit is measured against.

Exact where the model knows its posterior, else Pyro's NUTS (Hoffman & Gelman 2014) in float64, refused unless
its chains agree: split R-hat < 1.01 and more than 400 effective draws in bulk and tails for every latent
(Vehtari et al. 2021).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from arviz_stats.base import array_stats
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ..engine.owned import Owned
from ..target.density import EachDraw, draw_discrete
from ..target.program import describe, quiet

log = logging.getLogger("bayeszoo")

R_HAT_BELOW = 1.01
ESS_ABOVE = 400.0


@dataclass(frozen=True)
class Reference:
    """Draws from the posterior, and its moments.

    Attributes:
        draws: site -> (S, *shape), chains one after another.
        mean, sd: site -> (*shape,), float64; exact where `how` is "exact", else of the draws.
        how: "exact" or "nuts".
        log_evidence: log p(observations) in nats where it is known.
        r_hat: the worst split R-hat over all latents; None where exact.
        ess: the smallest effective number of draws, bulk or tail; None where exact.
        divergences: divergent transitions after warm-up.
        num_chains: chains behind the draws.
        seconds: wall time.
    """

    draws: dict[str, Tensor]
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    how: str
    log_evidence: float | None = None
    r_hat: float | None = None
    ess: float | None = None
    divergences: int = 0
    num_chains: int = 1
    seconds: float = 0.0

    def __repr__(self) -> str:
        num = len(next(iter(self.draws.values()))) if self.draws else 0
        if self.how == "exact":
            return f"Reference(exact: {', '.join(self.mean)}; {num} draws)"
        return (
            f"Reference(NUTS: {', '.join(self.mean)}; {num} draws of {self.num_chains} chains, R-hat "
            f"{self.r_hat:.3f}, "
            f"ESS {self.ess:.0f}, {self.divergences} divergences, {self.seconds:.0f} s)"
        )


def reference(
    model: Callable[..., Any],
    data: Any,
    *,
    num_chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    n: int = 4000,
    seed: int = 0,
    full_mass: bool = False,
    target_accept: float = 0.8,
    exact: bool = True,
) -> Reference:
    """Draws from the posterior of any Pyro callable, with discrete latents of finite support.

    Args:
        num_chains, warmup, draws: of NUTS; chains run one after another, from their own random starts.
        n: draws where the posterior is exact.
        full_mass: whether NUTS adapts a dense mass matrix, for correlated posteriors.
        target_accept: NUTS's target acceptance rate.
        exact: False runs NUTS even where the model knows its posterior.

    Raises:
        ValueError: the chains did not agree, or there is nothing to draw.
    """
    _check(num_chains=num_chains, warmup=warmup, draws=draws, n=n)
    began = time.perf_counter()
    if exact and hasattr(model, "exact_posterior"):
        return exact_reference(model, data, n=n, seed=seed)
    if num_chains < 2:
        raise ValueError("num_chains must be at least 2, because R-hat compares chains")
    data = data.to("cpu", torch.float64)
    own = copy.deepcopy(model).to("cpu", torch.float64) if isinstance(model, torch.nn.Module) else model
    owned = Owned(own, own, torch.float64, torch.device("cpu"))
    chains: list[dict[str, Tensor]] = []
    divergences = 0
    with owned.active(seed):
        program = describe(own, data)
        if not program.continuous:
            raise ValueError(
                "NUTS moves continuous latents and this model has none; sum over its discrete ones, in exact_posterior(data)"
            )
        kwargs = data.bind(own)
        for chain in range(num_chains):
            pyro.set_rng_seed(seed * 1009 + chain)
            kernel = NUTS(
                own,
                full_mass=full_mass,
                target_accept_prob=target_accept,
                max_plate_nesting=program.max_plate_nesting,
            )
            mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, num_chains=1, disable_progbar=True)
            mcmc.run(**kwargs)
            found = mcmc.get_samples()
            chains.append({name: found[name].detach() for name in program.continuous})
            divergences += sum(len(steps) for steps in mcmc.diagnostics().get("divergences", {}).values())
        r_hat, ess, worst = _agreement(chains)
        if not (r_hat < R_HAT_BELOW and ess > ESS_ABOVE):
            raise ValueError(
                f"NUTS is no reference here: R-hat {r_hat:.3f} and {ess:.0f} effective draws for '{worst}', "
                f"but R-hat < {R_HAT_BELOW} "
                f"and more than {ESS_ABOVE:.0f} are needed; raise warmup and draws, or write the model in "
                f"another parametrisation"
            )
        values = {name: torch.cat([chain[name] for chain in chains]) for name in program.continuous}
        if program.discrete:
            values |= draw_discrete(program, own, kwargs, values, EachDraw())
    ordered = {name: values[name].detach() for name in program.latents}
    if divergences:
        log.warning(
            "NUTS had %d divergent transitions of %d: its draws may miss a part of the posterior",
            divergences,
            num_chains * draws,
        )
    return Reference(
        ordered,
        {k: v.double().mean(0) for k, v in ordered.items()},
        {k: v.double().std(0) for k, v in ordered.items()},
        "nuts", _log_evidence(model, data), r_hat, ess, divergences, num_chains, time.perf_counter() - began,
    )  # fmt: skip


def exact_reference(model: Any, data: Any, *, n: int, seed: int) -> Reference:
    """The model's own exact posterior, with `n` draws (none for n = 0)."""
    began = time.perf_counter()
    posterior = model.exact_posterior(data)
    with quiet(seed):
        values = posterior.sample(n) if n else {}
    mean = {k: torch.as_tensor(v).double() for k, v in posterior.mean.items()}
    sd = {k: torch.as_tensor(v).double() for k, v in posterior.sd.items()}
    return Reference(dict(values), mean, sd, "exact", _log_evidence(model, data), seconds=time.perf_counter() - began)


def _log_evidence(model: Any, data: Any) -> float | None:
    known = getattr(model, "log_evidence", None)
    return float(known(data)) if callable(known) else None


def _agreement(chains: Sequence[Mapping[str, Tensor]]) -> tuple[float, float, str]:
    """The worst R-hat and the smallest ESS over all scalar latents, and where the trouble is."""
    r_hats: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name in chains[0]:
        stacked = torch.stack([chain[name] for chain in chains]).double()
        values = stacked.reshape(*stacked.shape[:2], -1).numpy()  # (C, S, K)
        r_hats[name] = float(np.max(array_stats.rhat(values, chain_axis=0, draw_axis=1)))
        bulk = array_stats.ess(values, chain_axis=0, draw_axis=1, method="bulk")
        tail = array_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
        sizes[name] = float(min(np.min(bulk), np.min(tail)))
    bad = [k for k in r_hats if not r_hats[k] < R_HAT_BELOW]
    worst = max(bad, key=lambda k: r_hats[k]) if bad else min(sizes, key=lambda k: sizes[k])
    return max(r_hats.values()), min(sizes.values()), worst


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 up, got {value!r}")
