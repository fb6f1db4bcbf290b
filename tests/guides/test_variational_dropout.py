"""Variational dropout: the KL that it trains with, what it prunes, and the prior that it is tied to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayeszoo as bz
from bayeszoo.models import BayesianNN, networks
from bayeszoo.models.weight_priors import log_uniform_kl


@pytest.mark.parametrize("guide", ["gaussian_dropout", "sparse_vd"])
def test_loss_is_likelihood_plus_the_formula(net: nn.Module, data: bz.data.Data, guide: str) -> None:
    model = BayesianNN(net, prior="log_uniform")
    fit = bz.fit(model, data, guide=guide, steps=100, optimizer=0.02, progress=False)
    kl = sum(float(log_uniform_kl(a).sum()) for a in fit.guide.log_alpha().values())
    with fit.run.owned.active(2), torch.no_grad():
        kwargs = fit.data.bind(fit.model)
        parts = [fit.run.objective._particle(kwargs) for _ in range(5)]
    # The guides have the moments, not log alpha, in float64; the smallest square in the formula changes the ninth digit.
    assert [float(part.kl) for part in parts] == pytest.approx([kl] * 5, rel=1e-6)
    # The loss at the end is a Monte Carlo mean of log q - log p, whose KL the formula fits to 0.01 nats a weight.
    likelihood = -sum(float(fit.run.objective._particle(kwargs).likelihood.detach()) for _ in range(400)) / 400
    assert fit.loss == pytest.approx(likelihood + kl, abs=0.01 * 12 + 4 * fit.loss_error + 0.5)
    assert (fit.objective, fit.improper) == ("surrogate", True)


def test_moments_agree_with_draws(net: nn.Module, data: bz.data.Data) -> None:
    for guide in ("gaussian_dropout", "sparse_vd"):
        fit = bz.fit(BayesianNN(net, prior="log_uniform"), data, guide=guide, steps=50, optimizer=0.02, progress=False)
        draws = fit.sample(4000)
        for name, (mean, sd) in fit.guide.factorized_moments().items():
            # 4000 draws: five standard errors of the means, and of the sds 5 / sqrt(8000)
            assert bool(((draws[name].mean(0) - mean).abs() < 5 * sd / 4000**0.5).all())
            assert bool(((draws[name].std(0) / sd - 1).abs() < 0.056).all())
            alpha, kept = 2 * sd.log() - 2 * mean.abs().log(), mean != 0
            torch.testing.assert_close(fit.guide.log_alpha()[name][kept], alpha[kept], rtol=1e-4, atol=1e-4)
            assert bool((fit.guide.log_alpha()[name][~kept] > 3.0).all())


def test_latent_biases_have_moments_too(net: nn.Module, data: bz.data.Data) -> None:
    model = BayesianNN(net, prior="log_uniform", biases=True)
    fit = bz.fit(model, data, guide="sparse_vd", steps=50, optimizer=0.02, progress=False)
    assert set(fit.guide.factorized_moments()) == set(model.sites)
    draws = fit.sample(4000)["fc1.bias"]
    mean, sd = fit.guide.factorized_moments()["fc1.bias"]
    assert bool(((draws.mean(0) - mean).abs() < 5 * sd / 4000**0.5).all())


def test_means_above_the_threshold_are_zero_and_keep_their_kl(net: nn.Module, data: bz.data.Data) -> None:
    """In draws, moments and gradients: what the likelihood says of such a mean is nothing, and the KL draws it on to zero."""
    fit = bz.fit(
        BayesianNN(net, prior="log_uniform"), data, guide="sparse_vd", guide_options={"threshold": 1.0, "init_log_variance": -2.0},
        steps=1, optimizer=1e-9, progress=False,
    )  # fmt: skip
    above = {name: alpha > 1.0 for name, alpha in fit.guide.log_alpha().items()}
    assert 0 < sum(int(a.sum()) for a in above.values()) < 18
    draws = fit.sample(4000)
    moments, points = fit.guide.factorized_moments(), fit.guide.points()
    for name, (mean, sd) in moments.items():
        assert torch.equal(mean == 0, above[name])
        assert torch.equal(mean[~above[name]], points[name][~above[name]])
        assert bool(((draws[name].mean(0) - mean).abs() < 5 * sd / 4000**0.5).all())
    with fit.run.owned.active(0):
        particle = fit.run.objective._particle(fit.data.bind(fit.model))
        kl = sum(log_uniform_kl(alpha).sum() for alpha in fit.guide.log_alpha().values())
        assert float(particle.kl.detach()) == pytest.approx(float(kl), rel=1e-6)
        (by_likelihood,) = torch.autograd.grad(particle.likelihood, fit.guide.theta, retain_graph=True)
        (by_kl,) = torch.autograd.grad(particle.kl, fit.guide.theta)
    for name, gradient in fit.guide.space.split(by_likelihood).items():
        assert torch.equal(gradient == 0, above[name])
    # The KL falls with alpha, so a step against its gradient goes towards zero everywhere.
    assert bool((by_kl * fit.guide.theta > 0).all())
    for wrong in ("3", True, float("nan")):
        with pytest.raises(ValueError, match="threshold is the log alpha of weights without a mean"):
            bz.fit(fit.model, data, guide="sparse_vd", guide_options={"threshold": wrong}, steps=1, progress=False)


def test_shares_of_alpha(net: nn.Module, data: bz.data.Data) -> None:
    model = BayesianNN(net, prior="log_uniform")
    for share, sizes in {"layer": 2, "unit": 2 + 3, "weight": 12}.items():
        fit = bz.fit(
            model, data, guide="gaussian_dropout", guide_options={"share": share}, steps=2, optimizer=0.02, progress=False
        )
        assert fit.guide.log_alphas.numel() == sizes


def test_irrelevant_inputs_are_pruned_and_relevant_ones_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 20, generator=generator)
    y = 2 * x[:, 0] - x[:, 1] + 0.3 * torch.randn(300, generator=generator)
    data = bz.data.Data(inputs={"x": x}, observed=y)
    torch.manual_seed(0)
    model = BayesianNN(networks.mlp(20, [], 1), "gaussian", prior="log_uniform", noise_scale=0.3)
    fit = bz.fit(model, data, guide="sparse_vd", steps=3000, optimizer=0.01, progress=False)
    alpha = fit.guide.log_alpha()["fc1.weight"][0]
    # A relevant weight's posterior sd is 0.3 / sqrt(300) = 0.017, so log alpha = 2 log(0.017 / w): below -8.
    assert bool((alpha[:2] < -7).all())
    # The others are noise to the model, most of them by the paper's threshold: 18 chance correlations of 0.06 remain.
    assert bool((alpha[2:] > -1).all())
    assert int((alpha[2:] > 3).sum()) > 9
    mean, sd = fit.guide.factorized_moments()["fc1.weight"]
    # five posterior sds
    assert mean[0, :2].numpy() == pytest.approx([2.0, -1.0], abs=5 * 0.3 / 300**0.5)
    assert sd[0, :2].numpy() == pytest.approx(0.3 / 300**0.5, rel=0.25)


def test_the_kl_is_switched_on_slowly() -> None:
    weight = bz.guides.SparseVariationalDropout.kl_weight
    assert [weight(step, 200) for step in (0, 5, 20, 199)] == [0.0, 0.0, 1.0, 1.0]
    assert weight(12, 200) == pytest.approx(7 / 15)


def test_tied_to_the_prior(net: nn.Module, data: bz.data.Data) -> None:
    for guide in ("sparse_vd", "gaussian_dropout"):
        with pytest.raises(ValueError, match=f"guide '{guide}' .*prior=\"log_uniform\""):
            bz.fit(BayesianNN(net), data, guide=guide, steps=2, progress=False)
    with pytest.raises(ValueError, match="share says what has an alpha of its own: layer, unit, weight; got 'row'"):
        bz.fit(
            BayesianNN(net, prior="log_uniform"), data, guide="gaussian_dropout", guide_options={"share": "row"}, progress=False
        )
