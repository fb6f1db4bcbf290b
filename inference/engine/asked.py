"""What the code of a model and a guide asks for while it runs: the time, and things by their names.

A threshold of time is passed once, long after a graph was checked; and what is found by its name (`sys.modules`, `eval`) nobody can follow
to see whether it changes. Only what a step runs counts: a method that nobody calls may ask what it likes.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import dis
import functools
import gc
import importlib
import inspect
import itertools
import os
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any

from .places import is_library, place
from .reach import Owners

_CLOCKS = {
    value
    for name, value in vars(time).items()
    if name.removesuffix("_ns") in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
}
_CLOCKS |= {time.strftime, os.times, os.getloadavg}
#: What takes the present time where it is given none.
_BY_DEFAULT = {time.localtime, time.gmtime, time.ctime}
#: What looks at files without `open`, which refuses for itself.
_FILES = {os.open, os.stat, os.listdir, os.scandir, os.path.exists, os.path.isfile, os.path.getmtime, os.path.getsize}
#: Of dates, classes of other libraries' included.
_NOW = frozenset({"now", "today", "utcnow"})
_FINDERS: set[Any] = {
    builtins.eval,
    builtins.exec,
    builtins.__import__,
    importlib.import_module,
    inspect.currentframe,
    inspect.stack,
    sys._getframe,
    gc.get_objects,
}


class Asked:
    """Inside `watched`, looks at the user's code as it is run.

    Attributes:
        refused: what a graph cannot hold of it, a sentence with its line; empty if there is nothing.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.refused = ""
        self.owners = Owners(parts)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watches this thread's run, with the interpreter's own monitoring; where all its tools are taken that is refused, too."""
        watch = sys.monitoring
        tool = next((k for k in (4, 3, 2, 0, 1, 5) if watch.get_tool(k) is None), None)
        if tool is None:
            self.refused = "all tools of Python's monitoring are taken, so nobody sees whether the model reads the clock"
            yield
            return
        thread = threading.get_ident()
        watch.use_tool_id(tool, "bayeszoo")
        entered = (watch.events.PY_START, watch.events.PY_RESUME)  # generators may have been started before
        seen: set[types.CodeType] = set()

        def started(code: types.CodeType, offset: int) -> Any:
            if threading.get_ident() != thread:
                return None
            places = sys._getframe(1).f_globals
            if not self._foreign(code, places):
                seen.add(code)
                watch.set_local_events(tool, code, watch.events.CALL)
                self._look(code, places)
            return watch.DISABLE

        def called(code: types.CodeType, offset: int, function: Any, first: object) -> None:
            if threading.get_ident() == thread:
                self._asks(code, function, first is watch.MISSING)

        try:
            watch.restart_events()  # of code that an earlier watch has seen
            for event in entered:
                watch.register_callback(tool, event, started)
            watch.register_callback(tool, watch.events.CALL, called)
            watch.set_events(tool, entered[0] | entered[1])
            yield
        finally:
            watch.set_events(tool, 0)
            for code in seen:
                watch.set_local_events(tool, code, 0)
            for event in (*entered, watch.events.CALL):
                watch.register_callback(tool, event, None)
            watch.free_tool_id(tool)

    def _foreign(self, code: types.CodeType, places: dict[str, Any]) -> bool:
        if code.co_filename.startswith("<frozen") or code.co_name == "<module>":  # run once, when something is imported
            return True
        package = str(places.get("__name__")).partition(".")[0]
        return package not in self.owners.packages and not code.co_filename.startswith("<") and is_library(code.co_filename)

    def _asks(self, code: types.CodeType, function: Any, alone: bool) -> None:
        while isinstance(function, functools.partial):
            function = function.func
        try:
            is_clock = function in _CLOCKS or (alone and function in _BY_DEFAULT)
            finds, looks = function in _FINDERS, function in _FILES
        except Exception:  # what cannot be hashed or compared
            return
        owner = (
            getattr(function, "__self__", None) if isinstance(function, types.BuiltinMethodType | types.MethodType) else None
        )
        if is_clock or (isinstance(owner, type) and issubclass(owner, datetime.date) and function.__name__ in _NOW):
            self._refuse(code, "reads the clock, and a graph holds one time")
        elif finds:
            self._refuse(code, f"finds what it needs with {function.__name__}(), and a graph holds what was there first")
        elif looks:
            self._refuse(code, f"looks at files with {function.__name__}(), and a graph holds what was there first")

    def _refuse(self, code: types.CodeType, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        line = code.co_firstlineno if frame is None else frame.f_lineno
        self.refused = self.refused or f"'{code.co_qualname}' {what}{place(code.co_filename, line)}"

    def _look(self, code: types.CodeType, places: dict[str, Any]) -> None:
        """Whether code reads `sys.modules`, which calls nothing."""
        for of, name in _attributes_of(code):
            if name == "modules" and (places.get(of) is sys or (of == "sys" and of not in places)):
                self._refuse(code, "finds what it needs in sys.modules, and a graph holds what was there first")
        if any(places.get(name) is sys.modules for name in code.co_names):
            self._refuse(code, "finds what it needs in sys.modules, and a graph holds what was there first")


@functools.lru_cache(4096)
def _attributes_of(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Names and what code asks them for right there: ("sys", "modules")."""
    steps = itertools.pairwise(dis.get_instructions(code))
    asked = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
    return frozenset((str(a.argval), str(b.argval)) for a, b in steps if b.opname in asked)
