"""Gradients of the parts of one tensor, put side by side.

A guide keeps the numbers of all its sites in one vector, and each site reads a slice of it. Differentiated, every slice becomes a tensor as
long as the vector, zero outside the slice, and all of them are added up: Inductor makes of that a loop which asks for each
number of the vector in which slices it lies, a quarter of a Bayesian network's step. Where the slices do not overlap, nothing but
zeros is ever added.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import fx

from .memory import written

_ADD = torch.ops.aten.add.Tensor
_SLICE, _ROW = torch.ops.aten.slice_backward.default, torch.ops.aten.select_backward.default


class _Part(NamedTuple):
    """A gradient that stands at `start` to `end` along dimension `dim` of a whole of shape `sizes`; `row` lacks the dimension."""

    sizes: tuple[int, ...]
    dim: int
    start: int
    end: int
    gradient: fx.Node
    row: bool


def rewrite(graph: fx.Graph) -> None:
    """Replaces the gradients of parts that do not overlap in a sum by one concatenation, in place."""
    changed = written(graph)
    for node in list(graph.nodes):
        if not _is_sum(node) or _goes_on(node):
            continue
        found = [(leaf, _part(leaf)) for leaf in _leaves(node)]
        if any(part is not None and not changed.isdisjoint((leaf, part.gradient)) for leaf, part in found):
            continue  # what stood there when it was put in its place need not stand there at the sum
        parts = sorted((part for _, part in found if part is not None), key=lambda part: (part.start, part.end))
        others = [leaf for leaf, part in found if part is None]
        # With two others the order of summation would change, and with it the last digit.
        if len(parts) < 2 or len(others) > 1 or len({part[:2] for part in parts}) > 1:
            continue
        if any(first.end > second.start for first, second in itertools.pairwise(parts)):
            continue
        with graph.inserting_before(node):
            whole = graph.call_function(torch.ops.aten.cat.default, (list(_pieces(graph, parts)), parts[0].dim))
            for other in others:
                whole = graph.call_function(_ADD, (whole, other))
        whole.meta |= {key: value for key, value in node.meta.items() if key == "tensor_meta"}
        node.replace_all_uses_with(whole)
    graph.eliminate_dead_code()


def _is_sum(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is _ADD and not node.kwargs


def _goes_on(node: fx.Node) -> bool:
    """Whether a sum is only a part of a longer one."""
    users = list(node.users)
    return len(users) == 1 and _is_sum(users[0])


def _leaves(node: fx.Node) -> Iterable[Any]:
    """What is summed up; a sum that something else reads, too, is a leaf."""
    for argument in node.args:
        if isinstance(argument, fx.Node) and _is_sum(argument) and len(argument.users) == 1:
            yield from _leaves(argument)
        else:
            yield argument


def _part(leaf: Any) -> _Part | None:
    """What a leaf is the gradient of; None for what is not that of a slice or a row."""
    if not isinstance(leaf, fx.Node) or leaf.target not in (_SLICE, _ROW):
        return None
    arguments: Any = leaf.args
    gradient, sizes, dim, *where = arguments
    sizes, dim = tuple(sizes), dim % len(sizes)
    if leaf.target is _ROW:
        start = where[0] % sizes[dim]
        return _Part(sizes, dim, start, start + 1, gradient, True)
    start, end, step = slice(*where).indices(sizes[dim])
    return _Part(sizes, dim, start, end, gradient, False) if step == 1 and end > start else None


def _pieces(graph: fx.Graph, parts: list[_Part]) -> Iterable[fx.Node]:
    """The gradients in their order, with zeros where nothing stands."""
    sizes, dim, at = parts[0].sizes, parts[0].dim, 0
    for start, end, gradient, row in [*(part[2:] for part in parts), (sizes[dim], sizes[dim], None, False)]:
        if start > at:
            shape = [*sizes[:dim], start - at, *sizes[dim + 1 :]]
            yield graph.call_function(torch.ops.aten.new_zeros.default, (parts[0].gradient, shape))
        if gradient is not None:
            yield graph.call_function(torch.ops.aten.unsqueeze.default, (gradient, dim)) if row else gradient
        at = end
