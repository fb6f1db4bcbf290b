"""Bias and variance of gradient estimators, against closed forms, quadrature and enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.estimators import gradient_table
from bayeszoo.inference.estimators.gradient_moments import squared_norm

#: Standard errors that an estimate may miss by: seeds are fixed, and one in 16,000 normal numbers is further off.
FAR = 4.0

OBSERVED = torch.tensor([1.0, 2.0, 0.5, -1.0], dtype=torch.float64)


class Mean(PyroModule):
    """theta ~ N(0, 1), y_n ~ N(theta, 1)."""

    def forward(self, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", num_data, subsample=index, dim=-1):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


class Unmappable(Mean):
    """The same model, which reads the value of its latent."""

    def forward(self, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        assert math.isfinite(float(theta.detach()))
        with pyro.plate("data", num_data, subsample=index, dim=-1):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


class OneNormal(PyroModule):
    """theta ~ N(m, s^2) with parameters m and log s."""

    def __init__(self, m: float, s: float, *, reparametrized: bool = True) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(m, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.tensor(s, dtype=torch.float64).log())
        self.reparametrized = reparametrized

    def forward(self, *args: Any, **kwargs: Any) -> None:
        q = dist.Normal(self.m, self.log_s.exp())
        pyro.sample("theta", q if self.reparametrized else q.has_rsample_(False))


def data(observed: Tensor = OBSERVED) -> Any:
    return bz.data.Data(inputs={}, observed=observed)


def mean_field(m: float, s: float) -> Any:
    """The family's guide with theta ~ N(m, s^2): its parameters are then m and log s."""
    guide = bz.guides.MeanField(Mean(), data(), init_scale=1.0)
    with torch.no_grad():
        guide.offset.fill_(m)
        guide.log_scale.fill_(math.log(s))
    return guide


def expect(values: Callable[[Any], Any]) -> float:
    """E[values(e)], e ~ N(0, 1); exact for polynomials up to degree 79."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return float((weights * values(nodes)).sum() / weights.sum())


def near(value: float, error: float, exact: float) -> bool:
    return abs(value - exact) < FAR * error


class Exact:
    """The model and q = N(m, s^2) as functions of e = (theta - m) / s."""

    def __init__(self, m: float, s: float, y: Tensor = OBSERVED) -> None:
        self.m, self.s, self.y = m, s, y.numpy()

    def f(self, e: Any) -> Any:
        """log p(y, theta) - log q(theta)."""
        theta = self.m + self.s * e
        log_p = -0.5 * theta**2 - 0.5 * sum((y - theta) ** 2 for y in self.y) - 0.5 * (len(self.y) + 1) * math.log(2 * math.pi)
        return log_p + 0.5 * e**2 + math.log(self.s) + 0.5 * math.log(2 * math.pi)

    @property
    def gradient(self) -> tuple[float, float]:
        """Of -ELBO with respect to m and log s."""
        n = len(self.y)
        return (n + 1) * self.m - float(self.y.sum()), (n + 1) * self.s**2 - 1

    def path(self, e: Any, *, sticking: bool, prior: bool = True) -> tuple[Any, Any]:
        """Gradients of f, or of log p(y | theta), through theta."""
        theta = self.m + self.s * e
        slope = sum(y - theta for y in self.y) - (theta if prior else 0.0) + (e / self.s if sticking else 0.0)
        return slope, self.s * e * slope

    def score(self, e: Any) -> tuple[Any, Any]:
        return e / self.s, e**2 - 1

    def variance_of(self, draw: Callable[[Any], tuple[Any, Any]]) -> float:
        return sum(expect(lambda e, k=k: draw(e)[k] ** 2) - expect(lambda e, k=k: draw(e)[k]) ** 2 for k in (0, 1))

    def reinforce(self, baseline: float = 0.0) -> float:
        return self.variance_of(lambda e: tuple((self.f(e) - baseline) * s for s in self.score(e)))  # type: ignore[return-value]

    def leave_one_out(self, particles: int) -> float:
        """Var[mean_k (f_k - mean of the others' f) s_k]; what is linear and what is bilinear in the draws is uncorrelated."""
        mean = expect(self.f)
        spread = expect(lambda e: (self.f(e) - mean) ** 2)
        total = self.reinforce(mean) / particles
        for k in (0, 1):
            fisher = expect(lambda e, k=k: self.score(e)[k] ** 2)
            slope = expect(lambda e, k=k: (self.f(e) - mean) * self.score(e)[k])
            total += (spread * fisher + slope**2) / (particles * (particles - 1))
        return total


M, S = 0.3, 0.7


def test_variances_are_those_of_theory() -> None:
    exact = Exact(M, S)
    found = bz.inference.gradient_variance(Mean(), mean_field(M, S), data(), num_samples=8000, loss="monte_carlo")
    assert list(found.estimators) == ["reinforce", "reinforce_baseline", "reparametrized", "sticking_the_landing"]
    assert found.mapped
    truth = {
        "reinforce": exact.reinforce(),
        "reparametrized": exact.variance_of(lambda e: exact.path(e, sticking=False)),
        "sticking_the_landing": exact.variance_of(lambda e: exact.path(e, sticking=True)),
    }
    for name, variance in truth.items():
        check = found[name]
        assert near(check.variance, check.variance_error, variance), name
        assert check.variance_error < 0.1 * variance
        assert check.draw_variance == check.variance
        parts = sum(float(v.sum()) for v in check.per_parameter.values())
        assert parts == pytest.approx(check.variance, rel=1e-9)
    # The constant is the mean of 200 draws of f: it misses E f by so much at most.
    mean = expect(exact.f)
    miss = FAR * math.sqrt(expect(lambda e: (exact.f(e) - mean) ** 2) / 200)
    possible = [exact.reinforce(mean + miss * k / 10) for k in range(-10, 11)]
    check = found["reinforce_baseline"]
    assert min(possible) - FAR * check.variance_error < check.variance < max(possible) + FAR * check.variance_error
    assert max(possible) < 0.5 * truth["reinforce"]


def test_all_estimators_have_the_same_expectation() -> None:
    gradient = Exact(M, S).gradient
    size = sum(g**2 for g in gradient)
    found = bz.inference.gradient_variance(Mean(), mean_field(M, S), data(), num_samples=8000, loss="monte_carlo")
    assert near(found.squared_norm, found.squared_norm_error, size)
    for check in found.estimators.values():
        assert near(check.squared_bias, check.squared_bias_error, 0.0), check.name
        assert check.squared_bias_error < 0.05 * size
        assert not check.biased


def test_particles_and_the_mean_of_the_others_as_baseline() -> None:
    exact = Exact(M, S)
    found = bz.inference.gradient_variance(
        Mean(), mean_field(M, S), data(), num_samples=8000, num_particles=3, loss="monte_carlo"
    )
    truth = {
        "reinforce": exact.reinforce() / 3,
        "reinforce_baseline": exact.leave_one_out(3),
        "reparametrized": exact.variance_of(lambda e: exact.path(e, sticking=False)) / 3,
        "sticking_the_landing": exact.variance_of(lambda e: exact.path(e, sticking=True)) / 3,
    }
    for name, variance in truth.items():
        assert near(found[name].variance, found[name].variance_error, variance), name
        assert not found[name].biased
    ratio, error = found.factor("reinforce_baseline", "reinforce")
    assert near(ratio, error, truth["reinforce"] / truth["reinforce_baseline"])
    assert ratio - FAR * error > 1.0


def test_a_closed_form_kl_leaves_the_noise_of_the_likelihood() -> None:
    exact = Exact(M, S)
    names = ("reparametrized", "reinforce")
    found = bz.inference.gradient_variance(Mean(), OneNormal(M, S), data(), names, num_samples=8000, loss="analytic_kl")
    check = found["reparametrized"]
    assert [e.kl for e in found.estimators.values()] == ["closed form", "drawn"]
    assert near(check.variance, check.variance_error, exact.variance_of(lambda e: exact.path(e, sticking=False, prior=False)))
    assert near(found["reinforce"].variance, found["reinforce"].variance_error, exact.reinforce())
    assert not check.biased


def test_sticking_the_landing_has_no_variance_at_the_posterior() -> None:
    n = len(OBSERVED)
    guide = mean_field(float(OBSERVED.sum()) / (n + 1), math.sqrt(1 / (n + 1)))
    found = bz.inference.gradient_variance(Mean(), guide, data(), loss="monte_carlo")
    # The parameters are rounded to float32, and f is then constant to 1e-7.
    assert found["sticking_the_landing"].variance < 1e-12
    # f is the same at every draw, the log evidence: with it as baseline REINFORCE has nothing left to weigh.
    assert found["reinforce_baseline"].variance < 1e-12
    assert found["reparametrized"].variance > 1.0
    assert near(found.squared_norm, found.squared_norm_error, 0.0)
    assert not any(check.biased for check in found.estimators.values())


def test_the_noise_of_batches_and_that_of_draws() -> None:
    size, n = 2, len(OBSERVED)
    sums = [n / size * float(sum(pair)) for pair in itertools.combinations(OBSERVED.tolist(), size)]
    a = np.array(sums) - (n + 1) * M
    c = (n + 1) * S
    # The gradient is -(a - c e) and -((a - c e) S e + 1), a the slope of log p at m for the batch.
    draws = c**2 + S**2 * (a**2).mean() + 2 * c**2 * S**2
    found = bz.inference.gradient_variance(
        Mean(), mean_field(M, S), data(), ("reparametrized",), batch_size=size, num_samples=8000, loss="monte_carlo"
    )
    check = found["reparametrized"]
    assert near(check.draw_variance, check.draw_variance_error, draws)
    assert near(check.variance, check.variance_error, draws + a.var())
    assert a.var() > FAR * check.variance_error
    # Half of the batches would be another gradient, all rows are the same one.
    assert near(found.squared_norm, found.squared_norm_error, sum(g**2 for g in Exact(M, S).gradient))


class OwnMeans(PyroModule):
    """z_n ~ N(0, 1), y_n ~ N(z_n, 1): a latent for each observation."""

    def forward(self, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        with pyro.plate("data", num_data, subsample=index, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_batches_of_observations_with_their_own_latents() -> None:
    guide = bz.guides.MeanField(OwnMeans(), data(), init_scale=1.0)
    found = bz.inference.gradient_variance(OwnMeans(), guide, data(), batch_size=2, num_samples=4000)
    # Each z_n has the posterior N(y_n / 2, 1 / 2), and q is its prior: gradients -y_n and 1.
    size = float((OBSERVED**2).sum()) + len(OBSERVED)
    assert near(found.squared_norm, found.squared_norm_error, size)
    for check in found.estimators.values():
        assert near(check.squared_bias, check.squared_bias_error, 0.0), check.name
        assert check.squared_bias_error < 0.1 * size


def test_draws_without_a_reparametrisation() -> None:
    guide = OneNormal(M, S, reparametrized=False)
    found = bz.inference.gradient_variance(Mean(), guide, data(), num_samples=2000)
    assert list(found.estimators) == ["reinforce", "reinforce_baseline"]
    assert found.reference == "reinforce_baseline"
    assert "'theta' have no reparametrisation" in found.absent["reparametrized"]
    check = found["reinforce"]
    assert near(check.variance, check.variance_error, Exact(M, S).reinforce())
    assert near(found.squared_norm, found.squared_norm_error, sum(g**2 for g in Exact(M, S).gradient))
    assert not check.biased
    with pytest.raises(ValueError, match=r"^estimator 'local' does not apply here: the draws of 'theta' have no reparam"):
        bz.inference.gradient_variance(Mean(), guide, data(), "local")


def test_a_model_that_cannot_be_mapped_gives_the_same_numbers() -> None:
    options: dict[str, Any] = {"num_samples": 40, "loss": "monte_carlo"}
    mapped = bz.inference.gradient_variance(Mean(), mean_field(M, S), data(), **options)
    looped = bz.inference.gradient_variance(Unmappable(), mean_field(M, S), data(), **options)
    assert (mapped.mapped, looped.mapped) == (True, False)
    for name, check in mapped.estimators.items():
        assert looped[name].blocks == pytest.approx(check.blocks, rel=1e-9)


# Networks.


def regression(size: int = 24, *shape: int) -> Any:
    x = torch.randn(size, *shape)
    return bz.data.Data(inputs={"x": x}, observed=x.flatten(1).mean(1) + 0.1 * torch.randn(size))


def test_a_linear_layer_against_theory() -> None:
    table = regression(24, 3)
    model = bz.models.BayesianNN(nn.Linear(3, 1, bias=False), "gaussian", noise_scale=0.5)
    fit = bz.fit(model, table, "mean_field", steps=5, progress=False, compile=False)
    names = ("reparametrized", "local", "flipout")
    found = bz.inference.gradient_variance(fit, None, None, names, num_samples=8000)
    x, s2 = table.inputs["x"].double(), (fit.guide.frame * fit.guide.log_scale.exp()).detach().double().square()
    gram = x.T @ x
    # The gradient for the mean is -4 sum_n (y_n - a_n) x_n, with a_n = w . x_n of one w, of independent noise with the same
    # variance, or of w with its signs turned: then E[(w . s_n)(w . s_k)] keeps the same x_n alone, n != k being uncorrelated.
    shared = 16 * float((gram @ s2.diag() @ gram).trace())
    local = 16 * float(((x.square() @ s2) * x.square().sum(1)).sum())
    truth = {"reparametrized": shared, "local": local, "flipout": local}
    for name, exact in truth.items():
        # Variances of 8,000 numbers, known to 1.6 % where they are normal; flipout's products of signs have no thicker tails.
        variance = float(found[name].per_parameter["guide.offset"].sum())
        assert variance == pytest.approx(exact, rel=FAR * math.sqrt(2 / 8000)), name
        assert not found[name].biased
    assert local < 0.8 * shared


@pytest.fixture(scope="module")
def digits() -> Any:
    """A small network on digits, early in training."""
    torch.manual_seed(0)
    model = bz.models.BayesianNN(bz.models.networks.mlp(64, [20], 10))
    train, _ = bz.data.load("digits").split(0.8, seed=0)
    return bz.fit(model, train, "mean_field", steps=200, batch_size=64, progress=False, compile=False)


def test_layer_noise_lowers_the_variance_of_a_fully_connected_network(digits: Any) -> None:
    found = bz.inference.gradient_variance(digits, None, None, ("reparametrized", "local", "flipout"), num_samples=400)
    assert found.batch_size == 64
    for name in ("local", "flipout"):
        ratio, error = found.factor(name, draws_only=True)
        assert ratio - FAR * error > 2.0, name
        assert error < 0.1 * ratio
        assert not found[name].biased
        # Not because nothing could be seen: a bias of a fifth of the gradient would be.
        assert found[name].squared_bias_error * 5 < found.squared_norm * 0.2**2 * 25
    local, flipout = (found.factor(name, draws_only=True)[0] for name in ("local", "flipout"))
    assert local > flipout


def test_in_a_convolution_local_noise_is_biased_and_flipout_is_not() -> None:
    images, places = 1.0 + 0.5 * torch.randn(16, 1, 5, 5), 9
    net = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.AvgPool2d(3), nn.Flatten())
    table = bz.data.Data(inputs={"x": images}, observed=images.mean((1, 2, 3)))
    model = bz.models.BayesianNN(net, "gaussian", noise_scale=0.5)
    fit = bz.fit(model, table, "mean_field", steps=5, progress=False, compile=False)
    with torch.no_grad():
        fit.guide.log_scale.add_(math.log(10))  # the bias grows faster with the weights' variance than the noise does
    found = bz.inference.gradient_variance(fit, None, None, ("local", "flipout"), num_samples=2000)
    # f is the mean over the places p of w . x_p, and the loss has 2 Var f for each image (noise 0.5). With one w for all places
    # Var f = sum_k s_k^2 (mean_p x_pk)^2; with independent ones only sum_k s_k^2 mean_p x_pk^2 / 9. Means do not differ.
    patches = nn.functional.unfold(images.double(), 3)
    s2 = (fit.guide.frame * fit.guide.log_scale.exp()).detach().double().square()
    missing = patches.mean(2).square() - patches.square().mean(2) / places
    exact = float((4 * s2 * missing.sum(0)).square().sum())
    local, flipout = found["local"], found["flipout"]
    assert near(local.squared_bias, local.squared_bias_error, exact)
    assert local.biased
    assert "warning: 'local' is biased" in str(found)
    assert not flipout.biased
    assert near(flipout.squared_bias, flipout.squared_bias_error, 0.0)
    assert flipout.squared_bias_error < 0.1 * exact


def test_parameters_of_the_model_have_a_gradient_too() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    model = bz.models.BayesianNN(net, "gaussian", noise_scale=1.0, bayesian="last")
    fit = bz.fit(model, regression(12, 3), "mean_field", steps=1, progress=False, compile=False)
    found = bz.inference.gradient_variance(fit, None, None, ("reinforce_baseline", "reparametrized"), num_samples=2000)
    check = found["reinforce_baseline"]
    assert any(name.startswith("model.net.0") for name in check.per_parameter)
    assert near(check.squared_bias, check.squared_bias_error, 0.0)
    assert check.squared_bias_error < 0.1 * found.squared_norm


# What is asked, and what is answered.


def test_a_fit_stays_as_it_is_and_the_seed_decides(digits: Any) -> None:
    before = {name: p.detach().clone() for name, p in digits.guide.named_parameters()}
    path, draws = digits.guide.path_derivative, digits.sample(3)
    first, again = (bz.inference.gradient_variance(digits, num_samples=40) for _ in range(2))
    other = bz.inference.gradient_variance(digits, num_samples=40, seed=1)
    assert not first.absent
    assert len(first.estimators) == 6
    for name, check in first.estimators.items():
        assert check.blocks == again[name].blocks
        assert check.blocks != other[name].blocks
    assert digits.guide.path_derivative == path
    assert all(torch.equal(p, before[name]) for name, p in digits.guide.named_parameters())
    assert all(torch.equal(v, digits.sample(3)[name]) for name, v in draws.items())


def test_a_family_by_name_is_measured_where_a_fit_begins() -> None:
    # The mode and its curvature: the posterior itself, where sticking the landing has no noise.
    for guide in ("full_rank", bz.guides.FullRank):
        found = bz.inference.gradient_variance(Mean(), guide, data(), num_samples=40)
        assert found.guide == "full_rank"
        assert found["sticking_the_landing"].variance < 1e-12
    flow = bz.inference.gradient_variance(Mean(), "iaf", data(), num_samples=40)
    assert "sticking_the_landing" in flow.absent
    assert "note: no 'sticking_the_landing': guide 'iaf' has no form of log q" in str(flow)


def test_the_table_and_the_numbers() -> None:
    found = bz.inference.gradient_variance(Mean(), mean_field(M, S), data(), num_samples=40, batch_size=2)
    text = str(found)
    assert text.startswith("Mean, guide mean_field: gradients of the negative ELBO, 40 an estimator, batches of 2, 1 particle")
    assert "of it draws" in text
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["estimators"]["reinforce"]["variance"] == found["reinforce"].variance
    assert all(check.seconds > 0 for check in found.estimators.values())
    assert found.factor("reparametrized") == (1.0, 0.0)
    with pytest.raises(KeyError, match=r"'local' was not measured: guide 'mean_field' draws no weights"):
        found["local"]


@pytest.mark.parametrize("mean", [0.0, 0.6])
def test_squared_norms_and_their_errors_are_honest(mean: float) -> None:
    repeats, m, shape = 2000, 20, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    draws = mean + shape * torch.randn(repeats, m, 3, dtype=torch.float64)
    values, errors = torch.tensor([squared_norm(d) for d in draws], dtype=torch.float64).unbind(1)
    spread = float(values.std())
    assert abs(float(values.mean()) - 3 * mean**2) < FAR * spread / math.sqrt(repeats)
    # An sd from 2,000 thick-tailed numbers is known to about 4 %; at zero the error is 40 % too large by construction.
    assert 0.9 * spread < float(errors.square().mean().sqrt()) < (1.1 if mean else 1.5) * spread
    if not mean:
        assert float((values > gradient_table.SIGNIFICANT * errors).double().mean()) < 0.002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimators": ("reinforced",)}, r"unknown gradient estimator 'reinforced'; did you mean 'reinforce'\?"),
        ({"estimators": ()}, "estimators names none"),
        ({"estimators": ("local",)}, "'local' does not apply here: guide 'mean_field' draws no weights that enter a linear"),
        ({"num_samples": 20}, "num_samples must be a whole number of at least 40, got 20"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"loss": "importance_weighted"}, "loss must be 'auto', 'monte_carlo' or 'analytic_kl'"),
        ({"guide": "map"}, "guide 'map' draws nothing"),
        ({"guide": "laplace"}, "neither the guide nor the model has parameters to train"),
        ({"guide": "mean_feild"}, "unknown guide 'mean_feild'"),
        ({"guide": None}, "needs a model, a guide and data, or a fit alone"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"guide": mean_field(M, S), "data": data(), **arguments}
    with pytest.raises(ValueError, match=message):
        bz.inference.gradient_variance(Mean(), **given)


def test_a_fit_brings_its_own_data() -> None:
    fit = bz.fit(Mean(), data(), "mean_field", steps=5, progress=False, compile=False)
    with pytest.raises(ValueError, match="a fit brings its own guide and data"):
        bz.inference.gradient_variance(fit, "mean_field")


def test_a_gradient_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="is not finite at these parameters"):
        bz.inference.gradient_variance(Mean(), OneNormal(math.nan, 1.0), data(), num_samples=40)
