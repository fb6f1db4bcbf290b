"""Fits of data sets that are fetched batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
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


class Augmented(Rows):
    """Every fetch moves the pictures, so to speak: what streams are most often for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.own = kind, np.random.default_rng(0)

    def __getitem__(self, row: int) -> Any:
        moved = {
            "torch": lambda: torch.randn(2, dtype=torch.float64),
            "numpy": lambda: torch.as_tensor(np.random.standard_normal(2)),  # noqa: NPY002
            "own": lambda: torch.as_tensor(self.own.standard_normal(2)),
        }[self.kind]()
        return {"x": self.x[row] + 0.1 * moved, "y": self.y[row]}


@pytest.mark.parametrize("kind", ["torch", "numpy", "own"])
def test_what_is_drawn_as_rows_are_fetched_does_not_depend_on_the_engine(
    kind: str, uncompiled: None, eager_is_dear: None
) -> None:
    losses = []
    for compile in (False, True, "auto"):
        streamed = bz.data.StreamedData(Augmented(kind), target=("y",))
        np.random.seed(0)  # noqa: NPY002
        losses.append(bz.fit(line, streamed, "mean_field", steps=30, batch_size=50, progress=False, compile=compile).losses)  # type: ignore[arg-type]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)


def test_a_streamed_fit_is_read_back_with_its_data(tmp_path: Any) -> None:
    streamed, _ = both()
    fit = bz.fit(bz.models.BayesianLinearRegression(2, noise_scale=0.3), streamed, steps=20, batch_size=50, progress=False)
    fit.save(tmp_path)
    again = bz.load(tmp_path, data=streamed)
    torch.testing.assert_close(again.sample(10)["theta"], fit.sample(10)["theta"], rtol=0, atol=0)
    with pytest.raises(ValueError, match="were streamed and are not in the checkpoint"):
        bz.load(tmp_path)


def each_its_own(x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
    with pyro.plate("data", num_data or len(x), subsample=index):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.3), obs=y)


def test_what_needs_all_rows_says_so() -> None:
    streamed, _ = both()
    options: dict[str, Any] = {"steps": 4, "batch_size": 50, "progress": False}
    with pytest.raises(
        ValueError, match="guide 'laplace' is made at the mode of the log density of all data, and these are streamed"
    ):
        bz.fit(line, streamed, "laplace", **options)
    with pytest.raises(ValueError, match=r"guide 'mean_field' holds the latents of single observations \(z\) all together"):
        bz.fit(each_its_own, streamed, "mean_field", **options)
    with pytest.raises(ValueError, match="validation data are looked at as a whole"):
        bz.fit(line, streamed, "mean_field", **options, validation=streamed)
    fit = bz.fit(line, streamed, "mean_field", steps=4, batch_size=10_000, progress=False)
    assert fit.settings.batch_size == ROWS
    with pytest.raises(ValueError, match=r"not StreamedData; give test\.inputs"):
        fit.predict(streamed)
    one = bz.data.StreamedData(torch.utils.data.Subset(Rows(), [0]), target=("y",))
    assert len(bz.fit(line, one, "mean_field", steps=4, batch_size=1, progress=False).losses) == 4


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


class Values(torch.utils.data.Dataset[Any]):
    """y ~ N(z, 0.5), z ~ N(0, 1), row by row."""

    def __init__(self) -> None:
        self.y = 1.118 * torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> Any:
        return {"y": self.y[row]}


def with_a_latent_each(y: Tensor | None = None, num_data: int | None = None, index: Tensor | None = None) -> None:
    rows = num_data or 300 if y is None else len(y)
    with pyro.plate("data", num_data or rows, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(rows, dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


@pytest.mark.parametrize("compile", [False, True])
def test_an_inference_network_learns_from_a_stream(compile: bool, uncompiled: None) -> None:
    streamed, rows = bz.data.StreamedData(Values(), target=("y",)), Values()
    options: dict[str, Any] = {"steps": 600, "batch_size": 50, "optimizer": 0.01, "progress": False, "compile": compile}
    fit = bz.fit(with_a_latent_each, streamed, "amortized", **options)
    some = bz.data.Data({}, {"y": rows.y[:40]})
    found = fit.log_marginal(some, k=500)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(rows.y[:40])
    assert bool(((found.values - exact).abs() < 5 * found.errors + 1e-3).all())
    assert fit.log_marginal(rows.y[:5], k=5).values.shape == (5,)
    # The exact posterior's mean is 0.8 y and its sd 0.45; 4,000 draws know each mean to 0.007, the rest is the network's.
    assert float((fit.sample(4000, data=some)["z"].mean(0) - 0.8 * rows.y[:40]).abs().mean()) < 0.05
