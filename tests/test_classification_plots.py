"""Figures of class probabilities show the numbers they claim to show."""

from __future__ import annotations

import math

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

import bayeszoo as bz
from bayeszoo import plots
from bayeszoo.inference.prediction.averaging import AveragingCurve, AveragingRow
from bayeszoo.inference.prediction.predictive import Tally
from bayeszoo.inference.prediction.scores import calibration_error

pytestmark = pytest.mark.usefixtures("plots_closed")


def predicted(*draws: Tensor) -> bz.inference.Prediction:
    """From each draw's class probabilities (N, K)."""
    tally = Tally(len(draws), keep=False)
    tally.add(slice(0, len(draws)), {"probs": torch.stack(draws).double(), "draw": torch.zeros(len(draws), len(draws[0]))})
    return tally.prediction(None, None)


def labels_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_reliability_shows_confidence_and_accuracy_of_each_bin():
    # Ten observations with 0.9, eight of them right, and ten with 0.6, five right.
    probs = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    y = torch.tensor([0] * 8 + [1] * 2 + [0] * 5 + [1] * 5)
    ax = plots.plot_reliability(predicted(probs), y, bins=10)
    points, sizes = ax.collections[-1].get_offsets(), ax.collections[-1].get_sizes()
    assert np.allclose(points, [[0.6, 0.5], [0.9, 0.8]])
    assert sizes[0] == sizes[1]
    assert labels_of(ax) == ["calibrated", "ECE 0.100 (10 bins)"]
    spread = ax.collections[0].get_segments()
    # 90 % of Beta(1 + 5, 1 + 5), which is symmetric, with the quantiles of its table.
    assert spread[0][0][1] == pytest.approx(0.2712, abs=1e-3)
    assert spread[0][0][1] + spread[0][1][1] == pytest.approx(1.0)
    ax = plots.plot_reliability({"a": predicted(probs), "b": predicted(probs)}, y)
    assert labels_of(ax)[1:] == [f"{name}, ECE {calibration_error(probs.double(), y):.3f}" for name in "ab"]


@pytest.mark.parametrize("part", ["total", "aleatoric", "epistemic"])
def test_entropies_in_and_out_of_the_domain(part):
    sure, torn = torch.tensor([[0.98, 0.02]] * 4), torch.tensor([[0.02, 0.98]] * 4)
    flat = torch.full((4, 2), 0.5)
    inside = predicted(sure, sure)
    outside = predicted(sure, torn) if part != "aleatoric" else predicted(flat, flat)
    ax = plots.plot_entropies(inside, outside, part=part, bins=5, names=("digits", "noise"))
    assert ax.get_title() == "AUROC 1.000"
    assert "nats" in ax.get_xlabel()
    assert labels_of(ax) == ["digits", "noise"]
    near, far = ([bar.get_height() for bar in box.patches] for box in ax.containers)
    assert (sum(near), sum(far)) == (pytest.approx(1.0), pytest.approx(1.0))
    assert near[0] == pytest.approx(1.0)
    assert far[-1] == pytest.approx(1.0)
    if part != "epistemic":
        assert ax.get_xlim()[1] == pytest.approx(math.log(2))


def test_entropies_that_do_not_differ_have_an_auroc_of_a_half():
    one = predicted(torch.tensor([[0.7, 0.3], [0.6, 0.4]]))
    assert plots.plot_entropies(one, one).get_title() == "AUROC 0.500"


def test_bad_calls_are_told_what_to_do():
    two, three = predicted(torch.full((1, 2), 1 / 2)), predicted(torch.full((1, 3), 1 / 3))
    with pytest.raises(ValueError, match="2 and 3 classes"):
        plots.plot_entropies(two, three)
    with pytest.raises(ValueError, match="'total', 'aleatoric' or 'epistemic'"):
        plots.plot_entropies(two, two, part="entropy")
    with pytest.raises(ValueError, match="accuracy, nll, seconds"):
        plots.plot_averaging(AveragingCurve((), AveragingRow(1, 0, 0, 0, 0, 1, 0), 1), "ece")
    with pytest.raises(ValueError, match="bins must be a whole number"):
        plots.plot_reliability(two, [0], bins=0)


@pytest.mark.parametrize(("score", "expected"), [("accuracy", [0.8, 0.9]), ("nll", [0.5, 0.3]), ("seconds", [2.0, 21.0])])
def test_averaging_is_shown_against_the_mean_weights(score, expected):
    rows = (AveragingRow(1, 0.8, 0.5, 0.02, 0.1, 10, 0.002), AveragingRow(10, 0.9, 0.3, math.nan, math.nan, 1, 0.021))
    single = AveragingRow(1, 0.85, 0.45, math.nan, math.nan, 1, 0.001)
    ax = plots.plot_averaging(AveragingCurve(rows, single, 100), score)
    shown = {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}
    assert shown["average of k networks"].tolist() == pytest.approx(expected)
    level = {"accuracy": 0.85, "nll": 0.45, "seconds": 1.0}[score]
    assert shown["one network, mean weights"].tolist() == [level, level]
    if score == "seconds":
        assert shown["k times one network"].tolist() == pytest.approx([2.0, 20.0])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "10"]
