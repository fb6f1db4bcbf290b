"""A fit's own values of modules that plain functions hold, or that a module calls without having them as submodules.

A `PyroModule` is copied before it is fitted. What a function holds cannot be: its references are anywhere. So the tensors stay where
they are, and for as long as a fit is active they have the fit's values, in its precision and on its device. The user's come back after
it; `give` leaves the trained ones in their place, as everybody expects of modules that are trained.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import primitives
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

#: What `pyro.module` runs.
_MODULE = primitives.module.__code__

#: What fits have left in the parameters of their users, by a sum that tells whether it is still there.
_left: Any = WeakTensorKeyDictionary()


@dataclass
class _Theirs:
    """What modules had before a fit lent them its own."""

    contents: Any = field(default_factory=WeakTensorKeyDictionary)
    grads: Any = field(default_factory=WeakTensorKeyDictionary)
    buffers: Any = field(default_factory=WeakIdKeyDictionary)
    parts: Any = field(default_factory=WeakIdKeyDictionary)
    modes: Any = field(default_factory=WeakIdKeyDictionary)


#: Whose values modules have now, the innermost last: a callback may ask another fit, or make one.
_lending: list[Borrowed] = []


class Borrowed:
    """The modules that functions call or register, found as they do.

    Attributes:
        continued: the kind of the first module whose parameters begin where an earlier fit left them.
        looks: whether modules that are registered without being called are looked for; not while a fit is trained.
        own_called: modules of the fit's own copies that were called, by id.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, is_own: Callable[[nn.Module], bool]) -> None:
        self.dtype, self.device, self.is_own = dtype, device, is_own
        self.continued, self.looks = "", True
        self.own_called: dict[int, nn.Module] = {}
        self._contents: Any = WeakTensorKeyDictionary()  # of parameters
        self._buffers: Any = WeakIdKeyDictionary()  # of modules, by name
        self._modes: Any = WeakIdKeyDictionary()  # of modules
        self._parts: Any = WeakIdKeyDictionary()  # of modules: parameters and submodules by name, which a user may exchange
        self._theirs: _Theirs | None = None
        self._thread = 0

    def __contains__(self, part: object) -> bool:
        return part in (self._modes if isinstance(part, nn.Module) else self._contents)

    @property
    def has_any(self) -> bool:
        """Whether anything was found."""
        return len(self._contents) + len(self._modes) > 0

    @contextlib.contextmanager
    def lent(self, parts: Iterable[Any] = ()) -> Iterator[None]:
        """Inside, what was found has the values of this fit, and what else is called is found.

        Args:
            parts: model and guide; the module of a method is found before it is called.

        Raises:
            ValueError: a module is made of other parts than those that were fitted.
        """
        for module, own in list(self._parts.items()):
            _require_same_names(module, own)
        theirs = self._theirs = _Theirs()
        self._thread = threading.get_ident()
        for tensor, content in list(self._contents.items()):
            theirs.grads[tensor], tensor.grad = tensor.grad, None
            theirs.contents[tensor], tensor.data = tensor.data, content
        for module, mode in list(self._modes.items()):
            theirs.modes[module], module.training = module.training, mode
            theirs.parts[module] = _parts(module)
            _put_parts(module, self._parts[module])
            theirs.buffers[module] = _put(module, self._buffers[module])
        hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: self._called(module))
        _lending.append(self)
        try:
            for part in parts:
                holder = getattr(_unwrapped(part), "__self__", None)
                if isinstance(holder, nn.Module) and holder not in self._modes:
                    self.take(holder)
            with _Registered(self) if self.looks else contextlib.nullcontext():
                yield
        finally:
            _lending.remove(self)
            hook.remove()
            for tensor, content in list(theirs.contents.items()):
                tensor.grad = None
                self._contents[tensor], tensor.data = tensor.data, content
                tensor.grad = theirs.grads.get(tensor)
            for module, mode in list(theirs.modes.items()):
                module.training = mode
                self._buffers[module] = _put(module, theirs.buffers[module])
                self._parts[module] = _parts(module)
                _put_parts(module, theirs.parts[module])
            self._theirs = None

    def _called(self, module: nn.Module) -> None:
        # By a model or a guide of this fit: data sets call modules, too, and a callback may have a fit of its own.
        ours = bool(_PYRO_STACK) and threading.get_ident() == self._thread and _lending[-1] is self
        if not ours or id(module) in self.own_called or module in self._modes:
            return
        if self.is_own(module):
            self.own_called[id(module)] = module
        elif not _inside_transform():
            self.take(module)

    def take(self, module: nn.Module) -> None:
        """From now on this fit has values of its own of a module, and of all inside it; while `lent`."""
        assert self._theirs is not None
        parts = [part for part in module.modules() if part not in self._modes]
        tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
        if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
            return  # until its first call has said how large they are
        copies: dict[int, Tensor] = {}
        for part in parts:
            for tensor in _held(part):
                self.take_tensor(tensor, type(module).__name__)
            self._modes[part] = self._theirs.modes[part] = part.training
            self._buffers[part] = {}
            self._parts[part] = self._theirs.parts[part] = _parts(part)
            named = {} if isinstance(part, torch.jit.ScriptModule) else part._buffers
            own = {k: copies.setdefault(id(b), self._copied(b)) for k, b in named.items() if b is not None}
            self._theirs.buffers[part] = _put(part, own)

    def take_tensor(self, tensor: Tensor, kind: str = "") -> None:
        """The same of a single parameter."""
        assert self._theirs is not None
        if tensor in self._contents:
            return
        if not self.continued and tensor in _left and _left[tensor] == _sum(tensor):
            self.continued = kind
        self._theirs.grads[tensor], tensor.grad = tensor.grad, None
        self._theirs.contents[tensor] = tensor.data
        self._contents[tensor] = tensor.data = self._copied(tensor)

    def stayed(self, memo: Mapping[int, Any]) -> list[Tensor]:
        """Tensors that `copy.deepcopy` has copied alone, from a store of parameters, and not the modules that have them."""
        copied = {id(tensor) for module in list(self._modes) if id(module) in memo for tensor in _held(module)}
        return [tensor for tensor in list(self._contents) if id(tensor) in memo and id(tensor) not in copied]

    def begin_as(self, other: Borrowed, memo: Mapping[int, Any]) -> None:
        """Takes what another fit has found, with values of its own that are the other's now; when neither is `lent`.

        Args:
            memo: of `copy.deepcopy`: what modules and tensors have been copied to, by id. All others are still shared.
        """
        self.continued, self.looks = other.continued, other.looks
        self.own_called = {id(own): own for own in (memo.get(key, module) for key, module in other.own_called.items())}
        for tensor, content in list(other._contents.items()):
            self._contents[memo.get(id(tensor), tensor)] = content.clone()
        for module, buffers in list(other._buffers.items()):
            place = memo.get(id(module), module)
            self._modes[place] = other._modes[module]
            self._parts[place] = {
                kind: {k: memo.get(id(v), v) for k, v in named.items()} for kind, named in other._parts[module].items()
            }
            self._buffers[place] = {name: buffer.clone() for name, buffer in buffers.items()}

    def _copied(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            return tensor.detach().to(self.device, self.dtype if tensor.is_floating_point() else None, copy=True)

    def drop(self, module: nn.Module) -> None:
        """Forgets what turned out to be this fit's own: it keeps the values that it has."""
        assert self._theirs is not None
        for part in module.modules():
            theirs = self._theirs
            for store in (self._modes, self._buffers, self._parts, theirs.modes, theirs.buffers, theirs.parts):
                store.pop(part, None)
            for tensor in _held(part):
                self._contents.pop(tensor, None)
                self._theirs.contents.pop(tensor, None)

    def eval(self) -> None:
        """From now on the modules are in evaluation mode while they are lent, dropout and batch norm too."""
        for module in list(self._modes):
            self._modes[module] = False
            if self._theirs is not None:
                module.training = False

    def untrained(self, trained: set[int]) -> str:
        """The kind of the first module with parameters that want gradients and are none of those (by id) that are trained, or nothing."""
        for module in list(self._modes):
            if any(p.requires_grad and id(p) not in trained for p in module.parameters(recurse=False)):
                return type(module).__name__
        return ""

    def modules(self) -> list[nn.Module]:
        """All that were found."""
        return list(self._modes)

    def named_buffers(self) -> dict[str, Tensor]:
        """This fit's values of what the modules keep beside parameters, in the order in which they were called; while `lent`."""
        found = [buffers for module in list(self._modes) if (buffers := dict(module.named_buffers(recurse=False)))]
        return {f"buffer.{k}.{name}": buffer for k, buffers in enumerate(found) for name, buffer in buffers.items()}

    def buffers(self) -> list[Tensor]:
        """The same without names."""
        return list(self.named_buffers().values())

    @contextlib.contextmanager
    def unmoved(self) -> Iterator[None]:
        """Inside, calls leave the buffers as they were: batch norm counts and averages what it sees; while `lent`."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers().items()}
        try:
            yield
        finally:
            present = self.named_buffers()
            for name, value in before.items():
                present[name].copy_(value)

    def give(self) -> None:
        """Leaves the values of this fit in the modules of its user, in their precision and on their device; when not `lent`.

        A fit inside another's callback leaves them with the user, and not with the fit that the modules are lent to meanwhile.
        """
        outer = [other._theirs for other in _lending if other._theirs is not None]
        for tensor, content in list(self._contents.items()):
            present = next((theirs.contents[tensor] for theirs in outer if tensor in theirs.contents), tensor.data)
            before = _sum(present)
            present.copy_(content)
            if tensor.requires_grad and _sum(present) != before:
                _left[tensor] = _sum(present)
        for module, own in list(self._buffers.items()):
            places = next((theirs.buffers[module] for theirs in outer if module in theirs.buffers), module._buffers)
            for name, content in own.items():
                if places.get(name) is not None and places[name].shape == content.shape:
                    places[name].detach().copy_(content)
                else:
                    places[name] = content.clone()


class _Registered(Messenger):
    """Finds modules that are registered without being called: their methods are, or their weights alone."""

    def __init__(self, borrowed: Borrowed) -> None:
        super().__init__()
        self.borrowed = borrowed

    def _pyro_param(self, msg: Any) -> None:
        leaf = next((given for given in msg["args"] if isinstance(given, Tensor)), None)
        if not isinstance(leaf, nn.Parameter) or leaf in self.borrowed or _lending[-1] is not self.borrowed:
            return
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not _MODULE:
            frame = frame.f_back
        module = frame.f_locals.get("nn_module") if frame is not None else None
        if isinstance(module, nn.Module) and not _inside_transform() and not self.borrowed.is_own(module):
            self.borrowed.take(module)


def _unwrapped(part: Any) -> Any:
    while isinstance(part, functools.partial):
        part = part.func
    return part


def _held(module: nn.Module) -> list[Tensor]:
    """The tensors of one module that stay what they are and change their content."""
    if isinstance(module, torch.jit.ScriptModule):
        return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [p for p in module._parameters.values() if p is not None]


def _parts(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What one module is made of, by attribute and name; that of a script cannot be exchanged."""
    kinds = () if isinstance(module, torch.jit.ScriptModule) else ("_parameters", "_modules")
    return {kind: {name: part for name, part in getattr(module, kind).items() if part is not None} for kind in kinds}


def _put_parts(module: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> None:
    for kind, named in parts.items():
        getattr(module, kind).update(named)


def _require_same_names(module: nn.Module, fitted: Mapping[str, Mapping[str, Any]]) -> None:
    present = _parts(module)
    changed = sorted({name for kind, named in fitted.items() for name in named.keys() ^ present[kind].keys()})
    if changed:
        raise ValueError(
            f"a {type(module).__name__} that this fit has trained is made of other parts than then ({', '.join(map(repr, changed))} came or "
            "went, as pruning, a parametrisation or another layer does): change a copy.deepcopy of it, or fit again"
        )


def _put(module: nn.Module, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Exchanges buffers of a module; returns all that it had."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}  # they change their content, as parameters do
    before = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
    module._buffers.update(buffers)
    return before


def _sum(tensor: Tensor) -> float:
    """Two sums that are the same say that a tensor has not been changed; of `give` and of the next fit."""
    flat = tensor.detach().double().flatten()
    return float((flat * torch.arange(1, len(flat) + 1, device=flat.device, dtype=flat.dtype).sqrt()).sum())


def _inside_transform() -> bool:
    """Whether a graph is being captured, or a call mapped: tensors cannot be exchanged there, and all of a model has been called before."""
    return get_proxy_mode() is not None or torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]
