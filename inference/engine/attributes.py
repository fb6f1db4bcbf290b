"""What a model and a guide keep in Python between steps, where a graph does not see it change.

A graph holds the numbers that it found in attributes, closures and globals, and the tensors that it read. A step that counts in one of
them, or that puts another tensor in a buffer's place instead of updating it, would leave the graph with what was there first.
"""

from __future__ import annotations

import array
import collections
import contextlib
import functools
import itertools
import random
import sys
import threading
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
_DEPTH = 8
#: Numbers whose values are put back: of one tensor or array, and of all.
_KEPT_ELEMENTS, _KEPT_IN_ALL = 1_000_000, 16_000_000
#: NumPy arrays of more numbers are not compared.
_COMPARED = 10_000

_PLAIN = (bool, int, float, str, bytes, complex, np.generic)
_BYTES = (bytearray, array.array)
#: Of a library, and yet nothing but what a user put into them.
_HOLDERS = (
    types.SimpleNamespace,
    collections.UserDict,
    collections.UserList,
    collections.UserString,
    collections.ChainMap,
    threading.local,
)
#: Where a value is kept: the object that holds it, and its name there.
_Key = tuple[int, str]


class Attributes:
    """What stands in the attributes, closures and globals that a model and a guide reach through code of the user's.

    Args:
        parts: model and guide.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.walk = _Walk(parts)
        self.contents = {key: _content(value) for key, (_, value) in self.walk.values.items()}

    def changed(self) -> str:
        """The name of one that can be compared and holds something else by now; empty if none does."""
        now = Attributes(self.parts)
        whole = self.walk.left > 0 and now.walk.left > 0
        for key, content in now.contents.items():
            known = key in self.contents
            if content is not None and (known or whole) and not (known and self.contents[key] == content):
                return now.walk.values[key][0]
        return ""

    def replaced(self, read: Iterable[Tensor]) -> str:
        """The name of one that held a tensor that was read, and holds another by now; empty if none does."""
        now, was_read = _Walk(self.parts).values, {id(t) for t in read}
        for key, (name, before) in self.walk.values.items():
            if isinstance(before, Tensor) and id(before) in was_read and (key not in now or now[key][1] is not before):
                return name
        return ""


@contextlib.contextmanager
def kept_attributes(parts: Sequence[Any]) -> Iterator[None]:
    """Puts everything back that a model and a guide keep in Python, as if the steps inside had not been run."""
    walk = _Walk(parts)
    values = _Values()
    for _, value in walk.values.values():
        values.keep(value)
    try:
        yield
    finally:
        for put_back in [*walk.undo, *values.undo]:
            with contextlib.suppress(Exception):  # what cannot be written to, a frozen dictionary say, has not changed
                put_back()


class _Walk:
    """Every value by the place where it is kept, and what puts the places back."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.values: dict[_Key, tuple[str, Any]] = {}
        self.undo: list[Callable[[], None]] = []
        self.seen: set[int] = set()
        self.classes: set[type] = set()
        self.held: list[Any] = []  # so that no two places of one walk share an id
        self.left = _MOST
        for k, part in enumerate(parts):
            self.visit((0, str(k)), "", part, 0)

    def visit(self, key: _Key, name: str, value: Any, depth: int) -> None:
        """Notes one value and goes on to what it holds."""
        if value is None or isinstance(value, (*_PLAIN, *_BYTES, Tensor)):
            self.values[key] = (name, value)
            if isinstance(value, Tensor) and depth <= _DEPTH:
                self._each(name, value, {k: v for k, v in vars(value).items() if isinstance(v, _PLAIN)}, depth + 1)
            return
        if depth > _DEPTH or id(value) in self.seen or self.left <= 0:
            return
        self.left -= 1
        self.seen.add(id(value))
        self.held.append(value)
        with contextlib.suppress(Exception):  # an object that cannot be looked at; replays are left
            self._enter(key, name, value, depth + 1)

    def _enter(self, key: _Key, name: str, value: Any, depth: int) -> None:
        if isinstance(value, nn.Module):
            self._module(name, value, depth)
        elif isinstance(value, types.FunctionType):
            self._function(name, value, depth)
        elif isinstance(value, types.MethodType):
            self.visit((id(value), "self"), name, value.__self__, depth)
            self.visit((id(value.__func__), "func"), name, value.__func__, depth)
        elif isinstance(value, functools.partial):
            self.visit((id(value), "func"), name, value.func, depth)
            self._each(name, value, {"args": value.args, "keywords": value.keywords}, depth)
        elif isinstance(value, (list, tuple, set, frozenset, dict, collections.deque)):
            self._container(key, name, value, depth)
            if not _is_foreign(type(value)):  # a class of the user's, with attributes of its own
                self._object(name, value, depth)
        elif isinstance(value, types.MappingProxyType):
            self._each(name, value, dict(value), depth)
        elif isinstance(value, (np.random.Generator, np.random.RandomState, random.Random, itertools.count, np.ndarray)):
            self.values[key] = (name, value)
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, _HOLDERS) or not _is_foreign(type(value)):
            self._object(name, value, depth)

    def _object(self, name: str, value: Any, depth: int) -> None:
        if hasattr(value, "__dict__"):
            self._mapping(vars(value))
            self._each(name, value, dict(vars(value)), depth)
        for slot in {s for kind in type(value).__mro__ for s in _slots_of(kind)}:
            if hasattr(value, slot):
                found = getattr(value, slot)
                self.undo.append(functools.partial(setattr, value, slot, found))
                self.visit((id(value), slot), f"{name}.{slot}".lstrip("."), found, depth)
        self._class(type(value), depth)

    def _each(self, name: str, owner: Any, values: dict[Any, Any], depth: int) -> None:
        for key, item in itertools.islice(values.items(), _MOST_ITEMS):
            inner = f"{name}.{key}".lstrip(".") if isinstance(key, str) else f"{name}[{_label(key)}]"
            self.visit((id(owner), inner), inner, item, depth)

    def _module(self, name: str, value: nn.Module, depth: int) -> None:
        for path, module in value.named_modules():
            self.seen.add(id(module))
            self.left -= 1
            own = {k: v for k, v in vars(module).items() if k not in _MODULE_INTERNALS}
            buffers = dict(module._buffers.items())
            self._mapping(vars(module), _MODULE_INTERNALS)
            self._mapping(module._buffers)
            for key, item in (own | buffers).items():
                if not key.startswith("__"):
                    inner = ".".join(p for p in (name, path, key) if p)
                    self.visit((id(module), key), inner, item, depth)
            self._class(type(module), depth)

    def _function(self, name: str, value: types.FunctionType, depth: int) -> None:
        file = value.__code__.co_filename
        if not is_library(file) or file.startswith("<"):
            names = set(_names(value.__code__))
            for key in names & value.__globals__.keys():
                found = value.__globals__[key]
                if isinstance(found, types.ModuleType):
                    if not is_library(getattr(found, "__file__", None) or "<built in>"):
                        for inner in names & vars(found).keys():
                            self._slot(vars(found), inner)
                            self.visit((id(found), inner), f"{key}.{inner}", vars(found)[inner], depth)
                    continue
                self._slot(value.__globals__, key)
                self.visit((id(value.__globals__), key), key, found, depth)
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                found = cell.cell_contents
                self.undo.append(functools.partial(setattr, cell, "cell_contents", found))
                self.visit((id(cell), key), key, found, depth)
        defaults = dict(enumerate(value.__defaults__ or ())) | dict(value.__kwdefaults__ or {})
        self._each(name, value, defaults, depth)
        self._mapping(vars(value))
        self._each(name, value.__code__, dict(vars(value)), depth)

    def _class(self, value: type, depth: int) -> None:
        """Methods, for what they reach, and what the class itself holds."""
        for kind in value.__mro__:
            if kind in self.classes or _is_foreign(kind):
                continue
            self.classes.add(kind)
            for key, item in dict(vars(kind)).items():
                if isinstance(item, (staticmethod, classmethod)):
                    item = item.__func__
                for function in (item.fget, item.fset) if isinstance(item, property) else (getattr(item, "func", item),):
                    if isinstance(function, types.FunctionType):
                        self.visit((id(kind), key), f"{kind.__name__}.{key}", function, depth)
                if not key.startswith("__") and not isinstance(item, types.FunctionType):
                    if isinstance(item, (*_PLAIN, Tensor)):
                        self.undo.append(functools.partial(_set_again, kind, key, item))
                    self.visit((id(kind), key), f"{kind.__name__}.{key}", item, depth)

    def _container(self, key: _Key, name: str, value: Any, depth: int) -> None:
        self.values[key] = (name, value)
        if isinstance(value, dict):
            self._mapping(value)
            self._each(name, value, {k: v for k, v in value.items() if not isinstance(v, _PLAIN)}, depth)
            return
        if isinstance(value, (list, set, collections.deque)):
            self.undo.append(functools.partial(_refill, value, list(value)))
        for k, item in enumerate(itertools.islice(value, _MOST_ITEMS)):
            if not isinstance(item, _PLAIN):  # those are compared with the container
                self.visit((id(value), str(k)), f"{name}[{k}]", item, depth)

    def _mapping(self, place: MutableMapping[str, Any], leave: frozenset[str] = frozenset()) -> None:
        before = {k: v for k, v in place.items() if k not in leave}

        def put_back() -> None:
            for key in [k for k in place if k not in leave and k not in before]:
                del place[key]
            for key, value in before.items():
                if key not in place or place[key] is not value:
                    place[key] = value

        self.undo.append(put_back)

    def _slot(self, place: MutableMapping[str, Any], key: str) -> None:
        before = place[key]
        self.undo.append(lambda: None if place.get(key) is before else place.__setitem__(key, before))


class _Values:
    """What puts the values of tensors, arrays and generators back where something has written into them."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        self.left = _KEPT_IN_ALL

    def keep(self, value: Any) -> None:
        """Remembers one value."""
        with contextlib.suppress(Exception):  # without values, or of a kind that cannot be copied
            if isinstance(value, Tensor):
                self._tensor(value)
            elif isinstance(value, np.ndarray) and value.size <= self._room():
                self.left -= value.size
                self.undo.append(functools.partial(np.copyto, value, value.copy()))
            elif isinstance(value, _BYTES):
                self.undo.append(functools.partial(_rewrite, value, value[:]))
            elif isinstance(value, np.random.Generator):
                self.undo.append(functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state))
            elif isinstance(value, np.random.RandomState):
                self.undo.append(functools.partial(value.set_state, value.get_state()))
            elif isinstance(value, random.Random):
                self.undo.append(functools.partial(value.setstate, value.getstate()))

    def _room(self) -> int:
        return min(_KEPT_ELEMENTS, self.left)

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.numel() > self._room() or tensor.is_inference():
            return
        self.left -= tensor.numel()
        version, before = tensor._version, tensor.detach().clone()

        def put_back() -> None:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(before)

        self.undo.append(put_back)


def _refill(place: Any, before: Sequence[Any]) -> None:
    now = list(place)
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return
    place.clear()
    (place.update if isinstance(place, set) else place.extend)(before)


def _rewrite(place: bytearray | array.array[Any], before: Any) -> None:
    if place != before:
        place[:] = before


def _set_again(kind: type, key: str, item: Any) -> None:
    if vars(kind).get(key) is not item:
        setattr(kind, key, item)


def _label(key: Any) -> str:
    return str(key) if isinstance(key, _PLAIN) else type(key).__name__


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return tuple(s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__"))


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes that code mentions, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_foreign(kind: type) -> bool:
    """Whether a class is a library's."""
    module = sys.modules.get(kind.__module__)
    if module is None or kind.__module__ == "__main__":
        return False  # of code that was run without being imported
    file = getattr(module, "__file__", None)
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


def _content(value: Any) -> Any:
    """What can be compared of a Python value: numbers and texts, those in a container too, and where generators stand; else None."""
    with contextlib.suppress(Exception):  # a container of the user's that does not let itself be read
        return _readable(value)
    return None


def _readable(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, (np.generic, *_BYTES)):
        return type(value).__name__, value.tobytes() if isinstance(value, np.generic) else bytes(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return len(value), tuple((_label(k), _inner(v)) for k, v in itertools.islice(value.items(), _MOST_ITEMS))
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return len(value), tuple(_inner(item) for item in itertools.islice(value, _MOST_ITEMS))
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.size <= _COMPARED and value.dtype != object else None
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):  # which has no state
        return str(value.getstate())
    if isinstance(value, itertools.count):
        return repr(value)
    return None


def _inner(value: Any) -> Any:
    """The same of a container's item; containers in it are compared by themselves."""
    return _content(value) if isinstance(value, _PLAIN) else type(value).__name__
