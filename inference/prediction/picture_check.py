"""Posterior predictive check of a model of pictures: does what it draws look like the data, in numbers?

    p = P( T(x_rep) >= T(x) ),    x_rep ~ p(x_rep | D)

x_rep is a set of as many new pictures, with codes of their own from the prior and, of latents that all pictures share, draws of
the guide. T is the mean or the standard deviation over the set of one number a picture. p near 0 or 1 says that the model does
not draw such sets; of data from the model itself it is uniform (Rubin 1984; Gelman, Meng, Stern 1996).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ..draws import chunk_size, map_random, seed_of
from ..target.arrays import as_tensor
from ..target.program import Fix, check_data, require_data
from .new_inputs import new_inputs, new_observations, observed_site
from .picture_statistics import STATISTICS, Statistic, plane
from .prediction import map_values
from .predictive import latent_draws

if TYPE_CHECKING:
    import xarray as xr

    from ..result import Fit

SUMMARIES = ("mean", "sd")
#: What a variable of the tree cannot be called.
_DIMENSIONS = ("chain", "draw", "picture", "summary")
#: Pictures of the training data that are looked at, where no data are given.
PICTURES = 1000


@dataclass(frozen=True)
class PictureCheck:
    """Statistics of pictures and of sets drawn from the model, on the host.

    Attributes:
        observed: statistic -> (N,), of the data.
        replicated: statistic -> (n, N), of n sets of as many pictures.
    """

    observed: Mapping[str, Tensor]
    replicated: Mapping[str, Tensor]

    @property
    def p_values(self) -> dict[str, dict[str, float]]:
        """statistic -> `mean` and `sd` over the set -> share of sets, the data's own among them, with at least the data's value.

        NaN where the statistic is NaN for some picture.
        """
        found = {}
        for name, values in self.observed.items():
            sets, own = _summaries(self.replicated[name]), _summaries(values[None])
            found[name] = {k: _p_value(sets[k], own[k]) for k in SUMMARIES}
        return found

    def to_arviz(self) -> xr.DataTree:
        """A tree for `az.plot_ppc_tstat` and `az.plot_ppc_dist`.

        Every statistic is a variable of `posterior_predictive` (chain, draw, picture) and of `observed_data` (picture); the group
        `p_value` has the p-values (summary).
        """
        import xarray as xr

        p_values = self.p_values
        groups: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
            "posterior_predictive": {k: (("chain", "draw", "picture"), v.numpy()[None]) for k, v in self.replicated.items()},
            "observed_data": {k: (("picture",), v.numpy()) for k, v in self.observed.items()},
            "p_value": {k: (("summary",), np.array([p[s] for s in SUMMARIES])) for k, p in p_values.items()},
        }
        sizes = next(iter(self.replicated.values())).shape
        coords: dict[str, Any] = {
            "chain": [0],
            "draw": np.arange(sizes[0]),
            "picture": np.arange(sizes[1]),
            "summary": list(SUMMARIES),
        }
        return xr.DataTree.from_dict(
            {
                name: xr.Dataset(group, coords={d: coords[d] for dims, _ in group.values() for d in dims})
                for name, group in groups.items()
            }
        )

    def __str__(self) -> str:
        n, size = next(iter(self.replicated.values())).shape
        width = max(map(len, self.observed))
        lines = [
            f"{n} sets of {size} pictures drawn from the model",
            f"  {'':{width}}       {'data':>9}  {'model':>9}  {'sd':>8}  p",
        ]
        for name, ps in self.p_values.items():
            sets, own = _summaries(self.replicated[name]), _summaries(self.observed[name][None])
            for k in SUMMARIES:
                shown = f"{float(own[k]):9.4f}  {float(sets[k].mean()):9.4f}  {float(sets[k].std()):8.1g}  {ps[k]:.3f}"
                lines.append(f"  {name if k == SUMMARIES[0] else '':{width}}  {k:4} {shown}")
        return "\n".join(lines)


def _p_value(sets: Tensor, own: Tensor) -> float:
    """NaN where a statistic has no value for some picture."""
    if bool(sets.isnan().any() | own.isnan().any()):
        return math.nan
    return (1 + int((sets >= own).sum())) / (1 + len(sets))


def _summaries(values: Tensor) -> dict[str, Tensor]:
    """Of sets (n, N): mean and sd of each."""
    return {"mean": values.mean(1), "sd": values.std(1)}


def _pictures_of(fit: Fit) -> str | None:
    """The one observed site that is an array an observation, where others are not: labels."""
    arrays = [name for name, site in fit.program.observed.items() if site.local and site.event_dim]
    return arrays[0] if len(arrays) == 1 else None


def check_pictures(
    fit: Fit,
    data: Any = None,
    n: int = 200,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    size: tuple[int, int] | None = None,
    site: str | None = None,
    seed: int | None = None,
) -> PictureCheck:
    """Compares pictures with sets drawn from the model; `Fit.check_pictures` documents the arguments."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 2:
        raise ValueError(f"n must be a whole number of sets to draw, at least 2, got {n!r}")
    n, seed = int(n), seed_of(fit, seed)
    found = observed_site(fit.program, site or _pictures_of(fit))
    if not found.local or found.event_dim < 1 or len(found.batch_shape) != 1:
        raise ValueError(
            f"check_pictures is for models of pictures, and '{found.name}' is no array an observation; use to_arviz"
        )
    if data is None:
        data = fit.data
        if len(data) > PICTURES:
            data = data.select(torch.linspace(0, len(data) - 1, PICTURES).round().long())
    if isinstance(data, (Tensor, np.ndarray)):
        data = new_observations(fit.data, as_tensor(data))
    require_data(data)
    data = data.to(fit.device, fit.dtype)
    check_data(fit.model, data, new=True)
    pictures = data.observed if isinstance(data.observed, Tensor) else data.observed[found.name]
    if len(pictures) < 2 or pictures.shape[1:] != found.shape[1:]:
        raise ValueError(
            f"check_pictures takes at least two pictures of shape {tuple(found.shape[1:])}, got {tuple(pictures.shape)}"
        )
    chosen = STATISTICS if statistics is None else statistics
    if not isinstance(chosen, Mapping) or not chosen or not all(map(callable, chosen.values())):
        raise ValueError(f"statistics takes functions by name, such as {{'ink': lambda x: x.mean((1, 2))}}, got {statistics!r}")
    for name in chosen:
        if not isinstance(name, str) or not name.strip() or "/" in name or name in _DIMENSIONS:
            raise ValueError(
                f"a statistic's name becomes a variable's: a text without '/', and none of {', '.join(_DIMENSIONS)}; got {name!r}"
            )
    lie = plane(found.shape[1:], size)

    def measured(x: Tensor) -> dict[str, Tensor]:
        grey = x.reshape(len(x), *lie).mean(1)
        return {name: statistic(grey) for name, statistic in chosen.items()}

    observed = measured(pictures)
    for name, values in observed.items():
        if not isinstance(values, Tensor) or values.shape != (len(pictures),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"a statistic takes pictures (N, H, W) and returns a tensor (N,), and '{name}' returned {got} for {len(pictures)}"
            )
    inputs = new_inputs(fit.data, fit.model, data.inputs or None, None if data.inputs else len(pictures))

    def one(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with Fix(latents):
            trace = poutine.trace(fit.run.owned.model).get_trace(**inputs.kwargs)
        return measured(trace.nodes[found.name]["value"])

    chunk = min(n, chunk_size(len(pictures), pictures.element_size(), fit.program.width))
    with fit.run.owned.active(seed * 1009 + 37), torch.no_grad():
        shared = latent_draws(fit.run, fit.data, n, seed * 1009 + 37)(0, n)
        drawn = map_values(one, shared, chunk) if shared else map_random(lambda: one({}), n, fit.device, chunk)
    return PictureCheck(*({k: v.detach().cpu().double() for k, v in values.items()} for values in (observed, drawn)))
