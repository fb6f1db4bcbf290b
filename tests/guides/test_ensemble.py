"""An ensemble is several point fits, each as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayeszoo as bz
from bayeszoo.models import BayesianNN


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_first_member_is_the_map_fit(net: nn.Module, data: bz.data.Data, compile: bool) -> None:
    options = {"steps": 60, "optimizer": 0.02, "batch_size": 10, "progress": False, "compile": compile}
    alone = bz.fit(BayesianNN(net), data, guide="map", **options)
    together = bz.fit(BayesianNN(net), data, guide="ensemble", guide_options={"members": 3}, **options)
    weights = {k: v[0] for k, v in alone.sample(1).items()}
    mine = torch.cat([weights[name].reshape(-1) for name in together.guide.space.sites])
    # The same arithmetic in another order, in double precision.
    torch.testing.assert_close(together.guide.theta[0].detach(), mine, rtol=1e-8, atol=1e-10)
    distance = (together.guide.theta[1:] - together.guide.theta[0]).detach().norm(dim=1)
    assert bool((distance > 0.5).all())  # the others began elsewhere


def test_draws_are_members_with_equal_weight(net: nn.Module, data: bz.data.Data) -> None:
    fit = bz.fit(BayesianNN(net), data, guide="ensemble", guide_options={"members": 4}, steps=20, progress=False)
    drawn = fit.sample(4000)["fc1.weight"].reshape(4000, -1)
    values, counts = drawn.unique(dim=0, return_counts=True)
    assert len(values) == 4
    # binomial(4000, 1 / 4) has the sd 27
    assert bool(((counts - 1000).abs() < 4 * 27).all())
    # the loss is the members' mean of -log p(y, w)
    with fit.run.owned.active(0), torch.no_grad():
        each = [float(p) for p in fit.run.objective._members(fit.data.bind(fit.model), None, False, 4).likelihood]
    assert len(set(each)) == 4
    assert fit.objective == "surrogate"


def test_refusals(net: nn.Module, data: bz.data.Data) -> None:
    with pytest.raises(ValueError, match="members must be a whole number of at least 2, got 1"):
        bz.fit(BayesianNN(net), data, guide="ensemble", guide_options={"members": 1}, progress=False)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"trains 'net.1.weight' as a parameter .*or freeze it"):
        bz.fit(BayesianNN(plain, bayesian="last"), data, guide="ensemble", progress=False)
