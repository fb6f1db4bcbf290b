import math

import numpy as np
import pytest
import torch
from pyro.distributions import Normal
from scipy import stats

from bayeszoo.models.beta_binomial import CountEvidence, log_rising
from bayeszoo.models.exact import GridMixture
from bayeszoo.models.quadrature import DROP, inverse_cdf, log_trapezoid, peak_interval, spread

F64 = torch.float64


@pytest.mark.parametrize("width", [1e-7, 1e-3, 1.0, 20.0])
def test_the_interval_finds_peaks_of_any_width(width):
    search = torch.tensor([-300.0, 300.0], dtype=F64)
    ends = peak_interval(lambda t: -0.5 * ((t - 12.34567) / width) ** 2, *search)
    reach = width * math.sqrt(2 * DROP)
    half = (float(ends[1]) - float(ends[0])) / 2
    # the level is that of the best node, a little below the peak, and the ends are bisected from without
    assert float(ends[0]) < 12.34567 - 0.999 * reach
    assert float(ends[1]) > 12.34567 + 0.999 * reach
    assert half < 1.01 * reach
    nodes = spread(*ends, 257)
    total = torch.logsumexp(log_trapezoid(nodes, -0.5 * ((nodes - 12.34567) / width) ** 2), 0)
    # the nodes' positions carry eps * 12 / width relative error
    assert float(total) == pytest.approx(math.log(width * math.sqrt(2 * math.pi)), abs=1e-12 + 1e-14 / width)


def test_a_density_that_does_not_fall_is_refused():
    with pytest.raises(ArithmeticError, match="does not fall"):
        peak_interval(lambda t: -t.clamp_min(0.0), *torch.tensor([-300.0, 300.0], dtype=F64))


def test_intervals_of_many_densities_and_of_a_tilted_one():
    centre = torch.tensor([-3.0, 40.0], dtype=F64)
    width = torch.tensor([0.01, 2.0], dtype=F64)

    def log_density(t):
        return -0.5 * ((t - centre.unsqueeze(-1)) / width.unsqueeze(-1)) ** 2

    search = torch.full((2,), 100.0, dtype=F64)
    low, high = peak_interval(log_density, -search, search, nodes=33)
    reach = width * math.sqrt(2 * DROP)
    torch.testing.assert_close(low, centre - reach, rtol=1e-2, atol=0.0)
    torch.testing.assert_close(high, centre + reach, rtol=1e-2, atol=0.0)
    # exp(2 t) moves a Gaussian's peak by 2 width^2, so the upper end by as much
    low, high = peak_interval(log_density, -search, search, nodes=65, tilt=2.0)
    torch.testing.assert_close(high, centre + reach + 2.0 * width**2, rtol=1e-2, atol=0.0)
    torch.testing.assert_close(low, centre - reach, rtol=1e-2, atol=0.0)


def test_inverse_cdf_of_one_and_of_many_densities():
    nodes = torch.linspace(-9.5, 9.5, 2049, dtype=F64)
    u = torch.linspace(0.0005, 0.9995, 999, dtype=F64)
    quantiles = inverse_cdf(nodes, -0.5 * nodes**2, u)
    # log-linear between nodes 0.009 apart: h^2 / 8 = 1e-5 in the density, far less in a quantile
    np.testing.assert_allclose(quantiles, stats.norm.ppf(u), atol=1e-5)
    shift = torch.tensor([[0.0], [1.5]], dtype=F64)
    table = (-0.5 * (nodes - shift) ** 2).unsqueeze(1).expand(2, 999, -1)
    both = inverse_cdf(nodes, table, u.expand(2, 999))
    np.testing.assert_allclose(both, stats.norm.ppf(u) + shift.numpy(), atol=1e-5)


def test_inverse_cdf_of_a_straight_and_of_a_steep_density_is_exact():
    nodes = torch.linspace(0.0, 3.0, 4, dtype=F64)
    u = torch.rand(100, dtype=F64)
    np.testing.assert_allclose(inverse_cdf(nodes, torch.zeros(4, dtype=F64), u), 3.0 * u, atol=1e-14)
    for rate in (-2.0, 5.0, 40.0):
        # F(t) = (e^{rt} - 1) / (e^{3r} - 1)
        exact = torch.logaddexp(torch.log1p(-u), u.log() + 3.0 * rate) / rate
        np.testing.assert_allclose(inverse_cdf(nodes, rate * nodes, u), exact, atol=1e-12)


@pytest.mark.parametrize("a", [1e-12, 0.3, 19.99, 20.0, 1e4, 1e12])
def test_rising_factorial_against_the_product(a):
    for k in (0, 1, 7, 200):
        expected = math.fsum(math.log(a + j) for j in range(k))
        got = float(log_rising(torch.tensor(a, dtype=F64).log(), torch.tensor(float(k), dtype=F64)))
        assert got == pytest.approx(expected, rel=1e-13, abs=1e-12)


def test_count_evidence_against_scipy_and_its_limit_of_equal_chances():
    x = torch.tensor([3.0, 3.0, 0.0, 8.0], dtype=F64)
    n = torch.tensor([10.0, 12.0, 4.0, 8.0], dtype=F64)
    a, b = torch.tensor([0.4, 3.0, 500.0], dtype=F64), torch.tensor([2.0, 0.7, 400.0], dtype=F64)
    expected = [stats.betabinom.logpmf(x, n.int(), float(p), float(q)).sum() for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(CountEvidence(x, n)(a.log(), b.log(), (a + b).log()), expected, rtol=1e-11)
    large = torch.tensor([0.3e14, 0.7e14, 1e14], dtype=F64).log()
    alike = CountEvidence(x, n)(*large)
    assert float(alike) == pytest.approx(stats.binom.logpmf(x, n, 0.3).sum(), abs=1e-11)


def test_grid_mixture_moments_density_and_draws(monte_carlo):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    loc = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, -1.0]], dtype=F64)
    scale = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    mixture = GridMixture(Normal, weights, loc, scale)
    at = torch.tensor(0.7, dtype=F64)
    expected = (weights * Normal(loc, scale).log_prob(at).exp()).sum(-1)
    torch.testing.assert_close(mixture.log_prob(at).exp(), expected)
    monte_carlo(mixture.sample((20_000,)), mixture.mean, mixture.variance.sqrt())
    assert mixture.expand((4, 2)).sample((3,)).shape == (3, 4, 2)
    torch.testing.assert_close(mixture.mean, (weights * loc).sum(-1))
