"""Figures of papers on the UCI regression sets, one hidden layer of 50 rectified units, 20 random splits into 90 % and 10 %.

Test RMSE in the target's unit (lower is better) and test log likelihood in nats an observation (higher is better).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One paper's row.

    Attributes:
        title: as it stands in the tables.
        source: the paper.
        figures: data set -> (RMSE, log likelihood), means over the splits.
    """

    title: str
    source: str
    figures: dict[str, tuple[float, float]]


PUBLISHED: dict[str, Published] = {
    "pbp": Published(
        "PBP",
        "Hernández-Lobato and Adams 2015, Probabilistic Backpropagation for Scalable Learning of Bayesian Neural Networks",
        {"boston": (3.01, -2.57), "concrete": (5.67, -3.16), "energy": (1.80, -2.04), "yacht": (1.02, -1.63)},
    ),
    "dropout": Published(
        "dropout, 2018 grid",
        "Mukhoti, Stenetorp, Gal 2018, On the Importance of Strong Baselines in Bayesian Deep Learning",
        {"boston": (2.90, -2.40), "concrete": (4.82, -2.93), "energy": (0.54, -1.21), "yacht": (0.67, -1.25)},
    ),
    "ensembles": Published(
        "deep ensembles",
        "Lakshminarayanan, Pritzel, Blundell 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
        {"boston": (3.28, -2.41), "concrete": (6.03, -3.06), "energy": (2.09, -1.38), "yacht": (1.58, -1.18)},
    ),
}


def beats(found: tuple[float, float], published: tuple[float, float]) -> bool:
    """Whether RMSE is lower and log likelihood higher."""
    return found[0] < published[0] and found[1] > published[1]
