"""The comparison: every case, every contestant, each in its own process, repetitions interleaved.

For a case, each *start* is a fresh process with empty compiler caches (cold) and, for those that cache, a second one that finds them
filled (warm); both fit the case once, from the start. Then one process of each contestant stays alive and the steady
speed is taken in turns: A, B, C, A, B, C, ... so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import CASES, Case
from .contestants import CONTESTANTS
from .process import NotRun, Process


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        device: "cpu" or "cuda".
        threads: of every library.
        starts: fresh processes, cold and warm, for compile time, time until accurate and memory.
        repetitions: of the steady loop.
        seconds: that one repetition takes, about.
    """

    device: str = "cpu"
    threads: int = 1
    starts: int = 3
    repetitions: int = 7
    seconds: float = 1.0


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def collecting(cell: dict[str, Any]) -> Iterator[None]:
    """Turns a failure into the cell's `error`."""
    try:
        yield
    except NotRun as reason:
        cell["error"] = str(reason)


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Field by field the median over the starts; None where any start has none."""
    if not runs:
        return {}
    return {k: None if any(r[k] is None for r in runs) else statistics.median(r[k] for r in runs) for k in runs[0]}


def run_case(case: Case, names: list[str], plan: Plan) -> dict[str, dict[str, Any]]:
    """The cells of one case by contestant."""
    cells: dict[str, dict[str, Any]] = {name: {} for name in names}
    cold: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    warm: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    alive: dict[str, Process] = {}
    with ExitStack() as stack:
        for start in range(plan.starts):
            last = start == plan.starts - 1
            for name in names:
                cell = cells[name]
                if "error" in cell:
                    continue
                caches = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
                request = {"do": "start", "contestant": name, "case": case.name, "device": plan.device}
                kinds = [cold, warm] if CONTESTANTS[name].caches else [cold]
                for kind in kinds:
                    with collecting(cell):
                        process = Process(request, threads=plan.threads, caches=caches)
                        stack.callback(process.close)
                        answer = process.ask(do="first", steps=case.steps, seed=start)
                        kind[name].append(answer | {"imports": process.import_seconds})
                        if last and kind is kinds[-1]:
                            alive[name] = process
                        else:
                            process.close()
                say(f"  {case.name} {name}: start {start + 1} of {plan.starts}{_told(cell, cold[name])}")
        steps = {}
        for name, process in alive.items():
            with collecting(cells[name]):
                steps[name] = process.ask(do="settle", seconds=plan.seconds)["steps"]
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repetition in range(plan.repetitions):
            for name in steps:
                if "error" not in cells[name]:
                    with collecting(cells[name]):
                        rounds[name].append(alive[name].ask(do="steady", steps=steps[name], seed=repetition))
        for name in names:
            cells[name] |= {"cold": median_of(cold[name]), "warm": median_of(warm[name])}
            if rounds[name]:
                times = [r["step"] for r in rounds[name]]
                cells[name] |= {"step": statistics.median(times), "all_steps": times, "steps_a_repetition": steps[name]}
                cells[name]["cores"] = median_of(rounds[name])["cores"]
                say(f"  {case.name} {name}: {cells[name]['step'] * 1e6:.1f} us a step")
    return cells


def _told(cell: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    if "error" in cell:
        return f": not run: {cell['error']}"
    took = runs[-1]["accurate"]
    return ": not accurate" if took is None else f": accurate after {took:.2f} s"


def run(names: list[str], contestants: list[str], plan: Plan, after: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All cases; `after` is called with the results so far once each is done."""
    results: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        say(f"{case.title}: accurate is a running mean of {case.window} losses below {case.target:.2f} nats")
        results[name] = {
            "title": case.title,
            "best": case.target - case.tolerance,
            "tolerance": case.tolerance,
            "window": case.window,
            "steps": case.steps,
            "learning_rate": case.learning_rate,
            "contestants": run_case(case, contestants, plan),
        }
        after(results)
    return results
