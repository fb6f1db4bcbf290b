"""The tree that ArviZ gets: groups, names, ArviZ's own functions on it, netCDF, memory."""

import json
import math
import subprocess
import sys

import arviz as az
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import bayeszoo as bz

matplotlib.use("Agg")

GROUPS = {
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "observed_data",
    "constant_data",
    "sample_stats",
}


def eight_schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta/raw", dist.Normal(0.0, 1.0))
        return pyro.sample("y.obs", dist.Normal(mu + tau * theta, sigma), obs=y)


def schools_data():
    return bz.data.Data(
        inputs={"sigma": torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)},
        observed=torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64),
        labels=tuple("ABCDEFGH"),
        observation_dim="school",
    )


def mixture(x=None, *, num_data=None):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("data", num_data or len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def regression():
    data = bz.data.load("diabetes")
    model = bz.models.BayesianLinearRegression(dim=data.dim)
    fit = bz.fit(model, data, guide="exact", progress=False)
    return fit, fit.to_arviz(400)


@pytest.fixture(scope="module")
def coins():
    fit = bz.fit(
        bz.models.CoinFlip(),
        bz.data.load("coin_flips"),
        guide="mean_field",
        restarts=2,
        steps=100,
        progress=False,
    )
    return fit, fit.to_arviz(300)


@pytest.fixture(scope="module")
def flips():
    x = (torch.rand(80, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    return bz.fit(bz.models.CoinFlip(), bz.data.Data(inputs={}, observed=x), guide="exact", progress=False)


def test_every_group_has_named_dimensions(regression):
    fit, tree = regression
    assert set(tree.children) == GROUPS
    theta = tree["posterior"]["theta"]
    assert theta.dims == ("chain", "draw", "feature")
    assert list(theta["feature"].values) == ["intercept", *fit.data.feature_names]
    assert tree["log_likelihood"]["y"].shape == (1, 400, 442)
    assert list(tree["constant_data"]["column"].values) == list(fit.data.feature_names)
    np.testing.assert_array_equal(tree["observed_data"]["y"], fit.data.observed)


def test_chains_are_restarts_and_the_unit_is_the_person(coins):
    fit, tree = coins
    assert tree["posterior"]["pi"].shape == (2, 300)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "person")
    assert tree["log_likelihood"].sizes["person"] == 48
    # the best restart's chain holds the draws of fit.sample
    np.testing.assert_array_equal(tree["posterior"]["pi"][fit.best], fit.sample(300)["pi"])
    assert not np.array_equal(tree["posterior"]["pi"][0], tree["posterior"]["pi"][1])


def test_log_p_is_the_models_own_and_log_q_the_guides(coins):
    fit, tree = coins
    stats = tree["sample_stats"]
    pi = torch.as_tensor(tree["posterior"]["pi"].values)
    prior = dist.Beta(1.0, 1.0).log_prob(pi)
    likelihood = torch.as_tensor(tree["log_likelihood"]["x"].values).sum(-1)
    # float64 sums over 48 people of size 350
    np.testing.assert_allclose(stats["log_p"], prior + likelihood, rtol=1e-10)
    gap = float((stats["log_q"] - stats["log_p"])[fit.best].mean()) + float(fit.model.log_evidence(fit.data))
    assert abs(gap) < 0.01  # mean field fits one Beta of 350,757 flips to far below that


def test_predictive_draws_repeat_the_data(regression):
    fit, tree = regression
    y = fit.data.observed.numpy()
    predicted = tree["posterior_predictive"]["y"]
    inside = np.mean(
        (y > predicted.quantile(0.05, ["chain", "draw"]).values) & (y < predicted.quantile(0.95, ["chain", "draw"]).values)
    )
    assert inside == pytest.approx(0.9, abs=0.06)  # four binomial errors of 442 rows, 0.057
    assert float(tree["prior"]["theta"].std()) == pytest.approx(1.0, abs=0.05)  # its prior scale; 4,400 draws
    assert float(tree["prior_predictive"]["y"].std()) > 2 * float(predicted.std())


def test_attributes_are_text_and_numbers(regression):
    fit, tree = regression
    assert all(isinstance(value, (str, int, float)) for value in tree.attrs.values())
    assert json.loads(tree.attrs["losses"]) == [fit.losses]
    assert json.loads(tree.attrs["settings"])["guide"] == "exact"
    assert "standardised" in tree.attrs["units"]


def test_netcdf_gives_everything_back(regression, coins, tmp_path):
    for number, (_, tree) in enumerate((regression, coins)):
        path = tmp_path / f"{number}.nc"
        tree.to_netcdf(path, engine="h5netcdf")
        with xr.open_datatree(path, engine="h5netcdf") as again:
            xr.testing.assert_identical(tree, again.load())


def test_slashes_and_dots_in_names(tmp_path):
    fit = bz.fit(eight_schools, schools_data(), guide="mean_field", steps=50, progress=False)
    tree = fit.to_arviz(50)
    theta = tree["posterior"]["theta.raw"]
    assert theta.dims == ("chain", "draw", "school")
    assert theta.attrs["site"] == "theta/raw"
    assert list(theta["school"].values) == list("ABCDEFGH")
    # another plate over the observations than "data" counts too
    assert tree["log_likelihood"]["y.obs"].shape == (1, 50, 8)
    tree.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(tree, again.load())


# ArviZ divides by the spread of every variable, and some z are the same in all draws.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_discrete_latents_are_whole_numbers_and_summed_out_of_the_likelihood():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20) - 3, torch.randn(20) + 3]).double()
    fit = bz.fit(mixture, bz.data.Data(inputs={}, observed=x), guide="mean_field", steps=60, progress=False)
    tree = fit.to_arviz(100)
    assert tree["posterior"]["z"].dtype == np.int64
    assert tree["posterior"]["z"].shape == (1, 100, 40)
    values = {k: torch.as_tensor(tree["posterior"][k].values[0]) for k in ("w", "mu")}
    log_prob = dist.Normal(values["mu"][:, None], 1.0).log_prob(x[:, None]) + values["w"][:, None].log()
    np.testing.assert_allclose(tree["log_likelihood"]["x"][0], log_prob.logsumexp(-1), rtol=1e-10)
    az.summary(tree)


def two_sites(x=None, y=None, *, num_data=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("data", num_data or len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
        return pyro.sample("y", dist.Bernoulli(0.2 + 0.6 * z), obs=y)


def test_sites_that_a_sum_joins_are_one_variable():
    torch.manual_seed(0)
    x, y = torch.cat([torch.randn(20) - 3, torch.randn(20) + 3]).double(), (torch.arange(40) > 20).double()
    fit = bz.fit(two_sites, bz.data.Data({}, {"x": x, "y": y}), guide="mean_field", steps=60, progress=False)
    tree = fit.to_arviz(100)
    joint = tree["log_likelihood"]["x_y"]
    assert joint.attrs["site"] == "x, y"
    assert list(tree["log_likelihood"].data_vars) == ["x_y"]
    mu = torch.as_tensor(tree["posterior"]["mu"].values[0])
    p = torch.tensor([0.2, 0.8], dtype=torch.float64)
    terms = dist.Normal(mu[:, None], 1.0).log_prob(x[:, None]) + dist.Bernoulli(p).log_prob(y[:, None]) - np.log(2)
    np.testing.assert_allclose(joint[0], terms.logsumexp(-1), rtol=1e-6)
    alone, named = fit.loo(100), fit.loo(100, site="x_y")
    torch.testing.assert_close(fit.log_likelihood(20), fit.log_likelihood(20, site="x_y"), rtol=0, atol=0)
    for ask in (fit.loo, fit.log_likelihood):
        with pytest.raises(ValueError, match=r"'y' is summed together with x, .* site='x_y'"):
            ask(100, site="y")
    assert alone.elpd == named.elpd == pytest.approx(az.loo(tree, var_name="x_y").elpd, abs=0.5)


@pytest.mark.parametrize("first", [True, False])
def test_a_site_beside_a_sum_has_its_own_likelihood_wherever_it_stands(first):
    torch.manual_seed(0)
    x, w = torch.cat([torch.randn(20) - 3, torch.randn(20) + 3]).double(), torch.randn(40).double()

    def model(x=None, w=None, *, num_data=None):
        mu, b = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1)), pyro.sample("b", dist.Normal(0.0, 5.0))
        with pyro.plate("data", num_data or len(x)):
            if first:
                pyro.sample("w", dist.Normal(b, 1.0), obs=w)
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            if not first:
                pyro.sample("w", dist.Normal(b, 1.0), obs=w)

    fit = bz.fit(model, bz.data.Data({}, {"x": x, "w": w}), guide="mean_field", steps=60, progress=False)
    tree = fit.to_arviz(100)
    assert set(tree["log_likelihood"].data_vars) == {"x", "w"}
    b = torch.as_tensor(tree["posterior"]["b"].values[0])
    np.testing.assert_allclose(tree["log_likelihood"]["w"][0], dist.Normal(b[:, None], 1.0).log_prob(w), rtol=1e-6)
    b = fit.sample(50, seed=3)["b"]
    torch.testing.assert_close(
        fit.log_likelihood(50, seed=3, site="w").sum(1).mean(),
        dist.Normal(b[:, None], 1.0).log_prob(w).sum(1).mean(),
        rtol=0.1,
        atol=0,
    )
    assert fit.loo(100, site="w").elpd != fit.loo(100, site="x").elpd


def two_independent(x=None, y=None, *, num_data=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", num_data or len(x)):
        a, b = pyro.sample("a", dist.Bernoulli(0.3)), pyro.sample("b", dist.Bernoulli(0.6))
        pyro.sample("x", dist.Normal(mu + 4 * a, 1.0), obs=x)
        pyro.sample("y", dist.Normal(3 * b, 1.0), obs=y)


def test_sums_that_share_no_site_stay_apart():
    torch.manual_seed(0)
    x, y = torch.randn(30).double(), torch.randn(30).double() + 1
    fit = bz.fit(two_independent, bz.data.Data({}, {"x": x, "y": y}), guide="mean_field", steps=60, progress=False)
    assert set(fit.to_arviz(20)["log_likelihood"].data_vars) == {"x", "y"}
    both = torch.stack([math.log(0.6) + dist.Normal(3.0, 1.0).log_prob(y), math.log(0.4) + dist.Normal(0.0, 1.0).log_prob(y)])
    torch.testing.assert_close(fit.log_likelihood(3, site="y"), both.logsumexp(0).expand(3, -1), rtol=1e-6, atol=1e-6)


def test_what_is_absent_says_why():
    def no_plate(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([5]).to_event(1), obs=y)

    fit = bz.fit(
        no_plate,
        bz.data.Data(inputs={}, observed={"y": torch.ones(5)}),
        guide="mean_field",
        steps=50,
        progress=False,
    )
    tree = fit.to_arviz(50)
    assert not {"log_likelihood", "posterior_predictive", "prior_predictive"} & set(tree.children)
    assert "no plate" in tree.attrs["log_likelihood_note"]
    assert "without its observations" in tree.attrs["posterior_predictive_note"]
    assert tree["prior"]["mu"].shape == (1, 50)
    with pytest.raises(ValueError, match="one observation at a time"):
        fit.loo(50)
    with pytest.raises(ValueError, match="at least 1"):
        fit.to_arviz(0)


def test_point_guides_have_no_log_q_and_no_loo():
    fit = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="map", progress=False)
    tree = fit.to_arviz(20, log_likelihood=False, prior=False)
    assert list(tree["sample_stats"].data_vars) == ["log_p"]
    assert "log_likelihood" not in tree.children
    assert "prior" not in tree.children
    with pytest.raises(ValueError, match="has no log q over the model"):
        fit.loo()


def test_arviz_takes_the_tree(regression):
    fit, tree = regression
    summary = az.summary(tree)
    exact = fit.model.exact_posterior(fit.data).mean["theta"]
    # rounded to two digits by the summary, 400 draws of sds up to 0.2
    assert float(summary["mean"].iloc[0]) == pytest.approx(float(exact[0]), abs=0.05)
    plain = az.loo(tree)
    stats = tree["sample_stats"]
    corrected = az.loo_approximate_posterior(tree, stats["log_p"], stats["log_q"], pointwise=True)
    # for exact draws both are the same estimate
    assert corrected.elpd == pytest.approx(plain.elpd, abs=1e-6)
    assert fit.loo(400).elpd == pytest.approx(plain.elpd, abs=1e-6)
    az.plot_dist(tree, var_names=["sigma"])
    az.plot_forest(tree)
    az.plot_ppc_dist(tree, num_samples=20)
    az.plot_khat(fit.loo(400))


def test_binary_data_in_a_calibration_plot(flips):
    tree = flips.to_arviz(200)
    assert tree["posterior_predictive"]["x"].dtype == np.int64
    az.plot_ppc_pava(tree, data_type="binary")


def test_loo_approaches_exact_leave_one_out(flips):
    # Beta(1 + heads, 1 + tails) without flip n predicts it exactly
    x, n = flips.data.observed, len(flips.data)
    heads = x.sum()
    without = (1 + heads - x) / (n + 1)
    exact = dist.Bernoulli(without).log_prob(x).sum()
    # PSIS error of 4,000 draws: p_loo is 1, so the estimate is off by about sqrt(1 / 4,000) nats
    assert flips.loo(4000).elpd == pytest.approx(float(exact), abs=0.06)


MEMORY = """
import resource, torch, bayeszoo as bz
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
x = torch.randn(100_000, 3, generator=g, dtype=torch.float64)
y = x.sum(1) + torch.randn(100_000, generator=g, dtype=torch.float64)
data = bz.data.Data(inputs={"x": x}, observed=y)
fit = bz.fit(bz.models.BayesianLinearRegression(dim=3), data, guide="exact", progress=False)
fit.log_likelihood(10)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
if WHAT == "tensor":
    out = fit.log_likelihood(1000)
    size = out.numel() * out.element_size()
else:
    out = fit.to_arviz(1000, predictive=False, prior=False)["log_likelihood"]["y"]
    size = out.nbytes
print(size / 2**20, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tensor", "tree"])
def test_memory_of_the_log_likelihood(what):
    # The limit is the project's: 200 MB above the result of 1,000 draws x 100,000 observations.
    code = MEMORY.replace("WHAT", repr(what))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, grown = map(float, done.stdout.split())
    assert size == pytest.approx(1000 * 100_000 * 8 / 2**20)
    assert grown - size < 200
