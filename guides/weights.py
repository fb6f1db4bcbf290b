"""What the families made for networks share: one flat vector of trained weights, and which latents are weights of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from ..inference.target.program import BoundData, Site, base_of
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values


class WeightGuide(ContinuousGuide):
    """Base of the families over a network's weights: `theta` (D,) holds every latent's point or mean.

    Latents with at least two event dimensions are weights of layers; the others (biases, a noise scale) are left to
    `other_site`.
    """

    factorized = True
    path_derivative = None
    scale_free = False

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        if self.program.local:
            raise ValueError(
                f"guide '{self.family}' is for the weights of a network, and the model has latents of single observations "
                f"({', '.join(self.program.local)}); use 'mean_field'"
            )
        self.weights = [name for name, site in self.space.sites.items() if site.event_dim >= 2]
        if not self.weights:
            raise ValueError(
                f"guide '{self.family}' is for networks, and the model has no latent weight matrix; its latents are "
                f"{', '.join(self.space.sites)}; use 'mean_field'"
            )
        self.groups = {name: _groups(model, name) for name in self.weights}
        self.theta = nn.Parameter(prior_scale_values(self.program, self.space))

    @property
    def center(self) -> Tensor:
        """Where a climb to the mode begins (D,)."""
        return self.theta

    def initialize(self, start: Start) -> None:
        """The weights that the model says, or the mode."""
        with torch.no_grad():
            self.theta.copy_(start.mean)

    def points(self) -> dict[str, Tensor]:
        """theta by site, in unconstrained coordinates."""
        return self.space.split(self.theta)

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """q of one site of weights, over the site's whole shape as batch dimensions."""
        raise NotImplementedError

    def other_site(self, name: str, site: Site, theta: Tensor) -> Any:
        """q of a latent that is no weight matrix: a point."""
        return dist.Delta(biject_to(site.support)(theta), event_dim=site.event_dim)

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every latent."""
        plates = Plates(self.program, index)
        values = {}
        for name, theta in self.points().items():
            site = self.space.sites[name]
            if name in self.weights:
                fn: Any = dist.Independent(self.weight_distribution(name, theta), site.event_dim)
            else:
                fn = self.other_site(name, site, theta)
            with plates.around(site):
                values[name] = pyro.sample(name, fn)
        return values

    def prior_of(self, name: str) -> Any:
        """The prior of one latent, without the wrapper that counts its event dimensions."""
        return base_of(self.space.sites[name].distribution)

    def require_prior(self, kind: str, why: str) -> None:
        """Raises ValueError unless the prior of every layer's weights is of one kind, named as `BayesianNN` names it."""
        for name in self.weights:
            found = type(self.prior_of(name)).__name__
            if found != _PRIORS[kind]:
                raise ValueError(
                    f"guide '{self.family}' {why}, and the prior of '{name}' is {found}; make the model with prior=\"{kind}\", or use "
                    "guide 'mean_field', which takes any prior"
                )


#: The distributions that `BayesianNN`'s words for priors stand for.
_PRIORS = {"log_uniform": "LogUniformDistribution", "normal": "Normal"}


def _groups(model: Any, name: str) -> int:
    """In how many groups with inputs of their own a convolution is cut that a site is the weights of; 1 of other layers."""
    net = model.net if hasattr(model, "bayesian_layers") else None
    layer = net.get_submodule(name.removesuffix("weight").removesuffix(".")) if isinstance(net, nn.Module) else None
    return getattr(layer, "groups", 1)
