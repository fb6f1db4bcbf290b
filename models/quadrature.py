"""One-dimensional quadrature: where a density lives, how much of it there is, and how to draw from it.

Smooth densities that vanish at both ends are integrated by the trapezoid rule, which converges faster than
any power of the spacing there (Trefethen & Weideman 2014, "The exponentially convergent trapezoidal rule").
Everything is in logs, in float64, and in nats.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DROP = 45.0  # nats below the peak where a tail is cut: e^-45 is 3e-20, out of float64's sight beside the peak


def peak_interval(
    log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, nodes: int = 513, tilt: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the ends outside which a log density lies more than `DROP` nats below its peak.

    A grid over [low, high] is narrowed to the nodes near its best one and their neighbours, again and again,
    until little is left to cut; then the ends are bisected. The peak may be a million times narrower than the
    first spacing; the density must be unimodal at spacings that are wider than its peak.

    Args:
        log_density: takes positions `(*B, K)`, gives log densities in nats, up to a constant of each row.
        low: `(*B,)` left ends of the search.
        high: `(*B,)` right ends of the search.
        nodes: positions of each grid.
        tilt: makes the interval hold the density times exp(tilt position) as well, so that this moment of
            the position's exponential can be taken from it.

    Returns:
        Left and right ends, each `(*B,)`, smooth functions of whatever the rows depend on.

    Raises:
        ArithmeticError: a density has not fallen at an end of its search, so it may have no finite integral.
    """
    tilts = torch.tensor([0.0, tilt] if tilt else [0.0], dtype=low.dtype, device=low.device)
    peak = low.new_full((*low.shape, len(tilts)), -torch.inf)

    def levels(positions: Tensor) -> Tensor:
        """Return the log densities, plain and tilted, `(*B, K, T)`."""
        return log_density(positions).unsqueeze(-1) + tilts * positions.unsqueeze(-1)

    def holds(positions: Tensor) -> Tensor:
        return (levels(positions) > peak.unsqueeze(-2) - DROP).any(-1)

    for narrowing in range(60):  # each round but the last halves an interval at least
        grid = spread(low, high, nodes)
        values = levels(grid)
        peak = torch.maximum(peak, values.amax(-2))
        inside = (values > peak.unsqueeze(-2) - DROP).any(-1).int()
        first, last = inside.argmax(-1), nodes - 1 - inside.flip(-1).argmax(-1)
        if narrowing == 0 and bool((inside[..., 0] + inside[..., -1]).any()):
            raise ArithmeticError("the density does not fall off within the search")
        cells = torch.stack([(first - 1).clamp_min(0), first, last, (last + 1).clamp_max(nodes - 1)], -1)
        cells = grid.gather(-1, cells)
        settled = bool((cells[..., 3] - cells[..., 0] > 0.5 * (high - low)).all())
        low, high = cells[..., 0], cells[..., 3]
        if settled:
            break
    outer, inner = cells[..., [0, 3]], cells[..., [1, 2]]
    for _ in range(12):  # to a thousandth of a cell
        middle = 0.5 * (outer + inner)
        kept = holds(middle)
        outer, inner = torch.where(kept, outer, middle), torch.where(kept, middle, inner)
    return outer[..., 0], outer[..., 1]


def spread(low: Tensor, high: Tensor, nodes: int) -> Tensor:
    """Return `nodes` equally spaced positions `(*B, nodes)` between ends `(*B,)`."""
    part = torch.linspace(0.0, 1.0, nodes, dtype=low.dtype, device=low.device)
    return low.unsqueeze(-1) + (high - low).unsqueeze(-1) * part


def log_trapezoid(nodes: Tensor, log_density: Tensor) -> Tensor:
    """Return the trapezoid rule's terms, `(*B, K)`; their logsumexp is the log integral.

    Args:
        nodes: `(K,)` or `(*B, K)` equally spaced positions.
        log_density: `(*B, K)` log densities there, in nats.
    """
    spacing = (nodes[..., -1:] - nodes[..., :1]) / (nodes.shape[-1] - 1)
    weight = torch.ones_like(nodes) * spacing
    weight[..., [0, -1]] *= 0.5
    return log_density + weight.log()


def inverse_cdf(nodes: Tensor, log_density: Tensor, u: Tensor) -> Tensor:
    """Return the quantiles of the density that is log-linear between nodes.

    Between nodes the log density is off by h^2 |f''| / 8 for a spacing h: with 4,000 nodes over a Gaussian's
    19 standard deviations that is 3e-6 nats, with 128 it is 0.003.

    Args:
        nodes: `(K,)` or `(*B, K)` increasing positions.
        log_density: `(K,)` or `(*B, K)` log densities, up to a constant of each row.
        u: `(*B,)` probabilities in [0, 1).

    Returns:
        `(*B,)` positions.
    """
    level = log_density - log_density.amax(-1, keepdim=True)
    level = level.clamp_min(-700.0)  # exp's range; such cells are never drawn
    slope = level.diff(dim=-1)
    top = torch.maximum(level[..., 1:], level[..., :-1])
    flat = slope.abs() < 1e-9
    steep = torch.where(flat, 1.0, slope.abs())
    mass = top.exp() * torch.where(flat, 1.0, -torch.expm1(-steep) / steep) * nodes.diff(dim=-1)
    cumulative = mass.cumsum(-1)
    target = u * cumulative[..., -1]
    if cumulative.dim() == 1:
        cell = torch.searchsorted(cumulative, target, right=True).clamp_max(len(mass) - 1)
    else:
        cell = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).clamp_max(mass.shape[-1] - 1)

    def pick(table: Tensor, at: Tensor) -> Tensor:
        if cumulative.dim() == 1:
            return table[at]
        return table.expand(*at.shape[:-1], -1).gather(-1, at).squeeze(-1)

    slope, mass, cumulative_at = pick(slope, cell), pick(mass, cell), pick(cumulative, cell)
    left, right = pick(nodes, cell), pick(nodes, cell + 1)
    part = (1.0 - (cumulative_at - target) / mass).clamp(0.0, 1.0)
    flat = slope.abs() < 1e-9
    steep = torch.where(flat, 1.0, slope)
    part = torch.where(flat, part, torch.log1p(part * torch.expm1(steep)) / steep)
    return left + part.clamp(0.0, 1.0) * (right - left)
