"""Modules that plain functions hold: each fit has values of its own, and answers as the same network in a PyroModule would."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.utils import prune

import bayeszoo as bz


@pytest.fixture(autouse=True)
def warned() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def network(*between: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), *between, nn.Tanh(), nn.Linear(4, 1))


def function(net: nn.Module, registered: bool = True) -> Callable[..., Any]:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        if registered:
            pyro.module("net", net)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], scale), obs=y)

    return model


class Holds(PyroModule):
    """The same with a network of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        function(self.net, registered=False)(x, y)


class Calls(PyroModule):
    """The same with a network from elsewhere, which is no submodule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = function(net)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.model(x, y)


class CallsFromTorch(nn.Module):
    """The same, and its parameters are in Pyro's global store."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = function(net)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.model(x, y)


def curve(seed: int = 0) -> bz.data.Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    return bz.data.Data({"x": x}, torch.sin(x.sum(1)) + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("caller", [function, Calls, CallsFromTorch])
@pytest.mark.parametrize(
    "options",
    [{}, {"compile": True}, {"restarts": 2}, {"compile": True, "restarts": 2}, {"dtype": torch.float32}, {"moving": True}],
)
def test_what_calls_a_network_fits_as_a_module_that_holds_it(
    options: dict[str, Any], caller: Callable[[nn.Module], Any], uncompiled: None, tmp_path: Any
) -> None:
    """In the data's precision, with every restart from the same beginning, dropout off where it answers; and so it is loaded."""
    between = (nn.BatchNorm1d(4), nn.Dropout(0.3)) if "moving" in options else ()
    net, data = network(*between), curve()
    before = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    options = {"steps": 40, "progress": False, "compile": False} | {k: v for k, v in options.items() if k != "moving"}
    other = bz.fit(Holds(net), data, "mean_field", **options)
    fit = bz.fit(caller(net), data, "mean_field", **options)
    for a, b in zip(fit.runs, other.runs, strict=True):
        assert a.history.losses == pytest.approx(b.history.losses, rel=1e-5 if "dtype" in options else 1e-10)
    answers = fit.predict(data.inputs, n=20)
    assert torch.allclose(answers.mean, other.predict(data.inputs, n=20).mean, rtol=1e-4 if "dtype" in options else 1e-9)
    assert torch.equal(answers.mean, fit.predict(data.inputs, n=20).mean)
    assert fit.losses[-1] < fit.losses[0]
    assert [part.training for part in net.modules()] == modes
    theirs = dict(other.run.owned.model.net.state_dict())  # of the best
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.allclose(value, theirs[name].to(value), atol=1e-5)
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
    fit.save(tmp_path)
    again = bz.load(tmp_path, model=caller(network(*between)))
    assert torch.equal(again.predict(data.inputs, n=20).mean, answers.mean)


@pytest.mark.parametrize("compile", [False, True])
def test_buffers_that_steps_move_are_each_restarts_own(compile: bool, uncompiled: None) -> None:
    """A mapped step would move copies of them; and both engines leave the same."""
    options: dict[str, Any] = {"steps": 10, "restarts": 2, "progress": False}
    norms = []
    for model, mode in ((Holds, compile), (function, compile), (Holds, False)):
        fit = bz.fit(model(network(nn.BatchNorm1d(4))), curve(), "mean_field", compile=mode, **options)  # type: ignore[operator]
        for run in fit.runs:
            with run.owned.active():
                held = run.owned.borrowed.named_buffers() or dict(run.owned.model.named_buffers())
                norms.append([value.clone() for value in held.values()])
    for other in (norms[2:4], norms[4:6]):
        for a, b in zip(norms[:2], other, strict=True):
            assert all(torch.allclose(one.double(), two.double(), rtol=1e-6) for one, two in zip(a, b, strict=True))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("registered", [False, True])
def test_a_second_fit_leaves_the_answers_of_the_first(compile: bool, registered: bool, uncompiled: None, tmp_path: Any) -> None:
    net = network().requires_grad_(registered)
    model = function(net, registered)
    options: dict[str, Any] = {"steps": 30, "progress": False, "compile": compile}
    first = bz.fit(model, curve(), "mean_field", **options)
    answers, left = first.predict(curve().inputs, n=20).mean, copy.deepcopy(net.state_dict())
    begins = "parameters of a Sequential that is no submodule begin where an earlier fit"
    with pytest.warns(UserWarning, match=begins) if registered else contextlib.nullcontext():
        second = bz.fit(model, curve(1), "mean_field", **options)
    assert torch.equal(net.state_dict()["0.weight"], left["0.weight"]) is not registered
    assert torch.equal(first.predict(curve().inputs, n=20).mean, answers)
    assert torch.equal(second.predict(curve().inputs, n=20).mean, answers) is not registered
    first.save(tmp_path)
    assert torch.equal(bz.load(tmp_path, model=function(network(), registered)).predict(curve().inputs, n=20).mean, answers)


def test_a_fit_inside_another_fits_callback_disturbs_neither() -> None:
    net = network()
    options: dict[str, Any] = {"steps": 12, "progress": False, "compile": False}
    alone = bz.fit(function(net), curve(), "mean_field", **options)
    net.load_state_dict(network().state_dict())
    inner = []

    def begins(progress: Any) -> None:
        if progress.step == 5:
            inner.append(bz.fit(function(net), curve(1), "mean_field", **options))

    outer = bz.fit(function(net), curve(), "mean_field", **options, callbacks=[begins])
    assert outer.losses == alone.losses
    assert inner[0].losses != alone.losses
    with outer.run.owned.active():
        trained = {name: value.detach().float() for name, value in net.named_parameters()}
    assert all(torch.equal(value, trained[name]) for name, value in net.named_parameters())


class Encoder(nn.Module):
    """Registered and never called: one of its methods is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.2]))
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.add_(1.0)
        return nn.functional.dropout(x, 0.5, self.training) @ self.weight + 0.01 * self.seen

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("encoder", self)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.encode(x), scale), obs=y)


class Encodes(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.encoder.encode(x), scale), obs=y)


@pytest.mark.parametrize("bound", [False, True])
def test_modules_whose_methods_are_called_answer_in_evaluation(bound: bool) -> None:
    encoder = Encoder()
    options: dict[str, Any] = {"steps": 10, "progress": False, "compile": False}
    model = encoder.model if bound else lambda x, y=None: encoder.model(x, y)
    fit, other = (bz.fit(part, curve(), "mean_field", **options) for part in (model, Encodes()))
    assert fit.losses == pytest.approx(other.losses, rel=1e-10)
    x = curve().inputs
    answers = fit.predict(x, n=20).mean
    assert torch.equal(answers, fit.predict(x, n=20).mean)
    assert torch.allclose(answers, other.predict(x, n=20).mean, rtol=1e-3)
    with pytest.warns(UserWarning, match="begin where an earlier fit"):
        bz.fit(model, curve(1), "mean_field", **options)
    assert torch.equal(answers, fit.predict(x, n=20).mean)


@pytest.mark.parametrize("compile", [False, True])
def test_gradients_are_the_users_again(compile: bool, uncompiled: None) -> None:
    net = network()
    net(torch.ones(1, 2)).sum().backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    def interrupts(progress: Any) -> None:
        if progress.step == 3:
            raise RuntimeError("enough")

    bz.fit(function(net), curve(), "mean_field", steps=5, progress=False, compile=compile)
    warnings.simplefilter("ignore")
    with pytest.raises(RuntimeError, match="enough"):
        bz.fit(function(net), curve(), "mean_field", steps=5, progress=False, compile=False, callbacks=[interrupts])
    assert all(p.grad is not None and torch.equal(p.grad, before[name]) for name, p in net.named_parameters())


def test_scripted_networks_are_lent_too() -> None:
    net, data = network(nn.BatchNorm1d(4)), curve()
    options: dict[str, Any] = {"steps": 10, "progress": False, "compile": False}
    plain = bz.fit(function(copy.deepcopy(net)), data, "mean_field", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net)
    fit = bz.fit(function(scripted), data, "mean_field", **options)
    assert fit.losses == pytest.approx(plain.losses, rel=1e-8)
    x = data.inputs
    assert torch.allclose(fit.predict(x, n=20).mean, plain.predict(x, n=20).mean)
    assert all(value.dtype != torch.float64 for value in scripted.state_dict().values())


class Centre(PyroModule):
    """Keeps what it learns in a statement of its own."""

    def forward(self) -> Tensor:
        return pyro.param("centre", torch.tensor(2.0))


def test_statements_of_a_module_that_functions_hold_are_each_fits_own() -> None:
    centre = Centre()

    def model(y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(centre(), 0.1))
        with pyro.plate("data", 9):
            pyro.sample("y", dist.Normal(w, 0.1), obs=y)

    options: dict[str, Any] = {"steps": 200, "progress": False, "compile": False, "optimizer": 0.05}
    low, high = (bz.data.Data({}, {"y": torch.full((9,), value)}) for value in (-1.0, 1.0))
    first = bz.fit(model, low, "mean_field", **options)

    def learned(fit: bz.inference.Fit) -> float:
        with fit.run.owned.active():
            return float(fit.run.owned.parameters()["param.centre"].detach())

    answers = learned(first)
    assert answers == pytest.approx(-1.0, abs=0.1)
    with pytest.warns(UserWarning, match="begin where an earlier fit has left them"):
        second = bz.fit(model, high, "mean_field", **options)
    assert learned(second) == pytest.approx(1.0, abs=0.1)
    assert learned(first) == answers


def test_a_builder_may_call_its_guide() -> None:
    """Its modules are the fit's own: they keep what they have learned when the fit is not active."""

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            pyro.sample("scale", dist.LogNormal(self.net(x).mean(), 0.1))

    def build(model: Any, data: Any) -> Guide:
        guide = Guide()
        pyro.poutine.trace(guide).get_trace(**data.bind(model))
        return guide

    def model(x: Tensor, y: Tensor | None = None) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    fit = bz.fit(model, curve(), build, steps=20, restarts=2, progress=False, compile=False)  # type: ignore[arg-type]
    for run in fit.runs:
        outside = [p.detach().clone() for p in run.owned.guide.parameters()]
        with run.owned.active():
            assert all(torch.equal(a, b) for a, b in zip(outside, run.owned.guide.parameters(), strict=True))


def test_a_network_that_pyro_was_not_told_of_is_named() -> None:
    with pytest.warns(
        UserWarning, match=r"a Linear that is called without being a submodule stays as it is.* add pyro.module"
    ) as caught:
        bz.fit(function(network(), registered=False), curve(), "mean_field", steps=3, progress=False, compile=False)
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]


def test_a_network_that_is_begun_anew_is_no_continued_one() -> None:
    net = network()
    options: dict[str, Any] = {"steps": 5, "progress": False, "compile": False}
    first = bz.fit(function(net), curve(), "mean_field", **options)
    net.load_state_dict(network().state_dict())
    assert bz.fit(function(net), curve(), "mean_field", **options).losses == first.losses


def test_a_fit_that_is_asked_while_another_is_trained_keeps_its_values() -> None:
    net = network()
    options: dict[str, Any] = {"steps": 5, "progress": False, "compile": False}
    first = bz.fit(function(net), curve(), "mean_field", **options)
    answers, seen = first.predict(curve().inputs, n=5).mean, []
    net.load_state_dict(network().state_dict())
    alone = bz.fit(function(net), curve(1), "mean_field", **options)
    net.load_state_dict(network().state_dict())

    def ask(progress: Any) -> None:
        seen.append(first.predict(curve().inputs, n=5).mean)

    assert bz.fit(function(net), curve(1), "mean_field", **options, callbacks=[ask]).losses == alone.losses
    assert all(torch.equal(found, answers) for found in seen)
    assert len(seen) == 5


class Tied(PyroModule):
    """A model whose guide reads its embedding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, 1)
        nn.init.constant_(self.embedding.weight, 0.5)
        nn.init.constant_(self.embedding.bias, 0.1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w + self.embedding(x)[:, 0], 0.3), obs=y)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("w", dist.Normal(self.embedding(x).mean(), 0.2))


def test_a_guide_that_is_a_method_of_the_model_shares_its_parameters() -> None:
    data, options = curve(), {"steps": 60, "progress": False, "compile": False}
    tied = Tied()
    pyro_module = PyroModule[nn.Linear](2, 1)
    pyro_module.load_state_dict(tied.embedding.state_dict())

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = tied.embedding

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            pyro.sample("w", dist.Normal(self.embedding(x).mean(), 0.2))

    one = bz.fit(tied, data, Guide(), **options)  # type: ignore[arg-type]
    other = bz.fit(tied, data, tied.guide, **options)  # type: ignore[arg-type]
    assert other.losses == one.losses
    assert torch.equal(tied.embedding.bias, torch.tensor([0.1]))  # the module that was passed is as it was
    with pytest.raises(
        ValueError, match=r"a function calls a Linear of the module that was passed beside it.* such as model.guide"
    ):
        bz.fit(tied, data, lambda x, y=None: tied.guide(x, y), **options)  # type: ignore[arg-type]


def test_a_network_that_a_module_keeps_in_a_list_is_trained() -> None:
    """It is copied with the module, and no submodule: `pyro.module` says that it is trained."""

    class Lists(PyroModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.nets = [copy.deepcopy(net)]

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            function(self.nets[0])(x, y)

    options: dict[str, Any] = {"steps": 40, "progress": False, "compile": False}
    first, other = (bz.fit(model(network()), curve(), "mean_field", **options) for model in (Lists, Holds))
    assert first.losses == pytest.approx(other.losses, rel=1e-10)
    assert torch.allclose(first.predict(curve().inputs, n=20).mean, other.predict(curve().inputs, n=20).mean)


@pytest.mark.parametrize("through", ["module", "function"])
def test_autoguides_of_pyro_look_at_the_model_that_is_fitted(through: str) -> None:
    """Its own copy; and a module that functions hold stays the user's. Neither is a network that Pyro was not told of."""
    module = Holds(network())
    model = module if through == "module" else function(module.net)
    fit = bz.fit(model, curve(), AutoNormal(model), steps=5, progress=False, compile=False)
    own = {id(part) for part in fit.model.modules()} if through == "module" else set()
    called = []
    hook = nn.modules.module.register_module_forward_pre_hook(lambda part, _: called.append(id(part)))
    with fit.run.owned.active(), hook:
        fit.guide.model(**fit.data.bind(fit.model))
    assert called
    assert set(called) == own if through == "module" else id(module.net) in called


def assigned(net: nn.Module) -> None:
    net.load_state_dict({name: torch.zeros_like(value) for name, value in net.state_dict().items()}, assign=True)


def another_layer(net: Any) -> None:
    net[2] = nn.Linear(4, 1)


def another_weight(net: Any) -> None:
    net[0].weight = nn.Parameter(torch.zeros(4, 2))


def frozen_bias(net: Any) -> None:
    net[0].weight = nn.Parameter(torch.zeros(4, 2), requires_grad=False)


@pytest.mark.parametrize("change", [assigned, another_layer, another_weight, frozen_bias])
@pytest.mark.parametrize("caller", [function, Calls, CallsFromTorch])
def test_a_fit_answers_with_the_parts_that_it_trained(
    caller: Callable[[nn.Module], Any], change: Callable[[Any], None]
) -> None:
    """Whatever its user puts into the network afterwards; and there it stays."""
    net, data = network(), curve()
    fit = bz.fit(caller(net), data, "mean_field", steps=30, progress=False, compile=False)
    answers = fit.predict(data.inputs, n=20).mean
    twin = copy.deepcopy(fit)
    change(net)
    changed = {name: (value, value.clone()) for name, value in net.named_parameters()}
    assert torch.equal(fit.predict(data.inputs, n=20).mean, answers)
    assert torch.equal(twin.predict(data.inputs, n=20).mean, answers)
    for name, value in net.named_parameters():
        assert value is changed[name][0]
        assert torch.equal(value, changed[name][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it begins where an earlier fit ended
        begun = bz.fit(caller(net), data, "mean_field", steps=3, progress=False, compile=False)  # with what is there now
    assert begun.losses[0] != fit.losses[0]
    assert torch.equal(fit.predict(data.inputs, n=20).mean, answers)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda net: prune.l1_unstructured(net[0], "weight", 0.5), "'weight', 'weight_orig'"),
        (lambda net: nn.utils.parametrizations.weight_norm(net[0]), "'parametrizations', 'weight'"),
        (lambda net: net.append(nn.Tanh()), "'3'"),
    ],
)
def test_networks_that_became_others_are_refused(change: Callable[[Any], Any], named: str) -> None:
    net, data = network(), curve()
    fit = bz.fit(function(net), data, "mean_field", steps=3, progress=False, compile=False)
    change(net)
    with pytest.raises(
        ValueError, match=rf"made of other parts than then \({named} came or went.*copy.deepcopy of it, or fit again"
    ):
        fit.predict(data.inputs, n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it begins where an earlier fit ended
        bz.fit(function(net), data, "mean_field", steps=3, progress=False, compile=False)
