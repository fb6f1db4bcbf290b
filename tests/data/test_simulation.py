"""Data drawn from models, with the truth that made them."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample

from bayeszoo.data import simulate


def test_coin_without_inputs(coin):
    data = simulate(coin, 2000, seed=1)
    assert len(data) == 2000
    assert not data.inputs
    assert set(data.truth) == {"pi"}
    pi = float(data.truth["pi"])
    # Four standard errors of a proportion.
    assert abs(float(data.observed.mean()) - pi) < 4 * (pi * (1 - pi) / 2000) ** 0.5
    assert set(data.bind(coin)) == {"x", "num_data"}


def test_coin_with_counts(coin):
    counts = torch.full((50,), 1000.0)
    data = simulate(coin, 50, seed=2, inputs={"total_count": counts})
    pi = data.truth["pi"]
    z = (data.observed - 1000 * pi) / (1000 * pi * (1 - pi)).sqrt()
    # Four standard errors from 50 standardised counts: 4 / sqrt(50) for the mean, 4 / sqrt(100) for the sd.
    assert abs(float(z.mean())) < 0.57
    assert abs(float(z.std()) - 1.0) < 0.4
    assert set(data.bind(coin)) == {"x", "total_count", "num_data"}


def test_regression_draws_its_inputs(regression):
    data = simulate(regression, 4000, seed=3)
    assert data.inputs["x"].shape == (4000, 3)
    assert data.inputs["x"].dtype == torch.float64
    residual = data.observed - data.inputs["x"] @ data.truth["theta"]
    # The noise sd is 0.5; four standard errors of an sd from 4000 draws, 0.5 / sqrt(8000) = 0.0056.
    assert float(residual.std()) == pytest.approx(0.5, abs=0.023)
    # Standard normal inputs: four standard errors of a mean over 12000 values.
    assert abs(float(data.inputs["x"].mean())) < 0.037
    assert not data.local_sites


def test_regression_with_given_inputs(regression):
    x = torch.randn(5, 3, dtype=torch.float64)
    data = simulate(regression, 5, seed=0, inputs={"x": x})
    assert torch.equal(data.inputs["x"], x)
    again = simulate(regression, 5, seed=0, inputs={"x": x.numpy()})
    assert torch.equal(again.observed, data.observed)


def test_local_latents_have_rows(mixture_model):
    data = simulate(mixture_model, 30, seed=0)
    assert set(data.truth) == {"w", "mu", "z"}
    assert data.local_sites == ("z",)
    first, _ = data.split(0.5, seed=0)
    assert first.truth["z"].shape == (15,)
    assert first.truth["mu"].shape == (3,)
    residual = data.observed - data.truth["mu"][data.truth["z"]]
    # Unit noise: four standard errors of a mean over 30 draws.
    assert abs(float(residual.mean())) < 0.74
    rows = first.observed - data.truth["mu"][first.truth["z"]]
    assert set(rows.tolist()) <= set(residual.tolist())


def test_global_latent_as_long_as_the_data_is_not_local(regression):
    data = simulate(regression, 3, seed=0)
    assert data.truth["theta"].shape == (3,)
    assert data.local_sites == ()


def test_return_value_serves_where_no_site_has_the_name():
    def model(x=None, *, num_data=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x)):
            return pyro.sample("likelihood", dist.Normal(loc, 1.0), obs=x)

    data = simulate(model, 6, seed=0)
    assert data.observed.shape == (6,)
    assert set(data.truth) == {"loc"}
    assert set(data.bind(model)) == {"x", "num_data"}


def test_two_observed_parameters():
    def model(n, a=None, b=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(n)):
            pyro.sample("a", dist.Normal(loc, 1.0), obs=a)
            pyro.sample("b", dist.Normal(-loc, 1.0), obs=b)

    data = simulate(model, 4, seed=0, inputs={"n": torch.ones(4)})
    assert set(data.observed) == {"a", "b"}
    assert set(data.bind(model)) == {"n", "a", "b"}


def test_seed_decides(coin):
    a, b, c = (simulate(coin, 20, seed=s).truth["pi"] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_numpy_and_python_draws_are_seeded_too():
    def model(x=None, *, num_data=None):
        shift = np.random.normal() + random.random()  # noqa: NPY002
        with pyro.plate("data", num_data or len(x)):
            return pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    assert torch.equal(simulate(model, 4, seed=9).observed, simulate(model, 4, seed=9).observed)


def test_global_state_is_untouched(mixture_model):
    def with_params(x=None, *, num_data=None):
        scale = pyro.param("scale", torch.tensor(3.0))
        random.random()
        np.random.normal()  # noqa: NPY002
        pyro.param("fresh", torch.tensor(1.0))
        with pyro.plate("data", num_data or len(x)):
            return pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    store = pyro.get_param_store()
    with store.scope():
        pyro.param("scale", torch.tensor(1e-3))
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
        data = simulate(with_params, 50, seed=0)
        after = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert before[2][0] == after[2][0]
        assert (before[2][1] == after[2][1]).all()
        assert list(store.keys()) == ["scale"]
        # The value in the store is used: fifty draws of sd 1e-3 stay below 1e-2.
        assert data.observed.abs().max() < 1e-2
        with pytest.raises(ValueError, match="instead of"):
            simulate(lambda x=None: None, 3, seed=0)
        assert torch.equal(before[0], torch.get_rng_state())
        assert list(store.keys()) == ["scale"]


def test_modules_with_own_parameters_leave_the_store_empty():
    class Scaled(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(1e-3), constraint=dist.constraints.positive)
            self.loc = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, y=None, *, num_data=None, index=None):
            with pyro.plate("data", num_data or len(y), subsample=index):
                return pyro.sample("y", dist.Normal(self.loc, self.scale), obs=y)

    store = pyro.get_param_store()
    with store.scope():
        model = Scaled()
        data = simulate(model, 10, seed=0)
        assert not list(store.keys())
    assert set(data.truth) == {"loc"}
    # Ten draws of sd 1e-3 stay within 1e-2 of their mean.
    assert (data.observed - data.truth["loc"]).abs().max() < 1e-2
    assert model.scale.item() == pytest.approx(1e-3)


def fixed_size(x=None):
    with pyro.plate("data", 4):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def needs_input(z, y=None):
    return z


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (fixed_size, {"n": 5, "seed": 0}, r"gave a tensor of shape \(4,\) instead of 5 observed values"),
        (lambda x=None: 3.0, {"n": 5, "seed": 0}, r"gave float instead of 5"),
        (needs_input, {"n": 5, "seed": 0}, r"needs a value for 'z'"),
        (fixed_size, {"n": 0, "seed": 0}, r"n must be an integer of at least 1"),
        (fixed_size, {"n": 2.5, "seed": 0}, r"n must be an integer"),
        (fixed_size, {"n": 4, "seed": -1}, r"seed must be an integer between 0"),
        (fixed_size, {"n": 4, "seed": 0, "inputs": {"q": torch.ones(4)}}, r"no parameter 'q'"),
        (needs_input, {"n": 4, "seed": 0, "inputs": {"z": torch.ones(3)}}, r"shape \(3,\), but n=4"),
        (needs_input, {"n": 1, "seed": 0, "inputs": {"z": [1.0]}}, r"input 'z' is a list"),
    ],
)
def test_refusals(model, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        simulate(model, **arguments)
    assert "\n" not in str(caught.value)
