"""What many numbers share is computed once, in a functional graph on its way to Inductor.

A distribution whose parameter all observations share is expanded to their shape before its density is computed, and Inductor makes one loop
over the last shape of a chain of elementwise operations. The logarithm of a coin's bias would be taken again for every flip. Here
elementwise operations move in front of the expansion, and costly functions of few numbers are kept in memory before many more
numbers are computed from them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import fx

#: Fewer numbers than this are worth no loop of their own, and so are numbers that serve fewer than `LEAST_FACTOR` others each.
LEAST_NUMBERS, LEAST_FACTOR = 64, 4

#: Functions that cost as much as a dozen sums or more.
COSTLY = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "tanh", "lgamma", "digamma", "polygamma", "erf", "erfc", "erfinv",
    "special_ndtri", "special_log_ndtr", "sin", "cos", "tan", "atan2", "pow",
}  # fmt: skip
_VIEWS = {"view", "reshape", "expand", "unsqueeze", "squeeze", "permute"}

_library = torch.library.Library("bayeszoo", "FRAGMENT")
_library.define("kept(Tensor x) -> Tensor")
_library.impl("kept", torch.clone, "CPU")
_library.impl("kept", torch.clone, "Meta")


@functools.cache
def _register_kept() -> None:
    """Tells Inductor to write the operand to memory."""
    from torch._inductor.lowering import register_lowering

    @register_lowering(torch.ops.bayeszoo.kept.default, type_promotion_kind=None)  # type: ignore[untyped-decorator]
    def kept(x: Any) -> Any:
        x.realize()
        return x


def rewrite(module: fx.GraphModule) -> None:
    """Moves and keeps, in place; `module` has no operation that changes its arguments but the last copies."""
    _narrow(module.graph)
    _keep_costly(module.graph)
    module.graph.lint()
    module.recompile()


def _narrow(graph: fx.Graph) -> None:
    """Elementwise operations on expanded tensors are done before the expansion."""
    #: wide node -> the node that it is an expansion of, of the same rank with ones in the dimensions that are expanded
    narrow: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        shape = _shape(node)
        if shape is None:
            continue
        with graph.inserting_before(node):
            small = _narrowed(graph, node, shape, narrow)
            if small is None:
                continue
            if _name(node) != "expand":
                wide = call(graph, torch.ops.aten.expand.default, small, list(shape))
                node.replace_all_uses_with(wide, delete_user_cb=_reads_by_index)
                _reshape_views(wide)
                narrow[wide] = small
            else:
                narrow[node] = small
    graph.eliminate_dead_code()


def _narrowed(graph: fx.Graph, node: fx.Node, shape: torch.Size, narrow: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """A node of which this one is an expansion by much; None if there is none."""
    if _name(node) == "expand":
        source: Any = node.args[0]
        small_shape = _shape(source)
        if small_shape is None or not _much(small_shape, shape):
            return None
        return _with_rank(graph, source, len(shape))
    if not _elementwise(node) or not any(a in narrow for a in node.all_input_nodes):
        return None
    shapes = [_shape(narrow.get(a, a)) for a in node.all_input_nodes]
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes) or not _much(torch.broadcast_shapes(*known), shape):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: narrow.get(a, a))
    return _with_rank(graph, call(graph, node.target, *args, **kwargs), len(shape))


def _with_rank(graph: fx.Graph, node: fx.Node, rank: int) -> fx.Node:
    shape = list(_shape(node) or ())
    missing = rank - len(shape)
    return call(graph, torch.ops.aten.view.default, node, [1] * missing + shape) if missing else node


def _keep_costly(graph: fx.Graph) -> None:
    """Puts costly functions of few numbers into memory, where many more numbers are computed from each."""
    #: whether a costly function is computed wherever a node is read
    costly: dict[fx.Node, bool] = {}
    for node in list(graph.nodes):
        shape = _shape(node)
        if shape is None or not (_elementwise(node) or _name(node) in _VIEWS):
            continue
        for a in node.all_input_nodes:
            small = _shape(a)
            if costly.get(a) and small is not None and _much(small, shape):
                _register_kept()
                with graph.inserting_after(a):
                    kept = call(graph, torch.ops.bayeszoo.kept.default, a)
                a.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)
                costly[a] = False
        costly[node] = _name(node) in COSTLY or _scattered(node) or any(costly.get(a, False) for a in node.all_input_nodes)


def _scattered(node: fx.Node) -> bool:
    """Whether an operation reads numbers that do not lie side by side, one by one for every vector of them."""
    strides = [
        [step for size, step in zip(a.meta["val"].shape, a.meta["val"].stride(), strict=True) if size > 1 and step > 0]
        for a in node.all_input_nodes
        if isinstance(a.meta.get("val"), torch.Tensor)
    ]
    return _elementwise(node) and any(steps and min(steps) > 1 for steps in strides)


def _reshape_views(node: fx.Node) -> None:
    """Numbers that are repeated have no view of another shape."""
    for user in node.users:
        if _name(user) in _VIEWS:
            if _name(user) == "view":
                user.target = torch.ops.aten.reshape.default
            _reshape_views(user)


def _reads_by_index(user: fx.Node) -> bool:
    """Whether a node becomes part of a loop, in which it does not matter how its operands lie in memory."""
    if _name(user) in _VIEWS:
        return all(_reads_by_index(u) for u in user.users)
    return _elementwise(user) or (isinstance(user.target, torch._ops.OpOverload) and torch.Tag.reduction in user.target.tags)


def _much(small: torch.Size, wide: torch.Size) -> bool:
    return math.prod(wide) >= max(LEAST_NUMBERS, LEAST_FACTOR * math.prod(small))


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call with the shape of its result."""
    node = graph.call_function(target, args, kwargs)
    values = fx.map_arg((args, kwargs), lambda a: a.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    return node


def _name(node: fx.Node) -> str | None:
    target = node.target
    return target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else None


def _elementwise(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags


def _shape(node: Any) -> torch.Size | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, torch.Tensor) else None
