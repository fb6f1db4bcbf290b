"""Elementary functions cheaper than a library's, in a functional graph on its way to Inductor.

Inductor calls a library (Sleef) for each vector of numbers. In single precision the logarithm of 1 + t for t from 0 to 1, which is
what softplus and log-sigmoid come down to, and the hyperbolic tangent are quotients of polynomials inside the loop that they stand in, and
a sigmoid takes the exponential that stands beside it. The logarithm of a mask, Pyro's density of a fixed value, is a choice
between 0 and minus infinity.
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

#: tanh x = x P(x^2) / Q(x^2) up to TANH_ENDS, what that is at TANH_ENDS from there, and 1 from TANH_ONE on, as torch has it: coefficients from the
#: constant on, of the least largest relative error (1.1e-8), found by weighted least squares (Lawson's iteration). All are positive, so nothing cancels.
TANH_P = (1.0, 0.134195849, 0.00354162231, 2.13798139e-05, 1.44578181e-08)
TANH_Q = (1.0, 0.467529088, 0.0260514617, 0.000336143363, 8.2199665e-07)
TANH_ENDS, TANH_MOST, TANH_ONE = 8.4, 1 - 2**-24, 9.02

#: log(1 + t) = 2 artanh s = s (2 + s^2 P(s^2)) with s = t / (2 + t), at most 1/3: relative error 4.5e-9, found likewise.
LOG_P = (0.666664183, 0.400215268, 0.280018121, 0.280119509)

#: From here on log(1 + exp x) is x in single precision.
SAME = 17.0

type _Call = Callable[..., Any]


def rewrite(module: fx.GraphModule) -> None:
    """Puts them in, in place; `module` has no operation that changes its arguments but the last copies."""
    graph = module.graph
    #: x -> exp(-|x|), where that has been computed
    shrunk: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        x = _shrinks(node)
        if x is not None:
            shrunk.setdefault(x, node)
        with graph.inserting_before(node):
            new = _replacement(node, shrunk, functools.partial(call, graph))
        if new is not None:
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()


def _replacement(node: fx.Node, shrunk: dict[fx.Node, fx.Node], do: _Call) -> Any:
    """The node in its place, or None."""
    aten = torch.ops.aten
    value = node.meta["val"]
    if value.dtype == torch.float32:
        if node.target is aten.tanh.default:
            return _tanh(node.args[0], do)
        x: Any = node.args[0] if node.args else None
        if node.target is aten.sigmoid.default and x in shrunk:
            return _sigmoid(x, shrunk[x], do)
        if node.target is aten.log1p.default and _shrinks(node.args[0]) is not None:
            return _log1p(node.args[0], do)
        x = _softplus_of(node)
        if x is not None:
            if x not in shrunk:
                shrunk[x] = do(aten.exp.default, do(aten.neg.default, do(aten.abs.default, x)))
            return do(aten.add.Tensor, do(aten.clamp_min.default, x, 0.0), _log1p(shrunk[x], do))
    if node.target is aten.where.self and value.dtype == torch.int64 and node.users:
        return _choice(node, do)
    if node.target is aten.log.default:
        mask = _mask(node.args[0])
        if mask is None:
            return None
        return do(aten.where.self, mask, _number(0.0, value, do), _number(-math.inf, value, do))
    return None


def _choice(node: fx.Node, do: _Call) -> Any:
    """A choice between two whole numbers as one in single precision, where it meets nothing else: vectors hold twice as many."""
    aten = torch.ops.aten
    mask, *numbers = node.args
    constants = [n.args[1] for n in numbers if isinstance(n, fx.Node) and n.target is aten.full.default and not n.args[0]]
    values = [v for v in constants if isinstance(v, int) and abs(v) <= 2**24]
    if len(values) < 2:
        return None
    for user in node.users:
        others = [a for a in user.args if a is not node]
        if user.target not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor) or user.kwargs or len(others) != 1:
            return None
        if not isinstance(others[0], fx.Node) or user.meta["val"].dtype != torch.float32:
            return None
    like = next(iter(node.users)).meta["val"]
    return do(aten.where.self, mask, *(_number(float(v), like, do) for v in values))


def _operand(node: Any, target: Any) -> Any:
    """What a function is applied to, if the node is that function."""
    return node.args[0] if isinstance(node, fx.Node) and node.target is target else None


def _shrinks(node: Any) -> Any:
    """x, if the node is exp(-|x|)."""
    aten = torch.ops.aten
    return _operand(_operand(_operand(node, aten.exp.default), aten.neg.default), aten.abs.default)


def _softplus_of(node: fx.Node) -> Any:
    """x, if the node is softplus as torch computes it: x where that is large, otherwise log(1 + exp x)."""
    aten = torch.ops.aten
    if node.target is not aten.where.self:
        return None
    large, x, small = node.args
    if not isinstance(x, fx.Node) or _operand(large, aten.gt.Scalar) is not x or large.args[1] < SAME:  # type: ignore[union-attr,operator]
        return None
    return x if _operand(_operand(small, aten.log1p.default), aten.exp.default) is x else None


def _mask(node: Any) -> Any:
    """The mask, if the node is a mask's numbers 0 and 1."""
    targets = (torch.ops.prims.convert_element_type.default, torch.ops.aten._to_copy.default)
    source = node.args[0] if isinstance(node, fx.Node) and node.target in targets else None
    return source if isinstance(source, fx.Node) and source.meta["val"].dtype == torch.bool else None


def _number(x: float, like: torch.Tensor, do: _Call) -> Any:
    with detect_fake_mode(like) or contextlib.nullcontext():
        return do(torch.ops.aten.full.default, [], x, dtype=like.dtype, device=like.device)


def _polynomial(coefficients: tuple[float, ...], x: Any, do: _Call) -> Any:
    value: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        value = do(torch.ops.aten.add.Tensor, do(torch.ops.aten.mul.Tensor, x, value), c)
    return value


def _tanh(x: Any, do: _Call) -> Any:
    """tanh x, within 6 units in the last place; 1 - tanh^2 x taken from it has ten times the error that torch's leaves it."""
    aten = torch.ops.aten

    def within(x: Any, most: float) -> Any:
        return do(aten.clamp_max.default, do(aten.clamp_min.default, x, -most), most)

    inner = within(x, TANH_ENDS)
    square = do(aten.mul.Tensor, inner, inner)
    quotient = do(aten.div.Tensor, do(aten.mul.Tensor, inner, _polynomial(TANH_P, square, do)), _polynomial(TANH_Q, square, do))
    # Rounding may leave it at 1 too early, where a user may take the logarithm of 1 - y^2; and 1 is what has no slope.
    one = do(aten.gt.Scalar, do(aten.abs.default, x), TANH_ONE)
    return do(aten.where.self, one, within(x, 1.0), within(quotient, TANH_MOST))


def _log1p(t: Any, do: _Call) -> Any:
    """log(1 + t) for t from 0 to 1, within 3 units in the last place."""
    aten = torch.ops.aten
    s = do(aten.div.Tensor, t, do(aten.add.Tensor, t, 2.0))
    square = do(aten.mul.Tensor, s, s)
    inner = do(aten.mul.Tensor, square, _polynomial(LOG_P, square, do))
    return do(aten.mul.Tensor, s, do(aten.add.Tensor, inner, 2.0))


def _sigmoid(x: Any, t: Any, do: _Call) -> Any:
    """1 / (1 + exp(-x)) from t = exp(-|x|)."""
    aten = torch.ops.aten
    above = do(aten.where.self, do(aten.ge.Scalar, x, 0.0), _number(1.0, t.meta["val"], do), t)
    return do(aten.div.Tensor, above, do(aten.add.Tensor, t, 1.0))
