"""The evidence of counts whose chances are Beta distributed, exact to rounding however alike the chances are.

    log p(x | a, b) = log C(n, x) + log B(a + x, b + n - x) - log B(a, b)

The difference of the two log Beta functions loses all its digits where a + b is large (chances that hardly
differ), so it is written in rising factorials, log Gamma(a + x) - log Gamma(a), each of which keeps them.
"""

import torch
from torch import Tensor


def log_rising(a: Tensor, k: Tensor) -> Tensor:
    """Return log Gamma(a + k) - log Gamma(a) for a > 0, k >= 0.

    Above a = 20 it is the difference of two Stirling series, whose remainder is below 1e-12 there; the
    leading terms are subtracted by hand.
    """
    direct = torch.lgamma(a + k) - torch.lgamma(a)
    large = a.clamp_min(20.0)
    series = (large - 0.5) * torch.log1p(k / large) + k * torch.log(large + k) - k
    series = series + _stirling_rest(large + k) - _stirling_rest(large)
    return torch.where(a < 20.0, direct, series)


def _stirling_rest(a: Tensor) -> Tensor:
    inverse = 1.0 / a
    square = inverse * inverse
    return inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))


class CountEvidence:
    """sum_n log p(x_n | a, b) in nats, for many (a, b) and few distinct counts.

    Args:
        x: `(N,)` successes.
        total_count: `(N,)` trials.
        coefficients: whether the binomial coefficients count.
    """

    def __init__(self, x: Tensor, total_count: Tensor, coefficients: bool = True) -> None:
        self._heads = torch.unique(x, return_counts=True)
        self._tails = torch.unique(total_count - x, return_counts=True)
        self._flips = torch.unique(total_count, return_counts=True)
        one = torch.ones((), dtype=x.dtype, device=x.device)
        choose = log_rising(one, total_count) - log_rising(one, x) - log_rising(one, total_count - x)
        self._constant = choose.sum() if coefficients else torch.zeros_like(one)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the log evidence for a and b of any shapes that broadcast."""
        return (
            self._constant + _total(a, *self._heads) + _total(b, *self._tails) - _total(a + b, *self._flips)
        )


def _total(a: Tensor, k: Tensor, times: Tensor, chunk: int = 1_000_000) -> Tensor:
    """Return sum_k times_k log_rising(a, k), of a's shape, never holding more than `chunk` terms at once."""
    flat = a.reshape(-1, 1)
    rows = max(1, chunk // max(len(k), 1))
    weight = times.to(a.dtype)
    return torch.cat([log_rising(part, k) @ weight for part in flat.split(rows)]).reshape(a.shape)
