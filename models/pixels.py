"""What a picture's pixels are drawn from, given the numbers that a generator puts out for each.

| word | pixels | numbers a pixel |
|---|---|---|
| `bernoulli` | 0 or 1 | log odds |
| `categorical` | one of K grey levels 0, 1/(K-1), ..., 1 | K logits |
| `logistic` | the same, from a logistic cut into K bins (Salimans et al. 2017) | mean and log scale |
| `gaussian` | any number | mean; one learned scale for all pixels |

Densities of grey levels are probabilities, so log p(x) of different families can be compared; a Gaussian's cannot be compared
with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

WORDS = ("bernoulli", "categorical", "logistic", "gaussian")

#: A generator's log scale of a logistic stays above this: narrower than a bin of 256 levels, and no overflow.
_LEAST_LOG_SCALE = -7.0

#: The whitest pixel of digits (17 levels), bytes and 16-bit pictures.
_TOPS = (16, 255, 65_535)


class Pixels(nn.Module):
    """The distribution of pictures given a generator's output.

    Args:
        word: `bernoulli`, `categorical`, `logistic` or `gaussian`.
        levels: K, number of grey levels.
        scale: the standard deviation at which a Gaussian's learned one begins.
    """

    def __init__(self, word: str, levels: int = 256, scale: float = 0.3) -> None:
        super().__init__()
        if word not in WORDS:
            raise ValueError(f"unknown likelihood '{word}'; choose one of {', '.join(WORDS)}")
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels is the number of grey levels, a whole number of at least 2, got {levels!r}")
        if not scale > 0:
            raise ValueError(f"scale is the first standard deviation of a pixel, which must be positive, got {scale!r}")
        self.word, self.levels = word, levels
        if word == "gaussian":
            self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    @property
    def per_pixel(self) -> int:
        """Numbers that the generator has to put out for each pixel."""
        return {"bernoulli": 1, "categorical": self.levels, "logistic": 2, "gaussian": 1}[self.word]

    def distribution(self, out: Tensor, event_dim: int) -> Any:
        """Return p(x | z) of pictures with `event_dim` dimensions.

        Args:
            out: `(N, *shape, per_pixel)`.
        """
        if self.word == "bernoulli":
            fn = dist.Bernoulli(logits=out.squeeze(-1))
        elif self.word == "gaussian":
            fn = dist.Normal(out.squeeze(-1), self.log_scale.exp())
        elif self.word == "categorical":
            fn = GreyLevels(torch.log_softmax(out, -1))
        else:
            fn = CutLogistic(out[..., 0], out[..., 1], self.levels)
        return fn.to_event(event_dim)

    def mean(self, out: Tensor) -> Tensor:
        """Return the expected pixels `(N, *shape)`."""
        mean: Tensor = self.distribution(out, 0).mean
        return mean

    def check_range(self, x: Tensor) -> None:
        """Raise ValueError where pixels are no numbers of the range of those that can be drawn, naming what would help."""
        if not x.is_floating_point():
            whole = f"x.float() / {_remedy_top(float(x.max()))}" if float(x.max()) > 1 else "x.float()"
            raise ValueError(f"pixels must be floating-point numbers, and these are {x.dtype}; give {whole}")
        low, high = float(x.min()), float(x.max())
        if self.word == "gaussian":
            return
        if low < 0 or high > 1:
            raise ValueError(
                f"likelihood '{self.word}' takes pixels from 0 to 1, and these run from {low:g} to {high:g}; {_remedy(low, high)}, or use "
                "likelihood='gaussian'"
            )

    def check(self, x: Tensor) -> None:
        """Raise ValueError where pixels lie outside of what can be drawn, naming what would help."""
        self.check_range(x)
        if self.word == "gaussian":
            return
        top = 1 if self.word == "bernoulli" else self.levels - 1
        if bool(((x * top - (x * top).round()).abs() > 1e-3).any()):
            if self.word == "bernoulli":
                raise ValueError(
                    "likelihood 'bernoulli' takes pixels that are 0 or 1, and these are grey; use data.binarized(seed=0), or "
                    "likelihood='logistic' for grey levels"
                )
            raise ValueError(
                f"likelihood '{self.word}' takes {self.levels} grey levels, multiples of 1/{top}, and these pixels lie between; "
                "give levels as they are (17 for digits, 256 for bytes), or round x * (levels - 1)"
            )


def _remedy_top(high: float) -> str:
    """The white that pixels up to `high` are measured by."""
    return f"{next((top for top in _TOPS if top / 2 < high <= top), 255 if 16 < high <= 255 else high):g}"


def _remedy(low: float, high: float) -> str:
    """What brings pixels of such a range between 0 and 1."""
    if low >= -0.1 and high <= 1.1:
        return "they all but fit: take x.clamp(0, 1)"
    if low >= 0:  # bytes need not reach 255
        return f"divide them by {_remedy_top(high)}"
    if low >= -1 and high <= 1:
        return "take (x + 1) / 2"
    return "undo what standardised them, or give the pictures as they were"


class GreyLevels(dist.TorchDistribution):
    """A pixel with K grey levels 0, 1/(K-1), ..., 1.

    Args:
        log_probs: `(..., K)` normalised.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.unit_interval
    #: Its log_prob is the logarithm of a probability, not of a density.
    probability = True

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs, self.levels = log_probs, log_probs.shape[-1]
        super().__init__(log_probs.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GreyLevels:
        """The same pixel in a larger batch."""
        return GreyLevels(self.log_probs.expand(*batch_shape, self.levels))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of grey values."""
        level = (value * (self.levels - 1)).round().long()
        log_probs, level = torch.broadcast_tensors(self.log_probs, level.unsqueeze(-1))
        return log_probs.gather(-1, level[..., :1]).squeeze(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Grey values, by inversion of one uniform number each."""
        shape = torch.Size(sample_shape) + self.batch_shape
        u = torch.rand(shape, dtype=self.log_probs.dtype, device=self.log_probs.device)
        level = (u.unsqueeze(-1) >= self.log_probs.exp().cumsum(-1)).sum(-1).clamp_max(self.levels - 1)
        return level.to(self.log_probs.dtype) / (self.levels - 1)

    @property
    def _values(self) -> Tensor:
        return torch.linspace(0, 1, self.levels, dtype=self.log_probs.dtype, device=self.log_probs.device)

    @property
    def mean(self) -> Tensor:
        """Expected grey value."""
        return (self.log_probs.exp() * self._values).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the grey value."""
        return (self.log_probs.exp() * self._values.square()).sum(-1) - self.mean.square()


class CutLogistic(dist.TorchDistribution):
    """A pixel with K grey levels 0, 1/(K-1), ..., 1: a logistic cut into bins, the outermost reaching to infinity.

    Level x holds sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s), h half a level; in logarithms, since far bins hold
    less than any float. Only the observed bin is computed, whatever K.

    Args:
        mean, log_scale: `(...)` of the logistic.
        levels: K.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.unit_interval
    #: Its log_prob is the logarithm of a probability, not of a density.
    probability = True

    def __init__(self, mean: Tensor, log_scale: Tensor, levels: int) -> None:
        self.center, self.levels = mean, levels
        self.inverse_scale = torch.exp(-log_scale.clamp_min(_LEAST_LOG_SCALE))
        super().__init__(mean.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CutLogistic:
        """The same pixel in a larger batch."""
        center = self.center.expand(batch_shape)
        return CutLogistic(center, -self.inverse_scale.log().expand(batch_shape), self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of grey values."""
        top = self.levels - 1
        level = (value * top).round()
        high = ((level + 0.5) / top - self.center) * self.inverse_scale
        low = ((level - 0.5) / top - self.center) * self.inverse_scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        width = (self.inverse_scale / top).clamp_min(1e-12)
        middle = torch.log(-torch.expm1(-width))
        below = torch.where(level < top, F.logsigmoid(high), torch.zeros_like(high))
        above = torch.where(level > 0, F.logsigmoid(-low), torch.zeros_like(low))
        inside = (level > 0) & (level < top)
        return below + above + torch.where(inside, middle, torch.zeros_like(middle))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Grey values, by inversion of one uniform number each."""
        shape = torch.Size(sample_shape) + self.batch_shape
        u = torch.rand(shape, dtype=self.center.dtype, device=self.center.device).clamp(1e-6, 1 - 1e-6)
        top = self.levels - 1
        return ((self.center + torch.logit(u) / self.inverse_scale) * top).round().clamp(0, top) / top

    def _bins(self) -> GreyLevels:
        values = torch.linspace(0, 1, self.levels, dtype=self.center.dtype, device=self.center.device)
        wide = CutLogistic(self.center.unsqueeze(-1), -self.inverse_scale.log().unsqueeze(-1), self.levels)
        return GreyLevels(wide.log_prob(values))

    @property
    def mean(self) -> Tensor:
        """Expected grey value."""
        return self._bins().mean

    @property
    def variance(self) -> Tensor:
        """Variance of the grey value."""
        return self._bins().variance
