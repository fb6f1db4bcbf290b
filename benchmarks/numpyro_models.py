"""The twins: the same models in NumPyro, site for site."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_feasible

from .cases import VAE_WIDTHS, vae_weights

Model = Callable[..., Any]


def data_plate(like: Any, num_data: int | None) -> AbstractContextManager[Any]:
    """The plate over the observations of a batch, scaled up to all `num_data` of them.

    A plate with `subsample_size` would draw a permutation of its own; the scale alone costs nothing.
    """
    stack = ExitStack()
    if num_data is not None and num_data != len(like):
        stack.enter_context(handlers.scale(scale=num_data / len(like)))
    stack.enter_context(numpyro.plate("data", len(like)))
    return stack


def coin(x: Any = None, *, num_data: int | None = None) -> Any:
    pi = numpyro.sample("pi", dist.Beta(1.0, 1.0))
    with data_plate(x, num_data):
        return numpyro.sample("x", dist.Bernoulli(pi), obs=x)


def linear(x: Any, y: Any = None, *, num_data: int | None = None) -> Any:
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
    with data_plate(x, num_data):
        return numpyro.sample("y", dist.Normal(x @ theta, 0.5), obs=y)


def coins(total: Any, heads: Any = None, *, num_data: int | None = None) -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with data_plate(total, num_data):
        u = numpyro.sample("u", dist.Normal(mu, tau))
        return numpyro.sample("heads", dist.Binomial(total, logits=u), obs=heads)


def schools(sigma: Any, y: Any = None, *, num_data: int | None = None) -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with data_plate(sigma, num_data):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        return numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def logistic(x: Any, y: Any = None, *, num_data: int | None = None) -> Any:
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with data_plate(x, num_data):
        return numpyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def bnn(x: Any, y: Any = None, *, num_data: int | None = None) -> Any:
    widths = (x.shape[-1], 50, 50, 10)
    h = x
    for k, (fan_in, fan_out) in enumerate(pairwise(widths), 1):
        w = numpyro.sample(f"w{k}", dist.Normal(jnp.zeros((fan_in, fan_out)), 1.0).to_event(2))
        b = numpyro.sample(f"b{k}", dist.Normal(jnp.zeros(fan_out), 1.0).to_event(1))
        h = h @ w + b
        if k < 3:
            h = jnp.tanh(h)
    with data_plate(x, num_data):
        return numpyro.sample("y", dist.Categorical(logits=h), obs=y)


def _layer(name: str, x: Any) -> Any:
    weight, bias = vae_weights()[name]
    return x @ numpyro.param(f"{name}.weight", jnp.asarray(weight)) + numpyro.param(f"{name}.bias", jnp.asarray(bias))


def vae(x: Any = None, *, num_data: int | None = None) -> Any:
    with data_plate(x, num_data):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), VAE_WIDTHS[2])), 1.0).to_event(1))
        logits = _layer("decoder.logits", jax.nn.relu(_layer("decoder.hidden", z)))
        return numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def vae_guide(x: Any = None, *, num_data: int | None = None) -> Any:
    h = jax.nn.relu(_layer("encoder.hidden", x))
    loc, scale = _layer("encoder.loc", h), jnp.exp(_layer("encoder.log_scale", h))
    with data_plate(x, num_data):
        return numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


MODELS: dict[str, Model] = {
    "coin": coin,
    "linear": linear,
    "coins": coins,
    "schools": schools,
    "logistic": logistic,
    "bnn": bnn,
    "vae": vae,
}


def make(name: str) -> tuple[Model, Model]:
    """The model of that name with a fresh guide: mean field from zero, sd 0.1, or the VAE's encoder."""
    if name == "vae":
        return vae, vae_guide
    return MODELS[name], AutoNormal(MODELS[name], init_loc_fn=init_to_feasible, init_scale=0.1)
