"""Less noisy gradients for networks: the noise of uncertain weights, drawn where each layer computes.

    shared    w = mu + sigma e, one draw of all weights for the whole batch
    local     a_n = x_n mu^T + sqrt(x_n^2 (sigma^2)^T) e_n, each example's activations drawn from their own distribution
    flipout   a_n = x_n mu^T + ((x_n * s_n) (w - mu)^T) * r_n, one draw of w, its signs turned at random for each example

All three have the same expectation where each example passes a layer once, as in fully connected networks. A convolution
applies one set of weights at many places: `flipout` stays right there, since an example's signs are the same at every
place, while `local` draws the places independently, as Molchanov et al. 2017 do, and so trains with another noise.
Kingma, Salimans, Welling 2015 (local reparametrisation); Wen et al. 2018 (flipout). Lecture: "Reparametrization Trick".

The layers themselves are unchanged: calls of `torch.nn.functional.linear` and the convolutions are replaced while the model
runs, wherever their weight is what the guide drew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal
from torch.overrides import TorchFunctionMode

from ..target.program import base_of, sample_sites

LayerNoise = Literal["shared", "local", "flipout"]

LAYER_NOISES: tuple[LayerNoise, ...] = ("shared", "local", "flipout")

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)

#: Questions about a tensor that do not use its values, and attributes that are none of them.
_QUESTIONS = {
    "dim",
    "size",
    "numel",
    "is_floating_point",
    "ndimension",
    "stride",
    "is_contiguous",
    "element_size",
    "get_device",
}
_FACTS = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse", "is_leaf", "names", "is_meta"}

#: Keeps the gradient of a square root finite where an activation has no variance.
_LEAST_VARIANCE = 1e-16


def by_layer(fn: Any) -> bool:
    """Whether draws of this distribution can be made layer by layer: normals, and distributions with a `per_example`."""
    base = base_of(fn)
    return hasattr(base, "per_example") or isinstance(base, Normal)


class AtTheMean(Messenger):
    """Lets the guide's factorised sites take their mean, as a tensor of its own: the noise comes later, in the layers."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["done"] or not by_layer(fn):
            return
        mean = base_of(fn).mean
        msg["value"] = mean.expand(fn.batch_shape + fn.event_shape).clone()
        msg["done"] = True


class Layers(TorchFunctionMode):
    """Replaces the layers that use what the guide drew.

    Args:
        trace: the guide's run.
        at_the_mean: whether its values are means, so that any use outside a layer would be wrong.

    Attributes:
        used: names of the sites that entered a layer as its weights or bias.
        places: whether a layer used its weights at several places of one example.
        again: whether some weights entered layers more than once, or something else, or a layer whose inputs are not one row an
            example: noise of its own for each row is then another noise. Told where `rows` is.
    """

    def __init__(self, trace: poutine.Trace, *, at_the_mean: bool, rows: int | None = None) -> None:
        super().__init__()
        sites = {name: site for name, site in sample_sites(trace) if by_layer(site["fn"])}
        self.names = {id(site["value"]): name for name, site in sites.items()}
        self.q = {id(site["value"]): base_of(site["fn"]) for site in sites.values()}
        self.at_the_mean = at_the_mean
        self.used: set[str] = set()
        self.places = self.again = False
        self.rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        convolution = func in _CONVOLUTIONS
        if convolution or func is torch.nn.functional.linear:
            x, weight, bias, rest = _arguments(*args, **kwargs)
            if id(weight) in self.q or id(bias) in self.q:
                self.places |= convolution or x.dim() > 2
                names = {self.names[id(t)] for t in (weight, bias) if id(t) in self.names}
                self.again |= bool(self.used & names) or (self.rows is not None and x.shape[0] != self.rows)
                self.used |= names
                return self.layer(lambda a, w, b: func(a, w, b, *rest[0], **rest[1]), x, weight, bias, 1 if convolution else -1)
        elif self.at_the_mean or self.rows is not None:
            self._note_other_uses(func, args, kwargs)
        return func(*args, **kwargs)

    def layer(self, call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """The output of one layer; `channels` is the dimension that its weights mix."""
        raise NotImplementedError

    def _note_other_uses(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if id(tensor) not in self.names or _asks(func):
                    continue
                self.again = True
                if self.at_the_mean:
                    raise ValueError(
                        "estimator='local' is for weights that enter linear layers and convolutions only, and site "
                        f"'{self.names[id(tensor)]}' enters {getattr(func, '__name__', func)}; use estimator='shared'"
                    )


class Local(Layers):
    """Draws activations instead of weights."""

    def layer(self, call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """Mean and standard deviation of each activation, and noise of its own for each example."""
        q, q_bias = self.q.get(id(weight)), self.q.get(id(bias))
        mean_bias = bias if q_bias is None else q_bias.mean
        if q is not None and hasattr(q, "per_example"):
            drawn: Tensor = q.per_example(call, x, mean_bias, channels)
            return drawn
        mean = call(x, weight if q is None else q.mean, mean_bias)
        spread = None if q_bias is None else q_bias.variance
        if q is not None:
            variance = call(x.square(), q.variance, spread)
        else:
            assert spread is not None
            variance = spread.reshape(-1, *[1] * (mean.dim() - 2 if channels == 1 else 0)).expand_as(mean)
        return mean + (variance + _LEAST_VARIANCE).sqrt() * torch.randn_like(mean)


class Flipout(Layers):
    """Turns the signs of one draw's noise for each example."""

    def layer(self, call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """The mean's output and the noise's, the signs of its inputs and outputs turned."""
        q = self.q.get(id(weight))
        if q is None:
            return call(x, weight, bias)
        mean = call(x, q.mean, bias)
        noise = call(x * _signs(x, channels), weight - q.mean, None)
        return mean + noise * _signs(noise, channels)


def _asks(func: Any) -> bool:
    """Whether a function of a tensor leaves its values alone."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # of an attribute: its shape is a fact, its transpose is its values
        return getattr(getattr(func, "__self__", None), "__name__", "") in _FACTS
    return name in _QUESTIONS


def _signs(like: Tensor, channels: int) -> Tensor:
    """Random signs, one an example and channel, the same at all places."""
    shape = [1] * like.dim()
    shape[0], shape[channels] = like.shape[0], like.shape[channels]
    uniform = torch.rand(shape, dtype=like.dtype, device=like.device)
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor | None, tuple[tuple[Any, ...], dict[str, Any]]]:
    return input, weight, bias, (rest, named)
