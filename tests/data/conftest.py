"""Small models in the shapes that data sets are bound to, and one table with every kind of column."""

from __future__ import annotations

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule


class Coin(PyroModule):
    """forward(x=None, total_count=None): an optional input stands behind the observed parameter."""

    def forward(self, x=None, total_count=None, *, num_data=None, index=None):
        pi = pyro.sample("pi", dist.Beta(2.0, 2.0))
        n = num_data or len(x)
        likelihood = dist.Bernoulli(pi) if total_count is None else dist.Binomial(total_count, pi)
        with pyro.plate("data", n, subsample=index, dim=-1):
            return pyro.sample("x", likelihood, obs=x)


class Regression(PyroModule):
    """forward(x, y=None): supervised, offers `dim`."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.register_buffer("prior_scale", torch.ones(dim, dtype=torch.float64))

    def forward(self, x, y=None, *, num_data=None, index=None):
        theta = pyro.sample("theta", dist.Normal(0.0, self.prior_scale).to_event(1))
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            return pyro.sample("y", dist.Normal(x @ theta, 0.5), obs=y)


def mixture(x=None, *, num_data=None):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
    with pyro.plate("data", num_data or len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@pytest.fixture
def coin():
    return Coin()


@pytest.fixture
def regression():
    return Regression(3)


@pytest.fixture
def mixture_model():
    return mixture


@pytest.fixture
def houses():
    return pd.DataFrame(
        {
            "size": [50.0, 80.0, 120.0, 65.5, 99.0, 150.0],
            "rooms": [2, 3, 4, 2, 4, 6],
            "garden": [0, 1, 1, 0, 0, 1],
            "city": ["Rome", "Paris", "Berlin", "Rome", "Berlin", "Paris"],
            "price": [200_000, 350_000, 410_000, 240_000, 330_000, 700_000],
        }
    )
