"""A trained pair of model and guide with the settings that they run under.

Modules hold their parameters themselves, those of `pyro.param` statements in a `PyroModule` too (`LocalStore`). Plain functions keep
theirs in Pyro's global store; each fit owns a private copy of that store, so fits in one process never see each other. Of the modules
that functions hold, or that a module calls without having them as submodules, registered with `pyro.module` or not, each fit has
values of its own (`borrowed`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn

from ..target.program import quiet
from .borrowed import Borrowed
from .noise import kept_generators
from .turns import turn

type GuideBuilder = Callable[..., Any]


class LocalStore:
    """What the `pyro.param` statements of a `PyroModule` keep in the module, by name; Pyro exchanges the dictionary at every call."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self.context.param_state["params"][name]
        return value

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.context.param_state["params"][name] = value

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and unconstrained values."""
        return list(self.context.param_state["params"].items())


class GlobalStore:
    """What Pyro's parameter store holds now, by name; Pyro exchanges the dictionary whenever a `PyroModule` is called."""

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = pyro.get_param_store()._params[name]
        return value

    def __setitem__(self, name: str, value: Tensor) -> None:
        pyro.get_param_store()._params[name] = value

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and unconstrained values."""
        return list(pyro.get_param_store()._params.items())


def local_stores(part: Any) -> dict[str, LocalStore]:
    """Those of a model or a guide, by the path of the module that a call enters first."""
    found: dict[str, LocalStore] = {}
    contexts = set()
    for path, module in part.named_modules() if isinstance(part, nn.Module) else ():
        context = vars(module).get("_pyro_context")  # one for all modules below
        if hasattr(context, "param_state") and id(context) not in contexts:
            contexts.add(id(context))
            found[path] = LocalStore(context)
    return found


@dataclass
class Owned:
    """Model, guide and the `pyro.param` values of plain functions.

    Attributes:
        reached: what `collect` found: parameters of modules that a plain function calls.
        copied: the modules that were passed, each with its copy.
        borrowed: the modules that model and guide call, and that are no part of them.
    """

    model: Any
    guide: Any
    dtype: torch.dtype
    device: torch.device
    store: Any = field(default_factory=lambda: {"params": {}, "constraints": {}})
    reached: dict[str, Tensor] = field(default_factory=dict)
    copied: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)
    borrowed: Borrowed = field(init=False)

    _entered: bool = False

    def __post_init__(self) -> None:
        self.borrowed = Borrowed(self.dtype, self.device, lambda module: any(module is m for m in self._modules()))

    @contextlib.contextmanager
    def active(self, seed: int | None = None) -> Iterator[None]:
        """Runs a block with this pair's parameters, precision and device, validation off, global generators untouched.

        Other threads wait, as all of these are the process's.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(turn())
            stack.enter_context(quiet(seed))
            stack.enter_context(default_dtype(self.dtype))
            if self.device.type != "cpu":
                stack.enter_context(torch.device(self.device))
            if self._entered:  # the store in use is already this pair's, newer than the saved state
                yield
                return
            self.store = stack.enter_context(pyro.get_param_store().scope(self.store))
            self._entered = True
            stack.callback(setattr, self, "_entered", False)
            # Watching every call of a module costs an eager step some percent.
            modules = isinstance(self.model, nn.Module) and isinstance(self.guide, nn.Module)
            if self.borrowed.looks or self.borrowed.has_any or not modules:
                stack.enter_context(self.borrowed.lent((self.model, self.guide)))
            yield

    def beside(self, guide: Any) -> Owned:
        """The same with another guide, and the same modules of functions."""
        other = Owned(self.model, guide, self.dtype, self.device, self.store, self.reached, self.copied)
        other.borrowed = self.borrowed
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Owned:
        with _whole_autoguides(self.guide if isinstance(self.guide, nn.Module) else None) as links:
            guide = copy.deepcopy(self.guide, memo)
        model = copy.deepcopy(self.model, memo)
        _wrap(guide, links if model is self.model else copy.deepcopy(links, memo))
        other = Owned(model, guide, self.dtype, self.device, copy.deepcopy(self.store, memo))
        # What functions hold stays where it is, unless it was copied with them, as that of a `functools.partial` is.
        stayed = {id(memo.pop(id(tensor))): tensor for tensor in self.borrowed.stayed(memo)}
        other.store["params"] = {name: stayed.get(id(value), value) for name, value in other.store["params"].items()}
        for store, key in other.local_slots().values():
            store[key] = stayed.get(id(store[key]), store[key])
        other.reached = {name: memo.get(id(value), value) for name, value in self.reached.items()}
        other.copied = [(original, memo.get(id(own), own)) for original, own in self.copied]
        other.borrowed.begin_as(self.borrowed, memo)
        return other

    def __reduce__(self) -> Any:
        raise TypeError("a fit cannot be pickled: fit.save(path) writes it, and bz.load(path) reads it")

    def _modules(self) -> Iterator[nn.Module]:
        for part in (self.model, self.guide):
            if isinstance(part, nn.Module):
                yield from part.modules()

    def eval(self) -> None:
        """Puts all modules into evaluation mode, for good: they have been trained."""
        for part in (self.model, self.guide):
            if isinstance(part, nn.Module):
                part.eval()
        self.borrowed.eval()

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, each once: the guide's, the model's, then the store's. Call inside `active`."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for prefix, part in (("guide", self.guide), ("model", self.model)):
            if isinstance(part, nn.Module):
                for name, parameter in part.named_parameters():
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        found[f"{prefix}.{name}"] = parameter
        for name, (store, key) in self.local_slots().items():
            if id(store[key]) not in seen:
                seen.add(id(store[key]))
                found[name] = store[key]
        for name, value in pyro.get_param_store().named_parameters():
            if id(value) not in seen:
                seen.add(id(value))
                found[f"param.{name}"] = value
        return found | {name: value for name, value in self.reached.items() if id(value) not in seen}

    def collect(self, kwargs: Mapping[str, Any]) -> None:
        """Looks for the parameters of modules that plain functions call, by what they tell Pyro in one call; inside `active`.

        Raises:
            ValueError: a function calls a module that model or guide hold too, of which the fit has a copy.
        """
        known = {id(value) for value in self.parameters().values()}
        own = {id(parameter) for module in self._modules() for parameter in module._parameters.values()}
        for part in (self.guide, self.model):
            if isinstance(part, nn.Module):
                continue
            with kept_generators(), torch.no_grad(), self.borrowed.unmoved():
                trace = poutine.trace(part, param_only=True).get_trace(**kwargs)
            for name in trace.param_nodes:
                value = trace.nodes[name]["value"]
                leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
                if leaf is None or not leaf.requires_grad or not leaf.is_leaf:
                    continue
                held = isinstance(leaf, nn.Parameter) or id(leaf) not in known  # by a module
                if id(leaf) not in known:
                    known.add(id(leaf))
                    self.reached[f"param.{name}"] = leaf
                if held and id(leaf) not in own:
                    self.borrowed.take_tensor(leaf, "module")
        for original, copied in self.copied:
            if original in self.borrowed and id(copied) in self.borrowed.own_called and any(True for _ in copied.parameters()):
                raise ValueError(
                    f"a function calls a {type(original).__name__} of the module that was passed beside it, and a fit trains a copy of that "
                    "one: pass a method of the module instead, such as model.guide, or a PyroModule that holds the same network"
                )

    def local_slots(self) -> dict[str, tuple[LocalStore, str]]:
        """Where the tensors of `pyro.param` statements in modules are kept, by the names that `parameters` gives them."""
        return {
            ".".join(word for word in (prefix, path, "param", key) if word): (store, key)
            for prefix, part in (("guide", self.guide), ("model", self.model))
            for path, store in local_stores(part).items()
            for key, _ in store.items()
        }


@contextlib.contextmanager
def in_place(holders: Iterable[tuple[Any, str]], values: Iterable[Tensor]) -> Iterator[None]:
    """Other tensors in the place of parameters and buffers."""
    held = list(holders)
    before = [holder[key] for holder, key in held]
    for (holder, key), value in zip(held, values, strict=True):
        holder[key] = value
    try:
        yield
    finally:
        for (holder, key), value in zip(held, before, strict=True):
            holder[key] = value


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes tensors that a model creates, such as `torch.ones(3)`, take the fit's precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def own(model: Any, guide: GuideBuilder, data: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Owned:
    """Private copies of model and guide on the device; a builder makes its guide from the copy."""
    ready = isinstance(guide, nn.Module) or not is_builder(guide)
    shared = {"model": model, "guide": guide if ready else None}
    # Copied together, so that a module which both of them hold stays one module.
    originals = {k: v for k, v in shared.items() if isinstance(v, nn.Module)}
    originals |= _holders_of_methods(shared, originals)
    with _whole_autoguides(originals.get("guide")) as links:
        try:
            memo: dict[int, Any] = {}
            copies: dict[str, Any] = dict(copy.deepcopy(originals, memo))
            if "model" in copies or "model's" in copies:  # Pyro wraps the model in what says how values begin
                links = copy.deepcopy(links, memo)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"model and guide are copied before they are fitted, and these cannot be ({str(error).splitlines()[0]}): keep locks, "
                "open files, progress bars and computed tensors out of their attributes, or pass a plain function"
            ) from error
    for what in ("model", "guide"):
        if f"{what}'s" in copies:
            copies[what] = types.MethodType(shared[what].__func__, copies[f"{what}'s"])
    own_model = copies.get("model", model)
    _wrap(copies.get("guide"), links)
    if isinstance(own_model, nn.Module):
        _to(own_model, dtype, device)
    owned = Owned(own_model, copies.get("guide", guide), dtype, device)
    owned.copied = [pair for k, v in originals.items() for pair in zip(v.modules(), copies[k].modules(), strict=True)]
    if ready:
        if isinstance(owned.guide, nn.Module):
            _to(owned.guide, dtype, device)
        return owned
    with owned.active(seed):
        owned.guide = guide(own_model, data)
        if isinstance(owned.guide, nn.Module):
            owned.borrowed.drop(owned.guide)
            _to(owned.guide, dtype, device)
    return owned


def _holders_of_methods(parts: Mapping[str, Any], copied: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules whose methods are passed beside modules that they share something with, `model.guide` beside `model`."""
    known = {id(module) for part in copied.values() for module in part.modules()}
    held = {f"{k}'s": v.__self__ for k, v in parts.items() if inspect.ismethod(v) and isinstance(v.__self__, nn.Module)}
    return {k: v for k, v in held.items() if any(id(module) in known for module in v.modules())}


def _to(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    module.to(device=device, dtype=dtype)
    for store in local_stores(module).values():
        for name, value in store.items():
            wanted = dtype if value.is_floating_point() else value.dtype
            if value.device != device or value.dtype != wanted:
                store[name] = value.detach().to(device=device, dtype=wanted).requires_grad_(value.requires_grad)


@contextlib.contextmanager
def _whole_autoguides(guide: nn.Module | None) -> Iterator[list[Any]]:
    """Pyro's autoguides lose their model and master when they are copied, the original too: this puts the original's back.

    Yields:
        For each submodule of the guide, the model that it wraps, in a tuple of one, or None.
    """
    parts = list(guide.modules()) if guide is not None else []
    kept = [(part, part._model, part.master) for part in parts if isinstance(part, AutoGuide)]
    links = {id(part): model for part, model, _ in kept}
    yield [links.get(id(part)) for part in parts]
    for part, model, master in kept:
        part._model, part.master = model, master


def _wrap(guide: Any, links: Sequence[Any]) -> None:
    """Gives the autoguides in a copy the models that `_whole_autoguides` found."""
    for part, wrapped in zip(guide.modules() if links else (), links, strict=True):
        if wrapped is not None:
            part._model = wrapped


def is_builder(guide: Any) -> bool:
    """A builder's first two parameters are `model` and `data`; anything else is a guide."""
    if isinstance(guide, functools.partial):
        return is_builder(guide.func)
    try:
        names = list(inspect.signature(guide).parameters)
    except (TypeError, ValueError):
        return False
    return names[:2] == ["model", "data"] or (inspect.isclass(guide) and len(names) >= 1 and names[0] == "model")
