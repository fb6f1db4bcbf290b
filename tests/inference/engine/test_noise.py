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
from torch.utils.checkpoint import checkpoint

import bayeszoo as bz
from bayeszoo.inference.engine.noise import FromRow, Row

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


#: Ways to fill a tensor, and the mean, the variance and the fourth central moment of what is in it afterwards.
FILLS: dict[str, tuple[Callable[[Tensor], Any], float, float, float]] = {
    "normal_": (lambda t: t.normal_(2.0, 3.0), 2.0, 9.0, 3 * 81.0),
    "uniform_": (lambda t: t.uniform_(1.0, 3.0), 2.0, 1 / 3, 1 / 5),
    "exponential_": (lambda t: t.exponential_(2.0), 0.5, 0.25, 9 / 16),
    "random_": (lambda t: t.random_(0, 5), 2.0, 2.0, 6.8),
    "random_, from zero": (lambda t: t.random_(5), 2.0, 2.0, 6.8),
}


@pytest.mark.parametrize("how", FILLS)
def test_a_tensor_that_is_filled_in_place_holds_the_draws(how: str) -> None:
    """As a statement of its own, not as a value that is handed on."""
    fill, mean, variance, fourth = FILLS[how]
    numbers = torch.full((10_000,), -7.0, dtype=torch.float64)
    torch.manual_seed(0)
    row = Row(torch.randn(10_000, dtype=torch.float64), torch.rand(10_000, dtype=torch.float64))
    with FromRow(row):
        fill(numbers)
    assert float(numbers.mean()) == pytest.approx(mean, abs=4 * (variance / 1e4) ** 0.5)
    assert float(numbers.var()) == pytest.approx(variance, abs=4 * ((fourth - variance**2) / 1e4) ** 0.5)


@pytest.mark.parametrize("how", ["normal_", "random_"])
def test_a_tensor_that_is_filled_in_place_is_filled_at_every_step(how: str) -> None:
    fill, mean, variance, _ = FILLS[how]

    def score(a: Tensor, b: Tensor) -> Tensor:
        number = a.new_full((), -7.0)
        fill(number)
        return number

    found = noise(score)
    assert float(found.mean()) == pytest.approx(mean, abs=ERROR * variance**0.5)
    assert abs(float(((found[1:] - mean) * (found[:-1] - mean)).mean())) < ERROR * variance


@pytest.mark.parametrize("compile", [False, True])
def test_draws_that_would_be_made_again_for_gradients_are_refused(compile: bool) -> None:
    """Else gradients are those of other draws."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)).double()

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, y: Tensor | None = None) -> None:
            a = pyro.sample("a", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
            out = checkpoint(self.net, a, use_reentrant=False)
            with pyro.plate("data", 1, dim=-1):
                pyro.sample("y", dist.Normal(out, 1.0), obs=y)

    data = bz.data.Data(inputs={}, observed=torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"torch.utils.checkpoint runs a part of the model again"):
        bz.fit(Model(), data, "mean_field", steps=5, progress=False, compile=compile)


_chance = torch.full((3, 4), 0.5, dtype=torch.float64)
#: Ways to write a call that torch allows.
CALLS: dict[str, Callable[[], Any]] = {
    "uniform_, to": lambda: torch.empty(3).uniform_(0, to=2.0),
    "uniform_, from and to": lambda: torch.empty(3).uniform_(**{"from": 0.0, "to": 2.0}),
    "uniform_, upside down": lambda: torch.empty(3).uniform_(2.0, 0.0),
    "normal_, negative": lambda: torch.empty(3).normal_(0.0, -1.0),
    "exponential_": lambda: torch.empty(3).exponential_(lambd=2.0),
    "exponential_, negative": lambda: torch.empty(3).exponential_(-2.0),
    "rand_like": lambda: torch.rand_like(input=_chance),
    "randn_like": lambda: torch.randn_like(input=_chance),
    "randn, out": lambda: torch.randn(2, out=torch.empty(2)),
    "rand, whole": lambda: torch.rand(3, dtype=torch.int64),
    "bernoulli": lambda: torch.bernoulli(input=_chance),
    "bernoulli, p": lambda: torch.bernoulli(_chance, p=0.5),
    "bernoulli, p of a method": lambda: _chance.bernoulli(p=0.5),
    "bernoulli, out": lambda: torch.bernoulli(_chance, out=torch.empty_like(_chance)),
    "multinomial": lambda: torch.multinomial(input=_chance, num_samples=1),
    "multinomial, without replacement": lambda: torch.multinomial(_chance, 2),
    "multinomial, with replacement": lambda: torch.multinomial(_chance, 2, True),
    "dropout, train": lambda: torch.dropout(_chance, 0.5, train=True),
    "dropout, not": lambda: torch.dropout(_chance, 0.5, train=False),
    "dropout, all": lambda: torch.nn.functional.dropout(_chance, 1.0),
    "dropout, too much": lambda: torch.nn.functional.dropout(_chance, 2.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_samplers_take_what_torch_takes(call: str) -> None:
    """And say no where torch does."""

    def outcome() -> Any:
        try:
            drawn = CALLS[call]()
        except Exception as error:
            return type(error)
        return drawn.shape, drawn.dtype

    wanted = outcome()
    with FromRow(Row(torch.randn(100, dtype=torch.float64), torch.rand(100, dtype=torch.float64))):
        assert outcome() == wanted
