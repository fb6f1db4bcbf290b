"""einsum of log densities: products are sums, sums are logsumexp. A backend of opt_einsum.

Pyro's own backend takes an autograd function that `torch.vmap` cannot map; this one is plain tensor arithmetic. Its
intermediates are as large as the union of the operands' dimensions, which plates and small supports keep small.
"""

from __future__ import annotations

import torch
from pyro.ops.rings import LogRing
from torch import Tensor


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """log sum exp over the dimensions that the output lacks, of the sum of the operands."""
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    order = output + "".join(sorted(set(inputs.replace(",", "")) - set(output)))
    total: Tensor | None = None
    for names, operand in zip(terms, operands, strict=True):
        present = [d for d in order if d in names]
        aligned = operand.permute([names.index(d) for d in present])
        sizes = iter(aligned.shape)
        aligned = aligned.reshape([next(sizes) if d in names else 1 for d in order])
        total = aligned if total is None else total + aligned
    assert total is not None
    summed = list(range(len(output), len(order)))
    return torch.logsumexp(total, summed) if summed else total


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """`a` with its dimensions in another order."""
    return a.permute(axes)


def tensordot(x: Tensor, y: Tensor, axes: tuple[tuple[int, ...], tuple[int, ...]] | int = 2) -> Tensor:
    """The log of the sum over paired dimensions."""
    count = axes if isinstance(axes, int) else len(axes[0])
    left = tuple(range(x.dim() - count, x.dim())) if isinstance(axes, int) else tuple(axes[0])
    right = tuple(range(count)) if isinstance(axes, int) else tuple(axes[1])
    symbols = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    x_names = list(symbols[: x.dim()])
    y_names = list(symbols[x.dim() : x.dim() + y.dim()])
    for i, j in zip(left, right, strict=True):
        y_names[j] = x_names[i]
    shared = {x_names[i] for i in left}
    out = [n for n in x_names if n not in shared] + [n for n in y_names if n not in shared]
    return einsum(f"{''.join(x_names)},{''.join(y_names)}->{''.join(out)}", x, y)


class Ring(LogRing):
    """Pyro's ring of log densities on this backend."""

    _backend = __name__
