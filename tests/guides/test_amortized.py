"""Posteriors of latents of single observations: constrained latents, several sites, foreign models, refusals."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import bayeszoo as bz

GUIDES = ("amortized", "amortized_full_rank", "amortized_iaf", "per_datum")


class Counts(PyroModule):
    """r_n ~ Gamma(3, 1), x_n ~ Poisson(r_n): the posterior is Gamma(3 + x, 2), the marginal negative binomial."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        size = num_data if x is None else num_data or len(x)
        with pyro.plate("data", size, subsample=index, dim=-1):
            r = pyro.sample("r", dist.Gamma(torch.tensor(3.0), 1.0))
            return pyro.sample("x", dist.Poisson(r), obs=x)


class Two(PyroModule):
    """A vector and a share for each observation, which an input shifts."""

    def forward(
        self, shift: Tensor, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        with pyro.plate("data", num_data or len(shift), subsample=index, dim=-1):
            a = pyro.sample("a", dist.Normal(shift.new_zeros(3), 1.0).to_event(1))
            s = pyro.sample("s", dist.Dirichlet(shift.new_ones(2)))
            return pyro.sample("x", dist.Normal(a.sum(-1) + s[..., 0] + shift, 0.5), obs=x)


def counts() -> bz.data.Data:
    return bz.data.simulate(Counts(), 300, seed=0)


@pytest.mark.parametrize("guide", GUIDES)
def test_positive_latents_against_the_exact_posterior(guide: str) -> None:
    data = counts()
    fit = bz.fit(Counts(), data, guide, steps=800, optimizer=0.02, schedule="cosine", compile=False, progress=False)
    x = data.observed
    draws = fit.sample(2000)["r"]
    mean, sd = (3 + x) / 2, (3 + x).sqrt() / 2
    # A log-normal fitted to a Gamma of shape 3 has its mean within 0.06 sd; the rest is for draws (0.02) and the network.
    assert float(((draws.mean(0) - mean) / sd).abs().mean()) < 0.1
    marginal = dist.NegativeBinomial(3.0, probs=torch.tensor(0.5)).log_prob(x)
    found = fit.log_marginal(k=2000)
    assert float(((found.values - marginal) / found.errors).abs().max()) < 6
    assert 0 <= found.gap < 0.05


@pytest.mark.parametrize("guide", GUIDES)
def test_several_sites_and_inputs(guide: str) -> None:
    data = bz.data.simulate(Two(), 40, inputs={"shift": torch.linspace(-1, 1, 40)}, seed=0)
    fit = bz.fit(Two(), data, guide, steps=30, batch_size=10, compile=False, progress=False)
    draws = fit.sample(5)
    assert draws["a"].shape == (5, 40, 3)
    torch.testing.assert_close(draws["s"].sum(-1), torch.ones(5, 40))
    assert fit.guide.size == 4  # three numbers, and one for a share of two
    assert bool(torch.isfinite(fit.log_marginal(k=50).values).all())


def test_a_joint_family_of_one_number_is_the_independent_one() -> None:
    """In one dimension both hold the same normals: the same optimum, up to the noise of training."""
    fits = [
        bz.fit(Counts(), counts(), g, steps=1500, optimizer=0.01, schedule="cosine", compile=False, progress=False)
        for g in ("amortized", "amortized_full_rank")
    ]
    error = 4 * (fits[0].loss_error ** 2 + fits[1].loss_error ** 2) ** 0.5
    assert abs(fits[0].loss - fits[1].loss) < error + 0.005 * len(counts())


def test_new_observations_and_a_network_of_ones_own() -> None:
    fit = bz.fit(
        Counts(), counts(), "amortized", guide_options={"network": nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 5), nn.Tanh())},
        steps=20, compile=False, progress=False,
    )  # fmt: skip
    assert fit.sample(3, data=counts().select(range(7)))["r"].shape == (3, 7)


def test_constants_are_no_rows() -> None:
    """Though one may have as many numbers as there are observations: a network that saw it would answer by place."""

    def model(y: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
            pyro.sample("y", dist.Normal(z + w.mean(), 0.5), obs=y)

    y = torch.randn(30, generator=torch.Generator().manual_seed(0))
    data = bz.data.Data({}, {"y": y}, {"w": torch.ones(30)})
    fit = bz.fit(model, data, "amortized", steps=20, progress=False, compile=False)
    assert fit.guide.features.names == ["y"]
    assert fit.log_marginal(data.select(range(7)), k=5).values.shape == (7,)
    assert fit.to_arviz(5, rows=3)["posterior"].sizes["example"] == 3


def test_what_is_refused() -> None:
    coin = bz.data.Data({}, torch.ones(3))
    cases = {
        "'pi' is shared by all": lambda: bz.fit(bz.models.CoinFlip(), coin, "amortized", steps=1, progress=False),
        "transforms must be at least 1": lambda: bz.fit(
            Counts(), counts(), "amortized_iaf", guide_options={"transforms": 0}, steps=1, progress=False
        ),
        r"end it with nn.Flatten\(\)": lambda: bz.fit(
            Counts(), counts(), "amortized", guide_options={"network": nn.Identity()}, steps=1, progress=False
        ),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert str(caught.value).count("\n") == 0


def test_available_lists_them_for_local_latents_alone() -> None:
    assert set(GUIDES) <= set(bz.guides.available(Counts(), counts()))
    assert not set(GUIDES) & set(bz.guides.available(bz.models.CoinFlip(), bz.data.Data({}, torch.ones(3))))
