"""Residual networks that can answer after any number of their layers.

    h_0 = stem(x),   h_l = h_{l-1} + F_l(h_{l-1}),   logits after l layers = head_l(h_l)

No normalisation: a layer's second weights begin small enough that h keeps its size over all layers (as in fixup
initialisation, Zhang, Dauphin, Ma 2019), so layers can be uncertain like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualNetwork(nn.Module):
    """A stem, L residual layers, and an answer after each of 0 .. L of them.

    Args:
        stem: from x to h_0.
        blocks: L modules from h_{l-1} to h_l.
        heads: L + 1 modules from h_l to logits `(N, K)`, or one that serves every depth.
        adapters: with one head, L + 1 modules that bring h_l to the head's size, several depths sharing one if they are the same
            object; None where all have it.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        adapters: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        given = [] if adapters is None else list(adapters)
        unique = list(dict.fromkeys(given))
        # Each once, so that its weights have one name.
        self.adapters = None if adapters is None else nn.ModuleList(unique)
        self.adapter_of = [unique.index(adapter) for adapter in given]
        self.heads = nn.ModuleList(heads)  # last, as the layers that see the network's features last are
        if not len(self.blocks):
            raise ValueError("a network of adaptive depth needs at least one residual layer, and depth is 0")
        if len(self.heads) not in (1, self.depth + 1):
            raise ValueError(
                f"{self.depth} layers need one head, or {self.depth + 1}, one for each of 0 to {self.depth} layers; got {len(self.heads)}"
            )
        if given and len(given) != self.depth + 1:
            raise ValueError(f"adapters are one for each of 0 to {self.depth} layers, and there are {len(given)}")

    @property
    def depth(self) -> int:
        """L, the number of residual layers."""
        return len(self.blocks)

    def exit(self, h: Tensor, layers: int) -> Tensor:
        """Return the logits `(N, K)` of an answer after so many layers."""
        if self.adapters is not None:
            h = self.adapters[self.adapter_of[layers]](h)
        out: Tensor = self.heads[layers if len(self.heads) > 1 else 0](h)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every depth, `(N, L + 1, K)`, from one pass."""
        h = self.stem(x)
        out = [self.exit(h, 0)]
        for layers, block in enumerate(self.blocks, 1):
            h = block(h)
            out.append(self.exit(h, layers))
        return torch.stack(out, 1)


class DenseBlock(nn.Module):
    """h + W_2 relu(W_1 relu(h)), `(N, width)`."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        _begin_small(self.second, depth)

    def forward(self, h: Tensor) -> Tensor:
        """One layer."""
        out: Tensor = h + self.second(F.relu(self.first(F.relu(h))))
        return out


class ConvBlock(nn.Module):
    """The same with convolutions of 3 x 3, `(N, C, H, W)`; between stages the shortcut halves the picture and widens it."""

    def __init__(self, channels: int, out: int, stride: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1)
        self.second = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Identity() if (channels, stride) == (out, 1) else nn.Conv2d(channels, out, 1, stride)
        _begin_small(self.second, depth)

    def forward(self, h: Tensor) -> Tensor:
        """One layer."""
        out: Tensor = self.shortcut(h) + self.second(F.relu(self.first(F.relu(h))))
        return out


def residual_mlp(inputs: int, outputs: int, depth: int = 8, width: int = 64, heads: str = "each") -> ResidualNetwork:
    """Return a residual network for vectors; pictures are flattened.

    Args:
        inputs: numbers in one input.
        outputs: classes.
        depth: residual layers.
        width: of each.
        heads: a head for `each` depth, or one `shared` by all.
    """
    _check(depth, heads)
    _check_sizes("inputs, outputs and width", (inputs, outputs, width))
    made = (nn.Sequential(nn.ReLU(), nn.Linear(width, outputs)) for _ in range(_number(depth, heads)))
    stem = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width))
    return ResidualNetwork(stem, [DenseBlock(width, depth) for _ in range(depth)], made)


def residual_cnn(
    channels: int = 1,
    outputs: int = 10,
    blocks: Sequence[int] = (2, 2, 2),
    widths: Sequence[int] = (16, 32, 64),
    heads: str = "each",
) -> ResidualNetwork:
    """Return a residual network for pictures, in stages: each but the first halves the picture.

    Args:
        channels: of the pictures.
        outputs: classes.
        blocks: residual layers in each stage.
        widths: filters in each stage.
        heads: a head for `each` depth, or one `shared` by all, with an adapter for each stage of another width.
    """
    for name, sizes in {"channels and outputs": (channels, outputs), "blocks": blocks, "widths": widths}.items():
        _check_sizes(name, sizes)
    if len(blocks) != len(widths):
        raise ValueError(f"blocks and widths need one number a stage each, and have {len(blocks)} and {len(widths)}")
    depth = sum(blocks)
    _check(depth, heads)
    layers, at = [], [widths[0]]
    for stage, (number, width) in enumerate(zip(blocks, widths, strict=True)):
        for place in range(number):
            layers.append(ConvBlock(at[-1], width, 2 if stage and not place else 1, depth))
            at.append(width)
    stem = nn.Conv2d(channels, widths[0], 3, 1, 1)

    def pool() -> list[nn.Module]:
        return [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]

    if heads == "each":
        return ResidualNetwork(stem, layers, [nn.Sequential(*pool(), nn.Linear(width, outputs)) for width in at])
    last = widths[-1]
    by_width = {width: nn.Sequential(*pool()) for width in widths}
    for width, adapter in by_width.items():
        if width != last:
            adapter.append(nn.Linear(width, last))
    adapters = [by_width[width] for width in at]
    return ResidualNetwork(stem, layers, [nn.Linear(last, outputs)], adapters)


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    for size in sizes if isinstance(sizes, Sequence) and sizes else [sizes]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be whole numbers of at least 1, got {size!r}")


def _begin_small(layer: nn.Linear | nn.Conv2d, depth: int) -> None:
    with torch.no_grad():
        layer.weight.mul_(depth**-0.5)


def _number(depth: int, heads: str) -> int:
    return 1 if heads == "shared" else depth + 1


def _check(depth: int, heads: str) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth is the number of residual layers, a whole number of at least 1, got {depth!r}")
    if heads not in ("each", "shared"):
        raise ValueError(f"heads must be 'each' (a head for every depth) or 'shared' (one for all), got {heads!r}")
