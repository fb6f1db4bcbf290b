"""Predictions: their uncertainty in two parts, against closed forms; and the same numbers however they are cut."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.prediction import tiles
from bayeszoo.inference.prediction.new_inputs import Inputs
from bayeszoo.inference.prediction.predictive import LatentDraws, Moments, Tally, latent_draws, seeds_of


def tallied(*chunks: Tensor) -> bz.inference.Prediction:
    """A prediction from hand-made probabilities, (draws, N, K) a chunk."""
    num = sum(len(chunk) for chunk in chunks)
    tally, first = Tally(num, keep=False), 0
    for chunk in chunks:
        tally.add(slice(first, first + len(chunk)), {"probs": chunk.double(), "draw": torch.zeros(chunk.shape[:2])})
        first += len(chunk)
    return tally.prediction(None, None)


def network(rows: int = 40, classes: int = 3, guide: str = "mean_field", **options) -> bz.inference.Fit:
    """A small network after a few steps, with draws that differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=generator)
    data = bz.data.Data({"x": x}, torch.arange(rows) % classes)
    torch.manual_seed(1)
    model = bz.models.BayesianNN(bz.models.networks.mlp(4, [6], classes), **options)
    return bz.fit(model, data, guide=guide, steps=3, compile=False, progress=False)


@pytest.fixture(scope="module")
def fit() -> bz.inference.Fit:
    return network()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(5))


def test_two_draws_by_hand():
    # The draws contradict each other in row 1, agree on a fair coin in row 2, and differ a little in row 3.
    first = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])
    second = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    p = tallied(torch.stack([first, second]))

    def h(q: float) -> float:
        return -q * math.log(q) - (1 - q) * math.log(1 - q)

    assert p.probs is not None
    assert p.probs.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.7, 0.3])
    assert p.total.tolist() == pytest.approx([math.log(2), math.log(2), h(0.7)])
    assert p.aleatoric.tolist() == pytest.approx([0.0, math.log(2), (h(0.9) + math.log(2)) / 2])
    assert p.epistemic.tolist() == pytest.approx([math.log(2), 0.0, h(0.7) - (h(0.9) + math.log(2)) / 2])
    assert p.label[2] == 0
    assert p.mean.tolist() == pytest.approx([0.5, 0.5, 0.3])  # of the class's number
    assert p.sd[0] == pytest.approx(0.5)


def test_mutual_information_is_never_negative_and_chunks_do_not_matter():
    logits = 1e-4 * torch.randn(64, 500, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs = torch.softmax(logits, -1)
    whole, cut = tallied(probs), tallied(probs[:1], probs[1:40], probs[40:])
    # About 1e-8 nats, the difference of two numbers of 2.3: float64 keeps eight digits of it, float32 none.
    exact = (probs * (probs / probs.mean(0)).log()).sum(-1).mean(0)
    assert bool((whole.epistemic >= 0).all())
    assert torch.allclose(whole.epistemic, exact, atol=1e-14)
    assert torch.allclose(whole.probs, cut.probs, atol=1e-15)
    assert torch.allclose(whole.aleatoric, cut.aleatoric, atol=1e-14)
    same = tallied(probs[:1].expand(7, -1, -1))
    rest = same.total - same.aleatoric
    assert float(rest.min()) < 0 < float(rest.max())  # rounding
    assert not same.epistemic.any()


def test_a_coins_next_flip_is_the_analytic_one():
    flips = bz.data.Data({}, torch.tensor([1.0, 1, 1, 0, 1, 0, 1, 1, 0, 1], dtype=torch.float64))
    fit = bz.fit(bz.models.CoinFlip(), flips, guide="exact", compile=False, progress=False)
    n = 2000
    p = fit.predict(n=n, num_data=2)
    a, b = torch.tensor(8.0), torch.tensor(4.0)  # Beta(1 + 7 heads, 1 + 3 tails)
    mean = 8 / 12
    sd = math.sqrt(mean * (1 - mean) / 13)
    assert p.probs is not None
    # Four Monte Carlo errors of a mean of n draws.
    assert p.probs.tolist() == pytest.approx([mean] * 2, abs=4 * sd / math.sqrt(n))
    # E H(pi) of a Beta: psi(a + b + 1) - a / (a + b) psi(a + 1) - b / (a + b) psi(b + 1); the sd of H(pi) here is 0.08.
    own = torch.digamma(a + b + 1) - mean * torch.digamma(a + 1) - (1 - mean) * torch.digamma(b + 1)
    assert p.aleatoric.tolist() == pytest.approx([float(own)] * 2, abs=4 * 0.08 / math.sqrt(n))
    q = p.probs
    assert torch.allclose(p.total, -(q * q.log() + (1 - q) * (1 - q).log()))
    assert torch.allclose(p.epistemic, p.total - p.aleatoric)


def test_numbers_split_their_variance_in_original_units():
    x = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    noise = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = bz.data.from_arrays(x, 400 + 70 * x[:, 0] + 30 * noise, standardize=True)
    model = bz.models.BayesianLinearRegression(1, noise_scale=0.5)
    fit = bz.fit(model, data, guide="exact", compile=False, progress=False)
    scale = float(data.scaler.target_sd)
    grid = torch.tensor([[-2.0], [0.0], [6.0]], dtype=torch.float64)
    exact = model.exact_predictive(fit.data, grid)
    p = fit.predict(grid, n=8000)
    assert p.aleatoric.tolist() == pytest.approx([(0.5 * scale) ** 2] * 3)
    epistemic = (exact.variance - 0.25) * scale**2
    # A variance from 8,000 normal draws has a relative error of sqrt(2 / 8000) = 1.6 %; four of them.
    assert p.epistemic.tolist() == pytest.approx(epistemic.tolist(), rel=0.064)
    assert torch.allclose(p.total, p.sd.square())
    with pytest.raises(ValueError, match="label needs a discrete outcome"):
        _ = p.label
    with pytest.raises(ValueError, match="class probabilities need a discrete outcome"):
        _ = p.class_probs


@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("guide", ["map", "mle"])
def test_a_point_knows_nothing_of_its_own_uncertainty(guide, n, inputs):
    p = network(guide=guide).predict(inputs, n=n)
    assert not p.epistemic.any()
    assert bool((p.total > 0).all())
    x = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    data = bz.data.from_arrays(x, 400 + 70 * x[:, 0] + 30 * torch.sin(99 * x[:, 0]), standardize=True)
    numbers = bz.fit(bz.models.BayesianLinearRegression(1, noise_scale=0.5), data, guide, compile=False, progress=False)
    assert not numbers.predict(x, n=n).epistemic.any()


def test_one_draw_is_a_point(fit, inputs):
    assert not fit.predict(inputs, n=1).epistemic.any()
    assert bool((fit.predict(inputs, n=2).epistemic > 0).all())


def test_probabilities_are_those_of_the_draws_one_by_one(fit, inputs):
    run, seeds = fit.run, seeds_of(fit.seed)
    with run.owned.active(seeds[0]), torch.no_grad():
        weights = latent_draws(run, fit.data, 12, seeds[0])(0, 12)
        each = [fit.model.outputs({k: v[s] for k, v in weights.items()}, inputs).softmax(-1) for s in range(12)]
    probs = torch.stack(each).double()
    p = fit.predict(inputs, n=12)
    # Single precision: the network's rounding.
    assert torch.allclose(p.probs, probs.mean(0), atol=1e-6)
    assert torch.allclose(p.aleatoric, torch.special.entr(probs).sum(-1).mean(0), atol=1e-6)
    assert float(p.epistemic.max()) > 1e-4


@pytest.mark.parametrize("limit", [1, 30_000, 10**9])
def test_the_cut_changes_no_number(fit, inputs, limit, monkeypatch):
    num = 50 if limit > 1 else 8
    p = fit.predict(inputs, n=num)
    seen = []
    plain = LatentDraws.__call__
    monkeypatch.setattr(LatentDraws, "__call__", lambda self, first, num: seen.append(num) or plain(self, first, num))
    monkeypatch.setattr(tiles, "TILE_BYTES", limit)
    q = fit.predict(inputs, n=num)
    assert max(seen[1:]) == {1: 1, 10**9: 50}.get(limit, max(seen[1:]))
    # Matrix products of other sizes round otherwise, in single precision.
    assert torch.allclose(p.probs, q.probs, atol=1e-6)
    assert torch.allclose(p.epistemic, q.epistemic, atol=1e-6)
    if limit > 1:
        assert torch.equal(p.draws[:, :5], q.draws[:, :5])


def test_blocks_of_inputs_have_outcomes_of_their_own(fit, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", 30_000)
    seen = []
    block = Inputs.block
    monkeypatch.setattr(Inputs, "block", lambda self, start, stop: seen.append((start, stop)) or block(self, start, stop))
    p = fit.predict(torch.zeros(1000, 4), n=2)
    start = next(start for start, _ in seen if start > 0)
    first, second = p.draws[:, :start], p.draws[:, start : 2 * start]
    assert bool((first[:, : second.shape[1]] != second).any())


def test_gamma_draws_come_draw_by_draw_and_do_not_depend_on_the_cut(monkeypatch):
    flips = bz.data.Data({}, torch.tensor([1.0, 1.0, 0.0]))
    fit = bz.fit(bz.models.CoinFlip(), flips, guide="exact", compile=False, progress=False)
    p = fit.predict(n=20, num_data=2)
    monkeypatch.setattr(tiles, "TILE_BYTES", 1)
    assert torch.equal(fit.predict(n=20, num_data=2).aleatoric, p.aleatoric)


def test_draws_are_the_same_for_more_draws_and_other_inputs(fit, inputs):
    few, many, first = fit.predict(inputs, n=7), fit.predict(inputs, n=30), fit.predict(inputs[:4], n=30)
    assert torch.equal(few.draws, many.draws[:7])
    assert torch.allclose(first.probs, many.probs[:4], atol=1e-6)
    assert torch.equal(first.draws, many.draws[:, :4])
    other = fit.predict(inputs, n=30, seed=3)
    assert not torch.allclose(other.probs, many.probs, atol=1e-4)


def test_outcomes_occur_as_often_as_their_probabilities(fit, inputs):
    p = fit.predict(inputs, n=4000)
    share = torch.stack([(p.draws == k).double().mean(0) for k in range(3)], -1)
    # The largest of 69 shares of 4,000 draws; each has a sd of at most 0.008, and 4.5 of them.
    assert torch.allclose(share, p.probs, atol=0.036)


def test_what_is_not_kept_changes_nothing_else(fit, inputs):
    kept, light = fit.predict(inputs, n=20), fit.predict(inputs, n=20, keep_draws=False)
    assert light.draws is None
    assert torch.equal(kept.probs, light.probs)
    assert torch.equal(kept.sd, light.sd)
    assert repr(light) == repr(kept) == "Prediction(mean (23,), 20 draws)"
    with pytest.raises(ValueError, match="keep_draws=True"):
        light.interval()


def test_latents_are_drawn_as_memory_allows(monkeypatch):
    seen = []
    plain = LatentDraws.__call__
    monkeypatch.setattr(LatentDraws, "__call__", lambda self, first, num: seen.append(num) or plain(self, first, num))
    monkeypatch.setattr(tiles, "TILE_BYTES", 10_000_000)
    data = bz.data.Data({"x": torch.randn(20, 784)}, torch.arange(20) % 10)
    model = bz.models.BayesianNN(bz.models.networks.mlp(784, [40], 10))
    fit = bz.fit(model, data, guide="map", steps=1, compile=False, progress=False)
    fit.predict(data.inputs, n=60, keep_draws=False)
    # 31,810 weights in single precision, three times: as noise, as the guide made them, as they are.
    assert max(seen) * 31_810 * 4 * 3 <= tiles.TILE_BYTES
    assert max(seen) > 10


class _Runs:
    """Counts how many rows a layer sees in all its runs."""

    def __init__(self, layer: nn.Module) -> None:
        self.rows = 0
        layer.register_forward_hook(self._hook)

    def _hook(self, layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        self.rows += len(args[0])


def test_a_point_and_a_frozen_backbone_run_once_for_many_draws(monkeypatch, inputs):
    point = network(guide="map")
    runs = _Runs(point.model.net.fc1)
    p = point.predict(inputs, n=1000)
    # Four small runs to measure, one to count the noise, one for all draws.
    assert runs.rows <= 2 + 2 + 4 + 4 + 4 * 4 + 2 * 23
    assert not p.epistemic.any()
    assert len(p.draws.unique()) == 3

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 3))
    model = bz.models.BayesianNN(net, bayesian="last", freeze=True)
    frozen = bz.fit(model, bz.data.Data({"x": x}, torch.arange(30) % 3), steps=2, compile=False, progress=False)
    runs = _Runs(frozen.model.net[0])
    monkeypatch.setattr(tiles, "TILE_BYTES", 30_000_000)
    frozen.predict(inputs, n=100)
    # 9,003 weights: about 60 draws fit into half of the limit, so the backbone runs twice, not a hundred times.
    assert runs.rows < 12 * 23


def test_tiles_by_hand(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", 1_000_000)

    def costs(fixed: int, row: int, draw: int, cell: int):
        return lambda rows: (fixed + row * rows, draw + cell * rows)

    # All rows of a draw fit: as many draws as then fit.
    assert tiles.tile(costs(50, 10, 1000, 100), 500, 100, divisible=True, latent_bytes=0) == tiles.Tile(90, 100)
    # Not all rows of a single draw fit.
    assert tiles.tile(costs(50, 0, 1000, 100), 500, 50_000, divisible=True, latent_bytes=0) == tiles.Tile(1, 10_000)
    # A row costs most whatever the draw: all draws together, few rows.
    assert tiles.tile(costs(50, 9000, 100, 10), 500, 5000, divisible=True, latent_bytes=0) == tiles.Tile(500, 67)
    # Rows that cannot be parted stay together.
    assert tiles.tile(costs(50, 0, 1000, 100), 500, 50_000, divisible=False, latent_bytes=0) == tiles.Tile(1, 50_000)


def test_bytes_are_counted_by_draw():
    weights, x = torch.zeros(3, 5, 2), torch.zeros(7, 2)
    with tiles.Counted() as counted:
        torch.vmap(lambda w: torch.relu(torch.relu(x) @ w.T))(weights)
    # Shared: relu(x); a draw's own: the transposed weights, the product and its positive part. Single precision.
    assert (counted.shared, counted.own) == (7 * 2 * 4, (2 * 5 + 2 * 7 * 5) * 4)


def test_models_that_read_values_are_run_draw_by_draw(monkeypatch):
    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sign = 1.0 if slope.item() > 0 else -1.0
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(sign * x, 0.1), obs=y)

    x = torch.tensor([1.0, 2.0])
    fit = bz.fit(model, bz.data.Data({"x": x}, 0 * x), steps=3, compile=False, progress=False)
    p = fit.predict(x, n=40)
    # Every draw's mean is x or -x.
    above = (p.draws[:, 0] > 0).double().mean()
    assert p.mean.tolist() == pytest.approx([2 * float(above) - 1, 4 * float(above) - 2])
    assert 0 < float(above) < 1
    monkeypatch.setattr(tiles, "TILE_BYTES", 1)
    assert torch.equal(fit.predict(x, n=40).draws, p.draws)


def test_moments_of_chunks_are_those_of_all():
    values = 1e6 + torch.randn(31, 4, dtype=torch.float64)
    moments = Moments()
    for part in values.split(7):
        moments.add(part)
    assert torch.allclose(moments.mean, values.mean(0), rtol=1e-15)
    assert torch.allclose(moments.variance(1), values.var(0), rtol=1e-9)


def test_blocks_of_inputs():
    whole = Inputs({"x": torch.arange(6), "c": "kept", "num_data": 6}, ("x",), 6)
    assert whole.block(0, 6) is whole.kwargs
    part = whole.block(2, 4)
    assert (part["x"].tolist(), part["c"], part["num_data"]) == ([2, 3], "kept", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "whole number of draws"),
        ({"inputs": torch.zeros(3, 5)}, r"must have the shape \(N, 4\)"),
        ({"inputs": torch.zeros(0, 4)}, "no rows"),
        ({"inputs": {"z": torch.zeros(3, 4)}}, "needs the inputs x and got z"),
        ({"inputs": torch.zeros(3, 4), "num_data": 5}, "leave num_data out"),
        ({"inputs": torch.zeros(3, 4), "site": "yy"}, "did you mean 'y'"),
    ],
)
def test_bad_calls_are_told_what_to_do(fit, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit.predict(**({"inputs": torch.zeros(3, 4), "n": 3} | arguments))


def test_a_split_needs_a_variance():
    def model(y: Tensor | None = None, *, num_data: int | None = None) -> Tensor:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(y)):
            return pyro.sample("y", _NoMoments(loc, 1.0), obs=y)

    fit = bz.fit(model, bz.data.Data({}, torch.zeros(5)), steps=3, compile=False, progress=False)
    p = fit.predict(n=200, num_data=2)
    # The rounding of a sum over draws.
    assert torch.allclose(p.sd, p.draws.double().std(0), rtol=1e-12)
    with pytest.raises(ValueError, match="cannot be split"):
        _ = p.epistemic


class _NoMoments(dist.Normal):
    @property
    def mean(self) -> Tensor:
        raise NotImplementedError

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError
