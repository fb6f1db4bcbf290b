"""What a model and a guide can reach in Python: attributes, closures, globals, and what these hold in turn.

Followed is what belongs to the user: modules, functions with the globals that they mention, classes, objects and containers of any
depth. Torch, Pyro, NumPy and this package keep nothing for a model, so their objects are not entered; other libraries' objects are
seen as a whole (`contents.pickled`).
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import gc
import io
import logging
import os
import sys
import types
import warnings
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from .contents import GENERATORS, is_buffer, is_iterator, is_plain
from .places import is_library

#: Objects that are looked at, numbers and texts not counted.
MOST = 300_000

_HOOKS = tuple(key for key, value in vars(nn.Module()).items() if key.endswith("_hooks") and isinstance(value, dict))
#: What modules keep of themselves.
MODULE_INTERNALS = frozenset(vars(nn.Module())) | {"_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples"}
#: Packages whose objects keep nothing of a model's that matters here, or, as tensors, are looked at in ways of their own.
_CLOSED = frozenset({"torch", "pyro", "bayeszoo", "numpy"})
CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)
#: Of a logger: all other loggers, and where it writes to.
_OF_ALL_LOGGERS = frozenset({"manager", "parent", "handlers", "_cache"})
_ABSENT: Any = object()


class Child(NamedTuple):
    """What an object holds: under which label, how a message calls it, and what it is."""

    label: Hashable
    name: str
    value: Any


class Owners:
    """Whose a class or a function is.

    Args:
        parts: model and guide; the packages that they come from are the user's, installed or not.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        modules = [getattr(_function_of(part), "__module__", None) or type(part).__module__ for part in parts]
        self.packages = {str(module).partition(".")[0] for module in modules} - _CLOSED - sys.stdlib_module_names

    def foreign(self, kind: type) -> bool:
        """Whether a class is a library's."""
        if kind.__module__ == "__main__" or kind.__module__.partition(".")[0] in self.packages:
            return False
        module = sys.modules.get(kind.__module__)
        return module is not None and self.foreign_module(module)  # else of code that was run without being imported

    def foreign_module(self, module: types.ModuleType) -> bool:
        """Whether a module is a library's."""
        if module.__name__.partition(".")[0] in self.packages:
            return False
        file = getattr(module, "__file__", None)
        if file is None:
            return module.__name__ in sys.builtin_module_names or module.__name__ in sys.stdlib_module_names
        return is_library(file)

    def of_another_library(self, kind: type) -> bool:
        """Whether a class is neither the user's, nor Python's, nor one whose objects are not looked at."""
        top = kind.__module__.partition(".")[0]
        return top not in sys.stdlib_module_names and top not in _CLOSED and self.foreign(kind)

    def foreign_function(self, function: types.FunctionType) -> bool:
        """Whether a function is a library's."""
        if str(function.__globals__.get("__name__")).partition(".")[0] in self.packages:
            return False
        file = function.__code__.co_filename
        return is_library(file) and not file.startswith("<")


def children(value: Any, name: str, owners: Owners) -> Iterator[Child]:
    """What one object holds and a step may reach; numbers and texts of objects and containers included."""
    kind = type(value)
    if issubclass(kind, Tensor):
        yield from _attributes(name, {k: v for k, v in vars(value).items() if not isinstance(v, weakref.ref)})
    elif issubclass(kind, nn.Module):
        yield from _of_module(value, name)
        yield Child("class", kind.__name__, kind)
    elif issubclass(kind, types.FunctionType):
        yield from _of_function(value, name, owners)
    elif issubclass(kind, (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)):
        if not isinstance(value.__self__, (types.ModuleType, type, type(None))):
            yield Child("self", name, value.__self__)
        if kind is types.MethodType:
            yield Child("func", name, value.__func__)
    elif issubclass(kind, functools.partial):
        yield Child("func", name, value.func)
        yield from _attributes(name, {"args": value.args, "keywords": value.keywords, **vars(value)})
    elif issubclass(kind, CONTAINERS):
        yield from items(value, name)
        if not owners.foreign(kind):  # a class of the user's, with attributes of its own
            yield from _of_object(value, name, owners)
        elif kind is collections.defaultdict:
            yield Child("default_factory", name, value.default_factory)
    elif issubclass(kind, types.MappingProxyType):
        yield Child("mapping", name, dict(value))
    elif issubclass(kind, np.ndarray):
        if value.dtype == object:
            yield Child("items", name, value.ravel().tolist())
    elif issubclass(kind, (GENERATORS, io.IOBase)) or is_buffer(value):
        return
    elif issubclass(kind, type):
        yield from _of_class(value, owners)
    elif issubclass(kind, types.ModuleType):
        if not owners.foreign_module(value):
            yield from _attributes(name, {k: v for k, v in vars(value).items() if not k.startswith("__")})
    elif issubclass(kind, weakref.ref):
        yield Child("held", name, value())
    elif kind in weakref.ProxyTypes:
        yield Child("held", name, value.__repr__.__self__)
    elif issubclass(kind, contextvars.ContextVar):
        yield Child("held", name, value.get(None))
    elif issubclass(kind, types.GeneratorType):
        yield from _parts(value, name)  # its variables, and the iterators of its loops
    elif is_iterator(value):
        yield from _of_iterator(value, name)
    elif not owners.foreign(kind):
        yield from _of_object(value, name, owners)
    elif kind.__module__.partition(".")[0] in sys.stdlib_module_names and not issubclass(
        kind, (types.CodeType, types.FrameType)
    ):
        yield from _of_library(value, name, owners)


def items(value: Any, name: str) -> Iterator[Child]:
    """The objects in a container, whatever methods of its own a class of the user's gives it; its numbers and texts are its content."""
    if isinstance(value, dict):
        for k, (key, item) in enumerate(dict.items(value)):
            if is_plain(key) and is_plain(item):
                continue
            label = key if is_plain(key) else f"{type(key).__name__} {k}"
            inner = f"{name}.{key}" if isinstance(key, str) else f"{name}[{label}]"
            yield Child(("item", label), inner, item)
            yield Child(("key", label), inner, key)
        return
    base = next(kind for kind in CONTAINERS if isinstance(value, kind))
    for k, item in enumerate(base.__iter__(value)):
        if not is_plain(item):
            yield Child(("item", k), f"{name}[{k}]", item)


def _attributes(name: str, values: dict[str, Any]) -> Iterator[Child]:
    for key, item in values.items():
        yield Child(key, f"{name}.{key}".lstrip("."), item)


def _of_module(module: nn.Module, name: str) -> Iterator[Child]:
    own = {k: v for k, v in vars(module).items() if k not in MODULE_INTERNALS and not k.startswith("__")}
    yield from _attributes(name, own | module._buffers | module._parameters | module._modules)
    for hooks in _HOOKS:
        for k, hook in enumerate(vars(module).get(hooks, {}).values()):
            yield Child((hooks, k), f"{name}.{hooks.strip('_')}".lstrip("."), hook)


def _of_function(function: types.FunctionType, name: str, owners: Owners) -> Iterator[Child]:
    for namespace, key, shown in mentioned(function, owners):
        yield Child(("variable", shown), shown, namespace[key])
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield Child(("variable", key), key, cell.cell_contents)
    if "globals" in _names(function.__code__) and not owners.foreign_function(function):
        yield Child("globals()", "globals()", function.__globals__)
    defaults = dict(enumerate(function.__defaults__ or ())) | dict(function.__kwdefaults__ or {})
    for place, item in defaults.items():
        yield Child(("default", place), f"{name}.{place}".lstrip("."), item)
    yield from _attributes(name, vars(function))


def mentioned(function: types.FunctionType, owners: Owners) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The globals, and modules imported inside, that a function of the user's names: the namespace, the name there, and as shown."""
    if owners.foreign_function(function):
        return
    names, places = _names(function.__code__), function.__globals__
    for key in sorted(names):
        if key in places:
            yield places, key, key
        elif key in sys.modules:
            yield sys.modules, key, key
    if "environ" in names and any(item is os for item in places.values()):
        yield vars(os), "environ", "os.environ"


def _of_class(value: type, owners: Owners) -> Iterator[Child]:
    """Methods, for what they reach, and what the class itself holds."""
    for kind in (*value.__mro__, type(value)):
        if owners.foreign(kind):
            continue
        for key, item in dict(vars(kind)).items():
            name = f"{kind.__name__}.{key}"
            if isinstance(item, (staticmethod, classmethod)):
                item = item.__func__
            for part in (item.fget, item.fset) if isinstance(item, property) else (getattr(item, "func", None), item):
                if isinstance(part, types.FunctionType):
                    yield Child((kind, key, part is item), name, part)
            if not key.startswith("__") and key != "_abc_impl" and not isinstance(item, (types.FunctionType, property)):
                yield Child((kind, key), name, item)


def _of_object(value: Any, name: str, owners: Owners) -> Iterator[Child]:
    yield from _attributes(name, dict(dictionary(value)))
    for slot in slots(value):
        found = getattr(value, slot, _ABSENT)
        if found is not _ABSENT:
            yield Child(slot, f"{name}.{slot}".lstrip("."), found)
    yield Child("class", type(value).__name__, type(value))


def _of_library(value: Any, name: str, owners: Owners) -> Iterator[Child]:
    """Holders of Python's own library: namespaces, queues, loggers, cached functions, iterators."""
    held = dict(dictionary(value))
    if isinstance(value, logging.Logger):
        held = {k: v for k, v in held.items() if k not in _OF_ALL_LOGGERS}
    yield from _attributes(name, held)
    for slot in slots(value):
        found = getattr(value, slot, _ABSENT)
        if found is not _ABSENT:
            yield Child(slot, f"{name}.{slot}".lstrip("."), found)
    if not held or isinstance(value, functools._lru_cache_wrapper):
        yield from _parts(value, name)


def _parts(value: Any, name: str) -> Iterator[Child]:
    """What an object of Python's holds, without names."""
    parts = [
        part
        for part in gc.get_referents(value)
        if not isinstance(part, (type, types.ModuleType, types.CodeType, types.FrameType))
    ]
    for k, part in enumerate(parts):
        yield Child(("part", k), name, part)


def _of_iterator(value: Any, name: str) -> Iterator[Child]:
    """What one of Python's iterators goes through, and where it stands."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = value.__reduce__()[1:]
    except Exception:
        yield from _parts(value, name)
        return
    for k, part in enumerate(parts):
        yield Child(("part", k), name, part)


def dictionary(value: Any) -> dict[str, Any]:
    """The attributes of an object, whatever its class makes of asking for them."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


def slots(value: Any) -> list[str]:
    """The names of an object's attributes that no dictionary holds."""
    found = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = {slot for some in found for slot in ((some,) if isinstance(some, str) else some)}
    return sorted(names - {"__dict__", "__weakref__"})


@functools.lru_cache(4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """Names of globals and attributes that code mentions, inner functions included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _function_of(part: Any) -> Any:
    """The function that a partial or a bound method calls."""
    while isinstance(part, (functools.partial, types.MethodType)):
        part = part.func if isinstance(part, functools.partial) else part.__func__
    return part
