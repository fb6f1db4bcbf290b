"""The zoo's models by name: what the command line, checkpoints and defaults look up."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import data as bzdata
from . import models
from .data.labelled import stratified_order


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: as the command line spells it.
        build: the class.
        guide: its matching family, taken where none is named.
        make: `(data) -> model`, the model as it suits a data set.
        dataset: the data set that it is shown with, `(name, options)` of `bayeszoo.data.load`.
        summary: one line.
        explains: `(data) -> data` for a model that explains the inputs themselves, applied to data that have inputs.
    """

    name: str
    build: type
    guide: str
    make: Callable[[Any], Any]
    dataset: tuple[str, dict[str, Any]]
    summary: str
    explains: Callable[[Any], Any] | None = None

    def data(self, loaded: Any) -> Any:
        """A data set as the model wants it: one that explains the inputs themselves takes them as observed."""
        return self.explains(loaded) if self.explains is not None and "x" in loaded.inputs else loaded

    def model(self, data: Any) -> Any:
        """The model as it suits a data set, marked so that a saved fit can be read back without it."""
        made = self.make(data)
        made.from_catalog = True
        return made


def _network(data: Any) -> models.BayesianNN:
    """One hidden layer of 50, for classes where the target holds whole numbers, for numbers otherwise."""
    x, y = data.inputs["x"], data.observed
    size = x[0].numel()
    if y.is_floating_point():
        return models.BayesianNN(models.networks.mlp(size, [50], 1), "gaussian")
    return models.BayesianNN(models.networks.mlp(size, [50], int(y.max()) + 1))


def _layers(data: Any) -> models.AdaptiveDepthResNet:
    """Six layers of 32."""
    if data.observed.is_floating_point():
        raise ValueError(
            "adaptive_depth tells classes apart, and the target holds numbers; use bayesian_nn or linear_regression"
        )
    net = models.networks.residual_mlp(data.inputs["x"][0].numel(), int(data.observed.max()) + 1, depth=6, width=32)
    return models.AdaptiveDepthResNet(net, "geometric", 0.9)


def _autoencoder(data: Any) -> models.VAE:
    """Two latents; pixels by what they are."""
    x = data.observed
    word, levels = _pixels(x)
    return models.VAE(tuple(x.shape[1:]), 2, word, (128, 64), levels=levels)


def _classified(data: Any) -> models.SemiSupervisedVAE:
    """Ten numbers of style; pixels by what they are."""
    if not isinstance(data.observed, Mapping) or "c" not in data.truth:
        raise ValueError(
            "semi_supervised_vae explains pictures and their classes, and these data have no inputs with classes; use vae"
        )
    x, word, levels = data.observed["x"], *_pixels(data.observed["x"])
    classes = int(data.truth["c"].max()) + 1
    return models.SemiSupervisedVAE(tuple(x.shape[1:]), classes, 10, word, (128, 64), levels=levels)


def _pixels(x: Any) -> tuple[str, int]:
    """Likelihood and levels of pixels: zeros and ones, 17 or 256 grey levels, or any numbers."""
    inside = float(x.min()) >= 0 and float(x.max()) <= 1
    for levels in (2, 17, 256):
        top = levels - 1
        if inside and bool(((x * top - (x * top).round()).abs() < 1e-3).all()):
            return ("bernoulli" if levels == 2 else "logistic"), levels
    return "gaussian", 256


def _few_labels(loaded: Any) -> Any:
    """Pictures that keep the labels of ten a class, other labels hidden."""
    labels = loaded.observed
    if labels.is_floating_point():
        raise ValueError("semi_supervised_vae explains pictures and their classes, and the target holds numbers; use vae")
    order = stratified_order(labels, seed=0)
    return loaded.partly_labelled(torch.cat([order[labels[order] == k][:10] for k in labels.unique()]))


_ENTRIES = (
    Entry(
        "coin_flip",
        models.CoinFlip,
        "beta",
        lambda data: models.CoinFlip(),
        ("coin_flips", {}),
        "pi ~ Beta(alpha, beta), x ~ Bernoulli(pi): one bias for all flips",
    ),
    Entry(
        "hierarchical_coin",
        models.HierarchicalCoin,
        "structured",
        lambda data: models.HierarchicalCoin(),
        ("coin_flips", {}),
        "each person's bias is drawn from a population",
    ),
    Entry(
        "linear_regression",
        models.BayesianLinearRegression,
        "full_rank",
        lambda data: models.BayesianLinearRegression(dim=data.dim),
        ("diabetes", {}),
        "y ~ N(theta . x, sigma^2) with a normal prior on theta",
    ),
    Entry(
        "bayesian_nn",
        models.BayesianNN,
        "mean_field",
        _network,
        ("digits", {}),
        "a network with a normal prior on its weights; here one hidden layer of 50",
    ),
    Entry(
        "adaptive_depth",
        models.AdaptiveDepthResNet,
        "exact",
        _layers,
        ("digits", {}),
        "a residual network that uses as many layers as an input needs; here up to 6",
    ),
    Entry(
        "vae",
        models.VAE,
        "amortized",
        _autoencoder,
        ("digits", {}),
        "pictures from a few hidden numbers each, through a network; here two",
        explains=lambda loaded: loaded.unsupervised(),
    ),
    Entry(
        "semi_supervised_vae",
        models.SemiSupervisedVAE,
        "semi_supervised",
        _classified,
        ("digits", {}),
        "pictures from a class and a style, most classes unknown; here all but ten labels a class",
        explains=_few_labels,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def entry(name: str) -> Entry:
    """The model of that name.

    Raises:
        ValueError: naming the nearest names.
    """
    if name not in ENTRIES:
        near = difflib.get_close_matches(name, list(ENTRIES), 3, 0.4)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
        raise ValueError(f"unknown model '{name}'; {hint}the zoo has {', '.join(ENTRIES)}")
    return ENTRIES[name]


def entry_of(model: Any) -> Entry | None:
    """The entry of a zoo model, None for any other callable."""
    return next((e for e in _ENTRIES if type(model) is e.build), None)


def default_data(name: str) -> Any:
    """The data set that a model is shown with."""
    found = entry(name)
    dataset, options = found.dataset
    return found.data(bzdata.load(dataset, **options))
