"""Models whose latents all belong to single observations: diagnosed and exported observation by observation."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import bayeszoo as bz

N = 600  # two latents each: more than a joint ratio can serve


def data(seed: int = 1) -> bz.data.Data:
    generator = torch.Generator().manual_seed(1)
    loading = torch.randn(2, 5, generator=generator)
    generator.manual_seed(seed)
    x = torch.randn(N, 2, generator=generator) @ loading + 0.5 * torch.randn(N, 5, generator=generator)
    return bz.data.Data({}, x.double())


def linear(guide: str, steps: int, **options: object) -> bz.inference.Fit:
    torch.manual_seed(2)
    model = bz.models.VAE(5, 2, "gaussian", generator=nn.Linear(2, 5))
    return bz.fit(
        model,
        data(),
        guide,
        steps=steps,
        optimizer=0.05,
        schedule="cosine",
        compile=False,
        progress=False,
        guide_options=options,
    )


@pytest.fixture(scope="module")
def good() -> bz.inference.Fit:
    return linear("amortized_full_rank", 400, network=nn.Identity())


@pytest.fixture(scope="module")
def bad() -> bz.inference.Fit:
    fit = linear("amortized", 200)
    with torch.no_grad():  # much too narrow
        fit.guide.head.bias[2:] -= 3.0
    return fit


def test_a_good_fit(good: bz.inference.Fit) -> None:
    found = good.diagnose(n=400, held_out=data(5))
    training, held_out = found.observations
    assert training.num_data == 100
    assert held_out.num_data == N
    assert training.bad_k == held_out.bad_k == 0
    assert not [w for w in found.warnings if "k-hat" in w]
    net, scale = good.model.generator, good.model.pixels.log_scale.detach().exp()
    cov = net.weight.detach() @ net.weight.detach().T + scale.square() * torch.eye(5, dtype=torch.float64)
    exact = float(MultivariateNormal(net.bias.detach(), cov).log_prob(data(5).observed).mean())
    assert held_out.log_p == pytest.approx(exact, abs=4 * held_out.log_p_error + 1e-4)
    assert held_out.log_p - held_out.elbo < 0.01
    assert "log p(x), held out" in str(found)
    assert found.to_dict()["observations"][1]["num_data"] == N


def test_a_guide_that_is_too_narrow_is_told(bad: bz.inference.Fit) -> None:
    found = bad.diagnose(n=400)
    assert found.observations[0].bad_k > 50
    assert found.verdict == "doubtful"
    assert any("k-hat is above" in w for w in found.warnings)
    assert any("held_out=test" in n for n in found.notes)


def test_loo_says_what_to_do_instead(good: bz.inference.Fit) -> None:
    with pytest.raises(ValueError, match="log_marginal"):
        good.loo()


def test_the_tree_shows_examples(good: bz.inference.Fit) -> None:
    tree = good.to_arviz(150)
    assert tree["posterior"]["z"].dims[:3] == ("chain", "draw", "example")
    assert tree["posterior"].sizes["example"] == 20
    assert tree.attrs["num_data"] == N
    assert "20 of the 600" in tree.attrs["rows_note"]
    rows = torch.tensor(tree["posterior"]["example"].values)
    marginal = tree["log_marginal"]
    again = good.log_marginal(good.data.select(rows), k=2000)
    limit = 5 * np.sqrt(np.square(marginal["error"].values) + np.square(again.errors.numpy())) + 1e-6
    assert (np.abs(marginal["log_p"].values - again.values.numpy()) < limit).all()
    draws = good.sample(400, data=good.data.select(rows))["z"]
    apart = np.abs(tree["posterior"]["z"].values[0].mean(0) - draws.mean(0).numpy()) / draws.std(0).numpy()
    assert apart.max() < 5 * np.sqrt(1 / 150 + 1 / 400)
    picked = good.to_arviz(10, rows=torch.tensor([3, 599]))
    assert picked["posterior"]["example"].values.tolist() == [3, 599]
    np.testing.assert_allclose(picked["observed_data"]["x"].values[1], good.data.observed[599])


def test_order_of_the_examples_and_no_joint_loo(good: bz.inference.Fit) -> None:
    tree = good.to_arviz(10, rows=[300, 5, 300])
    assert tree["posterior"]["example"].values.tolist() == [300, 5]
    np.testing.assert_allclose(tree["observed_data"]["x"].values, good.data.observed[[300, 5]])
    assert "log_likelihood" not in tree.children
    assert tree["log_conditional"]["x"].dims == ("chain", "draw", "example")
    assert "log_marginal" in tree.attrs["log_likelihood_note"]
    # log p(x | z) is what is left of it with z not integrated out: on average above log p(x), by the KL of q to the prior.
    assert float(tree["log_conditional"]["x"].mean()) > float(tree["log_marginal"]["log_p"].mean())
    with pytest.raises(Exception, match="log likelihood not found"):
        az.loo(tree)
    whole = good.to_arviz(2, rows=torch.arange(N).flip(0), predictive=False, prior=False)
    assert whole["posterior"]["example"].values[0] == N - 1


@pytest.mark.parametrize("guide", ["amortized", "per_datum"])
def test_a_guide_for_each_observation_is_looked_at_one_by_one_however_few_there_are(guide: str) -> None:
    few = data().select(range(12))
    model = bz.models.VAE(5, 2, "gaussian", generator=nn.Linear(2, 5))
    fit = bz.fit(model, few, guide, steps=30, compile=False, progress=False)
    tree = fit.to_arviz(100)
    assert tree["posterior"]["z"].dims[:3] == ("chain", "draw", "example")
    assert tree["log_marginal"].sizes["example"] == 12
    assert fit.diagnose(n=100).k_verdict == "by observation"
    assert fit.to_arviz(10, rows=3)["posterior"].sizes["example"] == 3
    with pytest.raises(ValueError, match="log_marginal"):
        fit.loo()


def test_a_few_latents_of_any_other_guide_stay_together() -> None:
    few = data().select(range(12))
    model = bz.models.VAE(5, 2, "gaussian", generator=nn.Linear(2, 5))
    fit = bz.fit(model, few, "mean_field", steps=30, compile=False, progress=False)
    assert fit.to_arviz(100)["posterior"]["z"].dims[2] == "observation"


def test_a_table_of_posteriors_is_cut_to_the_examples() -> None:
    fit = linear("per_datum", 50)
    tree = fit.to_arviz(400, rows=torch.tensor([7]))
    whole = fit.sample(400)["z"][:, 7]
    apart = np.abs(tree["posterior"]["z"].values[0, :, 0].mean(0) - whole.mean(0).numpy()) / whole.std(0).numpy()
    assert apart.max() < 5 * np.sqrt(2 / 400)
    assert fit.diagnose(n=100).observations[0].num_data == 100
