"""The compiled engine gives the eager engine's numbers, or says why it does not run."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import random
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import test_contract as contract
import torch
from pyro.nn import PyroModule
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference import NotCompiledWarning
from bayeszoo.inference.engine import compiled, inductor

STEPS = 100
#: Cases whose guide has nothing to train.
UNTRAINED = {
    name for name, case in contract.CASES.items() if case.guide in ("exact", "laplace") and not name.startswith("depth-")
}  # a network of adaptive depth trains its weights also where z is exact
#: One case a family is compiled in `make test`; of the others the captured graph is run as it is.
COMPILED_IN_TEST = {
    "coin-beta",
    "coin-map",
    "coin-mle",
    "known-full_rank",
    "known-low_rank",
    "unknown-mean_field",
    "unknown-iaf",
    "people-structured-batch",
    "switch-guide-batch",
    "weights-mean_field-batch",
    "weights-mc_dropout-batch",
}


def run(name: str, **options: Any) -> bz.inference.Fit:
    """A case in double precision, so that rounding leaves eight digits after many steps."""
    return contract.run(contract.CASES[name], dtype=torch.float64, **{"steps": STEPS, **options})


def assert_same(a: bz.inference.Fit, b: bz.inference.Fit, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(torch.tensor(b.losses), torch.tensor(a.losses), rtol=tolerance, atol=0.0)
    for mine, other in zip(parameters(a), parameters(b), strict=True):
        torch.testing.assert_close(other, mine, rtol=tolerance, atol=tolerance)


def parameters(fit: bz.inference.Fit) -> list[Tensor]:
    with fit.run.owned.active():
        return [p.detach().clone() for p in fit.run.owned.parameters().values()]


@pytest.mark.parametrize("name", sorted(set(contract.CASES) - UNTRAINED))
def test_captured_graph_equals_eager(name: str, uncompiled: None) -> None:
    # Operation by operation a graph is slow; the compiled one takes all steps below.
    a, b = (run(name, compile=compile, steps=30) for compile in (False, True))
    assert (a.engine, b.engine) == ("eager", "compiled")
    assert_same(a, b)


@pytest.mark.parametrize(
    "name",
    [n if n in COMPILED_IN_TEST else pytest.param(n, marks=pytest.mark.slow) for n in sorted(set(contract.CASES) - UNTRAINED)],
)
def test_compiled_equals_eager(name: str) -> None:
    a, b = run(name, compile=False), run(name, compile=True)
    assert (a.engine, b.engine) == ("eager", "compiled")
    assert_same(a, b)


@pytest.mark.parametrize("name", sorted(UNTRAINED))
def test_nothing_to_train_is_nothing_to_compile(name: str) -> None:
    assert run(name, compile=True).losses == run(name, compile=False).losses


OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, lr=0.02),
    "amsgrad": functools.partial(torch.optim.Adam, lr=0.02, amsgrad=True),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.02),
    "sgd": functools.partial(torch.optim.SGD, lr=0.002, momentum=0.9, nesterov=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01),
    "adamax": functools.partial(torch.optim.Adamax, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_schedules_and_clipping(optimizer: str, uncompiled: None) -> None:
    options = {"optimizer": OPTIMIZERS[optimizer], "schedule": "cosine", "clip_norm": 1.0}
    a, b = run("unknown-mean_field", compile=False, **options), run("unknown-mean_field", compile=True, **options)
    assert b.engine == "compiled"
    assert_same(a, b)


def hooked(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam that keeps its parameters within bounds after each step."""
    optimizer = torch.optim.Adam(parameters, lr=0.05)

    def clamp(*_: Any) -> None:
        with torch.no_grad():
            for p in parameters:
                p.clamp_(-0.02, 0.02)

    optimizer.register_step_post_hook(clamp)
    return optimizer


def test_hooks_of_an_optimizer_run(eager_is_dear: None) -> None:
    """They are Python, which may count or look at anything: no graph runs them."""
    with pytest.warns(NotCompiledWarning, match="the optimiser has hooks"):
        fit = fit_slope(optimizer=hooked)
    assert fit.engine == "eager"
    assert max(float(p.abs().max()) for p in parameters(fit)) <= 0.02
    assert max(float(p.abs().max()) for p in parameters(fit_slope(optimizer=0.05, compile=False))) > 0.04
    with pytest.raises(ValueError, match="the optimiser has hooks"):
        fit_slope(optimizer=hooked, compile=True)


@pytest.mark.parametrize("spoiled", ["exp_avg_sq", "exp_avg", "step"])
def test_a_compiled_step_that_spoils_the_optimisers_state_is_refused(monkeypatch: pytest.MonkeyPatch, spoiled: str) -> None:
    """Losses and parameters of the first step are right; those of the second would not be."""
    optimizers: list[torch.optim.Optimizer] = []
    original = compiled.compile_graph

    def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.Adam(parameters, lr=0.05))
        return optimizers[-1]

    def spoil(graph: Any) -> inductor.Compiled:
        right = original(graph)

        def call(*inputs: Any) -> Any:
            found = right.call(*inputs)
            for state in optimizers[-1].state.values():
                state[spoiled].mul_(1.1)
            return found

        return inductor.Compiled(call, None)

    monkeypatch.setattr(compiled, "compile_graph", spoil)
    with pytest.raises(ValueError, match="the compiled step gives other numbers than the eager one"):
        fit_slope(compile=True, optimizer=adam)


def test_updates_are_compared_where_gradients_are_more_than_rounding() -> None:
    """Adam makes a whole step of a gradient in the eighth digit: with many weights some differ whenever a step is run again."""
    leaf = torch.tensor([0.1, 0.1])
    step: Any = object.__new__(compiled.Step)
    step.loop = types.SimpleNamespace(leaves=[leaf])
    step.trained = [True]
    before, grads = [torch.zeros(2)], [torch.tensor([1.0, 1e-8])]
    assert not step._updates_differ(before, {id(leaf): torch.tensor([0.1, -0.1])}, grads)
    assert step._updates_differ(before, {id(leaf): torch.tensor([0.2, 0.1])}, grads) == "an optimiser's update"


def test_recorded_calls_are_compared_on_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that takes every step on the first row is right about that row alone: the compiled code is then called itself."""
    eager = fit_slope(compile=False)
    original, replays = compiled.record, []

    def first_row_only(*arguments: Any) -> Any:
        right = original(*arguments)
        assert right is not None

        def run(first: int, count: int) -> None:
            for _ in range(count):
                right.run(0, 1)

        replays.append(dataclasses.replace(right, run=run))
        return replays[-1]

    monkeypatch.setattr(compiled, "record", first_row_only)
    fit = fit_slope(compile=True)
    assert fit.engine == "compiled"
    assert replays
    assert_same(eager, fit)


@pytest.mark.parametrize(
    "name", ["weights-mean_field-batch", "weights-mc_dropout-batch", "known-low_rank", "unknown-mean_field"]
)
def test_compiled_equals_eager_in_single_precision(name: str) -> None:
    """The functions written into loops and the products of bayeszoo's own are of single precision alone.

    Rounding in the seventh digit grows through the steps: Adam divides by a gradient's size, whatever it is. Ten steps in, three
    digits are left of the worst of these cases; a function or product wrong in its third digit would show.
    """
    options: dict[str, Any] = {"steps": 10, "optimizer": functools.partial(torch.optim.Adam, lr=0.005)}
    a, b = (contract.run(contract.CASES[name], dtype=torch.float32, compile=compile, **options) for compile in (False, True))
    assert (a.engine, b.engine) == ("eager", "compiled")
    torch.testing.assert_close(torch.tensor(b.losses), torch.tensor(a.losses), rtol=1e-4, atol=0.0)


def test_annealed_kl_weight(uncompiled: None) -> None:
    options: dict[str, Any] = {"kl_weight": lambda step, steps: step / steps}
    a, b = run("unknown-mean_field", compile=False, **options), run("unknown-mean_field", compile=True, **options)
    assert b.engine == "compiled"
    assert_same(a, b)
    assert a.losses[2:] != run("unknown-mean_field", compile=False).losses[2:]


def test_run_to_convergence_is_the_same(uncompiled: None) -> None:
    a = run("unknown-full_rank", compile=False, steps=None)
    b = run("unknown-full_rank", compile=True, steps=None)
    assert b.engine == "compiled"
    assert len(a.losses) == len(b.losses)
    assert a.stop_reason == b.stop_reason
    assert_same(a, b, 1e-6)


class Slope(PyroModule):
    """Two standard normal latents and an observation; `extra` sees the draws."""

    extra: Callable[[Tensor, Tensor], Any] = staticmethod(lambda a, b: 0.0)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
        shift = self.extra(a, b)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("y", dist.Normal(a + b * x + shift, 1.0), obs=y)


def slope(extra: Callable[[Tensor, Tensor], Any] | None = None) -> tuple[Any, bz.data.Data]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    y = 0.3 + 0.7 * x + torch.randn(30, generator=generator, dtype=torch.float64)
    model = Slope()
    if extra is not None:
        object.__setattr__(model, "extra", extra)
    return model, bz.data.Data(inputs={"x": x}, observed=y)


def fit_slope(extra: Callable[[Tensor, Tensor], Any] | None = None, **options: Any) -> bz.inference.Fit:
    model, data = slope(extra)
    return bz.fit(model, data, "mean_field", progress=False, **{"steps": 60, "loss": "monte_carlo", **options})


def control_flow(a: Tensor, b: Tensor) -> Tensor:
    if a > 0.3:
        return a - 1.0
    return b


def reads_numpy(a: Tensor, b: Tensor) -> float:
    return float(np.tanh(a.detach().numpy()))


def draws_numpy(a: Tensor, b: Tensor) -> float:
    return float(np.random.randn())  # noqa: NPY002


def draws_python(a: Tensor, b: Tensor) -> float:
    return random.random()


def masks(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    return both[both > 0.3].sum()


_own_generator = np.random.default_rng(0)


def draws_own_generator(a: Tensor, b: Tensor) -> float:
    return float(_own_generator.standard_normal())


_calls: list[int] = []


def counts(a: Tensor, b: Tensor) -> float:
    _calls.append(1)
    return 1.0 / len(_calls)


def shape_of_where(a: Tensor, b: Tensor) -> float:
    return 0.1 * torch.where(torch.stack([a, b]) > 0.3)[0].numel()


def catches(a: Tensor, b: Tensor) -> Tensor:
    try:
        return a if a > 0.3 else b
    except Exception:
        return b


_seen = [0]


_torch_generator = torch.Generator().manual_seed(0)


def draws_own_torch_generator(a: Tensor, b: Tensor) -> Tensor:
    return torch.randn((), generator=_torch_generator, dtype=torch.float64)


def asks_whether_it_is_compiled(a: Tensor, b: Tensor) -> Tensor:
    return a if torch.compiler.is_compiling() else 5 * a


_numbers = (1.0 / k for k in range(1, 1_000_000))


def takes_the_next(a: Tensor, b: Tensor) -> float:
    return next(_numbers)


def prints(a: Tensor, b: Tensor) -> float:
    return float(repr(a.detach()).startswith("tensor(0.4"))


def hands_over(a: Tensor, b: Tensor) -> float:
    return float(np.from_dlpack(a.detach()) > 0.4)


def writes_where_a_draw_is_large(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    both[both > 0.3] = a * b
    return both.sum()


def chooses_a_function(a: Tensor, b: Tensor) -> Tensor:
    return torch.cond(a > 0.3, lambda a: a + 1.0, lambda a: 1.0 * a, (a,))


REFUSED = {
    prints: r"printing a tensor .*line \d+: return float\(repr",
    hands_over: r"from_dlpack .*line \d+: return float\(np.from_dlpack",
    writes_where_a_draw_is_large: r"depends on values \(test_compiled.py, line \d+: both\[both > 0.3\] = a \* b",
    chooses_a_function: "torch.cond",
    asks_whether_it_is_compiled: "the model asks torch.compiler whether it is compiled",
    shape_of_where: r"torch.where with a condition alone .*line \d+: return 0.1 \* torch.where",
    catches: r"bool\(\) of a tensor .*line \d+: return a if a > 0.3 else b",
    draws_own_torch_generator: "Generator of its own",
    control_flow: r"bool\(\) of a tensor .*test_compiled.py, line \d+: if a > 0.3:",
    reads_numpy: r"\.numpy\(\) .*line \d+: return float\(np.tanh",
    draws_numpy: r"random generator \(test_compiled.py, line \d+: return float\(np.random.randn",
    draws_python: r"random generator \(test_compiled.py, line \d+: return random.random",
    masks: r"indexing with a mask .*line \d+: return both\[both > 0.3\]",
    takes_the_next: "differs when the same step is run again",
    draws_own_generator: "the attribute '_own_generator' changes at every call",
    counts: "the attribute '_calls' changes at every call",
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.cond's own
@pytest.mark.parametrize("extra", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_a_graph_is_refused(extra: Any) -> None:
    with pytest.raises(ValueError, match="compile=True, but the step cannot be compiled: .*" + REFUSED[extra]):
        fit_slope(extra, compile=True)


@pytest.fixture
def eager_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` then wants to compile at once."""
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS_A_NODE", 0.0)


@pytest.mark.parametrize("extra", [control_flow, reads_numpy, masks], ids=lambda f: f.__name__)
def test_auto_falls_back_with_one_warning(extra: Any, eager_is_dear: None) -> None:
    with pytest.warns(NotCompiledWarning, match=REFUSED[extra]) as caught:
        fit = fit_slope(extra)
    assert len(caught) == 1
    assert fit.engine == "eager"
    assert fit.losses == fit_slope(extra, compile=False).losses


def test_negative_rows_of_an_embedding() -> None:
    """Rows that the data name, the last among them by -1, in minibatches."""

    class Embedding(PyroModule):
        def forward(self, ids: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Any = None) -> None:
            a = pyro.sample("a", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1))
            with pyro.plate("data", num_data or len(ids), subsample=index, dim=-1):
                pyro.sample("y", dist.Normal(self.table[ids] @ a, 1.0), obs=y)

    model = Embedding()
    model.register_buffer("table", torch.arange(20, dtype=torch.float64).reshape(5, 4).sin())
    ids = torch.tensor([0, -1, 3, 4, -5, 2, 1, -1])
    data = bz.data.Data(inputs={"ids": ids}, observed=torch.linspace(-1, 1, 8, dtype=torch.float64))
    fits = [bz.fit(model, data, "mean_field", steps=100, batch_size=4, progress=False, compile=c) for c in (False, True)]
    assert fits[1].engine == "compiled"
    assert_same(*fits)


def test_batch_norm_behind_a_bias() -> None:
    """The bias has no gradient but rounding, of which Adam makes steps: no reason to refuse."""

    class Normed(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
            )

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(a + self.net(x[:, None])[:, 0], 1.0), obs=y)

    torch.manual_seed(0)
    model, (_, data) = Normed(), slope()
    a, b = (bz.fit(model, data, "mean_field", steps=50, progress=False, compile=c) for c in (False, True))
    assert b.engine == "compiled"
    assert b.losses == pytest.approx(a.losses, rel=1e-6)


def test_rows_chosen_by_a_mask_of_the_data_are_written(uncompiled: None) -> None:
    class Written(PyroModule):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            mean = 0.5 * x
            mean[x > 0] = a * x[x > 0]
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    _, data = slope()
    a, b = (bz.fit(Written(), data, "mean_field", steps=60, progress=False, compile=c) for c in (False, True))
    assert b.engine == "compiled"
    assert_same(a, b)


def test_a_prior_of_correlations(uncompiled: None) -> None:
    def model(y: Tensor | None = None) -> None:
        tril = pyro.sample("L", dist.LKJCholesky(3, torch.tensor(2.0, dtype=torch.float64)))
        with pyro.plate("data", 40, dim=-1):
            pyro.sample("y", dist.MultivariateNormal(tril.new_zeros(3), scale_tril=tril), obs=y)

    y = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (
        bz.fit(model, bz.data.Data({}, y), "mean_field", steps=40, progress=False, compile=c, dtype=torch.float64)
        for c in (False, True)
    )
    assert b.engine == "compiled"
    assert_same(a, b)


def test_what_a_callback_may_change_is_not_read() -> None:
    beta = torch.zeros(())
    for read in (lambda: float(beta), lambda: float(beta * 1.0)):
        with pytest.raises(ValueError, match=r"float\(\) of a tensor"):
            fit_slope(lambda a, b, read=read: a * read(), compile=True, callbacks=[lambda progress: None])


def test_auto_leaves_callbacks_to_the_eager_engine(eager_is_dear: None) -> None:
    assert fit_slope(callbacks=[lambda progress: None]).engine == "eager"


def test_attribute_that_counts_is_named() -> None:
    class Counter(Slope):
        calls = 0

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            self.calls += 1
            return super().forward(x, y)

    _, data = slope()
    with pytest.raises(ValueError, match="the attribute 'calls' changes at every call"):
        bz.fit(Counter(), data, "mean_field", steps=60, progress=False, compile=True)


def later(calls: int) -> float:
    """Nothing for a long time, so that no replay shows it."""
    return 0.0 if calls < 10_000 else 1.0


def counted(x: Tensor, y: Tensor | None, calls: int) -> None:
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(a + later(calls), 1.0), obs=y)


class Counting:
    """Counts in an attribute, which `__call__` and `method` see, or in one of the class."""

    everywhere = 0

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)

    def method(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)

    def of_the_class(self, x: Tensor, y: Tensor | None = None) -> None:
        Counting.everywhere += 1
        counted(x, y, Counting.everywhere)


class Shadowed(PyroModule):
    """Counts on the instance what the class has too."""

    n = 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)


class Slotted:
    """Counts without a dictionary, behind a property."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    @property
    def next(self) -> int:
        self.n += 1
        return self.n


_slotted, _namespace = Slotted(), types.SimpleNamespace(n=0)
_array, _deque = np.zeros(3, dtype=int), collections.deque([0], maxlen=1)


def counts_in_a_slot(x: Tensor, y: Tensor | None = None) -> None:
    counted(x, y, _slotted.next)


def counts_in_a_namespace(x: Tensor, y: Tensor | None = None) -> None:
    _namespace.n += 1
    counted(x, y, _namespace.n)


def counts_in_an_array(x: Tensor, y: Tensor | None = None) -> None:
    _array[1] += 1
    counted(x, y, int(_array[1]))


def counts_in_a_deque(x: Tensor, y: Tensor | None = None) -> None:
    _deque.append(_deque[0] + 1)
    counted(x, y, _deque[0])


def counts_in_an_argument(state: dict[str, int], x: Tensor, y: Tensor | None = None) -> None:
    state["n"] += 1
    counted(x, y, state["n"])


def counts_in_a_default(x: Tensor, y: Tensor | None = None, *, state: Any = types.SimpleNamespace(held=[0])) -> None:  # noqa: B008
    state.held[0] += 1
    counted(x, y, state.held[0])


def counts_in_a_list(x: Tensor, y: Tensor | None = None) -> None:
    _seen[0] += 1
    counted(x, y, _seen[0])


def tally() -> int:
    _seen[0] += 1
    return _seen[0]


def counts_in_a_helper(x: Tensor, y: Tensor | None = None) -> None:
    counted(x, y, tally())


def counts_on_itself(x: Tensor, y: Tensor | None = None) -> None:
    counts_on_itself.calls = getattr(counts_on_itself, "calls", 0) + 1  # type: ignore[attr-defined]
    counted(x, y, counts_on_itself.calls)  # type: ignore[attr-defined]


def counts_in_a_closure() -> Any:
    n, state = 0, Counting()

    def rebinds(x: Tensor, y: Tensor | None = None) -> None:
        nonlocal n
        n += 1
        counted(x, y, n)

    def asks(x: Tensor, y: Tensor | None = None) -> None:
        state.n += 1
        counted(x, y, state.n)

    return rebinds, asks


def wrapped() -> Any:
    @functools.wraps(counts_in_a_list)
    def outer(x: Tensor, y: Tensor | None = None) -> None:
        counts_in_a_list(x, y)

    return outer


COUNTERS = {
    "object": lambda: (Counting(), "n"),
    "method": lambda: (Counting().method, "n"),
    "class": lambda: (Counting().of_the_class, "Counting.everywhere|everywhere"),
    "partial": lambda: (functools.partial(counts_in_an_argument, {"n": 0}), "args"),
    "class and instance": lambda: (Shadowed(), "n"),
    "slot": lambda: (counts_in_a_slot, "_slotted.n"),
    "namespace": lambda: (counts_in_a_namespace, "_namespace.n"),
    "array": lambda: (counts_in_an_array, "_array"),
    "deque": lambda: (counts_in_a_deque, "_deque"),
    "list": lambda: (counts_in_a_list, "_seen"),
    "helper": lambda: (counts_in_a_helper, "_seen"),
    "function": lambda: (counts_on_itself, "calls"),
    "closure": lambda: (counts_in_a_closure()[0], "n"),
    "object in a closure": lambda: (counts_in_a_closure()[1], "state.n"),
    "decorated": lambda: (wrapped(), "_seen"),
}


@pytest.mark.parametrize("where", COUNTERS)
def test_counters_are_found_wherever_they_stand(where: str, eager_is_dear: None) -> None:
    """Seen only after thousands of steps: what is kept gives them away, and is put back after the attempt."""
    model, name = COUNTERS[where]()
    _, data = slope()
    with pytest.raises(ValueError, match=f"the attribute '[^']*({name})[^']*' changes at every call"):
        bz.fit(model, data, "mean_field", steps=60, progress=False, compile=True)


class Level(enum.IntEnum):
    HIGH = 2


class Frozen(dict[str, Any]):
    """As configurations that may not be written to."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("frozen")

    update = __setitem__  # type: ignore[assignment]


_config, _system, _base = Frozen(scale=1.0), random.SystemRandom(), torch.zeros(1)
_wide = _base.expand(2)


def reaches_what_cannot_be_written(x: Tensor, y: Tensor | None = None) -> None:
    assert _system is not None
    _base.add_(0.0)
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), _config["scale"]))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(a * int(Level.HIGH) + _wide.sum().to(x), 1.0), obs=y)


def test_what_cannot_be_written_to_is_left_alone(uncompiled: None) -> None:
    _, data = slope()
    a, b = (
        bz.fit(reaches_what_cannot_be_written, data, "mean_field", steps=60, progress=False, compile=c) for c in (False, True)
    )
    assert b.engine == "compiled"
    assert_same(a, b)


def test_what_an_attempt_counted_is_put_back(eager_is_dear: None) -> None:
    _, data = slope()
    ends = []
    for compile in (False, "auto"):
        model = Counting()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotCompiledWarning)
            fit = bz.fit(model, data, "mean_field", steps=60, progress=False, compile=compile)
        assert fit.engine == "eager"
        ends.append(max(model.n, fit.model.n))
    assert ends[0] == ends[1]


def test_a_tensor_that_counts_in_a_closure(uncompiled: None) -> None:
    """The graph goes on counting, from where the attempt found it."""
    _, data = slope()
    fits = []
    for compile in (False, True):
        calls = torch.zeros((), dtype=torch.float64)

        def model(x: Tensor, y: Tensor | None = None, calls: Tensor = calls) -> None:
            calls.add_(1.0)
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(a + 0.01 * calls, 1.0), obs=y)

        fits.append(bz.fit(model, data, "mean_field", steps=60, progress=False, compile=compile))
    assert fits[1].engine == "compiled"
    assert_same(*fits)


class Rebinds(Slope):
    """Puts another tensor in the place of its buffer, of an attribute, or of one in a dictionary."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.last = where, torch.zeros((), dtype=torch.float64)
        self.kept = {"mean": self.last}
        self.register_buffer("mean", self.last)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        held = {"mean": self.mean, "last": self.last, "kept": self.kept["mean"], "unread": torch.zeros(())}[self.where]
        new = 0.9 * held + 0.1 * x.mean() + 0.01
        if self.where == "mean":
            self.mean = new
        elif self.where == "kept":
            self.kept = {"mean": new}
        else:
            self.last = new
        return super().forward(x + new, y)


@pytest.mark.parametrize("where", ["mean", "last", "kept"])
def test_a_tensor_that_is_replaced_instead_of_updated_is_named(where: str, eager_is_dear: None) -> None:
    _, data = slope()
    fits = []
    with pytest.raises(ValueError, match=f"the attribute '{where}(.mean)?' is another tensor after every call"):
        bz.fit(Rebinds(where), data, "mean_field", steps=60, progress=False, compile=True)
    for compile in (False, "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bz.inference.NotCompiledWarning)
            fits.append(bz.fit(Rebinds(where), data, "mean_field", steps=60, progress=False, compile=compile))
    # What the attempt replaced has been put back.
    assert fits[0].losses == fits[1].losses
    assert torch.equal(fits[0].model.mean, fits[1].model.mean)


def test_a_tensor_that_is_kept_and_never_read_may_be_replaced(uncompiled: None) -> None:
    _, data = slope()
    a, b = (bz.fit(Rebinds("unread"), data, "mean_field", steps=60, progress=False, compile=c) for c in (False, True))
    assert b.engine == "compiled"
    assert b.losses == pytest.approx(a.losses, rel=1e-8)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, eager_is_dear: None) -> None:
    monkeypatch.setattr(inductor.shutil, "which", lambda _: None)
    with pytest.warns(NotCompiledWarning, match="no C\\+\\+ compiler"):
        assert fit_slope().engine == "eager"
    with pytest.raises(ValueError, match=r"no C\+\+ compiler on this machine \(install"):
        fit_slope(compile=True)


def test_values_of_the_data_may_be_read(uncompiled: None) -> None:
    """A model may read what does not change: a maximum of the data, rows that are not missing."""

    class Reader(PyroModule):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            classes = int(x.max()) + 1
            seen = torch.isfinite(x)
            w = pyro.sample("w", dist.Normal(x.new_zeros(classes), 1.0).to_event(1))
            if bool((x[seen] >= 0).all()):
                with pyro.plate("data", len(x), dim=-1):
                    pyro.sample("y", dist.Normal(w[x.long()][seen], 1.0), obs=y)

    x = torch.tensor([0.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    data = bz.data.Data(inputs={"x": x}, observed=x.flip(0).clone())
    fits = [bz.fit(Reader(), data, "mean_field", steps=50, progress=False, compile=c) for c in (False, True)]
    assert fits[1].engine == "compiled"
    assert_same(*fits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_model_may_trace_something_itself(uncompiled: None) -> None:
    """Its tracing must find no fake mode of the capture's."""

    class Sine(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin() + 1

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        features = torch.export.export(Sine(), (x.detach(),)).module()(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(features @ w, 1.0), obs=y)

    x = torch.randn(12, 2, dtype=torch.float64)
    data = bz.data.Data(inputs={"x": x}, observed=x[:, 0])
    fits = [bz.fit(model, data, "mean_field", steps=5, progress=False, compile=c) for c in (False, True)]
    assert fits[1].engine == "compiled"
    assert_same(*fits)


def test_auto_decides_from_steps_and_size_alone() -> None:
    few, many = fit_slope(steps=30), fit_slope(steps=30_000)
    assert (few.engine, many.engine) == ("eager", "compiled")
    assert many.losses[:30] != few.losses  # the schedules differ
    assert fit_slope(steps=30_000).losses == many.losses


def test_auto_compiles_a_long_run_to_convergence(monkeypatch: pytest.MonkeyPatch, uncompiled: None) -> None:
    """A run that has taken long is expected to take as long again; the engine changes in the middle, the numbers do not."""
    monkeypatch.setattr(compiled, "COMPILE_SECONDS_A_NODE", 0.0)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 450 * 60 * compiled.EAGER_SECONDS)  # some 450 steps of some 60 nodes
    made: list[int] = []
    original = compiled.Engine.__init__

    def watch(self: Any, step: Any, *args: Any) -> None:
        made.append(len(step.loop.history.losses))
        original(self, step, *args)

    monkeypatch.setattr(compiled.Engine, "__init__", watch)
    a, b = run("unknown-full_rank", steps=None, compile=False), run("unknown-full_rank", steps=None)
    assert (a.engine, b.engine) == ("eager", "compiled")
    assert len(made) == 1
    assert 100 <= made[0] < len(a.losses)
    assert_same(a, b, 1e-6)


def test_global_generators_are_left_alone() -> None:
    state, numpy, python = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    fit_slope(compile=True)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy == np.random.get_state()[1]).all()  # noqa: NPY002
    assert python == random.getstate()


def test_second_fit_reuses_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    fit_slope(compile=True)
    calls: list[int] = []
    original = inductor._compile
    monkeypatch.setattr(inductor, "_compile", lambda *a: (calls.append(1), original(*a))[1])
    model, data = slope()
    other = bz.data.Data(inputs={"x": data.inputs["x"] + 1}, observed=data.observed)
    again = bz.fit(model, other, "mean_field", steps=60, loss="monte_carlo", progress=False, compile=True, seed=3)
    assert again.engine == "compiled"
    assert not calls, "other data of the same shape were compiled anew"


def test_not_finite_at_the_same_step_with_the_same_words() -> None:
    failures = []
    for compile in (False, True):
        with pytest.raises(bz.inference.NonFiniteError, match=r"NaN at step .* 'y'") as caught:
            # A draw of `a` above 0.6 is more than three posterior sds away: it comes after many steps.
            fit_slope(lambda a, b: 0.0 * torch.sqrt(0.6 - a), compile=compile, steps=2000)
        failures.append(caught.value)
    eager, compiled_ = failures
    assert len(eager.fit.losses) > 10
    assert str(eager) == str(compiled_)
    assert_same(eager.fit, compiled_.fit)


def test_callbacks_see_every_step_and_can_stop(uncompiled: None) -> None:
    seen: list[tuple[int, float]] = []

    def watch(progress: Any) -> bool:
        seen.append((progress.step, progress.loss))
        return progress.step == 17

    fit = fit_slope(compile=True, callbacks=[watch])
    assert [step for step, _ in seen] == list(range(1, 18))
    assert fit.losses == [loss for _, loss in seen]
    assert "callback" in fit.stop_reason


def test_validation_is_looked_at_at_the_same_steps(uncompiled: None) -> None:
    model, data = slope()
    train, test = data.split(0.7, seed=0)
    a, b = (bz.fit(model, train, "mean_field", steps=220, validation=test, progress=False, compile=c) for c in (False, True))
    assert [step for step, _ in b.validation_losses] == [step for step, _ in a.validation_losses] == [1, 50, 100, 150, 200]


@pytest.fixture(autouse=True)
def no_growth_of_state() -> Iterator[None]:
    yield
    assert not list(pyro.get_param_store().keys())
