"""Continuous and discrete latents of the same observations in one guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayeszoo as bz

F64 = torch.float64


def clusters(y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
    """y = z + 8 c + noise: which cluster an observation is in is as good as known, and q(z) q(c) as good as the posterior."""
    with pyro.plate("data", num_data or 20, subsample=index, dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64)))
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        pyro.sample("y", dist.Normal(z + 8.0 * c, 0.5), obs=y)


@pytest.mark.parametrize(
    ("guide", "options", "slack"),
    [
        ("mean_field", {}, 1.0),
        ("mean_field", {"num_particles": 3}, 1.0),
        ("mean_field", {"batch_size": 5}, 1.0),
        ("full_rank", {}, 1.0),
        ({"weights": "amortized", "c": "table"}, {}, 10.0),
    ],
    ids=str,
)
def test_they_share_the_data_plate(guide: object, options: dict[str, int], slack: float) -> None:
    """The loss is no less than -log p(y), a sum over two clusters, and close to it: within 5 of the standard errors that the fit states,
    and what 800 steps leave to learn: a nat of a table, ten of a network, where q = p(z) p(c) costs about a thousand."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(2, (20,), generator=generator)
    y = 8.0 * c + 1.1 * torch.randn(20, dtype=F64, generator=generator)
    mixture = torch.stack(
        [dist.Normal(8.0 * k, 1.25**0.5).log_prob(y) + torch.log(torch.tensor(p)) for k, p in enumerate((0.3, 0.7))]
    )
    exact = -float(mixture.logsumexp(0).sum())
    fit = bz.fit(
        clusters, bz.data.Data({}, y), guide, discrete="guide", steps=800, optimizer=0.03, schedule="cosine", progress=False, compile=False,
        **options,
    )  # type: ignore[call-overload]  # fmt: skip
    assert exact - 5 * fit.loss_error < fit.loss < exact + 5 * fit.loss_error + slack
