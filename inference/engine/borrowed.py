"""A fit's own values of modules that plain functions hold.

A `PyroModule` is copied before it is fitted. What a function holds cannot be: its references are anywhere. So the tensors stay where
they are, and for as long as a fit is active they have the fit's values, in its precision and on its device. The user's come back after
it; `give` leaves the trained ones in their place, as everybody expects of modules that are trained.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

#: What fits have left in the parameters of their users, by a sum that tells whether it is still there.
_left: Any = WeakTensorKeyDictionary()


class Borrowed:
    """The modules that functions call, found as they are called.

    Attributes:
        continued: the kind of the first module whose parameters begin where an earlier fit left them.
        own_called: modules of the fit's own copies that were called, by id.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, is_own: Callable[[nn.Module], bool]) -> None:
        self.dtype, self.device, self.is_own = dtype, device, is_own
        self.continued = ""
        self.own_called: dict[int, nn.Module] = {}
        self._contents: Any = WeakTensorKeyDictionary()  # of parameters
        self._buffers: Any = WeakIdKeyDictionary()  # of modules, by name
        self._modes: Any = WeakIdKeyDictionary()  # of modules
        self._theirs: tuple[Any, Any, Any] | None = None
        self._thread = 0

    def __contains__(self, part: object) -> bool:
        return part in (self._modes if isinstance(part, nn.Module) else self._contents)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, what was found has the values of this fit, and what else is called is found."""
        self._theirs = WeakTensorKeyDictionary(), WeakIdKeyDictionary(), WeakIdKeyDictionary()  # type: ignore[no-untyped-call]
        tensors, buffers, modes = self._theirs
        self._thread = threading.get_ident()
        for tensor, content in list(self._contents.items()):
            tensors[tensor], tensor.data = tensor.data, content
        for module, mode in list(self._modes.items()):
            modes[module], module.training = module.training, mode
            buffers[module] = _put(module, self._buffers[module])
        hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: self._called(module))
        try:
            yield
        finally:
            hook.remove()
            for tensor, content in list(tensors.items()):
                self._contents[tensor], tensor.data = tensor.data, content
            for module, mode in list(modes.items()):
                module.training = mode
                self._buffers[module] = _put(module, buffers[module])
            self._theirs = None

    def _called(self, module: nn.Module) -> None:
        if id(module) in self.own_called or module in self._modes:
            return
        calls = (
            bool(_PYRO_STACK) and threading.get_ident() == self._thread
        )  # as a model or a guide does; data sets call modules, too
        if calls and self.is_own(module):
            self.own_called[id(module)] = module
        elif calls and not _inside_transform():
            self.take(module)

    def take(self, module: nn.Module) -> None:
        """From now on this fit has values of its own of a module, and of all inside it; while `lent`."""
        assert self._theirs is not None
        _, buffers, modes = self._theirs
        parts = [part for part in module.modules() if part not in self._modes]
        tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
        if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
            return  # until its first call has said how large they are
        copies: dict[int, Tensor] = {}
        for part in parts:
            for parameter in part._parameters.values():
                if parameter is not None:
                    self.take_tensor(parameter, type(module).__name__)
            self._modes[part] = modes[part] = part.training
            self._buffers[part] = {}
            if not isinstance(part, torch.jit.ScriptModule):
                own = {k: copies.setdefault(id(b), self._copied(b)) for k, b in part._buffers.items() if b is not None}
                buffers[part] = _put(part, own)
            else:
                buffers[part] = {}

    def take_tensor(self, tensor: Tensor, kind: str = "") -> None:
        """The same of a single parameter."""
        assert self._theirs is not None
        if tensor in self._contents:
            return
        if not self.continued and tensor in _left and _left[tensor] == _sum(tensor):
            self.continued = kind
        self._theirs[0][tensor] = tensor.data
        self._contents[tensor] = tensor.data = self._copied(tensor)

    def _copied(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            return tensor.detach().to(self.device, self.dtype if tensor.is_floating_point() else None, copy=True)

    def drop(self, module: nn.Module) -> None:
        """Forgets what turned out to be this fit's own: it keeps the values that it has."""
        assert self._theirs is not None
        for part in module.modules():
            for store in (self._modes, self._buffers, *self._theirs[1:]):
                store.pop(part, None)
            for parameter in part._parameters.values():
                if parameter is not None:
                    self._contents.pop(parameter, None)
                    self._theirs[0].pop(parameter, None)

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

    @contextlib.contextmanager
    def unmoved(self) -> Iterator[None]:
        """Inside, calls leave the buffers as they were: batch norm counts and averages what it sees; while `lent`."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers().items()}
        yield
        present = self.named_buffers()
        for name, value in before.items():
            present[name].copy_(value)

    def give(self) -> None:
        """Leaves the values of this fit in the modules of its user, in their precision and on their device; when not `lent`."""
        for tensor, content in list(self._contents.items()):
            before = _sum(tensor)
            tensor.data.copy_(content)
            if _sum(tensor) != before:
                _left[tensor] = _sum(tensor)
        for module, own in list(self._buffers.items()):
            for name, content in own.items():
                theirs = module._buffers.get(name)
                if theirs is not None and theirs.shape == content.shape:
                    theirs.detach().copy_(content)
                else:
                    module._buffers[name] = content.clone()


def _put(module: nn.Module, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Exchanges buffers of a module; returns all that it had."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
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
