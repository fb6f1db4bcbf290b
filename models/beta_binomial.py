"""The evidence of counts whose chances are Beta distributed, exact to rounding however alike the chances are.

    log p(x | a, b) = log C(n, x) + log B(a + x, b + n - x) - log B(a, b)

The difference of the two log Beta functions loses all its digits where a + b is large (chances that hardly
differ), so it is written in rising factorials, log Gamma(a + x) - log Gamma(a), each of which keeps them.
"""

import torch
from torch import Tensor


def log_rising(log_a: Tensor, k: Tensor) -> Tensor:
    """Return log Gamma(a + k) - log Gamma(a) for whole k >= 0, with a given by its logarithm.

    Above a = 20 it is the difference of two Stirling series, whose remainder is below 1e-12 there, the
    leading terms subtracted by hand. Below, log a is taken out, so that a may be smaller than any float.
    """
    a, whole = log_a.exp(), k.clamp_min(1.0)
    direct = log_a + torch.lgamma(a + whole) - torch.lgamma(a + 1.0)
    large = a.clamp_min(20.0)
    series = (large - 0.5) * torch.log1p(k / large) + k * torch.log(large + k) - k
    series = series + _stirling_rest(large + k) - _stirling_rest(large)
    return torch.where(k == 0, 0.0, torch.where(a < 20.0, direct, series))


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
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        choose = log_rising(zero, total_count) - log_rising(zero, x) - log_rising(zero, total_count - x)
        self._constant = choose.sum() if coefficients else zero

    def __call__(self, log_a: Tensor, log_b: Tensor, log_sum: Tensor) -> Tensor:
        """Return the log evidence for log a, log b, and log(a + b), of any shapes that broadcast."""
        likelihood = _total(log_a, *self._heads) + _total(log_b, *self._tails)
        return self._constant + likelihood - _total(log_sum, *self._flips)


def _total(log_a: Tensor, k: Tensor, times: Tensor, chunk: int = 1_000_000) -> Tensor:
    """Return sum_k times_k log_rising(log_a, k), of its shape, holding at most `chunk` terms at once."""
    flat = log_a.reshape(-1, 1)
    rows = max(1, chunk // max(len(k), 1))
    weight = times.to(log_a.dtype)
    return torch.cat([log_rising(part, k) @ weight for part in flat.split(rows)]).reshape(log_a.shape)
