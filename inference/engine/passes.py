"""What Inductor does badly on a CPU, rewritten in the captured graph.

Three operators of our own replace parts that Inductor would inline into slow loops, or hand to a slower library: large
matrix products in single precision (oneDNN's are twice as fast as MKL's where the processor is not Intel's), products of a
large matrix and a vector, and the gathering of a batch's rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

#: A matrix product of fewer multiplications than this is left alone.
LARGE = 1_000_000

_library = torch.library.Library("bayeszoo", "DEF")
_library.define("matmul(Tensor a, Tensor b) -> Tensor")
_library.define("rows(Tensor x, Tensor index) -> Tensor")


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """(m, k) times (k, n)."""
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        if b.shape[1] == 1 and a.stride(0) == 1:
            # oneDNN wants the long side of a thin product in rows.
            product: Tensor = torch.ops.mkldnn._linear_pointwise(b.t(), a, None, "none", [], "")
            return product.reshape(a.shape[0], 1)
        product = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
        return product
    return a @ b


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` (B,) of x (N, ...)."""
    rows: Tensor = torch.ops.aten.index.Tensor(x, [index])
    return rows


_library.impl("matmul", _matmul, "CPU")
_library.impl("rows", _rows, "CPU")
_library.impl("matmul", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
_library.impl("rows", lambda x, index: x.new_empty(index.shape[0], *x.shape[1:]), "Meta")


def rewrite(module: fx.GraphModule) -> None:
    """Puts the operators in, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        with graph.inserting_before(node):
            new = _replacement(graph, node)
        if new is not None:
            new.meta.update({k: v for k, v in node.meta.items() if k == "tensor_meta"})
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    module.recompile()


def _replacement(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    aten, ours = torch.ops.aten, torch.ops.bayeszoo
    if node.target in (aten.mm.default, aten.mv.default):
        a, b = (_meta(n) for n in node.args)
        if (
            a is None
            or b is None
            or a.dtype != torch.float32
            or a.shape.numel() * (b.shape[1] if len(b.shape) == 2 else 1) < LARGE
        ):
            return None
        if node.target is aten.mm.default:
            return graph.call_function(ours.matmul.default, node.args)
        column = graph.call_function(aten.unsqueeze.default, (node.args[1], 1))
        product = graph.call_function(ours.matmul.default, (node.args[0], column))
        return graph.call_function(aten.squeeze.dim, (product, 1))
    if node.target is aten.addmm.default and not node.kwargs:
        a, b = _meta(node.args[1]), _meta(node.args[2])
        if a is None or b is None or a.dtype != torch.float32 or a.shape.numel() * b.shape[1] < LARGE:
            return None
        product = graph.call_function(ours.matmul.default, node.args[1:])
        return graph.call_function(aten.add.Tensor, (product, node.args[0]))
    if node.target is aten.index.Tensor and isinstance(node.args[1], (list, tuple)) and len(node.args[1]) == 1:
        table, rows = node.args[0], node.args[1][0]
        if not (isinstance(table, fx.Node) and isinstance(rows, fx.Node) and table.op == rows.op == "placeholder"):
            return None  # an index that the step computes might be out of range, which nobody would notice
        x, index = _meta(table), _meta(rows)
        if x is None or index is None or index.dtype != torch.int64 or len(index.shape) != 1 or len(x.shape) < 2:
            return None
        if tuple(x.stride) != _contiguous(x.shape):
            return None
        return graph.call_function(ours.rows.default, (table, rows))
    return None


def _meta(node: Any) -> Any:
    return node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None


def _contiguous(shape: Any) -> tuple[int, ...]:
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))
