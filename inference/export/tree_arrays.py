"""The numbers of ArviZ's groups, from draws of any model: variable -> (chains, draws, ...).

Large groups are filled slice by slice, so that little is held beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ..draws import Draws, chunk_size, map_random
from ..prediction.prediction import simulate_observed
from ..target.program import Plate, Site, sample_sites
from .labels import observation_plate, whole_numbers

if TYPE_CHECKING:
    from ..result import Fit
    from ..run import Run

#: A group's slice that is computed at once, in bytes; a few copies of it are held beside the group.
SLICE_BYTES = 20_000_000

#: By site, or by the sites that have one value together.
Arrays = dict[Any, np.ndarray]


@dataclass
class Collected:
    """What draws of all chains say, and why something is absent.

    Attributes:
        posterior, log_likelihood, predictive, stats: site (or `f`, `log_p`, `log_q`) -> (C, n, ...).
        notes: attributes of the tree.
    """

    posterior: Arrays = field(default_factory=dict)
    log_likelihood: Arrays = field(default_factory=dict)
    predictive: Arrays = field(default_factory=dict)
    stats: Arrays = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def collect(
    fit: Fit,
    all_draws: list[Draws],
    keep: Callable[[Mapping[str, Tensor]], Arrays],
    *,
    log_likelihood: bool,
    predictive: bool,
    seed: int,
) -> Collected:
    """All of it, from the draws of every restart.

    Args:
        keep: what is kept of some draws of the latents.
    """
    found = Collected(posterior=chains(all_draws, keep), stats=sample_stats(all_draws))
    if predictive:
        found.predictive, note = predictions(fit, all_draws, seed)
        found.notes |= {"posterior_predictive_note": note} if note else {}
    if log_likelihood:
        found.log_likelihood, note = log_likelihoods(fit, list(fit.runs), all_draws)
        found.notes |= {"log_likelihood_note": note} if note else {}
    return found


def slices(num: int, row_bytes: int) -> Iterator[slice]:
    """Cuts `num` rows of so many bytes into pieces of `SLICE_BYTES`."""
    step = max(1, SLICE_BYTES // max(1, row_bytes))
    return (slice(i, min(num, i + step)) for i in range(0, num, step))


def fill(arrays: Arrays, name: Any, part: np.ndarray, num_chains: int, num: int, chain: int, where: slice) -> None:
    """Writes one slice into its place, making room for all of them first."""
    out = arrays.get(name)
    if out is None:
        out = np.empty((num_chains, num, *part.shape[1:]), dtype=part.dtype)
    elif out.dtype != part.dtype:  # a slice of whole numbers among others that are not
        out = out.astype(np.result_type(out.dtype, part.dtype))
    out[chain, where] = part
    arrays[name] = out


def chains(all_draws: list[Draws], keep: Callable[[Mapping[str, Tensor]], Arrays]) -> Arrays:
    """site -> (C, n, ...)."""
    kept = [keep(draws.values) for draws in all_draws]
    return {name: np.stack([one[name] for one in kept]) for name in kept[0] if all(name in one for one in kept)}


def sample_stats(all_draws: list[Draws]) -> Arrays:
    """log p, and log q where all guides have one: (C, n) in nats."""

    def stack(pick: Callable[[Draws], Tensor | None]) -> np.ndarray | None:
        parts = [pick(draws) for draws in all_draws]
        found = [part.detach().cpu().double().numpy() for part in parts if part is not None]
        return np.stack(found) if len(found) == len(parts) else None

    both = {"log_p": stack(lambda draws: draws.log_p), "log_q": stack(lambda draws: draws.log_q)}
    return {name: values for name, values in both.items() if values is not None}


def log_likelihoods(fit: Fit, runs: list[Run], all_draws: list[Draws]) -> tuple[Arrays, str]:
    """log p(observation | draw), observed site -> (C, n, N), and a note on what is missing.

    Sites that a local discrete latent joins are summed over it together, and are one entry.
    """
    out: Arrays = {}
    notes = []
    num = len(all_draws[0].log_p)

    def collect_part(key: Any, wanted: str, site: Site, plate: Plate) -> None:
        for chain, (run, draws) in enumerate(zip(runs, all_draws, strict=True)):
            for where in slices(num, 8 * site.batch_shape.numel()):
                part = fit.pointwise(run, {k: v[where] for k, v in draws.values.items()}, wanted)
                keep = {0, part.dim() + plate.dim} if plate.name != "data" else {0, 1}
                rest = [d for d in range(part.dim()) if d not in keep]
                part = part.sum(rest) if rest else part
                fill(out, key, part.numpy(), len(runs), num, chain, where)

    joined: set[str] = set()
    for name, site in fit.program.observed.items():
        plate = observation_plate(site, len(fit.data))
        if name in joined:
            continue
        if plate is None:
            notes.append(
                f"'{name}' lies in no plate over the {len(fit.data)} observations, so it has no log likelihood for each"
            )
            continue
        try:
            collect_part(name, name, site, plate)
        except KeyError as error:
            if len(error.args) < 2:
                raise
            sites = error.args[1]
            joined |= set(sites)
            collect_part(sites, "_".join(sites), site, plate)
    return out, "; ".join(notes)


def predictions(fit: Fit, all_draws: list[Draws], seed: int) -> tuple[Arrays, str]:
    """The training data simulated again, all latents kept: observed site -> (C, n, *shape), and a note."""
    program, num = fit.program, len(all_draws[0].log_p)
    size = sum(site.shape.numel() for site in program.observed.values())
    out: Arrays = {}
    try:
        for chain, (run, draws) in enumerate(zip(fit.runs, all_draws, strict=True)):
            with run.owned.active(seed * 1009 + 19 + run.restart):
                for where in slices(num, 32 * size):
                    found = simulated(fit, run, {k: v[where] for k, v in draws.values.items()})
                    for name, part in found.items():
                        fill(out, name, part, len(fit.runs), num, chain, where)
    except Exception as error:  # whatever a model raises when it is called without its observations
        return {}, f"the model could not be run without its observations: {first_line(error)}"
    return out, ""


def simulated(fit: Fit, run: Run, values: Mapping[str, Tensor]) -> Arrays:
    """The training data simulated from some draws, site -> (S, *shape); call inside `owned.active`."""
    kwargs = fit.data.bind(run.owned.model, observed=False)
    found = simulate_observed(run.owned, fit.program, kwargs, values, rows=fit.program.num_data)
    return {name: _checked(name, found[name]["draw"], site) for name, site in fit.program.observed.items()}


def prior_draws(
    fit: Fit, n: int, seed: int, keep: Callable[[Mapping[str, Tensor]], Arrays], *, predictive: bool
) -> tuple[Arrays, Arrays, str]:
    """Draws of the latents and, if wanted, of the observations from the model itself; one chain.

    Args:
        keep: what is kept of some draws of the latents.

    Returns:
        What is kept (1, n, ...), observed site -> (1, n, *shape), and a note on what is missing.
    """
    run, program = fit.run, fit.program

    def simulate(kwargs: Mapping[str, Any], observed: Mapping[str, Site]) -> tuple[Arrays, Arrays]:
        sites = {**program.latents, **observed}

        def one() -> dict[str, Tensor]:
            trace = poutine.trace(run.owned.model).get_trace(**kwargs)
            return {k: s["value"] for k, s in sample_sites(trace) if k in sites}

        size = sum(site.shape.numel() for site in sites.values())
        latents: Arrays = {}
        outcomes: Arrays = {}
        for where in slices(n, 16 * size):
            num = where.stop - where.start
            found = map_random(one, num, fit.device, min(num, chunk_size(size, 8)))
            for name, site in program.latents.items():
                _checked(name, found[name], site)
            for name, part in keep({k: found[k] for k in program.latents}).items():
                fill(latents, name, part, 1, n, 0, where)
            for name, site in observed.items():
                fill(outcomes, name, _checked(name, found[name], site), 1, n, 0, where)
        return latents, outcomes

    with run.owned.active(seed * 1009 + 23), torch.no_grad():
        note = ""
        if predictive:
            try:
                return (*simulate(fit.data.bind(run.owned.model, observed=False), program.observed), "")
            except Exception as error:  # whatever a model raises when it is called without its observations
                note = f"no prior predictive: the model needs its observations to run: {first_line(error)}"
        try:
            return (*simulate(fit.data.bind(run.owned.model), {}), note)
        except Exception as error:  # an improper prior has no draws
            return {}, {}, f"the prior cannot be drawn from: {first_line(error)}"


def _checked(name: str, values: Tensor, site: Site) -> np.ndarray:
    if values.shape[1:] != site.shape:
        raise ValueError(f"'{name}' was simulated with shape {tuple(values.shape[1:])}, not {tuple(site.shape)}")
    return whole_numbers(values, site)


def first_line(error: Exception) -> str:
    """What was raised, in one line."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
