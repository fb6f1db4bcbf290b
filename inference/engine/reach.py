"""What a model and a guide can reach in Python: attributes, closures, globals, and what these hold in turn.

Followed is what belongs to the user: modules, functions with the globals that they mention, classes, objects and containers of any
depth. Of torch, Pyro and NumPy only what holds things for a user is entered (handlers, distributions, data loaders, optimisers), of this
package nothing; other libraries' objects are seen as a whole (`contents.pickled`).
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import contextvars
import functools
import gc
import io
import logging
import mmap
import os
import sys
import types
import warnings
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .contents import BUFFERS, GENERATORS, all_plain, by_class, is_iterator, is_plain, pairs
from .places import is_library

#: Objects that are looked at, numbers and texts not counted.
MOST = 100_000

HOOKS = tuple(key for key, value in vars(nn.Module()).items() if key.endswith("_hooks") and isinstance(value, dict))
#: What modules keep of themselves.
MODULE_INTERNALS = (frozenset(vars(nn.Module())) - {"training"}) | {
    "_pyro_name",
    "_pyro_context",
    "_pyro_params",
    "_pyro_samples",
}
#: Packages whose objects are not entered.
_CLOSED = frozenset({"torch", "pyro", "bayeszoo", "numpy"})
#: But for these parts, whose objects hold what a user gave them, or count.
_OPEN = (
    "pyro.poutine",
    "pyro.distributions",
    "pyro.nn",
    "torch.distributions",
    "torch.utils.data",
    "torch.optim",
    "torch.quasirandom",
)
CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)
#: Of a logger: all other loggers, and where it writes to.
_OF_ALL_LOGGERS = frozenset({"manager", "parent", "handlers", "_cache"})

_BUILTINS = frozenset(vars(builtins)) | {"_"}  # which a prompt sets

#: Under which label an object holds another: the name of an attribute, or a kind of place and what is there.
type Label = Hashable
#: What an object holds, and where.
type Held = Iterator[tuple[Label, Any]]


class Owners:
    """Whose a class or a function is.

    Args:
        parts: model and guide; the packages that they come from are the user's, installed or not.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        modules = {module for part in parts for module in _modules_of(part)}
        self.packages = {module.partition(".")[0] for module in modules} - _CLOSED - sys.stdlib_module_names
        self._foreign: dict[type, bool] = {}

    def foreign(self, kind: type) -> bool:
        """Whether a class is a library's."""
        known = self._foreign.get(kind)
        if known is None:
            known = self._foreign[kind] = self._is_foreign(kind)
        return known

    def _is_foreign(self, kind: type) -> bool:
        name = str(kind.__module__)
        if name == "__main__" or name.partition(".")[0] in self.packages:
            return False
        module = sys.modules.get(name)
        return module is not None and self.foreign_module(module)  # else of code that was run without being imported

    def foreign_module(self, module: types.ModuleType) -> bool:
        """Whether a module is a library's."""
        held = dictionary(module)  # a module that is loaded when it is asked is not asked
        name, file = str(held.get("__name__")), held.get("__file__")
        if name.partition(".")[0] in self.packages:
            return False
        if file is None:
            return name in sys.builtin_module_names or name in sys.stdlib_module_names
        return is_library(file)

    def of_another_library(self, kind: type) -> bool:
        """Whether a class is neither the user's, nor Python's, nor one whose objects are not looked at."""
        top = str(kind.__module__).partition(".")[0]
        return top not in sys.stdlib_module_names and top not in _CLOSED and self.foreign(kind)

    def foreign_function(self, function: types.FunctionType) -> bool:
        """Whether a function is a library's."""
        if str(function.__globals__.get("__name__")).partition(".")[0] in self.packages:
            return False
        file = function.__code__.co_filename
        return is_library(file) and not file.startswith("<")


def children(value: Any, owners: Owners) -> Held:
    """What one object holds and a step may reach; numbers and texts too, but those of a container, which are its content."""
    kind: Any = type(value)
    what = _what(kind)
    if what == "container":
        yield from _items(value)
        if not owners.foreign(kind):  # a class of the user's, with attributes of its own
            yield from _of_object(value)
        elif kind is collections.defaultdict:
            yield ("part", 0), value.default_factory
    elif what == "tensor":
        yield from ((key, item) for key, item in vars(value).items() if not isinstance(item, weakref.ref))
        if kind is not Tensor and not owners.foreign(kind):
            yield ("class", kind), kind
    elif what == "module":
        yield from _of_module(value)
        yield ("class", kind), kind
    elif what == "function":
        yield from _of_function(value, owners)
    elif what == "method":
        holder = value.__self__
        if not issubclass(type(holder), (types.ModuleType, types.NoneType)):
            yield ("part", "self"), holder
        if kind is types.MethodType:
            yield ("part", "func"), value.__func__
    elif what == "partial":
        yield from {"args": value.args, "keywords": value.keywords, **vars(value)}.items()
        yield ("part", "func"), value.func
    elif what == "mapping":
        yield ("part", 0), dict(value)
    elif what == "array":
        if value.dtype == object:
            yield ("part", 0), value.ravel().tolist()
        yield from dictionary(value).items()  # the mask of one that has a mask
    elif what == "class":
        yield from _of_class(value, owners)
    elif what == "namespace":
        if not owners.foreign_module(value):
            yield from ((key, item) for key, item in dict(dictionary(value)).items() if not key.startswith("__"))
    elif what == "reference":
        yield ("part", 0), value.__repr__.__self__ if kind in weakref.ProxyTypes else value()
    elif what == "variable":
        yield ("part", 0), value.get(None)
    elif what == "iterator":
        yield from _of_iterator(value)
    elif what == "object":
        if not owners.foreign(kind):
            yield from _of_object(value)
        elif str(kind.__module__).partition(".")[0] in sys.stdlib_module_names:
            yield from _of_library(value)
        elif hasattr(kind, "__next__") or (str(kind.__module__).startswith(_OPEN) and kind.__name__ != "Trace"):
            yield from dict(dictionary(value)).items()


@by_class
def _what(kind: Any) -> str:
    """How objects of a class are entered."""
    named: dict[str, tuple[type, ...]] = {
        "tensor": (Tensor,),
        "module": (nn.Module,),
        "function": (types.FunctionType,),
        "method": (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType),
        "partial": (functools.partial,),
        "container": CONTAINERS,
        "mapping": (types.MappingProxyType,),
        "array": (np.ndarray,),
        "nothing": (*GENERATORS, *BUFFERS, io.IOBase, mmap.mmap, types.CodeType, types.FrameType),
        "class": (type,),
        "namespace": (types.ModuleType,),
        "reference": (weakref.ref, *weakref.ProxyTypes),
        "variable": (contextvars.ContextVar,),
        "iterator": (kind,) if is_iterator(kind) else (),
    }
    return next((name for name, kinds in named.items() if issubclass(kind, kinds)), "object")


def name_of(label: Label, holder: str) -> str:
    """How messages call what `holder` has under a label."""
    if not isinstance(label, tuple) or len(label) < 2:
        return f"{holder}.{label}".lstrip(".")
    place, key = label[:2]
    if place in ("variable", "class"):
        return key.__name__ if isinstance(key, type) else str(key)
    if place in HOOKS:
        return f"{holder}.{place.strip('_')}".lstrip(".")
    if place in ("item", "key"):
        return f"{holder}.{key}" if isinstance(key, str) else f"{holder}[{key}]"
    return f"{holder}.{key}".lstrip(".") if place == "default" else holder


def _items(value: Any) -> Held:
    """The objects in a container, whatever methods of its own a class of the user's gives it."""
    if issubclass(type(value), dict):
        if all_plain(dict.keys(value)) and all_plain(dict.values(value)):
            return
        for k, (key, item) in enumerate(pairs(value)):
            plain = is_plain(key)
            if not (plain and is_plain(item)):
                yield ("item", key) if plain else ("item", k, "of an object"), item
            if not plain:
                yield ("key", k), key
        return
    base = next(kind for kind in CONTAINERS if issubclass(type(value), kind))
    found = list(base.__iter__(value))
    if not all_plain(found):
        yield from ((("item", k), item) for k, item in enumerate(found) if not is_plain(item))


def _of_module(module: nn.Module) -> Held:
    yield from ((k, v) for k, v in vars(module).items() if k not in MODULE_INTERNALS and not k.startswith("__"))
    if isinstance(module, torch.jit.ScriptModule):
        yield from (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False), *module.named_children())
    else:
        yield from (module._buffers | module._parameters | module._modules).items()
    yield from vars(module).get("_pyro_samples", {}).items()  # the priors of a PyroModule's weights
    for hooks in HOOKS:
        yield from (((hooks, k), hook) for k, hook in enumerate(vars(module).get(hooks, {}).values()))


def _of_function(function: types.FunctionType, owners: Owners) -> Held:
    for namespace, key in mentioned(function, owners):
        yield ("variable", "os.environ" if namespace is vars(os) else key), namespace[key]
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield ("variable", key), cell.cell_contents
    if "globals" in _names(function.__code__) and not owners.foreign_function(function):
        yield ("variable", "globals()"), function.__globals__
    defaults = dict(enumerate(function.__defaults__ or ())) | dict(function.__kwdefaults__ or {})
    yield from ((("default", place), item) for place, item in defaults.items())
    yield from vars(function).items()


def mentioned(function: types.FunctionType, owners: Owners) -> Iterator[tuple[dict[str, Any], str]]:
    """The globals, and modules imported inside, that a function of the user's names: the namespace, and the name there."""
    if owners.foreign_function(function):
        return
    names, places = _names(function.__code__), function.__globals__
    for key in sorted(names):
        if key in places:
            yield places, key
        elif key in vars(builtins) and key not in _BUILTINS:  # put there by someone
            yield vars(builtins), key
        else:
            inner = f"{places.get('__package__')}.{key}"
            yield from ((sys.modules, name) for name in (key, inner) if name in sys.modules)
    if "environ" in names and any(places.get(key, sys.modules.get(key)) is os for key in names):
        yield vars(os), "environ"


def _of_class(value: type, owners: Owners) -> Held:
    """Methods, for what they reach, and what the class itself holds."""
    for kind in (*value.__mro__, type(value)):
        if owners.foreign(kind):
            continue
        for key, item in dict(vars(kind)).items():
            if issubclass(type(item), (staticmethod, classmethod)):
                item = item.__func__
            name = f"{kind.__name__}.{key}"
            if issubclass(type(item), property):
                yield from ((("class", name, kind, k), part) for k, part in enumerate((item.fget, item.fset, item.fdel)))
            elif issubclass(type(item), (functools.cached_property, functools.partialmethod)):
                yield ("class", name, kind), item.func
            elif issubclass(type(item), types.FunctionType) or (not key.startswith("__") and key != "_abc_impl"):
                yield ("class", name, kind), item


def _of_object(value: Any) -> Held:
    yield from dict(dictionary(value)).items()
    yield from _in_slots(value)
    yield ("class", type(value)), type(value)


def _in_slots(value: Any) -> Held:
    for slot in slots(type(value)):
        with contextlib.suppress(AttributeError):  # nothing is there
            yield slot.__name__, slot.__get__(value)


def _of_library(value: Any) -> Held:
    """Holders of Python's own library: namespaces, queues, loggers, cached functions."""
    held = dict(dictionary(value))
    if isinstance(value, logging.Logger):
        held = {k: v for k, v in held.items() if k not in _OF_ALL_LOGGERS}
    yield from held.items()
    yield from _in_slots(value)
    if not held or isinstance(value, functools._lru_cache_wrapper):
        yield from _parts(value)


def _of_iterator(value: Any) -> Held:
    """What one of Python's iterators goes through, and where it stands; of a generator, its variables and the iterators of its loops."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = value.__reduce__()[1:]
    except Exception:
        yield from _parts(value)
        return
    yield from ((("part", k), part) for k, part in enumerate(parts))


def _parts(value: Any) -> Held:
    """What an object of Python's holds, without names."""
    kinds = (type, types.ModuleType, types.CodeType, types.FrameType)
    yield from (
        (("part", k), part) for k, part in enumerate(p for p in gc.get_referents(value) if not issubclass(type(p), kinds))
    )


def dictionary(value: Any) -> dict[str, Any]:
    """The attributes of an object, whatever its class makes of asking for them."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


def slots(kind: Any) -> Iterator[Any]:
    """The descriptors of attributes that no dictionary holds."""
    for name in _slot_names(kind):
        yield type.__getattribute__(kind, name)


@by_class
def _slot_names(kind: Any) -> tuple[str, ...]:
    parts = [vars(part) for part in kind.__mro__ if "__slots__" in vars(part)]
    return tuple(name for part in parts for name, item in part.items() if type(item) is types.MemberDescriptorType)


@functools.lru_cache(4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """Names of globals and attributes that code mentions, inner functions included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _modules_of(part: Any, depth: int = 0) -> Iterator[str]:
    """The names of the modules that a model and what it is wrapped around come from."""
    kind: Any = type(part)
    if issubclass(kind, nn.Module):
        yield from {type(module).__module__ for module in part.modules()}
    elif issubclass(kind, functools.partial):
        for held in (part.func, *part.args, *part.keywords.values()) if depth < 4 else ():
            if callable(held):
                yield from _modules_of(held, depth + 1)
    elif issubclass(kind, types.MethodType):
        yield from _modules_of(part.__func__, depth)
    elif issubclass(kind, types.FunctionType):
        yield str(part.__module__)
        for cell in (part.__closure__ or ()) if depth < 4 else ():
            with contextlib.suppress(ValueError):  # an empty one
                if callable(cell.cell_contents):
                    yield from _modules_of(cell.cell_contents, depth + 1)
    else:
        yield kind.__module__
        if "fn" in dictionary(part) and depth < 4:
            yield from _modules_of(dictionary(part)["fn"], depth + 1)
