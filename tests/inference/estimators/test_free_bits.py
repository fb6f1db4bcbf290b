"""Free bits: the clamped objective's gradient, the plain loss, units that stay in use, refusals."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from contract_models import Centres, Mixture
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.engine.noise import FromRow, Row
from bayeszoo.inference.target.program import Fix


def pictures() -> tuple[Any, bz.data.Data]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = bz.models.VAE(6, 3, "gaussian", hidden=(8,)).double()
    return model, bz.data.simulate(model, 40, seed=1)


def trained(guide: str, **options: Any) -> bz.inference.Fit:
    model, data = pictures()
    return bz.fit(model, data, guide, steps=20, batch_size=20, progress=False, compile=False, **options)


def parts_by_hand(fit: bz.inference.Fit, kwargs: dict[str, Any], row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """Of one draw: log p(x | z) of all data, log q - log p(z) of each picture (B,), and the KL of each number (B, 3) of `amortized`."""
    with FromRow(row):
        trace = poutine.trace(fit.guide).get_trace(**kwargs)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    log_q = sum(site["unscaled_log_prob"] for name, site in trace.nodes.items() if name in ("z", f"_{fit.guide.family}"))
    with Fix({"z": z}):
        model = poutine.trace(fit.model).get_trace(**kwargs)
    model.compute_log_prob()
    loc, raw = fit.guide.rows(kwargs)[:, :6].chunk(2, -1)
    sd = nn.functional.softplus(raw + math.log(math.e - 1)) + 1e-6
    each = 0.5 * (loc.square() + sd.square() - 1) - sd.log()
    return model.nodes["x"]["log_prob_sum"], log_q - model.nodes["z"]["unscaled_log_prob"], each


@pytest.mark.parametrize(
    ("guide", "options"),
    [
        ("amortized", {}),
        ("amortized", {"num_particles": 3}),
        ("amortized", {"loss": "monte_carlo", "num_particles": 3}),
        ("amortized_full_rank", {"num_particles": 3}),
        ("amortized_iaf", {}),
    ],
)
@pytest.mark.parametrize("share", [0.5, 1.5])
def test_gradient_is_the_clamped_objectives_and_the_loss_is_plain(guide: str, options: dict[str, Any], share: float) -> None:
    """With a floor below the KL of a part of the numbers, and above."""
    fit = trained(guide, free_bits=0.1, **options)
    number = guide == "amortized" and not options.get("loss")
    objective, particles = fit.run.objective, options.get("num_particles", 1)
    with fit.run.owned.active(1):
        kwargs = fit.data.batch(torch.arange(5, 25), fit.model)
        normals, _ = objective.count_noise(kwargs)
        noise = Row(torch.randn(particles, normals, dtype=torch.float64), torch.zeros(particles, 0, dtype=torch.float64))
        parts = [parts_by_hand(fit, kwargs, Row(*row)) for row in zip(*noise, strict=True)]
        likelihood = torch.stack([p[0] for p in parts]).mean()
        # The average KL over the batch of 20 of each number, or of all three together; 40 pictures are the data.
        kls = parts[0][2].mean(0) if number else torch.stack([p[1].mean() for p in parts]).mean().reshape(1)
        objective.free_bits = share * float(kls.detach().median()) / (1 if number else 3)
        free = objective.free_bits * (1 if number else 3)
        clamped = -likelihood + 0.7 * 40 * kls.clamp_min(free).sum()
        plain = -likelihood + 40 * kls.sum()
        parameters = [p for p in fit.run.owned.parameters().values() if p.requires_grad]
        wanted = torch.autograd.grad(clamped, parameters, allow_unused=True, retain_graph=True)
        unclamped = torch.autograd.grad(plain, parameters, allow_unused=True)
        surrogate, loss = objective(kwargs, noise, kl_weight=torch.tensor(0.7))
        found = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        again = objective(kwargs, noise)[1]
        objective.free_bits = 0.0
        torch.testing.assert_close(objective(kwargs, noise)[1], loss)
    assert 0 < int((kls < free).sum()) <= len(kls) if share > 1 else int((kls > free).sum()) > 0
    torch.testing.assert_close(loss, plain.to(loss.dtype))
    torch.testing.assert_close(again, loss)
    for name, a, b in zip(fit.run.owned.parameters(), found, wanted, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, check_dtype=False, msg=name
        )
    assert any(not torch.allclose(a, b) for a, b in zip(wanted, unclamped, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("guide", ["amortized", "amortized_iaf"])
def test_nothing_free_changes_nothing(guide: str) -> None:
    assert trained(guide, free_bits=0).losses == trained(guide).losses


def test_streams_average_over_the_data_not_the_batch() -> None:
    """Two rare pictures in every batch of four: their KL counts as often as there are such pictures."""
    model, data = pictures()
    rare = torch.arange(40) < 4
    fit = bz.fit(
        model, data.in_streams(rare, (2, 2)), "amortized", steps=1, batch_size=4, free_bits=0.1, progress=False, compile=False
    )
    objective = fit.run.objective
    with fit.run.owned.active(1):
        kwargs = fit.data.batch(torch.tensor([0, 2, 10, 30]), fit.model)
        groups = objective._particle(kwargs).groups
        each = parts_by_hand(fit, kwargs, Row(torch.zeros(12, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)))[2]
    share = torch.tensor([2.0, 2.0, 18.0, 18.0], dtype=torch.float64)  # 4 pictures of one kind and 36 of the other
    torch.testing.assert_close(groups[0], (each * share[:, None]).sum(0))
    torch.testing.assert_close(groups[1], torch.full((3,), 0.1 * 40, dtype=torch.float64))


class Deaf(PyroModule):
    """Pictures that codes have no part in: z_n ~ N(0, I_3), x_n ~ N(0, 1)."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        with pyro.plate("data", num_data or (30 if x is None else len(x)), subsample=index, dim=-1) as rows:
            pyro.sample("z", dist.Normal(torch.zeros(len(rows), 3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(torch.zeros(len(rows)), 1.0), obs=x)


class Table(PyroModule):
    """Independent normals, all of them at the same mean to begin with."""

    factorized = True

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((30, 3), mean))
        self.log_scale = nn.Parameter(torch.zeros(30, 3))

    def forward(self, x: Tensor, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        rows = torch.arange(30) if index is None else index
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            pyro.sample("z", dist.Normal(self.loc[rows], self.log_scale[rows].exp()).to_event(1))


def test_the_kl_falls_to_the_floor_and_no_further() -> None:
    """Nothing is learned from codes here, so that the KL alone moves the guide: from 2 nats a number to 0.5, or not at all."""
    data = bz.data.Data({}, torch.randn(30))

    def kl_after(mean: float, free_bits: float) -> Tensor:
        fit = bz.fit(Deaf(), data, Table(mean), free_bits=free_bits, steps=1000, optimizer=0.005, progress=False)
        assert fit.run.objective.estimator == "analytic_kl"
        loc, log_scale = fit.guide.loc.detach(), fit.guide.log_scale.detach()
        return (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).mean(0)

    assert float(kl_after(2.0, 0.0).max()) < 0.01
    # Adam goes on in its direction for some tens of steps of 0.005 after the gradient is gone; the KL has a slope of 1 a unit there.
    found = kl_after(2.0, 0.5)
    assert bool(((found > 0.4) & (found <= 0.5)).all())
    # 0.005 nats are below the floor: no gradient, no step.
    torch.testing.assert_close(kl_after(0.1, 0.5), torch.full((3,), 0.005))


def test_units_that_would_be_switched_off_stay_in_use() -> None:
    """600 steps on digits with 16 latents: the ELBO leaves some of them at the prior, free bits do not."""
    train = bz.data.load("digits").unsupervised()

    def kls(free_bits: float) -> tuple[Tensor, float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = bz.models.VAE(64, 16, "logistic", levels=17, hidden=(64,))
        fit = bz.fit(
            model, train, "amortized", free_bits=free_bits, steps=600, batch_size=128, optimizer=3e-3, progress=False,
            compile=False,
        )  # fmt: skip
        with torch.no_grad():
            loc, raw = fit.guide.rows({"x": train.observed}).chunk(2, -1)
            sd = nn.functional.softplus(raw + math.log(math.e - 1)) + 1e-6
        return (0.5 * (loc.square() + sd.square() - 1) - sd.log()).mean(0), fit.loss / len(train)

    (plain, loss), (kept, kept_loss) = kls(0.0), kls(0.2)
    # Off: less than 0.03 nats. In use: the floor up to what batches of 128 and the last steps make of it, a quarter.
    assert int((plain < 0.03).sum()) >= 2
    assert int((kept > 0.15).sum()) == 16
    # The reported loss is the ELBO in both, so it may be some worse (0.2 nats for each of those units), not weighted.
    assert abs(kept_loss - loss) < 16 * 0.2


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "much", lambda step, steps: 0.1])
def test_what_is_no_amount(value: Any) -> None:
    model, data = pictures()
    with pytest.raises(ValueError, match="free_bits is the nats that each latent number may have at no cost") as caught:
        bz.fit(model, data, "amortized", free_bits=value, progress=False)
    assert "\n" not in str(caught.value)


class Scored(PyroModule):
    """Draws without a gradient."""

    class Normal(dist.Normal):
        has_rsample = False

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            pyro.sample("m", self.Normal(self.mean, 1.0))


REFUSED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "an importance-weighted bound has no KL": (pictures, "amortized", {"loss": "importance_weighted"}),
    "a surrogate has no KL": (lambda: (Centres(), bz.data.simulate(Centres(), 24, seed=0)), "map", {}),
    "'z' is discrete": (lambda: (Mixture(), bz.data.simulate(Mixture(), 24, seed=0)), "mean_field", {}),
    "'pi' is shared by all": (lambda: (bz.models.CoinFlip(), bz.data.Data({}, torch.ones(9))), "beta", {}),
    "no density of single observations' 'm'": (lambda: (Centres(), bz.data.simulate(Centres(), 24, seed=0)), "full_rank", {}),
    "draws 'm' without one": (lambda: (Centres(), bz.data.simulate(Centres(), 24, seed=0)), Scored(), {}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_free_bits(words: str) -> None:
    make, guide, options = REFUSED[words]
    model, data = make()
    with pytest.raises(ValueError, match=words) as caught:
        bz.fit(model, data, guide, free_bits=0.1, steps=2, progress=False, **options)
    assert "\n" not in str(caught.value)


def test_a_closed_form_that_is_not_there_is_replaced_by_draws() -> None:
    """`analytic_kl` of a joint density, whose sites are points that follow from one draw, is its Monte Carlo estimate."""
    # From the first update on, the gradient that leaves q's own parameters out of log q is another one.
    assert trained("amortized_full_rank", loss="analytic_kl").losses[0] == trained("amortized_full_rank").losses[0]
