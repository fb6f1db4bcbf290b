"""Models whose latents all belong to single observations: diagnosed and exported observation by observation."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import bayeszoo as bz
from bayeszoo import guides
from bayeszoo.inference.likelihood.log_marginal import log_marginal

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


def test_a_table_of_posteriors_is_cut_to_the_examples() -> None:
    fit = linear("per_datum", 50)
    tree = fit.to_arviz(400, rows=torch.tensor([7]))
    whole = fit.sample(400)["z"][:, 7]
    apart = np.abs(tree["posterior"]["z"].values[0, :, 0].mean(0) - whole.mean(0).numpy()) / whole.std(0).numpy()
    assert apart.max() < 5 * np.sqrt(2 / 400)
    assert fit.diagnose(n=100).observations[0].num_data == 100


def pairs(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
    """Of each observation a latent of its own: log p(x) = log N(x; 0, sqrt 2)."""
    with pyro.plate("data", num_data or len(x), subsample=index):  # type: ignore[arg-type]
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pairs_whole(x: Tensor | None = None, *, num_data: int | None = None) -> None:
    pairs(x, num_data=num_data)


def table(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(num_data or len(x)))
    with pyro.plate("data", num_data or len(x), subsample=index) as i:
        pyro.sample("z", dist.Normal(loc[i], 0.7))


def network(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    with pyro.plate("data", num_data or len(x), subsample=index):
        pyro.sample("z", dist.Normal(a * x, 0.7))


def numbers(num: int) -> bz.data.Data:
    return bz.data.Data({}, {"x": 1.4 * torch.randn(num, generator=torch.Generator().manual_seed(2), dtype=torch.float64)})


@pytest.mark.parametrize("guide", [table, "mean_field"])
def test_a_table_of_all_observations_is_never_asked_as_if_some_were_its_first(guide: Any) -> None:
    fit = bz.fit(pairs, numbers(1_200), guide, steps=400, optimizer=0.05, compile=False, progress=False)
    assert fit.to_arviz(20)["posterior"]["z"].dims[2] == "observation"
    with pytest.raises(ValueError, match="rows is for networks, and for models whose latents"):
        fit.to_arviz(20, rows=3)
    report = fit.diagnose(n=200)
    all_of_them = fit.log_marginal(k=200)
    rows = torch.linspace(0, 1_199, 100).round().long()
    exact = dist.Normal(0.0, 2**0.5).log_prob(fit.data.observed["x"])
    assert report.observations[0].log_p == pytest.approx(float(exact[rows].mean()), abs=0.02)
    # The ELBO of 200 draws a row, against the others' draws: sd of a log ratio about 0.5.
    assert report.observations[0].elbo == pytest.approx(
        float(all_of_them.elbo[rows].mean()), abs=4 * 0.5 / (200 * 100) ** 0.5 * 2**0.5
    )
    assert all_of_them.mean == pytest.approx(float(exact.mean()), abs=0.01)


def test_a_network_of_the_users_is_asked_about_each_alone() -> None:
    fit = bz.fit(pairs, numbers(40), network, steps=200, optimizer=0.05, compile=False, progress=False)
    tree = fit.to_arviz(400, rows=[30, 2])
    assert tree["posterior"]["z"].dims[2] == "example"
    x = fit.data.observed["x"][[30, 2]]
    means = tree["posterior"]["z"].values[0].mean(0)
    np.testing.assert_allclose(means, 0.5 * x, atol=5 * 0.7 / 400**0.5 + 0.02 * float(x.abs().max()))
    with pytest.raises(ValueError, match="log_marginal"):
        fit.loo()


@pytest.mark.parametrize("guide", ["amortized", "per_datum", "mean_field"])
@pytest.mark.parametrize("model", [pairs, pairs_whole])
def test_more_rows_than_one_chunk_of_a_model_with_and_without_batches(
    guide: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayeszoo.inference.likelihood.log_marginal.CHUNK_ELEMENTS", 8 * 100 * 50)
    fit = bz.fit(model, numbers(130), guide, steps=600, optimizer=0.02, compile=False, progress=False)
    found = fit.log_marginal(k=100)
    exact = dist.Normal(0.0, 2**0.5).log_prob(fit.data.observed["x"])
    assert bool(((found.values - exact).abs() < 5 * found.errors + 0.05).all())


def test_one_density_for_all_observations_has_none_for_each() -> None:
    fit = bz.fit(pairs, numbers(30), "full_rank", steps=20, compile=False, progress=False)
    with pytest.raises(ValueError, match="guide 'full_rank' has one density for the latents of all observations together"):
        fit.log_marginal(k=10)


def test_a_plate_of_another_name_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    fit = bz.fit(model, numbers(30), "mean_field", steps=20, compile=False, progress=False)
    with pytest.raises(ValueError, match="'z' lies in plate 'rows', which must be called 'data'"):
        fit.log_marginal(k=10)


def test_numbers_of_numpy_are_numbers(good: bz.inference.Fit) -> None:
    seed, k = np.int64(3), np.int64(120)
    torch.testing.assert_close(
        good.log_marginal(k=k, seed=seed).values, good.log_marginal(k=120, seed=3).values, rtol=0, atol=0
    )  # type: ignore[arg-type]
    torch.testing.assert_close(good.sample(k, seed=seed)["z"], good.sample(120, seed=3)["z"], rtol=0, atol=0)  # type: ignore[arg-type]
    assert good.to_arviz(k, rows=np.int64(3), seed=seed)["posterior"].sizes["example"] == 3  # type: ignore[arg-type]
    few = data().select(range(12))
    fits = [
        bz.fit(
            bz.models.BayesianLinearRegression(2),
            bz.data.Data({"x": few.observed[:, :2]}, few.observed[:, 2]),
            seed=s,
            steps=type(s)(5),
            progress=False,
        )
        for s in (seed, 3)
    ]  # type: ignore[arg-type]
    assert fits[0].losses == fits[1].losses
    assert type(fits[0].seed) is int


def deaf(x: Tensor, **_: Any) -> None:
    """A table that is asked by place, whatever numbers it is told."""
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)) as i:
        pyro.sample("z", dist.Normal(loc[i], 0.7))


def point_table(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(num_data or len(x)))
    with pyro.plate("data", num_data or len(x), subsample=index) as i:
        pyro.sample("z", dist.Delta(loc[i]))


def by_the_greatest(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    a = pyro.param("a", torch.tensor(1.0))
    with pyro.plate("data", num_data or len(x), subsample=index):
        pyro.sample("z", dist.Normal(a * x / x.abs().max(), 0.7))


class NamedTable(PyroModule):
    """A table with the names that families have, and a method that is another thing."""

    family = "normal"

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(rows))

    def select(self, rows: Tensor) -> Tensor:
        return self.loc[rows]

    def forward(self, x: Tensor, **_: Any) -> None:
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(self.loc[i], 0.7))


class AcrossRows(torch.nn.Module):
    """A network of a user's that sees an observation beside the mean of those that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        column = x.reshape(-1, 1)
        return torch.tanh(self.linear(column - column.mean(0)))


class EachRow(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.reshape(-1, 1)))


class Squeezes(EachRow):
    """Which takes a single observation for something else."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if len(x) > 1 else found.squeeze()


class Loud(AcrossRows):
    """Beside a feature a thousand times as large as the others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)[:, :7], torch.full((len(x), 1), 2000.0)], 1)


def shrunk(x: Tensor, **_: Any) -> None:
    """Towards the mean of what it is given; one row is known a thousand times better than the others."""
    w = pyro.param("w", torch.tensor(0.6))
    scale = torch.where(x > x.max() - 1e-6, 1e-3, 0.7)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(w * x + (1 - w) * x.mean(), scale))


@pytest.mark.parametrize(
    ("guide", "how"),
    [
        (network, "alone"),
        (lambda model, data: NamedTable(len(data)), "all"),
        (lambda model, data: guides.build("amortized", model, data, network=AcrossRows()), "all"),
        (lambda model, data: guides.build("amortized", model, data, network=EachRow()), "alone"),
        (lambda model, data: guides.build("amortized", model, data, network=Squeezes()), "all"),
        (shrunk, "all"),
        (table, "number"),
        (deaf, "all"),
        (point_table, "number"),
        (by_the_greatest, "all"),
        (lambda model, data: AutoNormal(model), "all"),
        ("amortized", "alone"),
        ("per_datum", "number"),
        ("mean_field", "number"),
        ("full_rank", "all"),
    ],
)
def test_how_a_guide_may_be_asked(guide: Any, how: str) -> None:
    x = numbers(60).observed["x"].sort().values  # sorted: neighbours are alike, and the last is the greatest
    fit = bz.fit(pairs, bz.data.Data({}, {"x": x}), guide, steps=150, optimizer=0.05, compile=False, progress=False)
    assert fit.run.asked(fit.data) == how
    other = bz.data.Data({}, {"x": x.flip(0)})
    if how == "alone":
        drawn = fit.sample(200, data=other)["z"].mean(0)
        torch.testing.assert_close(drawn, fit.sample(200)["z"].mean(0).flip(0), rtol=0, atol=5 * 0.7 * (2 / 200) ** 0.5)
    else:
        with pytest.raises(ValueError, match=r"knows the observations of the training data alone|looks across observations"):
            fit.sample(5, data=other)
    if fit.objective == "elbo" and guide not in (point_table, "full_rank"):
        exact = dist.Normal(0.0, 2**0.5).log_prob(x)
        rows = torch.tensor([55, 3])
        found = log_marginal(fit, k=400, rows=rows)
        fit.to_arviz(5)
        assert ((found.values - exact[rows]).abs() < 5 * found.errors + 0.05).all()


def test_no_leave_one_out_where_nothing_is_shared() -> None:
    """The others say nothing of one observation, so its log p given them is its log p; draws of q give more."""
    fit = bz.fit(pairs, numbers(60), "mean_field", steps=150, optimizer=0.05, compile=False, progress=False)
    with pytest.raises(ValueError, match=r"is log p of it: fit.log_marginal\(\)"):
        fit.loo()
    assert fit.diagnose(n=200).loo is None
    tree = fit.to_arviz(100)
    assert "log_likelihood" not in tree.children
    exact = dist.Normal(0.0, 2**0.5).log_prob(fit.data.observed["x"])
    assert float(tree["log_marginal"]["log_p"].sum()) == pytest.approx(float(exact.sum()), abs=1.0)


def test_rows_backwards_and_large_seeds(good: bz.inference.Fit) -> None:
    order = np.arange(5)[::-1]
    assert good.to_arviz(5, rows=order)["posterior"]["example"].values.tolist() == [4, 3, 2, 1, 0]
    np.testing.assert_allclose(good.data.select(order).observed, good.data.observed[:5].flip(0))
    whole = good.data.observed.numpy()[::-1]
    assert len(good.log_marginal(whole[:3], k=5)) == 3
    good.sample(2, seed=20_261_123)
    good.to_arviz(2, seed=2**40)
    with pytest.raises(ValueError, match="seed must be below"):
        good.sample(2, seed=2**60)


def halves(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    with pyro.plate("data", num_data or len(x), subsample=index):
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def half_a_table(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    w, loc = pyro.param("w", torch.tensor(0.3)), pyro.param("loc", lambda: torch.zeros(num_data or len(x)))
    with pyro.plate("data", num_data or len(x), subsample=index) as i:
        pyro.sample("a", dist.Normal(w * x, 0.7))
        pyro.sample("b", dist.Normal(loc[i], 0.7))


def partly_by_number(x: Tensor, num_data: int | None = None, index: Tensor | None = None) -> None:
    a, d = pyro.param("a", torch.tensor(0.4)), pyro.param("d", lambda: torch.zeros(num_data or len(x)))
    with pyro.plate("data", num_data or len(x), subsample=index):
        pyro.sample("z", dist.Normal(a * x + (d if len(d) == len(x) else 0.0), 0.7))


def test_one_site_by_place_or_a_part_by_number_is_no_network() -> None:
    groups = bz.data.Data({}, {"x": torch.tensor([-3.0] * 30 + [3.0] * 30, dtype=torch.float64)})
    fit = bz.fit(halves, groups, half_a_table, steps=150, optimizer=0.05, compile=False, progress=False)
    assert fit.run.asked(fit.data) != "alone"
    fit = bz.fit(pairs, numbers(60), partly_by_number, steps=150, optimizer=0.05, compile=False, progress=False)
    assert fit.run.asked(fit.data) == "all"


def test_a_loud_feature_hides_no_look_at_others() -> None:
    def guide(model: Any, data: Any) -> Any:
        return guides.build("amortized", model, data, network=Loud())

    fit = bz.fit(pairs, numbers(60), guide, steps=5, compile=False, progress=False)
    assert fit.run.asked(fit.data) == "all"


def test_rounding_of_narrow_posteriors_is_no_look_at_others() -> None:
    """Products of matrices round otherwise for one row than for many: 4e-7 here, 4e-3 of these sds, fifty times an observation."""
    generator = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(a, b, generator=generator) / a**0.5 for a, b in ((1, 256), (256, 256), (256, 50)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 50), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.mean(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1e-4))
        with pyro.plate("data", len(x)):
            loc = torch.tanh(torch.tanh(x[:, None] @ first) @ second) @ third
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    data = bz.data.Data({}, {"x": torch.randn(60, generator=generator)})
    fit = bz.fit(model, data, guide, steps=1, optimizer=1e-9, compile=False, progress=False)
    assert fit.run.asked(fit.data) == "alone"


def test_a_latent_with_one_q_for_all_hides_no_other() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            e = pyro.sample("e", dist.Normal(torch.zeros_like(x), 0.1))
            pyro.sample("x", dist.Normal(z + e, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        w, scale = pyro.param("w", torch.tensor(0.5)), pyro.param("scale", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, 0.7))
            pyro.sample("e", dist.Normal(torch.zeros_like(x), scale))

    fit = bz.fit(model, numbers(60), guide, steps=30, compile=False, progress=False)
    assert fit.run.asked(fit.data) == "alone"
    assert fit.log_marginal(fit.data.select([1, 2]), k=5).values.shape == (2,)
