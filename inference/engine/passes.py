"""What Inductor does badly on a CPU, rewritten in the captured graph.

Operators of our own replace parts that Inductor would inline into slow loops, or hand to a slower library: large
matrix products in single precision (with 512-bit vectors oneDNN's are twice as fast as MKL's where the processor is not Intel's),
products of a matrix and a vector, and the gathering of a batch's rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from . import products, slices

#: A matrix product of fewer multiplications than this is left alone.
LARGE = 1_000_000

#: A matrix of so many numbers times a vector is worth a call where the products are our own; Inductor sums row by row.
SWEEP = 2_000

#: A product of at least two and at most so many columns is computed as its transpose, and so is one that is read as that alone.
THIN = 8

_library = torch.library.Library("bayeszoo", "DEF")
_library.define("matmul(Tensor a, Tensor b) -> Tensor")
_library.define("rows(Tensor x, Tensor index) -> Tensor")


def onednn_leads() -> bool:
    """Whether oneDNN's products are faster than BLAS's: not on AMD's processors with 256-bit vectors, by a tenth."""
    return products.vectors() != "AVX2"


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """(m, k) times (k, n)."""
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available() and onednn_leads():
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
    slices.rewrite(graph)
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
    if node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs:
        product = _product(graph, *node.args[-2:], turned=_read_as_transpose(node))
        if product is None or node.target is aten.mm.default:
            return product
        return graph.call_function(aten.add.Tensor, (product, node.args[0]))
    if node.target is aten.mv.default:
        a = _meta(node.args[0])
        large = a is not None and a.shape.numel() >= LARGE
        if a is None or a.dtype != torch.float32 or not (large or (a.shape.numel() >= SWEEP and products.vectors())):
            return None
        column = graph.call_function(aten.unsqueeze.default, (node.args[1], 1))
        product = graph.call_function(ours.matmul.default if large else aten.mm.default, (node.args[0], column))
        return graph.call_function(aten.squeeze.dim, (product, 1))
    if node.target is aten.index.Tensor and isinstance(node.args[1], (list, tuple)) and len(node.args[1]) == 1:
        table, rows = node.args[0], node.args[1][0]
        if not (isinstance(table, fx.Node) and isinstance(rows, fx.Node) and table.op == rows.op == "placeholder"):
            return None  # an index that the step computes might be out of range, which nobody would notice
        x, index = _meta(table), _meta(rows)
        if x is None or index is None or index.dtype != torch.int64 or len(index.shape) != 1:
            return None
        if tuple(x.stride) != _contiguous(x.shape):
            return None
        return graph.call_function(ours.rows.default, (table, rows))
    return None


def _read_as_transpose(node: fx.Node, turned: bool = False) -> bool:
    """Whether everything that reads a matrix reads its transpose: the columns are particles, say, with a sum for each."""
    return bool(node.users) and all(_read_as_transpose(user, not turned) if _swaps(user) else turned for user in node.users)


def _swaps(node: fx.Node) -> bool:
    """Whether a node is the transpose of a matrix."""
    aten = torch.ops.aten
    swapped = {aten.t.default: (), aten.permute.default: ([1, 0],), aten.transpose.int: (0, 1)}
    return node.target in swapped and tuple(node.args[1:]) == swapped[node.target]


def _product(graph: fx.Graph, first: Any, second: Any, *, turned: bool) -> fx.Node | None:
    """(m, k) times (k, n), `turned` where the transpose is wanted; None where Inductor's own call is as good."""
    aten, a, b = torch.ops.aten, _meta(first), _meta(second)
    if a is None or b is None:
        return None
    (m, k), n = a.shape, b.shape[1]
    large = a.dtype == torch.float32 and m * k * n >= LARGE
    thin = n > 1 and (turned or (n <= THIN and m >= 8 * n))
    if not large and not thin:
        return None
    if thin:  # what follows takes vectors of numbers that lie side by side: the transpose has more of them
        first, second = (graph.call_function(aten.t.default, (matrix,)) for matrix in (second, first))
    product = graph.call_function(torch.ops.bayeszoo.matmul.default if large else aten.mm.default, (first, second))
    if not thin:
        return product
    rows = graph.call_function(aten.t.default, (product,))
    # What was recorded behind the product counts on rows; inside a loop the copy is only another order of reading.
    return graph.call_function(aten.clone.default, (rows,), {"memory_format": torch.contiguous_format})


def _meta(node: Any) -> Any:
    return node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None


def _contiguous(shape: Any) -> tuple[int, ...]:
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))
