"""What a step computes from the data alone is computed once, before the steps.

Densities have terms of the data alone: ln y! of every count in a Poisson regression, the coefficients of a binomial, the
normalising constant of a prior. Written as the model is, a step computes them anew, and they may cost more than the rest of it.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from .broadcasts import COSTLY
from .capture import Graph
from .memory import is_view, written

#: Operations that are worth a tensor in memory, beside reductions and costly elementwise functions.
_PRODUCTS = {
    "mm",
    "mv",
    "bmm",
    "addmm",
    "dot",
    "convolution",
    "linalg_cholesky_ex",
    "linalg_solve_triangular",
    "linalg_inv_ex",
    "_linalg_det",
}
#: Each tensor that is kept has at most as many numbers as the largest fixed input, or so many, and all of them this many times that.
_FEW, _TOGETHER = 1024, 4


def hoist(graph: Graph, fixed: Collection[int]) -> Graph:
    """The graph with what depends on fixed inputs alone turned into inputs.

    Args:
        fixed: ids of the inputs that no step changes.

    Returns:
        A graph that updates the same tensors and returns the same; `graph` itself where there is nothing to gain.
    """
    nodes = list(graph.module.graph.nodes)
    changed = written(graph.module.graph)
    inputs = {
        n: t
        for n, t in zip((n for n in nodes if n.op == "placeholder"), graph.inputs, strict=True)
        if id(t) in fixed and n not in changed
    }
    constant = set(inputs)
    costly: set[fx.Node] = set()
    for node in nodes:
        if node.op == "call_function" and node not in changed and _pure(node) and constant.issuperset(node.all_input_nodes):
            constant.add(node)
            if _costly(node) or not costly.isdisjoint(node.all_input_nodes):
                costly.add(node)
    most = max([_FEW, *(t.numel() for t in inputs.values())])
    room = _TOGETHER * most
    kept = []
    for node in reversed(nodes):  # what a node hands to the steps is clear once its users are
        if node in constant and any(user not in constant for user in node.users):
            meta = node.meta.get("tensor_meta")
            size = meta.shape.numel() if hasattr(meta, "shape") else most + 1
            # A view is a way of reading: kept is what it reads, as it lies in memory.
            if node not in costly or is_view(node) or size > min(most, room):
                constant.remove(node)
            else:
                kept.append(node)
                room -= size
    return _with_inputs(graph, dict(zip(kept, _values(kept, inputs), strict=True))) if kept else graph


def _pure(node: fx.Node) -> bool:
    """Whether an operation gives the same on the same operands."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    name = target._schema.name
    # Batch norm in training writes its running statistics without saying so.
    unsaid = "empty" in name or ("batch_norm" in name and any(argument is True for argument in node.args))
    return not (unsaid or target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags)


def _costly(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.removeprefix("aten::")
    return name in COSTLY or name in _PRODUCTS or torch.Tag.reduction in target.tags


def _values(wanted: list[fx.Node], inputs: dict[fx.Node, Tensor]) -> list[Tensor]:
    """The values of some nodes; no other is held longer than it is needed."""
    needed: set[fx.Node] = set()
    todo = list(wanted)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [] if node in inputs else node.all_input_nodes
    left = {n: sum(user in needed for user in n.users) + wanted.count(n) for n in needed}
    values: dict[fx.Node, Any] = dict(inputs)
    with torch.no_grad():
        for node in (n for n in wanted[0].graph.nodes if n in needed and n not in inputs):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = node.target(*args, **kwargs)
            for n in node.all_input_nodes:
                left[n] -= 1
                if not left[n]:
                    values.pop(n)
    return [values[n] for n in wanted]


def _with_inputs(graph: Graph, values: dict[fx.Node, Tensor]) -> Graph:
    """The graph with these nodes as inputs."""
    from torch.fx.passes.shape_prop import _extract_tensor_metadata

    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            env[node] = new.node_copy(node)
    given = list(values.values())
    for k, (node, value) in enumerate(zip(values, given, strict=True)):
        env[node] = new.placeholder(f"constant_{k}")
        env[node].meta["tensor_meta"] = _extract_tensor_metadata(value)
    for node in graph.module.graph.nodes:
        if node not in env:
            env[node] = new.node_copy(node, lambda n: env[n])
    new.eliminate_dead_code()
    module = fx.GraphModule(torch.nn.Module(), new)
    kinds = [(str(t.dtype), tuple(t.shape), tuple(t.stride()), str(t.device)) for t in given]
    key = hashlib.sha256(f"{graph.key}{module.code}{kinds}".encode()).hexdigest()
    return Graph(module, (*graph.inputs, *given), key)
