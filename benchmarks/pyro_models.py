"""The cases' models as plain Pyro functions: the same functions serve plain Pyro and bayeszoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from torch import Tensor, nn

from .cases import VAE_WIDTHS, Array, vae_weights

Model = Callable[..., Any]


def data_plate(like: Tensor, num_data: int | None, index: Tensor | None) -> Any:
    """The plate over the observations; with `index` it is scaled up to all `num_data` of them."""
    return pyro.plate("data", num_data or len(like), subsample=index)


def coin(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """pi ~ Beta(1, 1), x_n ~ Bernoulli(pi)."""
    assert x is not None
    one = torch.ones((), device=x.device)
    pi = pyro.sample("pi", dist.Beta(one, one))
    with data_plate(x, num_data, index):
        return pyro.sample("x", dist.Bernoulli(pi), obs=x)


def linear(x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """theta ~ N(0, I), y_n ~ N(x_n theta, 0.5^2)."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(x.shape[-1], device=x.device), 1.0).to_event(1))
    with data_plate(x, num_data, index):
        return pyro.sample("y", dist.Normal(x @ theta, 0.5), obs=y)


def coins(total: Tensor, heads: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """mu ~ N(0, 1.5^2), tau ~ HalfNormal(1), u_n ~ N(mu, tau^2), heads_n ~ Binomial(total_n, sigmoid(u_n))."""
    zero = torch.zeros((), device=total.device)
    mu = pyro.sample("mu", dist.Normal(zero, 1.5))
    tau = pyro.sample("tau", dist.HalfNormal(zero + 1.0))
    with data_plate(total, num_data, index):
        u = pyro.sample("u", dist.Normal(mu, tau))
        return pyro.sample("heads", dist.Binomial(total, logits=u), obs=heads)


def schools(sigma: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """mu ~ N(0, 5^2), tau ~ HalfCauchy(5), eta_n ~ N(0, 1), y_n ~ N(mu + tau eta_n, sigma_n^2)."""
    zero = torch.zeros((), device=sigma.device)
    mu = pyro.sample("mu", dist.Normal(zero, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(zero + 5.0))
    with data_plate(sigma, num_data, index):
        eta = pyro.sample("eta", dist.Normal(zero, 1.0))
        return pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def logistic(x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """w ~ N(0, I), b ~ N(0, 1), y_n ~ Bernoulli(sigmoid(x_n w + b))."""
    zero = torch.zeros((), device=x.device)
    w = pyro.sample("w", dist.Normal(zero.expand(x.shape[-1]), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(zero, 1.0))
    with data_plate(x, num_data, index):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def bnn(x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """All weights and biases ~ N(0, 1), two hidden layers of 50 tanh units, y_n ~ Categorical(logits)."""
    widths = (x.shape[-1], 50, 50, 10)
    h = x
    for k, (fan_in, fan_out) in enumerate(pairwise(widths), 1):
        w = pyro.sample(f"w{k}", dist.Normal(torch.zeros(fan_in, fan_out, device=x.device), 1.0).to_event(2))
        b = pyro.sample(f"b{k}", dist.Normal(torch.zeros(fan_out, device=x.device), 1.0).to_event(1))
        h = h @ w + b
        if k < 3:
            h = torch.tanh(h)
    with data_plate(x, num_data, index):
        return pyro.sample("y", dist.Categorical(logits=h), obs=y)


def layer(weight: Array, bias: Array) -> nn.Linear:
    """A linear layer with the given weights, (in, out), and biases."""
    linear = nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T))
        linear.bias.copy_(torch.from_numpy(bias))
    return linear


class Encoder(nn.Module):
    """Image (..., 784) -> mean and sd (..., 20) of its code."""

    def __init__(self) -> None:
        super().__init__()
        weights = vae_weights()
        self.hidden = layer(*weights["encoder.hidden"])
        self.loc = layer(*weights["encoder.loc"])
        self.log_scale = layer(*weights["encoder.log_scale"])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.hidden(x))
        return self.loc(h), torch.exp(self.log_scale(h))


def make_decoder() -> nn.Sequential:
    """Code (..., 20) -> log odds of every pixel, (..., 784)."""
    weights = vae_weights()
    return nn.Sequential(layer(*weights["decoder.hidden"]), nn.ReLU(), layer(*weights["decoder.logits"]))


def make_vae(device: str) -> tuple[Model, Model]:
    """z_n ~ N(0, I_20), x_n ~ Bernoulli(sigmoid(decoder(z_n))); its guide draws z_n ~ N(loc(x_n), scale(x_n)^2)."""
    encoder, decoder = Encoder().to(device), make_decoder().to(device)

    def vae(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
        assert x is not None
        pyro.module("decoder", decoder)
        with data_plate(x, num_data, index):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), VAE_WIDTHS[2]), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
        assert x is not None
        pyro.module("encoder", encoder)
        loc, scale = encoder(x)
        with data_plate(x, num_data, index):
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return vae, guide


@dataclass(frozen=True)
class Pair:
    """A model and the guide that every torch contestant fits to it."""

    model: Model
    guide: Model


MODELS: dict[str, Model] = {
    "coin": coin,
    "linear": linear,
    "coins": coins,
    "schools": schools,
    "logistic": logistic,
    "bnn": bnn,
}


def make(name: str, device: str = "cpu") -> Pair:
    """The model of that name with a fresh guide: mean field from zero, sd 0.1, or the VAE's encoder."""
    if name == "vae":
        return Pair(*make_vae(device))
    return Pair(MODELS[name], AutoNormal(MODELS[name], init_loc_fn=init_to_feasible, init_scale=0.1))
