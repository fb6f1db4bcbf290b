"""What can be compared of one Python object, and what puts it back as it was."""

from __future__ import annotations

import array
import collections
import contextlib
import contextvars
import ctypes
import datetime
import decimal
import enum
import functools
import io
import itertools
import mmap
import operator
import pathlib
import pickle
import random
import types
import warnings
import weakref
import zlib
from collections.abc import Callable, Collection, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SCALARS = frozenset({bool, int, float, str, bytes, complex, type(None)})
#: Never changed, only replaced.
_PLAIN = (
    bool, int, float, str, bytes, complex, types.NoneType, np.generic, np.dtype, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    datetime.tzinfo, range, slice, enum.Enum, pathlib.PurePath, torch.dtype, torch.device,
)  # fmt: skip
BUFFERS = (bytearray, array.array, memoryview, ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)
#: Of random numbers.
GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random, torch.Generator)
#: Modules of Python's own whose objects move on and are never sent back, and those that do not even say where they stand.
_MOVE_ON = ("sqlite3", "zlib", "_bz2", "_lzma", "_queue", "_hashlib", "_md5", "_sha1", "_sha2", "_sha3", "_blake2")
_UNSEEN = ("sqlite3.Cursor", "zlib.Compress", "zlib.Decompress", "_bz2.", "_lzma.LZMA", "_sre.SRE_Scanner")
#: Numbers whose values are put back: of one tensor or array, and of all.
_KEPT_ELEMENTS, _KEPT_IN_ALL = 32_000_000, 64_000_000


def by_class[T](function: Callable[[Any], T]) -> Callable[[Any], T]:
    """The function with its answers kept, for as long as the classes live that it is asked about."""
    known: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()

    def asked(kind: Any) -> T:
        try:
            return known[kind]
        except KeyError:
            known[kind] = answer = function(kind)
            return answer

    return asked


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or another that is compared as it is, or a tuple of such."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return True
    if kind is tuple or kind is torch.Size:
        return all(map(is_plain, value))
    return _is_plain_kind(kind)


@by_class
def _is_plain_kind(kind: Any) -> bool:
    # Members of enumerations and numbers of a class of the user's can have attributes.
    return issubclass(kind, _PLAIN) and not kind.__dictoffset__


def all_plain(values: Collection[Any]) -> bool:
    """Whether all of many values are numbers and texts, or tuples of them; looked at by their types, which is fast."""
    kinds = set(map(type, values))
    if tuple in kinds:
        kinds |= set(map(type, itertools.chain.from_iterable(v for v in values if type(v) is tuple))) - {tuple}
        if any(type(item) is tuple for v in values if type(v) is tuple for item in v):
            return False
    return kinds <= _SCALARS | {tuple}


def is_buffer(value: Any) -> bool:
    """Whether a value is memory of numbers without a shape of its own."""
    return issubclass(type(value), BUFFERS)


@by_class
def is_iterator(kind: Any) -> bool:
    """Whether a class is an iterator not written in Python: one of Python's own, NumPy's or a reader's of tables."""
    step = next((vars(part)["__next__"] for part in kind.__mro__ if "__next__" in vars(part)), None)
    return step is not None and not isinstance(step, types.FunctionType) and not issubclass(kind, io.IOBase)


def is_one_way(value: Any) -> bool:
    """Whether an object moves on when it is asked, and cannot be sent back."""
    kind = type(value)
    if is_read_on(value):
        return not isinstance(_position(value), int)
    return is_iterator(kind) or issubclass(kind, np.random.SeedSequence) or kind.__module__ in _MOVE_ON


def is_unseen(value: Any) -> bool:
    """Whether an object may have moved on without a trace: `re.finditer`'s, a cursor's, a decompressor's."""
    kind = type(value)
    if f"{kind.__module__}.{kind.__qualname__}".startswith(_UNSEEN):
        return True
    seen = not is_iterator(kind) or issubclass(kind, types.GeneratorType) or _numbers(value) or _is_reducible(value)
    return not (seen or operator.length_hint(value, -1) >= 0)


def _is_reducible(value: Any) -> bool:
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return type(value).__reduce__ is not object.__reduce__ and bool(value.__reduce__())
    return False


def same(a: Any, b: Any) -> bool:
    """Whether two plain values, or containers of them, are equal; NaN is NaN."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        if bool(a == b) or bool(a != a and b != b):
            return True
    except Exception:  # of a class that does not let itself be compared
        if not isinstance(a, (list, tuple)):
            return False
    return isinstance(a, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))


def content(value: Any) -> Any:
    """What is compared of an object beside what it holds, with `same`; None where there is nothing."""
    kind = type(value)
    if is_plain(value) or issubclass(kind, _PLAIN):
        return value
    if issubclass(kind, dict):
        if all_plain(dict.keys(value)) and all_plain(dict.values(value)):
            return list(pairs(value))
        return [(key if is_plain(key) else type(key), _item(item)) for key, item in pairs(value)]
    if issubclass(kind, (set, frozenset)):
        distinct = set((set if issubclass(kind, set) else frozenset).__iter__(value))
        return len(distinct), distinct if all_plain(distinct) else {item for item in distinct if is_plain(item)}
    if issubclass(kind, (list, tuple, collections.deque)):
        base = next(base for base in (list, tuple, collections.deque) if issubclass(kind, base))
        found = list(base.__iter__(value))
        return found if all_plain(found) else [_item(item) for item in found]
    if issubclass(kind, np.ndarray):
        return value.shape, value.dtype, None if value.dtype == object else checksum(value)
    if is_buffer(value):
        return bytes(value)
    if issubclass(kind, io.StringIO | io.BytesIO):
        return value.getvalue(), value.tell()
    if is_read_on(value):
        return _position(value)
    if issubclass(kind, types.GeneratorType):
        return None if value.gi_frame is None else value.gi_frame.f_lasti
    if is_iterator(kind):
        return _numbers(value), operator.length_hint(value, -1)
    if issubclass(kind, np.random.SeedSequence):
        return repr(value.state)
    if kind.__module__ in _MOVE_ON and hasattr(kind, "hexdigest"):
        return value.hexdigest(*((32,) if not value.digest_size else ()))
    if issubclass(kind, types.FunctionType):
        return value.__code__
    if issubclass(kind, (types.BuiltinMethodType, types.MethodWrapperType)):
        return value.__name__
    return _state(value) if issubclass(kind, GENERATORS) else None


def checksum(values: np.ndarray) -> int:
    """One number for all in an array."""
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def is_read_on(value: Any) -> bool:
    """Whether a value is a file, or one mapped into memory, that is read on from where it stands."""
    if issubclass(type(value), mmap.mmap):
        return not value.closed
    return issubclass(type(value), io.IOBase) and not value.closed and value.readable() and value.seekable()


def _position(file: Any) -> Any:
    try:
        return file.tell()
    except OSError:  # in the middle of a loop over its lines: nobody says where
        return object()


def _numbers(iterator: Any) -> list[tuple[str, int]]:
    """The whole numbers that an iterator says of itself: its index, or the line that it has read."""
    fields = {k: v for part in type(iterator).__mro__ for k, v in vars(part).items() if not k.startswith("__")}
    found = []
    for name, descriptor in fields.items():
        if isinstance(descriptor, (types.GetSetDescriptorType, types.MemberDescriptorType)):
            with contextlib.suppress(Exception):  # of one that has come to its end
                if isinstance(number := descriptor.__get__(iterator), int):
                    found.append((name, number))
    return found


def pairs(value: Any) -> Any:
    """Keys and values of a dictionary, whatever methods of its own a class of the user's gives it."""
    return (collections.OrderedDict if issubclass(type(value), collections.OrderedDict) else dict).items(value)


def _item(value: Any) -> Any:
    return value if is_plain(value) else type(value)


def _state(value: Any) -> Any:
    """Where a generator of random numbers stands."""
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.BitGenerator):
        return str(value.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state())
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().numpy())
    return None if isinstance(value, random.SystemRandom) else value.getstate()


def pickled(value: Any) -> int | None:
    """One number for all that another library's object holds, by the way it is saved; None where it cannot be."""
    text, parts = _saved(value)
    return None if text is None else zlib.crc32(repr([zlib.crc32(part) for part in parts]).encode(), zlib.crc32(text))


def _saved(value: Any) -> tuple[bytes | None, list[memoryview]]:
    """What the library itself would write of its object, and the numbers that go with it."""
    parts: list[pickle.PickleBuffer] = []
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.dumps(value, protocol=5, buffer_callback=parts.append), [part.raw() for part in parts]
    return None, []


class Keeper:
    """Puts objects back as they were."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        self.left = _KEPT_IN_ALL

    def keep(self, value: Any) -> bool:
        """Remembers what an object holds, and not what the objects in it do; False where these are too many numbers."""
        kind = type(value)
        if issubclass(kind, dict):
            self.mapping(value)
        elif issubclass(kind, (list, set, collections.deque)):
            base = next(base for base in (list, set, collections.deque) if issubclass(kind, base))
            self.undo.append(functools.partial(_refill, base, value, list(base.__iter__(value))))
        elif issubclass(kind, np.ndarray):
            if value.size > min(_KEPT_ELEMENTS, self.left):
                return not value.flags.writeable
            self.left -= value.size
            self.undo.append(functools.partial(np.copyto, value, value.copy()))
        elif is_buffer(value) and not (issubclass(kind, memoryview) and value.readonly):
            self.undo.append(functools.partial(_rewrite, value, bytes(value)))
        elif issubclass(kind, io.StringIO | io.BytesIO):
            self.undo.append(functools.partial(_rewind, value, value.getvalue(), value.tell()))
        elif is_read_on(value):
            self.undo.append(functools.partial(value.seek, value.tell()))
        elif issubclass(kind, contextvars.ContextVar):
            if (held := value.get(None)) is not None:
                self.undo.append(functools.partial(value.set, held))
        elif issubclass(kind, np.random.Generator):
            self.undo.append(functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif issubclass(kind, np.random.BitGenerator):
            self.undo.append(functools.partial(setattr, value, "state", value.state))
        elif issubclass(kind, np.random.RandomState):
            self.undo.append(functools.partial(value.set_state, value.get_state()))
        elif issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
            self.undo.append(functools.partial(value.setstate, value.getstate()))
        elif issubclass(kind, torch.Generator):
            self.undo.append(functools.partial(value.set_state, value.get_state()))
        return True

    def mapping(self, place: MutableMapping[str, Any], leave: frozenset[str] = frozenset()) -> None:
        """Remembers what stands in a dictionary, in which order, but for some of its keys."""
        before = {k: v for k, v in place.items() if k not in leave}

        def put_back() -> None:
            for key in [k for k in place if k not in leave and k not in before]:
                del place[key]
            for key, value in before.items():
                if key not in place or place[key] is not value:
                    place[key] = value
            if [key for key in place if key not in leave] != list(before):
                for key in before:
                    place[key] = place.pop(key)

        self.undo.append(put_back)

    def saved(self, value: Any) -> bool:
        """Remembers another library's object by the way it is saved; False where it holds too many numbers."""
        text, parts = _saved(value)
        if text is None:
            return True
        size = (len(text) + sum(len(part) for part in parts)) // 4
        if size > min(_KEPT_ELEMENTS, self.left):
            return False
        self.left -= size
        before, kept = pickled(value), [bytearray(part) for part in parts]

        def put_back() -> None:
            if pickled(value) != before:
                _become(value, pickle.loads(text, buffers=kept))

        self.undo.append(put_back)
        return True

    def put_back(self) -> None:
        """Undoes what has happened since."""
        for undo in self.undo:
            with contextlib.suppress(Exception):  # what cannot be written to, a frozen dictionary say, has not changed
                undo()

    def tensor(self, tensor: Tensor) -> bool:
        """Remembers a tensor's values; False where there are too many."""
        if tensor.is_inference():
            return True
        if tensor.numel() > min(_KEPT_ELEMENTS, self.left):
            return False
        self.left -= tensor.numel()
        before, memory = tensor.detach().clone(), tensor.detach()

        def put_back() -> None:
            with torch.no_grad():
                if not _shared(tensor, memory):
                    tensor.data = memory  # which `tensor.data = ...` had exchanged
                if not torch.equal(memory, before):  # versions do not tell of updates of .data, nor of batch norm's
                    tensor.copy_(before)

        self.undo.append(put_back)
        return True


def _become(value: Any, old: Any) -> None:
    """Gives an object the state of another of its class, as unpickling does."""
    state: Any = old.__reduce_ex__(4)[2]
    if hasattr(value, "__setstate__"):
        value.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        vars(value).clear()
        vars(value).update(attributes)
    for name, held in (slots or {}).items():
        object.__setattr__(value, name, held)


def _shared(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie at the same place."""
    try:
        return a.data_ptr() == b.data_ptr() and a.shape == b.shape
    except RuntimeError:  # of a kind without memory of its own
        return True


def _refill(base: Any, place: Any, before: Sequence[Any]) -> None:
    now = list(base.__iter__(place))
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return
    base.clear(place)
    (base.update if base is set else base.extend)(place, before)


def _rewrite(place: Any, before: bytes) -> None:
    if bytes(place) == before:
        return
    if isinstance(place, bytearray):
        place[:] = before
    else:
        memoryview(place).cast("B")[:] = before


def _rewind(place: Any, before: Any, position: int) -> None:
    if place.getvalue() != before:
        place.seek(0)
        place.truncate()
        place.write(before)
    place.seek(position)
