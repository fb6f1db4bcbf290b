"""The lecture's two crude answers for linear regression: maximum likelihood and maximum a posteriori."""

import torch
from torch import Tensor

from .linear_diagonal import ROUNDING, DiagonalRegression
from .linear_posterior import NOISELESS, log_half_normal, noise_bracket
from .quadrature import peak_interval, spread


def least_squares(design: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the theta `(D,)` of least squares and sigma = sqrt(rss / N), None where the fit is perfect.

    Args:
        design: `(N, D)` inputs, with the column of ones where there is an intercept.
        y: `(N,)` targets.

    Raises:
        ValueError: more than one theta fits best.
    """
    num_rows, dim = design.shape
    length = design.square().sum(0).sqrt()  # columns in different units must not look collinear
    length = torch.where(length > 0, length, 1.0)
    u, s, vh = torch.linalg.svd(design / length, full_matrices=False)
    rank = int((s > ROUNDING * s[0]).sum())
    if rank < dim:
        raise ValueError(
            f"maximum likelihood is not unique: {num_rows} rows determine {rank} of {dim} coefficients; "
            "give more rows, leave columns out, or use the MAP or the full posterior"
        )
    theta = vh.mT @ ((u.mT @ y) / s) / length
    rss = (y - u @ (u.mT @ y)).square().sum()
    if num_rows == dim or bool(rss <= ROUNDING**2 * y.square().sum()):
        return theta, None
    return theta, (rss / num_rows).sqrt()


def joint_mode(regression: DiagonalRegression, noise_prior_scale: Tensor) -> Tensor:
    """Return the sigma of the mode of p(theta, sigma | y), theta being at its best for each sigma.

    Raises:
        ValueError: the density is unbounded at sigma = 0.
    """

    def height(log_sigma: Tensor) -> Tensor:
        sigma = log_sigma.exp()
        return regression.log_peak(sigma) + log_half_normal(sigma, noise_prior_scale)

    if float(regression.residual) == 0.0:
        raise ValueError(
            "the joint density of theta and sigma grows without bound as sigma falls to zero, because the "
            f"{len(regression.s)} coefficients fit all {regression.num_rows} targets; give noise_scale, "
            "more rows, or use the full posterior"
        )
    low, high = noise_bracket(regression, noise_prior_scale)
    try:
        ends = peak_interval(height, low, high)
    except ArithmeticError:
        raise ValueError(NOISELESS) from None
    grid = spread(*ends, 4097)
    best = int(height(grid).argmax().clamp(1, len(grid) - 2))
    left, right = grid[best - 1], grid[best + 1]
    for _ in range(60):  # bisection on the slope, down to the last bit
        middle = 0.5 * (left + right)
        rising = _slope(regression, noise_prior_scale, middle) > 0.0
        left, right = torch.where(rising, middle, left), torch.where(rising, right, middle)
    return (0.5 * (left + right)).exp()


def _slope(regression: DiagonalRegression, noise_prior_scale: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the derivative of the height by log sigma."""
    variance = (2.0 * log_sigma).exp()
    total = regression.s.square() + variance
    pull = regression.rss / variance + (regression.c.square() * variance / total.square()).sum()
    return pull - regression.num_rows - variance / noise_prior_scale.square()
