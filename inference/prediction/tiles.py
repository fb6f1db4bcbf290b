"""How many draws and how many inputs fit into memory at once.

A run of the model for S draws and R rows makes about `fixed + row R + S (draw + cell R)` bytes of tensors. Two small runs tell the
four numbers: what a row costs whatever the draw (a frozen backbone), what a draw costs whatever the rows (its weights), and
what each pair of them costs (activations of uncertain layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

#: Bytes of tensors that are made in one run, not all of them at the same time. Larger tiles were no faster on a CPU, and tiles of
#: 10 MB twice as slow.
TILE_BYTES = 100_000_000

#: Rows of the small runs. A single row would be squeezed away by some networks.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class Tile:
    """Draws and rows that are run at once."""

    draws: int
    rows: int


class Counted(TorchFunctionMode):
    """Adds up the bytes of the tensors that functions of torch return inside.

    Attributes:
        shared: of those that are the same for all draws.
        own: of those that each draw has, mapped by `torch.vmap`; of one draw.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = self.own = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                if torch._C._functorch.is_batchedtensor(tensor):
                    self.own += size
                else:
                    self.shared += size
        return out


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def tile(measure: Callable[[int], tuple[float, float]], num: int, rows: int, *, divisible: bool, latent_bytes: int) -> Tile:
    """The largest tile within `TILE_BYTES`.

    Rows stay together if they can, except where most of a row's cost does not depend on the draw: that part is computed again
    for each chunk of draws, so there the draws stay together.

    Args:
        measure: rows -> bytes of a run for the first rows that do not depend on the draw, and bytes of each draw.
        num: draws wanted.
        rows: rows wanted.
        divisible: whether the model runs on part of the rows.
        latent_bytes: of one draw of the latents.
    """
    # A draw's noise, its latents, and the latents as the guide made them.
    latent = 3.0 * latent_bytes
    if divisible and rows > _MORE:
        try:
            few, more = measure(_FEW), measure(_MORE)
        except Exception:  # a model that counts its rows: whatever is wrong shows when all of them run
            divisible = False
    if not divisible or rows <= _MORE:
        shared, own = measure(rows)
        return Tile(_fit(TILE_BYTES - shared, own + latent, num), rows)
    row, cell = (max(after - before, 0.0) / (_MORE - _FEW) for before, after in zip(few, more, strict=True))
    draw = max(few[1] - cell * _FEW, 0.0) + latent
    if row > cell:
        draws = _fit(TILE_BYTES / 2, draw + cell, num)
        # Weights that fill the tile by themselves must not leave room for single rows only.
        return Tile(draws, _fit(max(TILE_BYTES - draws * draw, TILE_BYTES / 2), row + draws * cell, rows))
    together = _fit(TILE_BYTES, row + cell, rows)
    return Tile(_fit(TILE_BYTES - together * row, draw + together * cell, num), together)


def _fit(budget: float, each: float, most: int) -> int:
    return int(max(1, min(most, budget // max(each, 1.0))))
