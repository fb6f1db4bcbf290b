"""Which entries of the latents are exported: all of them, or a few of each site.

    fc1.weight (300, 784)  ->  ten numbers, fc1.weight[17,203] and so on

No table or figure holds 266,610 weights, and a thousand draws of them are 2 GB.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..target.program import Program, Site
from .labels import Labels, whole_numbers
from .tree_arrays import Arrays

#: Entries of each site that a large network's export holds, unless told otherwise.
FEW = 10


@dataclass(frozen=True)
class Chosen:
    """Entries by site.

    Attributes:
        sites: the latents that are exported at all.
        positions: site -> (k,) positions in its flattened value, for the sites of which a part is exported.
        note: what was left out, empty if nothing.
    """

    sites: dict[str, Site]
    positions: dict[str, Tensor]
    note: str = ""

    def __call__(self, values: Mapping[str, Tensor]) -> Arrays:
        """The chosen entries of draws (S, *shape): site -> (S, k), or (S, *shape) where all are."""
        out = {}
        for name, site in self.sites.items():
            if name in values:
                value = values[name]
                if name in self.positions:
                    value = value.reshape(len(value), -1)[:, self.positions[name].to(value.device)]
                out[name] = whole_numbers(value, site)
        return out

    def label(self, labels: Labels) -> None:
        """Gives the chosen entries their names."""
        for name, positions in self.positions.items():
            labels.choose(name, positions)


def choose(program: Program, weights: Any, sites: Sequence[str], *, seed: int, large: bool) -> Chosen:
    """Reads the option `weights` of `to_arviz`.

    Args:
        weights: None, True or False, a number of entries a site, or site -> positions: (k,) in the flattened value, or (k, dims).
        sites: the latents that it is about; all others are exported whole.
        seed: of random entries.
        large: whether None means `FEW` a site, and not all.

    Raises:
        ValueError: for another kind of value, an unknown site, or a position beyond its end.
    """
    total = sum(program.latents[name].shape.numel() for name in sites)
    hint = f"weights=True exports all {total}"
    if weights is None:
        weights = FEW if large else True
    if weights is True:
        return Chosen(dict(program.latents), {})
    if weights is False:
        return Chosen(_without(program, sites), {}, f"no weights; {hint}")
    if isinstance(weights, Mapping):
        positions = {name: _positions(program, sites, name, index) for name, index in weights.items()}
        absent = [name for name in sites if name not in positions]
        return Chosen(_without(program, absent), positions, f"the entries that were asked for; {hint}")
    if not isinstance(weights, int) or weights < 1:
        raise ValueError(
            "weights must be a number of entries a site, True for all, False for none, or a dict from sites to tensors of "
            f"positions, got {weights!r}"
        )
    positions = {}
    for number, name in enumerate(sites):
        size = program.latents[name].shape.numel()
        if size > weights:
            generator = torch.Generator().manual_seed(seed * 1009 + 29 + number)
            positions[name] = torch.randperm(size, generator=generator)[:weights].sort().values
    note = f"{weights} entries of each larger site, drawn at random with seed {seed}; {hint}" if positions else ""
    return Chosen(dict(program.latents), positions, note)


def _without(program: Program, absent: Sequence[str]) -> dict[str, Site]:
    return {name: site for name, site in program.latents.items() if name not in absent}


def _positions(program: Program, sites: Sequence[str], name: str, index: Any) -> Tensor:
    if name not in sites:
        near = difflib.get_close_matches(str(name), list(sites), 1)
        raise ValueError(
            f"weights names '{name}', which is none of the sites to choose from"
            f"{f', did you mean {near[0]!r}?' if near else ''}; these are {', '.join(sites)}"
        )
    shape = program.latents[name].shape
    found = torch.as_tensor(index).cpu()
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool) and found.numel() > 0
    if whole and found.dim() == 1:
        flat, low, high = found.long(), 0, shape.numel()
        inside = bool(((flat >= low) & (flat < high)).all())
    elif whole and found.dim() == 2 and found.shape[1] == len(shape):
        limits = torch.tensor(shape)
        inside = bool(((found >= 0) & (found < limits)).all())
        strides = torch.tensor([shape[d + 1 :].numel() for d in range(len(shape))])
        flat = (found.long() * strides).sum(1)
    else:
        raise ValueError(
            f"weights['{name}'] must be whole numbers of the shape (k,), positions in the flattened value, or (k, {len(shape)}), got "
            f"{found.dtype} of the shape {tuple(found.shape)}"
        )
    if not inside:
        raise ValueError(f"weights['{name}'] reaches beyond the site's shape {tuple(shape)}; count from 0")
    return flat
