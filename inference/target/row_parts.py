"""A large data set in parts of rows, each of which fits into memory with all that a model makes of it.

A model that opens its data plate as `pyro.plate("data", num_data, subsample=index)` scales the rows of a part to the whole data
set, so log p(x, z) of all rows is the mean over the parts, each weighted by its share of the rows:

    sum_c (n_c / N) [ log p(z) + (N / n_c) sum_{i in c} log p(x_i | z) ]  =  log p(z) + sum_i log p(x_i | z)

It holds where what belongs to single rows is summed over rows, so not with a discrete latent of all rows that is summed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .program import BoundData, Program

#: Memory that the numbers of one part may take, in bytes: more no longer lie in a processor's caches, and take twice the time.
PART_BYTES = 60_000_000


@dataclass(frozen=True)
class RowParts:
    """The keyword arguments of a model, part after part.

    Attributes:
        rows: of each part but the last.
    """

    model: Callable[..., Any]
    data: BoundData
    rows: int

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], float]]:
        """For each part the keyword arguments and its share of the rows."""
        num = len(self.data)
        if self.rows >= num:
            yield self.data.bind(self.model), 1.0
            return
        for start in range(0, num, self.rows):
            index = torch.arange(start, min(start + self.rows, num))
            yield self.data.batch(index, self.model), len(index) / num

    @property
    def whole(self) -> bool:
        """Whether there is one part, all rows."""
        return self.rows >= len(self.data)


def row_parts(program: Program, model: Callable[..., Any], data: BoundData, itemsize: int) -> RowParts:
    """The parts of a data set; a single one where the rows are few, or do not separate.

    Args:
        itemsize: bytes of a number.
    """
    latents = program.latents.values()
    mixed = len({site.local for site in latents}) > 1
    shared = any(site.discrete and not site.local for site in latents)
    if not program.row_elements or len(data) != program.num_data or mixed or shared:
        return RowParts(model, data, len(data))
    rows = max(1, PART_BYTES // (program.row_elements * itemsize))
    if getattr(data, "streamed", False):  # never all at once
        rows = min(rows, -(-len(data) // 2))
    return RowParts(model, data, rows)
