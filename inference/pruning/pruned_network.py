"""A chain of layers whose weights are partly zero, without the units that zeros make superfluous.

A unit is a row of a linear layer or a filter of a convolution.

    constant    no weight enters it: its value act(bias) moves into the biases of the next layer, exactly
    unread      no later weight reads it: it goes, and so do the weights that enter it

Each removal can make others possible, so both are repeated until nothing changes. A network is a chain as far as it is made of
`nn.Sequential`, nested or not; units are removed between two linear or convolutional layers where only modules stand that
treat units alike and one by one. A zero-padded convolution keeps its constant inputs unless they are zero: its padding is
not the constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: Layers whose units can be removed, and the poolings that fit between two of the same kind.
_POOLS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Linear: (),
    nn.Conv1d: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
    nn.Conv2d: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    nn.Conv3d: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
}
#: Modules that change nothing when they evaluate.
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
#: Modules that map every number by itself.
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink),
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class EmptyNetworkError(ValueError):
    """The outputs no longer depend on the inputs; `layer` is the one without weights."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        super().__init__(
            f"after pruning, {f'layer {layer!r}' if layer else 'the only layer'} has no weight left that carries anything of the inputs, so the network would answer "
            "the same to all of them; most likely the KL counted in full before the weights had learned anything: warm it up (kl_weight "
            "as a function that rises from 0, which 'sparse_vd' has wherever steps or epochs are given), give more data or steps, or "
            "prune less with a higher threshold"
        )


@dataclass
class Layer:
    """One layer of a chain and what is left of it.

    Attributes:
        module: the layer as it was.
        weight: (units, inputs, ...).
        bias: (units,), or None.
        following: the layer that reads its units and nothing else; None where its units must stay.
        between: the modules on the way to it.
        spread: how many numbers of the next layer's input one unit is, when flattened.
    """

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    following: Layer | None = None
    between: list[nn.Module] = field(default_factory=list)
    spread: int = 1

    def by_unit(self) -> Tensor:
        """(units of the next layer, units of this one, numbers) the next layer's weights by the unit that they read."""
        assert self.following is not None
        weight = self.following.weight
        return weight.reshape(len(weight), len(self.weight), weight[0].numel() // len(self.weight))

    def keep(self, units: Tensor) -> None:
        """Leaves only some units (a boolean each), here and in the layer that reads them."""
        assert self.following is not None
        read = units.repeat_interleave(self.spread)
        self.weight = self.weight[units]
        self.bias = None if self.bias is None else self.bias[units]
        self.following.weight = self.following.weight[:, read]


@dataclass(frozen=True)
class Chain:
    """A network as the sequence of its modules.

    Attributes:
        modules: (name, module) in the order in which they run.
        layers: those with weights to prune, by name.
    """

    modules: tuple[tuple[str, nn.Module], ...]
    layers: dict[str, Layer]

    def remove_units(self) -> None:
        """Removes constant and unread units until there are none.

        Raises:
            EmptyNetworkError: a layer has no weight left.
        """
        layers = list(self.layers.values())
        for layer in layers:
            _check(layer)
        changed = True
        while changed:
            folded = [_fold_constants(layer) for layer in layers]
            dropped = [_drop_unread(layer) for layer in reversed(layers)]
            changed = any(folded + dropped)


def read_chain(net: nn.Module, names: Collection[str], x: Tensor) -> Chain:
    """Return the network as a chain.

    Args:
        net: in evaluation mode; what is no `nn.Sequential` is one module of the chain.
        names: layers with weights to prune.
        x: (N, ...) an example of its input.
    """
    modules = tuple(_sequence(net, ""))
    uses = Counter(id(module) for _, module in modules)
    layers: dict[str, Layer] = {}
    previous: Layer | None = None
    between: list[nn.Module] = []
    for name, module in modules:
        if name in names and uses[id(module)] == 1 and _has_units(module, x):
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            layer = Layer(name, module, weight.detach(), bias.detach() if isinstance(bias, Tensor) else None)
            if previous is not None and _passes_units(previous.module, between, module):
                previous.following, previous.between = layer, between
                previous.spread = layer.weight.shape[1] // len(previous.weight)
            previous, between = layer, []
            layers[name] = layer
        else:
            between.append(module)
        x = module(x)
    return Chain(modules, layers)


def _sequence(net: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested sequences in order; a shared one comes more than once."""
    if type(net) is not nn.Sequential or _hooked(net):
        yield name, net
        return
    for key, module in net._modules.items():
        if module is not None:
            yield from _sequence(module, f"{name}.{key}" if name else key)


def _hooked(module: nn.Module) -> bool:
    """Whether more than its forward runs when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _has_units(module: nn.Module, x: Tensor) -> bool:
    """Whether dimension 1 of the output has one entry a unit, each made of its own row of weights."""
    if type(module) not in _POOLS or _hooked(module):
        return False
    if isinstance(module, nn.Linear):
        return x.dim() == 2
    dims = len(module.kernel_size)  # type: ignore[arg-type]
    return bool(module.groups == 1 and x.dim() == dims + 2)


def _passes_units(before: nn.Module, between: list[nn.Module], after: nn.Module) -> bool:
    """Whether each unit of one layer reaches the next by itself, in order."""
    flat = isinstance(before, nn.Linear)
    for module in between:
        kind = type(module)
        if _hooked(module):
            return False
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif kind not in _ELEMENTWISE + _IDENTITIES and not (kind in _POOLS[type(before)] and not flat):
            return False
    return isinstance(after, nn.Linear) if flat else type(after) is type(before)


def _fold_constants(layer: Layer) -> bool:
    """Moves units that no weight enters into the next layer's biases; returns whether there were any."""
    after = layer.following
    constant = (layer.weight.flatten(1) == 0).all(1)
    if after is None or not constant.any():
        return False
    value = torch.zeros(len(constant), dtype=torch.float64) if layer.bias is None else layer.bias.double()
    uniform = constant
    for module in layer.between:
        if type(module) in _ELEMENTWISE:
            value = module(value.clone())
        elif not _keeps_constants(module):
            uniform = uniform & (value == 0)
    if _pads_with_zeros(after.module):
        uniform = uniform & (value == 0)
    if not uniform.any():
        return False
    shift = layer.by_unit()[:, uniform].double().sum(2) @ value[uniform]
    if after.bias is not None or (shift != 0).any():
        bias = shift if after.bias is None else after.bias.double() + shift
        after.bias = bias.to(after.weight.dtype)
    layer.keep(~uniform)
    _check(after)
    return True


def _drop_unread(layer: Layer) -> bool:
    """Removes units that no weight of the next layer reads; returns whether there were any."""
    if layer.following is None:
        return False
    read = (layer.by_unit() != 0).any(2).any(0)
    if read.all():
        return False
    layer.keep(read)
    _check(layer)
    return True


def _check(layer: Layer) -> None:
    if not bool((layer.weight != 0).any()):
        raise EmptyNetworkError(layer.name)


def _keeps_constants(pool: nn.Module) -> bool:
    """Whether a pooling turns a constant picture into that constant; averages that count padding do not."""
    if not isinstance(pool, _AVERAGES):
        return True
    padded = any(_numbers(pool.padding)) and pool.count_include_pad
    return not padded and getattr(pool, "divisor_override", None) is None


def _pads_with_zeros(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear) or module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(size > 1 for size in _numbers(module.kernel_size))
    return any(_numbers(module.padding))


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)
