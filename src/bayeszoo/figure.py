"""What all figures share: colours, axes, legends.

Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; matplotlib's settings are left alone.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, GREY = "#222222", "#999999"


def open_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def add_legend(ax: Axes) -> Axes:
    """The same axes with a legend."""
    ax.legend(frameon=False, fontsize=8)
    return ax
