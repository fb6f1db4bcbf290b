"""The compiled engine: one step captured as a graph, checked against the eager step, compiled, and run in blocks."""

from __future__ import annotations

import contextlib
import importlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .attributes import Unwatched, kept_attributes
from .capture import Graph, Uncapturable, capture, explain, run_on
from .inductor import Compiled, compile_graph, compiler_lock, lacking_compiler, prepared
from .invariants import hoist
from .noise import kept_generators
from .places import PACKAGE
from .replay import Replay, record
from .tables import StepInputs
from .training import Loop

type Mode = Literal["auto"] | bool

#: An eager step takes about so many seconds for each node of its autograd graph; compiling takes so many, and so many a node.
EAGER_SECONDS, COMPILE_SECONDS, COMPILE_SECONDS_A_NODE = 1.5e-5, 4.0, 0.05
#: Nodes of a small model's step.
_TYPICAL = 100
#: A graph of more operations is not compiled unless asked for.
LARGEST = 5000


#: What the capture itself sets in the optimiser's groups, and what is no number.
_GROUP_KEYS = {"params", "lr", "foreach", "fused", "capturable"}


class NotCompiledWarning(UserWarning):
    """A fit runs on the eager engine although the compiled one was wanted; the message says why."""


def warn_eager(reason: str) -> None:
    """The one warning, at the line that called the package."""
    warnings.warn(f"the fit runs on the eager engine: {reason}", NotCompiledWarning, stacklevel=2, skip_file_prefixes=PACKAGE)


@dataclass
class Compiler:
    """Decides whether a loop is compiled, and makes its engine.

    `auto` decides from the steps done and to come and the size of the step alone, never from the clock, so the same seed gives
    the same losses.

    Attributes:
        held: buffers of modules that functions hold.
    """

    mode: Mode
    modules: Sequence[Any]
    streamed: bool = False
    held: Callable[[], Sequence[Tensor]] = tuple
    seconds: float = 0.0
    settled: bool = False
    _nodes: int = field(default=0, init=False)

    def __call__(self, loop: Loop) -> Engine | None:
        """The engine for the coming steps, or None for the eager one."""
        if self.mode is False or self.settled or not loop.leaves or not self._worthwhile(loop):
            return None
        self.settled = True
        began = time.perf_counter()
        try:
            return self._engine(loop)
        except Uncapturable as reason:
            if self.mode is True:
                raise ValueError(
                    f"compile=True, but the step cannot be compiled: {reason}; use compile='auto' or False, or change the model"
                ) from reason
            warn_eager(str(reason))
            return None
        finally:
            self.seconds += time.perf_counter() - began

    def _worthwhile(self, loop: Loop) -> bool:
        if self.mode is True:
            return True
        if loop.callbacks:
            return False  # a callback may change what a graph would hold
        done = len(loop.history.losses)
        # A run to convergence is expected to take as long again as it has taken.
        to_come = done if loop.total_steps is None else loop.total_steps - done
        self._nodes = self._nodes or _nodes(loop, self.modules)
        return to_come * self._nodes * EAGER_SECONDS > COMPILE_SECONDS + self._nodes * COMPILE_SECONDS_A_NODE

    def _engine(self, loop: Loop) -> Engine:
        reason = lacking_compiler(loop.leaves[0].device)
        if reason:
            raise Uncapturable(reason)
        if _has_hooks(loop.optimizer):
            raise Uncapturable("the optimiser has hooks, or a step of its own, whose Python a graph would not run")
        try:
            step = Step(loop, self.modules, self.streamed, self.held())
            with prepared(loop.leaves[0].device), kept_generators():
                with kept_attributes(self.modules) as moving:
                    if moving and self.mode == "auto":
                        raise Uncapturable(
                            f"'{moving}' moves on when it is asked, as iterators do, and nothing sends it back after a trial "
                            "(compile=True tries)"
                        )
                    graph = step.capture()
                    step.find_disturbance()
                    if self.mode == "auto" and graph.size > LARGEST:
                        raise Uncapturable(
                            f"the step has {graph.size} operations, which would take minutes to compile (compile=True does)"
                        )
                    graph = hoist(graph, step.fixed(graph))
                    step.check(graph)
                return Engine(step, graph, compile_graph(graph))
        except Uncapturable:
            raise
        except Exception as error:  # a model may fail in any way when its step is run once more
            raise Uncapturable(explain(error)) from error


def _has_hooks(optimizer: Any) -> bool:
    """Whether `step` does more than the update: hooks of its own or of all optimisers, or a method put in its place."""
    module = importlib.import_module("torch.optim.optimizer")
    hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [getattr(module, f"_global_optimizer_{when}_hooks", {}) for when in ("pre", "post")]
    return any(hooks) or "step" in vars(optimizer)


def _nodes(loop: Loop, modules: Sequence[Any]) -> int:
    """Size of the autograd graph of one step, which leaves the modules as they were; a guess where no step can be taken back."""
    try:
        with kept_generators(), kept_attributes(modules) as moving:
            if moving:
                return _TYPICAL
            kwargs = loop.batch(loop.tables.rows[0].index) if loop.recent is None else loop.recent
            with _kept_values(loop.leaves):  # a model may move what it trains by itself, too
                surrogate, _ = loop.evaluate(kwargs, loop.tables.rows[0])
    except Unwatched:
        return _TYPICAL
    seen, todo = set(), [surrogate.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


@contextlib.contextmanager
def _kept_values(tensors: Sequence[Tensor]) -> Iterator[None]:
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


class Step:
    """The traceable step of a loop on row 0 of its tables, and everything that it updates."""

    def __init__(self, loop: Loop, modules: Sequence[Any], streamed: bool, held: Sequence[Tensor] = ()) -> None:
        self.loop, self.modules = loop, modules
        self.row: StepInputs = loop.tables.rows[0]
        device = loop.leaves[0].device
        self.base_rates = [torch.tensor(rate, dtype=torch.float64, device=device) for rate in loop.base_rates]
        self.scale = 0.0
        self.trained: list[bool] = []
        # Rows of a stream may be drawn as they are fetched, so none is fetched for a trial.
        self.staged = dict(loop.recent or loop.batch(self.row.index)) if streamed else None
        if self.staged is not None:
            self.staged = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.staged.items()}
        for state in loop.optimizer.state.values():
            count = state.get("step")
            if isinstance(count, Tensor) and count.dtype == torch.float32 and not loop.optimizer.defaults.get("fused"):
                # Powers of the decay rates need more digits than single precision has.
                state["step"] = count.to(device=device, dtype=torch.float64)
        if device.type == "cuda":
            for group in loop.optimizer.param_groups:
                group.update({"capturable": True} if "capturable" in group else {})
        buffers = [*held, *(b for m in modules if isinstance(m, nn.Module) for b in m.buffers())]
        states = [v for s in loop.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        sums = loop.tail.sums if loop.tail is not None else []
        #: What a step may change, each tensor once.
        self.state = list({id(t): t for t in [*loop.leaves, *states, *sums, *buffers]}.values())

    def __call__(self) -> tuple[Tensor, ...]:
        """One real update."""
        kwargs = self.loop.batch(self.row.index) if self.staged is None else self.staged
        rates = [self.row.factor * base for base in self.base_rates]
        results = self.loop.step_traceably(self.row, kwargs, rates)
        self.trained = [p.grad is not None for p in self.loop.leaves]
        return results

    def clear(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """For each parameter, 1 where its gradient is more than rounding: only there has an update a meaning, as optimisers
        that divide by the gradient's size (Adam) make a step of any rounding."""
        given = iter(grads)
        each = [
            next(given).abs() if trained else torch.zeros_like(p)
            for p, trained in zip(self.loop.leaves, self.trained, strict=True)
        ]
        greatest = max(
            (g[torch.isfinite(g)].max() for g in each if g.numel() and bool(torch.isfinite(g).any())), default=torch.zeros(())
        )
        return [(g > (1e-6 if g.dtype == torch.float64 else 1e-3) * greatest).to(g.dtype) for g in each]

    def changing(self) -> list[Tensor]:
        """Tensors with other values at another step."""
        staged = [v for v in (self.staged or {}).values() if isinstance(v, Tensor)]
        return [*self.state, *self.row.tensors().values(), *staged]

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Puts everything that steps change back as it was."""
        kept = [(t, t.detach().clone()) for t in [*self.state, *self.row.tensors().values()]]
        try:
            with self._traceable_optimizer():
                yield
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            self.loop.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def _traceable_optimizer(self) -> Iterator[None]:
        """Torch's optimisers take learning rates as tensors, and read nothing, where they believe that they are compiled."""
        groups = self.loop.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group in groups:
            group.update({k: v for k, v in {"foreach": False, "fused": False, "capturable": True}.items() if k in group})
        try:
            with compiler_lock(), torch.compiler._compile_session_context(), _TensorFactors():
                yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.update(before)

    def capture(self) -> Graph:
        """The step as a graph."""
        before = self._optimizer_numbers()
        with self.undone():
            fixed: list[Tensor] | None = [] if self.loop.callbacks else None  # a callback may change the data, too
            graph = capture(self, changing=self.changing(), fixed=fixed, flags=self.loop.flags, modules=self.modules)
            if self._optimizer_numbers() != before:
                raise Uncapturable(f"the optimiser {type(self.loop.optimizer).__name__} counts in Python")
        known = {id(t) for t in self.changing()}
        self.state += [t for t in graph.updated() if id(t) not in known]
        return graph

    def fixed(self, graph: Graph) -> set[int]:
        """The ids of the graph's inputs that have the same values at every step."""
        given = [] if self.loop.callbacks else graph.inputs
        # A detached parameter, or a part of a buffer, is another tensor over memory that changes.
        written = {t.untyped_storage().data_ptr() for t in self.changing()}
        return {id(t) for t in given if t.layout == torch.strided and t.untyped_storage().data_ptr() not in written}

    def _optimizer_numbers(self) -> Any:
        """What the optimiser keeps that is no tensor."""
        optimizer = self.loop.optimizer
        groups = [{k: v for k, v in g.items() if k not in _GROUP_KEYS} for g in optimizer.param_groups]
        states = [{k: v for k, v in s.items() if not isinstance(v, Tensor)} for s in optimizer.state.values()]
        return repr((groups, states))

    def check(self, graph: Graph) -> None:
        """Graph and step from other parameters, with other noise, another batch and reseeded generators.

        Raises:
            Uncapturable: they differ, so the graph holds something that changes.
        """
        for trial in (1, 2):
            with self.undone():
                self.disturb(trial)
                disturbed = [(t, t.detach().clone()) for t in [*self.state, *self.row.tensors().values()]]
                copies = {id(t): value.clone() for t, value in disturbed}
                before = [t.detach().clone() for t in self.loop.leaves]
                state = torch.get_rng_state()
                expected = run_on(graph, copies)
                torch.set_rng_state(state)
                random.seed(trial)
                np.random.seed(trial)  # noqa: NPY002
                actual = self()
                what = _difference(expected, actual, 1e-9, 1e-4) or self._updates_differ(before, copies, actual[1:])
                if trial == 1 and not what:
                    with torch.no_grad():
                        for tensor, value in disturbed:
                            tensor.copy_(value)
                    self._check_eager(expected[0], state)
            if what and self._overlap(graph):
                raise Uncapturable(
                    "the model updates a tensor and reads another that shares its memory (a part of it, kept as an attribute), which a "
                    "graph takes for two; take the part where it is read"
                )
            if what:
                raise Uncapturable(
                    f"{what} differs when the same step is run again, so something in it changes from call to call without being "
                    "a tensor (a counter, a random generator of its own, a value turned into NumPy)"
                )

    @staticmethod
    def _overlap(graph: Graph) -> bool:
        """Whether two inputs share memory that the graph writes into."""
        places = [t.untyped_storage().data_ptr() for t in graph.inputs if t.layout == torch.strided]
        return any(places.count(t.untyped_storage().data_ptr()) > 1 for t in graph.updated())

    def _check_eager(self, expected: Tensor, generator: Tensor) -> None:
        """The graph's loss against the loss of an eager step, which torch does not believe to be compiled.

        Raises:
            Uncapturable: they differ, so the model asks whether it is compiled and then does something else.
        """
        torch.set_rng_state(generator)
        kwargs = self.loop.batch(self.row.index) if self.staged is None else self.staged
        with _as_eager():
            _, loss = self.loop.evaluate(kwargs, self.row, strict=True)
        if _difference([expected], [loss.detach()], 1e-9, 1e-4):
            raise Uncapturable(
                "the loss differs from that of an eager step: the model asks torch.compiler whether it is compiled"
            )

    def _updates_differ(self, before: Sequence[Tensor], copies: dict[int, Tensor], grads: Sequence[Tensor]) -> str:
        # Of many weights some have gradients that are rounding alone, of which Adam makes whole steps.
        changes = zip(self.loop.leaves, before, self.clear(grads), strict=True)
        updates, actual = zip(*(((copies[id(p)] - b) * c, (p.detach() - b) * c) for p, b, c in changes), strict=True)
        return "an optimiser's update" if _difference(updates, actual, 1e-7, 1e-2) else ""

    def find_disturbance(self) -> None:
        """The greatest change of the parameters at which the step still has a finite loss."""
        for self.scale in (0.1, 1e-3, 0.0):
            with self.undone():
                self.disturb(1)
                try:
                    if bool(torch.isfinite(self()[0]).all()):
                        return
                except (RuntimeError, ValueError):  # a factorisation that fails there, say
                    continue

    def disturb(self, seed: int) -> None:
        """Other parameters, other noise, other rows."""
        generator = torch.Generator().manual_seed(seed)

        def draw(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

        with torch.no_grad():
            for p in self.loop.leaves:
                p.add_(self.scale * draw(p))
            self.row.noise.normal.copy_(draw(self.row.noise.normal))
            self.row.kl_weight.fill_(0.5)
            self.row.factor.fill_(0.7)
            if self.row.scalars is not None:
                self.row.scalars.copy_(torch.tensor([0.01, 0.02, 1.5]).expand_as(self.row.scalars))
            self.row.noise.uniform.copy_(torch.rand(self.row.noise.uniform.shape, generator=generator))
            if self.row.index is not None:
                rows = self.loop.objective.program.num_data
                self.row.index.copy_(torch.randint(rows, self.row.index.shape, generator=generator))


@contextlib.contextmanager
def _as_eager() -> Iterator[None]:
    """Inside, torch says that nothing is being compiled."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


class _TensorFactors(TorchFunctionMode):
    """Optimisers pass the learning rate where torch wants a Python number: this writes the product out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("alpha"), Tensor) and func in (torch.Tensor.add_, torch.Tensor.add):
            return func(args[0], kwargs["alpha"].to(args[0].dtype) * args[1])
        if isinstance(kwargs.get("value"), Tensor) and func in (torch.Tensor.addcdiv_, torch.Tensor.addcmul_):
            value = kwargs["value"].to(args[0].dtype)
            return args[0].add_(value * (args[1] / args[2] if func is torch.Tensor.addcdiv_ else args[1] * args[2]))
        return func(*args, **kwargs)


def _difference(expected: Sequence[Tensor], actual: Sequence[Tensor], double: float, single: float) -> str:
    """What differs by more than a share of its greatest element: nothing, the loss (the first of the values) or a gradient.

    Args:
        double, single: the share that is rounding in float64, and in lower precision.
    """
    for k, (a, b) in enumerate(zip(expected, actual, strict=True)):
        share = double if b.dtype == torch.float64 else single
        finite = torch.isfinite(a) & torch.isfinite(b)
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return "the loss" if k == 0 else "a gradient"
        if bool(((a - b)[finite].abs() > share * b[finite].abs().amax() if bool(finite.any()) else finite).any()):
            return "the loss" if k == 0 else "a gradient"
    return ""


def _change(before: Tensor, after: Tensor) -> Tensor:
    """after - before, of whole numbers and truth values, too."""
    return after - before if before.is_floating_point() else after.double() - before.double()


def _is_clear(value: Tensor, change: Tensor) -> Tensor:
    """1 where a tensor's change has at least three digits of its own."""
    if not value.is_floating_point():
        return torch.ones_like(change)
    return (change.abs() > 1e3 * torch.finfo(value.dtype).eps * value.detach().abs()).to(change.dtype)


class Engine:
    """Runs compiled steps on the rows of a loop's tables."""

    def __init__(self, step: Step, graph: Graph, compiled: Compiled) -> None:
        self.step, self.loop, self.compiled = step, step.loop, compiled
        names = {id(tensor): name for name, tensor in step.row.tensors().items()}
        self.moving = {k: names[id(t)] for k, t in enumerate(graph.inputs) if id(t) in names}
        self.inputs = [t.detach() for t in graph.inputs]  # what needs gradients cannot be updated in place
        self.calls: dict[int, list[Tensor]] = {}
        self.saved = [t.detach().clone() for t in step.state]
        self.finite = [p.detach().clone() for p in self.loop.leaves]
        self.replay: Replay | None = None
        self.device = self.loop.leaves[0].device
        self.cuda_graphs: dict[int, Any] = {}
        self._check(graph)
        self.loop.tables.compiled = True
        self.modules = [m for part in step.modules if isinstance(part, nn.Module) for m in part.modules()]
        self.kinds = self._kinds()

    def _kinds(self) -> list[Any]:
        """What a graph takes for granted of parameters and modules, and a callback may change."""
        return [(p.data_ptr(), p.requires_grad) for p in self.loop.leaves] + [m.training for m in self.modules]

    def advance(self, first: int, count: int) -> bool:
        """Runs rows first, ..., first + count - 1; False (and nothing changed) if a number was not finite."""
        loop = self.loop
        if loop.callbacks and self._kinds() != self.kinds:
            loop.engine = None
            warn_eager(
                "a callback has given a parameter other memory (p.data = ...), frozen or freed one, or changed a module's mode, which a graph "
                "does not see"
            )
            return False
        with torch.no_grad():
            torch._foreach_copy_(self.saved, self.step.state)
            generator = torch.get_rng_state()
            try:
                self._run(first, count - 1)
                torch._foreach_copy_(self.finite, loop.leaves)
                self._run(first + count - 1, 1)
            except KeyboardInterrupt:  # the steps of an unfinished block have no losses
                torch._foreach_copy_(self.step.state, self.saved)
                torch.set_rng_state(generator)
                raise
            except Exception as error:  # a shape that turned out to depend on values, memory that ran out
                torch._foreach_copy_(self.step.state, self.saved)
                torch.set_rng_state(generator)
                loop.engine = None
                warn_eager(explain(error))
                return False
            # A gradient that is not finite spoils the parameters, and the losses after it.
            if loop.tables.finite(first, count) and all(bool(torch.isfinite(p).all()) for p in loop.leaves):
                torch._foreach_copy_(loop.finite, self.finite)
                return True
            torch._foreach_copy_(self.step.state, self.saved)
            torch.set_rng_state(generator)
        return False

    def _run(self, first: int, count: int) -> None:
        if count <= 0:
            return
        if self.step.staged is not None:
            for row in range(first, first + count):
                self.loop.ask()
                self._stage(row)
                self.compiled.call(*self._call(row))
        elif self.replay is not None:
            self.replay.run(first, count)
        elif self.device.type == "cuda":
            for row in range(first, first + count):
                self._cuda_graph(row).replay()
        else:
            for row in range(first, first + count):
                self.loop.ask()
                self.compiled.call(*self._call(row))

    def _call(self, row: int) -> list[Tensor]:
        """The inputs of a step on one row."""
        if row not in self.calls:
            rows = self.loop.tables.rows[row].tensors()
            self.calls[row] = [rows[self.moving[k]] if k in self.moving else t for k, t in enumerate(self.inputs)]
        return self.calls[row]

    def _stage(self, row: int) -> None:
        """Copies a batch from the host to where the graph reads it."""
        batch = self.loop.batch(self.loop.tables.rows[row].index)
        for name, value in (self.step.staged or {}).items():
            if isinstance(value, Tensor):
                value.copy_(batch[name])

    def _cuda_graph(self, row: int) -> Any:
        """The step on one row as a CUDA graph; all of them share their memory."""
        if row not in self.cuda_graphs:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.cuda_graphs.values())).pool() if self.cuda_graphs else None
            call = self._call(row)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=pool):
                self.compiled.call(*call)
            self.cuda_graphs[row] = graph
        return self.cuda_graphs[row]

    def _check(self, graph: Graph) -> None:
        """Compiled code against the graph, and recorded calls against compiled code.

        Raises:
            Uncapturable: the compiled code computes something else.
        """
        step = self.step
        with compiler_lock():
            replay = record(self.compiled, self._call(0), self._storages())
        state = torch.get_rng_state()
        rows = min(2, self.loop.tables.steps)

        def results(
            way: Callable[[dict[int, Tensor]], Any], *, rows: int = 1, on_copies: bool = False
        ) -> tuple[list[Tensor], Any]:
            """Changes of the losses, the parameters and all else that a step updates."""
            with step.undone(), self._second_row(), torch.no_grad():
                torch.set_rng_state(state)
                step.disturb(3)
                if rows > 1:
                    self._copy_row()
                copies = {id(t): t.detach().clone() for t in step.changing()} if on_copies else {}
                before = {id(t): t.detach().clone() for t in step.state}
                returned = way(copies)
                losses = [copies.get(id(r.loss), r.loss).clone() for r in map(self.loop.tables.rows.__getitem__, range(rows))]
                return [*losses, *(_change(before[id(t)], copies.get(id(t), t).detach()) for t in step.state)], returned

        def differ(a: Sequence[Tensor], b: Sequence[Tensor], double: float, single: float) -> str:
            weights = [torch.ones_like(x) for x in a[: len(a) - len(step.state)]] + clear
            first, second = ([x * c for x, c in zip(values, weights, strict=True)] for values in (a, b))
            return _difference(first, second, double, single)

        wanted, (_, *grads) = results(lambda copies: run_on(graph, copies), on_copies=True)
        clear = self._clear_state(step.clear(grads), wanted[1:])
        compiled, _ = results(lambda _: self.compiled.call(*self._call(0)))
        if differ(wanted, compiled, 1e-3, 1e-2):
            raise Uncapturable("the compiled step gives other numbers than the eager one")
        if replay is not None:
            called, _ = results(lambda _: [self.compiled.call(*self._call(row)) for row in range(rows)], rows=rows)
            replayed, _ = results(lambda _: replay.run(0, rows), rows=rows)
            if not differ(called, replayed, 1e-6, 1e-3):
                self.replay = replay

    def _clear_state(self, clear: Sequence[Tensor], changes: Sequence[Tensor]) -> list[Tensor]:
        """What of all that a step updates can be compared: of a parameter, its moments and its sum where its gradient is clear, of other
        tensors where their change is more than rounding."""
        loop = self.loop
        known = {id(p): c for p, c in zip(loop.leaves, clear, strict=True)}
        for p, c in zip(loop.leaves, clear, strict=True):
            known |= {
                id(t): c for t in loop.optimizer.state.get(p, {}).values() if isinstance(t, Tensor) and t.shape == p.shape
            }
        if loop.tail is not None:
            known |= {id(t): c for t, c in zip(loop.tail.sums, clear, strict=True)}
        return [known[id(t)] if id(t) in known else _is_clear(t, c) for t, c in zip(self.step.state, changes, strict=True)]

    @contextlib.contextmanager
    def _second_row(self) -> Iterator[None]:
        """Puts the second row of the tables back as it was."""
        kept = [(t, t.clone()) for t in self.loop.tables.rows[1].tensors().values()] if self.loop.tables.steps > 1 else []
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)

    def _copy_row(self) -> None:
        """The first row's noise, batch and numbers in the second."""
        first, second = (self.loop.tables.rows[k].tensors() for k in range(2))
        for name, tensor in second.items():
            tensor.copy_(first[name])

    def _storages(self) -> dict[str, Tensor]:
        return {name: table for name, table in self.loop.tables.storages.items() if table is not None}
