"""Figures show the numbers they claim to show, and leave matplotlib's settings alone."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import bayeszoo as bz
from bayeszoo import plots

pytestmark = pytest.mark.usefixtures("plots_closed")


@pytest.fixture(scope="module")
def line() -> bz.inference.Fit:
    x = torch.linspace(10, 20, 40, dtype=torch.float64)[:, None]
    noise = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = bz.data.from_arrays(x, 3 * x[:, 0] + 5 + noise, feature_names=["size"], target_name="price", standardize=True)
    return bz.fit(bz.models.BayesianLinearRegression(1), data, guide="exact", progress=False)


@pytest.fixture(scope="module")
def coin() -> bz.inference.Fit:
    return bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="laplace", progress=False)


def labelled(ax: Axes) -> None:
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def line_of(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = next(shown for shown in ax.get_lines() if shown.get_label() == label)
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_losses_stand_over_the_evidence(coin):
    ax = plots.plot_losses(coin)
    labelled(ax)
    assert line_of(ax, "loss")[1].tolist() == coin.losses
    assert line_of(ax, "−log evidence (exact)")[1][0] == pytest.approx(-float(coin.model.log_evidence(coin.data)))


def test_posterior_densities_hold_mass_one_and_agree(coin):
    ax = plots.plot_posterior(coin, "pi")
    labelled(ax)
    x, density = line_of(ax, "laplace")
    # The window holds 99.8 % of the draws and some room.
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=0.01)
    exact = coin.model.exact_posterior(coin.data)["pi"]
    # A density estimate from 4,000 draws is within 10 % at the peak.
    assert density.max() == pytest.approx(float(exact.log_prob(exact.mean).exp()), rel=0.1)


def test_coin_updates_are_the_lectures_beta_densities():
    ax = plots.plot_coin_updates(torch.ones(3), at=(0, 3))
    labelled(ax)
    pi, prior = line_of(ax, "prior")
    assert np.allclose(prior, 1.0)
    assert np.allclose(line_of(ax, "3 flips, 3 heads")[1], 4 * pi**3)  # Beta(4, 1)
    with pytest.raises(ValueError, match="zeros and ones"):
        plots.plot_coin_updates(bz.data.load("coin_flips"))


def test_three_answers_after_three_heads():
    ax = plots.plot_coin_answers(torch.ones(3), at=[3], model=bz.models.CoinFlip())
    labelled(ax)
    assert line_of(ax, "maximum likelihood")[1].item() == 1.0
    assert line_of(ax, "MAP")[1].item() == 1.0
    assert line_of(ax, "full Bayes")[1].item() == pytest.approx(0.8)


def test_regression_is_drawn_in_original_units(line):
    ax = plots.plot_regression(line, "size")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("size", "price")
    x, mean = line_of(ax, "predictive mean")
    # The true line; noise of sd 1 in 40 points leaves about 0.3 at the ends, four times that is 1.2.
    assert np.allclose(mean, 3 * x + 5, atol=1.2)
    points = ax.collections[-1].get_offsets()
    raw = line.data.unscaled()
    assert np.allclose(points[:, 0], raw.inputs["x"][:, 0])
    assert np.allclose(points[:, 1], raw.observed)


def test_contours_take_several_guides(line):
    point = bz.fit(line.model, line.data, guide="map", progress=False)
    ax = plots.plot_contours({"exact": line, "map": point}, "theta")
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "theta[intercept] (standardised)",
        "theta[size] (standardised)",
    )
    ring = np.stack(line_of(ax, "exact, 90%"))
    posterior = line.model.exact_posterior(line.data)
    half = (ring.max(1) - ring.min(1)) / 2
    # The root of the 90 % quantile of chi-square with two degrees; 4 errors of an sd from 4,000 draws.
    assert half == pytest.approx(2.1460 * posterior.sd["theta"].numpy(), rel=0.045)
    at = np.concatenate(line_of(ax, "map (a point)"))
    assert at == pytest.approx(line.model.maximum_a_posteriori(line.data)["theta"].numpy(), abs=1e-4)


def test_people_are_drawn_to_the_population():
    data = bz.data.load("coin_flips")
    fit = bz.fit(bz.models.HierarchicalCoin(), data, guide="laplace", progress=False)
    ax = plots.plot_people(fit)
    labelled(ax)
    raw = line_of(ax, "each share alone, 90%")[0]
    drawn = line_of(ax, "posterior of all together, 90%")[0]
    assert len(raw) == len(drawn) == 48
    assert np.allclose(np.sort(raw), np.sort((data.observed / data.inputs["total_count"]).numpy()))
    assert drawn.std() < raw.std()
    assert len(ax.get_yticklabels()) == 48


@pytest.mark.parametrize(("noise", "misfit"), [(None, False), (0.02, True)])
def test_residual_check_shows_a_wrong_noise(line, noise, misfit):
    model = bz.models.BayesianLinearRegression(1, noise_scale=noise)
    ax = plots.plot_residual_check(bz.fit(model, line.data, guide="exact", progress=False))
    labelled(ax)
    label = next(shown.get_label() for shown in ax.get_lines())
    share = float(label.split("(")[1].split("%")[0])
    assert (share < 1) if misfit else (5 < share < 95)


def test_figures_are_written_into_a_given_axes(coin):
    _, ax = plt.subplots()
    assert plots.plot_losses(coin, ax=ax) is ax
