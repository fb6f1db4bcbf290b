"""Elementary functions cheaper than a library's, in a functional graph on its way to Inductor.

Inductor calls a library (Sleef) for each vector of numbers. The hyperbolic tangent in single precision is a quotient of polynomials
inside the loop that it stands in, and the logarithm of a mask, Pyro's density of a fixed value, a choice between 0 and minus infinity. Softplus,
whose logarithm could be a polynomial too, was no faster so.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from .broadcasts import call

#: tanh x = x P(x^2) / Q(x^2) up to TANH_ENDS, and the last number below 1 from there: coefficients from the constant on, of the least largest relative
#: error (1.1e-8), found by weighted least squares (Lawson's iteration). All are positive, so nothing cancels.
TANH_P = (1.0, 0.134195849, 0.00354162231, 2.13798139e-05, 1.44578181e-08)
TANH_Q = (1.0, 0.467529088, 0.0260514617, 0.000336143363, 8.2199665e-07)
TANH_ENDS, TANH_MOST = 8.4, 1 - 2**-24

type _Call = Callable[..., Any]


def rewrite(module: fx.GraphModule) -> None:
    """Puts them in, in place; `module` has no operation that changes its arguments but the last copies."""
    graph = module.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        with graph.inserting_before(node):
            new = _replacement(node, functools.partial(call, graph))
        if new is not None:
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()


def _replacement(node: fx.Node, do: _Call) -> Any:
    """The node in its place, or None."""
    aten = torch.ops.aten
    value = node.meta["val"]
    if node.target is aten.tanh.default and value.dtype == torch.float32:
        return _tanh(node.args[0], do)
    if node.target is aten.log.default:
        mask = _mask(node.args[0])
        if mask is None:
            return None
        with detect_fake_mode(value) or contextlib.nullcontext():
            zero, infinity = (do(aten.full.default, [], x, dtype=value.dtype, device=value.device) for x in (0.0, -math.inf))
        return do(aten.where.self, mask, zero, infinity)
    return None


def _mask(node: Any) -> Any:
    """The mask, if the node is a mask's numbers 0 and 1."""
    targets = (torch.ops.prims.convert_element_type.default, torch.ops.aten._to_copy.default)
    source = node.args[0] if isinstance(node, fx.Node) and node.target in targets else None
    return source if isinstance(source, fx.Node) and source.meta["val"].dtype == torch.bool else None


def _polynomial(coefficients: tuple[float, ...], x: Any, do: _Call) -> Any:
    value: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        value = do(torch.ops.aten.add.Tensor, do(torch.ops.aten.mul.Tensor, x, value), c)
    return value


def _tanh(x: Any, do: _Call) -> Any:
    """tanh x, within 6 units in the last place."""
    aten = torch.ops.aten
    x = do(aten.clamp_max.default, do(aten.clamp_min.default, x, -TANH_ENDS), TANH_ENDS)
    square = do(aten.mul.Tensor, x, x)
    quotient = do(aten.div.Tensor, do(aten.mul.Tensor, x, _polynomial(TANH_P, square, do)), _polynomial(TANH_Q, square, do))
    # Rounding may leave it above 1, and a user may take the logarithm of 1 - y^2: the last number below 1 is the end.
    return do(aten.clamp_max.default, do(aten.clamp_min.default, quotient, -TANH_MOST), TANH_MOST)
