"""Networks in ArviZ and in diagnoses: function values against closed forms, few weights of many, part of the data."""

import copy
import dataclasses
import json
import math

import arviz as az
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import bayeszoo as bz
from bayeszoo.inference import draws
from bayeszoo.inference.diagnosis import diagnose_draws
from bayeszoo.inference.diagnosis.checks import ScoreCheck
from bayeszoo.inference.diagnosis.moment_checks import moment_checks, worst
from bayeszoo.inference.diagnosis.reference import Reference
from bayeszoo.inference.export import chosen_rows, network_draws

matplotlib.use("Agg")

NOISE = 0.5


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def line_data(rows=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=g, dtype=torch.float64)
    y = 0.3 + x @ torch.tensor([1.0, -0.5], dtype=torch.float64)
    return bz.data.Data(
        inputs={"x": x},
        observed=y + NOISE * torch.randn(rows, generator=g, dtype=torch.float64),
        feature_names=("age", "dose"),
        target_name="effect",
    )


def exact_line(data):
    """Mean (3,) and covariance of (weights, bias): Bayesian linear regression with prior N(0, I)."""
    design = torch.cat([data.inputs["x"], torch.ones(len(data), 1, dtype=torch.float64)], 1)
    cov = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(3, dtype=torch.float64))
    return cov @ design.T @ data.observed / NOISE**2, cov


@pytest.fixture(scope="module")
def line():
    """A network without hidden layer: the Gaussian at the mode is its exact posterior."""
    prior = bz.models.weight_priors.Normal(1.0)
    model = bz.models.BayesianNN(bz.models.networks.mlp(2, [], 1), "gaussian", prior=prior, noise_scale=NOISE)
    return bz.fit(model, line_data(), guide="laplace", compile=False, progress=False)


def classes(rows=50, columns=64, num=3, seed=0):
    """Blobs of `columns` numbers around `num` centres."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(rows) % num
    centre = torch.randn(num, columns, generator=torch.Generator().manual_seed(99))
    x = centre[label] + torch.randn(rows, columns, generator=g)
    return bz.data.Data(
        inputs={"x": x},
        observed=label,
        num_classes=num,
        class_names=("cat", "dog", "cow")[:num],
        feature_names=tuple(f"c{k}" for k in range(columns)),
    )


def small_fit(guide="mean_field", restarts=1, data=None, hidden=(4,), steps=40, prior="normal", **options):
    data = data or classes(columns=6)
    torch.manual_seed(0)
    net = bz.models.networks.mlp(data.dim, list(hidden), 3, "tanh")
    model = bz.models.BayesianNN(net, prior=prior)
    return bz.fit(model, data, guide=guide, steps=steps, restarts=restarts, compile=False, progress=False, **options)


@pytest.fixture(scope="module")
def small():
    return small_fit(restarts=2)


@pytest.fixture(scope="module")
def large():
    """64-40-3: 2,723 weights, more than a ratio of densities can take."""
    return small_fit(data=classes(), hidden=(40,), restarts=2)


def test_f_has_the_exact_posterior_of_linear_regression(line):
    new = torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
    num = 4000
    tree = line.to_arviz(num, functions=new, log_likelihood=False, predictive=False)
    f = tree["posterior"]["f"]
    assert f.dims == ("chain", "draw", "f_input", "f_output")
    assert f.shape == (1, num, 3, 1)
    assert list(f["f_output"].values) == ["effect"]
    mean, cov = exact_line(line.data)
    design = torch.cat([new, torch.ones(3, 1, dtype=torch.float64)], 1)
    sd = (design @ cov @ design.T).diagonal().sqrt().numpy()
    # four Monte Carlo errors of a mean and of an sd
    np.testing.assert_allclose(f[0, :, :, 0].mean("draw"), design @ mean, atol=4 * sd.max() / math.sqrt(num))
    np.testing.assert_allclose(f[0, :, :, 0].std("draw"), sd, rtol=4 / math.sqrt(2 * num))
    prior_sd = design.square().sum(1).sqrt().numpy()  # weights and bias are N(0, 1)
    np.testing.assert_allclose(tree["prior"]["f"][0, :, :, 0].std("draw"), prior_sd, rtol=4 / math.sqrt(2 * num))
    np.testing.assert_array_equal(tree["constant_data"]["f_x"], new)
    assert list(tree["constant_data"]["f_x"]["column"].values) == ["age", "dose"]


def test_densities_are_those_of_the_model_and_the_guide(line):
    tree = line.to_arviz(200)
    w = torch.as_tensor(tree["posterior"]["fc1.weight"].values[0])
    b = torch.as_tensor(tree["posterior"]["fc1.bias"].values[0])
    f = w[:, 0] @ line.data.inputs["x"].T + b
    each = dist.Normal(f, NOISE).log_prob(line.data.observed)
    stats = tree["sample_stats"]
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], each, rtol=1e-10)
    prior = dist.Normal(0.0, 1.0).log_prob(torch.cat([w[:, 0], b], 1)).sum(1)
    np.testing.assert_allclose(stats["log_p"][0], prior + each.sum(1), rtol=1e-10)
    mean, cov = exact_line(line.data)
    # Hessian and mode are found numerically in float64
    exact = dist.MultivariateNormal(mean, cov).log_prob(torch.cat([w[:, 0], b], 1))
    np.testing.assert_allclose(stats["log_q"][0], exact, atol=1e-4)
    np.testing.assert_allclose(tree["posterior"]["f"][0, :, :, 0], f, rtol=1e-12)  # 40 training rows, fewer than 100
    y = tree["posterior_predictive"]["y"][0]
    # Simulated outcomes around f: 8,000 residuals of known sd, four errors
    assert float((y - f.numpy()).std()) == pytest.approx(NOISE, rel=4 / math.sqrt(2 * 8000))
    assert abs(float((y - f.numpy()).mean())) < 4 * NOISE / math.sqrt(8000)


def test_weights_are_named_by_layer_column_and_class(small):
    tree = small.to_arviz(60)
    weight = tree["posterior"]["fc1.weight"]
    assert weight.dims == ("chain", "draw", "fc1.weight_out", "fc1.weight_in")
    assert list(weight["fc1.weight_in"].values) == [f"c{k}" for k in range(6)]
    assert list(tree["posterior"]["fc2.bias"]["fc2.bias_out"].values) == ["cat", "dog", "cow"]
    assert list(tree["posterior"]["f"]["f_output"].values) == ["cat", "dog", "cow"]
    np.testing.assert_array_equal(weight[small.best], small.sample(60)["fc1.weight"])
    assert "weights_note" not in tree.attrs
    weights = {k: torch.as_tensor(tree["posterior"][k].values[1]) for k in small.model.sites}
    x = small.data.inputs["x"]
    f = torch.stack([small.model.outputs({k: v[s] for k, v in weights.items()}, x) for s in range(60)])
    np.testing.assert_allclose(tree["posterior"]["f"][1], f, atol=1e-5)  # float32


def test_filters_have_rows_and_columns():
    g = torch.Generator().manual_seed(0)
    data = bz.data.Data(inputs={"x": torch.randn(12, 1, 6, 6, generator=g)}, observed=torch.arange(12) % 2, num_classes=2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    fit = bz.fit(bz.models.BayesianNN(net), data, guide="mean_field", steps=2, compile=False, progress=False)
    posterior = fit.to_arviz(20)["posterior"]
    assert posterior["0.weight"].dims[2:] == ("0.weight_out", "0.weight_in", "0.weight_row", "0.weight_column")
    assert posterior["0.bias"].dims[2:] == ("0.bias_out",)
    assert posterior["f"].shape == (1, 20, 12, 2)


def test_arviz_takes_names_with_dots(small, tmp_path):
    tree = small.to_arviz(60)
    summary = az.summary(tree)
    assert {"fc1.weight[0, c0]", "fc2.bias[cat]", "f[0, cat]"} <= set(summary.index)
    assert np.isfinite(summary["r_hat"].astype(float)).all()  # two restarts are two chains
    az.plot_dist(tree, var_names=["fc2.bias"])
    az.plot_forest(tree, var_names=["fc2.bias", "f"], coords={"f_input": [0, 1]})
    assert az.loo(tree).n_data_points == 50
    for number, one in enumerate((tree, small.to_arviz(20, weights=2, rows=10))):
        path = tmp_path / f"{number}.nc"
        one.to_netcdf(path, engine="h5netcdf")
        with xr.open_datatree(path, engine="h5netcdf") as again:
            xr.testing.assert_identical(one, again.load())


def test_a_large_network_is_drawn_in_chunks_and_few_weights_stay(large, monkeypatch):
    nums = []

    def recorded(owned, program, parts, num, *args, **options):
        nums.append(num)
        return draws.draw(owned, program, parts, num, *args, **options)

    monkeypatch.setattr(network_draws, "draw", recorded)
    monkeypatch.setattr(draws, "CHUNK_BYTES", 4_000_000)
    tree = large.to_arviz(200, prior=False)
    # 64 x 40 weights for 50 rows: widths of 51, so 49 draws of 8 x 50 x 51 float32 fit into 4 MB
    assert nums == 2 * [49, 49, 49, 49, 4]
    assert {name: value.shape[2:] for name, value in tree["posterior"].data_vars.items()} == {
        "fc1.weight": (10,), "fc1.bias": (10,), "fc2.weight": (10,), "fc2.bias": (3,), "f": (50, 3),
    }  # fmt: skip
    assert "10 entries" in tree.attrs["weights_note"]
    assert "2723" in tree.attrs["weights_note"]
    entries = [tuple(map(str, entry.split(","))) for entry in tree["posterior"]["fc1.weight_entry"].values]
    whole = large.sample(200)["fc1.weight"]
    kept = torch.stack([whole[:, int(out), int(column.removeprefix("c"))] for out, column in entries], 1)
    # chunk by chunk the same draws as in one go
    np.testing.assert_array_equal(tree["posterior"]["fc1.weight"][large.best], kept)
    again = large.to_arviz(20, prior=False, seed=1)
    assert list(again["posterior"]["fc1.weight_entry"].values) != list(tree["posterior"]["fc1.weight_entry"].values)


def test_weights_may_be_chosen(small, large):
    def shapes(fit, **options):
        posterior = fit.to_arviz(5, log_likelihood=False, predictive=False, prior=False, **options)["posterior"]
        return {name: value.shape[2:] for name, value in posterior.data_vars.items()}

    assert shapes(large, weights=True)["fc1.weight"] == (40, 64)
    assert set(shapes(large, weights=False)) == {"f"}
    assert shapes(small, weights=3, functions=False) == {
        "fc1.weight": (3,),
        "fc1.bias": (3,),
        "fc2.weight": (3,),
        "fc2.bias": (3,),
    }
    places = torch.tensor([[1, 5], [3, 0]])
    for index in (places, torch.tensor([11, 18])):  # 1 * 6 + 5 and 3 * 6 + 0
        tree = small.to_arviz(5, weights={"fc1.weight": index})
        assert set(tree["posterior"].data_vars) == set(tree["prior"].data_vars) == {"fc1.weight", "f"}
        assert list(tree["posterior"]["fc1.weight_entry"].values) == ["1,c5", "3,c0"]
        np.testing.assert_array_equal(
            tree["posterior"]["fc1.weight"][small.best], small.sample(5)["fc1.weight"][:, places[:, 0], places[:, 1]]
        )


def test_a_noise_scale_is_always_there():
    data = line_data(20)
    model = bz.models.BayesianNN(bz.models.networks.mlp(2, [3], 1), "gaussian")
    fit = bz.fit(model, data, guide="mean_field", steps=5, compile=False, progress=False)
    tree = fit.to_arviz(10, weights=False)
    assert set(tree["posterior"].data_vars) == {"sigma", "f"}


# Few draws: ArviZ warns of the shape of their tails.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")
def test_large_data_are_cut_and_say_so(small, monkeypatch):
    whole = small.to_arviz(30)
    size = 6 * 4 + 4 + 4 * 3 + 3
    monkeypatch.setattr(chosen_rows, "LEAST_ROWS", 1)
    monkeypatch.setattr(chosen_rows, "EXPORTED_PRODUCTS", 2 * 30 * size * 20)  # chains, draws, weights, rows
    tree = small.to_arviz(30)
    rows = tree["log_likelihood"]["observation"].values
    assert len(rows) == 20
    assert list(rows) == sorted(set(rows))
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"], whole["log_likelihood"]["y"].sel(observation=rows), rtol=1e-4, atol=1e-5
    )
    for group in ("observed_data", "constant_data"):
        xr.testing.assert_identical(
            tree[group].to_dataset().drop_dims("f_input", errors="ignore"),
            whole[group].sel(observation=rows).to_dataset().drop_dims("f_input", errors="ignore"),
        )
    xr.testing.assert_identical(tree["posterior"].to_dataset(), whole["posterior"].to_dataset())
    assert tree["posterior_predictive"]["y"].shape == tree["log_likelihood"]["y"].shape
    assert tree["prior_predictive"]["y"].shape == (1, 30, 20)
    assert list(tree["sample_stats"].data_vars) == ["log_q"]
    assert "20 of the 50 observations" in tree.attrs["rows_note"]
    assert az.loo(tree).n_data_points == 20
    assert small.to_arviz(30, rows=50)["log_likelihood"].sizes["observation"] == 50
    monkeypatch.setattr(chosen_rows, "EXPORTED_VALUES", 2 * 30 * 7)
    assert small.to_arviz(30)["log_likelihood"].sizes["observation"] == 7
    chosen = small.to_arviz(10, rows=torch.tensor([40, 3]), functions=False)
    assert list(chosen["observed_data"]["observation"].values) == [40, 3]
    assert "f" not in chosen["posterior"].data_vars


def test_an_improper_prior_leaves_no_prior_groups_and_no_k_hat():
    for guide in ("mean_field", "sparse_vd"):
        fit = small_fit(guide, prior="log_uniform", steps=20)
        tree = fit.to_arviz(20)
        assert not {"prior", "prior_predictive"} & set(tree.children)
        assert "improper" in tree.attrs["prior_note"]
        assert "no evidence" in tree.attrs["evidence_note"]
        found = fit.diagnose(n=100)
        assert (found.k_hat, found.k_verdict, found.kl, found.log_evidence, found.loo) == (None, "absent", None, None, None)
        assert any("improper" in note and guide in note for note in found.notes)


def test_bad_options_are_one_sentence(small):
    flips = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="exact", progress=False)
    for fit, options, words in (
        (small, {"functions": torch.ones(3, 5)}, r"\(M, 6\).*got \(3, 5\)"),
        (small, {"functions": "here"}, "a dict with x alone"),
        (small, {"functions": torch.full((1, 6), math.nan)}, "NaN or Inf"),
        (small, {"weights": 0}, "number of entries"),
        (small, {"weights": {"fc1.weigth": torch.tensor([0])}}, r"did you mean 'fc1\.weight'"),
        (small, {"weights": {"fc1.weight": torch.tensor([24])}}, "beyond"),
        (small, {"weights": {"fc1.weight": torch.tensor([[0.5, 1.0]])}}, r"\(k, 2\)"),
        (small, {"weights": False, "functions": False}, "leave nothing"),
        (small, {"rows": 0}, "at least 1"),
        (small, {"rows": torch.tensor([50])}, "between 0 and 49"),
        (small, {"rows": "some"}, "row numbers"),
        (flips, {"functions": torch.ones(3, 5)}, "is for networks"),
        (flips, {"rows": 3}, "is for networks"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            fit.to_arviz(5, **options)
        assert "\n" not in str(error.value)


def test_another_models_outputs_are_no_functions():
    class Tagged(pyro.nn.PyroModule):
        sites: dict[str, int] = {}  # noqa: RUF012

        def outputs(self):
            return "of something else"

        def forward(self, y=None, *, num_data=None):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", num_data or len(y)):
                return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = bz.data.Data(inputs={}, observed=torch.zeros(5, dtype=torch.float64))
    fit = bz.fit(Tagged(), data, guide="mean_field", steps=20, progress=False)
    assert set(fit.to_arviz(10)["posterior"].data_vars) == {"mu"}
    assert fit.diagnose(n=100).functions == ()


def test_thousands_of_weights_are_judged_by_functions_and_predictions(large):
    test = classes(seed=5)
    found = large.diagnose(n=150, held_out=test)
    assert (found.k_verdict, found.k_hat, found.kl, found.latents) == ("hopeless", None, None, ())
    hopeless = [note for note in found.notes if "hopeless" in note]
    assert len(hopeless) == 1
    assert all(word in hopeless[0] for word in ("2723", "NLL", "calibration", "LOO", "restarts"))
    assert len(found.functions) == 20
    assert found.num_functions == 150
    assert len([line for line in str(found).splitlines() if line.startswith("  f[")]) == 20
    assert "held-out rows" in str(found)
    # the same function values as everywhere else
    tree = large.to_arviz(150, functions=test, prior=False)
    f = tree["posterior"]["f"]
    first = found.functions[0]
    row, name = first.name.removeprefix("f[").removesuffix("]").split(",")
    chains = [f.sel(chain=c, f_input=int(row), f_output=name).values.astype(float) for c in (large.best, 1 - large.best)]
    assert first.mean == pytest.approx(chains[0].mean(), rel=1e-5)
    assert first.apart == pytest.approx(abs(chains[1].mean() - chains[0].mean()) / chains[0].std(), rel=1e-3)
    # restarts: total variation of mean probabilities
    probs = torch.softmax(torch.as_tensor(f.values).double(), -1).mean(1)
    apart = 0.5 * (probs[0] - probs[1]).abs().sum(-1).mean()
    assert found.restarts[1 - large.best].disagreement == pytest.approx(float(apart), rel=1e-4)
    assert found.restarts[large.best].disagreement == 0.0
    # held-out scores
    (score,) = found.scores
    right = large.predict(test.inputs, 150)
    assert score.accuracy == pytest.approx(float((right.label == test.observed).double().mean()))
    assert score.nll == pytest.approx(-float(right.probs.log()[torch.arange(50), test.observed].mean()), rel=1e-6)
    assert score.confidence == pytest.approx(float(right.probs.amax(1).mean()), rel=1e-6)
    # LOO of the draws as they are
    assert not found.loo.weighted
    plain = az.loo(
        xr.DataTree.from_dict({"log_likelihood": tree["log_likelihood"].to_dataset().sel(chain=[large.best])}), reff=1.0
    )
    assert found.loo.elpd == pytest.approx(float(plain.elpd), rel=1e-4)
    json.dumps(found.to_dict(), allow_nan=False)


def test_few_draws_where_each_is_dear(large, monkeypatch):
    # weights, inputs of f and observations and what drawing costs, restarts, draws
    monkeypatch.setattr(diagnose_draws, "DIAGNOSED_PRODUCTS", 2723 * (100 + 50 + diagnose_draws._DRAWING) * 2 * 120)
    found = large.diagnose(n=1000)
    assert found.num_draws == 120
    assert any("120 draws instead of 1000" in note for note in found.notes)


def test_restarts_that_predict_something_else(large):
    other = copy.deepcopy(large.run)
    other.restart = 1 - other.restart
    with torch.no_grad():
        other.owned.guide.offset.mul_(0.0)
        other.owned.guide.center.mul_(-1.0)
    other.objective.guide = other.owned.guide
    found = dataclasses.replace(large, runs=(large.run, other), best=0).diagnose(n=100)
    assert found.restarts[1].elsewhere
    assert any("ended elsewhere" in text and "class probabilities" in text for text in found.warnings)
    same = dataclasses.replace(large, runs=(large.run, large.run), best=0).diagnose(n=100)
    assert not any("elsewhere" in text for text in same.warnings)


def test_weights_that_cannot_be_trusted_move_nothing(small):
    """Of a small network whose k-hat is too high the PSIS moments are those of a few draws: they are not shown."""
    narrow = copy.deepcopy(small.run)
    with torch.no_grad():
        narrow.owned.guide.log_scale.sub_(1.5)
    narrow.objective.guide = narrow.owned.guide
    found = dataclasses.replace(small, runs=(narrow,), best=0).diagnose()
    assert found.k_verdict == "too high"
    assert all(x.psis_mean is None for x in (*found.latents, *found.functions))
    assert not found.loo.weighted
    assert not any("importance weights move" in text for text in found.warnings)
    assert any("a network's predictions can be good" in note for note in found.notes)


def test_verdicts_without_a_k_hat(large):
    settled = copy.deepcopy(large)
    for run in settled.runs:
        run.history.converged = True
    found = dataclasses.replace(settled, runs=(settled.run,), best=0).diagnose(n=100)
    assert (found.warnings, found.verdict) == ((), "unchecked")


@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")
@pytest.mark.parametrize("guide", ["mc_dropout", "ensemble", "map"])
def test_surrogates_say_which(guide):
    fit = small_fit(guide, data=classes(), hidden=(40,), steps=20)
    found = fit.diagnose(n=100)
    assert found.k_verdict == "absent"
    assert found.loo is None
    assert len(found.functions) == 20
    tree = fit.to_arviz(60)
    assert list(tree["sample_stats"].data_vars) == ["log_p"]
    if guide == "mc_dropout":
        assert az.loo(tree).n_data_points == 50
    if guide == "map":
        assert not found.spread
        assert any("point guide" in note for note in found.notes)
    else:
        assert found.spread
        assert any(guide in note and fit.loss_name in note for note in found.notes)


def test_a_network_is_compared_with_a_reference_in_its_outputs(line):
    mean, cov = exact_line(line.data)
    theta = dist.MultivariateNormal(mean, cov).sample((4000,))

    def reference(theta):
        values = {"fc1.weight": theta[:, None, :2], "fc1.bias": theta[:, 2:]}
        return Reference(values, {k: v.mean(0) for k, v in values.items()}, {k: v.std(0) for k, v in values.items()}, "nuts")

    found = line.diagnose(reference(theta))
    assert found.k_verdict in ("good", "exact")
    assert found.verdict == "good"
    # Monte Carlo errors of 1,000 and 4,000 draws, four of them
    assert all(abs(x.mean_error) < 4 * math.sqrt(1 / 1000 + 1 / 4000) for x in found.functions)
    assert all(abs(x.sd_error) < 4 * math.sqrt(1 / 2000 + 1 / 8000) for x in found.functions)
    off = line.diagnose(reference(theta + cov.diagonal().sqrt() * torch.tensor([0.0, 0.0, 1.0])))
    assert any("outputs are more than" in text for text in off.warnings)
    # without a hidden layer the weights themselves have a meaning, and are compared as well
    assert any("latents are more than" in text for text in off.warnings)


def test_exchanged_hidden_units_are_no_error(small):
    """A reference that differs in the order of units alone has the same functions, and weights far from the fit's."""
    values = small.sample(4000, seed=3)
    order = torch.tensor([2, 3, 0, 1])
    moved = {
        "fc1.weight": values["fc1.weight"][:, order],
        "fc1.bias": values["fc1.bias"][:, order],
        "fc2.weight": values["fc2.weight"][:, :, order],
        "fc2.bias": values["fc2.bias"],
    }
    moments = {k: v.double() for k, v in moved.items()}
    reference = Reference(moved, {k: v.mean(0) for k, v in moments.items()}, {k: v.std(0) for k, v in moments.items()}, "nuts")
    found = small.diagnose(reference)
    assert not any("from the reference" in text for text in found.warnings)
    assert all(abs(x.mean_error) < 4 * math.sqrt(1 / 1000 + 1 / 4000) for x in found.functions)
    assert len(found.latents) == 6 * 4 + 4 + 4 * 3 + 3


def test_thousands_of_latents_of_any_model_get_twenty_rows():
    def wide(y=None, *, num_data=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2100]).to_event(1))
        with pyro.plate("data", num_data or len(y)):
            return pyro.sample("y", dist.Normal(mu.mean(-1), 1.0), obs=y)

    data = bz.data.Data(inputs={}, observed=torch.zeros(20))
    fit = bz.fit(wide, data, guide="mean_field", steps=5, compile=False, progress=False)
    found = fit.diagnose(n=100)
    assert found.k_verdict == "hopeless"
    assert len(found.latents) == 20
    assert found.loo is not None
    tree = fit.to_arviz(20, weights=5)
    assert tree["posterior"]["mu"].dims == ("chain", "draw", "mu_entry")
    assert tree["prior"]["mu"].shape == (1, 20, 5)


def test_the_worst_come_first():
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(500, 3, generator=g, dtype=torch.float64).numpy() * np.array([1.0, 2.0, 3.0])
    means = draws.mean(0)
    checks = moment_checks(["a", "b", "c"], draws, None, None, [means + np.array([0.1, 1.0, 0.0]), means])
    assert [check.name for check in worst(checks, 2)] == ["b", "a"]
    assert checks[1].apart == pytest.approx(1.0 / draws[:, 1].std())
    assert [check.name for check in worst(moment_checks(["a", "b", "c"], draws), 3)] == ["c", "b", "a"]
    still = moment_checks(["a"], np.ones((10, 1)), None, None, [np.ones(1)])
    assert still[0].apart == 0.0


def test_confidence_that_is_not_met_is_off():
    # 400 observations: three binomial errors of 0.9 are 0.045, so the limit is 0.05
    assert not ScoreCheck("y", 400, accuracy=0.86, confidence=0.9).off
    assert ScoreCheck("y", 400, accuracy=0.84, confidence=0.9).off
    assert ScoreCheck("y", 400, accuracy=0.96, confidence=0.9).off
    assert not ScoreCheck("y", 400, rmse=1.0).off
