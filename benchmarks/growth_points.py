"""One point of a growth curve, measured inside a worker: bayeszoo, or NumPyro beside it, on a model of the asked size.

Latents: D normal means theta_d ~ N(0, 1), y_d ~ N(theta_d, 1), so that the guide is what costs; D probabilities with flips for the
family `beta`, D observations' own latents below a shared mean for the family `structured`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayeszoo as bz

from .cases import CASES, line
from .contestants import Contestant
from .contestants.ours import Ours
from .worker import peak_memory, settle


def means(y: Tensor | None = None, *, num_data: int | None = None) -> Any:
    """theta ~ N(0, I), y_d ~ N(theta_d, 1)."""
    assert y is not None
    theta = pyro.sample("theta", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        return pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def chances(y: Tensor | None = None, *, num_data: int | None = None) -> Any:
    """pi_d ~ Beta(2, 2), y_d ~ Bernoulli(pi_d)."""
    assert y is not None
    pi = pyro.sample("pi", dist.Beta(torch.full((len(y),), 2.0), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        return pyro.sample("y", dist.Bernoulli(pi), obs=y)


def groups(y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Any:
    """mu ~ N(0, 1), theta_n ~ N(mu, 1), y_n ~ N(theta_n, 1)."""
    assert y is not None
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", num_data or len(y), subsample=index):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        return pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


class Sized(Ours):
    """`Ours` on a model of D latents with one of bayeszoo's own families."""

    def __init__(self, family: str, size: int, *, compile: bool) -> None:
        # A small learning rate: a full-rank guide of 1000 latents moves a long way in one step.
        super().__init__(dataclasses.replace(CASES["coin"], learning_rate=1e-4), "cpu", compile=compile)
        self.model = {"beta": chances, "structured": groups}.get(family, means)
        rng = np.random.default_rng(0)
        y = rng.random(size) < 0.5 if family == "beta" else rng.standard_normal(size)
        self.data = bz.data.Data(inputs={}, observed=torch.from_numpy(y.astype(np.float32)))
        self.guide = family
        # A point has no density, so its objective is not the bound's.
        self.estimator = "auto" if family in ("map", "mle") else "monte_carlo"


def contestant(axis: str, what: str, value: int, engine: str) -> Contestant:
    """What is measured at one point: `what` is a case's name, or a guide family on the axis of latents."""
    if engine == "numpyro":
        from .contestants.numpyro_svi import NumPyroSVI

        return NumPyroSVI(CASES[what], "cpu", num_particles=value)
    compile = engine == "compiled"
    if axis == "latents":
        return Sized(what, value, compile=compile)
    if axis == "particles":
        return Ours(CASES[what], "cpu", compile=compile, num_particles=value)
    batch_size = 256 if what == "minibatch of 256" else None
    case = dataclasses.replace(CASES["linear"], arrays=line(value, 10), batch_size=batch_size)
    return Ours(case, "cpu", compile=compile)


def measure(axis: str, what: str, value: int, engine: str, seconds: float, repetitions: int) -> dict[str, Any]:
    """Seconds a step: the median of the repetitions."""
    subject = contestant(axis, what, value, engine)
    first = subject.train(20, 0)
    steps = settle(subject, seconds, at_least=20)
    times = [run.loop / run.steps for run in (subject.train(steps, k) for k in range(repetitions))]
    return {"step": float(np.median(times)), "compiling": first.compiling, "memory": peak_memory()}
