"""Draws from a fitted guide with log p and log q of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from .engine.noise import vmap_random
from .engine.owned import Owned
from .target.density import EachDraw, draw_discrete, guide_factors, guide_values, log_joint, total
from .target.program import DATA_PLATE, Program, Site
from .target.row_parts import RowParts

#: Memory that one chunk of mapped draws may take beside its result, in bytes.
CHUNK_BYTES = 60_000_000


@dataclass(frozen=True)
class Draws:
    """S draws of the latents.

    Attributes:
        values: site -> (S, *shape), on the fit's device.
        log_p: (S,) log p(values, observations) in nats, discrete latents summed out.
        log_q: (S,) log q(values) in nats, or None for a point.
    """

    values: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor | None

    @property
    def log_ratio(self) -> Tensor | None:
        """log p - log q, (S,)."""
        return None if self.log_q is None else self.log_p - self.log_q


def seed_of(fit: Any, seed: Any) -> int:
    """The seed that was asked for, by default the fit's own.

    Raises:
        ValueError: it is none.
    """
    if seed is None:
        own: int = fit.seed
        return own
    check_seed(seed)
    return int(seed)


def check_seed(seed: Any) -> None:
    """Raises ValueError for what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}")
    if seed >= 2**50:
        raise ValueError(f"seed must be below 2**50, got {seed}; take it modulo something smaller")


def chunk_size(num_data: int, itemsize: int, width: int = 1) -> int:
    """Draws that fit into `CHUNK_BYTES` when each holds about eight temporaries of (num_data, width)."""
    return max(1, CHUNK_BYTES // max(1, 8 * num_data * max(1, width) * itemsize))


def map_random(function: Callable[[], Any], num: int, device: torch.device, chunk: int) -> Any:
    """Calls a random function `num` times and stacks the results, by `torch.vmap` where it allows."""
    try:
        parts = [
            vmap_random(lambda _: function(), torch.zeros(min(chunk, num - i), device=device)) for i in range(0, num, chunk)
        ]
        if isinstance(parts[0], tuple):
            values = {k: torch.cat([p[0][k] for p in parts]) for k in parts[0][0]}
            return values, torch.cat([p[1] for p in parts])
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    except Exception:  # what cannot be mapped (gamma draws, values read) is called one by one
        single = [function() for _ in range(num)]
        if isinstance(single[0], tuple):
            values = {k: torch.stack([s[0][k] for s in single]) for k in single[0][0]}
            return values, torch.stack([s[1] for s in single])
        return {k: torch.stack([s[k] for s in single]) for k in single[0]}


def draw(
    owned: Owned,
    program: Program,
    parts: RowParts,
    num: int,
    each: EachDraw,
    *,
    point: bool,
    discrete: bool = True,
    score: bool = True,
) -> Draws:
    """Draws from the guide; call inside `owned.active`.

    Args:
        parts: of the observations; all in one where discrete latents are to be drawn. Latents of all rows are drawn once, those of
            single rows part by part.
        point: whether the guide is a point without log q.
        discrete: whether to draw the discrete latents that were summed out, too.
        score: whether log p is wanted (else it is left empty).
    """
    chunk = min(num, chunk_size(program.num_data, torch.finfo(owned.dtype).bits // 8, program.width))
    together = chunk if parts.whole else 1  # a part is as much as should be held at once
    log_p, log_q = torch.zeros(num, device=owned.device), torch.zeros(num, device=owned.device)
    values: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {}
    local: list[str] = []
    for k, (kwargs, share) in enumerate(parts):
        if k == 0 or local:
            values, part = _from_guide(owned, program, kwargs, num, together if program.local else chunk)
            local = [name for name in values if program.latents[name].local]
            log_q = log_q + (share if local else 1.0) * part
            for name in values:
                found.setdefault(name, []).append(values[name])
        elif not score:
            break
        if score:
            log_p = log_p + share * _log_p(owned, program, kwargs, values, num, each, together)
    values = {name: _rows_joined(program.latents[name], pieces) for name, pieces in found.items()}
    if discrete and any(name not in values for name in program.discrete):
        values |= draw_discrete(program, owned.model, next(iter(parts))[0], values, EachDraw(), num=num)
    return Draws(values, log_p, None if point else log_q)


def _rows_joined(site: Site, pieces: list[Tensor]) -> Tensor:
    """(S, *shape) from the parts of its rows."""
    if len(pieces) == 1:
        return pieces[0]
    plate = next(plate for plate in site.plates if plate.name == DATA_PLATE)
    return torch.cat(pieces, 1 + len(site.batch_shape) + plate.dim)


def _from_guide(
    owned: Owned, program: Program, kwargs: Mapping[str, Any], num: int, chunk: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Latents (S, *shape) and log q (S,)."""

    def one() -> tuple[dict[str, Tensor], Tensor]:
        trace = poutine.trace(owned.guide).get_trace(**kwargs)
        values = {k: v.clone() for k, v in guide_values(trace).items() if k in program.latents}
        return values, total(guide_factors(trace)) + torch.zeros((), device=owned.device)

    if not program.latents:
        return {}, torch.zeros(num, device=owned.device)
    with torch.no_grad():
        values, log_q = map_random(one, num, owned.device, chunk)
    return values, log_q


def _log_p(
    owned: Owned,
    program: Program,
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    num: int,
    each: EachDraw,
    chunk: int,
) -> Tensor:
    """log p(values, observations), (S,)."""
    with torch.no_grad():
        if not values:  # every latent is summed out
            return log_joint(program, owned.model, kwargs, {}).expand(num)
        log_p: Tensor = each(lambda v: log_joint(program, owned.model, kwargs, v), values, chunk=chunk)
    return log_p
