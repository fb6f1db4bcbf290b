"""What a model and a guide keep in Python between steps, where a graph does not see it change.

A graph holds the numbers that it found in attributes, closures and globals, and the tensors that it read. A step that counts in one of
them, or that puts another tensor in a buffer's place instead of updating it, would leave the graph with what was there first. Two
pictures of all that can be reached, before a step and after it, are laid side by side, by the ways that lead to each object: an object
that a step makes anew with the same content has not changed.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import reach
from .contents import Keeper, checksum, content, is_one_way, is_plain, is_unseen, pickled, same
from .reach import MODULE_INTERNALS, Label, Owners, children


class Unwatched(Exception):
    """What a model and a guide keep cannot all be looked at, or not be put back; the message is a sentence."""


class Attributes:
    """What stands in the attributes, closures and globals that a model and a guide reach through code of the user's.

    Args:
        parts: model and guide.

    Raises:
        Unwatched: there are more objects than are looked at.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.picture = _Picture(parts)

    def changed(self, after: Attributes | None = None) -> str:
        """The name of one that can be compared and holds something else by then, or now; empty if none does."""
        for before, now in self.picture.beside((after or Attributes(self.parts)).picture):
            if _kind(before.value) != _kind(now.value) or not same(before.content, now.content):
                return before.name
            for label in before.plain.keys() | now.plain.keys():
                if not same(before.plain.get(label, before), now.plain.get(label, before)):
                    return before.name_under(label)
            for label in before.held.keys() ^ now.held.keys():
                return before.name_under(label)
        return ""

    @property
    def unseen(self) -> str:
        """The name of one that may move on without a trace; empty if there is none."""
        return next((node.name for node in self.picture.nodes if self.picture.unseen(node.value)), "")

    def replaced(self, read: Iterable[Tensor], after: Attributes | None = None) -> str:
        """The name of one that held a tensor that was read, and holds another, or one with other memory, by then; empty if none does."""
        was_read = {id(t) for t in read}
        for before, now in self.picture.beside((after or Attributes(self.parts)).picture):
            kept = before.value
            if (
                issubclass(type(kept), Tensor)
                and id(kept) in was_read
                and (now.value is not kept or now.memory != before.memory)
            ):
                return before.name
        return ""


@contextlib.contextmanager
def kept_attributes(parts: Sequence[Any]) -> Iterator[str]:
    """Puts everything back that a model and a guide keep in Python, as if the steps inside had not been run.

    Yields:
        The name of something that a step may move and nothing sends back, an iterator, say; empty if there is none.

    Raises:
        Unwatched: there are more objects than are looked at, or a tensor or an array that is too large to be copied was updated.
    """
    keeper, picture, large = Keeper(), _Picture(parts, values=False), []
    for node in picture.nodes:
        with contextlib.suppress(Exception):  # an object that cannot be looked at
            if not _keep(node.value, keeper, picture.owners):
                large.append((node, _version(node.value)))
    try:
        yield next((node.name for node in picture.nodes if is_one_way(node.value) or picture.unseen(node.value)), "")
    finally:
        keeper.put_back()
    for node, version in large:
        if _version(node.value) != version:
            what = "tensor" if issubclass(type(node.value), Tensor) else type(node.value).__name__
            raise Unwatched(f"the model updates the {what} '{node.name}', which is too large to be put back after a trial")


@dataclass(slots=True, eq=False)
class _Node:
    """An object: the values in it that are compared as they are, and the objects that it holds."""

    value: Any
    holder: _Node | None = None
    label: Label = None
    content: Any = None
    memory: int = 0
    plain: dict[Label, Any] = field(default_factory=dict)
    held: dict[Label, _Node] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it: by the shortest way that leads to it."""
        return self._way() or type(self.value).__name__

    def name_under(self, label: Label) -> str:
        """How messages call what it has under a label."""
        return reach.name_of(label, self._way()) or self.name

    def _way(self) -> str:
        way: list[_Node] = []
        node: _Node | None = self
        while node is not None and node.holder is not None:
            way.append(node)
            node = node.holder
        name = ""
        for node in reversed(way):
            name = reach.name_of(node.label, name)
        return name


class _Picture:
    """All that can be reached at one time.

    Args:
        parts: model and guide.
        values: whether it is to be compared with another.
    """

    def __init__(self, parts: Sequence[Any], values: bool = True) -> None:
        self.owners = Owners(parts)
        self.values = values
        self.nodes: list[_Node] = []
        self.known: dict[int, _Node] = {}  # the nodes keep their objects, so that no two share an id
        self.roots = [self._node(part, None, None) for part in parts]
        at = 0
        while at < len(self.nodes):  # nearest first
            with contextlib.suppress(Exception):  # an object that cannot be looked at; replays are left
                self._enter(self.nodes[at])
            at += 1
            if len(self.nodes) > reach.MOST:
                raise Unwatched(
                    f"model and guide reach more than {reach.MOST:,} objects of Python's, too many to see which of them change"
                )

    def beside(self, other: _Picture) -> Iterator[tuple[_Node, _Node]]:
        """The pairs of objects that the same ways lead to, before and now."""
        todo = collections.deque(zip(self.roots, other.roots, strict=True))
        seen = {(id(a), id(b)) for a, b in todo}
        while todo:
            before, now = todo.popleft()
            yield before, now
            for label, held in before.held.items():
                pair = (held, now.held.get(label))
                if pair[1] is not None and (id(held), id(pair[1])) not in seen:
                    seen.add((id(held), id(pair[1])))
                    todo.append(pair)  # type: ignore[arg-type]

    def _node(self, value: Any, holder: _Node | None, label: Label) -> _Node:
        known = self.known.get(id(value))
        if known is None:
            known = self.known[id(value)] = _Node(value, holder, label)
            self.nodes.append(known)
        return known

    def _enter(self, node: _Node) -> None:
        value = node.value
        if self.values:
            node.content = content(value)
            if issubclass(type(value), Tensor):
                node.memory = _memory(value)
            elif node.content is None and self.owners.of_another_library(type(value)) and _is_whole(value):
                saved = pickled(value)
                node.content = _plain_attributes(value) if saved is None else saved
                return
        for label, held in children(value, self.owners):
            if not is_plain(held):
                node.held[label] = self._node(held, node, label)
            elif self.values:
                node.plain[label] = held

    def unseen(self, value: Any) -> bool:
        """Whether an object may move without a trace."""
        if is_unseen(value):
            return True
        if not (self.owners.of_another_library(type(value)) and _is_whole(value)) or content(value) is not None:
            return False
        return pickled(value) is None and _plain_attributes(value) is None


def _is_whole(value: Any) -> bool:
    """Whether another library's object is seen as a whole: not what holds functions and modules."""
    known = (nn.Module, types.FunctionType, types.MethodType, types.BuiltinFunctionType, type, types.ModuleType)
    return not issubclass(type(value), known)


def _plain_attributes(value: Any) -> dict[str, Any] | None:
    """The numbers and texts among the attributes of an object that cannot be saved; None where there are none."""
    held = dict(reach.dictionary(value))
    for slot in reach.slots(type(value)):
        with contextlib.suppress(AttributeError):  # nothing is there
            held[slot.__name__] = slot.__get__(value)
    return {key: item for key, item in held.items() if is_plain(item)} or None


def _kind(value: Any) -> Any:
    """The class of an object, and of classes made anew the name."""
    return type(value).__module__, type(value).__qualname__


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # of a kind without memory of its own
        return 0


def _version(value: Any) -> int:
    """A number that is another after an update of a tensor, an array or another library's object."""
    if issubclass(type(value), Tensor):
        return value._version
    return checksum(value) if isinstance(value, np.ndarray) else pickled(value) or 0


def _keep(value: Any, keeper: Keeper, owners: Owners) -> bool:
    """Remembers one object, and the places in it that hold others; False for a tensor or an array that is too large."""
    kind: Any = type(value)
    if issubclass(kind, Tensor):
        keeper.mapping(vars(value))
        # Whoever runs a step knows the values of what it trains.
        return (issubclass(kind, nn.Parameter) and value.requires_grad) or keeper.tensor(value)
    if not keeper.keep(value):
        return False
    if issubclass(kind, nn.Module):
        keeper.mapping(vars(value), MODULE_INTERNALS)
        if not isinstance(value, torch.jit.ScriptModule):  # whose tensors and modules cannot be exchanged
            keeper.mapping(value._buffers)
            keeper.mapping(value._parameters)
            keeper.mapping(value._modules)
        keeper.mapping(vars(value).get("_pyro_samples", {}))
        for hooks in reach.HOOKS:
            keeper.mapping(vars(value)[hooks])
    elif issubclass(kind, type):
        if not owners.foreign(value):
            keeper.undo.append(functools.partial(_restore_class, value, dict(vars(value))))
    elif issubclass(kind, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty one
                keeper.undo.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
        for place, key in reach.mentioned(value, owners):
            keeper.undo.append(functools.partial(_set_item, place, key, place[key]))
        keeper.mapping(vars(value))
    elif owners.of_another_library(kind) and content(value) is None and pickled(value) is not None:
        return keeper.saved(value)
    else:
        keeper.mapping(reach.dictionary(value))
        for slot in reach.slots(kind):
            with contextlib.suppress(AttributeError):  # nothing is there
                keeper.undo.append(functools.partial(slot.__set__, value, slot.__get__(value)))
    return True


def _set_item(place: Any, key: str, value: Any) -> None:
    if place.get(key) is not value:
        place[key] = value


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    now = dict(vars(kind))
    for key in now.keys() | before.keys():
        if not key.startswith("__") and key not in before:
            type.__delattr__(kind, key)
        elif not key.startswith("__") and now.get(key, kind) is not before[key]:
            type.__setattr__(kind, key, before[key])


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors of a value, in containers too."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))
