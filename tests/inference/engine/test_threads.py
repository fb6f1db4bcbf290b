"""What one thread compiles leaves what another compiles as it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
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


def in_a_forked_process(function: Callable[[], bool]) -> int:
    """The exit code of a forked process that calls a function: 0 for True, 1 for False, negative if it waited for 60 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if function() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_while_torchs_sources_are_hashed_has_the_hash() -> None:
    from torch._inductor.codecache import torch_key

    expected, inside, go = torch_key(), threading.Event(), threading.Event()

    def hashes() -> None:
        with inductor.prepared(torch.device("cpu")):
            inside.set()
            go.wait(60)

    torch_key.clear()  # type: ignore[attr-defined]
    thread = threading.Thread(target=hashes)
    thread.start()
    assert inside.wait(60)
    assert in_a_forked_process(lambda: torch_key() == expected) == 0
    go.set()
    thread.join(60)
    assert not inductor._hashing


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_while_another_thread_compiles_may_compile() -> None:
    from torch._dynamo.convert_frame import compile_lock

    def free() -> bool:
        return bool(compile_lock.acquire(timeout=5))

    inside, go = threading.Event(), threading.Event()

    def compiles() -> None:
        with inductor.compiler_lock():
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=compiles)
    thread.start()
    assert inside.wait(60)
    assert in_a_forked_process(free) == 0
    go.set()
    thread.join(60)
    with inductor.compiler_lock():  # one's own stays
        assert in_a_forked_process(lambda: inductor._holder == threading.get_ident() and free()) == 0
    assert inductor._holder is None


def test_what_a_user_has_set_for_other_programs_does_not_reach_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(inductor, "_compiled", {})
    x, out = torch.rand(64), torch.zeros(64)

    def step() -> tuple[Tensor]:
        out.copy_(x.exp().log1p())
        return (out.sum(),)

    with config.patch(cpp_wrapper=True, max_autotune=True):
        found = capture(step, changing=[x], modules=[])
        inductor.compile_graph(found).call(*found.inputs)
    torch.testing.assert_close(out, x.exp().log1p())


def test_a_process_forked_while_another_thread_captures_is_not_compiling() -> None:
    inside, go = threading.Event(), threading.Event()

    def capture_slowly() -> None:
        with inductor.compiler_lock(), torch.compiler._compile_session_context():
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=capture_slowly)
    thread.start()
    assert inside.wait(60)
    try:
        assert in_a_forked_process(lambda: not torch.compiler.is_compiling()) == 0
        assert torch.compiler.is_compiling()
    finally:
        go.set()
        thread.join(60)
