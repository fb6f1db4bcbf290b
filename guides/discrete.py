"""Discrete latents in the guide: q(z) a table of probabilities, its expectation summed exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..inference.target.program import BoundData, Site, describe
from .continuous import Plates


class DiscreteGuide(PyroModule):
    """A continuous family with one table of logits for each discrete site, for `discrete="guide"`.

    Attributes:
        continuous: the guide of the continuous latents, or None where the model has none.
    """

    objective = "elbo"

    def __init__(self, model: Callable[..., Any], data: BoundData, build: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.program = describe(model, data)
        self.continuous = build(model, data, **options) if self.program.continuous else None
        self.family = getattr(self.continuous, "family", "discrete")
        if getattr(self.continuous, "objective", "elbo") == "surrogate":
            raise ValueError(
                f"guide '{self.family}' is a point without a density and cannot enumerate; use discrete='marginalize'"
            )
        self.sites = dict(self.program.discrete)
        self.logits = nn.ParameterList()
        for site in self.sites.values():
            if site.event_dim and site.distribution.event_shape.numel() > 1:
                raise ValueError(
                    f"site '{site.name}' has vector-valued states; write it with Categorical to enumerate it in the guide"
                )
            states = site.distribution.enumerate_support(expand=False).shape[0]
            self.logits.append(nn.Parameter(0.01 * torch.randn(*site.batch_shape, states)))

    def set_tables(self, probs: Mapping[str, Tensor]) -> None:
        """Begins the tables at given probabilities, each (*plates, K)."""
        for name, logits in zip(self.sites, self.logits, strict=True):
            logits.copy_(probs[name].clamp_min(1e-6).log())

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
        """Draws the continuous latents and each discrete one."""
        plates = Plates(self.program, index)
        if self.continuous is not None:
            self.continuous(*args, index=index, **kwargs)
        for (name, site), logits in zip(self.sites.items(), self.logits, strict=True):
            rows = logits
            if index is not None and site.local:
                dim = next(p.dim for p in site.plates if p.name == "data")
                rows = logits.index_select(len(site.batch_shape) + dim, index)
            with plates.around(site):
                pyro.sample(name, _table(site, rows))


def _table(site: Site, logits: Tensor) -> Any:
    """A distribution over the site's own states with the given logits."""
    if isinstance(site.distribution, dist.Bernoulli) or "Bernoulli" in type(site.distribution).__name__:
        return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])
    return dist.Categorical(logits=logits)
