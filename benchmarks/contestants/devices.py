"""What the torch contestants share: data on the device, and a clock that waits for the device."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..cases import Array


def ready(device: str) -> str:
    """The device, if it is there, with torch ready to train on it.

    Torch imports its compiler, which takes seconds, when the first optimiser is used. That is an import, so it happens here, for
    all who use torch, and not in their first step.

    Raises:
        RuntimeError: if CUDA is asked for and torch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    parameter = torch.zeros(1, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    return device


def to_tensors(arrays: dict[str, Array], device: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}


def now(device: str) -> float:
    """Seconds, once all work that was given to the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: str) -> float | None:
    """Peak memory of torch's tensors on the GPU, in MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
