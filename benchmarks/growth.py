"""How the cost of a step grows with particles, latents and rows, on both engines; with particles, beside NumPyro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .cases import CASES
from .compare import say
from .process import NotRun, Process
from .results import not_run, ratio, seconds, table

#: Families for any model that are trained step by step; `exact` and `laplace` train nothing.
FAMILIES = ("map", "mle", "mean_field", "low_rank", "full_rank", "structured", "iaf", "spline", "beta")

AXES: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    "particles": ("particles a step", tuple(c.name for c in CASES.values() if c.small), (1, 2, 4, 8, 16, 32, 64)),
    "latents": ("latent dimension", FAMILIES, (10, 100, 1000, 10_000)),
    "rows": ("rows of data, 10 columns", ("all rows a step", "minibatch of 256"), (1000, 10_000, 100_000)),
}
#: Who takes the steps; what NumPyro has no twin for is ours alone.
ENGINES = {"particles": ("eager", "compiled", "numpyro"), "latents": ("eager", "compiled"), "rows": ("eager", "compiled")}


def curve(
    axis: str, what: str, values: tuple[int, ...], engine: str, threads: int, request: Mapping[str, Any], patience: float
) -> Any:
    """The points of one line; after a point that took too long or too much memory the larger ones are left out."""
    points: list[dict[str, Any]] = []
    process: Process | None = None
    gone = ""
    try:
        for value in values:
            point: dict[str, Any] = {"value": value}
            points.append(point)
            if gone:
                point["error"] = gone
                continue
            try:
                if process is None:
                    process = Process({"do": "ready"}, threads=threads, patience=patience)
                point |= process.ask(do="growth", axis=axis, what=what, value=value, engine=engine, **request)
            except NotRun as reason:
                point["error"] = str(reason)
                if process is None or process.child.poll() is not None:
                    gone = f"not tried: {value} {reason}"
            said = point.get("error") or seconds(point["step"])
            say(f"  {axis} {what} {engine} {value}: {said}")
    finally:
        if process is not None:
            process.close()
    return points


def run(
    axes: list[str], threads: int, length: float, repetitions: int, patience: float, after: Callable[[dict[str, Any]], None]
) -> None:
    """All curves; `after` is called with those so far."""
    curves: dict[str, Any] = {}
    request = {"seconds": length, "repetitions": repetitions}
    for axis in axes:
        label, subjects, values = AXES[axis]
        lines: list[dict[str, Any]] = []
        curves[axis] = {"label": label, "values": list(values), "lines": lines}
        for what in subjects:
            for engine in ENGINES[axis]:
                points = curve(axis, what, values, engine, threads, request, patience)
                lines.append({"what": what, "engine": engine, "points": points})
            after(curves)


def render(curves: Mapping[str, Any]) -> str:
    """One table an axis."""
    parts = ["Time of one step, the median of repetitions; in brackets the multiple of the line's first point."]
    for axis, found in curves.items():
        rows = []
        for line in found["lines"]:
            first = next((p["step"] for p in line["points"] if "step" in p), None)
            cells = [
                not_run(p["error"]) if "error" in p else f"{seconds(p['step'])} ({ratio(p['step'] / (first or p['step']))})"
                for p in line["points"]
            ]
            rows.append([line["what"], line["engine"], *cells])
        head = [axis, "engine", *(f"{value:,}" for value in found["values"])]
        parts += [f"## {found['label'].capitalize()}", table(head, rows)]
    return "\n\n".join(parts)
