"""Ctrl-C, heard between steps.

Raised wherever it falls, it could stand between an update of the parameters and the record of its loss, or in the middle of an import
that a compiler makes when it is first asked.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def heard_between_steps() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C waits until it is asked for; pressed again before that, it is raised at once.

    Where it has another handler than Python's own, or in another thread than the main one, nothing is changed.

    Yields:
        What raises KeyboardInterrupt if Ctrl-C has been pressed; also done at the end.
    """
    pressed: list[int] = []

    def ask() -> None:
        if pressed:
            pressed.clear()
            raise KeyboardInterrupt

    def keep(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield ask
        return
    signal.signal(signal.SIGINT, keep)
    try:
        yield ask
        ask()
    finally:
        if signal.getsignal(signal.SIGINT) is keep:  # nobody has put another in its place
            signal.signal(signal.SIGINT, signal.default_int_handler)


def import_whole() -> None:
    """Imports what torch imports when its first optimiser is made: modules that Ctrl-C leaves half imported fail until Python ends."""
    if "torch._dynamo" not in sys.modules:
        with heard_between_steps():
            importlib.import_module("torch._dynamo")
