"""Leave-one-out cross-validation of a variational fit.

    elpd = sum_n log p(y_n | y_-n),   from draws of q by smoothed weights  p(z | y) / (q(z) p(y_n | z))

Magnusson et al. 2019, "Bayesian leave-one-out cross-validation for large data". The unit is one row.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import arviz_stats

from ..draws import Draws
from ..export.export import check_draws, log_likelihood_tree, run_draws
from ..export.labels import Labels
from ..target.density import joined_message
from .psis import LEAST_DRAWS

if TYPE_CHECKING:
    from ..result import Fit


def loo(fit: Fit, n: int = 1000, *, site: str | None = None, seed: int | None = None) -> Any:
    """Estimates the expected log density of new observations, from the best restart.

    Args:
        n: posterior draws.
        site: which observed site, where the model has several.

    Returns:
        ArviZ's `ELPDDataLOO` with pointwise values, ready for `az.plot_khat`.

    Raises:
        ValueError: a point guide, or a model without a plate over the observations.
    """
    check_draws(fit, n, LEAST_DRAWS)
    if fit.improper:
        raise ValueError(
            "LOO weighs draws by log p - log q, and the prior has no finite integral, so log p is known up to a constant that nothing "
            "fixes, and the posterior may have no integral either; use a proper prior, such as prior='normal', or score observations "
            "that were held out, fit.scores(test)"
        )
    if fit.objective == "surrogate":
        raise ValueError(
            f"LOO weighs draws by log p - log q, and guide '{fit.settings.guide or fit.run.family}' has no log q over the model's "
            "latents, its objective being a surrogate; use a family with the objective 'elbo', such as 'mean_field'"
        )
    _refuse_local(fit)
    return loo_of(fit, run_draws(fit, fit.run, n, seed), site)


def loo_of(fit: Fit, draws: Draws, site: str | None = None) -> Any:
    """LOO from draws of the best restart that have been made already."""
    _refuse_local(fit)
    if not fit.program.continuous and all(latent.local for latent in fit.program.discrete.values()):
        raise ValueError(
            "LOO weighs draws against each other, and here all have the same likelihood: what is latent is summed out and the rest are "
            "points; score observations that were held out, fit.scores(test)"
        )
    labels = Labels(fit.program, fit.model, fit.data)
    tree, note = log_likelihood_tree(fit, labels, fit.run, draws)
    variables = {name: held.attrs.get("site", name).split(", ") for name, held in tree["log_likelihood"].data_vars.items()}
    if not variables:
        raise ValueError(f"LOO leaves out one observation at a time, but {note}; open a plate over the rows in the model")
    found = {"_".join(sites): name for name, sites in variables.items()}
    if site is None and len(found) > 1:
        raise ValueError(f"the model observes {', '.join(found)}; say which one with site=")
    if site is not None and site not in found:
        together = [sites for sites in variables.values() if site in sites]
        if together:
            raise ValueError(joined_message(site, together[0]))
        near = difflib.get_close_matches(site, found, 1)
        raise ValueError(
            f"unknown observed site '{site}'{f', did you mean {near[0]!r}?' if near else ''}; LOO can take {', '.join(found)}"
        )
    stats = tree["sample_stats"]
    return arviz_stats.loo_approximate_posterior(
        tree, stats["log_p"], stats["log_q"], pointwise=True, var_name=found[site or next(iter(found))]
    )


def _refuse_local(fit: Fit) -> None:
    if fit.program.all_local:
        raise ValueError(
            "LOO weighs draws of what observations share, and here each has latents of its own and the rest are points, so that log p of one "
            "given the others is log p of it: fit.log_marginal(), and fit.log_marginal(test) of observations that were held out"
        )
