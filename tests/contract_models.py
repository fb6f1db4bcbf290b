"""Five small models outside the zoo, each with one kind of latent that a room to come needs."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import bayeszoo as bz


class SmallNetwork(PyroModule):
    """An MLP 2-4-1 with normal weights, sampled as tensors; all latents are global."""

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        w1 = pyro.sample("w1", dist.Normal(x.new_zeros(2, 4), 1.0).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        mean = (torch.tanh(x @ w1) * w2).sum(-1)
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            return pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


class PrincipalComponents(PyroModule):
    """Probabilistic PCA with a fixed loading: z_n ~ N(0, I), x_n ~ N(W z_n, 0.5^2 I); one latent an observation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loading", torch.tensor([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.5], [0.0, 2.0]]))

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        size = num_data if x is None else num_data or len(x)
        with pyro.plate("data", size, subsample=index, dim=-1):
            z = pyro.sample("z", dist.Normal(self.loading.new_zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.loading.T, 0.5).to_event(1), obs=x)

    def log_evidence(self, data: bz.data.Data) -> Tensor:
        """Closed form: x_n ~ N(0, W W^T + 0.25 I)."""
        loading = self.loading.double()
        cov = loading @ loading.T + 0.25 * torch.eye(4, dtype=torch.float64)
        return dist.MultivariateNormal(torch.zeros(4, dtype=torch.float64), cov).log_prob(data.observed.double()).sum()


class Encoder(PyroModule):
    """q(z | x) = N(A x + b, diag): holds the exact posterior's mean."""

    def __init__(self, model: object, data: object) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
            pyro.sample("z", dist.Normal(self.net(x), self.log_scale.exp()).to_event(1))


class Centres(PyroModule):
    """m_n ~ N(mu, 1), x_n ~ N(m_n, 1), mu ~ N(0, 3): local and global normal latents, marginally x_n ~ N(mu, 2)."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        size = num_data if x is None else num_data or len(x)
        with pyro.plate("data", size, subsample=index, dim=-1):
            m = pyro.sample("m", dist.Normal(mu, 1.0))
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def log_evidence(self, data: bz.data.Data) -> Tensor:
        """Closed form: x ~ N(0, 2 I + 9 1 1^T)."""
        n = len(data)
        cov = 2 * torch.eye(n, dtype=torch.float64) + 9 * torch.ones(n, n, dtype=torch.float64)
        return dist.MultivariateNormal(torch.zeros(n, dtype=torch.float64), cov).log_prob(data.observed.double())


class Mixture(PyroModule):
    """Two known components, unknown weight: w ~ Beta(1, 1), z_n ~ Bern(w), x_n ~ N(4 z_n - 2, 1)."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        w = pyro.sample("w", dist.Beta(1.0, 1.0))
        size = num_data if x is None else num_data or len(x)
        with pyro.plate("data", size, subsample=index, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(w))
            return pyro.sample("x", dist.Normal(4 * z - 2, 1.0), obs=x)

    def log_evidence(self, data: bz.data.Data) -> Tensor:
        """One-dimensional quadrature over w."""
        w = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
        x = data.observed.double()[:, None]
        both = torch.log(w * dist.Normal(2.0, 1.0).log_prob(x).exp() + (1 - w) * dist.Normal(-2.0, 1.0).log_prob(x).exp())
        return torch.logsumexp(both.sum(0), 0) - torch.log(torch.tensor(20_000.0, dtype=torch.float64))


class Switch(PyroModule):
    """One coin for the whole data set decides the scale: k ~ Bern(0.5), m ~ N(0, 3), x_n ~ N(m, 1 or 1.3)."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        size = num_data if x is None else num_data or len(x)
        with pyro.plate("data", size, subsample=index, dim=-1):
            return pyro.sample("x", dist.Normal(m, torch.tensor([1.0, 1.3])[k]), obs=x)

    def parts(self, data: bz.data.Data) -> Tensor:
        """(2,) log p(x | k) for each scale, closed form."""
        n, x = len(data), data.observed.double()
        out = []
        for scale in (1.0, 1.3):
            cov = scale**2 * torch.eye(n, dtype=torch.float64) + 9 * torch.ones(n, n, dtype=torch.float64)
            out.append(dist.MultivariateNormal(torch.zeros(n, dtype=torch.float64), cov).log_prob(x))
        return torch.stack(out)

    def log_evidence(self, data: bz.data.Data) -> Tensor:
        """The two scales, averaged."""
        return torch.logsumexp(self.parts(data), 0) - torch.log(torch.tensor(2.0, dtype=torch.float64))
