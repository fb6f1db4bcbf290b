"""Where the time of many fits goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


class Timing:
    """Collects the timings of fits of one family."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.parts: dict[str, list[float]] = {"compile": [], "steps": [], "evaluation": []}
        self.steps = 0

    def add(self, fit: Any, seconds: float) -> None:
        """Takes in one fit, and the seconds from making the model to its score."""
        self.whole.append(seconds)
        for name, values in self.parts.items():
            values.append(fit.timings[name])
        self.steps += len(fit.losses)

    def summary(self) -> dict[str, float]:
        """Number of fits, seconds in all and by part, and the median microseconds of one step."""
        if not self.whole:
            return {"fits": 0, "seconds": 0.0}
        each = self.steps / len(self.whole)
        return {
            "fits": len(self.whole),
            "seconds": sum(self.whole),
            "median_fit": statistics.median(self.whole),
            "first_compile": self.parts["compile"][0],
            "median_compile": statistics.median(self.parts["compile"]),
            "median_steps": statistics.median(self.parts["steps"]),
            "median_evaluation": statistics.median(self.parts["evaluation"]),
            "step_us": 1e6 * statistics.median(self.parts["steps"]) / each if each else 0.0,
        }


def limit(timing: Mapping[str, float]) -> str:
    """Which part of a median fit is the largest: steps, compiling (capture included), or evaluation with prediction."""
    steps, compiling = timing["median_steps"], timing["median_compile"]
    shares = {"steps": steps, "compiling": compiling, "evaluation": max(0.0, timing["median_fit"] - steps - compiling)}
    name = max(shares, key=lambda k: shares[k])
    return f"{name}, {shares[name] / max(timing['median_fit'], 1e-9):.0%}"
