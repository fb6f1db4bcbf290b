"""Scores of predictions against hand-made probabilities and closed forms, and the averaging curve against predictions."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference import auroc
from bayeszoo.inference.prediction import averaging, tiles
from bayeszoo.inference.prediction.likelihoods import Likelihoods, parameters_of
from bayeszoo.inference.prediction.predictive import Tally, latent_draws, seeds_of
from bayeszoo.inference.prediction.scores import ClassScores, NumberScores, calibration_error, reliability


def of_classes(*draws: Tensor) -> bz.inference.Prediction:
    """A prediction from each draw's probabilities: (N, K) of classes, or (N,) of a one."""
    tally = Tally(len(draws), keep=False)
    tally.add(slice(0, len(draws)), {"probs": torch.stack(draws).double(), "draw": torch.zeros(len(draws), len(draws[0]))})
    return tally.prediction(None, None)


def of_numbers(loc: Tensor, scale: Tensor) -> bz.inference.Prediction:
    """A prediction from each draw's normal likelihood, (S, N)."""
    return bz.inference.Prediction(
        None, loc.mean(0), scale[0], None, None, Likelihoods(dist.Normal, {"loc": loc, "scale": scale})
    )


PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25]])
LABELS = torch.tensor([0, 1, 1])


def test_three_observations_by_hand():
    found = of_classes(PROBS).scores(LABELS)
    assert isinstance(found, ClassScores)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.nll == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.5)) / 3)
    rows = (0.09 + 0.04 + 0.01, 0.01 + 0.49 + 0.36, 0.0625 + 0.25 + 0.0625)
    assert found.brier == pytest.approx(sum(rows) / 3)
    # Three bins with one observation each: |1 - 0.7|, |0 - 0.6|, |1 - 0.5|.
    assert found.ece == pytest.approx((0.3 + 0.6 + 0.5) / 3, abs=1e-6)  # torchmetrics computes in single precision
    assert found.num == 3


def test_probabilities_are_averaged_before_the_logarithm():
    first, second = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]])
    assert of_classes(first, second).scores([0]).nll == pytest.approx(math.log(2))  # not (log 0.9 + log 0.1) / 2 = -1.2


def test_yes_or_no_is_scored_as_two_classes():
    ones = torch.tensor([0.8, 0.4, 0.9], dtype=torch.float64)
    y = torch.tensor([1.0, 0.0, 0.0])
    binary, classes = of_classes(ones), of_classes(torch.stack([1 - ones, ones], 1))
    assert binary.scores(y) == classes.scores(y.long()) == binary.scores(y.bool()) == binary.scores(y.numpy())
    assert binary.label.tolist() == [1, 0, 1]
    assert binary.scores(y).nll == pytest.approx(-(math.log(0.8) + math.log(0.6) + math.log(0.1)) / 3)
    assert torch.allclose(binary.total, classes.total)
    assert torch.allclose(binary.epistemic, torch.zeros(3, dtype=torch.float64), atol=1e-15)


def test_certainty_that_single_precision_cannot_hold():
    x = torch.tensor([[400.0], [-400.0]])
    model = bz.models.BayesianNN(torch.nn.Linear(1, 2), init="net")
    with torch.no_grad():
        model.net.weight.copy_(torch.tensor([[0.5], [0.0]]))
        model.net.bias.zero_()
    fit = bz.fit(model, bz.data.Data({"x": x}, torch.tensor([0, 1])), guide="map", steps=1, compile=False, progress=False)
    p = fit.predict(x, n=2)
    # The logits lie some 200 apart: exp(-200) is zero in single precision, and its logarithm would be infinite.
    weights = fit.sample(1)
    logits = x @ weights["weight"][0].T + weights["bias"][0]
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([1, 0]))
    assert float(expected) > 150
    assert p.scores([1, 0]).nll == pytest.approx(float(expected), rel=1e-6)


def test_a_bin_at_its_edge_and_a_certain_answer():
    # Two bins: [0, 0.5) and [0.5, 1]. A certain answer, here a wrong one, belongs to the last, beside confidence 0.5 and 0.9.
    probs = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
    y = torch.tensor([1, 0, 1, 0])
    found = reliability(of_classes(probs), y, bins=2)
    assert found.count.tolist() == [1, 3]
    assert found.confidence.tolist() == pytest.approx([0.4, 0.8])
    assert found.accuracy.tolist() == pytest.approx([0.0, 2 / 3])
    by_hand = (1 * 0.4 + 3 * abs(2 / 3 - 0.8)) / 4
    assert calibration_error(probs.double(), y, bins=2) == pytest.approx(by_hand, abs=1e-6)


def test_calibration_of_predictors_that_are_known():
    n, generator = 60_000, torch.Generator().manual_seed(0)
    probs = torch.distributions.Dirichlet(torch.full((n, 3), 0.7)).sample()
    y = torch.multinomial(probs, 1, generator=generator)[:, 0]
    # Each bin's share is off by sqrt(p (1 - p) / N_b) <= 0.5 / sqrt(N_b) in the mean square: at most 0.5 sqrt(15 / n) on average.
    assert calibration_error(probs.double(), y) < 0.5 * math.sqrt(15 / n)
    found = reliability(of_classes(probs), y)
    shown = found.count > 0
    away = (found.accuracy - found.confidence)[shown].abs()
    assert bool((away < 4.5 * 0.5 / found.count[shown].sqrt()).all())
    # 90 % sure and right in 60 % of the cases, exactly.
    sure = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(100, 2)
    assert calibration_error(sure, torch.tensor([0] * 60 + [1] * 40)) == pytest.approx(0.3, abs=1e-6)


def test_auroc_by_hand():
    inside, outside = torch.tensor([0.1, 0.2, 0.5]), torch.tensor([0.2, 0.6])
    # Of six pairs the outer is larger in five half counted: 1 + 0.5 + 0 for 0.2, and 3 for 0.6.
    assert auroc(inside, outside) == pytest.approx(4.5 / 6)
    # A sigmoid, which torchmetrics takes of values beyond 1, would make ties of these.
    assert auroc(torch.tensor([100.0]), torch.tensor([200.0])) == 1.0
    assert auroc(torch.tensor([0.0, 3e-9]), torch.tensor([4e-9, 2.0])) == 1.0
    assert auroc(torch.tensor([5.0]), torch.tensor([2.0, 3.0])) == 0.0
    assert auroc(torch.ones(3), torch.ones(2)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'outside' has none"):
        auroc(inside, torch.ones(0))
    with pytest.raises(ValueError, match="'inside' has 1 NaN among 2"):
        auroc(torch.tensor([math.nan, 1.0]), outside)


def test_auroc_of_two_normals_is_known():
    generator = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(4000, generator=generator), 1 + torch.randn(4000, generator=generator)
    # P(outside > inside) = Phi(1 / sqrt(2)); the standard error of the rank statistic is below 0.5 / sqrt(4000).
    expected = 0.5 * (1 + math.erf(0.5))
    assert auroc(inside, outside) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 3], "from 0 to 2, and row 3 has 3"),
        ([0, -1, 1], "row 2 has -1"),
        ([0.0, 0.5, 1.0], "row 2 has 0.5"),
        ([0.0, 1.0, math.nan], "row 3 has nan"),
        ([0, 1], r"shape \(3,\) and the outcomes \(2,\)"),
        ([[0], [1], [2]], r"the outcomes \(3, 1\)"),
        ("cat", "got str"),
        (bz.data.Data({}, {"a": torch.zeros(3), "b": torch.zeros(3)}), "the data observe a, b"),
    ],
)
def test_bad_labels_are_told_what_was_expected(y, message):
    with pytest.raises(ValueError, match=message):
        of_classes(PROBS).scores(y)


def test_a_mixture_of_two_normals_by_hand():
    loc, scale = torch.tensor([[0.0, 2.0], [4.0, 2.0]]), torch.tensor([[1.0, 3.0], [0.5, 3.0]])
    y = torch.tensor([4.0, -1.0])
    found = of_numbers(loc, scale).scores(y)

    def normal(x: float, m: float, s: float) -> float:
        return math.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))

    one = math.log((normal(4, 0, 1) + normal(4, 4, 0.5)) / 2)
    two = math.log(normal(-1, 2, 3))
    assert isinstance(found, NumberScores)
    assert found.log_density == pytest.approx((one + two) / 2)
    assert found.rmse == pytest.approx(math.sqrt(((4 - 2) ** 2 + (-1 - 2) ** 2) / 2))
    with pytest.raises(ValueError, match="NaN or Inf"):
        of_numbers(loc, scale).scores([1.0, math.nan])


@pytest.fixture(scope="module")
def prices() -> tuple[bz.data.Data, bz.data.Data]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 2, dtype=torch.float64, generator=generator)
    y = 1000 + 50 * x[:, 0] + 20 * torch.randn(60, dtype=torch.float64, generator=generator)
    return bz.data.from_arrays(x, y, standardize=True).split(0.7, seed=0)


def test_log_density_is_the_exact_one_in_original_units(prices):
    train, test = prices
    model = bz.models.BayesianLinearRegression(2, noise_scale=0.4)
    fit = bz.fit(model, train, guide="exact", compile=False, progress=False)
    scaler, y = train.scaler, test.unscaled().observed
    exact = model.exact_predictive(fit.data, test.inputs["x"])
    mean, sd = scaler.inverse_target(exact.mean), scaler.inverse_scale(exact.stddev)
    density = float(torch.distributions.Normal(mean, sd).log_prob(y).mean())
    rmse = float((y - mean).square().mean().sqrt())
    found = fit.scores(test, n=4000)
    # A mean of 4,000 normal densities, whose relative sd is below 1: 0.016 nats, less on average over 18 observations. Four times.
    assert found.log_density == pytest.approx(density, abs=0.06)
    assert abs(math.log(float(scaler.target_sd))) > 3  # what a forgotten Jacobian would cost
    # The mean over draws is off by its Monte Carlo error, 0.3 sd of the noise / sqrt(4000) = 0.1.
    assert found.rmse == pytest.approx(rmse, abs=0.4)
    p = fit.predict(test.inputs, 50)
    assert p.scores(y) == p.scores(test) == p.scores(y.numpy())
    assert math.isnan(fit.predict(test.inputs, 50, keep_draws=False).scores(test).log_density)
    with pytest.raises(ValueError, match="standardised otherwise"):
        fit.scores(test.unscaled())


def test_several_numbers_have_one_joint_density():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 2, generator=generator)
    y = torch.stack([100 * x[:, 0], 3 * x[:, 1]], 1) + torch.randn(40, 2, generator=generator)
    data = bz.data.from_arrays(x, y, standardize=True)
    model = bz.models.BayesianNN(torch.nn.Linear(2, 2), likelihood="gaussian", noise_scale=0.3)
    fit = bz.fit(model, data, guide="map", steps=5, compile=False, progress=False)
    p, raw = fit.predict(data.inputs, 4), data.unscaled().observed
    sd = 0.3 * data.scaler.target_sd
    # A point has one mean, so the mixture is a single normal.
    by_hand = torch.distributions.Normal(p.mean, sd).log_prob(raw.double()).sum(1).mean()
    assert p.scores(data).log_density == pytest.approx(float(by_hand), rel=1e-5)  # single precision
    assert torch.allclose(p.aleatoric, sd.square().expand(40, 2), rtol=1e-5)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])),
        dist.StudentT(4.0, torch.zeros(3), 2.0),
        dist.Laplace(torch.zeros(3), 2.0),
        dist.LogNormal(torch.zeros(3), 0.5),
        dist.Poisson(torch.tensor([1.0, 2.0, 3.0])),
        dist.Binomial(10, logits=torch.tensor([0.1, 0.2, 0.3])),
        dist.Gamma(torch.full((3,), 2.0), 3.0),
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(1),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_likelihoods_are_made_again_from_their_arguments(fn):
    y = fn.sample()
    family, arguments = parameters_of(fn)
    single = Likelihoods(family, {k: v[None] for k, v in arguments.items()})
    # Arguments in single precision, densities in double.
    assert torch.allclose(single.log_density(y), fn.log_prob(y).double(), rtol=1e-5, atol=1e-6)


def test_other_likelihoods_are_left_out():
    assert parameters_of(dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True]))) is None
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
    assert parameters_of(mixture) is None


def blobs(rows: int = 90) -> bz.data.Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    x = torch.randn(rows, 2, generator=generator) + 1.5 * torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])[y]
    return bz.data.Data({"x": x}, y)


@pytest.fixture(scope="module")
def fit() -> bz.inference.Fit:
    torch.manual_seed(0)
    model = bz.models.BayesianNN(bz.models.networks.mlp(2, [8], 3))
    return bz.fit(model, blobs(), guide="mean_field", steps=200, optimizer=0.03, compile=False, progress=False)


def test_the_averaging_curve_is_what_predict_gives(fit):
    test = blobs(60)
    curve = fit.averaging_curve(test, ks=(8, 1, 3), repeats=1)
    assert [row.networks for row in curve.rows] == [1, 3, 8]
    assert [row.groups for row in curve.rows] == [8, 2, 1]
    whole = fit.predict(test.inputs, n=8).scores(test)
    # The same draws in the same order, up to rounding in single precision.
    assert curve.rows[2].nll == pytest.approx(whole.nll, rel=1e-5)
    assert curve.rows[2].accuracy == pytest.approx(whole.accuracy)
    seed = seeds_of(fit.seed)[0]
    with fit.run.owned.active(seed), torch.no_grad():
        weights = latent_draws(fit.run, fit.data, 8, seed)(0, 8)
        x = test.inputs["x"]
        each = torch.stack([fit.model.outputs({k: v[s] for k, v in weights.items()}, x).softmax(-1) for s in range(8)])
    rows = torch.arange(60)
    single = -each[:, rows, test.observed].double().log().mean(1)
    assert curve.rows[0].nll == pytest.approx(float(single.mean()), rel=1e-5)
    assert curve.rows[0].nll_sd == pytest.approx(float(single.std()), rel=1e-4)
    triples = torch.stack([each[:3].mean(0), each[3:6].mean(0)])
    assert curve.rows[1].nll == pytest.approx(float(-triples[:, rows, test.observed].log().mean()), rel=1e-5)
    # Jensen: averaging probabilities never costs likelihood.
    assert curve.rows[0].nll > curve.rows[2].nll
    assert curve.num == 60
    assert "mean weights" in str(curve)


def test_mean_weights_are_the_guides_means(fit):
    test = blobs(60)
    curve = fit.averaging_curve(test, ks=(1,), repeats=1)
    means = fit.guide.space.split(fit.guide.location())
    logits = fit.model.outputs(means, test.inputs["x"])
    expected = torch.nn.functional.cross_entropy(logits, test.observed)
    assert curve.mean_weights.nll == pytest.approx(float(expected.detach()), rel=1e-4)
    assert curve.mean_weights.accuracy == pytest.approx(float((logits.argmax(1) == test.observed).double().mean()))


def test_mean_weights_of_other_guides_are_averaged(monkeypatch):
    def model(y: Tensor | None = None, *, num_data: int | None = None) -> Tensor:
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        with pyro.plate("data", num_data or len(y)):
            return pyro.sample("y", dist.Bernoulli(logits=a + b), obs=y)

    def guide(y: Tensor | None = None, *, num_data: int | None = None) -> None:
        a = pyro.sample("a", dist.Normal(2.0, 1.0))
        pyro.sample("b", dist.Normal(a.square(), 0.1))

    fit = bz.fit(model, bz.data.Data({}, torch.tensor([0.0, 1.0])), guide=guide, steps=1, compile=False, progress=False)
    monkeypatch.setattr(averaging, "_NUMBERS_AT_ONCE", 600)  # 300 draws of two numbers at once, the last time 100
    with fit.run.owned.active(1), torch.no_grad():
        found = averaging.mean_latents(fit.guide, latent_draws(fit.run, fit.data, 1000, 1), 1000)
    # E b = E a^2 = 2^2 + 1, and not the square of a's mean; sd of a^2 is sqrt(18), four errors of 1,000 draws.
    assert float(found["a"]) == pytest.approx(2.0, abs=4 / math.sqrt(1000))
    assert float(found["b"]) == pytest.approx(5.0, abs=4 * math.sqrt(18 / 1000))


@pytest.mark.parametrize("limit", [30_000, 10**8])
def test_time_grows_with_the_networks(fit, limit, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", limit)  # a few networks at once, or all
    curve = fit.averaging_curve(blobs(60), ks=(1, 100), repeats=3)
    # A hundred networks take many times as long as one; twice leaves room for whatever else the machine does.
    assert curve.rows[1].seconds > 2 * curve.rows[0].seconds > 0
    assert 0 < curve.mean_weights.seconds < curve.rows[1].seconds


def test_averaging_refuses_numbers(fit, prices):
    train, test = prices
    line = bz.fit(bz.models.BayesianLinearRegression(2, noise_scale=0.4), train, guide="map", compile=False, progress=False)
    with pytest.raises(ValueError, match="compares class probabilities, and 'y' is a number"):
        line.averaging_curve(test)
    for ks in ((), (0,), (1.5,), (True,)):
        with pytest.raises(ValueError, match="ks"):
            fit.averaging_curve(blobs(), ks=ks)


def test_scores_are_plain_numbers():
    found = of_classes(PROBS).scores(np.array([0, 1, 1]))
    assert all(type(value) in (float, int) for value in vars(found).values())
