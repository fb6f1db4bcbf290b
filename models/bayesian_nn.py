"""Bayesian neural network: any torch network with a prior on the weights of its linear and convolutional layers.

    w   ~ p(w)                                    one site for each weight and bias, named as the network names it
    f_n = net_w(x_n)
    y_n ~ Categorical(softmax f_n), Bernoulli(sigmoid f_n) or N(f_n, sigma^2)
    sigma ~ HalfNormal(noise_prior_scale)         gaussian, unless the noise is known: noise_scale

Lecture: "Bayesian Neural Networks". The lecture's objective writes the KL inside the sum over n; it counts once.
The network runs as in evaluation: batch norm uses its stored statistics and dropout does nothing, because a term that
depends on what else is in the batch, or on noise without a name, is no likelihood.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from . import settings
from .contract import BoundData, data_plate
from .weight_priors import LogUniform, WeightPrior, weight_prior

LIKELIHOODS = ("categorical", "gaussian", "bernoulli")

#: Layers whose weights may be latent: those that a weight enters linearly.
LINEAR_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm

type LayerFilter = Callable[[str, nn.Module], bool]


class BayesianNN(PyroModule):
    """A network with uncertain weights.

    Args:
        net: any module from x `(N, ...)` to `(N, K)` class logits, `(N,)` or `(N, D)` means, or `(N,)` log odds; it is copied.
        likelihood: `categorical`, `gaussian` or `bernoulli`.
        prior: `normal`, `laplace`, `scale_mixture`, `log_uniform`, or an object of `bz.models.weight_priors`.
        bayesian: which layers have latent weights: `all`, `last`, names of layers, or a filter `(name, layer) -> bool`. The
            weights of the others are parameters.
        biases: whether the biases of these layers are latent, too, or parameters; None makes them latent, except under the
            log-uniform prior, which would prune them (Molchanov et al. 2017 leave them out as well).
        freeze: whether those parameters keep their values; otherwise they are trained with the guide.
        init: where fits begin: at the network's own weights (`net`; further restarts draw new ones as its layers do) or at
            draws from the `prior`.
        noise_scale: the known sigma of a gaussian likelihood; None infers it.
        noise_prior_scale: scale of the half-normal prior of an unknown sigma.
    """

    noise_scale: Tensor | None
    noise_prior_scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        likelihood: str = "categorical",
        prior: str | WeightPrior = "normal",
        bayesian: str | Sequence[str] | LayerFilter = "all",
        biases: bool | None = None,
        freeze: bool = False,
        init: str = "net",
        noise_scale: float | Tensor | None = None,
        noise_prior_scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood '{likelihood}'; choose one of {', '.join(LIKELIHOODS)}")
        if init not in ("net", "prior"):
            raise ValueError(f"init must be 'net' (the network's own weights) or 'prior' (draws from it), got {init!r}")
        self.likelihood, self.init = likelihood, init
        self.prior = weight_prior(prior)
        self.net = copy.deepcopy(net)
        self.sites: dict[str, int] = {}
        self.bayesian_layers = _chosen(self.net, bayesian)
        latent = ("weight", "bias") if biases or (biases is None and not isinstance(self.prior, LogUniform)) else ("weight",)
        for name in self.bayesian_layers:
            self._make_latent(name, latent)
        if freeze:
            self.net.requires_grad_(False)
        self.net.eval()
        known = None if noise_scale is None else settings.positive("noise_scale", noise_scale)
        if known is not None and likelihood != "gaussian":
            raise ValueError(f"noise_scale belongs to likelihood='gaussian', and this one is '{likelihood}'; leave it out")
        self.register_buffer("noise_scale", known)
        self.register_buffer("noise_prior_scale", settings.positive("noise_prior_scale", noise_prior_scale))

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

    def train(self, mode: bool = True) -> BayesianNN:
        """Set the mode of the model; the network itself stays as in evaluation."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Score the targets y, or simulate them where y is None.

        Args:
            x: `(N, ...)` inputs.
            y: `(N,)` classes 0 .. K - 1, `(N,)` zeros and ones, or `(N,)` or `(N, D)` numbers.
            num_data: observations in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            Targets, observed or simulated.
        """
        weights = {name: pyro.sample(name, self._prior_of(name, x)) for name in self.sites}
        sigma = self._noise(x)
        with data_plate(len(x), num_data, index):
            return pyro.sample("y", self._likelihood(self.outputs(weights, x), sigma), obs=y)

    def outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return net_w(x): logits `(N, K)`, means `(N,)` or `(N, D)`, or log odds `(N,)`.

        Args:
            weights: site -> one draw of it; `torch.vmap` over this function takes many.
        """
        # Read past PyroModule, which would announce every parameter of the network to Pyro at each access.
        out: Tensor = functional_call(self._modules["net"], weights, (x,))  # type: ignore[arg-type]
        if self.likelihood != "categorical" and out.dim() == 2 and out.shape[1] == 1:
            return out.squeeze(-1)
        return out

    def _prior_of(self, name: str, like: Tensor) -> dist.TorchDistribution:
        shape = self.net.get_buffer(name).shape
        prior = self.prior.distribution(shape, self.sites[name], like)
        return prior.to_event(len(shape))

    def _noise(self, like: Tensor) -> Tensor | None:
        if self.likelihood != "gaussian":
            return None
        if self.noise_scale is not None:
            return self.noise_scale.to(like)
        sigma: Tensor = pyro.sample("sigma", dist.HalfNormal(self.noise_prior_scale.to(like)))
        return sigma

    def _likelihood(self, out: Tensor, sigma: Tensor | None) -> dist.TorchDistribution:
        if self.likelihood == "categorical":
            return dist.Categorical(logits=out)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out)
        assert sigma is not None
        normal = dist.Normal(out, sigma)
        return normal.to_event(out.dim() - 1) if out.dim() > 1 else normal

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
        if self.likelihood == "gaussian" and self.noise_scale is None:
            sigma = 0.5 * self.noise_prior_scale.to(next(iter(values.values()))[0])
            values["sigma"] = sigma, torch.full_like(sigma, 0.1)
        return values

    def check(self, data: BoundData) -> None:
        """Raise ValueError where the data do not fit: another shape of x, labels that are no classes, a single class."""
        bound = data.bind(self)
        x, y = bound["x"], bound.get("y")
        out = self._probe(x)
        if y is None:
            return
        _check_target(self.likelihood, out, y)

    def _probe(self, x: Tensor) -> Tensor:
        """The outputs for two rows with the weights that a fit begins at."""
        order: list[str] = []
        names = {id(layer): name for name, layer in self.net.named_modules()}
        hooks = [
            layer.register_forward_hook(lambda layer, *_: order.append(names[id(layer)]))
            for layer in self.net.modules()
            if isinstance(layer, (*LINEAR_LAYERS, _BATCH_NORMS))
        ]
        like = next(iter(self.net.buffers()))
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
        if not isinstance(out, Tensor) or out.dim() not in (1, 2) or len(out) != len(rows):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the network returns {shape} for {len(rows)} inputs; it must return (N, K) or (N,) numbers")
        out = out.squeeze(-1) if self.likelihood != "categorical" and out.dim() == 2 and out.shape[1] == 1 else out
        return out


def _chosen(net: nn.Module, bayesian: str | Sequence[str] | LayerFilter) -> list[str]:
    """Names of the layers that become latent, in the network's order."""
    layers = {name: layer for name, layer in net.named_modules() if layer._parameters}
    able = [name for name, layer in layers.items() if isinstance(layer, LINEAR_LAYERS)]
    if not able:
        raise ValueError("the network has no linear or convolutional layer, so nothing in it can be made Bayesian")
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


def _check_target(likelihood: str, out: Tensor, y: Tensor) -> None:
    if likelihood == "categorical":
        if out.dim() != 2 or out.shape[1] < 2:
            raise ValueError(
                f"likelihood='categorical' needs a network with at least two outputs, and this one returns {_shape(out)}; "
                "use 'bernoulli' for yes or no, 'gaussian' for numbers"
            )
        if y.dim() != 1:
            raise ValueError(f"classes must have the shape (N,), got {tuple(y.shape)}; give one label an observation")
        low, high = float(y.min()), float(y.max())
        if low < 0 or high >= out.shape[1] or not bool((y == y.round()).all()):
            raise ValueError(
                f"labels must be whole numbers from 0 to {out.shape[1] - 1}, one for each output of the network, and they run from "
                f"{low:g} to {high:g}; give another network or other labels"
            )
        if low == high:
            raise ValueError(
                f"all {len(y)} labels are {low:g}: with one class only there is nothing to learn; give data with more"
            )
        return
    if out.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"the network returns {_shape(out)} and the targets have the shape {_shape(y)}; give a network with as many outputs as "
            "a target has numbers"
        )
    if likelihood == "bernoulli":
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError("likelihood='bernoulli' needs targets that are 0 or 1; use 'categorical' or 'gaussian'")
        if y.dim() == 1 and float(y.min()) == float(y.max()):
            raise ValueError(
                f"all {len(y)} labels are {float(y[0]):g}: with one class only there is nothing to learn; give data with more"
            )


def _shape(tensor: Tensor) -> str:
    return f"(N{''.join(f', {size}' for size in tensor.shape[1:])})" if tensor.dim() > 1 else "(N,)"
