"""How good predictions are, against outcomes that the fit has not seen.

Classes:
    nll    -1/N sum_n log p(y_n | x_n, D), with p averaged over the draws first: the ensemble's, not its members' average
    brier  1/N sum_n sum_k (p_nk - [y_n = k])^2, between 0 and 2 (Brier 1950)
    ece    sum_b N_b / N |accuracy_b - confidence_b| over bins of the highest probability (Guo et al. 2017)

Numbers:
    rmse         root of the mean squared error of the predictive mean, in the target's unit
    log_density  1/N sum_n log 1/S sum_s p(y_n | x_n, z_s), in nats an observation, of the density per original unit
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .prediction import Prediction

#: Bins of the calibration error and of reliability diagrams, as in Guo et al. 2017.
BINS = 15

#: The largest float32 below 1.
_BELOW_ONE = 1 - 2.0**-24


@dataclass(frozen=True)
class ClassScores:
    """Scores of class probabilities.

    Attributes:
        accuracy: share of observations whose most probable class is right.
        nll: negative log probability of the right class, in nats an observation.
        brier: squared distance from the right answer, between 0 and 2.
        ece: expected calibration error, between 0 and 1.
        num: N.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    num: int


@dataclass(frozen=True)
class NumberScores:
    """Scores of predicted numbers.

    Attributes:
        rmse: root mean squared error of the mean, in the target's unit.
        log_density: log predictive density, in nats an observation; NaN where the prediction holds no likelihoods (predicted with
            keep_draws=False, or a likelihood such as a mixture, which is not made of plain arguments).
        num: N.
    """

    rmse: float
    log_density: float
    num: int


@dataclass(frozen=True)
class Reliability:
    """What happened against what was expected, in bins of the highest probability.

    Attributes:
        edges: (B + 1,) of the bins.
        confidence: (B,) average highest probability, NaN in empty bins.
        accuracy: (B,) share of right answers, NaN in empty bins.
        count: (B,) observations.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def scores(prediction: Prediction, y: Any) -> ClassScores | NumberScores:
    """How good a prediction is for known outcomes.

    Args:
        prediction: of N observations.
        y: `Data` of these observations, standardised or not; or their outcomes (N, ...) in original units, which for a
            standardised table are those of `data.unscaled()`.

    Raises:
        ValueError: for another number of outcomes, NaN, or labels that are no classes.
    """
    if prediction.probs is None:
        target = outcomes(y, prediction.mean.shape).double()
        if not bool(torch.isfinite(target).all()):
            raise ValueError("the outcomes hold NaN or Inf; give finite numbers, or leave these observations out")
        density = math.nan if prediction.likelihoods is None else float(prediction.likelihoods.log_density(target).mean())
        return NumberScores(float((target - prediction.mean).square().mean().sqrt()), density, len(target))
    probs, label = checked(prediction, y)
    right = probs.gather(1, label[:, None])[:, 0]
    # sum_k (p_k - [y = k])^2 = sum_k p_k^2 - 2 p_y + 1
    brier = (probs.square().sum(1) - 2 * right + 1).mean()
    return ClassScores(
        float((prediction.label == label).double().mean()),
        -float(right.log().mean()) + 0.0,  # of -0.0
        float(brier),
        calibration_error(probs, label),
        len(label),
    )


def calibration_error(probs: Tensor, label: Tensor, bins: int = BINS) -> float:
    """Expected calibration error of the highest probability.

    Args:
        probs: (N, K).
        label: (N,) the right classes.
        bins: of equal width from 0 to 1.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    # Probabilities above 1 by a rounding error would be taken for logits, and those of exactly 1 get a bin to themselves.
    safe = probs.clamp(0.0, _BELOW_ONE)
    return float(multiclass_calibration_error(safe, label, probs.shape[1], n_bins=bins, norm="l1"))


def reliability(prediction: Prediction, y: Any, bins: int = BINS) -> Reliability:
    """Accuracy against confidence, bin by bin; `ece` is the average distance of the two.

    Args:
        y: as in `scores`.
        bins: of equal width from 0 to 1.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a whole number, at least 1, got {bins!r}")
    probs, label = checked(prediction, y)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    confidence, answer = probs.max(1)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)

    def average(values: Tensor) -> Tensor:
        return torch.bincount(place, weights=values.double(), minlength=bins) / count

    return Reliability(edges, average(confidence), average(answer == label), count)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that a draw from `outside` is larger than one from `inside`, ties counting half.

    The area under the receiver operating characteristic of telling the two apart by a threshold: 1 if one can, 0.5 if the scores
    say nothing.

    Args:
        inside: (N,) a score in the data's domain, such as a prediction's `total`, `aleatoric` or `epistemic` entropy in nats.
        outside: (M,) the same out of it.

    Raises:
        ValueError: for no score, or one that is NaN, on either side.
    """
    from torchmetrics.functional.classification import binary_auroc

    for name, score in (("inside", inside), ("outside", outside)):
        if not score.numel() or bool(score.isnan().any()):
            raise ValueError(f"auroc ranks at least one score on each side and no NaN, and '{name}' has {_found(score)}")
    both = torch.cat([inside.flatten(), outside.flatten()]).double()
    # Ranks order as the values do and lie in [0, 1]; values beyond would go through a sigmoid, whose rounding makes ties.
    values, rank = both.unique(return_inverse=True)
    truth = torch.cat([torch.zeros(inside.numel(), dtype=torch.long), torch.ones(outside.numel(), dtype=torch.long)])
    return float(binary_auroc(rank.double() / max(1, len(values) - 1), truth))


def _found(score: Tensor) -> str:
    return f"{int(score.isnan().sum())} NaN among {score.numel()}" if score.numel() else "none"


def checked(prediction: Prediction, y: Any) -> tuple[Tensor, Tensor]:
    """Class probabilities (N, K) and the right classes (N,)."""
    probs = prediction.class_probs
    return probs, labels(y, probs)


def labels(y: Any, probs: Tensor) -> Tensor:
    """The right classes (N,), checked against probabilities (N, K)."""
    if probs.dim() != 2:
        raise ValueError(
            f"scores are for one class an observation, and this prediction has {tuple(probs.shape[1:-1])} of them; score probs "
            "yourself"
        )
    label = outcomes(y, probs.shape[:1])
    wrong = ~((label >= 0) & (label < probs.shape[1]) & (label == label.round()))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels must be whole numbers from 0 to {probs.shape[1] - 1}, and row {row + 1} has {label[row].item():g}; give classes as "
            "they were in the training data"
        )
    return label.long()


def outcomes(y: Any, shape: torch.Size) -> Tensor:
    """Targets as a tensor on the CPU in original units."""
    if hasattr(y, "unscaled"):
        y = y.unscaled().observed
        if not isinstance(y, Tensor):
            if len(y) != 1:
                raise ValueError(f"the data observe {', '.join(y)}; give the tensor of the site that was predicted")
            y = next(iter(y.values()))
    try:
        target = torch.as_tensor(y).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"outcomes must be Data, or a tensor or array of numbers, got {type(y).__name__}") from None
    if target.shape != shape:
        raise ValueError(
            f"the prediction has the shape {tuple(shape)} and the outcomes {tuple(target.shape)}; give one outcome for each "
            "predicted observation"
        )
    if not len(target):
        raise ValueError("there is no outcome to score; give at least one")
    return target.long() if target.dtype == torch.bool else target
