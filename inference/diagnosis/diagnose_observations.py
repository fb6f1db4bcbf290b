"""Diagnosis of models whose latents all belong to single observations, such as a VAE: observation by observation.

The ratio p / q of one observation's latents has its own tail, and so its own k-hat; a product over thousands of observations
says nothing. What the model is worth is log p(x) of observations that it has not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..export.fit_attributes import guide_name, model_name
from ..likelihood.log_marginal import Joint, LogMarginal, log_marginal
from .checks import ObservationCheck
from .diagnose_draws import richer
from .diagnosis import Diagnosis
from .psis import threshold

if TYPE_CHECKING:
    from ..result import Fit

#: Observations whose weights are looked at.
LOOKED_AT = 100
#: The share of observations with too high a k-hat from which on q is in doubt.
FEW_BAD = 0.05


def diagnose_observations(fit: Fit, n: int, held_out: Any, seed: int) -> Diagnosis:
    """The diagnosis of such a fit; arguments as of `diagnose`."""
    doubts: list[str] = []
    notes: list[str] = []
    history = fit.run.history
    if not history.converged:
        doubts.append(f"the optimiser did not converge: {history.stop_reason}")
    checks = []
    if fit.objective == "elbo":
        rows = torch.linspace(0, len(fit.data) - 1, min(LOOKED_AT, len(fit.data))).round().long().unique()
        if len(rows) < len(fit.data):
            notes.append(f"k-hats and log p(x) are of {len(rows)} of the {len(fit.data)} observations, evenly spaced")
        try:
            checks.append(_check("training data", log_marginal(fit, k=n, seed=seed, rows=rows)))
        except Joint as reason:
            notes = [f"no k-hats and no log p(x): {reason}"]
        if held_out is not None:
            checks.append(_check("held out", log_marginal(fit, held_out, n, seed=seed)))
        elif checks:
            notes.append("training data flatter the model: pass held_out=test for log p(x) of data that it has not seen")
    for check in checks:
        if check.bad_k > FEW_BAD * check.num_data:
            doubts.append(
                f"k-hat is above {check.k_threshold:.2f} for {check.bad_k} of {check.num_data} observations ({check.of}), so q misses a part of "
                f"their posteriors and log p(x) is rather higher than estimated: try {richer(fit)}, loss='importance_weighted', or more draws"
            )
    return Diagnosis(
        model=model_name(fit.model),
        guide=guide_name(fit),
        objective=fit.objective,
        num_draws=n,
        converged=history.converged,
        stop_reason=history.stop_reason,
        loss_name=fit.loss_name,
        loss=fit.loss,
        loss_error=fit.loss_error,
        log_evidence=None,
        kl=None,
        kl_error=None,
        k_hat=None,
        k_threshold=None,
        k_verdict="by observation" if checks else "absent",
        effective_draws=None,
        restarts=(),
        latents=(),
        loo=None,
        coverage=(),
        reference=None,
        warnings=tuple(doubts),
        notes=tuple(notes),
        spread=fit.objective == "elbo",
        observations=tuple(checks),
    )


def _check(of: str, found: LogMarginal) -> ObservationCheck:
    limit = threshold(found.k)
    finite = found.k_hat[torch.isfinite(found.k_hat)]
    return ObservationCheck(
        of=of,
        observed=found.observed,
        num_data=len(found),
        log_p=found.mean,
        log_p_error=found.error,
        elbo=float(found.elbo.mean()),
        bits_per_dim=found.bits_per_dim,
        effective_draws=float(found.ess.median()),
        k_hat=float(finite.median()) if len(finite) else float("-inf"),
        k_threshold=limit,
        bad_k=int((found.k_hat > limit).sum()),
    )
