"""Importance-sampled log p(x) against probabilistic PCA, whose marginal likelihood is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import bayeszoo as bz

N, D, K = 200, 6, 2


def pca_data(rows: int = N) -> bz.data.Data:
    generator = torch.Generator().manual_seed(1)
    loading = torch.randn(K, D, generator=generator)
    x = torch.randn(rows, K, generator=generator) @ loading + 0.5 * torch.randn(rows, D, generator=generator) + 1.0
    return bz.data.Data({}, x.double())


def exact(fit: bz.inference.Fit, x: Tensor) -> Tensor:
    """log N(x; b, W W' + s^2 I) of the fitted generator."""
    net, scale = fit.model.generator, fit.model.pixels.log_scale.exp()
    with torch.no_grad():
        cov = net.weight @ net.weight.T + scale.square() * torch.eye(D, dtype=torch.float64)
        log_p: Tensor = MultivariateNormal(net.bias, cov).log_prob(x)
    return log_p


def linear(guide: str, steps: int = 1500, validation: bz.data.Data | None = None, **options: object) -> bz.inference.Fit:
    torch.manual_seed(2)
    model = bz.models.VAE(D, K, "gaussian", generator=nn.Linear(K, D))
    return bz.fit(
        model, pca_data(), guide, steps=steps, optimizer=0.02, schedule="cosine", compile=False, progress=False,
        validation=validation, guide_options=options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def full() -> bz.inference.Fit:
    """The exact posterior is a normal with a mean linear in x: the family holds it."""
    return linear("amortized_full_rank", network=nn.Identity())


@pytest.fixture(scope="module")
def diagonal() -> bz.inference.Fit:
    return linear("amortized", steps=300)


def test_full_rank_closes_the_gap(full: bz.inference.Fit) -> None:
    truth = exact(full, full.data.observed)
    assert abs(full.loss + float(truth.sum())) / N < 0.01  # nats an observation


@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_the_estimate_is_within_its_errors(diagonal: bz.inference.Fit, proposal: str) -> None:
    found = diagonal.log_marginal(k=2000, proposal=proposal)
    score = (found.values - exact(diagonal, diagonal.data.observed)) / found.errors
    trusted = found.k_hat < 0.7
    # Of 200 standard normal numbers the largest is below 4 with probability 0.99; log 1/K sum w is skewed a little more.
    assert float(score[trusted].abs().max()) < 5
    assert 0.7 < float(score[trusted].square().mean().sqrt()) < 1.3
    assert bool((found.ess <= 2000).all())
    if proposal == "guide":
        assert abs(found.mean - float(exact(diagonal, diagonal.data.observed).mean())) < 3 * found.error


def test_importance_sampling_beats_the_prior_at_equal_cost(diagonal: bz.inference.Fit) -> None:
    guide, prior = (diagonal.log_marginal(k=500, proposal=p) for p in ("guide", "prior"))
    # Two latents: the prior's error is 2.9 times as large, so it needs eight times the draws; in more dimensions it is hopeless.
    assert float(prior.errors.median()) > 2 * float(guide.errors.median())


def test_the_gap_is_the_kl(diagonal: bz.inference.Fit) -> None:
    found = diagonal.log_marginal(k=4000)
    truth = exact(diagonal, diagonal.data.observed)
    # ELBO of 30 draws of the whole data set against that of 4000 draws an observation.
    assert abs(-diagonal.loss / N - float(found.elbo.mean())) < 5 * diagonal.loss_error / N + 1e-3
    assert found.gap == pytest.approx(float((truth - found.elbo).mean()), abs=3 * found.error + 1e-4)
    assert found.bits_per_dim == pytest.approx(-found.mean / (D * math.log(2)))


def test_numbers_do_not_depend_on_chunks(diagonal: bz.inference.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayeszoo.inference.likelihood import log_marginal as module

    part = diagonal.data.select(range(20))
    whole = diagonal.log_marginal(part, k=400)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3000)
    parts = diagonal.log_marginal(part, k=400)
    # Other draws, the same estimate: within five standard errors of the difference.
    assert bool(((whole.values - parts.values).abs() < 5 * (whole.errors.square() + parts.errors.square()).sqrt()).all())


def test_new_observations_as_a_tensor(diagonal: bz.inference.Fit) -> None:
    x = pca_data(260).observed[N:]
    assert isinstance(x, Tensor)
    found = diagonal.log_marginal(x, k=1000)
    assert float(((found.values - exact(diagonal, x)) / found.errors).abs().max()) < 5


def test_a_table_answers_for_its_own_rows_alone() -> None:
    fit = linear("per_datum", steps=200)
    found = fit.log_marginal(k=500)
    assert float(((found.values - exact(fit, fit.data.observed)) / found.errors).abs().max()) < 5
    with pytest.raises(ValueError, match="leave out the data"):
        fit.log_marginal(pca_data(5))
    with pytest.raises(ValueError, match="leave out the data"):
        fit.sample(3, data=pca_data(5))
    with pytest.raises(ValueError, match="has no q for those of validation"):
        linear("per_datum", steps=1, validation=pca_data(5))


def test_the_inference_gap_is_split(diagonal: bz.inference.Fit) -> None:
    part = diagonal.data.select(range(30))
    gap = diagonal.inference_gap(part, k=2000, steps=200)
    truth = exact(diagonal, part.observed)
    torch.testing.assert_close(gap.approximation + gap.amortization, gap.log_marginal.values - gap.elbo)
    # The best independent normals for a normal posterior of precision P: KL = (sum_i log P_ii - log det P) / 2, whatever x.
    net, scale = diagonal.model.generator, diagonal.model.pixels.log_scale.detach().exp()
    weight = net.weight.detach()
    precision = torch.eye(K).double() + weight.T @ weight / scale.square()
    best = float(0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)))
    assert float((truth - gap.best_elbo).mean()) == pytest.approx(best, abs=0.01 + 3 * float(gap.errors.mean()) / 30**0.5)
    assert float(gap.amortization.mean()) > 0


def test_importance_weighted_bounds_each_observation() -> None:
    """With K draws an observation the bound lies between the ELBO and log p(x), and one observation's draws do not weigh another's."""
    fit = linear("amortized", steps=150)
    weighted = bz.fit(
        fit.model, fit.data, fit.guide, steps=1, optimizer=1e-9, loss="importance_weighted", num_particles=300, compile=False,
        progress=False,
    )  # fmt: skip
    truth = float(exact(fit, fit.data.observed).sum())
    assert -fit.loss < -weighted.losses[0] < truth + 1.0
    # A joint average over draws of all 200 observations would still be near the ELBO.
    assert truth + weighted.losses[0] < 0.1 * (truth + fit.loss)


def test_importance_weighted_minibatches_are_scaled() -> None:
    fit = linear("amortized", steps=150)
    losses = bz.fit(
        fit.model, fit.data, fit.guide, steps=200, batch_size=50, optimizer=1e-9, loss="importance_weighted", num_particles=20,
        compile=False, progress=False,
    ).losses  # fmt: skip
    whole = bz.fit(
        fit.model, fit.data, fit.guide, steps=20, optimizer=1e-9, loss="importance_weighted", num_particles=20, compile=False,
        progress=False,
    ).losses  # fmt: skip
    error = torch.tensor(losses).std() / len(losses) ** 0.5
    assert abs(sum(losses) / len(losses) - sum(whole) / len(whole)) < 5 * error


def test_what_is_refused(diagonal: bz.inference.Fit) -> None:
    shared = bz.fit(bz.models.CoinFlip(), bz.data.Data({}, torch.ones(3)), "mean_field", steps=1, progress=False)
    cases = {
        "k must be": lambda: diagonal.log_marginal(k=0),
        "proposal must be": lambda: diagonal.log_marginal(proposal="posterior"),
        "shared by all observations": lambda: shared.log_marginal(),
        r"make it with shape=\(5,\)": lambda: diagonal.log_marginal(torch.zeros(2, 5)),
        "inference network": lambda: shared.inference_gap(),
        "steps must be": lambda: diagonal.inference_gap(steps=0),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert str(caught.value).count("\n") == 0


def test_validation_is_the_bound_of_new_observations() -> None:
    held_out = pca_data(400).select(range(N, 400))
    fit = linear("amortized", steps=300, validation=held_out)
    (_, first), *_, (_, last) = fit.validation_losses
    elbo = fit.log_marginal(held_out, k=500, k_hat=False).elbo
    # The last look is at step 300, the end; 16 draws of 200 observations, whose bound varies by about a nat a draw.
    assert fit.validation_losses[-1][0] == 300
    assert last == pytest.approx(-float(elbo.mean()), abs=0.1)
    assert last < first - 1.0


def test_a_larger_tensor_than_the_training_data() -> None:
    grey = bz.data.Data({}, torch.rand(30, 6, generator=torch.Generator().manual_seed(0))).binarized(seed=0)
    fit = bz.fit(bz.models.VAE(6, 2, hidden=(8,)), grey, "amortized", steps=3, compile=False, progress=False)
    x = (torch.rand(100, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    found = fit.log_marginal(x, k=30)
    assert len(found) == 100
    torch.testing.assert_close(found.values, fit.log_marginal(x.numpy(), k=30).values)


def test_a_density_has_no_bits_a_dimension(diagonal: bz.inference.Fit) -> None:
    part = diagonal.data.select(range(5))
    assert "bits" not in str(diagonal.log_marginal(part, k=30))
    found = diagonal.log_marginal(part, k=30, k_hat=False)
    assert "k-hat was not looked at" in str(found)
    # min(1 - 1 / log10 30, 0.7)
    assert "k-hat above 0.32 for 5 of 5" in str(dataclasses.replace(found, k_hat=torch.full((5,), math.inf)))
    bits = bz.fit(bz.models.VAE(6, 2, hidden=(8,)), bz.data.Data({}, torch.ones(8, 6)), steps=1, compile=False, progress=False)
    assert "bits a dimension" in str(bits.log_marginal(k=30))
    with pytest.raises(ValueError, match="at least 2"):
        diagonal.inference_gap(part, k=0)


def test_guides_are_compared_by_the_log_probability_of_new_observations() -> None:
    torch.manual_seed(2)
    model = bz.models.VAE(D, K, "gaussian", generator=nn.Linear(K, D))
    held_out = pca_data(260).select(range(N, 260))
    found = bz.compare(
        model,
        pca_data(),
        ["amortized", "per_datum"],
        held_out=held_out,
        steps=200,
        optimizer=0.02,
        compile=False,
        progress=False,
    )
    table = found.table.held_out_nll
    assert table["amortized"] == pytest.approx(-float(exact(found.fits["amortized"], held_out.observed).mean()), abs=0.05)
    assert math.isnan(table["per_datum"])
