"""What a model and a guide keep in Python between steps, where a graph does not see it change.

A graph holds the numbers that it found in attributes, and the tensors that it read. A step that counts in an attribute, or that
puts another tensor in a buffer's place instead of updating it, would leave the graph with what was there first.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

#: What modules keep of themselves.
_MODULE_INTERNALS = frozenset(vars(nn.Module())) | {"_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples"}


class Attributes:
    """What stands in the attributes and buffers of modules, and in the closures and globals of functions.

    Args:
        parts: model and guide.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        values = dict(_named(parts))
        self.contents = {name: _content(value) for name, value in values.items()}
        self.tensors = {name: tuple(tensors_in(value)) for name, value in values.items()}

    def changed(self) -> str:
        """The name of one that can be compared and holds something else by now; empty if none does."""
        now = Attributes(self.parts).contents
        return next((name for name, content in now.items() if content is not None and self.contents.get(name) != content), "")

    def replaced(self, read: Iterable[Tensor]) -> str:
        """The name of one that holds another tensor by now than one that was read; empty if none does."""
        now, was_read = Attributes(self.parts).tensors, {id(t) for t in read}
        for name, before in self.tensors.items():
            gone = {id(t) for t in before} - {id(t) for t in now.get(name, ())}
            if gone & was_read:
                return name
        return ""


@contextlib.contextmanager
def kept_attributes(parts: Sequence[Any]) -> Iterator[None]:
    """Puts what attributes and buffers of modules refer to back, and the buffers' values."""
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    attributes = [{k: v for k, v in vars(m).items() if k not in _MODULE_INTERNALS} for m in modules]
    buffers = [dict(m._buffers) for m in modules]
    values = [(b, b.detach().clone()) for held in buffers for b in held.values() if b is not None]
    try:
        yield
    finally:
        for module, own, held in zip(modules, attributes, buffers, strict=True):
            for key in [k for k in vars(module) if k not in _MODULE_INTERNALS and k not in own]:
                vars(module).pop(key)
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(held)
        for buffer, value in values:
            buffer.detach().copy_(value)


def tensors_in(tree: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors of a value, in containers too."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)) and depth < 5:
        for item in tree:
            yield from tensors_in(item, depth + 1)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()), depth)


def _named(parts: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for part in parts:
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                own = {
                    name: v for name, v in vars(module).items() if not name.startswith("__") and name not in _MODULE_INTERNALS
                }
                for name, value in (own | module._buffers).items():
                    yield f"{path}.{name}".lstrip("."), value
        function = getattr(part, "__func__", part)
        code, space = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        for name in getattr(code, "co_names", ()):
            yield name, space.get(name)
        for name, cell in zip(getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False):
            with contextlib.suppress(ValueError):
                yield name, cell.cell_contents


def _content(value: Any, depth: int = 0) -> Any:
    """What can be compared of a Python value: numbers and texts, in containers too, and where generators stand; else None."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)) and depth < 3:
        return type(value).__name__, len(value), tuple(_content(item, depth + 1) for item in list(value)[:100])
    if isinstance(value, dict) and depth < 3:
        return len(value), tuple((str(key), _content(item, depth + 1)) for key, item in list(value.items())[:100])
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, itertools.count):
        return repr(value)
    return None
