"""Random numbers of its own for every draw, so that results do not depend on how draws are cut into chunks.

Draw s takes its normal and uniform numbers from a generator seeded by (seed, s, part) alone. What is neither (Gamma, Poisson)
comes from torch's sampler: reproducible, but another sequence where the chunks are others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine.noise import Counting, FromRow, Row, vmap_random

#: Generators on a CPU use 32 bits of their seed; so many draws of one part of one seed never share a sequence.
_DRAWS_APART = 1_000_003
_PARTS_APART = 4_093

type Latents = Mapping[str, Tensor]
type OneDraw = Callable[[Latents], dict[str, Tensor]]


class DrawNoise:
    """Calls a random function of one draw's latents for many draws and stacks the results, by `torch.vmap` where it allows.

    Args:
        seed: of the numbers.
        dtype: their precision.
        device: where they are made.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.seed, self.dtype, self.device = seed, dtype, device
        self.mapped = True
        self._counts: dict[int, tuple[int, int]] = {}

    def __call__(
        self, function: OneDraw, latents: Latents, first: int, num: int, *, part: int = 0, size: int = 0
    ) -> dict[str, Tensor]:
        """Results of the draws `first` .. `first + num - 1`, stacked.

        Latents that are the same in all of these draws, as a point guide's are, are not mapped: what depends on them alone is
        computed once.

        Args:
            function: of one draw's latents; it may draw random numbers.
            latents: site -> (num, *shape); may be empty.
            part: which part of a draw's work this is, such as a block of inputs; parts have separate numbers.
            size: what the amount of noise depends on, such as the rows of the block.
        """
        same = _constant(latents)
        mapped = {} if same is not None else dict(latents)
        self.count(function, latents, size)
        if self.mapped:
            try:
                return self._map(function, mapped, same or {}, first, num, part, size)
            except Exception:  # what cannot be mapped (gamma draws, values read) is called draw by draw
                self.mapped = False
        single = []
        for s in range(num):
            torch.manual_seed(self._seed_of(first + s, part))
            row = self._rows(first + s, 1, part, size)
            with FromRow(Row(row.normal[0], row.uniform[0])):
                single.append(function({k: v[s] for k, v in latents.items()}))
        return {k: torch.stack([one[k] for one in single]) for k in single[0]}

    def count(self, function: OneDraw, latents: Latents, size: int = 0) -> None:
        """Runs the function once, where it has not run for this size, to see how many numbers it takes."""
        if size not in self._counts:
            with Counting() as counted:
                function({k: v[0] for k, v in latents.items()})
            self._counts[size] = counted.normals, counted.uniforms

    def _map(
        self, function: OneDraw, mapped: Latents, same: Latents, first: int, num: int, part: int, size: int
    ) -> dict[str, Tensor]:
        def one(normal: Tensor, uniform: Tensor, latents: Latents) -> dict[str, Tensor]:
            with FromRow(Row(normal, uniform)):
                return function({**latents, **same})

        rows = self._rows(first, num, part, size)
        torch.manual_seed(self._seed_of(first, part))
        out: dict[str, Tensor] = vmap_random(one, rows.normal, rows.uniform, dict(mapped))
        return out

    def _rows(self, first: int, num: int, part: int, size: int) -> Row:
        normals, uniforms = self._counts[size]
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        row = Row(torch.empty(num, normals, **like), torch.empty(num, uniforms, **like))
        generator = torch.Generator(self.device)
        for s in range(num):
            generator.manual_seed(self._seed_of(first + s, part))
            row.normal[s].normal_(generator=generator)
            row.uniform[s].uniform_(generator=generator)
        return row

    def _seed_of(self, draw: int, part: int) -> int:
        return ((self.seed * _PARTS_APART + part) * _DRAWS_APART + draw) % 2**63


def _constant(latents: Latents) -> dict[str, Tensor] | None:
    """The latents of one draw, if all draws have the same."""
    # Where draws differ, the first and the last do: they alone are looked at as a rule.
    if (
        latents
        and all(torch.equal(v[0], v[-1]) for v in latents.values())
        and all(bool((v == v[:1]).all()) for v in latents.values())
    ):
        return {k: v[0] for k, v in latents.items()}
    return None
