"""Point estimates: the posterior mode and the maximum of the likelihood, in the model's own parametrisation.

Their loss is a surrogate, not a bound: a point has no log q, and so no k-hat and no gap to the evidence.
Lecture: "Maximum Likelihood Estimation (MLE) and Maximum a Posteriori (MAP)".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values, refuse_poles


class Map(ContinuousGuide):
    """The mode of p(z | x): `argmax log p(x, z)` over z itself, without a Jacobian, so coin and lecture agree exactly."""

    family = "map"
    objective = "surrogate"
    surrogate = "joint"
    #: A climb of the density finds it; nothing is drawn.
    is_point = True
    loss_name = "-log p(x, z), negative log joint density at a point"

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        if self.surrogate == "joint":
            refuse_poles(self)
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.register_buffer("frame", torch.ones_like(center))
        self.offset = nn.Parameter(torch.zeros_like(center))

    def initialize(self, start: Start) -> None:
        """At the optimum, with steps in units of its curvature."""
        self.center.copy_(start.mean)
        self.frame.copy_(torch.ones_like(self.frame) if start.raw else start.conditional_sd.clamp(max=10.0))

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Sets every continuous latent to its point."""
        plates = Plates(self.program, index)
        values = {}
        for name, part in self.space.split(self.center + self.frame * self.offset).items():
            site = self.space.sites[name]
            value = self.space.transforms[name](plates.rows(site, part))
            with plates.around(site):
                values[name] = pyro.sample(name, dist.Delta(value, event_dim=site.event_dim))
        return values


class Mle(Map):
    """The maximum of p(x | z) over z; the prior plays no part."""

    family = "mle"
    surrogate = "likelihood"
    loss_name = "-log p(x | z), negative log likelihood at a point"

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        if self.program.local:
            raise ValueError(
                f"guide 'mle' would fit the latents of single observations ({', '.join(self.program.local)}) without their prior; "
                "use 'map' or 'mean_field'"
            )
