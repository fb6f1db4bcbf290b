"""One thread at a time: Pyro keeps one stack of handlers and one store of parameters for all threads of a process."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

_turn = threading.RLock()


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Inside, other threads wait; the own thread's inner turns do not."""
    with _turn:
        yield


def in_turn[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose calls from other threads wait until it has returned; its own thread's inner calls do not."""

    @functools.wraps(function)
    def waits(*args: P.args, **kwargs: P.kwargs) -> T:
        with _turn:
            return function(*args, **kwargs)

    return waits


def _forked() -> None:
    """The thread whose turn it was is not there in a forked process."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
