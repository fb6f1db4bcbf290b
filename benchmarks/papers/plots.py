"""The reproduced figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from .published import PUBLISHED
from .uci_report import mean_and_error

LINES = ("-", "--", ":")


def uci(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """RMSE above, log likelihood below, one column a data set; lines are the published means, bars standard errors."""
    figure, panels = plt.subplots(2, len(found), figsize=(0.6 + 3.1 * len(found), 5.6), layout="constrained", squeeze=False)
    for column, (name, cells) in enumerate(found.items()):
        for row, (key, label) in enumerate((("rmse", "test RMSE"), ("log_likelihood", "test log likelihood (nats)"))):
            axes = panels[row, column]
            for number, (paper, style) in enumerate(zip(PUBLISHED.values(), LINES, strict=True)):
                axes.axhline(paper.figures[name][row], color="0.35", ls=style, lw=1.2, label=paper.title, zorder=number)
            for number, cell in enumerate(cells.values()):
                mean, error = mean_and_error(cell, key)
                axes.errorbar(number, mean, yerr=error, fmt="o", ms=5, capsize=3, color=f"C{number}", zorder=5)
            axes.set_xticks(
                range(len(cells)), list(cells) if row else [""] * len(cells), rotation=40, ha="right", fontsize="small"
            )
            axes.set_xlim(-0.6, len(cells) - 0.4)
            axes.grid(axis="y", alpha=0.3)
            if row == 0:
                axes.set_title(name)
            if column == 0:
                axes.set_ylabel(label)
    handles, titles = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=len(titles), fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def labels(points: Mapping[str, Any], scores: tuple[tuple[str, str], ...], parameters: int, path: Path) -> None:
    """One panel a score, against labels per parameter; bars are standard errors over the seeds.

    Args:
        points: number of labels -> family -> {score: (mean, standard error)}.
        scores: key and axis label of each panel.
        parameters: weights and biases of the network.
    """
    figure, panels = plt.subplots(1, len(scores), figsize=(4.4 * len(scores), 4.0), layout="constrained")
    families = list(dict.fromkeys(family for cells in points.values() for family in cells))
    for axes, (key, label) in zip(panels, scores, strict=True):
        for number, family in enumerate(families):
            at = [n for n in points if family in points[n]]
            # Families at one number of labels stand side by side, a few per cent apart on the logarithmic axis.
            x = [int(n) / parameters * 1.04 ** (number - (len(families) - 1) / 2) for n in at]
            means, errors = zip(*(points[n][family][key] for n in at), strict=True)
            style = "o--" if family in ("mle", "map") else "o-"
            axes.errorbar(x, means, yerr=errors, fmt=style, ms=4, lw=1.3, capsize=2, color=f"C{number}", label=family)
        axes.set_xscale("log")
        axes.set_xticks(
            [int(n) / parameters for n in points], [f"{int(n) / parameters:.2g}\n{int(n):,} labels" for n in points]
        )
        axes.minorticks_off()
        axes.set_xlabel("labels per parameter")
        axes.set_title(label, fontsize="medium")
        axes.grid(alpha=0.3)
    # Likelihoods of different families lie orders of magnitude apart.
    panels[1].set_yscale("log")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)
