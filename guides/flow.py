"""Normalizing flows over all continuous latents, on top of the start's Gaussian.

    v = f(e), e ~ N(0, I);  u = center + frame v

with f the identity at first, so the fit begins at the Laplace approximation and bends it. The flows are zuko's.
Kingma et al. 2016 (inverse autoregressive flow); Durkan et al. 2019 (neural spline flow).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import zuko
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..inference.target.program import BoundData
from ..inference.target.start import Start
from .continuous import ContinuousGuide, Plates, prior_scale_values, sample_joint


class _Flowed(TorchDistribution):
    """u = center + frame f(e) with one evaluation of the flow a draw."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Any, center: Tensor, frame: Tensor) -> None:
        self.flow, self.center, self.frame = flow, center, frame
        self._draw: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(), center.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Flowed:
        return self

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        v, log_prob = self.flow.rsample_and_log_prob(sample_shape)
        u = self.center + v @ self.frame.T
        self._draw = (u, log_prob - self._log_det())
        return u

    def _log_det(self) -> Tensor:
        return self.frame.diagonal().abs().log().sum()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._draw is not None and self._draw[0] is value:
            return self._draw[1]
        v = torch.linalg.solve_triangular(self.frame, (value - self.center).unsqueeze(-1), upper=False).squeeze(-1)
        log_prob: Tensor = self.flow.log_prob(v) - self._log_det()
        return log_prob


#: More latents than this and the masks of an autoregressive network alone take minutes to make.
LIMIT = 1_000


class InverseAutoregressive(ContinuousGuide):
    """Affine autoregressive transforms, inverted so that drawing takes one pass.

    Args:
        transforms: number of transforms.
        hidden: widths of each transform's network; by default two layers of max(32, 2 D), at most 256.
    """

    family = "iaf"
    path_derivative = None
    #: Networks take smaller steps than parameters in units of posterior sds.
    first_step = 0.004

    def __init__(
        self, model: Callable[..., Any], data: BoundData, *, transforms: int = 2, hidden: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(model, data)
        if transforms < 1:
            raise ValueError(f"transforms must be at least 1, got {transforms}")
        if self.space.size > LIMIT:
            raise ValueError(
                f"guide '{self.family}' needs networks from all {self.space.size} latents to all of them, and {LIMIT} are the most; use "
                "'low_rank' or 'mean_field'"
            )
        center = prior_scale_values(self.program, self.space)
        self.register_buffer("center", center)
        self.register_buffer("frame", 0.1 * torch.eye(len(center), dtype=center.dtype, device=center.device))
        width = min(256, max(32, 2 * len(center)))
        self.flow = identity_flow(self.make_flow(len(center), transforms, hidden or (width, width))).to(center.dtype)

    def make_flow(self, size: int, transforms: int, hidden: tuple[int, ...]) -> nn.Module:
        """The flow before training, a lazy distribution."""
        flow = zuko.flows.MAF(size, 0, transforms=transforms, hidden_features=hidden)
        return zuko.flows.Flow(flow.transform.inv, flow.base)

    def initialize(self, start: Start) -> None:
        """The start's Gaussian is the flow's frame."""
        self.center.copy_(start.mean)
        self.frame.copy_(torch.diag(start.conditional_sd) if start.scale_tril is None else start.scale_tril)

    def disperse(self, generator_scale: float = 2.0) -> None:
        """Moves the frame by about two posterior sds."""
        self.center.add_(self.frame @ torch.randn_like(self.center) * generator_scale)

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every continuous latent."""
        self.refuse_minibatch(index)
        return sample_joint(self, _Flowed(self.flow(), self.center, self.frame), Plates(self.program, index))


class SplineFlow(InverseAutoregressive):
    """Monotonic rational-quadratic splines within ±5 posterior sds, the identity outside.

    Args:
        transforms: number of transforms.
        bins: pieces of each spline.
        hidden: widths of each transform's network.
    """

    family = "spline"

    def __init__(
        self,
        model: Callable[..., Any],
        data: BoundData,
        *,
        transforms: int = 2,
        bins: int = 8,
        hidden: tuple[int, ...] | None = None,
    ) -> None:
        self.bins = bins
        super().__init__(model, data, transforms=transforms, hidden=hidden)

    def make_flow(self, size: int, transforms: int, hidden: tuple[int, ...]) -> nn.Module:
        """The flow before training, a lazy distribution."""
        flow = zuko.flows.NSF(size, 0, transforms=transforms, bins=self.bins, hidden_features=hidden)
        return zuko.flows.Flow(flow.transform.inv, flow.base)


def identity_flow(flow: nn.Module) -> nn.Module:
    """The flow with each network's last layer (and a transform without a network) shrunk to a hundredth."""
    with torch.no_grad():
        for module in flow.modules():
            layers = [m for m in module.children() if isinstance(m, nn.Linear)] if isinstance(module, nn.Sequential) else []
            if layers:
                for parameter in layers[-1].parameters():
                    parameter.mul_(0.01)
        for name, parameter in flow.named_parameters():
            if "phi" in name:
                parameter.mul_(0.01)
    return flow
