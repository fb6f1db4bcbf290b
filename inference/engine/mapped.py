"""What torch computes at length under `torch.vmap`, computed as it is outside while a step is captured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainLosses(TorchFunctionMode):
    """Inside, a Bernoulli density by logits costs one exponential under `torch.vmap`, as it does without.

    torch puts two exponentials and a logarithm there and differentiates through all of them, for want of a batching rule.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.binary_cross_entropy_with_logits:
            loss = _binary_cross_entropy(*args, **kwargs)
            if loss is not None:
                return loss
        return func(*args, **kwargs)


def _binary_cross_entropy(x: Tensor, y: Tensor, *others: Any, reduction: str = "mean", **weights: Any) -> Tensor | None:
    """None for what is not under vmap, or has weights, or shapes that torch refuses."""
    mapped = any(torch._C._functorch.is_batchedtensor(t) for t in (x, y))
    if not mapped or others or any(w is not None for w in weights.values()) or x.shape != y.shape or reduction not in _REDUCED:
        return None
    return _REDUCED[reduction]((1 - y) * x - F.logsigmoid(x))


_REDUCED: dict[str, Any] = {"none": lambda loss: loss, "sum": torch.sum, "mean": torch.mean}
