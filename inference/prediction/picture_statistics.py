"""Numbers that say something about a picture without a look at it; each takes pictures (N, H, W) and returns (N,)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

type Statistic = Callable[[Tensor], Tensor]


def intensity(x: Tensor) -> Tensor:
    """Mean pixel."""
    return x.mean((1, 2))


def contrast(x: Tensor) -> Tensor:
    """Standard deviation of the pixels."""
    return x.flatten(1).std(1, correction=0)


def lit(x: Tensor) -> Tensor:
    """Share of pixels above one half."""
    return (x > 0.5).to(x.dtype).mean((1, 2))


def symmetry(x: Tensor) -> Tensor:
    """Share of the ink that its mirror image from left to right has in the same place: 1 of the same picture, 0 of a bar at one side."""
    ink = x.clamp_min(0)
    apart = (ink - ink.flip(2)).abs().sum((1, 2)) / 2
    return 1 - _share(apart, ink.sum((1, 2)), 0.0)


def row(x: Tensor) -> Tensor:
    """Centre of the ink between the first row, 0, and the last, 1; one half of an empty picture."""
    ink = x.clamp_min(0)
    return _share((ink.sum(2) * _places(ink, 1)).sum(1), ink.sum((1, 2)), 0.5)


def column(x: Tensor) -> Tensor:
    """Centre of the ink between the first column, 0, and the last, 1; one half of an empty picture."""
    ink = x.clamp_min(0)
    return _share((ink.sum(1) * _places(ink, 2)).sum(1), ink.sum((1, 2)), 0.5)


STATISTICS: Mapping[str, Statistic] = {
    "intensity": intensity,
    "contrast": contrast,
    "lit": lit,
    "symmetry": symmetry,
    "row": row,
    "column": column,
}


def plane(shape: Sequence[int], size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Channels, rows and columns of pictures that a model holds in this shape, `(D,)`, `(H, W)` or `(C, H, W)`.

    Raises:
        ValueError: it does not say how the pixels lie.
    """
    pixels = math.prod(shape)
    whole = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, Integral) and s > 0 for s in size)
    if size is not None and not whole:
        raise ValueError(f"size takes the numbers of rows and of columns, (H, W), got {size!r}")
    size = None if size is None else (int(size[0]), int(size[1]))
    if size is None and len(shape) == 1 and math.isqrt(pixels) ** 2 == pixels:
        size = (math.isqrt(pixels), math.isqrt(pixels))
    if size is not None and (len(shape) == 1 or tuple(shape[-2:]) == tuple(size)) and pixels % math.prod(size) == 0:
        return pixels // math.prod(size), *size
    if size is None and len(shape) in (2, 3):
        return math.prod(shape[:-2]), int(shape[-2]), int(shape[-1])
    raise ValueError(
        f"how pictures of shape {tuple(shape)} lie in rows and columns is not known{'' if size is None else f' with size={size}'}; "
        "give size=(H, W)"
    )


def _places(ink: Tensor, dim: int) -> Tensor:
    return torch.linspace(0, 1, ink.shape[dim], dtype=ink.dtype, device=ink.device)


def _share(part: Tensor, whole: Tensor, empty: float) -> Tensor:
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), empty)
