"""Figures of class probabilities: are they calibrated, do they know what they do not know, what does averaging buy.

Each draws into `ax`, or into a new figure, and returns the axes; all are names of `bayeszoo.plots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from .figure import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, add_legend, open_axes
from .inference import Prediction
from .inference.prediction.averaging import AveragingCurve
from .inference.prediction.scores import BINS, auroc, calibration_error, checked, reliability

#: What an averaging curve can show: the field of its rows, the axis, and what one unit of the field is on that axis.
_SCORES = {
    "accuracy": ("accuracy", 1.0),
    "nll": ("negative log likelihood (nats an observation)", 1.0),
    "seconds": ("milliseconds for 1000 inputs", 1000.0),
}


def plot_reliability(
    predictions: Prediction | Mapping[str, Prediction], y: Any, *, bins: int = BINS, ax: Axes | None = None
) -> Axes:
    """How often the most probable class is right against how probable it was said to be (Guo et al. 2017).

    Points below the diagonal are overconfident. A point's area is proportional to the share of observations in its bin; its line
    is the 90 % interval of the bin's accuracy, from a uniform prior: bins with few observations say little.

    Args:
        predictions: one, or name -> prediction of the same observations.
        y: their classes: `Data` or a tensor (N,).
        bins: of equal width from 0 to 1; the legend names a number that is not the scores' 15.
    """
    from scipy.stats import beta

    ax = open_axes(ax, size=(4.8, 4.8))
    named = {"": predictions} if isinstance(predictions, Prediction) else dict(predictions)
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="calibrated", zorder=1)
    for (name, prediction), colour in zip(named.items(), (BLUE, ORANGE, GREEN, PINK, SKY, RED) * len(named), strict=False):
        found = reliability(prediction, y, bins)
        probs, label = checked(prediction, y)
        shown = found.count > 0
        x, height = found.confidence[shown].numpy(), found.accuracy[shown].numpy()
        count = found.count[shown].numpy()
        low, high = (beta.ppf(q, 1 + height * count, 1 + (1 - height) * count) for q in (0.05, 0.95))
        ax.vlines(x, low, high, color=colour, lw=1, alpha=0.5)
        ax.plot(x, height, color=colour, lw=0.8, alpha=0.5)
        area = 10 + 240 * count / count.sum()
        # The error grows with the number of bins: another one than the scores' has to be seen.
        text = f"ECE {calibration_error(probs, label, bins):.3f}" + (f" ({bins} bins)" if bins != BINS else "")
        text = f"{name}, {text}" if name else text
        ax.scatter(x, height, area, color=colour, edgecolor="white", lw=0.5, zorder=3, clip_on=False, label=text)
    ax.set(xlabel="probability of the most probable class", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    legend = ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([30.0])
    return ax


def plot_entropies(
    inside: Prediction,
    outside: Prediction,
    *,
    part: str = "total",
    bins: int = 40,
    names: tuple[str, str] = ("in the data's domain", "out of it"),
    ax: Axes | None = None,
) -> Axes:
    """Histograms of predictive uncertainty in and out of the data's domain, with the AUROC of telling them apart by it.

    Args:
        inside: prediction of inputs like those of the training data.
        outside: prediction of others.
        part: `total`, `aleatoric` or `epistemic`, in nats.
        bins: of both histograms.
        names: of the two sets of inputs.
    """
    if part not in ("total", "aleatoric", "epistemic"):
        raise ValueError(f"part must be 'total', 'aleatoric' or 'epistemic', got {part!r}")
    if inside.class_probs.shape[-1] != outside.class_probs.shape[-1]:
        raise ValueError(
            f"the two predictions have {inside.class_probs.shape[-1]} and {outside.class_probs.shape[-1]} classes; give predictions of "
            "one fit"
        )
    ax = open_axes(ax)
    near, far = (getattr(p, part).flatten() for p in (inside, outside))
    most = float(np.log(inside.class_probs.shape[-1])) if part != "epistemic" else float(max(near.max(), far.max()))
    edges = np.linspace(0, max(most, 1e-12), bins + 1)
    for values, name, colour in ((near, names[0], BLUE), (far, names[1], ORANGE)):
        # Shares and not counts: the sets may differ in size. Rounding may leave an entropy above log K.
        share = np.full(len(values), 1 / len(values))
        ax.hist(np.clip(values.numpy(), 0, edges[-1]), edges.tolist(), weights=share, color=colour, alpha=0.6, label=name)
    word = {"total": "entropy of the prediction", "aleatoric": "average entropy of a draw", "epistemic": "mutual information"}
    ax.set(
        xlabel=f"{word[part]} (nats)",
        ylabel="share of inputs",
        title=f"AUROC {auroc(near, far):.3f}",
        xlim=(0, edges[-1]),
    )
    return add_legend(ax)


def plot_averaging(curve: AveragingCurve, score: str = "accuracy", *, ax: Axes | None = None) -> Axes:
    """What averaging k networks buys, or costs, against k, and the one network with mean weights beside it.

    Args:
        curve: of `fit.averaging_curve(test)`.
        score: `accuracy`, `nll` or `seconds`.
    """
    if score not in _SCORES:
        raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {score!r}")
    ax = open_axes(ax)
    label, unit = _SCORES[score]
    k = [row.networks for row in curve.rows]
    value = np.array([getattr(row, score) for row in curve.rows]) * unit
    if score == "seconds":
        ax.plot(k, value[0] * np.array(k) / k[0], color=GREY, lw=1, ls=":", label="k times one network")
        ax.set_yscale("log")
    else:
        sd = np.array([getattr(row, f"{score}_sd") for row in curve.rows])
        ax.fill_between(k, value - sd, value + sd, color=SKY, alpha=0.3, lw=0, label="± sd between groups of k")
    ax.plot(k, value, color=BLUE, marker="o", ms=4, lw=1.4, label="average of k networks")
    ax.axhline(getattr(curve.mean_weights, score) * unit, color=RED, lw=1.4, ls="--", label="one network, mean weights")
    ax.set_xscale("log")
    ax.set_xticks(k, [str(n) for n in k])
    ax.xaxis.minorticks_off()
    ax.set(xlabel="networks averaged", ylabel=label)
    return add_legend(ax)
