"""Functions of torch's compiler replaced for a while, for one thread.

What other threads compile meanwhile goes on as it is, and everything is as it was afterwards, in a forked process as well.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: A lock for each function: who comes second would put back what the first has put there.
_locks: dict[tuple[int, str], threading.RLock] = {}
#: What is replaced now: thread, owner, name, and what was there.
_replaced: list[tuple[int, Any, str, Any]] = []


@contextmanager
def patched(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Inside, this thread's calls of `owner.name` reach `replacement`, and those of all others the original.

    Args:
        owner: a module, or a class with a method or a static method of that name.
        replacement: takes what the original takes, `self` of a method included.
    """
    with _locks.setdefault((id(owner), name), threading.RLock()):
        original, mine = getattr(owner, name), threading.get_ident()
        entry = (mine, owner, name, inspect.getattr_static(owner, name))

        @functools.wraps(original)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return (replacement if threading.get_ident() == mine else original)(*args, **kwargs)

        _replaced.append(entry)
        setattr(owner, name, staticmethod(chosen) if isinstance(entry[-1], staticmethod) else chosen)
        try:
            yield
        finally:
            setattr(owner, name, entry[-1])
            _replaced.remove(entry)


def _forked() -> None:
    """A forked process has one thread: nobody is left to put back what others had replaced, or to let their locks go."""
    for entry in reversed(_replaced.copy()):
        thread, owner, name, original = entry
        if thread != threading.get_ident():
            setattr(owner, name, original)
            _replaced.remove(entry)
            _locks.pop((id(owner), name), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
