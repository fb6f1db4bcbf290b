"""How many draws are held at once."""

from __future__ import annotations

import pytest
import torch

import bayeszoo as bz
from bayeszoo.inference import draws
from bayeszoo.inference.likelihood.log_marginal import elements_of_one


@pytest.mark.parametrize(("likelihood", "numbers"), [("bernoulli", 36), ("categorical", 36 * 50), ("logistic", 36)])
def test_what_one_draw_of_a_picture_holds(likelihood: str, numbers: int) -> None:
    """A categorical pixel has a number for each of its 50 levels; a code of 3 comes on top."""
    torch.manual_seed(0)
    model = bz.models.VAE(36, 3, likelihood, hidden=(4,), levels=50)
    program = bz.inference.target.program.describe(model, bz.data.simulate(model, 7, seed=0))
    assert program.observed["x"].elements == 7 * numbers
    assert elements_of_one(program) == numbers + 3


def test_draws_are_mapped_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = bz.models.VAE(36, 3, "categorical", hidden=(4,), levels=50)
    fit = bz.fit(model, bz.data.simulate(model, 7, seed=0), steps=2, progress=False)
    seen = []
    plain = draws.map_random
    monkeypatch.setattr(draws, "map_random", lambda f, num, device, chunk: seen.append(chunk) or plain(f, num, device, chunk))
    monkeypatch.setattr(draws, "CHUNK_BYTES", 10 * 8 * 7 * 36 * 50 * 4)
    fit.sample(25)
    # Ten draws of 7 pictures, 36 pixels, 50 levels in single precision, with eight temporaries each.
    assert seen == [10]
