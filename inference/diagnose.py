"""How far a fit is from the posterior: as far as can be told, and exactly where it is known.

k-hat of p / q        Yao et al. 2018: below its threshold, weights p / q can correct what q gets wrong
weighted moments      they show what k-hat does not: a mean that is off, an sd that is too wide
loss + log evidence   is KL(q || p), where the model knows its evidence
LOO, coverage         whether predictions hold
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .diagnosis import CoverageCheck, Diagnosis, LatentCheck, LooCheck, RestartCheck
from .draws import Draws
from .export import check_draws, model_name, observed_values, run_draws
from .labels import Labels
from .loo import loo_of
from .psis import Weights, smooth
from .reference import Reference, exact_reference

if TYPE_CHECKING:
    from .result import Fit

#: LOO takes about half a millisecond an observation: with more of them it is left to `fit.loo`.
LOO_LIMIT = 5_000

#: Draws of a diagnosis: fewer say nothing about a tail.
LEAST_DRAWS = 100

#: Where raw and weighted (or reference) moments may lie apart, in sds and as a share of an sd.
FAR = 0.3

_RICHER = {
    "mean_field": "'full_rank', or 'structured' where latents depend on each other in the model's order",
    "low_rank": "'full_rank', or a flow such as 'iaf'",
    "full_rank": "a flow such as 'iaf' or 'spline', or another parametrisation of the model",
    "laplace": "'full_rank', or a flow such as 'iaf'",
    "structured": "a flow such as 'iaf', or another parametrisation of the model",
    "beta": "'full_rank', or a flow such as 'iaf'",
    "iaf": "'spline', more layers, or another parametrisation of the model",
    "spline": "'iaf', more layers, or another parametrisation of the model",
}


def diagnose(fit: Fit, reference: Any = None, n: int = 1000, held_out: Any = None, *, seed: int | None = None) -> Diagnosis:
    """Checks a fit against its own model, and against a reference where there is one.

    Args:
        reference: a `Reference`, or any object with `mean` and `sd` by site; by default the model's exact
            posterior if it has one.
        n: draws, at least 100.
        held_out: `Data` that the fit has not seen, for the coverage of its predictive intervals.

    Raises:
        ValueError: too few draws, a model without latents, or held-out data that do not fit.
    """
    check_draws(fit, n, LEAST_DRAWS)
    doubts: list[str] = []
    notes: list[str] = []
    labels = Labels(fit.program, fit.model, fit.data)
    all_draws = [run_draws(fit, run, n, seed) for run in fit.runs]
    draws = all_draws[fit.best]
    history = fit.run.history
    if not history.converged:
        doubts.append(f"the optimiser did not converge: {history.stop_reason}")
    all_weights = [None if d.log_ratio is None else smooth(d.log_ratio) for d in all_draws]
    weights = all_weights[fit.best]
    if weights is None:
        notes.append("a point guide has no log q, so there is no k-hat, no LOO, no KL and no gap to the evidence")
    else:
        _judge_weights(fit, weights, doubts, notes)
    truth = _reference(fit, reference, notes)
    latents = _latents(labels, fit, draws, weights, truth)
    _judge_latents(latents, weights, truth, doubts)
    evidence = truth.log_evidence if isinstance(truth, Reference) else None
    if evidence is None and weights is not None:
        evidence = _evidence(fit, notes)
    kl = kl_error = None
    if evidence is not None and draws.log_ratio is not None:
        ratio = draws.log_ratio.double()
        kl, kl_error = evidence - float(ratio.mean()), float(ratio.std()) / math.sqrt(n)
        if kl < -4.0 * kl_error - 1e-6 * max(1.0, abs(evidence)):
            doubts.append(
                f"the loss is {-kl:.3g} nats below -log evidence, which no bound can be: model and log_evidence disagree"
            )
    elif weights is not None:
        notes.append("the model has no log_evidence(data), so KL(q || p) and the gap to the evidence are not known")
    restarts = _restarts(fit, all_draws, all_weights)
    far = [r for r in restarts if r.mean_distance > FAR or max(r.sd_ratio, 1.0 / r.sd_ratio) > 1.0 + FAR]
    if far:
        doubts.append(
            f"{len(far)} of {len(restarts)} restarts ended elsewhere (means up to "
            f"{max(r.mean_distance for r in far):.2g} sd from the best), "
            "so the answer depends on the start: look at each chain of to_arviz()"
        )
    coverage = _coverage(fit, held_out, n, seed) if held_out is not None else ()
    doubts += [
        f"{c.prob:.0%} predictive intervals hold {c.share:.0%} of {c.num_data} held-out '{c.site}': the model or the fit is off"
        for c in coverage
        if c.off
    ]
    loo = _loo(fit, draws, weights, doubts, notes)
    if fit.objective == "elbo" and not isinstance(truth, Reference) and truth is None:
        notes.append("there is no reference: pass bz.reference(model, data) to see the errors of means and sds")
    return Diagnosis(
        model=model_name(fit.model),
        guide=fit.settings.guide or fit.run.family or type(fit.guide).__name__,
        objective=fit.objective,
        num_draws=n,
        converged=history.converged,
        stop_reason=history.stop_reason,
        loss_name=fit.loss_name,
        loss=fit.loss,
        loss_error=fit.loss_error,
        log_evidence=evidence,
        kl=kl,
        kl_error=kl_error,
        k_hat=None if weights is None or weights.exact else weights.k_hat,
        k_threshold=None if weights is None else weights.threshold,
        k_verdict=_verdict(weights),
        effective_draws=None if weights is None else weights.effective_draws,
        restarts=restarts,
        latents=latents,
        loo=loo,
        coverage=coverage,
        reference=None if truth is None else getattr(truth, "how", "reference"),
        warnings=tuple(doubts),
        notes=tuple(notes),
    )


def _verdict(weights: Weights | None) -> str:
    if weights is None:
        return "absent"
    return "exact" if weights.exact else "good" if weights.reliable else "too high"


def _judge_weights(fit: Fit, weights: Weights, doubts: list[str], notes: list[str]) -> None:
    local = sum(site.shape.numel() for site in fit.program.local.values())
    if local:
        notes.append(
            f"the k-hat is of the joint ratio over {local} latents of single observations too, where small "
            f"errors add up: it is "
            "pessimistic for the shared latents"
        )
    if not weights.reliable:
        richer = _RICHER.get(fit.run.family, "a richer family, such as 'full_rank' or 'iaf'")
        doubts.append(
            f"k-hat {weights.k_hat:.2f} is above {weights.threshold:.2f}, so q misses a part of the "
            f"posterior that importance weights cannot "
            f"mend, and the PSIS columns are no better than the raw ones: try guide {richer}"
        )


def _reference(fit: Fit, reference: Any, notes: list[str]) -> Any:
    if reference is not None:
        if not (isinstance(getattr(reference, "mean", None), dict) and isinstance(getattr(reference, "sd", None), dict)):
            raise ValueError(
                f"reference must be a bz.reference(model, data) or have dicts mean and sd by site, got "
                f"{type(reference).__name__}"
            )
        unknown = [name for name in reference.mean if name not in fit.program.latents]
        if unknown:
            raise ValueError(
                f"the reference has the latent '{unknown[0]}', which the fitted model has not "
                f"({', '.join(fit.program.latents)}); make it from "
                "the same model"
            )
        return reference
    if not callable(getattr(fit.model, "exact_posterior", None)):
        return None
    try:
        return exact_reference(fit.model, fit.data, n=0, seed=fit.seed)
    except ValueError as error:
        notes.append(f"the exact posterior is not known here: {error}")
        return None


def _evidence(fit: Fit, notes: list[str]) -> float | None:
    known = getattr(fit.model, "log_evidence", None)
    if not callable(known):
        return None
    try:
        return float(known(fit.data))
    except ValueError as error:
        notes.append(f"the evidence is not known here: {error}")
        return None


def _flat(values: Tensor) -> np.ndarray:
    """(S, K) float64."""
    array: np.ndarray = values.detach().cpu().double().reshape(len(values), -1).numpy()
    return array


def _latents(labels: Labels, fit: Fit, draws: Draws, weights: Weights | None, truth: Any) -> tuple[LatentCheck, ...]:
    checks: list[LatentCheck] = []
    for name, values in draws.values.items():
        if fit.program.latents[name].discrete and _states(fit, name) > 2:
            continue  # the numbers of categories have no mean
        x = _flat(values)
        mean, sd = x.mean(0), x.std(0)
        weighted = None if weights is None else weights.moments(x)
        known = None
        if truth is not None and name in truth.mean and truth.mean[name].numel() == x.shape[1]:
            known = [torch.as_tensor(m[name]).detach().cpu().double().reshape(-1).numpy() for m in (truth.mean, truth.sd)]
        for k, label in enumerate(labels.scalars(name)):
            checks.append(
                LatentCheck(
                    label, float(mean[k]), float(sd[k]),
                    *((None, None) if weighted is None else (float(weighted[0][k]), float(weighted[1][k]))),
                    *((None, None) if known is None else (float(known[0][k]), float(known[1][k]))),
                )
            )  # fmt: skip
    return tuple(checks)


def _states(fit: Fit, name: str) -> int:
    return len(fit.program.latents[name].distribution.enumerate_support(expand=False))


def _judge_latents(latents: tuple[LatentCheck, ...], weights: Weights | None, truth: Any, doubts: list[str]) -> None:
    def beyond(mean: float | None, sd: float | None) -> bool:
        return max(abs(mean or 0.0), abs(sd or 0.0)) > FAR

    if weights is not None:
        moved = [x for x in latents if beyond(x.shift, x.sd_change)]
        if moved:
            worst = max(moved, key=lambda x: max(abs(x.shift or 0.0), abs(x.sd_change or 0.0)))
            doubts.append(
                f"{len(moved)} of {len(latents)} latents have moments that importance weights move by more "
                f"than "
                f"{FAR} sd or {FAR:.0%} of an sd "
                f"(worst {worst.name}: mean off by {worst.shift:+.2f} sd, sd by {worst.sd_change:+.0%}): do "
                f"not trust them"
            )
    if truth is not None:
        wrong = [x for x in latents if beyond(x.mean_error, x.sd_error if weights is not None else None)]
        if wrong:
            worst = max(wrong, key=lambda x: max(abs(x.mean_error or 0.0), abs(x.sd_error or 0.0)))
            doubts.append(
                f"{len(wrong)} of {len(latents)} latents are more than {FAR} sd or {FAR:.0%} of an sd from "
                f"the reference (worst {worst.name}: "
                f"mean {worst.mean_error:+.2f} sd, sd {worst.sd_error:+.0%})"
            )


def _restarts(fit: Fit, all_draws: list[Draws], all_weights: list[Weights | None]) -> tuple[RestartCheck, ...]:
    best = {k: _flat(v) for k, v in all_draws[fit.best].values.items() if not fit.program.latents[k].discrete}
    checks = []
    for run, draws, weights in zip(fit.runs, all_draws, all_weights, strict=True):
        distance, extreme = 0.0, 1.0
        for name, reference in best.items():
            x = _flat(draws.values[name])
            sd = reference.std(0)
            unit = np.where(sd > 0, sd, np.maximum(np.abs(reference.mean(0)), 1e-12))  # a point: relative to its size
            distance = max(distance, float((np.abs(x.mean(0) - reference.mean(0)) / unit).max()))
            if bool((sd > 0).all()):
                ratio = x.std(0) / sd
                worst = float(ratio[np.abs(np.log(np.maximum(ratio, 1e-12))).argmax()])
                extreme = worst if abs(math.log(max(worst, 1e-12))) > abs(math.log(max(extreme, 1e-12))) else extreme
        k_hat = None if weights is None or weights.exact else weights.k_hat
        checks.append(RestartCheck(run.loss, k_hat, _verdict(weights), distance, max(extreme, 1e-12), run.history.converged))
    return tuple(checks)


def _loo(fit: Fit, draws: Draws, weights: Weights | None, doubts: list[str], notes: list[str]) -> LooCheck | None:
    if weights is None:
        return None
    if len(fit.data) > LOO_LIMIT:
        notes.append(f"LOO over {len(fit.data)} observations takes its time; ask for it with fit.loo()")
        return None
    if len(fit.program.observed) > 1:
        notes.append(f"the model observes {', '.join(fit.program.observed)}; ask for LOO of one with fit.loo(site=...)")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ warns of high k-hats, which are counted below
            found = loo_of(fit, draws)
    except ValueError as error:
        notes.append(f"no LOO: {error}")
        return None
    k = np.asarray(found.pareto_k)
    bad = int((~(k <= found.good_k)).sum())
    if bad and weights.reliable:
        doubts.append(
            f"LOO's k-hat is above {found.good_k:.2f} for {bad} of {len(k)} observations, so its elpd is "
            f"uncertain: single observations "
            "weigh much (az.plot_khat(fit.loo()) shows which)"
        )
    return LooCheck(float(found.elpd), float(found.se), float(found.p), bad, int(found.n_data_points))


def _coverage(fit: Fit, held_out: Any, n: int, seed: int | None) -> tuple[CoverageCheck, ...]:
    """Of the held-out observations, in the units of `predict`: original ones."""
    ours, theirs = fit.data.scaler, held_out.scaler
    if not _same_scale(ours, theirs):
        raise ValueError(
            "held_out is standardised otherwise than the training data, so the two cannot be compared; make "
            "both with data.split(...)"
        )
    held_out = held_out.to(fit.device, fit.dtype)
    truth = observed_values(fit, held_out)
    checks = []
    for name, site in fit.program.observed.items():
        found = fit.predict(held_out.inputs, n, num_data=None if held_out.inputs else len(held_out), seed=seed, site=name)
        y = truth[name].detach().cpu().double()
        y = ours.inverse_target(y) if ours is not None and ours.target_scaled else y
        discrete = bool(getattr(site.support, "is_discrete", False))
        if found.probs is not None:
            continue  # an interval of classes means nothing
        for prob in (0.5, 0.9):
            low, high = found.interval(prob)
            # A small allowance, so that an outcome on the interval's end is inside whatever the rounding.
            slack = 1e-9 * (high - low).abs()
            inside = (y >= low - slack) & (y <= high + slack)
            checks.append(CoverageCheck(name, prob, float(inside.double().mean()), y.numel(), discrete))
    return tuple(checks)


def _same_scale(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    left, right = a.to_dict(), b.to_dict()
    return bool(left == right)
