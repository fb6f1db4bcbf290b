"""Figures of autoencoders show the pictures and codes that they claim to show, and active units are those that follow the data."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo import plots

pytestmark = pytest.mark.usefixtures("plots_closed")


def linear(latents: int, **options: Any) -> bz.inference.Fit:
    """A linear generator of four pixels that depend on one number: of more latents all but one have nothing to say."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 1, generator=generator)
    x = one @ torch.tensor([[1.0, -1.0, 2.0, 0.5]]) + 0.1 * torch.randn(300, 4, generator=generator)
    data = bz.data.Data({}, x, truth={"y": (one[:, 0] > 0).long()})
    torch.manual_seed(0)
    model = bz.models.VAE(4, latents, "gaussian", generator=nn.Linear(latents, 4))
    return bz.fit(
        model, data, "amortized", steps=1500, optimizer=0.02, schedule="cosine", compile=False, progress=False, **options
    )


@pytest.fixture(scope="module")
def fit() -> bz.inference.Fit:
    return linear(3)


def shown(ax: Any) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_active_units_are_those_that_follow_the_data(fit: bz.inference.Fit) -> None:
    units = fit.active_units(n=50)
    assert units.count == 1
    assert units.active[units.order[0]]
    with torch.no_grad():
        means = fit.guide.rows({"x": fit.data.observed})[:, :3]
    # Halves of 25 draws: the estimate's error is some sd^2 / 25 / sqrt(300), sd at most one.
    torch.testing.assert_close(units.variances, means.double().var(0), rtol=0.05, atol=0.008)
    assert units.codes.shape == (300, 3)
    torch.testing.assert_close(units.codes, fit.sample(50)["z"].mean(0), rtol=0.0, atol=1e-5)
    assert "1 of 3 units of 'z' are active" in str(units)
    with pytest.raises(ValueError, match="at least 2"):
        fit.active_units(n=1)
    with pytest.raises(ValueError, match="latents of single observations are z"):
        fit.active_units(site="w")
    one = fit.active_units(fit.data.select(slice(0, 1)))
    assert bool(one.variances.isnan().all())
    assert "this is 'z' of one" in str(one)


def test_a_code_of_one_number() -> None:
    people = bz.fit(
        bz.models.HierarchicalCoin(), bz.data.load("coin_flips"), "mean_field", steps=5, compile=False, progress=False
    )
    units = people.active_units(n=4)
    assert units.codes.shape == (48, 1)
    assert units.variances.shape == (1,)


def test_pictures_lie_row_by_row() -> None:
    pictures = torch.arange(1, 6).reshape(5, 1, 1).float().expand(5, 2, 2) / 10
    image = shown(plots.plot_pictures(pictures, columns=3))
    assert image.shape == (6, 9)
    assert image[0, [0, 3, 6]] == pytest.approx([0.1, 0.2, 0.3])
    assert image[3, [0, 3, 6]] == pytest.approx([0.4, 0.5, 0.0])  # the last is empty
    assert shown(plots.plot_pictures(torch.rand(4, 3, 5, 5), columns=2)).shape == (12, 12, 3)
    with pytest.raises(ValueError, match=r"give size=\(H, W\)"):
        plots.plot_pictures(torch.rand(3, 6))
    with pytest.raises(ValueError, match="at least one of them"):
        plots.plot_pictures(torch.rand(0, 6))


def test_reconstructions_lie_under_their_pictures(fit: bz.inference.Fit) -> None:
    image = shown(plots.plot_reconstructions(fit, n=7, columns=5)).reshape(4, 3, 5, 3)[:, :2, :, :2]
    tiles = torch.as_tensor(image).permute(0, 2, 1, 3).reshape(4, 5, 4)
    x = fit.data.observed.clamp(0, 1)
    torch.testing.assert_close(tiles[0], x[:5])
    torch.testing.assert_close(tiles[2, :2], x[5:7])
    assert float((tiles[1] - x[:5]).abs().max()) < 0.5  # noise of 0.1, and what is cut at 0 and 1
    assert float(tiles[3, 2:].abs().max()) == 0.0


def test_a_traversal_moves_the_active_number(fit: bz.inference.Fit) -> None:
    ax = plots.plot_traversals(fit, columns=5)
    image = torch.as_tensor(shown(ax)).reshape(3, 3, 5, 3)[:, :2, :, :2]
    change = image.std(2).sum((1, 2))
    assert float(change[0]) > 5 * float(change[1:].max())
    assert "1 of 3 active" in ax.get_title()


def test_samples_follow_their_seed(fit: bz.inference.Fit) -> None:
    one, same, other = (shown(plots.plot_samples(fit, 6, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_codes_are_coloured_by_class_and_planes_are_for_two(fit: bz.inference.Fit) -> None:
    ax = plots.plot_codes(fit)
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert "principal component 1 (9" in ax.get_xlabel()  # one number carries nearly all variance
    bare = bz.data.Data({}, fit.data.observed)
    assert not plots.plot_codes(fit, bare).texts
    assert len(plots.plot_codes(fit, bare, labels=torch.zeros(300)).texts) == 1
    with pytest.raises(ValueError, match="seed must be a whole number that is not negative, got 'a'"):
        plots.plot_samples(fit, seed="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for two latents, and this model has 3"):
        plots.plot_plane(fit)
    two = linear(2)
    plane = torch.as_tensor(shown(plots.plot_plane(two, 3))).reshape(3, 3, 3, 3)[:, :2, :, :2]
    corner = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([1 / 6, 5 / 6]))
    with torch.no_grad():  # top left: z_1 low, z_2 high
        expected = two.model.decode(corner[None]).clamp(0, 1)
    torch.testing.assert_close(plane[0, :, 0].flatten(), expected[0])
    assert plots.plot_codes(two).get_xlabel() == "$z_1$"


def test_pictures_may_be_given_as_they_are_and_labels_as_words(fit: bz.inference.Fit) -> None:
    x = fit.data.observed[:40]
    bare = bz.data.Data({}, x)
    assert torch.equal(fit.active_units(x, n=10).codes, fit.active_units(bare, n=10).codes)
    assert np.array_equal(shown(plots.plot_reconstructions(fit, x, 5)), shown(plots.plot_reconstructions(fit, bare, 5)))
    ax = plots.plot_codes(fit, x, labels=["odd", "even"] * 20)
    assert [text.get_text() for text in ax.texts] == ["even", "odd"]
    assert len(ax.lines[0].get_xdata()) == 20


def test_bad_arguments(fit: bz.inference.Fit) -> None:
    labelled = bz.data.Data({"x": fit.data.observed}, torch.zeros(300).long())
    bad = {
        r"use data.unsupervised\(\)": lambda: plots.plot_reconstructions(fit, labelled),
        r"that of a single one; give \(N, ...\)": lambda: plots.plot_reconstructions(fit, fit.data.observed[0]),
        "from 0 to 299, got True": lambda: plots.plot_traversals(fit, row=True),
        "reach is how far .* got nan": lambda: plots.plot_traversals(fit, reach=float("nan")),
        "reach is how far .* got 'a'": lambda: plots.plot_traversals(fit, reach="a"),
        "at least two observations": lambda: plots.plot_codes(fit, fit.data.observed[:1]),
        "columns must be a whole number": lambda: plots.plot_samples(fit, columns=0),
        "n must be a whole number of at least 1, got -1": lambda: plots.plot_samples(fit, -1),
        "n must be a whole number of at least 1, got 0": lambda: plots.plot_reconstructions(fit, n=0),
        r"for each of the 300 observations, got shape \(3,\)": lambda: plots.plot_codes(fit, labels=[1, 2, 3]),
        "from 0 to 299, got 10000": lambda: plots.plot_traversals(fit, row=10_000),
        r"of a single one; give \(N, ...\) of them, x\[None\]": lambda: fit.log_marginal(fit.data.observed[0]),
        r"bz.data.Data\({}, x\) for a model without inputs": lambda: bz.fit(fit.model, fit.data.observed, "amortized"),
    }
    for message, call in bad.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_styles_stand_right_of_their_pictures(fit: bz.inference.Fit) -> None:
    x = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    data = bz.data.Data({"x": x}, torch.arange(40) % 3).partly_labelled(range(6))
    model = bz.models.SemiSupervisedVAE(4, 3, latents=2, hidden=(5,))
    m2 = bz.fit(model, data, "semi_supervised", steps=10, compile=False, progress=False)
    image = shown(plots.plot_styles(m2, n=2)).reshape(2, 3, 4, 3)[:, :2, :, :2]
    tiles = torch.as_tensor(image).permute(0, 2, 1, 3).reshape(2, 4, 4)
    torch.testing.assert_close(tiles[:, 0], x[:2])
    with torch.no_grad():
        z = m2.sample(1, data=m2.data.select(slice(0, 2)))["z"][0]
        torch.testing.assert_close(tiles[1, 3], m2.model.decode(z[1:], torch.tensor([2]))[0])
    assert shown(plots.plot_styles(m2, x[:3])).shape == (9, 12)
    with pytest.raises(ValueError, match="the model is SemiSupervisedVAE; see plot_styles"):
        plots.plot_samples(m2)
    with pytest.raises(ValueError, match="and the model is VAE"):
        plots.plot_styles(fit)


def test_other_models_are_refused() -> None:
    flips = bz.data.load("coin_flips")
    coin = bz.fit(bz.models.CoinFlip(), flips, "beta", progress=False)
    with pytest.raises(ValueError, match="of a VAE, whose codes are decoded to pictures, and the model is CoinFlip"):
        plots.plot_samples(coin)
    with pytest.raises(ValueError, match="it has no latents of single observations"):
        coin.active_units()


def test_the_figures_take_axes(fit: bz.inference.Fit) -> None:
    _, axes = plt.subplots(1, 2)
    assert plots.plot_samples(fit, ax=axes[0]) is axes[0]
    assert plots.plot_codes(fit, ax=axes[1]) is axes[1]
    assert isinstance(fit.active_units().variances, Tensor)


@pytest.mark.parametrize("guide", ["per_datum", "mean_field", "map"])
def test_a_guide_with_a_row_for_each_picture(fit: bz.inference.Fit, guide: str) -> None:
    """Its training pictures are drawn as those of any other; it has nothing to say of others, not even of a part taken out."""
    rows = bz.fit(fit.model, fit.data, guide, steps=5, compile=False, progress=False)
    assert shown(plots.plot_reconstructions(rows, n=3)).size
    with pytest.raises(ValueError, match="knows the observations of the training data alone"):
        rows.sample(2, data=fit.data.select(slice(0, 3)))
    for ask in (fit.log_marginal, fit.sample, fit.inference_gap):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            ask(seed="a")  # type: ignore[operator]
