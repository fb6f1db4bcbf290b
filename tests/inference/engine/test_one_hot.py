"""Classes as vectors of zeros and a one: torch looks whether one is out of range, which no graph can."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import bayeszoo as bz


class Classes(nn.Module):
    """Has an effect for each class; in the three steps from `late` on the classes are others, `by` so many."""

    def __init__(self, late: int = 10**6, by: int = 0) -> None:
        super().__init__()
        self.late, self.by = late, by
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, c: Tensor, y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
        self.steps.add_(1)
        effects = pyro.sample("effects", dist.Normal(0.0, torch.ones(4, dtype=torch.float64)).to_event(1))
        labels = c + self.by * ((self.steps >= self.late) & (self.steps < self.late + 3)).long()
        with pyro.plate("data", num_data or len(c), subsample=index):
            mean = nn.functional.one_hot(labels, num_classes=4).double() @ effects
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def counted(batch_size: int | None) -> tuple[bz.data.Data, dict[str, Any]]:
    c = torch.randint(4, (40,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return bz.data.Data({"c": c}, c + 0.5 * noise), {"steps": 60, "batch_size": batch_size, "progress": False}


@pytest.mark.parametrize("batch_size", [None, 10])
def test_classes_may_be_one_hot(batch_size: int | None, uncompiled: None) -> None:
    data, options = counted(batch_size)
    fits = [bz.fit(Classes(), data, "mean_field", compile=compile, **options) for compile in (False, True)]
    assert fits[1].engine == "compiled"
    assert fits[1].losses == pytest.approx(fits[0].losses, rel=1e-10)


class Counted(nn.Module):
    """Leaves the number of classes to torch, which takes the greatest."""

    def forward(self, c: Tensor, y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
        effects = pyro.sample("effects", dist.Normal(0.0, torch.ones(4, dtype=torch.float64)).to_event(1))
        with pyro.plate("data", num_data or len(c), subsample=index):
            pyro.sample("y", dist.Normal(nn.functional.one_hot(c).double() @ effects, 0.5), obs=y)


def test_the_number_of_classes_may_be_left_to_torch_where_it_stays(uncompiled: None) -> None:
    data, options = counted(None)
    fits = [bz.fit(Counted(), data, "mean_field", compile=compile, **options) for compile in (False, True)]
    assert fits[1].engine == "compiled"
    assert fits[1].losses == pytest.approx(fits[0].losses, rel=1e-10)
    with pytest.raises(ValueError, match=r"one_hot without num_classes.*test_one_hot.py, line \d+: .*one_hot\(c\)"):
        bz.fit(Counted(), data, "mean_field", compile=True, **{**options, "batch_size": 39})


class Drawn(nn.Module):
    """The classes follow a draw, and rarely leave their range by it."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, c: Tensor, y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
        effects = pyro.sample("effects", dist.Normal(0.0, torch.ones(4, dtype=torch.float64)).to_event(1))
        labels = c + self.by * (effects[..., 3:] > 3.0).long()
        with pyro.plate("data", num_data or len(c), subsample=index):
            mean = nn.functional.one_hot(labels, num_classes=4).double() @ effects
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("mapped", [{"num_particles": 3}, {"restarts": 2}, {"restarts": 2, "num_particles": 3}], ids=str)
@pytest.mark.parametrize("compile", [False, True])
def test_torch_looks_at_mapped_classes_too(compile: bool, mapped: dict[str, int], uncompiled: None) -> None:
    """Particles and restarts are mapped, where torch gives a class out of range a row of zeros."""
    data, options = counted(None)
    losses = [bz.fit(Drawn(0), data, "mean_field", compile=c, **mapped, **options).losses for c in (False, compile)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    for by, says in ((4, "smaller than num_classes"), (-4, "non-negative")):
        with pytest.raises(RuntimeError, match=f"Class values must be {says}"):
            bz.fit(Drawn(by), data, "mean_field", compile=compile, **mapped, **{**options, "steps": 600})


@pytest.mark.parametrize(("by", "says"), [(4, "smaller than num_classes"), (-4, "non-negative")])
@pytest.mark.parametrize("compile", [False, True])
def test_classes_out_of_range_are_found_by_both_engines(compile: bool, by: int, says: str, uncompiled: None) -> None:
    """Torch reads whether one is, which no graph can: its loss is none then, and the eager step that follows says why. The classes
    are right again before the fit is evaluated."""
    data, options = counted(10)
    count = bz.fit(Classes(), data, "mean_field", compile=compile, **{**options, "steps": 1}).model.steps
    late = Classes(late=int(count) + 30, by=by)
    with pytest.raises(RuntimeError, match=f"Class values must be {says}"):
        bz.fit(late, data, "mean_field", compile=compile, **options)
