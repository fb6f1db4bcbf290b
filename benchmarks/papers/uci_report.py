"""The UCI figures as text: tables beside the published ones, and what beats what."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from ..results import seconds, table
from .published import PUBLISHED, beats
from .timing import limit

Sets = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """\
One hidden layer of 50 rectified units, 20 standard splits, inputs and target standardised with the training rows alone. RMSE in
the target's unit, lower is better; test log likelihood in nats an observation, higher is better, the density averaged over
posterior draws. Mean ± standard error over the splits; bold: better than PBP in both. The published figures are means."""


def mean_and_error(cell: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Mean over the splits and its standard error, NaN for a single split."""
    values = [score[key] for score in cell["scores"]]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def figures(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Mean RMSE and mean log likelihood."""
    return mean_and_error(cell, "rmse")[0], mean_and_error(cell, "log_likelihood")[0]


def shown(cell: Mapping[str, Any], name: str) -> str:
    """Both figures of a cell, bold where both are better than PBP's."""
    parts = [f"{mean:.2f} ± {error:.2f}" for mean, error in (mean_and_error(cell, k) for k in ("rmse", "log_likelihood"))]
    text = " / ".join(parts)
    return f"**{text}**" if beats(figures(cell), PUBLISHED["pbp"].figures[name]) else text


def winners(found: Sets, name: str, paper: str) -> list[str]:
    """Families whose RMSE and log likelihood on one set are both better than a paper's."""
    return [guide for guide, cell in found[name].items() if beats(figures(cell), PUBLISHED[paper].figures[name])]


def render(found: Sets) -> str:
    """All tables."""
    guides = list(dict.fromkeys(guide for cells in found.values() for guide in cells))
    head = ["RMSE / log likelihood", *(f"{name} ({len(_any(found[name])['scores'])} splits)" for name in found)]
    rows = [[f"`{g}`", *(shown(cells[g], name) if g in cells else "not run" for name, cells in found.items())] for g in guides]
    rows += [
        [paper.title, *(f"{paper.figures[name][0]:.2f} / {paper.figures[name][1]:.2f}" for name in found)]
        for paper in PUBLISHED.values()
    ]
    verdicts = [
        [paper.title, *(", ".join(f"`{g}`" for g in winners(found, name, key)) or "none" for name in found)]
        for key, paper in PUBLISHED.items()
    ]
    chosen = [[f"`{g}`", *(_chosen(cells[g]) if g in cells else "not run" for cells in found.values())] for g in guides]
    return "\n\n".join(
        [
            INTRODUCTION,
            table(head, rows),
            "## Families better in both figures than",
            table(["published", *found], verdicts),
            "## What validation chose",
            _how(found),
            table(["family", *found], chosen),
            "## Time",
            "One thread, other work on the machine. A fit is everything from making the model to its test score; the graph that the "
            "first fit compiles is used again by the others. What limits a fit is its largest part.",
            _times(found, guides),
            "## Sources",
            "\n".join(f"- {paper.title}: {paper.source}." for paper in PUBLISHED.values()),
        ]
    )


def _any(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    first: Mapping[str, Any] = next(iter(cells.values()))
    return first


def _how(found: Sets) -> str:
    each = {cell["each"] for cells in found.values() for cell in cells.values()}
    who = (
        "Every split chooses for itself."
        if each == {True}
        else "The first split's training rows choose for all splits; those rows hold test rows of the other splits, as in any choice "
        "made once for all, and `--each` lets every split choose for itself."
        if each == {False}
        else "Some families chose once, on the first split's training rows, others on every split's (marked)."
    )
    return (
        "The setting with the highest log likelihood on a held-out fifth of training rows, averaged over random 80/20 splits of them, "
        f"from the grid in `benchmarks/papers/uci.py`. {who} No test row of a split that chooses is looked at. `prior` is the "
        "standard deviation of weights and biases, `noise` a known sigma in sds of the target (inferred where it is missing), `warm-up` a weight of the KL that "
        "rises from 0 to 1 over the first half of the steps, so that the end is the untempered ELBO either way."
    )


def _chosen(cell: Mapping[str, Any]) -> str:
    if not cell["each"]:
        return str(cell["chosen"][0])
    most = statistics.mode(cell["chosen"])
    return f"each split; {cell['chosen'].count(most)} of {len(cell['chosen'])}: {most}"


def _times(found: Sets, guides: list[str]) -> str:
    rows = []
    for guide in guides:
        cells = [cells[guide] for cells in found.values() if guide in cells]
        timing = [cell["timing"] for cell in cells]
        whole = sum(t["seconds"] + cell["choosing"]["seconds"] for t, cell in zip(timing, cells, strict=True))
        fits = sum(t["fits"] + cell["choosing"]["fits"] for t, cell in zip(timing, cells, strict=True))
        typical = sorted(timing, key=lambda t: t["median_fit"])[len(timing) // 2]
        rows.append(
            [f"`{guide}`", f"{cells[0]['steps']:,}", seconds(whole), str(fits), seconds(typical["median_fit"]),
             seconds(typical["step_us"] * 1e-6), seconds(max(t["first_compile"] for t in timing)), limit(typical)]
        )  # fmt: skip
    return table(["family", "steps", "all fits", "fits", "median fit", "one step", "first compile", "largest part"], rows)
