"""Seeded choices of rows, for splits and batches, without touching global generators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def seeded_generator(seed: int, *stream: int) -> torch.Generator:
    """Returns a CPU generator for (seed, stream); different streams of one seed are independent.

    Raises:
        ValueError: if the seed or a stream number is not a non-negative integer.
    """
    for number in (seed, *stream):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise ValueError(f"seed and epoch must be non-negative integers, not {number!r}")
    # SeedSequence mixes all numbers, so that (seed, epoch) = (0, 1) and (1, 0) differ.
    state = np.random.SeedSequence([int(seed), *map(int, stream)]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def split_indices(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of `round(fraction * n)` random rows and those of the others, each ascending.

    Raises:
        ValueError: if the fraction is not inside (0, 1) or leaves one part without rows.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction!r}; 0.8 keeps 80 % for training")
    k = round(fraction * n)
    if k in (0, n):
        raise ValueError(
            f"fraction={fraction} splits {n} observations into {k} and {n - k}, but both parts need at least "
            "one; choose another fraction or give more data"
        )
    order = torch.randperm(n, generator=seeded_generator(seed))
    return order[:k].sort().values, order[k:].sort().values


def batch_indices(n: int, batch_size: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns `n // batch_size` batches of row numbers, `(n // batch_size, batch_size)`, from a permutation of (seed, epoch).

    The short last batch is dropped, so that every batch has one static shape; each epoch drops other rows.

    Raises:
        ValueError: if the batch size is not an integer between 1 and n.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be an integer between 1 and the number of observations, {n}, not {batch_size!r}")
    order = torch.randperm(n, generator=seeded_generator(seed, epoch)).to(device)
    return order[: n - n % batch_size].reshape(-1, int(batch_size))


def stream_batches(
    streams: Sequence[Tensor], sizes: Sequence[int], seed: int, epoch: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yields index tensors of shape `(sum(sizes),)`: so many rows of each stream, one stream behind another.

    An epoch is one pass over the stream that lasts longest; shorter ones begin again, in another order.
    """
    longest = max(len(rows) // size for rows, size in zip(streams, sizes, strict=True))
    parts = []
    for number, (rows, size) in enumerate(zip(streams, sizes, strict=True)):
        each = len(rows) // size
        rounds = [
            rows[torch.randperm(len(rows), generator=seeded_generator(seed, epoch, number, again))][: each * size]
            for again in range(-(-longest // each))
        ]
        parts.append(torch.cat(rounds).split(size))
    return (torch.cat(batch).to(device) for batch in zip(*(part[:longest] for part in parts), strict=True))
