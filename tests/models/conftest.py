"""Shared by the models' tests: the model's own density, and what Monte Carlo error allows."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from bayeszoo.data import Data


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same seed, with validation on and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield


def _log_joint(model: Any, data: Data, values: Mapping[str, Tensor]) -> Tensor:
    """Return the model's own log p(x, latents), as Pyro scores it, for one set of latents."""
    conditioned = pyro.poutine.condition(model, data=dict(values))
    return pyro.poutine.trace(conditioned).get_trace(**data.bind(model)).log_prob_sum()


@pytest.fixture
def log_joint() -> Callable[[Any, Data, Mapping[str, Tensor]], Tensor]:
    return _log_joint


@pytest.fixture
def identity_error() -> Callable[[Any, Data, Mapping[str, Tensor]], float]:
    """Largest |log joint - log posterior - log evidence| in nats over draws: zero for an exact posterior."""

    def error(model: Any, data: Data, draws: Mapping[str, Tensor]) -> float:
        posterior = model.exact_posterior(data).log_prob(draws)
        joint = [_log_joint(model, data, {k: v[i] for k, v in draws.items()}) for i in range(len(posterior))]
        return float((torch.stack(joint) - posterior - model.log_evidence(data)).abs().max())

    return error


def _monte_carlo(draws: Tensor, mean: Tensor, sd: Tensor, errors: float = 4.0) -> None:
    """Assert that draws `(n, *event)` have the mean and variance, within `errors` standard errors of each."""
    n = len(draws)
    centred = draws.double() - mean
    assert bool((centred.mean(0).abs() <= errors * sd / math.sqrt(n)).all())
    variance, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    error = ((fourth - variance.square()) / n).sqrt()
    assert bool(((variance - sd.square()).abs() <= errors * error).all())


@pytest.fixture
def monte_carlo() -> Callable[..., None]:
    return _monte_carlo


@pytest.fixture
def shared_data() -> Path:
    """The folder of test data that is not part of the product."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("BAYESZOO_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the test data are absent: name their folder in BAYESZOO_DATA")
    return folder
