"""How strange observations are to a model of them, by three scores, none of which works everywhere.

    likelihood    -log p(x)                   a model may give simple strangers more than its own kind (Nalisnick et al. 2019a)
    complexity    -log p(x) - L(x)            L(x) the length of x as zlib packs it (Serra et al. 2020)
    typicality    |mean log p(x) - typical|   of one observation or of several of a kind, `typical` that of the training data
                                              (Nalisnick et al. 2019b)

All in nats an observation, higher for what is stranger. Lecture: "Bayesian Generative Models" (out-of-domain detection).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..prediction.scores import auroc
from .log_marginal import local_data, log_marginal

_REAL = (torch.float32, torch.float64, np.float32, np.float64)
#: Observations of the training data that say what is typical.
TYPICAL = 1000


@dataclass(frozen=True)
class Strangeness:
    """Scores of N observations, on the host.

    Attributes:
        log_p: (N,) log p(x) in nats.
        lengths: (N,) code lengths in nats; None where the model does not say of how many grey levels pictures are.
        typical: mean log p(x) of training data.
    """

    log_p: Tensor
    lengths: Tensor | None
    typical: float

    @property
    def likelihood(self) -> Tensor:
        """(N,) -log p(x)."""
        return -self.log_p

    @property
    def complexity(self) -> Tensor | None:
        """(N,) -log p(x) - L(x)."""
        return None if self.lengths is None else -self.log_p - self.lengths

    @property
    def typicality(self) -> Tensor:
        """(N,) how far log p(x) lies from what is typical, to either side."""
        return self.typicality_of(1)

    def typicality_of(self, group: int) -> Tensor:
        """(N // group,) the same of the mean over so many observations in a row, of which the rest is left out.

        Raises:
            ValueError: there are fewer.
        """
        if isinstance(group, bool) or not isinstance(group, Integral) or not 1 <= group <= len(self.log_p):
            raise ValueError(f"group is a number of observations from 1 to {len(self.log_p)}, got {group!r}")
        size = int(group)
        means = self.log_p[: len(self.log_p) // size * size].reshape(-1, size).mean(1)
        return (means - self.typical).abs()

    def auroc(self, strangers: Strangeness) -> dict[str, float]:
        """For each score the chance that a stranger's is higher than one of these: 1 tells all apart, 0.5 none, below 0.5 it is misled.

        Raises:
            ValueError: these are no scores of the same fit.
        """
        if not isinstance(strangers, Strangeness):
            raise ValueError(f"auroc takes the scores of strangers, fit.out_of_domain(x), got {type(strangers).__name__}")
        if (strangers.lengths is None) != (self.lengths is None) or not math.isclose(
            strangers.typical, self.typical, rel_tol=1e-6
        ):
            raise ValueError(
                f"scores compare where what is typical is the same, and these know {self.typical:.6g} and {strangers.typical:.6g} nats; take "
                "both from one fit, with the same k and seed, or pass typical="
            )
        pairs = {"likelihood": (self.likelihood, strangers.likelihood), "complexity": (self.complexity, strangers.complexity)}
        pairs["typicality"] = (self.typicality, strangers.typicality)
        return {name: auroc(a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}

    def __len__(self) -> int:
        return len(self.log_p)


def out_of_domain(fit: Any, data: Any, k: int = 300, *, typical: float | None = None, seed: int = 0) -> Strangeness:
    """Scores observations; `Fit.out_of_domain` documents the arguments."""
    if isinstance(typical, Tensor | np.ndarray) and typical.ndim == 0 and typical.dtype in _REAL:
        typical = float(typical)
    if typical is None:
        rows = torch.linspace(0, len(fit.data) - 1, min(TYPICAL, len(fit.data))).round().long().unique()
        alone = _without_labels(fit, fit.data)
        if alone is fit.data:
            typical = log_marginal(fit, k=k, seed=seed, k_hat=False, rows=rows).mean
        else:
            typical = log_marginal(fit, alone[rows], k, seed=seed, k_hat=False).mean
    elif isinstance(typical, bool) or not isinstance(typical, Real) or not math.isfinite(typical):
        raise ValueError(f"typical is the mean log p(x) of training data in nats, got {typical!r}")
    data = _without_labels(fit, fit.data if data is None else data)
    log_p = log_marginal(fit, None if data is fit.data else data, k, seed=seed, k_hat=False).values
    data = fit.data if data is fit.data else local_data(fit, data)
    levels = _levels(fit.model)
    pictures = data.bind(fit.model).get("x")
    known = levels is not None and isinstance(pictures, Tensor)
    return Strangeness(log_p, _lengths(pictures, levels) if known else None, float(typical))  # type: ignore[arg-type]


def _without_labels(fit: Any, data: Any) -> Any:
    """The pictures alone, where classes are latents: how strange a picture is does not hang on whether somebody has named it."""
    observed = getattr(data, "observed", None) if not getattr(data, "streamed", False) else None
    both = hasattr(fit.model, "classes") and isinstance(observed, Mapping) and set(observed) == {"x", "y"}
    return observed["x"] if both else data  # type: ignore[index]


def _levels(model: Any) -> int | None:
    """Of how many grey levels between 0 and 1 a model's pixels are; None for real numbers, and for models that do not say."""
    pixels = getattr(model, "pixels", None)
    word = getattr(pixels, "word", "")
    if word == "bernoulli":
        return 2
    return int(pixels.levels) if pixels is not None and word in ("categorical", "logistic") else None


def _lengths(pictures: Tensor, levels: int) -> Tensor:
    """(N,) nats."""
    size = torch.uint8 if levels <= 256 else torch.int32
    raw = (pictures.detach().cpu() * (levels - 1)).round().to(size).flatten(1).numpy()
    return torch.tensor([8 * math.log(2) * len(zlib.compress(row.tobytes(), 9)) for row in raw], dtype=torch.float64)
