"""Saving and loading: the same numbers bit for bit, and one sentence where something is missing."""

import json
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

import bayeszoo as bz


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def check_same(fit: bz.inference.Fit, again: bz.inference.Fit) -> None:
    """Everything that is asked of a fit, bit for bit."""
    same(fit.sample(7, seed=3), again.sample(7, seed=3))
    assert torch.equal(fit.log_likelihood(7), again.log_likelihood(7))
    assert fit.losses == again.losses
    assert (fit.loss, fit.loss_error, fit.seconds) == (again.loss, again.loss_error, again.seconds)
    assert [(r.k_hat, r.doubt) for r in fit.runs if r.k_hat == r.k_hat] == [
        (r.k_hat, r.doubt) for r in again.runs if r.k_hat == r.k_hat
    ]
    assert (fit.converged, fit.stop_reason, fit.seed, fit.dtype) == (
        again.converged,
        again.stop_reason,
        again.seed,
        again.dtype,
    )
    assert (fit.objective, fit.estimator, fit.best, len(fit.runs)) == (
        again.objective,
        again.estimator,
        again.best,
        len(again.runs),
    )
    assert fit.settings == again.settings
    for run, run_again in zip(fit.runs, again.runs, strict=True):
        draws, draws_again = run.draws(fit.data, 5, 1), run_again.draws(again.data, 5, 1)
        same(draws.values, draws_again.values)
        assert torch.equal(draws.log_p, draws_again.log_p)
        if draws.log_q is None:
            assert draws_again.log_q is None
        else:
            assert torch.equal(draws.log_q, draws_again.log_q)


@pytest.fixture(scope="module")
def table() -> bz.data.Data:
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3
    noise = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return bz.data.from_arrays(
        5 * x,
        10 * y + noise,
        feature_names=["age", "bmi", "bp"],
        target_name="price",
        standardize=True,
        note="made up",
    )


@pytest.mark.parametrize("guide", ["map", "laplace", "mean_field", "low_rank", "full_rank", "iaf", "spline", "exact"])
def test_every_family_comes_back_bit_for_bit(guide, table, tmp_path):
    options = {"rank": 2} if guide == "low_rank" else {"hidden": (8, 8)} if guide in ("iaf", "spline") else None
    model = bz.models.BayesianLinearRegression(
        3, prior_scale=[1.0, 2.0, 0.1, 3.0], noise_scale=None if guide != "exact" else 0.1
    )
    fit = bz.fit(model, table, guide=guide, guide_options=options, steps=5, seed=4, progress=False)
    fit.save(tmp_path / "run")
    again = bz.load(tmp_path / "run")
    check_same(fit, again)
    p, q = fit.predict(table.inputs, 9), again.predict(table.inputs, 9)
    assert torch.equal(p.draws, q.draws)
    assert torch.equal(p.mean, q.mean)
    assert torch.equal(fit.sample(3, units="original")["theta"], again.sample(3, units="original")["theta"])


def test_restarts_counts_and_persons(tmp_path):
    data = bz.data.load("coin_flips")
    fit = bz.fit(bz.models.HierarchicalCoin(loc=4.0), data, guide="structured", steps=5, restarts=2, progress=False)
    fit.save(tmp_path / "run")
    again = bz.load(tmp_path / "run")
    check_same(fit, again)
    assert len(again.runs) == 2
    assert again.data.labels == data.labels
    assert (again.data.observation_dim, again.data.origin, again.data.note) == (
        "person",
        data.origin,
        data.note,
    )
    assert again.model.config() == fit.model.config()


def test_data_come_back_with_scaler_and_schema(table, tmp_path):
    fit = bz.fit(bz.models.BayesianLinearRegression(3), table, guide="map", progress=False)
    fit.save(tmp_path)
    again = bz.load(tmp_path).data
    assert torch.equal(again.inputs["x"], table.inputs["x"])
    assert torch.equal(again.observed, table.observed)
    assert again.feature_names == ("age", "bmi", "bp")
    assert again.target_name == "price"
    assert again.scaler.to_dict() == table.scaler.to_dict()
    assert (again.schema is None) == (table.schema is None)


class Net(PyroModule):
    """A regression with a constant in the data and a trained noise."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.log_noise = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, power=1.0, y=None, *, num_data=None, index=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            return pyro.sample("y", dist.Normal((x**power) @ w, self.log_noise.exp()), obs=y)


@pytest.fixture(scope="module")
def own_data() -> bz.data.Data:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    return bz.data.Data({"x": x}, {"y": x.sum(1)}, {"power": 3.0})


def test_own_model_is_given_and_its_parameters_come_from_the_fit(own_data, tmp_path):
    fit = bz.fit(Net(), own_data, guide="mean_field", steps=20, progress=False)
    fit.save(tmp_path / "run")
    given = Net()
    again = bz.load(tmp_path / "run", model=given)
    check_same(fit, again)
    assert float(again.model.log_noise.detach()) == float(fit.model.log_noise.detach()) != 0.0
    assert float(given.log_noise.detach()) == 0.0, "the given model is copied"
    assert again.data.constants["power"] == 3.0
    with pytest.raises(ValueError, match=r"own model 'Net'.*bz\.load\(path, model=\.\.\.\)"):
        bz.load(tmp_path / "run")
    with pytest.raises(ValueError, match="give the model that was fitted"):
        bz.load(tmp_path / "run", model=Net(width=3))


def test_another_model_is_refused_by_its_sites(own_data, tmp_path):
    bz.fit(Net(), own_data, guide="map", steps=2, progress=False).save(tmp_path)

    def other(x, power=1.0, y=None):
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ v, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"latents are w \(2,\); this model has v \(2,\)"):
        bz.load(tmp_path, model=other)


def _slope(x, y=None):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(w * x, scale), obs=y)


def _slope_guide(x, y=None):
    loc = pyro.param("loc", torch.tensor(0.0))
    sd = pyro.param("sd", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, sd))


def test_plain_functions_keep_their_param_sites(tmp_path):
    x = torch.linspace(-1, 1, 15)
    data = bz.data.Data({"x": x}, 2 * x)
    fit = bz.fit(_slope, data, guide=_slope_guide, steps=15, progress=False)
    fit.save(tmp_path)
    again = bz.load(tmp_path, model=_slope, guide=_slope_guide)
    check_same(fit, again)
    assert not list(pyro.get_param_store().keys()), "nothing is left in the global store"
    with pytest.raises(ValueError, match=r"its own guide.*guide=\.\.\."):
        bz.load(tmp_path, model=_slope)


class _SlopeModule(PyroModule):
    def forward(self, x, y=None):
        return _slope(x, y)


class _SlopeGuide(PyroModule):
    def forward(self, x, y=None):
        _slope_guide(x, y)


def test_modules_keep_their_param_sites(tmp_path):
    x = torch.linspace(-1, 1, 15)
    data = bz.data.Data({"x": x}, 2 * x)
    fit = bz.fit(_SlopeModule(), data, guide=_SlopeGuide(), steps=15, progress=False)
    plain = bz.fit(_slope, data, guide=_slope_guide, steps=15, progress=False)
    assert fit.losses == pytest.approx(plain.losses, rel=1e-6)
    fit.save(tmp_path)
    check_same(fit, bz.load(tmp_path, model=_SlopeModule(), guide=_SlopeGuide()))


def test_autoguide_object_and_builder(own_data, tmp_path):
    model = Net()
    fit = bz.fit(model, own_data, guide=AutoNormal(model), steps=10, progress=False)
    fit.save(tmp_path / "auto")
    fresh = Net()
    check_same(fit, bz.load(tmp_path / "auto", model=fresh, guide=AutoNormal(fresh)))
    fit = bz.fit(model, own_data, guide=bz.guides.MeanField, steps=10, progress=False)
    fit.save(tmp_path / "builder")
    check_same(fit, bz.load(tmp_path / "builder", model=Net(), guide=bz.guides.MeanField))
    with pytest.raises(ValueError, match="the guide does not match the saved fit"):
        bz.load(tmp_path / "builder", model=Net(), guide=bz.guides.FullRank)


def _mixture(x=None, *, num_data=None):
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("data", num_data or len(x)):
        z = pyro.sample("z", dist.Categorical(weight))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@pytest.mark.parametrize("discrete", ["marginalize", "guide"])
def test_discrete_latents(discrete, tmp_path):
    data = bz.data.Data({}, torch.tensor([-2.0, -2.2, -1.8, 2.1, 1.9, 2.0]))
    fit = bz.fit(_mixture, data, guide="mean_field", discrete=discrete, steps=5, progress=False)
    fit.save(tmp_path)
    again = bz.load(tmp_path, model=_mixture)
    same(fit.sample(6), again.sample(6))
    assert "z" in again.sample(2)


def test_an_inference_network_of_ones_own_is_given_again(tmp_path):
    torch.manual_seed(0)
    model = bz.models.VAE((1, 5, 5), 2, "bernoulli", hidden=(8,))
    data = bz.data.simulate(model, 30, seed=0)

    def body(width=6):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, width), torch.nn.ReLU())

    mine = body()
    before = mine[1].weight.detach().clone()
    fit = bz.fit(model, data, "amortized", steps=5, progress=False, guide_options={"network": mine}, restarts=2)
    assert torch.equal(mine[1].weight, before)  # each restart trains a copy
    fit.save(tmp_path / "fit")
    again = bz.load(tmp_path / "fit", guide_options={"network": body()})
    assert torch.equal(fit.sample(4, seed=1)["z"], again.sample(4, seed=1)["z"])
    again.save(tmp_path / "again")
    for options, words in (
        (None, "the guide was given a Sequential of its own as 'network'; pass the same kind"),
        ({"network": body(), "hidden": body()}, "'hidden' is none; leave it out"),
        ({"network": body(7)}, "does not match the saved fit"),
    ):
        with pytest.raises(ValueError, match=words):
            bz.load(tmp_path / "again", guide_options=options)


def test_another_fit_is_never_overwritten_unasked(own_data, tmp_path):
    fit = bz.fit(Net(), own_data, guide="map", steps=2, progress=False)
    fit.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"fit.json", "parameters.safetensors", "data.safetensors"}
    with pytest.raises(FileExistsError, match="already holds a fit"):
        bz.fit(Net(), own_data, guide="map", steps=3, progress=False).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    bz.fit(Net(), own_data, guide="map", steps=3, progress=False).save(tmp_path, overwrite=True)
    assert len(bz.load(tmp_path, model=Net()).losses) == 3


def test_refusals_are_one_sentence(own_data, tmp_path):
    fit = bz.fit(Net(), own_data, guide="map", steps=2, progress=False)
    file = tmp_path / "taken"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        fit.save(file)
    with pytest.raises(PermissionError, match="cannot be written"):
        fit.save(file / "below")
    assert file.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="there is no fit in"):
        bz.load(tmp_path / "nowhere")
    fit.save(tmp_path / "run")
    (tmp_path / "run" / "fit.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        bz.load(tmp_path / "run", model=Net())
    (tmp_path / "run" / "fit.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99"):
        bz.load(tmp_path / "run", model=Net())


def test_a_function_among_the_constants_is_refused_before_anything_is_written(tmp_path):
    def model(x, link=None, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(link(w * x), 1.0), obs=y)

    x = torch.linspace(0, 1, 5)
    fit = bz.fit(model, bz.data.Data({"x": x}, {"y": x}, {"link": torch.exp}), guide="map", progress=False)
    with pytest.raises(ValueError, match=r"constants\['link'\] .* cannot be saved"):
        fit.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fit_json_is_strict_json_that_people_can_read(table, tmp_path):
    fit = bz.fit(bz.models.BayesianLinearRegression(3), table, guide="full_rank", steps=3, seed=7, progress=False)
    fit.run.history.losses.append(math.nan)
    fit.save(tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    record = json.loads((tmp_path / "fit.json").read_text(), parse_constant=refuse)
    assert record["model"]["class"] == "BayesianLinearRegression"
    assert record["model"]["arguments"]["dim"] == 3
    assert record["guide"]["name"] == "full_rank"
    assert (record["seed"], record["dtype"], record["settings"]["steps"]) == (7, "float64", 3)
    assert record["data"]["feature_names"] == ["age", "bmi", "bp"]
    assert set(record["versions"]) == {"python", "bayeszoo", "torch", "pyro", "arviz", "safetensors"}
    assert math.isnan(bz.load(tmp_path).losses[-1])


def test_a_new_process_gives_the_same_draws(table, tmp_path):
    fit = bz.fit(bz.models.BayesianLinearRegression(3), table, guide="mean_field", steps=5, progress=False)
    fit.save(tmp_path / "run")
    code = (
        "import sys, bayeszoo as bz\n"
        "fit = bz.load(sys.argv[1])\n"
        "print([value.hex() for value in fit.sample(2)['theta'].flatten().tolist()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([value.hex() for value in fit.sample(2)["theta"].flatten().tolist()])


def test_diagnosis_and_datatree_are_those_of_the_fit(table, tmp_path):
    fit = bz.fit(bz.models.BayesianLinearRegression(3), table, guide="laplace", progress=False)
    fit.save(tmp_path)
    again = bz.load(tmp_path)
    assert str(again.diagnose(n=200)) == str(fit.diagnose(n=200))
    tree, tree_again = fit.to_arviz(50), again.to_arviz(50)
    assert list(tree.children) == list(tree_again.children)
    for name in tree.children:
        assert tree[name].to_dataset().identical(tree_again[name].to_dataset()), name
