"""One step of a fit as a graph of tensor operations.

The step runs once under `make_fx`, which records every operation with the tensors that it touched. Those tensors become
the graph's inputs (parameters, optimiser state, data, rows of the tables), so a graph knows nothing of the values in them and
serves other data of the same shapes. What the step read from a tensor into Python, or drew from Python's own generators, or
counted in an attribute, would be frozen into the graph; capture refuses it and names the line, unless the value depends on the
data alone, which do not change.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.distributions import one_hot_categorical
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .asked import Asked
from .attributes import Attributes, tensors_in
from .classes import out_of_range, unwrapped
from .contents import checksum
from .mapped import PlainLosses
from .memory import is_view
from .patched import patched
from .places import asked_by_the_user, explain, here, is_library, place


class Uncapturable(Exception):
    """The step cannot be a graph; the message is one sentence that names the operation and the line."""


@dataclass(frozen=True)
class Graph:
    """A captured step.

    Attributes:
        module: takes `inputs`, updates them in place, and returns the loss and the gradients.
        inputs: every tensor that the step touches, the same objects.
        key: equal for graphs that do the same on inputs of the same shapes.
        size: number of operations.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    key: str

    @property
    def size(self) -> int:
        """Number of operations."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def updated(self) -> list[Tensor]:
        """The inputs that the graph writes into, directly or through views."""
        places = dict(zip((n for n in self.module.graph.nodes if n.op == "placeholder"), self.inputs, strict=True))
        found: dict[int, Tensor] = {}
        for node in self.module.graph.nodes:
            if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                target = node.kwargs["out"] if "out" in node.kwargs else node.args[0]
                while isinstance(target, fx.Node) and target.op == "call_function" and target.args and is_view(target):
                    target = target.args[0]
                if target in places:
                    found[id(places[target])] = places[target]
        return list(found.values())


def capture(
    step: Callable[[], tuple[Tensor, ...]],
    *,
    changing: Iterable[Tensor],
    fixed: Iterable[Tensor] | None = None,
    flags: list[Tensor] | None = None,
    modules: Sequence[Any],
) -> Graph:
    """Records one call of `step`.

    The call is a real one: the caller restores what it updated.

    Args:
        changing: tensors whose values differ from step to step; what is read into Python must not depend on them.
        fixed: what alone may be read where others may change tensors between steps; None where nobody does.
        flags: takes what says that a step has no answer; the step makes its loss NaN where one is true.
        modules: model and guide, whose Python attributes must not change.

    Raises:
        Uncapturable: naming the operation and the line of the model.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    make_fx(torch.zeros, tracing_mode="real")(1)  # what torch imports now draws from NumPy's generator, not the model
    changing = list(changing)
    attributes = Attributes(modules)
    if attributes.unseen:
        raise Uncapturable(f"whether '{attributes.unseen}' moves on cannot be seen, and a graph holds one value of it")
    asked = Asked(modules)
    generators = _generators()
    reads = _Reads(changing, None if fixed is None else list(fixed), flags)
    try:
        with reads, _Scalars(reads), PlainLosses(), _one_mode(), _files(reads), _plain_recurrence(), asked.watched():
            module = make_fx(step, tracing_mode="real")()
    except Uncapturable:
        raise
    except Exception as error:
        raise Uncapturable(explain(error)) from error
    if reads.refused is not None:  # the model caught it
        raise reads.refused
    if asked.refused:
        raise Uncapturable(asked.refused)
    if _generators() != generators:
        raise Uncapturable(f"the model draws from Python's or NumPy's random generator{_line_of_generator(step)}")
    after = Attributes(modules)
    changed = attributes.changed(after)
    if changed:
        raise Uncapturable(f"the attribute '{changed}' changes at every call, and a graph holds one value of it")
    graph = _lift(module)
    reads.check_updates(graph.updated())
    replaced = attributes.replaced(graph.inputs, after)
    if replaced:
        raise Uncapturable(
            f"the attribute '{replaced}' is another tensor after every call, and a graph holds one; update it in place (copy_, add_)"
        )
    for node in graph.module.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) and not _static_mask(node):
            raise Uncapturable(f"the shape of what {node.target} returns depends on values{reads.masked}")
    return graph


@contextlib.contextmanager
def _one_mode() -> Iterator[None]:
    """Inside, the values of a graph are described in one fake mode.

    torch makes a mode for each value, with a look at the whole call stack: a third of the time that capturing took.
    """
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental import proxy_tensor

    original, mode = proxy_tensor.extract_val, FakeTensorMode()

    def described(value: Any, include_real: bool = False) -> Any:
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        if not plain or detect_fake_mode(value) is not None:
            return original(value, include_real)
        with mode:
            return torch.empty_strided(value.shape, value.stride(), device=value.device, dtype=value.dtype)

    with patched(proxy_tensor, "extract_val", described):
        yield


@contextlib.contextmanager
def _plain_recurrence() -> Iterator[None]:
    """oneDNN's recurrent layers hand their backward pass tensors that are none, which no graph can hold."""
    used = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(used)


@contextlib.contextmanager
def _files(reads: _Reads) -> Iterator[None]:
    """Inside, a step that opens a file is refused: what it reads there, or counts there, may be another at the next step."""
    original = open

    def opened(*args: Any, **kwargs: Any) -> Any:
        if asked_by_the_user():
            reads.refused = Uncapturable(f"the model opens a file, and a graph holds what was in it{here()}")
            raise reads.refused
        return original(*args, **kwargs)

    with patched(builtins, "open", opened), patched(io, "open", opened):
        yield


def _static_mask(node: fx.Node) -> bool:
    """Whether an indexing, which has a fixed shape unless a mask is among its indices, has none."""
    if node.target is not torch.ops.aten.index.Tensor:
        return False
    kinds = [n.meta.get("tensor_meta") for n in node.args[1] if isinstance(n, fx.Node)]  # type: ignore[union-attr]
    return all(kind is not None and kind.dtype not in (torch.bool, torch.uint8) for kind in kinds)


def _lift(module: fx.GraphModule) -> Graph:
    """The graph with its constants turned into inputs, each tensor once."""
    from torch.fx.passes.shape_prop import _extract_tensor_metadata

    lifted = fx.Graph()
    inputs: list[Tensor] = []
    placeholders: dict[int, fx.Node] = {}
    env: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            tensor = getattr(module, node.target)
            if isinstance(tensor, fx.GraphModule):
                raise Uncapturable(
                    "the model uses torch.cond, or another operation that chooses among functions by a tensor's value"
                )
            if not isinstance(tensor, Tensor):
                raise Uncapturable(f"the model uses a {type(tensor).__name__} of its own, whose state a graph cannot hold")
            if id(tensor) not in placeholders:
                placeholders[id(tensor)] = lifted.placeholder(f"input_{len(inputs)}")
                placeholders[id(tensor)].meta["tensor_meta"] = _extract_tensor_metadata(tensor)
                inputs.append(tensor)
            env[node] = placeholders[id(tensor)]
    for node in reversed(module.graph.nodes):  # marks for the profiler
        if getattr(node.target, "namespace", "") == "profiler":
            module.graph.erase_node(node)
    for node in module.graph.nodes:
        if node.op != "get_attr":
            env[node] = lifted.node_copy(node, lambda n: env[n])
    lifted.eliminate_dead_code()
    graph = fx.GraphModule(nn.Module(), lifted)
    kinds = [(str(t.dtype), tuple(t.shape), tuple(t.stride()), str(t.device)) for t in inputs]
    key = hashlib.sha256(f"{graph.code}{kinds}".encode()).hexdigest()
    return Graph(graph, tuple(inputs), key)


#: What turns a tensor into a Python value.
_READS = {
    torch.Tensor.item: ".item()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.__array__: "np.asarray",
    torch.Tensor.__bool__: "bool() of a tensor",
    torch.Tensor.__float__: "float() of a tensor",
    torch.Tensor.__int__: "int() of a tensor",
    torch.Tensor.__index__: "a tensor as an index",
    torch.Tensor.__dlpack__: "from_dlpack",
    torch.Tensor.__repr__: "printing a tensor",
    torch.is_nonzero: "torch.is_nonzero",
    torch.equal: "torch.equal",
    torch.allclose: "torch.allclose",
    torch.Tensor.equal: "torch.equal",
    torch.Tensor.allclose: "torch.allclose",
}
_SCALAR = "what an operator takes for a number"
#: What makes a tensor of numbers, and takes tensors for such.
_LISTS = {
    torch.tensor: "torch.tensor",
    torch.as_tensor: "torch.as_tensor",
    torch.asarray: "torch.asarray",
    torch.Tensor.new_tensor: "new_tensor",
}
#: What has as many elements as the values decide.
_SHAPES = {
    torch.nonzero: "torch.nonzero",
    torch.Tensor.nonzero: "torch.nonzero",
    torch.argwhere: "torch.argwhere",
    torch.masked_select: "torch.masked_select",
    torch.Tensor.masked_select: "torch.masked_select",
    torch.unique: "torch.unique",
    torch.Tensor.unique: "torch.unique",
    torch.repeat_interleave: "torch.repeat_interleave",
    torch.Tensor.repeat_interleave: "torch.repeat_interleave",
    torch.bincount: "torch.bincount",
    torch.Tensor.bincount: "torch.bincount",
}


class _Reads(TorchFunctionMode):
    """Lets a step read values that depend on unchanging tensors alone, and refuses every other."""

    def __init__(self, changing: Sequence[Tensor], fixed: Sequence[Tensor] | None, flags: list[Tensor] | None) -> None:
        super().__init__()
        self.flags = flags
        self.changing = {id(t) for t in changing}
        self.fixed = None if fixed is None else {id(t) for t in fixed}
        self.kept = [*changing, *(fixed or ())]
        #: Tensors that values were read from, each with what was in it by then, the operation and its line.
        self.sources: list[tuple[Tensor, int, str]] = []
        self.refused: Uncapturable | None = None
        self.allowed = False
        #: The line that last wrote where a mask of changing values is true.
        self.masked = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.random_ and len(args) > 1 and not kwargs:
            # The name of torch's own argument, `from`, is none in the code of a graph.
            tensor, *bounds = args
            drawn: Tensor = torch.ops.aten.randint(*bounds, tensor.shape, dtype=tensor.dtype, device=tensor.device)
            return tensor.copy_(drawn)
        operation = _READS.get(func) or _SHAPES.get(func)
        if func is torch.Tensor.__getitem__ and any(_is_mask(t) for t in tensors_in(args[1])):
            if any(self._changes(t, f"indexing with a mask{here()}") for t in tensors_in(args[1])):
                operation = "indexing with a mask"
            else:
                with self._reading():
                    index = _without_masks(args[1])
                return func(args[0], index)
        if func is torch.Tensor.__setitem__ and any(_is_mask(t) for t in tensors_in(args[1])):
            known = len(self.sources)
            if not any(self._changes(t, f"indexing with a mask{here()}") for t in tensors_in(args[1])):
                with self._reading():
                    index = _without_masks(args[1])
                return func(args[0], index, args[2])
            del self.sources[known:]  # nothing is read where values are written under a mask
            self.masked = here()
        if func is torch.nn.functional.one_hot and len(args) == 1 and set(kwargs) == {"num_classes"}:
            args, kwargs = (*args, kwargs["num_classes"]), {}
        if func is torch.nn.functional.one_hot and len(args) == 2 and isinstance(args[1], int) and args[1] > 0:
            # Torch's own reads whether a class is out of range; here the loss is then none. What torch draws is in range.
            labels, classes = args
            of_torch = sys._getframe(1).f_code.co_filename == one_hot_categorical.__file__
            if of_torch or (self.flags is not None and not labels.is_floating_point()):
                if not of_torch and self.flags is not None:
                    below, above = out_of_range(labels, classes)
                    self.flags.append(below | above)
                return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).long()
        elif func is torch.nn.functional.one_hot and (kwargs.get("num_classes", -1) if len(args) == 1 else args[1]) == -1:
            operation = "one_hot without num_classes"
        if func is torch.where and len(args) == 1 and not kwargs:
            operation = "torch.where with a condition alone"
        read: Any = (args, kwargs)
        if func in _LISTS:
            read = [t for given in (args[func is torch.Tensor.new_tensor :], kwargs) for t in _listed(given)]
            operation = f"{_LISTS[func]} of tensors" if read else None
        if operation is None:
            return func(*args, **kwargs)
        self.read(operation, tensors_in(read), shape=func not in _READS and func not in _LISTS)
        with self._reading():
            return func(*args, **kwargs)

    def read(self, operation: str, tensors: Iterable[Tensor], *, shape: bool = False) -> None:
        """Notes that values of tensors become Python's.

        Raises:
            Uncapturable: they may be others at another step.
        """
        where = f"{operation}{here()}"
        operation = f"{operation} is used on" if operation != _SCALAR else f"{operation} is"
        if any(self._changes(t, where) for t in tensors):
            kind = "the shape of its result differs" if shape else "its value differs"
            self.refused = Uncapturable(
                f"{operation} a tensor that depends on draws, parameters or the batch, so {kind} from step to step{here()}"
            )
            raise self.refused

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Inside, values are read that do not change."""
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

        before, self.allowed = self.allowed, True
        try:
            with disable_proxy_modes_tracing():
                yield
        finally:
            self.allowed = before

    def _given_changes(self, tensor: Tensor) -> bool:
        """Whether a tensor that the step did not make itself may have another value at another step."""
        return id(tensor) in self.changing or (self.fixed is not None and id(tensor) not in self.fixed)

    def check_updates(self, updated: Iterable[Tensor]) -> None:
        """Raises Uncapturable where a step updates, before or after, a tensor that a value was read from."""
        written = {t.untyped_storage().data_ptr() for t in updated}
        for tensor, values, where in self.sources:
            if tensor.untyped_storage().data_ptr() in written or _checksum(tensor) != values:
                raise Uncapturable(
                    f"a value is read from a tensor that the step updates, so it differs from step to step: {where}"
                )

    def _note(self, tensor: Any, where: str) -> None:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            with self._reading():
                self.sources.append((tensor, _checksum(tensor), where))

    def _changes(self, tensor: Tensor, where: str) -> bool:
        """Whether a tensor may have another value at another step; the tensors from outside that it was made of are noted."""
        from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

        tensor = unwrapped(tensor)
        mode = get_proxy_mode()
        slot: Any = get_proxy_slot(tensor, mode.tracer, None) if mode is not None else None
        if id(tensor) in self.changing or slot is None or mode is None:
            self._note(tensor, where)
            return self._given_changes(tensor)
        tracer: Any = mode.tracer
        root, todo, seen = tracer.root, [slot.proxy.node], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op == "get_attr":
                self._note(getattr(root, node.target), where)
                if self._given_changes(getattr(root, node.target)):
                    return True
            if node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                return True
            todo += node.all_input_nodes
            # What was written into a tensor later is part of it.
            todo += [u for u in node.users if getattr(getattr(u.target, "_schema", None), "is_mutable", False)]
        return False


class _Scalars(TorchDispatchMode):
    """Sees values that torch's own code reads: where an operator takes a number (`torch.full((), t)`, `add(alpha=t)`, `x[t]`), a tensor
    without dimensions will do, and no function of Python's is called for it."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self.reads.allowed:
            self.reads.read(_SCALAR, args)
        return func(*args, **(kwargs or {}))


def _checksum(tensor: Tensor) -> int:
    """One number for the values in a tensor, which NumPy may have changed; of a GPU's, that of its version."""
    if tensor.device.type != "cpu":
        return tensor._version
    return checksum(tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy())


def _listed(given: Any) -> Iterator[Tensor]:
    """The tensors inside of lists: a tensor by itself is copied, and its values are not read."""
    values = given.values() if isinstance(given, dict) else given
    for value in values:
        if not isinstance(value, Tensor):
            yield from tensors_in(value)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _without_masks(index: Any) -> tuple[Any, ...]:
    """The same index with row numbers in the place of masks."""
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        parts += part.nonzero(as_tuple=True) if isinstance(part, Tensor) and _is_mask(part) else [part]
    return tuple(parts)


def _generators() -> tuple[Any, ...]:
    """Where Python's and NumPy's global generators stand."""
    _, key, position, has_normal, normal = np.random.get_state()  # noqa: NPY002
    return random.getstate(), int(key[0]), position, has_normal, normal


def _line_of_generator(step: Callable[[], Any]) -> str:
    """The line that moves Python's or NumPy's generator, from one more run, looked at line by line."""
    found: list[str] = []

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if is_library(frame.f_code.co_filename):
            return None
        last = [_generators(), frame.f_lineno]

        def lines(frame: Any, event: str, argument: Any) -> Any:
            now = _generators()
            if now != last[0] and not found:
                found.append(place(frame.f_code.co_filename, last[1]))
            last[:] = [now, frame.f_lineno]
            return lines

        return lines

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        step()
    finally:
        sys.settrace(before)
    return found[0] if found else ""


def run_on(graph: Graph, tensors: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Runs the graph, operation by operation, on other tensors in the place of some inputs (by id)."""
    with torch.no_grad():
        out: tuple[Tensor, ...] = graph.module(*[tensors.get(id(t), t) for t in graph.inputs])
    return out
