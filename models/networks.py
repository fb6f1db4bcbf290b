"""Plain torch networks of the literature, ready for `BayesianNN`: the layers decide nothing about priors or guides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from .residual import ResidualNetwork, residual_cnn, residual_mlp

__all__ = ["ACTIVATIONS", "ResidualNetwork", "lenet_5_caffe", "lenet_300_100", "mlp", "residual_cnn", "residual_mlp"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: str = "relu") -> nn.Sequential:
    """Return a multilayer perceptron; images are flattened.

    Args:
        inputs: numbers in one input, all dimensions together.
        hidden: widths of the hidden layers; empty for a linear model.
        outputs: numbers in one output.
        activation: `relu`, `tanh`, `silu` or `gelu`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{activation}'; choose one of {', '.join(ACTIVATIONS)}")
    widths = [inputs, *hidden, outputs]
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"the width of a layer is a whole number of at least 1, got {width!r}")
    net = nn.Sequential(nn.Flatten())
    for number, (rows, columns) in enumerate(itertools.pairwise(widths), 1):
        net.add_module(f"fc{number}", nn.Linear(rows, columns))
        if number < len(widths) - 1:
            net.add_module(f"{activation}{number}", ACTIVATIONS[activation]())
    return net


def lenet_300_100(inputs: int = 784, outputs: int = 10) -> nn.Sequential:
    """Return 784-300-100-10 with rectifiers (LeCun et al. 1998), 266,610 weights and biases."""
    return mlp(inputs, [300, 100], outputs)


def lenet_5_caffe(channels: int = 1, size: int = 28, outputs: int = 10) -> nn.Sequential:
    """Return the convolutional network of the pruning literature: 20 and 50 filters of 5 x 5, then 500 units.

    For 28 x 28 pictures it has 431,080 weights and biases, as Caffe's variant of LeNet-5 does.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(
            f"pictures of {size} x {size} are too small for two convolutions of 5 x 5 with pooling; 16 is the least"
        )
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 20, 5))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(20, 50, 5))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool2", nn.MaxPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(50 * side * side, 500))
    net.add_module("relu3", nn.ReLU())
    net.add_module("fc2", nn.Linear(500, outputs))
    return net
