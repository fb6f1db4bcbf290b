"""Who competes. A contestant lives in a process of its own, so none sees another's settings, threads or caches."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..cases import Case


@dataclass(frozen=True)
class Training:
    """What one run of the optimiser cost, in seconds.

    Attributes:
        overhead: from the call to the loop, compilation included: what a user waits before the first steady step.
        compiling: the part of it that is tracing and compiling; None where nothing is compiled.
        loop: the loop alone.
        steps: how many steps the loop made.
        losses: one a step, in nats, of the whole data set.
        cores: processor seconds of the process a wall second, over the loop or, where it cannot be told apart, the whole call.
    """

    overhead: float
    compiling: float | None
    loop: float
    steps: int
    losses: list[float] = field(default_factory=list, repr=False)
    cores: float | None = None


class Contestant(Protocol):
    """Fits one case on one device."""

    def train(self, steps: int, seed: int) -> Training:
        """Fits anew, from the same start, by `steps` steps."""

    def device_memory(self) -> float | None:
        """Peak memory on the GPU in MiB; None on the CPU, or where it cannot be told."""


@dataclass(frozen=True)
class Entry:
    """Where a contestant's class is, and what it is called with; `caches` if it keeps compiled code on disk."""

    title: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    caches: bool = False


CONTESTANTS: dict[str, Entry] = {
    "pyro": Entry("Pyro SVI", "pyro_svi"),
    "pyro-unchecked": Entry("Pyro SVI, validation off", "pyro_svi", {"validate": False}),
    "pyro-jit": Entry("Pyro JitTrace_ELBO", "pyro_svi", {"jit": True}),
    "torch": Entry("torch by hand", "torch_by_hand"),
    "torch-compiled": Entry("torch by hand, compiled", "torch_by_hand", {"compile": True}, caches=True),
    "numpyro": Entry("NumPyro, one scan", "numpyro_svi", caches=True),
    "numpyro-step": Entry("NumPyro, a call a step", "numpyro_svi", {"scan": False}, caches=True),
    "eager": Entry("bayeszoo eager", "ours", {"compile": False}),
    "compiled": Entry("bayeszoo compiled", "ours", {"compile": True}, caches=True),
    "mean_field": Entry("bayeszoo compiled, own mean_field", "ours", {"compile": True, "guide": "mean_field"}, caches=True),
}

#: All others are given as multiples of this one.
REFERENCE = "compiled"


def make(name: str, case: Case, device: str) -> Contestant:
    """The contestant of that name, its libraries imported and the data on the device."""
    entry = CONTESTANTS[name]
    module = importlib.import_module(f".{entry.module}", __name__)
    contestant: Contestant = module.make(case, device, **entry.options)
    return contestant
