"""What a step asks for that a graph would hold for ever: the time, names, files."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import inspect
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from two_engines import slope

import bayeszoo as bz

began = time.monotonic()


def until_later() -> float:
    return 1.0 if time.monotonic() - began < 1e6 else 5.0


def at_noon() -> float:
    return float(datetime.datetime.now().hour >= 0)


def by_name() -> float:
    return float(perf_counter() > 0)


def not_at_all() -> float:
    return float(datetime.timedelta(days=1).days) * (time.sleep is not None)


class Recorded:
    """Has a time of its own, and was made at one."""

    def __init__(self) -> None:
        self.time = 1.0
        self.created = time.time()

    def __call__(self) -> float:
        return self.time * (time.sleep is not None)


def imported_inside() -> float:
    from time import monotonic

    return float(monotonic() > 0)


@dataclasses.dataclass
class Times:
    """Has methods that say the time, which nobody calls."""

    began: float = dataclasses.field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def __call__(self) -> float:
        return 1.0


def of_that_day() -> float:
    return float(time.localtime(0).tm_year > 1960)


def of_this_day() -> float:
    return float(time.localtime().tm_year > 1960)


SETTINGS = types.ModuleType("tests_settings")
SETTINGS.scale = 1.0  # type: ignore[attr-defined]
sys.modules["tests_settings"] = SETTINGS


def _ticking() -> Iterator[float]:
    while True:
        yield float(time.time() > 0)


_started = _ticking()
next(_started)


def resumes() -> float:
    return next(_started)


def looks_at_a_file() -> float:
    return float(os.path.exists(__file__))


def in_all_modules() -> float:
    return float(sys.modules["tests_settings"].scale)


def imports_by_name() -> float:
    return float(importlib.import_module("tests_settings").scale)


def evaluates() -> float:
    return float(eval("SETTINGS.scale"))


def in_its_frame() -> float:
    frame = inspect.currentframe()
    assert frame is not None
    return float(frame.f_globals["SETTINGS"].scale)


def switches_a_network() -> float:
    return float(nn.Dropout().eval()(torch.ones(())))


CLOCK = r"reads the clock, and a graph holds one time \(test_asked.py, line \d+: .*\(\)"
FINDER = r"finds what it needs .*, and a graph holds what was there first \(test_asked.py, line \d+: "


def test_another_threads_clock_is_none_of_the_models(uncompiled: None) -> None:
    _, data = slope()
    stop = threading.Event()

    def ticks() -> None:
        while not stop.is_set():
            time.time()

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    thread = threading.Thread(target=ticks)
    thread.start()
    try:
        assert bz.fit(model, data, "mean_field", steps=10, progress=False, compile=True).engine == "compiled"
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("says", "reads"),
    [
        (until_later, CLOCK),
        (imported_inside, CLOCK),
        (Recorded(), ""),
        (Times(), ""),
        (Times().seconds, CLOCK),
        (at_noon, CLOCK),
        (by_name, CLOCK),
        (not_at_all, ""),
        (of_that_day, ""),
        (of_this_day, CLOCK),
        (resumes, CLOCK),
        (looks_at_a_file, "looks at files with exists.*, and a graph holds what was there first"),
        (in_all_modules, FINDER),
        (imports_by_name, FINDER),
        (evaluates, FINDER),
        (in_its_frame, FINDER),
        (switches_a_network, ""),
    ],
)
def test_a_model_that_asks_for_the_time_or_for_names_is_not_compiled(says: Any, reads: str, uncompiled: None) -> None:
    """A threshold of time is passed once, long after the graph was checked."""
    _, data = slope()

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, says()), obs=y)

    with pytest.raises(ValueError, match=reads) if reads else contextlib.nullcontext():
        fit = bz.fit(model, data, "mean_field", steps=10, progress=False, compile=True)
        assert fit.engine == "compiled"
