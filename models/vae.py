"""Variational autoencoder: pictures from few hidden numbers each, through a network that is learned.

    z_n ~ N(0, I)                     the code of a picture, `latents` numbers
    x_n ~ p(x | g(z_n))               every pixel on its own, given the generator's output

Lecture: "Bayesian Generative Models"; Kingma, Welling 2014; Rezende, Mohamed, Wierstra 2014. The inference network q(z | x) is
the guide (`amortized` and its relatives), trained together with the generator by the ELBO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from . import picture_networks
from .contract import BoundData, data_plate
from .networks import ACTIVATIONS
from .picture_networks import LAYERS
from .pixels import Pixels


class VAE(PyroModule):
    """A generator of pictures whose codes are standard normal.

    Args:
        shape: of one picture: its number of pixels, `(D,)` or `(C, H, W)`.
        latents: numbers in a code.
        likelihood: `bernoulli`, `categorical`, `logistic` or `gaussian`; see `bz.models.pixels`.
        hidden: widths of the dense layers, from the picture inwards; with `layers="conv"` the filters of convolutions, each of
            which halves the picture, and last the width of a dense layer. The generator mirrors the inference network.
        layers: `dense` or `conv`.
        activation: `relu`, `tanh`, `silu` or `gelu`.
        levels: grey levels of `categorical` and `logistic` pixels.
        generator: a network of your own from codes `(N, latents)` to `(N, *shape, P)`, P as `bz.models.pixels` says; P may be
            left out where it is 1.
    """

    #: Some observations tell what the model is made of: see `bayeszoo.inference.target.program.some_rows`.
    by_rows = True

    def __init__(
        self,
        shape: int | Sequence[int],
        latents: int = 20,
        likelihood: str = "bernoulli",
        hidden: Sequence[int] = (200, 200),
        layers: str = "dense",
        activation: str = "tanh",
        levels: int = 256,
        generator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.shape = picture_shape(shape)
        check_sizes(self.shape, latents, hidden, layers, activation)
        self.latents, self.hidden, self.layers, self.activation = latents, tuple(hidden), layers, activation
        self.pixels = Pixels(likelihood, levels)
        self.custom = generator is not None
        if generator is None:
            generator = picture_networks.generator(latents, self.shape, self.pixels.per_pixel, hidden, layers, activation)
        self.generator = generator
        if not isinstance(generator, nn.Module):
            raise ValueError(f"generator takes a torch.nn.Module from codes to pixels, got {type(generator).__name__}")
        try:
            with torch.no_grad():
                self._out(torch.zeros(1, latents))
        except RuntimeError as error:
            raise ValueError(
                f"the generator does not take codes of shape (N, {latents}) ({str(error).splitlines()[0]}); give one that does, or latents= as "
                "many as it takes"
            ) from error

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        """Score pictures x, or simulate them where x is None.

        Args:
            x: `(N, *shape)` pictures.
            num_data: pictures in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            Pictures, observed or simulated, `(N, *shape)`.
        """
        rows = None if x is None else len(x)
        like = next(self.parameters())
        plate = data_plate(rows, num_data, index)
        with plate:
            prior = dist.Normal(like.new_zeros(plate.subsample_size, self.latents), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.pixels.distribution(self._out(z), len(self.shape)), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the expected pictures `(N, *shape)` of codes `(N, latents)`, on the model's device; of a fit, ask `fit.model`.

        Raises:
            ValueError: these are no such codes.
        """
        return self.pixels.mean(self._out(check_codes(z, self.latents).to(next(self.parameters()))))

    def inference_network(self) -> nn.Module:
        """Return a fresh body for q(z | x), from pictures to features, the generator's mirror image."""
        return picture_networks.body(self.shape, self.hidden, self.layers, self.activation)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"generator": self.generator} if self.custom else {}
        return {
            "shape": self.shape, "latents": self.latents, "likelihood": self.pixels.word, "hidden": self.hidden, "layers": self.layers,
            "activation": self.activation, "levels": self.pixels.levels, **own,
        }  # fmt: skip

    def check(self, data: BoundData) -> None:
        """Raise ValueError where pictures have another shape, or pixels that cannot be drawn."""
        if "x" in getattr(data, "inputs", {}):
            raise ValueError(
                "a VAE explains the pictures themselves, and in these data they are inputs that explain something else; use "
                "data.unsupervised()"
            )
        check_pictures(data.bind(self)["x"], self.shape, self.pixels)

    def _out(self, z: Tensor) -> Tensor:
        return pixel_numbers(self.generator, z, self.shape, self.pixels)


def pixel_numbers(generator: nn.Module, codes: Tensor, shape: tuple[int, ...], pixels: Pixels) -> Tensor:
    """Return what a generator puts out for codes `(..., D)`: `(..., *shape, P)`, P numbers a pixel.

    Raises:
        ValueError: it puts out something else.
    """
    if codes.dim() > 2:  # a code for each class, say
        return pixel_numbers(generator, codes.flatten(0, -2), shape, pixels).unflatten(0, codes.shape[:-1])
    out: Tensor = generator(codes)
    wanted = (len(codes), *shape, pixels.per_pixel)
    if tuple(out.shape) == wanted[:-1] and wanted[-1] == 1:
        out = out.unsqueeze(-1)
    if tuple(out.shape) != wanted:
        raise ValueError(
            f"the generator must put out {wanted[1:]} numbers for a code, {pixels.per_pixel} for each pixel of likelihood "
            f"'{pixels.word}', and puts out {tuple(out.shape[1:])}"
        )
    return out


def check_codes(z: Any, latents: int, word: str = "codes") -> Tensor:
    """Return codes, a tensor or an array, as a tensor; raise ValueError unless they are real numbers, `(N, latents)`."""
    try:
        codes = torch.as_tensor(np.ascontiguousarray(z) if isinstance(z, np.ndarray) else z)
        codes = codes if codes.layout == torch.strided else codes.to_dense()
    except (TypeError, ValueError, RuntimeError):
        codes = torch.zeros((), dtype=torch.bool)
    if codes.is_complex() or codes.dtype == torch.bool:
        got = z.dtype if isinstance(z, (Tensor, np.ndarray)) else type(z).__name__
        raise ValueError(f"{word} must be a tensor of numbers of shape (N, {latents}), got {got}")
    if codes.dim() != 2 or codes.shape[1] != latents:
        raise ValueError(f"{word} must have the shape (N, {latents}), got {tuple(codes.shape)}")
    if not bool(codes.isfinite().all()):
        raise ValueError(f"{word} must be finite numbers, and row {int((~codes.isfinite()).any(1).nonzero()[0])} holds others")
    return codes


def check_pictures(x: Tensor, shape: tuple[int, ...], pixels: Pixels, *, drawn: bool = True) -> None:
    """Raise ValueError where pictures have another shape, or pixels outside of what can be drawn, or, undrawn, of their range."""
    if tuple(x.shape) == shape:
        raise ValueError(
            f"these pictures have the shape {shape}, which is that of a single one; give (N, ...) of them, x[None] for one"
        )
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"the model is of pictures of shape {shape}, and these have {tuple(x.shape[1:])}; make it with shape={tuple(x.shape[1:])}"
        )
    (pixels.check if drawn else pixels.check_range)(x)


def picture_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple, NumPy's whole numbers as Python's."""
    sizes = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    return tuple(int(size) if isinstance(size, np.integer) else size for size in sizes)  # type: ignore[misc]


def check_sizes(shape: tuple[int, ...], latents: int, hidden: Sequence[int], layers: str, activation: str) -> None:
    """Raise ValueError unless these make networks between pictures and codes."""
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ValueError(f"hidden takes the widths of the layers, such as (200, 200), got {hidden!r}")
    if not shape:
        raise ValueError("shape takes the number of pixels, (D,), or (C, H, W), got ()")
    numbers = {"shape": shape, "hidden": tuple(hidden), "latents": (latents,)}
    for name, values in numbers.items():
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(f"{name} takes whole numbers of at least 1, got {values if len(values) != 1 else values[0]!r}")
    if layers not in LAYERS:
        raise ValueError(f"layers must be {' or '.join(repr(word) for word in LAYERS)}, got {layers!r}")
    if layers == "conv" and (len(shape) != 3 or len(hidden) < 2):
        raise ValueError(
            "layers='conv' takes pictures of shape (C, H, W), and in hidden the filters of at least one convolution and a last dense "
            f"layer, such as (16, 32, 128); got shape {shape} and hidden {tuple(hidden)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{activation}'; choose one of {', '.join(ACTIVATIONS)}")
