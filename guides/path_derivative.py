"""A distribution whose log density takes no gradient through its own parameters.

At the optimum of a family that contains the posterior, log p - log q is the same for every draw; with this estimator
(Roeder, Wu, Duvenaud 2017, "sticking the landing") its gradient is then zero for every draw as well, not only on average.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class PathDerivative(TorchDistribution):
    """Draws from `live` (reparametrised), scored by `frozen`, the same distribution with detached parameters."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, live: Any, frozen: Any) -> None:
        self.live = live
        self.frozen = frozen
        super().__init__(live.batch_shape, live.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """As the wrapped distribution's."""
        return bool(self.live.has_rsample)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """As the wrapped distribution's."""
        support: constraints.Constraint = self.live.support
        return support

    def expand(self, batch_shape: Any, _instance: Any = None) -> PathDerivative:
        """Both distributions expanded."""
        return PathDerivative(self.live.expand(batch_shape), self.frozen.expand(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """A draw whose gradient flows to the parameters of `live`."""
        draw: Tensor = self.live.rsample(sample_shape)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with the parameters held fixed."""
        along = getattr(self.live, "path_log_prob", None)
        found: Tensor | None = None if along is None else along(value)
        log_prob: Tensor = self.frozen.log_prob(value) if found is None else found
        return log_prob
