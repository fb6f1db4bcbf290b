"""LOO within a diagnosis.

Weighted by p / q where these ratios can be trusted. Of networks they cannot; then the draws of q are taken for the posterior's,
so that the k-hat of each observation still says which of them weigh much, and elpd is that of q.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import arviz_stats
import numpy as np
import xarray as xr

from ..export.tree_arrays import log_likelihoods
from .checks import LooCheck
from .diagnose_draws import LOO_LIMIT, Material
from .loo import loo_of

if TYPE_CHECKING:
    pass


def loo_check(material: Material, doubts: list[str], notes: list[str]) -> LooCheck | None:
    """LOO of the best restart's draws, or None, and the notes say why."""
    fit, weights, draws = material.fit, material.trusted_weights, material.best
    if fit.objective != "elbo" or (weights is None and not (material.network or material.hopeless)):
        return None
    if len(fit.data) > LOO_LIMIT:
        how = "az.loo(fit.to_arviz())" if weights is None else "fit.loo()"
        notes.append(f"LOO over {len(fit.data)} observations takes its time; ask for it with {how}")
        return None
    if len(fit.program.observed) > 1 and (weights is None or draws is None):
        notes.append(f"the model observes {', '.join(fit.program.observed)}; ask for LOO of one with fit.loo(site=...)")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ warns of high k-hats, which are counted below
            if weights is not None and draws is not None:
                found = loo_of(fit, draws)
            else:
                found = _plain(material)
    except ValueError as error:
        notes.append(f"no LOO: {error}")
        return None
    k = np.asarray(found.pareto_k)
    bad = int((~(k <= found.good_k)).sum())
    if bad and weights is not None and weights.reliable:
        doubts.append(
            f"LOO's k-hat is above {found.good_k:.2f} for {bad} of {len(k)} observations, so its elpd is "
            f"uncertain: single observations "
            "weigh much (az.plot_khat(fit.loo()) shows which)"
        )
    return LooCheck(
        float(found.elpd), float(found.se), float(found.p), bad, int(found.n_data_points), weighted=weights is not None
    )


def _plain(material: Material) -> Any:
    """Each observation's k-hat as if q were the posterior.

    Raises:
        ValueError: for a model without a plate over the observations.
    """
    fit = material.fit
    values, note = material.log_likelihood, ""
    if values is None and material.best is not None:
        arrays, note = log_likelihoods(fit, [fit.run], [material.best])
        values = next(iter(arrays.values()))[0] if arrays else None
    if values is None:
        raise ValueError(f"LOO leaves out one observation at a time, but {note}; open a plate over the rows in the model")
    group = xr.Dataset({"y": (("chain", "draw", "observation"), values[None].astype(float))})
    return arviz_stats.loo(xr.DataTree.from_dict({"log_likelihood": group}), pointwise=True, reff=1.0)
