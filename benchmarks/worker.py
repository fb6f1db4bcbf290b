"""A contestant's process from inside: reads one JSON object a line, answers with one.

    {"do": "start", "contestant": "torch", "case": "coin", "device": "cpu"}   imports, and makes the data
    {"do": "first", "steps": 1000, "seed": 0}    a whole fit in this process: overhead, loop, when it was accurate
    {"do": "settle", "seconds": 0.5}             a number of steps that takes about so long
    {"do": "steady", "steps": 5000, "seed": 1}   seconds a step of the loop alone
    {"do": "growth", ...}                        one point of a growth curve; see `growth_points`
    {"do": "long", "steps": 100000}              one long run, watched from outside; see `memory`

Anything that raises is answered with {"error": reason}. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .contestants import Contestant

#: Losses of so many steps are kept and handed over; more would time the keeping.
MOST_STEPS = 200_000


def peak_memory() -> float:
    """Peak resident memory of this process in MiB.

    The kernel's own high-water mark where there is one: `getrusage` also counts what the parent had when it started us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10


def accurate_after(losses: list[float], target: float, window: int) -> int | None:
    """The first step whose running mean over `window` steps is at most `target`; None if none is."""
    if len(losses) < window:
        return None
    total = np.concatenate([[0.0], np.cumsum(np.asarray(losses, dtype=np.float64))])
    hits = np.flatnonzero((total[window:] - total[:-window]) / window <= target)
    return int(hits[0]) + window if len(hits) else None


def settle(contestant: Contestant, seconds: float, at_least: int = 60) -> int:
    """The number of steps that takes about `seconds`: more steps each time, until their time says something."""
    contestant.train(at_least, 0)  # may wait for something else
    steps = at_least
    for _ in range(12):
        training = contestant.train(steps, 0)
        if training.loop <= 0:
            raise RuntimeError("nothing is trained step by step")
        enough = training.loop > 0.3 * seconds or steps >= MOST_STEPS
        wanted = min(MOST_STEPS, max(at_least, int(seconds * training.steps / training.loop)))
        if enough and wanted <= 2 * steps and steps <= 2 * wanted:
            break
        steps = wanted if enough else min(MOST_STEPS, 20 * steps, max(2 * steps, wanted))
    else:
        contestant.train(steps, 0)
    return steps


class Worker:
    """Answers requests; the contestant is made by the first."""

    def __init__(self) -> None:
        self.contestant: Any = None
        self.case: Any = None

    def start(self, contestant: str, case: str, device: str) -> dict[str, Any]:
        from . import contestants
        from .cases import CASES

        self.case = CASES[case]
        self.contestant = contestants.make(contestant, self.case, device)
        return {"memory": peak_memory()}

    def first(self, steps: int, seed: int) -> dict[str, Any]:
        training = self.contestant.train(steps, seed)
        hit = accurate_after(training.losses, self.case.target, self.case.window)
        done = len(training.losses) - training.steps
        accurate = None if hit is None else training.overhead + training.loop * max(0, hit - done) / training.steps
        return {
            "overhead": training.overhead,
            "compiling": training.compiling,
            "loop": training.loop,
            "accurate_steps": hit,
            "accurate": accurate,
            "last_loss": float(np.mean(training.losses[-self.case.window :])),
            "memory": peak_memory(),
            "device_memory": self.contestant.device_memory(),
        }

    def settle(self, seconds: float) -> dict[str, Any]:
        """The number of steps that takes about `seconds`; what has that many steps as its shape is compiled here."""
        return {"steps": settle(self.contestant, seconds)}

    def steady(self, steps: int, seed: int) -> dict[str, Any]:
        training = self.contestant.train(steps, seed)
        return {"step": training.loop / training.steps, "cores": training.cores}

    def growth(self, **request: Any) -> dict[str, Any]:
        """One point of a growth curve."""
        from . import growth_points

        return growth_points.measure(**request)

    def ready(self) -> dict[str, Any]:
        """Nothing but being there."""
        return {}

    def long(self, steps: int) -> dict[str, Any]:
        training = self.contestant.train(steps, 0)
        return {"loop": training.loop, "steps": training.steps}


def reason(error: BaseException) -> str:
    """One line for a table: the exception's first line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a contestant raises becomes a cell of the table
            answer = {"error": reason(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
