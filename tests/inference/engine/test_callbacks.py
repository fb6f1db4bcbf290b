"""Callbacks see every step of a compiled fit, may stop it, and may change tensors in place."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from two_engines import fit_slope

import bayeszoo as bz
from bayeszoo.inference import NotCompiledWarning


def test_what_a_callback_may_change_is_not_read() -> None:
    beta = torch.zeros(())
    for read in (lambda: float(beta), lambda: float(beta * 1.0)):
        with pytest.raises(ValueError, match=r"float\(\) of a tensor"):
            fit_slope(lambda a, b, read=read: a * read(), compile=True, callbacks=[lambda progress: None])


@pytest.mark.parametrize(
    "read",
    [
        lambda x, k: torch.full_like(x, k),
        lambda x, k: torch.add(x, x, alpha=k),
        lambda x, k: x[k],
        lambda x, k: nn.functional.leaky_relu(x, k),
        lambda x, k: torch.tensor([k, k]).sum(),
    ],
)
def test_what_a_callback_may_change_is_no_number(read: Any) -> None:
    """A tensor without dimensions where torch takes a number: a graph would hold what it was."""
    x, k = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64), torch.tensor(1)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x + read(x, k), 1.0), obs=y)

    data = bz.data.Data({"x": x}, 0.7 * x)
    assert bz.fit(model, data, "mean_field", steps=4, compile=True, progress=False).engine == "compiled"
    with pytest.raises(
        ValueError, match=r"what an operator takes for a number is a tensor that|torch\.tensor of tensors is used on"
    ):
        bz.fit(model, data, "mean_field", steps=4, compile=True, callbacks=[lambda progress: None], progress=False)


@pytest.mark.parametrize("changes", ["memory", "frozen", "mode"])
def test_what_a_callback_may_not_change_ends_the_compiled_steps(changes: str, uncompiled: None) -> None:
    """With a warning, and with the eager engine's losses from there on."""
    losses = []
    for compile in (False, True):

        def change(progress: Any) -> None:
            parameter = next(iter(progress.parameters.values()))
            if progress.step == 20 and changes == "memory":
                parameter.data = parameter.data + 1.0
            elif progress.step == 20 and changes == "frozen":
                parameter.requires_grad_(False)
            elif progress.step == 20:
                progress.guide.eval()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = fit_slope(compile=compile, callbacks=[change])
        said = [str(w.message) for w in caught if issubclass(w.category, NotCompiledWarning)]
        assert len(said) == int(compile)
        assert not said or "a callback has given a parameter other memory" in said[0]
        losses.append(fit.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_auto_leaves_callbacks_to_the_eager_engine(eager_is_dear: None) -> None:
    assert fit_slope(callbacks=[lambda progress: None]).engine == "eager"


@pytest.mark.parametrize("place", ["x", "y"])
def test_a_callback_may_change_the_data(place: str, uncompiled: None) -> None:
    """In place: nothing that is made of them is kept from step to step then."""
    losses = []
    for compile in (False, True):
        x = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)
        data = bz.data.Data({"x": x}, 0.7 * x)

        def model(x: Tensor, y: Tensor | None = None) -> None:
            w, spread = pyro.sample("w", dist.Normal(0.0, 1.0)), (x * x).mean()
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(w * x * spread, 1.0), obs=y)

        def changes(progress: Any, data: bz.data.Data = data) -> None:
            if progress.step == 20:
                (data.inputs["x"] if place == "x" else data.observed).mul_(2.0)  # type: ignore[union-attr]

        fit = bz.fit(model, data, "mean_field", steps=40, callbacks=[changes], compile=compile, progress=False)
        losses.append(fit.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert losses[0][25] != pytest.approx(losses[0][15], rel=0.1)


def test_callbacks_see_every_step_and_can_stop(uncompiled: None) -> None:
    seen: list[tuple[int, float]] = []

    def watch(progress: Any) -> bool:
        seen.append((progress.step, progress.loss))
        return progress.step == 17

    fit = fit_slope(compile=True, callbacks=[watch])
    assert [step for step, _ in seen] == list(range(1, 18))
    assert fit.losses == [loss for _, loss in seen]
    assert "callback" in fit.stop_reason
