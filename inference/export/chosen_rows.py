"""A fit as it is seen on a part of its observations, for exports that would otherwise take hours."""

from __future__ import annotations

import dataclasses
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..asked_rows import has_table
from ..target.arrays import as_tensor
from ..target.program import Program, describe
from .function_space import num_shared
from .labels import Labels

if TYPE_CHECKING:
    from ..result import Fit
    from ..run import Run

#: Products of draws, observations and weights that a network's export computes a group: about half a minute on one core. That is
#: all of 1,000 observations for 1,000 draws of LeNet-300-100.
EXPORTED_PRODUCTS = 300_000_000_000
#: Numbers that a group may hold: 800 MB in float64.
EXPORTED_VALUES = 100_000_000
#: But so many observations in any case.
LEAST_ROWS = 100
#: Observations that are shown of a model that has latents for each.
EXAMPLES = 20


def choose_rows(fit: Fit, rows: Any, draws: int, *, seed: int) -> Tensor | None:
    """The rows of the training data whose likelihood is looked at, in the order that was given; None for all.

    Args:
        rows: how many, drawn at random; a tensor of row numbers; or None for as many as the two limits above allow.
        draws: of all chains.

    Raises:
        ValueError: for another kind of value, or rows that are not there.
    """
    num = len(fit.data)
    if rows is None:
        width = next(iter(fit.program.observed.values())).shape[1:].numel()
        within = min(EXPORTED_PRODUCTS // (draws * num_shared(fit.program)), EXPORTED_VALUES // (draws * width))
        rows = max(LEAST_ROWS, within)
        if rows >= num:
            return None
    if isinstance(rows, Integral) and not isinstance(rows, bool):
        rows = int(rows)
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}; use log_likelihood=False and predictive=False for none")
        if rows >= num:
            return None
        generator = torch.Generator().manual_seed(seed * 1009 + 31)
        return torch.randperm(num, generator=generator)[:rows].sort().values
    try:
        found = as_tensor(rows).cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0)
    if found.dim() != 1 or not len(found) or found.is_floating_point() or found.dtype == torch.bool:
        raise ValueError(f"rows must be a number of observations or a tensor of row numbers, got {rows!r}")
    found = torch.tensor(list(dict.fromkeys(found.long().tolist())))
    if int(found.min()) < 0 or int(found.max()) >= num:
        raise ValueError(f"rows must lie between 0 and {num - 1}, but they reach from {int(found.min())} to {int(found.max())}")
    return None if torch.equal(found, torch.arange(num)) else found


def on_rows(fit: Fit, rows: Tensor | None) -> Fit:
    """The same fit with the rows as its data: draws have the same latents, and each outcome the same likelihood."""
    if rows is None:
        return fit
    data = fit.data.select(rows)
    with fit.run.owned.active(0):
        program = describe(fit.model, data)
    return dataclasses.replace(fit, runs=tuple(_run_on(run, program, rows) for run in fit.runs), data=data)


def _run_on(run: Run, program: Program, rows: Tensor) -> Run:
    """The run with another program, and a table of posteriors cut to these rows."""
    guide = run.owned.guide
    owned = run.owned.beside(guide.select(rows)) if has_table(guide) else run.owned
    return dataclasses.replace(run, program=program, owned=owned)


def examples_of(fit: Fit, rows: Any, *, seed: int) -> tuple[Fit, Tensor | None]:
    """A fit whose latents all belong to single observations, on a few of these; and which they are.

    Args:
        rows: how many, drawn at random; a tensor of row numbers; or None for at most `EXAMPLES`, evenly spaced.
    """
    if rows is None and len(fit.data) > EXAMPLES:
        rows = torch.linspace(0, len(fit.data) - 1, EXAMPLES).round().long().unique()
    cut = None if rows is None else choose_rows(fit, rows, 1, seed=seed)
    part = on_rows(fit, cut)
    return dataclasses.replace(part, data=dataclasses.replace(part.data, observation_dim="example")), cut


def label_rows(labels: Labels, fit: Fit, rows: Tensor | None) -> None:
    """Gives the observations their numbers in the whole data, where they have no names."""
    if rows is not None and not fit.data.labels:
        labels.coords[labels.observation] = np.asarray(rows)
