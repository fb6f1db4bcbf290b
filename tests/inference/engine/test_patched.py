"""What is replaced in torch's compiler is replaced for one thread and one while."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bayeszoo.inference.engine import inductor
from bayeszoo.inference.engine.patched import patched


class Owner:
    def method(self, x: int) -> int:
        return x + 1

    @staticmethod
    def static(x: int) -> int:
        return x + 2


def elsewhere[T](function: Callable[[], T]) -> T:
    """What a function gives in another thread."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(30)
    return found[0]


def test_for_this_thread_and_while() -> None:
    before = dict(vars(Owner))
    with patched(Owner, "method", lambda self, x: -x), patched(Owner, "static", lambda x: -x):
        assert Owner().method(3) == Owner().static(3) == Owner.static(3) == -3
        assert elsewhere(lambda: (Owner().method(3), Owner.static(3))) == (4, 5)
    assert (Owner().method(3), Owner().static(3)) == (4, 5)
    assert dict(vars(Owner)) == before


def test_within_another_and_after_an_error() -> None:
    before = Owner.method
    with patched(Owner, "method", lambda self, x: 10 * x):
        with pytest.raises(ZeroDivisionError), patched(Owner, "method", lambda self, x: 1 // 0):
            Owner().method(1)
        assert Owner().method(1) == 10
    assert Owner.method is before


def test_two_threads_that_overlap_leave_nothing() -> None:
    """The second begins while the first is inside, and would find, and put back, what the first has put there."""
    before, begun, ended = Owner.method, threading.Event(), []

    def second() -> None:
        begun.set()
        with patched(Owner, "method", lambda self, x: 100 * x):
            ended.append(Owner().method(1))

    thread = threading.Thread(target=second)
    with patched(Owner, "method", lambda self, x: 10 * x):
        thread.start()
        assert begun.wait(30)
        thread.join(0.2)  # it waits
        assert not ended
    thread.join(30)
    assert ended == [100]
    assert Owner.method is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_the_original_and_no_lock() -> None:
    """Whoever held a lock, and would have put the original back, is not there any more."""
    before, inside, go = Owner.method, threading.Event(), threading.Event()

    def other() -> None:
        with patched(Owner, "method", lambda self, x: 10 * x):
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(30)
    with patched(Owner, "static", lambda x: -x):  # one's own stays
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            right = Owner.method is before and Owner.static(3) == -3
            with patched(Owner, "method", lambda self, x: 7 * x):
                right = right and Owner().method(1) == 7
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert Owner.method is not before
    go.set()
    thread.join(30)
    assert Owner.method is before


def test_what_is_left_out_for_a_processor_is_there_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import codecache
    from torch._inductor.fx_passes import joint_graph

    hashed: list[Any] = []
    monkeypatch.setattr(codecache, "triton_key", lambda: hashed.append(1) or "triton's sources")
    codecache.CacheBase.get_system.cache_clear()
    inductor._system.cache_clear()
    try:
        with inductor._without_gpus():
            mine = codecache.CacheBase.get_system()
            assert joint_graph.lazy_init(None) is None
            assert not hashed
            theirs = elsewhere(codecache.CacheBase.get_system)
        assert hashed == [1]
        assert codecache.CacheBase.get_system() == theirs
        assert theirs["version"]["triton"] == "triton's sources"
        assert mine["version"]["triton"] is None
        assert mine["hash"] != theirs["hash"]
    finally:
        codecache.CacheBase.get_system.cache_clear()
        inductor._system.cache_clear()
