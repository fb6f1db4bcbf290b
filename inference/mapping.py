"""Random draws inside `torch.vmap`: one independent draw for every mapped call.

Samplers that fill a tensor in place, as torch's distributions do (`torch.empty(shape).normal_()`), refuse to differ between
calls; `torch.randn` and `torch.rand` do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Mappable(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.normal and len(args) == 2 and all(isinstance(a, Tensor) for a in args) and not kwargs:
            mean, sd = torch.broadcast_tensors(*args)
            return mean + sd * torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        if func is torch.bernoulli and len(args) == 1 and not kwargs:
            probs = args[0]
            return (torch.rand(probs.shape, dtype=probs.dtype, device=probs.device) < probs).to(probs.dtype)
        if func is torch.binomial and len(args) == 2 and not kwargs:
            # Both arguments mapped: torch warns where only one of them is.
            count, probs = args
            return torch.binomial(count + torch.zeros_like(probs), probs + torch.zeros_like(count))
        if func is torch.Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        if func is torch.Tensor.uniform_ and len(args) == 1 and not kwargs:
            return torch.rand(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        if func is torch.Tensor.exponential_ and len(args) == 1 and not kwargs:
            return -torch.log1p(-torch.rand(args[0].shape, dtype=args[0].dtype, device=args[0].device))
        return func(*args, **kwargs)


def vmap_random(function: Callable[..., Any], mapped: Any) -> Any:
    """`torch.vmap(function)(mapped)` with independent random draws."""
    with _Mappable():
        return torch.vmap(function, randomness="different")(mapped)
