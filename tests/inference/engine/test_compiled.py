"""The compiled engine gives the eager engine's numbers, or says why it does not run."""

from __future__ import annotations

import dataclasses
import functools
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import test_contract as contract
import torch
from pyro.nn import PyroModule
from torch import Tensor
from two_engines import assert_same, fit_slope, parameters, slope

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


def test_validation_is_looked_at_at_the_same_steps(uncompiled: None) -> None:
    model, data = slope()
    train, test = data.split(0.7, seed=0)
    a, b = (bz.fit(model, train, "mean_field", steps=220, validation=test, progress=False, compile=c) for c in (False, True))
    assert [step for step, _ in b.validation_losses] == [step for step, _ in a.validation_losses] == [1, 50, 100, 150, 200]


@pytest.fixture(autouse=True)
def no_growth_of_state() -> Iterator[None]:
    yield
    assert not list(pyro.get_param_store().keys())


def test_recurrent_layers_in_single_precision(uncompiled: None) -> None:
    """Torch takes oneDNN's for them, whose backward pass no graph can hold."""

    class Recurrent(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.LSTM(1, 2, batch_first=True)

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
            states, _ = self.net(x.unsqueeze(-1))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(a + states[:, -1, 0], 1.0), obs=y)

    torch.manual_seed(0)
    data = bz.data.Data(inputs={"x": torch.randn(5, 3)}, observed=torch.randn(5))
    model = Recurrent()
    fits = [bz.fit(model, data, "mean_field", steps=30, progress=False, compile=c) for c in (False, True)]
    assert fits[1].engine == "compiled"
    assert fits[1].losses == pytest.approx(fits[0].losses, rel=1e-4)
