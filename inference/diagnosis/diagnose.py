"""How far a fit is from the posterior: as far as can be told, and exactly where it is known.

k-hat of p / q        Yao et al. 2018: below its threshold, weights p / q can correct what q gets wrong
weighted moments      they show what k-hat does not: a mean that is off, an sd that is too wide
loss + log evidence   is KL(q || p), where the model knows its evidence
LOO, held-out data    whether predictions hold

One ratio p / q over thousands of latents is never even: of networks this looks at outputs and predictions instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..asked_rows import refuse_other_rows
from ..draws import seed_of
from ..export.export import check_draws
from ..export.fit_attributes import guide_name, model_name
from ..export.labels import Labels
from ..target.program import FEW_LOCAL
from .checks import CoverageCheck, LatentCheck, RestartCheck, ScoreCheck
from .diagnose_draws import LEAST_DRAWS, Material, affordable, gather, judge_weights
from .diagnose_functions import identified, reference_functions
from .diagnose_loo import loo_check
from .diagnose_observations import diagnose_observations
from .diagnosis import MOST_SHOWN, Diagnosis
from .held_out import held_out_checks
from .moment_checks import Known, flat, judge_moments, moment_checks, worst
from .psis import Weights
from .reference import Reference, exact_reference

if TYPE_CHECKING:
    from ..result import Fit


def diagnose(fit: Fit, reference: Any = None, n: int = 1000, held_out: Any = None, *, seed: int | None = None) -> Diagnosis:
    """Checks a fit against its own model, and against a reference where there is one.

    Args:
        reference: a `Reference`, or any object with `mean` and `sd` by site; by default the model's exact
            posterior if it has one. A network with hidden layers is compared in its outputs, for which the reference needs draws.
        n: draws, at least 100; of networks with thousands of weights so many as some seconds allow.
        held_out: `Data` that the fit has not seen, for scores and the coverage of predictive intervals, or log p(x).

    Raises:
        ValueError: too few draws, a model without latents, or held-out data that do not fit.
    """
    check_draws(fit, n, LEAST_DRAWS)
    n, chosen = int(n), seed_of(fit, seed)
    if fit.program.all_local and (fit.program.num_local > FEW_LOCAL or fit.run.one_by_one(fit.data)):
        return diagnose_observations(fit, n, held_out, chosen)
    if held_out is not None and fit.program.all_local:
        refuse_other_rows(fit.guide, fit.run.asked(fit.data), fit.program, "held_out")
    doubts: list[str] = []
    notes: list[str] = []
    history = fit.run.history
    if not history.converged:
        doubts.append(f"the optimiser did not converge: {history.stop_reason}")
    truth = _reference(fit, reference, notes)
    material = gather(fit, n, held_out, chosen, notes)
    weights = material.best_weights
    doubts += [material.empty] if material.empty else []
    judge_weights(material, doubts, notes)
    functions: list[LatentCheck] = []
    latents: tuple[LatentCheck, ...] = ()
    if not material.empty:
        functions, by_function = _functions(material, truth, doubts)
        latents = _latents(material, None if by_function else truth, doubts)
    evidence, kl, kl_error = _evidence(material, truth, doubts, notes)
    restarts = _restarts(material)
    far = [r for r in restarts if r.elsewhere]
    if far:
        doubts.append(_disagreement(far, len(restarts)))
    coverage: tuple[CoverageCheck, ...] = ()
    scores: tuple[ScoreCheck, ...] = ()
    if held_out is not None:
        num = affordable(fit, n, len(held_out)) if material.network and material.hopeless else n
        coverage, scores = held_out_checks(fit, held_out, num, seed)
    doubts += [
        f"{c.prob:.0%} predictive intervals hold {c.share:.0%} of {c.num_data} held-out '{c.site}': the model or the fit is off"
        for c in coverage
        if c.off
    ]
    doubts += [
        f"of {s.num_data} held-out '{s.site}' {s.accuracy:.0%} are right where {s.confidence:.0%} are expected: probabilities are "
        f"{'over' if (s.confidence or 0) > (s.accuracy or 0) else 'under'}confident"
        for s in scores
        if s.off
    ]
    loo = loo_check(material, doubts, notes)
    if fit.objective == "elbo" and truth is None and not material.hopeless:
        notes.append("there is no reference: pass bz.reference(model, data) to see the errors of means and sds")
    return Diagnosis(
        model=model_name(fit.model),
        guide=guide_name(fit),
        objective=fit.objective,
        num_draws=material.num,
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
        k_verdict=_verdict(material, weights),
        effective_draws=None if weights is None else weights.effective_draws,
        restarts=restarts,
        latents=latents if not material.hopeless else worst(latents, MOST_SHOWN),
        loo=loo,
        coverage=coverage,
        reference=None if truth is None else getattr(truth, "how", "reference"),
        warnings=tuple(doubts),
        notes=tuple(notes),
        functions=worst(functions, MOST_SHOWN),
        function_inputs="" if material.functions is None else material.functions.inputs,
        num_functions=len(functions),
        scores=scores,
        spread=material.spread,
    )


def _verdict(material: Material, weights: Weights | None) -> str:
    if weights is not None:
        return "exact" if weights.exact else "good" if weights.reliable else "too high"
    return "hopeless" if material.hopeless and material.fit.objective == "elbo" else "absent"


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


def _evidence(
    material: Material, truth: Any, doubts: list[str], notes: list[str]
) -> tuple[float | None, float | None, float | None]:
    """log evidence, KL(q || p) and its Monte Carlo error, in nats, as far as they are known."""
    fit, draws = material.fit, material.best
    if draws is None or draws.log_ratio is None or fit.improper:
        return None, None, None
    evidence = truth.log_evidence if isinstance(truth, Reference) else None
    known = getattr(fit.model, "log_evidence", None)
    if evidence is None and callable(known):
        try:
            evidence = float(known(fit.data))
        except ValueError as unknown:
            notes.append(f"the evidence is not known here: {unknown}")
    if evidence is None:
        notes.append("the model has no log_evidence(data), so KL(q || p) and the gap to the evidence are not known")
        return None, None, None
    ratio = draws.log_ratio.double()
    kl, error = evidence - float(ratio.mean()), float(ratio.std()) / math.sqrt(len(ratio))
    if kl < -4.0 * error - 1e-6 * max(1.0, abs(evidence)):
        doubts.append(f"the loss is {-kl:.3g} nats below -log evidence, which no bound can be: model and log_evidence disagree")
    return evidence, kl, error


def _functions(material: Material, truth: Any, doubts: list[str]) -> tuple[list[LatentCheck], bool]:
    """Checks of a network's outputs, and whether the reference was compared there, not weight by weight."""
    found = material.functions
    if found is None:
        return [], False
    reference = None if truth is None else reference_functions(material.fit, found.functions, truth)
    checks = found.checks(material.trusted_weights, reference)
    judge_moments(checks, "outputs", point=not found.spread, weighted=material.trusted_weights is not None, doubts=doubts)
    return checks, reference is not None and not identified(material.fit.model)


def _latents(material: Material, truth: Any, doubts: list[str]) -> tuple[LatentCheck, ...]:
    fit, draws = material.fit, material.best
    if draws is None:
        return ()
    labels = Labels(fit.program, fit.model, fit.data)
    checks: list[LatentCheck] = []
    for name, values in draws.values.items():
        if fit.program.latents[name].discrete and _states(fit, name) > 2:
            continue  # the numbers of categories have no mean
        x = flat(values)
        known = None
        if truth is not None and name in truth.mean and truth.mean[name].numel() == x.shape[1]:
            mean, sd = (torch.as_tensor(m[name]).detach().cpu().double().reshape(-1).numpy() for m in (truth.mean, truth.sd))
            known = Known(mean, sd)
        checks += moment_checks(labels.scalars(name), x, material.trusted_weights, known)
    weighted = material.trusted_weights is not None
    judge_moments(checks, "latents", point=not material.spread, weighted=weighted, doubts=doubts)
    return tuple(checks)


def _states(fit: Fit, name: str) -> int:
    return len(fit.program.latents[name].distribution.enumerate_support(expand=False))


def _restarts(material: Material) -> tuple[RestartCheck, ...]:
    fit = material.fit
    checks = []
    for number, (run, weights) in enumerate(zip(fit.runs, material.weights, strict=True)):
        about: dict[str, Any] = {
            "loss": run.loss,
            "k_hat": None if weights is None or weights.exact else weights.k_hat,
            "verdict": _verdict(material, weights),
            "converged": run.history.converged,
        }
        if material.functions is not None:
            checks.append(material.functions.restart(number, **about))
        else:
            distance, ratio = _apart(fit, material.draws[number].values, material.draws[fit.best].values)
            checks.append(RestartCheck(mean_distance=distance, sd_ratio=ratio, **about))
    return tuple(checks)


def _apart(fit: Fit, values: dict[str, Tensor], best: dict[str, Tensor]) -> tuple[float, float]:
    """The greatest distance of means in sds of the best, and the most extreme ratio of sds, over all continuous latents."""
    distance, extreme = 0.0, 1.0
    for name in best:
        if fit.program.latents[name].discrete:
            continue
        x, reference = flat(values[name]), flat(best[name])
        sd = reference.std(0)
        unit = np.where(sd > 0, sd, np.maximum(np.abs(reference.mean(0)), 1e-12))  # a point: relative to its size
        distance = max(distance, float((np.abs(x.mean(0) - reference.mean(0)) / unit).max()))
        if bool((sd > 0).all()):
            ratio = x.std(0) / sd
            candidate = float(ratio[np.abs(np.log(np.maximum(ratio, 1e-12))).argmax()])
            extreme = candidate if abs(math.log(max(candidate, 1e-12))) > abs(math.log(max(extreme, 1e-12))) else extreme
    return distance, max(extreme, 1e-12)


def _disagreement(far: list[RestartCheck], num: int) -> str:
    of_classes = [r.disagreement for r in far if r.disagreement is not None]
    if of_classes:
        how = f"mean class probabilities {max(of_classes):.2g} from the best's, averaged over inputs"
    else:
        how = f"means up to {max(r.mean_distance for r in far):.2g} sd from the best"
    return (
        f"{len(far)} of {num} restarts ended elsewhere ({how}), so the answer depends on the start: look at each chain of "
        "to_arviz()"
    )
