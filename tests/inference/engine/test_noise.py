"""The noise of compiled steps has the right distribution, and none of it is used twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

import bayeszoo as bz

# The noise. A guide that equals the prior leaves only a factor of the draws in the loss, so losses show the noise itself.


class Known(PyroModule):
    """Latents a, b ~ N(0, 1) without data to speak of; the log density adds `score(a, b)`."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "score", score)

    def forward(self, y: Tensor | None = None) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("score", self.score(a, b))
        with pyro.plate("data", 1, dim=-1):
            pyro.sample("y", dist.Normal(torch.zeros(()), 1.0), obs=y)


class Prior(PyroModule):
    """The prior, with a parameter that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = torch.nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor | None = None) -> None:
        for name in ("a", "b"):
            pyro.sample(name, dist.Normal(0.0 * self.idle, 1.0))


def noise(score: Callable[[Tensor, Tensor], Tensor], **options: Any) -> Tensor:
    """What `score` was at each of 4,000 steps."""
    data = bz.data.Data(inputs={}, observed=torch.zeros(1, dtype=torch.float64))
    fit = bz.fit(Known(score), data, Prior(), steps=4001, progress=False, compile=True, loss="monte_carlo", **options)
    assert fit.engine == "compiled"
    constant = 0.5 * np.log(2 * np.pi)
    return constant - torch.tensor(fit.losses[1:], dtype=torch.float64)


#: Four standard errors of a mean of 4,000 numbers of variance one.
ERROR = 4 / np.sqrt(4000)


def test_noise_is_normal_and_new_at_every_step() -> None:
    a = noise(lambda a, b: a)
    sorted_, count = a.sort().values, len(a)
    expected = torch.special.ndtr(sorted_)
    ranks = torch.arange(1, count + 1) / count
    distance = float(torch.maximum((ranks - expected).abs(), (ranks - 1 / count - expected).abs()).max())
    assert distance < 1.95 / np.sqrt(count)  # Kolmogorov-Smirnov, 0.1 %
    assert len(a.unique()) == count  # no table of noise comes back
    for lag in (1, 2, 10, 255, 256, 1024):
        assert abs(float((a[lag:] * a[:-lag]).mean())) < 4 / np.sqrt(count - lag)


def test_noise_differs_between_sites() -> None:
    assert abs(float(noise(lambda a, b: a * b).mean())) < ERROR


def test_noise_differs_between_particles() -> None:
    # The mean over 4 particles has variance 1/4; variances of 4,000 normal numbers are known to 2.2 %.
    assert float(noise(lambda a, b: a, num_particles=4).var()) == pytest.approx(0.25, rel=4 * 0.0224)


def test_noise_differs_between_seeds() -> None:
    assert abs(float((noise(lambda a, b: a, seed=1) * noise(lambda a, b: a, seed=2)).mean())) < ERROR


def test_noise_differs_between_restarts() -> None:
    data = bz.data.Data(inputs={}, observed=torch.zeros(1, dtype=torch.float64))
    fit = bz.fit(Known(lambda a, b: a), data, Prior(), steps=4001, restarts=2, progress=False, compile=True, loss="monte_carlo")
    first, second = (torch.tensor(run.history.losses[1:], dtype=torch.float64) for run in fit.runs)
    both = torch.stack([first, second])
    assert abs(float(torch.corrcoef(both)[0, 1])) < ERROR
