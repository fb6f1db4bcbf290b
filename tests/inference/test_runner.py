"""How a fit ends: interrupted, stopped, or not finite; and what its options do."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.engine.compiled import Engine
from bayeszoo.inference.engine.interrupts import heard_between_steps
from bayeszoo.inference.engine.tables import Tables
from bayeszoo.inference.engine.training import Loop


@pytest.fixture
def problem() -> tuple[Any, bz.data.Data]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1) + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64)
    return bz.models.BayesianLinearRegression(2, noise_scale=0.3), bz.data.Data(inputs={"x": x}, observed=y)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a run in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_one_interrupt_ends_all_restarts_and_keeps_the_fit(problem: Any) -> None:
    def interrupt(progress: Any) -> None:
        if progress.step == 15:
            raise KeyboardInterrupt

    fit = bz.fit(*problem, "mean_field", restarts=3, steps=50, callbacks=[interrupt], progress=False)
    assert [len(run.history.losses) for run in fit.runs] == [15]
    assert "interrupted" in fit.stop_reason
    assert not fit.converged
    assert bool(torch.isfinite(fit.sample(5)["theta"]).all())


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("where", ["record", "_run", "step", "losses", "start"])
def test_ctrl_c_leaves_losses_and_parameters_of_the_same_step(
    where: str, compile: bool, problem: Any, ctrl_c: None, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it falls; pressed in the middle of a step it is heard after it."""
    owner, name = {
        "record": (Loop, "record"),
        "_run": (Engine, "_run"),
        "step": (torch.optim.Adam, "step"),
        "losses": (Tables, "losses"),
        "start": (Loop, "advance"),
    }[where]
    original, calls = getattr(owner, name), []

    def pressed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if where == "start" else 3):
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    # Validation ends a compiled block now and then.
    options: dict[str, Any] = {
        "steps": 400, "optimizer": 0.05, "progress": False, "compile": compile, "validation": problem[1],
    }  # fmt: skip
    monkeypatch.setattr(owner, name, pressed)
    fit = bz.fit(*problem, "mean_field", **options)
    monkeypatch.undo()
    if compile == (where == "step") and where in ("_run", "losses", "step"):
        assert len(fit.losses) == 400  # this engine never comes there
        return
    steps = 0 if where == "start" else len(fit.losses)
    assert fit.stop_reason.startswith(f"interrupted after {steps} steps")
    assert not fit.converged
    assert steps < 400
    if steps:
        again = bz.fit(*problem, "mean_field", **options | {"steps": steps})
        assert fit.losses == pytest.approx(again.losses, rel=1e-12)
        torch.testing.assert_close(fit.guide.location(), again.guide.location(), rtol=1e-9, atol=1e-12)


def test_ctrl_c_that_is_pressed_twice_is_heard_at_once(ctrl_c: None) -> None:
    with pytest.raises(KeyboardInterrupt), heard_between_steps():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still here")
    with pytest.raises(KeyboardInterrupt), heard_between_steps():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_a_callback_has_set_stays(ctrl_c: None) -> None:
    with heard_between_steps():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_in_the_first_import_lets_it_end() -> None:
    code = """
import signal, sys
import torch, pyro
from bayeszoo.inference.engine import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run in the background does not have
pressed = []
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "sympy" and not pressed:
            pressed.append(name)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Press())
try:
    interrupts.import_whole()
except KeyboardInterrupt:
    assert pressed
    import sympy, torch._dynamo
    print(sympy.logic and torch._dynamo.utils and "whole")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("whole"), done.stderr


def test_ctrl_c_stays_with_whoever_has_taken_it(ctrl_c: None) -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with heard_between_steps() as ask:
        signal.raise_signal(signal.SIGINT)
        ask()
    assert heard == [1]


def test_fits_and_what_is_asked_of_them_in_threads(problem: Any) -> None:
    model, data = problem

    def job(seed: int) -> tuple[Any, Any]:
        fit = bz.fit(model, data, "mean_field", steps=20, seed=seed, progress=False)
        name = next(iter(fit.program.latents))
        return fit.sample(50)[name], fit.losses

    alone = [job(seed) for seed in range(4)]
    before = torch.get_default_dtype()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(job, list(range(4)) * 3))
    assert torch.get_default_dtype() is before
    for k, (draws, losses) in enumerate(together):
        torch.testing.assert_close(draws, alone[k % 4][0], rtol=0, atol=0)
        assert losses == alone[k % 4][1]


@pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning")
def test_a_site_in_a_set_without_coordinates_is_named() -> None:
    def model(y: Tensor | None = None) -> None:
        s = pyro.sample("s", dist.Wishart(torch.tensor(5.0), covariance_matrix=torch.eye(2)))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(s[0, 0], 1.0), obs=y)

    with pytest.raises(ValueError, match=r"site 's' \(Wishart\) lies in a set that no smooth one-to-one map leads to"):
        bz.fit(model, bz.data.Data({}, {"y": torch.zeros(3)}), "mean_field", steps=3, progress=False)


def test_fits_in_threads_wait_for_each_other(problem: Any) -> None:
    def fitted(seed: int) -> list[float]:
        return bz.fit(*problem, "mean_field", steps=60, seed=seed, progress=False, compile=False).losses

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fitted, range(8)))
    assert found == [fitted(seed) for seed in range(8)]


def test_a_callback_stops_the_fit(problem: Any) -> None:
    fit = bz.fit(*problem, "mean_field", steps=50, callbacks=[lambda p: p.step == 7], progress=False)
    assert len(fit.losses) == 7


@pytest.mark.parametrize("compile", [False, True])
def test_a_callback_sees_the_guide_and_the_parameters(problem: Any, compile: bool, uncompiled: None) -> None:
    seen: dict[int, Any] = {}

    def watch(progress: Any) -> None:
        assert set(progress.parameters) == {"guide.offset", "guide.log_scale"}
        assert progress.parameters["guide.offset"] is progress.guide.offset
        seen[progress.step] = progress.guide.location().detach().clone()

    fit = bz.fit(*problem, "mean_field", steps=20, callbacks=[watch], compile=compile, progress=False)
    assert fit.engine == ("compiled" if compile else "eager")
    assert list(seen) == list(range(1, 21))
    assert not torch.equal(seen[19], seen[20])
    # nothing is averaged over steps that were asked for: the fit ends where the last one left it
    assert torch.equal(seen[20], fit.guide.location().detach())


def test_what_is_not_finite_leaves_the_last_finite_state(problem: Any) -> None:
    with pytest.raises(bz.inference.NonFiniteError, match=r"at step \d+") as caught:
        bz.fit(*problem, "mean_field", steps=100, optimizer=1e30, progress=False)
    fit = caught.value.fit
    assert torch.isfinite(torch.tensor(fit.loss))
    # The start was the posterior's mode: draws near it, not the 1e28 of the update that failed.
    assert float(fit.sample(100)["theta"].abs().max()) < 10


def test_finished_restarts_survive_a_failure(problem: Any) -> None:
    calls = []

    def spoil(progress: Any) -> None:
        calls.append(progress.step)
        if len(calls) > 10 and progress.step == 3:
            progress.parameters["guide.offset"].data.fill_(float("nan"))

    with pytest.raises(bz.inference.NonFiniteError) as caught:
        bz.fit(*problem, "mean_field", steps=10, restarts=3, callbacks=[spoil], progress=False)
    assert len(caught.value.fit.runs) == 2


def test_minibatch_losses_are_those_of_the_whole_data(problem: Any) -> None:
    model, data = problem
    fit = bz.fit(model, data, "laplace", progress=False)
    objective = fit.run.objective
    with fit.run.owned.active(0), torch.no_grad():
        full = torch.stack([objective(data.bind(fit.model))[1] for _ in range(200)])
        batches = []
        for epoch in range(50):
            batches += [objective(data.batch(i, fit.model))[1] for i in data.batches(15, 0, epoch)]
        batched = torch.stack(batches)
    # The exact posterior: every full-batch draw gives -log evidence; batches average to it within four standard errors.
    evidence = float(model.log_evidence(data))
    assert float((full + evidence).abs().max()) < 1e-6 * abs(evidence)
    assert abs(float(batched.mean()) + evidence) < 4 * float(batched.std()) / len(batched) ** 0.5


def test_clip_norm_is_the_global_norm(problem: Any) -> None:
    model, data = problem
    sgd = torch.optim.SGD
    guide = bz.guides.MeanField(model, data)
    before = torch.cat([p.detach().flatten() for p in guide.parameters()])
    fit = bz.fit(
        model, data, guide, steps=1, optimizer=lambda p: sgd(p, lr=1.0), clip_norm=0.01, schedule="constant", progress=False
    )
    after = torch.cat([p.detach().flatten() for p in fit.guide.parameters()])
    # One step of plain gradient descent moves by exactly the clipped norm.
    assert float((after - before).norm()) <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"steps": 5, "epochs": 5}, "not both"),
        ({"clip_norm": 0.0}, "positive"),
        ({"device": "cuda:99"}, "not there"),
        ({"loss": "elbow"}, "unknown loss"),
        ({"guide": "meanfield"}, "did you mean 'mean_field'"),
        ({"guide": "structured"}, "no latents of single observations"),
        ({"steps": 5, "schedule": "cosin"}, "unknown schedule"),
    ],
)
def test_bad_input_is_one_sentence(problem: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        bz.fit(*problem, **{"guide": "mean_field", **options}, progress=False)
    assert "\n" not in str(caught.value)


def test_kl_weight_tempers_the_likelihood() -> None:
    """E log p(x | z) - w KL(q || prior) is greatest at q proportional to prior * likelihood^(1 / w): here a Beta again."""
    model = bz.models.CoinFlip(2.0, 3.0)
    data = bz.data.Data(inputs={}, observed=torch.tensor([1.0] * 30 + [0.0] * 10, dtype=torch.float64))
    fit = bz.fit(model, data, "beta", kl_weight=4.0, progress=False)
    q = dist.Beta(torch.tensor(2.0 + 30 / 4, dtype=torch.float64), torch.tensor(3.0 + 10 / 4, dtype=torch.float64))
    draws = fit.sample(20_000)["pi"]
    # Four standard errors of 20,000 draws, 0.03 sd and 2 %, and what the optimiser may leave (its tolerance, 0.05 sd).
    assert abs(float(draws.mean() - q.mean)) < 0.08 * float(q.stddev)
    assert float(draws.std()) == pytest.approx(float(q.stddev), rel=0.07)
    # The reported loss is the ELBO of that q, unweighted: -E log p(x | pi) + KL(q || prior).
    a, b = q.concentration1, q.concentration0
    expected_log = 30 * torch.digamma(a) + 10 * torch.digamma(b) - 40 * torch.digamma(a + b)
    prior = dist.Beta(torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    elbo = expected_log - torch.distributions.kl_divergence(q, prior)
    assert fit.loss == pytest.approx(-float(elbo), abs=4 * fit.loss_error + 0.05)


def test_kl_weight_anneals_and_ends_at_the_elbo(problem: Any) -> None:
    model, data = problem
    seen: list[tuple[int, int]] = []

    def warm_up(step: int, steps: int) -> float:
        seen.append((step, steps))
        return min(1.0, step / (steps / 2))

    fit = bz.fit(model, data, "full_rank", steps=600, kl_weight=warm_up, progress=False)
    plain = bz.fit(model, data, "full_rank", steps=600, progress=False)
    assert seen[0] == (0, 600)
    assert seen[-1] == (599, 600)
    assert fit.losses[1] != plain.losses[1] or fit.losses[5] != plain.losses[5]
    # Both end at the exact posterior; the loss is then the same for every draw.
    assert fit.loss == pytest.approx(plain.loss, abs=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kl_weight": -1.0}, "a finite number that is not negative"),
        ({"kl_weight": math.inf}, "a finite number that is not negative"),
        ({"kl_weight": lambda step, steps: 1.0}, "needs the number of steps"),
        ({"kl_weight": lambda step: 1.0, "steps": 9}, "kl_weight as a function is called with .step, steps."),
        ({"kl_weight": lambda step, steps: 1.0 - step, "steps": 9}, "not negative, and at step 2 of 9 it returned -1.0"),
        ({"kl_weight": lambda step, steps: "a", "steps": 9}, "at step 0 of 9 it returned 'a'"),
        ({"schedule": lambda step: 1.0, "steps": 9}, "schedule as a function is called with"),
        ({"schedule": lambda step, steps: math.nan, "steps": 9}, "at step 0 of 9 it returned nan"),
        ({"kl_weight": 0.5, "loss": "importance_weighted"}, "importance-weighted bound has no KL term"),
    ],
)
def test_kl_weight_that_cannot_be(problem: Any, options: dict[str, Any], match: str) -> None:
    model, data = problem
    with pytest.raises(ValueError, match=match):
        bz.fit(model, data, "mean_field", progress=False, **options)


class _Scored(dist.Normal):
    """A normal that gives no gradient through its draws."""

    has_rsample = False


def test_what_a_guide_says_in_a_trace_is_one_sentence() -> None:
    def model(x: Tensor, y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample=index):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(w * x, 1.0)), 1.0), obs=y)

    data = bz.data.Data({"x": torch.ones(30)}, torch.ones(30))
    with pytest.raises(ValueError, match=r"is one joint density .* or leave out batch_size$") as caught:
        bz.fit(model, data, "full_rank", batch_size=10, steps=2, progress=False)
    assert "\n" not in str(caught.value)


def test_reinforce_of_minibatched_local_latents_is_scaled_once() -> None:
    def model(x: Any = None, *, num_data: Any = None, index: Any = None) -> None:
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.m = torch.nn.Parameter(torch.tensor([0.5, -0.5, 0.0, 1.0], dtype=torch.float64))

        def forward(self, x: Any = None, *, num_data: Any = None, index: Any = None) -> None:
            m = self.m if index is None else self.m[index]
            with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
                pyro.sample("z", _Scored(m, 1.0))

    data = bz.data.Data(inputs={}, observed=torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=torch.float64))
    fit = bz.fit(model, data, Guide(), steps=1, optimizer=1e-12, batch_size=2, num_particles=500, progress=False)
    with fit.run.owned.active(1):
        kwargs = fit.data.batch(torch.tensor([0, 3]), model)
        grads = [torch.autograd.grad(fit.run.objective(kwargs)[0], fit.guide.m)[0] for _ in range(60)]
    found = torch.stack(grads)
    # d loss / d m_n = 2 m_n - x_n, twice that where a batch of two stands for four rows; five standard errors
    exact = torch.tensor([0.0, 0.0, 0.0, 6.0], dtype=torch.float64)
    assert bool(((found.mean(0) - exact).abs() <= 5 * found.std(0) / 60**0.5 + 1e-12).all())
    assert float(found.std(0)[3] / 60**0.5) < 0.3


def test_particles_are_mapped_not_looped_over() -> None:
    model = bz.models.BayesianLinearRegression(2, noise_scale=0.5)
    data = bz.data.from_arrays(torch.randn(10, 2), torch.randn(10))
    each = bz.fit(model, data, "mean_field", steps=1, num_particles=3, progress=False).run.objective.each
    assert (each.vectorized, each.reason) == (True, "")


def xor() -> tuple[torch.nn.Module, bz.data.Data]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    torch.manual_seed(0)
    return bz.models.networks.mlp(2, [6], 2), bz.data.Data({"x": x}, (x[:, 0] * x[:, 1] > 0).long())


@pytest.mark.parametrize("guide", ["mc_dropout", "dropconnect", "concrete_dropout", "ensemble"])
def test_guides_that_draw_are_trained_without_a_word_on_how(guide: str) -> None:
    """A climb to one point is no fit of them, however it ends."""
    net, data = xor()
    options = {"members": 2} if guide == "ensemble" else {}
    fit = bz.fit(
        bz.models.BayesianNN(net),
        data,
        guide,
        guide_options=options,
        callbacks=[lambda p: p.step == 150],
        compile=False,
        progress=False,
    )
    assert len(fit.losses) == 150
    assert sum(fit.losses[-20:]) < 0.9 * sum(fit.losses[:20])
    if guide == "concrete_dropout":
        assert all(abs(rate - 0.1) > 1e-3 for rate in fit.guide.learned_rates().values())


@pytest.mark.parametrize("guide", ["map", "mle"])
def test_points_beside_a_point_are_trained_with_it(guide: str) -> None:
    net, data = xor()
    model = bz.models.BayesianNN(net, bayesian="last")
    fit = bz.fit(model, data, guide, callbacks=[lambda p: p.step == 60], compile=False, progress=False)
    assert len(fit.losses) == 60
    assert not torch.equal(fit.model.net.fc1.weight, model.net.fc1.weight)
    alone = bz.fit(bz.models.BayesianNN(net, bayesian="last", freeze=True), data, guide, progress=False)
    assert "60" not in alone.stop_reason
    assert "climb" in alone.stop_reason or "gradient is gone" in alone.stop_reason


def test_a_networks_best_point_is_the_last_of_the_climb() -> None:
    """The likelihood of a network that can tell all rows apart has no mode; the point with the widest Gaussian is not the best one."""
    net, data = xor()
    fit = bz.fit(bz.models.BayesianNN(net), data, "mle", progress=False)
    assert fit.loss <= min(fit.losses) + 1e-3


@pytest.mark.parametrize("given", [{"loss": "importance_weighted", "num_particles": 5}, {"kl_weight": 0.5}])
def test_what_changes_the_loss_is_refused_where_nothing_is_trained_by_it(given: dict[str, Any]) -> None:
    data = bz.data.Data({}, torch.tensor([1.0, 1.0, 0.0]))

    def model(y: Tensor | None = None) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    word = "loss='importance_weighted'" if "loss" in given else "kl_weight"
    with pytest.raises(ValueError, match=f"^{word} changes what is trained, and guide 'laplace' is made at the mode"):
        bz.fit(model, data, "laplace", progress=False, **given)
    sentence = "guide 'map' is a point without a density" if "loss" in given else "a point estimate has no KL term to weight"
    with pytest.raises(ValueError, match=sentence):  # without steps, too, where a climb to the mode is all there is
        bz.fit(model, data, "map", progress=False, **given)


def test_laplace_with_points_beside_it_is_refused() -> None:
    net, data = xor()
    with pytest.raises(ValueError, match=r"the model trains 'net\.fc1\.\w+' beside them.*freeze=True"):
        bz.fit(bz.models.BayesianNN(net, bayesian="last"), data, "laplace", progress=False)
    assert "laplace" not in bz.guides.available(bz.models.BayesianNN(net, bayesian="last"), data)
    frozen = bz.models.BayesianNN(net, bayesian="last", freeze=True)
    fit = bz.fit(frozen, data, "laplace", progress=False)
    point = bz.fit(frozen, data, "map", progress=False)  # of weights without a Jacobian: the same mode
    torch.testing.assert_close(fit.guide.center, point.guide.center, rtol=0.0, atol=1e-3)


def test_laplace_of_a_function_with_a_parameter_is_refused() -> None:
    def model(y: torch.Tensor | None = None) -> torch.Tensor:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            return pyro.sample("y", dist.Normal(z, pyro.param("noise", torch.tensor(1.0)).exp()), obs=y)

    with pytest.raises(ValueError, match="the model trains 'noise' beside them"):
        bz.fit(model, bz.data.Data({}, torch.ones(5)), "laplace", progress=False)


@pytest.mark.parametrize("guide", ["map", "ensemble", "laplace"])
def test_a_density_with_poles_has_no_highest_point(guide: str) -> None:
    net, data = xor()
    model = bz.models.BayesianNN(net, prior="log_uniform", freeze=True)
    with pytest.raises(ValueError, match="'sparse_vd', which is made for this prior"):
        bz.fit(model, data, guide, steps=1, progress=False)


def test_a_tight_bound_decides_between_restarts() -> None:
    """Of importance-weighted fits the one with the best bound is the best, whatever its ELBO."""
    from bayeszoo.inference.runner import _best

    data = bz.data.Data({}, torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    model = bz.models.VAE(3, 1, "gaussian", hidden=(4,))
    fit = bz.fit(
        model,
        data,
        "amortized",
        steps=3,
        restarts=2,
        loss="importance_weighted",
        num_particles=5,
        compile=False,
        progress=False,
    )
    for run, bound, elbo in zip(fit.runs, (100.0, 90.0), (110.0, 120.0), strict=True):
        run.history.losses[:], run.loss = [bound], elbo
    assert _best(fit.runs) == 1


def test_a_gradient_that_is_nan_where_the_fit_begins_is_told() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        mean = torch.where(x > 0, torch.log(a.exp() * x.clamp_min(0)), x)  # finite, with a gradient that is not
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x = torch.linspace(-1, 1, 20)
    with pytest.raises(bz.inference.NonFiniteError, match=r"gradient .* is not finite at step 1"):
        bz.fit(model, bz.data.Data({"x": x}, x), "mean_field", steps=10, compile=False, progress=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    data = bz.data.Data({}, torch.ones(5, dtype=dtype))
    with pytest.raises(ValueError, match=r"would in torch.b?float16; pass dtype=torch.float32"):
        bz.fit(bz.models.CoinFlip(), data, "mean_field", steps=10, compile=False, progress=False)
    assert bz.fit(bz.models.CoinFlip(), data, "mean_field", steps=3, dtype=torch.float32, compile=False, progress=False).losses


def test_an_optimiser_that_evaluates_the_loss_itself_is_refused(problem: Any) -> None:
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times a step"):
        bz.fit(*problem, "mean_field", steps=5, optimizer=torch.optim.LBFGS, progress=False)
    assert bz.fit(*problem, "mean_field", steps=5, optimizer=torch.optim.SGD, progress=False).losses
