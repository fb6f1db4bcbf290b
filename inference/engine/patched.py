"""Functions of torch's compiler replaced for a while, for one thread.

What other threads compile meanwhile goes on as it is, and everything is as it was afterwards.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

#: A lock for each function: who comes second would put back what the first has put there.
_locks: dict[tuple[int, str], threading.RLock] = {}


@contextmanager
def patched(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Inside, this thread's calls of `owner.name` reach `replacement`, and those of all others the original.

    Args:
        owner: a module or a class.
        replacement: takes what the original takes, `self` of a method included.
    """
    with _locks.setdefault((id(owner), name), threading.RLock()):
        original, mine = getattr(owner, name), threading.get_ident()

        @functools.wraps(original)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return (replacement if threading.get_ident() == mine else original)(*args, **kwargs)

        is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        with mock.patch.object(owner, name, staticmethod(chosen) if is_static else chosen):
            yield
