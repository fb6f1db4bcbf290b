"""Diagnoses: right fits pass, wrong ones are named, whichever of k-hat and moments it takes."""

import copy
import dataclasses
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bayeszoo as bz
from bayeszoo.inference.diagnosis.checks import LatentCheck
from bayeszoo.inference.diagnosis.psis import smooth


def regression_data(rows=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=g, dtype=torch.float64)
    # Orthogonal columns, so that the factorised family holds the posterior.
    design = torch.linalg.qr(torch.cat([torch.ones(rows, 1, dtype=torch.float64), x], 1)).Q
    x = design[:, 1:] * rows**0.5
    y = 0.5 + x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + torch.randn(rows, generator=g, dtype=torch.float64)
    return bz.data.Data(inputs={"x": x}, observed=y)


@pytest.fixture(scope="module")
def fitted():
    model = bz.models.BayesianLinearRegression(dim=2, noise_scale=1.0)
    return bz.fit(model, regression_data(), guide="mean_field", seed=0, steps=300, progress=False)


@pytest.fixture
def shifted(fitted):
    """Moves the guide by hand, and puts it back: sds of all means, and the logarithm of all scales."""
    guide = fitted.guide
    before = {k: v.clone() for k, v in guide.state_dict().items()}

    def move(offset=0.0, log_scale=0.0):
        with torch.no_grad():
            guide.offset.add_(offset)
            guide.log_scale.add_(log_scale)
        return fitted.diagnose()

    yield move
    guide.load_state_dict(before)


def says(diagnosis, word):
    return any(word in text for text in diagnosis.warnings)


def test_a_good_fit_is_good(fitted):
    found = fitted.diagnose()
    assert found.verdict == "good"
    assert found.warnings == ()
    assert found.k_verdict == "good"
    assert found.k_threshold == pytest.approx(1 - 1 / 3)  # 1 - 1 / log10 1,000
    assert found.reference == "exact"
    assert [x.name for x in found.latents] == ["theta[intercept]", "theta[x0]", "theta[x1]"]
    # mean field holds nearly independent coefficients; 1,000 draws: 4 errors of a mean and of an sd
    assert all(abs(x.mean_error) < 0.05 + 4 / math.sqrt(1000) for x in found.latents)
    assert all(abs(x.sd_error) < 0.1 + 4 / math.sqrt(2000) for x in found.latents)


def test_kl_is_loss_plus_log_evidence(fitted):
    found = fitted.diagnose()
    q = dist.MultivariateNormal(fitted.guide.location().detach(), torch.diag(fitted.sample(4000)["theta"].var(0)))
    p = fitted.model.exact_posterior(fitted.data)["theta"]
    kl = float(torch.distributions.kl_divergence(q, p))
    # four Monte Carlo errors, and what the errors of 4,000 variances add
    assert found.kl == pytest.approx(kl, abs=4 * found.kl_error + 5e-3)


def test_too_narrow_is_seen_by_k_hat(shifted):
    found = shifted(log_scale=-1.2)
    assert found.k_verdict == "too high"
    assert found.k_hat > found.k_threshold
    assert says(found, "'full_rank'")


def blobs(rows=60):
    """Three classes that four inputs tell apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    return bz.data.Data({"x": torch.eye(3, 4)[y] * 3 + torch.randn(rows, 4, generator=generator)}, y)


@pytest.mark.parametrize(("hidden", "named"), [(20, "'full_rank'"), (100, "'low_rank'")])
def test_a_covariance_over_many_weights_is_not_suggested(hidden, named):
    torch.manual_seed(0)
    model = bz.models.BayesianNN(bz.models.networks.mlp(4, [hidden], 3))  # 163 and 803 weights and biases
    fit = bz.fit(model, blobs(), guide="mean_field", steps=5, compile=False, progress=False)
    found = fit.diagnose(n=100)
    assert found.k_verdict == "too high"
    assert says(found, f"try guide {named}")
    assert says(found, "full_rank") == (hidden == 20)


def test_an_empty_network_is_said_in_few_words():
    torch.manual_seed(0)
    model = bz.models.BayesianNN(bz.models.networks.mlp(4, [20], 3), prior="log_uniform")
    fit = bz.fit(model, blobs(), guide="sparse_vd", steps=5, compile=False, progress=False)
    whole = fit.diagnose(n=100)
    assert whole.functions
    assert not says(whole, "weight left")
    with torch.no_grad():
        fit.guide.log_variance.fill_(20.0)
    found = fit.diagnose(n=100)
    with pytest.raises(ValueError, match="no weight left") as caught:
        fit.sparsify()
    assert found.verdict == "doubtful"
    assert str(caught.value) in found.warnings
    assert "warm it up" in str(caught.value)
    assert not found.functions + found.latents
    assert len(str(found).splitlines()) <= 8


def test_a_mean_off_by_one_sd_is_seen_by_the_moments(shifted):
    found = shifted(offset=1.0)
    assert says(found, "moments that importance weights move")
    assert says(found, "from the reference")
    assert max(abs(x.shift) for x in found.latents) > 0.3


def test_sds_twice_too_wide_are_seen_by_the_moments_alone(shifted):
    found = shifted(log_scale=math.log(2.0))
    assert found.k_verdict == "good"
    assert says(found, "moments that importance weights move")
    # the weights mend what they see: four errors of an sd from some 290 effective draws
    assert all(x.psis_sd == pytest.approx(x.reference_sd, rel=0.17) for x in found.latents)


def test_the_exact_guide_says_exact():
    fit = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="exact", progress=False)
    found = fit.diagnose()
    assert found.k_verdict == "exact"
    assert found.k_hat is None
    assert "exact" in str(found)
    assert found.kl == pytest.approx(0.0, abs=1e-8)
    assert found.loo.num_data == 48


def test_point_guides_say_why_there_is_no_k_hat():
    fit = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="map", progress=False)
    found = fit.diagnose()
    assert (found.k_hat, found.kl, found.loo, found.verdict) == (None, None, None, "point")
    assert any("no log q" in note for note in found.notes)
    assert abs(found.latents[0].mean_error) < 0.1  # mode and mean of a Beta of 350,757 flips


def test_restarts_that_end_elsewhere(fitted):
    other = copy.deepcopy(fitted.run)
    other.restart = 1
    with torch.no_grad():
        other.owned.guide.offset.add_(3.0)
    other.objective.guide = other.owned.guide
    both = dataclasses.replace(fitted, runs=(fitted.run, other))
    found = both.diagnose()
    assert len(found.restarts) == 2
    assert found.restarts[0].mean_distance == 0.0
    assert found.restarts[1].mean_distance > 1.0
    assert says(found, "ended elsewhere")


def test_coverage_on_held_out_rows(fitted):
    found = fitted.diagnose(held_out=regression_data(400, seed=1))
    assert [c.prob for c in found.coverage] == [0.5, 0.9]
    for c in found.coverage:
        # four binomial errors of 400 rows, and the quantiles of 1,000 draws
        assert c.share == pytest.approx(c.prob, abs=4 * math.sqrt(c.prob * (1 - c.prob) / 400) + 0.02)
    narrow = regression_data(400, seed=1)
    narrow = dataclasses.replace(
        narrow, observed=narrow.observed + 3 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    )
    assert says(fitted.diagnose(held_out=narrow), "predictive intervals hold")


def test_held_out_in_original_units():
    data = bz.data.load("diabetes")
    train, test = data.split(0.8, seed=0)
    fit = bz.fit(bz.models.BayesianLinearRegression(dim=data.dim), train, guide="exact", progress=False)
    found = fit.diagnose(held_out=test)
    # 88 rows: four binomial errors
    assert found.coverage[1].share == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 88))
    with pytest.raises(ValueError, match="standardised otherwise"):
        fit.diagnose(held_out=data.unscaled())


def test_local_latents_get_one_sentence():
    def noisy(y=None, *, num_data=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", num_data or len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            return pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit = bz.fit(noisy, bz.data.Data(inputs={}, observed=y), guide="mean_field", steps=200, progress=False)
    found = fit.diagnose()
    assert found.k_hat is not None
    assert any("10 latents of single observations" in note and "pessimistic" in note for note in found.notes)


def test_a_program_gets_json(fitted):
    found = json.loads(json.dumps(fitted.diagnose().to_dict(), allow_nan=False))
    assert found["verdict"] == "good"
    assert set(found["latents"][0]) > {"name", "mean", "psis_mean", "reference_mean", "shift", "sd_error"}
    assert str(fitted.diagnose()).count("\n") < 25


def test_bad_input_is_one_sentence(fitted):
    with pytest.raises(ValueError, match="at least 100"):
        fitted.diagnose(n=10)
    with pytest.raises(ValueError, match=r"bz\.reference"):
        fitted.diagnose(reference=3)


def test_weights_of_a_known_ratio():
    # q = N(0, 1), p = N(0.5, 0.8): the weighted moments are p's
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, generator=g, dtype=torch.float64)
    ratio = dist.Normal(0.5, 0.8).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    weights = smooth(ratio)
    assert weights.reliable
    mean, sd = weights.moments(z[:, None].numpy())
    error = 4 / math.sqrt(weights.effective_draws)
    assert float(mean[0]) == pytest.approx(0.5, abs=0.8 * error)
    assert float(sd[0]) == pytest.approx(0.8, rel=error)


def test_k_hat_grows_with_the_tail_and_not_with_the_sign():
    # ArviZ's psislw negates its input: taken without care it finds the other tail
    e = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(0)
    log_ratio = 0.9 * e.sample((20_000,))  # exp(0.9 E) is Pareto of shape 0.9
    found = smooth(log_ratio)
    assert found.k_hat == pytest.approx(0.9, abs=0.2)  # some 424 tail draws: error (1 + k) / sqrt(424) is 0.09
    assert not found.reliable
    assert smooth(torch.zeros(100)).exact
    assert smooth(-log_ratio).k_hat < 0.5
    # nearly constant ratios are good, whatever shape is fitted to their tail
    assert smooth(1e-4 * log_ratio.exp().clamp(max=500.0)).reliable
    with pytest.raises(ValueError, match="NaN"):
        smooth(torch.full((50,), math.nan))
    assert np.isclose(found.weights.sum(), 1.0)


def test_latents_of_single_observations_alone() -> None:
    """Of an autoencoder nothing is shared: its joint k-hat means little, and other families than the stock ones help."""
    model = bz.models.VAE(4, 2, "gaussian", (3,))
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    amortized = bz.fit(model, bz.data.Data({}, x), steps=20, compile=False, progress=False)
    found = amortized.diagnose(n=100)
    assert found.k_hat is None
    assert any("'amortized_full_rank'" in doubt and "'full_rank'" not in doubt for doubt in found.warnings)
    assert len(amortized.log_marginal(k=100).k_hat) == 60
    together = bz.fit(model, bz.data.Data({}, x), "mean_field", steps=20, compile=False, progress=False)
    notes = together.diagnose(n=100).notes
    assert any("120 latents of single observations" in note and "fit.log_marginal().k_hat" in note for note in notes)


def test_what_rounding_leaves_of_a_constant_is_no_spread() -> None:
    """An assignment that is the same in all draws: sums of weights make an sd of 2e-16 of it."""
    check = LatentCheck("z[3]", 1.0, 0.0, 1.0 + 2.2e-16, 2.2e-16)
    assert check.shift == check.sd_change == check.severity == 0.0
    assert LatentCheck("z[3]", 1.0, 0.0, 0.0, 0.0).shift == math.inf
    assert LatentCheck("z[3]", 1e-9, 2e-10, 2e-9, 1e-10).shift == pytest.approx(-10.0)
