"""ArviZ's groups from arrays: variables with named dimensions and coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..target.program import Program, sample_sites, some_trace
from .function_space import F, Functions
from .labels import SAMPLE_DIMS, Labels, whole_numbers
from .tree_arrays import Arrays

if TYPE_CHECKING:
    from ..likelihood.log_marginal import LogMarginal
    from ..result import Fit

#: name -> (dimensions, values, the model's site).
Variables = Mapping[str, tuple[tuple[str, ...], Any, str]]


def dataset(labels: Labels, variables: Variables) -> xr.Dataset:
    """Variables with the coordinates of the dimensions that they use."""
    data = {}
    sizes: dict[str, int] = {}
    for name, (dims, values, site) in variables.items():
        data[name] = xr.Variable(dims, values, {} if site in ("", name) else {"site": site})
        sizes |= dict(zip(dims, np.shape(values), strict=True))
    coords: dict[str, Any] = {}
    for dim, size in sizes.items():
        values = labels.coords.get(dim) if dim not in SAMPLE_DIMS else None
        coords[dim] = values if values is not None and len(values) == size else np.arange(size)
    return xr.Dataset(data, coords=coords)


def samples(labels: Labels, names: Iterable[str], arrays: Arrays) -> xr.Dataset:
    """Draws of sites, and of f where the arrays hold it."""
    return dataset(
        labels,
        {
            labels.variables[k]: ((*SAMPLE_DIMS, *labels.dims[k]), arrays[k], "" if k == F else k)
            for k in (*names, F)
            if k in arrays
        },
    )


def log_likelihood_group(labels: Labels, program: Program, arrays: Arrays) -> xr.Dataset:
    """One value an observation and draw; sites that have one together are one variable, whose attribute `site` names them."""
    dims = (*SAMPLE_DIMS, labels.observation)
    alone = {labels.variables[k]: (dims, arrays[k], k) for k in program.observed if k in arrays}
    together = {"_".join(labels.variables[k] for k in sites): sites for sites in arrays if isinstance(sites, tuple)}
    return dataset(labels, alone | {name: (dims, arrays[sites], ", ".join(sites)) for name, sites in together.items()})


def marginal_group(labels: Labels, found: LogMarginal) -> xr.Dataset:
    """log p(x) of each observation, its latents integrated out, and how far that can be trusted."""
    values = {"log_p": found.values, "error": found.errors, "elbo": found.elbo, "ess": found.ess, "k_hat": found.k_hat}
    group = dataset(labels, {name: ((labels.observation,), np.asarray(value), "") for name, value in values.items()})
    return group.assign_attrs(units="nats", draws=found.k)


def stats_group(arrays: Arrays) -> xr.Dataset:
    """log p and log q of the draws."""
    variables = {name: xr.Variable(SAMPLE_DIMS, values, {"units": "nats"}) for name, values in arrays.items()}
    sizes = next(iter(variables.values())).sizes if variables else {}
    return xr.Dataset(variables, coords={dim: np.arange(size) for dim, size in sizes.items()})


def observed_values(fit: Fit, data: Any) -> dict[str, Tensor]:
    """What the model sees at its observed sites when it is called with the data, in the model's units."""
    return {k: site["value"] for k, site in _observed_sites(fit, data).items()}


def _observed_sites(fit: Fit, data: Any) -> dict[str, Any]:
    with fit.run.owned.active(0), torch.no_grad():
        trace = some_trace(fit.model, data)
    return {k: site for k, site in sample_sites(trace) if k in fit.program.observed}


def _shown(site: Any) -> Tensor:
    """A site's value, -1 or NaN where a mask hides it: the label of an unlabelled picture."""
    value, mask = site["value"], site["mask"]
    if not isinstance(mask, Tensor) or bool(mask.all()):
        return value
    nothing = math.nan if value.is_floating_point() else -1
    event = value.dim() - len(site["fn"].batch_shape)
    shown = mask.expand(site["fn"].batch_shape)
    return torch.where(shown.reshape(shown.shape + (1,) * event), value, torch.full_like(value, nothing))


def observed_group(fit: Fit, labels: Labels) -> xr.Dataset:
    """What the model was conditioned on."""
    values = {k: _shown(site) for k, site in _observed_sites(fit, fit.data).items()}
    return dataset(
        labels,
        {labels.variables[k]: (labels.dims[k], whole_numbers(values[k], site), k) for k, site in fit.program.observed.items()},
    )


def constant_group(fit: Fit, labels: Labels, functions: Functions | None = None) -> xr.Dataset:
    """The model's inputs, the constants that are numbers or tensors, and `f_x`, the inputs of f."""
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {}
    taken = set(labels.variables.values()) | set(labels.sizes) | {"column"}
    features = tuple(getattr(fit.data, "feature_names", ()) or ())
    items: list[tuple[str, Any, str]] = [(key, value, labels.observation) for key, value in fit.data.inputs.items()]
    items += [(key, value, "") for key, value in fit.data.constants.items()]
    if functions is not None:
        items.append((f"{labels.variables[F]}_x", functions.x, labels.dims[F][0]))
    for key, value, rows in items:
        if not isinstance(value, (Tensor, int, float)):
            continue
        array = torch.as_tensor(value).detach().cpu()
        numbers = (array.long() if array.dtype == torch.bool else array).numpy()
        name = f"{key}_" if key in taken else key
        dims = [f"{name}_dim_{d}" for d in range(numbers.ndim)]
        if rows:
            dims[0] = rows
            if key.endswith("x") and numbers.ndim == 2 and len(features) == numbers.shape[1]:
                dims[1] = "column"
                labels.coords["column"] = np.asarray(features)
        variables[name] = (tuple(dims), numbers, key)
    return dataset(labels, variables)
