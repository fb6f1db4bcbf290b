"""Where random numbers come from.

Torch's samplers reach here through a function mode, for two reasons. Samplers that fill a tensor in place, as torch's
distributions do (`torch.empty(shape).normal_()`), refuse to differ between the calls of a `torch.vmap`. And the optimisation
loop hands out its normal and uniform numbers from rows that were filled beforehand (`Rows`): the eager and the compiled
engine then see the same noise, and a compiled step has no generator of its own. What is neither normal, uniform nor a simple
function of them (Gamma, Poisson) keeps torch's sampler and generator in both engines.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .classes import check_range


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Random numbers drawn inside do not move the sequences outside: torch's, NumPy's and Python's."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class _Noise(TorchFunctionMode):
    """Rewrites samplers as functions of normal and uniform numbers that a subclass provides."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(tuple(shape), dtype=dtype, device=device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(tuple(shape), dtype=dtype, device=device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sampler = _SAMPLERS.get(func)
        if sampler is not None and kwargs.get("generator") is None:
            whole = isinstance(dtype := kwargs.get("dtype"), torch.dtype) and not dtype.is_floating_point
            drawn = None if whole else sampler(self, *args, **kwargs)
            if drawn is not None:
                return drawn
        return func(*args, **kwargs)


def _normal(noise: _Noise, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor | None:
    if kwargs.keys() - {"generator"} or size is not None or not (isinstance(mean, Tensor) or isinstance(std, Tensor)):
        return None
    like = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(getattr(mean, "shape", ()), getattr(std, "shape", ()))
    return mean + std * noise.normal(shape, like.dtype, like.device)


def _sized(args: tuple[Any, ...], size: Any) -> tuple[int, ...]:
    if size is not None:
        return tuple(size)
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else tuple(args)


def _options(dtype: Any, device: Any) -> tuple[torch.dtype, torch.device]:
    return dtype or torch.get_default_dtype(), torch.get_default_device() if device is None else torch.device(device)


def _randn(noise: _Noise, *args: Any, size: Any = None, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor | None:
    return None if _unusual(kwargs) else noise.normal(_sized(args, size), *_options(dtype, device))


def _rand(noise: _Noise, *args: Any, size: Any = None, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor | None:
    return None if _unusual(kwargs) else noise.uniform(_sized(args, size), *_options(dtype, device))


def _randn_like(
    noise: _Noise, *args: Any, input: Any = None, dtype: Any = None, device: Any = None, **kwargs: Any
) -> Tensor | None:
    like = args[0] if args else input
    return None if _unusual(kwargs) else noise.normal(like.shape, dtype or like.dtype, device or like.device)


def _rand_like(
    noise: _Noise, *args: Any, input: Any = None, dtype: Any = None, device: Any = None, **kwargs: Any
) -> Tensor | None:
    like = args[0] if args else input
    return None if _unusual(kwargs) else noise.uniform(like.shape, dtype or like.dtype, device or like.device)


def _unusual(kwargs: Any) -> bool:
    """Options that change more than shape, precision and device."""
    return any(v is not None and v is not False for k, v in kwargs.items() if k not in ("layout", "memory_format"))


def _fill_normal(noise: _Noise, tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor | None:
    if not std >= 0:  # torch says what is wrong
        return None
    draw = noise.normal(tensor.shape, tensor.dtype, tensor.device)
    return _fill(tensor, draw if (mean, std) == (0.0, 1.0) else mean + std * draw)


def _fill_uniform(noise: _Noise, tensor: Tensor, low: float = 0.0, high: float = 1.0, **kwargs: Any) -> Tensor | None:
    low, high = kwargs.get("from", low), kwargs.get("to", high)
    if not low <= high:
        return None
    draw = noise.uniform(tensor.shape, tensor.dtype, tensor.device)
    return _fill(tensor, draw if (low, high) == (0.0, 1.0) else low + (high - low) * draw)


def _fill_exponential(noise: _Noise, tensor: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor | None:
    if not lambd > 0:
        return None
    return _fill(tensor, -torch.log1p(-noise.uniform(tensor.shape, tensor.dtype, tensor.device)) / lambd)


def _bernoulli(noise: _Noise, *args: Any, input: Any = None, **kwargs: Any) -> Tensor | None:
    probs = args[0] if args else input
    if len(args) > 1 or kwargs.keys() - {"generator"}:
        return None
    return (noise.uniform(probs.shape, probs.dtype, probs.device) < probs).to(probs.dtype)


def _multinomial(noise: _Noise, *args: Any, **kwargs: Any) -> Tensor | None:
    """By inversion: the number of cumulative probabilities below a uniform number."""
    given = dict(zip(("input", "num_samples", "replacement"), args, strict=False)) | kwargs
    probs, num_samples = given["input"], given["num_samples"]
    if given.get("out") is not None or not (given.get("replacement", False) or num_samples == 1):
        return None
    cumulative = probs.cumsum(-1)
    uniform = noise.uniform((*probs.shape[:-1], num_samples), probs.dtype, probs.device) * cumulative[..., -1:]
    index = (uniform.unsqueeze(-1) >= cumulative.unsqueeze(-2)).sum(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def _binomial(noise: _Noise, count: Tensor, prob: Tensor, generator: Any = None) -> Tensor:
    # Under vmap both arguments have to be mapped: torch warns where only one of them is.
    return torch.binomial(count + torch.zeros_like(prob), prob + torch.zeros_like(count))


def _dropout(
    noise: _Noise, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool = True
) -> Tensor | None:
    if not (training and train) or inplace or not 0.0 < p < 1.0:
        return None
    keep = noise.uniform(input.shape, input.dtype, input.device) >= p
    return input * keep / (1 - p)


def _one_hot(noise: _Noise, tensor: Tensor, num_classes: int = -1) -> None:
    check_range(tensor, num_classes)


def _fill(tensor: Tensor, draw: Tensor) -> Tensor:
    """Writes the draw into the tensor, unless they are mapped differently: then the draw takes the tensor's place."""
    if torch._C._functorch.is_batchedtensor(draw) and not torch._C._functorch.is_batchedtensor(tensor):
        return draw
    return tensor.copy_(draw)


_SAMPLERS: dict[Any, Callable[..., Tensor | None]] = {
    torch.normal: _normal,
    torch.randn: _randn,
    torch.rand: _rand,
    torch.randn_like: _randn_like,
    torch.rand_like: _rand_like,
    torch.bernoulli: _bernoulli,
    torch.Tensor.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    torch.Tensor.multinomial: _multinomial,
    torch.binomial: _binomial,
    torch.Tensor.normal_: _fill_normal,
    torch.Tensor.uniform_: _fill_uniform,
    torch.Tensor.exponential_: _fill_exponential,
    torch.dropout: _dropout,
    torch.nn.functional.dropout: _dropout,
    torch.nn.functional.one_hot: _one_hot,
}


def vmap_random(function: Callable[..., Any], *mapped: Any) -> Any:
    """`torch.vmap(function)(*mapped)` with independent random draws."""
    with _Noise():
        return torch.vmap(function, randomness="different")(*mapped)


class Row(NamedTuple):
    """The numbers of one draw: standard normal (n,) and uniform (m,). Mapped and stacked rows have leading dimensions."""

    normal: Tensor
    uniform: Tensor


class OutOfNoise(RuntimeError):
    """A step asked for more numbers than the step before it, and the caller had ruled that out."""


class FromRow(_Noise):
    """Serves every request from a row, in order.

    Args:
        strict: whether a request beyond the row's end raises `OutOfNoise`; otherwise torch's generator serves it.
    """

    def __init__(self, row: Row, *, strict: bool = False) -> None:
        super().__init__()
        self.row, self.strict = row, strict
        self.at = {"normal": 0, "uniform": 0}

    def _take(self, kind: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        source: Tensor = getattr(self.row, kind)
        start = self.at[kind]
        stop = start + math.prod(shape)
        self.at[kind] = stop
        if stop > source.shape[-1]:
            if self.strict:
                raise OutOfNoise("the number of random draws changes from step to step")
            return None
        return source[start:stop].reshape(tuple(shape)).to(dtype=dtype, device=device)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The row's next normal numbers."""
        drawn = self._take("normal", shape, dtype, device)
        return super().normal(shape, dtype, device) if drawn is None else drawn

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The row's next uniform numbers."""
        drawn = self._take("uniform", shape, dtype, device)
        return super().uniform(shape, dtype, device) if drawn is None else drawn


class Counting(_Noise):
    """Draws from torch's generator and counts.

    Args:
        differentiated: whether what draws is going to be differentiated, so that `torch.utils.checkpoint` would run it again.
    """

    def __init__(self, *, differentiated: bool = False) -> None:
        super().__init__()
        self.normals = self.uniforms = 0
        self.differentiated = differentiated

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Counted normal numbers."""
        if self.differentiated:
            _refuse_checkpoints()
        self.normals += math.prod(shape)
        return super().normal(shape, dtype, device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Counted uniform numbers."""
        if self.differentiated:
            _refuse_checkpoints()
        self.uniforms += math.prod(shape)
        return super().uniform(shape, dtype, device)


def _refuse_checkpoints() -> None:
    """`torch.utils.checkpoint` puts torch's generator back, and not the rows that draws come from: gradients would be those of others."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            raise ValueError(
                "torch.utils.checkpoint runs a part of the model again for its gradients, and that part draws random numbers (dropout, "
                "say), which would be others then: draw outside of it, or leave it out"
            )
        frame = frame.f_back  # type: ignore[assignment]
