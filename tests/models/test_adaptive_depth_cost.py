"""What a training step of the adaptive-depth network costs: all depths come from one pass.

Counted, not timed: the floating-point operations of the products, and the numbers that all other operators write. Both
are the same on every machine, and a model that ran the network once for each depth would need 17 times as many of them
at 32 layers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bayeszoo as bz

BATCH, CLASSES, STEPS = 256, 10, 4


class Written(TorchDispatchMode):
    """How many numbers the operators have written: the memory traffic of everything, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for value in result if isinstance(result, (tuple, list)) else (result,):
                self.numbers += value.numel() if isinstance(value, Tensor) else 0
        return result


def network(depth: int) -> Any:
    torch.manual_seed(0)
    return bz.models.networks.residual_mlp(64, CLASSES, depth)


def adaptive(depth: int, data: bz.data.Data) -> tuple[int, int]:
    """Operations and numbers of a step, eager, with everything that the runner does in it."""
    counts: list[tuple[int, int]] = []
    with FlopCounterMode(display=False) as products, Written() as written:
        bz.fit(
            bz.models.AdaptiveDepthResNet(network(depth)), data, steps=STEPS, compile=False, progress=False, dtype=torch.float32,
            callbacks=[lambda _: counts.append((products.get_total_flops(), written.numbers))],
        )  # fmt: skip
    (flops, numbers), (later_flops, later_numbers) = counts[-2:]
    return later_flops - flops, later_numbers - numbers


def plain(depth: int, data: bz.data.Data) -> tuple[int, int]:
    """The same of a step of the same network and heads in torch's own words, on the average of L + 1 cross-entropies."""
    net = network(depth)
    optimizer = torch.optim.Adam(net.parameters())
    x, y = data.inputs["x"].float(), data.observed

    def step() -> None:
        optimizer.zero_grad()
        h = net.stem(x)
        loss = F.cross_entropy(net.exit(h, 0), y)
        for layers, block in enumerate(net.blocks, 1):
            h = block(h)
            loss = loss + F.cross_entropy(net.exit(h, layers), y)
        (loss / (depth + 1)).backward()
        optimizer.step()

    step()  # Adam's moments are made in the first
    with FlopCounterMode(display=False) as products, Written() as written:
        step()
    return products.get_total_flops(), written.numbers


@pytest.fixture
def data() -> bz.data.Data:
    torch.manual_seed(0)
    return bz.data.Data({"x": torch.randn(BATCH, 64)}, torch.randint(0, CLASSES, (BATCH,)), num_classes=CLASSES)


@pytest.mark.parametrize("depth", [8, 32])
def test_a_step_costs_what_a_plain_network_costs(data: bz.data.Data, depth: int) -> None:
    flops, numbers = adaptive(depth, data)
    plain_flops, plain_numbers = plain(depth, data)
    assert flops == plain_flops
    # 1.08-1.09 measured; a posterior of the depth may cost 15 % in Pyro's densities and the runner's sums.
    assert numbers < 1.15 * plain_numbers


def test_a_step_is_linear_in_depth(data: bz.data.Data) -> None:
    flops, numbers = zip(*(adaptive(depth, data) for depth in (8, 16, 24)), strict=True)
    assert flops[2] - flops[1] == flops[1] - flops[0] > 0
    assert numbers[2] - numbers[1] == numbers[1] - numbers[0] > 0
