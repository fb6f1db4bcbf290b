"""What one thread compiles leaves what another compiles as it is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeszoo.inference.engine import inductor
from bayeszoo.inference.engine.capture import Graph, capture


def graph() -> Graph:
    a, x, out = torch.randn(40, 60), torch.randn(60), torch.zeros(40)

    def step() -> tuple[Tensor]:
        out.copy_((a @ x).tanh().cumsum(0))
        return (out.sum(),)

    return capture(step, changing=[x], modules=[])


def test_a_users_compile_waits_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler keeps what belongs to one graph in its classes, so two must not run at once."""
    from torch._inductor import compile_fx

    inside, go, seen = threading.Event(), threading.Event(), []
    original = compile_fx.compile_fx

    def ours(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        go.wait(60)
        seen.append("ours")
        return original(*args, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx", ours)
    monkeypatch.setattr(inductor, "_compiled", {})
    first = threading.Thread(target=lambda: inductor.compile_graph(graph()))
    first.start()
    assert inside.wait(60)

    function = torch.compile(lambda x: x + 1, backend=lambda module, _: seen.append("the user's") or module.forward)
    second = threading.Thread(target=lambda: function(torch.ones(3)))
    second.start()
    second.join(1.0)
    assert not seen
    go.set()
    first.join(120)
    second.join(120)
    assert seen == ["ours", "the user's"]
