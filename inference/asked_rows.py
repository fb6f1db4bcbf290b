"""Which observations a guide of single observations' latents can be asked about: any, or those that it was fitted to."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine

from .engine.owned import Owned
from .target.density import site_factor
from .target.program import DATA_PLATE, Fix, Program, sample_sites

#: Observations that a guide which is none of the families is asked about.
_TRIED = 20


def knows_training_rows_alone(guide: Any, program: Program) -> bool:
    """Whether q of single observations' latents is a row for each of the training data, of whatever data it is asked."""
    local = any(site.local and not site.discrete for site in program.latents.values())
    return local and not getattr(guide, "amortized", not hasattr(guide, "space"))


def refuse_other_rows(guide: Any, program: Program) -> None:
    """Raises ValueError where a guide, asked about observations that it was not fitted to, would answer with those that it was."""
    if knows_training_rows_alone(guide, program):
        raise ValueError(
            f"guide '{guide.family}' knows the observations of the training data alone; leave out the data, or fit with guide='amortized'"
        )


def answers_for_others(owned: Owned, program: Program, data: Any) -> bool:
    """Whether q of one observation's latents depends on that observation, as a network's does, and not on its place in the data.

    A guide that is none of the families is asked about some rows, and then about the last two of these alone, which a table takes
    for its first.
    """
    if getattr(owned.guide, "family", ""):
        return bool(getattr(owned.guide, "amortized", False))
    some = torch.linspace(0, len(data) - 1, min(len(data), _TRIED)).round().long().unique()
    last = torch.arange(len(some))[-2:].flip(0)
    try:
        with owned.active(0), torch.no_grad():
            whole = poutine.trace(owned.guide).get_trace(**data.select(some).bind(owned.model))
            sites = {name: site for name, site in sample_sites(whole) if name in program.local}
            drawn = {name: site["value"].index_select(_place(site), last) for name, site in sites.items()}
            with Fix(drawn):
                alone = poutine.trace(owned.guide).get_trace(**data.select(some[last]).bind(owned.model))
            for name, site in sites.items():
                expected, found = site_factor(name, site).rows[last], site_factor(name, alone.nodes[name]).rows
                if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
                    return False
    except Exception:  # of a guide that takes no other rows than those it was fitted to
        return False
    return len(some) > 2


def _place(site: Any) -> int:
    """The dimension of a site's value that the data plate is."""
    frame = next(frame for frame in site["cond_indep_stack"] if frame.name == DATA_PLATE)
    place: int = frame.dim - site["fn"].event_dim
    return place
