"""What `gradient_variance` answers: numbers for programs, a small table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..diagnosis.diagnosis import _columns
from .gradient_moments import ratio_and_error

#: Standard errors of zero beyond which a squared bias counts. The errors grow with the estimates, so that normal gradients
#: without a bias pass this less than once in 500 times (10 or 50 blocks, 1 to 100 parameters, 20,000 simulations each).
SIGNIFICANT = 3.0

#: Where float32 gradients with no variance at all would begin to differ in rounding.
_LARGEST_RATIO = 1e9


@dataclass(frozen=True)
class EstimatorCheck:
    """The noise of one estimator's gradient. Every error is a Monte Carlo standard error.

    Attributes:
        name: the estimator.
        kl: where log q - log p(z) comes from: `drawn`, `closed form`, or `none` for a surrogate loss.
        variance, variance_error: trace of the covariance of one gradient, in nats^2.
        draw_variance, draw_variance_error: the part of it that the draws make, given the batch; with all rows, all of it.
        squared_bias, squared_bias_error: |E gradient - reference|^2 in nats^2. The Monte Carlo variance of both means is
            taken out, so that the estimate is unbiased, and may be negative where there is no bias.
        per_parameter: parameter -> variance of each of its elements.
        seconds: wall time of one gradient alone, uncompiled.
        blocks, draw_blocks: the variances again, from each block of draws: what the errors are computed from.
    """

    name: str
    kl: str
    variance: float
    variance_error: float
    draw_variance: float
    draw_variance_error: float
    squared_bias: float
    squared_bias_error: float
    per_parameter: Mapping[str, Tensor] = field(repr=False)
    seconds: float = 0.0
    blocks: tuple[float, ...] = field(default=(), repr=False)
    draw_blocks: tuple[float, ...] = field(default=(), repr=False)

    @property
    def bias_z(self) -> float:
        """The squared bias in its standard errors."""
        return self.squared_bias / self.squared_bias_error if self.squared_bias_error > 0 else 0.0

    @property
    def biased(self) -> bool:
        """Whether the bias is beyond Monte Carlo error."""
        return self.bias_z > SIGNIFICANT


@dataclass(frozen=True, repr=False)
class GradientVariance:
    """Bias and variance of gradient estimators, all at the same parameters.

    The gradient is that of the loss, the negative ELBO in nats, with respect to the trained tensors as they are stored: a
    guide's own units, so that variances of two families do not compare, but those of two estimators do.

    Attributes:
        model, guide: their names.
        loss: what the gradient is of.
        estimators: by name, in the order asked for.
        absent: estimator -> why it does not apply here.
        num_samples: gradients of each estimator.
        num_particles: draws behind one gradient.
        batch_size: rows behind one gradient, None for all.
        reference: the estimator behind the reference gradient, which has its own `num_reference` gradients.
        squared_norm, squared_norm_error: |E gradient|^2 by the reference: what a bias is to be compared with.
        mapped: whether gradients were taken many at once.
        seed: the seed.
    """

    model: str
    guide: str
    loss: str
    estimators: Mapping[str, EstimatorCheck]
    absent: Mapping[str, str]
    num_samples: int
    num_particles: int
    batch_size: int | None
    reference: str
    num_reference: int
    squared_norm: float
    squared_norm_error: float
    mapped: bool
    seed: int

    def __getitem__(self, name: str) -> EstimatorCheck:
        if name not in self.estimators:
            why = self.absent.get(name)
            raise KeyError(f"'{name}' was not measured{f': {why}' if why else ''}; there are {', '.join(self.estimators)}")
        return self.estimators[name]

    def factor(self, name: str, other: str = "reparametrized", *, draws_only: bool = False) -> tuple[float, float]:
        """How many times smaller the variance of `name` is than that of `other`, and the standard error of this number.

        Args:
            draws_only: compares the variance given the batch. That of the batch itself is the same for unbiased estimators.
        """
        a, b = self[name], self[other]
        if draws_only:
            return ratio_and_error(list(b.draw_blocks), list(a.draw_blocks))
        return ratio_and_error(list(b.blocks), list(a.blocks))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it but the variances of single parameters; what is not finite becomes None."""
        names = [f for f in self.__dataclass_fields__ if f not in ("estimators", "absent")]
        kept = [f for f in EstimatorCheck.__dataclass_fields__ if f not in ("per_parameter", "blocks", "draw_blocks")]
        out: dict[str, Any] = {name: _plain(getattr(self, name)) for name in names}
        out["absent"] = dict(self.absent)
        out["estimators"] = {
            name: {f: _plain(getattr(e, f)) for f in kept} | {"biased": e.biased} for name, e in self.estimators.items()
        }
        return out

    def __str__(self) -> str:
        rows = "all rows" if self.batch_size is None else f"batches of {self.batch_size}"
        particles = "1 particle" if self.num_particles == 1 else f"{self.num_particles} particles"
        lines = [
            f"{self.model}, guide {self.guide}: gradients of the {self.loss}, {self.num_samples} an estimator, {rows}, {particles}",
            f"  |E gradient|^2 = {self.squared_norm:.3g} ± {self.squared_norm_error:.1g} nats^2 "
            f"({self.num_reference} more of '{self.reference}')",
            "",
            *_columns(self._table(), numbers=True),
        ]
        wrong = [e.name for e in self.estimators.values() if e.biased]
        lines += [""] if wrong or self.absent else []
        lines += [
            f"warning: '{n}' is biased, its squared bias is {self[n].bias_z:.0f} standard errors from zero" for n in wrong
        ]
        lines += [f"note: no '{name}': {why}" for name, why in self.absent.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def _table(self) -> list[list[str]]:
        batches = self.batch_size is not None
        base = "reparametrized" if "reparametrized" in self.estimators else next(iter(self.estimators))
        head = ["estimator", "KL", "variance", *(["of it draws"] if batches else []), f"{base} / it"]
        table = [[*head, "squared bias", "ms a gradient"]]
        for e in self.estimators.values():
            ratio, error = self.factor(e.name, base, draws_only=batches)
            row = [e.name, e.kl, _with_error(e.variance, e.variance_error)]
            row += [_with_error(e.draw_variance, e.draw_variance_error)] if batches else []
            # Variances that are rounding have no ratio.
            row += ["1" if e.name == base else _with_error(ratio, error) if 0 < ratio < _LARGEST_RATIO else ""]
            row += [_with_error(e.squared_bias, e.squared_bias_error), f"{1e3 * e.seconds:.2g}"]
            table.append(row)
        return table


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g} ± {error:.1g}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
