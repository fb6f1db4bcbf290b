"""Restarts that are trained as one loop take the same steps as restarts that are trained one after another."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import test_contract as contract
import torch

import bayeszoo as bz
from bayeszoo.inference import runner
from bayeszoo.inference.engine import stacked

#: Torch has no rule for mapping the Dirichlet's sampler; a doubly reparametrised gradient is weighted on its way back, outside the mapping.
ONE_AFTER_ANOTHER = {"coin-beta", "known-importance"}
CASES = [
    "coin-beta",
    "coin-iaf",
    "people-structured-batch",
    "known-importance",
    "unknown-mean_field",
    "pca-amortized-batch",
    "mixture-guide",
    "switch-mean_field",
]


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each fit was stacked."""
    seen: list[bool] = []
    original = runner._train_together

    def watch(*args: Any) -> bool:
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(runner, "_train_together", watch)
    return seen


def run(name: str, **options: Any) -> bz.inference.Fit:
    return contract.run(contract.CASES[name], restarts=3, dtype=torch.float64, **{"compile": False, **options})


def one_after_another(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> bz.inference.Fit:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "stack", lambda restarts: None)
        return run(name, **options)


def assert_same(a: bz.inference.Fit, b: bz.inference.Fit) -> None:
    for mine, other in zip(a.runs, b.runs, strict=True):
        torch.testing.assert_close(torch.tensor(mine.history.losses), torch.tensor(other.history.losses), rtol=1e-8, atol=1e-8)
        for p, q in zip(mine.owned.guide.parameters(), other.owned.guide.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_stacked_restarts_equal_single_ones(name: str, monkeypatch: pytest.MonkeyPatch, stacks: list[bool]) -> None:
    together = run(name)
    assert stacks == [name not in ONE_AFTER_ANOTHER]
    assert_same(one_after_another(monkeypatch, name), together)
    losses = [r.history.losses for r in together.runs]
    assert losses[0] != losses[1] != losses[2]


@pytest.mark.parametrize(
    "optimizer", [functools.partial(torch.optim.SGD, lr=0.002, momentum=0.5), functools.partial(torch.optim.AdamW, lr=0.02)]
)
def test_clipping_and_optimizers(optimizer: Any, monkeypatch: pytest.MonkeyPatch, stacks: list[bool]) -> None:
    options = {"clip_norm": 0.5, "optimizer": optimizer}
    together = run("unknown-full_rank", **options)
    assert stacks == [True]
    assert_same(one_after_another(monkeypatch, "unknown-full_rank", **options), together)


def test_compiled_restarts_equal_eager_ones(stacks: list[bool]) -> None:
    eager, compiled = run("unknown-mean_field"), run("unknown-mean_field", compile=True)
    assert stacks == [True, True]
    assert compiled.engine == "compiled"
    assert_same(eager, compiled)


def test_restarts_converge_together(stacks: list[bool]) -> None:
    fit = run("unknown-full_rank", steps=None)
    assert stacks == [True]
    assert fit.converged
    assert len({len(r.history.losses) for r in fit.runs}) == 1
    assert all("successive averages" in r.history.stop_reason for r in fit.runs)


def test_an_optimizer_that_mixes_elements_is_not_stacked(stacks: list[bool]) -> None:
    class Mixing(torch.optim.SGD):
        """Divides by the norm of the whole parameter."""

    fit = run("known-mean_field", optimizer=functools.partial(Mixing, lr=0.001))
    assert stacks == [False]
    assert len(fit.runs) == 3


def test_a_failed_stack_leaves_the_batches_at_their_beginning(monkeypatch: pytest.MonkeyPatch, stacks: list[bool]) -> None:
    options: dict[str, Any] = {"optimizer": functools.partial(torch.optim.SGD, lr=0.001)}
    with monkeypatch.context() as patch:
        original = runner.stack

        def failing(restarts: Any) -> Any:
            loop = original(restarts)
            whole = loop.advance

            def advance(steps: int) -> bool:
                whole(steps)
                raise bz.inference.NonFiniteError("after its batches were used")

            loop.advance = advance
            return loop

        patch.setattr(runner, "stack", failing)
        fallen_back = run("known-batch", **options)
    assert stacks == [False]
    assert_same(one_after_another(monkeypatch, "known-batch", **options), fallen_back)


def test_failure_is_told_of_one_restart(stacks: list[bool]) -> None:
    with pytest.raises(bz.inference.NonFiniteError, match="at step") as caught:
        run("known-mean_field", optimizer=functools.partial(torch.optim.SGD, lr=1e8), steps=200)
    assert stacks == [False]
    assert caught.value.fit is not None


def test_a_map_that_fails_has_moved_no_buffer() -> None:
    norm = torch.nn.BatchNorm1d(2)
    restart: Any = SimpleNamespace(owned=SimpleNamespace(guide=None, model=norm))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    moved: list[str] = []

    def fails() -> None:
        nonlocal moved
        with stacked._kept_buffers([restart]) as moved:
            norm(torch.randn(5, 2))
            raise RuntimeError("no rule")

    with pytest.raises(RuntimeError, match="no rule"):
        fails()
    assert moved == ["running_mean", "running_var", "num_batches_tracked"]
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
