"""Arrays of others as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """A tensor of what torch makes one of, and of arrays that are read backwards, `order[::-1]`, which it refuses.

    Raises:
        ValueError: an array holds no numbers.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biufc":
        raise ValueError(f"arrays are of numbers here, got one of {values.dtype}")
    return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) and values.ndim else values)
