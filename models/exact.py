"""Exact posteriors and predictives: what the models give where theory does the integral.

Every exact posterior draws (`sample(n)`), scores (`log_prob(values)`, in nats), knows its `mean` and `sd`,
and can stand as a guide (`as_guide()`), whose loss is then -log evidence at every draw. All of it is float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

Guide = Callable[..., None]


@dataclass(frozen=True)
class ConjugatePosterior:
    """Independent posteriors in closed form, one Pyro distribution a latent site: `posterior["pi"]`."""

    distributions: dict[str, TorchDistribution]

    def __getitem__(self, site: str) -> TorchDistribution:
        return self.distributions[site]

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior means by site, each `(*event,)`."""
        return {site: d.mean for site, d in self.distributions.items()}

    @property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviations by site, each `(*event,)`."""
        return {site: d.variance.sqrt() for site, d in self.distributions.items()}

    def sample(self, n: int) -> dict[str, Tensor]:
        """Return n draws by site, each `(n, *event)`, from torch's global generator."""
        return {site: d.sample(torch.Size([n])) for site, d in self.distributions.items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the log posterior density `(n,)`, in nats, of values by site, each `(n, *event)`."""
        terms = [d.log_prob(values[site].to(d.mean)) for site, d in self.distributions.items()]
        return torch.stack(terms).sum(0)

    def as_guide(self) -> Guide:
        """Return a guide that draws every site from the posterior, whatever it is called with."""

        def guide(*args: Any, **kwargs: Any) -> None:
            for site, d in self.distributions.items():
                pyro.sample(site, d)

        return guide


class SampledDensity(TorchDistribution):
    """A univariate distribution that is known by its log density and a way to draw from it.

    Args:
        log_density: values of any shape that broadcasts with `batch_shape` to log densities, in nats.
        draw: a shape to draws of that shape.
        batch_shape: shape of one draw.
        support: where the values live.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    has_rsample = False

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        draw: Callable[[torch.Size], Tensor],
        batch_shape: torch.Size,
        support: constraints.Constraint,
    ) -> None:
        self._log_density = log_density
        self._draw = draw
        self._support = support
        super().__init__(batch_shape, torch.Size(), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where the values live."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SampledDensity":
        """Return the distribution with a larger batch shape."""
        return SampledDensity(self._log_density, self._draw, torch.Size(batch_shape), self._support)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws `(*sample_shape, *batch_shape)`."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return self._log_density(value).expand(shape)


class GridMixture(TorchDistribution):
    """A mixture over the nodes of a quadrature grid: a predictive with the unknown parameters integrated out.

    Args:
        family: makes the components' distribution from the parameters.
        weights: `(K,)` posterior masses of the nodes.
        parameters: each broadcasts to `(*batch_shape, K)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    has_rsample = False

    def __init__(self, family: Callable[..., TorchDistribution], weights: Tensor, *parameters: Tensor) -> None:
        self._family = family
        self.weights = weights / weights.sum()
        self._parameters = torch.broadcast_tensors(self.weights, *parameters)[1:]
        super().__init__(self._parameters[0].shape[:-1], torch.Size(), validate_args=False)

    @property
    def support(self) -> constraints.Constraint | None:
        """Where the values live."""
        return self._family(*(p[..., 0] for p in self._parameters)).support

    @property
    def mean(self) -> Tensor:
        """Means `(*batch_shape,)`."""
        return (self.weights * self._family(*self._parameters).mean).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variances `(*batch_shape,)`: the mean of the variances plus the variance of the means."""
        parts = self._family(*self._parameters)
        spread = (parts.mean - self.mean.unsqueeze(-1)).square()
        return (self.weights * (parts.variance + spread)).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GridMixture":
        """Return the distribution with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.weights.shape
        return GridMixture(self._family, self.weights, *(p.expand(shape) for p in self._parameters))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws `(*sample_shape, *batch_shape)`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            node = torch.multinomial(self.weights, max(shape.numel(), 1), replacement=True).reshape(*shape, 1)
            picked = (p.expand(*shape, -1).gather(-1, node).squeeze(-1) for p in self._parameters)
            return self._family(*picked).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats."""
        terms = self._family(*self._parameters).log_prob(value.to(self.weights).unsqueeze(-1))
        return torch.logsumexp(terms + self.weights.log(), -1)
