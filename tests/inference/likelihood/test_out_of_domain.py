"""Scores of what does not belong: by hand, and on pictures whose order is known."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
import torch

import bayeszoo as bz
from bayeszoo.inference.likelihood.out_of_domain import Strangeness


@pytest.fixture(scope="module")
def fit() -> bz.inference.Fit:
    """Bernoulli pixels of which the left half is on nine times in ten, the right half one in ten."""
    chances = torch.tensor([0.9] * 18 + [0.1] * 18)
    x = torch.bernoulli(chances.expand(400, -1), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = bz.models.VAE(36, 2, hidden=(16,))
    return bz.fit(model, bz.data.Data({}, x), steps=600, optimizer=0.01, compile=False, progress=False)


def test_scores_by_hand() -> None:
    found = Strangeness(torch.tensor([-10.0, -30.0, -20.0, -18.0]), torch.tensor([5.0, 6.0, 7.0, 8.0]), -19.0)
    assert found.likelihood.tolist() == [10.0, 30.0, 20.0, 18.0]
    assert found.complexity is not None
    assert found.complexity.tolist() == [5.0, 24.0, 13.0, 10.0]
    assert found.typicality.tolist() == [9.0, 11.0, 1.0, 1.0]
    assert found.typicality_of(np.int64(2)).tolist() == [1.0, 0.0]
    assert found.typicality_of(3).tolist() == [1.0]
    other = Strangeness(torch.tensor([-40.0]), torch.tensor([30.0]), -19.0)
    assert found.auroc(other) == {"likelihood": 1.0, "complexity": 0.25 + 0.125, "typicality": 1.0}
    for group in (0, 5, 1.0, True):
        with pytest.raises(ValueError, match="group is a number of observations from 1 to 4"):
            found.typicality_of(group)  # type: ignore[arg-type]


def test_scores_of_other_fits_are_not_compared(fit: bz.inference.Fit) -> None:
    found = Strangeness(torch.tensor([-10.0, -30.0]), None, -19.0)
    for other in (
        Strangeness(torch.tensor([-40.0]), None, -18.0),
        Strangeness(torch.tensor([-40.0]), torch.tensor([30.0]), -19.0),
    ):
        with pytest.raises(ValueError, match="scores compare where what is typical is the same"):
            found.auroc(other)
    for other in (torch.zeros(3), None, -1.0):
        with pytest.raises(ValueError, match=r"auroc takes the scores of strangers, fit.out_of_domain\(x\), got"):
            found.auroc(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="arrays are of numbers here, got one of <U1"):
        fit.out_of_domain(np.array([["a"] * 36]))


def test_labels_make_no_picture_strange() -> None:
    """What is typical, and what is asked, is log p(x), whether or not somebody has named the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.bernoulli(torch.full((40, 16), 0.4), generator=generator)  # says nothing of its class: log p(y | x) is -log 2
    data = bz.data.Data({"x": x}, y).partly_labelled(torch.arange(40))
    torch.manual_seed(0)
    model = bz.models.SemiSupervisedVAE(16, 2, latents=1, hidden=(8,))
    fit = bz.fit(model, data, "semi_supervised", steps=60, compile=False, progress=False)
    named = fit.out_of_domain(data, k=50)
    assert isinstance(data.observed, Mapping)
    alone = fit.out_of_domain(data.observed["x"], k=50)
    assert named.log_p.tolist() == alone.log_p.tolist()
    assert named.typical == pytest.approx(float(alone.log_p.mean()), abs=0.05)
    assert named.typical - fit.log_marginal(k=50).mean == pytest.approx(math.log(2), abs=0.2)  # of log p(x, y)


def test_strangers_are_told_and_the_too_probable_by_typicality_alone(fit: bz.inference.Fit) -> None:
    own = fit.out_of_domain(fit.data.observed[:100], k=50)
    assert len(own) == 100
    assert own.typical == pytest.approx(float(own.log_p.mean()), abs=1.5)
    inverted = own.auroc(fit.out_of_domain(1 - fit.data.observed[:100], k=50))
    assert min(inverted["likelihood"], inverted["typicality"]) > 0.99
    best = torch.cat([torch.ones(18), torch.zeros(18)])[None]  # what every pixel rather is, and no picture is all of
    likely = own.auroc(fit.out_of_domain(best, k=50, typical=own.typical))
    assert likely["likelihood"] < 0.05
    assert likely["typicality"] > 0.8


def test_lengths_are_those_of_the_packed_levels(fit: bz.inference.Fit) -> None:
    x = fit.data.observed[:3]
    found = fit.out_of_domain(x, k=5, typical=np.float32(0.0))
    assert found.lengths is not None
    expected = [8 * math.log(2) * len(zlib.compress(row.to(torch.uint8).numpy().tobytes(), 9)) for row in x]
    assert found.lengths.tolist() == pytest.approx(expected)
    torch.testing.assert_close(found.log_p, fit.log_marginal(x, k=5).values)
    real = bz.fit(bz.models.VAE(36, 2, "gaussian", (4,)), fit.data, steps=3, compile=False, progress=False)
    without = real.out_of_domain(x, k=5)
    assert without.complexity is None
    assert set(without.auroc(without)) == {"likelihood", "typicality"}


@pytest.mark.parametrize("typical", [math.nan, "a", True])
def test_what_is_not_typical(fit: bz.inference.Fit, typical: object) -> None:
    with pytest.raises(ValueError, match="typical is the mean log p"):
        fit.out_of_domain(fit.data.observed[:2], typical=typical)  # type: ignore[arg-type]


def test_the_training_data_of_a_table(fit: bz.inference.Fit) -> None:
    table = bz.fit(
        bz.models.VAE(36, 2, hidden=(4,)), fit.data.select(range(30)), "per_datum", steps=5, compile=False, progress=False
    )
    assert len(table.out_of_domain(table.data, k=5)) == 30
