"""Draws docs/first_screen.png from the README's own code: a stock fit that is wrong and says nothing, beside `bayeszoo.fit`.

python docs/make_first_screen.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

HERE = Path(__file__).resolve().parent

# Okabe and Ito (2008): told apart by colour-blind readers.
STOCK, OURS, EXACT, INK = "#D55E00", "#0072B2", "#999999", "#222222"


def readme_names() -> dict[str, Any]:
    """What the README's first two blocks leave behind."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```python ([\w-]+)\n(.*?)^```$", text, re.M | re.S))
    names: dict[str, Any] = {}
    for block in ("stock", "checked"):
        exec(compile(blocks[block], block, "exec"), names)
    return names


def ellipse(mean: np.ndarray, covariance: np.ndarray, sds: float) -> np.ndarray:
    """The curve at a distance of so many sds, (2, 200)."""
    angle = np.linspace(0, 2 * np.pi, 200)
    return mean[:, None] + sds * np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])


def draw_loss(ax: Any, names: dict[str, Any]) -> None:
    """The stock fit's losses, and the best loss, which the loss alone does not show."""
    losses = np.array(names["losses"])
    steps = np.arange(1, len(losses) + 1)
    best = -float(names["regression"].log_evidence(names["data"]))
    ax.plot(steps, losses, color=STOCK, lw=0.8)
    ax.axhline(best, color=EXACT, ls="--", lw=1.2)
    ax.text(
        1.0,
        best - 1.5,
        "best possible (unknown in practice)",
        color="#666666",
        va="top",
        transform=ax.get_yaxis_transform(),
        ha="right",
    )
    last = losses[-50:].mean()
    ax.annotate(
        "flat: it looks done", (2000, last + 3), (1150, last + 38), color=STOCK, arrowprops={"arrowstyle": "->", "color": STOCK}
    )
    ax.set(
        xlabel="step",
        ylabel="loss (nats)",
        title="The stock fit's loss looks done ...",
        ylim=(best - 12, best + 80),
        xlim=(0, len(losses)),
    )


def draw_posterior(ax: Any, names: dict[str, Any], covariances: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Both posteriors over the exact one, at one and two sds."""
    for sds, alpha in ((2, 0.25), (1, 0.35)):
        ax.fill(*ellipse(*covariances["exact"], sds), color=EXACT, alpha=alpha, lw=0)
        ax.plot(*ellipse(*covariances["bayeszoo"], sds), color=OURS, lw=1.4)
        ax.plot(*ellipse(*covariances["stock"], sds), color=STOCK, lw=1.4)
    ax.set(
        xlabel="theta 0, intercept (thousand euros)",
        ylabel="theta 1 (thousand euros per 10 m²)",
        title="... five sds from the posterior ...",
    )
    ax.text(3, 37.2, "stock", color=STOCK, ha="left")
    ax.text(44, 32.2, "bayeszoo, on\nthe exact one (grey)", color=OURS, ha="left")
    ax.set_xlim(-25, 82)


def draw_lines(ax: Any, names: dict[str, Any], covariances: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """What each posterior says about the line, two sds wide, down to an area of zero."""
    area, price = names["area"].numpy(), names["price"].numpy()
    x = np.stack([np.ones(100), np.linspace(0, 10.2, 100)])
    ax.plot(area, price, ".", color=INK, ms=3, alpha=0.5)
    for name, colour in (("exact", EXACT), ("stock", STOCK), ("bayeszoo", OURS)):
        mean, covariance = covariances[name]
        middle, sd = mean @ x, np.sqrt(np.einsum("in,ij,jn->n", x, covariance, x))
        ax.fill_between(x[1], middle - 2 * sd, middle + 2 * sd, color=colour, alpha=0.3, lw=0)
        ax.plot(x[1], middle, color=colour, lw=1.2)
    ax.set(
        xlabel="area (10 m²)",
        ylabel="price (thousand euros)",
        title="... and sure of the wrong line",
        xlim=(0, 10.2),
        ylim=(-40, 400),
    )
    ax.text(0.6, 165, "bayeszoo", color=OURS)
    ax.text(1.5, 12, "stock", color=STOCK)


def main() -> None:
    """Fits both and writes the picture."""
    torch.set_num_threads(1)
    names = readme_names()
    design = torch.stack([torch.ones(len(names["area"])), names["area"]]).double()
    precision = design @ design.T / 20.0**2 + torch.eye(2, dtype=torch.float64) / 100.0**2
    exact = names["regression"].exact_posterior(names["data"])
    ours = names["fit"].sample(20_000)["theta"].double().numpy()
    stock = names["stock"]
    covariances = {
        "exact": (exact.mean["theta"].numpy(), precision.inverse().numpy()),
        "bayeszoo": (ours.mean(0), np.cov(ours.T)),
        "stock": (stock.mean.detach().double().numpy(), stock.covariance_matrix.detach().double().numpy()),
    }
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
        }
    )
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 3.7), layout="constrained")
    draw_loss(axes[0], names)
    draw_posterior(axes[1], names, covariances)
    draw_lines(axes[2], names, covariances)
    figure.savefig(HERE / "first_screen.png", dpi=110, metadata={"Software": ""})


if __name__ == "__main__":
    main()
