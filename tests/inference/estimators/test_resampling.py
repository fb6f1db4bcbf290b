"""Gradients of importance-weighted bounds from draws that are drawn again by their weights: the mean of all, and a fraction of the work."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.engine.noise import FromRow, Row
from bayeszoo.inference.estimators.objective import Objective
from tests.inference.estimators.test_doubly_reparametrized import CASES, begun, pictures

F64, DRAWS = torch.float64, 4


def numbers(objective: Objective, fit: bz.inference.Fit) -> Tensor:
    """(DRAWS, n) the normal numbers of one step."""
    normals, _ = objective.count_noise(fit.data.bind(fit.model))
    return torch.randn(DRAWS, normals, dtype=F64, generator=torch.Generator().manual_seed(3))


def weights(fit: bz.inference.Fit, normals: Tensor) -> Tensor:
    """(DRAWS, N) for local latents, (DRAWS, 1) for shared ones: exp(log p - log q) over its sum, from Pyro's own traces."""
    kwargs = fit.data.bind(fit.model)
    log_w = []
    for row in normals:
        with FromRow(Row(row, row[:0])):
            q = poutine.trace(fit.guide).get_trace(**kwargs)
        p = poutine.trace(poutine.replay(fit.model, q)).get_trace(**kwargs)
        parts = []
        for sign, trace in ((1, p), (-1, q)):
            trace.compute_log_prob()
            parts += [sign * site["log_prob"] for site in trace.nodes.values() if "log_prob" in site]
        log_w.append(sum(parts) if fit.run.program.local else sum(part.sum() for part in parts).reshape(1))
    return torch.softmax(torch.stack(log_w), 0).detach()


def gradient(objective: Objective, fit: bz.inference.Fit, normals: Tensor, u: float | None) -> tuple[Tensor, Tensor]:
    """The gradient and the loss; `u` is the uniform number of every row, None differentiates all draws."""
    kwargs = fit.data.bind(fit.model)
    share = 0 if u is None else -(-len(fit.data) // DRAWS)
    noise = Row(normals, torch.full((DRAWS, share), u or 0.0, dtype=F64))
    surrogate, loss = objective(kwargs, noise, strict=True)
    parameters = [p for p in fit.run.owned.parameters().values() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, parameters)]), loss.detach()


@pytest.mark.parametrize("again", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_the_uniform_number_is_the_gradient_of_all_draws(name: str, again: int) -> None:
    """Exactly: between two places where some row takes another draw the gradient does not change, so that a sum over these pieces is
    the integral."""
    make, guide, options = CASES[name]
    fit = begun(*make(), guide, DRAWS, **options)
    objective = fit.run.objective
    with fit.run.owned.active(0):
        normals = numbers(objective, fit)
        wanted, loss = gradient(objective, fit, normals, None)
        objective.resample = again
        steps = (again * weights(fit, normals).cumsum(0)).flatten()  # u + r passes there, for the r-th of them
        edges = torch.cat([torch.zeros(1), steps.frac().flatten(), torch.ones(1)]).unique()
        found = torch.zeros_like(wanted)
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            one, same = gradient(objective, fit, normals, (a + b) / 2)
            torch.testing.assert_close(same, loss, rtol=1e-12, atol=0)
            found += (b - a) * one
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["amortized", "amortized_full_rank"])
def test_particles_one_by_one(kind: str) -> None:
    fit = begun(*pictures(), kind, DRAWS)
    objective = fit.run.objective
    objective.resample = 2
    with fit.run.owned.active(0):
        normals = numbers(objective, fit)
        mapped = gradient(objective, fit, normals, 0.3)
        objective.each.vectorized = False
        torch.testing.assert_close(gradient(objective, fit, normals, 0.3), mapped, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_both_engines_learn_the_same(batch_size: int | None) -> None:
    model, data = pictures()
    options = {
        "steps": 60, "loss": "importance_weighted", "num_particles": 6, "resample": 1, "batch_size": batch_size, "progress": False,
    }  # fmt: skip
    a, b = (bz.fit(model, data, "amortized", compile=c, **options) for c in (False, True))
    assert b.engine == "compiled"
    assert b.losses == pytest.approx(a.losses, rel=1e-8)


def test_it_learns_what_all_draws_learn() -> None:
    """Principal components by maximum likelihood: the bound of 20 draws comes within its gap of the best log p(x), either way."""
    torch.manual_seed(1)
    x = torch.randn(200, 2, dtype=F64) @ torch.randn(2, 6, dtype=F64) + 0.3 * torch.randn(200, 6, dtype=F64)
    model = bz.models.VAE(6, 2, "gaussian", generator=nn.Linear(2, 6))
    options = {
        "loss": "importance_weighted", "num_particles": 20, "steps": 2000, "optimizer": 5e-3, "schedule": "cosine", "progress": False,
        "compile": False,
    }  # fmt: skip
    all_draws, some = (bz.fit(model, bz.data.Data({}, x), "amortized", **options, **o) for o in ({}, {"resample": 1}))
    assert abs(some.loss - all_draws.loss) < 2


class Noisy(nn.Module):
    """Draws numbers of its own."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z, 0.5, training=True), 1.0), obs=x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": 1}, "add loss='importance_weighted'"),
        ({"resample": 1, "loss": "importance_weighted"}, "resample=1 draws of 1 would save nothing"),
        ({"resample": 4, "loss": "importance_weighted", "num_particles": 4}, "take fewer of them than num_particles"),
        ({"resample": 0, "loss": "importance_weighted", "num_particles": 4}, "resample must be a whole number of at least 1, got 0"),
        ({"resample": True, "loss": "importance_weighted", "num_particles": 4}, "resample must be a whole number of at least 1, got True"),
        ({"resample": 1, "loss": "importance_weighted", "num_particles": 4, "guide": "amortized_iaf"}, "that of guide 'amortized_iaf'"),
    ],
)  # fmt: skip
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        bz.fit(*pictures(), **{"guide": "amortized", "steps": 2, "progress": False, **options})  # type: ignore[arg-type]


def test_refused_for_noise_in_layers() -> None:
    network = bz.models.BayesianNN(nn.Linear(3, 2), likelihood="gaussian")
    data = bz.data.Data({"x": torch.randn(9, 3, dtype=F64)}, torch.randn(9, 2, dtype=F64))
    options = {
        "steps": 2,
        "loss": "importance_weighted",
        "num_particles": 3,
        "resample": 1,
        "progress": False,
        "compile": False,
    }
    with pytest.raises(ValueError, match="add estimator='shared'"):
        bz.fit(network, data, "mean_field", **options)
    assert len(bz.fit(network, data, "mean_field", estimator="shared", **options).losses) == 2


class Neighbours(nn.Module):
    """An observation's mean has a part of its neighbour's latent, or none."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def forward(self, y: Tensor | None = None) -> None:
        with pyro.plate("data", 12, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("y", dist.Normal(z + self.part * z.roll(1), 0.5), obs=y)


@pytest.mark.parametrize("resample", [None, 1])
def test_rows_that_see_the_latents_of_others_have_no_weights_of_their_own(resample: int | None) -> None:
    data = bz.data.Data({}, observed=torch.randn(12, dtype=F64))
    options = {
        "steps": 2,
        "loss": "importance_weighted",
        "num_particles": 3,
        "progress": False,
        "compile": False,
        "resample": resample,
    }
    with pytest.raises(ValueError, match="the density of one depends on the latents of others"):
        bz.fit(Neighbours(0.9), data, "mean_field", **options)
    assert len(bz.fit(Neighbours(0.0), data, "mean_field", **options).losses) == 2
    assert len(bz.fit(Neighbours(0.9), data, "full_rank", **options).losses) == 2  # one weight for all rows


def test_the_next_fit_of_a_guide_chooses_its_gradient_anew() -> None:
    fit = begun(*pictures(), "amortized", DRAWS)
    assert fit.guide.path_derivative is True
    again = bz.fit(
        fit.model, fit.data, fit.guide, steps=2, loss="importance_weighted", num_particles=1, compile=False, progress=False
    )
    assert again.guide.path_derivative is False


def test_refused_for_models_that_draw() -> None:
    data = bz.data.Data({}, observed={"x": torch.randn(9, dtype=F64)})
    with pytest.raises(ValueError, match="a model without noise of its own"):
        bz.fit(Noisy(), data, "amortized", steps=2, loss="importance_weighted", num_particles=3, resample=1, progress=False)


def test_pictures_drawn_anew_take_numbers_of_their_own() -> None:
    """One row of common numbers, which lies in the rows of all particles: first the pixels', then one for each picture."""
    torch.manual_seed(0)
    pixels = torch.rand(6, 5, dtype=F64)
    data = bz.data.Data({}, pixels).binarized(seed=0)
    fit = bz.fit(
        bz.models.VAE(5, 3, "bernoulli", generator=nn.Linear(3, 5)), data, "amortized", steps=2, loss="importance_weighted",
        num_particles=DRAWS, resample=1, progress=False, compile=False,
    )  # fmt: skip
    objective = fit.run.objective
    kwargs = data.training_batch(None, fit.model)
    with fit.run.owned.active(0):
        normals, uniforms = objective.count_noise(kwargs)
    assert uniforms == -(-(pixels.numel() + 6) // DRAWS)
    seen = []

    def found(common: Tensor) -> tuple[float, Tensor]:
        with fit.run.owned.active(0):
            noise = Row(torch.ones(DRAWS, normals, dtype=F64) * torch.arange(DRAWS).unsqueeze(1), common.reshape(DRAWS, -1))
            surrogate, loss = objective(kwargs, noise, strict=True)
            drawn, _ = objective._redraw(kwargs, objective._apart(kwargs, noise)[1])
            seen.append(next(iter(drawn[name] for name in objective.redrawn)))
            return float(loss.detach()), torch.autograd.grad(surrogate, [*fit.model.parameters()])[0]

    common = torch.rand(DRAWS * uniforms, dtype=F64)
    loss, gradient = found(common)
    assert torch.equal(seen[0], (common[:30].reshape(6, 5) < pixels).to(F64))
    others = common.clone()
    others[30:36] = (others[30:36] + 0.5) % 1
    same, moved = found(others)
    assert same == loss
    assert not torch.equal(moved, gradient)
    assert found(1 - common)[0] != loss
