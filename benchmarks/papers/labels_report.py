"""Few labels as text: tables, and where Bayesian fits win and where not, computed from the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..results import seconds, table
from .timing import limit

#: Keys of the scores with their titles; accuracy is better when higher, the others when lower.
SCORES = (("accuracy", "accuracy"), ("nll", "NLL (nats an observation)"), ("ece", "calibration error (ECE)"))
POINTS, BAYES = ("mle", "map"), ("mean_field", "mc_dropout", "ensemble")

#: Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)

Points = Mapping[str, Mapping[str, Any]]


def summary(points: Points) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Mean and standard error over the seeds, by number of labels, family and score."""
    return {
        n: {
            family: {key: _mean_and_error([s[key] for s in cell["scores"]]) for key, _ in SCORES}
            for family, cell in cells.items()
        }
        for n, cells in points.items()
    }


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def verdict(better: Sequence[float], than: Sequence[float], key: str) -> str:
    """`wins`, `loses` or `no difference` of one family beside another on the same seeds, by a paired t test at 95 %.

    Args:
        better: a score of every seed.
        than: the other family's, on the same data.
        key: which score.
    """
    sign = 1 if key == "accuracy" else -1
    gains = [sign * (a - b) for a, b in zip(better, than, strict=True)]
    mean = statistics.fmean(gains)
    degrees = len(gains) - 1
    bound = T95[min(degrees, len(T95) - 1)] * (statistics.stdev(gains) / math.sqrt(len(gains)) if degrees else math.inf)
    return "no difference" if math.isnan(bound) or abs(mean) <= bound else "wins" if mean > 0 else "loses"


def rival(cells: Mapping[str, Any], key: str) -> str | None:
    """The better of the point fits by its mean score."""
    found = {f: statistics.fmean(s[key] for s in cells[f]["scores"]) for f in POINTS if f in cells}
    if not found:
        return None
    return max(found, key=lambda f: found[f]) if key == "accuracy" else min(found, key=lambda f: found[f])


def compared(points: Points) -> dict[str, dict[str, dict[str, tuple[str, str]]]]:
    """Verdicts by number of labels, family and score: (verdict, the point fit it is of)."""
    found: dict[str, dict[str, dict[str, tuple[str, str]]]] = {}
    for n, cells in points.items():
        for family in (f for f in BAYES if f in cells):
            for key, _ in SCORES:
                other = rival(cells, key)
                if other is None:
                    continue
                mine, theirs = ([s[key] for s in cells[f]["scores"]] for f in (family, other))
                found.setdefault(n, {}).setdefault(family, {})[key] = verdict(mine, theirs, key), other
    return found


def sentences(points: Points) -> list[str]:
    """Where Bayesian fits win, where they do not, and whether the gain falls with the number of labels."""
    found = compared(points)
    lines = []
    for key, title in SCORES:
        won, lost, even = ([] for _ in range(3))  # type: ignore[var-annotated]
        for n, families in found.items():
            for family, by_score in families.items():
                place = {"wins": won, "loses": lost, "no difference": even}[by_score[key][0]]
                place.append(f"`{family}` at {int(n):,} (over `{by_score[key][1]}`)")
        parts = [
            f"Bayes wins with {', '.join(won)}." if won else "Bayes wins nowhere.",
            f"It does not win with {', '.join(even)}: no difference that five seeds could show." if even else "",
            f"It loses with {', '.join(lost)}." if lost else "It loses nowhere.",
        ]
        lines.append(f"- **{title}.** " + " ".join(p for p in parts if p))
    return lines + gains(points)


def gains(points: Points) -> list[str]:
    """How much the Bayesian fit with the best mean gains over such a point, on the same seeds, at the fewest and the most labels."""
    whole = [n for n, cells in points.items() if any(f in cells for f in BAYES) and rival(cells, "nll") is not None]
    if len(whole) < 2:
        return []
    lines = []
    for key, title in SCORES:
        (few, few_error), (many, many_error) = (_gain(points[n], key) for n in (whole[0], whole[-1]))
        clear = 2 * math.hypot(few_error, many_error)
        trend = (
            "larger with few labels, as the claim has it" if few - many > clear
            else "smaller with few labels, against the claim" if many - few > clear
            else "within two standard errors of each other"
        )  # fmt: skip
        lines.append(
            f"- Gain in {title} of the best Bayesian fit over the best point, each the best of its kind by the mean on the test set: "
            f"{few:+.3f} ± {few_error:.3f} with {int(whole[0]):,} labels, {many:+.3f} ± {many_error:.3f} with {int(whole[-1]):,}; {trend}."
        )
    return lines


def _gain(cells: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    pick = max if key == "accuracy" else min
    found = {f: [s[key] for s in cells[f]["scores"]] for f in BAYES if f in cells}
    ours = found[pick(found, key=lambda f: statistics.fmean(found[f]))]
    point = rival(cells, key)
    assert point is not None
    sign = 1 if key == "accuracy" else -1
    return _mean_and_error([sign * (a - s[key]) for a, s in zip(ours, cells[point]["scores"], strict=True)])


def render(points: Points, layers: str, parameters: int) -> str:
    """The whole page but its picture."""
    means = summary(points)
    families = list(dict.fromkeys(f for cells in points.values() for f in cells))
    seeds = {len(cell["scores"]) for cells in points.values() for cell in cells.values()}
    counts = [f"{int(n):,} labels ({int(n) / parameters:.3g} a parameter)" for n in points]
    parts = [
        f"The same network, {layers} with {parameters:,} weights and biases, fitted to few labels; mean ± standard error over "
        f"{max(seeds)} seeds. What a family may choose (the prior's scale; steps of the maximum-likelihood fit) is chosen for every "
        "seed by NLL on a held-out fifth of its labelled examples. The ensemble counts as Bayesian here: five modes. Mean field trains with "
        "the KL's weight rising from 0 to 1 over the first half of the steps; the end is the untempered ELBO.",
    ]
    for key, title in SCORES:
        rows = [[f"`{f}`", *(_cell(means[n][f][key]) if f in means[n] else "not run" for n in points)] for f in families]
        parts += [f"## {title[0].upper()}{title[1:]}", table(["family", *counts], rows)]
    parts += [
        "## Where Bayes wins, and where it does not",
        "Each family beside the better of `mle` and `map`, a paired t test at 95 % over the seeds; computed from the figures above.",
        "\n".join(sentences(points)),
        "## What validation chose",
        table(["family", *counts], [[f"`{f}`", *(_chosen(cells.get(f)) for cells in points.values())] for f in families]),
        "## Time",
        table(
            ["family", "fits", "all fits", "median fit", "one step", "largest part"],
            [_time(f, [cells[f] for cells in points.values() if f in cells]) for f in families],
        ),
    ]
    return "\n\n".join(parts)


def _cell(value: tuple[float, float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def _chosen(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    counted = {text: cell["chosen"].count(text) for text in dict.fromkeys(cell["chosen"])}
    return "; ".join(f"{text} ({many}x)" for text, many in counted.items())


def _time(family: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    timing = [cell["timing"] for cell in cells]
    fits = sum(t["fits"] + c["choosing"]["fits"] for t, c in zip(timing, cells, strict=True))
    whole = sum(t["seconds"] + c["choosing"]["seconds"] for t, c in zip(timing, cells, strict=True))
    typical = sorted(timing, key=lambda t: t["median_fit"])[len(timing) // 2]
    return [
        f"`{family}`", str(fits), seconds(whole), seconds(typical["median_fit"]), seconds(typical["step_us"] * 1e-6), limit(typical)
    ]  # fmt: skip
