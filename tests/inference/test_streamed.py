"""Fits of data sets that are fetched batch by batch."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayeszoo as bz

ROWS = 600


class Rows(torch.utils.data.Dataset[Any]):
    """A regression, row by row; `asked` has the number of every row that was fetched."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
        self.y = self.x @ torch.tensor([1.0, -2.0], dtype=torch.float64)
        self.y = self.y + 0.3 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        self.asked.append(row)
        return {"x": self.x[row], "y": self.y[row]}


def line(x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=index):
        pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def both() -> tuple[bz.data.StreamedData, bz.data.Data]:
    rows = Rows()
    return bz.data.StreamedData(rows, target=("y",)), bz.data.Data(inputs={"x": rows.x}, observed=rows.y)


@pytest.mark.parametrize("compile", [False, True])
def test_a_streamed_fit_finds_what_one_in_memory_finds(compile: bool, uncompiled: None) -> None:
    streamed, in_memory = both()
    options: dict[str, Any] = {"steps": 1200, "batch_size": 50, "schedule": "cosine", "progress": False}
    a = bz.fit(line, streamed, "mean_field", compile=compile, **options)
    b = bz.fit(line, in_memory, "mean_field", **options, compile=False)
    assert a.engine == ("compiled" if compile else "eager")
    # The same batches from starts that differ; the posterior's sd is 0.3 / sqrt(600) = 0.012.
    sd = 0.3 / ROWS**0.5
    x = {"x": torch.eye(2, dtype=torch.float64)}
    means, others = (fit.sample(4000)["w"].mean(0) for fit in (a, b))
    torch.testing.assert_close(means, others, rtol=0, atol=0.3 * sd)
    torch.testing.assert_close(a.predict(x, n=4000).mean, b.predict(x, n=4000).mean, rtol=0, atol=4 * 0.3 * (2 / 4000) ** 0.5)


def test_both_engines_stream_the_same(uncompiled: None) -> None:
    streamed, _ = both()
    a, b = (bz.fit(line, streamed, "mean_field", steps=60, batch_size=50, progress=False, compile=c) for c in (False, True))
    assert b.losses == pytest.approx(a.losses, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (lambda: bz.models.BayesianLinearRegression(2, noise_scale=0.3), "full_rank"),
        (lambda: bz.models.BayesianNN(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)), "gaussian"), "mean_field"),
    ],
)  # fmt: skip
def test_models_of_the_zoo_are_fitted(model: Any, guide: str) -> None:
    streamed, _ = both()
    fit = bz.fit(model(), streamed, guide, steps=200, batch_size=50, progress=False)
    assert sum(fit.losses[-50:]) < sum(fit.losses[:50])
    assert fit.predict({"x": torch.zeros(3, 2)}, n=20).mean.shape[0] == 3


def test_no_fit_looks_at_more_rows_at_once_than_some() -> None:
    rows = Rows()
    streamed = bz.data.StreamedData(rows, target=("y",))
    rows.asked.clear()
    bz.fit(line, streamed, "mean_field", steps=3, batch_size=10, progress=False)
    assert len(set(rows.asked)) < ROWS  # 256 that show what the others are like, and three batches of ten


def test_all_rows_a_step_cannot_be_streamed() -> None:
    streamed, _ = both()
    with pytest.raises(ValueError, match="they are streamed; give batch_size="):
        bz.fit(line, streamed, "mean_field", steps=3, progress=False)
