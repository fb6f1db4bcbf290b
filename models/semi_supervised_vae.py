"""Semi-supervised autoencoder: a picture from its class and a style, classes known of a few pictures only.

    c_n ~ Categorical(1/K, ..., 1/K)      class
    z_n ~ N(0, I)                         style
    x_n ~ p(x | g(z_n, c_n))              pixels
    y_n = c_n                             where the label is known; y_n = -1 where it is not

Lecture: "Bayesian Generative Models"; the model M2 of Kingma, Rezende, Mohamed, Welling 2014. The guide `semi_supervised` has
q(c | x), a classifier, and q(z | x, c); the class is summed over wherever it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from . import picture_networks
from .contract import BoundData, data_plate
from .pixels import Pixels
from .vae import check_codes, check_pictures, check_sizes, picture_shape, pixel_numbers

#: log p(y | c) of a label that is not the class: no evidence outweighs it, and it is finite.
_WRONG = -1e25

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_WANTED = (
    "a semi-supervised autoencoder explains pictures and labels: make Data(inputs={}, observed={'x': pictures, 'y': labels}), "
    "labels -1 where unknown, or use data.partly_labelled(rows)"
)


class SemiSupervisedVAE(PyroModule):
    """A generator of pictures from a class and a standard normal style.

    Args:
        shape: of one picture: its number of pixels, `(D,)` or `(C, H, W)`.
        classes: K.
        latents: numbers of the style.
        likelihood, hidden, layers, activation, levels: as in `VAE`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        classes: int,
        latents: int = 20,
        likelihood: str = "bernoulli",
        hidden: Sequence[int] = (200, 200),
        layers: str = "dense",
        activation: str = "tanh",
        levels: int = 256,
    ) -> None:
        super().__init__()
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise ValueError(f"classes must be a whole number of at least 2, got {classes!r}")
        self.shape = picture_shape(shape)
        check_sizes(self.shape, latents, hidden, layers, activation)
        self.classes, self.latents, self.hidden = classes, latents, tuple(hidden)
        self.layers, self.activation = layers, activation
        self.pixels = Pixels(likelihood, levels)
        self.generator = picture_networks.generator(
            latents + classes, self.shape, self.pixels.per_pixel, hidden, layers, activation
        )

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Score pictures x and their labels y, or simulate both where they are None.

        Args:
            x: `(N, *shape)` pictures.
            y: `(N,)` labels 0 .. K - 1, -1 where unknown; None where all are.
            num_data: pictures in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            Pictures, observed or simulated, `(N, *shape)`.
        """
        like = next(self.parameters())
        plate = data_plate(None if x is None else len(x), num_data, index)
        rows = plate.subsample_size
        with plate:
            c = pyro.sample("c", dist.Categorical(logits=like.new_zeros(rows, self.classes)))
            z = pyro.sample("z", dist.Normal(like.new_zeros(rows, self.latents), 1.0).to_event(1))
            # Without labels: unknown ones of pictures that are given, simulated ones of pictures that are simulated.
            known = torch.full((rows,), x is None, device=like.device) if y is None else y >= 0
            with poutine.mask(mask=known):  # type: ignore[call-overload]
                told = dist.Categorical(logits=_WRONG * (1 - one_hot(c, self.classes, like)))
                pyro.sample("y", told, obs=None if x is None and y is None else (known.long() if y is None else y.clamp_min(0)))
            return pyro.sample("x", self.pixels.distribution(self._out(z, c), len(self.shape)), obs=x)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Return the expected pictures `(N, *shape)` of styles `(N, latents)` and classes `(N,)`.

        Raises:
            ValueError: a class is none of the model's, or these are no such styles.
        """
        like = next(self.parameters())
        styles = check_codes(z, self.latents, "styles").to(like)
        try:
            c = torch.as_tensor(c)
            known = c.dtype in _WHOLE and not bool(((c < 0) | (c >= self.classes)).any())
        except (TypeError, ValueError, RuntimeError):
            known = False
        if not known:
            raise ValueError(f"classes are a tensor of whole numbers from 0 to {self.classes - 1}, got {c!r}")
        if c.shape != (len(styles),):
            raise ValueError(f"classes are one for each of the {len(styles)} styles, got shape {tuple(c.shape)}")
        return self.pixels.mean(self._out(styles, c.to(like.device)))

    def inference_network(self) -> nn.Module:
        """Return a fresh body for the guide, from pictures to features, the generator's mirror image."""
        return picture_networks.body(self.shape, self.hidden, self.layers, self.activation)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "shape": self.shape, "classes": self.classes, "latents": self.latents, "likelihood": self.pixels.word,
            "hidden": self.hidden, "layers": self.layers, "activation": self.activation, "levels": self.pixels.levels,
        }  # fmt: skip

    def check(self, data: BoundData) -> None:
        """Raise ValueError for other pictures, labels that are none, no label at all, or a class without one."""
        if isinstance(getattr(data, "observed", None), Tensor):
            raise ValueError(_WANTED)
        self.check_new(data)
        y = data.bind(self)["y"]
        without = sorted(set(range(self.classes)) - set(y.unique().tolist()))
        if len(without) == self.classes:
            raise ValueError("no picture has a label, so classes could not be told apart; label some, or use VAE")
        if without:
            raise ValueError(
                f"class {without[0]} has no labelled picture, so nothing says what it is; label at least one of each"
            )

    def check_new(self, data: BoundData) -> None:
        """Raise ValueError where pictures that the model is asked about, with labels or without, have another shape or other classes."""
        observed = getattr(data, "observed", None)
        if isinstance(observed, Tensor) and "x" not in getattr(data, "inputs", {}):
            check_pictures(observed, self.shape, self.pixels)
            return
        if "x" in getattr(data, "inputs", {}) or not isinstance(observed, dict) or set(observed) != {"x", "y"}:
            raise ValueError(_WANTED)
        x, y = observed["x"], observed["y"]
        check_pictures(x, self.shape, self.pixels)
        if y.dim() != 1 or y.dtype not in (torch.int64, torch.int32) or int(y.min()) < -1 or int(y.max()) >= self.classes:
            raise ValueError(
                f"labels must be whole numbers from 0 to {self.classes - 1}, one a picture, or -1 where unknown; these are "
                f"{y.dtype}, of shape {tuple(y.shape)}, and run from {float(y.min()):g} to {float(y.max()):g}"
            )

    def check_encoded(self, x: Tensor) -> None:
        """Raise ValueError where pictures that are only to be classified have another shape or range; grey ones may be."""
        check_pictures(x, self.shape, self.pixels, drawn=False)

    def _out(self, z: Tensor, c: Tensor) -> Tensor:
        classes = one_hot(c, self.classes, z)
        shape = torch.broadcast_shapes(z.shape[:-1], classes.shape[:-1])
        codes = torch.cat([z.expand(*shape, -1), classes.expand(*shape, -1)], -1)
        return pixel_numbers(self.generator, codes, self.shape, self.pixels)


def one_hot(c: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return classes `(...)` as `(..., K)` zeros and ones; torch's own function reads values, which no compiled step can."""
    return (c.unsqueeze(-1) == torch.arange(classes, device=c.device)).to(like)
