"""How deep a network of adaptive depth should be for single inputs: p(z | x, y), and q(z | x) where the guide has one.

Draws of z say the same with noise. Where weights are latent, probabilities are averaged over their draws:
p(z | x, y) = E_{q(w)} p(z | x, y, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..draws import Draws
from ..prediction.new_inputs import check_scale
from ..target.density import EachDraw
from .function_space import MOST_INPUTS, at_once

if TYPE_CHECKING:
    from ..result import Fit
    from ..run import Run


def has_depths(model: Any) -> bool:
    """Whether a model has a posterior of its depth, as `AdaptiveDepthResNet` has."""
    return hasattr(model, "depth_posterior")


@dataclass(frozen=True)
class Examples:
    """Inputs with their classes.

    Attributes:
        x: (M, ...) on the fit's device.
        y: (M,) classes.
        names: of the examples.
        rows: (M,) their places in the training data; None where they are others.
    """

    x: Tensor
    y: Tensor
    names: np.ndarray
    rows: Tensor | None


def examples_at(fit: Fit, wanted: Any = None) -> Examples:
    """The examples whose depth is looked at.

    Args:
        wanted: `Data`, scaled as the training data; None takes the first `MOST_INPUTS` of these.

    Raises:
        ValueError: for anything else, inputs of another shape, or examples without classes.
    """
    own = wanted is None
    data = fit.data if own else wanted
    if not hasattr(data, "inputs") or getattr(data, "observed", None) is None:
        raise ValueError(f"depths must be Data with inputs and classes, got {type(wanted).__name__}; use data.select(rows)")
    check_scale(fit.data, data)
    x, y, like = data.inputs["x"][: MOST_INPUTS if own else None], data.observed, fit.data.inputs["x"]
    if x.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"depths has inputs of the shape {tuple(x.shape)}, and the network takes (N, {', '.join(map(str, like.shape[1:]))})"
        )
    classes = fit.model.run({n: b for n, (b, _) in fit.model.initial_values().items()}, like[:1]).shape[-1]
    if float(y.min()) < 0 or float(y.max()) >= classes:
        raise ValueError(
            f"depths has labels from {float(y.min()):g} to {float(y.max()):g}, and the network tells 0 to {classes - 1} apart"
        )
    labels = tuple(getattr(data, "labels", ()) or ())[: len(x)]
    return Examples(
        x=x.to(device=fit.device, dtype=fit.dtype),
        y=y[: len(x)].to(fit.device),
        names=np.asarray(labels) if labels else np.arange(len(x)),
        rows=torch.arange(len(x), device=fit.device) if own else None,
    )


def depth_group(fit: Fit, all_draws: Sequence[Draws], at: Examples) -> tuple[xr.Dataset, str]:
    """Probabilities of 0 to L layers, and why q is absent.

    Returns:
        `prior` (depth), `posterior` and `guide` (chain, depth_input, depth) and `y` (depth_input); where all inputs share
        z, `posterior` given all training data and `guide` (chain, depth), and no examples.
    """
    each = fit.model.scope == "input"
    dims = ("chain", "depth_input", "depth") if each else ("chain", "depth")
    depths = np.arange(fit.model.depth + 1)
    posteriors = [_posterior(fit, run, draws, at) for run, draws in zip(fit.runs, all_draws, strict=True)]
    variables: dict[str, Any] = {
        "prior": ("depth", fit.model.probs.detach().cpu().numpy()),
        "posterior": (dims, np.stack(posteriors)),
    }
    coords: dict[str, Any] = {"depth": depths, "chain": np.arange(len(fit.runs))}
    if each:
        variables["y"] = ("depth_input", at.y.cpu().long().numpy())
        coords["depth_input"] = at.names
    note = ""
    if hasattr(fit.run.owned.guide, "probs") and "z" in getattr(fit.run.owned.guide, "sites", {}):
        try:
            variables["guide"] = (dims, np.stack([_guide(run, at) for run in fit.runs]))
        except ValueError as error:
            note = f"no q(z) of these examples: {error}"
    return xr.Dataset(variables, coords=coords), note


def _posterior(fit: Fit, run: Run, draws: Draws, at: Examples) -> np.ndarray:
    """(M, L + 1), or (L + 1,) where all training data share z."""
    model = run.owned.model
    x, y = (at.x, at.y) if model.scope == "input" else (fit.data.inputs["x"], fit.data.observed)
    weights = {name: draws.values[name] for name in model.sites}

    def one(w: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = model.depth_posterior(model.run(dict(w), x), y)
        return found

    with run.owned.active(0), torch.no_grad():
        probs = EachDraw()(one, weights, chunk=at_once(one, weights)).mean(0) if weights else one({})
    out: np.ndarray = probs.cpu().numpy()
    return out


def _guide(run: Run, at: Examples) -> np.ndarray:
    with run.owned.active(0), torch.no_grad():
        out: np.ndarray = run.owned.guide.probs("z", index=at.rows, x=at.x).cpu().numpy()
    return out
