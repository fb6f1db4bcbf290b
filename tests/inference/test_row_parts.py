"""Large data sets: models are read on some rows, and losses taken in parts of rows that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.target import program as programs
from bayeszoo.inference.target import row_parts as parts_module
from bayeszoo.inference.target.program import MANY, describe

ROWS = MANY + 700


def classifier(net: nn.Module | None = None) -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3)) if net is None else net
    model = bz.models.BayesianNN(net)
    x = torch.randn(ROWS, 4)
    return model, bz.data.Data(inputs={"x": x}, observed=(x[:, 0] > 0).long() + (x[:, 1] > 1).long())


def pictures(likelihood: str = "bernoulli") -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    model = bz.models.VAE(9, 2, likelihood, hidden=(8,), levels=4)
    return model, bz.data.simulate(model, ROWS, seed=0)


def line() -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    model = bz.models.BayesianLinearRegression(3)
    x = torch.randn(ROWS, 3)
    return model, bz.data.Data(inputs={"x": x}, observed=x.sum(1) + 0.1 * torch.randn(ROWS))


def mixture(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
    """Two clusters with unknown means, the cluster of each row summed out."""
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", num_data or ROWS, subsample=index):
        cluster = pyro.sample("cluster", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(means[cluster], 1.0), obs=x)


def clusters() -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    side = (torch.rand(ROWS) < 0.7).float()
    return mixture, bz.data.Data(inputs={}, observed={"x": 4 * side - 2 + torch.randn(ROWS)})


def own_levels(level: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
    """A latent of each row whose prior is another one from row to row."""
    with pyro.plate("data", num_data or len(level), subsample=index):
        z = pyro.sample("z", dist.Normal(level, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def levels() -> tuple[Any, bz.data.Data]:
    torch.manual_seed(0)
    level = torch.randn(ROWS)
    return own_levels, bz.data.Data(inputs={"level": level}, observed=level + torch.randn(ROWS))


CASES: dict[str, Callable[[], tuple[Any, bz.data.Data]]] = {
    "network": classifier,
    "autoencoder": pictures,
    "categorical": lambda: pictures("categorical"),
}


@pytest.mark.parametrize("case", CASES)
def test_some_rows_tell_what_all_rows_tell(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = CASES[case]()
    some = describe(model, data)
    monkeypatch.setattr(programs, "MANY", ROWS)
    whole = describe(model, data)
    assert some.row_elements
    assert not whole.row_elements
    assert (some.num_data, some.max_plate_nesting) == (whole.num_data, whole.max_plate_nesting)
    for mine, other in ((some.latents, whole.latents), (some.observed, whole.observed)):
        assert list(mine) == list(other)
        for name, site in mine.items():
            theirs = other[name]
            for what in ("shape", "event_dim", "discrete", "plates", "elements", "local", "batch_shape"):
                assert getattr(site, what) == getattr(theirs, what), (name, what)
            assert type(site.support) is type(theirs.support)
    for name, site in some.latents.items():
        assert site.distribution.batch_shape == whole.latents[name].distribution.batch_shape
        like = site.distribution.sample()
        assert torch.equal(site.distribution.log_prob(like), whole.latents[name].distribution.log_prob(like))


@pytest.mark.parametrize("make", [line, clusters, levels])
def test_models_that_do_not_say_so_are_read_on_all_rows(make: Callable[[], tuple[Any, bz.data.Data]]) -> None:
    """Priors may differ from row to row, parameters and shared latents may depend on all of them."""
    model, data = make()
    program = describe(model, data)
    assert not program.row_elements
    if make is levels:
        assert torch.equal(program.latents["z"].distribution.loc, data.inputs["level"])


def test_what_a_row_takes_leaves_shared_weights_out() -> None:
    """Two products, a bias each, a rectifier, and what the likelihood makes of three classes: tens of numbers, not the 213 weights."""
    model, data = classifier()
    assert 30 + 30 + 3 <= describe(model, data).row_elements < 213


def test_a_guide_that_is_not_ours_sees_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide that draws all rows whatever `index` is given draws each of them once, however little memory there is."""
    model, data = pictures()

    def guide(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.zeros(ROWS, 2))
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    fit = bz.fit(model, data, guide=guide, steps=2, compile=False, progress=False)
    monkeypatch.setattr(parts_module, "PART_BYTES", 1000 * fit.program.row_elements * 4)
    assert fit.run.parts(data).whole
    assert fit.sample(3)["z"].shape == (3, ROWS, 2)


def _losses(
    case: str, guide: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Loss and error of the same fit, its rows together and in eight parts."""
    model, data = CASES[case]()
    fit = bz.fit(model, data, guide=guide, batch_size=100, steps=30, compile=False, progress=False, **options)
    run, found = fit.run, []
    for rows in (ROWS, ROWS // 8 + 1):
        monkeypatch.setattr(parts_module, "PART_BYTES", rows * run.program.row_elements * 4)
        run.evaluate(data, seed=0)
        found.append((run.loss, run.loss_error))
    return found[0], found[1]


@pytest.mark.parametrize(("case", "guide"), [("network", "mean_field"), ("network", "map"), ("network", "ensemble")])
def test_the_loss_in_parts_is_the_loss_on_all_rows(case: str, guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws of shared latents: what differs is the rounding of sums over 5,700 rows."""
    (whole, error), (parts, part_error) = _losses(case, guide, monkeypatch)
    assert parts == pytest.approx(whole, rel=1e-4)
    # The draws' differences are what the error is made of: a part left out, or counted as all rows, would be thousands of nats.
    assert part_error == pytest.approx(error, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(("case", "guide"), [("autoencoder", "amortized"), ("network", "mc_dropout")])
def test_drawn_part_by_part_the_loss_agrees(case: str, guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other draws: within four standard errors of the difference."""
    (whole, error), (parts, part_error) = _losses(case, guide, monkeypatch)
    assert parts != whole
    assert abs(parts - whole) < 4 * math.hypot(error, part_error)


class Watched(nn.Module):
    """Layers that remember the most rows they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[-2])
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("guide", ["mean_field", "map", "mc_dropout"])
def test_no_fit_by_minibatches_runs_a_network_on_all_rows(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = classifier(Watched())
    monkeypatch.setattr(parts_module, "PART_BYTES", 1000 * describe(model, data).row_elements * 4)
    fit = bz.fit(model, data, guide=guide, batch_size=100, steps=10, compile=False, progress=False)
    seen = fit.model.net.seen
    assert 100 in seen
    assert 500 < max(seen) <= 1000
    assert math.isfinite(fit.loss)
