import math

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, special, stats

import bayeszoo.models as models
from bayeszoo.data import Data, load, simulate
from bayeszoo.models import hierarchical_posterior, quadrature

F64 = torch.float64


def people(heads, flips) -> Data:
    return Data(inputs={"total_count": torch.tensor(flips, dtype=F64)}, observed=torch.tensor(heads, dtype=F64))


CASES = {
    "a few people": people([3.0, 9.0, 5.0, 0.0], [10.0, 12.0, 6.0, 4.0]),
    "one person": people([7.0], [10.0]),
    "everyone all heads": people([10.0] * 5, [10.0] * 5),
    "everyone alike": people([500.0] * 8, [1000.0] * 8),
    "one person with a million flips": people([600_000.0, 3.0, 60.0], [1_000_000.0, 10.0, 100.0]),
    "single flips": Data(inputs={}, observed=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)),
}


def brute_force(data: Data, alpha: float = 1.0):
    """Integrate logit mu and log kappa over a wide fixed grid, with the default prior of kappa.

    The counts are small, so their evidence is a product of as many factors: log Gamma does not come in.
    """
    x = data.observed.numpy().astype(int)
    n = data.inputs["total_count"].numpy().astype(int) if data.inputs else np.ones_like(x)
    logit = np.linspace(-50.0 / alpha, 50.0, 3001)[:, None]
    log_kappa = np.linspace(math.log(100.0) - 20.0, math.log(100.0) + 20.0, 801)[None]
    mu, rest = special.expit(logit), special.expit(-logit)
    a, b = mu * np.exp(log_kappa), rest * np.exp(log_kappa)
    log_joint = math.log(alpha) + alpha * np.log(mu) + np.log(rest) + stats.norm.logpdf(log_kappa, math.log(100.0), 2.0)
    for k, m in zip(x, n, strict=True):
        log_joint = log_joint + math.log(math.comb(m, k)) - sum(np.log(a + b + j) for j in range(m))
        log_joint = log_joint + sum(np.log(a + j) for j in range(k)) + sum(np.log(b + j) for j in range(m - k))
    peak = log_joint.max()
    joint = np.exp(np.maximum(log_joint - peak, -700.0))

    def integral(values):
        return integrate.trapezoid(integrate.trapezoid(values, log_kappa[0], axis=1), logit[:, 0])

    mass = integral(joint)
    mean = integral(joint * mu) / mass
    log_mean = integral(joint * log_kappa) / mass
    person = integral(joint * (a + x[0]) / (a + b + n[0])) / mass
    return peak + math.log(mass), mean, log_mean, person


@pytest.mark.parametrize("name", ["a few people", "one person", "everyone all heads", "single flips"])
def test_against_a_fixed_brute_force_grid(name):
    data = CASES[name]
    loc = torch.tensor(math.log(100.0), dtype=F64)  # the default, in all its digits
    posterior = models.HierarchicalCoin(loc=loc).exact_posterior(data)
    evidence, mean, log_mean, person = brute_force(data)
    # the posterior's own tolerance is 1e-9 nats
    assert float(posterior.log_evidence) == pytest.approx(evidence, abs=2e-9)
    assert float(posterior.mean["mu"]) == pytest.approx(mean, abs=2e-9)
    assert float(posterior.mean["pi"][0]) == pytest.approx(person, abs=2e-9)
    draws = posterior.sample(20_000)["kappa"].log()
    assert float(draws.mean()) == pytest.approx(log_mean, abs=4 * float(draws.std()) / math.sqrt(20_000))


def test_a_prior_that_all_but_allows_zero():
    """Nobody sees heads and alpha is 0.2: mu's logarithm reaches down to -225, and stays integrable."""
    nobody = people([0.0] * 4, [10.0, 40.0, 7.0, 3.0])
    alpha, loc = torch.tensor(0.2, dtype=F64), torch.tensor(math.log(100.0), dtype=F64)
    posterior = models.HierarchicalCoin(alpha, 1.0, loc).exact_posterior(nobody)
    evidence, mean, _, person = brute_force(nobody, 0.2)
    assert float(posterior.log_evidence) == pytest.approx(evidence, abs=2e-9)
    assert float(posterior.mean["mu"]) == pytest.approx(mean, rel=1e-7)
    assert float(posterior.mean["pi"][0]) == pytest.approx(person, rel=1e-7)
    draws = posterior.sample(1_000)
    assert bool((draws["pi"] >= 0).all())
    assert bool(torch.isfinite(draws["mu"].log()).all())


@pytest.mark.parametrize("name", CASES)
def test_model_density_is_posterior_times_evidence(name, identity_error):
    data = CASES[name]
    model = models.HierarchicalCoin().double()
    draws = model.exact_posterior(data).sample(10)
    # the model's own log Beta functions cancel at large kappa: eps * kappa log kappa for each person
    kappa = float(draws["kappa"].max())
    tolerance = 1e-9 + 1e-15 * kappa * math.log(kappa + 2.0) * len(data)
    tolerance += 1e-15 * float(data.observed.sum()) * 20.0
    assert identity_error(model, data, draws) < tolerance


@pytest.mark.parametrize("name", CASES)
def test_the_grid_has_found_everything(name, monkeypatch):
    """Twice as many nodes over ranges that reach 15 nats further change nothing."""
    model = models.HierarchicalCoin().double()
    before = model.exact_posterior(CASES[name])
    for module in (quadrature, hierarchical_posterior):
        monkeypatch.setattr(module, "DROP", 60.0)
    monkeypatch.setattr(hierarchical_posterior, "NODES", (257, 513))
    after = model.exact_posterior(CASES[name])
    assert float(after.log_evidence) == pytest.approx(float(before.log_evidence), abs=1e-9)
    for site in ("mu", "kappa", "pi"):
        torch.testing.assert_close(after.mean[site], before.mean[site], rtol=1e-6, atol=0.0)
        torch.testing.assert_close(after.sd[site], before.sd[site], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", ["a few people", "everyone alike", "one person with a million flips"])
def test_draws_have_the_posterior_moments(name, monte_carlo):
    posterior = models.HierarchicalCoin(scale=0.7).double().exact_posterior(CASES[name])
    draws = posterior.sample(20_000)
    for site in ("mu", "kappa", "pi"):
        monte_carlo(draws[site], posterior.mean[site], posterior.sd[site])


def test_exact_posterior_as_guide_has_loss_minus_log_evidence():
    data = CASES["a few people"]
    model = models.HierarchicalCoin().double()
    guide = model.exact_posterior(data).as_guide()
    for elbo in (Trace_ELBO(), Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)):
        loss = elbo.loss(model, guide, **data.bind(model))
        assert loss == pytest.approx(-float(model.log_evidence(data)), rel=1e-6)  # kappa's tail, as above


def test_the_guide_takes_the_people_of_a_batch():
    data = CASES["a few people"]
    model = models.HierarchicalCoin().double()
    guide = model.exact_posterior(data).as_guide()
    batch = data.batch(torch.tensor([2, 0]), model)
    loss = Trace_ELBO().loss(model, guide, **batch)
    assert math.isfinite(loss)


def test_real_people():
    """48 people: a slight same-side bias, and people who differ by about 0.015 (Bartos et al. 2023)."""
    data = load("coin_flips").to(dtype=F64)
    posterior = models.HierarchicalCoin().double().exact_posterior(data)
    mean, sd = posterior.mean, posterior.sd
    assert len(mean["pi"]) == 48
    between = math.sqrt(0.25 / float(mean["kappa"]))
    assert 0.012 < between < 0.019
    assert float(mean["mu"]) > 0.5 + 3 * float(sd["mu"])
    # people are pulled from their own frequency towards the population's mean
    frequency = data.observed / data.inputs["total_count"]
    pulled = (mean["pi"] - mean["mu"]).abs() <= (frequency - mean["mu"]).abs() + float(sd["mu"])
    assert bool(pulled.all())
    # that they differ is worth far more than the one shared coin allows
    assert float(posterior.log_evidence) > float(models.CoinFlip().double().log_evidence(data)) + 20.0


def test_predictive_of_a_new_person_and_of_persons(monte_carlo):
    data = CASES["a few people"]
    model = models.HierarchicalCoin().double()
    posterior = model.exact_posterior(data)
    single = model.exact_predictive(data)
    assert single.batch_shape == ()
    assert float(single.mean) == pytest.approx(float(posterior.mean["mu"]), abs=1e-12)
    new = model.exact_predictive(data, total_count=6)
    assert float(new.log_prob(torch.arange(7.0)).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    monte_carlo(new.sample((20_000,)), new.mean, new.variance.sqrt())
    index = torch.tensor([3, 1])
    known = model.exact_predictive(data, total_count=6, index=index)
    torch.testing.assert_close(known.mean, 6.0 * posterior.mean["pi"][index], rtol=1e-9, atol=0.0)
    monte_carlo(known.sample((20_000,)), known.mean, known.variance.sqrt())
    draws = posterior.sample(50_000)["pi"][:, index]
    variance = 6.0 * (draws * (1.0 - draws)).mean(0) + 36.0 * draws.var(0)
    torch.testing.assert_close(known.variance, variance, rtol=0.03, atol=0.0)  # Monte Carlo error of the draws
    with pytest.raises(ValueError, match="at least one further flip"):
        model.exact_predictive(data, total_count=0)


@pytest.mark.slow
def test_simulated_people_are_recovered():
    """Calibration: the rank of the truth among 99 draws is uniform over 60 simulations."""
    model = models.HierarchicalCoin(scale=1.0).double()
    ranks = []
    for seed in range(60):
        data = simulate(model, 6, seed, inputs={"total_count": torch.full((6,), 20.0, dtype=F64)})
        draws = model.exact_posterior(data).sample(99)
        ranks.append([float((draws[site] < data.truth[site]).sum()) for site in ("mu", "kappa")])
    for site in np.array(ranks).T:
        assert stats.kstest((site + np.random.default_rng(0).random(60)) / 100.0, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"beta": -1.0}, {"scale": 0.0}, {"loc": math.inf}])
def test_constructor_refuses_in_one_sentence(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        models.HierarchicalCoin(**settings)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match=r"the count in row 2 .* is 13, where HierarchicalCoin expects"):
        models.HierarchicalCoin().check(people([3.0, 13.0], [10.0, 12.0]))
