"""Classes out of range, for which torch looks outside of `torch.vmap` alone: inside, `one_hot` gives such a class a row of zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor of all draws behind that of one draw inside of a map."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def out_of_range(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Whether one of them, in any of the draws, is negative, and whether one is too great."""
    whole = unwrapped(labels)
    return (whole < 0).any(), (whole >= num_classes).any()


def check_range(labels: Tensor, num_classes: int) -> None:
    """Raises torch's own RuntimeError inside of a map, too; a capture does without, for it can read nothing."""
    captured = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    if captured or num_classes < 1 or labels.is_floating_point() or not torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return
    below, above = out_of_range(labels, num_classes)
    if bool(below):
        raise RuntimeError("Class values must be non-negative.")
    if bool(above):
        raise RuntimeError("Class values must be smaller than num_classes.")
