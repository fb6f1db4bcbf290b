"""Networks between pictures and codes: a generator from a code to every pixel, and the body of an inference network.

Both exist fully connected (as in Kingma, Welling 2014 and Burda, Grosse, Salakhutdinov 2016) and convolutional, where each
stage halves the picture on the way in and doubles it on the way out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from .networks import ACTIVATIONS

LAYERS = ("dense", "conv")


def body(shape: Sequence[int], hidden: Sequence[int], layers: str, activation: str) -> nn.Sequential:
    """Return a network from pictures `(N, *shape)` to features `(N, hidden[-1])`.

    Args:
        shape: of one picture, `(D,)` or `(C, H, W)`.
        hidden: widths of dense layers; filters of convolutions of 3 x 3, the last entry the width of a dense layer behind them.
        layers: `dense` or `conv`.
        activation: `relu`, `tanh`, `silu` or `gelu`.
    """
    act = ACTIVATIONS[activation]
    if layers == "dense":
        widths = [math.prod(shape), *hidden]
        dense = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), act())]
        return nn.Sequential(nn.Flatten(), *dense)
    sizes = _sizes(shape, len(hidden) - 1)
    filters = [shape[0], *hidden[:-1]]
    convolutions = [part for a, b in itertools.pairwise(filters) for part in (nn.Conv2d(a, b, 3, 2, 1), act())]
    flat = filters[-1] * math.prod(sizes[-1])
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(flat, hidden[-1]), act())


def generator(
    latents: int, shape: Sequence[int], per_pixel: int, hidden: Sequence[int], layers: str, activation: str
) -> nn.Sequential:
    """Return a network from codes `(N, latents)` to `(N, *shape, per_pixel)`: the mirror image of `body`.

    Args:
        per_pixel: numbers that a pixel's distribution takes.
    """
    act = ACTIVATIONS[activation]
    if layers == "dense":
        widths = [latents, *reversed(hidden)]
        dense = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), act())]
        return nn.Sequential(*dense, nn.Linear(widths[-1], math.prod(shape) * per_pixel), nn.Unflatten(1, (*shape, per_pixel)))
    sizes = _sizes(shape, len(hidden) - 1)
    filters = [shape[0] * per_pixel, *hidden[:-1]]
    smallest = (filters[-1], *sizes[-1])
    parts: list[nn.Module] = [nn.Linear(latents, hidden[-1]), act(), nn.Linear(hidden[-1], math.prod(smallest)), act()]
    parts.append(nn.Unflatten(1, smallest))
    for stage in range(len(hidden) - 1, 0, -1):
        parts += [nn.Upsample(size=sizes[stage - 1]), nn.Conv2d(filters[stage], filters[stage - 1], 3, 1, 1)]
        parts += [act()] if stage > 1 else []
    return nn.Sequential(*parts, ChannelsLast(shape[0], per_pixel))


class ChannelsLast(nn.Module):
    """`(N, C * P, H, W)` as `(N, C, H, W, P)`."""

    def __init__(self, channels: int, per_pixel: int) -> None:
        super().__init__()
        self.channels, self.per_pixel = channels, per_pixel

    def forward(self, x: Tensor) -> Tensor:
        """Move what belongs to one pixel into the last dimension."""
        return x.unflatten(1, (self.channels, self.per_pixel)).movedim(2, -1)


def _sizes(shape: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """Height and width before and after each halving."""
    height, width = shape[1:]
    return [(math.ceil(height / 2**k), math.ceil(width / 2**k)) for k in range(stages + 1)]
