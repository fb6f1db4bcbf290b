"""Resident memory over a long compiled run: it must stay flat."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from .compare import say
from .process import NotRun, Process
from .results import not_run, table


def watch(case: str, steps: int, threads: int, every: float = 0.02) -> dict[str, Any]:
    """Samples a worker's resident memory, from outside, while it makes `steps` steps of a case.

    A short run goes before, so that everything that is allocated once is there.
    """
    import psutil

    with Process({"do": "start", "contestant": "compiled", "case": case, "device": "cpu"}, threads=threads) as process:
        process.ask(do="first", steps=2000, seed=0)
        seen = psutil.Process(process.child.pid)
        answer: dict[str, Any] = {}

        def ask() -> None:
            try:
                answer.update(process.ask(do="long", steps=steps))
            except NotRun as reason:
                answer["error"] = str(reason)

        asking = threading.Thread(target=ask)
        began = time.perf_counter()
        asking.start()
        samples = []
        while asking.is_alive():
            samples.append((round(time.perf_counter() - began, 3), round(seen.memory_info().rss / 2**20, 2)))
            asking.join(every)
    if "error" in answer:
        raise NotRun(answer["error"])
    return {"steps": steps, "seconds": answer["loop"], "samples": samples}


def grown(samples: list[tuple[float, float]]) -> float:
    """MiB between the medians of the second and the last tenth of the run but one: start and handing over are left out."""
    tenth = max(1, len(samples) // 10)
    early = sorted(m for _, m in samples[tenth : 2 * tenth]) or [samples[0][1]]
    late = sorted(m for _, m in samples[-2 * tenth : -tenth]) or [samples[-1][1]]
    return late[len(late) // 2] - early[len(early) // 2]


def run(cases: list[str], steps: int, threads: int) -> dict[str, Any]:
    """The runs by case."""
    runs: dict[str, Any] = {}
    for case in cases:
        try:
            runs[case] = watch(case, steps, threads)
            runs[case]["grown"] = grown(runs[case]["samples"])
            say(f"  {case}: {runs[case]['grown']:+.2f} MiB over {steps} steps")
        except NotRun as reason:
            runs[case] = {"error": str(reason)}
            say(f"  {case}: not run: {reason}")
    return runs


def render(runs: Mapping[str, Any]) -> str:
    """One row a case."""
    rows = [
        [name, not_run(run["error"]), "", "", ""]
        if "error" in run
        else [
            name,
            f"{run['steps']:,}",
            f"{run['samples'][0][1]:.0f}",
            f"{max(m for _, m in run['samples']):.0f}",
            f"{run['grown']:+.2f}",
        ]
        for name, run in runs.items()
    ]
    text = (
        "Resident memory of the fitting process, sampled fifty times a second from outside. The record of the losses takes eight bytes a "
        "step or more and is part of it."
    )
    return text + "\n\n" + table(["case", "compiled steps", "before (MiB)", "highest (MiB)", "grown over the run (MiB)"], rows)
