"""Figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from .contestants import CONTESTANTS


def comparison(results: Mapping[str, Any], path: Path) -> None:
    """Time a step of every contestant, one group of points a case, logarithmic."""
    cases = list(results["cases"].values())
    names = [n for n in CONTESTANTS if any(n in case["contestants"] for case in cases)]
    figure, axes = plt.subplots(figsize=(8, 0.7 + 0.6 * len(cases)), layout="constrained")
    for name in names:
        points = [(case["contestants"].get(name, {}).get("step"), row) for row, case in enumerate(cases)]
        found = [(step * 1e3, row) for step, row in points if step is not None]
        if found:
            ours = CONTESTANTS[name].module == "ours"
            times, rows = zip(*found, strict=True)
            axes.plot(times, rows, "D" if ours else "o", ms=8 if ours else 6, alpha=0.85, label=CONTESTANTS[name].title)
    axes.set_xscale("log")
    axes.set_xlabel("time of one step (ms)")
    axes.set_yticks(range(len(cases)), [case["title"] for case in cases])
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def growth(curves: Mapping[str, Any], path: Path) -> None:
    """One panel an axis: time a step over particles, latents, rows; compiled solid, eager dashed, NumPyro dotted."""
    styles = {"compiled": "o-", "eager": "o--", "numpyro": "s:"}
    figure, panels = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 5.0), layout="constrained", squeeze=False)
    for axes, (name, curve) in zip(panels[0], curves.items(), strict=True):
        colours: dict[str, Any] = {}
        for line in curve["lines"]:
            found = [(p["value"], p["step"] * 1e3) for p in line["points"] if "step" in p]
            if not found:
                continue
            colour = colours.setdefault(line["what"], f"C{len(colours)}")
            compiled = line["engine"] == "compiled"
            label = line["what"] if compiled else None
            axes.plot(*zip(*found, strict=True), styles[line["engine"]], color=colour, ms=4, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(curve["label"])
        axes.set_ylabel("time of one step (ms)")
        dotted = ", NumPyro dotted" if any(line["engine"] == "numpyro" for line in curve["lines"]) else ""
        axes.set_title(f"{name}: compiled solid, eager dashed{dotted}", fontsize="medium")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5)  # below, off the lines
    figure.savefig(path, dpi=130)
    plt.close(figure)


def memory(runs: Mapping[str, Any], path: Path) -> None:
    """Resident memory over the run."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, run in runs.items():
        if "samples" in run:
            axes.plot([t for t, _ in run["samples"]], [m for _, m in run["samples"]], label=f"{name}: {run['steps']:,} steps")
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory (MiB)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)
