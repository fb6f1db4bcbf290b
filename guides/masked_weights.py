"""Weights times a random mask, as a distribution that draws once for a batch or once for each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class MaskedWeights(TorchDistribution):
    """w = theta * mask / (1 - rate), each element of the mask zero with probability `rate`.

    A mask is a latent of its own whose prior is the same Bernoulli distribution, so log q - log p of a draw is zero.

    Args:
        theta: the weights, batch shape (out, in, ...).
        rate: probability of a zero, a number or a scalar tensor.
        temperature: None draws zeros and ones; a number draws the concrete relaxation, which has a gradient in the rate.
        shape: of the mask, to be broadcast against theta.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, theta: Tensor, rate: float | Tensor, shape: tuple[int, ...], temperature: float | None = None) -> None:
        self.theta, self.rate, self.mask_shape, self.temperature = theta, rate, shape, temperature
        super().__init__(theta.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """theta."""
        return self.theta

    def mask(self, shape: Any) -> Tensor:
        """Zeros and 1 / (1 - rate), or their relaxation."""
        uniform = torch.rand(tuple(shape), dtype=self.theta.dtype, device=self.theta.device)
        if self.temperature is None:
            return (uniform >= self.rate).to(uniform.dtype) / (1 - self.rate)
        # Maddison et al. 2017; the ends are kept off the logarithm.
        uniform = uniform.clamp(1e-7, 1 - 1e-7)
        rate = torch.as_tensor(self.rate, dtype=uniform.dtype, device=uniform.device)
        drop = torch.sigmoid((torch.logit(rate) + torch.logit(uniform)) / self.temperature)
        return (1 - drop) / (1 - rate)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """One draw for the whole batch."""
        return self.theta * self.mask((*sample_shape, *self.mask_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: log q - log p of the mask."""
        return torch.zeros_like(value)


class DroppedInputs(MaskedWeights):
    """Masks over a layer's inputs, so that dropping a weight's column is dropping an activation.

    Args:
        theta: weights (out, in, ...).
        rate: probability of a zero.
        groups: of a convolution, each of which has inputs of its own.
    """

    def __init__(self, theta: Tensor, rate: float | Tensor, temperature: float | None = None, groups: int = 1) -> None:
        self.groups = groups
        super().__init__(theta, rate, (groups, theta.shape[1], *[1] * (theta.dim() - 2)), temperature)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """One draw for the whole batch."""
        mask = self.mask((*sample_shape, *self.mask_shape))
        if self.groups > 1:  # the filters of a group see the same inputs
            mask = mask.repeat_interleave(self.theta.shape[0] // self.groups, -self.theta.dim())
        return self.theta * mask

    def per_example(self, call: Callable[..., Tensor], x: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """The layer's output with a mask of its own for each example, exactly: dropout as it is known.

        Args:
            call: the layer, of (inputs, weight, bias).
            x: inputs (N, in) or (N, in, ...).
            channels: the dimension of x that the weights mix.
        """
        shape = [1] * x.dim()
        shape[0], shape[channels] = x.shape[0], x.shape[channels]
        return call(x * self.mask(shape), self.theta, bias)
