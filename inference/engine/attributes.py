"""What a model and a guide keep in Python between steps, where a graph does not see it change.

A graph holds the numbers that it found in attributes, closures and globals, and the tensors that it read. A step that counts in one of
them, or that puts another tensor in a buffer's place instead of updating it, would leave the graph with what was there first.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .places import is_library

#: What modules keep of themselves.
_MODULE_INTERNALS = frozenset(vars(nn.Module())) | {"_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples"}
#: Values that are looked at in all, and items of one container.
_MOST, _MOST_ITEMS = 20_000, 100
#: Containers and objects in one another.
_DEPTH = 6
#: Numbers of a tensor whose values are put back.
_KEPT_ELEMENTS = 1_000_000


class Attributes:
    """What stands in the attributes, closures and globals that a model and a guide reach through code of the user's.

    Args:
        parts: model and guide.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        walk = _Walk(parts)
        self.contents = {name: _content(value) for name, value in walk.values.items()}
        self.tensors = {name: value for name, value in walk.values.items() if isinstance(value, Tensor)}

    def changed(self) -> str:
        """The name of one that can be compared and holds something else by now; empty if none does."""
        now = Attributes(self.parts).contents
        return next((name for name, content in now.items() if content is not None and self.contents.get(name) != content), "")

    def replaced(self, read: Iterable[Tensor]) -> str:
        """The name of one that held a tensor that was read, and holds another by now; empty if none does."""
        now, was_read = Attributes(self.parts).tensors, {id(t) for t in read}
        return next((n for n, before in self.tensors.items() if id(before) in was_read and now.get(n) is not before), "")


@contextlib.contextmanager
def kept_attributes(parts: Sequence[Any]) -> Iterator[None]:
    """Puts everything back that a model and a guide keep in Python, as if the steps inside had not been run."""
    walk = _Walk(parts)
    undo = [*walk.undo, *(_values_of(t) for t in walk.values.values() if isinstance(t, Tensor))]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


class _Walk:
    """Every value by its name, and what puts the places back where they are kept."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.values: dict[str, Any] = {}
        self.undo: list[Callable[[], None]] = []
        self.seen: set[int] = set()
        for part in parts:
            self.visit("", part, 0)

    def visit(self, name: str, value: Any, depth: int) -> None:
        """Notes one value and goes on to what it holds."""
        if value is None or isinstance(value, (bool, int, float, str, Tensor)):
            self.values[name] = value
            return
        if depth > _DEPTH or id(value) in self.seen or len(self.seen) > _MOST:
            return
        self.seen.add(id(value))
        if isinstance(value, nn.Module):
            self._module(name, value, depth)
        elif isinstance(value, types.FunctionType):
            self._function(name, value, depth)
        elif isinstance(value, types.MethodType):
            self.visit(name, value.__self__, depth + 1)
            self.visit(name, value.__func__, depth + 1)
        elif isinstance(value, functools.partial):
            self.visit(name, value.func, depth + 1)
            self._each(name, {"args": value.args, "keywords": value.keywords}, depth)
        elif isinstance(value, (list, tuple, set, frozenset, dict)):
            self._container(name, value, depth)
        elif isinstance(value, (np.random.Generator, random.Random, itertools.count)):
            self.values[name] = value
            self._generator(value)
        elif isinstance(value, type):
            self._class(name, value, depth)
        elif not _is_foreign(type(value)) and hasattr(value, "__dict__"):
            self._mapping(vars(value))
            self._each(name, dict(vars(value)), depth)
            self._class(name, type(value), depth)

    def _each(self, name: str, values: Any, depth: int) -> None:
        named = values.items() if isinstance(values, dict) else enumerate(values)
        for key, item in itertools.islice(named, _MOST_ITEMS):
            self.visit(
                f"{name}.{key}".lstrip(".") if isinstance(key, str) else name if key == 0 else f"{name}[{key}]", item, depth + 1
            )

    def _module(self, name: str, value: nn.Module, depth: int) -> None:
        for path, module in value.named_modules():
            self.seen.add(id(module))
            own = {k: v for k, v in vars(module).items() if k not in _MODULE_INTERNALS}
            self._mapping(vars(module), set(_MODULE_INTERNALS))
            self._mapping(module._buffers)
            for key, item in (own | module._buffers).items():
                if not key.startswith("__"):
                    self.visit(f"{name}.{path}.{key}".replace("..", ".").lstrip("."), item, depth + 1)
            self._class(f"{name}.{path}".strip("."), type(module), depth)

    def _function(self, name: str, value: types.FunctionType, depth: int) -> None:
        if not is_library(value.__code__.co_filename) or value.__code__.co_filename.startswith("<"):
            names = set(_names(value.__code__))
            for key in names & value.__globals__.keys():
                found = value.__globals__[key]
                if isinstance(found, types.ModuleType):
                    if not is_library(getattr(found, "__file__", None) or "<built in>"):
                        for inner in names & vars(found).keys():
                            self._slot(vars(found), inner)
                            self.visit(f"{key}.{inner}", vars(found)[inner], depth + 1)
                    continue
                self._slot(value.__globals__, key)
                self.visit(key, found, depth + 1)
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                found = cell.cell_contents
                self.undo.append(functools.partial(setattr, cell, "cell_contents", found))
                self.visit(key, found, depth + 1)
        self._each(name, (value.__defaults__ or ()), depth)
        self._each(name, dict(value.__kwdefaults__ or {}), depth)
        self._mapping(vars(value))
        self._each(name, dict(vars(value)), depth)

    def _class(self, name: str, value: type, depth: int) -> None:
        for kind in value.__mro__:
            if _is_foreign(kind) or (id(kind) in self.seen and kind is not value):
                continue
            self.seen.add(id(kind))
            for key, item in dict(vars(kind)).items():
                if isinstance(item, (staticmethod, classmethod)):
                    item = item.__func__
                if isinstance(item, types.FunctionType):
                    self.visit(f"{kind.__name__}.{key}", item, depth + 1)
                elif not key.startswith("__"):
                    if isinstance(item, (bool, int, float, str, Tensor)):
                        self.undo.append(functools.partial(setattr, kind, key, item))
                    self.visit(f"{name}.{key}".lstrip("."), item, depth + 1)

    def _container(self, name: str, value: Any, depth: int) -> None:
        self.values[name] = value
        if isinstance(value, dict):
            self._mapping(value)
            self._each(name, dict(value), depth)
            return
        if isinstance(value, list):
            self.undo.append(functools.partial(value.__setitem__, slice(None), list(value)))
        elif isinstance(value, set):
            self.undo += [value.clear, functools.partial(value.update, set(value))]
        for k, item in enumerate(itertools.islice(value, _MOST_ITEMS)):
            if not isinstance(item, (bool, int, float, str)):  # those are compared with the container
                self.visit(f"{name}[{k}]", item, depth + 1)

    def _mapping(self, place: MutableMapping[str, Any], leave: set[str] | frozenset[str] = frozenset()) -> None:
        before = {k: v for k, v in place.items() if k not in leave}

        def put_back() -> None:
            for key in [k for k in place if k not in leave and k not in before]:
                del place[key]
            place.update(before)

        self.undo.append(put_back)

    def _slot(self, place: MutableMapping[str, Any], key: str) -> None:
        self.undo.append(functools.partial(place.__setitem__, key, place[key]))

    def _generator(self, value: Any) -> None:
        if isinstance(value, np.random.Generator):
            self.undo.append(functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, random.Random):
            self.undo.append(functools.partial(value.setstate, value.getstate()))


def _values_of(tensor: Tensor) -> Callable[[], None]:
    """What puts a tensor's values back where something has written into it."""
    if tensor.numel() > _KEPT_ELEMENTS or tensor.is_inference():
        return lambda: None
    version, before = tensor._version, tensor.detach().clone()

    def put_back() -> None:
        if tensor._version != version:
            with torch.no_grad():
                tensor.copy_(before)

    return put_back


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes that code mentions, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_foreign(kind: type) -> bool:
    """Whether a class is a library's."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__ == "__main__":
        return False
    return file is None or is_library(file)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors of a value, in containers too."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))


def _content(value: Any, depth: int = 0) -> Any:
    """What can be compared of a Python value: numbers and texts, in containers too, and where generators stand; else None."""
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)) and depth < 3:
        return (
            type(value).__name__,
            len(value),
            tuple(_content(item, depth + 1) for item in itertools.islice(value, _MOST_ITEMS)),
        )
    if isinstance(value, dict) and depth < 3:
        return len(value), tuple(
            (str(key), _content(item, depth + 1)) for key, item in itertools.islice(value.items(), _MOST_ITEMS)
        )
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, itertools.count):
        return repr(value)
    return None
