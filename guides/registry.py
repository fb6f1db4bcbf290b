"""Guide families by name."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..inference.target.program import BoundData, describe
from . import mixed
from .amortized import Amortized, AmortizedFlow, AmortizedFullRank, PerDatum
from .beta import BetaGuide
from .discrete import WORDS as DISCRETE_WORDS
from .discrete import DiscreteGuide
from .dropout import ConcreteDropout, DropConnect, McDropout
from .ensemble import Ensemble
from .exact import Exact
from .flow import InverseAutoregressive, SplineFlow
from .full_rank import FullRank, Laplace
from .low_rank import LowRank
from .mean_field import MeanField
from .point import Map, Mle
from .semi_supervised import SemiSupervised
from .structured import Structured
from .variational_dropout import GaussianDropout, SparseVariationalDropout

type GuideBuilder = Callable[..., Any]


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Attributes:
        build: the builder `(model, data, **options) -> guide`.
        objective: `elbo`, a bound (loss >= -log evidence; k-hat and LOO apply), or `surrogate`.
        summary: what it is, in one line.
    """

    name: str
    build: GuideBuilder
    objective: str
    summary: str


_BUILDERS: tuple[tuple[Any, str], ...] = (
    (Exact, "the exact posterior, where the model knows it, or where all latents are discrete and summed out"),
    (Map, "the posterior mode in the model's own parametrisation"),
    (Mle, "the maximum of the likelihood; the prior plays no part"),
    (Laplace, "a Gaussian at the mode with the curvature's covariance, its diagonal above 400 latents"),
    (MeanField, "independent normals in unconstrained coordinates"),
    (LowRank, "a normal with a few correlated directions"),
    (FullRank, "a multivariate normal over all latents"),
    (Structured, "full rank over the shared latents, and each observation's latents given them"),
    (InverseAutoregressive, "an inverse autoregressive flow"),
    (SplineFlow, "a neural spline flow"),
    (Amortized, "latents of single observations: normals from an inference network"),
    (AmortizedFullRank, "the same with correlations"),
    (AmortizedFlow, "the same with an inverse autoregressive flow"),
    (PerDatum, "latents of single observations: a table of normals, a row for each"),
    (SemiSupervised, "pictures with few labels: a classifier, and a style given picture and class"),
    (McDropout, "networks: inputs of layers dropped at a fixed rate; the masks are the latents"),
    (DropConnect, "networks: single weights dropped at a fixed rate"),
    (ConcreteDropout, "networks: dropout whose rates are learned"),
    (GaussianDropout, "networks: multiplicative normal noise of learned size, under the log-uniform prior"),
    (SparseVariationalDropout, "networks: a noise of its own for each weight, under the log-uniform prior; prunes"),
    (Ensemble, "several modes from different starts, trained as one"),
    (BetaGuide, "independent Beta distributions for latents in (0, 1)"),
)

FAMILIES: dict[str, Family] = {g.family: Family(g.family, g, g.objective, text) for g, text in _BUILDERS}


def get(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: naming the nearest names.
    """
    if name not in FAMILIES:
        if name in DISCRETE_WORDS:
            raise ValueError(
                f"'{name}' is a guide of a discrete latent, which is given by its name: guide={{'z': '{name}'}} for a site z"
            )
        near = difflib.get_close_matches(name, list(FAMILIES), 3, 0.4)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
        raise ValueError(f"unknown guide '{name}'; {hint}the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def checked_name(name: str) -> str:
    """The name, or a line of parts with the family of the weights checked.

    Raises:
        ValueError: naming the nearest names.
    """
    if not mixed.is_mixed(name):
        return get(name).name
    parts = mixed.parse(name)
    if mixed.CONTINUOUS in parts:
        get(parts[mixed.CONTINUOUS])
    return mixed.in_words(parts)


def build(name: str, model: Callable[..., Any], data: BoundData, *, discrete: str = "marginalize", **options: Any) -> Any:
    """The guide of a family for one model; with `discrete="guide"` it also covers the discrete latents. Modules among the options are copied."""
    options = {name: copy.deepcopy(value) if isinstance(value, nn.Module) else value for name, value in options.items()}
    try:
        if mixed.is_mixed(name):
            return mixed.build(mixed.parse(name), model, data, lambda part: get(part).build, **options)
        family = get(name)
        if discrete == "guide" and describe(model, data).discrete:
            return DiscreteGuide(model, data, family.build, **options)
        return family.build(model, data, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ValueError(f"guide '{name}' has no such option: {str(error).split('got an ')[-1]}") from error
        raise


def available(model: Callable[..., Any], data: BoundData | None = None) -> list[str]:
    """The families that fit a model.

    Args:
        data: what the model will be fitted to; a zoo model may be asked without it, with data simulated from itself.
    """
    if data is None:
        data = _sample_data(model)
    return [name for name in FAMILIES if fits(name, model, data)]


def fits(name: str, model: Callable[..., Any], data: BoundData) -> bool:
    """Whether a family fits a model."""
    try:
        get(name).build(model, data)
    except ValueError:
        return False
    return True


def _sample_data(model: Callable[..., Any]) -> Any:
    make = getattr(model, "example_data", None)
    if make is None:
        raise ValueError("available(model) needs data to see the model's latents: available(model, data)")
    return make()
