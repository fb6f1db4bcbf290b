from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from bayeszoo.models.concentrated_beta import ConcentratedBeta


def test_equals_the_textbook_density_where_that_has_digits() -> None:
    x = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for a, b in [(0.5, 0.5), (2.0, 30.0), (99.0, 101.0), (101.0, 150.0), (900.0, 2000.0)]:
        a_, b_ = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        # log-gamma of 3,000 is 2e4: rounding leaves 1e-11.
        torch.testing.assert_close(ConcentratedBeta(a_, b_).log_prob(x), dist.Beta(a_, b_).log_prob(x), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("kappa", [1e6, 1e9, 1e12])
def test_tends_to_the_normal(kappa: float) -> None:
    m = torch.tensor(0.3, dtype=torch.float64)
    sd = math.sqrt(0.21 / kappa)
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    log_p = ConcentratedBeta(m * kappa, (1 - m) * kappa).log_prob(m + sd * z)
    # The skewness is 2 (1 - 2 m) / sqrt(kappa m (1 - m)): the normal's density is off by at most three times that at 3 sds.
    expected = dist.Normal(0.0, 1.0).log_prob(z) - math.log(sd)
    torch.testing.assert_close(log_p, expected, rtol=0.0, atol=10 / math.sqrt(kappa) + 1e-9 * kappa**0.5 / 1e3)


def test_gradient_is_that_of_differences() -> None:
    u = torch.tensor([0.3, 2e7], dtype=torch.float64)

    def f(u: torch.Tensor) -> torch.Tensor:
        return ConcentratedBeta(u[0] * u[1], (1 - u[0]) * u[1]).log_prob(torch.tensor(0.3001, dtype=torch.float64))

    assert torch.autograd.gradcheck(
        lambda v: f(v * torch.tensor([1.0, 2e7], dtype=torch.float64)),
        (u / torch.tensor([1.0, 2e7])).requires_grad_(),
        eps=1e-7,
    )
