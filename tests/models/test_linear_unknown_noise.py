import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, stats

import bayeszoo.models as models
from bayeszoo.data import Data

F64 = torch.float64


def table(n=60, dim=3, scale=1.0, noise=0.7, seed=0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=F64)
    y = x @ torch.ones(dim, dtype=F64) + noise * torch.randn(n, generator=generator, dtype=F64)
    return Data(inputs={"x": x}, observed=scale * y)


def test_one_coefficient_against_a_two_dimensional_brute_force():
    data = table(12, 1)
    x, y = data.inputs["x"].numpy()[:, 0], data.observed.numpy()
    model = models.BayesianLinearRegression(1, 0.5, 2.0, noise_prior_scale=1.5, intercept=False).double()
    theta = np.linspace(-9.0, 10.0, 3001)[:, None]
    log_sigma = np.linspace(-3.0, 2.5, 1001)[None]
    sigma = np.exp(log_sigma)
    log_joint = stats.norm.logpdf(theta, 0.5, 2.0) + stats.halfnorm.logpdf(sigma, scale=1.5) + log_sigma
    log_joint = log_joint + sum(stats.norm.logpdf(v, theta * u, sigma) for u, v in zip(x, y, strict=True))
    peak = log_joint.max()
    joint = np.exp(log_joint - peak)

    def integral(values):
        return integrate.trapezoid(integrate.trapezoid(values, log_sigma[0], axis=1), theta[:, 0])

    mass = integral(joint)
    posterior = model.exact_posterior(data)
    # 1e-8: the brute force cuts the tails at the ends of its box
    assert float(model.log_evidence(data)) == pytest.approx(peak + math.log(mass), abs=1e-8)
    for site, values in (("theta", theta), ("sigma", sigma)):
        mean = integral(joint * values) / mass
        sd = math.sqrt(integral(joint * (values - mean) ** 2) / mass)
        assert float(posterior.mean[site]) == pytest.approx(mean, abs=1e-8)
        assert float(posterior.sd[site]) == pytest.approx(sd, abs=1e-8)
    row = torch.tensor([[1.3]], dtype=F64)
    predictive = model.exact_predictive(data, row)
    assert float(predictive.mean) == pytest.approx(1.3 * integral(joint * theta) / mass, abs=1e-8)
    at = 0.4
    density = integral(joint * stats.norm.pdf(at, 1.3 * theta, sigma)) / mass
    assert float(predictive.log_prob(torch.tensor([at]))) == pytest.approx(math.log(density), abs=1e-7)
    spread = integral(joint * (sigma**2 + (1.3 * theta - float(predictive.mean)) ** 2)) / mass
    assert float(predictive.variance) == pytest.approx(spread, abs=1e-7)


CASES = {
    "plain": ({}, {}),
    "two rows, four coefficients": ({"n": 2}, {}),
    "one row": ({"n": 1}, {}),
    "as many rows as coefficients": ({"n": 4}, {"prior_scale": 100.0}),
    "targets of size 1e6 under a unit prior": ({"scale": 1e6}, {}),
    "targets of size 1e-6": ({"scale": 1e-6}, {"prior_scale": 10.0}),
    "noise of 1e-6": ({"noise": 1e-6}, {"prior_scale": 10.0}),
    "many rows": ({"n": 50_000}, {"prior_scale": 10.0}),
}


@pytest.mark.parametrize(("made", "prior"), CASES.values(), ids=CASES.keys())
def test_model_density_is_posterior_times_evidence(made, prior, identity_error):
    """And the grid found the density, whatever the data's scale: the posterior is normalised over sigma."""
    data = table(**made)
    model = models.BayesianLinearRegression(3, **prior).double()
    posterior = model.exact_posterior(data)
    draws = posterior.sample(10)
    # rounding of N terms and of r^T r / sigma^2, where the noise is small against the targets
    error = identity_error(model, data, draws)
    assert error < 1e-9 * max(1.0, abs(float(model.log_evidence(data)))), error
    relative = float(posterior.sd["sigma"] / posterior.mean["sigma"])  # fine near the peak, wide beyond it
    stretch = torch.linspace(-12.0, 12.0, 200_001, dtype=F64)
    log_sigma = (posterior.mean["sigma"].log() + relative * stretch.sinh()).clamp(-90.0, 60.0)
    density = (posterior.sigma.log_prob(log_sigma.exp()) + log_sigma).exp()
    assert float(torch.trapezoid(density, log_sigma)) == pytest.approx(1.0, abs=1e-6)


def test_draws_follow_the_density(monte_carlo):
    for data in (table(), table(3)):
        posterior = models.BayesianLinearRegression(3).exact_posterior(data)
        draws = posterior.sample(20_000)
        for site in ("theta", "sigma"):
            monte_carlo(draws[site], posterior.mean[site], posterior.sd[site])
        # sigma's quantiles, by the integral of its density up to each draw: uniform if the draws are right
        grid = torch.linspace(-30.0, 6.0, 200_001, dtype=F64)
        density = (posterior.sigma.log_prob(grid.exp()) + grid).exp()
        cdf = torch.cumulative_trapezoid(density, grid)
        uniform = cdf[torch.searchsorted(grid[1:], draws["sigma"].log()).clamp_max(len(cdf) - 1)]
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4


def test_given_sigma_theta_has_the_conjugate_posterior():
    data, sigma = table(), 0.6
    known = models.BayesianLinearRegression(3, noise_scale=torch.tensor(sigma, dtype=F64))
    expected = known.exact_posterior(data)["theta"]
    posterior = models.BayesianLinearRegression(3).exact_posterior(data)
    given = posterior.theta_given(torch.tensor([sigma, 2 * sigma], dtype=F64))
    torch.testing.assert_close(given.mean[0], expected.mean, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(given.variance[0], expected.variance, atol=1e-12, rtol=0.0)
    theta = torch.randn(5, 1, 4, dtype=F64)
    torch.testing.assert_close(given.log_prob(theta)[:, 0], expected.log_prob(theta[:, 0]), rtol=1e-11, atol=0.0)


def test_exact_posterior_as_guide_has_loss_minus_log_evidence():
    data = table()
    model = models.BayesianLinearRegression(3).double()
    guide = model.exact_posterior(data).as_guide()
    for elbo in (Trace_ELBO(), Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)):
        assert elbo.loss(model, guide, **data.bind(model)) == pytest.approx(-float(model.log_evidence(data)), rel=1e-10)


def test_map_is_where_the_models_own_density_is_flat(log_joint):
    for made in ({}, {"scale": 1e4}, {"n": 6}):
        data = table(**made)
        model = models.BayesianLinearRegression(3, prior_scale=2.0).double()
        mode = {site: v.clone().requires_grad_() for site, v in model.maximum_a_posteriori(data).items()}
        gradient = torch.autograd.grad(log_joint(model, data, mode), list(mode.values()))
        scale = float(data.observed.std())
        for site, slope in zip(mode, gradient, strict=True):
            # gradients are of order N / sigma away from the mode
            assert float(slope.abs().max()) < 1e-8 * len(data) / min(mode["sigma"].item(), scale), site


def test_maximum_likelihood_of_sigma_divides_by_n():
    data = table()
    answer = models.BayesianLinearRegression(3).maximum_likelihood(data)
    x = np.column_stack([np.ones(60), data.inputs["x"].numpy()])
    residual = np.linalg.lstsq(x, data.observed.numpy(), rcond=None)[1][0]
    assert float(answer["sigma"]) == pytest.approx(math.sqrt(residual / 60), rel=1e-12)


def test_perfect_fits_are_refused():
    x = torch.randn(30, 3, dtype=F64)
    noiseless = Data(inputs={"x": x}, observed=x.sum(1) + 2.0)
    model = models.BayesianLinearRegression(3)
    with pytest.raises(ValueError, match="without noise"):
        model.exact_posterior(noiseless)
    with pytest.raises(ValueError, match="fit every target"):
        model.maximum_likelihood(noiseless)
    with pytest.raises(ValueError, match="4 coefficients fit all 3 targets"):
        model.maximum_a_posteriori(table(3))
    # with few rows the posterior itself is proper, and answered
    assert math.isfinite(float(model.log_evidence(table(3))))


def test_predictive_draws_have_the_predictive_moments(monte_carlo):
    data = table(8)
    predictive = models.BayesianLinearRegression(3).exact_predictive(data, torch.randn(4, 3))
    assert predictive.batch_shape == (4,)
    monte_carlo(predictive.sample((20_000,)), predictive.mean, predictive.variance.sqrt())
    grid = torch.linspace(-60.0, 60.0, 12_001, dtype=F64).unsqueeze(-1)
    mass = torch.trapezoid(predictive.log_prob(grid).exp(), grid[:, 0], dim=0)
    np.testing.assert_allclose(mass, 1.0, atol=1e-6)  # tails of a few rows' predictive reach past the ends


def test_sigma_density_is_a_pyro_distribution():
    posterior = models.BayesianLinearRegression(3).exact_posterior(table())
    with pyro.plate("copies", 5):
        draws = pyro.sample("sigma", posterior.sigma)
    assert draws.shape == (5,)
    assert posterior.sigma.expand((2, 5)).log_prob(draws).shape == (2, 5)
