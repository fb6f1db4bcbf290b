"""Networks whose weights are latent: what the zoo's networks share, whatever they do with their outputs.

    w ~ p(w)        one site for each weight and bias, named as the network names it

The network runs as in evaluation: batch norm uses its stored statistics and dropout does nothing, because a term that
depends on what else is in the batch, or on noise without a name, is no likelihood.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from .weight_priors import LogUniform, WeightPrior, weight_prior

#: Layers whose weights may be latent: those that a weight enters linearly.
LINEAR_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm

type LayerFilter = Callable[[str, nn.Module], bool]


class LatentWeights(PyroModule):
    """A network with a prior on the weights of its linear and convolutional layers, or of some of them.

    Args:
        net: any module; it is copied.
        prior: `normal`, `laplace`, `scale_mixture`, `log_uniform`, or an object of `bz.models.weight_priors`.
        bayesian: which layers have latent weights: `all`, `last`, `none`, names of layers, or a filter `(name, layer) -> bool`.
            The weights of the others are parameters.
        biases: whether the biases of these layers are latent, too, or parameters; None makes them latent, except under the
            log-uniform prior, which would prune them (Molchanov et al. 2017 leave them out as well).
        freeze: whether those parameters keep their values; otherwise they are trained with the guide.
        init: where fits begin: at the network's own weights (`net`; further restarts draw new ones as its layers do) or at
            draws from the `prior`.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: str | WeightPrior,
        bayesian: str | Sequence[str] | LayerFilter,
        biases: bool | None,
        freeze: bool,
        init: str,
    ) -> None:
        super().__init__()
        if init not in ("net", "prior"):
            raise ValueError(f"init must be 'net' (the network's own weights) or 'prior' (draws from it), got {init!r}")
        self.init = init
        self.prior = weight_prior(prior)
        self.net = _copied(net)
        self.sites: dict[str, int] = {}
        self.bayesian_layers = [] if bayesian == "none" else _chosen(self.net, bayesian)
        latent = ("weight", "bias") if biases or (biases is None and not isinstance(self.prior, LogUniform)) else ("weight",)
        for name in self.bayesian_layers:
            self._make_latent(name, latent)
        if freeze:
            self.net.requires_grad_(False)
        self.net.eval()

    def _make_latent(self, name: str, latent: Sequence[str]) -> None:
        """Turns the parameters of one layer into sites; what they were is kept as buffers, to begin at."""
        layer = self.net.get_submodule(name)
        fan_in = layer.weight[0].numel()  # type: ignore[index, union-attr]
        for part, parameter in list(layer._parameters.items()):
            if parameter is None or part not in latent:
                continue
            delattr(layer, part)
            layer.register_buffer(part, parameter.detach().clone())
            self.sites[f"{name}.{part}" if name else part] = fan_in if part == "weight" else 0

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the model; the network itself stays as in evaluation."""
        super().train(mode)
        self.net.eval()
        return self

    def draw_weights(self, like: Tensor) -> dict[str, Tensor]:
        """Sample every site from its prior: site -> weights, in the dtype and on the device of `like`."""
        return {name: pyro.sample(name, self._prior_of(name, like)) for name in self.sites}

    def run(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return net_w(x), with sampled weights in the places of its own.

        Args:
            weights: site -> one draw of it; `torch.vmap` over this function takes many.
        """
        # Read past PyroModule, which would announce every parameter of the network to Pyro at each access.
        out: Tensor = functional_call(self._modules["net"], weights, (x,))  # type: ignore[arg-type]
        return out

    def _prior_of(self, name: str, like: Tensor) -> dist.TorchDistribution:
        shape = self.net.get_buffer(name).shape
        prior = self.prior.distribution(shape, self.sites[name], like)
        return prior.to_event(len(shape))

    def initial_values(self, restart: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """Return where guides begin.

        Args:
            restart: the first begins at the network's own weights (with init="net"), the others at new ones.

        Returns:
            site -> its value and, in unconstrained coordinates, a standard deviation a tenth of what keeps the variance of
            the layer's outputs.
        """
        net = self.net
        if self.init == "net" and restart:
            net = copy.deepcopy(net)
            _reset(net, self.bayesian_layers)
        values = {}
        for name, fan_in in self.sites.items():
            value = net.get_buffer(name).detach().clone()
            if self.init == "prior" and not isinstance(self.prior, LogUniform):
                value = self._prior_of(name, value).sample()
            layer_fan_in = fan_in or self.sites.get(name.removesuffix("bias") + "weight", 1)
            values[name] = value, torch.full_like(value, 0.1 * math.sqrt(2 / layer_fan_in))
        return values

    def probe(self, x: Tensor) -> Tensor:
        """The outputs for two rows with the weights that a fit begins at.

        Raises:
            ValueError: the network does not take x, or has batch norm after a Bayesian layer.
        """
        order: list[str] = []
        names = {id(layer): name for name, layer in self.net.named_modules()}
        hooks = [
            layer.register_forward_hook(lambda layer, *_: order.append(names[id(layer)]))
            for layer in self.net.modules()
            if isinstance(layer, (*LINEAR_LAYERS, _BATCH_NORMS))
        ]
        like = next(tensor for tensor in (*self.net.buffers(), *self.net.parameters()) if tensor.is_floating_point())
        rows = x[:2].to(device=like.device, dtype=like.dtype if x.is_floating_point() else x.dtype)
        try:
            with torch.no_grad():
                out = self.net(rows)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the network does not take inputs of shape (N, {', '.join(map(str, x.shape[1:]))}): {reason}; give data of the "
                "size that it was made for, or another network"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        _check_batch_norm(self.net, order, self.bayesian_layers)
        return out  # type: ignore[no-any-return]


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except RuntimeError as error:
        raise ValueError(
            "the network cannot be copied, because it keeps the result of a computation among its weights; where that is "
            "torch.nn.utils.weight_norm, take torch.nn.utils.parametrizations.weight_norm and leave its layers points"
        ) from error


def _chosen(net: nn.Module, bayesian: str | Sequence[str] | LayerFilter) -> list[str]:
    """Names of the layers that become latent, in the network's order."""
    layers = {name: layer for name, layer in net.named_modules() if layer._parameters}
    able = [name for name, layer in layers.items() if isinstance(layer, LINEAR_LAYERS)]
    if not able:
        has = ", ".join(f"'{name}' ({type(layer).__name__})" for name, layer in layers.items()) or "no layer with parameters"
        raise ValueError(
            f"the network has no linear or convolutional layer, so nothing in it can be made Bayesian: it has {has}; give one "
            "with nn.Linear or nn.Conv1d, 2d, 3d"
        )
    if bayesian == "all":
        chosen = [name for name, layer in layers.items() if any(p is not None for p in layer._parameters.values())]
    elif bayesian == "last":
        chosen = able[-1:]
    elif callable(bayesian):
        chosen = [name for name, layer in layers.items() if bayesian(name, layer)]
    elif isinstance(bayesian, str):
        raise ValueError(f"bayesian must be 'all', 'last', a list of layers' names, or a filter, got {bayesian!r}")
    else:
        unknown = [name for name in bayesian if name not in layers]
        if unknown:
            raise ValueError(f"the network has no layer '{unknown[0]}' with parameters; it has {', '.join(layers)}")
        chosen = [name for name in layers if name in bayesian]
    if not chosen:
        raise ValueError("bayesian chooses no layer, so there is nothing to infer; choose 'all', 'last' or a layer's name")
    for name in chosen:
        layer = layers[name]
        if isinstance(layer, _BATCH_NORMS):
            raise ValueError(
                f"layer '{name}' is batch norm ({type(layer).__name__}), whose statistics belong to one set of weights, and a "
                "Bayesian network has a distribution of them: leave such layers points below all Bayesian ones (bayesian='last'), "
                "or use a network without batch norm"
            )
        if isinstance(layer, nn.utils.parametrize.ParametrizationList):
            raise ValueError(
                f"the weights of layer '{name.partition('.parametrizations')[0]}' are computed from others (weight or spectral norm), so they "
                "cannot have a prior of their own; leave it a point with bayesian='last', a list of layers' names, or a filter "
                "(name, layer) -> bool"
            )
        if not isinstance(layer, LINEAR_LAYERS):
            kinds = ", ".join(kind.__name__ for kind in LINEAR_LAYERS)
            raise ValueError(
                f"layer '{name}' ({type(layer).__name__}) cannot be made Bayesian, only {kinds} can; leave it a point with "
                "bayesian='last', a list of layers' names, or a filter (name, layer) -> bool"
            )
    seen: dict[int, str] = {}
    for name in chosen:
        for part, parameter in layers[name]._parameters.items():
            if parameter is not None and seen.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"layers '{seen[id(parameter)]}' and '{name}' share their {part}, which cannot be one latent of two layers; "
                    "leave both points"
                )
    return chosen


def _check_batch_norm(net: nn.Module, order: Sequence[str], bayesian: Sequence[str]) -> None:
    """Batch norm may run below the Bayesian layers, not after one."""
    first = min((order.index(name) for name in bayesian if name in order), default=len(order))
    after = [name for name in order[first:] if isinstance(net.get_submodule(name), _BATCH_NORMS)]
    if after:
        raise ValueError(
            f"batch norm '{after[0]}' runs after the Bayesian layer '{order[first]}': its stored statistics belong to one set of "
            "weights and would be wrong for every draw; make only layers above it Bayesian (bayesian='last'), or take it out"
        )


def _reset(net: nn.Module, layers: Sequence[str]) -> None:
    """New weights for the layers, drawn as torch does when it makes such a layer."""
    for name in layers:
        layer = net.get_submodule(name)
        # reset_parameters fills what it finds, parameter or buffer, in place.
        layer.reset_parameters()  # type: ignore[operator]
