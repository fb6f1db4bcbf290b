"""Ensemble: several modes, found from different starts, each with the same weight.

    q(w) = (1 / M) sum_m delta(w - w_m),  w_m = argmax log p(D, w) from start m

No density, so no bound: a surrogate, whose loss is the members' mean of -log p(y, w_m). The members differ by where they
begin; all of them train in one vectorised loop on the same batches, each as if it were alone.
Lakshminarayanan, Pritzel, Blundell 2017 (deep ensembles); with `prior=False` the members are maximum-likelihood fits, as there.
Lecture: "Bayesian Neural Networks: Conclusion" ("training a whole ensemble of neural networks").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values, refuse_poles


class Ensemble(ContinuousGuide):
    """M points; a draw is one of them.

    Args:
        members: M, at least two.
        prior: whether members maximise the posterior density; False leaves the prior out.
    """

    family = "ensemble"
    objective = "surrogate"
    surrogate = "joint"
    scale_free = False

    def __init__(self, model: Callable[..., Any], data: BoundData, *, members: int = 5, prior: bool = True) -> None:
        super().__init__(model, data)
        if isinstance(members, bool) or not isinstance(members, int) or members < 2:
            raise ValueError(f"members must be a whole number of at least 2, got {members!r}; for one point use 'map'")
        if self.program.local:
            raise ValueError(
                f"guide 'ensemble' would give the latents of single observations ({', '.join(self.program.local)}) one point a "
                "member; use 'map' or 'mean_field'"
            )
        trained = [n for n, p in model.named_parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
        if trained:
            raise ValueError(
                f"the members of an ensemble differ in the latents alone, and the model trains '{trained[0]}' as a parameter that "
                "they would share: make its layer Bayesian, or freeze it"
            )
        self.members = members
        if not prior:
            self.surrogate = "likelihood"
        else:
            refuse_poles(self)
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.theta = nn.Parameter(center.repeat(members, 1))
        self._member: Tensor | None = None

    @property
    def loss_name(self) -> str:
        """What the loss is."""
        return f"mean of -log p({'x | z' if self.surrogate == 'likelihood' else 'x, z'}) over the members"

    def initialize(self, start: Start) -> None:
        """One start for all, dispersed; `initialize_members` has one for each."""
        self.initialize_members([start] * self.members)
        with torch.no_grad():
            self.theta[1:].add_(torch.randn_like(self.theta[1:]) * start.conditional_sd)

    def initialize_members(self, starts: Sequence[Start]) -> None:
        """A start for each member."""
        with torch.no_grad():
            self.center.copy_(starts[0].mean)
            self.theta.copy_(torch.stack([start.mean for start in starts]))

    def disperse(self, generator_scale: float = 2.0) -> None:
        """The members are dispersed already."""

    @contextlib.contextmanager
    def as_member(self, number: Tensor) -> Iterator[None]:
        """The guide as one of its members, by a scalar tensor that may be mapped."""
        self._member = number
        try:
            yield
        finally:
            self._member = None

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Sets every latent to one member's values."""
        number = self._member
        if number is None:
            number = (torch.rand((), dtype=self.theta.dtype, device=self.theta.device) * self.members).long()
        plates = Plates(self.program, index)
        values = {}
        for name, value in self.space.constrain(self.theta[number]).items():
            site = self.space.sites[name]
            with plates.around(site):
                values[name] = pyro.sample(name, dist.Delta(value, event_dim=site.event_dim))
        return values
