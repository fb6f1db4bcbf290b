"""A network so small that its masks can be listed."""

from __future__ import annotations

import pytest
import torch

import bayeszoo as bz


@pytest.fixture
def data() -> bz.data.Data:
    """Two classes by the sign of a product."""
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return bz.data.Data(inputs={"x": x}, observed=(x[:, 0] * x[:, 1] > 0).long())


@pytest.fixture
def net() -> torch.nn.Sequential:
    """2-3-2 with tanh."""
    torch.manual_seed(1)
    return bz.models.networks.mlp(2, [3], 2, "tanh")
