"""What a diagnosis asks of predictions for data that the fit has not seen: coverage of intervals, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..export.tree_groups import observed_values
from ..prediction.scores import ClassScores
from .checks import CoverageCheck, ScoreCheck

if TYPE_CHECKING:
    from ..prediction.prediction import Prediction
    from ..result import Fit


def held_out_checks(
    fit: Fit, held_out: Any, n: int, seed: int | None
) -> tuple[tuple[CoverageCheck, ...], tuple[ScoreCheck, ...]]:
    """Of the held-out observations, in the units of `predict`: original ones.

    Raises:
        ValueError: for data that are standardised otherwise than the training data.
    """
    ours, theirs = fit.data.scaler, held_out.scaler
    if not _same_scale(ours, theirs):
        raise ValueError(
            "held_out is standardised otherwise than the training data, so the two cannot be compared; make "
            "both with data.split(...)"
        )
    held_out = held_out.to(fit.device, fit.dtype)
    truth = observed_values(fit, held_out)
    coverage: list[CoverageCheck] = []
    scores: list[ScoreCheck] = []
    for name, site in fit.program.observed.items():
        found = fit.predict(held_out.inputs, n, num_data=None if held_out.inputs else len(held_out), seed=seed, site=name)
        y = truth[name].detach().cpu().double()
        y = ours.inverse_target(y) if ours is not None and ours.target_scaled else y
        scores += _score(name, found, y)
        discrete = bool(getattr(site.support, "is_discrete", False))
        if found.probs is not None:
            continue  # an interval of classes means nothing
        for prob in (0.5, 0.9):
            low, high = found.interval(prob)
            # A small allowance, so that an outcome on the interval's end is inside whatever the rounding.
            slack = 1e-9 * (high - low).abs()
            inside = (y >= low - slack) & (y <= high + slack)
            coverage.append(CoverageCheck(name, prob, float(inside.double().mean()), y.numel(), discrete))
    return tuple(coverage), tuple(scores)


def _score(name: str, found: Prediction, y: Any) -> list[ScoreCheck]:
    if found.probs is not None and found.class_probs.dim() != 2:
        return []  # several classes an observation have no one score
    try:
        scores = found.scores(y)
    except ValueError:  # outcomes of which there is no one score, such as vectors under an odd likelihood
        return []
    if isinstance(scores, ClassScores):
        confidence = float(found.class_probs.amax(-1).mean())
        return [ScoreCheck(name, scores.num, accuracy=scores.accuracy, nll=scores.nll, ece=scores.ece, confidence=confidence)]
    return [ScoreCheck(name, scores.num, rmse=scores.rmse, log_density=scores.log_density)]


def _same_scale(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    left, right = a.to_dict(), b.to_dict()
    return bool(left == right)
