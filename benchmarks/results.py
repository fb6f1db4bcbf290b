"""Figures as Markdown tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .contestants import CONTESTANTS, REFERENCE

#: Characters of a reason that fit into a cell.
LONGEST = 110

Cell = Mapping[str, Any]


def seconds(value: float) -> str:
    """Three digits with a unit that suits."""
    if not math.isfinite(value):
        return "-"
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= unit or name == "µs":
            scaled = value / unit
            return f"{scaled:.0f} {name}" if scaled >= 100 else f"{scaled:.3g} {name}"
    raise AssertionError


def ratio(value: float) -> str:
    """A multiple, "3.1x"."""
    return f"{value:.0f}x" if value >= 100 else f"{value:.2g}x"


def not_run(reason: str) -> str:
    """The cell of a contestant that raised."""
    text = " ".join(reason.split()).replace("|", "/")
    return "not run: " + (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compared(cell: Cell, other: Cell, value: Callable[[Cell], float | None], missing: str) -> str:
    """A time and its multiple of the reference contestant's."""
    if "error" in cell:
        return not_run(cell["error"])
    mine, reference = value(cell), value(other)
    if mine is None:
        return missing
    return seconds(mine) if not reference or cell is other else f"{seconds(mine)} ({ratio(mine / reference)})"


def field(kind: str, name: str) -> Callable[[Cell], float | None]:
    """Reads a figure of the cold or warm start; one without caches has only one kind of start."""

    def read(cell: Cell) -> float | None:
        start = cell.get(kind) or cell.get("cold") or {}
        value: float | None = start.get(name)
        return value

    return read


def comparison(results: Mapping[str, Any]) -> str:
    """All tables of the comparison."""
    cases = results["cases"]
    names = [n for n in CONTESTANTS if any(n in case["contestants"] for case in cases.values())]
    titles = ["case", *(CONTESTANTS[n].title for n in names)]

    def rows(show: Callable[[Cell, Cell], str]) -> list[list[str]]:
        made = []
        for case in cases.values():
            cells = case["contestants"]
            other = cells.get(REFERENCE, {})
            made.append([case["title"], *(show(cells[n], other) if n in cells else "" for n in names)])
        return made

    def times(value: Callable[[Cell], float | None], missing: str) -> str:
        return table(titles, rows(lambda cell, other: compared(cell, other, value, missing)))

    def plain(text: Callable[[Cell], str]) -> str:
        return table(titles, rows(lambda cell, other: not_run(cell["error"]) if "error" in cell else text(cell)))

    def compiling(cell: Cell) -> str:
        cold, warm = (cell.get(kind, {}).get("compiling") for kind in ("cold", "warm"))
        if cold is None:
            return "-"
        return seconds(cold) if warm is None else f"{seconds(cold)} / {seconds(warm)}"

    def memory(cell: Cell) -> str:
        cold, warm = (cell.get(kind, {}).get("memory") for kind in ("cold", "warm"))
        text = "-" if cold is None else f"{cold:.0f}" if warm is None else f"{cold:.0f} / {warm:.0f}"
        on_gpu = cell.get("cold", {}).get("device_memory")
        return text if on_gpu is None else f"{text} (GPU {on_gpu:.0f})"

    def used(cell: Cell) -> str:
        return "-" if cell.get("cores") is None else f"{cell['cores']:.2f}"

    targets = [
        [
            case["title"],
            f"{case['best']:,.2f}",
            f"{case['tolerance']:g}",
            str(case["window"]),
            f"{case['learning_rate']:g}",
            str(case["steps"]),
        ]
        for case in cases.values()
    ]
    reference = CONTESTANTS[REFERENCE].title
    return "\n\n".join(
        [
            f"Multiples in brackets are of {reference}: above 1x is slower. Every figure is a median; repetitions were interleaved.",
            "## Time of one step\n\nThe steady loop, nothing else.",
            times(lambda cell: cell.get("step"), "-"),
            "## Time until accurate, cold\n\nFrom the call of the fit to the first step at which the running mean of the loss is within "
            "the tolerance of the best loss, compilation with empty caches included, imports not.",
            times(field("cold", "accurate"), "not reached"),
            "## Time until accurate, warm\n\nThe same in a second process that finds the compilers' caches filled.",
            times(field("warm", "accurate"), "not reached"),
            "## Compiling, cold / warm",
            plain(compiling),
            "## Peak resident memory, cold / warm, in MiB\n\nOf the fitting process, libraries included.",
            plain(memory),
            "## Processor seconds a second\n\nNear the number of threads or below: nobody took more.",
            plain(used),
            "## What accurate means",
            table(["case", "best loss (nats)", "tolerance (nats)", "running mean of", "learning rate", "steps timed"], targets),
        ]
    )


def machine(description: Mapping[str, str]) -> str:
    """The machine as a table."""
    return table(["measured on", ""], ([name, value] for name, value in description.items()))


def write(folder: Path, name: str, results: Mapping[str, Any], title: str, body: str) -> None:
    """Writes `name.json` and `name.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = f"# {title}\n\n{body}\n\n{machine(results['machine'])}\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
