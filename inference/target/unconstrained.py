"""Continuous latents as one flat vector of real numbers, and back.

Density guides, the quasi-Newton start and the posterior mode all work in these coordinates: each site's support is mapped
to the reals by torch's `biject_to` (logarithm for positive values, logit for the unit interval, stick breaking for the
simplex), flattened, and joined in the model's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from .program import Site, Values, base_of


class Unconstrained:
    """The map between a flat vector u (D,) and the values of some latent sites."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        self.transforms = {name: _to_reals(site) for name, site in sites.items()}
        self.shapes = {name: torch.Size(self.transforms[name].inverse_shape(site.shape)) for name, site in sites.items()}
        self.slices: dict[str, slice] = {}
        stop = 0
        for name, shape in self.shapes.items():
            start, stop = stop, stop + shape.numel()
            self.slices[name] = slice(start, stop)
        self.size = stop

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """The part of u (D,) that belongs to each site, in the site's own unconstrained shape."""
        return {name: u[self.slices[name]].reshape(shape) for name, shape in self.shapes.items()}

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The sites' values at u (D,)."""
        return {name: self.transforms[name](part) for name, part in self.split(u).items()}

    def constrain_with_log_det(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The sites' values at u (D,) and log |d value / d u| of each, over the site's plates."""
        out = {}
        for name, part in self.split(u).items():
            value = self.transforms[name](part)
            out[name] = (value, self.log_det(name, part, value))
        return out

    def log_det(self, name: str, part: Tensor, value: Tensor) -> Tensor:
        """log |d value / d part| of one site, summed over its event, so of the shape of its plates."""
        transform = self.transforms[name]
        log_det: Tensor = transform.log_abs_det_jacobian(part, value)
        extra = self.sites[name].event_dim - transform.codomain.event_dim
        return log_det.flatten(log_det.dim() - extra).sum(-1) if extra > 0 else log_det

    def join(self, values: Values) -> Tensor:
        """The flat vector u (D,) of the sites' values."""
        if not self.sites:
            return torch.zeros(0)
        return torch.cat([self.transforms[name].inv(values[name]).reshape(-1) for name in self.sites])


def _to_reals(site: Site) -> Any:
    """The transform from the reals to a site's support.

    Raises:
        ValueError: there is none that can be inverted.
    """
    try:
        return biject_to(site.support)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{site.name}' ({type(base_of(site.distribution)).__name__}) lies in a set that no smooth one-to-one map leads to from the reals, so the "
            "built-in guides cannot hold it; write it as a function of latents in another set, such as LKJCholesky and HalfNormal for a "
            "covariance, or give a guide of your own"
        ) from error
