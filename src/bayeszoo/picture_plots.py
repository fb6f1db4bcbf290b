"""Figures of autoencoders: samples, reconstructions, the plane of codes, what each number of a code does.

Each draws into `ax`, or into a new figure, and returns the axes; all are names of `bayeszoo.plots`.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F

from .data import Data
from .figure import GREY, open_axes
from .inference import Fit
from .inference.asked_rows import knows_training_rows_alone
from .inference.draws import check_seed
from .inference.prediction.new_inputs import new_observations
from .inference.prediction.picture_statistics import plane
from .inference.target.program import check_data
from .models import SemiSupervisedVAE


def plot_pictures(
    pictures: Tensor, *, columns: int = 10, size: tuple[int, int] | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Pictures side by side, row by row, black on white.

    Args:
        pictures: `(N, H, W)`, `(N, 1, H, W)`, `(N, 3, H, W)` in colours, or `(N, D)` vectors.
        columns: pictures in a row.
        size: (H, W), for vectors that are no squares.
    """
    if pictures.dim() < 2 or not len(pictures):
        raise ValueError(f"pictures must have the shape (N, ...) with at least one of them, got {tuple(pictures.shape)}")
    channels, height, width = plane(tuple(pictures.shape[1:]), size)
    _check_count("columns", columns)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    found = pictures.detach().cpu().float().reshape(-1, channels, height, width).clamp(0, 1)
    empty = 1.0 if channels == 3 else 0.0
    found = F.pad(found, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(found)), value=empty)
    tiles = F.pad(found, (0, 1, 0, 1), value=0.75 if channels == 3 else 0.25).reshape(
        rows, columns, channels, height + 1, width + 1
    )
    whole = tiles.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    ax = open_axes(ax, size=(0.55 * columns + 0.4, 0.55 * rows + 0.4))
    if channels == 3:
        ax.imshow(whole.numpy())
    else:
        ax.imshow(whole.mean(-1).numpy(), cmap="Greys", vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
    return ax


def plot_samples(fit: Fit, n: int = 60, *, columns: int = 10, seed: int = 0, ax: Axes | None = None) -> Axes:
    """Expected pictures of n codes that are drawn from the prior; drawn pixels are `fit.predict(num_data=n, n=1).draws[0]`."""
    decode, width = _decoder(fit)
    _check_count("n", n)
    check_seed(seed)
    codes = torch.randn(n, width, generator=torch.Generator().manual_seed(int(seed)))
    return plot_pictures(decode(codes), columns=columns, title="codes drawn from the prior, decoded", ax=ax)


def plot_reconstructions(
    fit: Fit, data: Data | Tensor | None = None, n: int = 20, *, columns: int = 10, ax: Axes | None = None
) -> Axes:
    """The first n pictures, and under each row of them what is decoded from their codes' posterior means.

    Args:
        data: pictures; None takes the training data.
    """
    decode, _ = _decoder(fit)
    _check_count("n", n)
    _check_count("columns", columns)
    shown = _observations(fit, data)
    some = shown.select(slice(0, n))
    originals = some.observed_dict(fit.model)["x"].cpu()
    # A guide that has a row for each training picture is asked about all of them.
    rows = shown is fit.data and knows_training_rows_alone(fit.run.asked(fit.data), fit.program)
    again = decode(fit.active_units(shown if rows else some).codes[: len(originals)]).reshape(originals.shape)
    columns = min(columns, len(originals))
    pairs = [part for k in range(0, len(originals), columns) for part in _row(originals, again, k, columns)]
    return plot_pictures(torch.cat(pairs), columns=columns, title="above the picture, below its code decoded", ax=ax)


def plot_plane(fit: Fit, n: int = 17, *, ax: Axes | None = None) -> Axes:
    """What a generator of two latents makes of codes on a grid of n x n, each of which stands for the same share of the prior."""
    decode, width = _decoder(fit)
    if width != 2:
        raise ValueError(
            f"the plane of codes is for two latents, and this model has {width}; see plot_traversals or plot_codes"
        )
    _check_count("n", n)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n)
    across, up = torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy")
    return plot_pictures(decode(torch.stack([across, up], -1).reshape(-1, 2)), columns=n, title="decoded codes", ax=ax)


def plot_codes(fit: Fit, data: Data | Tensor | None = None, labels: Any = None, *, ax: Axes | None = None) -> Axes:
    """Posterior means of codes as points, coloured by class; of more than two latents the two principal components.

    Args:
        data: observations; None takes the training data.
        labels: (N,) classes; None takes the data's own, which `unsupervised()` and `partly_labelled()` put aside.
    """
    shown = _observations(fit, data)
    codes = fit.active_units(shown).codes.double()
    if len(codes) < 2:
        raise ValueError("a plane of codes needs at least two observations, and there is one")
    names = ("$z_1$", "$z_2$")
    if codes.shape[1] > 2:
        centred = codes - codes.mean(0)
        _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
        share = spread.square() / spread.square().sum()
        codes = centred @ axes[:2].T
        names = tuple(f"principal component {k + 1} ({share[k]:.0%} of the variance)" for k in (0, 1))  # type: ignore[assignment]
    if codes.shape[1] < 2:
        raise ValueError("a plane of codes needs at least two latents, and this model has one")
    if labels is None:
        labels = next((shown.truth[key] for key in ("y", "c") if key in shown.truth), None)
    ax = open_axes(ax, size=(5.6, 5.6))
    if labels is None:
        ax.plot(*codes.T.numpy(), "o", ms=3, color=GREY, alpha=0.7)
    else:
        classes = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if classes.shape != (len(codes),):
            raise ValueError(f"labels must be one class for each of the {len(codes)} observations, got shape {classes.shape}")
        if classes.dtype.kind not in "biu":  # words, or what is to be shown as such
            classes = classes.astype(str)
        for k, label in enumerate(np.unique(classes).tolist()):
            at = codes[torch.from_numpy(classes == label)]
            ax.plot(*at.T.numpy(), "o", ms=3, color=plt.get_cmap("tab10")(k % 10), alpha=0.6)
            middle = at.median(0).values
            ax.text(float(middle[0]), float(middle[1]), str(label), size=14, weight="bold", ha="center", va="center")
    ax.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    return ax


def plot_traversals(
    fit: Fit, data: Data | Tensor | None = None, row: int = 0, *, reach: float = 2.5, columns: int = 11, ax: Axes | None = None
) -> Axes:
    """One number of a code at a time, from -reach to reach, the others as in one observation's; the most active number in the first row.

    Args:
        data: observations that say which numbers are active; None takes the training data.
        row: whose code.
    """
    decode, width = _decoder(fit)
    _check_count("columns", columns)
    units = fit.active_units(data)
    if isinstance(reach, bool) or not isinstance(reach, Real) or not math.isfinite(reach):
        raise ValueError(f"reach is how far a number of the code moves to either side, got {reach!r}")
    if isinstance(row, bool) or not isinstance(row, Integral) or not 0 <= row < len(units.codes):
        raise ValueError(f"row is the number of an observation, from 0 to {len(units.codes) - 1}, got {row!r}")
    moved = units.codes[row].float().repeat(width, columns, 1)
    for k, unit in enumerate(units.order.tolist()):
        moved[k, :, unit] = torch.linspace(-reach, reach, columns)
    title = f"latents from {-reach:g} to {reach:g}, the most active first ({units.count} of {width} active)"
    return plot_pictures(decode(moved.flatten(0, 1)), columns=columns, title=title, ax=ax)


def plot_styles(fit: Fit, data: Data | Tensor | None = None, n: int = 8, *, ax: Axes | None = None) -> Axes:
    """The first n pictures of a `SemiSupervisedVAE`, and right of each its style, decoded as every class (Kingma et al. 2014, figure 1).

    Args:
        data: pictures; None takes the training data.
    """
    if not isinstance(fit.model, SemiSupervisedVAE):
        raise ValueError(
            f"styles are what a SemiSupervisedVAE knows beside the class, and the model is {type(fit.model).__name__}"
        )
    _check_count("n", n)
    some = _observations(fit, data).select(slice(0, n))
    originals, classes = some.observed_dict(fit.model)["x"].cpu(), fit.model.classes
    z = fit.sample(1, data=some)["z"][0]
    with torch.no_grad():
        again = fit.model.decode(z.repeat_interleave(classes, 0), torch.arange(classes).repeat(len(z))).cpu()
    rows = torch.cat([originals.unsqueeze(1), again.unflatten(0, (-1, classes)).to(originals)], 1)
    return plot_pictures(rows.flatten(0, 1), columns=classes + 1, title="a picture, and its style as every class", ax=ax)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _observations(fit: Fit, data: Any) -> Any:
    """The data that a figure shows: pictures given as they are become data like the training data."""
    if data is None:
        return fit.data
    given = new_observations(fit.data, torch.as_tensor(data)) if isinstance(data, (Tensor, np.ndarray)) else data
    check_data(fit.model, given, new=True)
    return given


def _row(originals: Tensor, again: Tensor, k: int, columns: int) -> list[Tensor]:
    """One row of pictures and one of reconstructions, filled up with empty ones."""
    parts = [pictures[k : k + columns] for pictures in (originals, again)]
    return [torch.cat([part, part.new_zeros(columns - len(part), *part.shape[1:])]) for part in parts]


def _decoder(fit: Fit) -> tuple[Any, int]:
    """From codes to pictures on the CPU, and how many numbers a code has."""
    latents = [name for name, site in fit.program.local.items() if not site.discrete]
    if not hasattr(fit.model, "decode") or len(fit.program.latents) != 1 or len(latents) != 1:
        raise ValueError(
            f"these figures are of a VAE, whose codes are decoded to pictures, and the model is {type(fit.model).__name__}"
            + ("; see plot_styles" if isinstance(fit.model, SemiSupervisedVAE) else "")
        )

    def decode(codes: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = fit.model.decode(codes).cpu()
        return found

    return decode, fit.program.latents[latents[0]].shape[-1]
